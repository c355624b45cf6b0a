//! The load generators of the end-to-end benchmark, in one program without dependencies: plain `rustc -O` builds it in
//! seconds. `run.py` starts them in network namespaces; each prints one line of JSON about what it saw.
//!
//! ```text
//! traffic echo-serve    ADDRESS:PORT
//! traffic echo-pingpong ADDRESS:PORT SECONDS BYTES
//! traffic echo-paced    ADDRESS:PORT SECONDS BYTES EVERY_US
//! traffic flood-count   ADDRESS:PORT
//! traffic flood-send    ADDRESS:PORT SECONDS BYTES
//! traffic dns-serve     ADDRESS:PORT
//! traffic dns-ask       ADDRESS:PORT SECONDS ASKERS
//! traffic voip-listen   ADDRESS:PORT
//! traffic voip-talk     ADDRESS:PORT SECONDS STREAMS
//! traffic hold-serve    ADDRESS:PORT
//! traffic hold-open     ADDRESS:PORT SECONDS CONNECTIONS
//! traffic stream-listen ADDRESS:PORT send|receive
//! traffic stream-open   ADDRESS:PORT send|receive
//! traffic relay         ADDRESS:PORT TO:PORT SEED LOSS DUPLICATION REORDERING CORRUPTION DELAY_US
//! ```
//! `echo-serve`, `dns-serve` and `hold-serve` run until they are killed, and so does a stream, whose receiving end answers each
//! line of its standard input. `flood-count` and `voip-listen` report when their standard
//! input ends: who started them says when all has arrived; `relay`, whose odds are in thousandths, does so too.

use std::io::{self, Read};
use std::net::{SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

mod dns;
mod echo;
mod flood;
mod hold;
mod quantiles;
mod relay;
mod stream;
mod voip;

/// The largest UDP payload over IPv4.
const DATAGRAM_MAX: usize = 65_507;
/// What has not been answered by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["echo-serve", address] => echo::serve(address),
        ["echo-pingpong", address, duration, bytes] => echo::pingpong(address, seconds(duration)?, number(bytes)?),
        ["echo-paced", address, duration, bytes, every] => {
            echo::paced(address, seconds(duration)?, number(bytes)?, Duration::from_micros(number(every)?))
        }
        ["flood-count", address] => flood::count(address),
        ["flood-send", address, duration, bytes] => flood::send(address, seconds(duration)?, number(bytes)?),
        ["dns-serve", address] => dns::serve(address),
        ["dns-ask", address, duration, askers] => dns::ask(address, seconds(duration)?, number(askers)?),
        ["voip-listen", address] => voip::listen(address),
        ["voip-talk", address, duration, streams] => voip::talk(address, seconds(duration)?, number(streams)?),
        ["hold-serve", address] => hold::serve(address),
        ["hold-open", address, duration, connections] => hold::open(address, seconds(duration)?, number(connections)?),
        ["stream-listen", address, role @ ("send" | "receive")] => stream::listen(address, role),
        ["stream-open", address, role @ ("send" | "receive")] => {
            stream::open(address.parse().map_err(io::Error::other)?, role)
        }
        ["relay", address, to, seed, loss, duplication, reordering, corruption, delay] => {
            let trouble = relay::Trouble {
                loss: number(loss)?,
                duplication: number(duplication)?,
                reordering: number(reordering)?,
                corruption: number(corruption)?,
                delay: Duration::from_micros(number(delay)?),
            };
            carry(address, number(to)?, trouble, number(seed)?)
        }
        _ => {
            eprintln!("traffic: not understood: {words:?}");
            std::process::exit(2)
        }
    }
}

fn number<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(word: &str) -> io::Result<T> {
    word.parse().map_err(io::Error::other)
}

fn seconds(word: &str) -> io::Result<Duration> {
    Duration::try_from_secs_f64(number(word)?).map_err(io::Error::other)
}

/// A bad network until standard input ends, and then what it has done.
fn carry(address: &str, to: SocketAddr, trouble: relay::Trouble, seed: u64) -> io::Result<()> {
    let near = UdpSocket::bind(address)?;
    let far = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    let relay = relay::Relay::start(near, far, to, trouble, seed)?;
    wait_for_end_of_input();
    let counts = relay.counts();
    let [received, lost, doubled, reordered, spoilt] =
        [&counts.received, &counts.lost, &counts.doubled, &counts.reordered, &counts.spoilt]
            .map(|count| count.load(Ordering::Relaxed));
    println!(
        "{{\"received\": {received}, \"lost\": {lost}, \"doubled\": {doubled}, \"reordered\": {reordered}, \
         \"spoilt\": {spoilt}}}"
    );
    Ok(())
}

/// Returns when standard input has ended.
fn wait_for_end_of_input() {
    // An error ends the input as well.
    let _ = io::stdin().read_to_end(&mut Vec::new());
}
