//! What a flow's smoltcp interface takes for its network device: at most one packet in, at most one out.
//!
//! A packet that goes out may be many: the stack leaves cutting it up to the device (TCP segmentation offload), and
//! TCP checksums too, which adit completes while it copies.

use std::num::{NonZeroU16, NonZeroUsize};

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, SegmentationCapabilities,
    TxToken,
};
use smoltcp::time::Instant;

use crate::packet::BUFFER_LEN;

/// Most bytes of a packet that goes out, with all its segments: what fits both the device's buffer and an IP
/// header's length field.
const PACKET_MAX: NonZeroUsize = NonZeroUsize::new(BUFFER_LEN).expect("buffers hold something");

/// A packet that was written to the device's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emitted {
    /// Its bytes.
    pub(super) len: usize,
    /// Payload bytes of each segment, if it is several.
    pub(super) segment: Option<NonZeroU16>,
}

/// The device for one step.
pub(super) struct Edge<'a> {
    mtu: usize,
    inbound: Option<&'a [u8]>,
    buffer: &'a mut [u8],
    /// What was written to the buffer.
    pub(super) emitted: Option<Emitted>,
    replies: &'a mut Vec<Box<[u8]>>,
}

impl<'a> Edge<'a> {
    pub(super) fn new(
        mtu: usize,
        inbound: Option<&'a [u8]>,
        buffer: &'a mut [u8],
        replies: &'a mut Vec<Box<[u8]>>,
    ) -> Self {
        Self { mtu, inbound, buffer, emitted: None, replies }
    }
}

impl Device for Edge<'_> {
    type RxToken<'b>
        = Arrived<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Leaving<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Arrived<'_>, Leaving<'_>)> {
        let arrived = Arrived(self.inbound.take()?);
        Some((arrived, Leaving::Reply(self.replies)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Leaving<'_>> {
        let Self { buffer, emitted, .. } = self;
        emitted.is_none().then_some(Leaving::Packet { buffer, emitted, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Checksum::Tx;
        let mut segmentation = SegmentationCapabilities::default();
        // Not for IPv6: smoltcp 0.14 drops what is longer than the MTU there, although it was told that it may be.
        segmentation.tcpv4 = Some(PACKET_MAX);
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = checksum;
        capabilities.segmentation = segmentation;
        capabilities
    }
}

pub(super) struct Arrived<'a>(&'a [u8]);

impl RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) enum Leaving<'a> {
    /// Asked for by the device.
    Packet { buffer: &'a mut [u8], emitted: &'a mut Option<Emitted>, segment: Option<NonZeroU16> },
    /// The immediate answer to one that arrived.
    Reply(&'a mut Vec<Box<[u8]>>),
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        match self {
            Self::Packet { buffer, emitted, segment } => {
                *emitted = Some(Emitted { len, segment });
                f(&mut buffer[..len])
            }
            Self::Reply(replies) => {
                let mut packet = vec![0; len].into_boxed_slice();
                let result = f(&mut packet);
                replies.push(packet);
                result
            }
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        if let Self::Packet { segment, .. } = self {
            *segment = meta.segmentation_offload_size;
        }
    }
}
