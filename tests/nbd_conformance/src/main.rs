//! Judges any NBD server by the specification (`doc/proto.md` of NetworkBlockDevice/nbd): one case
//! per sentence with MUST or SHOULD, cited by the heading it stands under.
//!
//! Speaks the protocol with bytes built here and with nothing of this project's, so that a mistake
//! there cannot hide one. Writes to the export: point it at one that may be lost. Std, and rustls for
//! servers that demand TLS.
//!
//! ```text
//! main ─▶ Target::probe (what the server offers) ─▶ cases::all(), each in its reply styles ─▶ report
//!              └─ uri, Stream                         └─ Conn (handshake), Attached (transmission)
//! ```

// SPDX-License-Identifier: MIT OR Apache-2.0

mod attached;
mod case;
mod cases;
mod conn;
mod report;
mod target;
mod tls;
mod uri;
mod wire;

use std::process::ExitCode;

use report::Report;
use target::Target;
use uri::Uri;

const USAGE: &str = "\
usage: nbd-conformance --uri URI [--strict] [--only WORD] [--skip WORD] [--quiet]

Judges the NBD server at URI (nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or
nbds://HOST[:PORT]/EXPORT?tls-certificates=DIR with ca-cert.pem, client-cert.pem and client-key.pem
in DIR) by its specification. WRITES TO THE EXPORT. Exits 1 if a MUST is breached.

  --strict     exit 1 for a breached SHOULD too
  --only WORD  only cases with WORD in their name
  --skip WORD  none of these, for a server that does not survive them (may be repeated)
  --quiet      only failed cases and the totals
";

/// What the command line said.
struct Arguments {
    uri: Uri,
    strict: bool,
    only: String,
    skip: Vec<String>,
    quiet: bool,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        let skipped = self.skip.iter().any(|word| name.contains(word));
        name.contains(&self.only) && !skipped
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let arguments = match parse(&words) {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("nbd-conformance: {why}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let target = match Target::probe(arguments.uri.clone()) {
        Ok(target) => target,
        Err(stop) => {
            eprintln!("nbd-conformance: cannot even attach: {stop}");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::new(arguments.quiet);
    for case in cases::all() {
        for style in case.styles() {
            let name = case.name_in(style);
            if arguments.wants(&name) {
                let verdict = (case.run)(&target.context(style));
                report.note(case, &name, verdict);
            }
        }
    }
    report.finish();
    if report.is_conforming(arguments.strict) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(words: &[String]) -> Result<Arguments, String> {
    let (mut uri, mut strict, mut only, mut quiet) = (None, false, String::new(), false);
    let mut skip = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--uri" => uri = Some(Uri::parse(value()?)?),
            "--only" => only.clone_from(value()?),
            "--skip" => skip.push(value()?.clone()),
            "--strict" => strict = true,
            "--quiet" => quiet = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(Arguments {
        uri: uri.ok_or("--uri is missing")?,
        strict,
        only,
        skip,
        quiet,
    })
}
