//! Floods of handshake messages from who knows our public key, over edges in memory: they are asked for their address,
//! held to a rate, and kept from the others; what waits for them is bounded, and nothing of them is remembered.
//!
//! A flood is topped up as the device works it off, so that a slow machine is under load and a fast one is, too.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod testbed;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{PeerUpdate, Update};
use adit::key::{PresharedKey, PrivateKey};
use adit::packet::Buffers;
use adit::proto::constants::{HANDSHAKE_QUEUE_MAX, UNDER_LOAD_AT};
use adit::proto::cookie::CookieJar;
use adit::proto::handshake::{Handshake, Identity};
use adit::proto::messages::{self, COOKIE_REPLY_LEN, INITIATION_LEN, Message};
use adit::proto::rejected::Rejected;
use adit::proto::time;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Sent, Transmit, Udp as _, UdpReceiver, UdpSender};
use getrandom::SysRng;
use rand_core::UnwrapErr;
use testbed::{Heard, ScriptedPeer, forged_initiation};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 51820;
/// The device's number.
const DEVICE: u8 = 1;
/// Different initiations from nobody that are sent over and over.
const FORGED: usize = 256;
/// Messages of strangers under way at once: more than make a load, fewer than fit into the queue together with those of
/// a peer, and with the few of that which are consumed and so never counted as dropped.
const STRANGERS_UNDER_WAY: u64 = 3 * UNDER_LOAD_AT as u64;
/// Messages under way at once when a peer floods, too.
const UNDER_WAY: u64 = 4 * UNDER_LOAD_AT as u64;
const _: () = assert!(UNDER_WAY as usize + 3 * FORGED < HANDSHAKE_QUEUE_MAX);

fn outer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// A device with the peers 2 and 3, whose endpoints it does not know. It ends with its interface's handle.
fn device(network: &MemoryNetwork) -> (Device, MemoryTunHandle) {
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, network.host(&[outer(DEVICE)])).start().unwrap();
    let peers = [2, 3].map(|number| PeerUpdate::new(key(number).public_key())).into();
    let private_key = Some(Some(key(DEVICE)));
    device.apply(Update { private_key, listen_port: Some(PORT), peers, ..Update::default() }).unwrap();
    handle.set_up(true);
    until("the port", || device.figures().is_bound);
    (device, handle)
}

/// Waits for what another thread is to bring about.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A host of the network with one port.
struct Host {
    sender: Box<dyn UdpSender>,
    receiver: Box<dyn UdpReceiver>,
    buffers: Buffers,
}

impl Host {
    fn new(network: &MemoryNetwork, number: u8) -> Self {
        let socket = network.host(&[outer(number)]).bind(PORT, 0, 1).unwrap();
        let receiver = socket.receivers().unwrap().remove(0);
        Self { sender: socket.sender().unwrap(), receiver, buffers: Buffers::new(16) }
    }

    /// Sends several messages of one length to the device.
    fn send(&mut self, train: &[u8], segment: usize) {
        let to = SocketAddr::new(outer(DEVICE), PORT);
        let transmit = Transmit { to, source: None, tos: 0, segment, data: train, offload: true };
        self.sender.send(&[transmit], &mut [Sent::default()]);
    }

    /// What has come.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut received = Vec::with_capacity(self.buffers.count());
        self.receiver.receive(&mut self.buffers, &mut received).unwrap();
        let all = self.buffers.all();
        let trains = received.iter().map(|it| (&all[it.buffer as usize][..it.len as usize], it.segment as usize));
        trains.flat_map(|(train, segment)| train.chunks(segment).map(<[u8]>::to_vec)).collect()
    }
}

/// Messages that came to their end in a drop.
fn dropped(device: &Device) -> u64 {
    device.figures().drops.iter().sum()
}

/// Initiations with a right mac1, from nobody.
fn forged() -> Vec<u8> {
    (0..FORGED).flat_map(|_| forged_initiation(&key(DEVICE).public_key())).collect()
}

/// Under load whoever proves no address gets a cookie reply, shorter than what he sent, and nothing else; nothing of it
/// is remembered.
#[test]
fn s_30_under_load_strangers_are_asked_for_their_address() {
    let network = MemoryNetwork::new();
    let (device, _tun) = device(&network);
    let mut strangers = Host::new(&network, 9);
    let flood = forged();
    let mut sent = 0;
    let mut answers = Vec::new();
    let drops = |reason| device.drops(reason);
    until("cookie replies", || {
        if sent - dropped(&device) < STRANGERS_UNDER_WAY {
            strangers.send(&flood, INITIATION_LEN);
            sent += FORGED as u64;
        }
        answers.extend(strangers.receive());
        drops(Rejected::CookieRequired) > FORGED as u64
    });
    until("the end of the queue", || drops(Rejected::CookieRequired) + drops(Rejected::BadTag) == sent);
    until("the last answer", || {
        answers.extend(strangers.receive());
        answers.len() as u64 == drops(Rejected::CookieRequired)
    });
    assert!(answers.iter().all(|answer| answer[0] == 3 && answer.len() == COOKIE_REPLY_LEN));
    assert_eq!(device.figures().receiver_indices, 0);
}

