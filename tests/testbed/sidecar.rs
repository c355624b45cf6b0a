//! `adit proxy`, running as a user without privileges, and clients of its proxies.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use super::daemon::Implementation;
use super::namespace::Namespace;
use super::process::{Process, Scratch, status_field};
use super::wait_until;

/// Who the sidecar is.
pub const USER: u32 = 65_532;
/// Where a sidecar sees its folder.
pub const FOLDER: &str = "/mnt";
/// Root's own folders of programs are closed to others.
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// From the start until the log or a listener says that it serves.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Any single answer of a proxy.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// What a sidecar may have open at first, as most systems have it.
const OPEN_FILES: u32 = 1024;

/// A command that a sidecar's user runs in a namespace, with `adit` in its path and `folder` as [`FOLDER`].
///
/// The folder and the program are bound into a mount namespace of the command's own: where the checkout lies, that user
/// may not be able to go.
pub fn unprivileged(namespace: &Namespace, folder: &Path, script: &str) -> Command {
    let program = Implementation::Adit.program();
    let program = program.canonicalize().unwrap_or(program);
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace.name(), "sh", "-euc"]);
    let user = USER.to_string();
    let drop = format!(
        "mount --bind \"$1\" {FOLDER}; mount --bind \"$2\" {FOLDER}/bin/adit; cd {FOLDER}; \
         ulimit -Sn {OPEN_FILES}; export PATH={FOLDER}/bin:{SYSTEM_PATH} HOME={FOLDER}; \
         exec setpriv --reuid {user} --regid {user} --clear-groups --inh-caps=-all --ambient-caps=-all \
         --bounding-set=-all --no-new-privs sh -euc \"$3\""
    );
    command.args([drop.as_str(), "sh"]).arg(folder).arg(program).arg(script);
    command
}

/// A folder that a sidecar's user owns, with the place for its program.
pub fn folder_of_user() -> Scratch {
    let scratch = Scratch::new();
    fs::create_dir(scratch.file("bin")).expect("the scratch folder can be written");
    scratch.write("bin/adit", "");
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).expect("the folder is ours");
    chown(scratch.path(), Some(USER), Some(USER)).expect("root may give a folder away");
    scratch
}

/// A running sidecar; killed on drop.
#[derive(Debug)]
pub struct Sidecar {
    process: Process,
    scratch: Scratch,
}

impl Sidecar {
    /// Starts one with this file in a namespace, and waits until it listens at `listener`, an address of TCP there.
    #[track_caller]
    pub fn start(namespace: &Namespace, file: &str, listener: &str) -> Self {
        let scratch = folder_of_user();
        write_file(&scratch, file);
        let command = unprivileged(namespace, scratch.path(), "exec adit proxy -c adit.conf");
        let process = Process::spawn(command, scratch.file("log"));
        let mut sidecar = Self { process, scratch };
        let listener: SocketAddr = listener.parse().expect("an address with a port");
        wait_until(&format!("the sidecar listens at {listener}"), START_LIMIT, || {
            assert!(sidecar.process.ended().is_none(), "the sidecar ended at once:\n{}", sidecar.log());
            listens(namespace, listener)
        });
        sidecar.check_privileges();
        sidecar
    }

