//! Style that can be a test: what CONTRIBUTING.md promises about the shape of this repository.
//!
//! - who may use whom: the table of layers in `src/lib.rs` and `docs/architecture.md`;
//! - `unsafe` in `src/sys` alone, each block with its reason;
//! - the ledger of requirements, in both directions: `docs/protocol.md`, the tags in the code, the tags in the tests;
//! - documents: no dead link, no name of a constant that is gone, a line on why for each dependency;
//! - files: each says at its head what it is, none grows without end, nothing is left half done.
//!
//! Plain text scanning, on purpose: no parser to maintain, and what it cannot read is better written more simply.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

/// Lines outside of tests that one source file may have: beyond it two nouns share a file.
const FILE_LINES_MAX: usize = 900;
/// Lines above an `unsafe` in which its `// SAFETY:` may stand: a statement can begin a few lines earlier.
const SAFETY_DISTANCE_MAX: usize = 4;
/// Folders that are no part of the project's own text.
const NOT_OURS: [&str; 5] = ["target", ".git", "corpus", "artifacts", "node_modules"];
/// The documents whose names of constants are held against the code.
const ARCHITECTURE: &str = "docs/architecture.md";
const LEDGER: &str = "docs/protocol.md";
const DEPENDENCIES: &str = "docs/decisions/0001-dependencies.md";
const DIFFERENCES: &str = "docs/decisions/0007-differences.md";

// --- Reading ---------------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` (relative to the root) with one of the extensions, sorted.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|entry| entry.expect("a folder can be listed")) {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                if !NOT_OURS.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if extensions.iter().any(|extension| path.extension().is_some_and(|e| e == *extension)) {
                let relative = path.strip_prefix(root()).expect("below the root");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// One file of Rust, its text beside what a compiler would see of it.
struct Source {
    path: String,
    text: String,
    /// As long as `text`; comments, strings and characters are blanks.
    code: String,
    /// Byte ranges of items under `#[cfg(test)]`.
    tests: Vec<(usize, usize)>,
    /// The whole file is a test.
    is_test: bool,
}

impl Source {
    fn read(path: &str) -> Self {
        let text = read(path);
        let code = blank_comments_and_literals(&text);
        let tests = test_items(&code);
        let is_test = !path.starts_with("src/")
            || Path::new(path)
                .components()
                .any(|part| matches!(part, Component::Normal(n) if n == "tests" || n == "tests.rs"));
        Self { path: path.into(), text, code, tests, is_test }
    }

    fn in_test(&self, position: usize) -> bool {
        self.is_test || self.tests.iter().any(|&(start, end)| (start..end).contains(&position))
    }

    fn line(&self, position: usize) -> usize {
        self.text[..position].bytes().filter(|&byte| byte == b'\n').count() + 1
    }

    /// `path:line`, for a complaint.
    fn at(&self, position: usize) -> String {
        format!("{}:{}", self.path, self.line(position))
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    folders.iter().flat_map(|folder| files(folder, &["rs"])).map(|path| Source::read(&path)).collect()
}

/// Replaces comments and the inside of literals by blanks, newlines kept, so that positions stay.
fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let blank = |code: &mut Vec<u8>, range: std::ops::Range<usize>| {
        code[range].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    };
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at + 1..].starts_with(b"/") => at + text[at..].find('\n').unwrap_or(text.len() - at),
            b'/' if bytes[at + 1..].starts_with(b"*") => end_of_block_comment(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'r' if !ends_in_word(&bytes[..at]) || bytes[at - 1] == b'b' => match end_of_raw_string(text, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            b'\'' => match end_of_character(bytes, at) {
                Some(end) => end,
                None => {
                    at += 1;
                    continue;
                }
            },
            _ => {
                at += 1;
                continue;
            }
        };
        blank(&mut code, at..end);
        at = end;
    }
    String::from_utf8(code).expect("whole characters were replaced")
}

