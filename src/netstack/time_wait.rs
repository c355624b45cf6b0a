//! Connections that this side closed first, kept for a while (RFC 9293 §3.6.1): a repeated FIN is still acknowledged, and
//! their ports are not used again for what old segments could be taken for.
//!
//! By then the one answer that can be needed is known, the last acknowledgement that was sent. It is kept instead of the
//! connection: some 200 bytes, not its buffers.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::flow::FlowKey;

/// How long: Linux' `TCP_TIMEWAIT_LEN`.
const TIME_WAIT: Duration = Duration::from_secs(60);

/// How many; the oldest goes first. As many as there are ports to connect from: beyond it one peer could be out of them.
const TIME_WAITS_MAX: usize = 28_232;

/// The connections that are in TIME-WAIT.
#[derive(Default)]
pub(super) struct TimeWaits {
    /// What answers a repeated FIN.
    answers: HashMap<FlowKey, (Instant, Box<[u8]>)>,
    /// In the order in which they began.
    order: VecDeque<(Instant, FlowKey)>,
}

impl TimeWaits {
    /// Adds a connection whose last acknowledgement was `answer`.
    pub(super) fn insert(&mut self, key: FlowKey, answer: Box<[u8]>, now: Instant) {
        self.expire(now);
        if self.order.len() >= TIME_WAITS_MAX {
            self.remove_first();
        }
        self.answers.insert(key, (now, answer));
        self.order.push_back((now, key));
    }

    fn remove_first(&mut self) {
        if let Some((begun, key)) = self.order.pop_front()
            && self.answers.get(&key).is_some_and(|(at, _)| *at == begun)
        {
            self.answers.remove(&key);
        }
    }

    /// Whether such a connection is kept.
    pub(super) fn contains(&mut self, key: &FlowKey, now: Instant) -> bool {
        self.expire(now);
        self.answers.contains_key(key)
    }

    /// The answer to a segment of a connection that is kept; `None` when none is.
    pub(super) fn answer(&mut self, key: &FlowKey, now: Instant) -> Option<Box<[u8]>> {
        self.expire(now);
        self.answers.get(key).map(|(_, answer)| answer.clone())
    }

    /// Lets go of a connection: its ports are used again by a peer that may do so.
    pub(super) fn remove(&mut self, key: &FlowKey) {
        self.answers.remove(key);
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(begun, _)| *begun + TIME_WAIT <= now) {
            self.remove_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn key(number: usize) -> FlowKey {
        let address = |port| SocketAddr::from((Ipv4Addr::new(10, 0, 0, (number >> 16) as u8), port));
        FlowKey { local: address(number as u16), remote: address(80) }
    }

    #[test]
    fn connections_are_kept_for_a_time_and_up_to_a_number() {
        let mut kept = TimeWaits::default();
        let start = Instant::now();
        kept.insert(key(1), Box::new([1]), start);
        assert_eq!(kept.answer(&key(1), start), Some(Box::from([1])));
        assert_eq!(kept.answer(&key(2), start), None);
        // Used again at once, and closed again later: the first end of the time does not count.
        kept.remove(&key(1));
        assert!(!kept.contains(&key(1), start));
        kept.insert(key(1), Box::new([2]), start + TIME_WAIT / 2);
        assert!(kept.contains(&key(1), start + TIME_WAIT));
        assert!(!kept.contains(&key(1), start + TIME_WAIT * 2));
        assert_eq!(kept.len(), 0);

        for number in 0..TIME_WAITS_MAX + 10 {
            kept.insert(key(number), Box::default(), start + TIME_WAIT * 2);
        }
        assert_eq!((kept.len(), kept.order.len()), (TIME_WAITS_MAX, TIME_WAITS_MAX));
        assert!(!kept.contains(&key(9), start + TIME_WAIT * 2));
        assert!(kept.contains(&key(10), start + TIME_WAIT * 2));
    }
}
