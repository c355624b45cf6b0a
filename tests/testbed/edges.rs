//! Edges in memory around which a test puts something of its own: a fault, a note of what passes, a moment at which
//! something else happens.
//!
//! A test implements those of [`Hooks`] that it cares about. Each is called in place of the edge's own call, and by default
//! makes that.
#![allow(unreachable_pub, reason = "also a file of the testbed")]

use std::io;
use std::sync::Arc;

use adit::packet::{Buffers, PacketRef};
use adit::tun::memory::MemoryTun;
use adit::tun::offload::SuperPacket;
use adit::tun::{Readiness, ReceiveError, Tun, TunEvent, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use adit::udp::memory::MemoryUdp;
use adit::udp::{Received, Sent, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket};

/// What a test does at the edges of a device.
pub trait Hooks: Send + Sync + 'static {
    /// The device reads from its interface.
    fn tun_receive<'a>(
        &self,
        inner: &mut dyn TunReceiver,
        buffer: &'a mut [u8],
    ) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        inner.receive(buffer)
    }

    /// The device writes to its interface.
    fn tun_send(&self, inner: &mut dyn TunSender, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        inner.send(buffers, packets)
    }

    /// The device asks what has happened to its interface.
    fn tun_event(&self, inner: &mut dyn TunEvents) -> io::Result<Option<TunEvent>> {
        inner.next()
    }

    /// The device is about to bind a port.
    fn udp_bind(&self) -> io::Result<()> {
        Ok(())
    }

    /// The device is about to set a socket's mark.
    fn udp_set_fwmark(&self) -> io::Result<()> {
        Ok(())
    }

    /// The device has told how a receiver wakes it.
    fn udp_wake(&self, _wake: &Wake) {}

    /// The device receives datagrams; by `wake` the receiver says that there are more.
    fn udp_receive(
        &self,
        inner: &mut dyn UdpReceiver,
        _wake: Option<&Wake>,
        buffers: &mut Buffers,
        received: &mut Vec<Received>,
    ) -> io::Result<bool> {
        inner.receive(buffers, received)
    }

    /// The device sends datagrams.
    fn udp_send(&self, inner: &mut dyn UdpSender, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        inner.send(transmits, sent);
    }
}

/// An edge with hooks around it.
pub struct Hooked<E, H>(pub E, pub Arc<H>);

/// A receiver of datagrams with hooks around it.
struct HookedReceiver<H> {
    inner: Box<dyn UdpReceiver>,
    hooks: Arc<H>,
    wake: Option<Wake>,
}

impl<H: Hooks> Tun for Hooked<MemoryTun, H> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn mtu(&self) -> usize {
        self.0.mtu()
    }

    fn queues(&mut self, count: usize) -> io::Result<Vec<TunQueue>> {
        let hooked = |TunQueue { receiver, sender }| TunQueue {
            receiver: Box::new(Hooked(receiver, self.1.clone())),
            sender: Box::new(Hooked(sender, self.1.clone())),
        };
        Ok(self.0.queues(count)?.into_iter().map(hooked).collect())
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        Ok(Box::new(Hooked(self.0.events()?, self.1.clone())))
    }
}

impl<H: Hooks> TunReceiver for Hooked<Box<dyn TunReceiver>, H> {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        self.0.readiness(wake)
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        self.1.tun_receive(&mut *self.0, buffer)
    }
}

impl<H: Hooks> TunSender for Hooked<Box<dyn TunSender>, H> {
    fn send(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        self.1.tun_send(&mut *self.0, buffers, packets)
    }
}

impl<H: Hooks> TunEvents for Hooked<Box<dyn TunEvents>, H> {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        self.0.readiness(wake)
    }

    fn next(&mut self) -> io::Result<Option<TunEvent>> {
        self.1.tun_event(&mut *self.0)
    }
}

impl<H: Hooks> Udp for Hooked<MemoryUdp, H> {
    fn bind(&self, port: u16, fwmark: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        self.1.udp_bind()?;
        Ok(Arc::new(Hooked(self.0.bind(port, fwmark, receivers)?, self.1.clone())))
    }
}

impl<H: Hooks> UdpSocket for Hooked<Arc<dyn UdpSocket>, H> {
    fn port(&self) -> u16 {
        self.0.port()
    }

    fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        self.1.udp_set_fwmark()?;
        self.0.set_fwmark(fwmark)
    }

    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>> {
        let hooked = |inner| Box::new(HookedReceiver { inner, hooks: self.1.clone(), wake: None }) as _;
        Ok(self.0.receivers()?.into_iter().map(hooked).collect())
    }

    fn sender(&self) -> io::Result<Box<dyn UdpSender>> {
        Ok(Box::new(Hooked(self.0.sender()?, self.1.clone())))
    }
}

impl<H: Hooks> UdpReceiver for HookedReceiver<H> {
    fn readiness(&mut self, wake: Wake) -> Vec<Readiness> {
        self.hooks.udp_wake(&wake);
        self.wake = Some(wake.clone());
        self.inner.readiness(wake)
    }

    fn ready(&mut self, source: usize) {
        self.inner.ready(source);
    }

    fn receive(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool> {
        self.hooks.udp_receive(&mut *self.inner, self.wake.as_ref(), buffers, received)
    }
}

impl<H: Hooks> UdpSender for Hooked<Box<dyn UdpSender>, H> {
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        self.1.udp_send(&mut *self.0, transmits, sent);
    }
}
