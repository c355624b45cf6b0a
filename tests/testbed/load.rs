//! Load: traffic that goes on in the background until its value is dropped, paced traffic that is counted, and what the
//! system's TCP thinks of the path.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::namespace::Namespace;
use super::numbered::{Ledger, write_numbered};
use super::sys;
use super::traffic::listen;

/// A connection through a tunnel is made within this.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// How often background threads look whether they are still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// What is written to TCP at once.
const WRITE_LEN: usize = 128 << 10;
/// For as long, nothing more has to come before the last packet is given up.
const QUIET: Duration = Duration::from_secs(2);
/// Of the sockets here: what the test is too slow to read is not lost.
const RECEIVE_BUFFER_LEN: i32 = 8 << 20;
/// The pace is kept in steps of this.
const STEP: Duration = Duration::from_millis(1);

/// Sets its flag when dropped, also by a panic: what threads of a scope look at to know that they are done.
#[derive(Debug)]
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Threads that run until the value is dropped.
#[derive(Debug, Default)]
struct Background {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    /// Repeats `step` until the value is dropped.
    fn repeat(&mut self, mut step: impl FnMut() + Send + 'static) {
        let ended = Arc::clone(&self.ended);
        self.threads.push(std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                step();
            }
        }));
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "a thread of the load panicked");
        }
    }
}

/// A TCP connection that carries as much as it can.
#[derive(Debug)]
pub struct TcpLoad {
    received: Arc<AtomicU64>,
    _background: Background,
}

impl TcpLoad {
    /// Begins to send from one namespace to an address in the other.
    #[track_caller]
    pub fn start(from: &Namespace, to: &Namespace, address: IpAddr) -> Self {
        let listener = listen(to, address);
        let at = listener.local_addr().expect("a bound socket has an address");
        let mut sender = from
            .enter(|| TcpStream::connect_timeout(&at, CONNECT_LIMIT))
            .unwrap_or_else(|error| panic!("TCP to {at}: {error}"));
        let (mut receiver, _) = listener.accept().expect("a connection was made");
        sender.set_write_timeout(Some(LOOK_INTERVAL)).expect("a time above zero is accepted");
        receiver.set_read_timeout(Some(LOOK_INTERVAL)).expect("a time above zero is accepted");
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let mut background = Background::default();
        let data = vec![0x2a; WRITE_LEN];
        background.repeat(move || _ = sender.write(&data));
        let mut buffer = vec![0; WRITE_LEN];
        background.repeat(move || {
            let len = receiver.read(&mut buffer).unwrap_or(0);
            count.fetch_add(len as u64, Ordering::Relaxed);
        });
        Self { received, _background: background }
    }

    /// Bytes that the receiver got so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// UDP as fast as one thread can send it, with nobody's consent.
#[derive(Debug)]
pub struct UdpFlood {
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    _background: Background,
}

impl UdpFlood {
    /// Begins to send datagrams of `len` bytes from one namespace to an address in the other.
    #[track_caller]
    pub fn start(from: &Namespace, to: &Namespace, address: IpAddr, len: usize) -> Self {
        let receiver = udp_socket(to, address);
        let at = receiver.local_addr().expect("a bound socket has an address");
        let sender = udp_socket(from, any_like(at));
        sender.connect(at).expect("there is a route");
        let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut background = Background::default();
        let count = Arc::clone(&sent);
        let data = vec![0x55; len];
        background.repeat(move || {
            for _ in 0..64 {
                count.fetch_add(u64::from(sender.send(&data).is_ok()), Ordering::Relaxed);
            }
        });
        let count = Arc::clone(&received);
        let mut buffer = vec![0; 65_536];
        background.repeat(move || {
            count.fetch_add(u64::from(receiver.recv(&mut buffer).is_ok()), Ordering::Relaxed);
        });
        Self { sent, received, _background: background }
    }

    /// Datagrams sent and received so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

/// Datagrams of strangers to one address: each from the next of many sockets, at a bearable rate.
#[derive(Debug)]
pub struct Strangers {
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
    _background: Background,
}

impl Strangers {
    /// Begins to send what `make` makes to `to`, about `per_second` a second, from `ports` ports of each of these addresses
    /// of the namespace.
    #[track_caller]
    pub fn start(
        from: &Namespace,
        addresses: &[IpAddr],
        ports: usize,
        to: SocketAddr,
        per_second: u64,
        mut make: impl FnMut(&mut Vec<u8>) + Send + 'static,
    ) -> Self {
        let sockets: Vec<UdpSocket> = addresses
            .iter()
            .flat_map(|&address| (0..ports).map(move |_| address))
            .map(|address| {
                let socket = udp_socket(from, address);
                socket.connect(to).expect("there is a route");
                socket.set_nonblocking(true).expect("a socket can be made non-blocking");
                socket
            })
            .collect();
        let (sent, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, answers) = (Arc::clone(&sent), Arc::clone(&answered));
        let mut background = Background::default();
        let (mut message, mut next, start) = (Vec::new(), 0, Instant::now());
        background.repeat(move || {
            let due = (start.elapsed().as_micros() as u64 * per_second / 1_000_000).saturating_sub(next);
            // What a busy machine has missed is not made up for in one go.
            for _ in 0..due.min(per_second / 100) {
                let socket = &sockets[next as usize % sockets.len()];
                message.clear();
                make(&mut message);
                let taken = socket.send(&message).is_ok();
                count.fetch_add(u64::from(taken), Ordering::Relaxed);
                let mut buffer = [0; 2048];
                while socket.recv(&mut buffer).is_ok() {
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                next += 1;
            }
            next += due.saturating_sub(per_second / 100);
            std::thread::sleep(STEP);
        });
        Self { sent, answered, _background: background }
    }

    /// Datagrams sent so far, and answers that came.
    pub fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed))
    }
}

