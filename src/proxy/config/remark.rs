//! What there is to say about a file: where, what, why, and what to do next.
//!
//! Reading a file goes on after a mistake, so that all mistakes are told at once. Nothing that may be a secret is ever
//! quoted: a value of a key that holds one, and a name too long or too odd to be a name.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Mistakes that are told one by one: beyond it the file is probably something else altogether.
pub const ERRORS_MAX: usize = 100;
/// Warnings that are told one by one.
pub const WARNINGS_MAX: usize = 100;
/// Characters of a name that are quoted: each known name is shorter, a key in base64 is longer.
const QUOTED_MAX: usize = 24;

/// Where something was said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// In a file.
    File {
        /// Its name as it was given.
        file: Arc<str>,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// In a variable of the environment.
    Variable(Arc<str>),
}

impl Place {
    /// The start of a file.
    pub(super) fn start(file: &Path) -> Self {
        Self::File { file: file.to_string_lossy().into(), line: 1, column: 1 }
    }

    /// This many characters further on the same line.
    pub(super) fn further(&self, characters: usize) -> Self {
        match self {
            Self::File { file, line, column } => {
                Self::File { file: Arc::clone(file), line: *line, column: column + characters }
            }
            Self::Variable(name) => Self::Variable(Arc::clone(name)),
        }
    }
}

/// `file:line:column`, or the name of the variable.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// One mistake, or one warning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Remark {
    /// Where.
    pub place: Place,
    /// What it is about, as the subject of a sentence.
    pub what: String,
    /// What is wrong with it.
    pub why: String,
    /// What to do about it.
    pub next: String,
}

/// `file:line:column: what: why; next`, in one line.
impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, what, why, next } = self;
        write!(f, "{place}: {what}: {why}; {next}")
    }
}

/// Why there is no configuration: every mistake, file by file in the order of lines, and the warnings.
#[derive(Debug)]
pub struct ConfigError {
    /// At least one, at most [`ERRORS_MAX`].
    pub errors: Vec<Remark>,
    /// Mistakes beyond those.
    pub more: usize,
    /// What was accepted but has no effect.
    pub warnings: Vec<Remark>,
}

/// A line for each mistake.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// Remarks as they are collected.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    errors: Vec<Remark>,
    more: usize,
    warnings: Vec<Remark>,
}

impl Remarks {
    pub(super) fn error(
        &mut self,
        place: &Place,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) {
        if self.errors.len() < ERRORS_MAX {
            let place = place.clone();
            self.errors.push(Remark { place, what: what.into(), why: why.into(), next: next.into() });
        } else {
            self.more += 1;
        }
    }

    pub(super) fn warning(
        &mut self,
        place: &Place,
        what: impl Into<String>,
        why: impl Into<String>,
        next: impl Into<String>,
    ) {
        if self.warnings.len() < WARNINGS_MAX {
            let place = place.clone();
            self.warnings.push(Remark { place, what: what.into(), why: why.into(), next: next.into() });
        }
    }

    /// The warnings, or all that is wrong.
    pub(super) fn conclude(mut self) -> Result<Vec<Remark>, ConfigError> {
        if self.errors.is_empty() {
            return Ok(self.warnings);
        }
        // Files as they came up, then variables; the order within a file is the lines'.
        let mut files: Vec<Arc<str>> = Vec::new();
        for error in &self.errors {
            if let Place::File { file, .. } = &error.place
                && !files.contains(file)
            {
                files.push(Arc::clone(file));
            }
        }
        self.errors.sort_by_key(|error| match &error.place {
            Place::File { file, line, column } => (files.iter().position(|it| it == file), *line, *column),
            Place::Variable(_) => (Some(files.len()), 0, 0),
        });
        Err(ConfigError { errors: self.errors, more: self.more, warnings: self.warnings })
    }
}

/// `name` for a message, in the given frame, if it can be a name; otherwise words that show nothing of it.
pub(super) fn quoted(name: &str, open: &str, close: &str) -> String {
    // No white space: before it stands a key whose equals sign was forgotten, and behind it the value.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if name.len() <= QUOTED_MAX && !name.is_empty() && name.chars().all(plain) {
        format!("{open}{name}{close}")
    } else {
        "this name".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_quoted() {
        let check = |name: &str, expected: &str| assert_eq!(quoted(name, "[", "]"), expected);
        check("Peeer", "[Peeer]");
        check("", "this name");
        check("yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk", "this name");
        check("p\u{fc}ss", "this name");
        check("Password aGVpbWxpY2g", "this name");
    }

    #[test]
    fn errors_are_told_in_the_order_of_the_file_and_bounded() {
        let mut remarks = Remarks::default();
        let at = |line| Place::File { file: "a".into(), line, column: 2 };
        remarks.error(&Place::Variable("ADIT_X".into()), "x", "y", "z");
        for line in (1..=ERRORS_MAX + 1).rev() {
            remarks.error(&at(line), "a", "b", "c");
        }
        let error = remarks.conclude().unwrap_err();
        assert_eq!((error.errors.len(), error.more), (ERRORS_MAX, 2));
        let text = error.to_string();
        assert!(text.starts_with("a:3:2: a: b; c\na:4:2: a: b; c\n"), "{text}");
        assert!(text.ends_with("\nADIT_X: x: y; z\nand 2 more"), "{text}");
    }
}
