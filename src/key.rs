//! The three kinds of key that a configuration holds: 32 bytes each, written as 44 characters of
//! base64 (files, `wg(8)`) or 64 of hexadecimal (UAPI).
//!
//! Secrets are compared in constant time, wiped when dropped, and never printed: `Debug` of a
//! private or preshared key shows no byte of it.

mod x25519;

use core::fmt;

use alloc::boxed::Box;
use alloc::string::String;
use base64ct::{Base64, Encoding};
use rand_core::CryptoRng;
use subtle::{Choice, ConstantTimeEq};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes in a key of any kind.
pub const KEY_LEN: usize = 32;
/// Characters of a key in base64, padding included.
pub const BASE64_LEN: usize = 44;
/// Characters of a key in hexadecimal.
pub const HEX_LEN: usize = 64;

/// A key's text was not what it should be. The text itself is not kept: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseKeyError {
    /// Not 44 characters (base64) or 64 characters (hexadecimal).
    Length,
    /// A character, or the padding, that the encoding does not have.
    Encoding,
}

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Length => "a key is 44 characters of base64 or 64 of hexadecimal",
            Self::Encoding => "the key has a character that its encoding does not have",
        })
    }
}

impl core::error::Error for ParseKeyError {}

fn from_base64(text: &str) -> Result<[u8; KEY_LEN], ParseKeyError> {
    if text.len() != BASE64_LEN {
        return Err(ParseKeyError::Length);
    }
    let mut bytes = [0; KEY_LEN];
    match Base64::decode(text, &mut bytes) {
        Ok(decoded) if decoded.len() == KEY_LEN => Ok(bytes),
        _ => {
            bytes.zeroize();
            Err(ParseKeyError::Encoding)
        }
    }
}

/// Where it lies, so that a secret is not copied; after an error `bytes` may hold a part.
fn from_hex_into(text: &str, bytes: &mut [u8; KEY_LEN]) -> Result<(), ParseKeyError> {
    if text.len() != HEX_LEN {
        return Err(ParseKeyError::Length);
    }
    base16ct::mixed::decode(text, bytes).map_err(|_| ParseKeyError::Encoding)?;
    Ok(())
}

fn to_hex(bytes: &[u8; KEY_LEN]) -> String {
    base16ct::lower::encode_string(bytes)
}

/// A static X25519 private key, clamped (RFC 7748 §5).
///
/// The bytes lie on the heap: a value that is moved leaves its old bytes behind, and a private key
/// moves with every configuration that it is part of. So there is one copy, and it is wiped.
#[derive(Clone)]
pub struct PrivateKey(Box<[u8; KEY_LEN]>);

impl PrivateKey {
    /// Takes 32 little-endian bytes and clamps them.
    pub fn from_bytes(mut bytes: [u8; KEY_LEN]) -> Self {
        let mut key = Self(Box::new([0; KEY_LEN]));
        key.0.copy_from_slice(&bytes);
        bytes.zeroize();
        key.clamp();
        key
    }

    fn clamp(&mut self) {
        self.0[0] &= 248;
        self.0[31] = (self.0[31] & 127) | 64;
    }

    /// A new random key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = [0; KEY_LEN];
        rng.fill_bytes(&mut bytes);
        let key = Self::from_bytes(bytes);
        bytes.zeroize();
        key
    }

    /// Reads 44 characters of base64.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        from_base64(text).map(Self::from_bytes)
    }

    /// Reads 64 characters of hexadecimal, upper or lower case.
    pub fn from_hex(text: &str) -> Result<Self, ParseKeyError> {
        let mut key = Self(Box::new([0; KEY_LEN]));
        from_hex_into(text, &mut key.0)?;
        key.clamp();
        Ok(key)
    }

    /// The 32 secret bytes, clamped.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The public key that belongs to this private key: X25519 with the base point 9.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(x25519::public_key(&self.0))
    }

    /// X25519 with another's public key: what only the two of them know. All zeros for a point of low
    /// order, which [`dh`](crate::proto::crypto::dh) refuses.
    pub(crate) fn x25519(&self, public: &PublicKey) -> zeroize::Zeroizing<[u8; KEY_LEN]> {
        x25519::shared(&self.0, &public.0)
    }

    /// The secret as 64 characters of lower-case hexadecimal, for the UAPI alone.
    pub fn to_hex(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(to_hex(&self.0))
    }

    /// The secret as 44 characters of base64, for `genkey` alone.
    pub fn to_base64(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(Base64::encode_string(&*self.0))
    }
}

impl Zeroize for PrivateKey {
    fn zeroize(&mut self) {
        self.0.zeroize();
    }
}

impl Drop for PrivateKey {
    fn drop(&mut self) {
        self.zeroize();
    }
}

impl ZeroizeOnDrop for PrivateKey {}

impl ConstantTimeEq for PrivateKey {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&*other.0)
    }
}

