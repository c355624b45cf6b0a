//! The workers' settings: how many there are, how long they look before they sleep, and where they run.
//!
//! The command line and the environment say them in the same words, read here once for both. A value that cannot be
//! meant is refused, never taken for another.

use std::fmt;
use std::time::Duration;

use crate::device::{Builder, SPIN_MAX, THREADS_MAX, default_threads, queues_for};
use crate::sys::thread;

/// What was asked for; the device chooses the rest.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Workers {
    pub(super) threads: Option<usize>,
    pub(super) spin: Option<Duration>,
    /// In the order in which the workers are pinned to them, none twice.
    pub(super) processors: Option<Vec<usize>>,
}

impl Workers {
    /// How many queues the interface is to have.
    pub(super) fn queues(&self) -> usize {
        queues_for(self.count())
    }

    /// How many there are to be. Where nothing was asked for, that is told by files.
    pub(super) fn count(&self) -> usize {
        self.threads.unwrap_or_else(default_threads)
    }

    /// Has the device made so.
    pub(super) fn build(self, mut builder: Builder) -> Builder {
        if let Some(threads) = self.threads {
            builder = builder.threads(threads);
        }
        if let Some(spin) = self.spin {
            builder = builder.spin(spin);
        }
        if let Some(processors) = self.processors {
            builder = builder.processors(processors);
        }
        builder
    }
}

/// A number of workers. Fails with what to give instead, as the others here do.
pub(super) fn threads(text: &str) -> Result<usize, String> {
    let threads = number(text).filter(|threads| (1..=THREADS_MAX).contains(threads));
    threads.ok_or_else(|| format!("give a number of threads from 1 to {THREADS_MAX}"))
}

/// Microseconds for which a worker looks before it sleeps.
pub(super) fn spin(text: &str) -> Result<Duration, String> {
    let spin = number(text).and_then(|us| u64::try_from(us).ok()).map(Duration::from_micros);
    spin.filter(|spin| *spin <= SPIN_MAX)
        .ok_or_else(|| format!("give microseconds from 0 (off) to {}", SPIN_MAX.as_micros()))
}

/// Processors, counted from 0, and ranges of them, as in `0,2-3`.
pub(super) fn processors(text: &str) -> Result<Vec<usize>, String> {
    let mut processors = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let bounds = number(first).zip(number(last));
        // The limit keeps a long range from becoming a long list.
        let Some((first, last)) = bounds.filter(|(first, last)| first <= last && *last < thread::PROCESSORS_MAX) else {
            return Err("give a list of processors such as 0,2-3".to_owned());
        };
        for processor in first..=last {
            if processors.contains(&processor) {
                return Err(format!("it names processor {processor} twice: name each once"));
            }
            processors.push(processor);
        }
    }
    Ok(processors)
}

/// Digits only.
fn number(text: &str) -> Option<usize> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// Processors in ascending order, written as [`processors`] reads them.
pub(super) struct List<'a>(pub(super) &'a [usize]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.0.chunk_by(|one, next| one + 1 == *next);
        for (index, range) in ranges.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match range {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [only] => write!(f, "{comma}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_NUMBERS: [&str; 10] = ["", "x", "-1", "+1", "1.0", "0x1", " 1", "1 ", "1,", "99999999999999999999999"];

    #[test]
    fn numbers_of_threads() {
        assert_eq!(threads("1"), Ok(1));
        assert_eq!(threads("16"), Ok(THREADS_MAX));
        for text in NO_NUMBERS.into_iter().chain(["0", "17"]) {
            assert_eq!(threads(text), Err("give a number of threads from 1 to 16".into()), "{text:?}");
        }
    }

    #[test]
    fn times_to_look() {
        for (text, us) in [("0", 0), ("60", 60), ("1000", 1000)] {
            assert_eq!(spin(text), Ok(Duration::from_micros(us)));
        }
        for text in NO_NUMBERS.into_iter().chain(["1001", "18446744073709551615"]) {
            assert_eq!(spin(text), Err("give microseconds from 0 (off) to 1000".into()), "{text:?}");
        }
    }

    #[test]
    fn lists_of_processors() {
        let check = |text: &str, expected: &[usize]| assert_eq!(processors(text).as_deref(), Ok(expected), "{text}");
        check("0", &[0]);
        check("0,2-3", &[0, 2, 3]);
        check("5-5,1,0-0", &[5, 1, 0]);
        check("8191", &[8191]);
        let more = ["0,,1", "3-2", "1-", "-", "0-1-2", "0-6:2", "8192", "0-8192", "0;1", "0 1"];
        for text in NO_NUMBERS.into_iter().chain(more) {
            assert_eq!(processors(text), Err("give a list of processors such as 0,2-3".into()), "{text:?}");
        }
        assert_eq!(processors("0-3,2"), Err("it names processor 2 twice: name each once".into()));
    }

    #[test]
    fn lists_are_written_as_they_are_read() {
        for text in ["0", "0-1", "0,2-3", "1,3,5-7"] {
            assert_eq!(List(&processors(text).unwrap()).to_string(), text);
        }
        assert_eq!(List(&[]).to_string(), "");
    }
}
