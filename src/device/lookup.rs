//! Receiver index → handshake or session.
//!
//! An index is a random 32-bit number that we put into our handshake messages and that comes back
//! in every message to us (whitepaper §5.4). The table is an array, not a hash map: the low bits of
//! an index are its slot, and an index is drawn again until its slot is free. Growing doubles the
//! array; indices that differ in their low bits still do with one bit more, so no entry collides.
//!
//! - Reading takes no lock: a load of the array, a load of the slot, a comparison of the index.
//! - Indices are unique, and uniform over those whose slot is free. Where there are several lanes, all of a peer's
//!   choose the same one while that has slots: a session that follows another must not change the lane, because the
//!   system would move the flows in it to another queue. That takes up to four of the 32 random bits.
//! - At most half of the slots are used, so that a draw succeeds every second time at worst.

use std::sync::Arc;

use rand_core::Rng;

use super::peer::Peer;
use crate::proto::keypair::Keypair;
use crate::proto::replay::ReplayWindow;
use crate::sync::{ArcSwap, ArcSwapOption, Mutex, lock};

/// Slots at the start: enough for a handful of peers in 512 bytes.
const SLOTS_MIN: usize = 64;
/// Slots at the end: 2^20 peers of three keypairs and a handshake each fill half of them.
const SLOTS_MAX: usize = 1 << 23;

/// Draws for one lane before any other will do: a table that has room has some for it with near certainty.
const DRAWS_FOR_LANE: usize = 32;

/// Whom an index belongs to.
pub(crate) struct Entry {
    index: u32,
    /// The peer that was told this index.
    pub(crate) peer: Arc<Peer>,
    /// What the index receives for; `None` while it is a handshake's.
    pub(crate) session: Option<Session>,
}

impl Entry {
    /// The index.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}

/// The receiving half of a keypair, with what only the accept stage touches.
pub(crate) struct Session {
    /// Its keys.
    pub(crate) keypair: Arc<Keypair>,
    /// Counters seen. Locked once a train, by whoever accepts in order; never across the AEAD.
    pub(crate) window: Mutex<ReplayWindow>,
}

type Slots = Box<[ArcSwapOption<Entry>]>;

/// All indices of a device.
pub(crate) struct IndexTable {
    slots: ArcSwap<Slots>,
    /// How many slots are used; held while any slot is written.
    used: Mutex<usize>,
    /// How many lanes an index can choose, by its low byte.
    lanes: usize,
}

impl IndexTable {
    /// An empty table for a device of so many lanes.
    pub(crate) fn new(lanes: usize) -> Self {
        Self { slots: ArcSwap::from_pointee(empty(SLOTS_MIN)), used: Mutex::new(0), lanes }
    }

    /// Whom this index belongs to.
    pub(crate) fn get(&self, index: u32) -> Option<Arc<Entry>> {
        let slots = self.slots.load();
        let entry = slots[slot(&slots, index)].load();
        entry.as_ref().filter(|entry| entry.index == index).cloned()
    }

    /// A new index for a handshake with `peer`; `None` when the table is full.
    pub(crate) fn reserve(&self, peer: &Arc<Peer>, rng: &mut impl Rng) -> Option<u32> {
        let mut used = lock(&self.used);
        let mut slots = self.slots.load_full();
        if (*used + 1) * 2 > slots.len() {
            if slots.len() == SLOTS_MAX {
                return None;
            }
            slots = Arc::new(doubled(&slots));
            self.slots.store(slots.clone());
        }
        let mut draws = (0..).map(|draw| {
            let index = rng.next_u32();
            if draw < DRAWS_FOR_LANE { self.in_lane(index, peer.slot) } else { index }
        });
        let index = draws.find(|&index| slots[slot(&slots, index)].load().is_none())?;
        slots[slot(&slots, index)].store(Some(Arc::new(Entry { index, peer: peer.clone(), session: None })));
        *used += 1;
        Some(index)
    }

    /// `index`, its low byte changed so that it chooses the lane of the peer in that slot. The lane is the byte's
    /// remainder, see [`crate::udp::UdpSocket::receivers`].
    fn in_lane(&self, index: u32, slot: u32) -> u32 {
        let [low, rest @ ..] = index.to_le_bytes();
        let (low, lane) = (usize::from(low), slot as usize % self.lanes);
        let first = low - low % self.lanes + lane;
        let chosen = if first > usize::from(u8::MAX) { first - self.lanes } else { first };
        u32::from_le_bytes([chosen as u8, rest[0], rest[1], rest[2]])
    }

