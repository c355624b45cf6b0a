//! Fuzz body (Z-01): whatever comes from somebody whose keys are not known, nothing is said and nothing changes. Under
//! load, and only then, who knows our public key is told a cookie.

use std::net::SocketAddr;
use std::time::Duration;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::constants::RATE_PACKETS_PER_SECOND;
use adit::proto::cookie::CookieJar;
use adit::proto::handshake::{Handshake, Identity};
use adit::proto::messages::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};
use adit::proto::peer::{Outcome, Peer, datagram_len};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, Now, UnixTime};

use crate::input::Input;
use crate::input::rng::TestRng;

/// Datagrams of one input.
const DATAGRAMS_MAX: usize = 96;
/// Bytes of the longest one.
const DATAGRAM_MAX: usize = 1500;

/// Where the known peer is configured to be.
fn configured() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 51820))
}

/// A byte of what is to be there beforehand, then datagrams: a byte of kind and sender, and what the kind needs.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut rng = TestRng(1);
    let [ours, known, stranger] = [1, 2, 3].map(|number| PrivateKey::from_bytes([number; 32]));
    let identity = Identity::new(ours.clone());
    let mut peer = Peer::new(ours, known.public_key());
    let endpoint = (input.byte() & 1 != 0).then(configured);
    if let Some(endpoint) = endpoint {
        peer.set_endpoint(endpoint);
    }
    let mut now = Now { instant: Instant::from_nanos(1_000_000_000), unix: UnixTime(Duration::from_secs(1 << 30)) };
    let mut knowing = 0;
    for _ in 0..DATAGRAMS_MAX {
        if input.is_empty() {
            break;
        }
        let kind = input.byte();
        let from = SocketAddr::from(([198, 51, 100, kind >> 5], 1000));
        let mut datagram = match kind & 7 {
            0 => input.list(DATAGRAM_MAX).to_vec(),
            1 => shaped(&mut input, 1, INITIATION_LEN),
            2 => shaped(&mut input, 2, RESPONSE_LEN),
            3 => shaped(&mut input, 3, COOKIE_REPLY_LEN),
            4 => {
                let len = 16 + input.below(DATAGRAM_MAX - 16);
                shaped(&mut input, 4, len)
            }
            // A message that is right in all but whom it comes from, and at times also in that it is not.
            _ => {
                let mut handshake = Handshake::new(identity.public_key(), PresharedKey::default());
                let stamp = Tai64n::from_unix(now.unix);
                let stranger = Identity::new(stranger.clone());
                let message = handshake.create_initiation(&stranger, u32::from(kind), stamp, &mut rng);
                let mut message = message.expect("our key is a point of high order").to_vec();
                if kind & 8 != 0 {
                    input.mutate(&mut message);
                }
                message
            }
        };
        if kind & 16 != 0 && matches!(datagram.len(), INITIATION_LEN | RESPONSE_LEN) {
            CookieJar::new().add_macs(&identity.public_key(), &mut datagram, now.instant);
        }
        now.instant = now.instant + Duration::from_millis(u64::from(input.byte() & 15));
        knowing += u64::from(
            matches!(datagram.len(), INITIATION_LEN | RESPONSE_LEN) && identity.check_mac1(&datagram).is_ok(),
        );

        let mut out = [0; datagram_len(DATAGRAM_MAX)];
        match peer.decapsulate(from, &mut datagram, &mut out, now, &mut rng) {
            Ok(Outcome::Send(answer)) => {
                assert!(knowing > RATE_PACKETS_PER_SECOND, "an answer without load");
                assert_eq!((answer.to, answer.bytes.len(), answer.bytes[0]), (from, COOKIE_REPLY_LEN, 3));
            }
            Ok(outcome) => panic!("{outcome:?} for a stranger"),
            Err(_) => {}
        }
        assert!(peer.poll_transmit(&mut out, now, &mut rng).is_none());
        assert_eq!(peer.poll_timeout(), None);
        assert_eq!((peer.endpoint(), peer.last_handshake()), (endpoint, None));
        assert_eq!((peer.rx_bytes(), peer.tx_bytes(), peer.staged()), (0, 0, 0));
        assert!(!peer.has_session(now.instant) && !peer.owns_index(u32::from(kind)));
    }
    // Whom it does know, it still hears.
    now.instant = now.instant + Duration::from_secs(10);
    let mut handshake = Handshake::new(identity.public_key(), PresharedKey::default());
    let known = Identity::new(known);
    let message = handshake.create_initiation(&known, 7, Tai64n::from_unix(now.unix), &mut rng);
    let mut message = message.expect("our key is a point of high order").to_vec();
    CookieJar::new().add_macs(&identity.public_key(), &mut message, now.instant);
    let mut out = [0; datagram_len(DATAGRAM_MAX)];
    let answer = peer.decapsulate(configured(), &mut message, &mut out, now, &mut rng);
    assert!(matches!(answer, Ok(Outcome::Send(response)) if response.bytes[0] == 2), "{answer:?}");
}

/// A message of this type and length, of any content.
fn shaped(input: &mut Input<'_>, kind: u8, len: usize) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(input.bytes(len - 4));
    message.resize(len, 0x5a);
    message
}
