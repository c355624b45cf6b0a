//! The handshake against two other implementations: snow for the Noise bytes, boringtun for whole
//! messages, macs, cookies and data.
//!
//! With snow the ephemeral keys are pinned on both sides, so every byte is compared. boringtun draws
//! its own, so it runs live against us in both roles, and what it said once is kept in `vectors/` and
//! played back.
//!
//! `ADIT_WRITE_VECTORS=1 cargo test --test handshake_oracles` writes the transcripts anew.
#![allow(clippy::unwrap_used)]

use core::convert::Infallible;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::sync::Arc;

use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::proto::cookie::{CookieChecker, CookieJar};
use adit::proto::crypto::{DefaultAead, Opening, PacketAead};
use adit::proto::handshake::{DerivedKeys, Handshake, Identity};
use adit::proto::messages::{
    self, COOKIE_REPLY_LEN, DATA_HEADER_LEN, DATA_OVERHEAD, INITIATION_LEN, MACS_LEN, Message, RESPONSE_LEN, TAG_LEN,
};
use adit::proto::noise;
use adit::proto::rejected::Rejected;
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, UnixTime};
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use rand_core::{TryCryptoRng, TryRng};
use serde_json::{Value, json};

const INITIATOR_INDEX: u32 = 0x1122_3344;
const RESPONDER_INDEX: u32 = 0x5566_7788;
/// The index number that boringtun is given; its messages carry it shifted by eight, plus a count.
const BORINGTUN_INDEX: u32 = 0x00ab_cdef;
/// An IPv4 packet of 28 bytes as it goes through the tunnel, padded to 32.
const INNER_LEN: usize = 28;
const PADDED_LEN: usize = 32;

/// Always the same 32 bytes: an ephemeral key, pinned.
struct Pinned([u8; 32]);

impl TryRng for Pinned {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from(self.0[0]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from(self.0[0]))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.iter_mut().zip(self.0.iter().cycle()).for_each(|(out, byte)| *out = *byte);
        Ok(())
    }
}

impl TryCryptoRng for Pinned {}

fn hex(bytes: &[u8]) -> String {
    base16ct::lower::encode_string(bytes)
}

fn bytes(row: &Value, name: &str) -> Vec<u8> {
    let text = row[name].as_str().unwrap_or_else(|| panic!("{name} in {row}"));
    base16ct::lower::decode_vec(text).expect("hexadecimal")
}

fn array<const N: usize>(row: &Value, name: &str) -> [u8; N] {
    bytes(row, name).try_into().expect("as many bytes as the field has")
}

fn is_writing() -> bool {
    std::env::var_os("ADIT_WRITE_VECTORS").is_some()
}

fn path(name: &str) -> String {
    format!("{}/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"))
}

fn load(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path(name)).expect(name)).expect(name)
}

fn write(name: &str, value: &Value) {
    std::fs::write(path(name), format!("{value:#}\n")).expect(name);
}

fn stamp() -> Tai64n {
    Tai64n::from_unix(UnixTime(Duration::new(1_700_000_000, 123_456_789)))
}

fn now() -> Instant {
    Instant::from_nanos(1)
}