    /// The handshake that reserved `index` has derived `keypair`: the index is the session's now.
    pub(crate) fn promote(&self, index: u32, keypair: Arc<Keypair>) {
        let _writing = lock(&self.used);
        let slots = self.slots.load();
        let place = &slots[slot(&slots, index)];
        if let Some(entry) = place.load_full().filter(|entry| entry.index == index) {
            let session = Some(Session { keypair, window: Mutex::new(ReplayWindow::default()) });
            place.store(Some(Arc::new(Entry { index, peer: entry.peer.clone(), session })));
        }
    }

    /// Frees an index. One that is not there is passed over.
    pub(crate) fn release(&self, index: u32) {
        let mut used = lock(&self.used);
        let slots = self.slots.load();
        let place = &slots[slot(&slots, index)];
        if place.load().as_ref().is_some_and(|entry| entry.index == index) {
            place.store(None);
            *used -= 1;
        }
    }

    /// How many indices are in use.
    pub(crate) fn len(&self) -> usize {
        *lock(&self.used)
    }
}

fn empty(len: usize) -> Slots {
    (0..len).map(|_| ArcSwapOption::empty()).collect()
}

fn slot(slots: &[ArcSwapOption<Entry>], index: u32) -> usize {
    index as usize & (slots.len() - 1)
}

fn doubled(slots: &Slots) -> Slots {
    let wider = empty(slots.len() * 2);
    for entry in slots.iter().filter_map(ArcSwapOption::load_full) {
        wider[slot(&wider, entry.index)].store(Some(entry));
    }
    wider
}

#[cfg(test)]
mod tests {
    use super::*;
    use getrandom::SysRng;
    use rand_core::UnwrapErr;

    fn peer(slot: u32) -> Arc<Peer> {
        Arc::new(Peer::new(slot, 0, crate::key::PublicKey::from_bytes([1; 32]), Arc::default()))
    }

    /// [WP 5.4] Unique, found while reserved, gone when released, also across growth.
    #[test]
    fn s_24_indices_are_unique_found_and_freed() {
        let table = IndexTable::new(1);
        let peer = peer(0);
        let mut rng = UnwrapErr(SysRng);
        let indices: std::collections::BTreeSet<u32> =
            (0..5000).map(|_| table.reserve(&peer, &mut rng).unwrap()).collect();
        assert_eq!((indices.len(), table.len()), (5000, 5000));
        for &index in &indices {
            assert_eq!(table.get(index).unwrap().index(), index);
        }
        // The same slot, another index.
        let near = *indices.iter().next().unwrap() ^ 0x8000_0000;
        assert!(table.get(near).is_none());
        table.release(near);
        assert_eq!(table.len(), 5000);
        for &index in &indices {
            table.release(index);
            table.release(index);
            assert!(table.get(index).is_none());
        }
        assert_eq!(table.len(), 0);
        assert_eq!(Arc::strong_count(&peer), 1, "an index that was freed holds no peer");
    }

    /// However many there are: a peer whose lane has no free slot gets another.
    #[test]
    fn a_peers_indices_choose_one_lane() {
        for lanes in [2, 3, 16] {
            let table = IndexTable::new(lanes);
            let mut rng = UnwrapErr(SysRng);
            for slot in 0..100 {
                let peer = peer(slot);
                let lane = |index: u32| (index & 0xff) as usize % lanes;
                let all = (0..4).map(|_| table.reserve(&peer, &mut rng).unwrap());
                assert!(all.filter(|&index| lane(index) == slot as usize % lanes).count() >= 3, "{lanes} lanes");
            }
        }
        let (table, peer) = (IndexTable::new(16), peer(5));
        let indices = (0..SLOTS_MIN / 2).map(|_| table.reserve(&peer, &mut UnwrapErr(SysRng)).unwrap());
        assert_eq!(indices.collect::<std::collections::BTreeSet<_>>().len(), SLOTS_MIN / 2);
    }

    /// [WP 5.4] Uniform over all 32 bits: each is set in about half of them.
    #[test]
    fn s_24_indices_are_random_in_every_bit() {
        let table = IndexTable::new(1);
        let peer = peer(0);
        let mut rng = UnwrapErr(SysRng);
        let indices: Vec<u32> = (0..4096).map(|_| table.reserve(&peer, &mut rng).unwrap()).collect();
        for bit in 0..32 {
            let set = indices.iter().filter(|&&index| index >> bit & 1 == 1).count();
            assert!((1700..2400).contains(&set), "bit {bit} is set in {set} of 4096");
        }
    }
}
