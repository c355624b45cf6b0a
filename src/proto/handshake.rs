//! Noise IKpsk2, token by token: create and consume × initiation and response. [WP 5.4]
//!
//! ```text
//!                create_initiation            consume_response
//!   ┌─────────┐ ─────────────────▶ CreatedInitiation ──────────▶ DerivedKeys, initiator
//!   │ Zeroed  │
//!   └─────────┘ ─────────────────▶ ConsumedInitiation ─────────▶ DerivedKeys, responder
//!                consume_initiation           create_response
//! ```
//! Each verb of the left half is possible in every state and replaces what was there; those of the
//! right half need the state that their arrow leaves, and end in `Zeroed`.
//!
//! *Who is calling?* takes two steps. [`Identity::open_initiation`] decrypts the static key that the
//! initiator claims; the caller finds the peer of that name; [`Handshake::consume_initiation`] of that
//! peer proves the claim by the static-static DH and the timestamp's tag.
//!
//! Invariants:
//! - mac1 is right before the first DH of a message [WP 5.3];
//! - a DH result of all zeros ends the verb with [`Rejected::LowOrderPoint`];
//! - a verb that fails leaves the handshake as it was, so that the true message is still accepted;
//! - the greatest timestamp of a peer outlives sessions, changes of keys and [`Handshake::clear`];
//! - chaining key, hash and ephemeral key are wiped when the keys are derived or the state is replaced.

use alloc::boxed::Box;

use rand_core::CryptoRng;

use crate::key::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
use crate::proto::constants::INITIATIONS_MIN_INTERVAL;
use crate::proto::cookie::mac1_key;
use crate::proto::crypto::{self, MacKey, Secret};
use crate::proto::messages::{
    self, INITIATION_LEN, Initiation, MAC_LEN, MACS_LEN, RESPONSE_LEN, Response, SEALED_STATIC_LEN,
    SEALED_TIMESTAMP_LEN, TAG_LEN,
};
use crate::proto::noise::SymmetricState;
use crate::proto::rejected::Rejected;
use crate::proto::tai64n::{TAI64N_LEN, Tai64n};
use crate::proto::time::Instant;

/// Our static key pair, and what every handshake with it begins with. Made once per private key.
pub struct Identity {
    private: PrivateKey,
    public: PublicKey,
    /// The key of the mac1 of messages to us.
    mac1_key: MacKey,
    /// The state before a message to us.
    initial: SymmetricState,
}

impl Identity {
    /// Derives the public key and all that depends on it.
    pub fn new(private: PrivateKey) -> Self {
        let public = private.public_key();
        Self { private, public, mac1_key: MacKey::new(&mac1_key(&public)), initial: SymmetricState::new(&public) }
    }

    /// Our static public key.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// Our static private key.
    pub fn private_key(&self) -> &PrivateKey {
        &self.private
    }

    /// Checks the mac1 of an initiation or a response to us, in constant time. Fails with
    /// [`Rejected::BadMac1`], and with [`Rejected::MalformedMessage`] for any other length. [WP 5.4.4]
    pub fn check_mac1(&self, message: &[u8]) -> Result<(), Rejected> {
        if message.len() != INITIATION_LEN && message.len() != RESPONSE_LEN {
            return Err(Rejected::MalformedMessage);
        }
        let (covered, macs) = message.split_at(message.len() - MACS_LEN);
        let mac1 = macs.first_chunk::<MAC_LEN>().expect("the macs are two of 16 bytes");
        if crypto::mac_eq(mac1, &self.mac1_key.mac(covered)) { Ok(()) } else { Err(Rejected::BadMac1) }
    }

