//! Fuzz body (Z-10): what other implementations say. Messages with keys, timestamps and ephemerals of the fuzzer's, altered
//! on the way: snow takes the Noise part exactly when we do; and of data, what we deliver boringtun delivers too, byte for
//! byte, and what we refuse it does not deliver.
//!
//! Known differences, which are excepted: boringtun's window is of 1024 counters, it has no limit of messages, and looks
//! less closely at inner packets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::cookie::CookieJar;
use adit::proto::crypto::{DefaultAead, PacketAead};
use adit::proto::handshake::{DerivedKeys, Handshake, Identity};
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, INITIATION_LEN, MACS_LEN, Message, RESPONSE_LEN};
use adit::proto::noise;
use adit::proto::peer::{Outcome, Peer, datagram_len};
use adit::proto::rejected::Rejected;
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, Now, UnixTime};
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};

use crate::input::Input;
use crate::input::rng::TestRng;

/// Bytes of the longest payload.
const PAYLOAD_MAX: usize = 1500;
/// Data messages of one input.
const MESSAGES_MAX: usize = 24;
/// Counters that boringtun remembers, less a word that it may have cleared.
const THEIR_WINDOW: u64 = 1024 - 64;

/// An even first byte: handshakes against snow. An odd one: data against boringtun.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.byte() & 1 == 0 { noise_messages(&mut input) } else { data_messages(&mut input) }
}

fn stamp(input: &mut Input<'_>) -> Tai64n {
    Tai64n::from_unix(UnixTime(Duration::new(u32::from_le_bytes(input.array()).into(), input.word().into())))
}

/// A key whose first bytes are the fuzzer's, none of them zero.
fn private_key(input: &mut Input<'_>, number: u8) -> PrivateKey {
    let mut bytes = [number; 32];
    bytes[..2].copy_from_slice(&input.word().to_le_bytes());
    PrivateKey::from_bytes(bytes)
}

fn noise_messages(input: &mut Input<'_>) {
    let [ours, theirs] = [1, 2].map(|number| private_key(input, number));
    let psk = [input.byte(); 32];
    let [to_theirs, to_ours] = [&theirs, &ours].map(PrivateKey::public_key);
    let build = || {
        let pattern = core::str::from_utf8(noise::CONSTRUCTION).expect("the name is text");
        let builder = snow::Builder::new(pattern.parse().expect("the pattern is known"));
        builder.prologue(noise::IDENTIFIER).and_then(|builder| builder.psk(2, &psk)).expect("first of all")
    };
    let mut snow_responder =
        build().local_private_key(theirs.as_bytes()).and_then(snow::Builder::build_responder).expect("a key");

    // Our initiation, altered; snow's verdict on the Noise part and ours.
    let mut rng = TestRng(u64::from(input.word()));
    let initiator = Identity::new(ours.clone());
    let mut first = Handshake::new(to_theirs, PresharedKey::from_bytes(psk));
    let stamp = stamp(input);
    let initiation = first.create_initiation(&initiator, 7, stamp, &mut rng).expect("their key is a point");
    let mut altered = initiation.to_vec();
    input.mutate(&mut altered);
    altered.resize(INITIATION_LEN, 0);
    altered[..4].copy_from_slice(&[1, 0, 0, 0]);
    CookieJar::new().add_macs(&to_theirs, &mut altered, Instant::from_nanos(1));
    let Ok(Message::Initiation(message)) = messages::parse(&altered) else { panic!("length and type are right") };
    let responder = Identity::new(theirs);
    let mut second = Handshake::new(to_ours, PresharedKey::from_bytes(psk));
    let our_verdict = responder.open_initiation(&message).and_then(|opened| {
        if opened.remote_static() != to_ours {
            return Err(Rejected::UnknownPeer);
        }
        second.consume_initiation(&responder, opened, Instant::from_nanos(1))
    });
    let mut timestamp = [0; 200];
    let their_verdict = snow_responder.read_message(&altered[8..INITIATION_LEN - MACS_LEN], &mut timestamp);
    if our_verdict != Err(Rejected::LowOrderPoint) {
        assert_eq!(our_verdict.is_ok(), their_verdict.is_ok(), "{our_verdict:?}, {their_verdict:?}");
    }
    let (Ok(_), Ok(len)) = (our_verdict, their_verdict) else { return };
    assert_eq!(&timestamp[..len], stamp.as_bytes());

    // snow's response, altered; ours is the verdict now. And what snow sends after it, we can read.
    let mut response = vec![2, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0];
    let mut noise = [0; 200];
    let len = snow_responder.write_message(&[], &mut noise).expect("it is snow's turn");
    response.extend_from_slice(&noise[..len]);
    response.resize(RESPONSE_LEN, 0);
    let original = response.clone();
    input.mutate(&mut response);
    response.resize(RESPONSE_LEN, 0);
    response[..12].copy_from_slice(&original[..12]);
    CookieJar::new().add_macs(&to_ours, &mut response, Instant::from_nanos(1));
    let Ok(Message::Response(message)) = messages::parse(&response) else { panic!("length and type are right") };
    let verdict = first.consume_response(&initiator, &message);
    let end = RESPONSE_LEN - MACS_LEN;
    assert_eq!(verdict.is_ok(), response[..end] == original[..end], "only what snow said is taken");
    let Ok(keys) = verdict else { return };
    let snow = snow_responder.into_stateless_transport_mode().expect("the handshake is complete");
    let payload = input.list(PAYLOAD_MAX);
    let counter = u64::from(input.word());
    let message = seal(&keys, counter, payload);
    let mut opened = vec![0; message.len()];
    let len = snow.read_message(counter, &message[DATA_HEADER_LEN..], &mut opened).expect("snow has the same key");
    assert_eq!(&opened[..payload.len()], payload);
    assert!(opened[payload.len()..len].iter().all(|byte| *byte == 0) && len.is_multiple_of(16));
}

