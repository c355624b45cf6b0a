//! Which of several receivers a message goes to: by the receiver index in it, so that one session has one receiver.
//!
//! The receiver index is ours, and random: the low byte of it (the first on the wire), modulo the number of receivers,
//! is the receiver's place. What has no receiver index (an initiation), is too short to have a whole one, or is no
//! message at all goes to the first receiver. The rule is here twice: as a function, and as a program of classic BPF
//! that the kernel runs on the payload of a datagram.
//!
//! What the kernel coalesced goes where its first datagram belongs, so around a new handshake the last messages of the
//! old session, or the first of the new one, may come to the other's receiver.

use crate::sys::socket::Instruction;

/// Most receivers of one port. Each is two sockets with a buffer of their own, and no machine has a use for more than
/// one on each core; at 64 the 256 values of a byte are still spread evenly.
pub(super) const RECEIVERS_MAX: usize = 64;

/// Bytes 0 to 3 of the messages that have a receiver index, read in network order: type and three zeros. [WP 5.4]
const RESPONSE: u32 = 0x0200_0000;
const COOKIE_REPLY: u32 = 0x0300_0000;
const TRANSPORT_DATA: u32 = 0x0400_0000;

/// Where the receiver index begins in a response, after the sender's. [WP 5.4.3]
const RESPONSE_INDEX_AT: u32 = 8;

/// Where the receiver index begins in the others. [WP 5.4.6] [WP 5.4.7]
const INDEX_AT: u32 = 4;

/// The place of the receiver that `message` goes to, of so many.
pub(super) fn place_of(message: &[u8], receivers: usize) -> usize {
    let word = |at: u32| message.get(at as usize..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let index = match word(0) {
        Some(RESPONSE) => word(RESPONSE_INDEX_AT),
        Some(COOKIE_REPLY | TRANSPORT_DATA) => word(INDEX_AT),
        _ => None,
    };
    // The index is little-endian: what was read first is its low byte.
    index.map_or(0, |index| (index >> 24) as usize % receivers)
}

/// The same as a program. A load from beyond the end ends it with 0.
pub(super) fn program(receivers: u32) -> [Instruction; 11] {
    let load = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let equal = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    let jump = (libc::BPF_JMP | libc::BPF_JA) as u16;
    let shift_right = (libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K) as u16;
    let modulo = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
    let give = (libc::BPF_RET | libc::BPF_K) as u16;
    let give_result = (libc::BPF_RET | BPF_A) as u16;
    [
        (load, 0, 0, 0),
        (equal, 5, 0, TRANSPORT_DATA),
        (equal, 4, 0, COOKIE_REPLY),
        (equal, 1, 0, RESPONSE),
        (give, 0, 0, 0),
        (load, 0, 0, RESPONSE_INDEX_AT),
        (jump, 0, 0, 1),
        (load, 0, 0, INDEX_AT),
        (shift_right, 0, 0, 24),
        (modulo, 0, 0, receivers),
        (give_result, 0, 0, 0),
    ]
    .map(|(code, jt, jf, k)| Instruction { code, jt, jf, k })
}

/// Return the accumulator (linux/filter.h).
const BPF_A: u32 = 0x10;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message of `len` bytes, and the place that it belongs to out of `receivers`.
    #[derive(Debug)]
    pub(crate) struct Row {
        pub(crate) message: Vec<u8>,
        pub(crate) place: usize,
    }

    /// Every type and every low byte, and what is none.
    pub(crate) fn rows(receivers: usize) -> Vec<Row> {
        let message = |kind: u8, len: usize, at: usize, low: u8| {
            let mut message = vec![0xee; len];
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            message[at..at + 4].copy_from_slice(&[low, 0x77, 0x88, 0x99]);
            message
        };
        let mut rows = Vec::new();
        for low in 0..=255 {
            let place = usize::from(low) % receivers;
            for (kind, len, at) in [(2, 92, 8), (3, 64, 4), (4, 32, 4), (4, 1452, 4), (2, 12, 8), (4, 8, 4)] {
                rows.push(Row { message: message(kind, len, at, low), place });
            }
        }
        let mut first = |message: Vec<u8>| rows.push(Row { message, place: 0 });
        first(message(1, 148, 4, 0x03));
        first(message(1, 148, 8, 0x03));
        // Too short for a whole index.
        first(message(2, 12, 8, 0x03)[..11].to_vec());
        first(message(3, 8, 4, 0x03)[..7].to_vec());
        first(message(4, 8, 4, 0x03)[..5].to_vec());
        // No type of ours, and bytes that must be zero.
        for kind in [0, 5, 6, 0x84, 0xff] {
            first(message(kind, 148, 4, 0x03));
        }
        for at in 1..4 {
            let mut reserved = message(4, 64, 4, 0x03);
            reserved[at] = 1;
            first(reserved);
        }
        for len in 1..4 {
            first(vec![4; len]);
        }
        rows
    }

    #[test]
    fn a_message_goes_by_its_receiver_index() {
        for receivers in [1, 2, 3, 7, RECEIVERS_MAX] {
            for row in rows(receivers) {
                assert_eq!(place_of(&row.message, receivers), row.place, "{row:?} of {receivers}");
            }
            assert_eq!(place_of(&[], receivers), 0);
        }
    }
}
