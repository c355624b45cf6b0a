//! The text of one value to what it means.
//!
//! Each function takes the text as it stands in the file, white space around it taken off, and fails with a
//! [`Problem`]: where in the text, why, and what to write instead. None of them quotes the text: it may be a secret.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::services::{Host, ResolveStrategy, Target};
use crate::device::config::AllowedIp;
use crate::key::{BASE64_LEN, ParseKeyError};
use crate::netstack::{MTU_FEWEST, MTU_MOST};

/// Letters of a host's name: what DNS allows.
const NAME_MAX: usize = 253;
/// Letters of one label of a name: what DNS allows.
const LABEL_MAX: usize = 63;
/// The longest time that means something: a day.
const SECONDS_MAX: u64 = 86_400;

/// What is wrong with a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// In bytes of the value.
    pub(super) offset: usize,
    pub(super) why: String,
    pub(super) next: String,
}

impl Problem {
    pub(super) fn new(why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { offset: 0, why: why.into(), next: next.into() }
    }

    fn at(self, offset: usize) -> Self {
        Self { offset: self.offset + offset, ..self }
    }
}

/// A key in base64, made by `parse`.
pub(super) fn key<T>(text: &str, parse: impl Fn(&str) -> Result<T, ParseKeyError>) -> Result<T, Problem> {
    parse(text).map_err(|error| {
        let why = match error {
            ParseKeyError::Length => {
                format!("its length is {}, that of a key is {BASE64_LEN}", text.chars().count())
            }
            ParseKeyError::Encoding => {
                "it has the length of a key, but is not one: a character, or its end, is not base64".to_owned()
            }
        };
        Problem::new(why, "copy the whole key, its = at the end included")
    })
}

/// An address.
pub(super) fn address(text: &str) -> Result<IpAddr, Problem> {
    text.parse().map_err(|_| Problem::new("it is no IP address", "write one such as 10.0.0.1 or fd00::1"))
}

/// An address with the length of its network's prefix; all of its bits if there is none.
pub(super) fn interface_address(text: &str) -> Result<(IpAddr, u8), Problem> {
    let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let ip = address(ip)?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let Some(prefix) = prefix else { return Ok((ip, bits)) };
    match decimal(prefix).and_then(|len| u8::try_from(len).ok()).filter(|len| *len <= bits) {
        Some(len) => Ok((ip, len)),
        None => {
            let why = format!("the length of its prefix is no number from 0 to {bits}");
            Err(Problem::new(why, "write one such as 10.0.0.2/24 or fd00::2/64").at(text.len() - prefix.len()))
        }
    }
}

/// A range of addresses.
pub(super) fn allowed_ip(text: &str) -> Result<AllowedIp, Problem> {
    let (ip, len) = interface_address(text)?;
    AllowedIp::new(ip, len).ok_or_else(|| Problem::new("its prefix is too long", "write one such as 10.0.0.0/24"))
}

/// What `DNS =` may hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Dns {
    Server(IpAddr),
    Search(String),
}

/// A server's address, or a domain in which names are looked for.
pub(super) fn dns(text: &str) -> Result<Dns, Problem> {
    match text.parse() {
        Ok(server) => Ok(Dns::Server(server)),
        Err(_) => name(text).map(Dns::Search).map_err(|problem| Problem {
            why: format!("it is neither the IP address of a server nor a domain: {}", problem.why),
            next: "write addresses, then domains, with commas between them".to_owned(),
            ..problem
        }),
    }
}

/// Where to listen: an address and a port. No address means all addresses, `localhost` the IPv4 one.
pub(super) fn bind(text: &str) -> Result<SocketAddr, Problem> {
    let next = "write one such as 127.0.0.1:1080, [::1]:1080, or :1080 for all addresses";
    let (host, port) = host_and_port(text, next)?;
    let address = match host {
        "" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host.parse().map_err(|_| Problem::new("it has no IP address before the port", next))?,
    };
    Ok(SocketAddr::new(address, port))
}

/// Where to go: a name or an address, and a port.
pub(super) fn target(text: &str) -> Result<Target, Problem> {
    let next = "write one such as example.org:80, 10.0.0.1:80 or [fd00::1]:80";
    let (host, port) = host_and_port(text, next)?;
    if port == 0 {
        return Err(Problem::new("port 0 is no port", next).at(text.len() - 1));
    }
    let host = match host.parse() {
        Ok(address) => Host::Address(address),
        Err(_) => Host::Name(name(host).map_err(|problem| Problem { next: next.to_owned(), ..problem })?),
    };
    Ok(Target { host, port })
}