/// A packet from 10.0.0.1 to 10.0.0.2 that boringtun takes for IPv4.
fn inner_packet() -> [u8; INNER_LEN] {
    let mut packet = [0x5a; INNER_LEN];
    packet[..20].copy_from_slice(&[0x45, 0, 0, INNER_LEN as u8, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet
}

/// Seals one payload as a data message, padded to `padded_len`.
fn seal(keys: &DerivedKeys, counter: u64, payload: &[u8], padded_len: usize) -> Vec<u8> {
    let mut message = vec![0; padded_len + DATA_OVERHEAD];
    messages::write_data_header(&mut message, keys.remote_index, counter);
    message[DATA_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
    let stride = message.len();
    DefaultAead::seal_train(&keys.sending, counter, &mut message, stride);
    message
}

/// Opens one data message to us.
fn open(keys: &DerivedKeys, message: &[u8]) -> Vec<u8> {
    let Ok(Message::Data(header)) = messages::parse(message) else { panic!("a data message") };
    assert_eq!(header.receiver, keys.local_index);
    let sealed_len = message.len() - DATA_HEADER_LEN;
    let mut openings = [Opening::new(header.counter, DATA_HEADER_LEN as u32, sealed_len as u32)];
    let mut buffer = message.to_vec();
    DefaultAead::open_train(&keys.receiving, &mut buffer, &mut openings);
    assert!(openings[0].is_open(), "counter {}", header.counter);
    buffer[DATA_HEADER_LEN..][..sealed_len - TAG_LEN].to_vec()
}

/// One of two parties, ours.
struct Adit {
    identity: Identity,
    handshake: Handshake,
    jar: CookieJar,
    ephemeral: Pinned,
}

impl Adit {
    fn new(private: [u8; 32], remote: PublicKey, psk: [u8; 32], ephemeral: [u8; 32]) -> Self {
        Self {
            identity: Identity::new(PrivateKey::from_bytes(private)),
            handshake: Handshake::new(remote, PresharedKey::from_bytes(psk)),
            jar: CookieJar::new(),
            ephemeral: Pinned(ephemeral),
        }
    }

    fn create_initiation(&mut self) -> [u8; INITIATION_LEN] {
        let created = self.handshake.create_initiation(&self.identity, INITIATOR_INDEX, stamp(), &mut self.ephemeral);
        let mut message = created.unwrap();
        self.jar.add_macs(&self.handshake.remote_static(), &mut message, now());
        message
    }

    fn consume_initiation(&mut self, message: &[u8]) {
        let Ok(Message::Initiation(message)) = messages::parse(message) else { panic!("an initiation") };
        let opened = self.identity.open_initiation(&message).unwrap();
        assert_eq!(opened.remote_static(), self.handshake.remote_static());
        self.handshake.consume_initiation(&self.identity, opened, now()).unwrap();
    }

    fn create_response(&mut self) -> ([u8; RESPONSE_LEN], DerivedKeys) {
        let (mut message, keys) = self.handshake.create_response(RESPONDER_INDEX, &mut self.ephemeral).unwrap();
        self.jar.add_macs(&self.handshake.remote_static(), &mut message, now());
        (message, keys)
    }

    fn consume_response(&mut self, message: &[u8]) -> DerivedKeys {
        let Ok(Message::Response(message)) = messages::parse(message) else { panic!("a response") };
        self.handshake.consume_response(&self.identity, &message).unwrap()
    }
}

// --- snow ------------------------------------------------------------------------------------

/// The pinned keys of one transcript.
struct Script {
    initiator: [u8; 32],
    responder: [u8; 32],
    initiator_ephemeral: [u8; 32],
    responder_ephemeral: [u8; 32],
    psk: [u8; 32],
}

impl Script {
    fn new(seed: u8, psk: [u8; 32]) -> Self {
        let key = |n: u8| {
            let bytes = core::array::from_fn(|i| (i as u8).wrapping_mul(37) ^ seed.wrapping_mul(11).wrapping_add(n));
            *PrivateKey::from_bytes(bytes).as_bytes()
        };
        Self { initiator: key(1), responder: key(2), initiator_ephemeral: key(3), responder_ephemeral: key(4), psk }
    }

    /// What snow says: both Noise messages, and an empty transport message in each direction, which
    /// stands for the key that seals it.
    fn run_snow(&self) -> Value {
        let public = |private: &[u8; 32]| PrivateKey::from_bytes(*private).public_key();
        let responder_public = public(&self.responder);
        let build = || {
            let pattern = core::str::from_utf8(noise::CONSTRUCTION).unwrap();
            snow::Builder::new(pattern.parse().unwrap()).prologue(noise::IDENTIFIER).unwrap().psk(2, &self.psk).unwrap()
        };
        let mut initiator = build()
            .local_private_key(&self.initiator)
            .unwrap()
            .remote_public_key(responder_public.as_bytes())
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&self.initiator_ephemeral)
            .build_initiator()
            .unwrap();
        let mut responder = build()
            .local_private_key(&self.responder)
            .unwrap()
            .fixed_ephemeral_key_for_testing_only(&self.responder_ephemeral)
            .build_responder()
            .unwrap();
        let mut first = [0; 200];
        let len = initiator.write_message(stamp().as_bytes(), &mut first).unwrap();
        let first = &first[..len];
        let mut timestamp = [0; 200];
        let len = responder.read_message(first, &mut timestamp).unwrap();
        assert_eq!(&timestamp[..len], stamp().as_bytes());
        let mut second = [0; 200];
        let len = responder.write_message(&[], &mut second).unwrap();
        let second = &second[..len];
        assert_eq!(initiator.read_message(second, &mut []).unwrap(), 0);
        let (initiator, responder) =
            (initiator.into_stateless_transport_mode().unwrap(), responder.into_stateless_transport_mode().unwrap());
        let mut tags = [[0; TAG_LEN]; 2];
        assert_eq!(initiator.write_message(5, &[], &mut tags[0]).unwrap(), TAG_LEN);
        assert_eq!(responder.write_message(6, &[], &mut tags[1]).unwrap(), TAG_LEN);
        json!({
            "initiator_private": hex(&self.initiator),
            "responder_private": hex(&self.responder),
            "initiator_ephemeral": hex(&self.initiator_ephemeral),
            "responder_ephemeral": hex(&self.responder_ephemeral),
            "preshared_key": hex(&self.psk),
            "timestamp": hex(stamp().as_bytes()),
            "first_message": hex(first),
            "second_message": hex(second),
            "initiator_empty_5": hex(&tags[0]),
            "responder_empty_6": hex(&tags[1]),
        })
    }
}

/// Our own run of a transcript: every byte that Noise defines is snow's.
fn check_snow_transcript(row: &Value) {
    let psk = array(row, "preshared_key");
    let (initiator_private, responder_private) = (array(row, "initiator_private"), array(row, "responder_private"));
    let public = |private: [u8; 32]| PrivateKey::from_bytes(private).public_key();
    let mut initiator = Adit::new(initiator_private, public(responder_private), psk, array(row, "initiator_ephemeral"));
    let mut responder = Adit::new(responder_private, public(initiator_private), psk, array(row, "responder_ephemeral"));
    assert_eq!(stamp().as_bytes(), &array(row, "timestamp"));

    let initiation = initiator.create_initiation();
    assert_eq!(initiation[8..INITIATION_LEN - MACS_LEN], bytes(row, "first_message"));
    responder.consume_initiation(&initiation);
    let (response, theirs) = responder.create_response();
    assert_eq!(response[12..RESPONSE_LEN - MACS_LEN], bytes(row, "second_message"));
    let ours = initiator.consume_response(&response);
    assert_eq!(seal(&ours, 5, &[], 0)[DATA_HEADER_LEN..], bytes(row, "initiator_empty_5"));
    assert_eq!(seal(&theirs, 6, &[], 0)[DATA_HEADER_LEN..], bytes(row, "responder_empty_6"));
}

/// [WP 5.4.2] [WP 5.4.3] [WP 5.4.5] Byte for byte what snow says, with a preshared key and without.
#[test]
fn handshake_is_that_of_snow() {
    let psk = core::array::from_fn(|i| 0xc0 | i as u8);
    let scripts = [Script::new(1, [0; 32]), Script::new(2, psk), Script::new(3, psk), Script::new(4, [0; 32])];
    let transcripts = Value::from_iter(scripts.iter().map(Script::run_snow));
    if is_writing() {
        write("noise-snow", &transcripts);
    }
    assert_eq!(transcripts, load("noise-snow"), "snow still says what it said");
    for row in transcripts.as_array().unwrap() {
        check_snow_transcript(row);
    }
}

// --- boringtun -------------------------------------------------------------------------------

const OUR_PRIVATE: [u8; 32] = [0x21; 32];
const THEIR_PRIVATE: [u8; 32] = [0x43; 32];
const OUR_EPHEMERAL: [u8; 32] = [0x65; 32];
const PSK: [u8; 32] = [0x87; 32];
const THEIR_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7)), 51820);

