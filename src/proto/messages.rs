//! The four messages on the wire: where each field lies, a checked view of each, and how each is written.
//!
//! [`parse`] looks at a datagram once: type, reserved bytes and length. What comes out is a view whose
//! accessors cannot fail, because a view of the wrong length does not exist.
//!
//! All integers are little-endian. Byte ranges:
//!
//! | message | type | bytes | fields |
//! |---|---|---|---|
//! | initiation [WP 5.4.2] | 1 | 148 | sender 4…8, ephemeral 8…40, static 40…88, timestamp 88…116, mac1 116…132, mac2 132…148 |
//! | response [WP 5.4.3] | 2 | 92 | sender 4…8, receiver 8…12, ephemeral 12…44, nothing 44…60, mac1 60…76, mac2 76…92 |
//! | cookie reply [WP 5.4.7] | 3 | 64 | receiver 4…8, nonce 8…32, cookie 32…64 |
//! | transport data [WP 5.4.6] | 4 | 32 and more | receiver 4…8, counter 8…16, sealed payload 16… |
//!
//! Invariants:
//! - a handshake message has exactly its length; transport data has at least a header and a tag;
//! - the three bytes after the type are zero, and are written as zero.

use crate::proto::constants::PADDING_MULTIPLE;
use crate::proto::rejected::Rejected;

/// The type of a handshake initiation.
pub const TYPE_INITIATION: u32 = 1;
/// The type of a handshake response.
pub const TYPE_RESPONSE: u32 = 2;
/// The type of a cookie reply.
pub const TYPE_COOKIE_REPLY: u32 = 3;
/// The type of transport data.
pub const TYPE_DATA: u32 = 4;

/// Bytes of a handshake initiation [WP 5.4.2].
pub const INITIATION_LEN: usize = 148;
/// Bytes of a handshake response [WP 5.4.3].
pub const RESPONSE_LEN: usize = 92;
/// Bytes of a cookie reply [WP 5.4.7].
pub const COOKIE_REPLY_LEN: usize = 64;
/// Bytes before the sealed payload of transport data [WP 5.4.6].
pub const DATA_HEADER_LEN: usize = 16;
/// Bytes of a Poly1305 tag.
pub const TAG_LEN: usize = 16;
/// Bytes that transport data adds to its padded payload; also the length of a keepalive.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;
/// Bytes of mac1 and of mac2 [WP 5.4.4].
pub const MAC_LEN: usize = 16;
/// Bytes of the two macs that end an initiation and a response.
pub const MACS_LEN: usize = 2 * MAC_LEN;
/// Bytes of the nonce of a cookie reply.
pub const COOKIE_NONCE_LEN: usize = 24;

/// Bytes of a public key on the wire.
const POINT_LEN: usize = 32;
/// Bytes of a sealed static public key.
pub const SEALED_STATIC_LEN: usize = POINT_LEN + TAG_LEN;
/// Bytes of a sealed TAI64N timestamp.
pub const SEALED_TIMESTAMP_LEN: usize = 12 + TAG_LEN;
/// Bytes of a sealed cookie.
pub const SEALED_COOKIE_LEN: usize = 16 + TAG_LEN;

const _: () = assert!(8 + POINT_LEN + SEALED_STATIC_LEN + SEALED_TIMESTAMP_LEN + MACS_LEN == INITIATION_LEN);
const _: () = assert!(12 + POINT_LEN + TAG_LEN + MACS_LEN == RESPONSE_LEN);
const _: () = assert!(8 + COOKIE_NONCE_LEN + SEALED_COOKIE_LEN == COOKIE_REPLY_LEN);

/// The `N` bytes of `message` from `at` on. Callers pass constants that lie inside of the message.
fn field<const N: usize>(message: &[u8], at: usize) -> &[u8; N] {
    message[at..].first_chunk().expect("the field lies inside of a message whose length was checked")
}

fn index(message: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*field(message, at))
}

/// A handshake initiation of the right type and length; nothing else is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initiation<'a>(&'a [u8; INITIATION_LEN]);

