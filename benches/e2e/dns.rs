//! Questions and answers as of a name server: small datagrams of varying size from many ports.
//!
//! Each asker is a thread that uses a port for a while and then another, has one question under way, and asks the next
//! one when the answer has come. The sizes follow from the number of the question, so that every run asks the same.

use std::io;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use crate::LOST_AFTER;
use crate::quantiles::Quantiles;

/// A question has this much and up to `QUESTION_SPREAD` more: names of 20 to 60 letters.
const QUESTION_MIN: usize = 40;
const QUESTION_SPREAD: u64 = 40;
/// An answer has this much and up to `ANSWER_SPREAD` more: one address, up to a signed answer.
const ANSWER_MIN: usize = 80;
const ANSWER_SPREAD: u64 = 432;
const ANSWER_MAX: usize = ANSWER_MIN + ANSWER_SPREAD as usize;
/// Questions from one port.
const QUESTIONS_PER_PORT: u64 = 16;
/// A number, then the length of the answer.
const HEAD_LEN: usize = 16;

fn head(bytes: &[u8], position: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|place| bytes[position + place]))
}

pub fn serve(address: &str) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let mut datagram = [0; ANSWER_MAX];
    loop {
        let (len, from) = socket.recv_from(&mut datagram)?;
        if len >= HEAD_LEN {
            let answer = (head(&datagram, 8) as usize).min(ANSWER_MAX);
            // That one asker cannot be reached is not the next one's fault.
            let _ = socket.send_to(&datagram[..answer], from);
        }
    }
}

pub fn ask(address: &str, duration: Duration, askers: u64) -> io::Result<()> {
    let end = Instant::now() + duration;
    let threads: Vec<_> = (0..askers)
        .map(|asker| {
            let address = address.to_owned();
            thread::spawn(move || ask_until(&address, end, asker))
        })
        .collect();
    let (mut answered, mut lost) = (Quantiles::new(), 0);
    for thread in threads {
        let (times, missing) = thread.join().map_err(|_| io::Error::other("an asker panicked"))??;
        answered.append(times);
        lost += missing;
    }
    println!("{{\"lost\": {lost}, {}}}", answered.json());
    Ok(())
}

fn ask_until(address: &str, end: Instant, asker: u64) -> io::Result<(Quantiles, u64)> {
    let (mut times, mut lost) = (Quantiles::new(), 0);
    let mut question = [0; QUESTION_MIN + QUESTION_SPREAD as usize];
    let mut answer = [0; ANSWER_MAX];
    let mut number = asker << 32;
    while Instant::now() < end {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(LOST_AFTER))?;
        for _ in 0..QUESTIONS_PER_PORT {
            number += 1;
            // Fibonacci hashing: a size that looks random and is the same in every run.
            let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            question[..8].copy_from_slice(&number.to_le_bytes());
            question[8..HEAD_LEN].copy_from_slice(&(ANSWER_MIN as u64 + mixed % ANSWER_SPREAD).to_le_bytes());
            let start = Instant::now();
            socket.send(&question[..QUESTION_MIN + (mixed % QUESTION_SPREAD) as usize])?;
            loop {
                match socket.recv(&mut answer) {
                    Ok(len) if len >= HEAD_LEN && head(&answer, 0) == number => break times.push(start.elapsed()),
                    Ok(_) => {}
                    Err(_) => break lost += 1,
                }
            }
        }
    }
    Ok((times, lost))
}
