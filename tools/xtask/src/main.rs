//! `cargo xtask`: everything a developer or CI runs, by one name each.
//!
//! Owns the order of the checks and the installing of what they drive; knows nothing of what they
//! check. Std only, so that it builds in seconds from nothing.
//!
//! Invariant: `test` is all that CI runs, so a green `cargo xtask test` here is a green CI there,
//! but for tests skipped for want of a package, which CI counts as failures.

// SPDX-License-Identifier: MIT OR Apache-2.0

mod counts;
mod deny;
mod kernel;
mod packages;
mod plan;
mod report;
mod run;

use std::process::ExitCode;

/// One word after `cargo xtask`.
struct Verb {
    name: &'static str,
    summary: &'static str,
    run: fn(&[String]) -> Outcome,
}

/// What a verb ends with: whether all went well, or why it could not even be tried.
type Outcome = Result<bool, String>;

const VERBS: &[Verb] = &[
    Verb {
        name: "demo",
        summary: "build everything, then run `twinadm demo` (arguments are handed on)",
        run: plan::demo,
    },
    Verb {
        name: "test",
        summary: "install what the tests drive, then run every check and test; only reads the tree",
        run: plan::test,
    },
    Verb {
        name: "ci",
        summary: "the same, with a test that cannot run counted as a failure (CI=true)",
        run: plan::ci,
    },
    Verb {
        name: "tidy",
        summary: "the quick part: formatting and the rules of tests/architecture.rs",
        run: plan::tidy,
    },
    Verb {
        name: "fix",
        summary: "write what `tidy` asks for, where a machine can",
        run: plan::fix,
    },
    Verb {
        name: "sim",
        summary: "run the simulator, optimised: --seeds N (fresh seeds) or --seed S (replay one)",
        run: plan::sim,
    },
    Verb {
        name: "explore",
        summary: "explore the view register exhaustively (arguments are handed on)",
        run: plan::explore,
    },
    Verb {
        name: "bench-peers",
        summary: "twinblk beside QEMU's mirror: --passes N, --seconds S, --depth D, --dir DIR",
        run: plan::bench_peers,
    },
    Verb {
        name: "nbd-conformance",
        summary: "judge an NBD server by its specification: --uri URI, --strict; writes to the export",
        run: plan::nbd_conformance,
    },
    Verb {
        name: "packages",
        summary: "only install what the tests drive (Debian, as root)",
        run: plan::packages,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((word, rest)) = arguments.split_first() else {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    };
    if matches!(word.as_str(), "help" | "--help" | "-h") {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    }
    let Some(verb) = VERBS.iter().find(|verb| verb.name == word) else {
        eprintln!("xtask: no verb `{word}`\n{}", usage());
        return ExitCode::from(2);
    };
    match (verb.run)(rest) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("xtask {word}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask VERB [ARGUMENT...]\n\n");
    for verb in VERBS {
        text.push_str(&format!("  {:<15} {}\n", verb.name, verb.summary));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_verb_once() {
        for verb in VERBS {
            assert_eq!(
                VERBS.iter().filter(|other| other.name == verb.name).count(),
                1
            );
            assert!(usage().contains(verb.summary));
        }
    }

    #[test]
    fn every_verb_that_a_document_names_is_there() {
        for document in ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md"] {
            let text = std::fs::read_to_string(run::root().join(document)).unwrap();
            for after in text.split("cargo xtask ").skip(1) {
                let word: String = after
                    .chars()
                    .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                    .collect();
                assert!(
                    word.is_empty() || VERBS.iter().any(|verb| verb.name == word),
                    "{document} names `cargo xtask {word}`"
                );
            }
        }
    }

    #[test]
    fn the_first_page_has_exactly_two_commands() {
        let text = std::fs::read_to_string(run::root().join("README.md")).unwrap();
        let first_page = text.split("\n## ").next().unwrap();
        let commands: Vec<&str> = first_page
            .lines()
            .filter(|line| line.starts_with("cargo "))
            .collect();
        assert_eq!(commands, ["cargo xtask demo", "cargo xtask test"]);
    }
}
