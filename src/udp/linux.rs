//! Outer datagrams by the Linux kernel: whole trains in one system call, both ways.
//!
//! # Receiving
//! `recvmmsg` fills several buffers at once, and with UDP_GRO each may hold a run of equal-sized
//! datagrams of one sender. The sockets take turns in being asked first, so a flood on one does not starve
//! another; nor does one that fails. But a spare that was connected a moment ago waits for the pair
//! ([`super::spare`]), which keeps the order of what its peer sends. Where datagrams come alone one is asked for, and the
//! system tells whether there is another one ([`Lone`]).
//!
//! | what `recvmmsg` gives | meaning | next |
//! |---|---|---|
//! | EAGAIN | nothing is there | the family is not asked again before it is ready |
//! | any other errno (EINTR, ECONNREFUSED, ENOMEM) | a signal, an ICMP error for something sent, no memory | again, [`RETRIES_MAX`] times; then it is the socket's failure, told if the other family has nothing either |
//! | a message that is empty, truncated or without a sender | of no use | passed over |
//! | no UDP_GRO beside it | a kernel before 5.0, or one datagram | it is one datagram |
//!
//! # Sending
//! A train goes out as one message with UDP_SEGMENT where that works, and as single datagrams where
//! it does not; consecutive messages of one family share a `sendmmsg`. The kernel takes messages in
//! order and says only for the first of a call why it refused it, so the loop is: offer everything
//! from the cursor on, move the cursor past what was taken, decide about the one that was not. What goes to one
//! destination often leaves by a socket that is connected to it ([`super::connections`]).
//!
//! What a refusal leads to:
//!
//! | errno | meaning | next |
//! |---|---|---|
//! | EIO, ENOPROTOOPT, EOPNOTSUPP, with segments | the route or the kernel cannot segment | segmentation off for this socket, again |
//! | EMSGSIZE, with segments | a segment exceeds the path's MTU | singly (the kernel fragments) |
//! | any but those of the last line but one, by a connected socket | its route or its source has gone | the socket is not used any more, again |
//! | EINVAL | the source is not ours any more, or the segments displease | without source, then singly, then both |
//! | ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, ENODEV, ENXIO, with a source | no way from that source | without it |
//! | ECONNREFUSED, EINTR | not about this datagram | again, [`RETRIES_MAX`] times |
//! | EAGAIN, ENOBUFS, ENOMEM, EPERM, EMSGSIZE | no room, or a firewall's verdict on this one | this message is lost |
//! | any other | nothing can be sent there | the rest of the train is lost |
//!
//! # Invariants
//! - No loop without end: each turn sends something, loses something, turns segmentation off once for
//!   ever, goes to a later [`Manner`], or uses up a retry.
//! - Nothing is allocated after a receiver or a sender is made.
//! - Datagrams of one call leave in the order given.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::connections::{Connections, Destination};
use super::filter::Mac1Filter;
use super::socket::{FamilySocket, SOCKET_BUFFER_LEN, SPARES, SocketGroup};
use super::spare::Spare;
use super::{
    DATAGRAM_V4_MAX, DATAGRAM_V6_MAX, Readiness, Received, SEGMENTS_MAX, Sent, Source, Transmit, Udp, UdpReceiver,
    UdpSender, UdpSocket, Wake,
};
use crate::packet::{Buffers, Lone};
use crate::sys::cmsg::Outbound;
use crate::sys::mmsg::{Datagrams, ReceiveArray, ReceiveMany, SendArray, SendMany};
use crate::sys::socket::Kernel;

/// Messages in one `recvmmsg`: more than any worker has buffers for.
const RECEIVE_BATCH_MAX: usize = 64;

/// Messages in one `sendmmsg`: a whole train sent singly.
const SEND_BATCH_MAX: usize = 64;

/// How often one call is repeated for reasons that lie elsewhere: a signal, or an ICMP error that
/// came back for an earlier datagram. Each repetition consumes its reason, so more than a few mean
/// that something is wrong, and the datagram counts as lost.
const RETRIES_MAX: usize = 16;