fn end_of_block_comment(bytes: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn end_of_raw_string(text: &str, start: usize) -> Option<usize> {
    let rest = text[start..].strip_prefix('r')?;
    let hashes = rest.bytes().take_while(|&byte| byte == b'#').count();
    rest[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let body = start + 1 + hashes + 1;
    Some(text[body..].find(&close).map_or(text.len(), |found| body + found + close.len()))
}

/// The end of `'x'` or `'\…'`; `None` for a lifetime.
fn end_of_character(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start + 1) == Some(&b'\\') {
        let close = bytes[start + 3..].iter().position(|&byte| byte == b'\'')?;
        return Some(start + 3 + close + 1);
    }
    let text = std::str::from_utf8(&bytes[start + 1..]).ok()?;
    let length = text.chars().next()?.len_utf8();
    (bytes.get(start + 1 + length) == Some(&b'\'')).then_some(start + length + 2)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn ends_in_word(bytes: &[u8]) -> bool {
    bytes.last().is_some_and(|&byte| is_word(byte))
}

/// Where `word` stands in `code` as a word of its own.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !ends_in_word(&code.as_bytes()[..at])
            && !code.as_bytes().get(at + word.len()).is_some_and(|&byte| is_word(byte))
    })
}

/// The items that only a test build has: from each `#[cfg(test)]` to the end of what follows it.
fn test_items(code: &str) -> Vec<(usize, usize)> {
    let mut items = Vec::new();
    for (start, _) in code.match_indices("#[cfg(") {
        let Some(attribute) = code[start..].find(']').map(|end| &code[start..start + end]) else { continue };
        if words(attribute, "test").next().is_none() || attribute.contains("not(test") {
            continue;
        }
        let after = start + attribute.len();
        let Some(open) = code[after..].find(['{', ';']).map(|found| after + found) else { continue };
        items.push((start, if code.as_bytes()[open] == b';' { open + 1 } else { end_of_braces(code, open) }));
    }
    items
}

fn end_of_braces(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Ends a check: lists everything that is wrong, not only the first.
fn conclude(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n  {}\n", problems.join("\n  "));
}

// --- Layers ----------------------------------------------------------------------------------

/// What a layer may use: paths below `crate`; `None` is everything.
type Allowed = Option<Vec<Vec<String>>>;

/// The rows of the table "layer | may use" in a text, cells trimmed.
fn layer_rows(text: &str) -> Vec<(String, String)> {
    text.lines()
        .map(|line| line.trim_start_matches("//!").trim())
        .skip_while(|line| *line != "| layer | may use |")
        .skip(2)
        .map_while(|line| line.strip_prefix('|')?.strip_suffix('|')?.split_once('|'))
        .map(|(layers, used)| (layers.trim().to_owned(), used.trim().to_owned()))
        .collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn layer_table(rows: &[(String, String)]) -> BTreeMap<String, Allowed> {
    let mut table = BTreeMap::new();
    for (layers, used) in rows {
        let allowed = match used.as_str() {
            "all" => None,
            "nothing of ours" => Some(Vec::new()),
            // "`a`, `b::c`, and of `d`: e, f"
            listed => {
                let (whole, parts) = listed.split_once("of `").unwrap_or((listed, ""));
                let mut paths: Vec<Vec<String>> =
                    quoted(whole).iter().map(|path| path.split("::").map(str::to_owned).collect()).collect();
                if let Some((layer, names)) = parts.split_once("`:") {
                    paths.extend(names.split(',').map(|name| vec![layer.to_owned(), name.trim().to_owned()]));
                }
                Some(paths)
            }
        };
        for layer in quoted(layers) {
            table.insert(layer, allowed.clone());
        }
    }
    table
}

/// The module path of a source file: `src/proto/noise.rs` is `[proto, noise]`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// All paths that begin at `start` of `code`, which follows a `::`: groups are opened.
fn paths_from(code: &str, start: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let bytes = code.as_bytes();
    let skip_blanks = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
            at += 1;
        }
        at
    };
    let mut at = skip_blanks(start);
    if bytes.get(at) == Some(&b'{') {
        at += 1;
        loop {
            at = skip_blanks(at);
            match bytes.get(at) {
                None => return at,
                Some(b'}') => return at + 1,
                Some(b',') => at += 1,
                Some(_) => {
                    let next = paths_from(code, at, prefix, found);
                    // `as name` and whatever else stands before the comma.
                    at = next + code[next..].find([',', '}']).unwrap_or(0);
                }
            }
        }
    }
    let end = at + code[at..].bytes().take_while(|&byte| is_word(byte)).count();
    let mut path = prefix.to_vec();
    if end > at {
        path.push(code[at..end].to_owned());
    }
    let after = skip_blanks(end);
    if end > at && code[after..].starts_with("::") {
        return paths_from(code, after + 2, &path, found);
    }
    found.push(path);
    end.max(at + usize::from(bytes.get(at) == Some(&b'*')))
}

