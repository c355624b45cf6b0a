//! Drops handshake messages with a wrong mac1 in the kernel, before they take room in a socket or wake anybody.
//!
//! mac1 is there to be checked before anything else [WP 5.3], and checking it is cheaper than receiving a datagram: so a
//! [program](program) does it on each socket, and a flood of strangers who do not know the public key costs the tunnel
//! little more than one that hits a closed port. What it drops is what the device would drop, and nothing else; what it
//! lets through, the device checks again. It may be missing: then everything gets through.
//!
//! The key is in memory that is shared with the program. A message that is looked at in the very microsecond of a change of
//! it may be dropped wrongly; its sender repeats it.

mod blake2s;
mod program;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::sys::bpf::{SharedWords, SocketFilter};
use blake2s::{KEY_LEN, MAC_LEN};
use program::{ACTIVE_AT, DROPPED_AT, INITIATION_LEN, MACS_LEN, RESPONSE_LEN, SHARED_LEN, STATE_AT, UDP_HEADER_LEN};

/// Bytes of a word of the shared memory.
const WORD_LEN: usize = 8;

/// Bytes of a link's header, which a program that is tried out is given, too.
const LINK_HEADER_LEN: usize = 14;

/// A filter for the sockets of one device.
#[derive(Debug)]
pub(super) struct Mac1Filter {
    shared: SharedWords,
    program: SocketFilter,
}

impl Mac1Filter {
    /// Loads the program, and tries it out.
    ///
    /// # Errors
    /// What bpf(2) says: EPERM without CAP_BPF, ENOSYS or EINVAL where the kernel has no such programs (before 5.5).
    /// `Unsupported` where the kernel would interpret the program, which takes longer than receiving the datagram, and on
    /// big-endian machines. An error of its own if the program does not do what it should.
    pub(super) fn load() -> io::Result<Self> {
        if cfg!(target_endian = "big") {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "there is no program for big-endian machines"));
        }
        let shared = SharedWords::new(SHARED_LEN / WORD_LEN)?;
        let program = SocketFilter::load(&program::program(shared.number()))?;
        if !program.is_compiled()? {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel does not compile programs"));
        }
        let filter = Self { shared, program };
        filter.try_out()?;
        Ok(filter)
    }

    /// Has it decide over what `socket` gets.
    pub(super) fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.program.attach(socket)
    }

    /// Lets through what has a mac1 by this key; everything, without one.
    pub(super) fn expect_mac1(&self, mac1_key: Option<&[u8; KEY_LEN]>) {
        let active = self.word(ACTIVE_AT);
        active.store(0, Ordering::Relaxed);
        // Nothing of the new key is there while the old one counts, and all of it when the new one does.
        fence(Ordering::Release);
        if let Some(key) = mac1_key {
            let state = blake2s::keyed(key);
            for (index, pair) in state.as_chunks::<2>().0.iter().enumerate() {
                let word = u64::from(pair[1]) << 32 | u64::from(pair[0]);
                self.word(STATE_AT + index * WORD_LEN).store(word, Ordering::Relaxed);
            }
            active.store(1, Ordering::Release);
        }
    }

    /// How many messages it has dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.word(DROPPED_AT).load(Ordering::Relaxed)
    }

    /// What it would do about a datagram with this payload.
    fn lets_through(&self, payload: &[u8]) -> io::Result<bool> {
        let mut packet = vec![0; LINK_HEADER_LEN + UDP_HEADER_LEN];
        packet.extend_from_slice(payload);
        self.program.run(&packet).map(|bytes| bytes != 0)
    }

    /// Sees for itself that right messages are let through and wrong ones are not: what the kernel makes of a program is
    /// not taken on trust where true handshakes would be lost.
    fn try_out(&self) -> io::Result<()> {
        let key = [0x5a; KEY_LEN];
        self.expect_mac1(Some(&key));
        for (kind, len) in [(1, INITIATION_LEN), (2, RESPONSE_LEN)] {
            let mut message = vec![kind; len];
            message[1..4].fill(0);
            let (covered, macs) = message.split_at_mut(len - MACS_LEN);
            macs[..MAC_LEN].copy_from_slice(&blake2s::mac(&key, covered));
            let right = self.lets_through(&message)?;
            message[len - MACS_LEN - 1] ^= 1;
            if !right || self.lets_through(&message)? {
                return Err(io::Error::other("the kernel does not do what the program says"));
            }
        }
        self.expect_mac1(None);
        self.word(DROPPED_AT).store(0, Ordering::Relaxed);
        Ok(())
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        &self.shared.words()[at / WORD_LEN]
    }
}

#[cfg(test)]
mod tests;
