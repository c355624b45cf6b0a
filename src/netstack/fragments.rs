//! Datagrams that are longer than a packet may be: cut up on the way out, put together on the way in (RFC 791, RFC 8200
//! §4.5). TCP needs neither.
//!
//! Whoever sends fragments decides what they cost: the memory of all that wait is bounded, the oldest go first, and fragments
//! that overlap spoil their packet (RFC 5722), since no honest sender makes them and filters are deceived by them.
//!
//! Extension headers of IPv6 before the fragment header are dropped with it: nothing in them is meant for a host that took the
//! packet already.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::headers;
use crate::ip::{Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN};

/// Bytes of an IPv6 fragment header (RFC 8200 §4.5), and its number.
const FRAGMENT_HEADER_LEN: usize = 8;
const FRAGMENT_HEADER: u8 = 44;

/// More fragments follow: in IPv4's flags, and in IPv6's fragment header.
const MORE_V4: u16 = 0x2000;
const MORE_V6: u16 = 1;

/// What offsets are counted in.
const UNIT: usize = 8;

/// Bytes of packets that are being put together, with what they cost beyond their payload: Linux' `ipfrag_high_thresh`.
const REASSEMBLY_BYTES_MAX: usize = 4 << 20;

/// Packets that are being put together: half of those that the bytes suffice for when each is as long as it can be.
const REASSEMBLIES_MAX: usize = 32;

/// Fragments of one packet: 64 KiB over the smallest MTU of IPv4 that is met with, 576, and a few more.
const FRAGMENTS_MAX: usize = 128;

/// What a fragment counts for beyond its bytes.
const FRAGMENT_OVERHEAD: usize = 128;

/// How long a packet may be incomplete: Linux' `ipfrag_time`; RFC 8200 §4.5 has 60 s at most.
const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes that a packet's length field can tell.
const LEN_MAX: usize = u16::MAX as usize;

/// A packet of ours, in pieces that are no longer than `mtu`.
pub(super) fn cut(packet: &[u8], mtu: usize, identification: u32) -> impl Iterator<Item = Vec<u8>> {
    let is_ipv4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(headers::ip_header_len_of(packet));
    let room = mtu - header.len() - if is_ipv4 { 0 } else { FRAGMENT_HEADER_LEN };
    let room = room / UNIT * UNIT;
    payload.chunks(room).enumerate().map(move |(number, piece)| {
        let offset = number * room;
        let has_more = offset + piece.len() < payload.len();
        let mut fragment = Vec::with_capacity(mtu);
        fragment.extend(header);
        if is_ipv4 {
            fragment[2..4].copy_from_slice(&((header.len() + piece.len()) as u16).to_be_bytes());
            fragment[4..6].copy_from_slice(&(identification as u16).to_be_bytes());
            let flags = (offset / UNIT) as u16 | if has_more { MORE_V4 } else { 0 };
            fragment[6..8].copy_from_slice(&flags.to_be_bytes());
            headers::complete_ipv4_header(&mut fragment);
        } else {
            fragment[4..6].copy_from_slice(&((FRAGMENT_HEADER_LEN + piece.len()) as u16).to_be_bytes());
            fragment[6] = FRAGMENT_HEADER;
            fragment.extend([header[6], 0]);
            fragment.extend((offset as u16 | if has_more { MORE_V6 } else { 0 }).to_be_bytes());
            fragment.extend(identification.to_be_bytes());
        }
        fragment.extend(piece);
        fragment
    })
}

/// What tells the fragments of one packet from those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    identification: u32,
    protocol: u8,
}