/// Everything of ours that the file names outside of tests: where, and the path below `crate`.
fn references(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut references = Vec::new();
    let own = module_of(&source.path);
    for start in ["crate", "adit"].iter().flat_map(|word| words(&source.code, word)) {
        let Some(after) = source.code[start..].find("::").map(|found| start + found) else { continue };
        if after - start > "crate".len() || source.in_test(start) || source.code[..start].ends_with("::") {
            continue;
        }
        let mut paths = Vec::new();
        paths_from(&source.code, after + 2, &[], &mut paths);
        references.extend(paths.into_iter().map(|path| (start, path)));
    }
    for start in words(&source.code, "super") {
        if source.in_test(start) || source.code[..start].ends_with("::") {
            continue;
        }
        let (mut at, mut above) = (start, own.clone());
        while source.code[at..].starts_with("super::") {
            above.pop();
            at += "super::".len();
        }
        if above.len() < own.len() {
            let mut paths = Vec::new();
            paths_from(&source.code, at, &above, &mut paths);
            references.extend(paths.into_iter().map(|path| (start, path)));
        }
    }
    references
}

#[test]
fn layers_use_only_what_the_table_allows() {
    let rows = layer_rows(&read("src/lib.rs"));
    assert!(rows.len() >= 6, "src/lib.rs has no table `layer | may use`");
    assert_eq!(rows, layer_rows(&read(ARCHITECTURE)), "the tables of src/lib.rs and {ARCHITECTURE} differ");
    let table = layer_table(&rows);

    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        if source.is_test || matches!(source.path.as_str(), "src/lib.rs" | "src/main.rs") {
            continue;
        }
        let layer = module_of(&source.path)[0].clone();
        let Some(allowed) = table.get(&layer) else {
            problems.push(format!("{}: layer `{layer}` is not in the table", source.path));
            continue;
        };
        let Some(allowed) = allowed else { continue };
        for (position, path) in references(&source) {
            let inside = path.first().is_none_or(|first| *first == layer);
            if !inside && !allowed.iter().any(|prefix| path.starts_with(prefix)) {
                problems.push(format!("{}: `{layer}` may not use `{}`", source.at(position), path.join("::")));
            }
        }
    }
    conclude(problems);
}

/// `proto` and `key` have no operating system below them, no clock, no log.
#[test]
fn the_protocol_names_no_operating_system() {
    let mut problems = Vec::new();
    for source in sources(&["src/proto"]).into_iter().chain([Source::read("src/key.rs")]) {
        for word in ["std", "libc", "tracing", "println", "eprintln", "SystemTime"] {
            let outside = words(&source.code, word).filter(|&at| !source.in_test(at));
            problems.extend(outside.map(|at| format!("{}: `{word}` in the protocol", source.at(at))));
        }
    }
    conclude(problems);
}