    /// Opens the initiator's static key. Fails with [`Rejected::BadMac1`], [`Rejected::LowOrderPoint`]
    /// or [`Rejected::BadTag`]. [WP 5.4.2]
    pub fn open_initiation(&self, message: &Initiation<'_>) -> Result<OpenedInitiation, Rejected> {
        // Also for a caller that has checked mac1 already: no DH without it, and it costs a hundredth of one.
        self.check_mac1(message.as_bytes())?;
        let mut noise = self.initial.clone();
        let remote_ephemeral = PublicKey::from_bytes(*message.ephemeral());
        noise.mix_ephemeral(&remote_ephemeral); // e
        let key = noise.mix_key(&crypto::dh(&self.private, &remote_ephemeral)?); // es
        let mut remote_static = [0; KEY_LEN];
        noise.open(key, message.sealed_static(), &mut remote_static)?; // s
        Ok(OpenedInitiation {
            noise,
            remote_static: PublicKey::from_bytes(remote_static),
            remote_ephemeral,
            remote_index: message.sender(),
            sealed_timestamp: *message.sealed_timestamp(),
        })
    }
}

/// An initiation of which the static key has been opened: a claim, not yet proven.
pub struct OpenedInitiation {
    noise: SymmetricState,
    remote_static: PublicKey,
    remote_ephemeral: PublicKey,
    remote_index: u32,
    sealed_timestamp: [u8; SEALED_TIMESTAMP_LEN],
}

impl OpenedInitiation {
    /// Who the initiator claims to be.
    pub fn remote_static(&self) -> PublicKey {
        self.remote_static
    }

    /// The initiator's index.
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }
}

/// The keys of a session, and whom they join.
pub struct DerivedKeys {
    /// Seals what we send.
    pub sending: Secret,
    /// Opens what we receive.
    pub receiving: Secret,
    /// The index that the peer addresses us with.
    pub local_index: u32,
    /// The index that we address the peer with.
    pub remote_index: u32,
    /// We began the handshake, so we renew it.
    pub is_initiator: bool,
}

/// Our initiation, while it waits for its response.
pub(super) struct CreatedInitiation {
    noise: SymmetricState,
    ephemeral: PrivateKey,
    local_index: u32,
}

impl CreatedInitiation {
    /// Our index in it.
    pub(super) fn local_index(&self) -> u32 {
        self.local_index
    }
}

struct ConsumedInitiation {
    noise: SymmetricState,
    remote_ephemeral: PublicKey,
    remote_index: u32,
}

/// Boxed, because most configured peers have no handshake in progress most of the time.
enum State {
    Zeroed,
    CreatedInitiation(Box<CreatedInitiation>),
    ConsumedInitiation(Box<ConsumedInitiation>),
}

/// The handshake with one peer: what is configured, what is remembered for ever, and what is in progress.
pub struct Handshake {
    remote_static: PublicKey,
    preshared_key: PresharedKey,
    /// DH of both static keys, made when first needed.
    static_static: Option<Box<Secret>>,
    /// The greatest timestamp that was ever accepted.
    greatest_received: Tai64n,
    /// The last timestamp that was ever sent.
    last_sent: Tai64n,
    /// When an initiation was last accepted.
    last_consumed: Option<Instant>,
    state: State,
}

impl Handshake {
    /// A peer without history.
    pub fn new(remote_static: PublicKey, preshared_key: PresharedKey) -> Self {
        Self {
            remote_static,
            preshared_key,
            static_static: None,
            greatest_received: Tai64n::default(),
            last_sent: Tai64n::default(),
            last_consumed: None,
            state: State::Zeroed,
        }
    }

    /// The peer's static public key.
    pub fn remote_static(&self) -> PublicKey {
        self.remote_static
    }

    /// The preshared key; all zeros where there is none.
    pub fn preshared_key(&self) -> &PresharedKey {
        &self.preshared_key
    }

    /// Our index while we wait for the response to our initiation.
    pub fn local_index(&self) -> Option<u32> {
        match &self.state {
            State::CreatedInitiation(created) => Some(created.local_index),
            State::Zeroed | State::ConsumedInitiation(_) => None,
        }
    }

