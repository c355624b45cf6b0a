//! A file, the files that it names, and the environment, to a [`Config`].
//!
//! ```text
//! text ─ini─▶ lines with places ─fields─▶ known sections and keys, overrides ─values─▶ Config, or every mistake
//! ```
//!
//! Nothing is opened but the file itself, `WGConfig`, and the files with keys and certificates, none larger than [`FILE_BYTES_MAX`].

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::certificate::{Certificate, CertificateError};
use super::environment::Environment;
use super::fields::{Fields, include, of_file, overridden};
use super::ini;
use super::interface::{Config, Interface, Log, LogFormat, LogLevel, Peer};
use super::remark::{ConfigError, Place, Remarks};
use super::schema::{Kind, SectionSchema};
use super::services::{
    Dns, Host, Http, Resolve, Secret, Service, Socks5, StdioTunnel, Target, TcpClientTunnel, TcpServerTunnel,
    UdpProxyTunnel, UdpServerTunnel,
};
use super::values::{self, Problem};
use crate::device::config::AllowedIp;
use crate::key::{ParseKeyError, PresharedKey, PrivateKey, PublicKey};
use crate::netstack::MTU_FEWEST_IPV6;

/// Bytes of a file that is read: room for a hundred thousand peers.
pub const FILE_BYTES_MAX: usize = 16 << 20;
/// Services in one file: each has a listener and a task of its own, and a sidecar that needs more is several.
pub const SERVICES_MAX: usize = 1024;
/// Bytes of a username or password: what one byte of SOCKS5 can count.
pub const CREDENTIAL_BYTES_MAX: usize = 255;
/// The MTU if the file does not say one: what remains of 1500 bytes over IPv6.
pub const MTU_DEFAULT: usize = 1420;
/// How often the addresses of `CheckAlive` are asked if the file does not say: as wireproxy does.
const CHECK_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// When a client of a UDP forward is forgotten if the file does not say: longer than a NAT may forget it (RFC 4787 §4.3).
const INACTIVITY_TIMEOUT: Duration = Duration::from_secs(180);

/// What gives the bytes of a file: [`read_file`], or a test's stand-in for it.
pub type ReadFile<'a> = &'a dyn Fn(&Path) -> io::Result<Zeroizing<Vec<u8>>>;

/// The whole file, at most [`FILE_BYTES_MAX`] bytes of it.
///
/// # Errors
/// What the system says; `FileTooLarge` for one that is larger.
pub fn read_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let expected = usize::try_from(file.metadata()?.len()).unwrap_or(FILE_BYTES_MAX).min(FILE_BYTES_MAX);
    // Room for all of it at once: a buffer that grows leaves what may be a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected + 1));
    file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

impl Config {
    /// Reads the file at `path`, and those that it names.
    ///
    /// # Errors
    /// Every mistake with its place.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let mut remarks = Remarks::default();
        match file_text(path, &Place::start(path), "This file", &read_file, &mut remarks) {
            Some(bytes) => Self::parse(text_of(&bytes), path, environment, &read_file),
            None => Err(only_errors(remarks)),
        }
    }

    /// What `text` says, which stands in `file`; `read` gives the files that it names.
    ///
    /// # Errors
    /// Every mistake with its place.
    pub fn parse(text: &str, file: &Path, environment: &Environment, read: ReadFile<'_>) -> Result<Self, ConfigError> {
        let mut remarks = Remarks::default();
        let included: Zeroizing<Vec<u8>>;
        let included_path: PathBuf;
        let mut files = vec![file.to_owned()];
        let mut whole = true;

        let mut all = of_file(ini::read(text, file, &mut remarks), environment, &mut remarks);
        let overrides = environment.overrides(&mut remarks);
        let at_top = overrides.partition_point(|over| over.kind == Kind::Top);
        overridden(&mut all, &overrides[..at_top], &mut remarks);
        let top = all.iter().find(|fields| fields.schema.kind == Kind::Top);
        if let Some(value) = top.and_then(|top| top.text("WGConfig")) {
            included_path = value.folder.join(value.text);
            files.push(included_path.clone());
            if let Some(bytes) = file_text(&included_path, &value.place, "WGConfig", read, &mut remarks) {
                included = bytes;
                let sections = ini::read(text_of(&included), &included_path, &mut remarks);
                let more = of_file(sections, environment, &mut remarks);
                include(&mut all, more, &mut remarks);
            } else {
                whole = false;
            }
        }
        overridden(&mut all, &overrides[at_top..], &mut remarks);

        let mut reader = Reader { remarks, read, files, whole };
        let config = reader.config(&all, &Place::start(file));
        let warnings = reader.remarks.conclude()?;
        let config = config.expect("what is missing was told as an error");
        Ok(Self { files: reader.files, warnings, ..config })
    }
}

