//! A peer that the test plays itself: it begins a handshake whenever it is told to, keeps every session that it ever
//! had, and sees each message. No daemon can be made to rekey ten times a second; this can.
//!
//! It is bytes in, bytes out: [`ScriptedSocket`] carries them over a real network, a test over edges in memory brings
//! its own way.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::proto::cookie::CookieJar;
use adit::proto::crypto::{aead_open, aead_seal};
use adit::proto::handshake::{DerivedKeys, Handshake, Identity};
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, INITIATION_LEN, Message, TAG_LEN};
use adit::proto::tai64n::Tai64n;
use adit::proto::time;
use getrandom::SysRng;
use rand_core::{Rng as _, UnwrapErr};

use super::namespace::Namespace;

/// How long the first initiation waits for its answer before another one is sent; each waits twice as long as the one
/// before it, four times doubled at most: an answer to the last but one would be of no use.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);
const DOUBLINGS_MAX: u32 = 4;
/// A little more than what a responder asks for between two initiations of one peer.
const BETWEEN_INITIATIONS: Duration = Duration::from_millis(25);
/// Payloads are padded to a multiple of this.
const PADDING: usize = 16;

/// What a message from the device turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A response: there is a new session, which is used from now on.
    Session,
    /// A cookie: the next initiation will carry it.
    Cookie,
    /// The inner packet of a data message, with its padding; empty for a keepalive.
    Data(Vec<u8>),
    /// Nothing of these.
    Other,
}

/// The peer's side of a tunnel to a device.
pub struct ScriptedPeer {
    identity: Identity,
    device: PublicKey,
    handshake: Handshake,
    cookies: CookieJar,
    sessions: Vec<Session>,
    next_index: u32,
    born: Instant,
}

struct Session {
    keys: DerivedKeys,
    sent: u64,
}

impl ScriptedPeer {
    /// A peer of the device with this public key.
    pub fn new(private: PrivateKey, device: PublicKey) -> Self {
        Self {
            identity: Identity::new(private),
            device,
            handshake: Handshake::new(device, PresharedKey::default()),
            cookies: CookieJar::new(),
            sessions: Vec::new(),
            next_index: 1,
            born: Instant::now(),
        }
    }

    /// Its name.
    pub fn public_key(&self) -> PublicKey {
        self.identity.public_key()
    }

    /// Has this preshared key with the device from the next handshake on.
    pub fn set_preshared_key(&mut self, key: PresharedKey) {
        self.handshake = Handshake::new(self.device, key);
    }

    /// The keys of each session so far, oldest first: what the device receives by, and what it sends by.
    pub fn session_keys(&self) -> Vec<[[u8; 32]; 2]> {
        self.sessions.iter().map(|session| [*session.keys.sending, *session.keys.receiving]).collect()
    }

    /// Handshakes that have come to an end.
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// A new initiation, with the last cookie if there was one.
    pub fn initiation(&mut self) -> [u8; INITIATION_LEN] {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
        let stamp = Tai64n::from_unix(time::UnixTime(unix));
        self.next_index += 1;
        let rng = &mut UnwrapErr(SysRng);
        let message = self.handshake.create_initiation(&self.identity, self.next_index, stamp, rng);
        let mut message = message.expect("the device's key is a good one");
        self.cookies.add_macs(&self.device, &mut message, self.now());
        message
    }

    /// Takes a message from the device.
    pub fn hear(&mut self, datagram: &[u8]) -> Heard {
        match messages::parse(datagram) {
            Ok(Message::Response(response)) => match self.handshake.consume_response(&self.identity, &response) {
                Ok(keys) => {
                    self.sessions.push(Session { keys, sent: 0 });
                    Heard::Session
                }
                Err(_) => Heard::Other,
            },
            Ok(Message::CookieReply(reply)) => match self.cookies.consume_reply(&self.device, &reply, self.now()) {
                Ok(()) => Heard::Cookie,
                Err(_) => Heard::Other,
            },
            Ok(Message::Data(header)) => {
                let Some(session) = self.sessions.iter().rev().find(|it| it.keys.local_index == header.receiver) else {
                    return Heard::Other;
                };
                let mut packet = vec![0; datagram.len() - DATA_OVERHEAD];
                let sealed = &datagram[DATA_HEADER_LEN..];
                match aead_open(&session.keys.receiving, header.counter, sealed, &[], &mut packet) {
                    Ok(()) => Heard::Data(packet),
                    Err(_) => Heard::Other,
                }
            }
            _ => Heard::Other,
        }
    }

