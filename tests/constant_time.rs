//! Secrets are compared without a branch, or an address, that depends on them: seen by valgrind's memcheck, to which the
//! secrets are said to be undefined. It complains whenever the program decides by undefined bytes, so what is constant in
//! time is what it has nothing to say about. (The method is Adam Langley's ctgrind.)
//!
//! The test runs itself once more under valgrind. That shows what the compiler has made of the sources for the profile of
//! tests, and no timing is measured, so that no load of the machine disturbs it.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod testbed;

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::crypto::{self, ChaCha20Poly1305, Opening, PacketAead, mac_eq};
use adit::proto::messages::TAG_LEN;
use testbed::try_run_to_end;

/// Set in the run under valgrind.
const INSIDE: &str = "ADIT_TEST_CONSTANT_TIME";
/// What the run under valgrind says at its end.
const DONE: &str = "nothing was decided by a secret";
/// Decisions by whether two secrets are equal, which whoever asked learns anyway: with debug assertions `subtle` makes one.
const OUTCOME: usize = 1;
/// Valgrind is slow, and slower on a loaded machine.
const LIMIT: Duration = Duration::from_secs(240);

/// memcheck.h: the tool's two letters, then the number of the request.
const MAKE_UNDEFINED: usize = 0x4d43_0001;
const MAKE_DEFINED: usize = 0x4d43_0002;
/// valgrind.h.
const RUNNING_ON_VALGRIND: usize = 0x1001;
const COUNT_ERRORS: usize = 0x1201;

/// Asks valgrind; 0 on a bare processor.
fn ask(request: usize, address: usize, len: usize) -> usize {
    let question = [request, address, len, 0, 0, 0];
    let mut answer = 0_usize;
    // SAFETY: on a processor the rotations add up to none and the exchange is of a register with itself. Valgrind knows
    // the sequence, reads the six words at rax, and answers in rdx; it changes what it knows of memory, not memory.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") question.as_ptr(),
            inout("rdx") answer,
            options(nostack),
        );
    }
    black_box(&mut answer);
    answer
}

fn hide<T: ?Sized>(secret: &T) {
    ask(MAKE_UNDEFINED, std::ptr::from_ref(secret).addr(), size_of_val(secret));
}

fn show<T: ?Sized>(secret: &T) {
    ask(MAKE_DEFINED, std::ptr::from_ref(secret).addr(), size_of_val(secret));
}

/// How often a decision by hidden bytes was made in `work`, and what it gave.
#[inline(never)]
fn decisions<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = ask(COUNT_ERRORS, 0, 0);
    let result = black_box(work());
    let after = ask(COUNT_ERRORS, 0, 0);
    show(&result);
    (after - before, result)
}

/// One and another that differs from it in one byte, or in none.
fn pairs<const N: usize>() -> Vec<([u8; N], [u8; N])> {
    let one: [u8; N] = std::array::from_fn(|i| i as u8);
    let places = [None, Some(0), Some(N / 2), Some(N - 1)];
    let other = |place: Option<usize>| {
        let mut other = one;
        place.into_iter().for_each(|place| other[place] ^= 0x10);
        other
    };
    places.into_iter().map(|place| (one, other(place))).collect()
}

/// Opens a packet with a hidden key, so that the tag that it should have is hidden, too. The comparison is the library's.
fn check_tags<A: PacketAead>() {
    const COUNTER: u64 = 5;
    const LEN: usize = 100;
    let key = [7; 32];
    let mut right = [0; LEN + TAG_LEN];
    crypto::aead_seal(&key, COUNTER, &[1; LEN], &[], &mut right);
    for (one, other) in pairs::<TAG_LEN>() {
        let mut sealed = right;
        let change = one.iter().zip(&other).map(|(one, other)| one ^ other);
        sealed[LEN..].iter_mut().zip(change).for_each(|(byte, change)| *byte ^= change);
        hide(&key);
        let mut packets = [Opening::new(COUNTER, 0, sealed.len() as u32)];
        let (seen, ()) = decisions(|| A::open_train(black_box(&key), &mut sealed, &mut packets));
        show(&key);
        show(&packets);
        assert!(seen <= OUTCOME && packets[0].is_open() == (one == other), "tags of {}: {seen} decisions", A::name());
    }
}

fn under_valgrind() {
    // What is not constant in time is seen: a comparison that could end at any byte.
    let (one, other) = pairs::<16>()[0];
    hide(&one);
    let (seen, equal) = decisions(|| {
        let mut equal = true;
        for (one, other) in black_box(&one).iter().zip(black_box(&other)) {
            if black_box(*one) != *other {
                equal = false;
                break;
            }
        }
        equal
    });
    assert!(seen > OUTCOME && equal, "valgrind sees {seen} decisions");

    for (one, other) in pairs::<16>() {
        hide(&one);
        let (seen, equal) = decisions(|| mac_eq(black_box(&one), black_box(&other)));
        show(&one);
        assert!(seen <= OUTCOME && equal == (one == other), "macs: {seen} decisions");
    }
    for (one, other) in pairs::<32>() {
        let expected = one == other;
        let (one, other) = (PresharedKey::from_bytes(one), PresharedKey::from_bytes(other));
        hide(one.as_bytes());
        let (seen, equal) = decisions(|| black_box(&one) == black_box(&other));
        show(one.as_bytes());
        assert!(seen <= OUTCOME && equal == expected, "preshared keys: {seen} decisions");
    }
    for (one, other) in pairs::<32>() {
        let (one, other) = (PrivateKey::from_bytes(one), PrivateKey::from_bytes(other));
        let expected = one.as_bytes() == other.as_bytes();
        hide(one.as_bytes());
        let (seen, equal) = decisions(|| black_box(&one) == black_box(&other));
        show(one.as_bytes());
        assert!(seen <= OUTCOME && equal == expected, "private keys: {seen} decisions");
    }
    check_tags::<ChaCha20Poly1305>();
    #[cfg(feature = "ring")]
    check_tags::<crypto::Ring>();
    println!("{DONE}");
}

/// [S-55] The macs of messages and cookies, the tags of packets, and keys. The handshake's and the cookies' tags are checked by
/// the same library as those of packets without ring.
#[test]
fn s_55_macs_and_keys_are_compared_in_constant_time() {
    if std::env::var_os(INSIDE).is_some() {
        assert_eq!(ask(RUNNING_ON_VALGRIND, 0, 0), 1);
        under_valgrind();
        return;
    }
    let name = testbed::name_of(&|| ());
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--undef-value-errors=yes", "--error-limit=no"]);
    command.arg(std::env::current_exe().expect("the test is a file"));
    command.args(["--exact", "s_55_macs_and_keys_are_compared_in_constant_time", "--nocapture", "--test-threads=1"]);
    match try_run_to_end(command.env(INSIDE, "1"), LIMIT) {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains(DONE), "{text}");
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => testbed::skip(name, "needs valgrind"),
        Err(error) => panic!("{command:?}: {error}"),
    }
}
