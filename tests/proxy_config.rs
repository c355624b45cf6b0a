//! The sidecar's file: what it says, what is wrong with it and where, and what `adit proxy --check` makes of it.

#![cfg(all(feature = "proxy", feature = "daemon"))]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::proxy::config::{
    Config, ConfigError, Dns, Environment, Host, LogFormat, LogLevel, Place, ResolveStrategy, Service, read_file,
};
use proptest::prelude::*;
use zeroize::Zeroizing;

const PRIVATE: &str = "YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";
const PRESHARED: &str = "/UwcSPg38hW/D9Y3tcS1FOV0K1wuURMbS0sesJEP5ak=";

/// A file that is right, to which a test adds.
fn right(more: &str) -> String {
    format!("[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2\n[Peer]\nPublicKey = {PUBLIC}\n{more}")
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::new(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

/// Parses `text` as `/etc/a.conf`, with these other files and variables.
fn parse_with(text: &str, files: &[(&str, &str)], variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let files: HashMap<PathBuf, String> = files.iter().map(|(path, text)| (path.into(), (*text).into())).collect();
    let read = |path: &Path| {
        let text = files.get(path).ok_or(io::ErrorKind::NotFound)?;
        io::Result::Ok(Zeroizing::new(text.as_bytes().to_vec()))
    };
    Config::parse(text, Path::new("/etc/a.conf"), &environment(variables), &read)
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_with(text, &[], &[])
}

/// The errors are exactly these lines, the file's name taken off.
fn assert_errors(result: Result<Config, ConfigError>, expected: &[&str], what: &str) {
    let error = result.err().map_or_else(String::new, |error| error.to_string());
    let lines: Vec<_> = error.lines().map(|line| line.replace("/etc/a.conf:", "")).collect();
    assert_eq!(lines, expected, "{what}");
}

/// A file of a certificate or key, as the tests have it.
fn pem(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates").join(name)).unwrap()
}

/// `[http]` with what these files hold, the second one in another folder than the first.
fn http_with(chain: &str, key: &str) -> Result<Config, ConfigError> {
    let text = right("[http]\nBindAddress = :1\nCertFile = proxy.crt\nKeyFile = /keys/proxy.key\n");
    parse_with(&text, &[("/etc/proxy.crt", chain), ("/keys/proxy.key", key)], &[])
}

#[test]
fn the_certificate_of_an_http_proxy() {
    let http = |chain: &str, key: &str| {
        let config = http_with(chain, key).unwrap();
        let watched: Vec<_> = config.files.iter().map(|file| file.to_str().unwrap()).collect();
        assert_eq!(watched, ["/etc/a.conf", "/etc/proxy.crt", "/keys/proxy.key"]);
        let Some(Service::Http(http)) = config.services.first() else { panic!() };
        assert!(http.certificate.is_some());
        http.clone()
    };
    // A reload makes it anew when its certificate is another, and only then.
    let first = http(&pem("proxy.crt"), &pem("proxy.key"));
    assert_eq!(first, http(&pem("proxy.crt"), &pem("proxy-sec1.key")));
    assert_ne!(first, http(&pem("other.crt"), &pem("other.key")));

    let check = |chain: &str, key: &str, expected: &str| assert_errors(http_with(chain, key), &[expected], expected);
    check(
        &pem("proxy.key"),
        &pem("proxy.key"),
        "8:12: CertFile: /etc/proxy.crt: there is no certificate in it; name a file in PEM, -----BEGIN CERTIFICATE----- \
         in it",
    );
    check(
        &pem("proxy.crt"),
        "",
        "9:11: KeyFile: /keys/proxy.key: there is no private key in it; name a file in PEM, -----BEGIN PRIVATE KEY----- \
         in it",
    );
    check(
        &pem("proxy.crt"),
        &pem("proxy-encrypted.key"),
        "9:11: KeyFile: /keys/proxy.key: the private key is encrypted; decrypt it, as `openssl pkey` does, for a file \
         of this user only",
    );
    check(
        &pem("proxy.crt"),
        &pem("other.key"),
        "9:11: KeyFile: /keys/proxy.key: the private key is not the certificate's; name the two that were made together",
    );
    let alone = |line: &str, files: &[(&str, &str)]| {
        parse_with(&right(&format!("[http]\nBindAddress = :1\n{line}\n")), files, &[])
    };
    assert_errors(
        alone("KeyFile = a.key", &[("/etc/a.key", &pem("proxy.key"))]),
        &["8:11: KeyFile: there is no CertFile, and neither is of use alone; add CertFile = …, or remove this line"],
        "a key alone",
    );
    assert_errors(
        alone("CertFile = a.crt", &[]),
        &[
            "8:12: CertFile: /etc/a.crt cannot be read: entity not found; check its path, and who may read it",
            "8:12: CertFile: there is no KeyFile, and neither is of use alone; add KeyFile = …, or remove this line",
        ],
        "a certificate alone, which is not there",
    );
}

#[test]
fn a_file_with_everything() {
    let text = format!(
        "\u{feff}# A sidecar.\r
[interface]\r
PRIVATEKEY={PRIVATE}\r
Address = 10.0.0.2/24, fd00::2/64 # two\r
Address = 10.0.1.2\r
DNS = 10.0.0.1, fd00::1, corp.example\r
MTU = 1380\r
ListenPort = 51820\r
FwMark = 0xca6c\r
CheckAlive = 10.0.0.1, fd00::1\r
CheckAliveInterval = 7\r
[Peer]\r
PublicKey = {PUBLIC}\r
PresharedKey = {PRESHARED}\r
AllowedIPs = 10.0.0.9/24\r
AllowedIPs = fd00::/64, 0.0.0.0/0\r
Endpoint = vpn.example.org:51820\r
PersistentKeepalive = 25\r
[Peer]\r
PublicKey = {OTHER}\r
AllowedIPs =\r
[Socks5]\r
BindAddress = 127.0.0.1:1080\r
Username = me\r
Password = \" p#;w \"\r
[http]\r
BindAddress = :3128\r
[TCPClientTunnel]\r
BindAddress = localhost:5432\r
Target = db.corp.example:5432\r
[TCPServerTunnel]\r
ListenPort = 8080\r
Target = localhost:80\r
[UDPProxyTunnel]\r
BindAddress = [::1]:5353\r
Target = [fd00::1]:53\r
InactivityTimeout = 30\r
[UDPServerTunnel]\r
ListenPort = 8080\r
Target = localhost:53\r
InactivityTimeout = 20\r
[STDIOTunnel]\r
Target = 10.0.0.1:22\r
[Resolve]\r
ResolveStrategy = ipv4\r
[Dns]\r
BindAddress = 127.0.0.1:53\r
[Metrics]\r
BindAddress = 0.0.0.0:9586\r
[Uapi]\r
Socket = /run/adit/side.sock\r
[Log]\r
Format = json\r
Level = verbose"
    );
    let config = parse(&text).unwrap();
    let interface = &config.interface;
    assert_eq!(interface.private_key, PrivateKey::from_base64(PRIVATE).unwrap());
    let addresses: Vec<_> = interface.addresses.iter().map(|(address, len)| format!("{address}/{len}")).collect();
    assert_eq!(addresses, ["10.0.0.2/24", "fd00::2/64", "10.0.1.2/32"]);
    assert_eq!((interface.dns.len(), &interface.search[..]), (2, &["corp.example".to_owned()][..]));
    assert_eq!((interface.mtu, interface.listen_port, interface.fwmark), (1380, 51820, 0xca6c));
    assert_eq!((interface.check_alive.len(), interface.check_alive_interval), (2, Duration::from_secs(7)));

    let [first, second] = &config.peers[..] else { panic!("{:?}", config.peers) };
    assert_eq!(first.public_key, PublicKey::from_base64(PUBLIC).unwrap());
    assert_eq!(first.preshared_key, Some(PresharedKey::from_base64(PRESHARED).unwrap()));
    let ranges: Vec<_> = first.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/24", "fd00::/64", "0.0.0.0/0"]);
    assert_eq!(first.endpoint.as_ref().unwrap().host, Host::Name("vpn.example.org".into()));
    assert_eq!((first.persistent_keepalive, first.required), (25, true));
    assert_eq!((second.allowed_ips.len(), &second.endpoint, second.required), (0, &None, false));

    let services: Vec<_> = config.services.iter().map(|service| format!("{service:?}")).collect();
    assert_eq!(services.len(), 8);
    let Service::Socks5(socks) = &config.services[0] else { panic!("{services:?}") };
    assert!(socks.password.as_ref().unwrap().matches(b" p#;w ") && socks.username.as_deref() == Some("me"));
    let Service::Http(http) = &config.services[1] else { panic!("{services:?}") };
    assert_eq!((http.bind.to_string(), &http.username), ("[::]:3128".to_owned(), &None));
    let Service::TcpClientTunnel(forward) = &config.services[2] else { panic!("{services:?}") };
    assert_eq!(
        (forward.bind.to_string(), forward.target.to_string()),
        ("127.0.0.1:5432".into(), "db.corp.example:5432".into())
    );
    let Service::UdpProxyTunnel(forward) = &config.services[4] else { panic!("{services:?}") };
    assert_eq!(forward.inactivity_timeout, Duration::from_secs(30));
    let Service::UdpServerTunnel(forward) = &config.services[5] else { panic!("{services:?}") };
    // The port of the service for TCP is another one.
    assert_eq!((forward.listen_port, forward.target.to_string()), (8080, "localhost:53".into()));
    assert_eq!(forward.inactivity_timeout, Duration::from_secs(20));
    assert_eq!(config.services[7], Service::Dns(Dns { bind: "127.0.0.1:53".parse().unwrap() }));
    assert_eq!(config.resolve.strategy, ResolveStrategy::Ipv4);
    assert_eq!(config.metrics, Some("0.0.0.0:9586".parse().unwrap()));
    assert_eq!(config.uapi.as_deref(), Some(Path::new("/run/adit/side.sock")));
    assert_eq!((config.log.format, config.log.level), (LogFormat::Json, Some(LogLevel::Verbose)));
    assert_eq!((&config.warnings[..], &config.files[..]), (&[][..], &[PathBuf::from("/etc/a.conf")][..]));
}

#[test]
fn what_a_file_need_not_say() {
    let config = parse(&right("[Socks5]\nBindAddress = 127.0.0.1:1080\n")).unwrap();
    assert_eq!((config.interface.mtu, config.interface.listen_port, config.interface.fwmark), (1420, 0, 0));
    assert_eq!(config.interface.check_alive_interval, Duration::from_secs(5));
    let peer = &config.peers[0];
    let ranges: Vec<_> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    assert_eq!((ranges, peer.persistent_keepalive), (vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()], 0));
    assert_eq!(config.resolve.strategy, ResolveStrategy::Auto);
    assert_eq!((config.metrics, config.uapi, config.log.format), (None, None, LogFormat::Text));
    let forward = parse(&right("[UDPProxyTunnel]\nBindAddress=:1\nTarget=10.0.0.1:1\n")).unwrap();
    let Service::UdpProxyTunnel(forward) = &forward.services[0] else { panic!() };
    assert_eq!(forward.inactivity_timeout, Duration::from_secs(180));
    let forward = parse(&right("[UDPServerTunnel]\nListenPort=1\nTarget=10.0.0.1:1\n")).unwrap();
    let Service::UdpServerTunnel(forward) = &forward.services[0] else { panic!() };
    assert_eq!(forward.inactivity_timeout, Duration::from_secs(180));
    // Its target is a name of the host's, for which no DNS server inside the tunnel is needed.
    assert_eq!(parse(&right("[UDPServerTunnel]\nListenPort=1\nTarget=a:1\n")).unwrap().warnings, []);
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let check = |more: &str, expected: &[&str]| assert_errors(parse(&right(more)), expected, more);
    check("Endpont = a:1\n", &["6:1: Endpont: [Peer] has no such key; did you mean Endpoint?"]);
    check("Address = 10.0.0.1\n", &["6:1: Address: [Peer] has no such key; it belongs to [Interface]"]);
    check("[Peeer]\nX = y\n", &["6:1: [Peeer]: there is no such section; did you mean [Peer]?"]);
    check(
        "Endpoint = a\nEndpoint = b:1\nx\n",
        &[
            "6:13: Endpoint: it has no port; write one such as example.org:80, 10.0.0.1:80 or [fd00::1]:80",
            "7:1: Endpoint: it stands there twice, first at 6:1; remove one of the two",
            "8:1: This line: it is neither a key and its value nor a section; write Key = Value or [Section], or put \
             # before it",
        ],
    );
    check(
        "AllowedIPs = 10.0.0.0/8, 10.0.0.0/33,, x\n",
        &[
            "6:35: AllowedIPs: the length of its prefix is no number from 0 to 32; write one such as 10.0.0.2/24 or \
             fd00::2/64",
            "6:38: AllowedIPs: nothing stands between two commas; remove one of the commas",
            "6:40: AllowedIPs: it is no IP address; write one such as 10.0.0.1 or fd00::1",
        ],
    );
    check(
        "PersistentKeepalive =\n",
        &["6:22: PersistentKeepalive: it has no value; write one behind the =, or remove the line"],
    );
    check(
        "[Socks5]\n[TCPClientTunnel]\nBindAddress = 127.0.0.1\n",
        &[
            "6:1: [Socks5]: it has no BindAddress; add BindAddress = …, such as 127.0.0.1:1080",
            "7:1: [TCPClientTunnel]: it has no Target; add Target = …, such as 10.0.0.1:80",
            "8:24: BindAddress: it has no port; write one such as 127.0.0.1:1080, [::1]:1080, or :1080 for all \
             addresses",
        ],
    );
    check(
        "[Socks5]\nBindAddress = :1\n[http]\nBindAddress = :1\n[UDPProxyTunnel]\nBindAddress = :1\nTarget = 1.1.1.1:1\n",
        &["9:15: BindAddress: [Socks5] at 6:1 listens there too; choose another port for one of the two"],
    );
    check(
        "[TCPServerTunnel]\nListenPort = 1\nTarget = a:1\n[TCPServerTunnel]\nListenPort = 1\nTarget = a:1\n",
        &["10:14: ListenPort: [TCPServerTunnel] at 6:1 listens there too; choose another port for one of the two"],
    );
    check(
        "[UDPServerTunnel]\nListenPort = 1\nTarget = a:1\n[UDPServerTunnel]\nListenPort = 1\nTarget = b:2\n",
        &["10:14: ListenPort: [UDPServerTunnel] at 6:1 listens there too; choose another port for one of the two"],
    );
    check(
        "[UDPServerTunnel]\nListenPort = 0\nInactivityTimeout = soon\nBindAddress = :1\n",
        &[
            "6:1: [UDPServerTunnel]: it has no Target; add Target = …, such as 10.0.0.1:80",
            "7:14: ListenPort: the port is no number from 1 to 65535; write a number from 1 to 65535",
            "8:21: InactivityTimeout: it is no number of seconds from 0 to 86400; write one such as 30",
            "9:1: BindAddress: [UDPServerTunnel] has no such key; it belongs to [Socks5] or [http] or [TCPClientTunnel] \
             or [UDPProxyTunnel] or [Dns] or [Metrics]",
        ],
    );
    check(
        "[Interface]\nMTU = 1\n",
        &["6:1: [Interface]: there can be one only, and the first is at 1:1; put all of its lines into one"],
    );
    check(
        "[Resolve]\nResolveStrategy = both\n",
        &["7:19: ResolveStrategy: it is none of the words that it can be; write auto or ipv4 or ipv6"],
    );
    check(
        "[Uapi]\nSocket = /run/adit\n",
        &["7:10: Socket: it is no path from the root to a name that ends in .sock; write one such as \
             /var/run/wireguard/adit0.sock"],
    );
    check(
        &format!("[Peer]\nPublicKey = {PUBLIC}\n"),
        &["7:13: PublicKey: another peer has the same, at 5:13; put the two into one"],
    );
    check(
        "[Dns]\nBindAddress = :53\n",
        &["6:1: [Dns]: there is no DNS server to hand queries to; add DNS = … to [Interface]"],
    );
    let own = PrivateKey::from_base64(PRIVATE).unwrap().public_key();
    check(
        &format!("[Peer]\nPublicKey = {own}\n"),
        &["7:13: PublicKey: it is the interface's own: that of PrivateKey; write the other side's"],
    );
    check(
        "[Socks5]\nBindAddress = :1\nPassword = $NOT_SET_HERE\nUsername = $NOT_SET_HERE\n",
        &[
            "8:12: Password: the variable of the environment that it refers to is not set; set it, or write $$ if \
             the value begins with a dollar sign",
            "9:12: Username: it refers to a variable of the environment that is not set: $NOT_SET_HERE; set it, or \
             write $$ if the value begins with a dollar sign",
        ],
    );
    assert_errors(
        parse(""),
        &[
            "1:1: [Interface]: it is missing; add it with PrivateKey and Address, or name a file that has it by \
             WGConfig",
            "1:1: [Peer]: there is none; add one with its PublicKey and Endpoint",
        ],
        "an empty file",
    );
    assert_errors(
        parse(&format!("[Interface]\n[Peer]\nPublicKey = {PUBLIC}\n")),
        &[
            "1:1: [Interface]: it has no PrivateKey; add PrivateKey = …, as `adit genkey` makes it, or \
             PrivateKeyFile = …",
            "1:1: [Interface]: it has no Address; add Address = …, such as 10.0.0.2/32",
        ],
        "an empty interface",
    );
    assert_errors(
        parse(&right("").replace("Address = 10.0.0.2", "Address = fd00::2\nMTU = 1000")),
        &["4:7: MTU: IPv6 needs 1280, and Address has an IPv6 address; make it larger, or remove the IPv6 address"],
        "a small MTU",
    );
    assert_errors(
        parse(&right("").replace("Address = 10.0.0.2", "Address = 10.0.0.2/33\nMTU = 65476")),
        &[
            "3:20: Address: the length of its prefix is no number from 0 to 32; write one such as 10.0.0.2/24 or \
             fd00::2/64",
            "4:7: MTU: it is no number from 576 to 65475; 1420 fits nearly everywhere",
        ],
        "each mistake once",
    );
    assert_errors(
        parse(&right("").replace("Address = 10.0.0.2", "Address =")),
        &["3:10: Address: there is none in it; write one such as 10.0.0.2/32"],
        "no address",
    );
}

#[test]
fn no_message_shows_a_secret() {
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0";
    let inputs = [
        format!("PrivateKey = {secret}"),
        format!("PrivateKey = ${secret}"),
        format!("PrivateKey = {secret}{secret}"),
        format!("PrivateKey {secret}"),
        format!("{secret}="),
        secret.to_owned(),
        format!("[{secret}]"),
        format!("PrivateKey = \"{secret}"),
        format!("PrivateKey = \"\" {secret}"),
        format!("PrivateKey = {secret}\nPrivateKey = {secret}"),
        format!("MTU = {secret}\nDNS = {secret}:\nAddress = {secret}\nPrivateKeyFile = /k"),
        format!("[Peer]\nPresharedKey = {secret}"),
        format!("[Socks5]\nPassword = ${secret}\nUsername = a\u{7}"),
        format!("[Log]\nFormat = {secret}"),
        format!("PrivateKeyFile = {PRIVATE}"),
        format!("[Peer]\nPresharedKeyFile = {PRIVATE}"),
        "[Socks5]\nPassword aGVpbWxpY2g=".to_owned(),
    ];
    for input in inputs {
        let variables = [("ADIT_INTERFACE_PRIVATEKEY", secret), ("ADIT_PEER_1_PRESHAREDKEY", secret)];
        for variables in [&[][..], &variables] {
            let text = format!("[Interface]\n{input}\n");
            let result = parse_with(&text, &[("/k", secret)], variables);
            let error = result.expect_err(&input);
            let told = format!("{error} {error:?} {:?}", environment(variables));
            for secret in [secret, PRIVATE, "aGVpbWxpY2g"] {
                assert!(!told.contains(secret), "{input}: {told}");
            }
        }
    }
    let config = parse(&right(&format!("[Socks5]\nBindAddress = :1\nPassword = {secret}\n"))).unwrap();
    let told = format!("{config:?}");
    assert!(!told.contains(secret) && !told.contains(PRIVATE), "{told}");
}

#[test]
fn the_environment_overrides_and_is_referred_to() {
    let text = right("[Socks5]\nBindAddress = 127.0.0.1:1080\nPassword = $SOCKS_PASSWORD\n");
    let config = parse_with(
        &text.replace(PRIVATE, "$WG_KEY"),
        &[],
        &[
            ("WG_KEY", PRIVATE),
            ("SOCKS_PASSWORD", "hush"),
            ("ADIT_INTERFACE_ADDRESS", "10.9.9.9/24,fd00::9"),
            ("ADIT_PEER_1_ENDPOINT", "192.0.2.1:1"),
            ("ADIT_PEER_2_PUBLIC_KEY", OTHER),
            ("ADIT_PEER_2_ALLOWEDIPS", "10.1.0.0/16"),
            ("ADIT_SOCKS5_BINDADDRESS", "0.0.0.0:1081"),
            ("ADIT_HTTP_BINDADDRESS", "0.0.0.0:3128"),
            ("ADIT_LOG_FORMAT", "json"),
            ("ADIT_LOG_LEVEL", ""),
            ("ADIT_THREADS", "2"),
        ],
    )
    .unwrap();
    assert_eq!(config.interface.private_key, PrivateKey::from_base64(PRIVATE).unwrap());
    let addresses: Vec<_> = config.interface.addresses.iter().map(|(address, _)| address.to_string()).collect();
    assert_eq!(addresses, ["10.9.9.9", "fd00::9"]);
    assert_eq!(config.peers[0].endpoint.as_ref().unwrap().to_string(), "192.0.2.1:1");
    assert_eq!(config.peers[1].public_key.to_string(), OTHER);
    let Service::Socks5(socks) = &config.services[0] else { panic!() };
    assert!(socks.bind.port() == 1081 && socks.password.as_ref().unwrap().matches(b"hush"));
    assert!(matches!(&config.services[1], Service::Http(http) if http.bind.port() == 3128));
    assert_eq!((config.log.format, config.log.level), (LogFormat::Json, None));

    let wrong = |variable: &str, value: &str, expected: &str| {
        assert_errors(parse_with(&right(""), &[], &[(variable, value)]), &[expected], variable);
    };
    wrong(
        "ADIT_INTERFACE_MTU",
        "9",
        "ADIT_INTERFACE_MTU: MTU: it is no number from 576 to 65475; 1420 fits nearly everywhere",
    );
    wrong(
        "ADIT_PEER_3_ENDPOINT",
        "a:1",
        "ADIT_PEER_3_ENDPOINT: This variable: there is no [Peer] of this number: there are 1; count from 1, without \
         a gap",
    );
    wrong(
        "ADIT_PEER_2_ENDPOINT",
        "a:1",
        "ADIT_PEER_2_ENDPOINT: [Peer]: it has no PublicKey; add PublicKey = …, as `adit pubkey` makes it",
    );
    // One dollar sign of two, and a value that ends with its line.
    let text = right("Required = no\nEndpoint = a:1\n[Socks5]\nBindAddress = :1\nUsername = $$me\nPassword = $WORD\n");
    let config = parse_with(&text, &[], &[("WORD", "hush\n")]).unwrap();
    let Service::Socks5(socks) = &config.services[0] else { panic!() };
    assert!(socks.username.as_deref() == Some("$me") && socks.password.as_ref().unwrap().matches(b"hush"));
    assert!(!config.peers[0].required, "although it has an endpoint");
    let text = "[UDPProxyTunnel]\nBindAddress = :1\nTarget = 10.0.0.1:1\nInactivityTimeout = 0\n";
    let config = parse(&right(text)).unwrap();
    assert!(matches!(&config.services[0], Service::UdpProxyTunnel(forward) if forward.inactivity_timeout.is_zero()));
    let twice = [("ADIT_PEER_1_PUBLIC_KEY", OTHER), ("ADIT_PEER_PUBLICKEY", OTHER)];
    assert_errors(
        parse_with(&right(""), &[], &twice),
        &["ADIT_PEER_PUBLICKEY: This variable: ADIT_PEER_1_PUBLIC_KEY is the same key; unset one of the two"],
        "two variables for one key",
    );
    // A secret that ends with its line, in place of the key's file, and the other way round.
    let by_file = right("").replace("PrivateKey = ", "PrivateKeyFile = /none # ");
    let config = parse_with(&by_file, &[], &[("ADIT_INTERFACE_PRIVATEKEY", &format!("{PRIVATE}\n"))]).unwrap();
    assert_eq!(config.interface.private_key, PrivateKey::from_base64(PRIVATE).unwrap());
    let other = [("/other", PRESHARED)];
    let config = parse_with(&right(""), &other, &[("ADIT_INTERFACE_PRIVATEKEYFILE", "/other")]).unwrap();
    assert_eq!(config.interface.private_key, PrivateKey::from_base64(PRESHARED).unwrap());
    let both = [("ADIT_INTERFACE_PRIVATEKEYFILE", "/other"), ("ADIT_INTERFACE_PRIVATEKEY", PRIVATE)];
    assert!(parse_with(&right(""), &other, &both).is_err());
    // All of it by variables.
    let alone = [
        ("ADIT_INTERFACE_PRIVATEKEY", PRIVATE),
        ("ADIT_INTERFACE_ADDRESS", "10.0.0.2"),
        ("ADIT_PEER_PUBLICKEY", PUBLIC),
        ("ADIT_TCP_CLIENT_TUNNEL_BIND_ADDRESS", "127.0.0.1:1"),
        ("ADIT_TCP_CLIENT_TUNNEL_TARGET", "10.0.0.1:1"),
    ];
    assert_eq!(parse_with("", &[], &alone).unwrap().services.len(), 1);
}

#[test]
fn keys_and_the_interface_in_files_of_their_own() {
    let main = "WGConfig = wg0.conf\n[Interface]\nCheckAlive = 10.0.0.1\n[Socks5]\nBindAddress = :1\n";
    let wg = format!(
        "[Interface]\nPrivateKeyFile = keys/private\nAddress = 10.0.0.2\nPostUp = $SCRIPT x\nPostUp = y\nTable = off\n\
         [Peer]\nPublicKey = {PUBLIC}\nPresharedKeyFile = /psk\n"
    );
    let files = [
        ("/etc/wg0.conf", &wg[..]),
        ("/etc/keys/private", &format!("{PRIVATE}\n")),
        ("/psk", &format!(" {PRESHARED} ")),
    ];
    let config = parse_with(main, &files, &[]).unwrap();
    assert_eq!(config.interface.private_key, PrivateKey::from_base64(PRIVATE).unwrap());
    assert_eq!(config.peers[0].preshared_key, Some(PresharedKey::from_base64(PRESHARED).unwrap()));
    assert_eq!(config.interface.check_alive.len(), 1);
    let read: Vec<_> = config.files.iter().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(read, ["/etc/a.conf", "/etc/wg0.conf", "/etc/keys/private", "/psk"]);
    let warnings: Vec<_> =
        config.warnings.iter().map(|warning| format!("{} {}", warning.place, warning.what)).collect();
    assert_eq!(warnings, ["/etc/wg0.conf:4:1 PostUp", "/etc/wg0.conf:6:1 Table"]);

    let check = |text: &str, files: &[(&str, &str)], expected: &[&str]| {
        assert_errors(parse_with(text, files, &[]), expected, text);
    };
    check(
        "WGConfig = wg0.conf\n",
        &[],
        &["1:12: WGConfig: /etc/wg0.conf cannot be read: entity not found; check its path, and who may read it"],
    );
    check(
        &format!("{main}WGConfig = x\n"),
        &files,
        &["6:1: WGConfig: [Socks5] has no such key; it belongs to the top of the file"],
    );
    let twice = wg.replace("Address = ", "CheckAliveInterval = 3\nAddress = ");
    check(
        &main.replace("CheckAlive = 10.0.0.1", "CheckAliveInterval = 4"),
        &[("/etc/wg0.conf", &twice), files[1], files[2]],
        &["/etc/wg0.conf:3:1: CheckAliveInterval: it stands in both files, also at 3:1; remove one of the two"],
    );
    check(
        main,
        &[("/etc/wg0.conf", &wg.replace("Address", "Adress")), ("/etc/keys/private", "x"), files[2]],
        &[
            "/etc/wg0.conf:2:18: PrivateKeyFile: what stands in /etc/keys/private is no key: its length is 1, that \
             of a key is 44; copy the whole key, its = at the end included",
            "/etc/wg0.conf:3:1: Adress: [Interface] has no such key; did you mean Address?",
            "2:1: [Interface]: it has no Address; add Address = …, such as 10.0.0.2/32",
        ],
    );
}

#[test]
fn what_is_accepted_with_a_warning() {
    let check = |more: &str, expected: &[&str]| {
        let warnings = parse(&right(more)).unwrap().warnings;
        let told: Vec<_> = warnings.iter().map(|it| it.to_string().replace("/etc/a.conf:", "")).collect();
        assert_eq!(told, expected, "{more}");
    };
    check(
        "[TCPClientTunnel]\nBindAddress = :1\nTarget = name:1\n",
        &["8:10: Target: it is a name, which is resolved through the tunnel, and there is no DNS server; add DNS = \
             … to [Interface]"],
    );
    check(
        &format!("AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.0.0.1/8\n"),
        &[
            "9:14: AllowedIPs: 10.0.0.0/8 is also at 6:14, and the last peer that names it gets it; give each range to one peer",
        ],
    );
    check(
        "[Socks5]\nBindAddress = :1\nPassword = a#b\n",
        &["8:12: Password: it ends before a #, which begins a comment; put the value between double quotes if the # \
             belongs to it"],
    );
}

#[test]
fn files_are_bounded_and_must_be_text() {
    let scratch = Scratch::new();
    let load = |bytes: &[u8]| {
        let path = scratch.file("a.conf", bytes);
        Config::load(&path, &Environment::default()).map_err(|error| error.to_string())
    };
    assert!(load(right("").as_bytes()).is_ok());
    let error = load(b"# a\n# \xc3\xa4\xff").unwrap_err();
    assert!(error.ends_with("a.conf:2:4: This file: it is not text in UTF-8; save it as UTF-8"), "{error}");
    let error = Config::load(&scratch.0.join("none"), &Environment::default()).unwrap_err().to_string();
    assert!(error.contains("none:1:1: This file: ") && error.contains("No such file"), "{error}");
    let error = Config::load(Path::new("/dev/zero"), &Environment::default()).unwrap_err().to_string();
    assert!(error.contains("/dev/zero:1:1: This file: "), "{error}");
    assert!(read_file(Path::new("/dev/null")).unwrap().is_empty());
}

/// Text that looks like a file, so that more than the first line is reached.
fn likely_text() -> impl Strategy<Value = String> {
    let words = [
        "[Interface]",
        "[Peer]",
        "[Socks5]",
        "[http]",
        "[Dns]",
        "[",
        "]",
        "=",
        "#",
        ";",
        "\"",
        "`",
        "$",
        ",",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\u{feff}",
        "\u{e4}",
        "\0",
        "PrivateKey",
        "Address",
        "AllowedIPs",
        "Endpoint",
        "BindAddress",
        "Target",
        "WGConfig",
        "PrivateKeyFile",
        "10.0.0.1",
        "/24",
        "fd00::1",
        "[::1]:80",
        ":",
        "a.example:1",
        "0",
        PRIVATE,
        PUBLIC,
    ];
    prop::collection::vec(
        prop_oneof![8 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => ".{0,3}"],
        0..60,
    )
    .prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the text: no panic, and each mistake and warning at a place that the file has.
    #[test]
    fn every_remark_has_a_place_inside_the_file(text in likely_text()) {
        let remarks = match parse(&text) {
            Ok(config) => config.warnings,
            Err(error) => {
                prop_assert!(!error.errors.is_empty());
                [error.errors, error.warnings].concat()
            }
        };
        let lines: Vec<&str> = text.strip_prefix('\u{feff}').unwrap_or(&text).split('\n').collect();
        for remark in remarks {
            let Place::File { line, column, .. } = &remark.place else { panic!("{remark}") };
            prop_assert!((1..=lines.len()).contains(line), "{remark}");
            prop_assert!((1..=lines[*line - 1].chars().count() + 1).contains(column), "{remark}");
            prop_assert!(!remark.what.is_empty() && !remark.why.is_empty() && !remark.next.is_empty());
            prop_assert_eq!(remark.to_string().lines().count(), 1);
        }
    }

    /// Whatever a variable is called and says.
    #[test]
    fn variables_never_panic(name in "ADIT_(PEER|SOCKS5|INTERFACE|HTTP)?[A-Z0-9_]{0,12}", value in ".{0,20}") {
        let _ = parse_with(&right(""), &[], &[(&name, &value)]);
    }
}

/// A directory of this test's own, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("adit-proxy-config-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn adit(words: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_adit"));
    command.args(words).stdin(Stdio::null()).env_clear().envs(variables.iter().copied());
    command.output().unwrap()
}