/// Who links the library owns the process: signals, environment, output and log are its own.
#[test]
fn the_library_leaves_the_process_alone() {
    let words_of = |path: &str| -> &[&str] {
        match path {
            // Handed to the programs, which decide.
            "src/sys/signal.rs" | "src/sys/process.rs" => &["println", "eprintln", "tokio"],
            _ => &[
                "env",
                "set_hook",
                "process::exit",
                "println",
                "eprintln",
                "sigaction",
                "signal_hook",
                "sigprocmask",
                "fork",
                "set_global_default",
                "setrlimit",
                "tokio",
            ],
        }
    };
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        let layer = module_of(&source.path).first().cloned().unwrap_or_default();
        if source.is_test || matches!(layer.as_str(), "" | "cli" | "proxy") {
            continue;
        }
        for word in words_of(&source.path) {
            // Adapters for who has a runtime, and a server with a runtime of its own.
            let is_async = ["src/netstack/", "src/metrics/"].iter().any(|folder| source.path.starts_with(folder));
            if *word == "tokio" && is_async {
                continue;
            }
            // `env!` reads what there was when it was compiled.
            let is_macro = |at: usize| source.code[at + word.len()..].starts_with('!') && *word == "env";
            let outside = words(&source.code, word).filter(|&at| !source.in_test(at) && !is_macro(at));
            problems.extend(outside.map(|at| format!("{}: `{word}` in the library", source.at(at))));
        }
    }
    conclude(problems);
}

// --- Unsafe ----------------------------------------------------------------------------------

#[test]
fn unsafe_lives_in_sys_and_says_why() {
    let mut problems = Vec::new();
    for source in sources(&["src", "examples", "fuzz"]) {
        let lines: Vec<&str> = source.text.lines().collect();
        for position in words(&source.code, "unsafe") {
            if !source.path.starts_with("src/sys/") {
                problems.push(format!("{}: `unsafe` outside of src/sys", source.at(position)));
                continue;
            }
            let rest = source.code[position + "unsafe".len()..].trim_start();
            let wanted = if rest.starts_with('{') || rest.starts_with("impl") { "// SAFETY:" } else { "# Safety" };
            // Upwards: the line itself, a few lines of the same statement, and the comment above those.
            let (mut line, mut code_lines) = (source.line(position) - 1, 0);
            let explained = loop {
                if lines[line].contains(wanted) {
                    break true;
                }
                let is_comment =
                    lines[line].trim_start().starts_with("//") || lines[line].trim_start().starts_with("#[");
                code_lines += usize::from(!is_comment);
                if code_lines > SAFETY_DISTANCE_MAX || line == 0 {
                    break false;
                }
                line -= 1;
            };
            if !explained && !rest.starts_with("extern") {
                problems.push(format!("{}: `unsafe` without `{wanted}`", source.at(position)));
            }
        }
    }
    conclude(problems);
}

// --- The ledger of requirements --------------------------------------------------------------

/// The tags in a text with their positions: `[WP 5.3, 5.4.7]` is two. Complains about misshapen ones.
fn tags(text: &str, complain: &mut impl FnMut(usize, &str)) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices('[') {
        let inside = match text[at + 1..].find([']', '\n']) {
            Some(end) if text.as_bytes()[at + 1 + end] == b']' => &text[at + 1..at + 1 + end],
            _ => continue,
        };
        // Escaped where rustdoc would take it for a link.
        let inside = inside.trim_end_matches('\\');
        let is_tag = ["WP ", "RFC ", "UAPI", "KERNEL-"].iter().any(|family| inside.starts_with(family));
        if !is_tag {
            continue;
        }
        let mut family = "";
        for part in inside.split(", ") {
            let tag = if part.starts_with(|c: char| c.is_ascii_digit() || c == '§') {
                format!("{family} {part}")
            } else {
                family = if part.starts_with("WP ") { "WP" } else { part.split(" §").next().unwrap_or(part) };
                part.to_owned()
            };
            if is_well_formed(&tag) {
                found.push((at, tag));
            } else {
                complain(at, &tag);
            }
        }
    }
    found
}

fn is_well_formed(tag: &str) -> bool {
    let numbers = |text: &str| text.split('.').all(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()));
    let (family, rest) = tag.split_once(' ').unwrap_or((tag, ""));
    match family {
        "WP" => numbers(rest),
        "RFC" => match rest.split_once(" §") {
            Some((number, section)) => numbers(number) && numbers(section),
            None => numbers(rest),
        },
        "UAPI" => rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte == b'_'),
        kernel => kernel.strip_prefix("KERNEL-").is_some_and(|word| {
            rest.is_empty() && !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
        }),
    }
}

