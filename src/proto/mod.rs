//! The protocol: bytes, the time and randomness in; bytes and facts out.

pub mod allowed_ips;
pub mod constants;
pub mod cookie;
pub mod crypto;
pub mod handshake;
pub mod keypair;
pub mod messages;
pub mod noise;
pub mod peer;
pub mod ratelimiter;
pub mod rejected;
pub mod replay;
pub mod tai64n;
#[cfg(test)]
#[path = "../../tests/simulation/rng.rs"]
mod test_rng;
pub mod time;
pub mod timers;
pub mod tunnel;