impl<'a> Initiation<'a> {
    /// The whole message.
    pub fn as_bytes(&self) -> &'a [u8; INITIATION_LEN] {
        self.0
    }

    /// The initiator's index.
    pub fn sender(&self) -> u32 {
        index(self.0, 4)
    }

    /// The initiator's ephemeral public key, in the clear.
    pub fn ephemeral(&self) -> &'a [u8; POINT_LEN] {
        field(self.0, 8)
    }

    /// The initiator's static public key, sealed.
    pub fn sealed_static(&self) -> &'a [u8; SEALED_STATIC_LEN] {
        field(self.0, 40)
    }

    /// The timestamp, sealed.
    pub fn sealed_timestamp(&self) -> &'a [u8; SEALED_TIMESTAMP_LEN] {
        field(self.0, 88)
    }

    /// mac1.
    pub fn mac1(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, INITIATION_LEN - MACS_LEN)
    }

    /// mac2; all zero where the sender has no cookie.
    pub fn mac2(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, INITIATION_LEN - MAC_LEN)
    }
}

/// A handshake response of the right type and length; nothing else is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a>(&'a [u8; RESPONSE_LEN]);

impl<'a> Response<'a> {
    /// The whole message.
    pub fn as_bytes(&self) -> &'a [u8; RESPONSE_LEN] {
        self.0
    }

    /// The responder's index.
    pub fn sender(&self) -> u32 {
        index(self.0, 4)
    }

    /// The index that the initiator sent.
    pub fn receiver(&self) -> u32 {
        index(self.0, 8)
    }

    /// The responder's ephemeral public key, in the clear.
    pub fn ephemeral(&self) -> &'a [u8; POINT_LEN] {
        field(self.0, 12)
    }

    /// The tag of an empty payload.
    pub fn sealed_nothing(&self) -> &'a [u8; TAG_LEN] {
        field(self.0, 44)
    }

    /// mac1.
    pub fn mac1(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, RESPONSE_LEN - MACS_LEN)
    }

    /// mac2; all zero where the sender has no cookie.
    pub fn mac2(&self) -> &'a [u8; MAC_LEN] {
        field(self.0, RESPONSE_LEN - MAC_LEN)
    }
}

/// A cookie reply of the right type and length; nothing else is checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply<'a>(&'a [u8; COOKIE_REPLY_LEN]);

impl<'a> CookieReply<'a> {
    /// The whole message.
    pub fn as_bytes(&self) -> &'a [u8; COOKIE_REPLY_LEN] {
        self.0
    }

    /// The index of the handshake message that this answers.
    pub fn receiver(&self) -> u32 {
        index(self.0, 4)
    }

    /// The nonce under which the cookie is sealed.
    pub fn nonce(&self) -> &'a [u8; COOKIE_NONCE_LEN] {
        field(self.0, 8)
    }

    /// The cookie, sealed.
    pub fn sealed_cookie(&self) -> &'a [u8; SEALED_COOKIE_LEN] {
        field(self.0, 32)
    }
}

/// The header of transport data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// The receiver's index: names a keypair of the receiver.
    pub receiver: u32,
    /// The message counter, which is the nonce.
    pub counter: u64,
}