/// A payload as a data message, padded.
fn seal(keys: &DerivedKeys, counter: u64, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; payload.len().next_multiple_of(16) + DATA_OVERHEAD];
    messages::write_data_header(&mut message, keys.remote_index, counter);
    message[DATA_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
    let stride = message.len();
    DefaultAead::seal_train(&keys.sending, counter, &mut message, stride);
    message
}

fn address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 7], 51820))
}

/// What a receiver makes of a data message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Delivered(Vec<u8>),
    Keepalive,
    Refused(Option<Rejected>),
}

/// The same initiator towards two responders of the same key: a `Peer` of ours, and boringtun.
struct Both {
    peer: Peer,
    tunn: Tunn,
    /// Towards the one and the other.
    keys: [DerivedKeys; 2],
    rng: TestRng,
    now: Now,
}

impl Both {
    fn new(psk: [u8; 32]) -> Self {
        let (sender, receiver) = (PrivateKey::from_bytes([0x21; 32]), PrivateKey::from_bytes([0x43; 32]));
        let now = Now { instant: Instant::from_nanos(1), unix: UnixTime(Duration::from_secs(1 << 30)) };
        let (mut rng, identity) = (TestRng(3), Identity::new(sender.clone()));
        let mut peer = Peer::new(receiver.clone(), sender.public_key());
        peer.set_preshared_key(PresharedKey::from_bytes(psk));
        let theirs = boringtun::x25519::StaticSecret::from(*receiver.as_bytes());
        let limiter = RateLimiter::new(&boringtun::x25519::PublicKey::from(&theirs), u64::MAX);
        let ours = boringtun::x25519::PublicKey::from(*sender.public_key().as_bytes());
        let mut tunn = Tunn::new(theirs, ours, Some(psk), None, 1, Some(Arc::new(limiter)));
        let keys = [0, 1].map(|number| {
            let mut handshake = Handshake::new(receiver.public_key(), PresharedKey::from_bytes(psk));
            let created = handshake.create_initiation(&identity, 5, Tai64n::from_unix(now.unix), &mut rng);
            let mut initiation = created.expect("their key is a point");
            CookieJar::new().add_macs(&receiver.public_key(), &mut initiation, now.instant);
            let mut out = [0; 2048];
            let response = if number == 0 {
                match peer.decapsulate(address(), &mut initiation, &mut out, now, &mut rng) {
                    Ok(Outcome::Send(response)) => response.bytes.to_vec(),
                    other => panic!("a response, not {other:?}"),
                }
            } else {
                match tunn.decapsulate(Some(address().ip()), &initiation, &mut out) {
                    TunnResult::WriteToNetwork(response) => response.to_vec(),
                    other => panic!("a response, not {other:?}"),
                }
            };
            let Ok(Message::Response(response)) = messages::parse(&response) else { panic!("a response") };
            handshake.consume_response(&identity, &response).expect("the response is to us")
        });
        Self { peer, tunn, keys, rng, now }
    }