/// Messages in a whole receive buffer at most: the kernel charges at least 512 bytes for each. So many useless ones (empty,
/// or too large for a buffer) are passed over in one `receive`; what comes after them arrived during the call, so it is
/// announced by readiness again.
const BUFFERED_MAX: usize = 2 * SOCKET_BUFFER_LEN as usize / 512;

/// Binds sockets of the Linux kernel, in the network namespace of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinuxUdp;

impl Udp for LinuxUdp {
    fn bind(&self, port: u16, fwmark: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        Ok(LinuxSocket::new(SocketGroup::bind(port, fwmark, receivers, &Kernel)?))
    }
}

/// [`LinuxUdp`], where the kernel drops handshake messages with a wrong mac1 [WP 5.4.4] before they take room in a
/// socket: by a program of extended BPF that checks it. A flood of them then costs about as much as one that hits a
/// closed port. The device does the same without it, only later. Each device needs one of its own.
#[derive(Debug)]
pub struct FilteredUdp(Mac1Filter);

impl FilteredUdp {
    /// Loads the program: to be done before the process gives up its privileges.
    ///
    /// # Errors
    /// What bpf(2) says: EPERM without CAP_BPF (CAP_SYS_ADMIN before Linux 5.8), ENOSYS or EINVAL where the kernel has no
    /// such programs (before 5.5). `Unsupported` where it does not compile them to machine code, and on big-endian
    /// machines.
    pub fn new() -> io::Result<Self> {
        Mac1Filter::load().map(Self)
    }
}

impl Udp for FilteredUdp {
    fn bind(&self, port: u16, fwmark: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        let group = SocketGroup::bind(port, fwmark, receivers, &Kernel)?;
        for socket in group.sockets() {
            if let Err(error) = self.0.attach(socket.fd()) {
                tracing::debug!(%error, "a socket goes without the filter for mac1");
            }
        }
        Ok(LinuxSocket::new(group))
    }

    fn expect_mac1(&self, mac1_key: Option<&[u8; 32]>) {
        self.0.expect_mac1(mac1_key);
    }

    fn dropped_by_mac1(&self) -> u64 {
        self.0.dropped()
    }
}

/// One bound port; its receivers and senders keep the port open, too.
#[derive(Debug)]
struct LinuxSocket {
    group: Arc<SocketGroup>,
    taken: AtomicBool,
    /// How many senders were made.
    senders: AtomicUsize,
}

impl LinuxSocket {
    fn new(group: SocketGroup) -> Arc<Self> {
        Arc::new(Self { group: Arc::new(group), taken: AtomicBool::new(false), senders: AtomicUsize::new(0) })
    }
}

impl UdpSocket for LinuxSocket {
    fn port(&self) -> u16 {
        self.group.port
    }

    fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        self.group.set_fwmark(fwmark)
    }

    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>> {
        if self.taken.swap(true, Ordering::Relaxed) {
            return Err(io::Error::other("the receivers were taken already"));
        }
        let members = (0..self.group.pairs.len()).map(|place| Member { group: Arc::clone(&self.group), place });
        Ok(members.map(|member| Box::new(LinuxReceiver::new(member)) as Box<dyn UdpReceiver>).collect())
    }

    /// Senders take the pairs of sockets in turns: what two threads send is then accounted to two sockets, and neither
    /// waits for the other's memory or fills the other's buffer. The first one has the spares.
    fn sender(&self) -> io::Result<Box<dyn UdpSender>> {
        let number = self.senders.fetch_add(1, Ordering::Relaxed);
        let member = Member { group: Arc::clone(&self.group), place: number % self.group.pairs.len() };
        let spares = if number == 0 { self.group.spares.len() } else { 0 };
        Ok(Box::new(LinuxSender::with(member, spares, SendArray::new(SEND_BATCH_MAX))))
    }
}

/// One pair of sockets, which keeps the others open: a group that lost one would be steered wrongly.
#[derive(Debug)]
struct Member {
    group: Arc<SocketGroup>,
    place: usize,
}

