//! What the environment says: values that a file refers to as `$NAME`, and overrides of its keys.
//!
//! | variable | key |
//! |---|---|
//! | `ADIT_INTERFACE_PRIVATEKEY` | `PrivateKey` of `[Interface]` |
//! | `ADIT_PEER_2_ENDPOINT` | `Endpoint` of the second `[Peer]` |
//! | `ADIT_SOCKS5_BINDADDRESS`, `ADIT_SOCKS5_1_BINDADDRESS` | `BindAddress` of the first `[Socks5]` |
//! | `ADIT_WGCONFIG` | `WGConfig`, before the first section |
//!
//! Underscores within a name do not count: `ADIT_PEER_1_PUBLIC_KEY` is `ADIT_PEER_1_PUBLICKEY`. An empty variable counts
//! as unset, and white space around a value does not count. A section that the file does not have is made; of those that repeat, the next one in number.
//!
//! The library reads no environment: whoever calls hands it in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

use zeroize::Zeroizing;

use super::remark::{Place, Remarks, quoted};
use super::schema::{Form, Key, Kind, SECTIONS, SectionSchema, suggest_key};

/// What each override begins with.
const PREFIX: &str = "ADIT_";

/// Variables and their values, wiped when dropped.
#[derive(Default, Clone)]
pub struct Environment {
    variables: BTreeMap<String, Zeroizing<String>>,
}

impl Environment {
    /// Takes variables, such as those of `std::env::vars_os`. What is not text in them is replaced.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let text = |text: OsString| text.into_string().unwrap_or_else(|text| text.to_string_lossy().into_owned());
        let variables = variables.into_iter().map(|(name, value)| (text(name), Zeroizing::new(text(value))));
        Self { variables: variables.collect() }
    }

    /// The value of a variable.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(|value| value.as_str())
    }

    /// What overrides keys, in the order of sections and their numbers.
    pub(super) fn overrides(&self, remarks: &mut Remarks) -> Vec<Override<'_>> {
        let mut overrides = Vec::new();
        for (variable, value) in &self.variables {
            // A secret that is mounted or piped often ends with its line.
            let value = value.trim();
            let Some(name) = variable.strip_prefix(PREFIX).filter(|_| !value.is_empty()) else { continue };
            let place = Place::Variable(variable.as_str().into());
            match meaning(name) {
                Ok(None) => {}
                Ok(Some((kind, number, key))) => overrides.push(Override { kind, number, key, place, value }),
                Err((why, next)) => remarks.error(&place, "This variable", why, next),
            }
        }
        overrides.sort_by_key(|it| (it.kind, it.number));
        overrides
    }
}

/// Values may be secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment of {} variables", self.variables.len())
    }
}

/// A variable that says the value of a key.
pub(super) struct Override<'a> {
    pub(super) kind: Kind,
    /// From 1.
    pub(super) number: usize,
    pub(super) key: &'static Key,
    /// The variable.
    pub(super) place: Place,
    pub(super) value: &'a str,
}

/// Why a variable has no meaning, and what to do.
type Meaningless = (String, String);

/// What a variable overrides, its prefix taken off; nothing if it is for something else.
fn meaning(name: &str) -> Result<Option<(Kind, usize, &'static Key)>, Meaningless> {
    let words: Vec<&str> = name.split('_').collect();
    let top = SectionSchema::of(Kind::Top);
    if let Some(key) = top.key(&words.concat()) {
        return Ok(Some((Kind::Top, 1, key)));
    }
    let Some((section, rest)) = (1..words.len()).find_map(|count| {
        let title = words[..count].concat();
        let section = SECTIONS.iter().find(|it| it.kind != Kind::Top && it.name.to_ascii_uppercase() == title)?;
        Some((section, &words[count..]))
    }) else {
        return Ok(None);
    };
    let is_number = |word: &&str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let (number, rest) = match rest.split_first() {
        Some((first, rest)) if is_number(first) => (first.parse().unwrap_or(usize::MAX), rest),
        _ => (1, rest),
    };
    let key = rest.concat();
    if section.key(&key).is_none() && is_service_link(rest) {
        return Ok(None);
    }
    if number == 0 {
        return Err(("sections are counted from 1".to_owned(), format!("the first is {PREFIX}{}_1_…", words[0])));
    }
    if number > 1 && !section.repeats {
        return Err((format!("there is one {} only", section.title()), "leave the number out".to_owned()));
    }
    match section.key(&key) {
        Some(key) if key.form == Form::Ignored => {
            Err((format!("{} has no effect here", key.name), "unset it".to_owned()))
        }
        Some(key) => Ok(Some((section.kind, number, key))),
        None => {
            let why = format!("{} has no key {}", section.title(), quoted(&key, "", ""));
            Err((why, suggest_key(&key, section)))
        }
    }
}

