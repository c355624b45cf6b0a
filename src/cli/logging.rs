//! Log lines on standard error, in wireguard-go's manner: `DEBUG: (wg0) 2026/11/21 10:59:09 text`.
//!
//! Whoever logs never waits: a line goes into a bounded queue, and one thread writes. A reader of
//! standard error that has stopped reading, or has gone away, therefore costs lines and nothing
//! else; how many were lost is said as soon as lines get through again.
//!
//! | `LOG_LEVEL` | what is written |
//! |---|---|
//! | `verbose`, `debug` | everything: errors and warnings, and `DEBUG` for all else |
//! | `error`, anything else, unset | `ERROR` and `WARNING` |
//! | `silent` | nothing |
//!
//! Or an object of JSON on each line: `time` (RFC 3339, UTC, milliseconds), `level` (`error`, `warning`, `debug`), `interface`,
//! `message`, and an event's fields by their names, all of them strings.
//!
//! As text, an event's field `peer` (a public key) becomes wireguard-go's `peer(abcd…wxyz) - ` before the
//! text; other fields follow the text as `name=value`.
//!
//! Invariants: no text in a line is longer than [`LINE_MAX`] and none has a control character in it, whatever
//! was logged; the thread that writes holds no capability.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::key::BASE64_LEN;
use crate::sys::capabilities::{self, Capabilities};
use crate::sys::local_time::LocalTime;

/// Lines that may wait to be written: a burst such as a configuration of a few hundred peers fits,
/// and with lines of full length it is half a megabyte.
const QUEUE_LINES: usize = 512;
/// Bytes of one line's text: more than any line of ours; bounds what a foreign text can fill.
const LINE_MAX: usize = 1024;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogLevel {
    Silent,
    Error,
    Verbose,
}

impl LogLevel {
    /// Reads the value of `LOG_LEVEL`.
    pub(super) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("verbose" | "debug") => Self::Verbose,
            Some("silent") => Self::Silent,
            _ => Self::Error,
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Silent => LevelFilter::OFF,
            Self::Error => LevelFilter::WARN,
            Self::Verbose => LevelFilter::DEBUG,
        }
    }
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LogForm {
    Text,
    #[cfg_attr(not(feature = "proxy"), expect(dead_code, reason = "only the sidecar's file asks for it"))]
    Json,
}

/// One line on its way.
struct Line {
    time: SystemTime,
    word: &'static str,
    text: String,
    /// As JSON, each with a comma before it.
    fields: String,
}

/// What the writing thread is asked.
enum Order {
    Write(Line),
    /// Drops the sender when everything before it has been written.
    Flush(SyncSender<()>),
}

struct Log {
    filter: LevelFilter,
    form: LogForm,
    interface: RwLock<String>,
    orders: SyncSender<Order>,
    dropped: AtomicU64,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts logging to standard error, under the name of `interface`. Only the first call counts.
pub(super) fn start(interface: &str, level: LogLevel, form: LogForm) -> io::Result<()> {
    let (orders, receiver) = sync_channel(QUEUE_LINES);
    let log = Log {
        filter: level.filter(),
        form,
        interface: RwLock::new(interface.to_owned()),
        orders,
        dropped: AtomicU64::new(0),
    };
    if LOG.set(log).is_err() {
        return Ok(());
    }
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        // Refused only to those who have nothing to give up.
        let _ = capabilities::bound_to(Capabilities::NONE);
        let _ = capabilities::keep_only(Capabilities::NONE);
        if let Some(log) = LOG.get() {
            log.write_all(&receiver, &mut io::stderr());
        }
    })?;
    // Refused only when an embedder has set its own already; then the lines are theirs.
    let _ = tracing::subscriber::set_global_default(Forward);
    std::panic::set_hook(Box::new(|panic| tracing::error!("Panic: {panic}")));
    Ok(())
}

