//! Cryptokey routing: which peer owns an inner address. [WP 2]
//!
//! Two binary tries with compressed paths, one for each address family. A node is a prefix; it has an
//! owner if the prefix was inserted, and none if it only parts two others. A lookup walks down from
//! the root and remembers the last owner that it passed: the longest match.
//!
//! Everything lies in arenas of `Copy` entries that name each other by position, so that a clone is a
//! few copies of memory: the device changes a clone and publishes it whole. What a lookup reads (key,
//! children, owner) lies apart from what only changes and listings need (an owner's list of prefixes).
//!
//! Invariants:
//! - a prefix has one owner; inserting it for another moves it;
//! - a node without an owner has two children, so a trie of *n* prefixes has fewer than 2*n* nodes;
//! - a child's prefix lies within its parent's and is longer, so no walk is longer than the address;
//! - an owner's list is in the order of insertion, over both families, and adding again moves to its end;
//! - no operation recurses or walks over more than one path; freed places are used again.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The position of nothing.
const NONE: u32 = u32::MAX;

/// Where a new entry of an arena will lie.
fn end_of<T>(arena: &[T]) -> u32 {
    u32::try_from(arena.len()).ok().filter(|&end| end != NONE).expect("memory ends long before 2^32 prefixes")
}

/// An address as an integer whose most significant bit is the first on the wire.
trait Address: Copy + Eq {
    /// Bits in an address.
    const WIDTH: u8;
    /// The first `len` bits, the others zero.
    fn masked(self, len: u8) -> Self;
    /// Bit `position` from the start, below [`WIDTH`](Self::WIDTH).
    fn bit(self, position: u8) -> usize;
    /// How many bits from the start are equal in both.
    fn common(self, other: Self) -> u8;
}

macro_rules! address {
    ($integer:ty) => {
        impl Address for $integer {
            const WIDTH: u8 = <$integer>::BITS as u8;

            #[inline]
            fn masked(self, len: u8) -> Self {
                self & <$integer>::MAX.checked_shl(u32::from(Self::WIDTH - len)).unwrap_or(0)
            }

            #[inline]
            fn bit(self, position: u8) -> usize {
                (self >> (Self::WIDTH - 1 - position)) as usize & 1
            }

            #[inline]
            fn common(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }
        }
    };
}

address!(u32);
address!(u128);

#[derive(Debug, Clone, Copy)]
struct Node<A> {
    /// The prefix, host bits zero.
    key: A,
    /// By the first bit behind the prefix. In a freed node, the first names the next freed one.
    children: [u32; 2],
    /// `NONE` if the prefix was not inserted.
    owner: u32,
    /// Bits of the prefix.
    len: u8,
}

/// A place that names a node: the root, or one child of a node.
#[derive(Clone, Copy)]
struct Link {
    parent: u32,
    side: usize,
}

impl Link {
    const ROOT: Self = Self { parent: NONE, side: 0 };
}

#[derive(Debug, Clone)]
struct Trie<A> {
    root: u32,
    nodes: Vec<Node<A>>,
    /// The place of each node's prefix in the lists of owners.
    entries: Vec<u32>,
    /// The first freed node.
    free: u32,
}

impl<A: Address> Trie<A> {
    const fn new() -> Self {
        Self { root: NONE, nodes: Vec::new(), entries: Vec::new(), free: NONE }
    }