#[test]
fn the_command_checks_a_file() {
    let scratch = Scratch::new();
    let good = scratch.file("good.conf", right("[Socks5]\nBindAddress = :1080\n").as_bytes());
    let bad = scratch.file("bad.conf", right("Endpoint = nowhere\nPublicKey = x\n").as_bytes());
    let check = |words: &[&str], variables: &[(&str, &str)], status: i32, stdout: &str, stderr: &[&str]| {
        let output = adit(words, variables);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {error}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), stdout, "{words:?}");
        assert_eq!(error.lines().count(), stderr.len(), "{error}");
        for (line, expected) in error.lines().zip(stderr) {
            assert!(line.contains(expected), "{line}");
        }
    };
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let ok = format!("{good}: ok\n");
    for word in ["--check", "-n", "--configtest"] {
        check(&["proxy", "-c", good, word], &[], 0, &ok, &[]);
    }
    check(&["proxy", "--check"], &[("ADIT_CONFIG", good)], 0, &ok, &[]);
    check(
        &["proxy", "--check", "-c", good],
        &[("ADIT_SOCKS5_BINDADDRESS", "x")],
        1,
        "",
        &["ADIT_SOCKS5_BINDADDRESS: "],
    );
    let twice = format!("{bad}:7:1: PublicKey: it stands there twice");
    check(&["proxy", "--check", "-c", bad], &[], 1, "", &[&format!("{bad}:6:19: Endpoint: it has no port"), &twice]);
    check(&["proxy", "-c", bad], &[], 1, "", &[":6:19: Endpoint: ", &twice]);
    check(&["proxy", "--check"], &[], 1, "", &["there is no configuration: name its file with --config"]);
}
