//! Genuine initiations of many initiators, and how fast a responder answers them: the handshake load of the end-to-end
//! benchmark, for any implementation of WireGuard.
//!
//! ```text
//! handshake_load create FILE INITIATORS EACH
//! handshake_load send   FILE ADDRESS:PORT SECONDS WINDOW
//! ```
//! `create` makes the cryptography beforehand, once for all runs: it writes the initiations to FILE, and prints the
//! responder's private key and then the initiators' public keys, a line each, in base64. `send` computes nothing, so
//! that it takes little from a responder on the same machine: it keeps WINDOW initiations under way, sends the next for
//! each answer, and prints one line of JSON. A cookie reply is no answer: who got one waits before he asks again.
//!
//! Initiators take turns, because a responder takes only so many initiations a second of one peer.

use std::error::Error;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime};

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::cookie::CookieJar;
use adit::proto::handshake::{Handshake, Identity};
use adit::proto::messages::{self, INITIATION_LEN, Message};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant as ProtoInstant, UnixTime};

/// An initiation that was not answered by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(100);
/// Who was sent a cookie keeps quiet for so long; real initiators wait for five seconds.
const COOKIE_PAUSE: Duration = Duration::from_millis(10);
/// More than any message of a handshake.
const DATAGRAM_MAX: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["create", file, initiators, each] => create(file, initiators.parse()?, each.parse()?),
        ["send", file, address, seconds, window] => {
            send(file, address, Duration::try_from_secs_f64(seconds.parse()?)?, window.parse()?)
        }
        _ => Err("usage: handshake_load create FILE INITIATORS EACH | send FILE ADDRESS:PORT SECONDS WINDOW".into()),
    }
}

fn create(file: &str, initiators: u32, each: u32) -> Result<(), Box<dyn Error>> {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let responder = PrivateKey::generate(&mut rng);
    println!("{}", &*responder.to_base64());
    let mut parties = Vec::new();
    for _ in 0..initiators {
        let identity = Identity::new(PrivateKey::generate(&mut rng));
        println!("{}", identity.public_key());
        parties.push((identity, Handshake::new(responder.public_key(), PresharedKey::default())));
    }
    let stamp = Tai64n::from_unix(UnixTime(SystemTime::UNIX_EPOCH.elapsed()?));
    let mut out = std::io::BufWriter::new(fs::File::create(file)?);
    for index in 0..initiators.saturating_mul(each) {
        let (identity, handshake) = &mut parties[(index % initiators) as usize];
        let mut message =
            handshake.create_initiation(identity, index, stamp, &mut rng).map_err(|why| format!("{why:?}"))?;
        CookieJar::new().add_macs(&responder.public_key(), &mut message, ProtoInstant::default());
        out.write_all(&message)?;
    }
    Ok(out.flush()?)
}

fn send(file: &str, address: &str, duration: Duration, window: usize) -> Result<(), Box<dyn Error>> {
    let initiations = fs::read(file)?;
    let mut initiations = initiations.chunks_exact(INITIATION_LEN);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(LOST_AFTER))?;
    let (mut answered, mut cookies, mut lost, mut under_way) = (0_u64, 0_u64, 0_u64, 0_usize);
    let mut datagram = [0; DATAGRAM_MAX];
    let start = Instant::now();
    while start.elapsed() < duration {
        while under_way < window {
            let Some(initiation) = initiations.next() else { break };
            socket.send(initiation)?;
            under_way += 1;
        }
        if under_way == 0 {
            break;
        }
        match socket.recv(&mut datagram) {
            Ok(len) => match messages::parse(&datagram[..len]) {
                Ok(Message::Response(_)) => answered += 1,
                Ok(Message::CookieReply(_)) => {
                    cookies += 1;
                    std::thread::sleep(COOKIE_PAUSE);
                }
                // A keepalive or the like answers nothing.
                _ => continue,
            },
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                lost += under_way as u64;
                under_way = 1;
            }
            Err(error) => return Err(error.into()),
        }
        under_way -= 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"answered\": {answered}, \"cookies\": {cookies}, \"lost\": {lost}, \"seconds\": {seconds:.6}}}");
    Ok(())
}
