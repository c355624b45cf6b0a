//! Following an interface through rtnetlink(7): up, down, MTU, deletion, and from one network namespace to another.
//!
//! Two sockets, both opened in the namespace of birth: one listens, the other asks. The listener hears of all namespaces
//! that have an id in this one (NETLINK_LISTEN_ALL_NSID), and moving an interface away gives its new namespace such an
//! id; so the interface can be followed without entering that namespace, which would take CAP_SYS_ADMIN. Messages name
//! an interface by namespace id and index. When the one we know is deleted, it may only have moved: the TUN's descriptor
//! still works then, and tells the interface's name and namespace, from which the rest is asked anew.
//!
//! The parser knows the few messages and attributes that this takes. A general netlink crate would bring several thousand
//! lines for them.
//!
//! Invariants:
//! - every change of the link state is told, in order; changes of routes and addresses are told once for many;
//! - only the kernel is listened to;
//! - lost messages lead to asking anew, not to a state that is wrong for good.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{Readiness, TunEvent, TunEvents, Wake};
use crate::sys;
use crate::sys::netlink::Netlink;

/// Bytes that one netlink datagram can have here: the kernel makes none larger than 32 KiB for a reader who offers that
/// (NLMSG_GOODSIZE for lists, less for a single notification).
const DATAGRAM_MAX: usize = 32 * 1024;

/// Messages after which a change of routes is told although more are waiting: a router that is fed a whole table would
/// otherwise never come to the end.
const ROUTES_DELAY_MAX: usize = 256;

/// How often a state is asked for again that changed while it was asked for.
const LOCATE_ATTEMPTS: usize = 3;

// linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/net_namespace.h
const HEADER_LEN: usize = 16;
const LINK_LEN: usize = 16;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NEW_NETNSID: u16 = 45;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_NEW_IFINDEX: u16 = 49;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFF_UP: u32 = 1;
/// RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// An interface as rtnetlink names it, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link {
    /// The id of the namespace where it is, if that is not the one of birth.
    namespace: Option<i32>,
    index: i32,
    up: bool,
    mtu: usize,
}

/// The [`TunEvents`] of a TUN interface.
#[derive(Debug)]
pub(super) struct LinkEvents {
    tun: Arc<File>,
    /// Device and inode of the namespace in which the sockets were opened.
    home: Option<(u64, u64)>,
    listener: Netlink,
    query: Query,
    buffer: Box<[u8]>,
    link: Link,
    deleted: bool,
    routes: bool,
    /// What was told already.
    told_index: u32,
    told_up: Option<bool>,
    told_mtu: Option<usize>,
    told_deleted: bool,
}

impl LinkEvents {
    /// Begins to follow the interface behind `tun`. Without CAP_NET_BROADCAST it is followed in its present namespace
    /// only.
    pub(super) fn open(tun: Arc<File>) -> io::Result<Self> {
        let listener = Netlink::open(GROUPS)?;
        if let Err(error) = listener.listen_to_all_namespaces() {
            tracing::debug!(%error, "the interface cannot be followed into other network namespaces");
        }
        let home = std::fs::metadata("/proc/thread-self/ns/net").ok().map(|file| (file.dev(), file.ino()));
        let query = Query::open()?;
        let link = locate(&tun, home, &query)?;
        Ok(Self {
            tun,
            home,
            listener,
            query,
            buffer: vec![0; DATAGRAM_MAX].into_boxed_slice(),
            link,
            deleted: false,
            routes: false,
            told_index: 0,
            told_up: None,
            told_mtu: None,
            told_deleted: false,
        })
    }

    pub(super) fn mtu(&self) -> usize {
        self.link.mtu
    }

    /// The interface's index, if it is in the namespace where the sockets were opened.
    pub(super) fn index(&self) -> Option<u32> {
        self.link.namespace.is_none().then_some(self.link.index.cast_unsigned())
    }

    /// What has changed since the last event, one thing at a time: index and MTU before the link state, so that whoever
    /// is told of a link that is up knows them.
    fn change(&mut self) -> Option<TunEvent> {
        if self.deleted {
            return (!std::mem::replace(&mut self.told_deleted, true)).then_some(TunEvent::Deleted);
        }
        let index = if self.link.namespace.is_none() { self.link.index.cast_unsigned() } else { 0 };
        if std::mem::replace(&mut self.told_index, index) != index {
            return Some(TunEvent::Index(index));
        }
        if self.told_mtu != Some(self.link.mtu) {
            self.told_mtu = Some(self.link.mtu);
            return Some(TunEvent::Mtu(self.link.mtu));
        }
        if self.told_up != Some(self.link.up) {
            self.told_up = Some(self.link.up);
            return Some(if self.link.up { TunEvent::Up } else { TunEvent::Down });
        }
        None
    }