impl Member {
    fn family(&self, ipv6: bool) -> Option<&FamilySocket> {
        self.group.pairs[self.place].family(ipv6)
    }

    /// The one at `place` of [`Self::sources`].
    fn source(&self, place: usize) -> (&FamilySocket, Option<&Spare>) {
        let mut pair = self.group.pairs[self.place].sockets();
        match pair.nth(place) {
            Some(socket) => (socket, None),
            None => {
                let spare = &self.group.spares[place - self.in_pair()];
                (&spare.socket, Some(spare))
            }
        }
    }

    /// How many sockets its pair has.
    fn in_pair(&self) -> usize {
        self.group.pairs[self.place].sockets().count()
    }

    /// What there is to receive from: the pair, and the spares that may be connected.
    fn sources(&self) -> impl Iterator<Item = (&FamilySocket, Option<&Spare>)> {
        let pair = self.group.pairs[self.place].sockets().map(|socket| (socket, None));
        pair.chain(self.group.spares.iter().map(|spare| (&spare.socket, Some(spare))))
    }
}

/// Some of a receiver's sockets: a bit for each.
type Places = u32;

// A pair, and the spares of both families.
const _: () = assert!(2 + 2 * SPARES <= Places::BITS as usize);

/// Takes datagrams in, from its pair and from the spares.
struct LinuxReceiver<R = ReceiveArray> {
    member: Member,
    array: R,
    /// All sockets.
    all: Places,
    /// Those that may have something: not one that has said that it would block, or that gave a lone datagram. Where none
    /// may, whoever asks all the same knows something, and all are asked.
    ready: Places,
    /// Those that are spares, have something, and wait for the pair.
    waits: Places,
    /// Which is asked first; one later when there is more than was received.
    first: u32,
    /// What was received since one began to wait, in messages and calls.
    waited: usize,
    /// Where a datagram comes alone no more are asked for.
    lone: Lone,
}

impl LinuxReceiver {
    fn new(member: Member) -> Self {
        Self::with(member, ReceiveArray::new(RECEIVE_BATCH_MAX))
    }
}

impl<R> LinuxReceiver<R> {
    fn with(member: Member, array: R) -> Self {
        let all = member.sources().enumerate().fold(0, |all, (place, _)| all | 1 << place);
        Self { member, array, all, ready: all, waits: 0, first: 0, waited: 0, lone: Lone::default() }
    }

    /// Which of `places` is asked next: in turns, and those that wait after the others.
    fn next_of(&self, places: Places) -> Option<usize> {
        let go_first = places & !self.waits;
        let places = if go_first != 0 { go_first } else { places };
        let in_turn = places & !0 << self.first;
        let places = if in_turn != 0 { in_turn } else { places };
        (places != 0).then(|| places.trailing_zeros() as usize)
    }

    /// Finds out which spares have to wait for the pair. True where one has.
    fn put_in_order(&mut self) -> bool {
        let mut places = self.ready & !self.pair();
        self.waits = 0;
        while places != 0 {
            let place = places.trailing_zeros();
            places &= places - 1;
            let (socket, Some(spare)) = self.member.source(place as usize) else { continue };
            if !spare.is_pair_first() {
                continue;
            }
            // Once it has something, all that is to come before that is in the pair.
            if spare.has_something() {
                let pair = self.member.sources().position(|(first, _)| first.is_ipv6() == socket.is_ipv6());
                self.ready |= 1 << pair.expect("there is no spare without a pair");
                self.waits |= 1 << place;
            } else {
                self.ready &= !(1 << place);
            }
        }
        self.waits != 0
    }

    /// The sockets that are not spares.
    fn pair(&self) -> Places {
        (1 << self.member.in_pair()) - 1
    }
}