    /// Replaces its file, without telling it.
    pub fn rewrite(&self, file: &str) {
        write_file(&self.scratch, file);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        self.process.signal(number);
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    /// Where a file of its folder is for the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// Memory in bytes: resident now, and the most that was.
    pub fn resident_bytes(&self) -> (u64, u64) {
        let field = |name| {
            let field = status_field(self.pid(), name).expect("the sidecar runs");
            1024 * field.trim_end_matches(" kB").trim().parse::<u64>().expect("a number of kB")
        };
        (field("VmRSS"), field("VmHWM"))
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the sidecar runs").count()
    }

    /// That it is nobody, and can do nothing.
    #[track_caller]
    fn check_privileges(&self) {
        let field = |name| status_field(self.pid(), name).expect("the sidecar runs");
        assert!(field("Uid").split_whitespace().all(|uid| uid == USER.to_string()), "{}", field("Uid"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(field(set).bytes().all(|digit| digit == b'0'), "{set} {}", field(set));
        }
        assert_eq!(field("NoNewPrivs"), "1");
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the sidecar runs").flatten() {
            let open = fs::read_link(entry.path()).unwrap_or_default();
            assert!(open != Path::new("/dev/net/tun"), "it has a TUN device");
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the sidecar's log\n{}---", self.log());
        }
    }
}

/// Written beside and renamed, as careful editors and Kubernetes do: nobody sees half a file.
fn write_file(scratch: &Scratch, text: &str) {
    let new = scratch.write("adit.conf.new", text);
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    chown(&new, Some(USER), Some(USER)).expect("root may give a file away");
    fs::rename(&new, scratch.file("adit.conf")).expect("the scratch folder can be written");
}

/// Whether somebody listens for TCP there.
pub fn listens(namespace: &Namespace, at: SocketAddr) -> bool {
    namespace.enter(|| TcpStream::connect_timeout(&at, ANSWER_LIMIT)).is_ok()
}

/// A connection to an address of the namespace, with a limit for each read and write.
pub fn connect(namespace: &Namespace, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = namespace.enter(|| TcpStream::connect_timeout(&to, ANSWER_LIMIT))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// What a GET of `path` is answered by an HTTP server: status and body.
pub fn http_get(namespace: &Namespace, server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(namespace, server)?;
    // By 1.0, so that nothing comes in chunks.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    status.zip(body).ok_or_else(|| io::Error::other(format!("no answer of HTTP: {text:?}")))
}

/// Where a client of SOCKS5 wants to go.
#[derive(Debug, Clone, Copy)]
pub enum Destination<'a> {
    Address(SocketAddr),
    Name(&'a str, u16),
}

impl Destination<'_> {
    /// As a request has it: type, address, port.
    fn bytes(self) -> Vec<u8> {
        let (mut bytes, port) = match self {
            Self::Address(to) => match to.ip() {
                IpAddr::V4(ip) => ([&[1][..], &ip.octets()].concat(), to.port()),
                IpAddr::V6(ip) => ([&[4][..], &ip.octets()].concat(), to.port()),
            },
            Self::Name(name, port) => {
                let len = u8::try_from(name.len()).expect("names are short");
                ([&[3, len], name.as_bytes()].concat(), port)
            }
        };
        bytes.extend(port.to_be_bytes());
        bytes
    }
}

/// Asks a SOCKS5 proxy for something: the connection and the address that it answers, or its reply code.
fn socks_request(
    namespace: &Namespace,
    proxy: SocketAddr,
    command: u8,
    to: Destination<'_>,
) -> io::Result<Result<(TcpStream, SocketAddr), u8>> {
    let mut stream = connect(namespace, proxy)?;
    // Version 5; one method: none.
    stream.write_all(&[5, 1, 0])?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen)?;
    if chosen != [5, 0] {
        return Err(io::Error::other(format!("it chose {chosen:?}")));
    }
    stream.write_all(&[&[5, command, 0][..], &to.bytes()].concat())?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    if head[1] != 0 {
        return Ok(Err(head[1]));
    }
    let bound = match head[3] {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address)?;
            IpAddr::from(address)
        }
        4 => {
            let mut address = [0; 16];
            stream.read_exact(&mut address)?;
            IpAddr::from(address)
        }
        other => return Err(io::Error::other(format!("an address of type {other}"))),
    };
    let mut port = [0; 2];
    stream.read_exact(&mut port)?;
    Ok(Ok((stream, SocketAddr::new(bound, u16::from_be_bytes(port)))))
}

/// CONNECT through a SOCKS5 proxy: the connection, or the proxy's reply code.
pub fn socks_connect(
    namespace: &Namespace,
    proxy: SocketAddr,
    to: Destination<'_>,
) -> io::Result<Result<TcpStream, u8>> {
    Ok(socks_request(namespace, proxy, 1, to)?.map(|(stream, _)| stream))
}

/// UDP ASSOCIATE of a SOCKS5 proxy.
#[derive(Debug)]
pub struct SocksUdp {
    socket: UdpSocket,
    relay: SocketAddr,
    /// The association lasts as long as it.
    _control: TcpStream,
}

impl SocksUdp {
    /// Asks a proxy for an association.
    #[track_caller]
    pub fn associate(namespace: &Namespace, proxy: SocketAddr) -> Self {
        let any = Destination::Address(SocketAddr::from(([0; 4], 0)));
        let (control, mut relay) = socks_request(namespace, proxy, 3, any)
            .unwrap_or_else(|error| panic!("UDP ASSOCIATE: {error}"))
            .unwrap_or_else(|code| panic!("UDP ASSOCIATE: reply code {code}"));
        if relay.ip().is_unspecified() {
            relay.set_ip(proxy.ip());
        }
        let socket = namespace.enter(|| UdpSocket::bind((proxy.ip(), 0))).expect("a port is free");
        socket.set_read_timeout(Some(ANSWER_LIMIT)).expect("a time above zero is accepted");
        Self { socket, relay, _control: control }
    }

    /// Sends a datagram.
    pub fn send(&self, payload: &[u8], to: Destination<'_>) -> io::Result<()> {
        // Reserved, no fragment.
        let datagram = [&[0, 0, 0][..], &to.bytes(), payload].concat();
        self.socket.send_to(&datagram, self.relay).map(|_| ())
    }

    /// The next datagram, without the proxy's header.
    pub fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 65_536];
        let (len, from) = self.socket.recv_from(&mut buffer)?;
        let header = match buffer[3] {
            1 => 3 + 1 + 4 + 2,
            4 => 3 + 1 + 16 + 2,
            3 => 3 + 1 + 1 + usize::from(buffer[4]) + 2,
            other => return Err(io::Error::other(format!("an address of type {other}"))),
        };
        if from != self.relay || buffer[..3] != [0, 0, 0] || len < header {
            return Err(io::Error::other(format!("{:?} from {from}", &buffer[..len])));
        }
        buffer.truncate(len);
        Ok(buffer.split_off(header))
    }
}
