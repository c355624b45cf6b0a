//! The state machine of one handshake: two parties, then each rule that a message can break.

use super::*;
use crate::proto::cookie::CookieJar;
use crate::proto::crypto::HASH_LEN;
use crate::proto::messages::{Message, parse};
use crate::proto::test_rng::TestRng;
use crate::proto::time::UnixTime;
use core::time::Duration;

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

    fn create_initiation(&mut self, index: u32, millis: u64, rng: &mut TestRng) -> [u8; INITIATION_LEN] {
        let message = self.handshake.create_initiation(&self.identity, index, stamp(millis), rng).expect("created");
        self.add_macs(message)
    }

    fn consume_initiation(&mut self, message: &[u8], millis: u64) -> Result<(), Rejected> {
        let Ok(Message::Initiation(message)) = parse(message) else { panic!("an initiation") };
        let opened = self.identity.open_initiation(&message)?;
        self.handshake.consume_initiation(&self.identity, opened, at(millis))
    }

    fn create_response(&mut self, index: u32, rng: &mut TestRng) -> ([u8; RESPONSE_LEN], DerivedKeys) {
        let (message, keys) = self.handshake.create_response(index, rng).expect("created");
        (self.add_macs(message), keys)
    }

    fn consume_response(&mut self, message: &[u8]) -> Result<DerivedKeys, Rejected> {
        let Ok(Message::Response(message)) = parse(message) else { panic!("a response") };
        self.handshake.consume_response(&self.identity, &message)
    }
}

