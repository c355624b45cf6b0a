//! docs/security.md against the code: each row's files and tests exist, and each test that carries an id has its row.
//! And tests/mutants.txt against both: each change of it still applies, and no promise is without one.
//!
//! An id is a letter and two digits: `S` promise, `F` fault, `U` abuse of the configuration socket, `Z` fuzzing. A
//! test carries it as the beginning of its name: `s_03_…` proves `S-03`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const LEDGER: &str = "docs/security.md";
const MUTANTS: &str = "tests/mutants.txt";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A row of the ledger: the cells between the bars.
fn rows() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(LEDGER)).unwrap();
    let cells =
        |line: &str| -> Vec<String> { line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect() };
    let mut in_ledger = false;
    let is_row = |line: &&str| {
        let is_head = line.starts_with("| id ") || line.starts_with("| defect ");
        // Other tables have other heads; each ends with a line that is none of it.
        in_ledger = is_head || (in_ledger && line.starts_with('|'));
        in_ledger && !is_head && line.starts_with("| ")
    };
    text.lines().filter(is_row).map(cells).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// `S-03` of `s_03_no_dh`, if the name begins with an id.
fn id_of(name: &str) -> Option<String> {
    let bytes = name.as_bytes();
    let is_id = bytes.len() > 5
        && b"sfuz".contains(&bytes[0])
        && bytes[1] == b'_'
        && bytes[2..4].iter().all(u8::is_ascii_digit)
        && bytes[4] == b'_';
    is_id.then(|| format!("{}-{}", name[..1].to_uppercase(), &name[2..4]))
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every test that carries an id: `file::function`.
fn tests_with_ids() -> BTreeSet<String> {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    rust_files(&root().join("tests"), &mut files);
    let mut tests = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(root()).unwrap().display().to_string();
        let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split('(').next());
        tests.extend(names.filter(|name| id_of(name).is_some()).map(|name| format!("{path}::{name}")));
    }
    tests
}

#[test]
fn every_row_names_code_and_tests_that_exist() {
    let mut problems = Vec::new();
    for row in rows() {
        let [id, _, code, tests] = row.as_slice() else {
            problems.push(format!("not four cells: {row:?}"));
            continue;
        };
        for file in quoted(code) {
            if !root().join(file).exists() {
                problems.push(format!("{id}: there is no {file}"));
            }
        }
        if tests.starts_with("does not apply: ") {
            continue;
        }
        if quoted(tests).is_empty() {
            problems.push(format!("{id} names no test"));
        }
        let is_id = id.len() == 4 && id.as_bytes()[1] == b'-';
        let mut carries = !is_id;
        for test in quoted(tests) {
            let Some((file, function)) = test.split_once("::") else {
                problems.push(format!("{id}: a test is `file::function`, not `{test}`"));
                continue;
            };
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !text.contains(&format!("fn {function}(")) {
                problems.push(format!("{id}: there is no test {test}"));
            }
            carries |= id_of(function).as_ref() == Some(id);
        }
        if !carries {
            problems.push(format!("{id}: none of its tests carries the id"));
        }
    }
    assert!(problems.is_empty(), "{LEDGER}:\n  {}", problems.join("\n  "));
}

#[test]
fn every_test_with_an_id_has_its_row() {
    let rows = rows();
    let missing: Vec<String> = tests_with_ids()
        .into_iter()
        .filter(|test| {
            let id = id_of(test.rsplit("::").next().unwrap()).unwrap();
            !rows.iter().any(|row| row[0] == id && quoted(row.last().unwrap()).contains(&test.as_str()))
        })
        .collect();
    assert!(missing.is_empty(), "{LEDGER} has no row with the id of:\n  {}", missing.join("\n  "));
}

/// A change that breaks a promise, as scripts/mutants.py reads it: the list's head says how an entry looks.
#[derive(Default)]
struct Mutant {
    id: String,
    file: String,
    /// The lines that the change is made in, each with its end.
    before: String,
    after: String,
    tests: Vec<String>,
}

fn mutants() -> Vec<Mutant> {
    let text = fs::read_to_string(root().join(MUTANTS)).unwrap();
    let mut mutants: Vec<Mutant> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (kind, rest) = line.split_at(1);
        if kind == "[" {
            let (id, file) = rest.split_once("] ").unwrap();
            mutants.push(Mutant { id: id.into(), file: file.into(), ..Mutant::default() });
            continue;
        }
        let mutant = mutants.last_mut().expect("the list begins with the head of an entry");
        match kind {
            "-" => mutant.before += &format!("{rest}\n"),
            "+" => mutant.after += &format!("{rest}\n"),
            " " => [&mut mutant.before, &mut mutant.after].into_iter().for_each(|lines| *lines += &format!("{rest}\n")),
            "=" => mutant.tests.push(rest.trim().into()),
            _ => panic!("{MUTANTS}: what is this? {line}"),
        }
    }
    mutants
}

#[test]
fn every_mutant_applies_and_names_tests() {
    let mut problems = Vec::new();
    for Mutant { id, file, before, after, tests } in mutants() {
        let text = fs::read_to_string(root().join(&file)).unwrap_or_default();
        let count = if before.is_empty() { 0 } else { text.matches(&before).count() };
        if count != 1 {
            problems.push(format!("{id}: {file} has these lines {count} times, not once:\n{before}"));
        }
        if before == after {
            problems.push(format!("{id}: nothing is changed in {file}"));
        }
        if tests.is_empty() {
            problems.push(format!("{id}: no test is named that must fail:\n{after}"));
        }
        for test in tests {
            let (file, function) = test.split_once("::").unwrap_or((&test, ""));
            let text = fs::read_to_string(root().join(file)).unwrap_or_default();
            if !text.contains(&format!("fn {function}(")) {
                problems.push(format!("{id}: there is no test {test}"));
            }
        }
    }
    assert!(problems.is_empty(), "{MUTANTS}:\n  {}", problems.join("\n  "));
}

/// And one that a test of the promise's own row notices.
#[test]
fn every_promise_was_seen_broken() {
    let mutants = mutants();
    let missing: Vec<String> = rows()
        .into_iter()
        .filter(|row| row[0].starts_with("S-") && !quoted(&row[2]).is_empty())
        .filter(|row| {
            let held_by = quoted(&row[3]);
            let notices = |mutant: &Mutant| mutant.tests.iter().any(|test| held_by.contains(&test.as_str()));
            !mutants.iter().any(|mutant| mutant.id == row[0] && notices(mutant))
        })
        .map(|row| format!("{}: {}", row[0], row[1]))
        .collect();
    assert!(missing.is_empty(), "{MUTANTS} breaks none of:\n  {}", missing.join("\n  "));
}
