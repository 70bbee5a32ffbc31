//! Results as values: text, Markdown, JSON, and two beside each other. Pure but for [`Machine::here`].

use std::fmt::Write;
use std::fs;

use serde::{Deserialize, Serialize};

use super::load::Measured;

/// The form of the JSON; within it fields are only added.
pub(super) const SCHEMA: &str = "twinblk.bench/1";

/// A result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) schema: String,
    /// Which verb: `disk`.
    pub(super) kind: String,
    /// What was measured.
    pub(super) target: String,
    pub(super) machine: Machine,
    pub(super) cases: Vec<Case>,
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) cpus: usize,
    /// `null`: the kernel does not say.
    pub(super) governor: Option<String>,
    pub(super) twinadm: String,
}

/// One figure of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Case {
    pub(super) name: String,
    pub(super) block_bytes: u64,
    pub(super) depth: u64,
    pub(super) operations: u64,
    pub(super) operations_per_second: f64,
    pub(super) bytes_per_second: f64,
    pub(super) p50_microseconds: f64,
    pub(super) p99_microseconds: f64,
    pub(super) p999_microseconds: f64,
}

/// The same figure of two results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) first: f64,
    pub(super) second: f64,
    /// Second by first, of operations a second.
    pub(super) ratio: f64,
    /// The same of the median latency.
    pub(super) p50_ratio: f64,
}

impl Machine {
    /// This one.
    pub(super) fn here() -> Self {
        let line = |path: &str| fs::read_to_string(path).ok().map(|it| it.trim().to_owned());
        Self {
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            twinadm: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl Case {
    #[allow(
        clippy::cast_precision_loss,
        reason = "figures for people, exact to a thousandth"
    )]
    pub(super) fn of(name: &str, block_len: usize, depth: usize, measured: &Measured) -> Self {
        let operations = measured.latencies.total();
        let per_second = operations as f64 / measured.time.as_secs_f64().max(f64::EPSILON);
        let microseconds = |per_mille| measured.latencies.per_mille(per_mille) as f64 / 1000.0;
        Self {
            name: name.to_owned(),
            block_bytes: block_len as u64,
            depth: depth as u64,
            operations,
            operations_per_second: per_second,
            bytes_per_second: per_second * block_len as f64,
            p50_microseconds: microseconds(500),
            p99_microseconds: microseconds(990),
            p999_microseconds: microseconds(999),
        }
    }

    fn cells(&self) -> [String; 6] {
        [
            self.name.clone(),
            format!("{:.0}", self.operations_per_second),
            format!("{:.1}", self.bytes_per_second / f64::from(1 << 20)),
            format!("{:.0}", self.p50_microseconds),
            format!("{:.0}", self.p99_microseconds),
            format!("{:.0}", self.p999_microseconds),
        ]
    }
}

const COLUMNS: [&str; 6] = ["case", "ops/s", "MiB/s", "p50 µs", "p99 µs", "p99.9 µs"];

impl Report {
    pub(super) fn new(kind: &str, target: String, machine: Machine, cases: Vec<Case>) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            kind: kind.to_owned(),
            target,
            machine,
            cases,
        }
    }

    pub(super) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and numbers");
        text.push('\n');
        text
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = self.head() + "\n";
        text += &row(&COLUMNS.map(str::to_owned));
        for case in &self.cases {
            text += &row(&case.cells());
        }
        text + &format!("  verdict  {}\n", self.verdict())
    }

    pub(super) fn to_markdown(&self) -> String {
        let mut text = format!("{}\n\n| {} |\n", self.head(), COLUMNS.join(" | "));
        text += "|---|---:|---:|---:|---:|---:|\n";
        for case in &self.cases {
            writeln!(text, "| {} |", case.cells().join(" | ")).expect("a string takes all");
        }
        text + &format!("\n{}\n", self.verdict())
    }

    fn head(&self) -> String {
        let machine = &self.machine;
        let governor = machine.governor.as_deref().unwrap_or("unknown");
        format!(
            "{} {}   kernel {}   {} CPUs   governor {governor}   twinadm {}",
            self.kind, self.target, machine.kernel, machine.cpus, machine.twinadm
        )
    }

    fn case(&self, name: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.name == name)
    }

    /// What the figures mean for a guest.
    fn verdict(&self) -> String {
        match (self.case("4k-write-flush-1"), self.case("4k-read-1")) {
            (Some(flushed), _) => format!(
                "half of a guest's commits (write and flush) take {:.0} µs or more on this disk alone; \
                 with protocol C they also wait for the peer's",
                flushed.p50_microseconds
            ),
            (None, Some(read)) => format!(
                "half of the random reads take {:.0} µs or more; writes were not measured: name a file \
                 that does not exist on the same disk",
                read.p50_microseconds
            ),
            (None, None) => "nothing was measured".to_owned(),
        }
    }
}

