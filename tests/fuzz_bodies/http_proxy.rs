//! Fuzz body: what a client says to the HTTP proxy, by a real connection. Each answer is an HTTP message, no task panics,
//! nothing of the client stays, nobody gets through without the password; and the next client is served.

use adit::proxy::config::{Http, Secret, Service};

use crate::input::Input;
use crate::service::Proxy;

/// Bytes of the longest conversation: more than a request's head may have.
const BYTES_MAX: usize = 80 << 10;
/// `user:pass`, as a client says it.
const AUTHORIZATION: &[u8] = b"Proxy-Authorization: Basic dXNlcjpwYXNz\r\n";
const CREDENTIALS: &[u8] = b"dXNlcjpwYXNz";
/// What only somebody inside the tunnel says, or a tunnel to him.
const SUCCESS: &[u8] = b"HTTP/1.1 200";

thread_local! {
    static PROXY: Proxy = Proxy::start(&proxy());
}

fn proxy() -> Service {
    let bind = ([127, 0, 0, 1], 0).into();
    Service::Http(Http {
        bind,
        username: Some("user".to_owned()),
        password: Some(Secret::new("pass".to_owned())),
        certificate: None,
    })
}

/// A byte of whether the credentials are put behind the first line, one of where it is cut, then what the client says.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, cut) = (input.byte(), usize::from(input.byte()));
    let mut said = input.bytes(BYTES_MAX).to_vec();
    if kind & 1 != 0 {
        let end = said.windows(2).position(|window| window == b"\r\n").map_or(said.len(), |at| at + 2);
        said.splice(end..end, AUTHORIZATION.iter().copied());
    }
    let (first, second) = said.split_at(cut.min(said.len()));
    let answer = PROXY.with(|proxy| proxy.exchange(&[first, second]));
    if answer.is_empty() {
        return;
    }
    let status = answer.strip_prefix(b"HTTP/1.1 ").or_else(|| answer.strip_prefix(b"HTTP/1.0 "));
    let status = status.and_then(|rest| str::from_utf8(rest.get(..3)?).ok()?.parse::<u16>().ok());
    let status = status.unwrap_or_else(|| panic!("no HTTP: {}", answer.escape_ascii()));
    assert!((100..600).contains(&status), "{}", answer.escape_ascii());
    if answer.windows(SUCCESS.len()).any(|window| window == SUCCESS) {
        // Base64 may have spaces around it, but nothing else stands for the same bytes.
        assert!(said.windows(CREDENTIALS.len()).any(|window| window == CREDENTIALS), "without the password");
    }
}
