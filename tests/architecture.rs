//! The rules a machine can hold: which module may use which, what a pure module must not name,
//! what each crate may depend on, where `unsafe` is, how long a file may be, and that
//! docs/ARCHITECTURE.md has a place for every file.
//!
//! Reads the sources as text: comments and string literals are blanked first, and a file's unit
//! tests (from `#[cfg(test)]` on) are not held to the rules of pure code.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that take time, randomness, disk and network as inputs.
const PURE: &[&str] = &[
    "replicator/src/types/",
    "replicator/src/protocol/",
    "replicator/src/meta/",
    "replicator/src/engine/",
    "src/controller/",
    "src/explorer/",
    "src/guests/",
    "nbd-frontend/src/",
];

/// Names that would let the world into a pure module, or make its order depend on a hash.
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::time",
    "std::thread",
    "std::os",
    "std::process",
    "std::env",
    "tokio",
    "io_uring",
    "nix",
    "libc",
    "async",
    ".await",
    "rand",
    "HashMap",
    "HashSet",
    "crate::io",
    "print!",
    "println!",
    "eprint!",
    "eprintln!",
];

/// One arrow bundle of the design: files under `from` may name only these after `root`.
struct Arrow {
    from: &'static str,
    root: &'static str,
    to: &'static [&'static str],
}

const ARROWS: &[Arrow] = &[
    arrow("replicator/src/types/", "crate", &["types"]),
    arrow("replicator/src/protocol/", "crate", &["protocol", "types"]),
    arrow("replicator/src/meta/", "crate", &["meta", "types"]),
    arrow(
        "replicator/src/engine/",
        "crate",
        &["engine", "protocol", "meta", "types"],
    ),
    arrow("replicator/src/admin", "crate", &["admin", "types"]),
    arrow(
        "replicator/src/io/",
        "crate",
        &["io", "engine", "protocol", "meta", "types"],
    ),
    arrow("src/controller/", "crate", &["controller"]),
    arrow("src/controller/", "replicator", &["types"]),
    arrow("src/explorer/", "crate", &["explorer", "controller"]),
    arrow("src/explorer/", "replicator", &["types"]),
    arrow("src/guests/", "crate", &["guests", "controller"]),
    arrow("src/guests/", "replicator", &["types"]),
    arrow("src/identity/", "crate", &["identity"]),
    arrow("src/identity/", "replicator", &["types", "protocol"]),
    arrow("src/config/", "crate", &["config"]),
    arrow("src/config/", "replicator", &["types", "admin", "meta"]),
    arrow("tools/src/", "replicator", &["types", "meta", "admin"]),
    arrow(
        "tools/src/",
        "twinblk",
        &["config", "controller", "explorer", "identity"],
    ),
    arrow(
        "tests/sim/src/",
        "replicator",
        &["types", "protocol", "meta", "engine"],
    ),
    arrow(
        "tests/sim/src/",
        "twinblk",
        &["config", "controller", "explorer"],
    ),
];

const fn arrow(from: &'static str, root: &'static str, to: &'static [&'static str]) -> Arrow {
    Arrow { from, root, to }
}

/// The only files that name `bincode`, so that it can be replaced in an afternoon.
const BINCODE: &[&str] = &["replicator/src/protocol/control.rs"];

/// The only files with `unsafe` code.
const UNSAFE: &[&str] = &[
    "benches/runtime.rs",
    "replicator/src/io/buffer.rs",
    "replicator/src/io/ring.rs",
    "replicator/src/io/sys.rs",
    "replicator/tests/write_path.rs",
];