/// A response is asked for the same: that it names an index of ours proves no address.
#[test]
fn s_30_under_load_responders_are_asked_for_their_address() {
    let network = MemoryNetwork::new();
    let (device, _tun) = device(&network);
    let (mut strangers, mut host) = (Host::new(&network, 9), Host::new(&network, 2));
    let (forged, mut sent) = (forged(), 0);
    let mut flood = || {
        if sent - dropped(&device).min(sent) < STRANGERS_UNDER_WAY {
            strangers.send(&forged, INITIATION_LEN);
            sent += FORGED as u64;
        }
        strangers.receive();
    };
    until("load", || {
        flood();
        device.drops(Rejected::CookieRequired) > 0
    });

    let (now, public) = (time::Instant::from_nanos(1), key(DEVICE).public_key());
    let endpoint = Some(SocketAddr::new(outer(2), PORT));
    let peers = vec![PeerUpdate { endpoint, ..PeerUpdate::new(key(2).public_key()) }];
    device.apply(Update { peers, ..Update::default() }).unwrap();
    device.start_handshake(&key(2).public_key());
    let mut initiation = None;
    until("an initiation", || {
        initiation = host.receive().pop();
        initiation.is_some()
    });
    let initiation = initiation.unwrap();
    let Ok(Message::Initiation(initiation)) = messages::parse(&initiation) else { panic!("an initiation") };
    let (identity, mut cookies) = (Identity::new(key(2)), CookieJar::new());
    let mut handshake = Handshake::new(public, PresharedKey::default());
    handshake.consume_initiation(&identity, identity.open_initiation(&initiation).unwrap(), now).unwrap();
    let (response, _) = handshake.create_response(7, &mut UnwrapErr(SysRng)).unwrap();

    let mut without_cookie = response;
    cookies.add_macs(&public, &mut without_cookie, now);
    host.send(&without_cookie, without_cookie.len());
    until("a cookie", || {
        flood();
        host.receive().iter().any(|answer| match messages::parse(answer) {
            Ok(Message::CookieReply(reply)) => cookies.consume_reply(&public, &reply, now).is_ok(),
            _ => false,
        })
    });
    assert_eq!(device.figures().sessions, 0);
    let mut with_cookie = response;
    cookies.add_macs(&public, &mut with_cookie, now);
    host.send(&with_cookie, with_cookie.len());
    until("a session", || {
        flood();
        device.figures().sessions == 1
    });
}

/// More than can wait is dropped by its name, however fast it comes.
#[test]
fn s_35_the_handshake_queue_is_bounded() {
    let network = MemoryNetwork::new();
    let (device, _tun) = device(&network);
    let mut strangers = Host::new(&network, 9);
    let flood = forged();
    let mut queued_max = 0;
    until("a full queue", || {
        (0..16).for_each(|_| strangers.send(&flood, INITIATION_LEN));
        strangers.receive();
        queued_max = queued_max.max(device.figures().handshakes_queued);
        device.drops(Rejected::QueueFull) > 0
    });
    assert!(queued_max <= HANDSHAKE_QUEUE_MAX, "{queued_max}");
}

/// One peer that floods from an address that it has proven is held to its rate, and takes nothing from another: that
/// one is connected at its second initiation, the first having brought the cookie.
#[test]
fn s_32_a_peer_that_floods_keeps_no_other_from_connecting() {
    let network = MemoryNetwork::new();
    let (device, _tun) = device(&network);
    let end = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let under_way = || sent.load(Ordering::Relaxed).saturating_sub(dropped(&device));
    std::thread::scope(|scope| {
        let _ended = Ended(&end);
        // Strangers hold the device under load.
        let mut strangers = Host::new(&network, 9);
        let flood = forged();
        scope.spawn({
            let (end, sent, under_way) = (&end, &sent, &under_way);
            move || {
                while !end.load(Ordering::Relaxed) {
                    if under_way() < STRANGERS_UNDER_WAY {
                        sent.fetch_add(FORGED as u64, Ordering::Relaxed);
                        strangers.send(&flood, INITIATION_LEN);
                    }
                    strangers.receive();
                    std::thread::yield_now();
                }
            }
        });
        until("load", || device.drops(Rejected::CookieRequired) > 0);

        // Peer 2 takes its cookie and floods with what is right in every respect.
        let (mut peer, mut host) = (ScriptedPeer::new(key(2), key(DEVICE).public_key()), Host::new(&network, 2));
        let first = peer.initiation();
        host.send(&first, INITIATION_LEN);
        until("a cookie", || host.receive().iter().any(|answer| peer.hear(answer) == Heard::Cookie));
        let own_flood: Vec<u8> = (0..FORGED).flat_map(|_| peer.initiation()).collect();
        scope.spawn({
            let (end, sent, under_way) = (&end, &sent, &under_way);
            move || {
                while !end.load(Ordering::Relaxed) {
                    if under_way() < UNDER_WAY {
                        sent.fetch_add(FORGED as u64, Ordering::Relaxed);
                        host.send(&own_flood, INITIATION_LEN);
                    }
                    host.receive();
                    std::thread::yield_now();
                }
            }
        });
        until("the limit of peer 2", || device.drops(Rejected::RateLimited) > 4 * FORGED as u64);

        let (mut peer, mut host) = (ScriptedPeer::new(key(3), key(DEVICE).public_key()), Host::new(&network, 3));
        for wanted in [Heard::Cookie, Heard::Session] {
            let initiation = peer.initiation();
            host.send(&initiation, INITIATION_LEN);
            let mut heard = None;
            until("an answer to peer 3", || {
                heard = host.receive().first().map(|answer| peer.hear(answer));
                heard.is_some()
            });
            assert_eq!(heard, Some(wanted));
        }
    });
    assert_eq!(device.drops(Rejected::QueueFull), 0, "room was left for who came last");
}

/// Ends the threads of a scope also where an assertion fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
