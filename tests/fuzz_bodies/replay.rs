//! Fuzz body: the replay window against a plain set of every counter that was accepted.

use std::collections::BTreeSet;

use adit::proto::constants::{REJECT_AFTER_MESSAGES, REPLAY_WINDOW};
use adit::proto::rejected::Rejected;
use adit::proto::replay::ReplayWindow;

/// Three bytes a packet: how its counter lies to the newest one, and how far.
pub(crate) fn run(data: &[u8]) {
    let (mut window, mut seen) = (ReplayWindow::new(), BTreeSet::new());
    let mut newest = 0u64;
    for step in data.chunks_exact(3) {
        let offset = u64::from(u16::from_le_bytes([step[1], step[2]]));
        let counter = match step[0] & 7 {
            0 | 1 => newest.saturating_add(offset & 0x7f),
            2 => newest.saturating_add(offset),
            3 => newest.saturating_sub(offset & 0x7f),
            4 => newest.saturating_sub(offset),
            5 => newest.saturating_sub(REPLAY_WINDOW).saturating_add(offset & 3),
            6 => newest.saturating_add(offset << 48),
            _ => u64::MAX - offset,
        };
        let expected = if counter >= REJECT_AFTER_MESSAGES {
            Err(Rejected::MessageLimit)
        } else if seen.contains(&counter) || newest.saturating_sub(counter) > REPLAY_WINDOW {
            Err(Rejected::ReplayedCounter)
        } else {
            Ok(())
        };
        assert_eq!(window.mark(counter), expected, "counter {counter}, newest {newest}");
        if expected.is_ok() {
            seen.insert(counter);
            newest = newest.max(counter);
        }
    }
}