    fn ours(&mut self, message: &[u8]) -> Verdict {
        let mut out = [0; datagram_len(2048)];
        match self.peer.decapsulate(address(), &mut message.to_vec(), &mut out, self.now, &mut self.rng) {
            Ok(Outcome::Deliver(packet)) => Verdict::Delivered(packet.bytes.to_vec()),
            Ok(_) => Verdict::Keepalive,
            Err(rejected) => Verdict::Refused(Some(rejected)),
        }
    }

    fn theirs(&mut self, message: &[u8]) -> Verdict {
        let mut out = [0; 2048];
        match self.tunn.decapsulate(Some(address().ip()), message, &mut out) {
            TunnResult::WriteToTunnelV4(packet, _) => Verdict::Delivered(packet.to_vec()),
            TunnResult::WriteToTunnelV6(packet, _) => Verdict::Delivered(packet.to_vec()),
            TunnResult::Done | TunnResult::WriteToNetwork(_) => Verdict::Keepalive,
            TunnResult::Err(_) => Verdict::Refused(None),
        }
    }
}

fn data_messages(input: &mut Input<'_>) {
    let mut both = Both::new([input.byte(); 32]);
    let (mut newest, mut history) = (0u64, Vec::<(u64, [Vec<u8>; 2])>::new());
    for _ in 0..MESSAGES_MAX {
        if input.is_empty() {
            break;
        }
        let kind = input.byte();
        let offset = u64::from(input.word());
        let counter = match kind & 7 {
            0 | 1 => newest + 1,
            2 => newest + offset,
            3 => newest.saturating_sub(offset & 0x7f),
            4 => newest.saturating_sub(offset),
            _ => newest + (offset & 0x7f),
        };
        // An old message once more, or a new one; at times altered, both in the same way.
        let (counter, mut pair) = match history.len() {
            known @ 1.. if kind & 0x60 == 0x60 => history[usize::from(kind & 0x1f) % known].clone(),
            _ => {
                let payload = payload(input, kind);
                let pair: [Vec<u8>; 2] = [0, 1].map(|number| seal(&both.keys[number], counter, &payload));
                history.push((counter, pair.clone()));
                (counter, pair)
            }
        };
        let original = pair.clone();
        if kind & 0x80 != 0 {
            let choices = input.bytes(40);
            pair.iter_mut().for_each(|message| Input::new(choices).mutate(message));
        }
        let altered = [0, 1].map(|number| pair[number] != original[number]);
        let (ours, theirs) = (both.ours(&pair[0]), both.theirs(&pair[1]));
        match &ours {
            Verdict::Delivered(_) | Verdict::Keepalive => {
                assert!(!altered[0], "an altered message was taken");
                if newest.saturating_sub(counter) < THEIR_WINDOW && !altered[1] {
                    assert_eq!(ours, theirs, "counter {counter}, newest {newest}");
                }
            }
            Verdict::Refused(Some(Rejected::MalformedInner)) => {}
            Verdict::Refused(rejected) => {
                // A patch may set bytes to what the one message had there already, and not the other.
                if altered[0] == altered[1] {
                    assert!(!matches!(theirs, Verdict::Delivered(_)), "{rejected:?}, and boringtun delivers");
                }
            }
        }
        if altered[0] != altered[1] {
            // Only one of them may have counted it.
            return;
        }
        if !matches!(ours, Verdict::Refused(Some(rejected)) if rejected != Rejected::MalformedInner) {
            newest = newest.max(counter);
        }
    }
}

/// Nothing, an IP packet of some length, or any bytes.
fn payload(input: &mut Input<'_>, kind: u8) -> Vec<u8> {
    match kind >> 3 & 3 {
        0 => Vec::new(),
        1 => input.list(PAYLOAD_MAX).to_vec(),
        version => {
            let len = 40 + input.below(PAYLOAD_MAX - 40);
            let mut packet = vec![input.byte(); len];
            if version == 2 {
                packet[0] = 0x45;
                packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            } else {
                packet[0] = 0x60;
                packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
            }
            packet
        }
    }
}
