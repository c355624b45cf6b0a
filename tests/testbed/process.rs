//! Commands with a deadline, processes that are killed on drop, scratch folders, and what `/proc` says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::sys;

/// How often a running command is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// A process without a wake-up for so long has nothing left to do.
const IDLE_SETTLED: Duration = Duration::from_secs(1);
/// When one that never settles is called not idle.
const IDLE_SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// How long an idle process is watched.
const IDLE_WATCH: Duration = Duration::from_secs(5);

/// A program of `examples/`, which the test run has built; a run of one test alone builds it here.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test is a program");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("tests lie in deps").join("examples");
    let program = folder.join(name);
    let modified =
        |path: &PathBuf| path.metadata().and_then(|data| data.modified()).unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    // One that is older than its source was left by an earlier build.
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("examples/{name}.rs"));
    if modified(&program) < modified(&source) {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release/examples") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "{name} is built");
    }
    program
}

/// Runs a command to its end and gives what it printed; fails the test if it fails or takes longer than `limit`.
#[track_caller]
pub fn run_to_end(command: &mut Command, limit: Duration) -> String {
    match try_run_to_end(command, limit) {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => panic!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// Runs a command to its end; an error if it cannot be started or takes longer than `limit`. Then it is killed, and so is
/// what it has left behind with its outputs still open.
pub fn try_run_to_end(command: &mut Command, limit: Duration) -> io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn()?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let mut stderr = child.stderr.take().expect("stderr is piped");
    let deadline = Instant::now() + limit;
    std::thread::scope(|scope| {
        let read_all = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).map(|_| bytes)
        };
        let stdout = scope.spawn(move || read_all(&mut stdout));
        let stderr = scope.spawn(move || read_all(&mut stderr));
        let mut ended = None;
        let status = loop {
            ended = ended.or(child.try_wait()?);
            if let Some(status) = ended
                && stdout.is_finished()
                && stderr.is_finished()
            {
                break status;
            }
            if Instant::now() >= deadline {
                sys::kill_group(child.id());
                let what =
                    child.wait().map(|status| if ended.is_some() { format!(": {status}") } else { String::new() })?;
                let said = stdout.join().expect("reading does not panic")?;
                let text = format!("still running after {limit:?}{what}\n{}", String::from_utf8_lossy(&said));
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let stdout = stdout.join().expect("reading does not panic")?;
        let stderr = stderr.join().expect("reading does not panic")?;
        Ok(Output { status, stdout, stderr })
    })
}

/// Sends a signal to a process; false if there is no such process.
pub fn signal(pid: u32, number: i32) -> bool {
    sys::send_signal(pid, number).is_ok()
}

/// One field of `/proc/PID/status`, such as `VmRSS`; `None` when the process is gone.
pub fn status_field(pid: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(field)?.strip_prefix(':')?.trim().to_owned()))
}

/// How often each thread of a process, as `pid/tid name`, gave up the processor by itself: a sleeper that nobody wakes
/// does not.
#[track_caller]
pub fn voluntary_switches(pid: u32) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    tasks
        .filter_map(|task| {
            let task = task.expect("a thread");
            // A thread that has ended since the list was read is none.
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let field = |name: &str| status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
            let name = format!("{pid}/{} {}", task.file_name().display(), field("Name:").unwrap_or_default());
            let count = field("voluntary_ctxt_switches:").and_then(|count| count.parse().ok());
            Some((name, count.expect("it counts switches")))
        })
        .collect()
}

/// Fails the test unless the processes, once they have settled, make no wake-up at all.
#[track_caller]
pub fn check_idle(pids: &[u32]) {
    // The threads that were woken within the time, with their counts before and after.
    let woken_within = |time: Duration| {
        let switches = || pids.iter().flat_map(|pid| voluntary_switches(*pid)).collect::<BTreeMap<_, _>>();
        let before = switches();
        std::thread::sleep(time);
        let mut after = switches();
        after.retain(|thread, count| before.get(thread) != Some(count));
        let pairs = after.into_iter().map(|(thread, count)| (before.get(&thread).copied(), count, thread));
        pairs.collect::<Vec<_>>()
    };
    // What the last request has set in motion comes to its end first; on a busy machine that takes its time.
    let deadline = Instant::now() + IDLE_SETTLE_LIMIT;
    while !woken_within(IDLE_SETTLED).is_empty() && Instant::now() < deadline {}
    let woken = woken_within(IDLE_WATCH);
    assert!(woken.is_empty(), "wake-ups within {IDLE_WATCH:?} (before, after, thread): {woken:?}");
}

/// A process whose output goes to a file, killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command, both outputs into the file `log`.
    #[track_caller]
    pub fn spawn(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("the scratch folder can be written");
        let again = file.try_clone().expect("a file can be duplicated");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(again).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the child is ours to wait for")
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        signal(self.pid(), number);
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        // Fails only if it has already been waited for, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder for one test's files, deleted on drop unless the test fails.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes a new, empty folder.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}", std::process::id()));
        // A leftover of another process that had the same id.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("cargo's folder for tests can be written");
        Self(path)
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file into it and gives its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, text).expect("the scratch folder can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
