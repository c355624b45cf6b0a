//! Log lines on standard error, in wireguard-go's manner: `DEBUG: (wg0) 2026/11/21 10:59:09 text`; or, where programs
//! read them, as JSON: `{"time":"2026-11-21T09:59:09.123456Z","level":"debug","interface":"wg0","message":"text"}`.
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
//! An event's field `peer` (a public key) becomes wireguard-go's `peer(abcd…wxyz) - ` before the
//! text; other fields follow the text as `name=value`. In JSON the peer (`abcd…wxyz`) and the other fields (`fields`, numbers
//! and truths as such) have members of their own, which are absent when there is nothing in them.
//!
//! Invariants: no line's text is longer than [`LINE_MAX`] and none has a control character in it, whatever
//! was logged (quoting in JSON can double it, and each line is one whole object); the thread that writes holds no
//! capability.

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

use super::sandbox;
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

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LogForm {
    /// As wireguard-go does.
    #[default]
    Text,
    /// An object for each line.
    Json,
}

impl LogForm {
    /// The names that [`LogForm::parse`] knows.
    pub(super) const NAMES: [&str; 2] = ["text", "json"];

    /// Reads the name of a format. Fails with what to give instead.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("give {}", Self::NAMES.join(" or "))),
        }
    }
}

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gravity {
    Error,
    Warning,
    Debug,
}

impl Gravity {
    /// As wireguard-go begins a line.
    const fn word(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Debug => "DEBUG",
        }
    }

    /// As programs know it.
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Debug => "debug",
        }
    }
}

/// One line on its way.
struct Line {
    time: SystemTime,
    gravity: Gravity,
    /// The line's end: in JSON the members that an event gives, with what closes the object.
    text: String,
}

/// What the writing thread is asked.
enum Order {
    Write(Line),
    /// Drops the sender when everything before it has been written.
    Flush(SyncSender<()>),
}

