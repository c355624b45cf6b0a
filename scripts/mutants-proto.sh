#!/usr/bin/env bash
# Changes src/proto in every way that cargo-mutants knows, one at a time, and looks whether a test notices:
# `make mutants-proto`. What is left out, and why, is in .cargo/mutants.toml.
#
#   scripts/mutants-proto.sh               all files of src/proto
#   scripts/mutants-proto.sh cookie replay those
#   SHARD=0/4                              the first quarter of the changes of each file
#   ONLY='replace (<|>|<=|>=|==|!=) with'  those of which this is true
#
# It works in a copy of the sources below target/mutants-proto (what is there now, committed or not). The unit tests are
# asked first, and the tests of whole engines of what those did not notice. A line for each file and one for all go to
# target/mutants-proto/report.txt, what was missed to the standard output; fails if anything was.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${MUTANTS_WORK:-$PWD/target/mutants-proto}
tree=$work/tree
export CARGO_TARGET_DIR=$work/build
# Fewer rounds of the random tests: what one mutant is worth.
export PROPTEST_CASES=${PROPTEST_CASES:-32} ADIT_MODEL_RUNS=${ADIT_MODEL_RUNS:-10} ADIT_TEST_HANDSHAKES=${ADIT_TEST_HANDSHAKES:-300}
engines=()
for test in handshake_oracles key_residue model peer simulation timers_oracle vectors; do
    engines+=("--cargo-arg=--test=$test")
done

# What an interrupted run has left changed is made right, too.
PYTHONPATH=scripts PYTHONDONTWRITEBYTECODE=1 python3 -c \
    'import mutants, pathlib, sys; mutants.copy_sources(pathlib.Path(sys.argv[1]))' "$tree"

names=("$@")
if (( ! ${#names[@]} )); then
    mapfile -t names < <(cd src/proto && for file in *.rs; do echo "${file%.rs}"; done)
fi

# One look at mutants of a file. 2: some were missed, 3: some never ended; anything else is a mistake of ours.
look() {
    local status=0
    cargo mutants --dir "$tree" --in-place --file "src/proto/$name.rs" --no-times --colors never "$@" \
        >"$work/log" 2>&1 </dev/null || status=$?
    case $status in 0 | 2 | 3) ;; *) cat "$work/log" >&2; exit 1 ;; esac
}

count() { cat "$out"/*/mutants.out/"$1.txt" 2>/dev/null | wc -l; }

: >"$work/report.txt"
failed=0
for name in "${names[@]}"; do
    out=$work/out/$name${SHARD:+-${SHARD%/*}}
    rm -rf "${out:?}"
    mkdir -p "$out/units" "$out/engines"
    # The tests of this one lie outside.
    units=--lib
    [ "$name" != peer ] || units=--test=peer
    look --output "$out/units" --cargo-arg="$units" ${SHARD:+--shard="$SHARD"} ${ONLY:+--re="$ONLY"}
    missed=$out/units/mutants.out/missed.txt
    if [ -s "$missed" ]; then
        mapfile -t again < <(sed -E 's/[][\\.*^$+?(){}|]/\\&/g; s/^/--re=^/; s/$/$/' "$missed")
        look --output "$out/engines" "${engines[@]}" "${again[@]}"
        missed=$out/engines/mutants.out/missed.txt
    fi
    printf '%s\t%d caught\t%d missed\t%d timeouts\t%d unviable\n' "$name" "$(count caught)" "$(cat "$missed" 2>/dev/null | wc -l)" \
        "$(count timeout)" "$(count unviable)" | tee -a "$work/report.txt"
    if [ -s "$missed" ]; then
        failed=1
        cat "$missed"
    fi
done
awk '{ for (i = 2; i < NF; i += 2) sum[$(i + 1)] += $i }
    END { printf "all\t%d caught\t%d missed\t%d timeouts\t%d unviable\n",
        sum["caught"], sum["missed"], sum["timeouts"], sum["unviable"] }' "$work/report.txt" | tee -a "$work/report.txt"
exit $failed
