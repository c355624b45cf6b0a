#!/bin/bash
# Runs every test and sums up: the runner's closing lines, what was skipped and why, and a line of totals, which also
# goes to target/test-summary. Fails if a test fails; what was skipped is for the caller to judge.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

mkdir -p target
log=target/test.log
export ADIT_SKIPS="$PWD/target/test-skips"
: >"$log"
: >"$ADIT_SKIPS"
# A backtrace for each failing assertion buries the testbed's own report of daemons and networks.
export RUST_BACKTRACE="${ADIT_BACKTRACE:-0}"
start=$SECONDS
status=0

# A target that hangs must fail with its name while the others still run. The slowest takes about three minutes.
limit_s=900
# With a terminal the tests stay in its foreground, so that Ctrl-C ends them; without one their children are ended, too.
foreground=$([[ -t 0 ]] && echo "--foreground" || true)
runner="timeout --verbose --kill-after=10 $foreground $limit_s"
bounded=(--config "target.'cfg(unix)'.runner = '$runner'")

# Slow tests that are ignored by default run too: nothing is left out here that could run.
cargo test "${bounded[@]}" --no-fail-fast --lib --bins --tests --examples -- --include-ignored --show-output 2>&1 |
    tee -a "$log" || status=1
cargo test "${bounded[@]}" --no-fail-fast --doc 2>&1 | tee -a "$log" || status=1

# Tests print the line too, for those that do not know of the file.
skips=$({ cat "$ADIT_SKIPS"; grep -a '^SKIPPED: ' "$log"; } | sort -u)

echo
echo "=== what the test runner said"
# Some tests run themselves again inside of a namespace: their inner runners filter, the outer ones do not.
results='^test result: .*; 0 filtered out;'
grep -aE "^ +(Running|Doc-tests) |$results|^error" "$log"
sum() { grep -aE "$results" "$log" | grep -oE "[0-9]+ $1" | awk '{ total += $1 } END { print total + 0 }'; }
passed=$(sum passed)
failed=$(sum failed)
skipped=$(( $(printf '%s' "$skips" | grep -c .) + $(sum ignored) ))
# A test that says it was skipped returns like one that passed.
passed=$(( passed - $(printf '%s' "$skips" | grep -c .) ))
# A target that dies, or is ended at its limit, has no result line; one that does not build has not even begun.
died=$(awk -v results="$results" '
    /^ +(Running|Doc-tests) / { total += open; open = 1 }
    $0 ~ results { open = 0 }
    END { print total + open }' "$log")
failed=$(( failed + died ))
if (( status != 0 && failed == 0 )); then failed=1; fi

if (( skipped > 0 )); then
    echo
    echo "=== skipped: $skipped"
    printf '%s\n' "$skips"
    grep -aE '^test .* \.\.\. ignored' "$log"
fi
echo
echo "tests took $(( SECONDS - start )) s"
echo "$passed passed, $failed failed, $skipped skipped" | tee target/test-summary
exit "$status"
