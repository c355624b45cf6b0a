//! Who may use a proxy: one username and one password, or everybody.

use crate::proxy::config::Secret;

/// What a client must know. `Debug` shows nothing of it.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    username: Secret,
    password: Secret,
}

impl Credentials {
    /// `None` if everybody may. What a description leaves out of the two is empty.
    pub(super) fn new(username: Option<&str>, password: Option<&Secret>) -> Option<Self> {
        if username.is_none() && password.is_none() {
            return None;
        }
        Some(Self {
            username: Secret::new(username.unwrap_or_default().to_owned()),
            password: password.cloned().unwrap_or_else(|| Secret::new(String::new())),
        })
    }

    /// Whether these are the ones. The time it takes tells their lengths and nothing else.
    pub(super) fn match_with(&self, username: &[u8], password: &[u8]) -> bool {
        // Both are always compared: `&`, not `&&`.
        self.username.matches(username) & self.password.matches(password)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_must_be_right() {
        let credentials = Credentials::new(Some("name"), Some(&Secret::new("word".into()))).unwrap();
        assert!(credentials.match_with(b"name", b"word"));
        for (username, password) in [("name", "wor"), ("nam", "word"), ("", ""), ("word", "name"), ("name", "")] {
            assert!(!credentials.match_with(username.as_bytes(), password.as_bytes()), "{username}:{password}");
        }
        let shown = format!("{credentials:?}");
        assert_eq!(shown, "Credentials { username: Secret(hidden), password: Secret(hidden) }");
    }

    #[test]
    fn what_is_left_out_is_empty() {
        assert!(Credentials::new(None, None).is_none());
        assert!(Credentials::new(Some("name"), None).unwrap().match_with(b"name", b""));
        assert!(Credentials::new(None, Some(&Secret::new("word".into()))).unwrap().match_with(b"", b"word"));
    }
}
