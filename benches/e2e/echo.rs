//! Round trips: datagrams that go there and back, timed by who sent them.
//!
//! *Ping-pong* sends the next one when the last has come back: the shortest round trip there is, with both ends awake.
//! *Paced* sends one at fixed times, whatever has come back: the path has gone to sleep in between, and a path that
//! falls behind is not asked less often, so that what a queue adds is seen in full.

use std::io;
use std::net::UdpSocket;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::quantiles::Quantiles;
use crate::{DATAGRAM_MAX, LOST_AFTER};

/// Round trips at the beginning that are not counted: caches, ARP, the spinning of whoever spins.
const WARM_UP: u64 = 200;
/// A number before the padding tells which datagram came back.
const NUMBER_LEN: usize = 8;

pub fn serve(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut datagram = [0; DATAGRAM_MAX];
    loop {
        let (len, from) = socket.recv_from(&mut datagram)?;
        // That one client cannot be reached is not the next one's fault.
        let _ = socket.send_to(&datagram[..len], from);
    }
}

fn connect(address: &str) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    Ok(socket)
}

pub fn pingpong(address: &str, duration: Duration, bytes: usize) -> io::Result<()> {
    let socket = connect(address)?;
    let bytes = bytes.clamp(NUMBER_LEN, DATAGRAM_MAX);
    let (mut ping, mut pong) = (vec![0; bytes], vec![0; bytes]);
    let (mut round_trips, mut lost) = (Quantiles::new(), 0_u64);
    let mut end = Instant::now() + duration;
    for number in 1_u64.. {
        if Instant::now() >= end {
            break;
        }
        ping[..NUMBER_LEN].copy_from_slice(&number.to_le_bytes());
        let start = Instant::now();
        socket.send(&ping)?;
        // A late one of an earlier round is passed over.
        let arrived = loop {
            match socket.recv(&mut pong) {
                Ok(len) if len == bytes && pong[..NUMBER_LEN] == ping[..NUMBER_LEN] => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        if arrived {
            round_trips.push(start.elapsed());
        } else {
            lost += 1;
        }
        if number == WARM_UP {
            (round_trips, lost) = (Quantiles::new(), 0);
            end = Instant::now() + duration;
        }
    }
    println!("{{\"lost\": {lost}, {}}}", round_trips.json());
    Ok(())
}

pub fn paced(address: &str, duration: Duration, bytes: usize, every: Duration) -> io::Result<()> {
    let socket = connect(address)?;
    let bytes = bytes.clamp(NUMBER_LEN, DATAGRAM_MAX);
    let (departures, sent) = mpsc::channel::<Instant>();
    let answers = socket.try_clone()?;
    let listener = thread::spawn(move || {
        let mut departed = Vec::new();
        let mut round_trips = Quantiles::new();
        let mut pong = vec![0; bytes];
        // Ends when nothing has come for so long that the rest is lost, and nothing more is sent.
        loop {
            match answers.recv(&mut pong) {
                Ok(len) if len == bytes => {
                    let now = Instant::now();
                    departed.extend(sent.try_iter());
                    let number = u64::from_le_bytes(std::array::from_fn(|place| pong[place]));
                    if let Some(start) = departed.get(number as usize) {
                        round_trips.push(now - *start);
                    }
                }
                Ok(_) => {}
                Err(_) => loop {
                    match sent.try_recv() {
                        Ok(start) => departed.push(start),
                        Err(mpsc::TryRecvError::Empty) => break,
                        Err(mpsc::TryRecvError::Disconnected) => return round_trips,
                    }
                },
            }
        }
    });
    let mut ping = vec![0; bytes];
    let start = Instant::now();
    let mut number = 0_u64;
    loop {
        let planned = every.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX));
        if planned >= duration {
            break;
        }
        thread::sleep((start + planned).saturating_duration_since(Instant::now()));
        ping[..NUMBER_LEN].copy_from_slice(&number.to_le_bytes());
        // The listener lives as long as this end of the channel.
        let _ = departures.send(Instant::now());
        // A full queue loses it, which the count of answers tells.
        let _ = socket.send(&ping);
        number += 1;
    }
    drop(departures);
    let round_trips = listener.join().map_err(|_| io::Error::other("the listener panicked"))?;
    println!("{{\"lost\": {}, {}}}", number.saturating_sub(round_trips.len() as u64), round_trips.json());
    Ok(())
}