fn only_errors(remarks: Remarks) -> ConfigError {
    remarks.conclude().err().unwrap_or(ConfigError { errors: Vec::new(), more: 0, warnings: Vec::new() })
}

/// The bytes of a file; says at `place` if it cannot be read.
fn file_bytes(
    path: &Path,
    place: &Place,
    what: &str,
    read: ReadFile<'_>,
    remarks: &mut Remarks,
) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = read(path);
    bytes
        .map_err(|error| {
            let why = format!("{} cannot be read: {error}", path.display());
            remarks.error(place, what, why, "check its path, and who may read it");
        })
        .ok()
}

/// The bytes of a file, which are text; otherwise says what is wrong with it: at `place`, or in the file.
fn file_text(
    path: &Path,
    place: &Place,
    what: &str,
    read: ReadFile<'_>,
    remarks: &mut Remarks,
) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = file_bytes(path, place, what, read, remarks)?;
    let Err(error) = std::str::from_utf8(&bytes) else { return Some(bytes) };
    let before = std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
    let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    let place = Place::File { file: path.to_string_lossy().into(), line, column };
    remarks.error(&place, "This file", "it is not text in UTF-8", "save it as UTF-8");
    None
}

/// What [`file_text`] gave, which is text.
fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// Reads sections; what is wrong goes to `remarks`.
struct Reader<'a> {
    remarks: Remarks,
    read: ReadFile<'a>,
    files: Vec<PathBuf>,
    /// Nothing is missing because another file could not be read.
    whole: bool,
}

