//! Which sections there are, and which keys they have: one table for reading, for overriding, and for what was meant by
//! a name that is not there.

/// A section's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Before the first section.
    Top,
    Interface,
    Peer,
    Socks5,
    Http,
    TcpClientTunnel,
    TcpServerTunnel,
    UdpProxyTunnel,
    UdpServerTunnel,
    StdioTunnel,
    Resolve,
    Dns,
    Metrics,
    Uapi,
    Log,
}

/// What a section may have in it.
#[derive(Debug)]
pub(super) struct SectionSchema {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    /// There may be more than one of it.
    pub(super) repeats: bool,
    pub(super) keys: &'static [Key],
}

/// A key of a section.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) form: Form,
}

/// What a key's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One value, so the key stands once.
    Single,
    /// Values between commas, and on several lines.
    List,
    /// One value that no message may show.
    Secret,
    /// wg-quick's, without a meaning here: it is not read.
    Ignored,
}

const fn single(name: &'static str) -> Key {
    Key { name, form: Form::Single }
}

const fn list(name: &'static str) -> Key {
    Key { name, form: Form::List }
}

const fn secret(name: &'static str) -> Key {
    Key { name, form: Form::Secret }
}

const fn ignored(name: &'static str) -> Key {
    Key { name, form: Form::Ignored }
}

const fn section(kind: Kind, name: &'static str, keys: &'static [Key]) -> SectionSchema {
    SectionSchema { kind, name, repeats: false, keys }
}

const fn repeated(kind: Kind, name: &'static str, keys: &'static [Key]) -> SectionSchema {
    SectionSchema { kind, name, repeats: true, keys }
}

/// Every section.
pub(super) static SECTIONS: [SectionSchema; 15] = [
    section(Kind::Top, "", &[single("WGConfig")]),
    section(
        Kind::Interface,
        "Interface",
        &[
            secret("PrivateKey"),
            single("PrivateKeyFile"),
            list("Address"),
            list("DNS"),
            single("MTU"),
            single("ListenPort"),
            single("FwMark"),
            list("CheckAlive"),
            single("CheckAliveInterval"),
            ignored("Table"),
            ignored("PreUp"),
            ignored("PostUp"),
            ignored("PreDown"),
            ignored("PostDown"),
            ignored("SaveConfig"),
        ],
    ),
    repeated(
        Kind::Peer,
        "Peer",
        &[
            single("PublicKey"),
            secret("PresharedKey"),
            single("PresharedKeyFile"),
            list("AllowedIPs"),
            single("Endpoint"),
            single("PersistentKeepalive"),
            single("Required"),
        ],
    ),
    repeated(Kind::Socks5, "Socks5", &[single("BindAddress"), single("Username"), secret("Password")]),
    repeated(
        Kind::Http,
        "http",
        &[single("BindAddress"), single("Username"), secret("Password"), single("CertFile"), single("KeyFile")],
    ),
    repeated(Kind::TcpClientTunnel, "TCPClientTunnel", &[single("BindAddress"), single("Target")]),
    repeated(Kind::TcpServerTunnel, "TCPServerTunnel", &[single("ListenPort"), single("Target")]),
    repeated(
        Kind::UdpProxyTunnel,
        "UDPProxyTunnel",
        &[single("BindAddress"), single("Target"), single("InactivityTimeout")],
    ),
    repeated(
        Kind::UdpServerTunnel,
        "UDPServerTunnel",
        &[single("ListenPort"), single("Target"), single("InactivityTimeout")],
    ),
    section(Kind::StdioTunnel, "STDIOTunnel", &[single("Target")]),
    section(Kind::Resolve, "Resolve", &[single("ResolveStrategy")]),
    repeated(Kind::Dns, "Dns", &[single("BindAddress")]),
    section(Kind::Metrics, "Metrics", &[single("BindAddress")]),
    section(Kind::Uapi, "Uapi", &[single("Socket")]),
    section(Kind::Log, "Log", &[single("Format"), single("Level")]),
];