    #[inline]
    fn lookup(&self, address: A) -> Option<u32> {
        let mut owner = NONE;
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at as usize) {
            if address.common(node.key) < node.len {
                break;
            }
            if node.owner != NONE {
                owner = node.owner;
            }
            if node.len == A::WIDTH {
                break;
            }
            at = node.children[address.bit(node.len)];
        }
        (owner != NONE).then_some(owner)
    }

    fn node(&self, position: u32) -> &Node<A> {
        &self.nodes[position as usize]
    }

    fn target(&self, link: Link) -> u32 {
        if link.parent == NONE { self.root } else { self.node(link.parent).children[link.side] }
    }

    fn set_target(&mut self, link: Link, position: u32) {
        if link.parent == NONE {
            self.root = position;
        } else {
            self.nodes[link.parent as usize].children[link.side] = position;
        }
    }

    fn allocate(&mut self, key: A, len: u8) -> u32 {
        let node = Node { key: key.masked(len), children: [NONE; 2], owner: NONE, len };
        if self.free == NONE {
            let position = end_of(&self.nodes);
            self.nodes.push(node);
            self.entries.push(NONE);
            return position;
        }
        let position = self.free;
        self.free = self.node(position).children[0];
        self.nodes[position as usize] = node;
        position
    }

    fn release(&mut self, position: u32) {
        let node = &mut self.nodes[position as usize];
        node.children = [self.free, NONE];
        node.owner = NONE;
        self.free = position;
    }

    /// The node of a prefix, made if there is none.
    fn find_or_insert(&mut self, key: A, len: u8) -> u32 {
        let mut link = Link::ROOT;
        loop {
            let at = self.target(link);
            if at == NONE {
                let leaf = self.allocate(key, len);
                self.set_target(link, leaf);
                return leaf;
            }
            let node = *self.node(at);
            let common = key.common(node.key).min(len).min(node.len);
            if common == node.len {
                if len == node.len {
                    return at;
                }
                link = Link { parent: at, side: key.bit(node.len) };
                continue;
            }
            // The prefix is shorter than the node's, or parts from it: one comes in above.
            let above = self.allocate(key, common);
            self.nodes[above as usize].children[node.key.bit(common)] = at;
            self.set_target(link, above);
            if common == len {
                return above;
            }
            let leaf = self.allocate(key, len);
            self.nodes[above as usize].children[key.bit(common)] = leaf;
            return leaf;
        }
    }

    /// The node of a prefix that was inserted.
    fn find(&self, key: A, len: u8) -> Option<u32> {
        let mut at = self.root;
        while let Some(node) = self.nodes.get(at as usize) {
            if node.len > len || key.common(node.key) < node.len {
                return None;
            }
            if node.len == len {
                return (node.owner != NONE).then_some(at);
            }
            at = node.children[key.bit(node.len)];
        }
        None
    }

    /// Removes a prefix that was inserted, and what only led to it.
    fn remove(&mut self, key: A, len: u8) {
        let (mut above, mut link) = (Link::ROOT, Link::ROOT);
        loop {
            let node = self.node(self.target(link));
            if node.len == len {
                break;
            }
            above = link;
            link = Link { parent: self.target(link), side: key.bit(node.len) };
        }
        let position = self.target(link);
        self.nodes[position as usize].owner = NONE;
        match self.node(position).children {
            [NONE, NONE] => {
                self.set_target(link, NONE);
                self.release(position);
                // The parent may have been there for this child alone.
                if link.parent != NONE && self.node(link.parent).owner == NONE {
                    let sibling = self.node(link.parent).children[1 - link.side];
                    self.set_target(above, sibling);
                    self.release(link.parent);
                }
            }
            [child, NONE] | [NONE, child] => {
                self.set_target(link, child);
                self.release(position);
            }
            _ => {}
        }
    }
}

/// Which trie a prefix lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// A prefix in its owner's list. In a freed entry, `next` names the next freed one.
#[derive(Debug, Clone, Copy)]
struct Entry {
    family: Family,
    node: u32,
    previous: u32,
    next: u32,
}

/// The ends of an owner's list.
#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

impl List {
    const EMPTY: Self = Self { first: NONE, last: NONE };
}