fn pair(psk: [u8; 32], rng: &mut TestRng) -> (Party, Party) {
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
        let mut rng = TestRng(1);
        let (mut initiator, mut responder) = pair(psk, &mut rng);
        let initiation = initiator.create_initiation(10, 1000, &mut rng);
        assert_eq!(initiator.handshake.local_index(), Some(10));
        let Ok(Message::Initiation(message)) = parse(&initiation) else { panic!("an initiation") };
        let opened = responder.identity.open_initiation(&message).expect("opened");
        assert_eq!((opened.remote_static(), opened.remote_index()), (initiator.identity.public_key(), 10));
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

/// The points of low order of X25519, and the prime and one more as other encodings of zero and one.
const LOW_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

fn low_order_points() -> impl Iterator<Item = PublicKey> {
    LOW_ORDER.iter().map(|point| PublicKey::from_hex(point).expect("a point"))
}

/// A message to `to` with its mac1 made anew, as an attacker who knows the public key can.
fn forge_mac1(to: &Party, message: &mut [u8]) {
    CookieJar::new().add_macs(&to.identity.public, message, at(0));
}

/// [WP 5.1] Silence: whichever bit of an initiation is wrong, it is refused, and the true one is still
/// accepted afterwards.
#[test]
fn s_23_a_broken_initiation_changes_nothing() {
    let mut rng = TestRng(2);
    let (mut initiator, mut responder) = pair([3; 32], &mut rng);
    let initiation = initiator.create_initiation(1, 1000, &mut rng);
    // From the sender index to the end of mac1; the type belongs to `parse`, mac2 to cookies.
    for position in 4..INITIATION_LEN - MAC_LEN {
        let mut broken = initiation;
        broken[position] ^= 0x10;
        assert_eq!(responder.consume_initiation(&broken, 0), Err(Rejected::BadMac1), "byte {position}");
        forge_mac1(&responder, &mut broken);
        let expected = match position {
            4..8 => continue,  // mac1 alone covers the sender index: whoever can forge mac1 can change it
            116.. => continue, // mac1 itself, which is now right again
            _ => Err(Rejected::BadTag),
        };
        assert_eq!(responder.consume_initiation(&broken, 0), expected, "byte {position}, mac1 forged");
        assert!(matches!(responder.handshake.state, State::Zeroed));
    }
    assert_eq!(responder.consume_initiation(&initiation, 0), Ok(()));
}

/// [WP 5.4.3] Whichever bit of a response is wrong, it is refused, and the true one is still accepted
/// afterwards; once.
#[test]
fn s_08_s_23_a_broken_response_changes_nothing_and_a_true_one_counts_once() {
    let mut rng = TestRng(3);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    let initiation = initiator.create_initiation(0x0102_0304, 1000, &mut rng);
    responder.consume_initiation(&initiation, 0).expect("consumed");
    let (response, _) = responder.create_response(9, &mut rng);
    for position in 4..RESPONSE_LEN - MAC_LEN {
        let mut broken = response;
        broken[position] ^= 0x10;
        let expected = if (8..12).contains(&position) { Rejected::NoHandshake } else { Rejected::BadMac1 };
        assert_eq!(initiator.consume_response(&broken).err(), Some(expected), "byte {position}");
        forge_mac1(&initiator, &mut broken);
        if (12..60).contains(&position) {
            let result = initiator.consume_response(&broken).err();
            assert_eq!(result, Some(Rejected::BadTag), "byte {position}, mac1 forged");
        }
        assert_eq!(initiator.handshake.local_index(), Some(0x0102_0304));
    }
    assert!(initiator.consume_response(&response).is_ok());
    assert_eq!(initiator.consume_response(&response).err(), Some(Rejected::NoHandshake), "replayed");
}

/// [WP 5.3] No DH without mac1: an ephemeral key of low order, which a DH would notice, is not noticed.
#[test]
fn s_03_mac1_is_checked_before_any_dh() {
    let mut rng = TestRng(4);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    let mut initiation = initiator.create_initiation(1, 1000, &mut rng);
    initiation[8..40].fill(0);
    assert_eq!(responder.consume_initiation(&initiation, 0), Err(Rejected::BadMac1));
    forge_mac1(&responder, &mut initiation);
    assert_eq!(responder.consume_initiation(&initiation, 0), Err(Rejected::LowOrderPoint));

    let mut response = messages::write_response(2, 1, &[0; 32], &[0; 16]);
    assert_eq!(initiator.consume_response(&response).err(), Some(Rejected::BadMac1));
    forge_mac1(&initiator, &mut response);
    assert_eq!(initiator.consume_response(&response).err(), Some(Rejected::LowOrderPoint));
    assert_eq!(initiator.handshake.local_index(), Some(1), "still waiting");
}

/// [RFC 7748] Low order in each of the three places where a stranger's point comes in: the ephemeral
/// key of an initiation, that of a response, and a peer's static key.
#[test]
fn s_10_low_order_points_lead_to_no_session() {
    let mut rng = TestRng(5);
    for point in low_order_points() {
        for high_bit in [0, 0x80] {
            let mut bytes = *point.as_bytes();
            bytes[31] |= high_bit;
            let point = PublicKey::from_bytes(bytes);
            let (mut initiator, mut responder) = pair([0; 32], &mut rng);
            let mut initiation = initiator.create_initiation(1, 1000, &mut rng);
            initiation[8..40].copy_from_slice(&bytes);
            forge_mac1(&responder, &mut initiation);
            assert_eq!(responder.consume_initiation(&initiation, 0), Err(Rejected::LowOrderPoint));

            let mut response = messages::write_response(2, 1, &bytes, &[0; 16]);
            forge_mac1(&initiator, &mut response);
            assert_eq!(initiator.consume_response(&response).err(), Some(Rejected::LowOrderPoint));

            initiator.handshake = Handshake::new(point, PresharedKey::default());
            let result = initiator.handshake.create_initiation(&initiator.identity, 1, stamp(0), &mut rng);
            assert_eq!(result.err(), Some(Rejected::LowOrderPoint));
            assert_eq!(initiator.handshake.local_index(), None);
            assert_eq!(initiator.handshake.last_sent, Tai64n::default());
        }
    }
}

/// [RFC 7748] An initiator that claims a static key of low order proves nothing: the static-static DH
/// would be all zeros, which anybody can compute.
#[test]
fn s_10_a_claimed_low_order_static_key_is_refused() {
    let mut rng = TestRng(6);
    let (_, mut responder) = pair([0; 32], &mut rng);
    for point in low_order_points() {
        responder.handshake = Handshake::new(point, PresharedKey::default());
        let ephemeral = PrivateKey::generate(&mut rng);
        let mut noise = SymmetricState::new(&responder.identity.public);
        noise.mix_ephemeral(&ephemeral.public_key());
        let key = noise.mix_key(&crypto::dh(&ephemeral, &responder.identity.public).expect("a good point"));
        let mut sealed_static = [0; SEALED_STATIC_LEN];
        noise.seal(key, point.as_bytes(), &mut sealed_static);
        let key = noise.mix_key(&Secret::new([0; HASH_LEN]));
        let mut sealed_timestamp = [0; SEALED_TIMESTAMP_LEN];
        noise.seal(key, stamp(1000).as_bytes(), &mut sealed_timestamp);
        let mut message =
            messages::write_initiation(1, ephemeral.public_key().as_bytes(), &sealed_static, &sealed_timestamp);
        forge_mac1(&responder, &mut message);
        assert_eq!(responder.consume_initiation(&message, 0), Err(Rejected::LowOrderPoint));
        assert!(matches!(responder.handshake.state, State::Zeroed));
    }
}

/// [WP 5.1] Only a strictly greater timestamp is accepted, and the greatest is kept across changes of
/// identity and preshared key, a clear, and sessions.
#[test]
fn s_04_timestamps_grow_strictly() {
    let mut rng = TestRng(7);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    let old = initiator.create_initiation(1, 1000, &mut rng);
    let new = initiator.create_initiation(2, 5000, &mut rng);
    assert_eq!(responder.consume_initiation(&new, 0), Ok(()));
    for forget in [
        |_: &mut Handshake| {},
        |handshake: &mut Handshake| handshake.clear(),
        |handshake: &mut Handshake| handshake.identity_changed(),
        |handshake: &mut Handshake| handshake.set_preshared_key(PresharedKey::from_bytes([1; 32])),
    ] {
        forget(&mut responder.handshake);
        assert_eq!(responder.consume_initiation(&new, 1000), Err(Rejected::ReplayedTimestamp));
        assert_eq!(responder.consume_initiation(&old, 1000), Err(Rejected::ReplayedTimestamp));
    }
    let newer = initiator.create_initiation(3, 5020, &mut rng);
    assert_eq!(responder.consume_initiation(&newer, 1000), Ok(()));
}

/// Two copies of an initiation that were both opened before either is consumed: the timestamp is looked at where it is
/// kept, and one of them wins.
#[test]
fn s_04_of_two_racing_copies_one_wins() {
    let mut rng = TestRng(16);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    let initiation = initiator.create_initiation(1, 1000, &mut rng);
    let Ok(Message::Initiation(message)) = parse(&initiation) else { panic!("an initiation") };
    let [one, other] = [(); 2].map(|()| responder.identity.open_initiation(&message).expect("opened"));
    assert_eq!(responder.handshake.consume_initiation(&responder.identity, other, at(1000)), Ok(()));
    let second = responder.handshake.consume_initiation(&responder.identity, one, at(2000));
    assert_eq!(second, Err(Rejected::ReplayedTimestamp));
}

/// Whoever has our private key can speak as us, but not to us as another (key compromise impersonation): he can begin
/// a handshake, and neither its session nor that of a handshake of ours is ever his, whatever he puts in place of the
/// DH that he cannot make, or if he leaves it out.
#[test]
fn s_09_a_stolen_private_key_does_not_impersonate_others() {
    let mut rng = TestRng(15);
    let (mut victim, other) = pair([0; 32], &mut rng);
    let (stolen, victim_public) = (victim.identity.private.clone(), victim.identity.public);
    let other_public = other.identity.public;
    let dh = |private: &PrivateKey, public: &PublicKey| crypto::dh(private, public).expect("a good point");
    let own = PrivateKey::generate(&mut rng);

    let mut noise = SymmetricState::new(&victim_public);
    noise.mix_ephemeral(&own.public_key());
    let key = noise.mix_key(&dh(&own, &victim_public));
    let mut sealed_static = [0; SEALED_STATIC_LEN];
    noise.seal(key, other_public.as_bytes(), &mut sealed_static);
    let static_static = dh(&stolen, &other_public);
    let key = noise.mix_key(&static_static);
    let mut sealed_timestamp = [0; SEALED_TIMESTAMP_LEN];
    noise.seal(key, stamp(1000).as_bytes(), &mut sealed_timestamp);
    let mut message = messages::write_initiation(1, own.public_key().as_bytes(), &sealed_static, &sealed_timestamp);
    forge_mac1(&victim, &mut message);
    assert_eq!(victim.consume_initiation(&message, 0), Ok(()), "the first message alone does not tell");
    let (response, keys) = victim.create_response(2, &mut rng);
    let Ok(Message::Response(response)) = parse(&response) else { panic!("a response") };
    let ephemeral = PublicKey::from_bytes(*response.ephemeral());
    let ephemeral_ephemeral = dh(&own, &ephemeral);
    for guess in [None, Some(&static_static), Some(&dh(&stolen, &ephemeral)), Some(&ephemeral_ephemeral)] {
        let mut noise = noise.clone();
        noise.mix_ephemeral(&ephemeral);
        noise.mix_chaining_key(&ephemeral_ephemeral);
        guess.into_iter().for_each(|guess| noise.mix_chaining_key(guess)); // se: the other's key and our ephemeral one
        let key = noise.mix_key_and_hash(&PresharedKey::default());
        assert_eq!(noise.open(key, response.sealed_nothing(), &mut []), Err(Rejected::BadTag));
        assert_ne!(noise.split().0, keys.receiving);
    }

    let initiation = victim.create_initiation(3, 2000, &mut rng);
    let Ok(Message::Initiation(initiation)) = parse(&initiation) else { panic!("an initiation") };
    let ephemeral = PublicKey::from_bytes(*initiation.ephemeral());
    for guess in [None, Some(&static_static), Some(&dh(&stolen, &ephemeral)), Some(&dh(&own, &ephemeral))] {
        let mut noise = SymmetricState::new(&other_public);
        noise.mix_ephemeral(&ephemeral);
        guess.into_iter().for_each(|guess| noise.mix_chaining_key(guess)); // es: the other's key and our ephemeral one
        noise.mix_hash(initiation.sealed_static());
        noise.mix_chaining_key(&static_static);
        noise.mix_hash(initiation.sealed_timestamp());
        noise.mix_ephemeral(&own.public_key());
        noise.mix_chaining_key(&dh(&own, &ephemeral));
        noise.mix_chaining_key(&dh(&own, &victim_public));
        let key = noise.mix_key_and_hash(&PresharedKey::default());
        let mut sealed_nothing = [0; TAG_LEN];
        noise.seal(key, &[], &mut sealed_nothing);
        let mut response = messages::write_response(4, 3, own.public_key().as_bytes(), &sealed_nothing);
        forge_mac1(&victim, &mut response);
        assert_eq!(victim.consume_response(&response).err(), Some(Rejected::BadTag));
    }
}

/// [WP 5.1] A sender whose wall clock stands still or goes back is still understood.
#[test]
fn an_initiator_whose_clock_goes_back_is_still_accepted() {
    let mut rng = TestRng(8);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    for (round, wall_millis) in [100_000, 100_000, 5, 0, 99_999, 100_017].into_iter().enumerate() {
        let initiation = initiator.create_initiation(1, wall_millis, &mut rng);
        assert_eq!(responder.consume_initiation(&initiation, round as u64 * 5000), Ok(()), "round {round}");
        if round == 2 {
            initiator.handshake.identity_changed();
        }
    }
}

/// [WP 5.3] One initiation of a peer in 20 ms, and one that is refused does not move the 20 ms.
#[test]
fn s_07_one_initiation_in_twenty_milliseconds() {
    let mut rng = TestRng(9);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    let mut check = |wall, millis, expected| {
        let initiation = initiator.create_initiation(1, wall, &mut rng);
        assert_eq!(responder.consume_initiation(&initiation, millis), expected, "at {millis} ms");
    };
    check(1000, 0, Ok(()));
    check(2000, 19, Err(Rejected::InitiationFlood));
    check(3000, 20, Ok(()));
    check(4000, 39, Err(Rejected::InitiationFlood));
    check(5000, 41, Ok(()));
    let consumed = (0..1000).filter(|millis| {
        let initiation = initiator.create_initiation(1, 10_000 + millis, &mut rng);
        responder.consume_initiation(&initiation, 100 + millis).is_ok()
    });
    assert_eq!(consumed.count(), 50, "of a thousand in a second");
}

/// [WP 5.2] Another preshared key is another session key: the response does not open.
#[test]
fn preshared_keys_must_agree() {
    let mut rng = TestRng(10);
    let (mut initiator, mut responder) = pair([1; 32], &mut rng);
    responder.handshake.set_preshared_key(PresharedKey::from_bytes([2; 32]));
    let initiation = initiator.create_initiation(1, 1000, &mut rng);
    assert_eq!(responder.consume_initiation(&initiation, 0), Ok(()), "the psk comes in with the response");
    let (response, _) = responder.create_response(2, &mut rng);
    assert_eq!(initiator.consume_response(&response).err(), Some(Rejected::BadTag));
    // The key is changed while the handshake waits, and the same response is right.
    initiator.handshake.set_preshared_key(PresharedKey::from_bytes([2; 32]));
    assert!(initiator.consume_response(&response).is_ok());
}

/// Each verb needs the state that the diagram says.
#[test]
fn verbs_need_their_state() {
    let mut rng = TestRng(11);
    let (mut one, mut other) = pair([0; 32], &mut rng);
    assert_eq!(one.handshake.create_response(1, &mut rng).err(), Some(Rejected::NoHandshake));
    // An initiation of ours gives way to one of theirs, and its response comes too late.
    let ours = one.create_initiation(1, 1000, &mut rng);
    let theirs = other.create_initiation(2, 1000, &mut rng);
    assert_eq!(one.handshake.create_response(1, &mut rng).err(), Some(Rejected::NoHandshake));
    one.consume_initiation(&theirs, 0).expect("consumed");
    assert_eq!(one.handshake.local_index(), None);
    let (response, _) = one.create_response(3, &mut rng);
    assert_eq!(one.handshake.create_response(4, &mut rng).err(), Some(Rejected::NoHandshake), "once");
    assert!(other.consume_response(&response).is_ok());
    other.consume_initiation(&ours, 0).expect("consumed");
    let (response, _) = other.create_response(5, &mut rng);
    assert_eq!(one.consume_response(&response).err(), Some(Rejected::NoHandshake));
    // Cleared means forgotten.
    let ours = one.create_initiation(6, 2000, &mut rng);
    one.handshake.clear();
    assert_eq!(one.handshake.local_index(), None);
    other.consume_initiation(&ours, 100).expect("consumed");
    let (response, _) = other.create_response(7, &mut rng);
    assert_eq!(one.consume_response(&response).err(), Some(Rejected::NoHandshake));
}

/// An initiation is consumed by the peer that it names, and by no other.
#[test]
fn an_initiation_is_of_one_peer() {
    let mut rng = TestRng(12);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    let initiation = initiator.create_initiation(77, 1000, &mut rng);
    let Ok(Message::Initiation(message)) = parse(&initiation) else { panic!("an initiation") };
    let open = || responder.identity.open_initiation(&message).expect("opened");
    assert_eq!(open().remote_static(), initiator.identity.public_key());
    assert_eq!(open().remote_index(), 77);
    let mut other = Handshake::new(PrivateKey::generate(&mut rng).public_key(), PresharedKey::default());
    assert_eq!(other.consume_initiation(&responder.identity, open(), at(0)), Err(Rejected::UnknownPeer));
    // Opened with the old key, consumed with the new one.
    let changed = Identity::new(PrivateKey::generate(&mut rng));
    let result = responder.handshake.consume_initiation(&changed, open(), at(0));
    assert_eq!(result, Err(Rejected::BadTag));
}

/// The static-static DH is not made before it is needed, and not kept when the identity changes.
#[test]
fn static_static_is_cached_lazily() {
    let mut rng = TestRng(13);
    let (mut initiator, mut responder) = pair([0; 32], &mut rng);
    assert!(initiator.handshake.static_static.is_none());
    initiator.create_initiation(1, 1000, &mut rng);
    assert!(initiator.handshake.static_static.is_some());

    initiator.identity = Identity::new(PrivateKey::generate(&mut rng));
    initiator.handshake.identity_changed();
    assert!(initiator.handshake.static_static.is_none());
    assert_eq!(initiator.handshake.local_index(), None);
    responder.handshake = Handshake::new(initiator.identity.public, PresharedKey::default());
    let initiation = initiator.create_initiation(1, 2000, &mut rng);
    assert_eq!(responder.consume_initiation(&initiation, 0), Ok(()), "made anew with the new key");
}

/// A device with many idle peers pays little for each.
#[test]
fn an_idle_handshake_is_small() {
    assert!(size_of::<Handshake>() <= 160, "{}", size_of::<Handshake>());
}

/// [WP 5.4.4] mac1 is of initiations and responses only.
#[test]
fn mac1_of_other_lengths_is_malformed() {
    let mut rng = TestRng(14);
    let (one, _) = pair([0; 32], &mut rng);
    for len in [0, 31, 32, 64, 91, 93, 147, 149] {
        assert_eq!(one.identity.check_mac1(&[0; 149][..len]), Err(Rejected::MalformedMessage));
    }
}
