//! What the primitives cost by backend: the packet AEAD per packet and per train, and X25519.
//!
//! ```text
//! cargo bench --bench crypto                      all of it, a minute and a half
//! cargo bench --bench crypto -- seal/45           trains as a TUN gives them
//! cargo bench --bench crypto -- x25519
//! cargo bench --bench crypto --features bench-aws-lc    a row for aws-lc-rs everywhere (compiles C for minutes)
//! ```
//!
//! The rows of one group differ in the backend alone; aws-lc-rs is here for comparison and no part of
//! adit ([why](../docs/decisions/0010-crypto-backends.md)). A packet is a train of one: what a backend
//! does once for a train, its key, is in there. Trains lie in the cache but for the group `cold`, which
//! goes through more memory than a cache holds.
#![allow(missing_docs)]

use core::hint::black_box;
use core::time::Duration;
use std::time::Instant;

use adit::key::PrivateKey;
use adit::proto::crypto::{self, ChaCha20Poly1305, Opening, PacketAead};
use adit::proto::messages::{DATA_HEADER_LEN, DATA_OVERHEAD};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

#[path = "../tests/simulation/rng.rs"]
mod rng;

use rng::TestRng;

const KEY: [u8; 32] = [7; 32];
/// Payloads: the smallest that matters, two between, and the default MTU.
const PAYLOADS: [usize; 4] = [64, 256, 576, 1420];
/// Packets in a train: one by itself, what a super-packet of a TUN is split into, what one call of UDP_SEGMENT takes.
const TRAINS: [usize; 3] = [1, 45, 64];
/// Bytes that no cache of a core holds.
const COLD: usize = 96 << 20;
/// Trains that are opened between two looks at the clock, for one packet by itself: looking takes 30 ns.
const PER_LOOK: usize = 32;

/// An AEAD as the benchmark needs it: foreign ones cannot say so in an [`Opening`].
trait Backend {
    fn name() -> &'static str;
    fn seal(first_counter: u64, train: &mut [u8], stride: usize);
    /// Says how many were opened.
    fn open(buffer: &mut [u8], packets: &mut [Opening]) -> usize;
}

impl<A: PacketAead> Backend for A {
    fn name() -> &'static str {
        A::name()
    }

    fn seal(first_counter: u64, train: &mut [u8], stride: usize) {
        A::seal_train(black_box(&KEY), first_counter, train, stride);
    }

    fn open(buffer: &mut [u8], packets: &mut [Opening]) -> usize {
        A::open_train(black_box(&KEY), buffer, packets);
        packets.iter().filter(|packet| packet.is_open()).count()
    }
}

/// A train, and where its packets lie.
struct Train {
    packets: usize,
    stride: usize,
}

impl Train {
    fn new(packets: usize, payload: usize) -> Self {
        Self { packets, stride: payload + DATA_OVERHEAD }
    }

    fn len(&self) -> usize {
        self.packets * self.stride
    }

    /// Trains that fill a buffer of `len` bytes, each sealed from the counter 0.
    fn sealed(&self, len: usize) -> Vec<u8> {
        let mut trains = vec![0; len / self.len() * self.len()];
        trains.chunks_mut(self.len()).for_each(|train| crypto::DefaultAead::seal_train(&KEY, 0, train, self.stride));
        trains
    }

    fn openings(&self) -> Vec<Opening> {
        let len = (self.stride - DATA_HEADER_LEN) as u32;
        (0..self.packets)
            .map(|position| Opening::new(position as u64, (position * self.stride + DATA_HEADER_LEN) as u32, len))
            .collect()
    }
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Seals the trains in `memory` in turn.
fn seal<B: Backend>(group: &mut Group<'_>, train: &Train, memory: &mut [u8]) {
    group.bench_function(B::name(), |bencher| {
        let (count, mut next) = (memory.len() / train.len(), 0);
        bencher.iter(|| {
            B::seal(next as u64, &mut memory[next % count * train.len()..][..train.len()], train.stride);
            next += 1;
        });
    });
}

/// Opens the trains in `memory` in turn. What was opened is no longer sealed, so `sealed` is copied there before
/// each round, outside of what is timed.
fn open<B: Backend>(group: &mut Group<'_>, train: &Train, sealed: &[u8], memory: &mut [u8]) {
    let mut openings = train.openings();
    group.bench_function(B::name(), |bencher| {
        bencher.iter_custom(|iterations| {
            let (mut left, mut spent) = (iterations as usize, Duration::ZERO);
            while left > 0 {
                let now = left.min(memory.len() / train.len());
                memory.copy_from_slice(sealed);
                let start = Instant::now();
                for train in memory.chunks_mut(train.len()).take(now) {
                    assert_eq!(B::open(train, &mut openings), openings.len());
                }
                spent += start.elapsed();
                left -= now;
            }
            spent
        });
    });
}

/// Some tens of milliseconds a row: enough for a median that repeats, and a hundred rows end before the user does.
fn short<'a>(criterion: &'a mut Criterion, name: String, bytes: usize) -> Group<'a> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(700)).sample_size(20);
    group.throughput(Throughput::Bytes(bytes as u64));
    group
}

