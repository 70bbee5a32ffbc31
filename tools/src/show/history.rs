//! Decisions for people, one a line.

use replicator::admin::{HistoryEntry, HistoryReport, rfc3339_millis};

/// All entries, every line ended.
#[must_use]
pub fn history_text(report: &HistoryReport) -> String {
    let mut lines = Vec::new();
    if report.entries.is_empty() {
        let (resource, node) = (&report.resource, &report.node);
        lines.push(format!(
            "nothing was decided about {resource} yet, as far as {node} noted"
        ));
    } else if report.more {
        lines.push("(there were more before)".to_owned());
    }
    lines.extend(report.entries.iter().map(entry_line));
    lines.join("\n") + "\n"
}

/// `2026-11-21T20:04:11.402Z  takeover   kvm-b: taking over, because …`.
#[must_use]
pub fn entry_line(entry: &HistoryEntry) -> String {
    let at = rfc3339_millis(entry.unix_millis);
    let by = entry
        .by
        .as_ref()
        .map_or_else(String::new, |by| format!("{by}: "));
    format!("{at}  {:<9}  {by}{}", entry.kind, entry.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(entries: Vec<HistoryEntry>, more: bool) -> HistoryReport {
        HistoryReport {
            schema: String::new(),
            node: "kvm-b".to_owned(),
            resource: "vm-web".to_owned(),
            entries,
            more,
        }
    }

    #[test]
    fn each_decision_is_a_line_with_time_kind_and_who() {
        let entry = HistoryEntry {
            unix_millis: 1_795_291_451_402,
            kind: "view".to_owned(),
            view: Some(7),
            by: Some("kvm-b".to_owned()),
            text: "view 7 (TookOver)".to_owned(),
        };
        assert_eq!(
            history_text(&report(vec![entry], true)),
            "(there were more before)\n\
             2026-11-21T20:04:11.402Z  view       kvm-b: view 7 (TookOver)\n"
        );
    }

    #[test]
    fn nothing_is_said_as_such() {
        let text = history_text(&report(Vec::new(), false));
        assert!(text.contains("nothing was decided about vm-web"), "{text}");
    }
}
