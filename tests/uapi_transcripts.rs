//! What is said on the UAPI socket: every error and its sign, framing, abuse (trust U-01…U-11), life and death of the
//! socket. Against a device that only remembers; tests/uapi_clients.rs has the real clients.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod uapi_support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use adit::device::config::{AllowedIpUpdate, Configure, PeerUpdate, Snapshot};
use adit::uapi::set::{LINE_BYTES_MAX, PARSED_BYTES_MAX};
use adit::uapi::{CONNECTIONS_MAX, Ended, Listener, get, set};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use uapi_support::{FakeDevice, PATIENCE, Served, alone, own_status, read_reply, read_to_end};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const K: &str = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c040";
const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A reply must be there within this: the promise of U-02 is 100 ms, on a machine that does nothing else.
const PROMPT: Duration = Duration::from_millis(100);
/// [UAPI] Stopping takes no longer, whatever clients do.
const STOP: Duration = Duration::from_secs(1);

fn three_peers() -> String {
    format!(
        "private_key={K}\nlisten_port=51820\nfwmark=51\nreplace_peers=true\n\
         public_key={A}\npreshared_key={B}\nendpoint=192.0.2.1:51820\npersistent_keepalive_interval=25\n\
         replace_allowed_ips=true\nallowed_ip=10.0.0.0/24\nallowed_ip=fd00::/64\n\
         public_key={B}\nendpoint=[2001:db8::1]:51820\nreplace_allowed_ips=true\nallowed_ip=10.0.1.0/24\n\
         public_key={}\nupdate_only=true\n",
        "dd".repeat(32)
    )
}

/// [UAPI] Every reply has the sign and number of wireguard-go's.
#[test]
fn replies_are_those_of_wireguard_go() {
    let record = include_str!("../vectors/uapi_wireguard_go.txt");
    let served = Served::new();
    let mut rows = 0;
    for row in record.lines().filter(|row| !row.starts_with('#')) {
        let mut columns = row.splitn(3, '\t');
        let (theirs, ours) = (columns.next().unwrap(), columns.next().unwrap());
        let body = uapi_support::expand(columns.next().unwrap());
        let expected = if ours == "=" { theirs } else { ours };
        assert_eq!(served.set(&body), format!("errno={expected}\n\n"), "{row}");
        rows += 1;
    }
    assert!(rows > 140, "{rows}");
}

/// [UAPI] Framing: what is answered, what is closed without a word, what is answered and then closed.
#[test]
fn framing_table() {
    let served = Served::new();
    let check = |request: &[u8], expected: &str| {
        assert_eq!(served.ask(request), expected, "{:?}", String::from_utf8_lossy(&request[..request.len().min(80)]));
    };
    // Nothing, or nothing known: no reply.
    for request in [
        "",
        "\n",
        "foo\n",
        "get\n",
        "get=2\n\n",
        "get=1 \n\n",
        " get=1\n\n",
        "GET=1\n\n",
        "\nget=1\n\n",
        "get=1\r\n\r\n",
        "set=1\r\n\r\n",
        "set=2\n\n",
        "set=1",
        "get=1",
        "get=1\n",
        "errno=0\n\n",
        "set=1x\n\n",
    ] {
        check(request.as_bytes(), "");
    }
    check(b"\xff\xfe\n", "");
    check(&[b'a'; 200_000], "");
    // A get takes nothing.
    check(b"get=1\n\n", "errno=0\n\n");
    check(b"get=1\nprivate_key\n\nget=1\n\n", "errno=-22\n\n");
    check(b"get=1\n\r\n", "errno=-22\n\n");
    // A set, right and wrong.
    check(b"set=1\n\n", "errno=0\n\n");
    check(b"set=1\nfwmark=0\n\n", "errno=0\n\n");
    check(b"set=1\nfwmark=0\r\n\r\n", "errno=0\n\n");
    check(b"set=1\nfwmark\n\n", "errno=-71\n\n");
    check(b"set=1\nfwmark=x\n\n", "errno=-22\n\n");
    check(b"set=1\nfw\0mark=1\n\n", "errno=-22\n\n");
    check(b"set=1\nfwmark=1\0\n\n", "errno=-22\n\n");
    check(b"set=1\n\xff\xfe=1\n\n", "errno=-22\n\n");
    check(b"set=1\nendpoint=\xff\n\n", "errno=-22\n\n");
    check(b"set=1\n\xff\xfe\n\n", "errno=-71\n\n");
    // Not finished: not applied, whether what came was right or wrong.
    check(b"set=1\n", "errno=-22\n\n");
    check(b"set=1\nfwmark=9\n", "errno=-22\n\n");
    check(b"set=1\nfwmark=9", "errno=-22\n\n");
    check(b"set=1\nfwmark\n", "errno=-71\n\n");
    assert_eq!(served.get(), "errno=0\n\n");
}

/// [UAPI] U-08: several operations on one connection, also when they arrive together or follow a wrong one.
#[test]
fn u_08_pipelined_operations_are_all_answered() {
    let served = Served::new();
    let check = |request: &str, expected: &str| assert_eq!(served.ask(request), expected, "{request:?}");
    check("set=1\nfwmark=1\n\nget=1\n\n", "errno=0\n\nfwmark=1\nerrno=0\n\n");
    check(
        "get=1\n\nget=1\n\nset=1\nfwmark=2\n\nget=1\n\n",
        concat!("fwmark=1\nerrno=0\n\n", "fwmark=1\nerrno=0\n\n", "errno=0\n\n", "fwmark=2\nerrno=0\n\n"),
    );
    check("set=1\nfoo=1\nfwmark=3\n\nget=1\n\n", "errno=-22\n\nfwmark=2\nerrno=0\n\n");
    check("set=1\n\nset=1\n\nset=1\n\nfoo\nget=1\n\n", "errno=0\n\nerrno=0\n\nerrno=0\n\n");
    // The same, with pauses for a reply in between.
    let mut stream = served.connect();
    for mark in 1..100 {
        stream.write_all(format!("set=1\nfwmark={mark}\n\n").as_bytes()).unwrap();
        assert_eq!(read_reply(&mut stream), "errno=0\n\n");
        stream.write_all(b"get=1\n\n").unwrap();
        assert_eq!(read_reply(&mut stream), format!("fwmark={mark}\nerrno=0\n\n"));
    }
}

