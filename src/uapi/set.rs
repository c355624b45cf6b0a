//! The body of `set=1` → [`Update`]: pure, but for the index of an endpoint's zone.
//!
//! A [`Parser`] is fed one line at a time and keeps nothing of the text, only the [`Update`] that
//! grows; what that may take is bounded by [`PARSED_BYTES_MAX`]. A line that is wrong ends it: an
//! `Update` comes out only when every line of the request was right.
//!
//! Differs from wireguard-go: there each line takes effect as it is read, so that the lines before
//! a wrong one stay applied. Here a request is applied wholly or not at all.
//!
//! - Device keys stand before the first `public_key`; after it only peer keys are known.
//! - Numbers are decimal digits and nothing else; keys are 64 hexadecimal digits.
//! - No line is logged or kept in an error: it may be a secret. Memory that held a preshared key is
//!   wiped when the list of peers outgrows it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use zeroize::Zeroize;

use super::Error;
use crate::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::sys::interface;

/// The longest line, its end included: wireguard-go's limit. The longest valid one has 80 bytes.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Peers that one request may name, with [`ALLOWED_IPS_PER_PEER`] each: as many as a kernel device has (2^20).
pub const PEERS_MAX: usize = 1 << 20;
/// Room for allowed IPs, on the average over [`PEERS_MAX`] peers.
pub const ALLOWED_IPS_PER_PEER: usize = 4;
/// Bound on the parsed form of one request. While a list grows, up to three times this is in use for a moment.
pub const PARSED_BYTES_MAX: usize =
    PEERS_MAX * (size_of::<PeerUpdate>() + ALLOWED_IPS_PER_PEER * size_of::<AllowedIpUpdate>());

// The sizes that must work for few peers: 1,000,000 allowed IPs in one request.
const _: () = assert!(PARSED_BYTES_MAX > size_of::<PeerUpdate>() + 1_000_000 * size_of::<AllowedIpUpdate>());

/// Parses the whole body of a request: lines, each with its end, without the empty one that closes it.
pub fn parse(body: &[u8]) -> Result<Update, Error> {
    let mut parser = Parser::default();
    for line in body.split_inclusive(|&byte| byte == b'\n') {
        parser.line(line.strip_suffix(b"\n").unwrap_or(line))?;
    }
    Ok(parser.finish())
}

/// Takes a request line by line.
///
/// ```
/// let mut parser = adit::uapi::set::Parser::default();
/// parser.line(b"listen_port=51820")?;
/// parser.line(b"replace_peers=true")?;
/// let update = parser.finish();
/// assert_eq!((update.listen_port, update.replace_peers), (Some(51820), true));
/// # Ok::<(), adit::uapi::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Parser {
    update: Update,
    lines: u64,
    parsed_bytes: usize,
}

impl Parser {
    /// Takes the next line, without its end. After an error the request is lost.
    pub fn line(&mut self, line: &[u8]) -> Result<(), Error> {
        self.lines += 1;
        if line.len() >= LINE_BYTES_MAX {
            return Err(self.line_too_long());
        }
        // As wireguard-go: a carriage return before the line's end does not count.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let equals = line.iter().position(|&byte| byte == b'=').ok_or(Error::NotKeyValue { line: self.lines })?;
        let (key, value) = (&line[..equals], &line[equals + 1..]);
        // What is not UTF-8 is no valid value of any key, and neither is the empty text.
        let value = std::str::from_utf8(value).unwrap_or_default();
        if self.update.peers.is_empty() { self.device_key(key, value) } else { self.peer_key(key, value) }
    }

    /// The error for a line of which only the beginning was read.
    pub(super) fn line_too_long(&self) -> Error {
        Error::LineTooLong { line: self.lines }
    }

    /// The request is complete.
    pub fn finish(mut self) -> Update {
        self.close_section();
        self.update
    }

