//! What a datagram costs at the system's edge: trains against singles, out and in, over loopback.
//!
//! Loopback delivers within the send, so a send's figure holds the kernel's receive path, too; compare
//! rows of one run with each other only. `cargo bench --bench udp`.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit::packet::Buffers;
use adit::udp::linux::LinuxUdp;
use adit::udp::{Sent, Source, Transmit, Udp};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// Name, bytes of a datagram, datagrams, whether in one piece.
const SHAPES: [(&str, usize, usize, bool); 4] = [
    ("a train of 45 × 1452", 1452, 45, true),
    ("a train of 64 × 64", 64, 64, true),
    ("64 × 64 singly", 64, 64, false),
    ("one of 64", 64, 1, true),
];

fn loopback(criterion: &mut Criterion) {
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let (near, far) = (LinuxUdp.bind(0, 0, 1).unwrap(), LinuxUdp.bind(0, 0, 1).unwrap());
        let (mut near, port) = (near.sender().unwrap(), far.port());
        let mut far = far.receivers().unwrap().remove(0);
        let (mut buffers, mut received) = (Buffers::new(64), Vec::with_capacity(64));
        let mut drain = || {
            loop {
                far.receive(&mut buffers, &mut received).unwrap();
                if received.is_empty() {
                    break;
                }
            }
        };
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        let mut group = criterion.benchmark_group(family);
        for (name, segment, count, offload) in SHAPES {
            let data = vec![1; segment * count];
            let source = Some(Source { ip, ifindex: 0 });
            let train = [Transmit { to: (ip, port).into(), source, tos: 0, segment, data: &data, offload }];
            let mut send = || near.send(black_box(&train), &mut [Sent::default()]);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("send and receive {name}"), |bencher| {
                bencher.iter(|| {
                    send();
                    drain();
                });
            });
            group.bench_function(format!("receive {name}"), |bencher| {
                bencher.iter_batched(&mut send, |()| drain(), BatchSize::PerIteration);
            });
        }
    }
}

criterion_group!(benches, loopback);
criterion_main!(benches);