/// A fragment as it came.
struct Fragment<'a> {
    key: Key,
    offset: usize,
    has_more: bool,
    payload: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads a packet that is a fragment and ends where its header says. `None` when it is none that makes sense.
    fn parse(packet: &'a [u8]) -> Option<Self> {
        let Header { source, destination, .. } = Header::parse(packet)?;
        let key = |identification, protocol| Key { source, destination, identification, protocol };
        let number = |at: usize| Some(u16::from_be_bytes(*packet.get(at..)?.first_chunk()?));
        let (key, offset, has_more, start) = if source.is_ipv4() {
            let flags = number(6)?;
            let start = usize::from(packet[0] & 0x0f) * 4;
            (key(number(4)?.into(), packet[9]), usize::from(flags & 0x1fff) * UNIT, flags & MORE_V4 != 0, start)
        } else {
            let at = fragment_header(packet)?;
            let flags = number(at + 2)?;
            let identification = u32::from(number(at + 4)?) << 16 | u32::from(number(at + 6)?);
            let offset = usize::from(flags & !(UNIT as u16 - 1));
            (key(identification, *packet.get(at)?), offset, flags & MORE_V6 != 0, at + FRAGMENT_HEADER_LEN)
        };
        let payload = packet.get(start..)?;
        // The length field of IPv4 counts the header, too.
        let counted = if source.is_ipv4() { IPV4_HEADER_LEN } else { 0 };
        let is_sound = !payload.is_empty()
            && (!has_more || payload.len().is_multiple_of(UNIT))
            && counted + offset + payload.len() <= LEN_MAX;
        is_sound.then_some(Self { key, offset, has_more, payload })
    }
}

/// Where the fragment header of an IPv6 packet begins, behind those that may precede it: hop-by-hop options, routing and
/// destination options.
fn fragment_header(packet: &[u8]) -> Option<usize> {
    let (mut next, mut at) = (packet[6], IPV6_HEADER_LEN);
    // Each of them once (RFC 8200 §4.1).
    for _ in 0..4 {
        match next {
            FRAGMENT_HEADER => return Some(at),
            0 | 43 | 60 => {
                next = *packet.get(at)?;
                at += (usize::from(*packet.get(at + 1)?) + 1) * UNIT;
            }
            _ => return None,
        }
    }
    None
}

/// A packet of which something is missing.
struct Partial {
    begun: Instant,
    pieces: BTreeMap<usize, Box<[u8]>>,
    /// Bytes of its payload that are there.
    received: usize,
    /// Bytes of its payload, once the last fragment is there.
    total: Option<usize>,
}

impl Partial {
    fn cost(&self) -> usize {
        self.received + self.pieces.len() * FRAGMENT_OVERHEAD
    }

    /// Adds a fragment; false when it contradicts what is there.
    fn add(&mut self, fragment: &Fragment<'_>) -> bool {
        let end = fragment.offset + fragment.payload.len();
        if self.pieces.get(&fragment.offset).is_some_and(|piece| **piece == *fragment.payload) {
            // The same once more: the network repeats packets.
            return true;
        }
        let before = self.pieces.range(..end).next_back();
        let overlaps = before.is_some_and(|(offset, piece)| offset + piece.len() > fragment.offset);
        let is_beyond = self.total.is_some_and(|total| end > total || !fragment.has_more);
        let is_short = !fragment.has_more && self.pieces.range(end..).next().is_some();
        if overlaps || is_beyond || is_short || self.pieces.len() >= FRAGMENTS_MAX {
            return false;
        }
        if !fragment.has_more {
            self.total = Some(end);
        }
        self.received += fragment.payload.len();
        self.pieces.insert(fragment.offset, fragment.payload.into());
        true
    }

    /// The whole packet, when nothing is missing.
    fn complete(&self, key: &Key) -> Option<Vec<u8>> {
        if self.total != Some(self.received) {
            return None;
        }
        let mut packet = headers::begin(key.source, key.destination, key.protocol, self.received);
        self.pieces.values().for_each(|piece| packet.extend(piece));
        Some(packet)
    }
}

/// Packets that are being put together.
#[derive(Default)]
pub(super) struct Reassembly {
    partials: HashMap<Key, Partial>,
    /// In the order in which they were begun.
    order: VecDeque<(Instant, Key)>,
    cost: usize,
}

