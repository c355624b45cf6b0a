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

# Tests in namespaces depend on how busy the machine is while others run beside them. One that fails gets a second try,
# alone; if it passes then, it is named as unsteady. Many that fail at once are no accident.
second_tries_max=3
unsteady=""
tries=$(awk '
    / +Running / {
        target = ""
        if ($2 == "unittests") { kind = $3 } else { kind = $2 }
        if (kind == "src/lib.rs") target = "--lib"
        else if (kind == "src/main.rs") target = "--bin adit"
        else if (match(kind, /^tests\/[a-z_0-9]+/)) target = "--test " substr(kind, 7, RLENGTH - 6)
    }
    / +Doc-tests / { target = "" }
    /^test .* \.\.\. FAILED$/ { print target "\t" $2 }' "$log")
tries_count=$(printf '%s' "$tries" | grep -c .)
if (( status != 0 && tries_count > 0 && tries_count <= second_tries_max )); then
    while IFS=$'\t' read -r target name; do
        [[ -n "$target" ]] || continue
        echo
        echo "=== $name failed; once more, alone"
        # shellcheck disable=SC2086 # a target is an option and its word
        if cargo test "${bounded[@]}" $target -- --exact "$name" --include-ignored --show-output </dev/null 2>&1 |
            tee "$log.again" && grep -q '^test result: ok. 1 passed' "$log.again"; then
            unsteady+="$name"$'\n'
        fi
    done <<<"$tries"
fi

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
steady_after_all=$(printf '%s' "$unsteady" | grep -c .)
passed=$(( passed + steady_after_all ))
failed=$(( failed - steady_after_all ))
if (( steady_after_all > 0 && failed == 0 )); then status=0; fi
if (( steady_after_all > 0 )); then
    echo
    echo "=== unsteady, failed among others and passed alone: $steady_after_all"
    printf '%s' "$unsteady"
fi

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
