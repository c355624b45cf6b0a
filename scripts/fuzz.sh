#!/usr/bin/env bash
# Searches with the fuzz targets: `make fuzz-run`.
#
#   FUZZ_SECONDS   for each target (60)
#   FUZZ_TARGETS   which, by name (all)
#   FUZZ_FOUND     where inputs go that cover something new, a folder for each target (fuzz/found)
#   FUZZ_TABLE     the file that gets a line for each run (fuzz/runs.tsv); its seconds are of processor time
#   FUZZ_BINARIES  targets that are built already, in this folder
#
# `scripts/fuzz.sh --build` only builds, `--sum` adds the table up, and `--minimise` takes into fuzz/corpus what of
# FUZZ_FOUND covers more than is covered already.
#
# Each target starts from fuzz/corpus and from what was found before. The processes run at idle priority. Exits with 1
# when a target crashed; the input is then under FUZZ_FOUND/crashes.
set -euo pipefail
cd "$(dirname "$0")/.."

found=${FUZZ_FOUND:-fuzz/found}
table=${FUZZ_TABLE:-fuzz/runs.tsv}
columns='date\ttarget\tcommit\tseconds\texecutions\tcov\tfeatures\tcorpus\tcrashes'

if [ "${1:-}" = --sum ]; then
    awk -F'\t' 'NR > 1 { seconds[$2] += $4; executions[$2] += $5; crashes[$2] += $9; if ($6 > cov[$2]) cov[$2] = $6 }
        END { for (target in seconds)
            printf "%s\t%.1f min\t%d executions\tcov %d\t%d crashes\n",
                target, seconds[target] / 60, executions[target], cov[target], crashes[target] }' "$table" | sort
    exit
fi

build() {
    if ! cargo fuzz --version >/dev/null 2>&1; then
        echo "fuzz: skipped: needs cargo-fuzz"
        echo "fuzz: (the committed corpora are replayed by make test all the same)"
        exit 0
    fi
    # Coverage and sanitizers are options of the nightly compiler; the stable one takes them when told to be one.
    if cargo +nightly --version >/dev/null 2>&1; then
        cargo +nightly fuzz build
    else
        RUSTC_BOOTSTRAP=1 cargo fuzz build
    fi
}

binaries=${FUZZ_BINARIES:-}
if [ -z "$binaries" ]; then
    build
    binaries=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release
fi
if [ "${1:-}" = --build ]; then
    exit
fi

targets=${FUZZ_TARGETS:-$(for file in fuzz/fuzz_targets/*.rs; do basename "$file" .rs; done)}
# Memory that lives as long as the process is no leak, and looking for some takes most of the time.
options=(-print_final_stats=1 -print_funcs=0 -detect_leaks=0 -timeout=60 -rss_limit_mb=3072 -max_len=4096)

if [ "${1:-}" = --minimise ]; then
    # By what is reached, not how often, and as few as suffice: dozens of inputs for a target, not thousands. From a copy,
    # since a search that is under way takes files away.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    for target in $targets; do
        mkdir -p "$found/$target"
        cp -r "$found/$target" "$copy/"
        before=$(ls "fuzz/corpus/$target" | wc -l)
        "$binaries/$target" "${options[@]}" -use_counters=0 -set_cover_merge=1 "fuzz/corpus/$target" "$copy/$target" \
            >/dev/null 2>&1
        echo "$target: $before seeds became $(ls "fuzz/corpus/$target" | wc -l)"
    done
    exit
fi

commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || commit=$commit+
commit=${FUZZ_COMMIT:-$commit}
[ -s "$table" ] || printf "$columns\n" >"$table"
failed=0
for target in $targets; do
    mkdir -p "$found/$target" "$found/crashes/$target" "fuzz/corpus/$target"
    log=$(mktemp)
    crashes=0
    # Processor time: at idle priority a busy machine lets a search wait.
    TIMEFORMAT='%U %S'
    { time chrt --idle 0 nice -n 19 "$binaries/$target" "${options[@]}" -max_total_time="${FUZZ_SECONDS:-60}" \
        -artifact_prefix="$found/crashes/$target/" "$found/$target" "fuzz/corpus/$target" >"$log" 2>&1 </dev/null || true; } 2>"$log.time"
    # A search that is ended before its time has not found anything by that.
    if grep -q 'ERROR: ' "$log"; then crashes=1; fi
    seconds=$(awk '{ printf "%.0f", $1 + $2 }' "$log.time")
    status=$(grep -E '^#[0-9]+.* cov: ' "$log" | tail -n 1)
    number() { sed -n "s/.*$1: \([0-9]*\).*/\1/p" <<<"$status"; }
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    [ -n "$executions" ] || executions=$(sed 's/^#\([0-9]*\).*/\1/' <<<"$status")
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%F)" "$target" "$commit" "$seconds" "${executions:-0}" \
        "$(number cov)" "$(number ft)" "$(number corp)" "$crashes" | tee -a "$table"
    if [ "$crashes" != 0 ]; then
        failed=1
        cp "$log" "$found/crashes/$target/$(date +%s).log"
        grep -E 'panicked|ERROR|Test unit written' -A 2 "$log" | head -n 12 >&2
    fi
    rm -f "$log" "$log.time"
done
exit $failed
