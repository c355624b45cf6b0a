//! What SOCKS5 says: RFC 1928, and RFC 1929 for passwords. Bytes to values and back.
//!
//! A message is read to its last byte and not further, so that what a client sends ahead of our reply is still there
//! for its target. Nothing is longer than 513 bytes. Reserved bytes are not looked at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};
use zeroize::Zeroizing;

use crate::proxy::config::{Host, Target};
use crate::proxy::services::failure::Failure;

const VERSION: u8 = 5;
/// Of the negotiation about a password, RFC 1929.
const PASSWORD_VERSION: u8 = 1;
const METHOD_NONE: u8 = 0;
const METHOD_PASSWORD: u8 = 2;
const METHODS_UNACCEPTABLE: u8 = 0xff;
const COMMAND_CONNECT: u8 = 1;
const COMMAND_UDP_ASSOCIATE: u8 = 3;
const ADDRESS_IPV4: u8 = 1;
const ADDRESS_NAME: u8 = 3;
const ADDRESS_IPV6: u8 = 4;
/// Bytes before the address in the header of a datagram: reserved, fragment, kind of address.
const DATAGRAM_FIXED: usize = 4;
/// The longest header that we put before a datagram: with an IPv6 address.
pub(crate) const DATAGRAM_HEADER_MAX: usize = DATAGRAM_FIXED + 16 + 2;

/// The reply codes. [RFC 1928 §6]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

/// Why there is no message.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The client went away.
    Gone(io::Error),
    /// It is not what is understood here.
    Refused(Failure),
}

impl From<io::Error> for Unread {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

/// The ways to authenticate that a client offers, as far as we know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Methods {
    pub(crate) none: bool,
    pub(crate) password: bool,
}

/// Which one is taken; its code is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Method {
    None = METHOD_NONE,
    Password = METHOD_PASSWORD,
    Unacceptable = METHODS_UNACCEPTABLE,
}

impl Method {
    /// The answer to the client's offer.
    pub(crate) fn to_bytes(self) -> [u8; 2] {
        [VERSION, self as u8]
    }
}

/// The client's first message. [RFC 1928 §3]
pub(crate) async fn read_methods(stream: &mut (impl AsyncRead + Unpin)) -> Result<Methods, Unread> {
    if stream.read_u8().await? != VERSION {
        return Err(Unread::Refused(Failure::Malformed));
    }
    let count = usize::from(stream.read_u8().await?);
    let mut methods = [0; u8::MAX as usize];
    stream.read_exact(&mut methods[..count]).await?;
    let offers = |method| methods[..count].contains(&method);
    Ok(Methods { none: offers(METHOD_NONE), password: offers(METHOD_PASSWORD) })
}

/// Username and password as a client sends them. Wiped when dropped.
pub(crate) struct Given {
    pub(crate) username: Zeroizing<Vec<u8>>,
    pub(crate) password: Zeroizing<Vec<u8>>,
}

/// [RFC 1929 §2]
pub(crate) async fn read_password(stream: &mut (impl AsyncRead + Unpin)) -> Result<Given, Unread> {
    if stream.read_u8().await? != PASSWORD_VERSION {
        return Err(Unread::Refused(Failure::Malformed));
    }
    let username = read_counted(stream).await?;
    let password = read_counted(stream).await?;
    Ok(Given { username, password })
}

/// The answer to username and password: anything but 0 is a refusal. [RFC 1929 §2]
pub(crate) fn password_reply(accepted: bool) -> [u8; 2] {
    [PASSWORD_VERSION, u8::from(!accepted)]
}

/// A length of one byte, and as many bytes.
async fn read_counted(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; usize::from(stream.read_u8().await?)]);
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// What a client can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Connect,
    UdpAssociate,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// `None` for a name that no host can have.
    pub(crate) host: Option<Host>,
    pub(crate) port: u16,
}

impl Request {
    /// Where CONNECT leads to.
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        target(self.host.clone(), self.port)
    }
}

fn target(host: Option<Host>, port: u16) -> Result<Target, Failure> {
    let host = host.ok_or(Failure::NameNotResolved)?;
    if port == 0 { Err(Failure::NotAllowed) } else { Ok(Target { host, port }) }
}