impl Reassembly {
    /// Adds a fragment whose header was verified. Gives the packet that it completes, and how many fragments were given up
    /// for whatever reason.
    pub(super) fn add(&mut self, packet: &[u8], now: Instant) -> (Option<Vec<u8>>, u64) {
        let mut given_up = 0;
        while self.order.front().is_some_and(|(begun, _)| *begun + REASSEMBLY_TIMEOUT <= now) {
            given_up += self.remove_first();
        }
        let Some(fragment) = Fragment::parse(packet) else { return (None, given_up + 1) };
        if fragment.offset == 0 && !fragment.has_more {
            // A whole packet, whatever else has its number (RFC 6946).
            let Key { source, destination, protocol, .. } = fragment.key;
            let mut packet = headers::begin(source, destination, protocol, fragment.payload.len());
            packet.extend(fragment.payload);
            return (Some(packet), given_up);
        }
        let key = fragment.key;
        if !self.partials.contains_key(&key) {
            if self.partials.len() >= REASSEMBLIES_MAX {
                given_up += self.remove_first();
            }
            self.order.push_back((now, key));
            let partial = Partial { begun: now, pieces: BTreeMap::new(), received: 0, total: None };
            self.partials.insert(key, partial);
        }
        let Some(partial) = self.partials.get_mut(&key) else { return (None, given_up) };
        let before = partial.cost();
        if !partial.add(&fragment) {
            return (None, given_up + 1 + self.remove(&key));
        }
        self.cost += partial.cost() - before;
        let complete = partial.complete(&key);
        if complete.is_some() {
            self.remove(&key);
        }
        while self.cost > REASSEMBLY_BYTES_MAX {
            given_up += self.remove_first();
        }
        (complete, given_up)
    }

    /// Gives the oldest up, and says how many fragments of it there were.
    fn remove_first(&mut self) -> u64 {
        while let Some((begun, key)) = self.order.pop_front() {
            if self.partials.get(&key).is_some_and(|partial| partial.begun == begun) {
                return self.remove(&key);
            }
        }
        0
    }