/// What Kubernetes sets for a Service of this name: `…_SERVICE_HOST`, `…_PORT_80_TCP_ADDR` and the like.
fn is_service_link(words: &[&str]) -> bool {
    let service = words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]));
    let port = words.iter().position(|word| *word == "PORT").is_some_and(|at| match &words[at + 1..] {
        [] => true,
        [number, protocol, ..] => number.parse::<u16>().is_ok() && matches!(*protocol, "TCP" | "UDP" | "SCTP"),
        [_] => false,
    });
    service || port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overrides(variables: &[&str]) -> (Vec<String>, String) {
        let environment = Environment::new(variables.iter().map(|name| (name.into(), "value".into())));
        let mut remarks = Remarks::default();
        let found = environment.overrides(&mut remarks);
        let found = found.iter().map(|it| format!("{:?} {} {}", it.kind, it.number, it.key.name)).collect();
        (found, remarks.conclude().map_or_else(|error| error.to_string(), |_| String::new()))
    }

    #[test]
    fn variables_and_what_they_override() {
        let check = |variable: &str, expected: &str| {
            let expected = (!expected.is_empty()).then(|| expected.to_owned()).into_iter().collect();
            assert_eq!(overrides(&[variable]), (expected, String::new()), "{variable}");
        };
        check("ADIT_INTERFACE_PRIVATEKEY", "Interface 1 PrivateKey");
        check("ADIT_INTERFACE_PRIVATE_KEY_FILE", "Interface 1 PrivateKeyFile");
        check("ADIT_PEER_2_ENDPOINT", "Peer 2 Endpoint");
        check("ADIT_PEER_10_PUBLIC_KEY", "Peer 10 PublicKey");
        check("ADIT_SOCKS5_BINDADDRESS", "Socks5 1 BindAddress");
        check("ADIT_SOCKS5_2_BINDADDRESS", "Socks5 2 BindAddress");
        check("ADIT_TCP_CLIENT_TUNNEL_1_TARGET", "TcpClientTunnel 1 Target");
        check("ADIT_TCPCLIENTTUNNEL_TARGET", "TcpClientTunnel 1 Target");
        check("ADIT_WGCONFIG", "Top 1 WGConfig");
        check("ADIT_INTERFACE_LISTEN_PORT", "Interface 1 ListenPort");
        // Somebody else's.
        for variable in [
            "ADIT_THREADS",
            "ADIT_METRICS",
            "ADIT_HTTPS_PROXY",
            "PATH",
            "ADIT_METRICS_SERVICE_HOST",
            "ADIT_METRICS_SERVICE_PORT_WEB",
            "ADIT_METRICS_PORT",
            "ADIT_METRICS_PORT_9090_TCP_ADDR",
            "ADIT_PEER_1_SERVICE_HOST",
        ] {
            check(variable, "");
        }
    }

    #[test]
    fn in_the_order_of_their_numbers() {
        let (found, _) = overrides(&["ADIT_PEER_10_ENDPOINT", "ADIT_PEER_2_ENDPOINT", "ADIT_INTERFACE_MTU"]);
        assert_eq!(found, ["Interface 1 MTU", "Peer 2 Endpoint", "Peer 10 Endpoint"]);
    }

    #[test]
    fn variables_that_cannot_be_meant() {
        let check = |variable: &str, expected: &str| assert_eq!(overrides(&[variable]).1, expected);
        check(
            "ADIT_PEER_1_PUBKEY",
            "ADIT_PEER_1_PUBKEY: This variable: [Peer] has no key PUBKEY; did you mean PublicKey?",
        );
        check(
            "ADIT_INTERFACE_2_MTU",
            "ADIT_INTERFACE_2_MTU: This variable: there is one [Interface] only; leave the number out",
        );
        check(
            "ADIT_PEER_0_ENDPOINT",
            "ADIT_PEER_0_ENDPOINT: This variable: sections are counted from 1; the first is ADIT_PEER_1_…",
        );
        check("ADIT_INTERFACE_POSTUP", "ADIT_INTERFACE_POSTUP: This variable: PostUp has no effect here; unset it");
    }
}
