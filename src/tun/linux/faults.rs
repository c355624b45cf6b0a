//! What the kernel may answer to reads, writes and settings of a TUN, by a script or by a seed.
//!
//! What is written is split again, so that each packet is seen as it would arrive. Unless a case says what it loses,
//! every packet has to arrive, once and in order.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::*;
use crate::packet::{BUFFER_LEN, READ_BUFFER_LEN};
use crate::tun::offload::tests::Shape;

/// What the kernel says to a write: of how many packets, whether of TCP, and how many writes there were before.
type Judge = dyn Fn(usize, bool, usize) -> Result<(), i32> + Send + Sync;

/// A TUN's descriptor without a TUN.
struct FaultyTun {
    judge: Box<Judge>,
    reads: Mutex<VecDeque<Result<Vec<u8>, i32>>>,
    /// Packets that were written, split.
    arrived: Mutex<Vec<Vec<u8>>>,
    /// For each write that was tried, how many packets it had.
    writes: Mutex<Vec<usize>>,
    /// What TUNSETOFFLOAD takes, of all.
    offloads: c_uint,
    /// What it was given last.
    set: Mutex<Option<c_uint>>,
    vnet_header: Result<(), i32>,
}

impl FaultyTun {
    fn new(judge: impl Fn(usize, bool, usize) -> Result<(), i32> + Send + Sync + 'static) -> Self {
        Self {
            judge: Box::new(judge),
            reads: Mutex::default(),
            arrived: Mutex::default(),
            writes: Mutex::default(),
            offloads: c_uint::MAX,
            set: Mutex::default(),
            vnet_header: Ok(()),
        }
    }
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Descriptor for FaultyTun {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reads.lock().unwrap().pop_front().unwrap_or(Err(libc::EAGAIN)).map_err(error)?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes = parts.iter().flat_map(|part| part.iter().copied()).collect::<Vec<u8>>();
        let (vnet, packet) = bytes.split_first_chunk().unwrap();
        let packet = SuperPacket::parse(vnet, packet).unwrap();
        let is_tcp = packet.bytes()[9] == 6;
        let mut writes = self.writes.lock().unwrap();
        writes.push(packet.count());
        (self.judge)(packet.count(), is_tcp, writes.len() - 1).map_err(error)?;
        let mut single = vec![0; BUFFER_LEN];
        for index in 0..packet.count() {
            let len = packet.write_segment(index, &mut single);
            self.arrived.lock().unwrap().push(single[..len].to_vec());
        }
        Ok(())
    }

    fn set_offload(&self, offloads: c_uint) -> io::Result<()> {
        if offloads & !self.offloads != 0 {
            return Err(error(libc::EINVAL));
        }
        *self.set.lock().unwrap() = Some(offloads);
        Ok(())
    }

    fn set_vnet_header_len(&self, len: c_int) -> io::Result<()> {
        assert_eq!(len, VNET_HEADER_LEN as c_int);
        self.vnet_header.map_err(error)
    }
}

impl AsRawFd for FaultyTun {
    fn as_raw_fd(&self) -> RawFd {
        -1
    }
}

const TCP: usize = 5;
const UDP: usize = 4;

/// A run of TCP and one of UDP, one after the other, that each would be merged.
fn batch(number: u16) -> Vec<Vec<u8>> {
    let shape = |tcp, index: u16| {
        let sequence = u32::from(number) * 10_000 + u32::from(index) * 1000;
        let mut shape = if tcp { Shape::tcp(true, sequence, 1000) } else { Shape::udp(true, 900) };
        shape.id = number * 100 + index;
        shape
    };
    let tcp = (0..TCP as u16).map(|index| shape(true, index).bytes());
    tcp.chain((0..UDP as u16).map(|index| shape(false, index).bytes())).collect()
}

/// Sends one after the other through `sender`; returns how many were refused.
fn send(sender: &mut LinuxSender<FaultyTun>, packets: &[Vec<u8>]) -> usize {
    let mut buffers = Buffers::new(1);
    let mut places = Vec::new();
    let mut start = 0;
    for packet in packets {
        buffers.whole(0)[start..start + packet.len()].copy_from_slice(packet);
        places.push(PacketRef { buffer: 0, start: start as u32, len: packet.len() as u32 });
        start += packet.len();
    }
    sender.send(&buffers, &places)
}

fn sender(judge: impl Fn(usize, bool, usize) -> Result<(), i32> + Send + Sync + 'static) -> LinuxSender<FaultyTun> {
    LinuxSender::new(Arc::new(FaultyTun::new(judge)), true, true)
}

fn take<T>(list: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut list.lock().unwrap())
}

