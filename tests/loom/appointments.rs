//! Timers and appointments: a deadline that a worker arms is never later known to the control thread than it falls due.

use std::sync::Arc;

use loom::thread;

use super::staged::peer;
use crate::device::inbox::Inbox;
use crate::device::peer::{Peer, Wish};
use crate::device::signal::Signal;
use crate::proto::constants::KEEPALIVE_TIMEOUT;
use crate::proto::time::Instant;
use crate::proto::timers::{Expired, Timers};
use crate::sync::Waker;

pub(crate) const MODELS: &[crate::Model] = &[
    ("no_deadline_falls_before_the_appointment", no_deadline_falls_before_the_appointment),
    ("an_expiry_is_taken_once", an_expiry_is_taken_once),
];

/// A worker arms a timer, and tells as `Shared::schedule` does, while the control thread, whose appointment would do for
/// that, makes a later one. In the end the control thread knows of the timer.
fn no_deadline_falls_before_the_appointment() {
    crate::check(|| {
        let now = Instant::from_nanos(1);
        let peer = peer(Arc::default());
        let inbox = Arc::new(Inbox::new(Signal::new(Waker::new())));
        peer.timers.data_received(now);
        let earlier = peer.make_appointment().1;
        peer.timers.any_authenticated_packet_sent(now);
        peer.timers.session_derived(now);
        let now = now + KEEPALIVE_TIMEOUT;
        let worker = {
            let (peer, inbox) = (peer.clone(), inbox.clone());
            thread::spawn(move || {
                if peer.timers.data_received(now).is_some_and(|deadline| peer.is_before_appointment(deadline)) {
                    inbox.wish(&peer, Wish::TIMERS);
                }
            })
        };
        let mut appointment = peer.make_appointment().1;
        worker.join().expect("it does not panic");
        while let Some(peer) = inbox.pop() {
            assert!(peer.take_wishes().has(Wish::TIMERS));
            appointment = peer.make_appointment().1;
        }
        let earliest = (now + KEEPALIVE_TIMEOUT).as_nanos();
        assert_eq!(appointment, Some(earliest), "control sleeps for longer; before, it was {earlier:?}");
    });
}

/// What has expired is taken by one of two threads.
fn an_expiry_is_taken_once() {
    crate::check(|| {
        let timers = Arc::new(Timers::new());
        let then = Instant::from_nanos(1);
        let late = then + KEEPALIVE_TIMEOUT;
        timers.data_received(then);
        let other = {
            let timers = timers.clone();
            thread::spawn(move || timers.take_expired(late))
        };
        let own = timers.take_expired(late);
        let other = other.join().expect("it does not panic");
        let taken: Vec<Expired> = own.into_iter().chain(other).collect();
        assert_eq!(taken, [Expired::SendKeepalive]);
        assert_eq!(timers.next_deadline(), None);
    });
}
