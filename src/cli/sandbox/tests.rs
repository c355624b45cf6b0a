//! Each test runs itself once more as another process, which enters the sandbox as the programs do, then tries what they
//! must not be able to do, and what they must: nothing that is shipped helps it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::*;

/// Names the folder that the other process works in.
const INSIDE: &str = "ADIT_TEST_SANDBOX";
/// In the folder: may be removed; may not; may be read by the sidecar.
const SOCKETS: &str = "sockets";
const ELSEWHERE: &str = "elsewhere";
const SETTINGS: &str = "settings";

/// In the first process: runs the test `name` in another one and gives `None`. In that: the folder.
fn inside(name: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(INSIDE) {
        return Some(folder.into());
    }
    let folder = std::env::temp_dir().join(format!("adit-sandbox-{name}-{}", std::process::id()));
    for part in [SOCKETS, ELSEWHERE, SETTINGS] {
        fs::create_dir_all(folder.join(part)).unwrap();
        fs::write(folder.join(part).join("file"), "text").unwrap();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("cli::sandbox::tests::{name}"), "--nocapture", "--test-threads=1"])
        .env(INSIDE, &folder)
        .output()
        .unwrap();
    fs::remove_dir_all(&folder).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    None
}

#[track_caller]
fn refused<T>(what: &str, result: io::Result<T>, error: i32) {
    assert_eq!(result.err().and_then(|it| it.raw_os_error()), Some(error), "{what}");
}

fn files(folder: &Path) -> Files {
    Files { read: vec![folder.join(SETTINGS)], remove: vec![folder.join(SOCKETS), folder.join("missing")] }
}

/// What both programs live from: threads, sockets, time, a pipe, and what was open before.
fn check_what_is_needed(mut open: File) {
    let thread =
        std::thread::Builder::new().name("another".into()).spawn(|| std::thread::available_parallelism().is_ok());
    thread.unwrap().join().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
    assert_eq!(socket.recv(&mut [0; 2]).unwrap(), 1);
    let (mut one, mut other) = UnixStream::pair().unwrap();
    one.write_all(b"x").unwrap();
    other.read_exact(&mut [0]).unwrap();
    assert_eq!(open.read(&mut [0; 8]).unwrap(), 4);
    let large = vec![1_u8; 64 << 20];
    assert_eq!(large[large.len() - 1], 1);
    assert!(crate::sys::clock::boottime_nanos() > 0);
}

/// Neither program executes, forks, signals or traces anybody, or gets out of its namespaces.
fn check_no_other_process() {
    refused("a program", Command::new("/bin/true").status(), libc::ENOSYS);
    for (what, call, arguments) in [
        ("execve", libc::SYS_execve, [0, 0, 0]),
        ("execveat", libc::SYS_execveat, [0, 0, 0]),
        ("clone without a thread", libc::SYS_clone, [libc::CLONE_SIGHAND.into(), 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0]),
        ("kill", libc::SYS_kill, [1, 0, 0]),
        ("tgkill of another", libc::SYS_tgkill, [1, 1, 0]),
        ("ptrace", libc::SYS_ptrace, [0, 0, 0]),
        ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
        ("setns", libc::SYS_setns, [0, 0, 0]),
        ("unshare", libc::SYS_unshare, [0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0, 0, 0]),
        ("setuid", libc::SYS_setuid, [0, 0, 0]),
        ("prlimit64 that sets", libc::SYS_prlimit64, [0, 0, 1]),
        ("a packet socket", libc::SYS_socket, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0]),
        ("an ioctl that makes an interface", libc::SYS_ioctl, [0, libc::TUNSETIFF as _, 0]),
        ("dumpable again", libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0]),
    ] {
        refused(what, crate::sys::seccomp::attempt(call, arguments), libc::ENOSYS);
    }
}

