//! An HTTP GET through a WireGuard tunnel, from inside a process: no TUN, no privilege, no system's network stack.
//!
//! Without arguments both ends are in this process, on a network in memory, the far one with a small web server:
//!
//! `cargo run --example netstack_http_get`
//!
//! With arguments the other end is a real peer:
//!
//! `netstack_http_get PRIVATE_KEY ADDRESS/LEN PEER_KEY ENDPOINT DNS URL`, for example
//! `netstack_http_get $(cat key) 10.0.0.2/24 $(cat peer.pub) 192.0.2.1:51820 10.0.0.1 http://www.example/`

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::{PrivateKey, PublicKey};
use adit::netstack::{Config, Net, Netstack};
use adit::udp::Udp;
use adit::udp::linux::LinuxUdp;
use adit::udp::memory::MemoryNetwork;

const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 51820;

/// A device with a stack for its interface, and one peer to which everything is routed.
fn start(
    udp: impl Udp + 'static,
    config: Config,
    key: PrivateKey,
    listen_port: u16,
    peer: PublicKey,
    endpoint: SocketAddr,
) -> Result<(Device, Net), Box<dyn Error>> {
    let (tun, net) = Netstack::pair(config)?;
    let device = Device::builder(tun, udp).start()?;
    let everything = |address: &str| -> Result<_, Box<dyn Error>> {
        Ok(AllowedIpUpdate { allowed_ip: AllowedIp { address: address.parse()?, prefix_len: 0 }, remove: false })
    };
    device.apply(Update {
        private_key: Some(Some(key)),
        listen_port: Some(listen_port),
        peers: vec![PeerUpdate {
            endpoint: Some(endpoint),
            allowed_ips: vec![everything("0.0.0.0")?, everything("::")?],
            ..PeerUpdate::new(peer)
        }],
        ..Update::default()
    })?;
    Ok((device, net))
}

/// Fetches `http://HOST[:PORT]/PATH`: the head and the body of the answer.
fn get(net: &Net, url: &str) -> Result<String, Box<dyn Error>> {
    let rest = url.strip_prefix("http://").ok_or("only http:// is spoken here")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse()?),
        _ => (authority, 80),
    };
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in net.resolve(host)? {
        match net.connect_tcp(SocketAddr::new(address, port), PATIENCE) {
            Ok(mut stream) => {
                write!(stream, "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n")?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer)?;
                return Ok(String::from_utf8_lossy(&answer).into_owned());
            }
            Err(error) => failure = error,
        }
    }
    Err(failure.into())
}

/// Answers one request with a page that says who asked.
fn serve_one(net: &Net) -> io::Result<()> {
    let listener = net.listen_tcp((Ipv4Addr::UNSPECIFIED, 80).into())?;
    thread::spawn(move || {
        let (mut stream, from) = listener.accept()?;
        let (mut request, mut buffer) = (Vec::new(), [0; 1024]);
        while !request.ends_with(b"\r\n\r\n") {
            let len = stream.read(&mut buffer)?;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            request.extend(&buffer[..len]);
        }
        let page = format!("Hello, {}, through the tunnel.\n", from.ip());
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len())
    });
    Ok(())
}

fn within_this_process() -> Result<(), Box<dyn Error>> {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (client_key, server_key) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let (client_public, server_public) = (client_key.public_key(), server_key.public_key());
    let outer = |host| SocketAddr::from((Ipv4Addr::new(192, 0, 2, host), PORT));
    let config = |host| Config::new(vec![(Ipv4Addr::new(10, 0, 0, host).into(), 24)]);
    let network = MemoryNetwork::new();
    let client = start(network.host(&[outer(1).ip()]), config(1), client_key, PORT, server_public, outer(2))?;
    let server = start(network.host(&[outer(2).ip()]), config(2), server_key, PORT, client_public, outer(1))?;

    serve_one(&server.1)?;
    println!("ping: {:?}", client.1.ping(Ipv4Addr::new(10, 0, 0, 2).into(), PATIENCE)?);
    println!("{}", get(&client.1, "http://10.0.0.2/")?);
    let peer = &client.0.snapshot().peers[0];
    println!("peer {}: {} bytes sent, {} received", peer.public_key, peer.tx_bytes, peer.rx_bytes);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [key, address, peer, endpoint, dns, url] = &arguments[..] else {
        if arguments.is_empty() {
            return within_this_process();
        }
        return Err("usage: netstack_http_get [PRIVATE_KEY ADDRESS/LEN PEER_KEY ENDPOINT DNS URL]".into());
    };
    let (address, prefix_len) = address.split_once('/').ok_or("an address is ADDRESS/LEN")?;
    let mut config = Config::new(vec![(address.parse::<IpAddr>()?, prefix_len.parse()?)]);
    config.dns = vec![SocketAddr::new(dns.parse()?, 53)];
    let (_device, net) =
        start(LinuxUdp, config, PrivateKey::from_base64(key)?, 0, PublicKey::from_base64(peer)?, endpoint.parse()?)?;
    print!("{}", get(&net, url)?);
    Ok(())
}
