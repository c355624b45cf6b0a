//! X25519 (RFC 7748), the only thing that is ever done with a private key.
//!
//! Two backends. x25519-dalek is pure Rust and always there. With the feature `graviola`, on an x86-64
//! processor that has what its assembly needs, graviola does the same in half the time: a handshake is
//! six of these and little else. The processor is asked at run time, so one program suits all
//! ([why](../../docs/decisions/0010-crypto-backends.md)).
//!
//! Invariants:
//! - both backends give the same for every input: they clamp, ignore the point's highest bit, and take
//!   coordinates that are not reduced;
//! - a point of low order gives 32 zero bytes, for the caller to refuse;
//! - what a backend leaves of a secret lies below the caller's frame, where
//!   [`wipe_stack`](crate::proto::crypto::wipe_stack) overwrites it; nothing of it is on the heap.

use zeroize::Zeroizing;

use super::KEY_LEN;

/// The public key of a private key: the product with the base point. [RFC 7748]
pub(super) fn public_key(private: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
    #[cfg(all(feature = "graviola", target_arch = "x86_64"))]
    if assembly::is_supported() {
        return assembly::public_key(private);
    }
    dalek::public_key(private)
}

/// What the owners of `private` and of `public` share; all zeros for a point of low order. [RFC 7748]
pub(super) fn shared(private: &[u8; KEY_LEN], public: &[u8; KEY_LEN]) -> Zeroizing<[u8; KEY_LEN]> {
    #[cfg(all(feature = "graviola", target_arch = "x86_64"))]
    if assembly::is_supported() {
        return assembly::shared(private, public);
    }
    dalek::shared(private, public)
}

/// Pure Rust, on every target.
mod dalek {
    use x25519_dalek::{PublicKey, StaticSecret};
    use zeroize::Zeroizing;

    use super::KEY_LEN;

    pub(super) fn public_key(private: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
        PublicKey::from(&StaticSecret::from(*private)).to_bytes()
    }

    pub(super) fn shared(private: &[u8; KEY_LEN], public: &[u8; KEY_LEN]) -> Zeroizing<[u8; KEY_LEN]> {
        let shared = StaticSecret::from(*private).diffie_hellman(&PublicKey::from(*public));
        Zeroizing::new(*shared.as_bytes())
    }
}

/// The formally verified assembly of s2n-bignum, without a C compiler.
#[cfg(all(feature = "graviola", target_arch = "x86_64"))]
mod assembly {
    use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
    use std::arch::is_x86_feature_detected;
    use zeroize::Zeroizing;

    use super::KEY_LEN;

    /// Whether graviola runs here: on a processor that lacks one of these it panics.
    pub(super) fn is_supported() -> bool {
        is_x86_feature_detected!("adx")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("pclmulqdq")
    }

    pub(super) fn public_key(private: &[u8; KEY_LEN]) -> [u8; KEY_LEN] {
        StaticPrivateKey::from_array(private).public_key().as_bytes()
    }

    pub(super) fn shared(private: &[u8; KEY_LEN], public: &[u8; KEY_LEN]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        // Its only error is a result of all zeros, which is what is here already.
        if let Ok(shared) = StaticPrivateKey::from_array(private).diffie_hellman(&PublicKey::from_array(public)) {
            bytes.copy_from_slice(&shared.0);
        }
        bytes
    }
}

#[cfg(all(test, feature = "graviola", target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// [RFC 7748] Both backends, any scalar and any point.
        #[test]
        fn both_backends_agree(private in any::<[u8; KEY_LEN]>(), public in any::<[u8; KEY_LEN]>()) {
            prop_assume!(assembly::is_supported());
            prop_assert_eq!(assembly::public_key(&private), dalek::public_key(&private));
            prop_assert_eq!(assembly::shared(&private, &public), dalek::shared(&private, &public));
        }
    }

    /// [RFC 7748] The points at which implementations differ, if they do: 0, 1, the two of order 8, and p − 1, p,
    /// p + 1; with and without the bit that is ignored; and the greatest coordinates, which are not reduced.
    #[test]
    fn both_backends_agree_at_the_edges() {
        if !assembly::is_supported() {
            println!("SKIPPED: both_backends_agree_at_the_edges: the processor has not what graviola needs");
            return;
        }
        let order_8 = [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        ];
        let mut points: Vec<[u8; KEY_LEN]> = order_8
            .iter()
            .map(|hex| base16ct::lower::decode_vec(hex).expect("hexadecimal").try_into().expect("32 bytes"))
            .collect();
        points.extend((0..=1).map(|small| core::array::from_fn(|i| if i == 0 { small } else { 0 })));
        let near_p = |low: u8| core::array::from_fn(|i| [low, 0xff, 0x7f][usize::from(i > 0) + usize::from(i == 31)]);
        points.extend((0xec..=0xff).map(near_p));
        for mut point in points {
            for high_bit in [0, 0x80] {
                point[31] = point[31] & 0x7f | high_bit;
                for private in [[0; KEY_LEN], [0xff; KEY_LEN], [0x5a; KEY_LEN]] {
                    assert_eq!(assembly::public_key(&private), dalek::public_key(&private));
                    assert_eq!(assembly::shared(&private, &point), dalek::shared(&private, &point), "{point:02x?}");
                }
            }
        }
    }
}
