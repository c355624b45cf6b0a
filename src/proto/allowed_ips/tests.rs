//! The table against known answers, and against a plain list that is searched from end to end.

use super::*;
use alloc::collections::BTreeMap;
use alloc::vec;
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn table(prefixes: &[(&str, u8, u32)]) -> AllowedIps {
    let mut table = AllowedIps::new();
    for &(address, len, owner) in prefixes {
        table.insert(ip(address), len, owner);
    }
    table
}

/// [WP 2] The longest prefix wins, in each family apart.
#[test]
fn longest_prefix_wins() {
    let table = table(&[
        ("192.168.4.0", 24, 0),
        ("192.168.4.4", 32, 1),
        ("192.168.0.0", 16, 2),
        ("192.95.5.64", 27, 3),
        ("192.95.5.65", 27, 2),
        ("0.0.0.0", 0, 4),
        ("2607:5300:6000:6b00::c05f:543", 128, 5),
        ("2607:5300:6000:6b00::", 64, 2),
        ("::", 0, 4),
        ("fe80::", 10, 6),
    ]);
    let check = |address: &str, owner| assert_eq!(table.lookup(ip(address)), owner, "{address}");
    check("192.168.4.20", Some(0));
    check("192.168.4.4", Some(1));
    check("192.168.200.182", Some(2));
    check("192.95.5.68", Some(2));
    check("192.95.5.96", Some(4));
    check("8.8.8.8", Some(4));
    check("2607:5300:6000:6b00::c05f:543", Some(5));
    check("2607:5300:6000:6b00::c02e:1ee", Some(2));
    check("2607:5300:6000:6b01::", Some(4));
    check("fe80::1", Some(6));
    check("febf::1", Some(6));
    check("fec0::1", Some(4));
    assert_eq!(table.len(), 9);
}

#[test]
fn nothing_matches_an_empty_table() {
    let mut table = AllowedIps::new();
    assert!(table.is_empty());
    assert_eq!((table.lookup(ip("1.2.3.4")), table.lookup(ip("::1"))), (None, None));
    assert!(!table.remove(ip("1.2.3.4"), 32, 0));
    for too_long in [33, 99, 255] {
        assert!(!table.remove(ip("1.2.3.4"), too_long, 0), "{too_long}");
    }
    for too_long in [129, 255] {
        assert!(!table.remove(ip("::1"), too_long, 0), "{too_long}");
    }
    table.remove_owner(7);
    assert_eq!(table.iter_owner(7).count(), 0);
}

/// A prefix has one owner; only that owner can have it removed.
#[test]
fn a_prefix_moves_to_its_last_owner() {
    let mut table = table(&[("10.0.0.1", 8, 0), ("10.9.9.9", 8, 1)]);
    assert!(table.len() == 1 && !table.is_empty());
    assert_eq!(table.lookup(ip("10.1.1.1")), Some(1));
    assert_eq!(table.iter_owner(0).count(), 0);
    assert!(!table.remove(ip("10.0.0.0"), 8, 0), "another's");
    assert!(!table.remove(ip("10.0.0.0"), 9, 1), "not exactly this one");
    assert!(!table.remove(ip("10.0.0.0"), 7, 1), "not exactly this one");
    assert!(!table.remove(ip("11.0.0.0"), 8, 1), "another of the same length");
    assert!(table.remove(ip("10.200.0.0"), 8, 1), "host bits are ignored");
    assert_eq!(table.lookup(ip("10.1.1.1")), None);
    assert!(table.is_empty());
}

/// [UAPI] The list is in the order of insertion, over both families; adding again moves to the end.
#[test]
fn an_owners_list_keeps_the_order() {
    let mut table = table(&[("10.0.0.0", 8, 0), ("fd00::", 8, 0), ("11.0.0.0", 8, 1), ("12.0.0.0", 8, 0)]);
    let list = |table: &AllowedIps, owner| table.iter_owner(owner).collect::<Vec<_>>();
    assert_eq!(list(&table, 0), [(ip("10.0.0.0"), 8), (ip("fd00::"), 8), (ip("12.0.0.0"), 8)]);
    table.insert(ip("10.0.0.0"), 8, 0);
    assert_eq!(list(&table, 0), [(ip("fd00::"), 8), (ip("12.0.0.0"), 8), (ip("10.0.0.0"), 8)]);
    table.insert(ip("12.0.0.0"), 8, 1);
    assert_eq!(list(&table, 0), [(ip("fd00::"), 8), (ip("10.0.0.0"), 8)]);
    assert_eq!(list(&table, 1), [(ip("11.0.0.0"), 8), (ip("12.0.0.0"), 8)]);
    table.remove_owner(0);
    assert_eq!(list(&table, 0), []);
    assert_eq!(list(&table, 1), [(ip("11.0.0.0"), 8), (ip("12.0.0.0"), 8)]);
    assert_eq!(table.len(), 2);
}

