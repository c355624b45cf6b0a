//! What the kernel may answer, put between the Linux sockets and the real system calls: by a script, or by a seed.
//!
//! What is let through goes over the loopback interface, so that what arrives is seen. Unless a case says what it
//! loses, every datagram has to arrive, once and in order.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::tests::{End, V4, V6};
use super::*;
use crate::sys::cmsg::Inbound;
use crate::sys::mmsg::Message;
use crate::sys::socket::{Instruction, Options, SocketOption};

/// What the kernel says about one message: whether it is a train, and how many were asked about before it.
type Judge<'a> = dyn FnMut(&Datagrams<'_>, usize) -> Result<(), i32> + Send + 'a;

/// A `sendmmsg` that a judge stands before.
struct FaultySend<'a> {
    array: SendArray,
    judge: Box<Judge<'a>>,
    /// Most messages taken in one call.
    most: usize,
    asked: usize,
    calls: usize,
}

impl SendMany for FaultySend<'_> {
    fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Datagrams<'a>>,
    ) -> io::Result<usize> {
        self.calls += 1;
        let mut passed = Vec::new();
        for datagram in datagrams.take(SEND_BATCH_MAX.min(self.most)) {
            let verdict = (self.judge)(&datagram, self.asked);
            self.asked += 1;
            match verdict {
                Ok(()) => passed.push(datagram),
                Err(errno) if passed.is_empty() => return Err(io::Error::from_raw_os_error(errno)),
                // As the kernel: what went before counts, and the error is told when it is the first one's.
                Err(_) => break,
            }
        }
        let sent = self.array.send(socket, passed.iter().copied())?;
        assert_eq!(sent, passed.len(), "loopback takes everything");
        Ok(sent)
    }

    fn send_one(&mut self, socket: BorrowedFd<'_>, datagram: &[u8]) -> io::Result<()> {
        let control = Outbound::default();
        // The family makes no difference to a judge.
        self.send(socket, std::iter::once(Datagrams { to: None, ipv6: false, control, data: datagram })).map(drop)
    }
}

fn sender_with<'a>(
    most: usize,
    judge: impl FnMut(&Datagrams<'_>, usize) -> Result<(), i32> + Send + 'a,
) -> LinuxSender<FaultySend<'a>> {
    let group = SocketGroup::bind(0, 0, 1, &Kernel).unwrap();
    let array = FaultySend { array: SendArray::new(SEND_BATCH_MAX), judge: Box::new(judge), most, asked: 0, calls: 0 };
    LinuxSender::with(Member { group: Arc::new(group), place: 0 }, 0, array)
}

/// Bytes that say to which datagram of a test they belong.
fn numbered(first: u32, count: u32, segment: usize, last: usize) -> Vec<u8> {
    let datagram = |number: u32| number.to_be_bytes().into_iter().cycle().take(segment);
    let mut data: Vec<u8> = (first..first + count).flat_map(datagram).collect();
    data.truncate(data.len() - segment + last);
    data
}

fn train(to: SocketAddr, segment: usize, data: &[u8]) -> Transmit<'_> {
    Transmit { to, source: None, tos: 0, segment, data, offload: true }
}

/// The numbers of the datagrams that arrive until there are `count` (and of those that come too much).
fn arrivals(end: &mut End, count: usize) -> Vec<u32> {
    let numbers: Vec<u32> = end
        .receive(count)
        .iter()
        .map(|(_, bytes)| {
            let number = u32::from_be_bytes(*bytes.first_chunk().unwrap());
            assert!(bytes.iter().zip(number.to_be_bytes().iter().cycle()).all(|(a, b)| a == b), "bytes of another");
            number
        })
        .collect();
    assert_eq!(numbers.len(), count, "{numbers:?}");
    numbers
}

const SEGMENT: usize = 100;
const COUNT: u32 = 10;