/// Lines from now on carry this interface's name.
pub(super) fn set_interface(name: &str) {
    if let Some(log) = LOG.get() {
        name.clone_into(&mut log.interface.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Waits until everything logged so far has been written, but no longer than `limit`.
pub(super) fn flush(limit: Duration) {
    let Some(log) = LOG.get() else { return };
    let deadline = Instant::now() + limit;
    let (done, written) = sync_channel(0);
    let mut order = Order::Flush(done);
    while let Err(TrySendError::Full(back)) = log.orders.try_send(order) {
        if Instant::now() >= deadline {
            return;
        }
        order = back;
        thread::sleep(Duration::from_millis(1));
    }
    match written.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(()) | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
    }
}

impl Log {
    fn event(&self, event: &Event<'_>) {
        let word = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            _ => "DEBUG",
        };
        let time = SystemTime::now();
        let line = match self.form {
            LogForm::Text => {
                let mut text = Text::default();
                event.record(&mut text);
                Line { time, word, text: text.finish(), fields: String::new() }
            }
            LogForm::Json => {
                let mut json = Json::default();
                event.record(&mut json);
                Line { time, word, text: bounded(&json.message), fields: json.fields }
            }
        };
        if self.orders.try_send(Order::Write(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes until the program ends. What cannot be written is lost: there is nobody to tell.
    fn write_all(&self, orders: &Receiver<Order>, output: &mut impl Write) {
        while let Ok(order) = orders.recv() {
            let line = match order {
                Order::Write(line) => line,
                Order::Flush(done) => {
                    drop(done);
                    continue;
                }
            };
            let _ = output.write_all(self.format(&line).as_bytes());
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                let text = format!("{dropped} log lines were lost: standard error was not read fast enough");
                let line = Line { time: SystemTime::now(), word: "ERROR", text, fields: String::new() };
                let _ = output.write_all(self.format(&line).as_bytes());
            }
        }
    }

    fn format(&self, line: &Line) -> String {
        let interface = self.interface.read().unwrap_or_else(PoisonError::into_inner);
        let Line { time, word, text, fields } = line;
        match (self.form, LocalTime::new(*time)) {
            (LogForm::Text, Some(time)) => format!("{word}: ({interface}) {time} {text}\n"),
            (LogForm::Text, None) => format!("{word}: ({interface}) {text}\n"),
            (LogForm::Json, _) => {
                format!(
                    r#"{{"time":"{}","level":"{}","interface":{},"message":{}{fields}}}"#,
                    Rfc3339(*time),
                    word.to_ascii_lowercase(),
                    quoted(&interface),
                    quoted(text),
                ) + "\n"
            }
        }
    }
}

/// What `tracing` hands events to: the one [`LOG`]. Spans have no meaning here.
struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        LOG.get().is_some_and(|log| *metadata.level() <= log.filter)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        LOG.get().map(|log| log.filter)
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if let Some(log) = LOG.get() {
            log.event(event);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event's fields as they are put together to a line.
#[derive(Default)]
struct Text {
    peer: String,
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.peer += &self.message;
        self.peer += &self.fields;
        bounded(&self.peer)
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            "peer" => write!(self.peer, "peer({}) - ", abbreviated(&format!("{value:?}"))),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// An event's fields as they are put together to an object.
#[derive(Default)]
struct Json {
    message: String,
    fields: String,
}

impl Visit for Json {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // Whole fields, or none.
            _ if self.fields.len() > LINE_MAX => Ok(()),
            name => write!(self.fields, ",{}:{}", quoted(name), quoted(&bounded(&format!("{value:?}")))),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// A string of JSON. Control characters are not to be in it.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(if character.is_control() { ' ' } else { character });
    }
    quoted.push('"');
    quoted
}

/// A moment in UTC; prints as `2026-11-21T10:59:09.123Z`.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_1970 = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since_1970.as_secs() / 86_400, since_1970.as_secs() % 86_400);
        // Years that begin in March end with the day that only some have; 400 of them have 146,097 days.
        let from_march = days + 719_468;
        let (era, day) = (from_march / 146_097, from_march % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = era * 400 + year + next;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let ms = since_1970.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

/// A public key as wireguard-go shows it: its first four characters and the last four before the
/// padding. Anything else stays as it is.
fn abbreviated(key: &str) -> String {
    match (key.len(), key.get(..4), key.get(BASE64_LEN - 5..BASE64_LEN - 1)) {
        (BASE64_LEN, Some(first), Some(last)) => format!("{first}…{last}"),
        _ => key.to_owned(),
    }
}

/// `text` without control characters and not longer than [`LINE_MAX`].
fn bounded(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(LINE_MAX));
    for character in text.chars() {
        if line.len() + character.len_utf8() > LINE_MAX {
            break;
        }
        line.push(if character.is_control() { ' ' } else { character });
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn log() -> (Log, Receiver<Order>) {
        let (orders, receiver) = sync_channel(QUEUE_LINES);
        let log = Log {
            filter: LevelFilter::DEBUG,
            form: LogForm::Text,
            interface: RwLock::new("wg0".to_owned()),
            orders,
            dropped: AtomicU64::new(0),
        };
        (log, receiver)
    }

    /// Gives every event to a [`Log`] of its own.
    struct Local(Arc<Log>);

    impl Subscriber for Local {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            self.0.event(event);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    fn lines(events: impl FnOnce()) -> Vec<String> {
        let (log, receiver) = log();
        let log = Arc::new(log);
        tracing::subscriber::with_default(Local(log.clone()), events);
        let mut lines = Vec::new();
        while let Ok(Order::Write(line)) = receiver.try_recv() {
            let text = log.format(&line);
            let (before, rest) = text.split_once(") ").unwrap();
            // The time is not what is tested here.
            lines.push(format!("{before}) {}", rest.get("2026/11/21 10:59:09 ".len()..).unwrap()));
        }
        lines
    }

    #[test]
    fn lines_of_json() {
        let (mut log, receiver) = log();
        log.form = LogForm::Json;
        let log = Arc::new(log);
        tracing::subscriber::with_default(Local(log.clone()), || {
            tracing::warn!(port = 51820, peer = "a\"b", "Taken \\ by\nanother");
            tracing::info!("{}", "x".repeat(2 * LINE_MAX));
        });
        let next = || match receiver.try_recv() {
            Ok(Order::Write(line)) => log.format(&Line { time: SystemTime::UNIX_EPOCH, ..line }),
            _ => panic!("no line"),
        };
        assert_eq!(
            next(),
            "{\"time\":\"1970-01-01T00:00:00.000Z\",\"level\":\"warning\",\"interface\":\"wg0\",\
             \"message\":\"Taken \\\\ by another\",\"port\":\"51820\",\"peer\":\"a\\\"b\"}\n"
        );
        let long = next();
        let (_, message) = long.split_once("\"message\":").unwrap();
        assert_eq!(message, format!("\"{}\"}}\n", "x".repeat(LINE_MAX)));
    }

    #[test]
    fn moments_in_utc() {
        let check = |seconds: u64, expected: &str| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Rfc3339(time).to_string(), format!("{expected}.000Z"));
        };
        check(951_782_400, "2000-02-29T00:00:00");
        check(951_868_799, "2000-02-29T23:59:59");
        check(951_868_800, "2000-03-01T00:00:00");
        check(1_795_258_749, "2026-11-21T10:59:09");
        check(4_107_542_400, "2100-03-01T00:00:00");
        check(1_735_689_599, "2024-12-31T23:59:59");
    }

    #[test]
    fn lines_look_like_the_reference() {
        let key = "U/LzAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAhLCM=";
        let written = lines(|| {
            tracing::info!("Device started");
            tracing::debug!(peer = %key, "Sending handshake initiation");
            tracing::warn!(port = 51820, "The port is taken");
            tracing::error!(error = %io::Error::from_raw_os_error(13), "It failed");
            tracing::error!("two\nlines\x1b[31m");
        });
        let expected = [
            "DEBUG: (wg0) Device started\n",
            "DEBUG: (wg0) peer(U/Lz…hLCM) - Sending handshake initiation\n",
            "WARNING: (wg0) The port is taken port=51820\n",
            "ERROR: (wg0) It failed error=Permission denied (os error 13)\n",
            "ERROR: (wg0) two lines [31m\n",
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn a_line_is_bounded() {
        let written = lines(|| tracing::error!("{}", "é".repeat(LINE_MAX)));
        assert_eq!(written[0].len(), "ERROR: (wg0) ".len() + LINE_MAX + 1);
    }

    #[test]
    fn levels() {
        let check = |text, expected| assert_eq!(LogLevel::parse(text), expected, "{text:?}");
        check(None, LogLevel::Error);
        check(Some(""), LogLevel::Error);
        check(Some("error"), LogLevel::Error);
        check(Some("Verbose"), LogLevel::Error);
        check(Some("verbose"), LogLevel::Verbose);
        check(Some("debug"), LogLevel::Verbose);
        check(Some("silent"), LogLevel::Silent);
    }

    /// A pipe whose reader sleeps until it is let go.
    struct Blocked(Arc<Mutex<Vec<u8>>>, Receiver<()>, bool);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if !self.2 {
                self.1.recv().map_err(io::Error::other)?;
                self.2 = true;
            }
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    // [F-20]
    #[test]
    fn a_blocked_reader_costs_lines_and_no_time() {
        let (log, receiver) = log();
        let log = Arc::new(log);
        let (go, wait) = std::sync::mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut output = Blocked(written.clone(), wait, false);
        let writer = thread::spawn({
            let log = log.clone();
            move || {
                // Ends when the test says so: the queue's senders live in `log` itself.
                for order in receiver.iter() {
                    let Order::Write(line) = order else { break };
                    let one = sync_channel(1);
                    one.0.send(Order::Write(line)).unwrap();
                    drop(one.0);
                    log.write_all(&one.1, &mut output);
                }
            }
        });
        let start = Instant::now();
        tracing::subscriber::with_default(Local(log.clone()), || {
            for number in 0..10 * QUEUE_LINES {
                tracing::error!("line {number}");
            }
        });
        assert!(start.elapsed() < Duration::from_secs(1), "logging waited for the reader");
        go.send(()).unwrap();
        log.orders.send(Order::Flush(sync_channel(0).0)).unwrap();
        writer.join().unwrap();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.contains("log lines were lost"), "{text}");
        assert!(text.contains(" line 0\n"), "{text}");
        assert!(text.lines().count() <= QUEUE_LINES + 3);
    }

    // [F-20]
    #[test]
    fn a_closed_reader_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let (log, receiver) = log();
        let lines = sync_channel(1);
        tracing::subscriber::with_default(Local(Arc::new(log)), || tracing::error!("lost"));
        lines.0.send(receiver.try_recv().unwrap()).unwrap();
        drop(lines.0);
        super::tests::log().0.write_all(&lines.1, &mut Closed);
    }
}