/// What each crate may depend on; development only after the bar.
const DEPENDENCIES: &[(&str, &[&str], &[&str])] = &[
    (
        "Cargo.toml",
        &[
            "replicator",
            "nbd-frontend",
            "bytes",
            "crc32c",
            "nix",
            "rcgen",
            "ring",
            "rustls",
            "rustls-webpki",
            "serde",
            "serde_json",
            "thiserror",
            "toml",
            "tracing",
            "tracing-subscriber",
        ],
        &["proptest", "serde_json"],
    ),
    (
        "replicator/Cargo.toml",
        &[
            "bincode",
            "blake3",
            "bytes",
            "crc32c",
            "io-uring",
            "nix",
            "serde",
            "thiserror",
            "tracing",
            "zerocopy",
        ],
        &["proptest", "serde_json"],
    ),
    ("nbd-frontend/Cargo.toml", &["thiserror"], &["proptest"]),
    (
        "tools/Cargo.toml",
        &[
            "twinblk",
            "replicator",
            "nbd-frontend",
            "blake3",
            "clap",
            "clap_complete",
            "clap_mangen",
            "nix",
            "serde",
            "serde_json",
            "thiserror",
        ],
        &["proptest"],
    ),
    ("tools/xtask/Cargo.toml", &[], &[]),
    (
        "benches/Cargo.toml",
        &[],
        &[
            "anyhow",
            "criterion",
            "nbd-frontend",
            "nix",
            "replicator",
            "tokio-uring",
        ],
    ),
    (
        "tests/sim/Cargo.toml",
        &["twinblk", "replicator", "bytes", "thiserror"],
        &["proptest"],
    ),
    ("tests/nbd_conformance/Cargo.toml", &["rustls"], &[]),
];

const LINES_MAX: usize = 800;

#[test]
fn pure_modules_name_nothing_impure() {
    let mut found = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| PURE.iter().any(|dir| source.is_under(dir)))
    {
        for (number, line) in source.production_lines() {
            for name in IMPURE.iter().filter(|name| has_word(line, name)) {
                found.push(format!("{}:{number}: `{name}`", source.path));
            }
        }
    }
    assert_none(
        &found,
        "time, randomness, disk and network are inputs of these modules",
    );
}

#[test]
fn modules_use_only_what_the_arrows_allow() {
    let mut found = Vec::new();
    for source in sources() {
        for arrow in ARROWS.iter().filter(|arrow| source.is_under(arrow.from)) {
            for used in used_modules(&source.production(), arrow.root) {
                if !arrow.to.contains(&used.as_str()) {
                    found.push(format!("{}: {}::{used}", source.path, arrow.root));
                }
            }
        }
    }
    assert_none(&found, "see the arrows in docs/ARCHITECTURE.md");
}

#[test]
fn bincode_stays_in_its_one_file() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| !BINCODE.contains(&source.path.as_str()))
        .filter(|source| has_word(&source.code, "bincode"))
        .map(|source| source.path.clone())
        .collect();
    assert_none(&found, "see docs/decisions/0003");
}

#[test]
fn unsafe_code_stays_in_the_listed_files() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| !UNSAFE.contains(&source.path.as_str()))
        .filter(|source| has_word(&source.code, "unsafe"))
        .map(|source| source.path.clone())
        .collect();
    assert_none(
        &found,
        "list the file in tests/architecture.rs if it cannot be done elsewhere",
    );
}

#[test]
fn every_allow_says_why() {
    let mut found = Vec::new();
    for source in sources() {
        for (at, _) in source.code.match_indices("[allow(") {
            let attribute = source.code[at..].split(']').next().unwrap_or_default();
            if !has_word(attribute, "reason") {
                found.push(format!(
                    "{}: {}",
                    source.path,
                    attribute.lines().next().unwrap_or("")
                ));
            }
        }
    }
    assert_none(&found, "an exception carries its reason");
}

#[test]
fn no_file_has_grown_past_its_idea() {
    let found: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines() > LINES_MAX)
        .map(|source| format!("{}: {} lines", source.path, source.lines()))
        .collect();
    assert_none(&found, "look for the second idea in it");
}

#[test]
fn crates_depend_on_nothing_unlisted() {
    let mut found = Vec::new();
    for (manifest, normal, development) in DEPENDENCIES {
        let text = read(&root().join(manifest));
        for (section, name) in dependencies(&text) {
            let allowed = match section.as_str() {
                "dependencies" => normal.contains(&name.as_str()),
                "dev-dependencies" => development.contains(&name.as_str()),
                _ => false,
            };
            if !allowed {
                found.push(format!("{manifest} [{section}] {name}"));
            }
        }
    }
    assert_none(
        &found,
        "a new dependency is a decision: argue for it in docs/decisions",
    );
}

