//! What the command line asks for.
//!
//! wireguard-go's shapes come first, read by hand, so that no parser's cleverness comes between a
//! script and its interface: `NAME`, `-f NAME`, `--foreground NAME`, `-- NAME`, `--version`. A first
//! word that is one of adit's commands is that command; `-f NAME` and `-- NAME` always mean an
//! interface. Only what is neither goes to clap, which also is the source of the help, the manual
//! page and the completions.
//!
//! Differs from wireguard-go: a wrong shape is an error (usage on standard error, exit 1; there:
//! standard output, exit 0), and a lone word that begins with `-` is an option, not an interface.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
#[cfg(feature = "proxy")]
use std::path::PathBuf;
#[cfg(feature = "proxy")]
use std::time::Duration;

#[cfg(feature = "proxy")]
use clap::ArgMatches;
use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};

use super::logging::LogForm;
use super::metrics;
use super::workers::{self, Workers};

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Invocation {
    /// Serve an interface.
    Daemon(DaemonArguments),
    /// Make or turn a key.
    Key(KeyCommand),
    /// Give proxies and forwards into a tunnel.
    #[cfg(feature = "proxy")]
    Proxy(ProxyArguments),
    /// Ask whether hosts inside a sidecar's tunnel answer.
    #[cfg(feature = "proxy")]
    Ping(PingArguments),
    /// Print this and be done.
    Print(String),
    /// Complain with this and fail.
    Wrong(String),
}

/// The commands about keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyCommand {
    GenKey,
    GenPsk,
    PubKey,
}

impl KeyCommand {
    const ALL: [Self; 3] = [Self::GenKey, Self::GenPsk, Self::PubKey];

    const fn name(self) -> &'static str {
        match self {
            Self::GenKey => "genkey",
            Self::GenPsk => "genpsk",
            Self::PubKey => "pubkey",
        }
    }

    const fn about(self) -> &'static str {
        match self {
            Self::GenKey => "Generates a new private key and writes it to stdout",
            Self::GenPsk => "Generates a new preshared key and writes it to stdout",
            Self::PubKey => "Reads a private key from stdin and writes its public key to stdout",
        }
    }
}

/// How to serve an interface. What is not given here, the environment may give.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DaemonArguments {
    pub(super) interface: String,
    pub(super) foreground: bool,
    pub(super) log_level: Option<String>,
    pub(super) log_format: Option<LogForm>,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) dumpable: bool,
    pub(super) workers: Workers,
}

/// The word of the sidecar's command.
#[cfg(feature = "proxy")]
const PROXY: &str = "proxy";

/// What the sidecar is asked. What is not given here, the environment may give.
#[cfg(feature = "proxy")]
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ProxyArguments {
    pub(super) config: Option<PathBuf>,
    pub(super) check: bool,
    pub(super) silent: bool,
    pub(super) info: Option<SocketAddr>,
}

/// The word of the command that asks hosts inside a tunnel.
#[cfg(feature = "proxy")]
const PING: &str = "ping";

/// Whom to ask, and how often.
#[cfg(feature = "proxy")]
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PingArguments {
    pub(super) config: Option<PathBuf>,
    pub(super) count: u32,
    pub(super) timeout: Duration,
    /// Names or addresses; none for those of `CheckAlive`.
    pub(super) hosts: Vec<String>,
}

const AFTER_HELP: &str = "\
The interface is made as a TUN device and left down. Configure it with wg(8) and ip(8), or let
wg-quick(8) do all of it:
  WG_QUICK_USERSPACE_IMPLEMENTATION=adit wg-quick up wg0

The daemon ends when the interface is deleted (ip link del wg0), when its socket is removed
(rm /var/run/wireguard/wg0.sock), and on SIGTERM or SIGINT.

Environment:
  WG_PROCESS_FOREGROUND=1  as --foreground
  LOG_LEVEL=LEVEL          as --log-level
  ADIT_LOG_FORMAT=FORMAT   as --log-format
  ADIT_METRICS=ADDR:PORT   as --metrics
  ADIT_DUMPABLE=1          as --dumpable
  ADIT_THREADS=N           as --threads
  ADIT_SPIN_US=N           as --spin-us
  ADIT_CPUS=LIST           as --cpus
  ADIT_SANDBOX=off         do without the sandbox that the daemon is in once it serves
  ADIT_MAC1_FILTER=off     do not have the kernel drop handshake messages of who does not know the public key
  WG_TUN_FD=N              an open TUN device to use instead of making one
  WG_UAPI_FD=N             a listening UNIX socket to use instead of making one
  NOTIFY_SOCKET=PATH       where to tell a service manager that the daemon is ready: sd_notify(3)

