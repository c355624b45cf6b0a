//! The cost of the packet AEAD by backend and payload, per train of 64, and of each handshake verb.
//!
//! `cargo bench --bench crypto`; a part of it: `cargo bench --bench crypto -- seal/ring`.
#![allow(missing_docs)]

use core::convert::Infallible;
use core::hint::black_box;
use core::time::Duration;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::cookie::CookieJar;
use adit::proto::crypto::{self, ChaCha20Poly1305, Opening, PacketAead};
use adit::proto::handshake::{Handshake, Identity};
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, INITIATION_LEN, Message, TAG_LEN};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, UnixTime};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand_core::{TryCryptoRng, TryRng};

/// Packets in a train.
const TRAIN: usize = 64;
/// Payloads: the smallest that matters, the internet's two humps, and the default MTU.
const PAYLOADS: [usize; 4] = [64, 256, 576, 1420];

/// Bytes that differ from call to call.
struct Counting(u64);

impl TryRng for Counting {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|n| n as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(8) {
            let bytes = self.try_next_u64()?.to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Counting {}

fn trains<A: PacketAead>(criterion: &mut Criterion) {
    let key = [7; 32];
    for payload in PAYLOADS {
        let stride = payload + DATA_OVERHEAD;
        let mut train = vec![0; TRAIN * stride];
        let throughput = Throughput::Bytes((TRAIN * payload) as u64);

        let mut group = criterion.benchmark_group(format!("seal/{}", A::name()));
        group.throughput(throughput.clone());
        group.bench_function(payload.to_string(), |bencher| {
            let mut counter = 0;
            bencher.iter(|| {
                A::seal_train(black_box(&key), counter, &mut train, stride);
                counter += TRAIN as u64;
            });
        });
        group.finish();

        train.fill(0);
        A::seal_train(&key, 0, &mut train, stride);
        let openings: Vec<Opening> = (0..TRAIN)
            .map(|position| {
                let start = position * stride + DATA_HEADER_LEN;
                Opening::new(position as u64, start as u32, (payload + TAG_LEN) as u32)
            })
            .collect();
        let mut group = criterion.benchmark_group(format!("open/{}", A::name()));
        group.throughput(throughput);
        group.bench_function(payload.to_string(), |bencher| {
            let fresh = || (train.clone(), openings.clone());
            bencher.iter_batched_ref(
                fresh,
                |(buffer, openings)| A::open_train(black_box(&key), buffer, openings),
                BatchSize::LargeInput,
            );
        });
        group.finish();
    }
}

struct Party {
    identity: Identity,
    remote: PrivateKey,
}

impl Party {
    fn handshake(&self) -> Handshake {
        Handshake::new(self.remote.public_key(), PresharedKey::default())
    }

    fn add_macs(&self, message: &mut [u8]) {
        CookieJar::new().add_macs(&self.remote.public_key(), message, Instant::default());
    }

    /// A handshake that waits for a response, and its initiation with macs.
    fn waiting(&self, rng: &mut Counting) -> (Handshake, [u8; INITIATION_LEN]) {
        let mut handshake = self.handshake();
        let mut message = handshake.create_initiation(&self.identity, 1, stamp(), rng).expect("created");
        self.add_macs(&mut message);
        (handshake, message)
    }

    /// A handshake that has consumed `message`.
    fn consumed(&self, message: &[u8]) -> Handshake {
        let mut handshake = self.handshake();
        let Ok(Message::Initiation(view)) = messages::parse(message) else { unreachable!("an initiation") };
        let opened = self.identity.open_initiation(&view).expect("opened");
        handshake.consume_initiation(&self.identity, opened, Instant::default()).expect("consumed");
        handshake
    }
}

fn stamp() -> Tai64n {
    Tai64n::from_unix(UnixTime(Duration::from_secs(1_700_000_000)))
}

fn handshakes(criterion: &mut Criterion) {
    let mut rng = Counting(1);
    let (one, other) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let initiator = Party { identity: Identity::new(one.clone()), remote: other.clone() };
    let responder = Party { identity: Identity::new(other), remote: one };
    let (mut waiting, initiation) = initiator.waiting(&mut rng);
    let Ok(Message::Initiation(view)) = messages::parse(&initiation) else { unreachable!("an initiation") };

    let mut group = criterion.benchmark_group("handshake");
    group.bench_function("dh", |bencher| {
        let public = initiator.remote.public_key();
        bencher.iter(|| crypto::dh(initiator.identity.private_key(), black_box(&public)));
    });
    group.bench_function("check_mac1", |bencher| {
        bencher.iter(|| responder.identity.check_mac1(black_box(&initiation)));
    });
    group.bench_function("create_initiation", |bencher| {
        bencher.iter(|| waiting.create_initiation(&initiator.identity, 1, stamp(), &mut rng));
    });
    group.bench_function("open_initiation", |bencher| bencher.iter(|| responder.identity.open_initiation(&view)));
    group.bench_function("consume_initiation", |bencher| {
        bencher.iter_batched(
            || (responder.consumed(&initiation), responder.identity.open_initiation(&view).expect("opened")),
            // Refused in the end as a replay, after all the cryptography, with the static-static DH cached.
            |(mut handshake, opened)| handshake.consume_initiation(&responder.identity, opened, Instant::default()),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("create_response", |bencher| {
        let mut rng = Counting(2);
        bencher.iter_batched_ref(
            || responder.consumed(&initiation),
            |handshake| handshake.create_response(2, &mut rng),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("consume_response", |bencher| {
        let mut rng = Counting(3);
        bencher.iter_batched_ref(
            || {
                let (handshake, initiation) = initiator.waiting(&mut rng);
                let mut answering = responder.consumed(&initiation);
                let (mut response, _) = answering.create_response(2, &mut rng).expect("created");
                responder.add_macs(&mut response);
                (handshake, response)
            },
            |(handshake, response)| {
                let Ok(Message::Response(view)) = messages::parse(response) else { unreachable!("a response") };
                handshake.consume_response(&initiator.identity, &view)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

#[cfg(feature = "ring")]
criterion_group!(benches, trains::<ChaCha20Poly1305>, trains::<crypto::Ring>, handshakes);
#[cfg(not(feature = "ring"))]
criterion_group!(benches, trains::<ChaCha20Poly1305>, handshakes);
criterion_main!(benches);
