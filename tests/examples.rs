//! Each program of `examples/` runs to its end and says something. A new one is found by itself: it either runs without
//! arguments and privileges, or it has a row in [`SPECIAL`]. The benchmark that two of them are for has its tests run here as well.

mod testbed;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use testbed::{Namespace, Scratch, example, name_of, run_to_end, skip, try_run_to_end};

/// Far more than any of them takes, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Examples that have a test of their own here, and why.
const SPECIAL: [(&str, &str); 3] = [
    ("device", "makes a TUN: runs in a namespace"),
    ("handshake_load", "a tool of the benchmarks: needs arguments"),
    ("stranger_flood", "another one"),
];

/// All of them, by name.
fn examples() -> Vec<String> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).expect("there are examples") {
        let path = entry.expect("a folder can be listed").path();
        let is_program = path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists();
        assert!(is_program, "{}: no example", path.display());
        names.push(path.file_stem().expect("a file has a name").to_string_lossy().into_owned());
    }
    names.sort();
    names
}

#[test]
fn every_example_runs() {
    let names = examples();
    for wanted in ["device", "netstack_http_get", "own_transport", "proto_loop"] {
        assert!(names.iter().any(|name| name == wanted), "{wanted} is one of {names:?}");
    }
    for (name, _) in SPECIAL {
        assert!(names.iter().any(|known| known == name), "{name} is gone");
    }
    for name in names.iter().filter(|name| SPECIAL.iter().all(|(special, _)| special != name)) {
        let said = run_to_end(&mut Command::new(example(name)), LIMIT);
        println!("--- {name}\n{said}");
        assert!(!said.trim().is_empty(), "{name} says what happened");
    }
}

#[test]
fn the_device_example_moves_packets() {
    privileged!();
    let namespace = Namespace::new("example");
    let said = run_to_end(&mut namespace.command(example("device")), LIMIT);
    println!("{said}");
    assert!(said.contains("ping 3: there and back"), "{said}");
    assert!(said.contains("the device ended: Requested"), "{said}");
    let left = namespace.ip("-brief link show type tun");
    assert!(left.trim().is_empty(), "its interface is gone: {left}");
}

/// Without the privilege it changes nothing, and says why.
#[test]
fn the_device_example_says_what_it_lacks() {
    let program = example("device");
    let mut command = if testbed::missing(&["ip", "setpriv"]).is_none() {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-net_admin", "--inh-caps=-all"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    let said = run_to_end(&mut command, LIMIT);
    assert!(said.starts_with("nothing was done: "), "{said}");
}

#[test]
fn the_handshake_load_example_makes_initiations() {
    let scratch = Scratch::new();
    let file = scratch.file("initiations");
    let create = |arguments: &[&str]| try_run_to_end(Command::new(example("handshake_load")).args(arguments), LIMIT);
    let output = create(&["create", file.to_str().expect("a path in ASCII"), "2", "3"]).expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1 + 2, "a private key and two public ones");
    assert!(!create(&[]).expect("it runs").status.success(), "it says how it is used");
}

#[test]
fn the_stranger_flood_example_floods() {
    let (nobody, key) = (std::net::UdpSocket::bind("127.0.0.1:0").expect("loopback is there"), "A".repeat(43) + "=");
    let to = nobody.local_addr().expect("it is bound").to_string();
    for kind in ["wrong-mac1", "right-mac1", "unknown-index"] {
        let said =
            run_to_end(Command::new(example("stranger_flood")).args([kind, &key, &to, "0.1", "1000", "0"]), LIMIT);
        assert!(said.starts_with("{\"sent\": ") && !said.starts_with("{\"sent\": 0,"), "{said}");
    }
    let wrong = try_run_to_end(Command::new(example("stranger_flood")).args(["any", &key, &to, "1", "1", "0"]), LIMIT);
    assert!(!wrong.expect("it runs").status.success(), "it says what it does not know");
}

/// What the benchmark does with figures that it cannot have, its stream, and the flood in its hands.
#[test]
fn the_benchmarks_own_tests_pass() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip(name_of(&|| ()), "not installed: python3 (scripts/install-tools.sh)");
    }
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/e2e/tests.py");
    run_to_end(Command::new("python3").arg(tests).arg(example("stranger_flood")), LIMIT);
}