    /// Puts the initiation that we wait on aside, while one of the peer's that crossed it is answered.
    pub(super) fn put_aside(&mut self) -> Option<Box<CreatedInitiation>> {
        match core::mem::replace(&mut self.state, State::Zeroed) {
            State::CreatedInitiation(created) => Some(created),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Waits again on an initiation that was put aside. Replaces what was in progress.
    pub(super) fn take_up(&mut self, created: Box<CreatedInitiation>) {
        self.state = State::CreatedInitiation(created);
    }

    /// Uses this preshared key from the next message on. What is in progress goes on, and fails if it
    /// was begun with another key. [WP 5.2]
    pub fn set_preshared_key(&mut self, preshared_key: PresharedKey) {
        self.preshared_key = preshared_key;
    }

    /// Forgets and wipes what is in progress.
    pub fn clear(&mut self) {
        self.state = State::Zeroed;
    }

    /// Our private key is another one: forgets and wipes all that came from the old one.
    pub fn identity_changed(&mut self) {
        self.static_static = None;
        self.clear();
    }

    fn static_static(&mut self, identity: &Identity) -> Result<&Secret, Rejected> {
        match &mut self.static_static {
            Some(shared) => Ok(shared),
            empty => Ok(empty.insert(Box::new(crypto::dh(&identity.private, &self.remote_static)?))),
        }
    }

    /// Begins a handshake: an initiation, whose macs a cookie jar has yet to add. Where `timestamp` is
    /// not greater than the last one sent, the next greater one is sent. Replaces what was in
    /// progress. Fails with [`Rejected::LowOrderPoint`]. [WP 5.4.2]
    pub fn create_initiation(
        &mut self,
        identity: &Identity,
        local_index: u32,
        timestamp: Tai64n,
        rng: &mut impl CryptoRng,
    ) -> Result<[u8; INITIATION_LEN], Rejected> {
        let timestamp = timestamp.after(self.last_sent);
        let ephemeral = PrivateKey::generate(rng);
        let ephemeral_public = ephemeral.public_key();

        let mut noise = SymmetricState::new(&self.remote_static);
        noise.mix_ephemeral(&ephemeral_public); // e
        let key = noise.mix_key(&crypto::dh(&ephemeral, &self.remote_static)?); // es
        let mut sealed_static = [0; SEALED_STATIC_LEN];
        noise.seal(key, identity.public.as_bytes(), &mut sealed_static); // s
        let key = noise.mix_key(self.static_static(identity)?); // ss
        let mut sealed_timestamp = [0; SEALED_TIMESTAMP_LEN];
        noise.seal(key, timestamp.as_bytes(), &mut sealed_timestamp);

        let message =
            messages::write_initiation(local_index, ephemeral_public.as_bytes(), &sealed_static, &sealed_timestamp);
        self.last_sent = timestamp;
        self.state = State::CreatedInitiation(Box::new(CreatedInitiation { noise, ephemeral, local_index }));
        Ok(message)
    }

    /// Accepts an initiation of this peer. Replaces what was in progress, an initiation of ours too.
    ///
    /// Fails with [`Rejected::UnknownPeer`] if the claimed key is not this peer's, with
    /// [`Rejected::LowOrderPoint`] or [`Rejected::BadTag`] if the claim is false, with
    /// [`Rejected::ReplayedTimestamp`] if the timestamp is not strictly greater than every one
    /// accepted before [WP 5.1], and with [`Rejected::InitiationFlood`] within 20 ms of the last one.
    pub fn consume_initiation(
        &mut self,
        identity: &Identity,
        opened: OpenedInitiation,
        now: Instant,
    ) -> Result<(), Rejected> {
        let OpenedInitiation { mut noise, remote_static, remote_ephemeral, remote_index, sealed_timestamp } = opened;
        if remote_static != self.remote_static {
            return Err(Rejected::UnknownPeer);
        }
        let key = noise.mix_key(self.static_static(identity)?); // ss
        let mut timestamp = [0; TAI64N_LEN];
        noise.open(key, &sealed_timestamp, &mut timestamp)?;
        let timestamp = Tai64n::from_bytes(timestamp);
        if timestamp <= self.greatest_received {
            return Err(Rejected::ReplayedTimestamp);
        }
        if self.last_consumed.is_some_and(|last| now.since(last) < INITIATIONS_MIN_INTERVAL) {
            return Err(Rejected::InitiationFlood);
        }
        self.greatest_received = timestamp;
        self.last_consumed = Some(now);
        self.state = State::ConsumedInitiation(Box::new(ConsumedInitiation { noise, remote_ephemeral, remote_index }));
        Ok(())
    }

    /// Answers the initiation that was consumed: a response, whose macs a cookie jar has yet to add,
    /// and the keys of the session. Fails with [`Rejected::NoHandshake`] if there is none, or with
    /// [`Rejected::LowOrderPoint`]. [WP 5.4.3]
    pub fn create_response(
        &mut self,
        local_index: u32,
        rng: &mut impl CryptoRng,
    ) -> Result<([u8; RESPONSE_LEN], DerivedKeys), Rejected> {
        let State::ConsumedInitiation(consumed) = &self.state else { return Err(Rejected::NoHandshake) };
        let ephemeral = PrivateKey::generate(rng);
        let ephemeral_public = ephemeral.public_key();

        let mut noise = consumed.noise.clone();
        noise.mix_ephemeral(&ephemeral_public); // e
        noise.mix_chaining_key(&crypto::dh(&ephemeral, &consumed.remote_ephemeral)?); // ee
        noise.mix_chaining_key(&crypto::dh(&ephemeral, &self.remote_static)?); // se
        let key = noise.mix_key_and_hash(&self.preshared_key); // psk
        let mut sealed_nothing = [0; TAG_LEN];
        noise.seal(key, &[], &mut sealed_nothing);

        let remote_index = consumed.remote_index;
        let message = messages::write_response(local_index, remote_index, ephemeral_public.as_bytes(), &sealed_nothing);
        let (receiving, sending) = noise.split();
        self.state = State::Zeroed;
        Ok((message, DerivedKeys { sending, receiving, local_index, remote_index, is_initiator: false }))
    }

    /// Accepts the response to our initiation, once. Fails with [`Rejected::NoHandshake`] if it
    /// answers no initiation that we wait on, and with [`Rejected::BadMac1`],
    /// [`Rejected::LowOrderPoint`] or [`Rejected::BadTag`]. [WP 5.4.3]
    pub fn consume_response(&mut self, identity: &Identity, message: &Response<'_>) -> Result<DerivedKeys, Rejected> {
        let State::CreatedInitiation(created) = &self.state else { return Err(Rejected::NoHandshake) };
        if created.local_index != message.receiver() {
            return Err(Rejected::NoHandshake);
        }
        identity.check_mac1(message.as_bytes())?;
        let remote_ephemeral = PublicKey::from_bytes(*message.ephemeral());

        let mut noise = created.noise.clone();
        noise.mix_ephemeral(&remote_ephemeral); // e
        noise.mix_chaining_key(&crypto::dh(&created.ephemeral, &remote_ephemeral)?); // ee
        noise.mix_chaining_key(&crypto::dh(&identity.private, &remote_ephemeral)?); // se
        let key = noise.mix_key_and_hash(&self.preshared_key); // psk
        noise.open(key, message.sealed_nothing(), &mut [])?;

        let local_index = created.local_index;
        let (sending, receiving) = noise.split();
        self.state = State::Zeroed;
        Ok(DerivedKeys { sending, receiving, local_index, remote_index: message.sender(), is_initiator: true })
    }
}

#[cfg(test)]
mod tests;