/// One line of the ledger.
struct Requirement {
    tag: String,
    code: Vec<String>,
    tests: Vec<String>,
}

fn ledger() -> Vec<Requirement> {
    let mut requirements = Vec::new();
    for line in read(LEDGER).lines().filter(|line| line.starts_with("| `[")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 4, "{LEDGER}: a row has four cells: {line}");
        let tag = quoted(cells[0]).concat().trim_matches(['[', ']']).to_owned();
        assert!(is_well_formed(&tag), "{LEDGER}: `{tag}` is no tag");
        requirements.push(Requirement { tag, code: quoted(cells[2]), tests: quoted(cells[3]) });
    }
    requirements
}

#[test]
fn every_requirement_has_code_and_a_test_and_every_tag_a_requirement() {
    let mut problems = Vec::new();
    // Where each tag stands: tag → files, of code and of tests.
    let (mut in_code, mut in_tests) =
        (BTreeMap::<String, BTreeSet<String>>::new(), BTreeMap::<String, BTreeSet<String>>::new());
    let sources = sources(&["src", "tests"]);
    for source in sources.iter().filter(|source| source.path != "tests/tidy.rs") {
        let misshapen = &mut |at: usize, tag: &str| problems.push(format!("{}: `[{tag}]` is no tag", source.at(at)));
        for (at, tag) in tags(&source.text, misshapen) {
            let place = if source.in_test(at) { &mut in_tests } else { &mut in_code };
            place.entry(tag).or_default().insert(source.path.clone());
        }
    }

    let ledger = ledger();
    let listed: BTreeSet<&str> = ledger.iter().map(|requirement| requirement.tag.as_str()).collect();
    for (tag, files) in in_code.iter().chain(&in_tests) {
        if !listed.contains(tag.as_str()) {
            problems.push(format!("[{tag}] of {files:?} is not in {LEDGER}"));
        }
    }
    for tag in &listed {
        if !in_code.contains_key(*tag) {
            problems.push(format!("[{tag}] of {LEDGER} stands nowhere in src"));
        }
        if !in_tests.contains_key(*tag) {
            problems.push(format!("[{tag}] of {LEDGER} stands at no test"));
        }
    }
    for requirement in &ledger {
        let tag = &requirement.tag;
        if requirement.code.is_empty() || requirement.tests.is_empty() {
            problems.push(format!("{LEDGER}: [{tag}] names no file or no test"));
        }
        for file in &requirement.code {
            if !in_code.get(tag).is_some_and(|files| files.contains(file)) {
                problems.push(format!("{LEDGER}: [{tag}] does not stand in {file}"));
            }
        }
        for test in &requirement.tests {
            let Some((file, function)) = test.split_once("::") else {
                problems.push(format!("{LEDGER}: [{tag}]: a test is `file::function`, not `{test}`"));
                continue;
            };
            if !in_tests.get(tag).is_some_and(|files| files.contains(file)) {
                problems.push(format!("{LEDGER}: [{tag}] stands at no test of {file}"));
            }
            let exists = sources.iter().any(|source| {
                source.path == file
                    && words(&source.code, function).any(|at| source.code[..at].ends_with("fn ") && source.in_test(at))
            });
            if !exists {
                problems.push(format!("{LEDGER}: [{tag}]: there is no test {test}"));
            }
        }
    }
    conclude(problems);
}

// --- Documents -------------------------------------------------------------------------------