Exit status: 0 when the daemon ended as it was asked to, or runs in the background and answers;
1 when something failed, with one line on standard error that says what.";

fn daemon_command() -> Command {
    Command::new("adit")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves a WireGuard interface from userspace")
        .override_usage("adit [-f/--foreground] INTERFACE-NAME\n       adit COMMAND")
        .after_help(AFTER_HELP)
        .disable_version_flag(true)
        .arg(
            Arg::new("interface")
                .value_name("INTERFACE-NAME")
                .help("The name of the interface to make; %d in it stands for a free number")
                .required(true),
        )
        .arg(
            Arg::new("foreground")
                .short('f')
                .long("foreground")
                .action(ArgAction::SetTrue)
                .help("Stay in the foreground instead of going on as a background process"),
        )
        .arg(
            Arg::new("log-level")
                .long("log-level")
                .value_name("LEVEL")
                .value_parser(["verbose", "debug", "error", "silent"])
                .help("How much to log to standard error; the default is error"),
        )
        .arg(
            Arg::new("log-format")
                .long("log-format")
                .value_name("FORMAT")
                .value_parser(LogForm::NAMES)
                .help("How to write the log: as text, the default, or as JSON, an object for each line"),
        )
        .arg(
            Arg::new("metrics")
                .long("metrics")
                .value_name("ADDR:PORT")
                .value_parser(metrics::address)
                .help("Serve metrics and probes by HTTP on this address and port, to whoever can reach it"),
        )
        .arg(
            Arg::new("dumpable")
                .long("dumpable")
                .action(ArgAction::SetTrue)
                .help("Allow core dumps, which may hold keys, and debuggers"),
        )
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("N")
                .value_parser(workers::threads)
                .help("How many workers there are, from 1 to 16; the default is one for each processor"),
        )
        .arg(
            Arg::new("spin-us")
                .long("spin-us")
                .value_name("N")
                .value_parser(workers::spin)
                .help("How many microseconds a worker looks for more before it sleeps, up to 1000; 0 for not at all"),
        )
        .arg(
            Arg::new("cpus")
                .long("cpus")
                .value_name("LIST")
                .value_parser(processors)
                .help("Pin the workers to these processors, in this order, such as 0,2-3"),
        )
        .arg(
            Arg::new("version")
                .short('V')
                .long("version")
                .action(ArgAction::SetTrue)
                .help("Print the version and how the program was built"),
        )
}

#[cfg(feature = "proxy")]
const PROXY_AFTER_HELP: &str = "\
The file is wg-quick's, with wireproxy's sections for proxies and forwards: see adit.conf(5).
SIGHUP, or a change of the file, reads it again; sessions and connections that it does not
change live on. SIGTERM and SIGINT end the sidecar.

Environment:
  ADIT_CONFIG=FILE             as --config
  ADIT_METRICS=ADDRESS:PORT    as --info
  ADIT_SANDBOX=off             do without the sandbox that the sidecar is in once it runs
  ADIT_<SECTION>_<KEY>=VALUE   instead of what the file says for the key
  ADIT_PEER_<N>_<KEY>=VALUE    the same for the N-th of a section that repeats
  LOG_LEVEL=LEVEL              how much to log if the file does not say: verbose, error or silent

Exit status: 0 when the sidecar ended as it was asked to, or the file is right; 1 when something
failed, or the file is wrong, with a line on standard error for each thing that is.";

/// Names the sidecar's file.
#[cfg(feature = "proxy")]
fn config_argument() -> Arg {
    Arg::new("config")
        .short('c')
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .value_hint(clap::ValueHint::FilePath)
}