/// A datagram that has the shape of one of the four messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Handshake initiation.
    Initiation(Initiation<'a>),
    /// Handshake response.
    Response(Response<'a>),
    /// Cookie reply.
    CookieReply(CookieReply<'a>),
    /// Transport data; the sealed payload is the rest of the datagram from [`DATA_HEADER_LEN`] on.
    Data(DataHeader),
}

/// Sorts a datagram by type and length. Fails with [`Rejected::MalformedMessage`] on any other type,
/// on reserved bytes that are not zero, and on a length that the type does not have. [WP 5.4]
pub fn parse(datagram: &[u8]) -> Result<Message<'_>, Rejected> {
    let message_type = datagram.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let message = match message_type {
        Some(TYPE_DATA) if datagram.len() >= DATA_OVERHEAD => Some(Message::Data(DataHeader {
            receiver: index(datagram, 4),
            counter: u64::from_le_bytes(*field(datagram, 8)),
        })),
        Some(TYPE_INITIATION) => datagram.try_into().ok().map(|bytes| Message::Initiation(Initiation(bytes))),
        Some(TYPE_RESPONSE) => datagram.try_into().ok().map(|bytes| Message::Response(Response(bytes))),
        Some(TYPE_COOKIE_REPLY) => datagram.try_into().ok().map(|bytes| Message::CookieReply(CookieReply(bytes))),
        _ => None,
    };
    message.ok_or(Rejected::MalformedMessage)
}

/// The receiver index, if the datagram has the shape of transport data; for the receive path, which
/// asks it of every datagram and of most of them nothing else.
#[inline]
pub fn data_receiver(datagram: &[u8]) -> Option<u32> {
    let (header, rest) = datagram.split_first_chunk::<DATA_HEADER_LEN>()?;
    let is_data = rest.len() >= TAG_LEN && header[..4] == TYPE_DATA.to_le_bytes();
    is_data.then(|| index(header, 4))
}

/// The counter of a datagram for which [`data_receiver`] gave an index.
#[inline]
pub fn data_counter(datagram: &[u8]) -> u64 {
    u64::from_le_bytes(*field(datagram, 8))
}

/// Writes the header of transport data into the first [`DATA_HEADER_LEN`] bytes of `packet`. [WP 5.4.6]
#[inline]
pub fn write_data_header(packet: &mut [u8], receiver: u32, counter: u64) {
    packet[..4].copy_from_slice(&TYPE_DATA.to_le_bytes());
    packet[4..8].copy_from_slice(&receiver.to_le_bytes());
    packet[8..DATA_HEADER_LEN].copy_from_slice(&counter.to_le_bytes());
}

/// A payload's length with its padding: to a multiple of 16, but never beyond the MTU, which is 0 for none.
/// [WP 5.4.6] [KERNEL-PADDING]
pub const fn padded_len(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(PADDING_MULTIPLE);
    }
    let last_unit = if len > mtu { len % mtu } else { len };
    let padded_unit = last_unit.next_multiple_of(PADDING_MULTIPLE);
    len - last_unit + if padded_unit >= mtu { mtu } else { padded_unit }
}

/// Writes an initiation; both macs stay zero until a cookie jar adds them. [WP 5.4.2]
pub fn write_initiation(
    sender: u32,
    ephemeral: &[u8; POINT_LEN],
    sealed_static: &[u8; SEALED_STATIC_LEN],
    sealed_timestamp: &[u8; SEALED_TIMESTAMP_LEN],
) -> [u8; INITIATION_LEN] {
    let mut message = [0; INITIATION_LEN];
    message[..4].copy_from_slice(&TYPE_INITIATION.to_le_bytes());
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..40].copy_from_slice(ephemeral);
    message[40..88].copy_from_slice(sealed_static);
    message[88..116].copy_from_slice(sealed_timestamp);
    message
}

/// Writes a response; both macs stay zero until a cookie jar adds them. [WP 5.4.3]
pub fn write_response(
    sender: u32,
    receiver: u32,
    ephemeral: &[u8; POINT_LEN],
    sealed_nothing: &[u8; TAG_LEN],
) -> [u8; RESPONSE_LEN] {
    let mut message = [0; RESPONSE_LEN];
    message[..4].copy_from_slice(&TYPE_RESPONSE.to_le_bytes());
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    message[8..12].copy_from_slice(&receiver.to_le_bytes());
    message[12..44].copy_from_slice(ephemeral);
    message[44..60].copy_from_slice(sealed_nothing);
    message
}

