//! Many peers: how long a configuration of 20,000 takes to load and to read back, what a peer costs in memory.
//!
//! Times of a release build are what the project promises; the build that tests run against by default is held to the
//! wider ones beside them. `scripts/measure-scale.sh` runs these tests with a release build and with its bounds.

mod testbed;

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use base64ct::Encoding as _;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519;
use testbed::{Daemon, Implementation, Keys, Namespace, random_bytes, wait_until};

const PEERS: usize = 20_000;
const SESSIONS: usize = 1_000;

/// Loading 20,000 peers and listing them, in a release build.
const RELEASE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(300));
/// The same in a build for tests, on a machine that runs other tests at the same time.
const CHECKING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(1500));
/// Resident bytes for a peer that is only configured. Memory does not depend on the build.
const CONFIGURED_PEER_BYTES_MAX: u64 = 2 * 1024;
/// Resident bytes for a peer with a live session.
const LIVE_PEER_BYTES_MAX: u64 = 8 * 1024;

/// A configuration with this many peers, each with one allowed IP. Any 32 bytes are a public key.
fn configuration(private_key: &str, peers: usize) -> String {
    let mut conf = format!("[Interface]\nPrivateKey = {private_key}\nListenPort = 51820\n");
    for n in 0..peers {
        let key = base64ct::Base64::encode_string(&random_bytes::<32>());
        let (high, low) = (n / 250, n % 250);
        writeln!(conf, "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.{}.{}.{low}/32", high / 250, high % 250)
            .expect("writing to a String cannot fail");
    }
    conf
}

/// Times include `wg`'s own.
#[test]
fn twenty_thousand_peers_are_configured_and_listed_in_time_and_memory() {
    privileged!();
    let (setconf_max, dump_max) = if std::env::var_os("ADIT_RELEASE_BOUNDS").is_some() { RELEASE } else { CHECKING };
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    daemon.ip("link set DEV up");
    let keys = Keys::generate();
    let conf = configuration(&keys.private, PEERS);
    // What the first request ever costs is not the peers'.
    daemon.setconf(&configuration(&keys.private, 1));
    let resident = daemon.resident_bytes();

    let start = Instant::now();
    daemon.setconf(&conf);
    let setconf = start.elapsed();
    let per_peer = daemon.resident_bytes().saturating_sub(resident) / PEERS as u64;
    let start = Instant::now();
    let dump = daemon.show("dump");
    let dumped = start.elapsed();
    println!("{PEERS} peers: setconf {setconf:?}, dump {dumped:?}, {per_peer} bytes resident per peer");

    assert_eq!(dump.lines().count(), PEERS + 1);
    assert!(setconf < setconf_max, "setconf took {setconf:?}, bound {setconf_max:?}");
    assert!(dumped < dump_max, "dump took {dumped:?}, bound {dump_max:?}");
    assert!(per_peer < CONFIGURED_PEER_BYTES_MAX, "{per_peer} bytes per peer, bound {CONFIGURED_PEER_BYTES_MAX}");

    // The same again changes nothing, and all of them go as fast.
    let start = Instant::now();
    daemon.setconf(&conf);
    assert!(start.elapsed() < setconf_max, "the same again took {:?}", start.elapsed());
    assert_eq!(daemon.show("dump"), dump, "peers are listed in a stable order");
    let start = Instant::now();
    daemon.setconf(&configuration(&keys.private, 0));
    assert!(start.elapsed() < setconf_max, "removing them took {:?}", start.elapsed());
    assert_eq!(daemon.dump().peers, []);
}

/// A thousand peers shake hands with the daemon and send a keepalive, so that each has a live session.
#[test]
fn a_peer_with_a_live_session_costs_less_than_8_kilobytes() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    daemon.ip("link set DEV up");
    let keys = Keys::generate();
    let server = base64ct::Base64::decode_vec(&keys.public).expect("the key was encoded here");
    let server: [u8; 32] = server.try_into().expect("a key has 32 bytes");
    daemon.setconf(&configuration(&keys.private, 1));
    let resident = daemon.resident_bytes();

    let mut conf = format!("[Interface]\nPrivateKey = {}\nListenPort = 51820\n", keys.private);
    let mut peers = Vec::new();
    for n in 0..SESSIONS {
        let private = x25519::StaticSecret::from(random_bytes::<32>());
        let public = x25519::PublicKey::from(&private);
        let key = base64ct::Base64::encode_string(public.as_bytes());
        writeln!(conf, "[Peer]\nPublicKey = {key}\nAllowedIPs = 10.0.{}.{}/32", n / 250, n % 250)
            .expect("writing to a String cannot fail");
        peers.push(Tunn::new(private, x25519::PublicKey::from(server), None, None, n as u32, None));
    }
    daemon.setconf(&conf);

    let (mut out, mut datagram) = ([0; 256], [0; 256]);
    let start = Instant::now();
    for (n, peer) in peers.iter_mut().enumerate() {
        // Each has an address of its own, as far as a limit per source is concerned.
        let address = std::net::Ipv4Addr::new(127, 1, (n / 250) as u8, (n % 250) as u8 + 1);
        let socket = ns.enter(|| UdpSocket::bind((address, 0))).expect("all of 127.0.0.0/8 is the loopback's");
        socket.connect("127.0.0.1:51820").expect("UDP connects");
        socket.set_read_timeout(Some(Duration::from_secs(6))).expect("a timeout can be set");
        let TunnResult::WriteToNetwork(initiation) = peer.format_handshake_initiation(&mut out, true) else {
            panic!("boringtun initiates")
        };
        socket.send(initiation).expect("the daemon listens");
        let len = socket.recv(&mut datagram).expect("the daemon responds");
        let TunnResult::WriteToNetwork(keepalive) = peer.decapsulate(None, &datagram[..len], &mut out) else {
            panic!("boringtun accepts the response")
        };
        socket.send(keepalive).expect("the daemon listens");
    }
    println!("{SESSIONS} handshakes: {:?}", start.elapsed());
    wait_until("every peer has a session", Duration::from_secs(10), || {
        let dump = daemon.dump();
        dump.peers.iter().all(|peer| peer.latest_handshake > 0 && peer.rx >= 148 + 32)
    });
    let per_peer = daemon.resident_bytes().saturating_sub(resident) / SESSIONS as u64;
    println!("{per_peer} bytes resident per peer with a session");
    assert!(per_peer < LIVE_PEER_BYTES_MAX, "{per_peer} bytes per peer, bound {LIVE_PEER_BYTES_MAX}");
}