fn our_side(psk: Option<[u8; 32]>) -> Adit {
    let remote = PrivateKey::from_bytes(THEIR_PRIVATE).public_key();
    Adit::new(OUR_PRIVATE, remote, psk.unwrap_or_default(), OUR_EPHEMERAL)
}

/// boringtun, which begins to ask for cookies after `limit` handshake messages.
fn their_side(psk: Option<[u8; 32]>, limit: u64) -> Tunn {
    let private = boringtun::x25519::StaticSecret::from(THEIR_PRIVATE);
    let limiter = RateLimiter::new(&boringtun::x25519::PublicKey::from(&private), limit);
    let our_public = boringtun::x25519::PublicKey::from(*our_side(None).identity.public_key().as_bytes());
    Tunn::new(private, our_public, psk, None, BORINGTUN_INDEX, Some(Arc::new(limiter)))
}

/// What boringtun sends in answer to one datagram.
fn answer(tunn: &mut Tunn, datagram: &[u8]) -> Vec<u8> {
    let mut out = [0; 2048];
    match tunn.decapsulate(Some(THEIR_ADDRESS.ip()), datagram, &mut out) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("a datagram out, not {other:?}"),
    }
}

/// What boringtun hands to its host of one datagram.
fn delivered(tunn: &mut Tunn, datagram: &[u8]) -> Vec<u8> {
    let mut out = [0; 2048];
    match tunn.decapsulate(Some(THEIR_ADDRESS.ip()), datagram, &mut out) {
        TunnResult::WriteToTunnelV4(packet, _) => packet.to_vec(),
        TunnResult::Done => Vec::new(),
        other => panic!("a packet or nothing, not {other:?}"),
    }
}

