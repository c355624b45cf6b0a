//! The operations of one connection, one after the other: framing and replies.
//!
//! ```text
//! get=1\n \n                    → lines, errno=0\n\n
//! set=1\n key=value\n … \n      → errno=N\n\n in one write
//! anything else                 → closed without a reply
//! ```
//!
//! - A request is read wholly before the device is asked: a client that stalls holds nothing that another needs.
//! - Sets are applied one at a time, gets at any time.
//! - Bytes of the next operation that have already been read are kept for it.
//! - A set that is refused is answered at once; the rest of it is read and thrown away, so that the next operation
//!   is found. After a line or a request that was too long (errno −5, −12) the connection is closed then.
//! - What was read may hold keys: it is wiped after each operation.

use std::io::{self, Read, Write};
use std::sync::{Mutex, PoisonError};

use zeroize::{Zeroize, Zeroizing};

use super::set::{LINE_BYTES_MAX, Parser};
use super::{Error, get};
use crate::device::config::Configure;

/// Enough for most requests; it grows to [`LINE_BYTES_MAX`] when a client sends more at once.
const BUFFER_BYTES: usize = 4096;

/// Serves a connection until its end. `sets` is held while a set is applied.
pub(super) fn converse(
    input: impl Read,
    mut output: impl Write,
    configure: &dyn Configure,
    sets: &Mutex<()>,
) -> io::Result<()> {
    let mut lines = Lines::new(input);
    loop {
        let stay = match lines.next()? {
            Line::Whole(b"get=1") => serve_get(&mut lines, &mut output, configure)?,
            Line::Whole(b"set=1") => serve_set(&mut lines, &mut output, configure, sets)?,
            Line::Whole(_) | Line::TooLong | Line::End => return Ok(()),
        };
        lines.wipe();
        if !stay {
            return Ok(());
        }
    }
}

/// [UAPI] Whether the connection goes on.
fn serve_get(lines: &mut Lines<impl Read>, output: &mut impl Write, configure: &dyn Configure) -> io::Result<bool> {
    match lines.next()? {
        Line::Whole(b"") => {
            get::write(&configure.snapshot(), output)?;
            Ok(true)
        }
        Line::End => Ok(false),
        Line::Whole(_) | Line::TooLong => {
            reply(output, &Err(Error::GetWithArguments))?;
            Ok(false)
        }
    }
}

/// [UAPI] Whether the connection goes on.
fn serve_set(
    lines: &mut Lines<impl Read>,
    output: &mut impl Write,
    configure: &dyn Configure,
    sets: &Mutex<()>,
) -> io::Result<bool> {
    let update = match parse(lines)? {
        Ok(parser) => parser.finish(),
        Err(error) => {
            let stay = !matches!(error, Error::LineTooLong { .. } | Error::TooLarge { .. });
            reply(output, &Err(error))?;
            return Ok(skip_request(lines)? && stay);
        }
    };
    let result = {
        // Nothing is guarded but the order: a panic in another set leaves nothing behind here.
        let _one_at_a_time = sets.lock().unwrap_or_else(PoisonError::into_inner);
        configure.apply(update).map_err(Error::from)
    };
    reply(output, &result)?;
    Ok(true)
}

/// Reads a request up to its empty line, or to what is wrong with it.
fn parse(lines: &mut Lines<impl Read>) -> io::Result<Result<Parser, Error>> {
    let mut parser = Parser::default();
    loop {
        let result = match lines.next()? {
            Line::Whole(b"" | b"\r") => return Ok(Ok(parser)),
            Line::Whole(line) => parser.line(line),
            Line::TooLong => Err(parser.line_too_long()),
            Line::End => Err(Error::Unfinished),
        };
        if let Err(error) = result {
            return Ok(Err(error));
        }
    }
}

/// Throws the rest of a request away. Whether its end was found.
fn skip_request(lines: &mut Lines<impl Read>) -> io::Result<bool> {
    loop {
        match lines.next()? {
            Line::Whole(b"" | b"\r") => return Ok(true),
            Line::Whole(_) | Line::TooLong => {}
            Line::End => return Ok(false),
        }
    }
}

/// [UAPI] In one write: wgctrl reads once.
fn reply(output: &mut impl Write, result: &Result<(), Error>) -> io::Result<()> {
    let errno = match result {
        Ok(()) => 0,
        Err(error) => {
            let cause = std::error::Error::source(error).map(tracing::field::display);
            let system = std::error::Error::source(error).and_then(|it| it.source()).map(tracing::field::display);
            tracing::warn!(target: "uapi", errno = error.errno(), cause, system, "request refused: {error}");
            error.errno()
        }
    };
    output.write_all(format!("errno={errno}\n\n").as_bytes())
}

