//! A checker and a jar against each other: what a cookie is bound to, and how long it lives.

use super::*;
use crate::proto::messages::{INITIATION_LEN, Message, RESPONSE_LEN, parse};
use crate::proto::test_rng::TestRng;
use core::time::Duration;

const PUBLIC: PublicKey = PublicKey::from_bytes([5; 32]);

fn at(seconds: u64) -> Instant {
    Instant::default() + Duration::from_secs(1000 + seconds)
}

fn from(text: &str) -> SourceAddr {
    text.parse().expect("an address and port")
}

struct Scene {
    checker: CookieChecker,
    jar: CookieJar,
    rng: TestRng,
}

impl Scene {
    fn new() -> Self {
        let mut rng = TestRng(0);
        Self { checker: CookieChecker::new(&PUBLIC, at(0), &mut rng), jar: CookieJar::new(), rng }
    }

    fn message(&mut self, seconds: u64) -> [u8; INITIATION_LEN] {
        let mut message = [0x77; INITIATION_LEN];
        self.jar.add_macs(&PUBLIC, &mut message, at(seconds));
        message
    }

    fn reply(&mut self, message: &[u8], source: &str, seconds: u64) -> [u8; COOKIE_REPLY_LEN] {
        let mac1 = message[message.len() - MACS_LEN..].first_chunk().expect("mac1");
        self.checker.create_reply(mac1, 1, from(source), at(seconds), &mut self.rng)
    }

    fn consume(&mut self, reply: &[u8], seconds: u64) -> Result<(), Rejected> {
        let Ok(Message::CookieReply(reply)) = parse(reply) else { panic!("a cookie reply") };
        self.jar.consume_reply(&PUBLIC, &reply, at(seconds))
    }

    fn passes(&mut self, message: &[u8], source: &str, seconds: u64) -> bool {
        self.checker.check_mac2(message, from(source), at(seconds), &mut self.rng)
    }

    /// A jar that got its cookie at `source` in this second.
    fn with_cookie(source: &str, seconds: u64) -> Self {
        let mut scene = Self::new();
        let message = scene.message(seconds);
        let reply = scene.reply(&message, source, seconds);
        assert_eq!(scene.consume(&reply, seconds), Ok(()));
        scene
    }
}

/// [WP 5.4.4] [WP 5.4.7] A reply gives a cookie, and with it a message passes.
#[test]
fn s_30_a_cookie_proves_the_address() {
    let mut scene = Scene::new();
    let message = scene.message(0);
    assert_eq!(message[132..], [0; 16], "no cookie, no mac2");
    assert!(!scene.passes(&message, "192.0.2.1:1", 0));
    let reply = scene.reply(&message, "192.0.2.1:1", 0);
    assert_eq!(reply[..8], [3, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(scene.consume(&reply, 0), Ok(()));
    let message = scene.message(1);
    assert!(scene.passes(&message, "192.0.2.1:1", 1));
    for position in 0..INITIATION_LEN {
        let mut broken = message;
        broken[position] ^= 1;
        assert!(!scene.passes(&broken, "192.0.2.1:1", 1), "byte {position}");
    }
    let mut response = [0x78; RESPONSE_LEN];
    scene.jar.add_macs(&PUBLIC, &mut response, at(1));
    assert!(scene.passes(&response, "192.0.2.1:1", 1), "a response too");
}

/// [WP 5.3] A cookie is of one address and one port. Regression: cookie without source port.
#[test]
fn a_cookie_is_bound_to_address_and_port() {
    let check = |given: &str, used: &str, expected: bool| {
        let mut scene = Scene::with_cookie(given, 0);
        let message = scene.message(1);
        assert_eq!(scene.passes(&message, used, 1), expected, "{given}, {used}");
    };
    check("192.0.2.1:1000", "192.0.2.1:1000", true);
    check("192.0.2.1:1000", "192.0.2.1:1001", false);
    check("192.0.2.1:1000", "192.0.2.2:1000", false);
    check("192.0.2.1:1000", "[::ffff:192.0.2.1]:1000", true);
    check("[2001:db8::1]:1", "[2001:db8::1]:1", true);
    check("[2001:db8::1]:1", "[2001:db8::2]:1", false);
    check("[2001:db8::1]:1", "[2001:db8::1]:256", false);
}

/// [WP 5.4.7] The secret changes at 120 s, and all cookies with it.
#[test]
fn s_30_the_secret_lives_two_minutes() {
    let mut scene = Scene::with_cookie("192.0.2.1:1", 100);
    let message = scene.message(119);
    assert!(scene.passes(&message, "192.0.2.1:1", 119));
    assert!(!scene.passes(&message, "192.0.2.1:1", 120));
    assert!(!scene.passes(&message, "192.0.2.1:1", 121), "and stays changed");
}

/// [WP 5.4.7] The client uses a cookie for 115 s.
#[test]
fn s_30_a_cookie_is_used_for_115_seconds() {
    let mut scene = Scene::with_cookie("192.0.2.1:1", 0);
    assert_ne!(scene.message(114)[132..], [0; 16]);
    assert_eq!(scene.message(115)[132..], [0; 16]);
    assert_eq!(scene.message(1)[132..], [0; 16], "it is gone for good");
}

/// [WP 5.4.7] A reply counts only for the mac1 that we sent last, and once.
#[test]
fn s_30_replies_that_we_did_not_ask_for_are_refused() {
    let mut scene = Scene::new();
    let unasked = scene.reply(&[0; INITIATION_LEN], "192.0.2.1:1", 0);
    assert_eq!(scene.consume(&unasked, 0), Err(Rejected::UnexpectedCookie));
    let message = scene.message(0);
    assert_eq!(scene.consume(&unasked, 0), Err(Rejected::BadTag), "bound to another mac1");
    let reply = scene.reply(&message, "192.0.2.1:1", 0);
    for position in 8..COOKIE_REPLY_LEN {
        let mut broken = reply;
        broken[position] ^= 1;
        assert_eq!(scene.consume(&broken, 0), Err(Rejected::BadTag), "byte {position}");
    }
    assert_eq!(scene.consume(&reply, 0), Ok(()), "and the true one is still accepted");
    assert_eq!(scene.consume(&reply, 0), Err(Rejected::UnexpectedCookie), "once");
}

/// Messages too short for two macs never pass.
#[test]
fn short_messages_do_not_pass() {
    let mut scene = Scene::new();
    (0..MACS_LEN).for_each(|len| assert!(!scene.passes(&[0; MACS_LEN][..len], "192.0.2.1:1", 0)));
}
