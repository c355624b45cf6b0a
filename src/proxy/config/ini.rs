//! Lines to sections and entries, each with its place: the form of `wg-quick(8)`'s files, which wireproxy has as well.
//!
//! ```text
//! # a comment, also after a value; `;` too, at the start of a line or after white space
//! WGConfig = wg0.conf            # entries before the first section belong to the file as a whole
//! [Section]
//! Key = value
//! Key = " a value # with what would otherwise be a comment "   # or between backticks
//! Key = 'a value'                # single quotes around all of it are taken off, and mean nothing else
//! ```
//!
//! - The names of sections and keys have no case, here and in what uses them.
//! - A byte order mark and carriage returns at the ends of lines are passed over.
//! - Nothing is copied: what may be a secret stays in the caller's text, which the caller wipes.

use std::path::Path;
use std::sync::Arc;

use super::remark::{Place, Remarks, quoted};

/// A section: `[name]` and what follows it. The first one has no name and begins with the file.
#[derive(Debug)]
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    pub(super) place: Place,
    pub(super) entries: Vec<Entry<'a>>,
}

/// A line `key = value`.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) place: Place,
    pub(super) value: Value<'a>,
}

/// A value, white space around it and its quotes taken off.
#[derive(Clone)]
pub(super) struct Value<'a> {
    pub(super) text: &'a str,
    pub(super) place: Place,
    /// Relative paths begin here.
    pub(super) folder: &'a Path,
    /// A `$` at its start has no meaning.
    pub(super) quoted: bool,
    /// A `#` that begins a comment directly follows it.
    pub(super) cut: bool,
}

/// The text may be a secret.
impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value at {}", self.place)
    }
}

impl Value<'_> {
    /// The place of the byte `offset` of the value.
    pub(super) fn at(&self, offset: usize) -> Place {
        self.place.further(self.text.get(..offset).map_or(0, |before| before.chars().count()))
    }
}

/// The next step for a line that is neither.
const EITHER: &str = "write Key = Value or [Section], or put # before it";

/// Reads all of `text`; what is wrong with it goes to `remarks` and is left out.
pub(super) fn read<'a>(text: &'a str, path: &'a Path, remarks: &mut Remarks) -> Vec<Section<'a>> {
    let file: Arc<str> = path.to_string_lossy().into();
    let folder = path.parent().unwrap_or(Path::new(""));
    let place = |line, column| Place::File { file: Arc::clone(&file), line, column };
    let mut sections = vec![Section { name: "", place: place(1, 1), entries: Vec::new() }];
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let at = |offset: usize| place(index + 1, line[..offset].chars().count() + 1);
        if let Some(offset) = line.find(|c: char| c.is_control() && c != '\t') {
            let next = "remove it, or save the file as plain text";
            remarks.error(&at(offset), "This line", "it has a control character in it", next);
            continue;
        }
        let start = line.len() - line.trim_start().len();
        let content = &line[start..];
        match content.chars().next() {
            None | Some('#' | ';') => {}
            Some('[') => match header(content) {
                Ok(name) => sections.push(Section { name, place: at(start), entries: Vec::new() }),
                Err((offset, why)) => {
                    remarks.error(&at(start + offset), "This section", why, "write [Section] alone on its line");
                    // What follows belongs to it, whatever it is.
                    sections.push(Section { name: "[", place: at(start), entries: Vec::new() });
                }
            },
            Some(_) => match entry(line, start, folder, &at) {
                Ok(entry) => {
                    if let Some(section) = sections.last_mut() {
                        section.entries.push(entry);
                    }
                }
                Err(Mistake { offset, what, why, next }) => remarks.error(&at(offset), what, why, next),
            },
        }
    }
    sections
}

/// The name in `[name]`; what follows it is at most a comment.
fn header(content: &str) -> Result<&str, (usize, &'static str)> {
    let Some(end) = content.find(']') else { return Err((content.trim_end().len(), "its ] is missing")) };
    let rest = content[end + 1..].trim_start();
    if !rest.is_empty() && !rest.starts_with(['#', ';']) {
        return Err((content.len() - rest.len(), "something follows its ]"));
    }
    Ok(content[1..end].trim())
}

struct Mistake {
    /// In bytes of the line.
    offset: usize,
    what: String,
    why: &'static str,
    next: &'static str,
}