/// Writes a cookie reply. [WP 5.4.7]
pub fn write_cookie_reply(
    receiver: u32,
    nonce: &[u8; COOKIE_NONCE_LEN],
    sealed_cookie: &[u8; SEALED_COOKIE_LEN],
) -> [u8; COOKIE_REPLY_LEN] {
    let mut message = [0; COOKIE_REPLY_LEN];
    message[..4].copy_from_slice(&TYPE_COOKIE_REPLY.to_le_bytes());
    message[4..8].copy_from_slice(&receiver.to_le_bytes());
    message[8..32].copy_from_slice(nonce);
    message[32..].copy_from_slice(sealed_cookie);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    /// [WP 5.4] Each type has its length, and no other bytes in place of the reserved ones.
    #[test]
    fn parse_accepts_exact_lengths_and_zero_reserved_bytes_only() {
        let accepted = |message_type: u8, len: usize| {
            let mut datagram = vec![0; len];
            datagram[0] = message_type;
            parse(&datagram).is_ok()
        };
        for message_type in 0..=255 {
            for len in 1..300 {
                let expected = match message_type {
                    1 => len == 148,
                    2 => len == 92,
                    3 => len == 64,
                    4 => len >= 32,
                    _ => false,
                };
                assert_eq!(accepted(message_type, len), expected, "type {message_type}, {len} bytes");
            }
        }
        assert_eq!(parse(&[]), Err(Rejected::MalformedMessage));
        for (message_type, len) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            for reserved in 1..4 {
                let mut datagram = vec![0; len];
                datagram[0] = message_type;
                datagram[reserved] = 1;
                assert_eq!(parse(&datagram), Err(Rejected::MalformedMessage));
                assert_eq!(data_receiver(&datagram), None);
            }
        }
    }

    /// [WP 5.4.2] [WP 5.4.3] [WP 5.4.7] What is written is what the views read.
    #[test]
    fn fields_lie_where_they_are_written() {
        let mut initiation = write_initiation(0x0403_0201, &[1; 32], &[2; 48], &[3; 28]);
        assert_eq!(initiation[..8], [1, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(initiation[116..], [0; 32], "both macs");
        initiation[116..132].fill(4);
        initiation[132..].fill(5);
        let Ok(Message::Initiation(view)) = parse(&initiation) else { panic!("an initiation") };
        assert_eq!((view.as_bytes(), view.sender()), (&initiation, 0x0403_0201));
        assert_eq!((view.ephemeral(), view.sealed_static(), view.sealed_timestamp()), (&[1; 32], &[2; 48], &[3; 28]));
        assert_eq!((view.mac1(), view.mac2()), (&[4; 16], &[5; 16]));

        let mut response = write_response(5, 6, &[1; 32], &[2; 16]);
        assert_eq!(response[..12], [2, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(response[60..], [0; 32], "both macs");
        response[60..76].fill(3);
        response[76..].fill(4);
        let Ok(Message::Response(view)) = parse(&response) else { panic!("a response") };
        assert_eq!((view.as_bytes(), view.sender(), view.receiver()), (&response, 5, 6));
        assert_eq!((view.ephemeral(), view.sealed_nothing()), (&[1; 32], &[2; 16]));
        assert_eq!((view.mac1(), view.mac2()), (&[3; 16], &[4; 16]));

        let reply = write_cookie_reply(7, &[1; 24], &[2; 32]);
        assert_eq!(reply[..8], [3, 0, 0, 0, 7, 0, 0, 0]);
        let Ok(Message::CookieReply(view)) = parse(&reply) else { panic!("a cookie reply") };
        assert_eq!((view.as_bytes(), view.receiver()), (&reply, 7));
        assert_eq!((view.nonce(), view.sealed_cookie()), (&[1; 24], &[2; 32]));
    }

    /// [WP 5.4.6] Header of transport data; the shortest is a keepalive of 32 bytes.
    #[test]
    fn data_header_goes_and_comes() {
        let mut packet = [0xff; DATA_OVERHEAD];
        write_data_header(&mut packet, 0x0403_0201, 0x0807_0605_0403_0201);
        assert_eq!(packet[..16], [4, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
        let header = DataHeader { receiver: 0x0403_0201, counter: 0x0807_0605_0403_0201 };
        assert_eq!(parse(&packet), Ok(Message::Data(header)));
        assert_eq!(data_receiver(&packet), Some(header.receiver));
        assert_eq!(data_counter(&packet), header.counter);
        assert_eq!(data_receiver(&packet[..31]), None);
        assert_eq!(parse(&packet[..31]), Err(Rejected::MalformedMessage));
    }

    /// [WP 5.4.6] [KERNEL-PADDING]
    #[test]
    fn s_42_padding_never_exceeds_the_mtu() {
        let check = |len, mtu, expected| assert_eq!(padded_len(len, mtu), expected, "{len} at MTU {mtu}");
        check(0, 1420, 0);
        check(1, 1420, 16);
        check(16, 1420, 16);
        check(84, 1420, 96);
        check(1409, 1420, 1420);
        check(1416, 1420, 1420);
        check(1420, 1420, 1420);
        check(1421, 1420, 1436);
        check(2840, 1420, 2840);
        check(100, 0, 112);
        check(5, 3, 6);
    }
}
