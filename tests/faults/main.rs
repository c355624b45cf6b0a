//! Faults of the system and of the network (F-01…F-20 of docs/security.md): after each of them the oracle of the testbed
//! is asked, and everything has to be as it was before.
//!
//! | module | what goes wrong |
//! |---|---|
//! | `network` | routes, links, firewalls, offloads, the path's MTU, loss and reordering, restarts of the other end |
//! | `interface` | the TUN: deleted, moved, renamed, its MTU |
//! | `process` | descriptors, memory, threads, signals, the end |
//! | `answers` | what the system may answer, by a seed, around whole devices |
//! | `changes` | peers, allowed IPs and keys that change under traffic |
#![allow(clippy::unwrap_used, reason = "a test may")]

mod answers;
mod changes;
mod interface;
mod network;
mod process;
#[allow(unreachable_pub, reason = "a module of the benchmark as well")]
#[path = "../../benches/e2e/relay.rs"]
mod relay;
#[path = "../testbed/mod.rs"]
mod testbed;