/// Removing what only parted two others removes the node too: memory follows the prefixes.
#[test]
fn freed_places_are_used_again() {
    let mut table = table(&[("255.0.0.0", 8, 1)]);
    for round in 0..100u32 {
        for host in 0..64u32 {
            table.insert(Ipv4Addr::from_bits(0x0a00_0000 + round * 977 + host * 3).into(), 32, 0);
            table.insert(Ipv6Addr::from_bits(u128::from(round * 977 + host * 3)).into(), 128, 0);
        }
        table.remove_owner(0);
    }
    assert_eq!(table.len(), 1);
    assert!(table.v4.nodes.len() <= 2 * 65, "{}", table.v4.nodes.len());
    assert!(table.v6.nodes.len() <= 2 * 64, "{}", table.v6.nodes.len());
    assert!(table.entries.len() <= 2 * 64 + 1, "{}", table.entries.len());
}

/// Every length of one address, so the deepest walk there is.
#[test]
fn every_length_of_one_address() {
    let mut table = AllowedIps::new();
    for len in 0..=128 {
        table.insert(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), len, u32::from(len));
    }
    for len in 0..=32 {
        table.insert(ip("255.255.255.255"), len, u32::from(len));
    }
    assert_eq!(table.lookup(ip("255.255.255.255")), Some(32));
    assert_eq!(table.lookup(ip("255.255.255.254")), Some(31));
    assert_eq!(table.lookup(ip("127.0.0.0")), Some(0));
    assert_eq!(table.lookup(ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")), Some(128));
    for len in (1..=128).rev() {
        table.remove_owner(len);
    }
    assert_eq!(table.lookup(ip("ffff::")), Some(0));
    assert_eq!(table.len(), 2);
}

/// U-06: 130,560 prefixes of one peer; and what lies between them is nobody's.
#[test]
fn many_prefixes_of_one_peer() {
    let mut table = AllowedIps::new();
    let prefixes = || (0..130_560u32).map(|i| Ipv4Addr::from_bits(i << 9));
    for prefix in prefixes() {
        table.insert(prefix.into(), 24, 3);
    }
    assert_eq!(table.len(), 130_560);
    assert!(table.iter_owner(3).map(|(address, _)| address).eq(prefixes().map(IpAddr::from)));
    assert_eq!(table.lookup(ip("0.0.0.255")), Some(3));
    assert_eq!(table.lookup(ip("0.0.1.0")), None);
    table.remove_owner(3);
    assert_eq!((table.len(), table.entries.capacity()), (0, 0));
}

type Model = Vec<(IpAddr, u8, u32)>;

fn covers(prefix: IpAddr, len: u8, address: IpAddr) -> bool {
    match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => prefix.to_bits() == address.to_bits().masked(len),
        (IpAddr::V6(prefix), IpAddr::V6(address)) => prefix.to_bits() == address.to_bits().masked(len),
        _ => false,
    }
}

fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().masked(len)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().masked(len)).into(),
    }
}

/// Addresses that share long prefixes, or the tries would part at the root and hide their depths.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = prop_oneof![any::<u32>(), (0u32..64).prop_map(|low| 0x0a01_0200 | low)];
    let v6 = prop_oneof![any::<u128>(), (0u128..64, 0u32..16).prop_map(|(low, at)| (0xfd << 120) | (low << (at * 7)))];
    prop_oneof![
        v4.prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        v6.prop_map(|bits| Ipv6Addr::from_bits(bits).into())
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Insert(IpAddr, u8, u32),
    Remove(IpAddr, u8, u32),
    RemoveKnown(usize),
    RemoveOwner(u32),
}

