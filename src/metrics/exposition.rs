//! The text of `/metrics`: OpenMetrics 1.0, written by prometheus-client from what a device tells of itself.
//!
//! Peers carry the names and labels that the widespread exporter of WireGuard gives them (MindFlavor's
//! prometheus_wireguard_exporter), so that dashboards made for it go on working; everything else is `adit_*`.
//!
//! Invariants:
//! - of keys there are only public ones: the exposition takes what it needs out of a [`Snapshot`] and drops the rest;
//! - the number of series is that of the peers times three, and a constant; no label follows the network, so that a
//!   peer that roams makes no new series;
//! - a label is bounded: of a peer's allowed IPs it names [`PREFIXES_MAX`] at most;
//! - it is written piece by piece: the text as a whole is never in memory unless the caller keeps it.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use crate::device::Figures;
use crate::device::config::{AllowedIp, Snapshot};
use crate::key::PublicKey;
use crate::proto::rejected::Rejected;

/// What kind of text it is, for an HTTP header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Allowed IPs that the label `allowed_ips` names; how many more there are follows as `+n`. A peer may have a hundred
/// thousand, and a scraper stores each label it is shown; with so few, a label stays below 400 bytes.
pub const PREFIXES_MAX: usize = 8;

/// What a [`Family`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Only ever grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Figures of somebody else, shown after the device's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name, without unit and `_total`: `adit_service_connections`.
    pub name: &'static str,
    /// What it means, in one line.
    pub help: &'static str,
    /// The unit, in the plural, which becomes a part of the name: `bytes`.
    pub unit: Option<&'static str>,
    /// Whether it only grows.
    pub kind: Kind,
    /// Labels and value of each sample; no two with the same labels. The interface is added to them.
    pub samples: Vec<(Vec<(&'static str, String)>, u64)>,
}

/// What is shown of one peer.
#[derive(Debug)]
struct Peer {
    labels: PeerLabels,
    sent: u64,
    received: u64,
    latest_handshake: Duration,
}

/// What is to be written, at one moment.
#[derive(Debug)]
pub struct Exposition {
    interface: Arc<str>,
    peers: Vec<Peer>,
    figures: Figures,
    families: Vec<Family>,
}

impl Exposition {
    /// The metrics of the device with that interface.
    pub fn new(interface: &str, snapshot: &Snapshot, figures: Figures) -> Self {
        let interface: Arc<str> = interface.into();
        let peers = snapshot.peers.iter().map(|peer| Peer {
            labels: PeerLabels {
                interface: interface.clone(),
                public_key: peer.public_key,
                allowed_ips: prefixes(&peer.allowed_ips),
            },
            sent: peer.tx_bytes,
            received: peer.rx_bytes,
            latest_handshake: peer.last_handshake.unwrap_or_default(),
        });
        let peers = peers.collect();
        Self { interface, peers, figures, families: Vec::new() }
    }

    /// Adds figures of somebody else.
    pub fn with(mut self, families: impl IntoIterator<Item = Family>) -> Self {
        self.families.extend(families);
        self
    }

    /// Writes the text, from the first line to `# EOF`.
    ///
    /// # Errors
    /// Those of `output`.
    pub fn write(self, output: &mut impl Write) -> fmt::Result {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        text::encode(output, &registry)
    }
}

/// The whole text, for those who have a use for it in one piece.
impl From<Exposition> for String {
    fn from(exposition: Exposition) -> Self {
        let mut text = Self::new();
        // Writing to a String cannot fail.
        let _ = exposition.write(&mut text);
        text
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_peers(&mut encoder)?;
        self.encode_device(&mut encoder)?;
        self.families.iter().try_for_each(|family| self.encode_family(&mut encoder, family))
    }
}

impl Exposition {
    fn encode_peers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = |read: fn(&Peer) -> u64| self.peers.iter().map(move |peer| (&peer.labels, read(peer)));
        let sent = Described::new("wireguard_sent", "Bytes sent to the peer, above UDP").unit(Unit::Bytes);
        sent.counter(encoder, bytes(|peer| peer.sent))?;
        let received = "Bytes received from the peer in authentic messages, above UDP";
        let received = Described::new("wireguard_received", received).unit(Unit::Bytes);
        received.counter(encoder, bytes(|peer| peer.received))?;
        let handshake = "UNIX time of the last completed handshake; 0 if there was none";
        let handshake = Described::new("wireguard_latest_handshake", handshake).unit(Unit::Seconds);
        handshake.gauge(encoder, bytes(|peer| peer.latest_handshake.as_secs()))
    }

    fn encode_device(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let build = encoder.encode_descriptor("adit_build", "How this adit was built", None, MetricType::Info);
        build?.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;

        let figures = &self.figures;
        let interface = &*self.interface;
        let drops = "Messages and packets dropped, by the rule that they broke and whose fault it was";
        let labelled = Rejected::ALL.map(|reason| {
            ([("interface", interface), ("fault", reason.fault()), ("reason", reason.name())], figures.drops(reason))
        });
        let drops = Described::new("adit_drops", drops);
        drops.counter(encoder, labelled.iter().map(|(labels, count)| (labels, *count)))?;

        let labels = [("interface", interface)];
        let gauges: [(&str, &str, Option<Unit>, u64); 13] = [
            ("adit_udp_bound", "1 while the UDP port is bound", None, figures.is_bound.into()),
            ("adit_mtu", "MTU of the interface", Some(Unit::Bytes), figures.mtu as u64),
            ("adit_workers", "Threads that carry packets", None, figures.workers as u64),
            ("adit_queues", "Queues of the interface", None, figures.queues as u64),
            ("adit_peers", "Peers", None, figures.peers as u64),
            ("adit_sessions", "Peers with a session to send in", None, figures.sessions as u64),
            (
                "adit_receiver_indices",
                "Handshakes under way, and sessions that may still receive",
                None,
                figures.receiver_indices as u64,
            ),
            (
                "adit_unsegmented_peers",
                "Peers whose path refuses segmentation offload, so that datagrams are sent one by one",
                None,
                figures.unsegmented_peers as u64,
            ),
            ("adit_staged_peers", "Peers with packets that wait for a session", None, figures.staged_peers as u64),
            ("adit_staged", "Bytes of packets that wait for a session", Some(Unit::Bytes), figures.staged_bytes),
            ("adit_staged_limit", "The most that may wait", Some(Unit::Bytes), figures.staged_bytes_max),
            (
                "adit_handshake_queue_length",
                "Handshake messages that wait to be looked at",
                None,
                figures.handshakes_queued as u64,
            ),
            (
                "adit_handshake_queue_limit",
                "The most handshake messages that may wait",
                None,
                figures.handshakes_queued_max as u64,
            ),
        ];
        gauges.into_iter().try_for_each(|(name, help, unit, value)| {
            let described = Described { name, help, unit };
            described.gauge(encoder, std::iter::once((&labels, value)))
        })
    }

    fn encode_family(&self, encoder: &mut DescriptorEncoder<'_>, family: &Family) -> fmt::Result {
        let unit = family.unit.map(|unit| Unit::Other(unit.to_owned()));
        let described = Described { name: family.name, help: family.help, unit };
        let samples: Vec<_> = family
            .samples
            .iter()
            .map(|(labels, value)| {
                let own = labels.iter().map(|(name, value)| (*name, value.as_str()));
                (std::iter::once(("interface", &*self.interface)).chain(own).collect::<Vec<_>>(), *value)
            })
            .collect();
        let samples = samples.iter().map(|(labels, value)| (labels, *value));
        match family.kind {
            Kind::Counter => described.counter(encoder, samples),
            Kind::Gauge => described.gauge(encoder, samples),
        }
    }
}