impl<R: ReceiveMany> LinuxReceiver<R> {
    /// Receives one datagram from the only socket that may have any.
    fn receive_lone(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool> {
        let (socket, _) = self.member.source(self.ready.trailing_zeros() as usize);
        let (_, mut has_more) = receive_from(socket, &mut self.array, buffers, 0, 1, received)?;
        if matches!(received[..], [only] if self.lone.leaves(only.len as usize)) {
            has_more = false;
        } else {
            self.lone.took(received.len());
            if !has_more {
                self.lone.ended();
            }
        }
        if !has_more {
            self.ready = 0;
        }
        Ok(has_more)
    }
}

impl<R: ReceiveMany> UdpReceiver for LinuxReceiver<R> {
    fn readiness(&mut self, _wake: Wake) -> Vec<Readiness> {
        self.member.sources().map(|(socket, _)| Readiness::Fd(socket.fd().as_raw_fd())).collect()
    }

    fn ready(&mut self, source: usize) {
        self.ready |= 1 << source;
    }

    fn receive(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool> {
        received.clear();
        if self.ready == 0 {
            self.ready = self.all;
        }
        let lone = !self.put_in_order() && self.lone.is_expected();
        if lone && self.ready.is_power_of_two() {
            return self.receive_lone(buffers, received);
        }
        let most = if lone { 1 } else { RECEIVE_BATCH_MAX };
        let mut first_free = 0;
        let mut failed = None;
        // For each family, whether its pair was asked and has no more.
        let mut is_empty = [false; 2];
        let mut left = false;
        let mut places = self.ready;
        while let Some(place) = self.next_of(places) {
            places &= !(1 << place);
            let (socket, spare) = self.member.source(place);
            let is_empty = &mut is_empty[usize::from(socket.is_ipv6())];
            if let Some(spare) = spare.filter(|spare| spare.is_pair_first()) {
                // A flood on the pair holds a peer up once, by what the pair's buffer can hold.
                if self.waits & 1 << place == 0 || !(*is_empty || self.waited > BUFFERED_MAX) {
                    self.waited += 1 + received.len();
                    continue;
                }
                self.waited = 0;
                spare.settle();
            }
            let before = received.len();
            match receive_from(socket, &mut self.array, buffers, first_free, most, received) {
                Ok((next_free, has_more)) => {
                    first_free = next_free;
                    *is_empty |= spare.is_none() && !has_more;
                    let leaves = matches!(received[before..], [only] if lone && self.lone.leaves(only.len as usize));
                    left |= leaves;
                    if leaves || !has_more {
                        self.ready &= !(1 << place);
                    }
                }
                // The other sockets' datagrams count all the same, and come first.
                Err(error) => {
                    failed = Some(error);
                    *is_empty |= spare.is_none();
                }
            }
        }
        let has_more = self.ready != 0;
        if has_more {
            self.first = (self.first + 1) % self.all.count_ones();
        }
        if !left {
            self.lone.took(received.len());
            if !has_more {
                self.lone.ended();
            }
        }
        match failed {
            Some(error) if received.is_empty() => Err(error),
            _ => Ok(has_more),
        }
    }
}

/// One thread's way to send.
struct LinuxSender<S = SendArray> {
    member: Member,
    connections: Connections,
    array: S,
}

impl<S> LinuxSender<S> {
    /// Sends by the pair of `member`, and by as many of its group's spares.
    fn with(member: Member, spares: usize, array: S) -> Self {
        Self { member, connections: Connections::new(spares), array }
    }
}

impl<S: SendMany> LinuxSender<S> {
    /// Sends one datagram by a socket that is connected to its receiver, if there is nothing to tell the kernel but its
    /// bytes. False if it was not sent.
    fn send_plainly(&mut self, transmit: &Transmit<'_>) -> bool {
        let group = &*self.member.group;
        let destination = destination_of(transmit).filter(|_| transmit.tos == 0);
        let place = destination.and_then(|destination| self.connections.connected(group, destination));
        place.is_some_and(|place| self.array.send_one(group.spares[place].socket.fd(), transmit.data).is_ok())
    }
}

impl<S: SendMany> UdpSender for LinuxSender<S> {
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        assert_eq!(transmits.len(), sent.len());
        sent.fill(Sent::default());
        let lone = matches!(transmits, [transmit] if transmit.data.len() <= transmit.segment);
        if lone && self.send_plainly(&transmits[0]) {
            sent[0].bytes = transmits[0].data.len();
            return;
        }
        let group = &*self.member.group;
        let mut cursor = Cursor { transmits, index: 0, offset: 0, manner: Manner::Full };
        cursor.skip_finished();
        let mut retries = 0;
        while let Some(transmit) = cursor.transmit() {
            let destination = destination_of(transmit).filter(|_| cursor.manner.has_source());
            let spare = destination.and_then(|destination| self.connections.find(group, destination, lone));
            let pair = self.member.family(transmit.to.is_ipv6());
            let Some(socket) = spare.map(|place| &group.spares[place].socket).or(pair) else {
                cursor.lose_rest(sent);
                continue;
            };
            let segmentation = socket.segmentation();
            let taken = self.array.send(socket.fd(), cursor.messages(spare.is_some(), segmentation));
            match taken.map_err(|error| error.raw_os_error().unwrap_or_default()) {
                Ok(taken) => {
                    debug_assert_ne!(taken, 0, "there was a message to send");
                    (0..taken).for_each(|_| cursor.count_sent(segmentation, sent));
                    retries = 0;
                }
                Err(libc::EINTR | libc::ECONNREFUSED) if retries < RETRIES_MAX => retries += 1,
                Err(errno) => {
                    retries = 0;
                    let segments = cursor.message(segmentation).is_some_and(|message| message.is_train());
                    let source = source_of(transmit).is_some();
                    match after_refusal(errno, cursor.manner, source, segments, spare.is_some()) {
                        Verdict::SegmentationOff => socket.disable_segmentation(),
                        Verdict::EndConnection => spare.into_iter().for_each(|place| self.connections.end(place)),
                        Verdict::Again(manner) => cursor.manner = manner,
                        Verdict::LoseMessage => cursor.lose_message(segmentation, sent),
                        Verdict::LoseRest => cursor.lose_rest(sent),
                    }
                }
            }
        }
    }
}

/// Receives `most` messages at a time from one socket into the buffers from `first_free` on; returns the first that is free
/// afterwards, and whether the socket may have more: fewer messages than were asked for mean that it
/// would have blocked.
fn receive_from(
    socket: &FamilySocket,
    array: &mut impl ReceiveMany,
    buffers: &mut Buffers,
    first_free: usize,
    most: usize,
    received: &mut Vec<Received>,
) -> io::Result<(usize, bool)> {
    let mut useless = 0;
    let mut retries = 0;
    loop {
        let room = received.capacity() - received.len();
        let buffers = &mut buffers.all()[first_free..];
        let count = buffers.len().min(room).min(most);
        if count == 0 {
            return Ok((first_free, true));
        }
        let taken = match array.receive(socket.fd(), &mut buffers[..count]) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((first_free, false)),
            // A signal, the ICMP answer to something sent earlier, or a passing want of memory.
            Err(_) if retries < RETRIES_MAX => {
                retries += 1;
                continue;
            }
            Err(error) => return Err(error),
        };
        let before = received.len();
        for index in 0..taken {
            let message = array.message(index);
            let Some(from) = message.from.filter(|_| message.len > 0 && !message.truncated) else {
                continue;
            };
            let len = message.len as u32;
            received.push(Received {
                buffer: (first_free + index) as u32,
                len,
                segment: message.control.segment.map_or(len, |segment| segment.min(len)),
                from,
                source: message.control.local.map(|(ip, ifindex)| Source { ip, ifindex }),
                ecn: message.control.tos & 0b11,
            });
        }
        if received.len() > before {
            return Ok((first_free + taken, taken == count));
        }
        // All of them useless: their buffers are free again, and there may be more behind them.
        useless += taken;
        if useless > BUFFERED_MAX {
            return Ok((first_free, true));
        }
    }
}

