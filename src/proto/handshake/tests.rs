//! The state machine of one handshake: two parties, then each rule that a message can break.

use super::*;
use crate::proto::cookie::CookieJar;
use crate::proto::messages::{Message, parse};
use crate::proto::time::UnixTime;
use core::convert::Infallible;
use core::time::Duration;
use rand_core::{TryCryptoRng, TryRng};

/// Numbers that differ from call to call: randomness enough where nobody guesses.
struct Counting(u64);

impl TryRng for Counting {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|n| n as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            let bytes = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Counting {}

fn stamp(millis: u64) -> Tai64n {
    Tai64n::from_unix(UnixTime(Duration::from_millis(millis)))
}

fn at(millis: u64) -> Instant {
    Instant::default() + Duration::from_millis(millis)
}

struct Party {
    identity: Identity,
    handshake: Handshake,
    jar: CookieJar,
}

impl Party {
    fn add_macs<const N: usize>(&mut self, mut message: [u8; N]) -> [u8; N] {
        self.jar.add_macs(&self.handshake.remote_static, &mut message, at(0));
        message
    }

    fn create_initiation(&mut self, index: u32, millis: u64, rng: &mut Counting) -> [u8; INITIATION_LEN] {
        let message = self.handshake.create_initiation(&self.identity, index, stamp(millis), rng).expect("created");
        self.add_macs(message)
    }

    fn consume_initiation(&mut self, message: &[u8], millis: u64) -> Result<(), Rejected> {
        let Ok(Message::Initiation(message)) = parse(message) else { panic!("an initiation") };
        let opened = self.identity.open_initiation(&message)?;
        self.handshake.consume_initiation(&self.identity, opened, at(millis))
    }

    fn create_response(&mut self, index: u32, rng: &mut Counting) -> ([u8; RESPONSE_LEN], DerivedKeys) {
        let (message, keys) = self.handshake.create_response(index, rng).expect("created");
        (self.add_macs(message), keys)
    }

    fn consume_response(&mut self, message: &[u8]) -> Result<DerivedKeys, Rejected> {
        let Ok(Message::Response(message)) = parse(message) else { panic!("a response") };
        self.handshake.consume_response(&self.identity, &message)
    }
}

fn pair(psk: [u8; 32], rng: &mut Counting) -> (Party, Party) {
    let (one, other) = (PrivateKey::generate(rng), PrivateKey::generate(rng));
    let party = |private: &PrivateKey, remote: &PrivateKey| Party {
        identity: Identity::new(private.clone()),
        handshake: Handshake::new(remote.public_key(), PresharedKey::from_bytes(psk)),
        jar: CookieJar::new(),
    };
    (party(&one, &other), party(&other, &one))
}

/// [WP 5.4.5] Both sides derive the same keys, each the other's way round, with and without a psk.
#[test]
fn two_parties_derive_the_same_keys() {
    for psk in [[0; 32], [7; 32]] {
        let mut rng = Counting(1);
        let (mut initiator, mut responder) = pair(psk, &mut rng);
        let initiation = initiator.create_initiation(10, 1000, &mut rng);
        assert_eq!(initiator.handshake.local_index(), Some(10));
        responder.consume_initiation(&initiation, 0).expect("consumed");
        let (response, theirs) = responder.create_response(20, &mut rng);
        let ours = initiator.consume_response(&response).expect("consumed");
        assert_eq!((&ours.sending, &ours.receiving), (&theirs.receiving, &theirs.sending));
        assert_ne!(ours.sending, ours.receiving);
        assert_eq!((ours.local_index, ours.remote_index, ours.is_initiator), (10, 20, true));
        assert_eq!((theirs.local_index, theirs.remote_index, theirs.is_initiator), (20, 10, false));
        assert_eq!(initiator.handshake.local_index(), None);
    }
}