#[test]
fn what_is_liked_is_merged() {
    let mut sender = sender(|_, _, _| Ok(()));
    assert_eq!(send(&mut sender, &batch(0)), 0);
    assert_eq!(take(&sender.file.arrived), batch(0));
    assert_eq!(take(&sender.file.writes), [TCP, UDP]);
}

/// vnet_header_einval: a merged write that is refused goes packet by packet; when that does not end, nothing of the kind
/// is merged any more, and the other kind still is.
#[test]
fn vnet_header_einval() {
    for tcp_refused in [true, false] {
        let mut sender =
            sender(move |count, tcp, _| if count > 1 && tcp == tcp_refused { Err(libc::EINVAL) } else { Ok(()) });
        for number in 0..REFUSED_MAX as u16 + 5 {
            assert_eq!(send(&mut sender, &batch(number)), 0);
            assert_eq!(take(&sender.file.arrived), batch(number), "batch {number}");
            let mut writes = if tcp_refused { vec![1; TCP] } else { vec![1; UDP] };
            if u32::from(number) < REFUSED_MAX {
                writes.insert(0, writes.len());
            }
            let expected = if tcp_refused { [writes, vec![UDP]] } else { [vec![TCP], writes] };
            assert_eq!(take(&sender.file.writes), expected.concat(), "batch {number}");
        }
    }
    // A success in between, and the count begins anew.
    let attempts = [const { AtomicU32::new(1) }; 2];
    let mut tun = sender(move |count, tcp, _| {
        let nth = if count > 1 { attempts[usize::from(tcp)].fetch_add(1, Ordering::Relaxed) } else { 0 };
        if nth % REFUSED_MAX == 0 { Ok(()) } else { Err(libc::EINVAL) }
    });
    for number in 0..5 * REFUSED_MAX as u16 {
        assert_eq!(send(&mut tun, &batch(number)), 0);
        assert_eq!(take(&tun.file.arrived), batch(number));
        let merged: Vec<usize> = take(&tun.file.writes).into_iter().filter(|count| *count > 1).collect();
        assert_eq!(merged, [TCP, UDP], "still tried");
    }
}

/// F-01, F-02: a link that is down and a queue that is full lose what they refuse, counted, and are not asked again.
#[test]
fn packets_that_find_no_room_are_lost_and_counted() {
    for errno in [libc::EIO, libc::ENOBUFS, libc::EAGAIN, libc::ENOMEM, libc::EBADFD] {
        let mut all = sender(move |_, _, _| Err(errno));
        assert_eq!(send(&mut all, &batch(0)), TCP + UDP, "errno {errno}");
        assert_eq!((take(&all.file.arrived).len(), take(&all.file.writes)), (0, vec![TCP, UDP]));
        let mut one = sender(move |_, tcp, _| if tcp { Err(errno) } else { Ok(()) });
        assert_eq!(send(&mut one, &batch(0)), TCP);
        assert_eq!(take(&one.file.arrived), batch(0)[TCP..]);
        let mut singly = sender(move |count, _, before| match before {
            _ if count > 1 => Err(libc::EINVAL),
            3 => Err(errno),
            _ => Ok(()),
        });
        assert_eq!(send(&mut singly, &batch(0)), 1);
        let mut expected = batch(0);
        expected.remove(2);
        assert_eq!(take(&singly.file.arrived), expected);
    }
}

/// F-16: a signal costs nothing.
#[test]
fn f_16_an_interrupted_write_is_repeated() {
    let mut sender = sender(|_, _, before| if before % 3 == 2 { Ok(()) } else { Err(libc::EINTR) });
    assert_eq!(send(&mut sender, &batch(0)), 0);
    assert_eq!(take(&sender.file.arrived), batch(0));
}

/// Whatever the kernel answers, each packet is written once or counted as refused, and each flow stays in order.
#[test]
fn f_02_no_answer_doubles_or_forgets_a_packet() {
    const ERRNOS: [i32; 7] =
        [libc::EINVAL, libc::EIO, libc::ENOBUFS, libc::EAGAIN, libc::ENOMEM, libc::EINTR, libc::EFAULT];
    for seed in 0..100 {
        let rng = Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed));
        let mut sender = sender(move |_, _, _| {
            let mut rng = rng.lock().unwrap();
            if rng.next_u32() % 100 < seed as u32 {
                return Err(ERRNOS[rng.next_u32() as usize % ERRNOS.len()]);
            }
            Ok(())
        });
        for number in 0..20 {
            let packets = batch(number);
            let refused = send(&mut sender, &packets);
            let arrived = take(&sender.file.arrived);
            assert_eq!(arrived.len() + refused, packets.len(), "seed {seed}");
            // Each, in the order given.
            let mut rest = packets.iter();
            assert!(arrived.iter().all(|packet| rest.any(|sent| sent == packet)), "seed {seed}: order or bytes");
        }
    }
}