    /// Asks for the whole state again. What the listener heard until then is older than the answer and would undo it
    /// for a moment; so it is thrown away, and asking is repeated until nothing came in between.
    fn relocate(&mut self) -> io::Result<()> {
        for _ in 0..LOCATE_ATTEMPTS {
            match locate(&self.tun, self.home, &self.query) {
                Ok(link) => self.link = link,
                Err(_) if sys::tun::interface(self.tun.as_fd()).is_err() => {
                    self.deleted = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            let mut quiet = true;
            while self.listener.receive(&mut []).is_ok() {
                quiet = false;
            }
            if quiet {
                break;
            }
            self.routes = true;
        }
        Ok(())
    }

    fn handle(&mut self, kind: u16, body: &[u8], namespace: Option<i32>) {
        match kind {
            RTM_NEWLINK | RTM_DELLINK => {
                let Some((index, up)) = link_fields(body) else { return };
                if namespace != self.link.namespace || index != self.link.index {
                    return;
                }
                if kind == RTM_NEWLINK {
                    self.link.up = up;
                    if let Some(mtu) = attribute_u32(&body[LINK_LEN..], IFLA_MTU) {
                        self.link.mtu = mtu as usize;
                    }
                } else if let Err(error) = self.relocate() {
                    self.follow(body, &error);
                }
            }
            RTM_NEWADDR | RTM_DELADDR | RTM_NEWROUTE | RTM_DELROUTE if namespace.is_none() => self.routes = true,
            _ => {}
        }
    }

    /// The interface left its namespace, and asking where it is now failed (`reason`): the message that says so tells
    /// its new namespace and index, too. An interface is down after a move, and keeps its MTU.
    fn follow(&mut self, body: &[u8], reason: &io::Error) {
        let namespace = attribute_u32(&body[LINK_LEN..], IFLA_NEW_NETNSID).map(|id| id as i32);
        let index = attribute_u32(&body[LINK_LEN..], IFLA_NEW_IFINDEX).map(|index| index as i32);
        // The id is one of the namespace that it left, which means something to us only if that is ours.
        match (self.link.namespace, namespace) {
            (None, Some(namespace)) => {
                let index = index.unwrap_or(self.link.index);
                self.link = Link { namespace: Some(namespace), index, up: false, ..self.link };
            }
            _ => tracing::warn!(error = %reason, "lost sight of the interface in another network namespace"),
        }
    }
}

impl TunEvents for LinkEvents {
    fn readiness(&mut self, _wake: Wake) -> Readiness {
        Readiness::Fd(self.listener.as_fd().as_raw_fd())
    }

    fn next(&mut self) -> io::Result<Option<TunEvent>> {
        let mut messages = 0;
        loop {
            if let Some(event) = self.change() {
                return Ok(Some(event));
            }
            if self.deleted {
                return Ok(None);
            }
            if self.routes && messages >= ROUTES_DELAY_MAX {
                break;
            }
            messages += 1;
            match self.listener.receive(&mut self.buffer) {
                Ok(datagram) => {
                    let buffer = std::mem::take(&mut self.buffer);
                    for (kind, body) in messages_of(&buffer[..datagram.len]) {
                        self.handle(kind, body, datagram.namespace);
                    }
                    self.buffer = buffer;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.routes = true;
                    self.relocate()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(std::mem::take(&mut self.routes).then_some(TunEvent::Routes))
    }
}

/// Finds the interface behind `tun`, wherever it is.
fn locate(tun: &File, home: Option<(u64, u64)>, query: &Query) -> io::Result<Link> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let namespace = match sys::tun::network_namespace(tun.as_fd()) {
            Ok(namespace) => query.namespace_id(namespace, home)?,
            // Linux before 5.2, or too few privileges: all that can be looked at is the namespace of birth.
            Err(_) => None,
        };
        let interface = sys::tun::interface(tun.as_fd())?;
        match query.link(namespace, &interface.name) {
            // Renamed or moved between the questions.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) && attempts < LOCATE_ATTEMPTS => {}
            result => return result,
        }
    }
}

/// A socket for questions. The kernel answers them within the call that asks.
#[derive(Debug)]
struct Query {
    socket: Netlink,
}

impl Query {
    fn open() -> io::Result<Self> {
        Ok(Self { socket: Netlink::open(0)? })
    }

    /// Asks, and passes each message of the answer to `take`.
    fn ask(&self, request: &Request, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        // What an earlier question that failed half-way left behind.
        while self.socket.receive(&mut buffer).is_ok() {}
        self.socket.send(&request.0)?;
        loop {
            let len = match self.socket.receive(&mut buffer) {
                // All that the kernel had to say was said.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?.len,
            };
            for (kind, body) in messages_of(&buffer[..len]) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => match i32::from_ne_bytes(*body.first_chunk().unwrap_or(&[0; 4])) {
                        0 => return Ok(()),
                        code => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    },
                    _ => take(kind, body),
                }
            }
        }
    }

    fn link(&self, namespace: Option<i32>, name: &str) -> io::Result<Link> {
        let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST, &[0; LINK_LEN]);
        request.attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        if let Some(namespace) = namespace {
            request.attribute(IFLA_TARGET_NETNSID, &namespace.to_ne_bytes());
        }
        let mut found = None;
        self.ask(&request, |kind, body| {
            if kind == RTM_NEWLINK
                && let Some((index, up)) = link_fields(body)
                && let Some(mtu) = attribute_u32(&body[LINK_LEN..], IFLA_MTU)
            {
                found = Some(Link { namespace, index, up, mtu: mtu as usize });
            }
        })?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// The id of `namespace` in the namespace of birth, given to it if it has none; `None` if it is that namespace.
    fn namespace_id(&self, namespace: OwnedFd, home: Option<(u64, u64)>) -> io::Result<Option<i32>> {
        let namespace = File::from(namespace);
        let metadata = namespace.metadata()?;
        if home == Some((metadata.dev(), metadata.ino())) {
            return Ok(None);
        }
        let fd = namespace.as_raw_fd().to_ne_bytes();
        let mut ask = Request::new(RTM_GETNSID, NLM_F_REQUEST, &[0; 4]);
        ask.attribute(NETNSA_FD, &fd);
        let mut give = Request::new(RTM_NEWNSID, NLM_F_REQUEST | NLM_F_ACK, &[0; 4]);
        give.attribute(NETNSA_FD, &fd);
        give.attribute(NETNSA_NSID, &(-1i32).to_ne_bytes());
        for _ in 0..2 {
            let mut id = None;
            self.ask(&ask, |kind, body| {
                if kind == RTM_NEWNSID
                    && let Some(attributes) = body.get(4..)
                {
                    id = attribute_u32(attributes, NETNSA_NSID).map(|id| id as i32);
                }
            })?;
            match id {
                Some(id) if id >= 0 => return Ok(Some(id)),
                _ => self.ask(&give, |_, _| {})?,
            }
        }
        Err(io::Error::other("the network namespace has no id here"))
    }
}

/// A netlink message under construction.
#[derive(Debug)]
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        let mut request = Self(bytes);
        request.append(body);
        request
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        self.append(&[&len.to_ne_bytes(), &kind.to_ne_bytes(), value].concat());
    }

    fn append(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The messages in a datagram: type and body.
fn messages_of(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_LEN] = datagram.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = datagram.get(HEADER_LEN..len)?;
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((u16::from_ne_bytes([k0, k1]), body))
    })
}