struct Log {
    filter: LevelFilter,
    format: LogForm,
    interface: RwLock<String>,
    orders: SyncSender<Order>,
    dropped: AtomicU64,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// Starts logging to standard error, under the name of `interface`. Only the first call counts. `sandboxed`: the thread that
/// writes can open no file.
pub(super) fn start(interface: &str, level: LogLevel, format: LogForm, sandboxed: bool) -> io::Result<()> {
    let (orders, receiver) = sync_channel(QUEUE_LINES);
    let log = Log {
        filter: level.filter(),
        format,
        interface: RwLock::new(interface.to_owned()),
        orders,
        dropped: AtomicU64::new(0),
    };
    if LOG.set(log).is_err() {
        return Ok(());
    }
    let (closed, is_closed) = sync_channel::<()>(0);
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        // Refused only to those who have nothing to give up.
        let _ = capabilities::bound_to(Capabilities::NONE);
        let _ = capabilities::keep_only(Capabilities::NONE);
        if sandboxed {
            // The first moment in local time reads the file of the zone, and no later one does.
            let _ = LocalTime::new(SystemTime::now());
            sandbox::close_files();
        }
        drop(closed);
        if let Some(log) = LOG.get() {
            log.write_all(&receiver, &mut io::stderr());
        }
    })?;
    // Nothing comes: the other end goes, and until then the calls that close files must be allowed.
    let _ = is_closed.recv();
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
        let gravity = match *event.metadata().level() {
            Level::ERROR => Gravity::Error,
            Level::WARN => Gravity::Warning,
            _ => Gravity::Debug,
        };
        let text = match self.format {
            LogForm::Text => {
                let mut text = Text::default();
                event.record(&mut text);
                text.finish()
            }
            LogForm::Json => {
                let mut members = Members::default();
                event.record(&mut members);
                members.finish()
            }
        };
        let line = Line { time: SystemTime::now(), gravity, text };
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
                let mut text = format!("{dropped} log lines were lost: standard error was not read fast enough");
                if self.format == LogForm::Json {
                    text = Members { message: text, ..Members::default() }.finish();
                }
                let line = Line { time: SystemTime::now(), gravity: Gravity::Error, text };
                let _ = output.write_all(self.format(&line).as_bytes());
            }
        }
    }

    fn format(&self, line: &Line) -> String {
        let interface = self.interface.read().unwrap_or_else(PoisonError::into_inner);
        let Line { time, gravity, text } = line;
        match (self.format, LocalTime::new(*time)) {
            (LogForm::Json, _) => {
                let (time, level, interface) = (Rfc3339(*time), gravity.name(), Quoted(&interface));
                format!("{{\"time\":\"{time}\",\"level\":\"{level}\",\"interface\":{interface},{text}\n")
            }
            (LogForm::Text, Some(time)) => format!("{}: ({interface}) {time} {text}\n", gravity.word()),
            (LogForm::Text, None) => format!("{}: ({interface}) {text}\n", gravity.word()),
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

/// An event's fields as they are put together to the members of an object. All together are bounded by [`LINE_MAX`] before they
/// are quoted.
#[derive(Default)]
struct Members {
    peer: String,
    message: String,
    /// The members of `fields`, each after a comma.
    fields: String,
    /// Bytes of names and values in `fields`.
    fields_len: usize,
}

impl Members {
    /// A field with a value that is JSON already; left out when there is no room for it any more.
    fn plain(&mut self, field: &Field, value: impl fmt::Display) {
        let value = value.to_string();
        let len = field.name().len() + value.len();
        if self.fields_len + len <= LINE_MAX {
            self.fields_len += len;
            // Writing to a String cannot fail.
            let _ = write!(self.fields, ",{}:{value}", Quoted(field.name()));
        }
    }

    /// A field with a value that is text; what there is no room for is cut off.
    fn quoted(&mut self, field: &Field, value: &str) {
        let room = LINE_MAX.saturating_sub(self.fields_len + field.name().len());
        if room > 0 {
            let value = bounded_to(value, room);
            self.fields_len += field.name().len() + value.len();
            let _ = write!(self.fields, ",{}:{}", Quoted(field.name()), Quoted(&value));
        }
    }

    /// What follows the members that every line has.
    fn finish(self) -> String {
        let Self { mut peer, mut message, mut fields, fields_len } = self;
        if peer.is_empty()
            && let Some((name, rest)) = message.strip_prefix("peer(").and_then(|rest| rest.split_once(") - "))
        {
            // Where the text itself begins as wireguard-go's do.
            (peer, message) = (name.to_owned(), rest.to_owned());
        }
        let peer = bounded_to(&peer, LINE_MAX);
        let message = bounded_to(&message, LINE_MAX - peer.len());
        if peer.len() + message.len() + fields_len > LINE_MAX {
            fields.clear();
        }
        let mut text = String::new();
        if !peer.is_empty() {
            let _ = write!(text, "\"peer\":{},", Quoted(&peer));
        }
        let _ = write!(text, "\"message\":{}", Quoted(&message));
        if !fields.is_empty() {
            let _ = write!(text, ",\"fields\":{{{}}}", fields.trim_start_matches(','));
        }
        text.push('}');
        text
    }
}

impl Visit for Members {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field, value);
        } else {
            self.quoted(field, &value.to_string());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            "peer" => self.peer = abbreviated(&value),
            _ => self.quoted(field, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// A text as JSON. It must have no control characters, or they become blanks.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                _ if character.is_control() => f.write_char(' ')?,
                _ => f.write_char(character)?,
            }
        }
        f.write_char('"')
    }
}

/// A moment as RFC 3339 has it, in UTC, to the microsecond; a moment before 1970 is that of 1970.
struct Rfc3339(SystemTime);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Years begin in March here, so that a leap day is the last of its year; 1970 begins 306 days into such a
        // year, the one that began 719,468 days after the first of all. 400 years always have 146,097 days.
        let day = days + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        // Five months have 153 days, from March on and from August on.
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (year, month) = (400 * era + year + month / 10, (month + 2) % 12 + 1);
        let (hour, minute, second, micros) = (second / 3600, second / 60 % 60, second % 60, since.subsec_micros());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
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
    bounded_to(text, LINE_MAX)
}