/// Sends two trains of ten to one receiver and one to another in one call; `expected` is what is said of each, with the
/// datagrams that are lost, by number.
fn check_send(
    what: &str,
    most: usize,
    judge: impl FnMut(&Datagrams<'_>, usize) -> Result<(), i32> + Send,
    expected: [Sent; 3],
    lost: &[u32],
) -> bool {
    let (mut a, mut b) = (End::new(), End::new());
    let mut sender = sender_with(most, judge);
    let trains = [0, 1, 2].map(|train| numbered(train * COUNT, COUNT, SEGMENT, SEGMENT / 2));
    let mut sent = [Sent { bytes: 1, refused: 1, source_lost: true, offload_refused: true }; 3];
    let to = [a.at(V4), a.at(V4), b.at(V6)];
    sender.send(&[0, 1, 2].map(|train_| train(to[train_], SEGMENT, &trains[train_])), &mut sent);
    assert_eq!(sent, expected, "{what}");
    let all: Vec<u32> = (0..3 * COUNT).filter(|number| !lost.contains(number)).collect();
    let (to_a, to_b): (Vec<u32>, Vec<u32>) = all.iter().partition(|number| **number < 2 * COUNT);
    assert_eq!(arrivals(&mut a, to_a.len()), to_a, "{what}");
    assert_eq!(arrivals(&mut b, to_b.len()), to_b, "{what}");
    assert!(sender.array.calls <= 600, "{what}: {} calls", sender.array.calls);
    sender.member.family(false).unwrap().segmentation()
}

const BYTES: usize = COUNT as usize * SEGMENT - SEGMENT / 2;
const WHOLE: Sent = Sent { bytes: BYTES, refused: 0, source_lost: false, offload_refused: false };
const SINGLY: Sent = Sent { offload_refused: true, ..WHOLE };

fn is_train(datagrams: &Datagrams<'_>) -> bool {
    datagrams.control.segment.is_some()
}

/// F-04: what cannot be segmented at all goes singly from then on, and nothing is lost.
#[test]
fn f_04_segmentation_that_is_refused_is_given_up_for_the_socket() {
    for errno in [libc::EIO, libc::ENOPROTOOPT, libc::EOPNOTSUPP] {
        let judge = |message: &Datagrams<'_>, _| if is_train(message) { Err(errno) } else { Ok(()) };
        assert!(!check_send(&format!("errno {errno}"), 64, judge, [WHOLE; 3], &[]));
        // In the middle of a call.
        let judge = |message: &Datagrams<'_>, asked| if asked > 0 && is_train(message) { Err(errno) } else { Ok(()) };
        assert!(!check_send(&format!("errno {errno} later"), 64, judge, [WHOLE; 3], &[]));
    }
}

/// F-03: what a path does not take in one piece goes singly there, and in one piece elsewhere.
#[test]
fn f_03_a_train_that_is_refused_goes_singly() {
    for errno in [libc::EMSGSIZE, libc::EINVAL] {
        let all = |message: &Datagrams<'_>, _| if is_train(message) { Err(errno) } else { Ok(()) };
        assert!(check_send(&format!("errno {errno}"), 64, all, [SINGLY; 3], &[]));
        let one = |message: &Datagrams<'_>, _| if is_train(message) && message.ipv6 { Err(errno) } else { Ok(()) };
        assert!(check_send(&format!("errno {errno} to one"), 64, one, [WHOLE, WHOLE, SINGLY], &[]));
    }
}

/// F-02: a message that finds no room, or that a firewall stops, is lost and counted; the others go on.
#[test]
fn a_message_that_is_lost_is_counted_alone() {
    let gone = Sent { refused: COUNT as usize, ..Sent::default() };
    for errno in [libc::ENOBUFS, libc::EAGAIN, libc::ENOMEM, libc::EPERM] {
        let what = format!("errno {errno}");
        let first: Vec<u32> = (0..COUNT).collect();
        let judge = |_: &Datagrams<'_>, asked| if asked == 0 { Err(errno) } else { Ok(()) };
        assert!(check_send(&what, 64, judge, [gone, WHOLE, WHOLE], &first));
        let second: Vec<u32> = (COUNT..2 * COUNT).collect();
        let judge = |message: &Datagrams<'_>, _| if message.data[3] == COUNT as u8 { Err(errno) } else { Ok(()) };
        assert!(check_send(&what, 64, judge, [WHOLE, gone, WHOLE], &second));
        let everything: Vec<u32> = (0..3 * COUNT).collect();
        assert!(check_send(&what, 64, |_: &Datagrams<'_>, _| Err(errno), [gone; 3], &everything));
        // Singly: one datagram of a train.
        let judge = |message: &Datagrams<'_>, _| match message {
            message if is_train(message) => Err(libc::EMSGSIZE),
            message if message.data[3] == 13 => Err(errno),
            _ => Ok(()),
        };
        let short = Sent { bytes: BYTES - SEGMENT, refused: 1, ..SINGLY };
        assert!(check_send(&what, 64, judge, [SINGLY, short, SINGLY], &[13]));
    }
}

#[test]
fn a_call_that_takes_only_some_is_continued() {
    for most in 1..5 {
        assert!(check_send(&format!("{most} a call"), most, |_: &Datagrams<'_>, _| Ok(()), [WHOLE; 3], &[]));
        let singly = |message: &Datagrams<'_>, _| if is_train(message) { Err(libc::EMSGSIZE) } else { Ok(()) };
        assert!(check_send(&format!("{most} a call, singly"), most, singly, [SINGLY; 3], &[]));
    }
}

/// F-16, eintr_spins: what is no fault of the message is tried again, but not for ever.
#[test]
fn a_call_that_failed_for_another_reason_is_repeated() {
    for errno in [libc::EINTR, libc::ECONNREFUSED] {
        let what = format!("errno {errno}");
        // Every other time; and as often in a row as is allowed.
        assert!(check_send(
            &what,
            1,
            |_: &Datagrams<'_>, asked| if asked % 2 == 0 { Err(errno) } else { Ok(()) },
            [WHOLE; 3],
            &[]
        ));
        let storm =
            |_: &Datagrams<'_>, asked| if asked % (RETRIES_MAX + 1) < RETRIES_MAX { Err(errno) } else { Ok(()) };
        assert!(check_send(&what, 1, storm, [WHOLE; 3], &[]));
        let gone = Sent { refused: COUNT as usize, ..Sent::default() };
        let everything: Vec<u32> = (0..3 * COUNT).collect();
        assert!(check_send(&what, 64, |_: &Datagrams<'_>, _| Err(errno), [gone; 3], &everything));
    }
}

/// Whatever the kernel answers, each datagram is sent once or counted as refused, in order, and the end is reached.
#[test]
fn f_02_no_answer_doubles_or_forgets_a_datagram() {
    const ERRNOS: [i32; 16] = [
        libc::EIO,
        libc::ENOPROTOOPT,
        libc::EOPNOTSUPP,
        libc::EMSGSIZE,
        libc::EINVAL,
        libc::ENOBUFS,
        libc::EAGAIN,
        libc::ENOMEM,
        libc::EPERM,
        libc::EINTR,
        libc::ECONNREFUSED,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
        libc::EADDRNOTAVAIL,
        libc::EACCES,
        libc::ENETDOWN,
    ];
    let (mut a, mut b) = (End::new(), End::new());
    let ours = [None, Some(Source { ip: V4, ifindex: 0 }), Some(Source { ip: V6, ifindex: 1 })];
    for seed in 0..200 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = move |bound: u32| rng.next_u32() % bound;
        let odds = [0, 5, 30, 90][below(4) as usize];
        let most = [1, 3, 64][below(3) as usize];
        let offload = below(4) != 0;
        let plans: Vec<(bool, u32, usize, Option<Source>)> = (0..1 + below(6))
            .map(|_| {
                (below(2) == 0, 1 + below(100), 1 + below(SEGMENT as u32 - 4) as usize + 4, ours[below(3) as usize])
            })
            .collect();
        let mut first = 0;
        let datas: Vec<Vec<u8>> = plans
            .iter()
            .map(|&(_, count, last, _)| {
                first += count;
                numbered(first - count, count, SEGMENT, last.min(SEGMENT))
            })
            .collect();
        let transmits: Vec<Transmit<'_>> = plans
            .iter()
            .zip(&datas)
            .map(|(&(ipv6, .., source), data)| {
                let to = if ipv6 { b.at(V6) } else { a.at(V4) };
                Transmit { source, offload, ..train(to, SEGMENT, data) }
            })
            .collect();
        // What was let through, by number.
        let passed = Arc::new(std::sync::Mutex::new(Vec::new()));
        let record = Arc::clone(&passed);
        let mut answers = below.clone();
        let judge = move |message: &Datagrams<'_>, _: usize| {
            if answers(100) < odds {
                return Err(ERRNOS[answers(ERRNOS.len() as u32) as usize]);
            }
            let numbers =
                message.data.chunks(SEGMENT).map(|datagram| u32::from_be_bytes(*datagram.first_chunk().unwrap()));
            record.lock().unwrap().extend(numbers.map(|number| (number, message.ipv6)));
            Ok(())
        };
        let mut sender = sender_with(most, judge);
        let mut sent = vec![Sent { bytes: 1, refused: 1, source_lost: true, offload_refused: true }; transmits.len()];
        sender.send(&transmits, &mut sent);
        let passed = passed.lock().unwrap().clone();
        for (place, (sent, transmit)) in sent.iter().zip(&transmits).enumerate() {
            let of_this = passed.iter().filter(|(number, _)| {
                let before: u32 = plans[..place].iter().map(|plan| plan.1).sum();
                (before..before + plans[place].1).contains(number)
            });
            let count = transmit.data.len().div_ceil(SEGMENT);
            assert_eq!(of_this.clone().count() + sent.refused, count, "seed {seed}, train {place}: {sent:?}");
            let last = u32::from_be_bytes(*transmit.data[(count - 1) * SEGMENT..].first_chunk().unwrap());
            let short = transmit.data.len() - (count - 1) * SEGMENT;
            let bytes: usize = of_this.map(|(number, _)| if *number == last { short } else { SEGMENT }).sum();
            assert_eq!(sent.bytes, bytes, "seed {seed}, train {place}");
            assert!(offload || !sent.offload_refused, "seed {seed}");
        }
        for (ipv6, end) in [(false, &mut a), (true, &mut b)] {
            let expected: Vec<u32> = passed.iter().filter(|(_, v6)| *v6 == ipv6).map(|(number, _)| *number).collect();
            assert!(expected.is_sorted_by(|a, b| a < b), "seed {seed}: order");
            assert_eq!(arrivals(end, expected.len()), expected, "seed {seed}");
        }
        let messages: usize = transmits.iter().map(|transmit| transmit.data.len().div_ceil(SEGMENT)).sum();
        assert!(sender.array.calls <= (messages + 10) * (RETRIES_MAX + 4), "seed {seed}: {} calls", sender.array.calls);
    }
}

/// A `recvmmsg` that fails by a script, and whose messages are changed.
struct FaultyReceive {
    array: ReceiveArray,
    /// What the next calls fail with, for IPv4 and IPv6; then they succeed.
    script: [Vec<i32>; 2],
    calls: usize,
    change: fn(&mut Message),
}

impl ReceiveMany for FaultyReceive {
    fn receive(&mut self, socket: BorrowedFd<'_>, buffers: &mut [Box<[u8]>]) -> io::Result<usize> {
        self.calls += 1;
        let ipv6 = SocketOption::IPV6_V6ONLY.get(socket).is_ok();
        match self.script[usize::from(ipv6)].pop() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.array.receive(socket, buffers),
        }
    }

    fn message(&self, index: usize) -> Message {
        let mut message = self.array.message(index);
        (self.change)(&mut message);
        message
    }
}

/// A receiver with such a `recvmmsg`, and what it takes.
struct FaultyEnd {
    receiver: LinuxReceiver<FaultyReceive>,
    sender: LinuxSender,
    port: u16,
    buffers: Buffers,
    received: Vec<Received>,
}

impl FaultyEnd {
    fn new(script: [Vec<i32>; 2], change: fn(&mut Message)) -> Self {
        let group = Arc::new(SocketGroup::bind(0, 0, 1, &Kernel).unwrap().without_spares());
        let member = || Member { group: Arc::clone(&group), place: 0 };
        let array = FaultyReceive { array: ReceiveArray::new(RECEIVE_BATCH_MAX), script, calls: 0, change };
        let receiver = LinuxReceiver::with(member(), array);
        let sender = LinuxSender::with(member(), 0, SendArray::new(SEND_BATCH_MAX));
        Self { receiver, sender, port: group.port, buffers: Buffers::new(8), received: Vec::with_capacity(8) }
    }

    /// Sends itself one numbered train by each family.
    fn send_both(&mut self, count: u32) {
        for (ip, first) in [(V4, 0), (V6, 1000)] {
            let data = numbered(first, count, SEGMENT, SEGMENT);
            let mut sent = [Sent::default()];
            self.sender.send(&[train((ip, self.port).into(), SEGMENT, &data)], &mut sent);
            assert_eq!(sent[0].bytes, data.len());
        }
    }

    /// One call; the numbers of what it gave.
    fn receive(&mut self) -> io::Result<(bool, Vec<u32>)> {
        let more = self.receiver.receive(&mut self.buffers, &mut self.received)?;
        let mut numbers = Vec::new();
        for received in &self.received {
            let bytes = &self.buffers.whole(received.buffer)[..received.len as usize];
            let datagrams = bytes.chunks(received.segment as usize);
            numbers.extend(datagrams.map(|datagram| u32::from_be_bytes(*datagram.first_chunk().unwrap())));
        }
        Ok((more, numbers))
    }
}

fn both(count: u32) -> Vec<u32> {
    (0..count).chain(1000..1000 + count).collect()
}

/// F-02, F-16: what concerns no datagram costs none.
#[test]
fn f_02_receiving_goes_on_after_what_passes() {
    for errno in [libc::EINTR, libc::ENOMEM, libc::ECONNREFUSED, libc::EHOSTUNREACH] {
        for times in [1, RETRIES_MAX] {
            let mut end = FaultyEnd::new([vec![errno; times], vec![errno; times]], |_| ());
            end.send_both(5);
            assert_eq!(end.receive().unwrap().1, both(5), "errno {errno}, {times} times");
            assert_eq!(end.receive().unwrap(), (false, vec![]));
        }
    }
}

/// A socket that fails for good is told of after a bounded number of attempts, each time it is asked; the other family
/// is heard all the while, and itself, too, when it works again.
#[test]
fn f_02_a_socket_that_fails_for_good_makes_nobody_deaf() {
    for ipv6_fails in [false, true] {
        let mut script = [vec![], vec![]];
        script[usize::from(ipv6_fails)] = vec![libc::EIO; 4 * (RETRIES_MAX + 1)];
        let mut end = FaultyEnd::new(script, |_| ());
        end.send_both(5);
        let [v4, v6] = [(0..5).collect::<Vec<u32>>(), (1000..1005).collect()];
        let (heard, lost) = if ipv6_fails { (v4, v6) } else { (v6, v4) };
        assert_eq!(end.receive().unwrap(), (true, heard), "before the failure is told of");
        for _ in 0..3 {
            let calls = end.receiver.array.calls;
            let error = end.receive().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert!(end.receiver.array.calls - calls <= RETRIES_MAX + 2);
        }
        assert_eq!(end.receive().unwrap().1, lost, "it waited");
        assert_eq!(end.receive().unwrap(), (false, vec![]));
    }
}

/// oversized_datagram_kills_the_receiver: what did not fit, or came from nowhere, is passed over.
#[test]
fn truncated_messages_are_passed_over() {
    fn truncated(message: &mut Message) {
        message.truncated |= message.len == SEGMENT;
    }
    fn from_nowhere(message: &mut Message) {
        message.from = message.from.filter(|_| message.len != SEGMENT);
    }
    for change in [truncated, from_nowhere] {
        let mut end = FaultyEnd::new([vec![], vec![]], change);
        for _ in 0..20 {
            end.send_both(1);
        }
        end.send_both(3);
        let mut numbers = Vec::new();
        while let (true, more) = end.receive().unwrap() {
            numbers.extend(more);
        }
        assert_eq!(numbers, both(3));
    }
}

/// Without UDP_GRO's control message a buffer is one datagram, whatever it is: nothing is cut at a guess.
#[test]
fn a_message_that_says_nothing_is_one_datagram() {
    let mut end = FaultyEnd::new([vec![], vec![]], |message| message.control = Inbound::default());
    end.send_both(5);
    end.receive().unwrap();
    let said: Vec<_> = end.received.iter().map(|received| (received.len, received.segment, received.ecn)).collect();
    assert_eq!(said, [(5 * SEGMENT as u32, 5 * SEGMENT as u32, 0); 2]);
    assert!(end.received.iter().all(|received| received.source.is_none()));
}

/// A kernel that does not have some options.
#[derive(Default)]
struct Without<'a> {
    refused: &'a [SocketOption],
    steering: bool,
    /// SO_REUSEPORT can be set, but not unset.
    open_for_ever: bool,
    asked: Rc<RefCell<Vec<SocketOption>>>,
}

impl Options for Without<'_> {
    fn set(&self, option: SocketOption, socket: BorrowedFd<'_>, value: libc::c_int) -> io::Result<()> {
        self.asked.borrow_mut().push(option);
        if self.refused.contains(&option) {
            return Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT));
        }
        if self.open_for_ever && option == SocketOption::SO_REUSEPORT && value == 0 {
            return Ok(());
        }
        Kernel.set(option, socket, value)
    }

    fn get(&self, option: SocketOption, socket: BorrowedFd<'_>) -> io::Result<libc::c_int> {
        if self.refused.contains(&option) {
            return Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT));
        }
        Kernel.get(option, socket)
    }

    fn steer(&self, socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
        if self.steering { Kernel.steer(socket, program) } else { Err(io::Error::from_raw_os_error(libc::ENOPROTOOPT)) }
    }
}

