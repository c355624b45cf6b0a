//! bpf(2): a program of extended BPF that the kernel runs on each datagram of a socket, and the memory that it shares
//! with this process.
//!
//! Loading needs CAP_BPF (CAP_SYS_ADMIN before 5.8) unless the system leaves that to everybody; attaching what is loaded,
//! and using the memory, need nothing. The crates for BPF bring a loader of object files and a compiler's output; here a
//! program of one's own making is handed over in one call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

/// One instruction of extended BPF, as the kernel takes it on little-endian machines (RFC 9669, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    /// What to do.
    pub(crate) code: u8,
    /// The destination register in the low half, the source in the high half.
    pub(crate) registers: u8,
    /// Added to an address, or how many instructions to jump over.
    pub(crate) offset: i16,
    /// A constant.
    pub(crate) immediate: i32,
}

// Commands of bpf(2), and what they are given (linux/bpf.h).
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_FLAG_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_SOCKET_FILTER: u32 = 1;

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct ProgTestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

#[repr(C)]
struct ObjGetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of what is told of a program.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    translated_prog_len: u32,
}

/// What a command is given, and zeros for the fields of newer kernels. An older kernel takes them as well.
#[repr(C)]
struct Attributes<T> {
    known: T,
    others: [u64; 16],
}

impl<T> Attributes<T> {
    fn of(known: T) -> Self {
        Self { known, others: [0; 16] }
    }
}

/// Calls bpf(2), and returns what it returns.
///
/// # Safety
/// `attributes` must be the beginning of what the kernel's `union bpf_attr` has for `command`, and addresses in it must
/// be of memory that is valid for as many bytes as it says beside them, for writing where the command writes.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut Attributes<T>) -> io::Result<libc::c_int> {
    let len = size_of::<Attributes<T>>();
    // SAFETY: `attributes` is a live structure of the length that is said; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attributes), len) };
    // What bpf(2) returns is an int.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

fn address<T: ?Sized>(of: &T) -> u64 {
    ptr::from_ref(of).cast::<()>().addr() as u64
}

/// Memory that a program and this process share: words of 64 bits, zero at first.
#[derive(Debug)]
pub(crate) struct SharedWords {
    fd: OwnedFd,
    words: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone until it is dropped, and all access is to atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes `len` words. Fails as bpf(2) does: EPERM without the privilege, ENOSYS without BPF, EINVAL before 5.5.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let bytes = len * size_of::<AtomicU64>();
        let value_size = u32::try_from(bytes).map_err(io::Error::other)?;
        let mut attributes = Attributes::of(MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_size: 4,
            value_size,
            max_entries: 1,
            map_flags: MAP_FLAG_MMAPABLE,
        });
        // SAFETY: the structure is what MAP_CREATE has, and there is no address in it.
        let fd = unsafe { bpf(MAP_CREATE, &mut attributes) }?;
        // SAFETY: the descriptor has just been made, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice; the map has one value of so many bytes, and the
        // kernel rounds both up to whole pages.
        let mapped = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(mapped.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { fd, words, len })
    }

    /// The words. The program may change them at any time.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins on a page, has so many words and lives as long as `self`; atomics may be changed by
        // others, and the kernel changes them by whole aligned words.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }

    /// The number by which a program that is being loaded names them.
    pub(crate) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
    }
}

/// A program that decides over datagrams: loaded, and found harmless by the kernel.
#[derive(Debug)]
pub(crate) struct SocketFilter(OwnedFd);

impl SocketFilter {
    /// Loads it. Fails as bpf(2) does: EPERM without the privilege, EINVAL or EACCES for what the kernel does not
    /// understand or does not hold harmless.
    pub(crate) fn load(program: &[Instruction]) -> io::Result<Self> {
        let mut attributes = Attributes::of(ProgLoad {
            prog_type: PROG_TYPE_SOCKET_FILTER,
            instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
            instructions: address(program),
            license: address(c"MIT OR Apache-2.0"),
        });
        // SAFETY: the structure is what PROG_LOAD has; it names a live slice with its length and a text that ends with
        // NUL, and both are only read.
        let fd = unsafe { bpf(PROG_LOAD, &mut attributes) }?;
        // SAFETY: the descriptor has just been made, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Has it decide which datagrams `socket` gets from now on.
    pub(crate) fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        super::socket::SocketOption::SO_ATTACH_BPF.set(socket, self.0.as_raw_fd())
    }

    /// Whether the kernel runs it as machine code. Unprivileged processes are told that it does not.
    pub(crate) fn is_compiled(&self) -> io::Result<bool> {
        let mut info = ProgInfo::default();
        let mut attributes = Attributes::of(ObjGetInfo {
            bpf_fd: self.0.as_raw_fd().cast_unsigned(),
            info_len: size_of::<ProgInfo>() as u32,
            info: ptr::from_mut(&mut info).expose_provenance() as u64,
        });
        // SAFETY: the structure is what OBJ_GET_INFO_BY_FD has; it names a live structure, which may be written, with its
        // length.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
        Ok(info.jited_prog_len != 0)
    }

    /// Runs it once on `packet`: the header of a link (14 bytes, not looked at), and then what a socket's program sees.
    /// Returns how many bytes it would let through; 0 is for dropping.
    pub(crate) fn run(&self, packet: &[u8]) -> io::Result<u32> {
        let len = u32::try_from(packet.len()).map_err(io::Error::other)?;
        let mut out = vec![0_u8; packet.len()];
        let mut attributes = Attributes::of(ProgTestRun {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            retval: 0,
            data_size_in: len,
            data_size_out: len,
            data_in: address(packet),
            data_out: out.as_mut_ptr().expose_provenance() as u64,
            repeat: 1,
            duration: 0,
        });
        // SAFETY: the structure is what PROG_TEST_RUN has; it names two live slices with their length, of which the second
        // may be written: the packet comes back there, as it is.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
        Ok(attributes.known.retval)
    }
}