/// `text` without control characters and not longer than `bytes_max`.
fn bounded_to(text: &str, bytes_max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(bytes_max));
    for character in text.chars() {
        if line.len() + character.len_utf8() > bytes_max {
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
        log_as(LogForm::Text)
    }

    fn log_as(format: LogForm) -> (Log, Receiver<Order>) {
        let (orders, receiver) = sync_channel(QUEUE_LINES);
        let log = Log {
            filter: LevelFilter::DEBUG,
            format,
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

    fn objects(events: impl FnOnce()) -> Vec<String> {
        let (mut log, receiver) = log_as(LogForm::Json);
        log.interface = RwLock::new("w\"g\\0".to_owned());
        let log = Arc::new(log);
        tracing::subscriber::with_default(Local(log.clone()), events);
        let mut objects = Vec::new();
        while let Ok(Order::Write(line)) = receiver.try_recv() {
            let text = log.format(&line);
            let text = text.strip_suffix('\n').unwrap();
            assert!(!text.contains(char::is_control), "{text}");
            // Twice for what is quoted, and what every line has.
            assert!(text.len() <= 2 * LINE_MAX + 200, "{}", text.len());
            let after_time = text.strip_prefix("{\"time\":\"").unwrap().split_once("Z\",").unwrap().1;
            objects.push(after_time.replace("\"interface\":\"w\\\"g\\\\0\"", "I"));
        }
        objects
    }

    #[test]
    fn objects_have_what_lines_have() {
        let key = "U/LzAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAhLCM=";
        let written = objects(|| {
            tracing::info!("Device started");
            tracing::debug!(peer = %key, "Sending handshake initiation");
            tracing::debug!("peer(U/Lz…hLCM) - Sending keepalive packet");
            tracing::warn!(port = 51820, taken = true, by = "a \"friend\"", load = 0.5, "The port is taken");
            tracing::error!(error = %io::Error::from_raw_os_error(13), "It failed");
            tracing::error!("two\nlines\x1b[31m \\ \"");
        });
        let expected = [
            r#""level":"debug",I,"message":"Device started"}"#,
            r#""level":"debug",I,"peer":"U/Lz…hLCM","message":"Sending handshake initiation"}"#,
            r#""level":"debug",I,"peer":"U/Lz…hLCM","message":"Sending keepalive packet"}"#,
            r#""level":"warning",I,"message":"The port is taken","fields":{"port":51820,"taken":true,"by":"a \"friend\"","load":0.5}}"#,
            r#""level":"error",I,"message":"It failed","fields":{"error":"Permission denied (os error 13)"}}"#,
            r#""level":"error",I,"message":"two lines [31m \\ \""}"#,
        ];
        assert_eq!(written, expected);
    }

    #[test]
    fn an_object_is_bounded_and_whole() {
        let long = "\"\n".repeat(2 * LINE_MAX);
        let written = objects(|| {
            tracing::error!("{long}");
            tracing::error!(a = long, b = 1, "short");
            tracing::error!(peer = long, a = long, "{long}");
        });
        let quoted = "\\\" ".repeat(LINE_MAX / 2);
        assert_eq!(written[0], format!("\"level\":\"error\",I,\"message\":\"{quoted}\"}}"));
        assert_eq!(written[1], "\"level\":\"error\",I,\"message\":\"short\"}");
        assert_eq!(written[2], format!("\"level\":\"error\",I,\"peer\":\"{quoted}\",\"message\":\"\"}}"));
    }

    #[test]
    fn times_in_json() {
        let check = |micros, expected: &str| {
            let time = SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
            assert_eq!(Rfc3339(time).to_string(), expected);
        };
        check(0, "1970-01-01T00:00:00.000000Z");
        check(951_782_400_000_000, "2000-02-29T00:00:00.000000Z");
        check(951_868_799_999_999, "2000-02-29T23:59:59.999999Z");
        check(951_868_800_000_000, "2000-03-01T00:00:00.000000Z");
        check(1_709_164_800_000_000, "2024-02-29T00:00:00.000000Z");
        check(1_735_603_200_000_000, "2024-12-31T00:00:00.000000Z");
        check(1_795_255_149_123_456, "2026-11-21T09:59:09.123456Z");
        check(4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z");
        assert_eq!(Rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).to_string(), "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn formats() {
        assert_eq!(LogForm::parse("text"), Ok(LogForm::Text));
        assert_eq!(LogForm::parse("json"), Ok(LogForm::Json));
        for wrong in ["", "JSON", "yaml"] {
            assert_eq!(LogForm::parse(wrong), Err("give text or json".to_owned()));
        }
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
    fn f_20_a_blocked_reader_costs_lines_and_no_time() {
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
    fn f_20_a_closed_reader_is_no_failure() {
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
