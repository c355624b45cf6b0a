//! What passes an interface: tcpdump, and the packets that it saw.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::namespace::Namespace;
use super::process::{Process, Scratch};
use super::{sys, wait_until};

/// tcpdump starts and stops within this, also on a busy machine.
const TCPDUMP_LIMIT: Duration = Duration::from_secs(20);
/// Bytes before the first packet of a pcap file, and before each packet's bytes.
const PCAP_FILE_HEADER: usize = 24;
const PCAP_PACKET_HEADER: usize = 16;
const ETHERNET_HEADER: usize = 14;
/// `LINKTYPE_ETHERNET` of a pcap file; a TUN device has `LINKTYPE_RAW` and no link header.
const LINKTYPE_ETHERNET: u32 = 1;
const UDP: u8 = 17;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    _scratch: Scratch,
}

impl Capture {
    /// Captures what passes `interface` and matches `filter` (pcap-filter(7); empty for everything).
    #[track_caller]
    pub fn start(namespace: &Namespace, interface: &str, filter: &str) -> Self {
        let scratch = Scratch::new();
        let file = scratch.file("pcap");
        let mut command = namespace.command("tcpdump");
        command.args(["-i", interface, "-n", "-U", "--immediate-mode", "-s", "0", "-Z", "root", "-w"]);
        command.arg(&file).arg(filter);
        let mut process = Process::spawn(command, scratch.file("log"));
        wait_until(&format!("tcpdump listens on {interface}"), TCPDUMP_LIMIT, || {
            assert!(process.ended().is_none(), "tcpdump {filter:?}:\n{}", process.log());
            process.log().contains("listening on")
        });
        Self { process, file, _scratch: scratch }
    }

    /// The IP packets seen so far.
    pub fn frames(&self) -> Vec<Frame> {
        read_pcap(&std::fs::read(&self.file).unwrap_or_default())
    }

    /// Ends the capture and gives the IP packets that it saw.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Frame> {
        self.process.signal(sys::SIGINT);
        let ended = self.process.wait(TCPDUMP_LIMIT);
        assert!(ended.is_some(), "tcpdump ends on SIGINT");
        self.frames()
    }
}

/// One captured IP packet, from its IP header on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Since 1970.
    pub time: Duration,
    pub bytes: Vec<u8>,
}

impl Frame {
    pub fn is_v6(&self) -> bool {
        self.bytes.first().is_some_and(|byte| byte >> 4 == 6)
    }

    /// The IPv4 TOS or the IPv6 traffic class: DSCP in the upper six bits, ECN in the lower two.
    pub fn traffic_class(&self) -> u8 {
        match self.bytes[..] {
            [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
            [_, second, ..] => second,
            _ => 0,
        }
    }

    pub fn source(&self) -> Option<IpAddr> {
        self.address(12, 8)
    }

    pub fn destination(&self) -> Option<IpAddr> {
        self.address(16, 24)
    }

    /// Source port, destination port and payload, if it is a whole UDP datagram.
    pub fn udp(&self) -> Option<(u16, u16, &[u8])> {
        let (protocol, header_len) = match self.is_v6() {
            true => (*self.bytes.get(6)?, 40),
            false => (*self.bytes.get(9)?, usize::from(self.bytes.first()? & 0x0f) * 4),
        };
        let udp = (protocol == UDP).then(|| self.bytes.get(header_len..)).flatten()?;
        let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
        let len = usize::from(port(4)?);
        // A length of 0 is a train that segmentation has not cut yet: it ends with the packet.
        let payload = if len < 8 { udp.get(8..)? } else { udp.get(8..len)? };
        Some((port(0)?, port(2)?, payload))
    }

    /// The type of the WireGuard message that it carries, if it looks like one.
    pub fn message_type(&self) -> Option<u8> {
        match self.udp()?.2 {
            [kind @ 1..=4, 0, 0, 0, ..] => Some(*kind),
            _ => None,
        }
    }

    /// Whether these bytes occur in it.
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.bytes.windows(needle.len()).any(|window| window == needle)
    }

    fn address(&self, at_v4: usize, at_v6: usize) -> Option<IpAddr> {
        if self.is_v6() {
            let bytes: [u8; 16] = self.bytes.get(at_v6..at_v6 + 16)?.try_into().ok()?;
            Some(Ipv6Addr::from(bytes).into())
        } else {
            let bytes: [u8; 4] = self.bytes.get(at_v4..at_v4 + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(bytes).into())
        }
    }
}

/// The IP packets of a pcap file in the machine's byte order, whose last packet may still be incomplete.
fn read_pcap(file: &[u8]) -> Vec<Frame> {
    let word = |at: usize| {
        let bytes: Option<[u8; 4]> = file.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes)
    };
    let mut frames = Vec::new();
    let Some(linktype) = word(20) else { return frames };
    let mut at = PCAP_FILE_HEADER;
    while let (Some(seconds), Some(micros), Some(len)) = (word(at), word(at + 4), word(at + 8)) {
        let start = at + PCAP_PACKET_HEADER;
        at = start + len as usize;
        let Some(mut bytes) = file.get(start..at) else { break };
        if linktype == LINKTYPE_ETHERNET {
            match bytes.get(12..ETHERNET_HEADER) {
                Some([0x08, 0x00] | [0x86, 0xdd]) => bytes = &bytes[ETHERNET_HEADER..],
                _ => continue,
            }
        }
        let time = Duration::from_secs(seconds.into()) + Duration::from_micros(micros.into());
        frames.push(Frame { time, bytes: bytes.to_vec() });
    }
    frames
}
