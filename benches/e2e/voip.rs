//! Calls: many streams of 50 packets a second and 160 to 200 bytes, each from a port of its own, one way.
//!
//! Departures are spread evenly over the 20 ms. The delay is one-way, by the wall clock of the one machine on which both
//! ends run; the jitter is the mean over the streams of RFC 3550's smoothed difference of delays.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::quantiles::Quantiles;
use crate::wait_for_end_of_input;

const FRAME: Duration = Duration::from_millis(20);
/// Payloads are from here on, in steps, by stream: different codecs.
const PAYLOAD_MIN: usize = 160;
const PAYLOAD_STEP: usize = 8;
const PAYLOAD_STEPS: usize = 6;
const PAYLOAD_MAX: usize = PAYLOAD_MIN + PAYLOAD_STEP * (PAYLOAD_STEPS - 1);
/// RFC 3550's gain of the jitter estimate.
const JITTER_GAIN: f64 = 1.0 / 16.0;

/// Nanoseconds of the wall clock.
fn wall_clock() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64)
}

#[derive(Clone, Copy, Default)]
struct Stream {
    last_delay: u64,
    jitter: f64,
}

struct Heard {
    delays: Quantiles,
    streams: HashMap<SocketAddr, Stream>,
}

pub fn listen(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let heard = Arc::new(Mutex::new(Heard { delays: Quantiles::new(), streams: HashMap::new() }));
    let shared = heard.clone();
    thread::spawn(move || {
        let mut packet = [0; PAYLOAD_MAX];
        while let Ok((_, from)) = socket.recv_from(&mut packet) {
            let departed = u64::from_le_bytes(std::array::from_fn(|place| packet[place]));
            let delay = wall_clock().saturating_sub(departed);
            let mut heard = shared.lock().unwrap_or_else(PoisonError::into_inner);
            heard.delays.push(Duration::from_nanos(delay));
            let stream = heard.streams.entry(from).or_insert(Stream { last_delay: delay, jitter: 0.0 });
            stream.jitter += (delay.abs_diff(stream.last_delay) as f64 - stream.jitter) * JITTER_GAIN;
            stream.last_delay = delay;
        }
    });
    wait_for_end_of_input();
    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
    let streams = heard.streams.len().max(1) as f64;
    let jitter = heard.streams.values().map(|stream| stream.jitter / 1000.0).sum::<f64>() / streams;
    let delays = std::mem::replace(&mut heard.delays, Quantiles::new());
    println!("{{\"jitter\": {jitter:.2}, {}}}", delays.json());
    Ok(())
}

pub fn talk(address: &str, duration: Duration, streams: u32) -> io::Result<()> {
    let sockets = (0..streams)
        .map(|_| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(address)?;
            Ok(socket)
        })
        .collect::<io::Result<Vec<_>>>()?;
    let mut packet = [0; PAYLOAD_MAX];
    let start = Instant::now();
    let mut sent = 0_u64;
    'talk: for frame in 0.. {
        for (number, socket) in sockets.iter().enumerate() {
            let departure = FRAME * frame + FRAME * number as u32 / streams;
            if departure >= duration {
                break 'talk;
            }
            thread::sleep((start + departure).saturating_duration_since(Instant::now()));
            packet[..8].copy_from_slice(&wall_clock().to_le_bytes());
            let len = PAYLOAD_MIN + PAYLOAD_STEP * (number % PAYLOAD_STEPS);
            // A full queue loses it, which the count of what was heard tells.
            let _ = socket.send(&packet[..len]);
            sent += 1;
        }
    }
    println!("{{\"sent\": {sent}}}");
    Ok(())
}