/// U-08: every operation there is, one after the other on one connection, in pieces of any size: the answers are those
/// that each gets on a connection of its own.
#[test]
fn u_08_all_operations_on_one_connection_in_any_pieces() {
    let operations = [
        "get=1\n\n".to_owned(),
        format!("set=1\n{}\n", three_peers()),
        "get=1\n\n".to_owned(),
        "set=1\n\n".to_owned(),
        "set=1\nfwmark\n\n".to_owned(),
        "set=1\nfoo=1\nfwmark=9\n\n".to_owned(),
        "get=1\n\n".to_owned(),
        format!("set=1\npublic_key={A}\nupdate_only=true\nallowed_ip=-10.0.0.0/24\nallowed_ip=10.9.0.0/24\n\n"),
        format!("set=1\npublic_key={B}\nremove=true\n\n"),
        "get=1\n\n".to_owned(),
        format!("set=1\nprivate_key={ZEROS}\nlisten_port=0\nfwmark=0\nreplace_peers=true\n\n"),
        "get=1\n\n".to_owned(),
        // A line without end is also the connection's.
        format!("set=1\n{}=1\n\n", "a".repeat(LINE_BYTES_MAX)),
    ];
    let apart: String = {
        let served = Served::new();
        operations.iter().map(|operation| served.ask(operation)).collect()
    };
    assert_eq!(apart.matches("errno=").count(), operations.len());
    let together = operations.concat();
    for piece in [1, 2, 7, 64, 1000, together.len()] {
        let served = Served::new();
        let mut stream = served.connect();
        // From a thread of its own: neither side waits for the other's buffers.
        let reader = stream.try_clone().unwrap();
        let answers = std::thread::scope(|scope| {
            let reading = scope.spawn(|| read_to_end(reader));
            // One byte at a time for the first ones, which is enough to cut every line at every place.
            let single = if piece == 1 { together.len().min(3000) } else { 0 };
            together.as_bytes()[..single].iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
            together.as_bytes()[single..].chunks(piece.max(2)).for_each(|piece| stream.write_all(piece).unwrap());
            stream.shutdown(Shutdown::Write).unwrap();
            reading.join().unwrap()
        });
        assert!(answers == apart, "in pieces of {piece}:\n{answers}instead of\n{apart}");
    }
}

/// [UAPI] A set's reply arrives in one piece: wgctrl reads once, 32 bytes.
#[test]
fn a_set_is_answered_in_one_write() {
    let served = Served::new();
    for body in ["", "foo=1\n"] {
        let mut stream = served.connect();
        stream.write_all(format!("set=1\n{body}\n").as_bytes()).unwrap();
        let mut reply = [0; 32];
        let len = stream.read(&mut reply).unwrap();
        assert!(reply[..len].starts_with(b"errno=") && reply[..len].ends_with(b"\n\n"));
    }
}

/// [UAPI] A wrong line is answered at once: the client need not come to an end.
#[test]
fn a_wrong_line_is_answered_before_the_request_ends() {
    let served = Served::new();
    let mut stream = served.connect();
    stream.write_all(b"set=1\nfoo=1\n").unwrap();
    assert_eq!(read_reply(&mut stream), "errno=-22\n\n");
    stream.write_all(b"fwmark=1\nbar\n\nget=1\n\n").unwrap();
    assert_eq!(read_reply(&mut stream), "errno=0\n\n", "what followed the wrong line was not applied");
}

/// [UAPI] A request is applied wholly or not at all: a difference from wireguard-go.
#[test]
fn a_wrong_line_leaves_nothing_applied() {
    let served = Served::new();
    assert_eq!(served.set(&three_peers()), "errno=0\n\n");
    let before = served.get();
    for wrong in ["foo=1", "fwmark", "allowed_ip=10.0.0.0", "listen_port=1", "remove=false", "="] {
        let body = format!("fwmark=99\nreplace_peers=true\npublic_key={A}\nremove=true\n{wrong}\n");
        assert!(served.set(&body).starts_with("errno=-"), "{wrong}");
        assert_eq!(served.get(), before, "{wrong}");
    }
}

/// [UAPI] What the device refuses.
#[test]
fn the_devices_errors_are_mapped() {
    let served = Served::new();
    served.device.refuses.store(true, Ordering::SeqCst);
    assert_eq!(served.set("listen_port=1\n"), "errno=-98\n\n");
    assert_eq!(served.set("fwmark=1\n"), "errno=-98\n\n");
    assert_eq!(served.set(""), "errno=-55\n\n");
}

/// U-01: a client that goes away after any byte of a request leaves the device as it was.
#[test]
fn u_01_disconnect_at_every_byte() {
    let served = Served::new();
    let request = format!("set=1\n{}\n", three_peers());
    for len in 0..request.len() {
        let mut stream = served.connect();
        stream.write_all(&request.as_bytes()[..len]).unwrap();
        drop(stream);
    }
    // Accepted in order, and each thread has then only to reach its end.
    assert_eq!(served.get(), "errno=0\n\n");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(served.device.applied.load(Ordering::SeqCst), 0);
    assert_eq!(served.ask(&request), "errno=0\n\n");
    assert_eq!(served.device.applied.load(Ordering::SeqCst), 1);
}

/// U-02: stalled clients hold up neither others nor the end.
#[test]
fn u_02_slow_loris() {
    let mut served = Served::new();
    let starts: [&[u8]; 5] = [b"", b"s", b"get=1\n", b"set=1\n", b"set=1\nprivate_key=00"];
    let stalled: Vec<_> = (0..100)
        .map(|index| {
            let mut stream = served.connect();
            stream.write_all(starts[index % starts.len()]).unwrap();
            stream
        })
        .collect();
    let fastest = (0..20)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(served.get(), "errno=0\n\n");
            assert_eq!(served.set(""), "errno=0\n\n");
            start.elapsed()
        })
        .min()
        .unwrap();
    assert!(fastest < PROMPT, "{fastest:?}");
    let start = Instant::now();
    served.stop();
    assert!(start.elapsed() < STOP, "{:?}", start.elapsed());
    assert!(!served.path.exists());
    for stream in stalled {
        let reply = read_to_end(stream);
        assert!(reply.is_empty() || reply == "errno=-22\n\n", "{reply:?}");
    }
}

