//! What the demo prints: a line for each thing that happened, then the verdict.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use replicator::admin::{ErrorId, ErrorReport};
use serde::Serialize;

use super::cluster::{DISK_LEN, NAMES};
use super::error::DemoError;
use super::options::Fault;
use super::verdict::Verdict;
use crate::clock::now;
use crate::show::message::error_text;

/// How a run ended.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) fault: Fault,
    pub(super) seed: u64,
    pub(super) verdict: Verdict,
    /// From the fault, or from the restart after a power loss, to the first acknowledgement of the
    /// node that then served; `None` where no takeover was due.
    pub(super) takeover: Option<Duration>,
    /// What the timing profile promises for it.
    pub(super) takeover_bound: Duration,
    /// Longest time without an acknowledgement since the fault.
    pub(super) stall: Duration,
    /// Bytes the resync after the fault copied.
    pub(super) resynced: u64,
    pub(super) wall: Duration,
    /// Where everything is, if it was kept.
    pub(super) dir: Option<PathBuf>,
    /// A byte was flipped on purpose.
    pub(super) corrupted: bool,
}

impl Outcome {
    pub(super) fn passed(&self) -> bool {
        self.verdict.passed()
    }
}

/// Schema of [`Summary`]; within `/1` fields are only added.
const SCHEMA: &str = "twinblk.demo/1";

/// The verdict as JSON.
#[derive(Serialize)]
struct Summary<'a> {
    schema: &'a str,
    verdict: &'a str,
    fault: String,
    seed: u64,
    acknowledged: u64,
    sent: u64,
    lost: u64,
    damaged: u64,
    errors: u64,
    reads: u64,
    stale_reads: u64,
    identical: bool,
    digests: &'a [String],
    takeover_seconds: Option<f64>,
    takeover_bound_seconds: f64,
    stall_seconds: f64,
    resynced_bytes: u64,
    size_bytes: u64,
    seconds: f64,
    corrupted: bool,
    dir: Option<String>,
}

/// Prints; story and verdict go to stdout, or, with `json`, the story to stderr.
pub(super) struct Reporter {
    json: bool,
    begun: Instant,
}

impl Reporter {
    pub(super) fn new(json: bool) -> Self {
        Self { json, begun: now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        now().saturating_duration_since(self.begun)
    }

    /// One line of the story.
    pub(super) fn say(&mut self, words: &str) {
        self.line(&format!("{:>5.1}s  {words}", self.elapsed().as_secs_f64()));
    }

    /// The end of the story.
    pub(super) fn verdict(&mut self, outcome: &Outcome) {
        for line in table(outcome).lines() {
            self.line(line);
        }
        if self.json
            && let Ok(text) = serde_json::to_string(&summary(outcome))
        {
            print(&mut io::stdout().lock(), &text);
        }
    }

    /// No verdict; the exit code.
    pub(super) fn failed(&mut self, error: &DemoError) -> u8 {
        let what = "the demo could not be brought to its verdict";
        let report = ErrorReport::new(ErrorId::DemoUnfinished, what, error.to_string());
        print(&mut io::stderr().lock(), error_text(&report).trim_end());
        report.exit
    }

    fn line(&mut self, text: &str) {
        if self.json {
            print(&mut io::stderr().lock(), text);
        } else {
            print(&mut io::stdout().lock(), text);
        }
    }
}

/// Nobody may be reading any more (`twinadm demo | head`); the verdict is then in the exit code.
fn print(stream: &mut impl Write, text: &str) {
    drop(writeln!(stream, "{text}").and_then(|()| stream.flush()));
}

fn summary(outcome: &Outcome) -> Summary<'_> {
    let verdict = &outcome.verdict;
    Summary {
        schema: SCHEMA,
        verdict: word(outcome),
        fault: outcome.fault.to_string(),
        seed: outcome.seed,
        acknowledged: verdict.acknowledged,
        sent: verdict.sent,
        lost: verdict.lost,
        damaged: verdict.damaged,
        errors: verdict.errors,
        reads: verdict.reads,
        stale_reads: verdict.stale_reads,
        identical: verdict.identical(),
        digests: &verdict.digests,
        takeover_seconds: outcome.takeover.map(|takeover| takeover.as_secs_f64()),
        takeover_bound_seconds: outcome.takeover_bound.as_secs_f64(),
        stall_seconds: outcome.stall.as_secs_f64(),
        resynced_bytes: outcome.resynced,
        size_bytes: DISK_LEN,
        seconds: outcome.wall.as_secs_f64(),
        corrupted: outcome.corrupted,
        dir: outcome.dir.as_ref().map(|dir| dir.display().to_string()),
    }
}

fn word(outcome: &Outcome) -> &'static str {
    if outcome.passed() { "PASS" } else { "FAIL" }
}

