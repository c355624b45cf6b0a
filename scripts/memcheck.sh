#!/usr/bin/env bash
# valgrind's memcheck over the pipeline, its edges in memory, segmentation, and the system calls: `make memcheck`.
#
#   MEMCHECK_TARGETS   which targets, in cargo's words ("--lib --test device …")
#   MEMCHECK_LIMIT_S   seconds for each of them (900)
#
# Memory that was never written, is not ours, or is lost: also in ring's and graviola's assembly, which sanitizers do not see.
# Fails when a test fails or an error is reported.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v valgrind >/dev/null; then
    echo "memcheck: skipped: needs valgrind"
    exit 0
fi
read -ra targets <<<"${MEMCHECK_TARGETS:---lib --test device --test peer --test tun_edge --test udp_edge}"
# Of the library's own tests those of the pipeline and its edges. Left out: the ones that measure time or memory, and the
# table of a hundred thousand random steps.
filters=(device:: packet:: proto::keypair proto::replay sys:: tun:: udp::)
skipped=(a_thread_that_shares_its_processor_has_less_of_its_time)

build=(cargo test --no-default-features --features "device,ring,graviola")
"${build[@]}" "${targets[@]}" --no-run
mkdir -p target/memcheck

status=0
for target in $(printf '%s\n' "${targets[@]}" | grep -v -- '^--test$'); do
    chosen=(--test "$target")
    only=()
    if [ "$target" = --lib ]; then
        chosen=(--lib)
        only=("${filters[@]}")
    fi
    for name in "${skipped[@]}"; do only+=(--skip "$name"); done
    log=target/memcheck/${target#--}.log
    program=$("${build[@]}" "${chosen[@]}" --no-run --message-format=json 2>/dev/null |
        grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4)
    # One thread runs at a time under valgrind, so the tests do, too.
    CARGO_MANIFEST_DIR=$PWD timeout "${MEMCHECK_LIMIT_S:-900}" valgrind --quiet --fair-sched=yes --error-exitcode=99 \
        --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite --child-silent-after-fork=yes \
        "$program" --test-threads=1 "${only[@]}" </dev/null >"$log" 2>&1 && ended=0 || ended=$?
    errors=$(grep -acE '^==[0-9]+== [A-Z]' "$log" || true)
    echo "${target#--}: $(grep -a '^test result' "$log" || echo "ended with $ended"); $errors errors ($log)"
    if [ "$ended" != 0 ]; then status=1; fi
done
exit "$status"