/// Beyond the bound, clients wait for their turn; nobody is turned away.
#[test]
fn connections_beyond_the_bound_wait() {
    let served = Served::new();
    let mut open: Vec<_> = (0..CONNECTIONS_MAX).map(|_| served.connect()).collect();
    for stream in &mut open {
        stream.write_all(b"get=1\n\n").unwrap();
        assert_eq!(read_reply(stream), "errno=0\n\n");
    }
    let mut waiting = served.connect();
    waiting.write_all(b"get=1\n\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(waiting.read(&mut [0]).is_err(), "served beyond the bound");
    drop(open.pop());
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read_reply(&mut waiting), "errno=0\n\n");
}

/// A set that takes long holds up other sets, but no get, and not the end.
#[test]
fn sets_are_serialised_and_gets_are_not() {
    let mut served = Served::new();
    served.device.hold(true);
    let mut first = served.connect();
    first.write_all(b"set=1\nfwmark=1\n\n").unwrap();
    while served.device.applied.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut second = served.connect();
    second.write_all(b"set=1\nfwmark=2\n\n").unwrap();
    assert_eq!(served.get(), "errno=0\n\n");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(served.device.applied.load(Ordering::SeqCst), 1, "two sets at once");
    served.device.hold(false);
    assert_eq!((read_reply(&mut first), read_reply(&mut second)), ("errno=0\n\n".into(), "errno=0\n\n".into()));
    assert_eq!(served.get(), "fwmark=2\nerrno=0\n\n");
    served.device.hold(true);
    first.write_all(b"set=1\nfwmark=3\n\n").unwrap();
    while served.device.applied.load(Ordering::SeqCst) == 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    served.stop();
    assert!(start.elapsed() < STOP, "{:?}", start.elapsed());
}

