//! What names an index that nobody has costs no memory: not one allocation in a device's threads, however much of it
//! comes.
//!
//! One test alone in this file: the allocator counts for the whole process, but for the thread that floods.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::proto::cookie::CookieJar;
use adit::proto::messages::{COOKIE_REPLY_LEN, RESPONSE_LEN};
use adit::proto::rejected::Rejected;
use adit::proto::time;
use adit::tun::memory::MemoryTun;
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Sent, Transmit, Udp as _};

mod allocator;

const PORT: u16 = 51820;
/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Messages of the flood.
const FLOOD: u64 = 60_000;
/// Messages before it: threads make themselves at home.
const BEFORE: u64 = 2_000;
/// Messages on their way at once: no queue is ever full.
const WINDOW: u64 = 64;

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

#[test]
fn s_34_unknown_indices_allocate_nothing() {
    allocator::leave_this_thread_out();
    let network = MemoryNetwork::new();
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, network.host(&[address(1)])).start().unwrap();
    let key = PrivateKey::from_bytes([1; 32]);
    let public = key.public_key();
    let peers = vec![PeerUpdate::new(PrivateKey::from_bytes([2; 32]).public_key())];
    device.apply(Update { private_key: Some(Some(key)), listen_port: Some(PORT), peers, ..Update::default() }).unwrap();
    handle.set_up(true);
    let start = Instant::now();
    while !device.figures().is_bound {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }

    let stranger = network.host(&[address(9)]).bind(PORT, 0, 1).unwrap();
    let mut sender = stranger.sender().unwrap();
    let mut message = [0xa5; 1452];
    let mut flood = |range: std::ops::Range<u64>| {
        for sent in range {
            let index = (sent as u32).wrapping_mul(0x9e37_79b9).to_le_bytes();
            let len = match sent % 4 {
                0 => {
                    message[..4].copy_from_slice(&[2, 0, 0, 0]);
                    message[8..12].copy_from_slice(&index);
                    CookieJar::new().add_macs(&public, &mut message[..RESPONSE_LEN], time::Instant::from_nanos(1));
                    RESPONSE_LEN
                }
                1 => {
                    message[..4].copy_from_slice(&[3, 0, 0, 0]);
                    message[4..8].copy_from_slice(&index);
                    COOKIE_REPLY_LEN
                }
                _ => {
                    message[..4].copy_from_slice(&[4, 0, 0, 0]);
                    message[4..8].copy_from_slice(&index);
                    32 + sent as usize % 1420
                }
            };
            let to = SocketAddr::new(address(1), PORT);
            let transmit = Transmit { to, source: None, tos: 0, segment: len, data: &message[..len], offload: false };
            sender.send(&[transmit], &mut [Sent::default()]);
            let start = Instant::now();
            while device.drops(Rejected::UnknownIndex) + WINDOW <= sent {
                assert!(start.elapsed() < PATIENCE, "message {sent} was not dropped as what it is");
                std::thread::yield_now();
            }
        }
    };
    flood(0..BEFORE);
    let before = allocator::allocations();
    flood(BEFORE..BEFORE + FLOOD);
    assert_eq!(allocator::allocations() - before, 0);
    assert_eq!(device.figures().receiver_indices, 0);
}
