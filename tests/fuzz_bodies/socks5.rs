//! Fuzz body: what a client says to the SOCKS5 proxy, by a real connection. It is answered in the protocol's form or sent
//! away, no task panics, nothing of it stays; and the next client is served.

use adit::proxy::config::{Secret, Service, Socks5};

use crate::input::Input;
use crate::service::{ANSWER, Proxy};

const USERNAME: &str = "user";
const PASSWORD: &str = "pass";
/// Bytes of the longest conversation, and the pieces that it comes in.
const BYTES_MAX: usize = 2048;
const PIECES_MAX: usize = 4;

thread_local! {
    static PROXY: Proxy = Proxy::start(&proxy());
}

fn proxy() -> Service {
    Service::Socks5(Socks5 {
        bind: ([127, 0, 0, 1], 0).into(),
        username: Some(USERNAME.to_owned()),
        password: Some(Secret::new(PASSWORD.to_owned())),
    })
}

/// An even first byte: all that a client says. An odd one: a client that is let in, and what it says then.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    let mut said = Vec::new();
    if kind & 1 != 0 {
        said.extend_from_slice(&[5, 2, 0, 2, 1, USERNAME.len() as u8]);
        said.extend_from_slice(USERNAME.as_bytes());
        said.push(PASSWORD.len() as u8);
        said.extend_from_slice(PASSWORD.as_bytes());
    }
    let cuts: [usize; PIECES_MAX - 1] = [0; PIECES_MAX - 1].map(|_| usize::from(input.byte()));
    said.extend_from_slice(input.bytes(BYTES_MAX));
    let mut pieces = Vec::new();
    let mut rest = &said[..];
    for cut in cuts {
        let (piece, more) = rest.split_at(cut.min(rest.len()));
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);

    let answer = PROXY.with(|proxy| proxy.exchange(&pieces));
    let (method, rest) = answer.split_at(answer.len().min(2));
    assert!(matches!(method, [] | [5, 2] | [5, 0xff]), "{answer:?}");
    if method != [5, 2] {
        assert!(rest.is_empty(), "{answer:?}");
        return;
    }
    let (password, rest) = rest.split_at(rest.len().min(2));
    assert!(matches!(password, [] | [1, 0 | 1]), "{answer:?}");
    if password != [1, 0] {
        assert!(rest.is_empty(), "{answer:?}");
        return;
    }
    let is_let_in = said.windows(USERNAME.len()).any(|window| window == USERNAME.as_bytes())
        && said.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes());
    assert!(is_let_in, "without the password");
    if let Some(reply) = rest.first_chunk::<4>() {
        assert!(reply[0] == 5 && reply[1] <= 8 && reply[2] == 0 && matches!(reply[3], 1 | 4), "{answer:?}");
        let payload = &rest[(4 + if reply[3] == 1 { 4 } else { 16 } + 2).min(rest.len())..];
        assert!(payload.is_empty() || payload == ANSWER && reply[1] == 0, "{answer:?}");
    } else {
        assert!(rest.is_empty(), "half a reply: {answer:?}");
    }
}