/// The sidecar: wireproxy's options, and its habits.
#[cfg(feature = "proxy")]
fn proxy_command() -> Command {
    Command::new(PROXY)
        .about("Gives proxies and forwards into a tunnel, without an interface or a privilege")
        .override_usage("adit proxy [--check] --config FILE")
        .after_help(PROXY_AFTER_HELP)
        .arg(config_argument().help("The file that says what to do"))
        .arg(
            Arg::new("check")
                .short('n')
                .long("check")
                .visible_alias("configtest")
                .action(ArgAction::SetTrue)
                .help("Only say whether the file is right, and what is wrong with it"),
        )
        .arg(
            Arg::new("silent")
                .short('s')
                .long("silent")
                .action(ArgAction::SetTrue)
                .help("Log nothing, whatever the file says"),
        )
        .arg(
            Arg::new("info")
                .short('i')
                .long("info")
                .value_name("ADDRESS:PORT")
                .value_parser(clap::value_parser!(SocketAddr))
                .help("Serve /livez, /readyz and /metrics here if the file has no [Metrics]"),
        )
        .arg(
            Arg::new("daemon")
                .short('d')
                .long("daemon")
                .action(ArgAction::SetTrue)
                .hide(true)
                .help("Not there: the sidecar stays in the foreground"),
        )
}

#[cfg(feature = "proxy")]
const PING_AFTER_HELP: &str = "\
Makes the tunnel of a sidecar's file, without its services and without a privilege, and sends echo
requests through it. Where nobody answers it says how far they came: whether the peer shakes hands,
and whether it is known where it is. Not while a sidecar runs by the same file: two with one key
take the peer's session from each other.

Exit status: 0 when each host answered at least once; 1 otherwise.";

/// Options by the names of ping(8), as far as `-c` leaves that free.
#[cfg(feature = "proxy")]
fn ping_command() -> Command {
    Command::new(PING)
        .about("Asks hosts inside a sidecar's tunnel whether they are there")
        .override_usage("adit ping --config FILE [HOST]...")
        .after_help(PING_AFTER_HELP)
        .arg(config_argument().help("The sidecar's file"))
        .arg(
            Arg::new("count")
                .long("count")
                .value_name("N")
                .value_parser(clap::value_parser!(u32).range(1..))
                .default_value("4")
                .help("How often to ask each host, once a second"),
        )
        .arg(
            Arg::new("timeout")
                .short('W')
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(clap::value_parser!(u16).range(1..))
                .default_value("6")
                .help("How long to wait for an answer; a handshake is tried again after five seconds"),
        )
        .arg(
            Arg::new("host").value_name("HOST").num_args(0..).help(
                "An address, or a name that is resolved through the tunnel; those of CheckAlive if there is none",
            ),
        )
}

/// A list in one piece: as a bare `Vec` it would be a number of values for clap.
#[derive(Clone)]
struct Processors(Vec<usize>);

fn processors(text: &str) -> Result<Processors, String> {
    workers::processors(text).map(Processors)
}

/// The whole command line as clap describes it: for the help, the manual page, the completions.
pub fn command() -> Command {
    let command = KeyCommand::ALL
        .into_iter()
        .fold(daemon_command(), |command, key| command.subcommand(Command::new(key.name()).about(key.about())));
    #[cfg(feature = "proxy")]
    let command = command.subcommand(proxy_command()).subcommand(ping_command());
    command.subcommand_value_name("COMMAND").subcommand_negates_reqs(true)
}

/// How the program is used, in one line as wireguard-go prints it.
fn usage(program: &str) -> String {
    format!("Usage: {program} [-f/--foreground] INTERFACE-NAME\nTry '{program} --help' for more.\n")
}

/// Reads the command line: `program` is its first word, `arguments` are the others.
pub(super) fn parse(program: &OsStr, arguments: &[OsString]) -> Invocation {
    let program = program.to_string_lossy();
    let Some(words) = arguments.iter().map(|word| word.to_str()).collect::<Option<Vec<&str>>>() else {
        return Invocation::Wrong(usage(&program));
    };
    let daemon = |interface: &str, foreground| {
        let interface = interface.to_owned();
        Invocation::Daemon(DaemonArguments { interface, foreground, ..DaemonArguments::default() })
    };
    match words[..] {
        [] => Invocation::Wrong(usage(&program)),
        ["--version" | "-V"] => Invocation::Print(super::version()),
        ["--help" | "-h" | "help"] => Invocation::Print(command().render_help().to_string()),
        ["--", name] if !name.is_empty() => daemon(name, false),
        ["-f" | "--foreground", "--", name] if !name.is_empty() => daemon(name, true),
        ["-f" | "--foreground", name] if is_word(name) => daemon(name, true),
        #[cfg(feature = "proxy")]
        [PROXY, ref options @ ..] => proxy(&program, options),
        #[cfg(feature = "proxy")]
        [PING, ref options @ ..] => ping(&program, options),
        [first, ..] if is_command(first) => commanded(&program, &words),
        [name] if is_word(name) => daemon(name, false),
        _ => by_clap(&program, &words),
    }
}

