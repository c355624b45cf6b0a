//! A TUN interface of Linux.
//!
//! tun-rs sets it up; the data path then reads and writes the file descriptor itself, with the virtio header before each
//! packet, because tun-rs copies and allocates for each packet of a super-packet. A read is one `read`, with
//! room for the header before the packet; a write is one `writev` for each group that the [`Coalescer`] finds, payloads by
//! reference, or one `write` of a copy for a short packet, which costs less than having the kernel look for two parts.
//!
//! With several queues each has a descriptor of its own. The kernel puts a flow's packets into the queue that a hash of
//! its addresses and ports names; or, when packets of the flow were written in the other direction within the last
//! seconds, into the queue that they were written through. So a flow comes to the worker that has its session, and moves
//! when the session does. Header length and offloads are the interface's, and hold for all its queues.
//!
//! What the system may refuse, and what that leads to:
//!
//! | call | errno | next |
//! |---|---|---|
//! | TUNSETOFFLOAD | any | without UDP (before 6.2), then checksums alone, then none; if not even that, there is no TUN |
//! | TUNSETVNETHDRSZ | any | no TUN: nobody knows where packets begin |
//! | `writev` of several packets as one | EINVAL | the kernel does not like what was merged: each by itself; after [`REFUSED_MAX`] times nothing of the kind (TCP, UDP) is merged any more |
//! | any other `writev` | any (EIO: the link is down; EAGAIN, ENOBUFS, ENOMEM: no room) | these packets are lost, and counted |
//! | `read` | EAGAIN | nothing is there |
//! | | EINVAL | the kernel cannot say in a header what it had: that packet is lost, and counted; [`UNREADABLE_MAX`] times in a row the TUN is gone |
//! | | any other (EBADFD, EIO) | the TUN is gone |
//! | either | EINTR | again |
//!
//! Invariants:
//! - the interface is left down and is not persistent: it vanishes with its last descriptor;
//! - nobody else shares it: one with several queues, which the kernel would let others attach to, is always new;
//! - a write that the system refuses loses its packets and nothing else; a *coalesced* write that it refuses is repeated
//!   packet by packet, and coalescing ends for good when that keeps happening.

use std::ffi::{c_int, c_uint};
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::link::LinkEvents;
use super::offload::{Coalescer, GROUP_HEADER_MAX, GROUP_MAX, Group, SuperPacket, VNET_HEADER_LEN};
use super::{Readiness, ReceiveError, Tun, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use crate::packet::{Buffers, PacketRef, READ_HEADROOM};
use crate::sys;
use crate::sys::interface::index_by_name;
use crate::sys::tun::{DRIVER, Descriptor};

/// The MTU that an interface is made with: Ethernet's 1500 less IPv6, UDP and WireGuard headers (40 + 8 + 32).
pub const MTU_DEFAULT: u16 = 1420;

/// Longest name that an interface can have, in bytes: IFNAMSIZ with its terminating zero.
pub const NAME_LEN_MAX: usize = 15;

/// What every queue of an interface with several is attached with.
const QUEUE_FLAGS: c_int = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE;

/// Coalesced writes that may be refused, one after the other, before coalescing is given up: once may be the fault of
/// one packet, always is the kernel's.
const REFUSED_MAX: u32 = 8;

/// Bytes of a packet that is copied behind its header instead of being written as a second part.
const COPIED_MAX: usize = 512;

/// Reads in a row that may find a packet which cannot be told of: each costs the kernel its packet, so after as many as
/// a queue holds (500, unless somebody changed it) it is not the packets' fault.
const UNREADABLE_MAX: u32 = 1000;

/// Why a TUN could not be had.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// No interface can have this name: empty, too long, or with characters that the system forbids.
    InvalidName(String),
    /// Another interface has this name, or another process this TUN.
    NameTaken(String),
    /// There is no `/dev/net/tun`: the module is not loaded, or the container does not have it.
    NoDriver(io::Error),
    /// The process may not make interfaces: it needs CAP_NET_ADMIN.
    NotPermitted(io::Error),
    /// The descriptor that was handed over is no TUN.
    NotTun(io::Error),
    /// The system failed at something else.
    System {
        /// What it was asked to do.
        operation: &'static str,
        /// What it answered.
        source: io::Error,
    },
}