impl Reader<'_> {
    /// `None` only if something was told to be wrong.
    fn config(&mut self, all: &[Fields<'_>], start: &Place) -> Option<Config> {
        let of_kind = |kind: Kind| all.iter().filter(move |fields| fields.schema.kind == kind);
        let interface = of_kind(Kind::Interface).next();
        if interface.is_none() && self.whole {
            self.remarks.error(
                start,
                "[Interface]",
                "it is missing",
                "add it with PrivateKey and Address, or name a file that has it by WGConfig",
            );
        }
        let interface = interface.and_then(|fields| self.interface(fields));
        let mut peers = Vec::new();
        for fields in of_kind(Kind::Peer) {
            peers.extend(self.peer(fields).map(|peer| (fields, peer)));
        }
        if of_kind(Kind::Peer).next().is_none() && self.whole {
            self.remarks.error(start, "[Peer]", "there is none", "add one with its PublicKey and Endpoint");
        }
        let mut services = Vec::new();
        for fields in all {
            let Some(service) = self.service(fields) else { continue };
            if services.len() == SERVICES_MAX {
                let why = format!("there are more than {SERVICES_MAX} services");
                self.remarks.error(&fields.place, fields.schema.title(), why, "divide them among several sidecars");
                break;
            }
            services.push((fields, service));
        }
        let resolve = of_kind(Kind::Resolve).next().map_or_else(Resolve::default, |fields| {
            let strategy =
                fields.required("ResolveStrategy", "ResolveStrategy = auto", &mut self.remarks, values::strategy);
            Resolve { strategy: strategy.unwrap_or_default() }
        });
        let metrics = of_kind(Kind::Metrics).next();
        let metrics_bind = metrics.and_then(|fields| self.bind(fields, "BindAddress = 127.0.0.1:9586"));
        let uapi = of_kind(Kind::Uapi).next().and_then(|fields| self.uapi(fields));
        let log = of_kind(Kind::Log).next().map_or_else(Log::default, |fields| self.log(fields));
        self.distinct_listeners(&services, metrics.zip(metrics_bind));
        self.distinct_peers(interface.as_ref(), &peers);
        let interface = interface?;
        self.names_can_be_resolved(&interface, &services);
        Some(Config {
            interface,
            peers: peers.into_iter().map(|(_, peer)| peer).collect(),
            services: services.into_iter().map(|(_, service)| service).collect(),
            resolve,
            metrics: metrics_bind,
            uapi,
            log,
            files: Vec::new(),
            warnings: Vec::new(),
        })
    }

    fn interface(&mut self, fields: &Fields<'_>) -> Option<Interface> {
        if !fields.has("PrivateKey") && !fields.has("PrivateKeyFile") {
            let next = "add PrivateKey = …, as `adit genkey` makes it, or PrivateKeyFile = …";
            self.remarks.error(&fields.place, "[Interface]", "it has no PrivateKey", next);
        }
        let private_key = self.key(fields, "PrivateKey", "PrivateKeyFile", PrivateKey::from_base64);
        let remarks = &mut self.remarks;
        let addresses = fields.list("Address", remarks, values::interface_address);
        if addresses.is_empty() && !fields.has("Address") {
            let next = "add Address = …, such as 10.0.0.2/32";
            remarks.error(&fields.place, "[Interface]", "it has no Address", next);
        } else if addresses.is_empty()
            && let Some(value) = fields.text("Address").filter(|value| value.text.is_empty())
        {
            remarks.error(&value.place, "Address", "there is none in it", "write one such as 10.0.0.2/32");
        }
        let (mut dns, mut search) = (Vec::new(), Vec::new());
        for (_, item) in fields.list("DNS", remarks, values::dns) {
            match item {
                values::Dns::Server(server) => dns.push(server),
                values::Dns::Search(domain) => search.push(domain),
            }
        }
        let mtu = fields.optional("MTU", remarks, values::mtu).unwrap_or(MTU_DEFAULT);
        if mtu < MTU_FEWEST_IPV6 && addresses.iter().any(|(_, (address, _))| address.is_ipv6()) {
            let place = fields.text("MTU").map_or(&fields.place, |value| &value.place);
            let why = format!("IPv6 needs {MTU_FEWEST_IPV6}, and Address has an IPv6 address");
            remarks.error(place, "MTU", why, "make it larger, or remove the IPv6 address");
        }
        let listen_port = fields.optional("ListenPort", remarks, values::port).unwrap_or_default();
        let fwmark = fields.optional("FwMark", remarks, values::fwmark).unwrap_or_default();
        let check_alive = fields.list("CheckAlive", remarks, values::address);
        let interval = fields.optional("CheckAliveInterval", remarks, |text| values::seconds(text, 1));
        Some(Interface {
            private_key: private_key?,
            addresses: addresses.into_iter().map(|(_, address)| address).collect(),
            dns,
            search,
            mtu,
            listen_port,
            fwmark,
            check_alive: check_alive.into_iter().map(|(_, address)| address).collect(),
            check_alive_interval: interval.unwrap_or(CHECK_ALIVE_INTERVAL),
        })
    }

    fn peer(&mut self, fields: &Fields<'_>) -> Option<Peer> {
        let preshared_key = self.key(fields, "PresharedKey", "PresharedKeyFile", PresharedKey::from_base64);
        let remarks = &mut self.remarks;
        let public_key = fields.required("PublicKey", "PublicKey = …, as `adit pubkey` makes it", remarks, |text| {
            values::key(text, PublicKey::from_base64)
        });
        let allowed_ips = if fields.has("AllowedIPs") {
            fields.list("AllowedIPs", remarks, values::allowed_ip).into_iter().map(|(_, range)| range).collect()
        } else {
            // As wireproxy has it: everything.
            ["0.0.0.0/0", "::/0"].iter().filter_map(|text| values::allowed_ip(text).ok()).collect()
        };
        let endpoint = fields.optional("Endpoint", remarks, values::target);
        let persistent_keepalive = fields.optional("PersistentKeepalive", remarks, values::keepalive);
        let required = fields.optional("Required", remarks, values::yes_or_no);
        Some(Peer {
            public_key: public_key?,
            preshared_key,
            allowed_ips,
            required: required.unwrap_or(endpoint.is_some()),
            endpoint,
            persistent_keepalive: persistent_keepalive.unwrap_or_default(),
        })
    }

    /// A key that stands there, or in a file of its own.
    fn key<T>(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
        file_name: &'static str,
        parse: fn(&str) -> Result<T, ParseKeyError>,
    ) -> Option<T> {
        let Some(value) = fields.text(file_name) else {
            return fields.optional(name, &mut self.remarks, |text| values::key(text, parse));
        };
        if fields.has(name) {
            let why = format!("{name} is there too");
            self.remarks.error(&value.place, file_name, why, "remove one of the two");
            return None;
        }
        if value.text.is_empty() {
            // Which is told.
            fields.optional(file_name, &mut self.remarks, |_| Ok(()));
            return None;
        }
        if parse(value.text).is_ok() {
            // No file has this name, and to say so would show it.
            let next = format!("write {name} = …, or the path of a file that has it");
            self.remarks.error(&value.place, file_name, "it is a key itself, and not the path of a file", next);
            return None;
        }
        let path = value.folder.join(value.text);
        self.files.push(path.clone());
        let bytes = file_text(&path, &value.place, file_name, self.read, &mut self.remarks)?;
        let key = values::key(text_of(&bytes).trim(), parse);
        key.map_err(|problem| {
            let why = format!("what stands in {} is no key: {}", path.display(), problem.why);
            self.remarks.error(&value.place, file_name, why, problem.next);
        })
        .ok()
    }

    fn bind(&mut self, fields: &Fields<'_>, example: &str) -> Option<SocketAddr> {
        fields.required("BindAddress", example, &mut self.remarks, values::bind)
    }

    fn target(&mut self, fields: &Fields<'_>) -> Option<Target> {
        fields.required("Target", "Target = …, such as 10.0.0.1:80", &mut self.remarks, values::target)
    }

    /// Of a service inside the tunnel.
    fn inner_port(&mut self, fields: &Fields<'_>) -> Option<u16> {
        fields.required("ListenPort", "ListenPort = …, such as 8080", &mut self.remarks, values::known_port)
    }

    fn inactivity_timeout(&mut self, fields: &Fields<'_>) -> Duration {
        let timeout = fields.optional("InactivityTimeout", &mut self.remarks, |text| values::seconds(text, 0));
        timeout.unwrap_or(INACTIVITY_TIMEOUT)
    }

    fn credentials(&mut self, fields: &Fields<'_>) -> (Option<String>, Option<Secret>) {
        let short = |text: &str| {
            if text.len() <= CREDENTIAL_BYTES_MAX {
                return Ok(text.to_owned());
            }
            Err(Problem::new(format!("it is longer than {CREDENTIAL_BYTES_MAX} bytes"), "choose a shorter one"))
        };
        let username = fields.optional("Username", &mut self.remarks, short);
        let password = fields.optional("Password", &mut self.remarks, short).map(Secret::new);
        (username, password)
    }

    /// What a listener speaks TLS with, if it shall; one of the two files without the other is a mistake.
    fn certificate(&mut self, fields: &Fields<'_>) -> Option<Certificate> {
        let [chain, key] = ["CertFile", "KeyFile"].map(|name| self.bytes_of_file(fields, name));
        for (name, other) in [("CertFile", "KeyFile"), ("KeyFile", "CertFile")] {
            if let Some(value) = fields.text(name).filter(|_| !fields.has(other)) {
                let why = format!("there is no {other}, and neither is of use alone");
                self.remarks.error(&value.place, name, why, format!("add {other} = …, or remove this line"));
            }
        }
        let ((chain_place, chain_path, chain), (key_place, key_path, key)) = (chain?, key?);
        let certificate = Certificate::from_pem(&chain, &key);
        certificate
            .map_err(|error| {
                let (place, name, path, next) = match error {
                    CertificateError::NoCertificate => {
                        (chain_place, "CertFile", chain_path, "name a file in PEM, -----BEGIN CERTIFICATE----- in it")
                    }
                    CertificateError::BadCertificate(_) => (chain_place, "CertFile", chain_path, "have it made anew"),
                    CertificateError::NoKey => {
                        (key_place, "KeyFile", key_path, "name a file in PEM, -----BEGIN PRIVATE KEY----- in it")
                    }
                    CertificateError::EncryptedKey => (
                        key_place,
                        "KeyFile",
                        key_path,
                        "decrypt it, as `openssl pkey` does, for a file of this user only",
                    ),
                    CertificateError::BadKey => {
                        (key_place, "KeyFile", key_path, "use one of RSA, of P-256, of P-384, or of Ed25519")
                    }
                    CertificateError::OtherKey => {
                        (key_place, "KeyFile", key_path, "name the two that were made together")
                    }
                };
                self.remarks.error(&place, name, format!("{}: {error}", path.display()), next);
            })
            .ok()
    }

    /// What is in the file that a key names, with its path, and the place of the key.
    fn bytes_of_file(
        &mut self,
        fields: &Fields<'_>,
        name: &'static str,
    ) -> Option<(Place, PathBuf, Zeroizing<Vec<u8>>)> {
        let path = fields.optional(name, &mut self.remarks, |text| Ok(PathBuf::from(text)))?;
        let value = fields.text(name)?;
        let path = value.folder.join(path);
        self.files.push(path.clone());
        let bytes = file_bytes(&path, &value.place, name, self.read, &mut self.remarks)?;
        Some((value.place.clone(), path, bytes))
    }

    /// A section that is a service; `None` for others, and when something is wrong with it.
    fn service(&mut self, fields: &Fields<'_>) -> Option<Service> {
        let example = "BindAddress = …, such as 127.0.0.1:1080";
        match fields.schema.kind {
            Kind::Socks5 => {
                let bind = self.bind(fields, example);
                let (username, password) = self.credentials(fields);
                Some(Service::Socks5(Socks5 { bind: bind?, username, password }))
            }
            Kind::Http => {
                let bind = self.bind(fields, example);
                let (username, password) = self.credentials(fields);
                let certificate = self.certificate(fields);
                Some(Service::Http(Http { bind: bind?, username, password, certificate }))
            }
            Kind::TcpClientTunnel => {
                let (bind, target) = (self.bind(fields, example), self.target(fields));
                Some(Service::TcpClientTunnel(TcpClientTunnel { bind: bind?, target: target? }))
            }
            Kind::TcpServerTunnel => {
                let (port, target) = (self.inner_port(fields), self.target(fields));
                Some(Service::TcpServerTunnel(TcpServerTunnel { listen_port: port?, target: target? }))
            }
            Kind::UdpProxyTunnel => {
                let (bind, target) = (self.bind(fields, example), self.target(fields));
                let inactivity_timeout = self.inactivity_timeout(fields);
                Some(Service::UdpProxyTunnel(UdpProxyTunnel { bind: bind?, target: target?, inactivity_timeout }))
            }
            Kind::UdpServerTunnel => {
                let (port, target) = (self.inner_port(fields), self.target(fields));
                let inactivity_timeout = self.inactivity_timeout(fields);
                Some(Service::UdpServerTunnel(UdpServerTunnel {
                    listen_port: port?,
                    target: target?,
                    inactivity_timeout,
                }))
            }
            Kind::StdioTunnel => Some(Service::StdioTunnel(StdioTunnel { target: self.target(fields)? })),
            Kind::Dns => {
                let bind = self.bind(fields, "BindAddress = …, such as 127.0.0.1:53");
                Some(Service::Dns(Dns { bind: bind? }))
            }
            _ => None,
        }
    }

    fn uapi(&mut self, fields: &Fields<'_>) -> Option<PathBuf> {
        fields.required("Socket", "Socket = /var/run/wireguard/adit0.sock", &mut self.remarks, |text| {
            let path = PathBuf::from(text);
            let named = path.file_stem().is_some() && path.extension().is_some_and(|extension| extension == "sock");
            if named && path.is_absolute() {
                return Ok(path);
            }
            let why = "it is no path from the root to a name that ends in .sock";
            Err(Problem::new(why, "write one such as /var/run/wireguard/adit0.sock"))
        })
    }

    fn log(&mut self, fields: &Fields<'_>) -> Log {
        let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
        let levels = [
            ("verbose", LogLevel::Verbose),
            ("debug", LogLevel::Verbose),
            ("error", LogLevel::Error),
            ("silent", LogLevel::Silent),
        ];
        let format = fields.optional("Format", &mut self.remarks, |text| values::word(text, &formats));
        let level = fields.optional("Level", &mut self.remarks, |text| values::word(text, &levels));
        Log { format: format.unwrap_or_default(), level }
    }

    /// No two services listen at the same place.
    fn distinct_listeners(&mut self, services: &[(&Fields<'_>, Service)], metrics: Option<(&Fields<'_>, SocketAddr)>) {
        #[derive(PartialEq, Eq, Hash)]
        enum Listener {
            Tcp(SocketAddr),
            Udp(SocketAddr),
            InnerTcp(u16),
            InnerUdp(u16),
        }
        let of_services = services.iter().flat_map(|(fields, service)| {
            let listeners = match service {
                Service::Socks5(Socks5 { bind, .. })
                | Service::Http(Http { bind, .. })
                | Service::TcpClientTunnel(TcpClientTunnel { bind, .. }) => vec![Listener::Tcp(*bind)],
                Service::TcpServerTunnel(TcpServerTunnel { listen_port, .. }) => vec![Listener::InnerTcp(*listen_port)],
                Service::UdpServerTunnel(UdpServerTunnel { listen_port, .. }) => vec![Listener::InnerUdp(*listen_port)],
                Service::UdpProxyTunnel(UdpProxyTunnel { bind, .. }) => vec![Listener::Udp(*bind)],
                Service::Dns(Dns { bind }) => vec![Listener::Udp(*bind), Listener::Tcp(*bind)],
                Service::StdioTunnel(_) => Vec::new(),
            };
            listeners.into_iter().map(move |listener| (*fields, listener))
        });
        let of_metrics = metrics.into_iter().map(|(fields, bind)| (fields, Listener::Tcp(bind)));
        let mut seen: HashMap<Listener, &Fields<'_>> = HashMap::new();
        for (fields, listener) in of_services.chain(of_metrics) {
            if matches!(listener, Listener::Tcp(bind) | Listener::Udp(bind) if bind.port() == 0) {
                continue;
            }
            let is_inner = matches!(listener, Listener::InnerTcp(_) | Listener::InnerUdp(_));
            let name = if is_inner { "ListenPort" } else { "BindAddress" };
            let Some(first) = seen.insert(listener, fields) else { continue };
            let place = fields.text(name).map_or(&fields.place, |value| &value.place);
            let why = format!("{} at {} listens there too", first.schema.title(), first.place);
            self.remarks.error(place, name, why, "choose another port for one of the two");
        }
    }

    /// No key twice, none our own, and of a range that two have, a word: only the last one gets it.
    fn distinct_peers(&mut self, interface: Option<&Interface>, peers: &[(&Fields<'_>, Peer)]) {
        let own = interface.map(|interface| interface.private_key.public_key());
        let mut seen: HashMap<PublicKey, &Place> = HashMap::new();
        let mut owners: HashMap<AllowedIp, &Place> = HashMap::new();
        for (fields, peer) in peers {
            let place = fields.text("PublicKey").map_or(&fields.place, |value| &value.place);
            if Some(peer.public_key) == own {
                let why = "it is the interface's own: that of PrivateKey";
                self.remarks.error(place, "PublicKey", why, "write the other side's");
            }
            if let Some(first) = seen.insert(peer.public_key, place) {
                let why = format!("another peer has the same, at {first}");
                self.remarks.error(place, "PublicKey", why, "put the two into one");
                continue;
            }
            let place = fields.text("AllowedIPs").map_or(&fields.place, |value| &value.place);
            for range in &peer.allowed_ips {
                if let Some(first) = owners.insert(*range, place).filter(|first| *first != place) {
                    let why = format!("{range} is also at {first}, and the last peer that names it gets it");
                    self.remarks.warning(place, "AllowedIPs", why, "give each range to one peer");
                }
            }
        }
    }

    /// Names inside the tunnel need a DNS server.
    fn names_can_be_resolved(&mut self, interface: &Interface, services: &[(&Fields<'_>, Service)]) {
        if !interface.dns.is_empty() {
            return;
        }
        let next = "add DNS = … to [Interface]";
        for (fields, service) in services {
            match service {
                Service::TcpClientTunnel(TcpClientTunnel { target, .. })
                | Service::UdpProxyTunnel(UdpProxyTunnel { target, .. })
                | Service::StdioTunnel(StdioTunnel { target })
                    if matches!(target.host, Host::Name(_)) =>
                {
                    let place = fields.text("Target").map_or(&fields.place, |value| &value.place);
                    let why = "it is a name, which is resolved through the tunnel, and there is no DNS server";
                    self.remarks.warning(place, "Target", why, next);
                }
                Service::Dns(_) => {
                    let why = "there is no DNS server to hand queries to";
                    self.remarks.error(&fields.place, SectionSchema::of(Kind::Dns).title(), why, next);
                }
                _ => {}
            }
        }
    }
}
