//! Fuzz body: no bytes panic the reading of an inner header, and no length that it tells lies beyond the packet.

use adit::ip;

/// The first byte is the outer header's ECN, the rest an inner packet with its padding.
pub(crate) fn run(data: &[u8]) {
    let Some((&ecn, packet)) = data.split_first() else { return };
    let header = ip::Header::parse(packet);
    if let Some(header) = header {
        assert!(header.total_len >= 20 && header.total_len <= packet.len());
        assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
        // Trimmed to its stated length it is the same packet.
        assert_eq!(ip::Header::parse(&packet[..header.total_len]), Some(header));
        assert_eq!(ip::Header::parse(&packet[..header.total_len - 1]), None);
    }
    if let Some(transport) = ip::transport(packet) {
        assert!(transport.offset >= 20 && transport.offset <= packet.len());
    }
    let mut marked = packet.to_vec();
    ip::decapsulate_ecn(&mut marked, ecn);
    if let (Some(before), Some(after)) = (header, ip::Header::parse(&marked)) {
        assert_eq!(
            (before.source, before.destination, before.total_len),
            (after.source, after.destination, after.total_len)
        );
        let expected =
            if ecn & ip::ECN_MASK == ip::ECN_CE && before.ecn != ip::ECN_NOT_ECT { ip::ECN_CE } else { before.ecn };
        assert_eq!(after.ecn, expected);
    }
}
