//! The figures of the sidecar's own parts, as the metrics that stand beside those of its device.
//!
//! What each means stands in `docs/metrics.md`.

use std::borrow::Borrow;

use super::services::{self, Failure};
use crate::metrics::Family;
use crate::metrics::Kind::{Counter, Gauge};
use crate::netstack::Stats;

/// Of each service, by name.
pub(super) fn of_services<N: Borrow<str>>(services: &[(N, services::Figures)]) -> Vec<Family> {
    let one = |name, help, unit, kind, read: fn(&services::Figures) -> u64| Family {
        name,
        help,
        unit,
        kind,
        samples: services
            .iter()
            .map(|(service, figures)| (vec![("service", service.borrow().to_owned())], read(figures)))
            .collect(),
    };
    let failures = services.iter().flat_map(|(service, figures)| {
        Failure::ALL.iter().map(move |&failure| {
            (
                vec![("service", service.borrow().to_owned()), ("reason", failure.label().to_owned())],
                figures.failures(failure),
            )
        })
    });
    vec![
        one("adit_service_clients", "Clients accepted", None, Counter, |it| it.accepted),
        one("adit_service_half_open", "Clients in a handshake", None, Gauge, |it| it.half_open),
        one("adit_service_served", "Clients that are served", None, Gauge, |it| it.served),
        one("adit_service_sent", "Payload from clients to targets", Some("bytes"), Counter, |it| it.sent_bytes),
        one("adit_service_received", "Payload from targets to clients", Some("bytes"), Counter, |it| it.received_bytes),
        one("adit_service_sent", "Datagrams from clients to targets", Some("datagrams"), Counter, |it| {
            it.sent_datagrams
        }),
        one("adit_service_received", "Datagrams from targets to clients", Some("datagrams"), Counter, |it| {
            it.received_datagrams
        }),
        Family {
            name: "adit_service_failures",
            help: "Clients, requests and datagrams that were not served",
            unit: None,
            kind: Counter,
            samples: failures.collect(),
        },
    ]
}

/// Of the TCP/IP stack.
pub(super) fn of_netstack(stats: &Stats) -> Vec<Family> {
    let one = |name, help, kind, value| Family { name, help, unit: None, kind, samples: vec![(Vec::new(), value)] };
    vec![
        one("adit_netstack_tcp_open", "TCP connections, but for those in TIME-WAIT", Gauge, stats.tcp_open as u64),
        one("adit_netstack_tcp_time_wait", "TCP connections in TIME-WAIT", Gauge, stats.tcp_time_wait as u64),
        one("adit_netstack_tcp_connects", "TCP connections asked for by this side", Counter, stats.tcp_connects),
        one("adit_netstack_tcp_accepts", "TCP connections accepted from a peer", Counter, stats.tcp_accepts),
        one("adit_netstack_tcp_refused", "TCP segments to where nobody listens", Counter, stats.tcp_refused),
        one(
            "adit_netstack_tcp_overflows",
            "Connections of peers dropped because a bound was reached",
            Counter,
            stats.tcp_overflows,
        ),
        one("adit_netstack_udp_refused", "UDP datagrams to a port that nobody has", Counter, stats.udp_refused),
        one(
            "adit_netstack_udp_overflows",
            "UDP datagrams that their socket had no room for",
            Counter,
            stats.udp_overflows,
        ),
        one(
            "adit_netstack_outbound_dropped",
            "Packets that the interface had no room for",
            Counter,
            stats.outbound_dropped,
        ),
        one(
            "adit_netstack_inbound_dropped",
            "Packets malformed, with a wrong checksum, or for another address",
            Counter,
            stats.inbound_dropped,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Kind;

    /// The tables of the document, and the program.
    #[test]
    fn the_document_lists_each_metric() {
        let document = include_str!("../../docs/metrics.md");
        let section =
            document.split("## Metrics of a sidecar").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `adit_"));
        let mut documented: Vec<_> = rows
            .map(|row| {
                let cells: Vec<_> = row.split('|').map(str::trim).collect();
                (format!("adit_{}", cells[0].trim_end_matches('`')), cells[1].to_owned(), cells[3].to_owned())
            })
            .collect();
        let none: [(&str, services::Figures); 0] = [];
        let mut told: Vec<_> = of_services(&none)
            .into_iter()
            .chain(of_netstack(&Stats::default()))
            .map(|family| {
                let unit = family.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
                let (suffix, kind) = if family.kind == Kind::Counter { ("_total", "counter") } else { ("", "gauge") };
                let name = format!("{}{unit}{suffix}", family.name);
                (name, kind.to_owned(), family.unit.unwrap_or_default().to_owned())
            })
            .collect();
        documented.sort();
        told.sort();
        assert_eq!(documented, told);
    }

    #[test]
    fn each_service_has_its_samples() {
        let counters = services::Counters::default();
        let families = of_services(&[("one", counters.figures()), ("two", counters.figures())]);
        for family in families {
            let each = if family.name == "adit_service_failures" { Failure::ALL.len() } else { 1 };
            assert_eq!(family.samples.len(), 2 * each, "{}", family.name);
        }
    }
}
