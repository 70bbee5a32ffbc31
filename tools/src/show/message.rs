//! Errors: what, why, what next.

use replicator::admin::ErrorReport;
use serde_json::json;

/// Several lines, the last one ended.
#[must_use]
pub fn error_text(report: &ErrorReport) -> String {
    let mut text = format!("error[{}]: {}\n", report.id, report.what);
    if !report.why.is_empty() {
        text += &format!("  why    {}\n", report.why);
    }
    for (index, step) in report.next.iter().enumerate() {
        text += &format!("  {:<6} {step}\n", if index == 0 { "next" } else { "" });
    }
    text += &format!("  more   man twinblk-errors(7), {}\n", report.id);
    text
}

/// One line of JSON, ended.
#[must_use]
pub fn error_json(report: &ErrorReport) -> String {
    let ErrorReport {
        id,
        what,
        why,
        next,
        exit: _,
    } = report;
    json!({ "error": { "id": id, "what": what, "why": why, "next": next } }).to_string() + "\n"
}

/// The text with its first word, `error` or `warning`, in colour.
#[must_use]
pub fn coloured(text: &str, color: bool) -> String {
    let code = match text.split('[').next() {
        Some("error") => "31",
        Some("warning") => "33",
        _ => return text.to_owned(),
    };
    match text.split_once(':') {
        Some((head, rest)) if color => format!("\x1b[1;{code}m{head}\x1b[0m:{rest}"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use replicator::admin::ErrorId;

    use super::*;

    fn report() -> ErrorReport {
        ErrorReport::new(
            ErrorId::PeerIsPrimary,
            "kvm-b may not become Primary for vm-web",
            "kvm-a is Primary in view 7 and is alive: last seen 0.4 s ago",
        )
        .next("first step")
        .next("second step")
    }

    #[test]
    fn people_read_what_why_and_next() {
        assert_eq!(
            error_text(&report()),
            "error[E0412]: kvm-b may not become Primary for vm-web\n\
             \x20 why    kvm-a is Primary in view 7 and is alive: last seen 0.4 s ago\n\
             \x20 next   first step\n\
             \x20        second step\n\
             \x20 more   man twinblk-errors(7), E0412\n"
        );
    }

    #[test]
    fn programs_read_the_same_as_json() {
        let value: serde_json::Value = serde_json::from_str(&error_json(&report())).unwrap();
        assert_eq!(value["error"]["id"], "E0412");
        assert_eq!(value["error"]["next"][1], "second step");
        assert_eq!(value["error"].as_object().unwrap().len(), 4);
    }

    #[test]
    fn only_the_head_is_coloured_and_only_if_wanted() {
        assert_eq!(
            coloured("error[E1]: a: b", true),
            "\x1b[1;31merror[E1]\x1b[0m: a: b"
        );
        assert_eq!(coloured("error[E1]: a", false), "error[E1]: a");
        assert_eq!(coloured("anything: a", true), "anything: a");
    }
}
