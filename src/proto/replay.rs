//! The replay window of one keypair's received counters [RFC 6479].
//!
//! A ring of 64-bit words holds one bit for each counter. A newer counter clears the words that it
//! skips and moves the window; nothing is ever shifted. One word is always being reused, so that of
//! 8192 bits the last 8128 counters behind the newest can be told apart.
//!
//! It belongs to the in-order accept stage, not to the keypair: opening is parallel and pure, and
//! only a packet whose tag was verified may touch the window.
//!
//! Invariants:
//! - a counter is accepted at most once;
//! - a refused packet changes nothing;
//! - nothing at or beyond REJECT_AFTER_MESSAGES is accepted, so the newest counter never wraps.

use alloc::boxed::Box;

use super::constants::{REJECT_AFTER_MESSAGES, REPLAY_BITS, REPLAY_WINDOW};
use super::crypto::Opening;
use super::rejected::Rejected;
use super::tunnel::Authenticated;

/// Bits in a word of the bitmap.
const WORD_BITS: u64 = u64::BITS as u64;
/// Words in the bitmap.
const WORDS: u64 = REPLAY_BITS as u64 / WORD_BITS;

const _: () = assert!(WORDS * WORD_BITS == REPLAY_BITS as u64);

/// Which counters of one keypair were received: the newest, and a bit for each of those behind it.
#[derive(Debug)]
pub struct ReplayWindow {
    /// The greatest counter accepted; 0 before the first too, which its bit tells apart.
    newest: u64,
    /// Bit `counter % 64` of word `counter / 64 % WORDS`. Boxed: 1 KiB, and entries get moved.
    bitmap: Box<[u64; WORDS as usize]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplayWindow {
    /// A window that has accepted nothing.
    pub fn new() -> Self {
        Self { newest: 0, bitmap: Box::new([0; WORDS as usize]) }
    }

    /// Accepts a packet that was opened: what makes it known that the peer itself has just sent it.
    ///
    /// # Errors
    /// - [`Rejected::BadTag`] where it could not be opened;
    /// - [`Rejected::MessageLimit`] at or beyond REJECT_AFTER_MESSAGES [WP 6.2];
    /// - [`Rejected::ReplayedCounter`] for one that was seen, or lies more than 8128 behind the newest.
    pub fn accept(&mut self, opening: &Opening) -> Result<Authenticated, Rejected> {
        if !opening.ok {
            return Err(Rejected::BadTag);
        }
        self.mark(opening.counter)?;
        Ok(Authenticated::proof())
    }

    /// Marks a counter as seen, which proves nothing: for a packet, call [`accept`](Self::accept).
    ///
    /// # Errors
    /// [`Rejected::MessageLimit`] and [`Rejected::ReplayedCounter`], as `accept`.
    pub fn mark(&mut self, counter: u64) -> Result<(), Rejected> {
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(Rejected::MessageLimit);
        }
        let word = counter / WORD_BITS;
        match self.newest.checked_sub(counter) {
            Some(behind) if behind > REPLAY_WINDOW => return Err(Rejected::ReplayedCounter),
            Some(_) => {}
            None => {
                let newest_word = self.newest / WORD_BITS;
                for skipped in 1..=(word - newest_word).min(WORDS) {
                    self.bitmap[((newest_word + skipped) % WORDS) as usize] = 0;
                }
                self.newest = counter;
            }
        }
        let bit = 1 << (counter % WORD_BITS);
        let slot = &mut self.bitmap[(word % WORDS) as usize];
        if *slot & bit != 0 {
            return Err(Rejected::ReplayedCounter);
        }
        *slot |= bit;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const SEEN: Result<(), Rejected> = Err(Rejected::ReplayedCounter);
    const LIMIT: Result<(), Rejected> = Err(Rejected::MessageLimit);

    fn check(steps: &[(u64, Result<(), Rejected>)]) {
        let mut window = ReplayWindow::new();
        for (number, &(counter, expected)) in steps.iter().enumerate() {
            assert_eq!(window.mark(counter), expected, "step {number}: counter {counter}");
        }
    }

    /// [RFC 6479] [WP 5.4.6] The edges of the window, step by step.
    #[test]
    fn s_20_edges() {
        let w = REPLAY_WINDOW;
        check(&[(0, Ok(())), (0, SEEN), (1, Ok(())), (1, SEEN), (9, Ok(())), (8, Ok(())), (7, Ok(())), (7, SEEN)]);
        // The oldest that is still told apart lies exactly the window behind the newest.
        check(&[(w, Ok(())), (0, Ok(())), (0, SEEN), (w, SEEN)]);
        check(&[(w + 1, Ok(())), (0, SEEN), (1, Ok(())), (1, SEEN)]);
        check(&[(5, Ok(())), (w + 5, Ok(())), (5, SEEN), (6, Ok(())), (4, SEEN), (w + 6, Ok(())), (5, SEEN)]);
        // A first counter other than 0 leaves the ones below it acceptable.
        check(&[(3, Ok(())), (2, Ok(())), (1, Ok(())), (0, Ok(())), (3, SEEN), (0, SEEN)]);
        // One whole turn of the ring and more.
        check(&[(0, Ok(())), (8192, Ok(())), (8192, SEEN), (0, SEEN), (64, Ok(())), (63, SEEN)]);
        check(&[(10, Ok(())), (10 + 8192, Ok(())), (10 + 2 * 8192, Ok(())), (10 + 8192, SEEN), (10 + 8193, SEEN)]);
    }

    /// [WP 6.2] Neither the last counters nor a long jump wrap anything.
    #[test]
    fn s_20_limits() {
        let limit = REJECT_AFTER_MESSAGES;
        check(&[(limit, LIMIT), (u64::MAX, LIMIT), (limit - 1, Ok(())), (limit - 1, SEEN), (limit, LIMIT), (0, SEEN)]);
        check(&[(1, Ok(())), (1 << 63, Ok(())), (1, SEEN), ((1 << 63) - 1, Ok(())), (1 << 63, SEEN)]);
        check(&[(1 << 63, Ok(())), ((1 << 63) - REPLAY_WINDOW, Ok(())), ((1 << 63) - REPLAY_WINDOW - 1, SEEN)]);
    }

    /// A packet whose tag is wrong leaves no trace, so that the true one is still accepted.
    #[test]
    fn s_23_only_an_opened_packet_is_marked() {
        let mut window = ReplayWindow::new();
        let forged = Opening { counter: 1 << 40, ok: false, ..Opening::default() };
        assert_eq!(window.accept(&forged), Err(Rejected::BadTag));
        for counter in [0, 1 << 40] {
            assert!(window.accept(&Opening { counter, ok: true, ..forged }).is_ok());
            let replayed = window.accept(&Opening { counter, ok: true, ..forged });
            assert_eq!(replayed, Err(Rejected::ReplayedCounter));
        }
    }

    #[test]
    fn descending_and_ascending_fill_the_window_once() {
        let mut window = ReplayWindow::new();
        window.mark(REPLAY_WINDOW).unwrap();
        for counter in (0..REPLAY_WINDOW).rev() {
            assert_eq!(window.mark(counter), Ok(()), "{counter}");
        }
        for counter in 0..=REPLAY_WINDOW {
            assert_eq!(window.mark(counter), SEEN, "{counter}");
        }
    }

    proptest! {
        /// Against a plain set of everything that was accepted.
        #[test]
        fn s_20_agrees_with_a_set(steps in proptest::collection::vec((0u8..9, 0u64..20_000), 1..400)) {
            let mut window = ReplayWindow::new();
            let mut seen: BTreeSet<u64> = BTreeSet::new();
            let mut base = 0u64;
            for (kind, offset) in steps {
                let counter = match kind {
                    0 => base.saturating_add(offset),
                    1 => base.saturating_add(offset << 40),
                    2 => base.saturating_sub(offset),
                    3 => base.saturating_sub(offset % 70),
                    4 => base.saturating_add(offset % 70),
                    5 => u64::MAX - offset,
                    6 => base.saturating_sub(REPLAY_WINDOW - 1 + offset % 3),
                    _ => base.saturating_add(offset % 3),
                };
                let expected = if counter >= REJECT_AFTER_MESSAGES {
                    LIMIT
                } else if seen.contains(&counter) || seen.last().is_some_and(|newest| newest.saturating_sub(counter) > REPLAY_WINDOW) {
                    SEEN
                } else {
                    Ok(())
                };
                prop_assert_eq!(window.mark(counter), expected, "counter {}", counter);
                if expected.is_ok() {
                    seen.insert(counter);
                    if kind != 5 {
                        base = base.max(counter);
                    }
                }
            }
            let accepted: Vec<u64> = seen.into_iter().collect();
            for counter in accepted {
                prop_assert_eq!(window.mark(counter), SEEN);
            }
        }
    }
}