    /// [UAPI] The keys before the first `public_key`.
    fn device_key(&mut self, key: &[u8], value: &str) -> Result<(), Error> {
        let line = self.lines;
        let invalid = |key| move || Error::InvalidValue { line, key };
        match key {
            b"private_key" => {
                let private_key = private_key(value).ok_or_else(invalid("private_key"))?;
                self.update.private_key = Some(private_key);
            }
            b"listen_port" => {
                self.update.listen_port = Some(decimal(value).ok_or_else(invalid("listen_port"))?);
            }
            b"fwmark" => self.update.fwmark = Some(decimal(value).ok_or_else(invalid("fwmark"))?),
            b"replace_peers" => {
                literally("true", value).ok_or_else(invalid("replace_peers"))?;
                self.update.replace_peers = true;
            }
            b"public_key" => return self.open_section(value),
            _ => return Err(Error::UnknownKey { line }),
        }
        Ok(())
    }

    /// [UAPI] The keys from the first `public_key` on.
    fn peer_key(&mut self, key: &[u8], value: &str) -> Result<(), Error> {
        if key == b"public_key" {
            return self.open_section(value);
        }
        if key == b"allowed_ip" {
            self.charge(size_of::<AllowedIpUpdate>())?;
        }
        let line = self.lines;
        let invalid = |key| move || Error::InvalidValue { line, key };
        let peer = self.update.peers.last_mut().expect("a peer key is looked for only after a public_key");
        match key {
            b"remove" => {
                literally("true", value).ok_or_else(invalid("remove"))?;
                peer.remove = true;
            }
            b"update_only" => {
                literally("true", value).ok_or_else(invalid("update_only"))?;
                peer.update_only = true;
            }
            b"preshared_key" => {
                let key = PresharedKey::from_hex(value).ok();
                peer.preshared_key = Some(key.ok_or_else(invalid("preshared_key"))?);
            }
            b"endpoint" => peer.endpoint = Some(endpoint(value).ok_or_else(invalid("endpoint"))?),
            b"persistent_keepalive_interval" => {
                let seconds = decimal(value).ok_or_else(invalid("persistent_keepalive_interval"))?;
                peer.persistent_keepalive = Some(seconds);
            }
            b"replace_allowed_ips" => {
                literally("true", value).ok_or_else(invalid("replace_allowed_ips"))?;
                // The lines take effect in order: those before this one are undone by it.
                peer.allowed_ips.clear();
                peer.replace_allowed_ips = true;
            }
            b"allowed_ip" => peer.allowed_ips.push(allowed_ip(value).ok_or_else(invalid("allowed_ip"))?),
            b"protocol_version" => literally("1", value).ok_or_else(invalid("protocol_version"))?,
            _ => return Err(Error::UnknownKey { line }),
        }
        Ok(())
    }

    fn open_section(&mut self, value: &str) -> Result<(), Error> {
        let invalid = Error::InvalidValue { line: self.lines, key: "public_key" };
        let public_key = PublicKey::from_hex(value).map_err(|_| invalid)?;
        self.charge(size_of::<PeerUpdate>())?;
        self.close_section();
        let peers = &mut self.update.peers;
        if peers.len() == peers.capacity() {
            let mut larger = Vec::with_capacity((peers.len() * 2).max(1));
            larger.append(peers);
            // The peers have moved, but the bytes of their preshared keys are still here.
            peers.spare_capacity_mut().zeroize();
            *peers = larger;
        }
        peers.push(PeerUpdate::new(public_key));
        Ok(())
    }

    /// A list that is complete keeps no room to grow, so that what is counted is what is used.
    fn close_section(&mut self) {
        if let Some(peer) = self.update.peers.last_mut() {
            peer.allowed_ips.shrink_to_fit();
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.parsed_bytes += bytes;
        if self.parsed_bytes > PARSED_BYTES_MAX { Err(Error::TooLarge { line: self.lines }) } else { Ok(()) }
    }
}

fn literally(expected: &str, value: &str) -> Option<()> {
    (value == expected).then_some(())
}

/// Digits only: no sign, no `0x`, no space. Leading zeros are allowed, as wireguard-go does.
fn decimal<N: FromStr>(value: &str) -> Option<N> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    value.parse().ok()
}

/// All zeros mean no key, and are looked for before clamping makes a key of them.
fn private_key(value: &str) -> Option<Option<PrivateKey>> {
    let key = PrivateKey::from_hex(value).ok()?;
    if value.bytes().all(|digit| digit == b'0') { Some(None) } else { Some(Some(key)) }
}