/// One paced flow: how many datagrams, how many of them every millisecond at most, how long each.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub count: u64,
    pub per_step: u64,
    /// The length of datagram number `n`.
    pub len: fn(u64) -> usize,
}

/// Sends numbered datagrams at a pace and gives how many arrived: in order, none twice, none altered.
#[track_caller]
pub fn paced(from: &Namespace, to: &Namespace, address: IpAddr, pace: Pace) -> u64 {
    let receiver = udp_socket(to, address);
    let at = receiver.local_addr().expect("a bound socket has an address");
    receiver.set_read_timeout(Some(LOOK_INTERVAL)).expect("a time above zero is accepted");
    let sender = udp_socket(from, any_like(at));
    sender.connect(at).expect("there is a route");
    let sent = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let (mut ledger, mut buffer) = (Ledger::default(), vec![0; 65_536]);
            let mut last = Instant::now();
            while ledger.total() < pace.count && (!sent.load(Ordering::Acquire) || last.elapsed() < QUIET) {
                match receiver.recv(&mut buffer) {
                    Ok(len) => {
                        ledger.enter(&buffer[..len]);
                        last = Instant::now();
                    }
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            ledger.total()
        });
        let mut payload = Vec::new();
        for number in 0..pace.count {
            if number % pace.per_step == 0 {
                // What a busy machine has missed is not made up for: that would be a burst.
                std::thread::sleep(STEP);
            }
            payload.resize((pace.len)(number), 0);
            write_numbered(&mut payload, 0, number);
            // What the interface does not take is lost, like what the tunnel loses.
            let _ = sender.send(&payload);
        }
        sent.store(true, Ordering::Release);
        receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A UDP socket of the namespace at an address, its port of the system's choice; reads return after a while.
#[track_caller]
pub fn udp_socket(namespace: &Namespace, address: IpAddr) -> UdpSocket {
    let socket = namespace.enter(|| UdpSocket::bind((address, 0)));
    let socket = socket.unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket.set_read_timeout(Some(LOOK_INTERVAL)).expect("a time above zero is accepted");
    sys::force_receive_buffer(&socket, RECEIVE_BUFFER_LEN).expect("root may have large buffers");
    socket
}

/// The unspecified address of the same family.
fn any_like(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) }
}

/// What the TCP of a namespace counts of the paths that it uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpCounters {
    /// Segments sent again.
    pub retransmitted: u64,
    /// Segments that arrived before one that was sent earlier.
    pub out_of_order: u64,
    /// How often the sender found out that the path had changed the order, by whichever sign.
    pub reorderings: u64,
}

impl TcpCounters {
    /// As they are now.
    #[track_caller]
    pub fn of(namespace: &Namespace) -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("Linux has it");
        let text = namespace.enter(|| read("netstat") + &read("snmp"));
        // Two lines for each protocol: the names, and the numbers below them.
        let lines: Vec<&str> = text.lines().collect();
        let counter = |protocol: &str, name: &str| {
            let both = lines.chunks(2).find(|pair| pair[0].split(':').next() == Some(protocol)).expect(protocol);
            let at = both[0].split_whitespace().position(|word| word == name).unwrap_or_else(|| panic!("{name}"));
            both[1].split_whitespace().nth(at).and_then(|number| number.parse::<u64>().ok()).expect("a number")
        };
        Self {
            retransmitted: counter("Tcp", "RetransSegs"),
            out_of_order: counter("TcpExt", "TCPOFOQueue"),
            reorderings: ["TCPSACKReorder", "TCPRenoReorder", "TCPTSReorder"]
                .map(|it| counter("TcpExt", it))
                .iter()
                .sum(),
        }
    }

    /// What has been counted since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            retransmitted: self.retransmitted - before.retransmitted,
            out_of_order: self.out_of_order - before.out_of_order,
            reorderings: self.reorderings - before.reorderings,
        }
    }
}