impl PartialEq for PrivateKey {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for PrivateKey {}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// A static X25519 public key: the name of a peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LEN]);

impl PublicKey {
    /// Takes 32 little-endian bytes as they are.
    pub const fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Reads 44 characters of base64.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        from_base64(text).map(Self)
    }

    /// Reads 64 characters of hexadecimal, upper or lower case.
    pub fn from_hex(text: &str) -> Result<Self, ParseKeyError> {
        let mut key = Self([0; KEY_LEN]);
        from_hex_into(text, &mut key.0)?;
        Ok(key)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// 64 characters of lower-case hexadecimal.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }
}

/// 44 characters of base64.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A symmetric key that two peers share beforehand; all zeros means none (whitepaper §5.4).
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; KEY_LEN]);

impl PresharedKey {
    /// Takes 32 bytes as they are; all zeros means no preshared key.
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// A new random key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut key = Self::default();
        rng.fill_bytes(&mut key.0);
        key
    }

    /// Reads 44 characters of base64.
    pub fn from_base64(text: &str) -> Result<Self, ParseKeyError> {
        from_base64(text).map(Self)
    }

    /// Reads 64 characters of hexadecimal, upper or lower case.
    pub fn from_hex(text: &str) -> Result<Self, ParseKeyError> {
        let mut key = Self::default();
        from_hex_into(text, &mut key.0)?;
        Ok(key)
    }

    /// The 32 secret bytes.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// The secret as 64 characters of lower-case hexadecimal, for the UAPI alone.
    pub fn to_hex(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(to_hex(&self.0))
    }

    /// The secret as 44 characters of base64, for `genpsk` alone.
    pub fn to_base64(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(Base64::encode_string(&self.0))
    }
}

impl ConstantTimeEq for PresharedKey {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl PartialEq for PresharedKey {
    fn eq(&self, other: &Self) -> bool {
        self.ct_eq(other).into()
    }
}

impl Eq for PresharedKey {}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn private_key_is_clamped() {
        let key = PrivateKey::from_bytes([0xff; 32]);
        assert_eq!((key.as_bytes()[0], key.as_bytes()[31]), (0xf8, 0x7f));
    }

    #[test]
    fn parse_table() {
        let check = |text: &str, expected: Result<(), ParseKeyError>| {
            assert_eq!(PublicKey::from_base64(text).map(|_| ()), expected, "{text:?}");
        };
        check("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Ok(()));
        check("", Err(ParseKeyError::Length));
        check("AAAA", Err(ParseKeyError::Length));
        check("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Err(ParseKeyError::Encoding));
        check("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB=", Err(ParseKeyError::Encoding));
        check("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA*=", Err(ParseKeyError::Encoding));
        let hex = |text: &str| PublicKey::from_hex(text).map(|_| ());
        assert_eq!(hex(&"aB".repeat(32)), Ok(()));
        assert_eq!(hex(&"ab".repeat(31)), Err(ParseKeyError::Length));
        assert_eq!(hex(&"g0".repeat(32)), Err(ParseKeyError::Encoding));
    }

    /// [RFC 7748] §6.1: Alice's and Bob's keys, in hexadecimal.
    #[test]
    fn known_key_pairs_of_rfc_7748() {
        let check = |private: &str, public: &str| {
            let private = PrivateKey::from_hex(private).expect("a private key");
            assert_eq!(private.public_key().to_hex(), public);
        };
        check(
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        );
        check(
            "5DAB087E624A8A4B79E17F8B83800EE66F3BB1292618B6FD1C2F8B27FF88E0EB",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        );
    }

    /// Each form of a key reads back as the same key.
    #[test]
    fn text_forms_go_and_come() {
        let mut bytes = [0; KEY_LEN];
        bytes.iter_mut().zip(0x35..).for_each(|(byte, n)| *byte = n);
        let private = PrivateKey::from_bytes(bytes);
        assert_eq!(PrivateKey::from_base64(&private.to_base64()), Ok(private.clone()));
        assert_eq!(PrivateKey::from_hex(&private.to_hex()), Ok(private));
        let preshared = PresharedKey::from_bytes(bytes);
        assert_eq!(PresharedKey::from_base64(&preshared.to_base64()), Ok(preshared.clone()));
        assert_eq!(PresharedKey::from_hex(&preshared.to_hex().to_uppercase()), Ok(preshared.clone()));
        assert_eq!(preshared.as_bytes(), &bytes, "a preshared key is not clamped");
        assert_ne!(preshared, PresharedKey::default());
    }

    #[test]
    fn debug_shows_no_byte_of_a_secret() {
        let private = PrivateKey::from_bytes([0xab; 32]);
        let preshared = PresharedKey::from_bytes([0xab; 32]);
        let text = format!("{private:?} {preshared:?}");
        assert_eq!(text, "PrivateKey(hidden) PresharedKey(hidden)");
    }
}