/// What stands before a metric's samples.
struct Described<'a> {
    name: &'a str,
    help: &'a str,
    unit: Option<Unit>,
}

impl<'a> Described<'a> {
    const fn new(name: &'a str, help: &'a str) -> Self {
        Self { name, help, unit: None }
    }

    fn unit(self, unit: Unit) -> Self {
        Self { unit: Some(unit), ..self }
    }

    fn counter<'l, L: EncodeLabelSet + 'l>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl Iterator<Item = (&'l L, u64)>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), MetricType::Counter)?;
        let exemplar: Option<&Exemplar<NoLabelSet, f64>> = None;
        for (labels, value) in samples {
            metric.encode_family(labels)?.encode_counter(&value, exemplar)?;
        }
        Ok(())
    }

    fn gauge<'l, L: EncodeLabelSet + 'l>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        samples: impl Iterator<Item = (&'l L, u64)>,
    ) -> fmt::Result {
        let mut metric = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            metric.encode_family(labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

/// The labels of a peer's metrics, those of the exporter by default.
#[derive(Debug)]
struct PeerLabels {
    interface: Arc<str>,
    public_key: PublicKey,
    allowed_ips: String,
}

impl EncodeLabelSet for PeerLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let public_key = self.public_key.to_string();
        let labels =
            [("interface", &*self.interface), ("public_key", &*public_key), ("allowed_ips", &*self.allowed_ips)];
        labels.encode(encoder)
    }
}

/// The first [`PREFIXES_MAX`] as `wg show` lists them, and how many more there are.
fn prefixes(allowed_ips: &[AllowedIp]) -> String {
    let (shown, more) = allowed_ips.split_at(allowed_ips.len().min(PREFIXES_MAX));
    let mut text = shown.iter().map(AllowedIp::to_string).collect::<Vec<_>>().join(",");
    if !more.is_empty() {
        text += &format!(",+{}", more.len());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut() {
        let check = |count: u8, expected: &str| {
            let allowed_ips = (0..count).map(|n| AllowedIp { address: [10, 0, n, 0].into(), prefix_len: 24 });
            assert_eq!(prefixes(&allowed_ips.collect::<Vec<_>>()), expected);
        };
        let eight = (0..8).map(|n| format!("10.0.{n}.0/24")).collect::<Vec<_>>().join(",");
        check(0, "");
        check(1, "10.0.0.0/24");
        check(8, &eight);
        check(9, &format!("{eight},+1"));
        check(255, &format!("{eight},+247"));
    }
}
