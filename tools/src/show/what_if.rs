//! A dry run for people.

use replicator::admin::{FateReport, WhatIfReport};

use super::status::wrapped;

/// The whole report, every line ended.
#[must_use]
pub fn what_if_text(report: &WhatIfReport) -> String {
    let WhatIfReport { dead, node, .. } = report;
    let mut lines = vec![format!("if {dead} died now, as {node} sees it:")];
    for fate in &report.resources {
        push_fate(fate, &mut lines);
    }
    lines.extend(wrapped("then:", &format!("{}.", report.outlook)));
    lines.join("\n") + "\n"
}

fn push_fate(fate: &FateReport, lines: &mut Vec<String>) {
    lines.push(format!("{}  {}", fate.resource, fate.text));
    let reasons = fate.why.iter().map(|why| format!("  why   {why}"));
    lines.extend(reasons);
    let steps = fate.help.iter().map(|step| format!("  next  {step}"));
    lines.extend(steps);
}

#[cfg(test)]
mod tests {
    use replicator::admin::FateKind;

    use super::*;

    #[test]
    fn each_resource_has_its_fate_and_what_would_mend_it() {
        let fate = |name: &str, fate, text: &str, why: &[&str]| FateReport {
            resource: name.to_owned(),
            fate,
            text: text.to_owned(),
            primary_now: None,
            primary_then: None,
            after_seconds: None,
            why: why.iter().map(|it| (*it).to_owned()).collect(),
            help: why.iter().map(|_| "wait".to_owned()).collect(),
        };
        let report = WhatIfReport {
            schema: String::new(),
            generated: String::new(),
            node: "kvm-b".to_owned(),
            dead: "kvm-a".to_owned(),
            resources: vec![
                fate(
                    "vm-db",
                    FateKind::NobodyServes,
                    "nobody would serve it",
                    &["behind"],
                ),
                fate(
                    "vm-web",
                    FateKind::Moves,
                    "moves to kvm-b after about 3.0 s",
                    &[],
                ),
            ],
            outlook: "a data node is away".to_owned(),
        };
        assert_eq!(
            what_if_text(&report),
            "if kvm-a died now, as kvm-b sees it:\n\
             vm-db  nobody would serve it\n\
             \x20 why   behind\n\
             \x20 next  wait\n\
             vm-web  moves to kvm-b after about 3.0 s\n\
             then: a data node is away.\n"
        );
    }
}
