//! What splitting and coalescing cost, for a train of 45 packets (62 KB): `cargo bench --bench offload`.
#![allow(missing_docs)]

use std::hint::black_box;

use adit::packet::{Buffers, PacketRef};
use adit::tun::offload::{COALESCE_BATCH, Coalescer, GROUP_HEADER_MAX, SuperPacket, VNET_HEADER_LEN};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PACKETS: usize = 45;
const PAYLOAD: usize = 1368;
const HEADER: usize = 52;

/// The virtio header and the super-packet that a TUN gives for a full TCP send.
fn super_packet() -> ([u8; VNET_HEADER_LEN], Vec<u8>) {
    let len = HEADER + PACKETS * PAYLOAD;
    let mut bytes = vec![0; len];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    bytes[6] = 0x40;
    bytes[8..10].copy_from_slice(&[64, 6]);
    bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    bytes[32..34].copy_from_slice(&[0x80, 0x10]);
    // The pseudo-header's sum: addresses, protocol, length.
    let pseudo = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 6 + (len as u32 - 20);
    bytes[36..38].copy_from_slice(&(((pseudo & 0xffff) + (pseudo >> 16)) as u16).to_be_bytes());
    for (index, byte) in bytes[HEADER..].iter_mut().enumerate() {
        *byte = (index * 7) as u8;
    }
    let mut vnet = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    vnet[4..6].copy_from_slice(&(PAYLOAD as u16).to_ne_bytes());
    vnet[6..8].copy_from_slice(&20u16.to_ne_bytes());
    vnet[8..10].copy_from_slice(&16u16.to_ne_bytes());
    (vnet, bytes)
}

/// The same, split.
fn packets() -> (Buffers, Vec<PacketRef>) {
    let (vnet, bytes) = super_packet();
    let packet = SuperPacket::parse(&vnet, &bytes).expect("a well-formed super-packet");
    let mut buffers = Buffers::new(2);
    let places = (0..PACKETS)
        .map(|index| {
            let (buffer, start) = ((index / 40) as u32, index % 40 * 1500);
            let len = packet.write_segment(index, &mut buffers.whole(buffer)[start..]);
            PacketRef { buffer, start: start as u32, len: len as u32 }
        })
        .collect();
    (buffers, places)
}

fn offload(criterion: &mut Criterion) {
    let (vnet, bytes) = super_packet();
    let mut group = criterion.benchmark_group("offload");
    group.throughput(Throughput::Bytes((PACKETS * PAYLOAD) as u64));

    let mut to = vec![0; PACKETS * 1500];
    group.bench_function("split", |bencher| {
        bencher.iter(|| {
            let packet = SuperPacket::parse(black_box(&vnet), black_box(&bytes)).expect("a well-formed super-packet");
            for (index, to) in to.chunks_mut(1500).enumerate() {
                packet.write_segment(index, to);
            }
            black_box(&to);
        });
    });
    group.bench_function("copy alone", |bencher| {
        bencher.iter(|| {
            for (to, from) in to.chunks_mut(1500).zip(black_box(&bytes).chunks(PAYLOAD)) {
                to[..from.len()].copy_from_slice(from);
            }
            black_box(&to);
        });
    });

    let (buffers, places) = packets();
    let mut coalescer = Coalescer::new(true, true);
    let mut coalesce = |places: &[PacketRef]| {
        coalescer.coalesce(black_box(&buffers), black_box(places));
        let mut header = [0; GROUP_HEADER_MAX];
        coalescer.groups(&buffers, places).map(|group| group.write_header(&mut header) + group.count()).sum::<usize>()
    };
    group.bench_function("coalesce", |bencher| bencher.iter(|| coalesce(&places)));
    group.finish();

    let one = places[..1].to_vec();
    criterion.bench_function("coalesce a single packet", |bencher| bencher.iter(|| coalesce(&one)));
    // Nothing that joins: the price that a flood pays for looking.
    let apart = places.iter().copied().step_by(2).cycle().take(COALESCE_BATCH).collect::<Vec<_>>();
    criterion.bench_function("coalesce 1024 that do not join", |bencher| bencher.iter(|| coalesce(&apart)));
}

criterion_group!(benches, offload);
criterion_main!(benches);