/// [RFC 1928 §4, §5]
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Request, Unread> {
    let [version, command, _reserved, kind] = {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        head
    };
    if version != VERSION {
        return Err(Unread::Refused(Failure::Malformed));
    }
    let host = match kind {
        ADDRESS_IPV4 => Some(Host::Address(Ipv4Addr::from_bits(stream.read_u32().await?).into())),
        ADDRESS_IPV6 => Some(Host::Address(Ipv6Addr::from_bits(stream.read_u128().await?).into())),
        ADDRESS_NAME => host_of_name(&read_counted(stream).await?),
        _ => return Err(Unread::Refused(Failure::UnsupportedAddress)),
    };
    let port = stream.read_u16().await?;
    let command = match command {
        COMMAND_CONNECT => Command::Connect,
        COMMAND_UDP_ASSOCIATE => Command::UdpAssociate,
        // BIND among them: nobody could reach the port that it would open, but through a peer.
        _ => return Err(Unread::Refused(Failure::UnsupportedCommand)),
    };
    Ok(Request { command, host, port })
}

/// The answer to a request; `bound` is the address that is used for the client. [RFC 1928 §6]
pub(crate) fn reply(reply: Reply, bound: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![VERSION, reply as u8, 0];
    put_address(bound, &mut bytes);
    bytes
}

fn put_address(address: SocketAddr, bytes: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.push(ADDRESS_IPV4);
            bytes.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(ADDRESS_IPV6);
            bytes.extend_from_slice(&ip.octets());
        }
    }
    bytes.extend_from_slice(&address.port().to_be_bytes());
}

/// Where a client's datagram leads to, and what it carries. [RFC 1928 §7]
pub(crate) fn parse_datagram(datagram: &[u8]) -> Result<(Target, &[u8]), Failure> {
    let (&[_, _, fragment, kind], rest) = datagram.split_first_chunk().ok_or(Failure::Malformed)?;
    if fragment != 0 {
        return Err(Failure::Fragment);
    }
    let (host, rest) = match kind {
        ADDRESS_IPV4 => {
            let (address, rest) = rest.split_first_chunk::<4>().ok_or(Failure::Malformed)?;
            (Some(Host::Address(IpAddr::from(*address))), rest)
        }
        ADDRESS_IPV6 => {
            let (address, rest) = rest.split_first_chunk::<16>().ok_or(Failure::Malformed)?;
            (Some(Host::Address(IpAddr::from(*address))), rest)
        }
        ADDRESS_NAME => {
            let (&length, rest) = rest.split_first().ok_or(Failure::Malformed)?;
            let (name, rest) = rest.split_at_checked(length.into()).ok_or(Failure::Malformed)?;
            (host_of_name(name), rest)
        }
        _ => return Err(Failure::UnsupportedAddress),
    };
    let (port, payload) = rest.split_first_chunk().ok_or(Failure::Malformed)?;
    Ok((target(host, u16::from_be_bytes(*port))?, payload))
}

/// The header of a datagram that came from `from`: at most [`DATAGRAM_HEADER_MAX`] bytes. [RFC 1928 §7]
pub(crate) fn datagram_header(from: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(DATAGRAM_HEADER_MAX);
    bytes.extend_from_slice(&[0, 0, 0]);
    put_address(from, &mut bytes);
    bytes
}

