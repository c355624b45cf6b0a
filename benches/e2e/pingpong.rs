//! A UDP ping-pong: one datagram at a time goes there and back, and each round trip is timed.
//!
//! ```text
//! pingpong server ADDRESS:PORT
//! pingpong client ADDRESS:PORT SECONDS BYTES
//! ```
//! The client prints one line of JSON: how many round trips, how many were lost, and their quantiles in microseconds.
//! One file without dependencies, so that `rustc -O` builds it in a second: `run.py` does.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// A datagram that has not come back by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(500);
/// Round trips at the beginning that are not counted: caches, ARP, the handshake.
const WARM_UP: usize = 200;
/// The largest UDP payload over IPv4.
const DATAGRAM_MAX: usize = 65_507;

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "server", address] => serve(address),
        [_, "client", address, seconds, bytes] => {
            let seconds = seconds.parse().map_err(std::io::Error::other)?;
            let bytes = bytes.parse().map_err(std::io::Error::other)?;
            play(address, Duration::from_secs_f64(seconds), bytes)
        }
        _ => {
            eprintln!("usage: pingpong server ADDRESS:PORT | pingpong client ADDRESS:PORT SECONDS BYTES");
            std::process::exit(2)
        }
    }
}

fn serve(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut datagram = [0; DATAGRAM_MAX];
    loop {
        let (len, from) = socket.recv_from(&mut datagram)?;
        // An unreachable client is not the next one's fault.
        let _ = socket.send_to(&datagram[..len], from);
    }
}

fn play(address: &str, duration: Duration, bytes: usize) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    let bytes = bytes.clamp(8, DATAGRAM_MAX);
    let (mut ping, mut pong) = (vec![0; bytes], vec![0; bytes]);
    let mut nanos: Vec<u64> = Vec::with_capacity(1 << 20);
    let (mut number, mut lost) = (0_u64, 0_u64);
    let mut end = Instant::now() + duration;
    while Instant::now() < end {
        number += 1;
        ping[..8].copy_from_slice(&number.to_le_bytes());
        let start = Instant::now();
        socket.send(&ping)?;
        // A late one of an earlier round is passed over.
        let arrived = loop {
            match socket.recv(&mut pong) {
                Ok(len) if len == bytes && pong[..8] == ping[..8] => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        if arrived {
            nanos.push(start.elapsed().as_nanos() as u64);
        } else {
            lost += 1;
        }
        if number as usize == WARM_UP {
            (nanos, lost) = (Vec::with_capacity(1 << 20), 0);
            end = Instant::now() + duration;
        }
    }
    nanos.sort_unstable();
    let quantile = |q: f64| match nanos.len() {
        0 => 0.0,
        len => nanos[((len - 1) as f64 * q).round() as usize] as f64 / 1000.0,
    };
    println!(
        "{{\"round_trips\": {}, \"lost\": {lost}, \"min\": {:.2}, \"p50\": {:.2}, \"p90\": {:.2}, \"p99\": {:.2}, \"max\": {:.2}}}",
        nanos.len(),
        quantile(0.0),
        quantile(0.5),
        quantile(0.9),
        quantile(0.99),
        quantile(1.0)
    );
    Ok(())
}