/// F-04: without what makes it fast it is slow.
#[test]
fn f_04_what_an_old_kernel_lacks_is_done_without() {
    use SocketOption as O;
    let rows: [(&[O], bool); 6] = [
        (&[O::UDP_GRO], true),
        (&[O::UDP_SEGMENT], false),
        (&[O::UDP_GRO, O::UDP_SEGMENT], false),
        (&[O::SO_RCVBUFFORCE, O::SO_SNDBUFFORCE], true),
        (&[O::SO_RCVBUFFORCE, O::SO_SNDBUFFORCE, O::SO_RCVBUF, O::SO_SNDBUF], true),
        (&[], true),
    ];
    for (refused, segmentation) in rows {
        let options = Without { refused, steering: true, ..Without::default() };
        let group = Arc::new(SocketGroup::bind(0, 0, 1, &options).unwrap());
        let buffers_refused = refused.contains(&O::SO_RCVBUFFORCE);
        assert_eq!(options.asked.borrow().contains(&O::SO_RCVBUF), buffers_refused, "plain ones instead");
        assert!(group.pairs[0].sockets().all(|socket| socket.segmentation() == segmentation), "{refused:?}");
        let member = || Member { group: Arc::clone(&group), place: 0 };
        let mut sender = LinuxSender::with(member(), 0, SendArray::new(SEND_BATCH_MAX));
        let mut receiver = LinuxReceiver::new(member());
        let data = numbered(0, COUNT, SEGMENT, SEGMENT / 2);
        let (mut buffers, mut received) = (Buffers::new(64), Vec::with_capacity(64));
        for ip in [V4, V6] {
            let mut sent = [Sent::default()];
            sender.send(&[train((ip, group.port).into(), SEGMENT, &data)], &mut sent);
            assert_eq!(sent, [WHOLE]);
            receiver.receive(&mut buffers, &mut received).unwrap();
            let bytes: Vec<u8> = received
                .iter()
                .flat_map(|received| buffers.whole(received.buffer)[..received.len as usize].to_vec())
                .collect();
            assert_eq!(bytes, data, "{refused:?}");
            assert_eq!(received.len() == 1, segmentation && !refused.contains(&O::UDP_GRO), "{refused:?}");
        }
    }
    // Without these a tunnel would be wrong: answers from another address, no ECN, IPv4 in IPv6's clothes.
    for required in
        [O::IP_PKTINFO, O::IP_RECVTOS, O::IPV6_RECVPKTINFO, O::IPV6_RECVTCLASS, O::IPV6_V6ONLY, O::IP_MTU_DISCOVER]
    {
        let options = Without { refused: &[required], steering: true, ..Without::default() };
        let error = SocketGroup::bind(0, 0, 1, &options).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT), "{required:?}");
    }
}