impl SectionSchema {
    /// The section `[name]`.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        SECTIONS.iter().find(|section| section.name.eq_ignore_ascii_case(name) && section.kind != Kind::Top)
    }

    /// The section of this kind.
    pub(super) fn of(kind: Kind) -> &'static Self {
        SECTIONS.iter().find(|section| section.kind == kind).expect("the table has a row for each kind")
    }

    /// The key of this name.
    pub(super) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name.eq_ignore_ascii_case(name))
    }

    /// How the section is called in messages.
    pub(super) fn title(&self) -> String {
        if self.kind == Kind::Top { "the top of the file".to_owned() } else { format!("[{}]", self.name) }
    }
}

/// What to do about a section that is not there.
pub(super) fn suggest_section(name: &str) -> String {
    let names = SECTIONS.iter().map(|section| section.name).filter(|name| !name.is_empty());
    match nearest(name, names.clone()) {
        Some(meant) => format!("did you mean [{meant}]?"),
        None => format!("the sections are {}", names.collect::<Vec<_>>().join(", ")),
    }
}

/// What to do about a key that `section` does not have.
pub(super) fn suggest_key(name: &str, section: &SectionSchema) -> String {
    if let Some(meant) = nearest(name, section.keys.iter().map(|key| key.name)) {
        return format!("did you mean {meant}?");
    }
    let elsewhere: Vec<_> =
        SECTIONS.iter().filter(|other| other.key(name).is_some()).map(SectionSchema::title).collect();
    if !elsewhere.is_empty() {
        return format!("it belongs to {}", elsewhere.join(" or "));
    }
    let names: Vec<_> = section.keys.iter().filter(|key| key.form != Form::Ignored).map(|key| key.name).collect();
    format!("the keys of {} are {}", section.title(), names.join(", "))
}

/// The name that is few changes of a letter away: a third of its letters at most.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distances = names.map(|known| (distance(name, known), known));
    distances
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|it| it.1)
}

/// How many letters to insert, remove or replace, without regard to case. Long names are far from everything.
fn distance(one: &str, other: &str) -> usize {
    if one.len() > 2 * other.len() {
        return one.len();
    }
    let other: Vec<u8> = other.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, byte) in one.bytes().map(|byte| byte.to_ascii_lowercase()).enumerate() {
        let mut diagonal = index;
        row[0] = index + 1;
        for (column, &known) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(byte != known);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_case() {
        assert_eq!(SectionSchema::find("INTERFACE").map(|section| section.kind), Some(Kind::Interface));
        assert_eq!(SectionSchema::find("HTTP").map(|section| section.kind), Some(Kind::Http));
        assert!(SectionSchema::find("").is_none());
        let peer = SectionSchema::of(Kind::Peer);
        assert_eq!(peer.key("allowedips").map(|key| key.name), Some("AllowedIPs"));
        assert!(peer.key("Address").is_none());
    }

    #[test]
    fn what_was_meant() {
        let key = |name: &str, kind| suggest_key(name, SectionSchema::of(kind));
        assert_eq!(key("PubKey", Kind::Peer), "did you mean PublicKey?");
        assert_eq!(key("allowedip", Kind::Peer), "did you mean AllowedIPs?");
        assert_eq!(key("Endpoint", Kind::Interface), "it belongs to [Peer]");
        assert_eq!(key("Xyzzy", Kind::Metrics), "the keys of [Metrics] are BindAddress");
        assert_eq!(suggest_section("Peeer"), "did you mean [Peer]?");
        assert_eq!(suggest_section("Sock5"), "did you mean [Socks5]?");
        assert!(suggest_section("Bogus").starts_with("the sections are Interface, Peer, "));
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    /// The manual page names every section and every key.
    #[test]
    fn the_manual_knows_them_all() {
        let manual = include_str!("../../../docs/man/adit.conf.5");
        for section in SECTIONS.iter().filter(|section| section.kind != Kind::Top) {
            let heading =
                [".SH ", ".SS "].iter().any(|macro_| manual.contains(&format!("{macro_}[{}]\n", section.name)));
            assert!(heading, "[{}]", section.name);
        }
        for key in SECTIONS.iter().flat_map(|section| section.keys) {
            let named = manual
                .lines()
                .any(|line| line.starts_with(".B") && line.split([' ', ',', '"']).any(|word| word == key.name));
            assert!(named, "{}", key.name);
        }
    }
}