#[test]
fn the_map_has_a_place_for_every_file_and_no_place_for_none() {
    let map = read(&root().join("docs/ARCHITECTURE.md"));
    // The first column of the map's table.
    let places: Vec<&str> = map
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|place| place.ends_with(".rs") || place.ends_with('/'))
        .collect();
    let mut found = Vec::new();
    for source in sources() {
        let in_place = |place: &&str| match place.strip_suffix('/') {
            Some(_) => source.path.starts_with(place),
            None => source.path == **place,
        };
        if !places.iter().any(in_place) {
            found.push(format!("{} is not on the map", source.path));
        }
    }
    // Files that the page's walks name, wherever they stand in it.
    let named = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('/') && word.ends_with(".rs"));
    for place in places.iter().copied().chain(named) {
        if !root().join(place).exists() {
            found.push(format!("the map has {place}, the tree has not"));
        }
    }
    assert_none(&found, "mend docs/ARCHITECTURE.md");
}

#[test]
fn no_path_of_one_machine_is_in_the_tree() {
    // Spelt in pieces, so that this file does not find itself.
    let machine = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for path in files(&root()) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if machine.iter().any(|prefix| has_path(line, prefix)) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none(&found, "the tree works wherever it is cloned to");
}

#[test]
fn the_scanner_blanks_comments_and_strings_and_keeps_lines() {
    let text = "let a = \"unsafe // no\"; // unsafe\n/* HashMap\n */ let b = 'x'; let c: &'a str = r#\"tokio\"#;\n";
    let code = code_of(text);
    assert_eq!(code.lines().count(), text.lines().count());
    for word in ["unsafe", "HashMap", "tokio"] {
        assert!(!has_word(&code, word), "{word} in {code}");
    }
    for word in ["a", "b", "c", "str"] {
        assert!(has_word(&code, word), "{word} not in {code}");
    }
}

#[test]
fn the_scanner_reads_plain_and_grouped_uses() {
    let code = "use crate::types::Id;\nuse crate::{meta::{Map, other::X}, engine, self as me};\nlet x = crate::io::y();";
    assert_eq!(
        used_modules(code, "crate"),
        ["types", "meta", "engine", "io"]
    );
    assert_eq!(
        used_modules("use replicator::types::A;", "replicator"),
        ["types"]
    );
    assert!(used_modules("my_crate::types", "crate").is_empty());
}

/// One source file: its path from the top with forward slashes, and its text without comments and
/// strings.
struct Source {
    path: String,
    code: String,
}

impl Source {
    fn is_under(&self, prefix: &str) -> bool {
        self.path.starts_with(prefix)
    }

    fn lines(&self) -> usize {
        self.code.lines().count()
    }

    /// The code without its unit tests; nothing for a file that is only tests.
    fn production(&self) -> String {
        self.production_lines()
            .map(|(_, line)| format!("{line}\n"))
            .collect()
    }

    fn production_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let only_tests = self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/") && !self.is_under("tests/");
        let end = self
            .code
            .find("#[cfg(test)]\nmod ")
            .unwrap_or(self.code.len());
        let end = if only_tests { 0 } else { end };
        self.code[..end]
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources() -> Vec<Source> {
    files(&root())
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| Source {
            code: code_of(&read(&root().join(&path))),
            path,
        })
        .collect()
}

