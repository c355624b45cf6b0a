//! Fuzz body: the table of allowed IPs against a plain list, over any sequence of changes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit::proto::allowed_ips::AllowedIps;

/// Owners that occur: few, so that prefixes move between them.
const OWNERS: u32 = 5;

/// The naive table: every prefix with its owner, in the order of insertion.
#[derive(Default)]
struct List(Vec<(IpAddr, u8, u32)>);

impl List {
    fn insert(&mut self, address: IpAddr, len: u8, owner: u32) {
        self.0.retain(|&(other, other_len, _)| (other, other_len) != (address, len));
        self.0.push((address, len, owner));
    }

    fn lookup(&self, address: IpAddr) -> Option<u32> {
        let matching = self
            .0
            .iter()
            .filter(|&&(prefix, len, _)| prefix.is_ipv4() == address.is_ipv4() && mask(address, len) == prefix);
        matching.max_by_key(|&&(_, len, _)| len).map(|&(_, _, owner)| owner)
    }
}

/// `address` with all but its first `len` bits zero.
fn mask(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into()
        }
        IpAddr::V6(v6) => {
            Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into()
        }
    }
}

/// Four bytes an operation: what, which owner or length, and two that become an address with few distinct bits.
pub(crate) fn run(data: &[u8]) {
    let (mut table, mut list) = (AllowedIps::new(), List::default());
    for step in data.chunks_exact(4).take(512) {
        let owner = u32::from(step[0] >> 3) % OWNERS;
        let (address, bits): (IpAddr, u8) = if step[0] & 4 == 0 {
            (Ipv4Addr::new(10, step[2], 0, step[3]).into(), 32)
        } else {
            let [a, b] = [u16::from(step[2]) << 8, u16::from(step[3])];
            (Ipv6Addr::new(0xfd00, a, 0, 0, 0, 0, 0, b).into(), 128)
        };
        let len = step[1] % (bits + 1);
        let prefix = mask(address, len);
        match step[0] & 3 {
            0 | 1 => {
                table.insert(prefix, len, owner);
                list.insert(prefix, len, owner);
            }
            2 => {
                let before = list.0.len();
                list.0.retain(|&entry| entry != (prefix, len, owner));
                assert_eq!(table.remove(prefix, len, owner), list.0.len() < before);
            }
            _ if step[1] & 0x80 != 0 => {
                table.remove_owner(owner);
                list.0.retain(|&(_, _, other)| other != owner);
            }
            _ => {}
        }
        assert_eq!(table.lookup(address), list.lookup(address), "{address}");
        assert_eq!(table.len(), list.0.len());
    }
    for owner in 0..OWNERS {
        let expected: Vec<(IpAddr, u8)> =
            list.0.iter().filter(|entry| entry.2 == owner).map(|&(prefix, len, _)| (prefix, len)).collect();
        assert_eq!(table.iter_owner(owner).collect::<Vec<_>>(), expected, "owner {owner}");
    }
}
