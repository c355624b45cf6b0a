//! The symmetric half of the handshake: chaining key *C* and hash *H* of whitepaper §5.4, with Noise's
//! verbs (`SymmetricState` of the Noise framework, revision 34, §5.2).
//!
//! Invariants:
//! - a key that comes out of the chain seals or opens one field, always with counter 0: [`FieldKey`] is
//!   consumed by its use, so a second use does not compile;
//! - every byte that went over the wire is in the hash, so each tag vouches for all of them;
//! - chaining key and hash are wiped when dropped.

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::key::{PresharedKey, PublicKey};
use crate::proto::crypto::{self, HASH_LEN, Secret};
use crate::proto::rejected::Rejected;

/// The handshake's name in Noise [WP 5.4].
pub const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// The protocol's name, Noise's prologue [WP 5.4].
pub const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// A key for one field of one handshake message.
#[must_use]
pub struct FieldKey(Secret);

/// Chaining key and hash of a handshake in progress.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SymmetricState {
    chaining_key: [u8; HASH_LEN],
    hash: [u8; HASH_LEN],
}

impl SymmetricState {
    /// The state before the first message to `responder`: construction, identifier, the responder's
    /// static public key. [WP 5.4.2]
    pub fn new(responder: &PublicKey) -> Self {
        let chaining_key = crypto::hash(&[CONSTRUCTION]);
        let hash = crypto::hash(&[&chaining_key, IDENTIFIER]);
        let mut state = Self { chaining_key, hash };
        state.mix_hash(responder.as_bytes());
        state
    }

    /// Takes bytes of the transcript into the hash.
    pub fn mix_hash(&mut self, data: &[u8]) {
        self.hash = crypto::hash(&[&self.hash, data]);
    }

    /// Takes a DH result into the chaining key; the key that comes out seals or opens the next field.
    pub fn mix_key(&mut self, input: &Secret) -> FieldKey {
        let (chaining_key, key) = crypto::kdf2(&self.chaining_key, &**input);
        self.chaining_key = *chaining_key;
        FieldKey(key)
    }

    /// Takes a DH result into the chaining key alone: where no field follows.
    pub fn mix_chaining_key(&mut self, input: &Secret) {
        self.chaining_key = *crypto::kdf1(&self.chaining_key, &**input);
    }

    /// The token `e`: an ephemeral public key goes into the hash and, as in every pattern with a
    /// preshared key, into the chaining key.
    pub fn mix_ephemeral(&mut self, public: &PublicKey) {
        self.mix_hash(public.as_bytes());
        self.chaining_key = *crypto::kdf1(&self.chaining_key, public.as_bytes());
    }

    /// The token `psk`: a preshared key goes into both; 32 zero bytes stand for none. [WP 5.4.3]
    pub fn mix_key_and_hash(&mut self, preshared_key: &PresharedKey) -> FieldKey {
        let (chaining_key, hash, key) = crypto::kdf3(&self.chaining_key, preshared_key.as_bytes());
        self.chaining_key = *chaining_key;
        self.mix_hash(&*hash);
        FieldKey(key)
    }

    /// Seals one field into `out`, 16 bytes longer than `plaintext`, and takes it into the hash.
    pub fn seal(&mut self, key: FieldKey, plaintext: &[u8], out: &mut [u8]) {
        crypto::aead_seal(&key.0, 0, plaintext, &self.hash, out);
        self.mix_hash(out);
    }

    /// Opens one field into `out`, 16 bytes shorter than `sealed`, and takes it into the hash. Fails
    /// with [`Rejected::BadTag`], the state unchanged.
    pub fn open(&mut self, key: FieldKey, sealed: &[u8], out: &mut [u8]) -> Result<(), Rejected> {
        crypto::aead_open(&key.0, 0, sealed, &self.hash, out)?;
        self.mix_hash(sealed);
        Ok(())
    }

    /// Ends the handshake: the initiator's sending key, which is the responder's receiving key, and
    /// the responder's sending key. [WP 5.4.5]
    pub fn split(self) -> (Secret, Secret) {
        crypto::kdf2(&self.chaining_key, &[])
    }
}