fn prefix() -> impl Strategy<Value = (IpAddr, u8, u32)> {
    (address(), any::<u8>(), 0u32..5)
        .prop_map(|(address, len, owner)| (address, len % if address.is_ipv4() { 33 } else { 129 }, owner))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prefix().prop_map(|(address, len, owner)| Step::Insert(address, len, owner)),
        1 => prefix().prop_map(|(address, len, owner)| Step::Remove(address, len, owner)),
        4 => any::<usize>().prop_map(Step::RemoveKnown),
        1 => (0u32..5).prop_map(Step::RemoveOwner),
    ]
}

fn apply(model: &mut Model, table: &mut AllowedIps, step: Step) {
    match step {
        Step::Insert(address, len, owner) => {
            let address = masked(address, len);
            model.retain(|&(prefix, prefix_len, _)| (prefix, prefix_len) != (address, len));
            model.push((address, len, owner));
            table.insert(address, len, owner);
        }
        Step::Remove(address, len, owner) => {
            let position = model.iter().position(|&entry| entry == (masked(address, len), len, owner));
            assert_eq!(table.remove(address, len, owner), position.is_some());
            position.map(|position| model.remove(position));
        }
        Step::RemoveKnown(choice) if !model.is_empty() => {
            let (address, len, owner) = model.remove(choice % model.len());
            assert!(table.remove(address, len, owner));
        }
        Step::RemoveKnown(_) => {}
        Step::RemoveOwner(owner) => {
            model.retain(|&(_, _, other)| other != owner);
            table.remove_owner(owner);
        }
    }
}

/// The nodes that can be reached are those in use, and none of them is there for nothing.
fn check_shape<A: Address>(trie: &Trie<A>, prefixes: usize) {
    let (mut reached, mut owned, mut todo) = (0, 0, vec![trie.root]);
    while let Some(at) = todo.pop() {
        let Some(node) = trie.nodes.get(at as usize) else { continue };
        reached += 1;
        owned += usize::from(node.owner != NONE);
        assert!(node.owner != NONE || !node.children.contains(&NONE), "a branch parts two");
        assert!(node.key == node.key.masked(node.len));
        for (side, &child) in node.children.iter().enumerate() {
            if let Some(below) = trie.nodes.get(child as usize) {
                assert!(below.len > node.len && below.key.common(node.key) >= node.len);
                assert_eq!(below.key.bit(node.len), side);
            }
        }
        todo.extend(node.children);
    }
    assert_eq!(owned, prefixes);
    let (mut free, mut at) = (0, trie.free);
    while let Some(node) = trie.nodes.get(at as usize) {
        free += 1;
        at = node.children[0];
    }
    assert_eq!(reached + free, trie.nodes.len());
}

proptest! {
    /// Z-06: the same answers as a list that is searched from end to end.
    #[test]
    fn agrees_with_a_naive_list(
        steps in proptest::collection::vec(step(), 1..200),
        probes in proptest::collection::vec(address(), 32),
    ) {
        let (mut model, mut table) = (Model::new(), AllowedIps::new());
        for step in steps {
            apply(&mut model, &mut table, step);
        }
        prop_assert_eq!(table.len(), model.len());
        let ends = model.iter().map(|&(prefix, _, _)| prefix).collect::<Vec<_>>();
        for address in probes.into_iter().chain(ends) {
            let longest = model.iter().filter(|&&(prefix, len, _)| covers(prefix, len, address)).max_by_key(|entry| entry.1);
            prop_assert_eq!(table.lookup(address), longest.map(|entry| entry.2), "{}", address);
        }
        let mut lists: BTreeMap<u32, Vec<(IpAddr, u8)>> = BTreeMap::new();
        for &(prefix, len, owner) in &model {
            lists.entry(owner).or_default().push((prefix, len));
        }
        for owner in 0..5 {
            prop_assert_eq!(table.iter_owner(owner).collect::<Vec<_>>(), lists.remove(&owner).unwrap_or_default());
        }
        check_shape(&table.v4, model.iter().filter(|entry| entry.0.is_ipv4()).count());
        check_shape(&table.v6, model.iter().filter(|entry| entry.0.is_ipv6()).count());
    }
}