/// Cuts at the colon before the port. An IPv6 address stands in brackets, which are taken off.
fn host_and_port<'a>(text: &'a str, next: &str) -> Result<(&'a str, u16), Problem> {
    let (host, after) = match text.strip_prefix('[') {
        Some(inside) => {
            let Some((host, after)) = inside.split_once(']') else {
                return Err(Problem::new("its ] is missing", next).at(text.len()));
            };
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(Problem::new("what stands in brackets is no IPv6 address", next).at(1));
            }
            (host, after)
        }
        None => {
            let cut = text.find(':').unwrap_or(text.len());
            if text[cut..].matches(':').count() > 1 {
                return Err(Problem::new("an IPv6 address needs brackets before its port", next));
            }
            text.split_at(cut)
        }
    };
    let Some(port) = after.strip_prefix(':') else {
        return Err(Problem::new("it has no port", next).at(text.len() - after.len()));
    };
    Ok((host, self::port(port).map_err(|problem| problem.at(text.len() - port.len()))?))
}

/// The name of a host or a domain.
fn name(text: &str) -> Result<String, Problem> {
    let next = "write a name such as example.org";
    if text.is_empty() || text.len() > NAME_MAX {
        return Err(Problem::new(format!("a name has 1 to {NAME_MAX} characters"), next));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(offset) = text.find(|c| !plain(c)) {
        return Err(Problem::new("this character is in no name", next).at(offset));
    }
    let mut labels = text.strip_suffix('.').unwrap_or(text).split('.');
    if labels.clone().any(|label| label.is_empty() || label.len() > LABEL_MAX) {
        return Err(Problem::new(format!("between dots there are 1 to {LABEL_MAX} characters"), next));
    }
    if labels.next_back().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(Problem::new("it looks like an address, but is none", next));
    }
    Ok(text.to_owned())
}

/// A port; 0 lets the system choose.
pub(super) fn port(text: &str) -> Result<u16, Problem> {
    let port = decimal(text).and_then(|port| u16::try_from(port).ok());
    port.ok_or_else(|| Problem::new("the port is no number from 0 to 65535", "write one such as 51820"))
}

/// A port to listen on that others must know.
pub(super) fn known_port(text: &str) -> Result<u16, Problem> {
    let next = "write a number from 1 to 65535";
    port(text).ok().filter(|port| *port != 0).ok_or_else(|| Problem::new("the port is no number from 1 to 65535", next))
}

/// The largest inner packet.
pub(super) fn mtu(text: &str) -> Result<usize, Problem> {
    let mtu =
        decimal(text).and_then(|mtu| usize::try_from(mtu).ok()).filter(|mtu| (MTU_FEWEST..=MTU_MOST).contains(mtu));
    mtu.ok_or_else(|| {
        Problem::new(format!("it is no number from {MTU_FEWEST} to {MTU_MOST}"), "1420 fits nearly everywhere")
    })
}

/// A mark: decimal, `0x` and hexadecimal, or `off`.
pub(super) fn fwmark(text: &str) -> Result<u32, Problem> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None if text.eq_ignore_ascii_case("off") => Some(0),
        None => decimal(text).and_then(|mark| u32::try_from(mark).ok()),
    };
    number.ok_or_else(|| Problem::new("it is no number of 32 bits", "write one such as 51820 or 0xca6c, or off"))
}

/// Seconds, or `off`.
pub(super) fn keepalive(text: &str) -> Result<u16, Problem> {
    let seconds = if text.eq_ignore_ascii_case("off") { Some(0) } else { decimal(text) };
    let seconds = seconds.and_then(|seconds| u16::try_from(seconds).ok());
    seconds.ok_or_else(|| Problem::new("it is no number of seconds from 0 to 65535", "write one such as 25, or off"))
}

/// Seconds, from `least` on.
pub(super) fn seconds(text: &str, least: u64) -> Result<Duration, Problem> {
    let seconds = decimal(text).filter(|seconds| (least..=SECONDS_MAX).contains(seconds)).map(Duration::from_secs);
    seconds.ok_or_else(|| {
        Problem::new(format!("it is no number of seconds from {least} to {SECONDS_MAX}"), "write one such as 30")
    })
}

/// One of some words, without regard to case.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Problem> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        Problem::new("it is none of the words that it can be", format!("write {}", words.join(" or ")))
    })
}

/// Yes or no.
pub(super) fn yes_or_no(text: &str) -> Result<bool, Problem> {
    word(text, &[("yes", true), ("no", false), ("true", true), ("false", false)])
}