impl OpenError {
    fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { operation, source }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidName(name) => write!(
                f,
                "{name:?} is no interface name: it needs 1 to {NAME_LEN_MAX} bytes without space, slash or colon"
            ),
            Self::NameTaken(name) => write!(f, "an interface named {name} exists already or is in use"),
            Self::NoDriver(_) => {
                write!(f, "{DRIVER} is missing: load the kernel module tun, or give it to the container")
            }
            Self::NotPermitted(_) => write!(f, "not permitted to make a TUN interface: CAP_NET_ADMIN is needed"),
            Self::NotTun(_) => write!(f, "the descriptor handed over is no TUN"),
            Self::System { operation, source } => write!(f, "cannot {operation}: {source}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::InvalidName(_) | Self::NameTaken(_) => None,
            Self::NoDriver(source)
            | Self::NotPermitted(source)
            | Self::NotTun(source)
            | Self::System { source, .. } => Some(source),
        }
    }
}

/// A TUN interface, as [`Tun`].
#[derive(Debug)]
pub struct LinuxTun {
    file: Arc<File>,
    /// The name when it was opened, for when it is gone.
    name: String,
    /// Whether each packet has a virtio header before it.
    vnet: bool,
    /// Whether UDP super-packets can be exchanged (Linux 6.2).
    udp: bool,
    /// Whether more queues can be attached.
    multi_queue: bool,
    /// Its index, if it was in this network namespace when it was opened.
    index: Option<u32>,
    events: Option<LinkEvents>,
    mtu: usize,
    /// Queues that were attached before they were asked for.
    attached: Vec<File>,
    taken: bool,
}