fn initiation_of(tunn: &mut Tunn) -> Vec<u8> {
    let mut out = [0; 2048];
    match tunn.format_handshake_initiation(&mut out, true) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("an initiation, not {other:?}"),
    }
}

fn data_of(tunn: &mut Tunn) -> Vec<u8> {
    let mut out = [0; 2048];
    match tunn.encapsulate(&inner_packet(), &mut out) {
        TunnResult::WriteToNetwork(message) => message.to_vec(),
        other => panic!("a data message, not {other:?}"),
    }
}

/// Data both ways once the keys are there. Returns boringtun's message.
fn check_data(keys: &DerivedKeys, tunn: &mut Tunn) -> Vec<u8> {
    for counter in [0, 1, 7, 300] {
        assert_eq!(delivered(tunn, &seal(keys, counter, &inner_packet(), PADDED_LEN)), inner_packet());
    }
    assert_eq!(delivered(tunn, &seal(keys, 301, &[], 0)), b"");
    let message = data_of(tunn);
    assert_eq!(open(keys, &message)[..INNER_LEN], inner_packet());
    message
}

/// [WP 5.4] boringtun begins: its initiation, our response, its keepalive, data both ways.
#[test]
fn boringtun_is_initiator() {
    for psk in [None, Some(PSK)] {
        let (mut adit, mut tunn) = (our_side(psk), their_side(psk, 100));
        let initiation = initiation_of(&mut tunn);
        assert_eq!(adit.identity.check_mac1(&initiation), Ok(()));
        adit.consume_initiation(&initiation);
        let (response, keys) = adit.create_response();
        let keepalive = answer(&mut tunn, &response);
        assert_eq!(open(&keys, &keepalive), b"", "boringtun has the session");
        check_data(&keys, &mut tunn);
    }
}

/// [WP 5.4] We begin: our initiation, boringtun's response, data both ways.
#[test]
fn boringtun_is_responder() {
    for psk in [None, Some(PSK)] {
        let (mut adit, mut tunn) = (our_side(psk), their_side(psk, 100));
        let response = answer(&mut tunn, &adit.create_initiation());
        assert_eq!(adit.identity.check_mac1(&response), Ok(()));
        let keys = adit.consume_response(&response);
        check_data(&keys, &mut tunn);
    }
}

/// [WP 5.4.7] boringtun under load asks us for a cookie; with it our initiation is answered.
#[test]
fn boringtun_asks_us_for_a_cookie() {
    let (mut adit, mut tunn) = (our_side(None), their_side(None, 0));
    let remote = adit.handshake.remote_static();
    let reply = answer(&mut tunn, &adit.create_initiation());
    let Ok(Message::CookieReply(reply)) = messages::parse(&reply) else { panic!("a cookie reply") };
    assert_eq!(reply.receiver(), INITIATOR_INDEX);
    assert_eq!(adit.jar.consume_reply(&remote, &reply, now()), Ok(()));
    assert_eq!(adit.jar.consume_reply(&remote, &reply, now()), Err(Rejected::UnexpectedCookie), "once");
    let response = answer(&mut tunn, &adit.create_initiation());
    check_data(&adit.consume_response(&response), &mut tunn);
}

/// [WP 5.4.7] We ask boringtun for a cookie; its next initiation has the right mac2.
#[test]
fn we_ask_boringtun_for_a_cookie() {
    let (adit, mut tunn) = (our_side(None), their_side(None, 100));
    let mut rng = Pinned([0x99; 32]);
    let mut checker = CookieChecker::new(&adit.identity.public_key(), now(), &mut rng);
    let initiation = initiation_of(&mut tunn);
    assert!(!checker.check_mac2(&initiation, THEIR_ADDRESS, now(), &mut rng));
    let Ok(Message::Initiation(view)) = messages::parse(&initiation) else { panic!("an initiation") };
    let reply = checker.create_reply(view.mac1(), view.sender(), THEIR_ADDRESS, now(), &mut rng);
    assert_eq!(delivered(&mut tunn, &reply), b"");
    let initiation = initiation_of(&mut tunn);
    assert!(checker.check_mac2(&initiation, THEIR_ADDRESS, now(), &mut rng));
}

