//! WireGuard over something that is not UDP: two whole devices whose datagrams travel as frames on one TCP connection,
//! where the network lets nothing else through. No root, no TUN; it runs by itself, and then ends.
//!
//! `cargo run --example own_transport`
//!
//! [`Stream`] is the transport: adit's traits [`Udp`], [`UdpSocket`], [`UdpReceiver`] and [`UdpSender`] for anything
//! that bytes can be written to and read from. A frame is the datagram's length in two bytes, big-endian, and the datagram.
//!
//! TCP under a tunnel delays what it should lose, so this is a last resort; the shape is the same for QUIC datagrams,
//! a radio, or a queue between two containers.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::packet::{BUFFER_LEN, Buffers, PacketRef};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::{Readiness, Received, Sent, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket, Wake};

/// Datagrams that wait for the device; beyond it the new one is dropped, as a socket does. With 1,452 bytes each they
/// are 1.4 MiB.
const WAITING_MAX: usize = 1024;
/// Whom a stream leads to has no address of its own: this stands for it, in the configuration and in what is received.
const FAR_END: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);

// --- the transport ---------------------------------------------------------------------------

/// Frames on a stream, as [`Udp`].
struct Stream(Arc<Link>);

struct Link {
    writer: Mutex<TcpStream>,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    datagrams: VecDeque<Vec<u8>>,
    wake: Option<Wake>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    /// Takes a connected stream, and starts the thread that reads from it.
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mut reader = stream.try_clone()?;
        let link = Arc::new(Link { writer: Mutex::new(stream), inbox: Mutex::default() });
        let weak = Arc::downgrade(&link);
        thread::Builder::new().name("stream-reader".into()).spawn(move || {
            while let Ok(datagram) = read_frame(&mut reader) {
                let Some(link) = weak.upgrade() else { return };
                let mut inbox = lock(&link.inbox);
                if inbox.datagrams.len() < WAITING_MAX {
                    inbox.datagrams.push_back(datagram);
                }
                let wake = inbox.wake.clone();
                drop(inbox);
                if let Some(wake) = wake {
                    wake();
                }
            }
        })?;
        Ok(Self(link))
    }
}

/// Ends the thread that reads: its read fails.
impl Drop for Link {
    fn drop(&mut self) {
        let _ = lock(&self.writer).shutdown(std::net::Shutdown::Both);
    }
}

fn read_frame(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    reader.read_exact(&mut len)?;
    let mut datagram = vec![0; usize::from(u16::from_be_bytes(len))];
    reader.read_exact(&mut datagram)?;
    Ok(datagram)
}

impl Udp for Stream {
    /// Called when the link comes up, and again when the port changes. A stream has none: any will do that is not 0.
    fn bind(&self, port: u16, _fwmark: u32, _receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        Ok(Arc::new(Bound { link: Arc::clone(&self.0), port: port.max(1) }))
    }
}

struct Bound {
    link: Arc<Link>,
    port: u16,
}

impl UdpSocket for Bound {
    fn port(&self) -> u16 {
        self.port
    }

    fn set_fwmark(&self, _fwmark: u32) -> io::Result<()> {
        Ok(())
    }

    /// One is enough: the device's workers share it.
    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>> {
        Ok(vec![Box::new(FrameReceiver(Arc::clone(&self.link)))])
    }

    fn sender(&self) -> io::Result<Box<dyn UdpSender>> {
        Ok(Box::new(FrameSender(Arc::clone(&self.link))))
    }
}

struct FrameReceiver(Arc<Link>);

impl UdpReceiver for FrameReceiver {
    /// Nothing to poll: the thread that reads says when there is something.
    fn readiness(&mut self, wake: Wake) -> Vec<Readiness> {
        lock(&self.0.inbox).wake = Some(wake);
        vec![Readiness::Wake]
    }

    fn receive(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool> {
        received.clear();
        let mut inbox = lock(&self.0.inbox);
        for buffer in 0..buffers.count().min(received.capacity()) as u32 {
            let Some(datagram) = inbox.datagrams.pop_front() else { break };
            let len = datagram.len() as u32;
            buffers.get_mut(PacketRef { buffer, start: 0, len }).copy_from_slice(&datagram);
            if len > 0 {
                received.push(Received { buffer, len, segment: len, from: FAR_END, source: None, ecn: 0 });
            }
        }
        Ok(!inbox.datagrams.is_empty())
    }
}

struct FrameSender(Arc<Link>);

impl UdpSender for FrameSender {
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        let mut frames = Vec::new();
        let mut writer = lock(&self.0.writer);
        for (transmit, sent) in transmits.iter().zip(sent) {
            frames.clear();
            // A train is several datagrams of equal size, the last of which may be shorter.
            for datagram in transmit.data.chunks(transmit.segment) {
                frames.extend((datagram.len() as u16).to_be_bytes());
                frames.extend(datagram);
            }
            let datagrams = transmit.data.chunks(transmit.segment).len();
            *sent = match writer.write_all(&frames) {
                Ok(()) => Sent { bytes: transmit.data.len(), ..Sent::default() },
                Err(_) => Sent { refused: datagrams, ..Sent::default() },
            };
        }
    }
}

const _: () = assert!(BUFFER_LEN >= u16::MAX as usize, "a frame fits into a buffer");

// --- the program -----------------------------------------------------------------------------

const PACKETS: u32 = 1000;
const PACKET_LEN: usize = 1420;
/// Fewer under way at once than any queue holds.
const WINDOW: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(10);

fn inner(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

fn start(
    stream: TcpStream,
    key: &PrivateKey,
    other: u8,
    other_key: &PrivateKey,
) -> Result<(Device, MemoryTunHandle), Box<dyn Error>> {
    let (tun, system) = MemoryTun::new("memory", PACKET_LEN);
    let device = Device::builder(tun, Stream::new(stream)?).start()?;
    let allowed_ip = AllowedIp { address: inner(other).into(), prefix_len: 32 };
    device.apply(Update {
        private_key: Some(Some(key.clone())),
        peers: vec![PeerUpdate {
            endpoint: Some(FAR_END),
            allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
            ..PeerUpdate::new(other_key.public_key())
        }],
        ..Update::default()
    })?;
    system.set_up(true);
    Ok((device, system))
}

fn packet(from: u8, to: u8, number: u32) -> Vec<u8> {
    let mut packet = vec![0; PACKET_LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PACKET_LEN as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 253; // for experimentation, RFC 3692
    packet[12..16].copy_from_slice(&inner(from).octets());
    packet[16..20].copy_from_slice(&inner(to).octets());
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;

    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (key_a, key_b) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let (a, system_a) = start(near, &key_a, 2, &key_b)?;
    let (b, system_b) = start(far, &key_b, 1, &key_a)?;

    for (from, to, sender, receiver) in [(1, 2, &system_a, &system_b), (2, 1, &system_b, &system_a)] {
        for first in (0..PACKETS).step_by(WINDOW as usize) {
            for number in first..first + WINDOW {
                assert!(sender.send(&packet(from, to, number)), "the interface has room");
            }
            for number in first..first + WINDOW {
                let arrived = receiver.receive(PATIENCE).ok_or("nothing came through the tunnel")?;
                assert_eq!(arrived[20..24], number.to_be_bytes(), "in order");
            }
        }
        println!("{PACKETS} packets from 10.0.0.{from} to 10.0.0.{to}, all there and in order");
    }
    for device in [&a, &b] {
        let peer = &device.snapshot().peers[0];
        println!("peer {}: {} bytes sent, {} received", peer.public_key, peer.tx_bytes, peer.rx_bytes);
    }
    Ok(())
}