impl LinuxTun {
    /// Makes an interface, or attaches to a persistent one that nobody uses. `name` may hold one `%d`, for which the
    /// system finds a number. The MTU is set to [`MTU_DEFAULT`]; the interface is left as it is otherwise: a new one
    /// is down. `queues`: more than 1 makes one that can have several; a persistent one has one.
    ///
    /// Opens what it takes to follow the interface into other network namespaces, so that the privileges for that may
    /// be dropped afterwards.
    pub fn create(name: &str, queues: usize) -> Result<Self, OpenError> {
        check_name(name)?;
        // tun-rs would make the device node itself where it is missing, which is not for a daemon to do.
        if let Err(error) = Path::new(DRIVER).metadata() {
            return Err(OpenError::NoDriver(error));
        }
        if queues > 1 {
            match make_multi_queue(name) {
                Ok(tun) => return Self::from_fd(tun),
                // Whatever it is, it stops the making of a plain one, too, or else that is good enough.
                Err(error) => tracing::debug!(%error, "one queue instead of {queues}"),
            }
        }
        let device = tun_rs::DeviceBuilder::new()
            .name(name)
            .offload(true)
            .mtu(MTU_DEFAULT)
            .inherit_enable_state()
            .build_sync()
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => OpenError::NoDriver(error),
                Some(libc::EPERM | libc::EACCES) => OpenError::NotPermitted(error),
                Some(libc::EBUSY | libc::EEXIST) => OpenError::NameTaken(name.to_owned()),
                // TUNSETIFF on a name that an interface of another kind has.
                Some(libc::EINVAL) if index_by_name(name).is_some() => OpenError::NameTaken(name.to_owned()),
                _ => OpenError::System { operation: "make the TUN interface", source: error },
            })?;
        Self::from_fd(sys::tun::take(device))
    }

    /// Takes over a TUN that somebody else opened: with IFF_TUN and IFF_NO_PI, and for speed with IFF_VNET_HDR.
    pub fn from_fd(tun: OwnedFd) -> Result<Self, OpenError> {
        let interface = sys::tun::interface(tun.as_fd()).map_err(OpenError::NotTun)?;
        let has = |flag: c_int| interface.flags & flag != 0;
        // IFF_NO_PI cannot be checked: the kernel reports IFF_NOFILTER in the same bit.
        if !has(libc::IFF_TUN) {
            return Err(OpenError::NotTun(io::ErrorKind::InvalidInput.into()));
        }
        sys::tun::set_nonblocking(tun.as_fd()).map_err(OpenError::system("make the TUN non-blocking"))?;
        let vnet = has(libc::IFF_VNET_HDR);
        let file = Arc::new(File::from(tun));
        let udp = vnet && set_up_headers(&*file)?;
        let events = LinkEvents::open(Arc::clone(&file)).map_err(OpenError::system("watch the TUN interface"))?;
        Ok(Self {
            file,
            name: interface.name,
            vnet,
            udp,
            multi_queue: has(libc::IFF_MULTI_QUEUE),
            index: events.index(),
            mtu: events.mtu(),
            events: Some(events),
            attached: Vec::new(),
            taken: false,
        })
    }

    /// Attaches the queues that [`Tun::queues`] would, for whoever cannot open [`DRIVER`] any more when that is called.
    #[cfg(feature = "daemon")]
    pub(crate) fn attach_queues(&mut self, count: usize) {
        while self.multi_queue && self.attached.len() + 1 < count {
            match self.attach() {
                Ok(tun) => self.attached.push(tun.into()),
                // Asked for once more later, which then says so.
                Err(_) => return,
            }
        }
    }

    /// One more descriptor of the interface, with a queue of its own. Needs the privilege to make interfaces.
    fn attach(&self) -> io::Result<OwnedFd> {
        // The kernel finds the interface by its name in this namespace. One that is not here any more would not be found,
        // but made: so it is looked at before, and once more afterwards.
        let is_here = |name: &str| self.index.is_some() && index_by_name(name) == self.index;
        let elsewhere = || io::Error::other("the interface is in another network namespace");
        let name = sys::tun::interface(self.file.as_fd())?.name;
        if !is_here(&name) {
            return Err(elsewhere());
        }
        let vnet = if self.vnet { libc::IFF_VNET_HDR } else { 0 };
        let tun = sys::tun::attach(&name, QUEUE_FLAGS | vnet)?;
        if is_here(&sys::tun::interface(tun.as_fd())?.name) { Ok(tun) } else { Err(elsewhere()) }
    }

    fn queue(&self, file: Arc<File>) -> TunQueue {
        let sender = LinuxSender::new(Arc::clone(&file), self.vnet, self.udp);
        TunQueue { receiver: Box::new(LinuxReceiver::new(file, self.vnet)), sender: Box::new(sender) }
    }

    /// The descriptor, for handing the interface over to another process.
    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes a new interface that can have several queues, with the first of them.
///
/// Whoever has the privilege may attach to one that there is, unlike to one with a single queue; so there must be none,
/// or two daemons would share it without knowing.
fn make_multi_queue(name: &str) -> io::Result<OwnedFd> {
    let tun = sys::tun::attach(name, QUEUE_FLAGS | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL)?;
    sys::tun::set_mtu(&sys::tun::interface(tun.as_fd())?.name, MTU_DEFAULT.into())?;
    Ok(tun)
}

/// Agrees on the header before each packet: its length, and what may be in it. Says whether that includes UDP.
fn set_up_headers(tun: &impl Descriptor) -> Result<bool, OpenError> {
    tun.set_vnet_header_len(VNET_HEADER_LEN as c_int).map_err(OpenError::system("set the TUN's header length"))?;
    set_offloads(tun).map_err(OpenError::system("set the TUN's offloads"))
}

