//! A flood: one thread sends datagrams of one size as fast as `send` returns; the other end counts what it got, by its
//! own clock. Ordinary sockets with the buffers that the system gives to everybody.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{DATAGRAM_MAX, wait_for_end_of_input};

/// Between two looks at the socket, and what the system adds to so short a sleep. In a tenth of a millisecond the
/// fastest flood fills a quarter of a default receive buffer.
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// Datagrams between two looks at the clock.
const BURST: u64 = 64;

pub fn count(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    let begun = Instant::now();
    let (counted, first, last) = <(Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let seen = (counted.clone(), first.clone(), last.clone());
    thread::spawn(move || {
        let mut datagram = [0; DATAGRAM_MAX];
        loop {
            match socket.recv(&mut datagram) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    thread::sleep(LOOK_EVERY);
                    continue;
                }
                Err(_) => return,
            }
            let now = begun.elapsed().as_nanos() as u64;
            if seen.0.fetch_add(1, Ordering::Relaxed) == 0 {
                seen.1.store(now, Ordering::Relaxed);
            }
            seen.2.store(now, Ordering::Relaxed);
        }
    });
    wait_for_end_of_input();
    let nanos = last.load(Ordering::Relaxed).saturating_sub(first.load(Ordering::Relaxed));
    println!("{{\"received\": {}, \"seconds\": {:.6}}}", counted.load(Ordering::Relaxed), nanos as f64 / 1e9);
    Ok(())
}

pub fn send(address: &str, duration: Duration, bytes: usize) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    let datagram = vec![0; bytes.min(DATAGRAM_MAX)];
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < duration {
        for _ in 0..BURST {
            // A full queue drops, as it does to everybody who does not wait.
            sent += u64::from(socket.send(&datagram).is_ok());
        }
    }
    println!("{{\"sent\": {sent}, \"seconds\": {:.6}}}", start.elapsed().as_secs_f64());
    Ok(())
}