/// The anchors that a Markdown text has: its headings as the usual renderers spell them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    text.lines()
        .filter(|line| {
            fenced ^= line.trim_start().starts_with("```");
            !fenced && line.starts_with('#')
        })
        .map(|line| {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

#[test]
fn documents_have_no_dead_link() {
    let mut problems = Vec::new();
    for path in files("", &["md"]) {
        let text = read(&path);
        for (at, _) in text.match_indices("](") {
            let Some(target) = text[at + 2..].split(')').next() else { continue };
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let full = if file.is_empty() {
                root().join(&path)
            } else {
                root().join(&path).parent().expect("a folder").join(file)
            };
            let Ok(full) = full.canonicalize() else {
                problems.push(format!("{path}: dead link to {target}"));
                continue;
            };
            if !full.starts_with(root().canonicalize().expect("the root exists")) {
                problems.push(format!("{path}: link out of the repository: {target}"));
            } else if !anchor.is_empty() && full.is_file() {
                let text = fs::read_to_string(&full).expect("a linked document is text");
                if !anchors(&text).contains(anchor) {
                    problems.push(format!("{path}: {target}: no such heading"));
                }
            }
        }
    }
    conclude(problems);
}

/// The names of constants in the code outside of tests, and whether other files may use them.
fn constants() -> BTreeMap<String, bool> {
    let mut names = BTreeMap::new();
    for source in sources(&["src"]) {
        for at in words(&source.code, "const").filter(|&at| !source.in_test(at)) {
            let line = source.code[..at].rsplit('\n').next().unwrap_or_default();
            let rest = source.code[at + "const".len()..].trim_start();
            let name: String = rest.bytes().take_while(|&byte| is_word(byte)).map(char::from).collect();
            let capital = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            if name.len() > 1 && name.bytes().all(capital) {
                *names.entry(name).or_default() |= line.trim_start().starts_with("pub");
            }
        }
    }
    names
}

/// Every bound that files share is explained in the architecture, and every bound explained there exists.
#[test]
fn bounds_are_documented() {
    let constants = constants();
    let text = read(ARCHITECTURE);
    let section = text.split("\n## ").find(|section| section.starts_with("Bounds")).expect("a section named Bounds");
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeSet<String> =
        rows.flat_map(|row| quoted(row.split('|').nth(1).expect("a first cell"))).collect();
    let mut problems = Vec::new();
    for (name, _) in constants.iter().filter(|(name, shared)| **shared && name.ends_with("_MAX")) {
        if !documented.contains(name) {
            problems.push(format!("{ARCHITECTURE}: bound `{name}` is missing"));
        }
    }
    for name in documented.iter().filter(|name| !constants.contains_key(*name)) {
        problems.push(format!("{ARCHITECTURE}: there is no constant `{name}`"));
    }
    conclude(problems);
}

/// The dependencies of a manifest: name and version, of `[dependencies]` and `[dev-dependencies]`.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let mut section = "";
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if section.ends_with("dependencies")
            && let Some((name, value)) = line.split_once(" = ")
        {
            let version = value.split('"').nth(1).expect("a dependency's version is its first string");
            found.push((name.to_owned(), version.to_owned()));
        }
    }
    found
}

#[test]
fn every_dependency_has_a_line_on_why() {
    let text = read(DEPENDENCIES);
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let wanted = dependencies(&read("Cargo.toml"));
    let mut problems = Vec::new();
    for (name, version) in &wanted {
        if !rows.iter().any(|row| row.starts_with(&format!("| `{name}` | {version} |"))) {
            problems.push(format!("{DEPENDENCIES}: no row `{name}` | {version}"));
        }
    }
    for row in rows {
        let name = quoted(row).first().cloned().expect("a name");
        if !wanted.iter().any(|(wanted, _)| *wanted == name) {
            problems.push(format!("{DEPENDENCIES}: `{name}` is no dependency"));
        }
    }
    conclude(problems);
}

#[test]
fn every_difference_is_listed() {
    let listed = quoted(&read(DIFFERENCES));
    let mut problems = Vec::new();
    for source in sources(&["src"]) {
        if source.text.contains("Differs from") && !listed.contains(&source.path) {
            problems.push(format!("{}: its difference is not in {DIFFERENCES}", source.path));
        }
    }
    let files = listed.iter().filter(|name| name.starts_with("src/"));
    problems.extend(
        files.filter(|name| !root().join(name).exists()).map(|name| format!("{DIFFERENCES}: there is no {name}")),
    );
    conclude(problems);
}

// --- Files -----------------------------------------------------------------------------------