/// What boringtun says to pinned messages of ours, once.
fn record(psk: Option<[u8; 32]>) -> Value {
    let common = json!({
        "adit_private": hex(&OUR_PRIVATE),
        "boringtun_private": hex(&THEIR_PRIVATE),
        "adit_ephemeral": hex(&OUR_EPHEMERAL),
        "preshared_key": hex(&psk.unwrap_or_default()),
    });

    let (mut adit, mut tunn) = (our_side(psk), their_side(psk, 100));
    let initiation = initiation_of(&mut tunn);
    adit.consume_initiation(&initiation);
    let (response, keys) = adit.create_response();
    let keepalive = answer(&mut tunn, &response);
    let data = check_data(&keys, &mut tunn);
    let as_initiator = json!({
        "boringtun_initiation": hex(&initiation),
        "adit_response": hex(&response),
        "boringtun_keepalive": hex(&keepalive),
        "boringtun_data": hex(&data),
    });

    let (mut adit, mut tunn) = (our_side(psk), their_side(psk, 0));
    let initiation = adit.create_initiation();
    let cookie_reply = answer(&mut tunn, &initiation);
    let Ok(Message::CookieReply(view)) = messages::parse(&cookie_reply) else { panic!("a cookie reply") };
    adit.jar.consume_reply(&adit.handshake.remote_static(), &view, now()).unwrap();
    let second = adit.create_initiation();
    let response = answer(&mut tunn, &second);
    let data = check_data(&adit.consume_response(&response), &mut tunn);
    let as_responder = json!({
        "adit_initiation": hex(&initiation),
        "boringtun_cookie_reply": hex(&cookie_reply),
        "adit_initiation_with_mac2": hex(&second),
        "boringtun_response": hex(&response),
        "boringtun_data": hex(&data),
    });
    json!({ "keys": common, "boringtun_initiator": as_initiator, "boringtun_responder": as_responder })
}

/// Our side of a recording: we say what we said then, and understand what boringtun said.
fn replay(recording: &Value) {
    let keys = &recording["keys"];
    let side = || {
        let remote = PrivateKey::from_bytes(array(keys, "boringtun_private")).public_key();
        Adit::new(array(keys, "adit_private"), remote, array(keys, "preshared_key"), array(keys, "adit_ephemeral"))
    };

    let row = &recording["boringtun_initiator"];
    let mut adit = side();
    adit.consume_initiation(&bytes(row, "boringtun_initiation"));
    let (response, keys) = adit.create_response();
    assert_eq!(response[..], bytes(row, "adit_response"));
    assert_eq!(open(&keys, &bytes(row, "boringtun_keepalive")), b"");
    assert_eq!(open(&keys, &bytes(row, "boringtun_data"))[..INNER_LEN], inner_packet());

    let row = &recording["boringtun_responder"];
    let mut adit = side();
    assert_eq!(adit.create_initiation()[..], bytes(row, "adit_initiation"));
    let reply: [u8; COOKIE_REPLY_LEN] = array(row, "boringtun_cookie_reply");
    let Ok(Message::CookieReply(reply)) = messages::parse(&reply) else { panic!("a cookie reply") };
    adit.jar.consume_reply(&adit.handshake.remote_static(), &reply, now()).unwrap();
    assert_eq!(adit.create_initiation()[..], bytes(row, "adit_initiation_with_mac2"));
    let keys = adit.consume_response(&bytes(row, "boringtun_response"));
    assert_eq!(open(&keys, &bytes(row, "boringtun_data"))[..INNER_LEN], inner_packet());
}

/// [WP 5.4] The recordings of boringtun: whole messages with their macs, cookies and data, byte for byte.
#[test]
fn recordings_of_boringtun_replay() {
    if is_writing() {
        write("boringtun", &json!([record(None), record(Some(PSK))]));
    }
    let recordings = load("boringtun");
    assert_eq!(recordings.as_array().unwrap().len(), 2);
    recordings.as_array().unwrap().iter().for_each(replay);
}
