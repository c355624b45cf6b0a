//! Datagrams of strangers at a steady rate: the floods of the end-to-end benchmark and of the tests, for any
//! implementation of WireGuard.
//!
//! ```text
//! stranger_flood KIND PUBLIC_KEY ADDRESS:PORT SECONDS PER_SECOND SOURCES
//! ```
//! KIND is what they send: `wrong-mac1`, initiations that show at the first check that their sender does not know
//! PUBLIC_KEY, the receiver's in base64; `right-mac1`, initiations that look right until a Diffie-Hellman shows that they
//! are not; `unknown-index`, data of no session.
//!
//! With SOURCES 0 all come from one ordinary socket. Otherwise they come from so many invented addresses from 10.128.0.0
//! on, from 10.128.0.1 to the next and round again, by a raw socket, which needs CAP_NET_RAW. It prints one line of JSON:
//! what was sent in which time, and how many answers came to the ordinary socket.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use adit::key::PublicKey;
use adit::proto::cookie::CookieJar;
use adit::proto::messages::{DATA_HEADER_LEN, INITIATION_LEN};
use adit::proto::time::Instant as ProtoInstant;
use rand_core::Rng;
use socket2::{Domain, Protocol, Socket, Type};

type Failure = Box<dyn Error + Send + Sync>;

/// Made beforehand and sent in turn, so that the flood takes little from a receiver on the same machine. The receiver
/// cannot know one again: it keeps nothing of a message that it refuses.
const MESSAGES: usize = 4096;
/// What has become due is sent this often.
const STEP: Duration = Duration::from_micros(500);
/// Of a second: what a busy machine has missed for longer is not made up for.
const CATCH_UP_DIVISOR: u64 = 100;
/// The first invented source.
const FIRST_SOURCE: u32 = 0x0a80_0000;
const IPV4_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
const UDP: u8 = 17;

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kind, key, address, seconds, per_second, sources] = &words[..] else {
        return Err("usage: stranger_flood wrong-mac1|right-mac1|unknown-index PUBLIC_KEY ADDRESS:PORT SECONDS \
                    PER_SECOND SOURCES"
            .into());
    };
    let messages = messages(kind, &PublicKey::from_base64(key).map_err(|why| format!("{key}: {why}"))?)?;
    let (to, per_second, sources): (SocketAddrV4, u64, u64) = (address.parse()?, per_second.parse()?, sources.parse()?);
    let duration = Duration::try_from_secs_f64(seconds.parse()?)?;
    let mut way = if sources == 0 { Way::ordinary(to)? } else { Way::invented(to, sources)? };

    let (start, mut due, mut sent, mut answered) = (Instant::now(), 0, 0, 0);
    while start.elapsed() < duration {
        let wanted = (start.elapsed().as_micros() as u64 * per_second / 1_000_000).saturating_sub(due);
        for number in due..due + wanted.min(per_second / CATCH_UP_DIVISOR) {
            sent += u64::from(way.send(&messages[number as usize % MESSAGES], number));
        }
        due += wanted;
        answered += way.answers();
        thread::sleep(STEP);
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"sent\": {sent}, \"answered\": {answered}, \"seconds\": {seconds:.6}}}");
    Ok(())
}

fn messages(kind: &str, key: &PublicKey) -> Result<Vec<Vec<u8>>, Failure> {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let mut random = |kind: u8, len: usize| {
        let mut message = vec![0; len];
        rng.fill_bytes(&mut message);
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        message
    };
    let mut make: Box<dyn FnMut() -> Vec<u8>> = match kind {
        "wrong-mac1" => Box::new(move || random(1, INITIATION_LEN)),
        "right-mac1" => Box::new(move || {
            let mut message = random(1, INITIATION_LEN);
            CookieJar::new().add_macs(key, &mut message, ProtoInstant::from_nanos(1));
            message
        }),
        "unknown-index" => Box::new(move || random(4, DATA_HEADER_LEN + 128)),
        other => return Err(format!("{other}: no such kind").into()),
    };
    Ok((0..MESSAGES).map(|_| make()).collect())
}

enum Way {
    Ordinary(UdpSocket),
    Invented { socket: Socket, to: SocketAddrV4, sources: u64, datagram: Vec<u8> },
}

impl Way {
    fn ordinary(to: SocketAddrV4) -> Result<Self, Failure> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(Self::Ordinary(socket))
    }

    fn invented(to: SocketAddrV4, sources: u64) -> Result<Self, Failure> {
        // IPPROTO_RAW: the IPv4 header is ours, and the system fills in its identification and checksum.
        let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::from(255)))?;
        Ok(Self::Invented { socket, to, sources, datagram: Vec::new() })
    }

    /// Returns whether the system took it; a full queue drops, as it does to everybody who does not wait.
    fn send(&mut self, message: &[u8], number: u64) -> bool {
        match self {
            // A closed port is told of by the next call.
            Self::Ordinary(socket) => socket.send(message).or_else(|_| socket.send(message)).is_ok(),
            Self::Invented { socket, to, sources, datagram } => {
                let source = FIRST_SOURCE + 1 + (number % *sources) as u32;
                let udp_len = (UDP_HEADER_LEN + message.len()) as u16;
                datagram.clear();
                datagram.extend([0x45, 0]);
                datagram.extend((IPV4_HEADER_LEN as u16 + udp_len).to_be_bytes());
                datagram.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
                datagram.extend(source.to_be_bytes());
                datagram.extend(to.ip().octets());
                datagram.extend((1024 + number as u16 % 60_000).to_be_bytes());
                datagram.extend(to.port().to_be_bytes());
                datagram.extend(udp_len.to_be_bytes());
                // No checksum, as IPv4 allows.
                datagram.extend([0, 0]);
                datagram.extend(message);
                socket.send_to(datagram, &(*to).into()).is_ok()
            }
        }
    }

    fn answers(&mut self) -> u64 {
        let Self::Ordinary(socket) = self else { return 0 };
        let mut answer = [0; 256];
        std::iter::from_fn(|| socket.recv(&mut answer).ok()).count() as u64
    }
}