/// A host of text: an address, or else a name that the DNS could know.
pub(crate) fn host_of_name(name: &[u8]) -> Option<Host> {
    let name = str::from_utf8(name).ok()?;
    if let Ok(address) = name.parse() {
        return Some(Host::Address(address));
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    (!name.is_empty() && name.bytes().all(plain)).then(|| Host::Name(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads from bytes that are all there, so nothing ever waits.
    fn now<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(future)
    }

    /// [RFC 1928 §4, §5]
    #[test]
    fn requests_are_read_to_their_end_and_not_further() {
        let check = |bytes: &[u8], command, host: Option<&str>, port| {
            let with_more = [bytes, b"more"].concat();
            let mut rest = with_more.as_slice();
            let request = now(read_request(&mut rest)).unwrap();
            let host = host.map(|host| host_of_name(host.as_bytes()).unwrap());
            assert_eq!(request, Request { command, host, port });
            assert_eq!(rest, b"more");
            for cut in 0..bytes.len() {
                assert!(matches!(now(read_request(&mut &bytes[..cut])), Err(Unread::Gone(_))), "{cut}");
            }
        };
        check(&[5, 1, 0, 1, 192, 0, 2, 1, 0, 80], Command::Connect, Some("192.0.2.1"), 80);
        check(b"\x05\x03\x00\x03\x0bexample.org\x01\xbb", Command::UdpAssociate, Some("example.org"), 443);
        let ipv6 = [&[5, 1, 0, 4, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1, 0, 80]].concat();
        check(&ipv6, Command::Connect, Some("2001:db8::1"), 80);
        check(b"\x05\x01\x00\x03\x09192.0.2.1\x00\x50", Command::Connect, Some("192.0.2.1"), 80);
        check(b"\x05\x01\x00\x03\x02\xff\xff\x00\x50", Command::Connect, None, 80);
        check(b"\x05\x01\x00\x03\x00\x00\x50", Command::Connect, None, 80);
    }

    #[test]
    fn what_is_not_understood_has_its_name() {
        let check = |bytes: &[u8], expected| match now(read_request(&mut &*bytes)) {
            Err(Unread::Refused(failure)) => assert_eq!(failure, expected, "{bytes:?}"),
            other => panic!("{bytes:?}: {other:?}"),
        };
        check(&[4, 1, 0, 80, 192, 0, 2, 1, 0, 0], Failure::Malformed);
        check(&[5, 2, 0, 1, 192, 0, 2, 1, 0, 80], Failure::UnsupportedCommand);
        check(&[5, 9, 0, 1, 192, 0, 2, 1, 0, 80], Failure::UnsupportedCommand);
        check(&[5, 1, 0, 2, 192, 0, 2, 1, 0, 80], Failure::UnsupportedAddress);
    }

    /// [RFC 1928 §7]
    #[test]
    fn datagrams_lead_somewhere() {
        let check = |bytes: &[u8], target: &str, payload: &[u8]| {
            let (found, rest) = parse_datagram(bytes).unwrap();
            assert_eq!((found.to_string().as_str(), rest), (target, payload));
        };
        check(&[0, 0, 0, 1, 192, 0, 2, 1, 0, 53, 7, 8], "192.0.2.1:53", &[7, 8]);
        check(b"\0\0\0\x03\x0bexample.org\0\x35", "example.org:53", &[]);
        let refused = |bytes: &[u8], expected| assert_eq!(parse_datagram(bytes), Err(expected), "{bytes:?}");
        refused(&[0, 0, 1, 1, 192, 0, 2, 1, 0, 53, 7], Failure::Fragment);
        refused(&[0, 0, 0, 9, 192, 0, 2, 1, 0, 53, 7], Failure::UnsupportedAddress);
        refused(&[0, 0, 0, 1, 192, 0, 2, 1, 0], Failure::Malformed);
        refused(&[0, 0, 0, 1, 192, 0, 2, 1, 0, 0], Failure::NotAllowed);
        refused(b"\0\0\0\x03\x03a b\0\x35", Failure::NameNotResolved);
        refused(&[], Failure::Malformed);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse_datagram(&bytes);
            let _ = now(read_request(&mut bytes.as_slice()));
            let _ = now(read_methods(&mut bytes.as_slice()));
            let _ = now(read_password(&mut bytes.as_slice()));
        }

        #[test]
        fn headers_lead_back(ip in any::<IpAddr>(), port in 1u16.., payload in proptest::collection::vec(any::<u8>(), 0..9)) {
            let from = SocketAddr::new(ip, port);
            let header = datagram_header(from);
            prop_assert!(header.len() <= DATAGRAM_HEADER_MAX);
            let datagram = [header, payload.clone()].concat();
            let (target, rest) = parse_datagram(&datagram).unwrap();
            prop_assert_eq!(target, Target { host: Host::Address(ip), port });
            prop_assert_eq!(rest, payload.as_slice());
        }

        #[test]
        fn passwords_arrive(username in proptest::collection::vec(any::<u8>(), 0..256),
                            password in proptest::collection::vec(any::<u8>(), 0..256)) {
            let length = |bytes: &[u8]| vec![u8::try_from(bytes.len()).unwrap()];
            let bytes = [vec![1], length(&username), username.clone(), length(&password), password.clone()].concat();
            let given = now(read_password(&mut bytes.as_slice())).unwrap();
            prop_assert_eq!((&*given.username, &*given.password), (&username, &password));
        }
    }
}
