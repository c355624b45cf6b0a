//! Packets: their buffers, their counters, their lengths.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use adit::device::config::PeerUpdate;
use adit::proto::rejected::Rejected;
use adit::udp::memory::MemoryNetwork;

use super::network::{Host, PATIENCE, SILENCE, Somebody, allowed, eventually, inner, key, outer, packet, pair, pass};
use super::testbed::{Pair, transfer};
use crate::privileged;

/// The type of transport data.
const DATA: u8 = 4;

/// Every way in which a packet is refused gives back what held it: there are few buffers, and they last.
#[test]
fn buffer_leak_on_error_paths() {
    const TIMES: u64 = 1000;
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    let mut somebody = Somebody::at(&network, outer(9));
    pass(&one, &two, "before");
    let sealed = one.wire.expect(DATA, None);
    let mut spoilt = sealed.clone();
    spoilt[20] ^= 1;
    let mut unknown = sealed.clone();
    unknown[4..8].iter_mut().for_each(|byte| *byte ^= 0xff);
    for (datagram, reason) in [
        (vec![4; 5], Rejected::MalformedMessage),
        (unknown, Rejected::UnknownIndex),
        (spoilt, Rejected::BadTag),
        (sealed, Rejected::ReplayedCounter),
    ] {
        for number in 1..=TIMES {
            somebody.send(outer(2), &datagram);
            if number % 50 == 0 {
                eventually("a drop", || two.device.drops(reason) == number);
            }
        }
    }
    one.add(PeerUpdate { allowed_ips: vec![allowed(inner(3), 32)], ..PeerUpdate::new(key(3).public_key()) });
    for (bad, reason) in [
        (packet(inner(1), Ipv4Addr::new(172, 16, 0, 1), b"nobody"), Rejected::NoRoute),
        (packet(inner(1), inner(3), b"nowhere"), Rejected::NoEndpoint),
        (vec![0; 40], Rejected::MalformedOutbound),
    ] {
        for number in 1..=TIMES {
            one.send_packet(&bad);
            if number % 50 == 0 {
                eventually("a drop", || one.device.drops(reason) == number);
            }
        }
    }
    for number in 1..=TIMES {
        one.send_packet(&packet(inner(7), inner(2), b"from another"));
        if number % 50 == 0 {
            eventually("a drop", || two.device.drops(Rejected::ForbiddenSource) == number);
        }
    }
    // The unreachable messages that the senders were told.
    while one.tun.receive(SILENCE).is_some() {}
    for number in 0..200 {
        pass(&one, &two, &format!("to {number}"));
        pass(&two, &one, &format!("back {number}"));
    }
}

/// What waits for peers that do not answer is bounded over all of them.
#[test]
fn unbounded_pools() {
    const PEERS: u8 = 150;
    const EACH: usize = 128;
    let network = MemoryNetwork::new();
    let one = Host::new(&network, 1);
    let dead = |number| PeerUpdate { endpoint: Some(outer(200)), ..super::network::peer(number) };
    (0..PEERS).for_each(|number| one.add(dead(10 + number)));
    let payload = [7; 1380];
    for number in 0..PEERS {
        (0..EACH).for_each(|_| one.send_packet(&packet(inner(1), inner(10 + number), &payload)));
    }
    let sent = u64::from(PEERS) * EACH as u64;
    let held = || sent - one.device.drops(Rejected::StagedDropped);
    eventually("all are staged or dropped", || {
        let figures = one.device.figures();
        figures.staged_bytes == held() * 1400
    });
    let figures = one.device.figures();
    assert!(figures.staged_bytes <= figures.staged_bytes_max, "{} bytes wait", figures.staged_bytes);
    assert!(figures.staged_bytes_max < sent * 1400, "there was enough to fill it");
}

/// Every datagram is delivered and counted once, whoever repeats it meanwhile.
#[test]
fn data_race_on_the_receive_counter() {
    const PACKETS: usize = 3000;
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    pass(&one, &two, "before");
    let delivered = thread::scope(|scope| {
        for number in [7, 8] {
            let (mut somebody, wire) = (Somebody::at(&network, outer(number)), &one.wire);
            scope.spawn(move || {
                let mut repeated = 0;
                eventually("all packets have left", || {
                    let left = wire.left.lock().unwrap().clone();
                    left[repeated..].iter().filter(|bytes| bytes[0] == DATA).for_each(|bytes| {
                        somebody.send(outer(2), bytes);
                    });
                    repeated = left.len();
                    repeated > PACKETS
                });
            });
        }
        let receiving = scope.spawn(|| {
            let mut delivered = 0;
            while delivered < PACKETS && two.receive(PATIENCE).is_some() {
                delivered += 1;
            }
            delivered
        });
        for number in 0..PACKETS {
            one.send(2, &format!("packet {number}"));
            if number % 100 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        receiving.join().unwrap()
    });
    assert_eq!(delivered, PACKETS);
    assert_eq!(two.receive(SILENCE), None, "delivered twice");
    eventually("both ends count the same", || two.peer().rx_bytes == one.peer().tx_bytes);
}

/// The interface may have any MTU, and a packet any length.
#[test]
fn panic_on_extreme_mtu() {
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    pass(&one, &two, "before");
    let lens = [0, 1, 8, 47, 48, 1259, 1260, 1399, 1400, 1401, 65_400, 65_515];
    for mtu in [0, 1, 15, 20, 68, 1279, 1280, 1420, 65_520, 65_535, 65_536, usize::MAX] {
        [&one, &two].iter().for_each(|host| host.tun.set_mtu(mtu));
        eventually("the MTU", || [&one, &two].iter().all(|host| host.device.figures().mtu == mtu));
        for len in lens {
            one.send_packet(&packet(inner(1), inner(2), &vec![7; len]));
        }
        one.send_packet(&packet(inner(1), inner(2), b"last"));
        // Which of them fit into a datagram is not the question.
        while two.receive(PATIENCE).expect("the last one arrives") != "last" {}
    }
    assert!(one.device.is_running() && two.device.is_running());
}

/// VXLAN in the tunnel: its datagrams have no checksum in IPv4, and a receiver that gets several as one drops them.
#[test]
fn vxlan_drops_coalesced_udp() {
    privileged!();
    let pair = Pair::new();
    pair.ping_both_ways();
    for (node, other, n) in [(&pair.left, &pair.right, 1), (&pair.right, &pair.left, 2)] {
        let (local, remote) = (node.inner_v4, other.inner_v4);
        let vxlan = format!("type vxlan id 7 local {local} remote {remote} dstport 4789 noudpcsum dev DEV");
        node.daemon.ip(&format!("link add overlay {vxlan}"));
        node.ns.ip(&format!("address add 172.16.7.{n}/24 dev overlay"));
        node.ns.ip("link set overlay mtu 1350 up");
    }
    transfer(&pair.left.ns, &pair.right.ns, Ipv4Addr::new(172, 16, 7, 2).into(), 4 << 20);
    transfer(&pair.right.ns, &pair.left.ns, Ipv4Addr::new(172, 16, 7, 1).into(), 4 << 20);
}
