//! The stack as the device sees it: an interface that is always up.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::edge::Emitted;
use super::headers;
use super::inbound::Inbound;
use super::lanes::Next;
use super::stack::Stack;
use crate::ip;
use crate::packet::{Readiness, Wake};
use crate::tun::offload::{SuperPacket, VNET_HEADER_LEN};
use crate::tun::{ReceiveError, Tun, TunEvent, TunEvents, TunQueue, TunReceiver};

/// Values of the virtio header (virtio 1.2 §5.1.6.1): the checksum is to be completed; what is to be cut up.
const VNET_NEEDS_CSUM: u8 = 1;
const VNET_GSO_TCPV4: u8 = 1;
const VNET_GSO_TCPV6: u8 = 4;

/// The device's end of a stack: hand it to [`crate::device::Device::builder`]. When it is dropped, as the device
/// does at its end, the stack is down, and every operation on its connections and sockets fails with
/// [`io::ErrorKind::NetworkDown`].
pub struct NetstackTun {
    life: Arc<Life>,
    are_queues_taken: bool,
    are_events_taken: bool,
}

/// Ends the stack once the device has let go of all of its parts.
struct Life {
    stack: Arc<Stack>,
    timers: Option<JoinHandle<()>>,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.stack.close();
        if let Some(timers) = self.timers.take() {
            // A panic there was a waker's, and is not ours to pass on.
            _ = timers.join();
        }
    }
}

impl NetstackTun {
    /// Starts the stack's one thread, which sleeps until the next deadline.
    pub(super) fn new(stack: Arc<Stack>) -> io::Result<Self> {
        let timers = std::thread::Builder::new().name("netstack".to_owned()).spawn({
            let stack = Arc::clone(&stack);
            move || stack.timers.run(|flow| stack.follow(&flow, flow.look(stack.timers.now())))
        })?;
        let life = Arc::new(Life { stack, timers: Some(timers) });
        Ok(Self { life, are_queues_taken: false, are_events_taken: false })
    }
}

impl Tun for NetstackTun {
    fn name(&self) -> String {
        self.life.stack.name.clone()
    }

    fn mtu(&self) -> usize {
        self.life.stack.mtu
    }

    fn queues(&mut self, count: usize) -> io::Result<Vec<TunQueue>> {
        if std::mem::replace(&mut self.are_queues_taken, true) {
            return Err(io::Error::other("the queues were taken already"));
        }
        let queue = |number| TunQueue {
            receiver: Box::new(Outbound { life: Arc::clone(&self.life), number }),
            sender: Box::new(Inbound::new(Arc::clone(&self.life.stack))),
        };
        Ok((0..self.life.stack.lanes.open(count)).map(queue).collect())
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        if std::mem::replace(&mut self.are_events_taken, true) {
            return Err(io::Error::other("the events were taken already"));
        }
        Ok(Box::new(LinkEvents { mtu: self.life.stack.mtu, told: 0, _life: Arc::clone(&self.life) }))
    }
}

/// The device's way out of one lane.
struct Outbound {
    life: Arc<Life>,
    number: usize,
}

impl TunReceiver for Outbound {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        self.life.stack.lanes.set_wake(self.number, wake);
        Readiness::Wake
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let stack = &self.life.stack;
        loop {
            match stack.lanes.pop(self.number) {
                None => return Ok(None),
                Some(Next::Packet(packet)) => {
                    let bytes = &mut buffer[..packet.len()];
                    bytes.copy_from_slice(&packet);
                    return Ok(Some(SuperPacket::plain(bytes)?));
                }
                Some(Next::Flow(flow)) => {
                    let (emitted, settled) = flow.emit(buffer, stack.timers.now());
                    stack.follow(&flow, settled);
                    if let Some(emitted) = emitted {
                        return Ok(Some(super_packet(buffer, emitted)?));
                    }
                }
            }
        }
    }
}

/// Describes what a flow wrote as a system's interface would have.
fn super_packet(buffer: &mut [u8], emitted: Emitted) -> Result<SuperPacket<'_>, ReceiveError> {
    let packet = &mut buffer[..emitted.len];
    let is_ipv4 = packet[0] >> 4 == 4;
    let start = if is_ipv4 { ip::IPV4_HEADER_LEN } else { ip::IPV6_HEADER_LEN };
    let field = headers::leave_to_be_completed(packet, start, ip::TCP);
    let mut vnet = [0; VNET_HEADER_LEN];
    vnet[0] = VNET_NEEDS_CSUM;
    if let Some(segment) = emitted.segment {
        vnet[1] = if is_ipv4 { VNET_GSO_TCPV4 } else { VNET_GSO_TCPV6 };
        vnet[4..6].copy_from_slice(&segment.get().to_ne_bytes());
    }
    vnet[6..8].copy_from_slice(&(start as u16).to_ne_bytes());
    vnet[8..10].copy_from_slice(&(field as u16).to_ne_bytes());
    Ok(SuperPacket::parse(&vnet, packet)?)
}

/// Tells that the interface is up, and nothing after that.
struct LinkEvents {
    mtu: usize,
    told: usize,
    _life: Arc<Life>,
}

impl TunEvents for LinkEvents {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        wake();
        Readiness::Wake
    }

    fn next(&mut self) -> io::Result<Option<TunEvent>> {
        self.told += 1;
        Ok([TunEvent::Mtu(self.mtu), TunEvent::Up].get(self.told - 1).copied())
    }
}
