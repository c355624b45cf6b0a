//! The index table: whoever has an index finds whom it belongs to, also while the table grows; nobody finds another's; and a
//! counter is accepted once, whichever table it was looked up in.

use std::convert::Infallible;
use std::sync::Arc;

use loom::thread;
use rand_core::TryRng;

use super::counters::keypair;
use super::staged::peer;
use crate::device::lookup::{Entry, IndexTable};
use crate::device::peer::Peer;
use crate::proto::replay::ReplayWindow;
use crate::sync::lock;

pub(crate) const MODELS: &[crate::Model] = &[
    ("an_index_is_found_while_the_table_grows", an_index_is_found_while_the_table_grows),
    ("a_session_is_found_though_the_table_grew", a_session_is_found_though_the_table_grew),
    ("an_index_that_was_freed_is_nobody_elses", an_index_that_was_freed_is_nobody_elses),
    ("a_counter_is_accepted_once_while_the_table_grows", a_counter_is_accepted_once_while_the_table_grows),
];

/// Slots of an empty table.
const SLOTS: u32 = 64;

/// Gives these numbers, one after the other.
struct Given(u32);

impl TryRng for Given {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0 += 1;
        Ok(self.0 - 1)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("an index has 32 bits")
    }

    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Infallible> {
        unreachable!("an index has 32 bits")
    }
}

fn reserve(table: &IndexTable, peer: &Arc<Peer>, index: u32) -> u32 {
    table.reserve(peer, &mut Given(index)).expect("there is room")
}

/// A table that the next index makes grow. The first index is 0.
fn full() -> (Arc<IndexTable>, Arc<Peer>) {
    let (table, peer) = (Arc::new(IndexTable::new(1)), peer(Arc::default()));
    assert!((0..SLOTS / 2).all(|index| reserve(&table, &peer, index) == index));
    (table, peer)
}

fn an_index_is_found_while_the_table_grows() {
    crate::check(|| {
        let (table, peer) = full();
        let grower = {
            let table = table.clone();
            thread::spawn(move || reserve(&table, &peer, SLOTS + 7))
        };
        assert_eq!(table.get(0).map(|entry| entry.index()), Some(0));
        assert!(table.get(SLOTS).is_none(), "another index of the same slot");
        let new = grower.join().expect("it does not panic");
        assert_eq!(table.get(new).map(|entry| entry.index()), Some(new));
        assert_eq!(table.len(), SLOTS as usize / 2 + 1);
    });
}

/// The configuration reserves, the control thread promotes.
fn a_session_is_found_though_the_table_grew() {
    crate::check(|| {
        let (table, peer) = full();
        let grower = {
            let table = table.clone();
            thread::spawn(move || reserve(&table, &peer, SLOTS + 7))
        };
        table.promote(0, keypair(0));
        assert!(table.get(0).is_some_and(|entry| entry.session.is_some()));
        grower.join().expect("it does not panic");
        assert!(table.get(0).is_some_and(|entry| entry.session.is_some()));
    });
}

/// A worker has an index of a session that ends; its slot is given to another at once.
fn an_index_that_was_freed_is_nobody_elses() {
    crate::check(|| {
        let (table, owner) = (Arc::new(IndexTable::new(1)), peer(Arc::default()));
        reserve(&table, &owner, 3);
        let control = {
            let (table, other) = (table.clone(), peer(Arc::default()));
            thread::spawn(move || {
                table.release(3);
                reserve(&table, &other, SLOTS + 3);
            })
        };
        for _ in 0..2 {
            if let Some(entry) = table.get(3) {
                assert!(entry.index() == 3 && Arc::ptr_eq(&entry.peer, &owner));
            }
        }
        control.join().expect("it does not panic");
        assert!(table.get(3).is_none());
        assert_eq!(table.len(), 1);
    });
}

/// As `accept` does.
fn accept(entry: &Entry, counter: u64) -> bool {
    let session = entry.session.as_ref().expect("it was promoted");
    let mut window = lock(&session.window);
    window.mark(counter).is_ok()
}

/// Two workers have the same packet.
fn a_counter_is_accepted_once_while_the_table_grows() {
    crate::check(|| {
        let (table, peer) = full();
        table.promote(0, keypair(0));
        let grower = {
            let table = table.clone();
            thread::spawn(move || reserve(&table, &peer, SLOTS + 7))
        };
        let worker = |table: &IndexTable| table.get(0).is_some_and(|entry| accept(&entry, 5));
        let other = {
            let table = table.clone();
            thread::spawn(move || worker(&table))
        };
        let own = worker(&table);
        let other = other.join().expect("it does not panic");
        assert!(own != other, "accepted {} times", u32::from(own) + u32::from(other));
        grower.join().expect("it does not panic");
        assert!(!worker(&table));
    });
}
