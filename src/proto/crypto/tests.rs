//! The shape of trains, and what a nonce is. `tests/vectors.rs` has the known answers.

use super::*;
use alloc::vec;
use alloc::vec::Vec;

/// [WP 5.4] Four zero bytes, then the counter, little-endian.
#[test]
fn nonce_is_the_counter() {
    assert_eq!(nonce(0x0807_0605_0403_0201), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

/// A key whose block was hashed beforehand, at the edges of a block and at the lengths of handshake messages.
#[test]
fn a_mac_key_is_the_key_of_mac() {
    let (key, message) = ([7; HASH_LEN], [9; 200]);
    for len in [1, 60, 63, 64, 65, 116, 127, 128, 129, 200] {
        assert_eq!(MacKey::new(&key).mac(&message[..len]), mac(&key, &[&message[..len]]), "{len} bytes");
    }
}

/// [WP 5.4.6] A train of packets of equal length and a shorter last one: consecutive counters, headers
/// as they were, and each packet what it would be alone.
fn check_train<A: PacketAead>() {
    const FIRST: u64 = 0xffff_fffe;
    let key = [7; 32];
    for (count, stride, last_len) in [(1, 32, 0), (3, 32, 0), (64, 1452, 1420), (5, 128, 0), (7, 112, 16)] {
        let packet = |position: usize| {
            let payload_len = if position + 1 == count { last_len } else { stride - DATA_OVERHEAD };
            [&[position as u8; DATA_HEADER_LEN][..], &vec![!(position as u8); payload_len], &[0; TAG_LEN]].concat()
        };
        let mut train: Vec<u8> = (0..count).flat_map(packet).collect();
        A::seal_train(&key, FIRST, &mut train, stride);
        let mut openings = Vec::new();
        for (position, sealed) in train.chunks(stride).enumerate() {
            let plain = packet(position);
            let payload = &plain[DATA_HEADER_LEN..plain.len() - TAG_LEN];
            let mut expected = vec![0; payload.len() + TAG_LEN];
            aead_seal(&key, FIRST + position as u64, payload, &[], &mut expected);
            assert_eq!(sealed[..DATA_HEADER_LEN], plain[..DATA_HEADER_LEN]);
            assert_eq!(sealed[DATA_HEADER_LEN..], expected);
            let start = (position * stride + DATA_HEADER_LEN) as u32;
            openings.push(Opening { counter: FIRST + position as u64, start, len: expected.len() as u32, ok: false });
        }
        // One forged in the middle does not keep the others from being opened.
        let forged = count / 2;
        train[forged * stride + DATA_HEADER_LEN] ^= 1;
        A::open_train(&key, &mut train, &mut openings);
        for (position, opening) in openings.iter().enumerate() {
            assert_eq!(opening.ok, position != forged);
            if opening.ok {
                let plain = packet(position);
                let payload = &plain[DATA_HEADER_LEN..plain.len() - TAG_LEN];
                assert_eq!(&train[opening.start as usize..][..payload.len()], payload);
            }
        }
    }
    let mut short = [Opening { counter: 0, start: 0, len: TAG_LEN as u32 - 1, ok: true }];
    A::open_train(&key, &mut [0; 64], &mut short);
    assert!(!short[0].ok, "shorter than a tag");
}

#[test]
fn trains_of_chacha20poly1305() {
    check_train::<ChaCha20Poly1305>();
}

#[cfg(feature = "ring")]
#[test]
fn trains_of_ring() {
    check_train::<Ring>();
}
