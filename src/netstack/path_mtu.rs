//! How long packets to a destination may be, as routers behind the tunnel say (RFC 1191, RFC 8201).
//!
//! Only what quotes a packet that was really sent is believed, which whoever calls has checked. It is forgotten after a
//! while, since paths grow again and nobody says so.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::config::MTU_FEWEST_IPV6;

/// How long it is believed: RFC 8201 §4 and Linux' `mtu_expires`.
const EXPIRY: Duration = Duration::from_secs(600);

/// Destinations that are remembered; the oldest goes first.
const PATHS_MAX: usize = 1024;

/// Least MTU that is believed over IPv4: Linux' `min_pmtu`. No real link has less, and what claims to would have
/// everything cut to pieces.
const MTU_FEWEST_V4: usize = 552;

/// Destinations that packets of the interface's MTU do not reach.
#[derive(Default)]
pub(super) struct Paths {
    mtus: HashMap<IpAddr, (usize, Instant)>,
    /// In the order in which they were learnt.
    order: VecDeque<(Instant, IpAddr)>,
}

/// What a message that says `claimed` is good for; `None` when it is not to be believed.
pub(super) fn believable(destination: IpAddr, claimed: usize) -> Option<usize> {
    match destination {
        IpAddr::V4(_) => Some(claimed.max(MTU_FEWEST_V4)),
        // What claims less than each link must carry is not believed at all (RFC 8201 §4).
        IpAddr::V6(_) => (claimed >= MTU_FEWEST_IPV6).then_some(claimed),
    }
}

impl Paths {
    /// The MTU towards `destination`, if it is less than the interface's.
    pub(super) fn get(&mut self, destination: IpAddr, now: Instant) -> Option<usize> {
        while self.order.front().is_some_and(|(learnt, _)| *learnt + EXPIRY <= now) {
            self.remove_first();
        }
        self.mtus.get(&destination).map(|(mtu, _)| *mtu)
    }

    /// Remembers it.
    pub(super) fn learn(&mut self, destination: IpAddr, mtu: usize, now: Instant) {
        if self.order.len() >= PATHS_MAX {
            self.remove_first();
        }
        self.mtus.insert(destination, (mtu, now));
        self.order.push_back((now, destination));
    }

    fn remove_first(&mut self) {
        if let Some((learnt, destination)) = self.order.pop_front()
            && self.mtus.get(&destination).is_some_and(|(_, at)| *at == learnt)
        {
            self.mtus.remove(&destination);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_remembered_for_a_time_and_up_to_a_number() {
        let address = |number: usize| IpAddr::from((number as u32).to_be_bytes());
        let (mut paths, start) = (Paths::default(), Instant::now());
        paths.learn(address(1), 1300, start);
        paths.learn(address(1), 1280, start + EXPIRY / 2);
        assert_eq!(paths.get(address(1), start + EXPIRY), Some(1280));
        assert_eq!(paths.get(address(1), start + EXPIRY * 2), None);
        for number in 0..PATHS_MAX + 5 {
            paths.learn(address(number), 1300, start + EXPIRY * 2);
        }
        assert_eq!((paths.mtus.len(), paths.order.len()), (PATHS_MAX, PATHS_MAX));
        assert_eq!(believable(address(1), 0), Some(MTU_FEWEST_V4));
        assert_eq!(believable([0; 16].into(), 1279), None);
    }
}