fn row(cells: &[String; 6]) -> String {
    let [name, rest @ ..] = cells;
    let mut line = format!("  {name:<18}");
    for cell in rest {
        write!(line, "{cell:>11}").expect("a string takes all");
    }
    line + "\n"
}

/// The cases that both have, in the order of the first.
pub(super) fn compare(first: &Report, second: &Report) -> Vec<Row> {
    let both = first.cases.iter().filter_map(|case| {
        let other = second.case(&case.name)?;
        let ratio = |a: f64, b: f64| if a > 0.0 { b / a } else { f64::NAN };
        Some(Row {
            name: case.name.clone(),
            first: case.operations_per_second,
            second: other.operations_per_second,
            ratio: ratio(case.operations_per_second, other.operations_per_second),
            p50_ratio: ratio(case.p50_microseconds, other.p50_microseconds),
        })
    });
    both.collect()
}

pub(super) fn comparison_text(first: &Report, second: &Report, rows: &[Row]) -> String {
    let mut text = format!("A  {}\nB  {}\n", first.head(), second.head());
    let head = ["case", "A ops/s", "B ops/s", "B/A", "B/A of p50", ""];
    text += row(&head.map(str::to_owned)).trim_end();
    text.push('\n');
    for it in rows {
        let cells = [
            it.name.clone(),
            format!("{:.0}", it.first),
            format!("{:.0}", it.second),
            format!("{:.2}", it.ratio),
            format!("{:.2}", it.p50_ratio),
            String::new(),
        ];
        text += row(&cells).trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::histogram::Histogram;
    use super::*;

    fn report(name: &str, micros: u64) -> Report {
        let mut latencies = Histogram::default();
        for _ in 0..1000 {
            latencies.add(micros * 1000);
        }
        let time = Duration::from_secs(2);
        let case = Case::of(name, 4096, 1, &Measured { latencies, time });
        let machine = Machine {
            kernel: "6.1".to_owned(),
            cpus: 2,
            governor: None,
            twinadm: "0.1.0".to_owned(),
        };
        Report::new("disk", "/dev/vg0/x".to_owned(), machine, vec![case])
    }

    #[test]
    fn a_result_is_the_same_after_json_and_says_what_it_means() {
        let report = report("4k-write-flush-1", 50);
        let again: Report = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(again, report);
        assert!((report.cases[0].operations_per_second - 500.0).abs() < 0.1);
        let text = report.to_text();
        assert!(
            text.contains("4k-write-flush-1") && text.contains("500"),
            "{text}"
        );
        assert!(text.contains("commits (write and flush) take"), "{text}");
        let markdown = report.to_markdown();
        assert!(
            markdown.contains("| 4k-write-flush-1 | 500 | 2.0 |"),
            "{markdown}"
        );
    }

    #[test]
    fn two_results_are_compared_where_they_have_the_same_cases() {
        let (slow, fast) = (report("4k-read-1", 100), report("4k-read-1", 50));
        let rows = compare(&slow, &fast);
        assert_eq!(rows.len(), 1);
        assert!((rows[0].ratio - 1.0).abs() < 0.01 && (rows[0].p50_ratio - 0.5).abs() < 0.05);
        let text = comparison_text(&slow, &fast, &rows);
        assert!(
            text.contains("4k-read-1") && text.contains("1.00"),
            "{text}"
        );
        assert!(compare(&slow, &report("1m-read-1", 1)).is_empty());
    }

    #[test]
    fn reads_alone_say_how_writes_are_measured() {
        let text = report("4k-read-1", 80).to_text();
        assert!(text.contains("name a file that does not exist"), "{text}");
    }
}
