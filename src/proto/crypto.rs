//! The primitives by the whitepaper's names (§5.4), and the AEAD of transport data, which takes a whole train.
//!
//! | here | whitepaper | what |
//! |---|---|---|
//! | [`hash`] | Hash | BLAKE2s, 32 bytes (RFC 7693) |
//! | [`mac`] | Mac | keyed BLAKE2s, 16 bytes |
//! | [`hmac`] | Hmac | HMAC with BLAKE2s, 32 bytes (RFC 2104) |
//! | [`kdf1`], [`kdf2`], [`kdf3`] | Kdf*n* | HKDF with that HMAC (RFC 5869) |
//! | [`dh`] | DH | X25519 (RFC 7748), where an all-zero result is an error |
//! | [`aead_seal`], [`aead_open`] | Aead | ChaCha20-Poly1305 (RFC 8439); nonce = 32 zero bits ++ 64-bit counter |
//! | [`xaead_seal`], [`xaead_open`] | Xaead | XChaCha20-Poly1305, nonce of 24 bytes |
//! | [`PacketAead`] | Aead, for transport data | the same, a train at a time, in place |
//!
//! Invariants:
//! - secrets are compared in constant time;
//! - keys and intermediate values are wiped; a backend's own copy of a key lives as long as one call.

use blake2::digest::block_api::{Block, Buffer, UpdateCore as _, VariableOutputCore as _};
use blake2::digest::consts::{U16, U32};
use blake2::digest::{Digest, FixedOutput, KeyInit as _, Output, Update};
use blake2::{Blake2s, Blake2sMac, Blake2sVarCore};
use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, XChaCha20Poly1305};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::key::{PrivateKey, PublicKey};
use crate::proto::messages::{COOKIE_NONCE_LEN, DATA_HEADER_LEN, DATA_OVERHEAD, MAC_LEN, TAG_LEN};
use crate::proto::rejected::Rejected;

/// Bytes of a hash, of a chaining key and of every symmetric key.
pub const HASH_LEN: usize = 32;
/// Bytes of a block of BLAKE2s: what HMAC pads its key to.
const HASH_BLOCK_LEN: usize = 64;

/// A symmetric key or another secret of 32 bytes, wiped when dropped.
pub type Secret = Zeroizing<[u8; HASH_LEN]>;

/// What [`wipe_stack`] overwrites: more than any verb of the handshake uses, in a debug build too.
const STACK_WIPED: usize = 32 * 1024;

/// Overwrites the stack below the caller's frame. A key that is returned or moved by value leaves a
/// copy in the frames that it came through, which no destructor sees; whoever runs the handshake calls
/// this after each message, from a frame above all that touched a key.
#[inline(never)]
pub fn wipe_stack() {
    // The address escapes, so the array is written in full although nothing reads it.
    core::hint::black_box(&mut [0_u8; STACK_WIPED]);
}

// --- Hashes ----------------------------------------------------------------------------------

/// BLAKE2s of the concatenated `parts`. [RFC 7693]
pub fn hash(parts: &[&[u8]]) -> [u8; HASH_LEN] {
    let mut state = Blake2s::<U32>::new();
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize_fixed().into()
}

/// BLAKE2s with a key of at most 32 bytes and 16 bytes of output. [RFC 7693]
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_LEN] {
    let mut state = Blake2sMac::<U16>::new_from_slice(key).expect("a key of BLAKE2s has at most 32 bytes");
    for part in parts {
        Update::update(&mut state, part);
    }
    state.finalize_fixed().into()
}

/// A key of [`mac`] that is used again and again: its block is hashed once, which is a third of the work for a handshake
/// message.
#[derive(Clone)]
pub(crate) struct MacKey {
    keyed: Blake2sVarCore,
}

impl MacKey {
    /// Takes in the key.
    pub(crate) fn new(key: &[u8; HASH_LEN]) -> Self {
        let mut block = Block::<Blake2sVarCore>::default();
        block[..HASH_LEN].copy_from_slice(key);
        let mut keyed = Blake2sVarCore::new_with_params(&[], &[], HASH_LEN, MAC_LEN);
        keyed.update_blocks(&[block]);
        Self { keyed }
    }