/// All allowed IPs of a device: prefixes of both families, each owned by one peer.
///
/// Owners are small numbers that the caller gives out densely (a peer's slot): memory grows with the
/// greatest one. Lookups take at most one step for each bit of the address.
///
/// ```
/// use adit::proto::allowed_ips::AllowedIps;
///
/// let mut table = AllowedIps::new();
/// table.insert("10.0.0.0".parse()?, 8, 0);
/// table.insert("10.1.0.0".parse()?, 16, 1);
/// assert_eq!(table.lookup("10.1.2.3".parse()?), Some(1));
/// assert_eq!(table.lookup("10.2.2.3".parse()?), Some(0));
/// assert_eq!(table.lookup("11.0.0.1".parse()?), None);
/// # Ok::<(), core::net::AddrParseError>(())
/// ```
#[derive(Debug, Clone)]
pub struct AllowedIps {
    v4: Trie<u32>,
    v6: Trie<u128>,
    entries: Vec<Entry>,
    /// The first freed entry.
    free: u32,
    /// By owner.
    lists: Vec<List>,
    len: usize,
}

impl Default for AllowedIps {
    fn default() -> Self {
        Self::new()
    }
}

impl AllowedIps {
    /// A table without prefixes.
    pub const fn new() -> Self {
        Self { v4: Trie::new(), v6: Trie::new(), entries: Vec::new(), free: NONE, lists: Vec::new(), len: 0 }
    }