#[test]
fn files_say_what_they_are_and_stay_small() {
    let mut problems = Vec::new();
    for source in sources(&["src", "tests", "benches", "examples", "fuzz"]) {
        let path = &source.path;
        if !source.text.starts_with("//!") {
            problems.push(format!("{path}: does not begin with `//!`"));
        }
        if source.text.starts_with("//! placeholder") {
            problems.push(format!("{path}: is a placeholder"));
        }
        let name = Path::new(path).file_stem().expect("a file's name").to_string_lossy().into_owned();
        if matches!(name.as_str(), "utils" | "util" | "helpers" | "types" | "common" | "misc") {
            problems.push(format!("{path}: `{name}` is no noun of this field"));
        }
        let tests: usize = source.tests.iter().map(|&(start, end)| source.text[start..end].lines().count()).sum();
        let lines = source.text.lines().count() - tests;
        if path.starts_with("src/") && !source.is_test && lines > FILE_LINES_MAX {
            problems.push(format!("{path}: {lines} lines outside of tests, more than {FILE_LINES_MAX}"));
        }
    }
    conclude(problems);
}

#[test]
fn nothing_is_left_half_done_or_points_outside() {
    // Spelt in halves, so that this file does not find itself.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK:")];
    // Folders of one developer's machine.
    let outside = [
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("/wo", "rk/"),
        concat!("/worksp", "ace/"),
        concat!("../sha", "red"),
    ];
    let mut problems = Vec::new();
    let extensions = ["rs", "md", "toml", "sh", "py", "yml", "yaml", "service", "conf", "txt", "json"];
    for path in files("", &extensions).into_iter().chain(["Makefile".into()]) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            problems.extend(
                unfinished
                    .iter()
                    .filter(|word| words(line, word).next().is_some())
                    .map(|word| format!("{path}:{number}: {word}")),
            );
            problems.extend(
                outside.iter().filter(|place| line.contains(**place)).map(|place| format!("{path}:{number}: {place}")),
            );
        }
    }
    conclude(problems);
}

// --- The scanner itself ----------------------------------------------------------------------

/// Where things of ours lie; a folder's name would be the same on every machine.
#[test]
fn the_scanner_reads_what_a_compiler_reads() {
    let check = |text: &str, expected: &str| assert_eq!(blank_comments_and_literals(text), expected, "{text}");
    check("a // b\nc", "a     \nc");
    check("a /* /* b */ */ c", "a               c");
    check(r#"f("x\"y", z)"#, "f(      , z)");
    check(r###"f(r#"x"y"#, b"q")"###, "f(r       , b   )".replace("r ", "  ").as_str());
    check("'a' <'b> '\\n' b'\\''", "    <'b>      b    ");

    let paths = |text: &str| {
        let source = Source {
            path: "src/device/send.rs".into(),
            text: text.into(),
            code: blank_comments_and_literals(text),
            tests: test_items(text),
            is_test: false,
        };
        references(&source).into_iter().map(|(_, path)| path.join("::")).collect::<Vec<_>>()
    };
    assert_eq!(paths("use crate::a::{b, c::{d, e as f}, self};"), ["a::b", "a::c::d", "a::c::e", "a::self"]);
    assert_eq!(paths("fn f(x: crate::udp::Source) { super::peer::y(); }"), ["udp::Source", "device::peer::y"]);
    assert_eq!(paths("use super::super::tun::*;"), ["tun"]);
    assert_eq!(paths("#[cfg(test)] mod tests { use crate::cli::x; }"), [""; 0]);

    let all =
        |text: &str| tags(text, &mut |_, tag| panic!("{tag}")).into_iter().map(|(_, tag)| tag).collect::<Vec<_>>();
    assert_eq!(
        all("// [WP 5.3, 5.4.7] and [RFC 7748 §5, §6.1] or [KERNEL-ECN], [not], [UAPI]"),
        ["WP 5.3", "WP 5.4.7", "RFC 7748 §5", "RFC 7748 §6.1", "KERNEL-ECN", "UAPI"]
    );
}
