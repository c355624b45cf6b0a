//! What is to be reached through a sidecar: a web server, a DNS server and an echo, on the inner addresses of a peer.
//!
//! They are threads of the test with sockets in the peer's namespace; they end when the value is dropped.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::namespace::Namespace;

/// How often a server looks whether it is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// A thread that copies needs no more.
const STACK_LEN: usize = 128 << 10;
/// The one name that the DNS server knows.
pub const NAME: &str = "service.internal";
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// The three servers, on both addresses.
#[derive(Debug)]
pub struct Services {
    ended: Arc<AtomicBool>,
}

impl Services {
    /// The port of the web server: `GET /PATH` is answered with `you asked for /PATH at HOST`.
    pub const HTTP: u16 = 80;
    /// The port of the DNS server, over UDP, which knows [`NAME`] by these addresses and nothing else.
    pub const DNS: u16 = 53;
    /// The port of the echo, over TCP and UDP. TCP is echoed until its end, half a close at a time.
    pub const ECHO: u16 = 7;

    /// Starts them in a namespace, where both addresses must be there.
    #[track_caller]
    pub fn start(namespace: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        for address in [IpAddr::from(v4), v6.into()] {
            let tcp = |port| {
                let listener = namespace.enter(|| TcpListener::bind((address, port)));
                listener.unwrap_or_else(|error| panic!("bind {address} port {port}: {error}"))
            };
            let udp = |port| {
                let socket = namespace.enter(|| UdpSocket::bind((address, port)));
                socket.unwrap_or_else(|error| panic!("bind {address} port {port}: {error}"))
            };
            accept(tcp(Self::HTTP), &ended, answer_http);
            accept(tcp(Self::ECHO), &ended, echo);
            answer(udp(Self::ECHO), &ended, |question| Some(question.to_vec()));
            answer(udp(Self::DNS), &ended, move |question| answer_dns(question, v4, v6));
        }
        Self { ended }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Gives each connection a thread.
fn accept(listener: TcpListener, ended: &Arc<AtomicBool>, serve: fn(TcpStream) -> std::io::Result<()>) {
    let ended = Arc::clone(ended);
    listener.set_nonblocking(true).expect("a socket can be made non-blocking");
    std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).expect("a socket can be made blocking");
                    let serving = std::thread::Builder::new().stack_size(STACK_LEN);
                    // A client that goes away is its own affair.
                    let serving = serving.spawn(move || _ = serve(stream));
                    serving.expect("the system has threads");
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => panic!("accept: {error}"),
            }
        }
    });
}

/// Answers each datagram, or does not.
fn answer(socket: UdpSocket, ended: &Arc<AtomicBool>, make: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) {
    let ended = Arc::clone(ended);
    socket.set_read_timeout(Some(LOOK_INTERVAL)).expect("a time above zero is accepted");
    std::thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while !ended.load(Ordering::Relaxed) {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(answer) = make(&buffer[..len]) {
                // Whoever asked may be gone.
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut back = stream.try_clone()?;
    std::io::copy(&mut stream, &mut back)?;
    back.shutdown(Shutdown::Write)
}

fn answer_http(stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split_whitespace().nth(1).unwrap_or("/").to_owned();
    let mut host = String::new();
    for line in lines {
        let line = line?;
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("host")) {
            assert!(name.len() == 4 && host.is_empty(), "one Host");
            host = value.trim().to_owned();
        }
        if line.is_empty() {
            break;
        }
    }
    let body = format!("you asked for {path} at {host}\n");
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n";
    write!(&stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
    stream.shutdown(Shutdown::Write)
}

/// A question for the addresses of a name, as a DNS message with this number.
pub fn dns_question(number: u16, name: &str) -> Vec<u8> {
    let mut message = Vec::from(number.to_be_bytes());
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("labels are short"));
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend([TYPE_A.to_be_bytes(), [0, 1]].concat());
    message
}

/// The IPv4 address that answers [`dns_question`] with this number.
pub fn dns_address(number: u16, answer: &[u8]) -> Option<Ipv4Addr> {
    let has_one = answer.get(..2)? == number.to_be_bytes() && answer.get(6..8)? == [0, 1];
    let address: [u8; 4] = answer.last_chunk().copied()?;
    has_one.then(|| address.into())
}

fn answer_dns(question: &[u8], v4: Ipv4Addr, v6: Ipv6Addr) -> Option<Vec<u8>> {
    let (header, rest) = question.split_at_checked(12)?;
    let (mut name, mut at) = (Vec::new(), 0);
    loop {
        let len = usize::from(*rest.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(rest.get(at..at + len)?).to_ascii_lowercase());
        at += len;
    }
    let kind = u16::from_be_bytes([*rest.get(at)?, *rest.get(at + 1)?]);
    let known = name.join(".") == NAME;
    let address: &[u8] = match kind {
        TYPE_A if known => &v4.octets(),
        TYPE_AAAA if known => &v6.octets(),
        _ => &[],
    };
    // A response, recursion desired and available; without a mistake, or no such name.
    let flags = [0x81, if known { 0x80 } else { 0x83 }];
    let mut message = [&header[..2], &flags, &[0, 1, 0, u8::from(!address.is_empty()), 0, 0, 0, 0]].concat();
    message.extend_from_slice(rest.get(..at + 4)?);
    if !address.is_empty() {
        // The name is that of the question; class IN, for a minute.
        message.extend([0xc0, 12]);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1, 0, 0, 0, 60, 0, address.len() as u8]);
        message.extend_from_slice(address);
    }
    Some(message)
}
