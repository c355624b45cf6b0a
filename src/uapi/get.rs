//! [`Snapshot`] → the reply to `get=1`: pure, in chunks.
//!
//! The order of the lines, and which are left out when there is nothing to say, is wireguard-go's.
//! No line has a second `=`: wgctrl splits at each.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;

use zeroize::Zeroizing;

use crate::device::config::{PeerSnapshot, Snapshot};
use crate::sys::interface;

/// How much is written at once; what a socket's buffer takes.
const CHUNK_BYTES: usize = 32 * 1024;
/// More than one line ever has: the longest, a preshared key, has 79 bytes.
const LINE_BYTES: usize = 128;

/// Writes the whole reply, with the `errno=0` and the empty line that end it.
pub fn write(snapshot: &Snapshot, output: &mut impl Write) -> io::Result<()> {
    let mut chunk = Chunk { text: Zeroizing::new(String::with_capacity(CHUNK_BYTES)), output };
    if let Some(key) = &snapshot.private_key {
        chunk.line("private_key", key.to_hex().as_str())?;
    }
    if snapshot.listen_port != 0 {
        chunk.line("listen_port", snapshot.listen_port)?;
    }
    if snapshot.fwmark != 0 {
        chunk.line("fwmark", snapshot.fwmark)?;
    }
    for peer in &snapshot.peers {
        write_peer(peer, &mut chunk)?;
    }
    chunk.line("errno", 0)?;
    chunk.text.push('\n');
    chunk.flush()
}

/// [UAPI] One peer's lines.
fn write_peer(peer: &PeerSnapshot, chunk: &mut Chunk<'_, impl Write>) -> io::Result<()> {
    chunk.line("public_key", peer.public_key.to_hex())?;
    chunk.line("preshared_key", peer.preshared_key.to_hex().as_str())?;
    chunk.line("protocol_version", 1)?;
    if let Some(endpoint) = peer.endpoint {
        chunk.line("endpoint", Endpoint(endpoint))?;
    }
    let (sec, nsec) = match peer.last_handshake {
        // 0 nanoseconds would read as "never" to wgctrl.
        Some(time) => (time.as_secs(), time.subsec_nanos().max(1)),
        None => (0, 0),
    };
    chunk.line("last_handshake_time_sec", sec)?;
    chunk.line("last_handshake_time_nsec", nsec)?;
    chunk.line("tx_bytes", peer.tx_bytes)?;
    chunk.line("rx_bytes", peer.rx_bytes)?;
    chunk.line("persistent_keepalive_interval", peer.persistent_keepalive)?;
    for allowed_ip in &peer.allowed_ips {
        chunk.line("allowed_ip", allowed_ip.masked())?;
    }
    Ok(())
}

/// Lines that are not written yet. Never grows, so that no copy of a key is left behind.
struct Chunk<'a, W: Write> {
    text: Zeroizing<String>,
    output: &'a mut W,
}

impl<W: Write> Chunk<'_, W> {
    fn line(&mut self, key: &str, value: impl std::fmt::Display) -> io::Result<()> {
        if self.text.len() + LINE_BYTES > CHUNK_BYTES {
            self.flush()?;
        }
        writeln!(self.text, "{key}={value}").map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.write_all(self.text.as_bytes())?;
        self.text.clear();
        Ok(())
    }
}

