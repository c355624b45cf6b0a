//! What a handshake costs, as a whole and by its verbs, and what is done before any of it for a message that may be
//! part of a flood: `cargo bench --bench handshake`.
//!
//! The static-static DH is cached, as it is between peers that have met. "whole" is the work of both sides and a
//! little more than the sum of the verbs: macs are added and checked.
#![allow(missing_docs)]

use core::hint::black_box;
use core::time::Duration;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::cookie::{CookieChecker, CookieJar};
use adit::proto::handshake::{Handshake, Identity};
use adit::proto::messages::{self, INITIATION_LEN, MAC_LEN, Message, RESPONSE_LEN};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, UnixTime};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

#[path = "../tests/simulation/rng.rs"]
mod rng;

use rng::TestRng;

/// Between two initiations that are accepted: more than the flood protection of a peer asks for.
const STEP: Duration = Duration::from_millis(50);

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
    fn waiting(&self, rng: &mut TestRng) -> (Handshake, [u8; INITIATION_LEN]) {
        let mut handshake = self.handshake();
        let mut message = handshake.create_initiation(&self.identity, 1, stamp(), rng).expect("created");
        self.add_macs(&mut message);
        (handshake, message)
    }

    /// Consumes an initiation and gives the response with macs.
    fn respond(
        &self,
        handshake: &mut Handshake,
        message: &[u8],
        now: Instant,
        rng: &mut TestRng,
    ) -> [u8; RESPONSE_LEN] {
        let Ok(Message::Initiation(view)) = messages::parse(message) else { unreachable!("an initiation") };
        let opened = self.identity.open_initiation(&view).expect("opened");
        handshake.consume_initiation(&self.identity, opened, now).expect("consumed");
        let (mut response, _) = handshake.create_response(2, rng).expect("created");
        self.add_macs(&mut response);
        response
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

fn parties() -> (Party, Party) {
    let mut rng = TestRng(1);
    let (one, other) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let initiator = Party { identity: Identity::new(one.clone()), remote: other.clone() };
    (initiator, Party { identity: Identity::new(other), remote: one })
}

fn stamp() -> Tai64n {
    Tai64n::from_unix(UnixTime(Duration::from_secs(1_700_000_000)))
}

fn handshakes(criterion: &mut Criterion) {
    let (initiator, responder) = parties();
    let mut group = criterion.benchmark_group("handshake");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(30);
    group.throughput(Throughput::Elements(1));
    group.bench_function("whole", |bencher| {
        let mut rng = TestRng(2);
        let (mut ours, mut theirs, mut now) = (initiator.handshake(), responder.handshake(), Instant::default());
        bencher.iter(|| {
            now = now + STEP;
            // A timestamp that is not greater than the last becomes so by itself.
            let mut initiation = ours.create_initiation(&initiator.identity, 1, stamp(), &mut rng).expect("created");
            initiator.add_macs(&mut initiation);
            let response = responder.respond(&mut theirs, &initiation, now, &mut rng);
            let Ok(Message::Response(view)) = messages::parse(&response) else { unreachable!("a response") };
            ours.consume_response(&initiator.identity, &view).expect("consumed")
        });
    });
    group.finish();
}

fn verbs(criterion: &mut Criterion) {
    let mut rng = TestRng(1);
    let (initiator, responder) = parties();
    let (mut waiting, initiation) = initiator.waiting(&mut rng);
    let Ok(Message::Initiation(view)) = messages::parse(&initiation) else { unreachable!("an initiation") };

    let mut group = criterion.benchmark_group("verb");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group.throughput(Throughput::Elements(1));
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
        let mut rng = TestRng(2);
        bencher.iter_batched_ref(
            || responder.consumed(&initiation),
            |handshake| handshake.create_response(2, &mut rng),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("consume_response", |bencher| {
        let mut rng = TestRng(3);
        bencher.iter_batched_ref(
            || {
                let (handshake, initiation) = initiator.waiting(&mut rng);
                let mut theirs = responder.handshake();
                (handshake, responder.respond(&mut theirs, &initiation, Instant::default(), &mut rng))
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

/// In the order in which a device meets them: mac1 before the queue; under load mac2, or a cookie instead of it;
/// only then the first DH (`verb/open_initiation`).
fn floods(criterion: &mut Criterion) {
    let mut rng = TestRng(1);
    let (initiator, responder) = parties();
    let (_, initiation) = initiator.waiting(&mut rng);
    let mut garbage = initiation;
    garbage[8] ^= 1;
    let mac1: [u8; MAC_LEN] = *initiation[..INITIATION_LEN - MAC_LEN].last_chunk().expect("longer than a mac");
    let mut checker = CookieChecker::new(&responder.identity.public_key(), Instant::default(), &mut rng);
    let from = ([192, 0, 2, 1], 51820).into();
    let now = Instant::default();

    let mut group = criterion.benchmark_group("flood");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group.throughput(Throughput::Elements(1));
    group.bench_function("mac1 of garbage", |bencher| {
        bencher.iter(|| responder.identity.check_mac1(black_box(&garbage)).is_err());
    });
    group.bench_function("mac1", |bencher| bencher.iter(|| responder.identity.check_mac1(black_box(&initiation))));
    group.bench_function("mac2", |bencher| {
        bencher.iter(|| checker.check_mac2(black_box(&initiation), from, now, &mut rng));
    });
    group.bench_function("cookie reply", |bencher| {
        bencher.iter(|| checker.create_reply(black_box(&mac1), 1, from, now, &mut rng));
    });
    group.finish();
}

criterion_group!(benches, handshakes, verbs, floods);
criterion_main!(benches);
