//! The manual page and the shells' completions say what the command line says: they are made from
//! its definition, and what is committed is compared with what would be made now.
//!
//! `ADIT_BLESS=1 cargo test --test man_pages` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::path::Path;

use adit::cli::command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// Compares with the committed file, or writes it.
fn check(path: &str, made: &[u8]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("ADIT_BLESS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, made).unwrap();
        return;
    }
    let committed = fs::read(&file).unwrap_or_default();
    assert!(
        committed == made,
        "{path} is not what the command line says: run ADIT_BLESS=1 cargo test --test man_pages"
    );
}

/// A section whose items are a term and what it means.
fn items(roff: &mut Roff, heading: &str, items: &[(&str, &str)]) {
    roff.control("SH", [heading]);
    for (term, text) in items {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*text)]);
    }
}

fn paragraphs(roff: &mut Roff, heading: &str, paragraphs: &[Vec<Inline>]) {
    roff.control("SH", [heading]);
    for (index, paragraph) in paragraphs.iter().enumerate() {
        if index > 0 {
            roff.control("PP", []);
        }
        roff.text(paragraph.clone());
    }
}

fn example(roff: &mut Roff, text: &str, commands: &[&str]) {
    roff.control("PP", []);
    roff.text([roman(text)]);
    roff.control("PP", []);
    roff.control("nf", []);
    for command in commands {
        roff.control("RS", []);
        roff.text([roman(*command)]);
        roff.control("RE", []);
    }
    roff.control("fi", []);
}

fn manual() -> Vec<u8> {
    let mut made = Vec::new();
    let mut command = command().after_help("");
    command.build();
    let man = Man::new(command).title("ADIT").section("8").manual("System Administration");
    man.render_title(&mut made).unwrap();
    man.render_name_section(&mut made).unwrap();
    let mut roff = Roff::new();
    paragraphs(
        &mut roff,
        "SYNOPSIS",
        &[
            vec![bold("adit"), roman(" [OPTIONS] [--] "), italic("INTERFACE-NAME")],
            vec![bold("adit proxy"), roman(" [--check] --config "), italic("FILE")],
            vec![bold("adit genkey"), roman(" | "), bold("genpsk"), roman(" | "), bold("pubkey")],
        ],
    );
    paragraphs(
        &mut roff,
        "DESCRIPTION",
        &[
            vec![roman(
                "Makes a TUN interface, left down and without addresses, and serves WireGuard on it. It takes the \
                 place of wireguard-go(8): the same command line and environment, the same socket for wg(8).",
            )],
            vec![roman(
                "Without --foreground the program goes on as a background process, and returns when the interface \
                 and its socket exist and the background process serves them.",
            )],
            vec![roman(
                "A first word that is one of the commands below is that command. Directly after -f or after --, a \
                 word is always the name of an interface.",
            )],
        ],
    );
    roff.to_writer(&mut made).unwrap();
    man.render_options_section(&mut made).unwrap();
    let mut roff = Roff::new();
    items(
        &mut roff,
        "COMMANDS",
        &[
            ("genkey", "Generates a new private key and writes it to standard output, in base64."),
            ("genpsk", "Generates a new preshared key and writes it to standard output, in base64."),
            ("pubkey", "Reads a private key from standard input and writes its public key to standard output."),
            ("proxy", "Gives proxies and forwards into a tunnel, without an interface or a privilege: adit-proxy(8)."),
            ("help", "Shows the help, or that of a command."),
        ],
    );
    items(
        &mut roff,
        "ENVIRONMENT",
        &[
            ("WG_PROCESS_FOREGROUND", "1: as --foreground."),
            ("LOG_LEVEL", "As --log-level. Unset or unknown means error."),
            ("ADIT_LOG_FORMAT", "As --log-format."),
            ("ADIT_METRICS", "As --metrics."),
            ("ADIT_DUMPABLE", "1: as --dumpable."),
            ("ADIT_THREADS", "As --threads."),
            ("ADIT_SPIN_US", "As --spin-us."),
            ("ADIT_CPUS", "As --cpus."),
            ("ADIT_SANDBOX", "off: do without the sandbox that the daemon is in once it serves."),
            (
                "ADIT_MAC1_FILTER",
                "off: do not have the kernel drop handshake messages of who does not know the public key.",
            ),
            ("WG_TUN_FD", "The number of an open TUN device (IFF_TUN, IFF_NO_PI) to use instead of making one."),
            ("WG_UAPI_FD", "The number of a listening UNIX socket to use instead of making one."),
            ("NOTIFY_SOCKET", "Where to tell a service manager that the daemon serves; see sd_notify(3)."),
            ("WG_QUICK_USERSPACE_IMPLEMENTATION", "Read by wg-quick(8): set it to adit."),
        ],
    );
    items(
        &mut roff,
        "FILES",
        &[
            (
                "/var/run/wireguard/INTERFACE-NAME.sock",
                "The socket that wg(8) talks to. Removing it ends the daemon, which removes it when it ends.",
            ),
            ("/dev/net/tun", "Makes the interface."),
        ],
    );
    items(
        &mut roff,
        "SIGNALS",
        &[("SIGTERM, SIGINT, SIGHUP", "End the daemon, within a second; the interface goes with it.")],
    );
    items(
        &mut roff,
        "EXIT STATUS",
        &[
            (
                "0",
                "The daemon ended as it was asked to: by a signal, because its interface was deleted, or because \
                 its socket was removed. Or: it goes on in the background and serves.",
            ),
            ("1", "Something failed; one line on standard error says what. Nothing is left behind."),
        ],
    );
    roff.control("SH", ["EXAMPLES"]);
    example(
        &mut roff,
        "Everything from /etc/wireguard/wg0.conf:",
        &["WG_QUICK_USERSPACE_IMPLEMENTATION=adit wg-quick up wg0"],
    );
    example(
        &mut roff,
        "By hand:",
        &["adit wg0", "wg setconf wg0 wg0.conf", "ip address add 10.0.0.1/24 dev wg0", "ip link set wg0 up"],
    );
    example(
        &mut roff,
        "An interface whose plaintext only one namespace sees:",
        &["adit wg0 && ip link set wg0 netns inner"],
    );
    paragraphs(
        &mut roff,
        "SEE ALSO",
        &[vec![
            bold("adit-proxy"),
            roman("(8), "),
            bold("wg"),
            roman("(8), "),
            bold("wg-quick"),
            roman("(8), "),
            bold("ip"),
            roman("(8)"),
        ]],
    );
    roff.to_writer(&mut made).unwrap();
    made
}