    /// A data message with this inner packet (empty for a keepalive) on the newest session.
    pub fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let session = self.sessions.last_mut().expect("a handshake has come to an end");
        let mut padded = packet.to_vec();
        padded.resize(packet.len().next_multiple_of(PADDING), 0);
        let mut message = vec![0; DATA_HEADER_LEN + padded.len() + TAG_LEN];
        messages::write_data_header(&mut message, session.keys.remote_index, session.sent);
        aead_seal(&session.keys.sending, session.sent, &padded, &[], &mut message[DATA_HEADER_LEN..]);
        session.sent += 1;
        message
    }

    fn now(&self) -> time::Instant {
        time::Instant::from_nanos(1) + self.born.elapsed()
    }
}

/// An initiation with a right mac1 from nobody: it costs its sender next to nothing, and a device that is not under
/// load a Diffie-Hellman.
pub fn forged_initiation(device: &PublicKey) -> [u8; INITIATION_LEN] {
    let mut message = [0; INITIATION_LEN];
    UnwrapErr(SysRng).fill_bytes(&mut message);
    message[..4].copy_from_slice(&[1, 0, 0, 0]);
    CookieJar::new().add_macs(device, &mut message, time::Instant::from_nanos(1));
    message
}

/// A scripted peer on a socket.
pub struct ScriptedSocket {
    pub peer: ScriptedPeer,
    socket: UdpSocket,
    last_initiation: Option<Instant>,
}

impl ScriptedSocket {
    /// A peer with this private key in a namespace, for the device that is reached at `endpoint`.
    #[track_caller]
    pub fn new(namespace: &Namespace, private: PrivateKey, device: PublicKey, endpoint: SocketAddr) -> Self {
        let any = if endpoint.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        let socket = namespace.enter(|| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(endpoint)?;
            Ok::<_, std::io::Error>(socket)
        });
        let socket = socket.unwrap_or_else(|error| panic!("a socket towards {endpoint}: {error}"));
        Self { peer: ScriptedPeer::new(private, device), socket, last_initiation: None }
    }

    /// Sends initiations until one is answered by a response, and confirms the session. Gives how many it took; fails the
    /// test when `attempts_max` did not do.
    #[track_caller]
    pub fn connect(&mut self, attempts_max: u32) -> u32 {
        for attempt in 1..=attempts_max {
            if let Some(last) = self.last_initiation {
                std::thread::sleep(BETWEEN_INITIATIONS.saturating_sub(last.elapsed()));
            }
            let message = self.peer.initiation();
            self.send(&message);
            self.last_initiation = Some(Instant::now());
            let end = Instant::now() + ANSWER_LIMIT * 2_u32.pow((attempt - 1).min(DOUBLINGS_MAX));
            loop {
                match self.receive(end) {
                    Some(Heard::Session) => {
                        let keepalive = self.peer.seal(&[]);
                        self.send(&keepalive);
                        return attempt;
                    }
                    Some(Heard::Data(_) | Heard::Other) => {}
                    Some(Heard::Cookie) | None => break,
                }
            }
        }
        panic!("{attempts_max} initiations, and no session");
    }

    /// Sends an inner packet.
    pub fn send_packet(&mut self, packet: &[u8]) {
        let message = self.peer.seal(packet);
        self.send(&message);
    }

    /// The next message that comes before `end`.
    pub fn receive(&mut self, end: Instant) -> Option<Heard> {
        let mut buffer = [0; 2048];
        loop {
            let rest = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())?;
            self.socket.set_read_timeout(Some(rest)).expect("a time above zero is accepted");
            match self.socket.recv(&mut buffer) {
                Ok(len) => return Some(self.peer.hear(&buffer[..len])),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
                // An ICMP error that came back, or a signal.
                Err(_) => {}
            }
        }
    }

    fn send(&self, message: &[u8]) {
        // What the network does not take is lost, like what it loses later.
        let _ = self.socket.send(message);
    }
}

/// An ICMP echo request, whole IPv4 packet.
pub fn echo_request(from: Ipv4Addr, to: Ipv4Addr, number: u16) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
    packet.extend(from.octets().into_iter().chain(to.octets()));
    let checksum = checksum(&packet);
    packet[10..12].copy_from_slice(&checksum);
    let mut icmp = vec![8, 0, 0, 0, 0x0a, 0xd1];
    icmp.extend(number.to_be_bytes());
    let checksum = self::checksum(&icmp);
    icmp[2..4].copy_from_slice(&checksum);
    packet.extend(icmp);
    packet
}

/// The number of the request that this inner packet answers, if it is an echo reply.
pub fn echo_reply(packet: &[u8]) -> Option<u16> {
    match packet {
        [0x45, _, _, _, _, _, _, _, _, 1, ..] if packet.get(20) == Some(&0) => {
            Some(u16::from_be_bytes([*packet.get(26)?, *packet.get(27)?]))
        }
        _ => None,
    }
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
