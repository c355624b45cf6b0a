//! What a handshake leaves in memory: nothing. Private keys, preshared keys, ephemeral keys and session
//! keys are looked for in the whole writable memory of this process: first while they are held, where there
//! must be as many as there are owners, then after the owners were dropped.
//!
//! One test alone in this file: another thread's keys would be found too.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use core::convert::Infallible;
use core::time::Duration;
use std::fs::File;
use std::os::unix::fs::FileExt;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::cookie::CookieJar;
use adit::proto::crypto::{self, DefaultAead, Opening, PacketAead};
use adit::proto::handshake::{DerivedKeys, Handshake, Identity};
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, Message};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, UnixTime};
use rand_core::{TryCryptoRng, TryRng};

/// Secrets are remembered under this mask, so that the search does not find its own list.
const MASK: u8 = 0xa5;
/// Memory is looked through in pieces of this size, each overlapping the next by a key.
const PIECE: usize = 1 << 20;

/// Numbers from a seed that is not the secret itself.
struct Seeded(u64);

impl Seeded {
    /// The next 32 bytes, masked, without drawing them.
    fn peek_masked(&self) -> [u8; 32] {
        let mut copy = Self(self.0);
        core::array::from_fn(|_| copy.byte() ^ MASK)
    }

    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }
}

impl TryRng for Seeded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from(self.byte()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from(self.byte()))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.iter_mut().for_each(|out| *out = self.byte());
        Ok(())
    }
}

impl TryCryptoRng for Seeded {}

/// How often each secret occurs in writable memory. Compares the 30 bytes in the middle, because
/// clamping changes the first and the last.
fn count(secrets: &[(&str, [u8; 32])], piece: &mut [u8]) -> Vec<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut counts = vec![0; secrets.len()];
    piece.fill(0);
    let own = piece.as_ptr().addr()..piece.as_ptr().addr() + piece.len();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let (mut at, end) = (usize::from_str_radix(start, 16).unwrap(), usize::from_str_radix(end, 16).unwrap());
        while at < end {
            let len = memory.read_at(&mut piece[..PIECE.min(end - at)], at as u64).unwrap_or(0);
            for (position, window) in piece[..len].windows(32).enumerate() {
                if own.contains(&(at + position)) {
                    continue;
                }
                for (found, (_, secret)) in counts.iter_mut().zip(secrets) {
                    *found += usize::from((1..31).all(|i| window[i] ^ MASK == secret[i]));
                }
            }
            if len < PIECE {
                break;
            }
            at += len - 32;
        }
    }
    counts
}

/// Boxed where it is made, so that the test moves no key.
struct Scene {
    identities: [Identity; 2],
    handshakes: [Handshake; 2],
    keys: [DerivedKeys; 2],
}

fn masked(key: &[u8; 32]) -> [u8; 32] {
    core::array::from_fn(|i| key[i] ^ MASK)
}

/// A whole handshake. Says of each secret how often it is in the scene.
#[inline(never)]
fn handshake(secrets: &mut Vec<(&'static str, [u8; 32])>, held: &mut Vec<usize>) -> Box<Scene> {
    let mut rng = Seeded(42);
    let mut note = |name, times, secret| {
        secrets.push((name, secret));
        held.push(times);
    };
    note("the initiator's private key", 1, rng.peek_masked());
    let one = PrivateKey::generate(&mut rng);
    note("the responder's private key", 1, rng.peek_masked());
    let other = PrivateKey::generate(&mut rng);
    note("the preshared key", 2, rng.peek_masked());
    let psk = PresharedKey::generate(&mut rng);
    let publics = [one.public_key(), other.public_key()];
    let identities = [Identity::new(one), Identity::new(other)];
    let mut handshakes = [Handshake::new(publics[1], psk.clone()), Handshake::new(publics[0], psk)];
    let stamp = Tai64n::from_unix(UnixTime(Duration::from_secs(1)));

    note("the initiator's ephemeral key", 0, rng.peek_masked());
    let mut initiation = handshakes[0].create_initiation(&identities[0], 1, stamp, &mut rng).unwrap();
    CookieJar::new().add_macs(&publics[1], &mut initiation, Instant::default());
    let Ok(Message::Initiation(view)) = messages::parse(&initiation) else { panic!("an initiation") };
    let opened = identities[1].open_initiation(&view).unwrap();
    handshakes[1].consume_initiation(&identities[1], opened, Instant::default()).unwrap();
    note("the responder's ephemeral key", 0, rng.peek_masked());
    let (mut response, theirs) = handshakes[1].create_response(2, &mut rng).unwrap();
    CookieJar::new().add_macs(&publics[0], &mut response, Instant::default());
    let Ok(Message::Response(view)) = messages::parse(&response) else { panic!("a response") };
    let ours = handshakes[0].consume_response(&identities[0], &view).unwrap();
    note("the initiator's sending key", 2, masked(&ours.sending));
    note("the initiator's receiving key", 2, masked(&ours.receiving));
    Box::new(Scene { identities, handshakes, keys: [ours, theirs] })
}

/// A data message each way.
#[inline(never)]
fn data([ours, theirs]: &[DerivedKeys; 2]) {
    for (sender, receiver) in [(ours, theirs), (theirs, ours)] {
        let mut message = vec![0; 64 + DATA_OVERHEAD];
        let stride = message.len();
        DefaultAead::seal_train(&sender.sending, 0, &mut message, stride);
        let len = (stride - DATA_HEADER_LEN) as u32;
        let mut openings = [Opening::new(0, DATA_HEADER_LEN as u32, len)];
        DefaultAead::open_train(&receiver.receiving, &mut message, &mut openings);
        assert!(openings[0].is_open());
    }
}

/// [WP 6.3] Ephemeral keys go with the handshake, and nothing of any key is left when its owner is gone.
#[test]
fn s_12_dropped_keys_leave_no_trace() {
    let mut piece = vec![0; PIECE];
    let (mut secrets, mut held) = (Vec::new(), Vec::new());
    let mut check = |when: &str, secrets: &[(&str, [u8; 32])], expected: &[usize]| {
        let found = count(secrets, &mut piece);
        for ((name, _), (found, expected)) in secrets.iter().zip(found.iter().zip(expected)) {
            println!("{when}: {name}: {found}, expected {expected}");
        }
        assert_eq!(found, expected, "{when}");
    };
    let scene = handshake(&mut secrets, &mut held);
    crypto::wipe_stack();
    assert_eq!(scene.handshakes[0].remote_static(), scene.identities[1].public_key());
    check("after the handshake", &secrets, &held);
    data(&scene.keys);
    check("after sealing and opening", &secrets, &held);
    drop(scene);
    held.fill(0);
    check("after all was dropped", &secrets, &held);
}