/// The page of the sidecar's command; its file has one of its own, `adit.conf(5)`.
fn manual_of_proxy() -> Vec<u8> {
    let mut made = Vec::new();
    let mut command = command();
    command.build();
    let proxy = command.find_subcommand("proxy").unwrap().clone().name("adit-proxy").after_help("");
    let man = Man::new(proxy).title("ADIT-PROXY").section("8").manual("System Administration");
    man.render_title(&mut made).unwrap();
    man.render_name_section(&mut made).unwrap();
    let mut roff = Roff::new();
    paragraphs(
        &mut roff,
        "SYNOPSIS",
        &[
            vec![
                bold("adit proxy"),
                roman(" [--silent] [--info "),
                italic("ADDRESS:PORT"),
                roman("] --config "),
                italic("FILE"),
            ],
            vec![bold("adit proxy"), roman(" --check --config "), italic("FILE")],
            vec![
                bold("adit ping"),
                roman(" [--count "),
                italic("N"),
                roman("] [--timeout "),
                italic("SECONDS"),
                roman("] --config "),
                italic("FILE"),
                roman(" ["),
                italic("HOST"),
                roman("]..."),
            ],
        ],
    );
    paragraphs(
        &mut roff,
        "DESCRIPTION",
        &[
            vec![roman(
                "Is one side of a WireGuard tunnel by itself, and gives others a way into it: proxies for SOCKS5 and \
                 HTTP, forwards of TCP and UDP ports in both directions, and DNS. It makes no interface, needs no \
                 privilege, writes no file, and runs under any user. What it does stands in one file: adit.conf(5).",
            )],
            vec![roman(
                "The sidecar stays in the foreground. It tells of its state by /livez, /readyz and /metrics where the \
                 file or --info says, and wg(8) sees it if the file names a socket.",
            )],
            vec![roman(
                "With --check it only reads the file, prints its name and ok, or a line for each mistake: file, line, \
                 column, what is wrong, why, and what to write instead. No message shows a key or a password.",
            )],
            vec![
                bold("adit ping"),
                roman(
                    " makes the tunnel of a sidecar's file without its services, and asks hosts inside, or those of \
                     CheckAlive, whether they are there: four times, once a second, each time for six seconds at most. Where \
                     none answers it says how far the asking came: whether the peer shakes hands, and whether it is known \
                     where it is. It fails unless each host answered once. It is for before a sidecar is started: two that \
                     have one key take the peer's session from each other, so it refuses where a place that the file \
                     listens at is taken.",
                ),
            ],
        ],
    );
    roff.to_writer(&mut made).unwrap();
    man.render_options_section(&mut made).unwrap();
    let mut roff = Roff::new();
    items(
        &mut roff,
        "ENVIRONMENT",
        &[
            ("ADIT_CONFIG", "As --config."),
            ("ADIT_METRICS", "As --info."),
            ("ADIT_SANDBOX", "off: do without the sandbox that the sidecar is in once it runs."),
            ("ADIT_SECTION_KEY", "Instead of what the file says for a key: see adit.conf(5)."),
            ("LOG_LEVEL", "verbose, error or silent, if the file does not say how much to log. The default is error."),
        ],
    );
    items(
        &mut roff,
        "SIGNALS",
        &[
            ("SIGTERM, SIGINT", "End the sidecar, within a second."),
            (
                "SIGHUP",
                "Reads the file again, as a change of it does. If there is a mistake in it, the mistakes are told and \
                 everything stays as it is. Otherwise what has changed is changed: a peer that has not keeps its \
                 session, a service that has not keeps its connections.",
            ),
        ],
    );
    items(
        &mut roff,
        "EXIT STATUS",
        &[
            ("0", "The sidecar ended as it was asked to; with --check, the file is right."),
            ("1", "Something failed, or the file is wrong: standard error says what."),
        ],
    );
    roff.control("SH", ["EXAMPLES"]);
    example(&mut roff, "Is the file right?", &["adit proxy --check --config sidecar.conf"]);
    example(&mut roff, "Does the tunnel work?", &["adit ping --config sidecar.conf 10.0.0.1"]);
    example(
        &mut roff,
        "A SOCKS5 proxy into a tunnel that the environment alone describes:",
        &[
            "export ADIT_INTERFACE_PRIVATEKEY=... ADIT_INTERFACE_ADDRESS=10.0.0.2 ADIT_INTERFACE_DNS=10.0.0.1",
            "export ADIT_PEER_PUBLICKEY=... ADIT_PEER_ENDPOINT=vpn.example.org:51820",
            "ADIT_SOCKS5_BINDADDRESS=127.0.0.1:1080 adit proxy --config /dev/null",
            "curl --proxy socks5h://127.0.0.1:1080 http://intranet.example.org/",
        ],
    );
    paragraphs(
        &mut roff,
        "SEE ALSO",
        &[vec![bold("adit.conf"), roman("(5), "), bold("adit"), roman("(8), "), bold("wg"), roman("(8)")]],
    );
    roff.to_writer(&mut made).unwrap();
    made
}

#[test]
fn manual_page_is_current() {
    check("docs/man/adit.8", &manual());
    check("docs/man/adit-proxy.8", &manual_of_proxy());
}

#[test]
fn completions_are_current() {
    for (shell, path) in [
        (Shell::Bash, "deploy/completions/adit.bash"),
        (Shell::Zsh, "deploy/completions/_adit"),
        (Shell::Fish, "deploy/completions/adit.fish"),
    ] {
        let mut made = Vec::new();
        clap_complete::generate(shell, &mut command(), "adit", &mut made);
        check(path, &made);
    }
}
