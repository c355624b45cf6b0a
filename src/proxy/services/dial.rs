//! Finds a target and connects to it: its name is resolved in the network that the connection is made in, and its
//! addresses are tried in order until one answers.
//!
//! One deadline holds for all of it. Each address gets an equal part of what is left of it, so that a host whose first
//! address is silent is still reached by its second; but never less than `ATTEMPT_MIN`, in which a round trip and a
//! retransmission fit.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::network::Network;
use crate::proxy::config::{Host, ResolveStrategy, Target};

/// To find and reach a target: less than the half minute after which many clients give up without having been told why.
/// A tunnel that has to shake hands first takes five seconds to try again.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// The least that an address is given.
const ATTEMPT_MIN: Duration = Duration::from_secs(2);
/// Addresses of one name that are tried: more would each have too little of the time.
pub const ADDRESSES_MAX: usize = 8;

/// The addresses of `target` that `strategy` wants, those to try first first; not empty.
pub(super) async fn resolve<N: Network>(
    network: &N,
    target: &Target,
    strategy: ResolveStrategy,
) -> Result<Vec<SocketAddr>, Failure> {
    let mut addresses = match &target.host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, target.port)]),
        Host::Name(name) => match network.resolve(name).await {
            Ok(addresses) => addresses,
            Err(error) => {
                tracing::debug!(%target, %error, "the name does not resolve");
                return Err(Failure::NameNotResolved);
            }
        },
    };
    match strategy {
        ResolveStrategy::Auto => addresses.sort_by_key(IpAddr::is_ipv4),
        ResolveStrategy::Ipv4 => addresses.retain(IpAddr::is_ipv4),
        ResolveStrategy::Ipv6 => addresses.retain(IpAddr::is_ipv6),
    }
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(Failure::NameNotResolved);
    }
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, target.port)).collect())
}

/// Connects to the first of the target's addresses that answers.
///
/// # Errors
/// Of several attempts, the one that came furthest: a host that refused says more than a network that is not there.
pub(super) async fn dial<N: Network>(
    network: &N,
    target: &Target,
    strategy: ResolveStrategy,
    time: Duration,
) -> Result<N::Stream, Failure> {
    let deadline = Instant::now() + time;
    let addresses = timeout_at(deadline, resolve(network, target, strategy)).await;
    let addresses = addresses.unwrap_or(Err(Failure::NameNotResolved))?;
    let mut furthest = None;
    for (tried, &address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let waiting = u32::try_from(addresses.len() - tried).expect("few addresses");
        let attempt = (left / waiting).max(ATTEMPT_MIN).min(left);
        // A network may wait for a place before its own clock starts.
        let outcome = timeout_at(Instant::now() + attempt, network.connect(address, attempt)).await;
        let error = match outcome {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(elapsed) => elapsed.into(),
        };
        let failure = Failure::of_connect(&error);
        tracing::debug!(%target, %address, %error, "no connection");
        if furthest.is_none_or(|before| distance(failure) >= distance(before)) {
            furthest = Some(failure);
        }
    }
    Err(furthest.unwrap_or(Failure::TimedOut))
}

/// How far an attempt came, to compare with others.
fn distance(failure: Failure) -> u8 {
    match failure {
        Failure::Refused => 4,
        Failure::TimedOut => 3,
        Failure::HostUnreachable => 2,
        Failure::ConnectFailed => 1,
        _ => 0,
    }
}