    /// How many prefixes there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no prefix.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The owner of the longest prefix that holds `address`.
    #[inline]
    pub fn lookup(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self.lookup_v4(address.octets()),
            IpAddr::V6(address) => self.lookup_v6(address.octets()),
        }
    }

    /// [`lookup`](Self::lookup) of an IPv4 address as it stands in a packet.
    #[inline]
    pub fn lookup_v4(&self, octets: [u8; 4]) -> Option<u32> {
        self.v4.lookup(u32::from_be_bytes(octets))
    }

    /// [`lookup`](Self::lookup) of an IPv6 address as it stands in a packet.
    #[inline]
    pub fn lookup_v6(&self, octets: [u8; 16]) -> Option<u32> {
        self.v6.lookup(u128::from_be_bytes(octets))
    }

    /// Gives the prefix to `owner`, at the end of its list, and takes it from whoever has it.
    /// Host bits are ignored.
    ///
    /// # Panics
    /// If `prefix_len` is beyond the address's bits, or `owner` is `u32::MAX`: a programmer's error.
    pub fn insert(&mut self, address: IpAddr, prefix_len: u8, owner: u32) {
        assert_ne!(owner, NONE, "u32::MAX is no owner");
        match address {
            IpAddr::V4(address) => {
                assert!(prefix_len <= u32::BITS as u8, "an IPv4 prefix has at most 32 bits");
                let node = self.v4.find_or_insert(address.to_bits(), prefix_len);
                let (before, entry) = (self.v4.node(node).owner, self.v4.entries[node as usize]);
                self.v4.entries[node as usize] = self.give(before, entry, Family::V4, node, owner);
                self.v4.nodes[node as usize].owner = owner;
            }
            IpAddr::V6(address) => {
                assert!(prefix_len <= u128::BITS as u8, "an IPv6 prefix has at most 128 bits");
                let node = self.v6.find_or_insert(address.to_bits(), prefix_len);
                let (before, entry) = (self.v6.node(node).owner, self.v6.entries[node as usize]);
                self.v6.entries[node as usize] = self.give(before, entry, Family::V6, node, owner);
                self.v6.nodes[node as usize].owner = owner;
            }
        }
    }

    /// Takes the prefix from `owner`; returns whether it had exactly this one.
    pub fn remove(&mut self, address: IpAddr, prefix_len: u8, owner: u32) -> bool {
        let entry = match address {
            IpAddr::V4(address) if prefix_len <= u32::BITS as u8 => {
                let key = address.to_bits().masked(prefix_len);
                let found = self.v4.find(key, prefix_len).filter(|&node| self.v4.node(node).owner == owner);
                found.map(|node| self.v4.entries[node as usize])
            }
            IpAddr::V6(address) if prefix_len <= u128::BITS as u8 => {
                let key = address.to_bits().masked(prefix_len);
                let found = self.v6.find(key, prefix_len).filter(|&node| self.v6.node(node).owner == owner);
                found.map(|node| self.v6.entries[node as usize])
            }
            _ => None,
        };
        let Some(entry) = entry else { return false };
        self.remove_entry(entry, owner);
        true
    }

    /// Takes all its prefixes from `owner`.
    pub fn remove_owner(&mut self, owner: u32) {
        while let Some(&List { first, .. }) = self.lists.get(owner as usize).filter(|list| list.first != NONE) {
            self.remove_entry(first, owner);
        }
    }

    /// The prefixes of `owner` and their lengths, in the order in which they were added; host bits zero.
    pub fn iter_owner(&self, owner: u32) -> impl Iterator<Item = (IpAddr, u8)> + '_ {
        let mut at = self.lists.get(owner as usize).map_or(NONE, |list| list.first);
        core::iter::from_fn(move || {
            let entry = self.entries.get(at as usize)?;
            at = entry.next;
            Some(self.prefix(entry))
        })
    }

    fn prefix(&self, entry: &Entry) -> (IpAddr, u8) {
        match entry.family {
            Family::V4 => {
                let node = self.v4.node(entry.node);
                (Ipv4Addr::from_bits(node.key).into(), node.len)
            }
            Family::V6 => {
                let node = self.v6.node(entry.node);
                (Ipv6Addr::from_bits(node.key).into(), node.len)
            }
        }
    }

    /// Moves the entry of a node from the list of `before` (`NONE` if it is new) to the end of that of
    /// `owner`, and returns where the entry lies.
    fn give(&mut self, before: u32, entry: u32, family: Family, node: u32, owner: u32) -> u32 {
        let entry = if before == NONE {
            self.len += 1;
            self.allocate(Entry { family, node, previous: NONE, next: NONE })
        } else {
            self.detach(entry, before);
            entry
        };
        self.append(entry, owner);
        entry
    }

    fn remove_entry(&mut self, entry: u32, owner: u32) {
        self.detach(entry, owner);
        let Entry { family, node, .. } = self.entries[entry as usize];
        match family {
            Family::V4 => {
                let Node { key, len, .. } = *self.v4.node(node);
                self.v4.remove(key, len);
            }
            Family::V6 => {
                let Node { key, len, .. } = *self.v6.node(node);
                self.v6.remove(key, len);
            }
        }
        self.entries[entry as usize].next = self.free;
        self.free = entry;
        self.len -= 1;
        if self.len == 0 {
            // A great table that was emptied gives its memory back.
            *self = Self::new();
        }
    }

    fn allocate(&mut self, entry: Entry) -> u32 {
        if self.free == NONE {
            let position = end_of(&self.entries);
            self.entries.push(entry);
            return position;
        }
        let position = self.free;
        self.free = self.entries[position as usize].next;
        self.entries[position as usize] = entry;
        position
    }

    fn append(&mut self, entry: u32, owner: u32) {
        if self.lists.len() <= owner as usize {
            self.lists.resize(owner as usize + 1, List::EMPTY);
        }
        let list = &mut self.lists[owner as usize];
        let last = core::mem::replace(&mut list.last, entry);
        if last == NONE {
            list.first = entry;
        } else {
            self.entries[last as usize].next = entry;
        }
        let entry = &mut self.entries[entry as usize];
        (entry.previous, entry.next) = (last, NONE);
    }

    fn detach(&mut self, entry: u32, owner: u32) {
        let Entry { previous, next, .. } = self.entries[entry as usize];
        match previous {
            NONE => self.lists[owner as usize].first = next,
            _ => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[owner as usize].last = previous,
            _ => self.entries[next as usize].previous = previous,
        }
    }
}

#[cfg(test)]
mod tests;