    /// [`mac`] of `message`, which must not be empty.
    pub(crate) fn mac(&self, message: &[u8]) -> [u8; MAC_LEN] {
        let mut core = self.keyed.clone();
        let mut rest = Buffer::<Blake2sVarCore>::default();
        rest.digest_blocks(message, |blocks| core.update_blocks(blocks));
        let mut out = Output::<Blake2sVarCore>::default();
        core.finalize_variable_core(&mut rest, &mut out);
        *out.first_chunk().expect("a hash is longer than a mac")
    }
}

/// HMAC with BLAKE2s of the concatenated `parts`. [RFC 2104]
pub fn hmac(key: &[u8; HASH_LEN], parts: &[&[u8]]) -> Secret {
    let mut pad = Zeroizing::new([0x36; HASH_BLOCK_LEN]);
    pad.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
    let mut state = Blake2s::<U32>::new();
    Update::update(&mut state, &*pad);
    for part in parts {
        Update::update(&mut state, part);
    }
    let mut inner = state.finalize_fixed();
    // From the inner to the outer pad.
    pad.iter_mut().for_each(|pad| *pad ^= 0x36 ^ 0x5c);
    let mut outer = Zeroizing::new([0; HASH_LEN]);
    outer.copy_from_slice(&hash(&[&*pad, &inner]));
    inner.as_mut_slice().zeroize();
    outer
}

/// One key out of a chaining key and an input of any length. [RFC 5869]
pub fn kdf1(key: &[u8; HASH_LEN], input: &[u8]) -> Secret {
    let prk = hmac(key, &[input]);
    hmac(&prk, &[&[1]])
}

/// Two keys out of a chaining key and an input of any length. [RFC 5869]
pub fn kdf2(key: &[u8; HASH_LEN], input: &[u8]) -> (Secret, Secret) {
    let prk = hmac(key, &[input]);
    let first = hmac(&prk, &[&[1]]);
    let second = hmac(&prk, &[&*first, &[2]]);
    (first, second)
}

/// Three keys out of a chaining key and an input of any length. [RFC 5869]
pub fn kdf3(key: &[u8; HASH_LEN], input: &[u8]) -> (Secret, Secret, Secret) {
    let prk = hmac(key, &[input]);
    let first = hmac(&prk, &[&[1]]);
    let second = hmac(&prk, &[&*first, &[2]]);
    let third = hmac(&prk, &[&*second, &[3]]);
    (first, second, third)
}

/// Whether two macs are the same, in constant time.
pub fn mac_eq(one: &[u8; MAC_LEN], other: &[u8; MAC_LEN]) -> bool {
    one.ct_eq(other).into()
}

// --- X25519 ----------------------------------------------------------------------------------

/// X25519. Fails with [`Rejected::LowOrderPoint`] where the result is all zero, which is the case for
/// the points of low order and for them alone, in each of their encodings. [RFC 7748]
pub fn dh(private: &PrivateKey, public: &PublicKey) -> Result<Secret, Rejected> {
    let shared = private.x25519(public);
    if shared.ct_eq(&[0; HASH_LEN]).into() { Err(Rejected::LowOrderPoint) } else { Ok(shared) }
}

// --- AEAD of the handshake and of cookies ----------------------------------------------------

/// The 96-bit nonce of a counter: 32 zero bits, then the counter, little-endian. [WP 5.4]
fn nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn seal_with(cipher: &impl AeadInOut, nonce: &[u8], plaintext: &[u8], aad: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), plaintext.len() + TAG_LEN, "the output has room for the ciphertext and the tag");
    let (ciphertext, tag_out) = out.split_at_mut(plaintext.len());
    ciphertext.copy_from_slice(plaintext);
    let nonce = nonce.try_into().expect("the nonce has the cipher's length");
    let tag = cipher
        .encrypt_inout_detached(nonce, aad, InOutBuf::from(ciphertext))
        .expect("a message is shorter than 2^38 bytes");
    tag_out.copy_from_slice(&tag);
}

fn open_with(cipher: &impl AeadInOut, nonce: &[u8], sealed: &[u8], aad: &[u8], out: &mut [u8]) -> Result<(), Rejected> {
    assert_eq!(out.len() + TAG_LEN, sealed.len(), "the output has the length of the plaintext");
    let (ciphertext, tag) = sealed.split_at(out.len());
    out.copy_from_slice(ciphertext);
    let nonce = nonce.try_into().expect("the nonce has the cipher's length");
    let tag = tag.try_into().expect("a tag has 16 bytes");
    cipher.decrypt_inout_detached(nonce, aad, InOutBuf::from(&mut *out), tag).map_err(|_| {
        out.fill(0);
        Rejected::BadTag
    })
}