    fn remove(&mut self, key: &Key) -> u64 {
        let Some(partial) = self.partials.remove(key) else { return 0 };
        self.cost -= partial.cost();
        self.order.retain(|(_, other)| other != key);
        partial.pieces.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip;

    const V4: [IpAddr; 2] =
        [IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2))];

    fn families() -> [[IpAddr; 2]; 2] {
        let v6 = |last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
        [V4, [v6(1), v6(2)]]
    }

    fn packet([source, destination]: [IpAddr; 2], len: usize) -> Vec<u8> {
        let mut packet = headers::begin(source, destination, ip::UDP, len);
        packet.extend((0..len).map(|number| (number * 7 / 3) as u8));
        packet
    }

    /// The fragments of `packet`, put together in this order.
    fn together(fragments: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut reassembly = Reassembly::default();
        let found = fragments.iter().filter_map(|fragment| reassembly.add(fragment, Instant::now()).0).next();
        if found.is_some() {
            assert_eq!((reassembly.cost, reassembly.partials.len(), reassembly.order.len()), (0, 0, 0));
        }
        found
    }

    #[test]
    fn what_is_cut_is_put_together_in_any_order() {
        for family in families() {
            for (len, mtu) in [(1500, 1280), (4000, 1280), (10_000, 552 + 728), (65_000, 1420), (1300, 1420)] {
                let whole = packet(family, len);
                let mut fragments: Vec<_> = cut(&whole, mtu, 7).collect();
                for fragment in &fragments {
                    let header = Header::parse(fragment).unwrap();
                    assert!(fragment.len() <= mtu && header.total_len == fragment.len());
                    assert!(headers::is_header_checksum_right(fragment));
                    assert!(ip::transport(fragment).unwrap().fragment || fragments.len() == 1);
                }
                assert_eq!(together(&fragments), Some(whole.clone()), "{len} {mtu}");
                fragments.reverse();
                assert_eq!(together(&fragments), Some(whole.clone()));
                // Each twice, and one missing.
                let twice: Vec<_> =
                    fragments.iter().flat_map(|fragment| [fragment.clone(), fragment.clone()]).collect();
                assert_eq!(together(&twice), Some(whole.clone()));
                for missing in 0..fragments.len() {
                    let mut fragments = fragments.clone();
                    fragments.remove(missing);
                    assert_eq!(together(&fragments), None);
                }
            }
        }
    }

    /// RFC 5722: what overlaps spoils the whole packet.
    #[test]
    fn overlaps_are_refused() {
        let pieces = |pieces: &[(usize, usize, bool)]| -> Vec<Vec<u8>> {
            let fragment = |&(offset, len, has_more): &(usize, usize, bool)| {
                let mut fragment = packet(V4, len);
                // Not what any other one says.
                fragment.iter_mut().skip(20).take(1).for_each(|byte| *byte = offset as u8 ^ len as u8 ^ 0x55);
                let flags = (offset / UNIT) as u16 | if has_more { MORE_V4 } else { 0 };
                fragment[6..8].copy_from_slice(&flags.to_be_bytes());
                headers::complete_ipv4_header(&mut fragment);
                fragment
            };
            pieces.iter().map(fragment).collect()
        };
        assert!(together(&pieces(&[(0, 64, true), (64, 64, true), (128, 10, false)])).is_some());
        for bad in [
            &[(0, 64, true), (56, 64, true), (120, 10, false)][..],
            &[(0, 64, true), (0, 32, true), (64, 10, false)],
            &[(32, 64, true), (0, 128, true), (128, 10, false)],
            &[(64, 64, true), (0, 72, true), (128, 10, false)],
            // Two ends, and something behind the end.
            &[(64, 10, false), (64, 18, false), (0, 64, true)],
            &[(128, 64, true), (64, 10, false), (0, 64, true)],
            // No multiple of eight in the middle; nothing; longer than any packet.
            &[(0, 60, true), (64, 10, false)],
            &[(0, 64, true), (64, 0, false)],
            &[(65_528, 64, false), (0, 64, true)],
        ] {
            assert_eq!(together(&pieces(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn what_waits_is_bounded_in_number_bytes_and_time() {
        let mut reassembly = Reassembly::default();
        let start = Instant::now();
        let first = |identification| cut(&packet(V4, 60_000), 1420, identification).next().unwrap();
        let mut given_up = 0;
        for identification in 0..10_000 {
            given_up += reassembly.add(&first(identification), start).1;
        }
        assert_eq!((reassembly.partials.len(), given_up), (REASSEMBLIES_MAX, 10_000 - REASSEMBLIES_MAX as u64));
        assert_eq!(reassembly.order.len(), REASSEMBLIES_MAX);
        // A whole one still gets through.
        let whole = packet(V4, 20_000);
        assert_eq!(
            cut(&whole, 1420, 77).filter_map(|fragment| reassembly.add(&fragment, start).0).next(),
            Some(whole.clone())
        );
        let (_, given_up) = reassembly.add(&first(1), start + REASSEMBLY_TIMEOUT);
        assert_eq!((given_up, reassembly.partials.len()), (REASSEMBLIES_MAX as u64 - 1, 1));

        let mut reassembly = Reassembly::default();
        for identification in 0..200 {
            for fragment in cut(&packet(V4, 60_000), 1420, identification).skip(1) {
                reassembly.add(&fragment, start);
                assert!(reassembly.cost <= REASSEMBLY_BYTES_MAX);
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut fragments in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 20..120), 1..20)) {
            let mut reassembly = Reassembly::default();
            for (number, bytes) in fragments.iter_mut().enumerate() {
                let len = bytes.len() as u16;
                if number % 2 == 0 {
                    bytes[0] = 0x45;
                    bytes[2..4].copy_from_slice(&len.to_be_bytes());
                    bytes[12..20].fill(1);
                    bytes[4..6].fill(0);
                } else if bytes.len() >= 48 {
                    bytes[0] = 0x60;
                    bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                    bytes[8..40].fill(1);
                    bytes[6] = FRAGMENT_HEADER;
                }
                reassembly.add(bytes, Instant::now());
            }
            let cost: usize = reassembly.partials.values().map(Partial::cost).sum();
            prop_assert_eq!(cost, reassembly.cost);
        }
    }
}
