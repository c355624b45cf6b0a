//! Waking and sleeping: nothing that was left for a thread lies there while it sleeps for ever.

use std::sync::Arc;

use loom::thread;

use super::staged::peer;
use crate::device::inbox::Inbox;
use crate::device::peer::Wish;
use crate::device::signal::Signal;
use crate::sync::Waker;
use crate::sync::atomic::{AtomicBool, Ordering};

pub(crate) const MODELS: &[crate::Model] = &[
    ("what_was_done_before_a_wake_is_seen", what_was_done_before_a_wake_is_seen),
    ("every_wish_is_seen", every_wish_is_seen),
    ("work_is_left_for_nobody_who_sleeps", work_is_left_for_nobody_who_sleeps),
];

/// Two threads do something each, and wake a third, which looks, sleeps, and looks again. Flags as `closing` or the epoch
/// of the sockets, which have no lock: it sleeps for ever if it missed one.
fn what_was_done_before_a_wake_is_seen() {
    crate::check(|| {
        let waker = Waker::new();
        let signal = Arc::new(Signal::new(waker.clone()));
        let done = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        for number in 0..2 {
            let (signal, done) = (signal.clone(), done.clone());
            thread::spawn(move || {
                done[number].store(true, Ordering::Release);
                signal.wake();
            });
        }
        loop {
            signal.acknowledge();
            if done.iter().all(|it| it.load(Ordering::Acquire)) {
                return;
            }
            waker.sleep();
        }
    });
}

/// Two workers wish for something of one peer, while the control thread looks and sleeps.
fn every_wish_is_seen() {
    crate::check(|| {
        let waker = Waker::new();
        let (peer, inbox) = (peer(Arc::default()), Arc::new(Inbox::new(Signal::new(waker.clone()))));
        let wishes = [Wish::TIMERS, Wish::HANDSHAKE];
        for wish in wishes {
            let (peer, inbox) = (peer.clone(), inbox.clone());
            thread::spawn(move || inbox.wish(&peer, wish));
        }
        let mut missing = Vec::from(wishes);
        loop {
            inbox.signal.acknowledge();
            while let Some(peer) = inbox.pop() {
                let granted = peer.take_wishes();
                missing.retain(|&wish| !granted.has(wish));
            }
            if missing.is_empty() {
                return;
            }
            waker.sleep();
        }
    });
}

/// A helper has taken a part of what a lane's queue holds, and looks whether the lane's worker has to be woken for the rest.
fn work_is_left_for_nobody_who_sleeps() {
    crate::check(|| {
        let waker = Waker::new();
        let signal = Arc::new(Signal::new(waker.clone()));
        let ready = Arc::new(AtomicBool::new(false));
        let helper = {
            let (signal, ready) = (signal.clone(), ready.clone());
            thread::spawn(move || {
                ready.store(true, Ordering::Release);
                if signal.is_asleep() {
                    signal.wake();
                }
            })
        };
        loop {
            signal.acknowledge();
            if ready.load(Ordering::Acquire) {
                break;
            }
            if signal.may_sleep(|| ready.load(Ordering::Acquire)) {
                waker.sleep();
            }
            signal.awake();
        }
        helper.join().expect("it does not panic");
    });
}