/// How a train is being sent; each later manner gives up more, and a refusal only ever leads on to a
/// later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    /// From its source and in one piece.
    Full,
    /// Without its source.
    WithoutSource,
    /// Singly (and from its source again: only one of the two is to blame, if this succeeds).
    Singly,
    /// Singly and without its source.
    SinglyWithoutSource,
}

impl Manner {
    fn has_source(self) -> bool {
        matches!(self, Self::Full | Self::Singly)
    }

    fn has_offload(self) -> bool {
        matches!(self, Self::Full | Self::WithoutSource)
    }

    fn without_source(self) -> Self {
        if self.has_offload() { Self::WithoutSource } else { Self::SinglyWithoutSource }
    }

    fn singly(self) -> Self {
        if self.has_source() { Self::Singly } else { Self::SinglyWithoutSource }
    }
}

/// What to do about a message that the kernel refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Try again, and never again with UDP_SEGMENT on this socket.
    SegmentationOff,
    /// Try again by a socket that is not connected.
    EndConnection,
    /// Try again in another manner, later than the one before.
    Again(Manner),
    /// Go on with the next message.
    LoseMessage,
    /// Go on with the next train.
    LoseRest,
}

/// Decides by the table at the head of this file. `source`: the train has one to leave from;
/// `segments`: the refused message was several datagrams in one piece; `connected`: so is the socket.
fn after_refusal(errno: i32, manner: Manner, source: bool, segments: bool, connected: bool) -> Verdict {
    match errno {
        libc::EIO | libc::ENOPROTOOPT | libc::EOPNOTSUPP if segments => Verdict::SegmentationOff,
        libc::EMSGSIZE if segments => Verdict::Again(manner.singly()),
        libc::EAGAIN
        | libc::ENOBUFS
        | libc::ENOMEM
        | libc::EPERM
        | libc::EMSGSIZE
        | libc::EINTR
        | libc::ECONNREFUSED => Verdict::LoseMessage,
        _ if connected => Verdict::EndConnection,
        libc::EINVAL => match manner {
            Manner::Full if source => Verdict::Again(Manner::WithoutSource),
            Manner::Full | Manner::WithoutSource if segments => Verdict::Again(Manner::Singly),
            Manner::Singly if source => Verdict::Again(Manner::SinglyWithoutSource),
            _ => Verdict::LoseRest,
        },
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENXIO
            if source && manner.has_source() =>
        {
            Verdict::Again(manner.without_source())
        }
        _ => Verdict::LoseRest,
    }
}