/// Seals `plaintext` into `out`, which is 16 bytes longer. [RFC 8439]
pub fn aead_seal(key: &[u8; HASH_LEN], counter: u64, plaintext: &[u8], aad: &[u8], out: &mut [u8]) {
    seal_with(&chacha20poly1305::ChaCha20Poly1305::new(key.into()), &nonce(counter), plaintext, aad, out);
}

/// Opens `sealed` into `out`, which is 16 bytes shorter. Fails with [`Rejected::BadTag`], `out` zeroed. [RFC 8439]
pub fn aead_open(
    key: &[u8; HASH_LEN],
    counter: u64,
    sealed: &[u8],
    aad: &[u8],
    out: &mut [u8],
) -> Result<(), Rejected> {
    open_with(&chacha20poly1305::ChaCha20Poly1305::new(key.into()), &nonce(counter), sealed, aad, out)
}

/// Seals `plaintext` into `out`, which is 16 bytes longer, with XChaCha20-Poly1305. [WP 5.4.7]
pub fn xaead_seal(key: &[u8; HASH_LEN], nonce: &[u8; COOKIE_NONCE_LEN], plaintext: &[u8], aad: &[u8], out: &mut [u8]) {
    seal_with(&XChaCha20Poly1305::new(key.into()), nonce, plaintext, aad, out);
}

/// Opens `sealed` into `out`, which is 16 bytes shorter, with XChaCha20-Poly1305. Fails with
/// [`Rejected::BadTag`], `out` zeroed. [WP 5.4.7]
pub fn xaead_open(
    key: &[u8; HASH_LEN],
    nonce: &[u8; COOKIE_NONCE_LEN],
    sealed: &[u8],
    aad: &[u8],
    out: &mut [u8],
) -> Result<(), Rejected> {
    open_with(&XChaCha20Poly1305::new(key.into()), nonce, sealed, aad, out)
}

// --- AEAD of transport data ------------------------------------------------------------------

/// One packet of a train that is to be opened, and how that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opening {
    /// The counter of its header.
    pub counter: u64,
    /// Where its ciphertext begins in the buffer: behind its header.
    pub start: u32,
    /// Bytes of ciphertext and tag.
    pub len: u32,
    /// Written by [`PacketAead::open_train`]; nobody outside can claim it.
    pub(crate) ok: bool,
}

impl Opening {
    /// A packet to be opened: its counter, and where ciphertext and tag lie in the buffer.
    pub const fn new(counter: u64, start: u32, len: u32) -> Self {
        Self { counter, start, len, ok: false }
    }

    /// Whether the tag was right, so that the plaintext lies at `start`, `len - TAG_LEN` bytes of it.
    pub const fn is_open(&self) -> bool {
        self.ok
    }
}

/// The AEAD of transport data: ChaCha20-Poly1305 without additional data, a train at a time and in
/// place, so that a backend may work on several packets at once. [WP 5.4.6]
///
/// The key is given as 32 raw bytes at each call. What a backend makes of them is a copy, not a costly
/// schedule, so it lives for one train.
pub trait PacketAead {
    /// The name for logs and benchmarks.
    fn name() -> &'static str;

    /// Seals a train. Packet *i* begins at `train[i * stride]` and is
    /// `[header 16][payload][room for the tag 16]`; every packet but the last is `stride` bytes, and
    /// the last ends where `train` ends. Headers are left as they are. Packet *i* is sealed with the
    /// counter `first_counter + i`; the caller has reserved them all.
    ///
    /// # Panics
    /// If a packet is shorter than 32 bytes.
    fn seal_train(key: &[u8; HASH_LEN], first_counter: u64, train: &mut [u8], stride: usize);

    /// Opens each of `packets`, which lie anywhere in `buffer` but do not overlap, and says in each
    /// whether its tag was right. Where it was not, the bytes of that packet are of no use
    /// afterwards; the others are opened all the same.
    ///
    /// # Panics
    /// If a packet lies beyond the end of `buffer`.
    fn open_train(key: &[u8; HASH_LEN], buffer: &mut [u8], packets: &mut [Opening]);
}

