//! Packets that wait for a session: one that was staged while a session came is sent on it, not left behind.

use std::sync::Arc;

use loom::thread;

use super::counters::keypair;
use crate::device::peer::{Peer, Waiting};
use crate::key::PublicKey;
use crate::proto::constants::STAGED_PACKETS_MAX;
use crate::proto::time::Instant;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{SegQueue, Waker};

pub(crate) const MODELS: &[crate::Model] = &[
    ("what_waits_goes_when_the_session_comes", what_waits_goes_when_the_session_comes),
    ("a_lane_that_stages_late_is_flushed", a_lane_that_stages_late_is_flushed),
    ("staged_bytes_add_up", staged_bytes_add_up),
];

pub(crate) fn peer(staged_bytes: Arc<AtomicU64>) -> Arc<Peer> {
    Arc::new(Peer::new(0, 0, PublicKey::from_bytes([1; 32]), staged_bytes))
}

/// Sends what waits in a lane, if it may; as `Reading::flush_staged`. Returns how many packets.
fn flush(peer: &Peer, lane: usize) -> usize {
    if peer.waiting(lane, Instant::default()) == Waiting::MayGo { peer.take_staged_in(lane).len() } else { 0 }
}

/// The control thread publishes a session and asks the first worker to flush, as `Shared::settle` does. Each of `stagers`
/// is another worker, by its lane, which has not seen the session yet, stages a packet and looks again.
fn session_while_staging(stagers: &'static [usize]) {
    crate::check(move || {
        let (peer, keypair) = (peer(Arc::default()), keypair(1));
        let (waker, flushes) = (Waker::new(), Arc::new(SegQueue::new()));
        let control = {
            let (peer, waker, flushes) = (peer.clone(), waker.clone(), flushes.clone());
            thread::spawn(move || {
                peer.sending.store(Some(keypair));
                if peer.want_flush() {
                    flushes.push(peer);
                    waker.wake().expect("it does not fail");
                }
            })
        };
        let sent = Arc::new(AtomicUsize::new(0));
        let stagers: Vec<_> = stagers
            .iter()
            .map(|&lane| {
                let (peer, sent) = (peer.clone(), sent.clone());
                thread::spawn(move || {
                    assert_eq!(peer.stage(lane, &[0; 20]), Some(0));
                    sent.fetch_add(flush(&peer, lane), Ordering::Relaxed);
                })
            })
            .collect();
        waker.sleep();
        while let Some(peer) = flushes.pop() {
            if peer.take_flush() {
                for lane in peer.lanes_waiting() {
                    sent.fetch_add(flush(&peer, lane), Ordering::Relaxed);
                }
            }
        }
        control.join().expect("it does not panic");
        let staged = stagers.len();
        stagers.into_iter().for_each(|stager| stager.join().expect("it does not panic"));
        assert_eq!(sent.load(Ordering::Relaxed), staged);
        assert!(!peer.has_staged());
    });
}

/// In the first worker's own lane, which another worker helps with.
fn what_waits_goes_when_the_session_comes() {
    session_while_staging(&[0]);
}

/// In two lanes at once, of which the first worker may see one, both or none when it looks.
fn a_lane_that_stages_late_is_flushed() {
    session_while_staging(&[0, 1]);
}

/// Two workers stage for two peers while what waits for one of them is taken: what is left counts, and nothing else.
fn staged_bytes_add_up() {
    crate::check(|| {
        let bytes = Arc::new(AtomicU64::new(0));
        let peers = [peer(bytes.clone()), peer(bytes.clone())];
        (0..STAGED_PACKETS_MAX).for_each(|_| assert_eq!(peers[0].stage(0, &[0; 10]), Some(0)));
        let stagers = [(0, 1), (1, 100)].map(|(number, len): (usize, usize)| {
            let peer = peers[number].clone();
            thread::spawn(move || peer.stage(number, &vec![0; len]).expect("it is a peer"))
        });
        let taken = peers[0].take_staged().len();
        let dropped: u64 = stagers.map(|stager| stager.join().expect("it does not panic")).iter().sum();
        let held = bytes.load(Ordering::Relaxed);
        let left = peers.each_ref().map(|peer| peer.take_staged());
        assert_eq!(
            taken + left.iter().map(|left| left.len()).sum::<usize>() + dropped as usize,
            STAGED_PACKETS_MAX + 2
        );
        assert_eq!(held, left.iter().flatten().map(|packet| packet.len() as u64).sum::<u64>());
        assert_eq!(bytes.load(Ordering::Relaxed), 0);
        assert!(!peers[0].has_staged() && !peers[1].has_staged());
    });
}
