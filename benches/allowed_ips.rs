//! How long one lookup takes with 1 to 1,000,000 prefixes, and how long it takes to make, copy and
//! empty such a table.
//!
//! The prefixes are random ones of lengths as a routing table has them (mostly /24 and /48); the
//! addresses looked up are random ones inside of them, so that a walk goes all the way down and hardly
//! ever to memory that the last one has warmed.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use adit::proto::allowed_ips::AllowedIps;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const ROUTES: [usize; 4] = [1, 1_000, 100_000, 1_000_000];
/// Addresses that are looked up in turn: more than a cache remembers the walks of.
const ADDRESSES: usize = 1 << 16;

/// Peers that the prefixes belong to.
const OWNERS: u32 = 4096;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn prefix(&mut self, v6: bool) -> (IpAddr, u8) {
        let word = self.next();
        let len = [16, 20, 22, 24, 24, 24, 28, 32][(self.next() % 8) as usize];
        if v6 {
            // Inside of 2000::/4, as the public ones are.
            (Ipv6Addr::from_bits((2 << 124) | (u128::from(word) << 60)).into(), 2 * len)
        } else {
            (Ipv4Addr::from_bits(word as u32).into(), len)
        }
    }

    fn table(&mut self, routes: usize, v6: bool) -> (AllowedIps, Vec<(IpAddr, u8)>) {
        let prefixes: Vec<_> = (0..routes).map(|_| self.prefix(v6)).collect();
        let mut table = AllowedIps::new();
        for (owner, &(address, len)) in prefixes.iter().enumerate() {
            table.insert(address, len, owner as u32 % OWNERS);
        }
        (table, prefixes)
    }
}

fn lookups(criterion: &mut Criterion) {
    for (family, v6) in [("v4", false), ("v6", true)] {
        let mut group = criterion.benchmark_group(format!("allowed_ips/lookup_{family}"));
        group.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1)).sample_size(20);
        for routes in ROUTES {
            let mut dice = Dice(1);
            let (table, prefixes) = dice.table(routes, v6);
            let addresses: Vec<IpAddr> =
                (0..ADDRESSES).map(|_| prefixes[dice.next() as usize % prefixes.len()].0).collect();
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(routes), |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % ADDRESSES;
                    table.lookup(black_box(addresses[turn]))
                });
            });
        }
        group.finish();
    }
}

/// One random prefix, put in for another peer and taken out again: what a change of a configured peer costs.
fn changes(criterion: &mut Criterion) {
    for (family, v6) in [("v4", false), ("v6", true)] {
        let mut group = criterion.benchmark_group(format!("allowed_ips/insert_and_remove_{family}"));
        group.throughput(Throughput::Elements(1)).warm_up_time(Duration::from_millis(300));
        group.measurement_time(Duration::from_secs(1)).sample_size(20);
        for routes in ROUTES {
            let mut dice = Dice(1);
            let (mut table, _) = dice.table(routes, v6);
            let fresh: Vec<_> = (0..ADDRESSES).map(|_| dice.prefix(v6)).collect();
            let mut turn = 0;
            group.bench_function(BenchmarkId::from_parameter(routes), |bencher| {
                bencher.iter(|| {
                    turn = (turn + 1) % fresh.len();
                    let (address, len) = fresh[turn];
                    table.insert(black_box(address), len, OWNERS);
                    table.remove(address, len, OWNERS)
                });
            });
        }
        group.finish();
    }
}

fn tables(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allowed_ips/table");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(3)).sample_size(10);
    for routes in [130_560, 1_000_000] {
        group.throughput(Throughput::Elements(routes as u64));
        let (table, prefixes) = Dice(1).table(routes, false);
        group.bench_function(BenchmarkId::new("insert_for_one_owner", routes), |bencher| {
            bencher.iter(|| {
                let mut table = AllowedIps::new();
                prefixes.iter().for_each(|&(address, len)| table.insert(address, len, 0));
                table
            });
        });
        // As a configuration lists them. The random order above misses the cache at every step.
        let mut sorted = prefixes.clone();
        sorted.sort_unstable();
        group.bench_function(BenchmarkId::new("insert_sorted", routes), |bencher| {
            bencher.iter(|| {
                let mut table = AllowedIps::new();
                sorted.iter().for_each(|&(address, len)| table.insert(address, len, 0));
                table
            });
        });
        group.bench_function(BenchmarkId::new("clone", routes), |bencher| bencher.iter(|| table.clone()));
        group.bench_function(BenchmarkId::new("remove_all", routes), |bencher| {
            bencher.iter_batched(
                || table.clone(),
                |mut table| {
                    (0..OWNERS).for_each(|owner| table.remove_owner(owner));
                    table
                },
                criterion::BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, changes, tables);
criterion_main!(benches);
