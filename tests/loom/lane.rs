//! A lane: several workers take from one entry, and what they finish leaves by one exit, all of it and in order.

use std::sync::Arc;

use loom::thread;

use super::counters::keypair;
use crate::device::ordered::Ordered;
use crate::device::pool::{Lent, Pool};
use crate::proto::keypair::Keypair;
use crate::proto::time::Instant;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, lock, try_lock};

pub(crate) const MODELS: &[crate::Model] = &[
    ("nothing_is_left_behind_in_order", nothing_is_left_behind_in_order),
    ("the_exit_is_used_between_two_items", the_exit_is_used_between_two_items),
    ("a_place_is_used_again", a_place_is_used_again),
    ("a_lane_sends_in_the_order_of_its_counters", a_lane_sends_in_the_order_of_its_counters),
];

/// Three tickets, finished by three threads.
fn nothing_is_left_behind_in_order() {
    crate::check(|| {
        let ordered = Arc::new(Ordered::new(3, Vec::new()));
        let finish = |ticket: u64| {
            let ordered = ordered.clone();
            move || ordered.finish(ticket, ticket, Vec::push)
        };
        let others = [thread::spawn(finish(1)), thread::spawn(finish(2))];
        finish(0)();
        others.map(|other| other.join().expect("it does not panic"));
        assert_eq!(ordered.with_exit(|released| released.clone(), Vec::push), [0, 1, 2]);
    });
}

/// One thread replaces what is at the exit, as when sockets change, while two others finish what they have. The place of a
/// ticket is used again.
fn the_exit_is_used_between_two_items() {
    crate::check(|| {
        let ordered = Arc::new(Ordered::new(2, Vec::new()));
        let other = ordered.clone();
        let first = thread::spawn(move || other.finish(0, 0, Vec::push));
        let other = ordered.clone();
        let changer = thread::spawn(move || other.with_exit(|released| released.reserve(1), Vec::push));
        ordered.finish(1, 1, Vec::push);
        first.join().expect("it does not panic");
        changer.join().expect("it does not panic");
        let left_behind = |_: &mut Vec<u64>, _| panic!("something was left behind");
        assert_eq!(ordered.with_exit(|released| released.clone(), left_behind), [0, 1]);
        ordered.finish(2, 2, Vec::push);
        let mut all = Vec::new();
        ordered.with_exit(|released| all.clone_from(released), |_, _| panic!("something was left behind"));
        assert_eq!(all, [0, 1, 2]);
    });
}

/// A ticket is drawn once there is a place for it, and finished before the one ahead of it; meanwhile somebody else is
/// about to use the exit, who has looked at that place when it was another's.
fn a_place_is_used_again() {
    // Three threads, each of which has to be in the middle of something.
    crate::check_within(3, || {
        let (ordered, released) = (Arc::new(Ordered::new(2, Vec::new())), Arc::new(AtomicUsize::new(0)));
        let finish = {
            let (ordered, released) = (ordered.clone(), released.clone());
            move |ticket: u64| {
                ordered.finish(ticket, ticket, |out, item| {
                    out.push(item);
                    released.fetch_add(1, Ordering::AcqRel);
                });
            }
        };
        let (other, count) = (finish.clone(), released.clone());
        let worker = thread::spawn(move || {
            other(0);
            let has_place = count.load(Ordering::Acquire) > 0;
            if has_place {
                other(2);
            }
            has_place
        });
        let (other, count) = (ordered.clone(), released.clone());
        let changer = thread::spawn(move || {
            other.with_exit(
                |_| (),
                |out, item| {
                    out.push(item);
                    count.fetch_add(1, Ordering::AcqRel);
                },
            );
        });
        let early = finish.clone();
        let early = thread::spawn(move || early(1));
        early.join().expect("it does not panic");
        changer.join().expect("it does not panic");
        if !worker.join().expect("it does not panic") {
            finish(2);
        }
        assert_eq!(ordered.with_exit(|released| released.clone(), Vec::push), [0, 1, 2]);
    });
}

/// A batch of one train.
#[derive(Default)]
struct Batch {
    first: u64,
}

/// What the workers of the lane share.
struct Shared {
    /// The next ticket.
    entry: Mutex<u64>,
    pool: Pool<Batch>,
    keypair: Arc<Keypair>,
    ordered: Ordered<Lent<Batch>, Vec<u64>>,
}

impl Shared {
    /// A turn, as `Outbound::turn` takes it. False when somebody else was at the entry, or no batch was left.
    fn turn(&self, worker: usize) -> bool {
        let Some(mut entry) = try_lock(&self.entry) else { return false };
        let Some(mut batch) = self.pool.take(worker) else { return false };
        batch.first = self.keypair.number(2, Instant::default()).expect("there are some");
        let ticket = *entry;
        *entry += 1;
        drop(entry);
        self.finish(ticket, batch);
        true
    }

    fn finish(&self, ticket: u64, batch: Lent<Batch>) {
        self.ordered.finish(ticket, batch, |sent, batch| {
            sent.push(batch.first);
            self.pool.give_back(batch);
        });
    }
}

/// Two workers, of which one takes two turns, share two batches.
fn a_lane_sends_in_the_order_of_its_counters() {
    crate::check(|| {
        let shared = Arc::new(Shared {
            entry: Mutex::new(0),
            pool: Pool::new(2, 1, Batch::default),
            keypair: keypair(1),
            ordered: Ordered::new(2, Vec::new()),
        });
        let helper = {
            let shared = shared.clone();
            thread::spawn(move || usize::from(shared.turn(1)))
        };
        let mut turns = (0..2).filter(|_| shared.turn(0)).count();
        turns += helper.join().expect("it does not panic");
        let sent = shared.ordered.with_exit(|sent| sent.clone(), |_, _| panic!("something was left behind"));
        assert_eq!(sent, (0..2 * turns as u64).step_by(2).collect::<Vec<_>>());
        assert_eq!(*lock(&shared.entry), turns as u64);
        // All batches are back.
        assert!((0..2).map(|worker| shared.pool.take(worker)).collect::<Vec<_>>().iter().all(Option::is_some));
    });
}
