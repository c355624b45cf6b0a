//! Who may use a proxy: one username and one password, or everybody.

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::proxy::config::{CREDENTIAL_BYTES_MAX, Secret};

/// What a client must know. There is no `Debug` of it.
#[derive(Clone)]
pub(super) struct Credentials {
    username: Padded,
    password: Padded,
}

/// At most [`CREDENTIAL_BYTES_MAX`] bytes, and how many there are, in an array that is as long for all: to compare two takes
/// a time that tells nothing, not even their lengths. Wiped when dropped.
type Padded = Zeroizing<[u8; CREDENTIAL_BYTES_MAX + 2]>;

/// What is longer is the same as nothing that a client can give.
fn padded(bytes: &[u8]) -> Padded {
    let mut array = Zeroizing::new([0; CREDENTIAL_BYTES_MAX + 2]);
    let shown = &bytes[..bytes.len().min(CREDENTIAL_BYTES_MAX)];
    array[..shown.len()].copy_from_slice(shown);
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    array[CREDENTIAL_BYTES_MAX..].copy_from_slice(&length.to_be_bytes());
    array
}

impl Credentials {
    /// `None` if everybody may. What a description leaves out of the two is empty.
    pub(super) fn new(username: Option<&str>, password: Option<&Secret>) -> Option<Self> {
        if username.is_none() && password.is_none() {
            return None;
        }
        let username = padded(username.unwrap_or_default().as_bytes());
        Some(Self { username, password: padded(password.map_or("", Secret::as_str).as_bytes()) })
    }

    /// Whether these are the ones. The time it takes tells nothing of them.
    pub(super) fn match_with(&self, username: &[u8], password: &[u8]) -> bool {
        let are_short = username.len() <= CREDENTIAL_BYTES_MAX && password.len() <= CREDENTIAL_BYTES_MAX;
        let (username, password) = (padded(username), padded(password));
        // Both are always compared: `&`, not `&&`.
        let are_equal = self.username.ct_eq(&*username) & self.password.ct_eq(&*password);
        are_short & bool::from(are_equal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_must_be_right() {
        let credentials = Credentials::new(Some("name"), Some(&Secret::new("word".into()))).unwrap();
        assert!(credentials.match_with(b"name", b"word"));
        let wrong = [
            ("name", "wor"),
            ("nam", "word"),
            ("", ""),
            ("word", "name"),
            ("name", ""),
            ("name", "word\0"),
            ("x", "word"),
        ];
        for (username, password) in wrong {
            assert!(!credentials.match_with(username.as_bytes(), password.as_bytes()), "{username}:{password}");
        }
    }

    #[test]
    fn what_is_left_out_is_empty() {
        assert!(Credentials::new(None, None).is_none());
        assert!(Credentials::new(Some("name"), None).unwrap().match_with(b"name", b""));
        assert!(Credentials::new(None, Some(&Secret::new("word".into()))).unwrap().match_with(b"", b"word"));
    }

    #[test]
    fn what_is_too_long_matches_nothing() {
        let of = |length: usize| "x".repeat(length);
        let check = |known: usize, given: usize, expected: bool| {
            let credentials = Credentials::new(None, Some(&Secret::new(of(known)))).unwrap();
            assert_eq!(credentials.match_with(b"", of(given).as_bytes()), expected, "{known} {given}");
        };
        check(255, 255, true);
        check(256, 255, false);
        check(255, 256, false);
        check(256, 256, false);
        check(256, 1 << 17, false);
        check(1 << 17, 1 << 18, false);
    }
}