/// `1.2.3.4:5`, `[::1]:5`, `[fe80::1%eth0]:5`; a zone whose interface is gone is written as its number.
struct Endpoint(SocketAddr);

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SocketAddr::V6(v6) = self.0 else { return write!(f, "{}", self.0) };
        let (address, port) = (v6.ip(), v6.port());
        match (v6.scope_id(), interface::name_by_index(v6.scope_id())) {
            (0, _) => write!(f, "[{address}]:{port}"),
            (_, Some(name)) => write!(f, "[{address}%{name}]:{port}"),
            (index, None) => write!(f, "[{address}%{index}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::config::AllowedIp;
    use crate::key::{PresharedKey, PrivateKey, PublicKey};
    use std::time::Duration;

    fn text(snapshot: &Snapshot) -> String {
        let mut output = Vec::new();
        write(snapshot, &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    fn peer() -> PeerSnapshot {
        PeerSnapshot {
            public_key: PublicKey::from_bytes([0xaa; 32]),
            preshared_key: PresharedKey::default(),
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        }
    }

    #[test]
    fn a_device_without_anything() {
        assert_eq!(text(&Snapshot::default()), "errno=0\n\n");
    }

    /// [UAPI] The order and the presence of every line.
    #[test]
    fn every_line_in_its_order() {
        let lo = interface::index_by_name("lo").unwrap();
        let busy = PeerSnapshot {
            public_key: PublicKey::from_bytes([0xbb; 32]),
            preshared_key: PresharedKey::from_bytes([0xcc; 32]),
            endpoint: Some(format!("[fe80::1%{lo}]:5").parse().unwrap()),
            last_handshake: Some(Duration::from_secs(1_700_000_000)),
            rx_bytes: 12,
            tx_bytes: u64::MAX,
            persistent_keepalive: 25,
            allowed_ips: vec![
                AllowedIp { address: "fd00::1".parse().unwrap(), prefix_len: 64 },
                AllowedIp { address: "10.1.2.3".parse().unwrap(), prefix_len: 8 },
            ],
        };
        let snapshot = Snapshot {
            private_key: Some(PrivateKey::from_bytes([0x40; 32])),
            listen_port: 51820,
            fwmark: 0xffff_ffff,
            peers: vec![peer(), busy],
        };
        let expected = format!(
            "private_key={}\nlisten_port=51820\nfwmark=4294967295\n\
             public_key={}\npreshared_key={}\nprotocol_version=1\n\
             last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n\
             persistent_keepalive_interval=0\n\
             public_key={}\npreshared_key={}\nprotocol_version=1\nendpoint=[fe80::1%lo]:5\n\
             last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=1\ntx_bytes=18446744073709551615\nrx_bytes=12\n\
             persistent_keepalive_interval=25\nallowed_ip=fd00::/64\nallowed_ip=10.0.0.0/8\nerrno=0\n\n",
            "40".repeat(32),
            "aa".repeat(32),
            "00".repeat(32),
            "bb".repeat(32),
            "cc".repeat(32),
        );
        assert_eq!(text(&snapshot), expected);
    }

    #[test]
    fn endpoint_table() {
        let check = |address: &str, expected: &str| {
            assert_eq!(Endpoint(address.parse().unwrap()).to_string(), expected);
        };
        check("1.2.3.4:5", "1.2.3.4:5");
        check("[::1]:5", "[::1]:5");
        check("[::ffff:1.2.3.4]:5", "[::ffff:1.2.3.4]:5");
        check("[fe80::1%4294967295]:5", "[fe80::1%4294967295]:5");
    }

    /// [UAPI] wgctrl takes 0 nanoseconds for "never", whatever the seconds.
    #[test]
    fn a_handshake_on_the_second_is_not_never() {
        let check = |time, expected: &str| {
            let snapshot =
                Snapshot { peers: vec![PeerSnapshot { last_handshake: time, ..peer() }], ..Snapshot::default() };
            assert!(text(&snapshot).contains(expected), "{time:?}");
        };
        check(None, "_sec=0\nlast_handshake_time_nsec=0\n");
        check(Some(Duration::new(7, 0)), "_sec=7\nlast_handshake_time_nsec=1\n");
        check(Some(Duration::new(7, 999_999_999)), "_sec=7\nlast_handshake_time_nsec=999999999\n");
    }

    /// Chunks are whole lines that fit the buffer, and no line is lost between them.
    #[test]
    fn chunks_never_grow() {
        struct Chunks(Vec<usize>);
        impl Write for Chunks {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                assert_eq!(bytes.last(), Some(&b'\n'));
                self.0.push(bytes.len());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let snapshot = Snapshot { peers: vec![peer(); 1000], ..Snapshot::default() };
        let mut chunks = Chunks(Vec::new());
        write(&snapshot, &mut chunks).unwrap();
        assert!(chunks.0.len() > 1 && chunks.0.iter().all(|&len| len <= CHUNK_BYTES), "{:?}", chunks.0);
        assert_eq!(chunks.0.iter().sum::<usize>(), text(&snapshot).len());
    }
}