/// Turns on what the kernel has, and says whether that includes UDP.
fn set_offloads(tun: &impl Descriptor) -> io::Result<bool> {
    const TCP: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const UDP: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    // The kernel may lack UDP (before 6.2), or refuse any of the others: then what is left is still worth having.
    for offloads in [TCP | UDP, TCP, libc::TUN_F_CSUM] {
        if tun.set_offload(offloads).is_ok() {
            return Ok(offloads & UDP != 0);
        }
    }
    tun.set_offload(0).map(|()| false)
}

/// The system's own rule (`dev_valid_name`), and its rule for `%d`.
fn check_name(name: &str) -> Result<(), OpenError> {
    let forbidden = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace() || byte == 0x0b;
    let pattern = match name.find('%') {
        None => true,
        Some(at) => name[at..].starts_with("%d") && name.matches('%').count() == 1,
    };
    let valid = !name.is_empty() && name.len() <= NAME_LEN_MAX && name != "." && name != ".." && pattern;
    if valid && !name.bytes().any(forbidden) { Ok(()) } else { Err(OpenError::InvalidName(name.to_owned())) }
}

impl Tun for LinuxTun {
    fn name(&self) -> String {
        sys::tun::interface(self.file.as_fd()).map_or_else(|_| self.name.clone(), |interface| interface.name)
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn queues(&mut self, count: usize) -> io::Result<Vec<TunQueue>> {
        if std::mem::replace(&mut self.taken, true) {
            return Err(io::Error::other("the queues were taken already"));
        }
        let mut queues = vec![self.queue(Arc::clone(&self.file))];
        let attached: Vec<File> = self.attached.drain(..).take(count.saturating_sub(1)).collect();
        queues.extend(attached.into_iter().map(|file| self.queue(Arc::new(file))));
        while self.multi_queue && queues.len() < count {
            match self.attach() {
                Ok(tun) => queues.push(self.queue(Arc::new(tun.into()))),
                Err(error) => {
                    tracing::debug!(%error, "{} queues instead of {count}", queues.len());
                    break;
                }
            }
        }
        Ok(queues)
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        match self.events.take() {
            Some(events) => Ok(Box::new(events)),
            None => Err(io::Error::other("the events were taken already")),
        }
    }
}

/// Reads the packets of a [`LinuxTun`].
#[derive(Debug)]
struct LinuxReceiver<D = File> {
    file: Arc<D>,
    vnet: bool,
    /// Packets since a good one that the kernel could not tell of.
    unreadable: u32,
}

impl<D> LinuxReceiver<D> {
    fn new(file: Arc<D>, vnet: bool) -> Self {
        Self { file, vnet, unreadable: 0 }
    }
}

impl<D: Descriptor + AsRawFd> TunReceiver for LinuxReceiver<D> {
    fn readiness(&mut self, _wake: Wake) -> Readiness {
        Readiness::Fd(self.file.as_raw_fd())
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let header_len = if self.vnet { VNET_HEADER_LEN } else { 0 };
        let read = loop {
            match self.file.read(&mut buffer[READ_HEADROOM - header_len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && self.unreadable < UNREADABLE_MAX => {
                    self.unreadable += 1;
                    return Err(ReceiveError::Malformed);
                }
                Err(error) => return Err(ReceiveError::Gone(error)),
                Ok(read) => break read,
            }
        };
        self.unreadable = 0;
        let (headroom, packet) = buffer.split_at(READ_HEADROOM);
        let packet = &packet[..read.saturating_sub(header_len)];
        match headroom.last_chunk() {
            Some(vnet) if self.vnet => Ok(Some(SuperPacket::parse(vnet, packet)?)),
            _ => Ok(Some(SuperPacket::plain(packet)?)),
        }
    }
}

/// Writes the packets of a [`LinuxTun`].
#[derive(Debug)]
struct LinuxSender<D = File> {
    file: Arc<D>,
    vnet: bool,
    coalescer: Coalescer,
    /// Where a short packet is put together with its header.
    copy: Box<[u8; VNET_HEADER_LEN + COPIED_MAX]>,
    /// Coalesced writes that were refused since one was not.
    tcp_refused: u32,
    udp_refused: u32,
}

impl<D> LinuxSender<D> {
    fn new(file: Arc<D>, vnet: bool, udp: bool) -> Self {
        let (coalescer, copy) = (Coalescer::new(vnet, vnet && udp), Box::new([0; _]));
        Self { file, vnet, coalescer, copy, tcp_refused: 0, udp_refused: 0 }
    }
}

impl<D: Descriptor> TunSender for LinuxSender<D> {
    fn send(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        let mut refused = 0;
        let mut rest = packets;
        let (file, copy) = (&*self.file, &mut *self.copy);
        while !rest.is_empty() {
            let taken = self.coalescer.coalesce(buffers, rest);
            for group in self.coalescer.groups(buffers, &rest[..taken]) {
                if !self.vnet {
                    refused += write_singly(file, &[], &group, copy);
                } else if group.count() == 1 {
                    refused += write_singly(file, &[0; VNET_HEADER_LEN], &group, copy);
                } else {
                    let in_a_row = if group.is_tcp() { &mut self.tcp_refused } else { &mut self.udp_refused };
                    match write_together(file, &group) {
                        Ok(()) => *in_a_row = 0,
                        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                            *in_a_row += 1;
                            refused += write_singly(file, &[0; VNET_HEADER_LEN], &group, copy);
                        }
                        Err(_) => refused += group.count(),
                    }
                }
            }
            if self.tcp_refused >= REFUSED_MAX {
                self.coalescer.stop_tcp();
            }
            if self.udp_refused >= REFUSED_MAX {
                self.coalescer.stop_udp();
            }
            rest = &rest[taken..];
        }
        refused
    }
}

fn write_together(file: &impl Descriptor, group: &Group<'_>) -> io::Result<()> {
    let mut header = [0; GROUP_HEADER_MAX];
    let header_len = group.write_header(&mut header);
    let mut parts = [IoSlice::new(&[]); GROUP_MAX + 1];
    parts[0] = IoSlice::new(&header[..header_len]);
    for (part, payload) in parts[1..].iter_mut().zip(group.payloads()) {
        *part = IoSlice::new(payload);
    }
    write(file, &parts[..=group.count()])
}

/// Writes each packet of `group` by itself, short ones by way of `copy`, and returns how many were refused.
fn write_singly(
    file: &impl Descriptor,
    vnet: &[u8],
    group: &Group<'_>,
    copy: &mut [u8; VNET_HEADER_LEN + COPIED_MAX],
) -> usize {
    let mut write_one = |packet: &[u8]| {
        if packet.len() > COPIED_MAX {
            return write(file, &[IoSlice::new(vnet), IoSlice::new(packet)]);
        }
        let copy = &mut copy[..vnet.len() + packet.len()];
        copy[..vnet.len()].copy_from_slice(vnet);
        copy[vnet.len()..].copy_from_slice(packet);
        write(file, &[IoSlice::new(copy)])
    };
    group.packets().filter(|packet| write_one(packet).is_err()).count()
}

fn write(file: &impl Descriptor, parts: &[IoSlice<'_>]) -> io::Result<()> {
    loop {
        match file.write(parts) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod faults;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, valid) in [
            ("wg0", true),
            ("wg%d", true),
            ("a23456789012345", true),
            ("a234567890123456", false),
            ("", false),
            (".", false),
            ("..", false),
            ("a/b", false),
            ("a b", false),
            ("a:b", false),
            ("a\0b", false),
            ("wg%s", false),
            ("wg%d%d", false),
            ("wg%", false),
        ] {
            assert_eq!(check_name(name).is_ok(), valid, "{name:?}");
        }
    }
}
