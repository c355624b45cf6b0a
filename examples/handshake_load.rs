//! Genuine initiations of many initiators, and how fast a responder answers them: the handshake load of the end-to-end
//! benchmark, for any implementation of WireGuard.
//!
//! ```text
//! handshake_load create FILE INITIATORS EACH
//! handshake_load send   FILE INITIATORS ADDRESS:PORT SECONDS WINDOW
//! ```
//! `create` makes the cryptography beforehand, once for all runs: it writes the responder's public key and the initiations
//! to FILE, and prints the responder's private key and then the initiators' public keys, a line each, in base64. `send`
//! computes nothing but macs, so that it takes little from a responder on the same machine: each of WINDOW threads sends
//! one initiation, waits for its answer, and goes on to the next. Who is answered with a cookie asks again with it at once,
//! one time. It prints one line of JSON.
//!
//! Initiators have a port each, as they do when they are different hosts, and take turns, because a responder takes only
//! so many initiations a second of one peer.

use std::error::Error;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use adit::key::{KEY_LEN, PresharedKey, PrivateKey, PublicKey};
use adit::proto::cookie::CookieJar;
use adit::proto::handshake::{Handshake, Identity};
use adit::proto::messages::{self, INITIATION_LEN, Message};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant as ProtoInstant, UnixTime};

type Failure = Box<dyn Error + Send + Sync>;

/// An initiation that was not answered by then is lost.
const LOST_AFTER: Duration = Duration::from_millis(100);
/// More than any message of a handshake.
const DATAGRAM_MAX: usize = 256;
/// The age of cookies does not matter in a run that is shorter than they live.
const NOW: ProtoInstant = ProtoInstant::from_nanos(0);

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["create", file, initiators, each] => create(file, initiators.parse()?, each.parse()?),
        ["send", file, initiators, address, seconds, window] => {
            let duration = Duration::try_from_secs_f64(seconds.parse()?)?;
            send(file, initiators.parse()?, address, duration, window.parse()?)
        }
        _ => Err("usage: handshake_load create FILE INITIATORS EACH | \
                  send FILE INITIATORS ADDRESS:PORT SECONDS WINDOW"
            .into()),
    }
}

fn create(file: &str, initiators: u32, each: u32) -> Result<(), Failure> {
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
    out.write_all(responder.public_key().as_bytes())?;
    for index in 0..initiators.saturating_mul(each) {
        let (identity, handshake) = &mut parties[(index % initiators) as usize];
        let message = handshake.create_initiation(identity, index, stamp, &mut rng);
        out.write_all(&message.map_err(|why| format!("{why:?}"))?)?;
    }
    Ok(out.flush()?)
}

/// What became of initiations.
#[derive(Default)]
struct Counts {
    answered: u64,
    cookies: u64,
    lost: u64,
}

struct Initiator {
    socket: UdpSocket,
    jar: CookieJar,
}

fn send(file: &str, initiators: usize, address: &str, duration: Duration, window: usize) -> Result<(), Failure> {
    let bytes = fs::read(file)?;
    let (responder, initiations) = bytes.split_first_chunk::<KEY_LEN>().ok_or("no responder's key in the file")?;
    let responder = PublicKey::from_bytes(*responder);
    let mut parties = Vec::new();
    for _ in 0..initiators {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(LOST_AFTER))?;
        parties.push(Initiator { socket, jar: CookieJar::new() });
    }
    let start = Instant::now();
    let end = start + duration;
    let total = thread::scope(|scope| {
        // Each thread has neighbouring initiators for its own, and their initiations in the order of their stamps.
        let share = initiators.div_ceil(window).max(1);
        let threads: Vec<_> = parties
            .chunks_mut(share)
            .enumerate()
            .map(|(thread, own)| {
                scope.spawn(move || ask(own, initiations, thread * share, initiators, &responder, end))
            })
            .collect();
        threads.into_iter().try_fold(Counts::default(), |total, thread| {
            let counts = thread.join().map_err(|_| "a thread panicked")??;
            Ok::<_, Failure>(Counts {
                answered: total.answered + counts.answered,
                cookies: total.cookies + counts.cookies,
                lost: total.lost + counts.lost,
            })
        })
    })?;
    let Counts { answered, cookies, lost } = total;
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"answered\": {answered}, \"cookies\": {cookies}, \"lost\": {lost}, \"seconds\": {seconds:.6}}}");
    Ok(())
}

/// Sends the initiations of the initiators from `first` on, one at a time, until `end` or the last one.
fn ask(
    own: &mut [Initiator],
    initiations: &[u8],
    first: usize,
    initiators: usize,
    responder: &PublicKey,
    end: Instant,
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    for turn in initiations.chunks(initiators * INITIATION_LEN) {
        for (initiator, initiation) in own.iter_mut().zip(turn.chunks_exact(INITIATION_LEN).skip(first)) {
            if Instant::now() >= end {
                return Ok(counts);
            }
            initiator.ask(initiation, responder, &mut counts)?;
        }
    }
    Ok(counts)
}

impl Initiator {
    fn ask(&mut self, initiation: &[u8], responder: &PublicKey, counts: &mut Counts) -> Result<(), Failure> {
        let mut message = initiation.to_vec();
        let mut datagram = [0; DATAGRAM_MAX];
        let mut has_cookie = false;
        self.jar.add_macs(responder, &mut message, NOW);
        self.socket.send(&message)?;
        loop {
            let len = match self.socket.recv(&mut datagram) {
                Ok(len) => len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    counts.lost += 1;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            match messages::parse(&datagram[..len]) {
                Ok(Message::Response(_)) => {
                    counts.answered += 1;
                    return Ok(());
                }
                Ok(Message::CookieReply(reply)) if !has_cookie => {
                    has_cookie = self.jar.consume_reply(responder, &reply, NOW).is_ok();
                    counts.cookies += 1;
                    self.jar.add_macs(responder, &mut message, NOW);
                    self.socket.send(&message)?;
                }
                // A second cookie, a keepalive, or the answer to what was taken for lost.
                _ => {}
            }
        }
    }
}