/// A client that asks and does not read holds no lock and does not delay the end.
#[test]
fn u_02_a_get_that_is_not_read_blocks_nobody() {
    let mut served = Served::new();
    let peers: String = (0..5000).map(|index| format!("public_key={index:064x}\nallowed_ip=10.0.0.0/8\n")).collect();
    assert_eq!(served.set(&peers), "errno=0\n\n");
    let mut deaf = served.connect();
    deaf.write_all(b"get=1\n\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    assert_eq!(served.set("fwmark=1\n"), "errno=0\n\n");
    assert!(served.get().ends_with("allowed_ip=10.0.0.0/8\nerrno=0\n\n"));
    // Who is held up by the deaf one waits half a minute, until that is left.
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    let start = Instant::now();
    served.stop();
    assert!(start.elapsed() < STOP, "{:?}", start.elapsed());
}

/// [UAPI] U-03: lines of any length.
#[test]
fn u_03_a_line_that_is_too_long_is_an_input_error() {
    let served = Served::new();
    let check = |key: usize, rest: &str, expected: &str| {
        assert_eq!(served.ask(format!("set=1\n{}{rest}", "a".repeat(key))), expected, "{key}");
    };
    check(LINE_BYTES_MAX - 3, "=1\n\nget=1\n\n", "errno=-22\n\nerrno=0\n\n");
    check(LINE_BYTES_MAX - 2, "=1\n\nget=1\n\n", "errno=-5\n\n");
    check(5 * LINE_BYTES_MAX, "=1\n\nget=1\n\n", "errno=-5\n\n");
    check(5 * LINE_BYTES_MAX, "", "errno=-5\n\n");
}

/// U-03: odd bytes, odd numbers, odd repetitions, and nothing where something belongs.
#[test]
fn u_03_odd_values_are_refused_or_mean_one_thing() {
    let served = Served::new();
    let refused = |body: &str| {
        assert_eq!(served.set(body), "errno=-22\n\n", "{body:?}");
        assert_eq!(served.get(), "errno=0\n\n", "{body:?}: nothing of it is applied");
    };
    // NUL, spaces, other scripts' digits, signs, bases, fractions, exponents, empty values, values out of range.
    let odd = [
        "",
        " ",
        "1 ",
        " 1",
        "+1",
        "-1",
        "-0",
        "0x1",
        "0b1",
        "1e1",
        "1.0",
        "1_0",
        "1,0",
        "\u{661}",
        "1\0",
        "\x001",
        "true",
        "inf",
        "99999999999999999999",
    ];
    for value in odd {
        refused(&format!("listen_port={value}\n"));
        refused(&format!("fwmark={value}\n"));
        refused(&format!("public_key={A}\npersistent_keepalive_interval={value}\n"));
        refused(&format!("public_key={A}\nallowed_ip=10.0.0.0/{value}\n"));
        refused(&format!("public_key={A}\nendpoint=1.2.3.4:{value}\n"));
        refused(&format!("public_key={A}\nprotocol_version={value}\n"));
    }
    for value in ["65536", "4294967296"] {
        refused(&format!("listen_port={value}\n"));
        refused(&format!("public_key={A}\npersistent_keepalive_interval={value}\n"));
        refused(&format!("public_key={A}\nendpoint=1.2.3.4:{value}\n"));
    }
    refused("fwmark=4294967296\n");
    for value in ["", "True", "TRUE", "false", "1", "yes", " true", "true ", "true\0"] {
        refused(&format!("replace_peers={value}\n"));
        for key in ["remove", "update_only", "replace_allowed_ips"] {
            refused(&format!("public_key={A}\n{key}={value}\n"));
        }
    }
    for line in
        ["private_key=", "public_key=", "endpoint=", "=", "=1", " fwmark=1", "fwmark =1", "FWMARK=1", "fwmark==1"]
    {
        refused(&format!("{line}\n"));
    }
    for bytes in [&b"\xff=1"[..], b"fwmark=\xff", b"fwmark=\xc3\x28", b"\0=1", b"fwmark\0=1", b"fwmark=1\0"] {
        assert_eq!(served.ask([b"set=1\n", bytes, b"\n\n"].concat()), "errno=-22\n\n", "{bytes:?}");
    }
    assert_eq!(served.get(), "errno=0\n\n");
    // A key of the device that comes twice means the last; lines may end as on other systems.
    assert_eq!(served.set("fwmark=1\nfwmark=2\r\nlisten_port=7\r\nlisten_port=8\n"), "errno=0\n\n");
    assert_eq!(served.get(), "listen_port=8\nfwmark=2\nerrno=0\n\n");
    // So does a peer's, and a peer that comes twice is one.
    let twice = format!(
        "public_key={A}\nendpoint=1.2.3.4:5\nendpoint=1.2.3.4:6\nallowed_ip=10.0.0.0/8\nallowed_ip=10.0.0.0/8\n"
    );
    assert_eq!(served.set(&format!("{twice}{twice}")), "errno=0\n\n");
    let dump = served.get();
    for (line, count) in
        [("public_key=", 1), ("endpoint=1.2.3.4:6\n", 1), ("endpoint=", 1), ("allowed_ip=10.0.0.0/8\n", 1)]
    {
        assert_eq!(dump.matches(line).count(), count, "{line:?} in {dump}");
    }
}

/// U-04: what is a key and what is none, in each of the three places; nothing of a refused one is applied.
#[test]
fn u_04_key_table() {
    let places = |value: &str| {
        [
            format!("private_key={value}\n"),
            format!("public_key={value}\n"),
            format!("public_key={B}\npreshared_key={value}\n"),
        ]
    };
    let a = |len: usize| "a".repeat(len);
    let wrong = [
        String::new(),
        a(1),
        a(2),
        a(32),
        a(62),
        a(63),
        a(65),
        a(66),
        a(128),
        a(10_000),
        format!("{}g", a(63)),
        format!("g{}", a(63)),
        format!("{} ", a(63)),
        format!(" {}", a(63)),
        format!(" {}", a(64)),
        format!("{} ", a(64)),
        format!("{}\0", a(63)),
        format!("0x{}", a(62)),
        format!("0x{}", a(64)),
        format!("-{}", a(63)),
        format!("+{}", a(63)),
        format!("{}:{}", a(32), a(31)),
        format!("{}=", a(63)),
        // As many characters, or as many bytes, in UTF-8.
        format!("{}\u{e9}", a(63)),
        format!("{}\u{e9}", a(62)),
        "\u{ff11}".repeat(64),
        // Base64, as `wg` shows keys.
        "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=".to_owned(),
        "(none)".to_owned(),
        "off".to_owned(),
    ];
    let served = Served::new();
    for value in &wrong {
        for body in places(value) {
            assert_eq!(served.set(&body), "errno=-22\n\n", "{body:?}");
            assert_eq!(served.get(), "errno=0\n\n", "{body:?}");
        }
    }
    for value in [A.to_owned(), A.to_uppercase(), format!("{}{}", "aA".repeat(16), "Aa".repeat(16))] {
        for body in places(&value) {
            let served = Served::new();
            assert_eq!(served.set(&body), "errno=0\n\n", "{body:?}");
            let dump = served.get();
            let key = body.lines().last().unwrap().split_once('=').unwrap().0;
            let kept = dump.lines().find(|line| line.starts_with(&format!("{key}=")));
            // A private key is clamped, all are said in lower case.
            let said = if key == "private_key" { format!("a8{}6a", "a".repeat(60)) } else { A.to_owned() };
            assert_eq!(kept, Some(format!("{key}={said}").as_str()), "{body:?}: {dump}");
        }
    }
    // Zeros: no private key, a peer like any other, no preshared key.
    let served = Served::new();
    assert_eq!(served.set(&format!("private_key={A}\nprivate_key={ZEROS}\n")), "errno=0\n\n");
    assert_eq!(served.get(), "errno=0\n\n");
    assert_eq!(served.set(&format!("public_key={ZEROS}\npreshared_key={A}\npreshared_key={ZEROS}\n")), "errno=0\n\n");
    assert!(served.get().starts_with(&format!("public_key={ZEROS}\npreshared_key={ZEROS}\n")));
    // The highest there is, whose last bit clamping takes away.
    assert_eq!(served.set(&format!("replace_peers=true\nprivate_key={}\n", "f".repeat(64))), "errno=0\n\n");
    assert_eq!(served.get(), format!("private_key=f8{}7f\nerrno=0\n\n", "f".repeat(60)));
}

/// U-03: memory is bounded whatever is sent: a gibibyte without a line's end, and more valid lines than the bound.
#[test]
fn u_03_memory_is_bounded() {
    if !alone("u_03_memory_is_bounded", "") {
        return;
    }
    let served = Served::new();
    let flood = |piece: &[u8], times: usize| {
        let mut stream = served.connect();
        stream.write_all(b"set=1\n").unwrap();
        for _ in 0..times {
            stream.write_all(piece).unwrap();
        }
        stream.write_all(b"\n\n").unwrap();
        read_to_end(stream)
    };
    let before = own_status("VmRSS:");
    assert_eq!(flood(&[b'a'; 1 << 20], 1 << 10), "errno=-5\n\n");
    let grown = own_status("VmHWM:") - before;
    assert!(grown < 16 << 10, "{grown} KiB for an endless line");
    let start = Instant::now();
    let peer = format!("public_key={A}\n");
    let lines = format!("{peer}{}", "allowed_ip=10.0.0.0/8\n".repeat(50_000));
    assert_eq!(flood(lines.as_bytes(), (1 << 30) / lines.len() + 1), "errno=-12\n\n");
    let grown = own_status("VmHWM:") - before;
    assert!(grown < (2 * PARSED_BYTES_MAX as u64) >> 10, "{grown} KiB for endless lines");
    println!("endless lines: {grown} KiB at most, {:?}; bound {} KiB", start.elapsed(), PARSED_BYTES_MAX >> 10);
    assert_eq!(served.device.applied.load(Ordering::SeqCst), 0);
}

/// U-05: a hundred thousand peers through the parser alone.
#[test]
fn u_05_a_large_request_is_parsed_in_bounded_memory() {
    use std::fmt::Write as _;
    let mut body = String::from("replace_peers=true\n");
    for index in 0..100_000_u32 {
        let [_, b, c, d] = index.to_be_bytes();
        writeln!(
            body,
            "public_key={index:064x}\npreshared_key={A}\nendpoint=192.0.2.1:51820\nreplace_allowed_ips=true\n\
             allowed_ip=10.{b}.{c}.{d}/32\nallowed_ip=fd00::{b:x}:{c:x}{d:02x}/128"
        )
        .unwrap();
    }
    let start = Instant::now();
    let update = set::parse(body.as_bytes()).unwrap();
    println!("100,000 peers, {} bytes: {:?}", body.len(), start.elapsed());
    assert_eq!(update.peers.len(), 100_000);
    let bytes: usize =
        update.peers.iter().map(|peer| peer.allowed_ips.capacity() * size_of::<AllowedIpUpdate>()).sum::<usize>()
            + update.peers.capacity() * size_of::<PeerUpdate>();
    assert!(bytes < 2 * 100_000 * (size_of::<PeerUpdate>() + 2 * size_of::<AllowedIpUpdate>()), "{bytes}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// U-06: as many allowed IPs for one peer as the kernel's own test has, the whole way: set, said, set again, moved to
/// another peer one by one, and gone.
#[test]
fn u_06_a_hundred_and_thirty_thousand_allowed_ips_of_one_peer() {
    use std::fmt::Write as _;
    const COUNT: u32 = 130_560;
    let mut prefixes = String::new();
    for index in 0..COUNT {
        let [_, b, c, d] = index.to_be_bytes();
        writeln!(prefixes, "allowed_ip=10.{b}.{c}.{d}/32").unwrap();
    }
    let body = format!("public_key={A}\n{prefixes}");
    assert_eq!(set::parse(body.as_bytes()).unwrap().peers[0].allowed_ips.len(), COUNT as usize);
    let (tun, _system) = adit::tun::memory::MemoryTun::new("memory", 1420);
    let network = adit::udp::memory::MemoryNetwork::new();
    let device = adit::device::Device::builder(tun, network.host(&[])).threads(1).start().unwrap();
    let say = || dump(&device.snapshot());
    for body in [&body, &body] {
        device.apply(set::parse(body.as_bytes()).unwrap()).unwrap();
        assert!(say().ends_with(&format!("{prefixes}errno=0\n\n")), "in the order in which they were set");
    }
    device.apply(set::parse(format!("public_key={B}\n{prefixes}").as_bytes()).unwrap()).unwrap();
    let (first, second) =
        device.snapshot().peers.iter().map(|peer| peer.allowed_ips.len()).fold((0, 0), |(_, a), b| (a, b));
    assert_eq!((first, second), (0, COUNT as usize), "each has moved");
    device.apply(set::parse(b"replace_peers=true\n").unwrap()).unwrap();
    assert_eq!(say(), "errno=0\n\n");
}

/// U-07: peers are removed and added ten thousand times, two by two, while others ask: each of them is told of both of
/// a pair or of none, of no peer and of no allowed IP twice, and the whole of each.
#[test]
fn u_07_every_dump_is_of_one_moment() {
    const PAIRS: u32 = 50;
    const CHANGES: u32 = 10_000;
    /// The key of one of a pair.
    fn key(pair: u32, second: bool) -> String {
        format!("{:064x}", pair * 2 + u32::from(second) + 1)
    }
    /// Both of a pair: the second one takes the shared prefix from the first.
    fn both(pair: u32) -> String {
        let (first, second) = (key(pair, false), key(pair, true));
        format!(
            "public_key={first}\nallowed_ip=10.0.{pair}.1/32\nallowed_ip=10.1.{pair}.0/24\n\
             public_key={second}\nallowed_ip=10.0.{pair}.2/32\nallowed_ip=10.1.{pair}.0/24\n"
        )
    }
    /// Each peer's key and allowed IPs, of a dump that is whole.
    fn peers(dump: &str) -> Vec<(&str, Vec<&str>)> {
        let lines = dump.strip_suffix("errno=0\n\n").expect("a dump has an end");
        let mut sections = lines.split("public_key=");
        assert_eq!(sections.next(), Some(""), "no line of the device");
        sections
            .map(|section| {
                let (key, rest) = section.split_once('\n').unwrap();
                for needed in
                    ["preshared_key=", "protocol_version=", "last_handshake_time_nsec=", "tx_bytes=", "rx_bytes="]
                {
                    assert_eq!(rest.matches(needed).count(), 1, "{section}");
                }
                (key, rest.lines().filter_map(|line| line.strip_prefix("allowed_ip=")).collect())
            })
            .collect()
    }
    let (tun, _system) = adit::tun::memory::MemoryTun::new("memory", 1420);
    let network = adit::udp::memory::MemoryNetwork::new();
    let device = std::sync::Arc::new(adit::device::Device::builder(tun, network.host(&[])).threads(1).start().unwrap());
    let directory = std::env::temp_dir().join(format!("adit-uapi-moment-{}", std::process::id()));
    let listener = Listener::bind(&directory, "wg0").unwrap();
    let path = listener.path().to_owned();
    let server = adit::uapi::serve(listener, device, |_| ()).unwrap();
    let all: String = (0..PAIRS).map(both).collect();
    assert_eq!(uapi_support::ask(&path, format!("set=1\n{all}\n")), "errno=0\n\n");

    let changed = std::sync::atomic::AtomicBool::new(false);
    let dumps = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = uapi_support::connect(&path);
            // Some at a time, so that the other side's answers are not what is measured.
            for changes in (0..CHANGES).collect::<Vec<_>>().chunks(50) {
                let request: String = changes
                    .iter()
                    .map(|change| {
                        let pair = change * 7 % PAIRS;
                        let removed = format!(
                            "public_key={}\nremove=true\npublic_key={}\nremove=true\n",
                            key(pair, false),
                            key(pair, true)
                        );
                        format!("set=1\n{removed}\nset=1\n{}\n", both(pair))
                    })
                    .collect();
                stream.write_all(request.as_bytes()).unwrap();
                for _ in 0..2 * changes.len() {
                    assert_eq!(read_reply(&mut stream), "errno=0\n\n");
                }
            }
            changed.store(true, Ordering::SeqCst);
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut dumps, mut incomplete) = (0, 0);
                    while !changed.load(Ordering::SeqCst) {
                        let dump = uapi_support::ask(&path, "get=1\n\n");
                        let peers = peers(&dump);
                        let keys: std::collections::HashSet<&str> = peers.iter().map(|(key, _)| *key).collect();
                        assert_eq!(keys.len(), peers.len(), "a peer twice: {dump}");
                        for pair in 0..PAIRS {
                            let of = |second| peers.iter().find(|(found, _)| *found == key(pair, second));
                            let (first, second) = (of(false), of(true));
                            assert_eq!(first.is_some(), second.is_some(), "half of pair {pair}: {dump}");
                            let (Some((_, first)), Some((_, second))) = (first, second) else {
                                incomplete += 1;
                                continue;
                            };
                            assert_eq!(*first, [format!("10.0.{pair}.1/32")], "{dump}");
                            assert_eq!(*second, [format!("10.0.{pair}.2/32"), format!("10.1.{pair}.0/24")], "{dump}");
                        }
                        dumps += 1;
                    }
                    (dumps, incomplete)
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    println!("dumps, and pairs missing in them: {dumps:?}");
    assert!(dumps.iter().all(|(dumps, _)| *dumps > 10), "{dumps:?}");
    assert_eq!(peers(&uapi_support::ask(&path, "get=1\n\n")).len(), 2 * PAIRS as usize);
    server.stop();
    std::fs::remove_dir_all(directory).unwrap();
}

/// U-05: the whole way: 100,000 peers in one set, dumped, removed.
#[test]
fn u_05_a_hundred_thousand_peers() {
    let served = Served::new();
    let peers: String = (0..100_000_u32)
        .map(|index| format!("public_key={index:064x}\nallowed_ip=::{:x}:{:x}/128\n", index >> 16, index & 0xffff))
        .collect();
    assert_eq!(served.set(&peers), "errno=0\n\n");
    let dump = served.get();
    assert_eq!(dump.matches("public_key=").count(), 100_000);
    assert!(dump.ends_with("allowed_ip=::1:869f/128\nerrno=0\n\n"));
    assert_eq!(served.set("replace_peers=true\n"), "errno=0\n\n");
    assert_eq!(served.get(), "errno=0\n\n");
}

/// [UAPI] U-10: whatever happens to the file, the owner hears of it once, and another's file is left alone.
#[test]
fn u_10_socket_removed_or_replaced() {
    let check_one = |what: &str, mut served: Served, change: &dyn Fn(&std::path::Path)| {
        assert_eq!(served.get(), "errno=0\n\n");
        change(&served.path);
        let why = served.ended.recv_timeout(STOP);
        assert!(matches!(why, Ok(Ended::Removed)), "{what}: {why:?}");
        let left = served.path.exists();
        served.stop();
        assert_eq!(served.path.exists(), left, "{what}");
        assert!(served.ended.recv().is_err(), "{what}: said once");
    };
    let directory = std::env::temp_dir().join(format!("adit-uapi-ends-{}", std::process::id()));
    let check = |what: &str, change: &dyn Fn(&std::path::Path)| {
        check_one(what, Served::new(), change);
        let fd = Listener::bind(&directory, "wg0").unwrap().into_fd().unwrap();
        let inherited = Served::at(Listener::inherit(fd, &directory, "wg0").unwrap(), directory.clone());
        check_one(&format!("{what}, inherited"), inherited, change);
    };
    check("removed", &|path| std::fs::remove_file(path).unwrap());
    check("moved", &|path| std::fs::rename(path, path.with_extension("moved")).unwrap());
    check("replaced by a file", &|path| {
        let other = path.with_extension("other");
        std::fs::write(&other, b"").unwrap();
        std::fs::rename(&other, path).unwrap();
    });
    check("replaced by a socket", &|path| {
        std::fs::remove_file(path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    });
    check("its directory removed", &|path| std::fs::remove_dir_all(path.parent().unwrap()).unwrap());
    check("its directory moved", &|path| {
        let elsewhere = path.parent().unwrap().with_extension("moved");
        std::fs::rename(path.parent().unwrap(), &elsewhere).unwrap();
        std::fs::remove_dir_all(elsewhere).unwrap();
    });
}

/// A socket that was removed between the two processes of a daemon's start is noticed as well.
#[test]
fn removed_before_it_was_watched() {
    let directory = std::env::temp_dir().join(format!("adit-uapi-early-{}", std::process::id()));
    let fd = Listener::bind(&directory, "wg0").unwrap().into_fd().unwrap();
    std::fs::remove_file(directory.join("wg0.sock")).unwrap();
    let served = Served::at(Listener::inherit(fd, &directory, "wg0").unwrap(), directory);
    assert!(matches!(served.ended.recv_timeout(STOP), Ok(Ended::Removed)));
}

#[test]
fn an_inherited_socket_serves_those_who_came_before() {
    let directory = std::env::temp_dir().join(format!("adit-uapi-inherited-{}", std::process::id()));
    let fd = Listener::bind(&directory, "wg0").unwrap().into_fd().unwrap();
    let mut early = UnixStream::connect(directory.join("wg0.sock")).unwrap();
    early.write_all(b"get=1\n\n").unwrap();
    let served = Served::at(Listener::inherit(fd, &directory, "wg0").unwrap(), directory);
    assert_eq!(read_reply(&mut early), "errno=0\n\n");
    assert_eq!(served.get(), "errno=0\n\n");
}

/// F-21: a panic while a set is applied ends the serving, and says so.
#[test]
fn f_21_a_panic_is_reported() {
    let served = Served::new();
    served.device.panics.store(true, Ordering::SeqCst);
    assert_eq!(served.set(""), "");
    assert!(matches!(served.ended.recv_timeout(STOP), Ok(Ended::Panicked)));
}

/// S-50: only the owner can use the socket, whatever the umask is.
#[test]
fn s_50_permissions_under_umask_000() {
    if !alone("s_50_permissions_under_umask_000", "umask 000") {
        return;
    }
    let served = Served::new();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&served.path), 0o600);
    assert_eq!(mode(served.path.parent().unwrap()), 0o755);
}

#[test]
fn s_50_permissions_under_umask_777() {
    if !alone("s_50_permissions_under_umask_777", "umask 777") {
        return;
    }
    let directory = std::env::temp_dir();
    let name = format!("adit-umask-{}", std::process::id());
    let listener = Listener::bind(directory, name).unwrap();
    let mode = std::fs::metadata(listener.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

/// F-05: without a free descriptor nothing spins and nothing is lost; with one again, clients are served.
#[test]
fn f_05_descriptors_exhausted() {
    if !alone("f_05_descriptors_exhausted", "ulimit -n 40") {
        return;
    }
    let served = Served::new();
    let stat = std::fs::File::open("/proc/self/stat").unwrap();
    // Fields 14 and 15: the processor time of all threads, in hundredths of a second.
    let ticks = || -> u64 {
        let mut text = [0; 1024];
        let len = std::os::unix::fs::FileExt::read_at(&stat, &mut text, 0).unwrap();
        let text = std::str::from_utf8(&text[..len]).unwrap();
        text.split_ascii_whitespace().skip(13).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
    };
    let mut open = Vec::new();
    while let Ok(stream) = UnixStream::connect(&served.path) {
        open.push(stream);
    }
    assert!(open.len() > 10);
    let before = ticks();
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks() - before < 10, "busy with nothing: {} of 50 ticks", ticks() - before);
    drop(open);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(served.get(), "errno=0\n\n");
}

/// [UAPI] U-11: 10,000 clients that connect and leave without a byte, as `wg show interfaces` does, leave no trace.
#[test]
fn u_11_ten_thousand_connects() {
    if !alone("u_11_ten_thousand_connects", "") {
        return;
    }
    let served = Served::new();
    let resources = || (std::fs::read_dir("/proc/self/fd").unwrap().count(), own_status("Threads:"));
    assert_eq!(served.get(), "errno=0\n\n");
    std::thread::sleep(Duration::from_millis(100));
    let before = resources();
    let start = Instant::now();
    for _ in 0..10_000 {
        drop(served.connect());
    }
    println!("10,000 connects: {:?}", start.elapsed());
    assert_eq!(served.get(), "errno=0\n\n");
    let deadline = Instant::now() + PATIENCE;
    while resources() != before {
        assert!(Instant::now() < deadline, "{before:?} → {:?}", resources());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Nobody there, nothing to do: no thread wakes up, also not for a connection that says nothing.
#[test]
fn idle_is_silent() {
    if !alone("idle_is_silent", "") {
        return;
    }
    let served = Served::new();
    let _silent = served.connect();
    assert_eq!(served.get(), "errno=0\n\n");
    std::thread::sleep(Duration::from_millis(300));
    let switches = || -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir("/proc/self/task")
            .unwrap()
            .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .filter(|status| ["Name:\tuapi\n", "Name:\tuapi-client\n"].iter().any(|name| status.starts_with(name)))
            .map(|status| {
                let line = |field| status.lines().find(|line| line.starts_with(field)).unwrap().to_owned();
                (line("Pid:"), line("voluntary_ctxt_switches:"))
            })
            .collect();
        all.sort();
        all
    };
    let before = switches();
    assert_eq!(before.len(), 2, "{before:?}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(switches(), before);
}

/// S-51: no key, and no line that could be one, is logged.
#[cfg(feature = "daemon")]
#[test]
fn s_51_no_key_in_the_log() {
    use std::sync::{Arc, Mutex};
    if !alone("s_51_no_key_in_the_log", "") {
        return;
    }
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let served = Served::new();
    let base64 = "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=";
    for body in [
        three_peers(),
        format!("private_key={}\n", &A[1..]),
        format!("private_key={base64}\n"),
        format!("{base64}\n"),
        format!("{A}\n"),
        format!("{A}={B}\n"),
        format!("public_key={A}\npreshared_key={B}0\n"),
    ] {
        served.set(&body);
    }
    served.device.refuses.store(true, Ordering::SeqCst);
    served.set(&three_peers());
    served.ask(format!("get=1\n{A}\n\n"));
    served.ask(format!("{A}\n"));
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("errno=-22") && log.contains("errno=-98"), "{log}");
    for secret in ["aaaaaaaa", "bbbbbbbb", "c0c0c0c0", "qqqqqqqq"] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// S-51: after a set, and after the connection, no byte of its keys is anywhere in the memory of the process that served
/// it, if the device keeps none: neither of the text nor of what was parsed, whatever the list of peers grew to.
#[test]
fn s_51_keys_are_wiped_from_memory() {
    const TEST: &str = "s_51_keys_are_wiped_from_memory";
    const SERVE: &str = "ADIT_TEST_SERVE";
    struct Forgetful;
    impl Configure for Forgetful {
        fn apply(&self, _update: adit::device::config::Update) -> Result<(), adit::device::config::ApplyError> {
            Ok(())
        }
        fn snapshot(&self) -> Snapshot {
            Snapshot::default()
        }
    }
    if let Ok(directory) = std::env::var(SERVE) {
        let listener = Listener::bind(directory, "wg0").unwrap();
        let _server = adit::uapi::serve(listener, std::sync::Arc::new(Forgetful), |_| ()).unwrap();
        // Until the other process is done with us.
        std::io::stdin().read_exact(&mut [0]).unwrap_err();
        return;
    }
    let directory = std::env::temp_dir().join(format!("adit-uapi-memory-{}", std::process::id()));
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
        .env(SERVE, &directory)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let path = directory.join("wg0.sock");
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => assert!(Instant::now() < deadline),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // Recognisable in the middle, where clamping does not reach, and different in each key.
    const MARK: &[u8] = b"adit-secret!";
    let secret = |index: u32| -> [u8; 32] {
        let mut key = [0x5a; 32];
        key[8..12].copy_from_slice(&index.to_be_bytes());
        key[12..24].copy_from_slice(MARK);
        key
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut request = format!("set=1\nprivate_key={}\n", hex(&secret(0)));
    for index in 1..=1000 {
        request.push_str(&format!("public_key={index:064x}\npreshared_key={}\n", hex(&secret(index))));
    }
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    assert_eq!(read_reply(&mut stream), "errno=0\n\n");
    // One that is refused, too.
    stream.write_all(format!("{request}foo=1\n\n").as_bytes()).unwrap();
    assert_eq!(read_reply(&mut stream), "errno=-22\n\n");
    stream.write_all(b"get=1\n\n").unwrap();
    assert_eq!(read_reply(&mut stream), "errno=0\n\n");
    let found = memory_of(child.id()).map(|memory| {
        let count = |needle: &[u8]| memory.windows(needle.len()).filter(|window| *window == needle).count();
        (count(MARK), count(hex(MARK).as_bytes()))
    });
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    std::fs::remove_dir_all(&directory).unwrap();
    match found {
        Ok(found) => assert_eq!(found, (0, 0), "copies as bytes, as text"),
        Err(error) => println!("SKIPPED: {TEST}: the memory of a child cannot be read: {error}"),
    }
}

/// Everything that the process can write to.
fn memory_of(pid: u32) -> std::io::Result<Vec<u8>> {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut all = Vec::new();
    for line in std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let mut part = vec![0; (address(end) - address(start)) as usize];
        // What has gone in the meantime has nothing for us.
        if std::os::unix::fs::FileExt::read_exact_at(&memory, &mut part, address(start)).is_ok() {
            all.extend_from_slice(&part);
        }
    }
    Ok(all)
}

/// The text of a get, turned into a set that makes the same.
fn as_set(dump: &str) -> String {
    let mut body = String::from("replace_peers=true\n");
    for line in dump.lines() {
        match line.split_once('=').unwrap_or_default().0 {
            "" | "errno" | "last_handshake_time_sec" | "last_handshake_time_nsec" | "rx_bytes" | "tx_bytes" => {}
            "public_key" => body.extend([line, "\nreplace_allowed_ips=true\n"]),
            _ => body.extend([line, "\n"]),
        }
    }
    body
}

fn dump(snapshot: &Snapshot) -> String {
    let mut text = Vec::new();
    get::write(snapshot, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// Lines that are mostly right, over few keys and prefixes, so that they meet.
fn body() -> impl Strategy<Value = String> {
    let key = || {
        prop::sample::select(vec![A, B, K, ZEROS, "dd00000000000000000000000000000000000000000000000000000000000001"])
    };
    let prefix = prop_oneof![
        (0..4_u8, 0..4_u8, 0..33_u8).prop_map(|(a, d, len)| format!("10.{a}.0.{d}/{len}")),
        (0..4_u8, 0..129_u8).prop_map(|(a, len)| format!("fd00::{a:x}/{len}")),
    ];
    let peer_line = prop_oneof![
        4 => (any::<bool>(), prefix).prop_map(|(minus, it)| format!("allowed_ip={}{it}", if minus { "-" } else { "" })),
        2 => key().prop_map(|it| format!("public_key={it}")),
        1 => key().prop_map(|it| format!("preshared_key={it}")),
        1 => any::<u16>().prop_map(|it| format!("persistent_keepalive_interval={it}")),
        1 => any::<std::net::SocketAddrV4>().prop_map(|it| format!("endpoint={it}")),
        1 => (any::<std::net::Ipv6Addr>(), any::<u16>()).prop_map(|(it, port)| format!("endpoint=[{it}%lo]:{port}")),
        1 => prop::sample::select(vec!["remove=true", "update_only=true", "replace_allowed_ips=true", "protocol_version=1"])
            .prop_map(str::to_owned),
    ];
    let device_line = prop_oneof![
        key().prop_map(|it| format!("private_key={it}")),
        any::<u16>().prop_map(|it| format!("listen_port={it}")),
        any::<u32>().prop_map(|it| format!("fwmark={it}")),
        Just("replace_peers=true".to_owned()),
    ];
    let lines = (prop::collection::vec(device_line, 0..4), key(), prop::collection::vec(peer_line, 0..30));
    lines.prop_map(|(device, first, peer)| {
        let mut body = device.join("\n");
        body.push_str(&format!("\npublic_key={first}\n"));
        body.push_str(&peer.join("\n"));
        body.trim_start().to_owned()
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        // A failure prints its seed and is kept here, to be tried first the next time.
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/uapi_transcripts.regressions"))),
        ..ProptestConfig::default()
    })]

    /// [UAPI] Z-05: what a get says, set again, changes nothing; and set on another device, makes the same.
    #[test]
    fn z_05_get_of_set_is_idempotent(bodies in prop::collection::vec(body(), 1..4)) {
        let device = FakeDevice::default();
        for body in &bodies {
            device.apply(set::parse(body.as_bytes()).unwrap()).unwrap();
        }
        let first = dump(&device.snapshot());
        device.touch(|peer| {
            peer.rx_bytes = 7;
            peer.last_handshake = Some(Duration::from_secs(7));
        });
        let touched = dump(&device.snapshot());
        let again = as_set(&touched);
        device.apply(set::parse(again.as_bytes()).unwrap()).unwrap();
        prop_assert_eq!(&dump(&device.snapshot()), &touched, "traffic and order survive");
        let other = FakeDevice::default();
        other.apply(set::parse(as_set(&first).as_bytes()).unwrap()).unwrap();
        prop_assert_eq!(dump(&other.snapshot()), first);
    }

    /// Z-05: no bytes make the parser panic, and none that it refuses have an errno that is not negative.
    #[test]
    fn z_05_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), body in body(), at in any::<prop::sample::Index>()) {
        let mut mixed = body.into_bytes();
        let at = at.index(mixed.len() + 1);
        mixed.splice(at..at, bytes.iter().copied());
        for text in [&bytes, &mixed] {
            if let Err(error) = set::parse(text) {
                prop_assert!(error.errno() < 0);
            }
        }
    }
}

/// A shut-down write side ends a connection only after what was asked has been answered.
#[test]
fn half_closed_clients_get_their_replies() {
    let served = Served::new();
    let mut stream = served.connect();
    stream.write_all(b"get=1\n\nset=1\nfwmark=1\n\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(stream), "errno=0\n\nerrno=0\n\n");
}
