//! What is a command line and what is none.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_tree_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn json_needs_an_equals_sign_so_that_the_resource_may_follow() {
    for line in [
        "twinadm status --json vm-web",
        "twinadm status vm-web --json",
    ] {
        let Verb::Status(status) = parse(line).unwrap().verb else {
            panic!("{line}")
        };
        assert_eq!(status.resource.as_deref(), Some("vm-web"), "{line}");
        assert_eq!(status.json, Some(StatusSchema::Twinblk), "{line}");
    }
    let Verb::Status(status) = parse("twinadm status --json=drbd9").unwrap().verb else {
        panic!()
    };
    assert_eq!(status.json, Some(StatusSchema::Drbd9));
}

#[test]
fn global_options_stand_before_and_after_the_verb() {
    for line in [
        "twinadm --node b -n up r",
        "twinadm up r --node b --dry-run",
    ] {
        let globals = parse(line).unwrap().globals;
        assert_eq!(
            (globals.node.as_deref(), globals.dry_run),
            (Some("b"), true),
            "{line}"
        );
    }
}

#[test]
fn aliases_and_durations_are_read() {
    let cli = parse("twinadm promote r --timeout 2m").unwrap();
    assert!(matches!(cli.verb, Verb::Primary(_)));
    assert_eq!(cli.globals.timeout, Some(Duration::from_secs(120)));
    assert_eq!(
        parse("twinadm version --timeout 5")
            .unwrap()
            .globals
            .timeout,
        Some(Duration::from_secs(5))
    );
    assert!(parse("twinadm version --timeout soon").is_err());
}

#[test]
fn a_rate_is_a_rate_or_a_word_and_never_left_out() {
    let rate = |text: &str| parse(&format!("twinadm resync r --max-rate {text}"));
    for (text, wanted) in [
        ("250MiB/s", MaxRate::BytesPerSecond(250 << 20)),
        ("auto", MaxRate::Auto),
        ("unlimited", MaxRate::Unlimited),
    ] {
        let Verb::Resync(resync) = rate(text).unwrap().verb else {
            panic!("{text}")
        };
        assert_eq!(resync.max_rate, wanted, "{text}");
    }
    for bad in ["0B/s", "fast", "250MiB", "-1"] {
        assert!(rate(bad).is_err(), "{bad}");
    }
    assert!(parse("twinadm resync r").is_err());
}

#[test]
fn a_verify_is_started_or_stopped_and_only_a_start_is_waited_for() {
    for good in ["r", "all --repair", "r --repair --wait", "r --stop"] {
        assert!(parse(&format!("twinadm verify {good}")).is_ok(), "{good}");
    }
    for bad in ["", "r --stop --wait", "r --stop --repair", "r/0"] {
        assert!(parse(&format!("twinadm verify {bad}")).is_err(), "{bad}");
    }
}

#[test]
fn what_may_be_lost_is_a_size_or_all_and_never_of_all_resources() {
    let parsed = |line: &str| parse(&format!("twinadm invalidate {line}"));
    for (line, most) in [
        ("r --from b", None),
        ("r --from b --yes-discard=4MiB", Some(4 << 20)),
        ("r --from b --yes-discard", Some(u64::MAX)),
    ] {
        let Verb::Invalidate(arguments) = parsed(line).unwrap().verb else {
            panic!("{line}")
        };
        assert_eq!(arguments.yes_discard, most, "{line}");
    }
    for bad in [
        "r",
        "all --from b",
        "r/0 --from b",
        "r --from b --yes-discard=much",
    ] {
        assert!(parsed(bad).is_err(), "{bad}");
    }
    assert!(parse("twinadm invalidate-remote r --peer b").is_ok());
}

#[test]
fn what_is_lost_by_force_is_named_and_only_with_force() {
    let Verb::Primary(primary) = parse("twinadm promote r --force --yes-lose=r")
        .unwrap()
        .verb
    else {
        panic!()
    };
    assert!(primary.force && primary.yes_lose.as_deref() == Some("r"));
    for bad in [
        "r --yes-lose=r",
        "r --force --yes-lose",
        "r --force --yes-lose r",
    ] {
        assert!(parse(&format!("twinadm primary {bad}")).is_err(), "{bad}");
    }
    assert!(parse("twinadm split-brain resolve r --keep a --yes-discard=4MiB").is_ok());
    for bad in [
        "resolve r",
        "resolve all --keep a",
        "show",
        "resolve r/0 --keep a",
    ] {
        assert!(
            parse(&format!("twinadm split-brain {bad}")).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn a_node_is_named_and_is_not_the_one_that_is_asked() {
    let cli = parse("twinadm node drain a --node b").unwrap();
    let Verb::Node(NodeVerb::Drain(drain)) = cli.verb else {
        panic!()
    };
    assert_eq!(
        (drain.which.as_str(), cli.globals.node.as_deref()),
        ("a", Some("b"))
    );
    let cli = parse("twinadm node resume a").unwrap();
    assert_eq!(cli.globals.node, None);
    for bad in [
        "node drain",
        "node drain a b",
        "maintenance",
        "maintenance yes",
    ] {
        assert!(parse(&format!("twinadm {bad}")).is_err(), "{bad}");
    }
    for good in ["maintenance on", "confirm-fenced a --node b"] {
        assert!(parse(&format!("twinadm {good}")).is_ok(), "{good}");
    }
}

#[test]
fn a_bench_has_a_path_and_sizes_that_can_be_measured() {
    for good in [
        "disk /dev/vg0/x",
        "disk f --time 1s --size 1MiB",
        "compare a b",
    ] {
        assert!(parse(&format!("twinadm bench {good}")).is_ok(), "{good}");
    }
    for bad in [
        "",
        "disk",
        "disk f --size 4KiB",
        "compare a",
        "volume r",
        "net b",
    ] {
        assert!(parse(&format!("twinadm bench {bad}")).is_err(), "{bad}");
    }
}

#[test]
fn verbs_and_flags_that_are_not_built_are_unknown() {
    for line in [
        "twinadm resize all",
        "twinadm resize r --size much",
        "twinadm primary r --yes-lose=r",
        "twinadm init",
        "twinadm init lab --token b",
        "twinadm init --token",
        "twinadm join",
        "twinadm top",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}