/// `1.2.3.4:5`, `[::1]:5` or `[fe80::1%eth0]:5`: addresses only, a name is for the client to resolve.
fn endpoint(value: &str) -> Option<SocketAddr> {
    let (host, port) = value.rsplit_once(':')?;
    let port = decimal(port)?;
    let Some(host) = host.strip_prefix('[') else {
        let address: Ipv4Addr = host.parse().ok()?;
        return Some(SocketAddr::from((address, port)));
    };
    let host = host.strip_suffix(']')?;
    let (address, zone) = match host.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (host, None),
    };
    let address: Ipv6Addr = address.parse().ok()?;
    let scope_id = match zone {
        // A zone that has no name is written as its number.
        Some(zone) => interface::index_by_name(zone).or_else(|| decimal(zone))?,
        None => 0,
    };
    // Differs from wireguard-go: an IPv4 address in IPv6's clothes is taken for what it is, because
    // it can be reached only by IPv4.
    if let Some(mapped) = address.to_ipv4_mapped() {
        return Some(SocketAddr::from((mapped, port)));
    }
    Some(SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope_id)))
}

/// `[-]address/length`.
fn allowed_ip(value: &str) -> Option<AllowedIpUpdate> {
    let (remove, prefix) = match value.strip_prefix('-') {
        Some(prefix) => (true, prefix),
        None => (false, value),
    };
    let (address, prefix_len) = prefix.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let allowed_ip = AllowedIp::new(address, decimal(prefix_len)?)?;
    Some(AllowedIpUpdate { allowed_ip, remove })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn errno(body: &str) -> i32 {
        parse(body.as_bytes()).map_or_else(|error| error.errno(), |_| 0)
    }

    /// [UAPI] U-04: what a key may look like.
    #[test]
    fn u_04_key_parsing_table() {
        for key in ["private_key", "public_key"] {
            let check =
                |value: &str, expected| assert_eq!(errno(&format!("{key}={value}\n")), expected, "{key}={value}");
            check(A, 0);
            check(ZEROS, 0);
            check(&A.to_uppercase(), 0);
            check("", -22);
            check(&A[1..], -22);
            check(&format!("{A}a"), -22);
            check(&format!("{A}aa"), -22);
            check(&format!(" {A}"), -22);
            check(&format!("{A} "), -22);
            check(&format!(" {}", &A[1..]), -22);
            check(&format!("0x{}", &A[2..]), -22);
            check(&format!("{}g", &A[1..]), -22);
            check(&format!("{}\u{e9}", &A[2..]), -22);
            check("qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=", -22);
        }
        let update = parse(format!("private_key={ZEROS}\n").as_bytes()).unwrap();
        assert_eq!(update.private_key, Some(None));
        let update = parse(format!("private_key={A}\n").as_bytes()).unwrap();
        assert_eq!(update.private_key.unwrap().unwrap().as_bytes()[31], 0x6a, "clamped");
    }

    #[test]
    fn number_table() {
        let check = |value: &str, expected: Option<u16>| assert_eq!(decimal::<u16>(value), expected, "{value:?}");
        check("0", Some(0));
        check("65535", Some(65535));
        check("00000000000000000000000007", Some(7));
        for wrong in ["", "65536", "+1", "-1", "0x1", " 1", "1 ", "1_0", "1\0", "off", "\u{661}", "1e1"] {
            check(wrong, None);
        }
    }

    #[test]
    fn endpoint_table() {
        let lo = interface::index_by_name("lo").unwrap();
        let check = |value: &str, expected: Option<&str>| {
            let expected = expected.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(endpoint(value), expected, "{value:?}");
        };
        check("1.2.3.4:5", Some("1.2.3.4:5"));
        check("1.2.3.4:05", Some("1.2.3.4:5"));
        check("[::1]:5", Some("[::1]:5"));
        check("[::ffff:1.2.3.4]:5", Some("1.2.3.4:5"));
        check("[fe80::1%lo]:5", Some(&format!("[fe80::1%{lo}]:5")));
        check(&format!("[fe80::1%{lo}]:5"), Some(&format!("[fe80::1%{lo}]:5")));
        for wrong in [
            "",
            ":",
            ":5",
            "1.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:65536",
            "1.2.3.4:+5",
            "1.2.3.4:0x5",
            "1.2.3.04:5",
            "::1:5",
            "[1.2.3.4]:5",
            "[::1]5",
            "[::1:5",
            "::1]:5",
            "[::1]:5 ",
            "[[::1]]:5",
            "[]:5",
            "localhost:5",
            "1.2.3.4%lo:5",
            "[fe80::1%no-such-interface]:5",
            "[fe80::1%]:5",
            "[%lo]:5",
            "[fe80::1%lo%lo]:5",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn allowed_ip_table() {
        let check = |value: &str, expected: Option<(bool, &str)>| {
            let text = allowed_ip(value).map(|it| (it.remove, it.allowed_ip.to_string()));
            assert_eq!(text.as_ref().map(|(remove, prefix)| (*remove, prefix.as_str())), expected, "{value:?}");
        };
        check("10.1.2.3/8", Some((false, "10.0.0.0/8")));
        check("-10.1.2.3/8", Some((true, "10.0.0.0/8")));
        check("0.0.0.0/0", Some((false, "0.0.0.0/0")));
        check("::/0", Some((false, "::/0")));
        check("fd00::1/128", Some((false, "fd00::1/128")));
        check("10.0.0.0/08", Some((false, "10.0.0.0/8")));
        check("::ffff:1.2.3.4/120", Some((false, "::ffff:1.2.3.0/120")));
        for wrong in [
            "",
            "-",
            "/",
            "/8",
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "::/129",
            "10.0.0/8",
            "--10.0.0.0/8",
            "+10.0.0.0/8",
            "10.0.0.0/+8",
            "10.0.0.0/-8",
            "10.0.0.0/8/8",
            "10.0.0.0/8=",
            "fe80::%lo/64",
            "10.0.0.0/256",
        ] {
            check(wrong, None);
        }
    }

    /// [UAPI] The lines of a section take effect in their order.
    #[test]
    fn replace_undoes_what_stood_before_it() {
        let body = format!(
            "public_key={A}\nallowed_ip=10.0.0.0/8\nreplace_allowed_ips=true\nallowed_ip=11.0.0.0/8\nallowed_ip=-11.0.0.0/8\n"
        );
        let update = parse(body.as_bytes()).unwrap();
        let peer = &update.peers[0];
        assert!(peer.replace_allowed_ips);
        let texts: Vec<_> = peer.allowed_ips.iter().map(|it| (it.remove, it.allowed_ip.to_string())).collect();
        assert_eq!(texts, [(false, "11.0.0.0/8".to_owned()), (true, "11.0.0.0/8".to_owned())]);
    }

    #[test]
    fn a_later_line_of_the_same_key_counts() {
        let body =
            format!("fwmark=1\nfwmark=2\npublic_key={A}\nendpoint=1.1.1.1:1\nendpoint=2.2.2.2:2\npublic_key={A}\n");
        let update = parse(body.as_bytes()).unwrap();
        assert_eq!(update.fwmark, Some(2));
        assert_eq!(update.peers.len(), 2, "a peer may have several sections");
        assert_eq!(update.peers[0].endpoint, Some("2.2.2.2:2".parse().unwrap()));
    }

    /// [UAPI] U-03: what is valid, but too much, is refused before it takes more memory than the bound.
    #[test]
    fn a_request_has_a_bound() {
        let mut parser = Parser::default();
        parser.line(format!("public_key={A}").as_bytes()).unwrap();
        let room = (PARSED_BYTES_MAX - size_of::<PeerUpdate>()) / size_of::<AllowedIpUpdate>();
        parser.parsed_bytes += (room - 1) * size_of::<AllowedIpUpdate>();
        parser.line(b"allowed_ip=10.0.0.0/8").unwrap();
        assert_eq!(parser.line(b"allowed_ip=10.0.0.0/8").unwrap_err().errno(), -12);
        let mut parser = Parser::default();
        assert!(parser.line(&[b'a'; LINE_BYTES_MAX - 1]).is_err_and(|error| error.errno() == -71));
        assert!(parser.line(&[b'a'; LINE_BYTES_MAX]).is_err_and(|error| error.errno() == -5));
    }

    #[test]
    fn the_text_of_a_wrong_line_is_not_kept() {
        let error = parse(b"qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=\n").unwrap_err();
        assert!(!format!("{error:?} {error}").contains('q'));
    }
}
