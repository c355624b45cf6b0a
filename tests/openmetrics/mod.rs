//! A strict reader of OpenMetrics 1.0: what breaks a rule of the format fails the test, with the line that does.
//!
//! Rules held: lines end in LF and nothing follows `# EOF`; HELP, TYPE and UNIT come before the samples and once; the
//! samples of a family stand together; names and labels have their alphabets; a name ends in its unit; counters end in
//! `_total`, infos in `_info` with the value 1; label values use the three escapes and no other; no label or series
//! comes twice; values are numbers, those of counters not negative.

use std::collections::{BTreeMap, BTreeSet};

/// The labels of a sample.
pub(crate) type Labels = BTreeMap<String, String>;

/// What was read: a sample's name → its labels and values.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) samples: BTreeMap<String, Vec<(Labels, f64)>>,
    pub(crate) families: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: String,
    unit: String,
    help: bool,
    sampled: bool,
}

impl Metrics {
    /// Reads a whole exposition.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF and a line feed");
        assert!(body.is_empty() || body.ends_with('\n'), "EOF stands on a line of its own");
        let mut metrics = Self::default();
        let mut family = Family::default();
        let mut series = BTreeSet::new();
        for line in body.strip_suffix('\n').map(|body| body.split('\n')).into_iter().flatten() {
            assert!(!line.is_empty() && !line.contains(['\r', '\0']), "no empty line, no other line end: {line:?}");
            match line.strip_prefix("# ") {
                Some(described) => metrics.describe(&mut family, described),
                None => {
                    let (name, labels, value) = sample(line);
                    family.check(&name, value, line);
                    assert!(series.insert((name.clone(), labels.clone())), "a series comes twice: {line}");
                    metrics.samples.entry(name).or_default().push((labels, value));
                }
            }
        }
        metrics
    }

    fn describe(&mut self, family: &mut Family, line: &str) {
        let mut words = line.splitn(3, ' ');
        let (Some(keyword), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else {
            panic!("# {line}");
        };
        assert!(is_name(name), "# {line}");
        if family.name != name {
            assert!(self.families.insert(name.to_owned()), "a family comes in two pieces: {name}");
            *family = Family { name: name.to_owned(), ..Family::default() };
        }
        assert!(!family.sampled, "described after its samples: # {line}");
        match keyword {
            "HELP" => assert!(!std::mem::replace(&mut family.help, true), "helped twice: {name}"),
            "TYPE" => {
                assert!(["counter", "gauge", "info"].contains(&rest), "# {line}");
                assert!(family.kind.is_empty(), "typed twice: {name}");
                rest.clone_into(&mut family.kind);
            }
            "UNIT" => {
                assert!(family.unit.is_empty() && name.ends_with(&format!("_{rest}")), "# {line}");
                rest.clone_into(&mut family.unit);
            }
            _ => panic!("# {line}"),
        }
    }

    /// The value of the one sample with (at least) these labels.
    #[track_caller]
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<f64> = self
            .samples
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(held, _)| labels.iter().all(|(name, value)| held.get(*name).is_some_and(|held| held == value)))
            .map(|(_, value)| *value)
            .collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0]
    }
}

impl Family {
    fn check(&mut self, name: &str, value: f64, line: &str) {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{}{suffix}", self.name), "under the wrong family, or with the wrong ending: {line}");
        assert!(self.help && !self.kind.is_empty(), "not described: {line}");
        assert!(self.kind != "counter" || value >= 0.0, "{line}");
        assert!(self.kind != "info" || value == 1.0, "{line}");
        self.sampled = true;
    }
}

fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_' || first == b':')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':')
}

/// `name{label="value",…} number`, without a time.
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, after) = quoted(after, line);
            assert!(labels.insert(label.to_owned(), value).is_none(), "a label comes twice: {line}");
            rest = match after.strip_prefix(',') {
                Some(next) => next,
                None => after,
            };
            assert!(after.starts_with(['}', ',']) && !after.starts_with(",}"), "{line}");
        }
        rest = &rest[1..];
    }
    let number = rest.strip_prefix(' ').unwrap_or_else(|| panic!("one space before the value: {line}"));
    assert!(!number.contains(' '), "{line}");
    (name.to_owned(), labels, number.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// A label's value up to its closing quote, and what follows that.
fn quoted<'a>(text: &'a str, line: &str) -> (String, &'a str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => panic!("no such escape: {line}"),
            },
            other => value.push(other),
        }
    }
    panic!("a label has no end: {line}");
}
