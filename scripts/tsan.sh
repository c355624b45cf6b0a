#!/usr/bin/env bash
# ThreadSanitizer over the pipeline and its edges in memory: `make tsan`.
#
#   TSAN_TARGETS   which targets, in cargo's words ("--lib --test device …")
#   TSAN_LIMIT_S   seconds for each of them (900)
#
# The nightly compiler is used where there is one, else the stable one with RUSTC_BOOTSTRAP=1. Neither comes with a std
# that is instrumented, and building one takes its sources. Most of std's locks is compiled into our code and seen; the
# few functions that are not, because they wait, are wrapped here: what they acquire and release is told to the runtime.
# Without that each contended lock is a race to it.
#
# Fails when a test fails or a race is reported.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
if [ "${host%%-*}" != x86_64 ]; then
    # The wrappers pass arguments on as that processor's convention has them.
    echo "tsan: skipped: made for x86-64"
    exit 0
fi
if cargo +nightly --version >/dev/null 2>&1; then
    toolchain=+nightly
else
    toolchain=+$(rustup show active-toolchain | cut -d' ' -f1)
    export RUSTC_BOOTSTRAP=1
fi
read -ra targets <<<"${TSAN_TARGETS:---lib --test device --test device_manners --test fails_closed --test floods --test ordering --test peer}"
# Of the library's own tests those of what runs on several threads.
filters=(device:: packet proto::keypair tun::memory udp::lossy udp::memory)

work=target/tsan
mkdir -p "$work/std"
rlib=$(echo "$(rustc "$toolchain" --print sysroot)/lib/rustlib/$host/lib"/libstd-*.rlib)
(cd "$work/std" && rm -f ./*.o && ar x "$rlib")
# The name of std's function that ends so, in either manner of mangling.
symbol() {
    readelf -Ws "$work"/std/*.o | awk -v end="$1(17h[0-9a-f]+E)?$" '$4 == "FUNC" && $5 == "GLOBAL" && $8 ~ end { print $8 }' |
        sort -u
}
lock=$(symbol '5futex(NtB[0-9a-z]*_)?5Mutex14lock_contended')
read=$(symbol '5futex(NtB[0-9a-z]*_)?6RwLock14read_contended')
write=$(symbol '5futex(NtB[0-9a-z]*_)?6RwLock15write_contended')
wait=$(symbol 'condvar5futex(NtB[0-9a-z]*_)?7Condvar4wait')
wait_timeout=$(symbol 'condvar5futex(NtB[0-9a-z]*_)?7Condvar12wait_timeout')
once=$(symbol 'once5futex(NtB[0-9a-z]*_)?4Once4call')
scope=$(symbol 'scoped(NtB[0-9a-z]*_)?9ScopeData29decrement_num_running_threads')
for name in "$lock" "$read" "$write" "$wait" "$wait_timeout" "$once" "$scope"; do
    if [ "$(wc -w <<<"$name")" != 1 ]; then
        echo "tsan: this compiler's std has other functions than those known here: '$name'" >&2
        exit 1
    fi
done

cat >"$work/std.c" <<END
#include <stdbool.h>
#include <stdint.h>

void __tsan_acquire(void *);
void __tsan_release(void *);

/* A lock is its first word. Who has waited for it has what its last holder did. */
#define CONTENDED(name)                    \\
    void __real_##name(void *lock);        \\
    void __wrap_##name(void *lock) {       \\
        __real_##name(lock);               \\
        __tsan_acquire(lock);              \\
    }
CONTENDED($lock)
CONTENDED($read)
CONTENDED($write)

void __real_$wait(void *condvar, void *lock);
void __wrap_$wait(void *condvar, void *lock) {
    __tsan_release(lock);
    __real_$wait(condvar, lock);
    __tsan_acquire(lock);
}

bool __real_$wait_timeout(void *condvar, void *lock, uint64_t seconds, uint32_t nanos);
bool __wrap_$wait_timeout(void *condvar, void *lock, uint64_t seconds, uint32_t nanos) {
    __tsan_release(lock);
    bool in_time = __real_$wait_timeout(condvar, lock, seconds, nanos);
    __tsan_acquire(lock);
    return in_time;
}

void __real_$once(void *once, bool again, void *closure, void *vtable);
void __wrap_$once(void *once, bool again, void *closure, void *vtable) {
    __real_$once(once, again, closure, vtable);
    __tsan_acquire(once);
    __tsan_release(once);
}

/* Which of its words the count is, the compiler decides. */
void __real_$scope(void **scope, bool panicked);
void __wrap_$scope(void **scope, bool panicked) {
    for (int word = 0; word < 3; word++)
        __tsan_release(scope + word);
    __real_$scope(scope, panicked);
}
END
cc -O1 -c -o "$work/std.o" "$work/std.c"

flags="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer -Clink-arg=$PWD/$work/std.o"
for name in "$lock" "$read" "$write" "$wait" "$wait_timeout" "$once" "$scope"; do
    flags+=" -Clink-arg=-Wl,--wrap=$name"
done
export RUSTFLAGS=$flags CARGO_INCREMENTAL=0 TSAN_OPTIONS="suppressions=$PWD/scripts/tsan.txt ${TSAN_OPTIONS:-}"
# ring's and graviola's assembly is not looked into; the same in Rust is.
build=(cargo "$toolchain" test --target "$host" --target-dir "$work" --no-default-features --features device)
"${build[@]}" "${targets[@]}" --no-run

status=0
for target in $(printf '%s\n' "${targets[@]}" | grep -v -- '^--test$'); do
    chosen=(--test "$target")
    only=()
    case $target in
        --lib) chosen=(--lib) only=("${filters[@]}") ;;
        # The others run the program in namespaces.
        ordering) only=(flows_of rekeys_under neither_direction) ;;
    esac
    log=$work/${target#--}.log
    timeout "${TSAN_LIMIT_S:-900}" "${build[@]}" "${chosen[@]}" -- "${only[@]}" </dev/null >"$log" 2>&1 && ended=0 || ended=$?
    races=$(grep -c '^WARNING: ThreadSanitizer' "$log" || true)
    echo "${target#--}: $(grep -a '^test result' "$log" || echo "ended with $ended"); $races reports ($log)"
    if [ "$ended" != 0 ] || [ "$races" != 0 ]; then status=1; fi
done
exit "$status"