/// Neither empty nor an option.
fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('-')
}

fn is_command(word: &str) -> bool {
    #[cfg(feature = "proxy")]
    if word == PROXY || word == PING {
        return true;
    }
    word == "help" || KeyCommand::ALL.iter().any(|command| command.name() == word)
}

/// The sidecar with its options.
#[cfg(feature = "proxy")]
fn proxy(program: &str, options: &[&str]) -> Invocation {
    let wrong = |reason: &str| wrong_of(program, PROXY, "[--check] --config FILE", reason);
    let matches = match matches_of(proxy_command(), PROXY, options, wrong) {
        Ok(matches) => matches,
        Err(invocation) => return *invocation,
    };
    if matches.get_flag("daemon") {
        return wrong("the sidecar has no background: leave -d out, and let a service manager or a container keep it");
    }
    Invocation::Proxy(ProxyArguments {
        config: matches.get_one("config").cloned(),
        check: matches.get_flag("check"),
        silent: matches.get_flag("silent"),
        info: matches.get_one("info").copied(),
    })
}

/// Hosts to ask, with options.
#[cfg(feature = "proxy")]
fn ping(program: &str, options: &[&str]) -> Invocation {
    let wrong = |reason: &str| wrong_of(program, PING, "--config FILE [HOST]...", reason);
    match matches_of(ping_command(), PING, options, wrong) {
        Ok(matches) => Invocation::Ping(PingArguments {
            config: matches.get_one("config").cloned(),
            count: matches.get_one("count").copied().unwrap_or(1),
            timeout: Duration::from_secs(matches.get_one("timeout").copied().map_or(1, u16::into)),
            hosts: matches.get_many("host").map_or_else(Vec::new, |hosts| hosts.cloned().collect()),
        }),
        Err(invocation) => *invocation,
    }
}

/// A complaint about the options of a command, and how it is used.
#[cfg(feature = "proxy")]
fn wrong_of(program: &str, word: &str, usage: &str, reason: &str) -> Invocation {
    Invocation::Wrong(format!(
        "{program}: {reason}\nUsage: {program} {word} {usage}\nTry '{program} {word} --help' for more.\n"
    ))
}

/// The options of a command, or what to do instead: print its help, or complain.
#[cfg(feature = "proxy")]
fn matches_of(
    command: Command,
    word: &'static str,
    options: &[&str],
    wrong: impl Fn(&str) -> Invocation,
) -> Result<ArgMatches, Box<Invocation>> {
    command.try_get_matches_from(std::iter::once(&word).chain(options)).map_err(|error| {
        if error.kind() == clap::error::ErrorKind::DisplayHelp {
            return Box::new(Invocation::Print(help_of(word)));
        }
        let text = error.render().to_string();
        Box::new(wrong(text.lines().next().unwrap_or_default().trim_start_matches("error: ")))
    })
}

/// A first word that is a command.
fn commanded(program: &str, words: &[&str]) -> Invocation {
    match (KeyCommand::ALL.into_iter().find(|command| command.name() == words[0]), &words[1..]) {
        (Some(command), []) => Invocation::Key(command),
        (Some(command), ["-h" | "--help"]) => Invocation::Print(help_of(command.name())),
        (Some(command), _) => Invocation::Wrong(format!("Usage: {program} {}\n", command.name())),
        (None, [name]) if is_command(name) => Invocation::Print(help_of(name)),
        (None, _) => Invocation::Wrong(usage(program)),
    }
}

fn help_of(name: &str) -> String {
    let mut command = command();
    command.build();
    let help = match command.find_subcommand_mut(name) {
        Some(subcommand) => subcommand.render_help(),
        None => StyledStr::new(),
    };
    help.to_string()
}