fn seals(criterion: &mut Criterion) {
    for packets in TRAINS {
        for payload in PAYLOADS {
            let train = Train::new(packets, payload);
            let mut memory = vec![0; train.len()];
            let mut group = short(criterion, format!("seal/{packets} × {payload}"), packets * payload);
            #[cfg(feature = "ring")]
            seal::<crypto::Ring>(&mut group, &train, &mut memory);
            #[cfg(feature = "bench-aws-lc")]
            seal::<aws_lc::AwsLc>(&mut group, &train, &mut memory);
            seal::<ChaCha20Poly1305>(&mut group, &train, &mut memory);
        }
    }
}

fn opens(criterion: &mut Criterion) {
    for packets in TRAINS {
        for payload in PAYLOADS {
            let train = Train::new(packets, payload);
            let sealed = train.sealed(train.len() * if packets == 1 { PER_LOOK } else { 1 });
            let mut memory = sealed.clone();
            let mut group = short(criterion, format!("open/{packets} × {payload}"), packets * payload);
            #[cfg(feature = "ring")]
            open::<crypto::Ring>(&mut group, &train, &sealed, &mut memory);
            #[cfg(feature = "bench-aws-lc")]
            open::<aws_lc::AwsLc>(&mut group, &train, &sealed, &mut memory);
            open::<ChaCha20Poly1305>(&mut group, &train, &sealed, &mut memory);
        }
    }
}

fn cold(criterion: &mut Criterion) {
    let train = Train::new(45, 1420);
    let mut memory = vec![1; COLD];
    let mut group = short(criterion, "cold/seal 45 × 1420".into(), 45 * 1420);
    #[cfg(feature = "ring")]
    seal::<crypto::Ring>(&mut group, &train, &mut memory);
    #[cfg(feature = "bench-aws-lc")]
    seal::<aws_lc::AwsLc>(&mut group, &train, &mut memory);
    seal::<ChaCha20Poly1305>(&mut group, &train, &mut memory);
    group.finish();

    let sealed = train.sealed(COLD);
    memory.truncate(sealed.len());
    let mut group = short(criterion, "cold/open 45 × 1420".into(), 45 * 1420);
    #[cfg(feature = "ring")]
    open::<crypto::Ring>(&mut group, &train, &sealed, &mut memory);
    #[cfg(feature = "bench-aws-lc")]
    open::<aws_lc::AwsLc>(&mut group, &train, &sealed, &mut memory);
    open::<ChaCha20Poly1305>(&mut group, &train, &sealed, &mut memory);
}