/// Every file of the tree, sorted, as paths from the top; build output and git's own left out.
fn files(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if name == "target" || name == ".git" {
                continue;
            }
            if path.is_dir() {
                waiting.push(path);
            } else if let Ok(path) = path.strip_prefix(top) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

/// The text with every comment and the inside of every literal replaced by blanks; lines stay.
fn code_of(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < letters.len() {
        let end = end_of_blank(&letters, at);
        if end == at {
            code.push(letters[at]);
            at += 1;
        } else {
            code.extend(
                letters[at..end]
                    .iter()
                    .map(|letter| if *letter == '\n' { '\n' } else { ' ' }),
            );
            at = end;
        }
    }
    code
}

/// Where the comment or literal that begins at `at` ends; `at` itself if none begins there.
fn end_of_blank(letters: &[char], at: usize) -> usize {
    let rest = &letters[at..];
    let in_word = at > 0 && is_word_letter(letters[at - 1]);
    match rest {
        ['/', '/', ..] => {
            at + rest
                .iter()
                .position(|letter| *letter == '\n')
                .unwrap_or(rest.len())
        }
        ['/', '*', ..] => at + end_of_block_comment(rest),
        ['"', ..] => at + end_of_string(rest, 1, '"'),
        ['b', '"', ..] if !in_word => at + end_of_string(rest, 2, '"'),
        ['r', '"' | '#', ..] | ['b', 'r', '"' | '#', ..] if !in_word => {
            at + end_of_raw_string(rest)
        }
        // A character, not a lifetime: 'x' or an escape.
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => at + end_of_string(rest, 1, '\''),
        _ => at,
    }
}

fn end_of_block_comment(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => {
                depth += 1;
                at += 2;
            }
            ['*', '/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn end_of_string(rest: &[char], from: usize, quote: char) -> usize {
    let mut at = from;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            letter if letter == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn end_of_raw_string(rest: &[char]) -> usize {
    let open = rest.iter().position(|letter| *letter == '"').unwrap_or(0);
    let hashes = rest[..open].iter().filter(|letter| **letter == '#').count();
    if rest[..open]
        .iter()
        .any(|letter| !matches!(letter, 'b' | 'r' | '#'))
    {
        // `r#name`: an identifier.
        return 0;
    }
    let mut at = open + 1;
    while at < rest.len() {
        if rest[at] == '"'
            && rest[at + 1..]
                .iter()
                .take_while(|letter| **letter == '#')
                .count()
                >= hashes
        {
            return at + 1 + hashes;
        }
        at += 1;
    }
    rest.len()
}

/// Modules named right after `root::`, each once, in order of first use.
fn used_modules(code: &str, root: &str) -> Vec<String> {
    let mut used: Vec<String> = Vec::new();
    let path = format!("{root}::");
    for (at, _) in code.match_indices(&path) {
        if code[..at]
            .chars()
            .next_back()
            .is_some_and(|letter| is_word_letter(letter) || letter == ':')
        {
            continue;
        }
        let rest = &code[at + path.len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => top_level_names(group),
            None => vec![first_word(rest)],
        };
        for name in names {
            let is_module = name.chars().next().is_some_and(char::is_lowercase) && name != "self";
            if is_module && !used.contains(&name) {
                used.push(name);
            }
        }
    }
    used
}

fn top_level_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0_usize;
    let mut item = String::new();
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(first_word(&std::mem::take(&mut item))),
            _ if depth == 0 => item.push(letter),
            _ => {}
        }
    }
    names.push(first_word(&item));
    names.retain(|name| !name.is_empty());
    names
}

fn first_word(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|letter| is_word_letter(*letter))
        .collect()
}

/// Whether `name` is in `text` with no letter, digit or underscore joined to either end.
fn has_word(text: &str, name: &str) -> bool {
    let joined = |letter: Option<char>| letter.is_some_and(is_word_letter);
    text.match_indices(name).any(|(at, _)| {
        let before = name.starts_with(is_word_letter) && joined(text[..at].chars().next_back());
        let after =
            name.ends_with(is_word_letter) && joined(text[at + name.len()..].chars().next());
        !before && !after
    })
}

/// Whether a path that begins with `prefix` stands in the line: not the tail of a longer one.
fn has_path(line: &str, prefix: &str) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        !line[..at]
            .chars()
            .next_back()
            .is_some_and(|letter| is_word_letter(letter) || "./-}".contains(letter))
    })
}

fn is_word_letter(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Section and name of every dependency of a manifest.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name.to_owned();
        } else if section.ends_with("dependencies") && section != "workspace.dependencies" {
            let name: String = line
                .chars()
                .take_while(|letter| is_word_letter(*letter) || *letter == '-')
                .collect();
            if !name.is_empty() {
                found.push((section.clone(), name));
            }
        }
    }
    found
}

fn assert_none(found: &[String], hint: &str) {
    assert!(found.is_empty(), "{hint}:\n  {}", found.join("\n  "));
}