/// The verdict for people. Pure.
fn table(outcome: &Outcome) -> String {
    let verdict = &outcome.verdict;
    let mut rows = vec![
        row(
            verdict.lost == 0,
            "acknowledged writes lost",
            &format!(
                "{} of {}",
                grouped(verdict.lost),
                grouped(verdict.acknowledged)
            ),
        ),
        row(
            verdict.damaged == 0,
            "blocks with foreign content",
            &grouped(verdict.damaged),
        ),
        row(
            verdict.stale_reads == 0,
            "reads older than acknowledged",
            &format!(
                "{} of {}",
                grouped(verdict.stale_reads),
                grouped(verdict.reads)
            ),
        ),
        row(
            verdict.errors == 0,
            "errors the guest saw",
            &grouped(verdict.errors),
        ),
        row(verdict.identical(), "replicas", &replicas(verdict)),
    ];
    if let Some(takeover) = outcome.takeover {
        let words = format!(
            "{:.2} s (profile fast: {:.1} s)",
            takeover.as_secs_f64(),
            outcome.takeover_bound.as_secs_f64()
        );
        rows.push(row(
            takeover <= outcome.takeover_bound,
            "served again after",
            &words,
        ));
    }
    let corrupted = if outcome.corrupted {
        " · one byte was flipped on purpose"
    } else {
        ""
    };
    rows.push(format!(
        " {}   fault {} · acknowledged writes {} · lost {} · longest stall {:.2} s · wall {:.1} s{corrupted}",
        word(outcome),
        outcome.fault,
        grouped(verdict.acknowledged),
        grouped(verdict.lost),
        outcome.stall.as_secs_f64(),
        outcome.wall.as_secs_f64(),
    ));
    rows.push(format!(
        "        replay: twinadm demo --fault {} --seed {}",
        outcome.fault, outcome.seed
    ));
    if let Some(dir) = &outcome.dir {
        rows.push(format!("        kept: {}", dir.display()));
    }
    rows.join("\n")
}

fn row(ok: bool, what: &str, words: &str) -> String {
    format!("   {}  {what:<30} {words}", if ok { "ok " } else { "BAD" })
}

fn replicas(verdict: &Verdict) -> String {
    let short = |digest: &String| digest.chars().take(8).collect::<String>();
    if verdict.identical() {
        return format!(
            "identical (blake3 {}…)",
            verdict.digests.first().map(short).unwrap_or_default()
        );
    }
    let each: Vec<String> = NAMES
        .iter()
        .zip(&verdict.digests)
        .map(|(name, digest)| format!("{name} {}…", short(digest)))
        .collect();
    format!("differ: {}", each.join(", "))
}

/// `48 211`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `18.2 MiB`.
pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lost: u64, digests: [&str; 2]) -> Outcome {
        Outcome {
            fault: Fault::Kill,
            seed: 4711,
            verdict: Verdict {
                sent: 48_300,
                acknowledged: 48_211,
                lost,
                reads: 6_000,
                digests: digests.map(str::to_owned).to_vec(),
                ..Verdict::default()
            },
            takeover: Some(Duration::from_millis(740)),
            takeover_bound: Duration::from_millis(1500),
            stall: Duration::from_millis(760),
            resynced: 19_083_264,
            wall: Duration::from_secs(12),
            dir: None,
            corrupted: false,
        }
    }

    #[test]
    fn a_pass_reads_as_one() {
        let outcome = outcome(0, ["5f0c1234aa", "5f0c1234aa"]);
        let expected = "   ok   acknowledged writes lost       0 of 48 211\n   \
             ok   blocks with foreign content    0\n   \
             ok   reads older than acknowledged  0 of 6 000\n   \
             ok   errors the guest saw           0\n   \
             ok   replicas                       identical (blake3 5f0c1234…)\n   \
             ok   served again after             0.74 s (profile fast: 1.5 s)\n \
             PASS   fault kill · acknowledged writes 48 211 · lost 0 · longest stall 0.76 s · wall 12.0 s\n        \
             replay: twinadm demo --fault kill --seed 4711";
        assert_eq!(table(&outcome), expected);
        let json = serde_json::to_string(&summary(&outcome)).unwrap();
        assert!(json.starts_with(
            r#"{"schema":"twinblk.demo/1","verdict":"PASS","fault":"kill","seed":4711"#
        ));
    }

    #[test]
    fn a_loss_or_a_difference_reads_as_a_fail() {
        let lost = table(&outcome(3, ["aa", "aa"]));
        assert!(
            lost.contains("BAD  acknowledged writes lost       3 of 48 211")
                && lost.contains(" FAIL ")
        );
        let differ = table(&outcome(0, ["aaaaaaaaaa", "bbbbbbbbbb"]));
        assert!(
            differ.contains("differ: kvm-a aaaaaaaa…, kvm-b bbbbbbbb…")
                && differ.contains(" FAIL ")
        );
    }

    #[test]
    fn numbers_are_grouped_by_three() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1 000", "1 234 567"]
        );
        assert_eq!(mebibytes(19_083_264), "18.1 MiB");
    }
}