#[test]
fn s_52_the_daemon_has_no_program_no_file_and_no_process() {
    let Some(folder) = inside("s_52_the_daemon_has_no_program_no_file_and_no_process") else { return };
    let open = File::open(folder.join(ELSEWHERE).join("file")).unwrap();
    enter(Role::Daemon, files(&folder));
    check_no_other_process();
    for path in [folder.join(SETTINGS).join("file"), "/etc/shadow".into(), "/dev/net/tun".into(), "/dev/null".into()] {
        refused(&format!("reading {}", path.display()), File::open(&path), libc::ENOSYS);
    }
    refused("making a file", File::create(folder.join(SOCKETS).join("new")), libc::ENOSYS);
    let exec = [0, 4096, (libc::PROT_READ | libc::PROT_EXEC).into()];
    refused("executable memory", crate::sys::seccomp::attempt(libc::SYS_mmap, exec), libc::ENOSYS);
    refused("executable memory", crate::sys::seccomp::attempt(libc::SYS_mprotect, exec), libc::ENOSYS);
    // Another thread's business too: the filter is everybody's.
    std::thread::spawn(|| refused("in a thread", File::open("/dev/null"), libc::ENOSYS)).join().unwrap();
    fs::remove_file(folder.join(SOCKETS).join("file")).unwrap();
    check_what_is_needed(open);
}

#[test]
fn s_52_the_sidecar_reads_its_settings_and_writes_nothing() {
    let Some(folder) = inside("s_52_the_sidecar_reads_its_settings_and_writes_nothing") else { return };
    let open = File::open(folder.join(ELSEWHERE).join("file")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    enter(Role::Sidecar, files(&folder));
    check_no_other_process();
    refused("making a file", File::create(folder.join(SETTINGS).join("new")), libc::ENOSYS);
    refused("writing a file", File::options().write(true).open(folder.join(SETTINGS).join("file")), libc::ENOSYS);
    assert_eq!(fs::read_to_string(folder.join(SETTINGS).join("file")).unwrap(), "text");
    fs::canonicalize(folder.join(SETTINGS).join("file")).unwrap();
    assert!(File::open("/etc/hosts").is_ok() || !Path::new("/etc/hosts").exists());
    let address = listener.local_addr().unwrap();
    drop(listener);
    let listener = TcpListener::bind(address).unwrap();
    TcpStream::connect(address).unwrap();
    listener.accept().unwrap();
    assert!(std::net::ToSocketAddrs::to_socket_addrs("localhost:1").unwrap().count() > 0, "the resolver works");
    check_what_is_needed(open);
}

/// Landlock alone, which a thread has for itself: without seccomp's, its own refusals show.
#[test]
fn s_52_landlock_leaves_what_was_named() {
    let Some(folder) = inside("s_52_landlock_leaves_what_was_named") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let restricted = {
        let folder = folder.clone();
        std::thread::spawn(move || {
            let status = restrict_files(Role::Daemon, &files(&folder)).unwrap();
            if status == RulesetStatus::NotEnforced {
                println!("this kernel has no Landlock");
                return;
            }
            assert_eq!(fs::read_to_string(folder.join(SETTINGS).join("file")).unwrap(), "text");
            refused("a file elsewhere", File::open(folder.join(ELSEWHERE).join("file")), libc::EACCES);
            refused("a secret of the system", File::open("/etc/shadow"), libc::EACCES);
            refused("a device", File::open("/dev/net/tun"), libc::EACCES);
            refused("writing", File::options().write(true).open(folder.join(SETTINGS).join("file")), libc::EACCES);
            refused("making", File::create(folder.join(SOCKETS).join("new")), libc::EACCES);
            refused("removing elsewhere", fs::remove_file(folder.join(ELSEWHERE).join("file")), libc::EACCES);
            refused("a program", Command::new("/bin/true").status(), libc::EACCES);
            fs::remove_file(folder.join(SOCKETS).join("file")).unwrap();
            if status == RulesetStatus::FullyEnforced {
                refused("TCP", TcpStream::connect(address), libc::EACCES);
            }
        })
    };
    restricted.join().unwrap();
    // The others are as they were.
    assert!(File::open(folder.join(ELSEWHERE).join("file")).is_ok());
}