/// The value of the first attribute of this kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    // The upper two bits are flags.
    const KIND_MASK: u16 = 0x3fff;
    loop {
        let &[l0, l1, k0, k1] = attributes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([k0, k1]) & KIND_MASK == kind {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn attribute_u32(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute(attributes, kind)?.try_into().ok()?))
}

/// Index of an interface, and whether it is up, from an `ifinfomsg`. `None` for what other subsystems say about
/// interfaces, such as that one left a bridge.
fn link_fields(body: &[u8]) -> Option<(i32, bool)> {
    let header: &[u8; LINK_LEN] = body.first_chunk()?;
    let [family, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
    let up = u32::from_ne_bytes([f0, f1, f2, f3]) & IFF_UP != 0;
    (i32::from(family) == libc::AF_UNSPEC).then_some((i32::from_ne_bytes([i0, i1, i2, i3]), up))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_reads_back() {
        let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST, &[0; LINK_LEN]);
        request.attribute(IFLA_IFNAME, b"wg0\0");
        request.attribute(IFLA_MTU, &1420u32.to_ne_bytes());
        let two = [&request.0[..], &request.0].concat();
        let messages: Vec<_> = messages_of(&two).collect();
        assert_eq!(messages.len(), 2);
        let (kind, body) = messages[1];
        assert_eq!(kind, RTM_GETLINK);
        assert_eq!(attribute(&body[LINK_LEN..], IFLA_IFNAME), Some(&b"wg0\0"[..]));
        assert_eq!(attribute_u32(&body[LINK_LEN..], IFLA_MTU), Some(1420));
        assert_eq!(attribute_u32(&body[LINK_LEN..], IFLA_NEW_NETNSID), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), len: u8) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = len;
            }
            for (_, body) in messages_of(&bytes).take(100) {
                let _ = link_fields(body);
                let _ = attribute(body, 3);
            }
            let _ = attribute_u32(&bytes, 3);
        }
    }
}
