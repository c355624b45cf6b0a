//! What splitting and coalescing cost, for TCP and UDP trains of 45 packets (62 KB): `cargo bench --bench offload`.
//!
//! The memory that is split into is in the cache and mapped, as a worker's buffers are after their first use. Memory
//! that is touched for the first time costs as much again for its page faults, and more on a busy machine; "into cold
//! memory" is mapped, but in no cache.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use adit::packet::{Buffers, PacketRef};
use adit::tun::offload::{COALESCE_BATCH, Coalescer, GROUP_HEADER_MAX, SuperPacket, VNET_HEADER_LEN};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PACKETS: usize = 45;
const PACKET: usize = 1420;
/// A packet's place in the memory that is split into.
const PLACE: usize = 1500;
const IP_HEADER: usize = 20;
/// Bytes that no cache of a core holds.
const COLD: usize = 64 << 20;

#[derive(Clone, Copy)]
struct Protocol {
    name: &'static str,
    number: u8,
    /// The virtio header's type of offload.
    gso: u8,
    header: usize,
    checksum: usize,
}

const PROTOCOLS: [Protocol; 2] = [
    Protocol { name: "TCP", number: 6, gso: 1, header: 32, checksum: 16 },
    Protocol { name: "UDP", number: 17, gso: 5, header: 8, checksum: 6 },
];

impl Protocol {
    fn payload(self) -> usize {
        PACKET - IP_HEADER - self.header
    }

    /// The virtio header and the super-packet that a TUN gives for a full send.
    fn super_packet(self) -> ([u8; VNET_HEADER_LEN], Vec<u8>) {
        let len = IP_HEADER + self.header + PACKETS * self.payload();
        let mut bytes = vec![0; len];
        bytes[0] = 0x45;
        bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        bytes[6] = 0x40;
        bytes[8..10].copy_from_slice(&[64, self.number]);
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        match self.number {
            6 => bytes[32..34].copy_from_slice(&[0x80, 0x10]),
            _ => bytes[24..26].copy_from_slice(&((len - IP_HEADER) as u16).to_be_bytes()),
        }
        // The pseudo-header's sum: addresses, protocol, length.
        let pseudo = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + u32::from(self.number) + (len - IP_HEADER) as u32;
        let sum = ((pseudo & 0xffff) + (pseudo >> 16)) as u16;
        bytes[IP_HEADER + self.checksum..][..2].copy_from_slice(&sum.to_be_bytes());
        for (index, byte) in bytes[IP_HEADER + self.header..].iter_mut().enumerate() {
            *byte = (index * 7) as u8;
        }
        let mut vnet = [1, self.gso, 0, 0, 0, 0, 0, 0, 0, 0];
        vnet[4..6].copy_from_slice(&(self.payload() as u16).to_ne_bytes());
        vnet[6..8].copy_from_slice(&(IP_HEADER as u16).to_ne_bytes());
        vnet[8..10].copy_from_slice(&(self.checksum as u16).to_ne_bytes());
        (vnet, bytes)
    }

    /// The same, split.
    fn packets(self) -> (Buffers, Vec<PacketRef>) {
        let (vnet, bytes) = self.super_packet();
        let packet = SuperPacket::parse(&vnet, &bytes).expect("a well-formed super-packet");
        let mut buffers = Buffers::new(2);
        let places = (0..PACKETS)
            .map(|index| {
                let (buffer, start) = ((index / 40) as u32, index % 40 * PLACE);
                let len = packet.write_segment(index, &mut buffers.whole(buffer)[start..]);
                PacketRef { buffer, start: start as u32, len: len as u32 }
            })
            .collect();
        (buffers, places)
    }
}

fn split(vnet: &[u8; VNET_HEADER_LEN], bytes: &[u8], to: &mut [u8]) {
    let packet = SuperPacket::parse(black_box(vnet), black_box(bytes)).expect("a well-formed super-packet");
    assert_eq!(packet.count(), PACKETS);
    for (index, to) in to.chunks_mut(PLACE).enumerate() {
        packet.write_segment(index, to);
    }
    black_box(to);
}

fn coalesce(coalescer: &mut Coalescer, buffers: &Buffers, places: &[PacketRef]) -> usize {
    coalescer.coalesce(black_box(buffers), black_box(places));
    let mut header = [0; GROUP_HEADER_MAX];
    coalescer.groups(buffers, places).map(|group| group.write_header(&mut header) + group.count()).sum()
}

fn offload(criterion: &mut Criterion) {
    let mut coalescer = Coalescer::new(true, true);
    for protocol in PROTOCOLS {
        let (vnet, bytes) = protocol.super_packet();
        let (buffers, places) = protocol.packets();
        let mut group = criterion.benchmark_group(protocol.name);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(30);
        group.throughput(Throughput::Bytes((PACKETS * protocol.payload()) as u64));
        // Not zeroes: those the allocator leaves unmapped until they are written.
        let mut to = vec![1; PACKETS * PLACE];
        group.bench_function("split", |bencher| bencher.iter(|| split(&vnet, &bytes, &mut to)));
        let mut cold = vec![1; COLD];
        let mut turn = 0;
        group.bench_function("split into cold memory", |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % (COLD / to.len());
                split(&vnet, &bytes, &mut cold[turn * to.len()..][..to.len()]);
            });
        });
        group.bench_function("copy alone", |bencher| {
            bencher.iter(|| {
                for (to, from) in to.chunks_mut(PLACE).zip(black_box(&bytes).chunks(protocol.payload())) {
                    to[..from.len()].copy_from_slice(from);
                }
                black_box(&to);
            });
        });
        group.bench_function("coalesce", |bencher| bencher.iter(|| coalesce(&mut coalescer, &buffers, &places)));
        group.finish();

        let mut group = criterion.benchmark_group(format!("{}, nothing to coalesce", protocol.name));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(30);
        group.throughput(Throughput::Elements(1));
        group.bench_function("a single packet", |bencher| {
            bencher.iter(|| coalesce(&mut coalescer, &buffers, &places[..1]));
        });
        // The price that a flood pays for looking. Of UDP any two join, whatever lies between.
        if protocol.number == 6 {
            let apart = places.iter().copied().step_by(2).cycle().take(COALESCE_BATCH).collect::<Vec<_>>();
            group.throughput(Throughput::Elements(COALESCE_BATCH as u64));
            group.bench_function(format!("{COALESCE_BATCH} that do not join"), |bencher| {
                bencher.iter(|| coalesce(&mut coalescer, &buffers, &apart));
            });
        }
    }
}

criterion_group!(benches, offload);
criterion_main!(benches);