/// The packets of a train as (payload, room for the tag), counted.
fn packets_to_seal(train: &mut [u8], stride: usize) -> impl Iterator<Item = (u64, &mut [u8], &mut [u8; TAG_LEN])> {
    assert!(stride >= DATA_OVERHEAD, "each packet has a header and a tag");
    train.chunks_mut(stride).enumerate().map(|(position, packet)| {
        let sealed = packet.get_mut(DATA_HEADER_LEN..).expect("each packet has a header");
        let (payload, tag) = sealed.split_last_chunk_mut().expect("each packet has room for a tag");
        (position as u64, payload, tag)
    })
}

fn sealed_range(packet: &Opening) -> core::ops::Range<usize> {
    let start = packet.start as usize;
    start..start + packet.len as usize
}

/// Pure Rust, on every target.
#[derive(Debug, Clone, Copy)]
pub struct ChaCha20Poly1305;

impl PacketAead for ChaCha20Poly1305 {
    fn name() -> &'static str {
        "chacha20poly1305"
    }

    fn seal_train(key: &[u8; HASH_LEN], first_counter: u64, train: &mut [u8], stride: usize) {
        let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
        for (position, payload, tag) in packets_to_seal(train, stride) {
            let sealed = cipher
                .encrypt_inout_detached(&nonce(first_counter + position).into(), &[], InOutBuf::from(payload))
                .expect("a packet is shorter than 2^38 bytes");
            tag.copy_from_slice(&sealed);
        }
    }

    fn open_train(key: &[u8; HASH_LEN], buffer: &mut [u8], packets: &mut [Opening]) {
        let cipher = chacha20poly1305::ChaCha20Poly1305::new(key.into());
        for packet in packets {
            let sealed = &mut buffer[sealed_range(packet)];
            packet.ok = sealed.split_last_chunk_mut::<TAG_LEN>().is_some_and(|(ciphertext, tag)| {
                let nonce = nonce(packet.counter).into();
                cipher.decrypt_inout_detached(&nonce, &[], InOutBuf::from(ciphertext), (&*tag).into()).is_ok()
            });
        }
    }
}

/// ring: assembly for x86-64 and ARM, chosen at run time by what the processor has.
#[cfg(feature = "ring")]
#[derive(Debug, Clone, Copy)]
pub struct Ring;

#[cfg(feature = "ring")]
impl Ring {
    /// Calls `work` with ring's own copy of the key. ring does not wipe a key that it drops, so the
    /// copy is overwritten here with another key, and `black_box` keeps the compiler from leaving
    /// that out.
    fn with_key(key: &[u8; HASH_LEN], work: impl FnOnce(&ring::aead::LessSafeKey)) {
        let unbound = |bytes: &[u8; HASH_LEN]| {
            ring::aead::UnboundKey::new(&ring::aead::CHACHA20_POLY1305, bytes)
                .expect("a key of ChaCha20-Poly1305 has 32 bytes")
        };
        let mut copy = ring::aead::LessSafeKey::new(unbound(key));
        work(&copy);
        copy = ring::aead::LessSafeKey::new(unbound(&[0; HASH_LEN]));
        core::hint::black_box(&copy);
    }
}

#[cfg(feature = "ring")]
impl PacketAead for Ring {
    fn name() -> &'static str {
        "ring"
    }

    fn seal_train(key: &[u8; HASH_LEN], first_counter: u64, train: &mut [u8], stride: usize) {
        Self::with_key(key, |cipher| {
            for (position, payload, tag) in packets_to_seal(train, stride) {
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce(first_counter + position));
                let sealed = cipher
                    .seal_in_place_separate_tag(nonce, ring::aead::Aad::empty(), payload)
                    .expect("a packet is shorter than 2^38 bytes");
                tag.copy_from_slice(sealed.as_ref());
            }
        });
    }

    fn open_train(key: &[u8; HASH_LEN], buffer: &mut [u8], packets: &mut [Opening]) {
        Self::with_key(key, |cipher| {
            for packet in packets {
                let nonce = ring::aead::Nonce::assume_unique_for_key(nonce(packet.counter));
                let sealed = &mut buffer[sealed_range(packet)];
                packet.ok = cipher.open_in_place(nonce, ring::aead::Aad::empty(), sealed).is_ok();
            }
        });
    }
}

/// The backend that the device seals and opens with.
#[cfg(feature = "ring")]
pub type DefaultAead = Ring;
/// The backend that the device seals and opens with.
#[cfg(not(feature = "ring"))]
pub type DefaultAead = ChaCha20Poly1305;

#[cfg(test)]
mod tests;