/// What is handed to the kernel in one piece: some or all of a train.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    to: SocketAddr,
    source: Option<Source>,
    tos: u8,
    segment: usize,
    data: &'a [u8],
}

impl<'a> Message<'a> {
    fn is_train(&self) -> bool {
        self.data.len() > self.segment
    }

    /// For a socket that is connected to the receiver, or for one that must be told whom and from where.
    fn datagrams(&self, connected: bool) -> Datagrams<'a> {
        // A message is at most DATAGRAM_V6_MAX bytes, and so is a segment of one that is a train.
        let segment = self.is_train().then_some(self.segment as u16);
        let source = self.source.filter(|_| !connected);
        let local = source.map(|source| (source.ip, outgoing_interface(source)));
        let to = (!connected).then_some(self.to);
        Datagrams { to, ipv6: self.to.is_ipv6(), control: Outbound { local, tos: self.tos, segment }, data: self.data }
    }
}

/// The interface that a datagram must leave by.
///
/// Differs from wireguard-go, which binds the datagram to the interface that the peer was heard on:
/// like the kernel module, adit asks only for the address and lets the routing decide, because bound
/// to an interface whose route has moved elsewhere a datagram goes into the void without an error.
/// A link-local address means nothing without its link. [KERNEL-STICKY]
fn outgoing_interface(source: Source) -> u32 {
    match source.ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => source.ifindex,
        _ => 0,
    }
}

/// Where a train is to leave from; an address of the other family cannot be meant.
fn source_of(transmit: &Transmit<'_>) -> Option<Source> {
    transmit.source.filter(|source| source.ip.is_ipv6() == transmit.to.is_ipv6())
}

