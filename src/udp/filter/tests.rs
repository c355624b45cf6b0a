//! What the kernel makes of the program, with messages as the protocol makes them.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use super::*;
use crate::key::PublicKey;
use crate::proto::{cookie, crypto, messages};

/// A filter, or a word about why there is none here: as the tests of whole programs do it, into the list of `ADIT_SKIPS`.
fn loaded(test: &str) -> Option<Mac1Filter> {
    match Mac1Filter::load() {
        Ok(filter) => Some(filter),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            let line = format!("SKIPPED: {test}: the kernel takes no program from this process: {error}\n");
            print!("{line}");
            if let Some(list) = std::env::var_os("ADIT_SKIPS") {
                let mut list = OpenOptions::new().create(true).append(true).open(list).unwrap();
                list.write_all(line.as_bytes()).unwrap();
            }
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn key(seed: u8) -> [u8; KEY_LEN] {
    let public = std::array::from_fn(|index| (index as u8).wrapping_mul(37) ^ seed);
    cookie::mac1_key(&PublicKey::from_bytes(public))
}

/// A message whose bytes depend on `seed`, with a mac1 by `key`.
fn message(kind: u8, len: usize, key: &[u8; KEY_LEN], seed: u8) -> Vec<u8> {
    let mut message: Vec<u8> = (0..len).map(|index| (index as u8).wrapping_mul(seed | 1) ^ seed).collect();
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    let (covered, macs) = message.split_at_mut(len - MACS_LEN);
    macs[..MAC_LEN].copy_from_slice(&crypto::mac(key, &[covered]));
    message
}

const HANDSHAKE: [(u8, usize); 2] = [(1, INITIATION_LEN), (2, RESPONSE_LEN)];

#[test]
fn lengths_are_the_protocols() {
    let lengths = (messages::INITIATION_LEN, messages::RESPONSE_LEN, messages::MACS_LEN, messages::MAC_LEN);
    assert_eq!((INITIATION_LEN, RESPONSE_LEN, MACS_LEN, MAC_LEN), lengths);
}

#[test]
fn the_mac_is_the_librarys() {
    for len in 1..200 {
        let message: Vec<u8> = (0..len).collect();
        assert_eq!(blake2s::mac(&key(len), &message), crypto::mac(&key(len), &[&message]), "{len}");
    }
}

/// Whatever the key and the message.
#[test]
fn the_program_agrees_with_the_library() {
    if let Some(filter) = loaded("the_program_agrees_with_the_library") {
        for seed in 0..=255 {
            filter.expect_mac1(Some(&key(seed)));
            for (kind, len) in HANDSHAKE {
                assert!(filter.lets_through(&message(kind, len, &key(seed), seed)).unwrap(), "{kind}, {seed}");
                assert!(!filter.lets_through(&message(kind, len, &key(!seed), seed)).unwrap(), "{kind}, {seed}");
            }
        }
        assert_eq!(filter.dropped(), 512);
    }
}

/// Each byte that mac1 covers, and each of mac1, counts; those of mac2 do not.
#[test]
fn s_03_one_wrong_bit_is_dropped() {
    if let Some(filter) = loaded("s_03_one_wrong_bit_is_dropped") {
        filter.expect_mac1(Some(&key(7)));
        for (kind, len) in HANDSHAKE {
            let right = message(kind, len, &key(7), 99);
            for at in 4..len {
                for bit in [1, 0x10, 0x80] {
                    let mut wrong = right.clone();
                    wrong[at] ^= bit;
                    let is_mac2 = at >= len - MAC_LEN;
                    assert_eq!(filter.lets_through(&wrong).unwrap(), is_mac2, "byte {at} of {kind}");
                }
            }
        }
        assert_eq!(filter.dropped(), 3 * (INITIATION_LEN + RESPONSE_LEN - 2 * (4 + MAC_LEN)) as u64);
    }
}

/// Whatever is no initiation and no response is none of the filter's business, however much it looks like one.
#[test]
fn all_else_is_let_through() {
    if let Some(filter) = loaded("all_else_is_let_through") {
        filter.expect_mac1(Some(&key(7)));
        let mut others: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        let garbage = |kind: u8, len: usize| {
            let mut bytes = vec![0xcc; len];
            bytes[..4.min(len)].copy_from_slice(&[kind, 0, 0, 0][..4.min(len)]);
            bytes
        };
        others.insert("data of an initiation's length", garbage(4, INITIATION_LEN));
        others.insert("data of a response's length", garbage(4, RESPONSE_LEN));
        others.insert("an initiation of a response's length", garbage(1, RESPONSE_LEN));
        others.insert("a response of an initiation's length", garbage(2, INITIATION_LEN));
        others.insert("a byte short", garbage(1, INITIATION_LEN - 1));
        others.insert("a byte long", garbage(1, INITIATION_LEN + 1));
        others.insert("two, coalesced", garbage(1, 2 * INITIATION_LEN));
        others.insert("a cookie reply", garbage(3, 64));
        others.insert("a large one", garbage(4, 1452));
        others.insert("a tiny one", garbage(1, 32));
        for at in 1..4 {
            let mut reserved = garbage(1, INITIATION_LEN);
            reserved[at] = 1;
            assert!(filter.lets_through(&reserved).unwrap(), "reserved byte {at}");
        }
        for (what, payload) in &others {
            assert!(filter.lets_through(payload).unwrap(), "{what}");
        }
        assert_eq!(filter.dropped(), 0);
    }
}

/// Without a key nothing is dropped, and each change of it counts at once: from none, to another, to none and back.
#[test]
fn the_key_can_be_changed() {
    if let Some(filter) = loaded("the_key_can_be_changed") {
        let sent = [1, 2, 3].map(|seed| message(1, INITIATION_LEN, &key(seed), seed));
        let let_through = || sent.each_ref().map(|message| filter.lets_through(message).unwrap());
        assert_eq!(let_through(), [true; 3], "no key yet");
        for (seed, expected) in [(1, [true, false, false]), (2, [false, true, false]), (3, [false, false, true])] {
            filter.expect_mac1(Some(&key(seed)));
            assert_eq!(let_through(), expected);
        }
        filter.expect_mac1(None);
        assert_eq!(let_through(), [true; 3]);
        filter.expect_mac1(Some(&key(2)));
        assert_eq!(let_through(), [false, true, false]);
    }
}

/// On a socket: what is dropped is never received, and what comes after it is.
#[test]
fn a_socket_receives_what_is_let_through() {
    if let Some(filter) = loaded("a_socket_receives_what_is_let_through") {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let dropped_before = filter.dropped();
            let (receiver, sender) = (UdpSocket::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
            filter.attach(receiver.as_fd()).unwrap();
            filter.expect_mac1(Some(&key(7)));
            let to = receiver.local_addr().unwrap();
            for (kind, len) in HANDSHAKE {
                sender.send_to(&message(kind, len, &key(8), 0), to).unwrap();
                sender.send_to(&message(kind, len, &key(7), 0), to).unwrap();
            }
            sender.send_to(b"", to).unwrap();
            sender.send_to(&[4; 1452], to).unwrap();
            let mut buffer = [0; 2048];
            for expected in [INITIATION_LEN, RESPONSE_LEN, 0, 1452] {
                assert_eq!(receiver.recv(&mut buffer).unwrap(), expected, "{address}");
            }
            assert_eq!(filter.dropped() - dropped_before, 2);
        }
    }
}

/// The program stays on a socket whose filter is gone, and goes on with the last key.
#[test]
fn the_memory_outlives_the_filter() {
    if let Some(filter) = loaded("the_memory_outlives_the_filter") {
        let (receiver, sender) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        filter.attach(receiver.as_fd()).unwrap();
        filter.expect_mac1(Some(&key(7)));
        drop(filter);
        let to = receiver.local_addr().unwrap();
        for recipient in [8, 7] {
            sender.send_to(&message(1, INITIATION_LEN, &key(recipient), recipient), to).unwrap();
        }
        let mut buffer = [0; 2048];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), INITIATION_LEN);
        assert_eq!(buffer[..INITIATION_LEN], message(1, INITIATION_LEN, &key(7), 7));
    }
}
