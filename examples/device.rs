//! A running WireGuard in a program: a TUN made by the library, sockets of the kernel, the UAPI socket that `wg(8)`
//! speaks to. Needs root (CAP_NET_ADMIN); without it, it says so and ends.
//!
//! `sudo target/debug/examples/device`, or without a trace: `sudo unshare --net target/debug/examples/device`
//!
//! The peer is a second device in the same program, whose interface is in memory and sends back whatever comes; what
//! goes between the two is real datagrams on loopback.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::device::{CloseReason, Device};
use adit::key::{PrivateKey, PublicKey};
use adit::tun::linux::{LinuxTun, OpenError};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::uapi;
use adit::udp::linux::LinuxUdp;

/// The system finds the number.
const INTERFACE: &str = "adit-ex%d";
/// Benchmarking addresses (RFC 2544): nobody's network.
const OURS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const THEIRS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const ECHO_PORT: u16 = 7;
const PINGS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let tun = match LinuxTun::create(INTERFACE, 1) {
        Ok(tun) => tun,
        Err(error @ (OpenError::NotPermitted(_) | OpenError::NoDriver(_))) => {
            println!("nothing was done: {error}");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (key, their_key) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));

    // What ends the device is told once: here it is printed, a service would shut itself down.
    let device = Device::builder(tun, LinuxUdp).on_close(|reason| println!("the device ended: {reason:?}")).start()?;
    let device = Arc::new(device);
    println!("made {}", device.name());

    let (their_device, their_system) = echo_device(&their_key, key.public_key())?;
    let their_port = eventually(|| Some(their_device.snapshot().listen_port).filter(|port| *port != 0))?;
    device.apply(Update {
        private_key: Some(Some(key)),
        peers: vec![PeerUpdate {
            endpoint: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, their_port))),
            ..peer(their_key.public_key(), THEIRS)
        }],
        ..Update::default()
    })?;

    // `wg show` works on it from here on, if it can have its socket. A stopped server closes its clients' connections.
    let server = match uapi::Listener::bind(uapi::socket::DIRECTORY, device.name()) {
        Ok(listener) => Some(uapi::serve(listener, device.clone(), |_| {})?),
        Err(error) => {
            println!("without a UAPI socket: {error}");
            None
        }
    };

    // Addresses and routes are the system's: `ip(8)`, netlink, or whatever else sets up networks.
    run("ip", &["address", "add", &format!("{OURS}/30"), "dev", &device.name()])?;
    run("ip", &["link", "set", &device.name(), "up"])?;

    // The interface in memory is gone when its other side is dropped: the thread gives it back.
    let echo = thread::spawn(move || {
        echo(&their_system);
        their_system
    });
    let socket = UdpSocket::bind((OURS, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    for number in 1..=PINGS {
        let begun = Instant::now();
        socket.send_to(&number.to_be_bytes(), (THEIRS, ECHO_PORT))?;
        let mut answer = [0; 4];
        socket.recv_from(&mut answer)?;
        assert_eq!(answer, number.to_be_bytes(), "the echo of this ping");
        println!("ping {number}: there and back in {:?}", begun.elapsed());
    }
    let peer = &device.snapshot().peers[0];
    println!("peer {}: {} bytes sent, {} received", peer.public_key, peer.tx_bytes, peer.rx_bytes);

    // Orderly, and in this order: who configures, the devices, the interface with its device.
    drop(server);
    echo.join().map_err(|_| "the echo panicked")?;
    drop(their_device);
    let mut device = Arc::into_inner(device).ok_or("the server has let go of the device")?;
    device.close();
    assert_eq!(device.wait(), CloseReason::Requested);
    Ok(())
}

fn peer(public_key: PublicKey, address: Ipv4Addr) -> PeerUpdate {
    let allowed_ip = AllowedIp { address: address.into(), prefix_len: 32 };
    PeerUpdate { allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }], ..PeerUpdate::new(public_key) }
}

/// The other end of the tunnel, up, on a port of the system's choice. It learns where we are from what we send.
fn echo_device(key: &PrivateKey, our_key: PublicKey) -> Result<(Device, MemoryTunHandle), Box<dyn Error>> {
    let (tun, system) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, LinuxUdp).threads(1).start()?;
    let peers = vec![peer(our_key, OURS)];
    device.apply(Update { private_key: Some(Some(key.clone())), peers, ..Update::default() })?;
    system.set_up(true);
    Ok((device, system))
}

/// Sends the pings back. Addresses and ports change places, which no checksum notices.
fn echo(system: &MemoryTunHandle) {
    let mut echoed = 0;
    while echoed < PINGS {
        let Some(mut packet) = system.receive(PATIENCE) else { return };
        let is_ping = packet.len() == 32 && packet[0] == 0x45 && packet[22..24] == ECHO_PORT.to_be_bytes();
        if is_ping {
            packet[12..20].rotate_left(4);
            packet[20..24].rotate_left(2);
            system.send(&packet);
            echoed += 1;
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let status = Command::new(program).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {status}").into()) }
}

fn eventually<T>(check: impl Fn() -> Option<T>) -> Result<T, Box<dyn Error>> {
    let end = Instant::now() + PATIENCE;
    loop {
        match check() {
            Some(found) => return Ok(found),
            None if Instant::now() > end => return Err("the link did not come up".into()),
            None => thread::sleep(Duration::from_millis(1)),
        }
    }
}