fn entry<'a>(
    line: &'a str,
    start: usize,
    folder: &'a Path,
    at: &impl Fn(usize) -> Place,
) -> Result<Entry<'a>, Mistake> {
    let comment = line.find('#').unwrap_or(line.len());
    let Some(equals) = line[..comment].find('=') else {
        let why = "it is neither a key and its value nor a section";
        return Err(Mistake { offset: start, what: "This line".to_owned(), why, next: EITHER });
    };
    let key = line[start..equals].trim_end();
    if key.is_empty() {
        let why = "there is no key before the =";
        return Err(Mistake { offset: start, what: "This line".to_owned(), why, next: EITHER });
    }
    let after = &line[equals + 1..];
    let first = equals + 1 + after.len() - after.trim_start().len();
    let value = &line[first..];
    let (text, offset, is_quoted, cut) = match value.chars().next() {
        Some(quote @ ('"' | '`')) => {
            let mistake = |offset, why| Mistake {
                offset,
                what: quoted(key, "", ""),
                why,
                next: "end the value with the quote that it began with, and put # before a comment",
            };
            let Some(end) = value[1..].find(quote).map(|found| found + 1) else {
                return Err(mistake(line.len(), "the quote that ends its value is missing"));
            };
            let rest = value[end + 1..].trim_start();
            if !rest.is_empty() && !rest.starts_with(['#', ';']) {
                return Err(mistake(line.len() - rest.len(), "something follows the quote that ends its value"));
            }
            (&value[1..end], first + 1, true, false)
        }
        _ => {
            let end = end_of_plain(value);
            let cut = value[..end].ends_with(|c: char| !c.is_whitespace()) && value[end..].starts_with('#');
            let text = value[..end].trim_end();
            match text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
                Some(inside) => (inside, first + 1, true, false),
                None => (text, first, false, cut),
            }
        }
    };
    Ok(Entry { key, place: at(start), value: Value { text, place: at(offset), folder, quoted: is_quoted, cut } })
}

/// Where a value without quotes ends: at `#`, or at `;` that follows white space or stands first.
fn end_of_plain(value: &str) -> usize {
    let mut blank = true;
    for (offset, c) in value.char_indices() {
        if c == '#' || (c == ';' && blank) {
            return offset;
        }
        blank = c.is_whitespace();
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries as `section/key=value@line:column`, and the mistakes.
    fn read_all(text: &str) -> (Vec<String>, String) {
        let mut remarks = Remarks::default();
        let sections = read(text, Path::new("f"), &mut remarks);
        let entries = sections.iter().flat_map(|section| {
            section.entries.iter().map(|entry| {
                let place = entry.value.place.to_string();
                format!("{}/{}={}@{}", section.name, entry.key, entry.value.text, place.trim_start_matches("f:"))
            })
        });
        let entries = entries.collect();
        (entries, remarks.conclude().map_or_else(|error| error.to_string(), |_| String::new()))
    }

    #[test]
    fn entries_and_their_places() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(read_all(text), (expected.iter().map(|&it| it.to_owned()).collect(), String::new()), "{text:?}");
        };
        check("", &[]);
        check("# a\n; b\n\n  \t\n#[c]\n", &[]);
        check("\u{feff}a=b", &["/a=b@1:3"]);
        check("a = b\r\n[S]\r\nc=d\r\n", &["/a=b@1:5", "S/c=d@3:3"]);
        check("[ S ] # x\n \ta b = c d \t# e", &["S/a b=c d@2:9"]);
        check("a = b=c==", &["/a=b=c==@1:5"]);
        check("a =", &["/a=@1:4"]);
        check("a = # none", &["/a=@1:5"]);
        check("a = b;c ; d", &["/a=b;c@1:5"]);
        check("a = \" b # c \" # d", &["/a= b # c @1:6"]);
        check("a = `\"b`", &["/a=\"b@1:6"]);
        check("a = 'b c' # d", &["/a=b c@1:6"]);
        check("a = 'b' and 'c", &["/a='b' and 'c@1:5"]);
        check("a = '", &["/a='@1:5"]);
        check("a = ''", &["/a=@1:6"]);
        check("\u{e4} = \u{f6}", &["/\u{e4}=\u{f6}@1:5"]);
        check("[a]\n[a]\nb=c", &["a/b=c@3:3"]);
    }

    #[test]
    fn mistakes_and_their_places() {
        let check = |text: &str, expected: &str| {
            let (_, errors) = read_all(text);
            assert!(errors.contains(expected), "{text:?}: {errors}");
        };
        check("a", "f:1:1: This line: it is neither");
        check("\n  hidden # = x", "f:2:3: This line: it is neither");
        check(" = x", "f:1:2: This line: there is no key");
        check("[Peer", "f:1:6: This section: its ] is missing");
        check("[Peer] x", "f:1:8: This section: something follows its ]");
        check("a = \"b", "f:1:7: a: the quote that ends its value is missing");
        check("a = \"b\" c", "f:1:9: a: something follows the quote");
        check("\u{e4}\0", "f:1:2: This line: it has a control character");
        let (_, errors) = read_all("hidden");
        assert!(!errors.contains("hidden"), "{errors}");
    }
}