/// Where a group cannot be had there is one receiver, on the same port, and exclusively.
#[test]
fn without_a_group_there_is_one_receiver() {
    let port = SocketGroup::bind(0, 0, 1, &Kernel).unwrap().port;
    let rows: [(&[SocketOption], bool, bool); 4] = [
        (&[SocketOption::SO_REUSEPORT], true, false),
        (&[SocketOption::SO_BINDTOIFINDEX], true, false),
        (&[], false, false),
        // A group that strangers could join is none.
        (&[], true, true),
    ];
    for (refused, steering, open_for_ever) in rows {
        let options = Without { refused, steering, open_for_ever, ..Without::default() };
        let group = SocketGroup::bind(port, 0, 4, &options).unwrap();
        assert_eq!((group.pairs.len(), group.port), (1, port), "{refused:?}");
        let holder = SocketGroup::bind(port, 0, 4, &Kernel).unwrap_err();
        assert_eq!(holder.kind(), io::ErrorKind::AddrInUse);
    }
    // A port that somebody has is no lack of the kernel's.
    let holder = std::net::UdpSocket::bind((V6, 0)).unwrap();
    let options = Without { refused: &[], steering: true, ..Without::default() };
    let error = SocketGroup::bind(holder.local_addr().unwrap().port(), 0, 4, &options).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(options.asked.borrow().iter().all(|option| *option == SocketOption::IPV6_V6ONLY), "nothing was tried");
}
