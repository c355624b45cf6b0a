//! mac1, mac2 and the cookies between them. [WP 5.3] [WP 5.4.4] [WP 5.4.7]
//!
//! mac1 proves that the sender knows whom it writes to; without it a message is dropped in silence.
//! mac2 proves that the sender can receive at the address that it sends from: a device under load
//! answers a message that has none with a [cookie reply](CookieChecker::create_reply), and the sender
//! puts the cookie into the mac2 of its next message. A cookie is a mac of the source address *and
//! port* under a secret that changes every two minutes, so the device remembers nothing per source.
//!
//! [`CookieChecker`] is the side that answers, one for a device; [`CookieJar`] is the side that was
//! answered, one for a peer.
//!
//! Invariants:
//! - a reply is accepted only by who sent a mac1 and for that mac1, once;
//! - a reply that is not accepted changes nothing;
//! - a client stops using a cookie 5 s before the secret behind it may have changed.

use core::net::{IpAddr, SocketAddr};

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::key::PublicKey;
use crate::proto::constants::{COOKIE_SECRET_MAX_AGE, COOKIE_VALID_FOR};
use crate::proto::crypto::{self, HASH_LEN, Secret};
use crate::proto::messages::{
    self, COOKIE_NONCE_LEN, COOKIE_REPLY_LEN, CookieReply, MAC_LEN, MACS_LEN, SEALED_COOKIE_LEN,
};
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;

/// Where a message came from: address and port.
pub type SourceAddr = SocketAddr;

/// Bytes of a cookie.
const COOKIE_LEN: usize = 16;
type Cookie = Zeroizing<[u8; COOKIE_LEN]>;

/// The key of the mac1 of messages to the owner of `public`. [WP 5.4.4]
pub fn mac1_key(public: &PublicKey) -> [u8; HASH_LEN] {
    crypto::hash(&[b"mac1----", public.as_bytes()])
}

/// The key of cookie replies from the owner of `public`. [WP 5.4.7]
fn cookie_key(public: &PublicKey) -> [u8; HASH_LEN] {
    crypto::hash(&[b"cookie--", public.as_bytes()])
}

/// The bytes of a handshake message that mac2 covers, and mac2.
fn split_mac2(message: &[u8]) -> Option<(&[u8], &[u8; MAC_LEN])> {
    message.split_last_chunk().filter(|(covered, _)| covered.len() >= MAC_LEN)
}

/// The side that asks for proof of address. One for a device; made anew when its private key changes.
pub struct CookieChecker {
    cookie_key: [u8; HASH_LEN],
    secret: Secret,
    secret_born: Instant,
}

impl CookieChecker {
    /// A checker for the device of this public key, with a fresh secret.
    pub fn new(public: &PublicKey, now: Instant, rng: &mut impl CryptoRng) -> Self {
        let mut checker =
            Self { cookie_key: cookie_key(public), secret: Zeroizing::new([0; HASH_LEN]), secret_born: now };
        rng.fill_bytes(&mut *checker.secret);
        checker
    }

    /// The cookie of a source, after changing a secret that is too old.
    fn cookie(&mut self, from: SourceAddr, now: Instant, rng: &mut impl CryptoRng) -> Cookie {
        if now.since(self.secret_born) >= COOKIE_SECRET_MAX_AGE {
            rng.fill_bytes(&mut *self.secret);
            self.secret_born = now;
        }
        let port = from.port().to_be_bytes();
        // An IPv4 source has one cookie, whichever family the socket has.
        Zeroizing::new(match from.ip().to_canonical() {
            IpAddr::V4(ip) => crypto::mac(&*self.secret, &[&ip.octets(), &port]),
            IpAddr::V6(ip) => crypto::mac(&*self.secret, &[&ip.octets(), &port]),
        })
    }

    /// Whether the mac2 of an initiation or response shows that its sender receives at `from`.
    /// Compares in constant time. mac1 is checked elsewhere, and before. [WP 5.4.4]
    pub fn check_mac2(&mut self, message: &[u8], from: SourceAddr, now: Instant, rng: &mut impl CryptoRng) -> bool {
        let Some((covered, mac2)) = split_mac2(message) else { return false };
        let cookie = self.cookie(from, now, rng);
        crypto::mac_eq(mac2, &crypto::mac(&*cookie, &[covered]))
    }

    /// Answers a message with the cookie of its source: to the index `sender_index` that it named,
    /// bound to the `mac1` that it had. [WP 5.4.7]
    pub fn create_reply(
        &mut self,
        mac1: &[u8; MAC_LEN],
        sender_index: u32,
        from: SourceAddr,
        now: Instant,
        rng: &mut impl CryptoRng,
    ) -> [u8; COOKIE_REPLY_LEN] {
        let cookie = self.cookie(from, now, rng);
        let mut nonce = [0; COOKIE_NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut sealed = [0; SEALED_COOKIE_LEN];
        crypto::xaead_seal(&self.cookie_key, &nonce, &*cookie, mac1, &mut sealed);
        messages::write_cookie_reply(sender_index, &nonce, &sealed)
    }
}

/// The side that is asked for proof of address: the last cookie of one peer.
#[derive(Default)]
pub struct CookieJar {
    /// The mac1 of our last message, until a reply to it is accepted.
    last_mac1: Option<[u8; MAC_LEN]>,
    /// The cookie, and when it came.
    cookie: Option<(Cookie, Instant)>,
}

impl CookieJar {
    /// A jar without a cookie.
    pub fn new() -> Self {
        Self::default()
    }

    /// Fills in both macs of an initiation or response to the peer `remote_static`; mac2 is zero
    /// without a cookie that is young enough. [WP 5.4.4]
    ///
    /// # Panics
    /// If `message` is shorter than two macs.
    pub fn add_macs(&mut self, remote_static: &PublicKey, message: &mut [u8], now: Instant) {
        let (covered, macs) = message.split_last_chunk_mut::<MACS_LEN>().expect("a handshake message has two macs");
        let mac1 = crypto::mac(&mac1_key(remote_static), &[covered]);
        self.last_mac1 = Some(mac1);
        if self.cookie.as_ref().is_some_and(|(_, came)| now.since(*came) >= COOKIE_VALID_FOR) {
            self.cookie = None;
        }
        let mac2 = match &self.cookie {
            Some((cookie, _)) => crypto::mac(&**cookie, &[covered, &mac1]),
            None => [0; MAC_LEN],
        };
        macs[..MAC_LEN].copy_from_slice(&mac1);
        macs[MAC_LEN..].copy_from_slice(&mac2);
    }

    /// Takes the cookie of a reply from the peer `remote_static`, whose receiver index the caller has
    /// found to be ours. Fails with [`Rejected::UnexpectedCookie`] if no message of ours waits for
    /// one, and with [`Rejected::BadTag`] if it is not the reply to our last message. [WP 5.4.7]
    pub fn consume_reply(
        &mut self,
        remote_static: &PublicKey,
        message: &CookieReply<'_>,
        now: Instant,
    ) -> Result<(), Rejected> {
        let mac1 = self.last_mac1.as_ref().ok_or(Rejected::UnexpectedCookie)?;
        let mut cookie = Zeroizing::new([0; COOKIE_LEN]);
        let key = cookie_key(remote_static);
        crypto::xaead_open(&key, message.nonce(), message.sealed_cookie(), mac1, &mut *cookie)?;
        self.cookie = Some((cookie, now));
        self.last_mac1 = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