/// What [`Lines::next`] found.
enum Line<'a> {
    /// A line, without its end.
    Whole(&'a [u8]),
    /// The beginning of a line that does not fit; the rest of it is passed over.
    TooLong,
    /// The client sends no more. A line without an end does not count.
    End,
}

/// Cuts a stream into lines without copying them.
struct Lines<R> {
    input: R,
    buffer: Zeroizing<Vec<u8>>,
    /// Read, but not yet handed out: `start..end`; `start..searched` has no line end.
    start: usize,
    searched: usize,
    end: usize,
    /// Up to where the buffer has been written to since it was wiped.
    dirty: usize,
    /// In the middle of a line that was too long.
    passing_over: bool,
}

impl<R: Read> Lines<R> {
    fn new(input: R) -> Self {
        let buffer = Zeroizing::new(vec![0; BUFFER_BYTES]);
        Self { input, buffer, start: 0, searched: 0, end: 0, dirty: 0, passing_over: false }
    }

    fn next(&mut self) -> io::Result<Line<'_>> {
        loop {
            let unsearched = &self.buffer[self.searched..self.end];
            if let Some(at) = unsearched.iter().position(|&byte| byte == b'\n') {
                let (start, end) = (self.start, self.searched + at);
                self.start = end + 1;
                self.searched = self.start;
                if !std::mem::take(&mut self.passing_over) {
                    return Ok(Line::Whole(&self.buffer[start..end]));
                }
                continue;
            }
            self.searched = self.end;
            if self.passing_over {
                self.start = self.end;
            }
            if !self.make_room() {
                self.passing_over = true;
                self.start = self.end;
                return Ok(Line::TooLong);
            }
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(Line::End),
                Ok(len) => {
                    self.end += len;
                    self.dirty = self.dirty.max(self.end);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether something can be read behind `end`.
    fn make_room(&mut self) -> bool {
        if self.start == self.end {
            (self.start, self.searched, self.end) = (0, 0, 0);
        }
        if self.end < self.buffer.len() {
            return true;
        }
        if self.buffer.len() < LINE_BYTES_MAX {
            let mut larger = Zeroizing::new(vec![0; LINE_BYTES_MAX]);
            larger[..self.end].copy_from_slice(&self.buffer);
            self.buffer = larger;
            return true;
        }
        if self.start == 0 {
            return false;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.searched -= self.start;
        self.start = 0;
        true
    }

    /// Forgets what was handed out.
    fn wipe(&mut self) {
        self.buffer[..self.start].zeroize();
        self.buffer[self.end..self.dirty].zeroize();
        self.dirty = self.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives at most `step` bytes at a time.
    struct Slow<'a> {
        bytes: &'a [u8],
        step: usize,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.bytes.len().min(self.step).min(buffer.len());
            buffer[..len].copy_from_slice(&self.bytes[..len]);
            self.bytes = &self.bytes[len..];
            Ok(len)
        }
    }

    fn lines(bytes: &[u8], step: usize) -> Vec<Result<Vec<u8>, ()>> {
        let mut lines = Lines::new(Slow { bytes, step });
        let mut all = Vec::new();
        loop {
            match lines.next().unwrap() {
                Line::Whole(line) => all.push(Ok(line.to_vec())),
                Line::TooLong => all.push(Err(())),
                Line::End => return all,
            }
        }
    }

    /// However the bytes arrive, and whatever the buffer has to do for it, the lines are the same.
    #[test]
    fn lines_do_not_depend_on_how_they_arrive() {
        let mut text = Vec::new();
        let mut expected = Vec::new();
        let lens = [0, 1, 79, 4095, 4096, 0, 5000, 65535, 65536, 3, 200_000, 0, 65535, 65535, 7];
        for (index, len) in lens.into_iter().enumerate() {
            let line = vec![b'a' + index as u8; len];
            text.extend_from_slice(&line);
            text.push(b'\n');
            expected.push(if len < LINE_BYTES_MAX { Ok(line) } else { Err(()) });
        }
        text.extend_from_slice(b"without an end");
        for step in [1, 7, 4096, 65536, usize::MAX] {
            assert!(lines(&text, step) == expected, "{step} bytes at a time");
        }
    }

    /// S-51: no byte of a finished operation stays in the buffer.
    #[test]
    fn what_was_handed_out_is_wiped() {
        let mut text = b"secret\n".repeat(2000);
        text.extend_from_slice(b"next");
        for step in [1, 100, usize::MAX] {
            let mut lines = Lines::new(Slow { bytes: &text, step });
            for _ in 0..2000 {
                assert!(matches!(lines.next().unwrap(), Line::Whole(b"secret")));
            }
            lines.wipe();
            assert!(!lines.buffer.windows(6).any(|bytes| bytes == b"secret"));
            assert!(b"next".starts_with(&lines.buffer[lines.start..lines.end]));
            assert!(matches!(lines.next().unwrap(), Line::End));
        }
    }
}