/// What a socket can be connected to for this train: where it goes, and the address that it is to leave from. Addresses
/// that mean something on one link only are left out, as a connection would be bound to that link.
fn destination_of(transmit: &Transmit<'_>) -> Option<Destination> {
    let source = source_of(transmit).filter(|source| outgoing_interface(*source) == 0)?;
    let is_of_one_link = matches!(transmit.to, SocketAddr::V6(to) if to.scope_id() != 0);
    (!is_of_one_link).then_some(Destination { to: transmit.to, source: source.ip })
}

/// Where in a list of trains the sending is.
#[derive(Debug, Clone)]
struct Cursor<'a> {
    transmits: &'a [Transmit<'a>],
    /// The train; never a finished one.
    index: usize,
    /// What of it has been dealt with, in bytes.
    offset: usize,
    manner: Manner,
}

impl<'a> Cursor<'a> {
    fn transmit(&self) -> Option<&'a Transmit<'a>> {
        self.transmits.get(self.index)
    }

    /// The next message; `segmentation`: the socket has not refused it.
    fn message(&self, segmentation: bool) -> Option<Message<'a>> {
        let transmit = self.transmit()?;
        assert_ne!(transmit.segment, 0, "a train is cut into datagrams of at least one byte");
        let rest = &transmit.data[self.offset..];
        let segments = if segmentation && transmit.offload && self.manner.has_offload() {
            let bytes_max = if transmit.to.is_ipv6() { DATAGRAM_V6_MAX } else { DATAGRAM_V4_MAX };
            (bytes_max / transmit.segment).clamp(1, SEGMENTS_MAX)
        } else {
            1
        };
        Some(Message {
            to: transmit.to,
            source: source_of(transmit).filter(|_| self.manner.has_source()),
            tos: transmit.tos,
            segment: transmit.segment,
            data: &rest[..rest.len().min(segments * transmit.segment)],
        })
    }

    /// The messages from here to the first train that cannot leave by the same socket: one of the other family or, by a
    /// connected one, to another destination.
    fn messages(&self, connected: bool, segmentation: bool) -> impl Iterator<Item = Datagrams<'a>> + use<'a> {
        let mut cursor = self.clone();
        let first = self.message(segmentation);
        std::iter::from_fn(move || {
            let (first, message) = (first?, cursor.message(segmentation)?);
            let fits = if connected {
                (message.to, message.source) == (first.to, first.source)
            } else {
                message.to.is_ipv6() == first.to.is_ipv6()
            };
            cursor.advance(message.data.len());
            fits.then(|| message.datagrams(connected))
        })
    }

    fn advance(&mut self, bytes: usize) {
        self.offset += bytes;
        self.skip_finished();
    }

    fn skip_finished(&mut self) {
        while let Some(finished) = self.transmit().filter(|transmit| transmit.data.len() <= self.offset) {
            self.index += 1;
            self.offset = 0;
            // What one train to a receiver ran into, the next one would, too.
            let same = |next: &Transmit<'_>| next.to == finished.to && next.source == finished.source;
            if !self.transmit().is_some_and(same) {
                self.manner = Manner::Full;
            }
        }
    }

    /// The next message was sent.
    fn count_sent(&mut self, segmentation: bool, sent: &mut [Sent]) {
        let (Some(message), Some(transmit)) = (self.message(segmentation), self.transmit()) else { return };
        let sent = &mut sent[self.index];
        sent.bytes += message.data.len();
        sent.source_lost |= source_of(transmit).is_some() && !self.manner.has_source();
        sent.offload_refused |=
            transmit.offload && !self.manner.has_offload() && transmit.data.len() > transmit.segment;
        self.advance(message.data.len());
    }

    /// The next message will not be sent.
    fn lose_message(&mut self, segmentation: bool, sent: &mut [Sent]) {
        let Some(message) = self.message(segmentation) else { return };
        sent[self.index].refused += message.data.len().div_ceil(message.segment);
        self.advance(message.data.len());
    }

    /// Nothing more of this train will be sent.
    fn lose_rest(&mut self, sent: &mut [Sent]) {
        let Some(transmit) = self.transmit() else { return };
        let rest = transmit.data.len() - self.offset;
        sent[self.index].refused += rest.div_ceil(transmit.segment);
        self.manner = Manner::Full;
        self.advance(rest);
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
