//! WireGuard in a program's own event loop: two peers, each with a plain UDP socket on loopback and one thread, that
//! ping each other through the tunnel. No TUN, no root, none of adit's threads.
//!
//! `cargo run --example proto_loop`
//!
//! The loop is [`Side::run`]; it is the one that the documentation of `adit::proto::peer` prints.

use std::error::Error;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant as Clock, SystemTime};

use adit::key::PrivateKey;
use adit::proto::peer::{Datagram, Outcome, Packet, Peer, datagram_len};
use adit::proto::time::{Instant, Now, UnixTime};

type Failure = Box<dyn Error + Send + Sync>;

const PINGS: u8 = 5;
/// Bytes of an inner packet, at most.
const MTU: usize = 1420;
/// IPv4, 20 bytes of header and one of payload.
const PING_LEN: usize = 21;
/// For experimentation, RFC 3692.
const PROTOCOL: u8 = 253;

/// What is behind a side of the tunnel: it has an address, and answers packets.
struct Host {
    name: &'static str,
    address: Ipv4Addr,
    /// The one address that the peer may speak for.
    other: Ipv4Addr,
    pings: bool,
    seen: u8,
    begun: Clock,
}

impl Host {
    /// A packet of this host.
    fn packet(&mut self, number: u8) -> Vec<u8> {
        let mut packet = vec![0; PING_LEN];
        packet[0] = 0x45;
        packet[3] = PING_LEN as u8;
        packet[8] = 64;
        packet[9] = PROTOCOL;
        packet[12..16].copy_from_slice(&self.address.octets());
        packet[16..20].copy_from_slice(&self.other.octets());
        packet[20] = number;
        self.begun = Clock::now();
        packet
    }

    /// Takes a packet that came through the tunnel; what it sends thereupon: the echo, or the next ping.
    fn take(&mut self, packet: Packet<'_>) -> Option<Vec<u8>> {
        if packet.source != IpAddr::V4(self.other) {
            println!("{}: refused a packet from {}", self.name, packet.source);
            return None;
        }
        self.seen += 1;
        if !self.pings {
            return Some(self.packet(self.seen));
        }
        assert_eq!(packet.bytes.last(), Some(&self.seen), "the echo of this ping");
        println!("ping {}: there and back in {:?}", self.seen, self.begun.elapsed());
        (self.seen < PINGS).then(|| self.packet(self.seen + 1))
    }
}

/// One end of the tunnel.
struct Side {
    socket: UdpSocket,
    peer: Peer,
    host: Host,
    started: Clock,
}

impl Side {
    /// Both clocks. A program whose machine may be suspended takes the first one from CLOCK_BOOTTIME, so that keys
    /// grow old in the meantime.
    fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { instant: Instant::from_nanos(self.started.elapsed().as_nanos() as u64), unix: UnixTime(unix) }
    }

    fn send(&self, datagram: Datagram<'_>) {
        // A datagram that cannot be sent is a lost one: the protocol tries again where it matters.
        let _ = self.socket.send_to(datagram.bytes, datagram.to);
    }

    /// Runs until all pings were seen. `packet`: what the host sends first.
    fn run(mut self, mut packet: Option<Vec<u8>>) -> Result<Self, Failure> {
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let mut out = vec![0; datagram_len(MTU)];
        let mut datagram = vec![0; 65_535];
        loop {
            // 1. What the host sends.
            let now = self.now();
            if let Some(packet) = packet.take()
                && let Outcome::Send(datagram) = self.peer.encapsulate(&packet, &mut out, now, &mut rng)?
            {
                self.send(datagram);
            }
            // 2. What is due by itself.
            self.peer.handle_timeout(now);
            while let Some(datagram) = self.peer.poll_transmit(&mut out, now, &mut rng) {
                self.send(datagram);
            }
            if self.host.seen == PINGS {
                return Ok(self);
            }
            // 3. What comes from the network, until the next timer is due. No timer, no limit.
            let sleep = self.peer.poll_timeout().map(|at| at.since(now.instant).max(Duration::from_millis(1)));
            self.socket.set_read_timeout(sleep)?;
            let (len, from) = match self.socket.recv_from(&mut datagram) {
                Ok(received) => received,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(error) => return Err(error.into()),
            };
            let (now, name) = (self.now(), self.host.name);
            match self.peer.decapsulate(from, &mut datagram[..len], &mut out, now, &mut rng) {
                Ok(Outcome::Send(answer)) => {
                    println!("{name}: {len} bytes from {from}, answered with {}", answer.bytes.len());
                    self.send(answer);
                }
                Ok(Outcome::Deliver(inner)) => packet = self.host.take(inner),
                Ok(Outcome::Done) => {}
                Err(reason) => println!("{name}: dropped {len} bytes from {from}: {reason:?}"),
            }
        }
    }
}

fn main() -> Result<(), Failure> {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let keys = [PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng)];
    let inner = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
    let sockets = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    let right_address = sockets[1].local_addr()?;

    let mut loops = Vec::new();
    for (number, (name, socket)) in ["left", "right"].into_iter().zip(sockets).enumerate() {
        let (other, pings) = (1 - number, number == 0);
        let mut peer = Peer::new(keys[number].clone(), keys[other].public_key());
        let begun = Clock::now();
        let mut host = Host { name, address: inner[number], other: inner[other], pings, seen: 0, begun };
        // The right one learns where the left one is from what it sends.
        let mut first = None;
        if pings {
            peer.set_endpoint(right_address);
            first = Some(host.packet(1));
        }
        let side = Side { socket, peer, host, started: Clock::now() };
        loops.push(thread::spawn(move || side.run(first)));
    }
    for side in loops {
        let Side { peer, host, .. } = side.join().map_err(|_| "a loop panicked")??;
        let UnixTime(since_1970) = peer.last_handshake().ok_or("there was no handshake")?;
        let (rx, tx) = (peer.rx_bytes(), peer.tx_bytes());
        println!("{}: handshake at {} s, {rx} bytes received, {tx} sent", host.name, since_1970.as_secs());
    }
    Ok(())
}
