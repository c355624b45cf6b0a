//! `wg show INTERFACE dump`, parsed.

/// What `wg` says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    pub private_key: String,
    pub public_key: String,
    pub listen_port: u16,
    /// 0 when off.
    pub fwmark: u32,
    pub peers: Vec<DumpedPeer>,
}

/// What `wg` says of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedPeer {
    pub public_key: String,
    pub preshared_key: Option<String>,
    pub endpoint: Option<String>,
    pub allowed_ips: Vec<String>,
    /// In seconds since 1970; 0 for never.
    pub latest_handshake: u64,
    /// Bytes.
    pub rx: u64,
    /// Bytes.
    pub tx: u64,
    /// In seconds; 0 when off.
    pub persistent_keepalive: u16,
}

impl Dump {
    /// Parses what `wg show INTERFACE dump` printed.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let first: Vec<&str> = lines.next().expect("a dump has a first line").split('\t').collect();
        let [private_key, public_key, listen_port, fwmark] = first[..] else { panic!("the device's line: {first:?}") };
        Self {
            private_key: private_key.to_owned(),
            public_key: public_key.to_owned(),
            listen_port: number(listen_port),
            fwmark: match fwmark {
                "off" => 0,
                hex => {
                    u32::from_str_radix(hex.trim_start_matches("0x"), 16).expect("wg prints the mark in hexadecimal")
                }
            },
            peers: lines.map(DumpedPeer::parse).collect(),
        }
    }

    /// The peer with this public key.
    #[track_caller]
    pub fn peer(&self, public_key: &str) -> &DumpedPeer {
        let found = self.peers.iter().find(|peer| peer.public_key == public_key);
        found.unwrap_or_else(|| panic!("no peer {public_key} in {self:?}"))
    }
}

impl DumpedPeer {
    #[track_caller]
    fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split('\t').collect();
        let [public_key, preshared_key, endpoint, allowed_ips, latest_handshake, rx, tx, keepalive] = fields[..] else {
            panic!("a peer's line: {fields:?}")
        };
        let unless_none = |text: &str| (text != "(none)").then(|| text.to_owned());
        Self {
            public_key: public_key.to_owned(),
            preshared_key: unless_none(preshared_key),
            endpoint: unless_none(endpoint),
            allowed_ips: unless_none(allowed_ips)
                .map(|list| list.split(',').map(str::to_owned).collect())
                .unwrap_or_default(),
            latest_handshake: number(latest_handshake),
            rx: number(rx),
            tx: number(tx),
            persistent_keepalive: if keepalive == "off" { 0 } else { number(keepalive) },
        }
    }
}

#[track_caller]
fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("wg printed {text:?} where a number belongs"))
}