/// The bytes of one read: a header that says nothing, and a packet.
fn readable(packet: &[u8]) -> Result<Vec<u8>, i32> {
    Ok([&[0; VNET_HEADER_LEN], packet].concat())
}

#[test]
fn a_read_that_fails_says_whether_to_go_on() {
    let tun = Arc::new(FaultyTun::new(|_, _, _| Ok(())));
    let mut receiver = LinuxReceiver::new(Arc::clone(&tun), true);
    let mut buffer = vec![0; READ_BUFFER_LEN];
    let mut read = |script: &[Result<Vec<u8>, i32>]| {
        tun.reads.lock().unwrap().extend(script.iter().cloned());
        receiver.receive(&mut buffer).map(|packet| packet.map(|packet| packet.bytes().to_vec()))
    };
    let packet = &batch(0)[0];
    let is_packet = |got: Result<Option<Vec<u8>>, ReceiveError>| got.unwrap().as_ref() == Some(packet);
    assert!(read(&[Err(libc::EAGAIN)]).unwrap().is_none());
    assert!(is_packet(read(&[Err(libc::EINTR), Err(libc::EINTR), readable(packet)])));
    // One packet that the kernel cannot tell of, or too short to be one, is not the end.
    for odd in [Err(libc::EINVAL), Ok(vec![]), Ok(vec![0; VNET_HEADER_LEN - 1]), Ok(vec![0; VNET_HEADER_LEN])] {
        assert!(matches!(read(&[odd]), Err(ReceiveError::Malformed)));
        assert!(is_packet(read(&[readable(packet)])));
    }
    for errno in [libc::EBADFD, libc::EIO, libc::EFAULT] {
        match read(&[Err(errno)]) {
            Err(ReceiveError::Gone(error)) => assert_eq!(error.raw_os_error(), Some(errno)),
            other => panic!("{errno}: {other:?}"),
        }
    }
    for _ in 0..UNREADABLE_MAX {
        assert!(matches!(read(&[Err(libc::EINVAL)]), Err(ReceiveError::Malformed)));
    }
    assert!(matches!(read(&[Err(libc::EINVAL)]), Err(ReceiveError::Gone(_))), "not for ever");
}

/// Packets that are copied behind their header, and longer ones that are not, are written as they are.
#[test]
fn a_packet_is_written_whole_whatever_its_length() {
    let mut sender = LinuxSender::new(Arc::new(FaultyTun::new(|_, _, _| Ok(()))), true, true);
    let lens = [1, COPIED_MAX - 29, COPIED_MAX - 28, COPIED_MAX - 27, 9000];
    let packets: Vec<_> = lens.iter().map(|len| Shape::udp(true, *len).bytes()).collect();
    for packet in &packets {
        assert_eq!(send(&mut sender, std::slice::from_ref(packet)), 0);
    }
    assert_eq!(*sender.file.arrived.lock().unwrap(), packets);
    assert!(packets.iter().any(|packet| packet.len() == COPIED_MAX));
}

/// F-04: what an old kernel lacks is done without, step by step.
#[test]
fn f_04_offloads_are_asked_for_step_by_step() {
    const ALL_TCP: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    const ALL_UDP: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    for (has, set, udp) in [
        (c_uint::MAX, ALL_TCP | ALL_UDP, true),
        (!ALL_UDP, ALL_TCP, false),
        (!libc::TUN_F_USO6, ALL_TCP, false),
        (!libc::TUN_F_TSO6, libc::TUN_F_CSUM, false),
        (libc::TUN_F_CSUM, libc::TUN_F_CSUM, false),
        (0, 0, false),
    ] {
        let tun = FaultyTun { offloads: has, ..FaultyTun::new(|_, _, _| Ok(())) };
        assert_eq!(set_up_headers(&tun).unwrap(), udp, "{has:#x}");
        assert_eq!(*tun.set.lock().unwrap(), Some(set), "{has:#x}");
        // Without UDP its datagrams are written one by one.
        let mut sender = LinuxSender::new(Arc::new(tun), true, udp);
        assert_eq!(send(&mut sender, &batch(0)), 0);
        let expected = if udp { vec![TCP, UDP] } else { [vec![TCP], vec![1; UDP]].concat() };
        assert_eq!(take(&sender.file.writes), expected);
    }
}

#[test]
fn a_header_of_unknown_length_is_no_tun() {
    let tun = FaultyTun { vnet_header: Err(libc::EINVAL), ..FaultyTun::new(|_, _, _| Ok(())) };
    let error = set_up_headers(&tun).unwrap_err();
    assert!(matches!(error, OpenError::System { operation: "set the TUN's header length", .. }), "{error:?}");
    assert_eq!(*tun.set.lock().unwrap(), None);
}