/// The daemon with adit's own options.
fn by_clap(program: &str, words: &[&str]) -> Invocation {
    let matches = match daemon_command().try_get_matches_from(std::iter::once(&program).chain(words)) {
        Ok(matches) => matches,
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {
            return Invocation::Print(command().render_help().to_string());
        }
        Err(error) => {
            let text = error.render().to_string();
            let reason = text.lines().next().unwrap_or_default();
            return Invocation::Wrong(format!(
                "{program}: {}\n{}",
                reason.trim_start_matches("error: "),
                usage(program)
            ));
        }
    };
    match matches.get_one::<String>("interface") {
        Some(interface) if !interface.is_empty() && !matches.get_flag("version") => {
            Invocation::Daemon(DaemonArguments {
                interface: interface.clone(),
                foreground: matches.get_flag("foreground"),
                log_level: matches.get_one("log-level").cloned(),
                log_format: matches.get_one::<String>("log-format").and_then(|name| LogForm::parse(name).ok()),
                metrics: matches.get_one("metrics").copied(),
                dumpable: matches.get_flag("dumpable"),
                workers: Workers {
                    threads: matches.get_one("threads").copied(),
                    spin: matches.get_one("spin-us").copied(),
                    processors: matches.get_one("cpus").map(|Processors(list)| list.clone()),
                },
            })
        }
        _ => Invocation::Wrong(usage(program)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Invocation {
        parse(OsStr::new("adit"), &words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn daemon(interface: &str, foreground: bool) -> Invocation {
        Invocation::Daemon(DaemonArguments { interface: interface.into(), foreground, ..Default::default() })
    }

    #[test]
    fn shapes_of_the_reference() {
        let check = |words: &[&str], expected| assert_eq!(parsed(words), expected, "{words:?}");
        check(&["wg0"], daemon("wg0", false));
        check(&["wg%d"], daemon("wg%d", false));
        check(&["-f", "wg0"], daemon("wg0", true));
        check(&["--foreground", "wg0"], daemon("wg0", true));
        check(&["--", "wg0"], daemon("wg0", false));
        check(&["-f", "--", "wg0"], daemon("wg0", true));
        check(&["--", "-f"], daemon("-f", false));
        check(&["--version"], Invocation::Print(super::super::version()));
        check(&["-V"], Invocation::Print(super::super::version()));
    }

    #[test]
    fn commands_and_interfaces_of_their_names() {
        for command in KeyCommand::ALL {
            let name = command.name();
            assert_eq!(parsed(&[name]), Invocation::Key(command));
            assert_eq!(parsed(&["-f", name]), daemon(name, true));
            assert_eq!(parsed(&["--", name]), daemon(name, false));
            assert_eq!(parsed(&[name, "x"]), Invocation::Wrong(format!("Usage: adit {name}\n")));
            for help in [vec![name, "--help"], vec!["help", name]] {
                assert!(matches!(parsed(&help), Invocation::Print(text) if text.contains(command.about())), "{help:?}");
            }
        }
        assert_eq!(parsed(&["-f", "help"]), daemon("help", true));
        assert_eq!(parsed(&["--", "help"]), daemon("help", false));
    }

    #[test]
    fn options_of_our_own() {
        let expected = DaemonArguments {
            interface: "genkey".into(),
            foreground: true,
            log_level: Some("verbose".into()),
            log_format: Some(LogForm::Json),
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9586))),
            dumpable: true,
            workers: Workers {
                threads: Some(2),
                spin: Some(std::time::Duration::from_micros(30)),
                processors: Some(vec![3, 0, 1]),
            },
        };
        let ours = ["--log-level", "verbose", "--dumpable", "--threads", "2", "--spin-us=30", "--cpus", "3,0-1"];
        let more = ["--log-format", "json", "--metrics=127.0.0.1:9586"];
        let words = [&ours[..], &more, &["-f", "genkey"]].concat();
        assert_eq!(parsed(&words), Invocation::Daemon(expected));
    }

    #[cfg(feature = "proxy")]
    #[test]
    fn the_sidecar_has_the_options_of_wireproxy() {
        let check = |words: &[&str], expected: ProxyArguments| {
            assert_eq!(parsed(words), Invocation::Proxy(expected), "{words:?}");
        };
        let config = || Some(PathBuf::from("a.conf"));
        check(&["proxy"], ProxyArguments::default());
        check(&["proxy", "-c", "a.conf"], ProxyArguments { config: config(), ..Default::default() });
        for word in ["-n", "--check", "--configtest"] {
            check(
                &["proxy", "--config", "a.conf", word],
                ProxyArguments { config: config(), check: true, ..Default::default() },
            );
        }
        let info = Some("127.0.0.1:9586".parse().unwrap());
        check(&["proxy", "-s", "-i", "127.0.0.1:9586"], ProxyArguments { silent: true, info, ..Default::default() });
        assert_eq!(parsed(&["-f", "proxy"]), daemon("proxy", true));
        assert_eq!(parsed(&["--", "proxy"]), daemon("proxy", false));
        for words in [&["proxy", "-d"][..], &["proxy", "wg0"], &["proxy", "-c"], &["proxy", "-i", "x"]] {
            let Invocation::Wrong(text) = parsed(words) else { panic!("{words:?}") };
            assert!(text.contains("Usage: adit proxy [--check] --config FILE"), "{words:?}: {text}");
        }
        for words in [&["proxy", "--help"][..], &["help", "proxy"]] {
            assert!(matches!(parsed(words), Invocation::Print(text) if text.contains("ADIT_PEER_<N>_<KEY>")));
        }
    }

    #[cfg(feature = "proxy")]
    #[test]
    fn hosts_are_asked_by_options_like_those_of_ping() {
        let expected = |config: Option<&str>, count, seconds, hosts: &[&str]| {
            Invocation::Ping(PingArguments {
                config: config.map(PathBuf::from),
                count,
                timeout: Duration::from_secs(seconds),
                hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            })
        };
        assert_eq!(parsed(&["ping"]), expected(None, 4, 6, &[]));
        let words = ["ping", "-c", "a.conf", "--count", "2", "-W", "9", "10.0.0.1", "db.corp"];
        assert_eq!(parsed(&words), expected(Some("a.conf"), 2, 9, &["10.0.0.1", "db.corp"]));
        assert_eq!(parsed(&["-f", "ping"]), daemon("ping", true));
        for words in [&["ping", "--count", "0"][..], &["ping", "-W", "x"], &["ping", "--bogus"]] {
            let Invocation::Wrong(text) = parsed(words) else { panic!("{words:?}") };
            assert!(text.contains("Usage: adit ping --config FILE [HOST]..."), "{words:?}: {text}");
        }
        assert!(matches!(parsed(&["ping", "--help"]), Invocation::Print(text) if text.contains("shakes hands")));
    }

    #[test]
    fn wrong_shapes() {
        let check = |words: &[&str]| {
            let Invocation::Wrong(text) = parsed(words) else { panic!("{words:?}: {:?}", parsed(words)) };
            assert!(text.contains("Usage: adit [-f/--foreground] INTERFACE-NAME\n"), "{words:?}: {text}");
        };
        check(&[]);
        check(&[""]);
        check(&["-f"]);
        check(&["-f", ""]);
        check(&["--"]);
        check(&["--", ""]);
        check(&["--foreground"]);
        check(&["wg0", "wg1"]);
        check(&["-f", "wg0", "wg1"]);
        check(&["--bogus"]);
        check(&["-x"]);
        check(&["--log-level", "loud", "wg0"]);
        check(&["--log-format", "xml", "wg0"]);
        check(&["--metrics", "9586", "wg0"]);
        check(&["--metrics", "localhost:9586", "wg0"]);
        check(&["--threads", "0", "wg0"]);
        check(&["--threads", "17", "wg0"]);
        check(&["--threads", "2", "--threads", "3", "wg0"]);
        check(&["--spin-us", "1001", "wg0"]);
        check(&["--spin-us", "", "wg0"]);
        check(&["--cpus", "1-0", "wg0"]);
        check(&["--cpus", "0", "1", "wg0"]);
        check(&["wg0", "--cpus"]);
        check(&["--version", "wg0"]);
        check(&["help", "wg0"]);
        let not_text = <OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"wg\xff").to_owned();
        assert!(matches!(parse(OsStr::new("adit"), &[not_text]), Invocation::Wrong(_)));
    }

    #[test]
    fn help_is_complete() {
        let Invocation::Print(help) = parsed(&["--help"]) else { panic!("no help") };
        let most = format!("from 1 to {}", crate::device::THREADS_MAX);
        let ours = ["--threads", "--spin-us", "--cpus", "ADIT_THREADS", "ADIT_SPIN_US", "ADIT_CPUS", &most];
        let shown = ["--log-format", "--metrics", "ADIT_LOG_FORMAT", "ADIT_METRICS"];
        for word in ["INTERFACE-NAME", "--foreground", "--log-level", "--dumpable", "--version", "--help", "LOG_LEVEL"]
            .into_iter()
            .chain(ours)
            .chain(shown)
        {
            assert!(help.contains(word), "{word} is missing in\n{help}");
        }
        for command in KeyCommand::ALL {
            assert!(help.contains(command.name()) && help.contains(command.about()), "{command:?}");
        }
        assert_eq!(parsed(&["-f", "--help"]), Invocation::Print(help.clone()));
        assert_eq!(parsed(&["help"]), Invocation::Print(help));
        command().debug_assert();
    }
}