/// Which addresses of a name count.
pub(super) fn strategy(text: &str) -> Result<ResolveStrategy, Problem> {
    let words = [("auto", ResolveStrategy::Auto), ("ipv4", ResolveStrategy::Ipv4), ("ipv6", ResolveStrategy::Ipv6)];
    word(text, &words)
}

/// Digits alone.
fn decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_to_listen() {
        let check = |text: &str, expected: &str| assert_eq!(bind(text).unwrap().to_string(), expected, "{text}");
        check("127.0.0.1:1080", "127.0.0.1:1080");
        check("[::1]:1080", "[::1]:1080");
        check(":1080", "[::]:1080");
        check("localhost:0", "127.0.0.1:0");
        let wrong = |text: &str, offset, why: &str| {
            let problem = bind(text).unwrap_err();
            assert_eq!((problem.offset, problem.why.contains(why)), (offset, true), "{text}: {problem:?}");
        };
        wrong("127.0.0.1", 9, "no port");
        wrong("::1:1080", 0, "needs brackets");
        wrong("[::1:1080", 9, "] is missing");
        wrong("[127.0.0.1]:80", 1, "no IPv6 address");
        wrong("[::1]", 5, "no port");
        wrong("127.0.0.1:65536", 10, "from 0 to 65535");
        wrong("127.0.0.1:+1", 10, "from 0 to 65535");
        wrong("example.org:1", 0, "no IP address");
    }

    #[test]
    fn places_to_go() {
        let check = |text: &str| assert_eq!(target(text).unwrap().to_string(), text);
        check("example.org:80");
        check("a_b-c.local.:1");
        check("10.0.0.1:65535");
        check("[fd00::1]:53");
        let wrong = |text: &str, offset, why: &str| {
            let problem = target(text).unwrap_err();
            assert_eq!((problem.offset, problem.why.contains(why)), (offset, true), "{text}: {problem:?}");
        };
        wrong("10.0.0:80", 0, "looks like an address");
        wrong("a..b:80", 0, "between dots");
        wrong("a b:80", 1, "this character");
        wrong("a:0", 2, "port 0");
        wrong(":80", 0, "1 to 253");
        wrong("a", 1, "no port");
    }

    #[test]
    fn addresses_and_prefixes() {
        let check = |text: &str, expected: Option<(&str, u8)>| {
            let parsed = interface_address(text).ok();
            assert_eq!(parsed, expected.map(|(ip, len)| (ip.parse().unwrap(), len)), "{text}");
        };
        check("10.0.0.1", Some(("10.0.0.1", 32)));
        check("10.0.0.1/8", Some(("10.0.0.1", 8)));
        check("fd00::1", Some(("fd00::1", 128)));
        check("fd00::1/0", Some(("fd00::1", 0)));
        for text in ["", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/+8", "fd00::1/129", "10.0.0/8", "10.0.0.1/8/8"] {
            check(text, None);
        }
        assert_eq!(interface_address("10.0.0.1/33").unwrap_err().offset, 9);
        assert_eq!(allowed_ip("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(dns("10.0.0.1"), Ok(Dns::Server("10.0.0.1".parse().unwrap())));
        assert_eq!(dns("corp.example"), Ok(Dns::Search("corp.example".into())));
        assert!(dns("10.0.0").is_err());
    }

    #[test]
    fn numbers_and_words() {
        assert_eq!((fwmark("0xca6c"), fwmark("OFF"), fwmark("7")), (Ok(0xca6c), Ok(0), Ok(7)));
        assert!(["0x", "0x+1", "-1", "4294967296", "x"].iter().all(|text| fwmark(text).is_err()));
        assert_eq!((keepalive("off"), keepalive("25")), (Ok(0), Ok(25)));
        assert!(keepalive("65536").is_err() && keepalive("").is_err());
        assert_eq!(seconds("0", 0), Ok(Duration::ZERO));
        assert!(seconds("0", 1).is_err() && seconds("86401", 0).is_err());
        assert!(mtu("575").is_err() && mtu("576").is_ok() && mtu("65536").is_err());
        assert_eq!(strategy("IPv6"), Ok(ResolveStrategy::Ipv6));
        assert_eq!(strategy("both").unwrap_err().next, "write auto or ipv4 or ipv6");
        assert!(known_port("0").is_err() && known_port("1").is_ok());
    }

    #[test]
    fn a_key_that_is_none_is_not_shown() {
        let short = key("c2VjcmV0", crate::key::PublicKey::from_base64).unwrap_err();
        assert_eq!(short.why, "its length is 8, that of a key is 44");
        let long = key(&"*".repeat(44), crate::key::PublicKey::from_base64).unwrap_err();
        assert!(!long.why.contains('*') && !long.next.contains('*'));
    }
}