/// From raw bytes to raw bytes, as the handshake has them; adit's own is one of the others. ring makes no
/// exchange with a private key that it did not make itself.
fn x25519(criterion: &mut Criterion) {
    let mut rng = TestRng(1);
    let (private, public) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng).public_key());
    let (secret, point) = (*private.as_bytes(), *public.as_bytes());

    let mut group = short(criterion, "x25519/public key".into(), 0);
    group.throughput(Throughput::Elements(1));
    group.bench_function("adit", |bencher| bencher.iter(|| black_box(&private).public_key()));
    group.bench_function("x25519-dalek", |bencher| {
        use x25519_dalek::{PublicKey, StaticSecret};
        bencher.iter(|| PublicKey::from(&StaticSecret::from(black_box(secret))).to_bytes());
    });
    #[cfg(all(feature = "graviola", target_arch = "x86_64"))]
    group.bench_function("graviola", |bencher| {
        use graviola::key_agreement::x25519::StaticPrivateKey;
        bencher.iter(|| StaticPrivateKey::from_array(black_box(&secret)).public_key().as_bytes());
    });
    #[cfg(feature = "bench-aws-lc")]
    group.bench_function("aws-lc-rs", |bencher| bencher.iter(|| aws_lc::public_key(black_box(&secret))));
    group.finish();

    let mut group = short(criterion, "x25519/dh".into(), 0);
    group.throughput(Throughput::Elements(1));
    group.bench_function("adit", |bencher| bencher.iter(|| crypto::dh(black_box(&private), black_box(&public))));
    group.bench_function("x25519-dalek", |bencher| {
        use x25519_dalek::{PublicKey, StaticSecret};
        bencher.iter(|| {
            StaticSecret::from(black_box(secret)).diffie_hellman(&PublicKey::from(black_box(point))).to_bytes()
        });
    });
    #[cfg(all(feature = "graviola", target_arch = "x86_64"))]
    group.bench_function("graviola", |bencher| {
        use graviola::key_agreement::x25519::{PublicKey, StaticPrivateKey};
        bencher.iter(|| {
            let public = PublicKey::from_array(black_box(&point));
            StaticPrivateKey::from_array(black_box(&secret)).diffie_hellman(&public).map(|shared| shared.as_bytes())
        });
    });
    #[cfg(feature = "bench-aws-lc")]
    {
        group.bench_function("aws-lc-rs", |bencher| {
            bencher.iter(|| aws_lc::agree(&aws_lc::parse(black_box(&secret)), black_box(&point)));
        });
        let parsed = aws_lc::parse(&secret);
        group.bench_function("aws-lc-rs, private key kept parsed", |bencher| {
            bencher.iter(|| aws_lc::agree(&parsed, black_box(&point)));
        });
    }
}

#[cfg(feature = "bench-aws-lc")]
mod aws_lc {
    use adit::proto::messages::TAG_LEN;
    use aws_lc_rs::{aead, agreement};

    use super::*;

    pub(super) struct AwsLc;

    fn nonce(counter: u64) -> aead::Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        aead::Nonce::assume_unique_for_key(nonce)
    }

    fn aws_lc_key() -> aead::LessSafeKey {
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, black_box(&KEY));
        aead::LessSafeKey::new(key.expect("a key of 32 bytes"))
    }

    impl Backend for AwsLc {
        fn name() -> &'static str {
            "aws-lc-rs"
        }

        fn seal(first_counter: u64, train: &mut [u8], stride: usize) {
            let key = aws_lc_key();
            for (position, packet) in train.chunks_mut(stride).enumerate() {
                let (payload, tag) =
                    packet[DATA_HEADER_LEN..].split_last_chunk_mut::<TAG_LEN>().expect("room for a tag");
                let nonce = nonce(first_counter + position as u64);
                let sealed = key.seal_in_place_separate_tag(nonce, aead::Aad::empty(), payload).expect("sealed");
                tag.copy_from_slice(sealed.as_ref());
            }
        }

        fn open(buffer: &mut [u8], packets: &mut [Opening]) -> usize {
            let key = aws_lc_key();
            let mut open = |packet: &Opening| {
                let sealed = &mut buffer[packet.start as usize..][..packet.len as usize];
                key.open_in_place(nonce(packet.counter), aead::Aad::empty(), sealed).is_ok()
            };
            packets.iter().filter(|packet| open(packet)).count()
        }
    }

    pub(super) fn parse(private: &[u8; 32]) -> agreement::PrivateKey {
        agreement::PrivateKey::from_private_key(&agreement::X25519, private).expect("a key of 32 bytes")
    }

    pub(super) fn public_key(private: &[u8; 32]) -> agreement::PublicKey {
        parse(private).compute_public_key().expect("a public key")
    }

    pub(super) fn agree(private: &agreement::PrivateKey, public: &[u8; 32]) -> [u8; 32] {
        let public = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
        let mut shared = [0; 32];
        let copied = agreement::agree(private, public, (), |bytes| {
            shared.copy_from_slice(bytes);
            Ok(())
        });
        copied.expect("no point of low order");
        shared
    }
}

criterion_group!(benches, seals, opens, cold, x25519);
criterion_main!(benches);
