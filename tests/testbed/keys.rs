//! Keys of WireGuard, made without adit's own code.

use std::fs::File;
use std::io::Read as _;

use base64ct::{Base64, Encoding as _};
use x25519_dalek::{PublicKey, StaticSecret};

/// A private key and its public key, in base64 as `wg` prints them.
#[derive(Debug, Clone)]
pub struct Keys {
    pub private: String,
    pub public: String,
}

impl Keys {
    /// A new key pair.
    pub fn generate() -> Self {
        let mut bytes = random_bytes::<32>();
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        let public = PublicKey::from(&StaticSecret::from(bytes));
        Self { private: Base64::encode_string(&bytes), public: Base64::encode_string(public.as_bytes()) }
    }

    /// The public key in hexadecimal, as the UAPI has it.
    pub fn public_hex(&self) -> String {
        hex(&self.public)
    }

    /// The private key in hexadecimal, as the UAPI has it.
    pub fn private_hex(&self) -> String {
        hex(&self.private)
    }
}

/// Any 32 bytes in base64: a preshared key.
pub fn random_key() -> String {
    Base64::encode_string(&random_bytes::<32>())
}

/// Bytes that nobody can guess.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut source = File::open("/dev/urandom").expect("Linux has /dev/urandom");
    source.read_exact(&mut bytes).expect("/dev/urandom never ends");
    bytes
}

fn hex(base64: &str) -> String {
    let bytes = Base64::decode_vec(base64).expect("the key was encoded here");
    base16ct::lower::encode_string(&bytes)
}
