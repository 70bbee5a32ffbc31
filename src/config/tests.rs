//! The example configuration, the golden texts of every mistake, and hostile input.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use replicator::types::{Failback, Failover, NodeId, ReplicationProtocol, ResyncRate};

use std::time::Duration;

use super::*;

const CLUSTER: &str = include_str!("../../docs/examples/twinblk.toml");
const WEB: &str = include_str!("../../docs/examples/resources.d/vm-web.toml");
const DB: &str = include_str!("../../docs/examples/resources.d/vm-db.toml");

fn file(kind: FileKind, path: &str, text: &str) -> SourceFile {
    SourceFile {
        kind,
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

fn example() -> Vec<SourceFile> {
    vec![
        file(FileKind::Cluster, "twinblk.toml", CLUSTER),
        file(FileKind::Resources, "vm-db.toml", DB),
        file(FileKind::Resources, "vm-web.toml", WEB),
    ]
}

#[test]
fn the_example_is_accepted_whole_and_means_what_it_says() {
    let Checked { config, warnings } = parse(&example()).unwrap();
    assert_eq!(config.cluster, "lab");
    assert_eq!(config.node_id("kvm-a"), Some(NodeId::A));
    assert_eq!(config.node_id("kvm-b"), Some(NodeId::B));
    assert_eq!(config.node_id("arb"), Some(NodeId::ARBITRATOR));
    assert_eq!(config.node_id("x"), None);
    let names: Vec<_> = config
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    assert_eq!(names, ["vm-db", "vm-web"]);
    let web = config.resource("vm-web").unwrap();
    assert_eq!(web.prefer, Some(NodeId::A));
    assert_eq!(web.volumes[0].size.unwrap().0, 40 << 30);
    assert_eq!(
        web.volumes[0].replica(NodeId::B).meta,
        Path::new("/dev/vg0/vm-web.md")
    );
    assert!(warnings.iter().all(|warning| warning.id.is_warning()));
    assert_eq!(config.net.tls, Tls::Required);
}

#[test]
fn the_volumes_of_a_resource_are_in_the_order_of_their_numbers_and_share_metadata() {
    let (before, volume) = DB.split_once("[[resource.vm-db.volume]]").unwrap();
    let log = "[[resource.vm-db.volume]]\nid = 3\ndisk = \"/dev/vg0/vm-db.log\"\n";
    let text = format!("{before}{log}[[resource.vm-db.volume]]{volume}");
    let read = |text: &str| {
        let mut files = example();
        files[1] = file(FileKind::Resources, "vm-db.toml", text);
        parse(&files).unwrap().config
    };
    let config = read(&text);
    let db = config.resource("vm-db").unwrap();
    let numbers: Vec<_> = db.volumes.iter().map(|volume| volume.id.0).collect();
    assert_eq!(numbers, [0, 3]);
    assert_eq!(db.row().offset(1).0, 200 << 30, "behind the first");
    for node in [NodeId::A, NodeId::B] {
        let [first, log] = [0, 1].map(|nr: usize| db.volumes[nr].replica(node));
        assert_eq!(log.disk, Path::new("/dev/vg0/vm-db.log"));
        assert_eq!(log.meta, first.meta);
    }
    let alone = parse(&example()).unwrap().config;
    let alone = alone.resource("vm-db").unwrap();
    assert_eq!(alone.replica_id(), alone.id(), "as before");
    assert_ne!(db.replica_id(), db.id());
}

#[test]
fn the_example_is_accepted_as_one_file_too() {
    let whole = format!("{CLUSTER}\n{WEB}\n{DB}");
    let one = parse(&[file(FileKind::Cluster, "twinblk.toml", &whole)]).unwrap();
    assert_eq!(one.config, parse(&example()).unwrap().config);
}

#[test]
fn each_key_of_the_example_without_effect_is_warned_of() {
    let warned: Vec<_> = parse(&example())
        .unwrap()
        .warnings
        .into_iter()
        .filter(|warning| warning.id == ErrorId::NoEffectYet)
        .map(|warning| warning.message)
        .collect();
    for key in ["watchdog", "parallel", "schedule"] {
        assert!(
            warned.iter().any(|message| message.contains(key)),
            "{key}: {warned:#?}"
        );
    }
    for key in ["`timing`", "`domain`", "`on-failover`", "`on-demote`"] {
        let found = warned.iter().find(|message| message.contains(key));
        assert_eq!(found, None, "{key} has an effect");
    }
}

#[test]
fn every_rate_has_an_effect() {
    let read = |rate: &str| {
        let text = CLUSTER.replace("max-rate = \"auto\"", &format!("max-rate = \"{rate}\""));
        let files = [file(FileKind::Cluster, "twinblk.toml", &text)];
        let parsed = parse(&files).unwrap();
        let about_it = |warning: &Diagnostic| warning.message.contains("max-rate");
        assert!(!parsed.warnings.iter().any(about_it), "{rate}");
        parsed.config.resync.max_rate.resync_rate()
    };
    assert_eq!(read("auto"), ResyncRate::Auto);
    assert_eq!(read("unlimited"), ResyncRate::Unlimited);
    let limit = std::num::NonZeroU64::new(250 << 20).unwrap();
    assert_eq!(read("250MiB/s"), ResyncRate::BytesPerSecond(limit));
}

#[test]
fn the_order_of_resource_files_does_not_matter() {
    let mut turned = example();
    turned.reverse();
    assert_eq!(
        parse(&example()).unwrap().config,
        parse(&turned).unwrap().config
    );
}

#[test]
fn a_commented_key_of_the_example_is_unknown_until_it_can_do_something() {
    let text = WEB.replace(
        "[resource.vm-web]\n",
        "[resource.vm-web]\nflush-sync = true\n",
    );
    let files = [
        example()[0].clone(),
        file(FileKind::Resources, "vm-web.toml", &text),
    ];
    let found = parse(&files).unwrap_err();
    assert!(found.iter().any(|one| one.id == ErrorId::UnknownKey));
}

#[test]
fn placement_is_read_with_its_defaults_and_shown_as_short_as_it_can_be() {
    let parsed = |lines: &str| {
        let text = WEB.replace("failback = \"when-synced\"", lines);
        let files = [
            example()[0].clone(),
            file(FileKind::Resources, "vm-web.toml", &text),
        ];
        parse(&files).unwrap().config
    };
    let usual = &parsed("").resources[0];
    assert_eq!(usual.failback, Failback::WhenSynced);
    assert_eq!(usual.hold_down, Duration::from_secs(600));
    let config = parsed("failback = \"Saturday 2:00 UTC\"\nhold-down = \"90s\"");
    let shown = config.to_toml(false);
    for line in ["failback = \"Sat 02:00\"", "hold-down = \"90s\""] {
        assert!(shown.contains(line), "{line}:\n{shown}");
    }
    assert!(!parsed("").to_toml(false).contains("hold-down"));
}

#[test]
fn a_disk_timeout_is_read_and_nothing_means_never() {
    for (key, wanted) in [
        ("", Some(5_000)),
        ("disk-timeout = \"300ms\"\n", Some(300)),
        ("disk-timeout = \"0s\"\n", None),
    ] {
        let text = WEB.replace("id = 0\n", &format!("id = 0\n{key}"));
        let files = [
            example()[0].clone(),
            file(FileKind::Resources, "vm-web.toml", &text),
        ];
        let config = parse(&files).unwrap().config;
        let timeout = config.resources[0].volumes[0].disk_timeout;
        assert_eq!(timeout, wanted.map(Duration::from_millis), "{key}");
        let again = file(FileKind::Cluster, "x", &config.to_toml(true));
        let again = parse(&[again]).unwrap().config;
        assert_eq!(again.resources[0].volumes[0].disk_timeout, timeout, "{key}");
    }
}

#[test]
fn a_disk_timeout_that_healthy_disks_would_miss_is_refused() {
    for (time, is_good) in [("1us", false), ("99ms", false), ("100ms", true)] {
        let text = WEB.replace("id = 0\n", &format!("id = 0\ndisk-timeout = \"{time}\"\n"));
        let files = [
            example()[0].clone(),
            file(FileKind::Resources, "vm-web.toml", &text),
        ];
        let result = parse(&files);
        assert_eq!(result.is_ok(), is_good, "{time}");
        if let Err(found) = result {
            let refused = found.iter().find(|it| it.id == ErrorId::BadValue).unwrap();
            assert!(format!("{refused:?}").contains("100ms"), "{refused:?}");
        }
    }
}

#[test]
fn protocol_a_needs_a_person_to_take_over() {
    let with = |resource: &str, net: &str| {
        let text = WEB.replace(
            "[resource.vm-web]\n",
            &format!("[resource.vm-web]\n{resource}\n"),
        );
        let mut cluster = example()[0].clone();
        cluster.text = cluster
            .text
            .replace("protocol = \"C\"", &format!("protocol = \"{net}\""));
        parse(&[cluster, file(FileKind::Resources, "vm-web.toml", &text)])
    };
    for (word, protocol) in [("A", ReplicationProtocol::A), ("B", ReplicationProtocol::B)] {
        let manual = with(
            &format!("protocol = \"{word}\"\nfailover = \"manual\""),
            "C",
        );
        let config = manual.unwrap().config;
        let resource = &config.resources[0];
        assert_eq!(config.protocol_of(resource), protocol);
        assert_eq!(resource.failover, Failover::Manual);
    }
    for (resource, net) in [
        ("protocol = \"A\"", "C"),
        ("", "A"),
        ("failover = \"auto\"", "A"),
    ] {
        let found = with(resource, net).unwrap_err();
        assert!(
            found.iter().any(|one| one.id == ErrorId::ProtocolALossy),
            "{resource} {net}: {found:#?}"
        );
    }
    for (resource, net) in [
        ("protocol = \"B\"", "C"),
        ("protocol = \"C\"", "A"),
        ("", "B"),
    ] {
        assert!(with(resource, net).is_ok(), "{resource} {net}");
    }
}

#[test]
fn the_canonical_form_reads_back_as_the_same_configuration() {
    let config = parse(&example()).unwrap().config;
    for show_defaults in [false, true] {
        let text = config.to_toml(show_defaults);
        let mut back = parse(&[file(FileKind::Cluster, "x", &text)])
            .unwrap()
            .config;
        assert_eq!(back.to_toml(show_defaults), text);
        back.metrics.explicit = config.metrics.explicit;
        assert_eq!(back, config);
    }
    let short = config.to_toml(false);
    assert!(
        !short.contains("timing"),
        "the default is left out:\n{short}"
    );
    assert!(config.to_toml(true).contains("timing = \"default\""));
}

/// Each `golden/NAME.toml` is a wrong configuration (`# file: PATH` lines part it into files);
/// `NAME.txt` is exactly what users read. `UPDATE_GOLDEN=1` writes the texts anew.
#[test]
fn every_mistake_is_shown_as_recorded() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/golden");
    let mut cases: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    cases.sort();
    assert!(cases.len() >= 10, "the golden files are gone");
    let mut wrong = Vec::new();
    for case in cases {
        let files = split_files(&fs::read_to_string(&case).unwrap());
        let found = match parse(&files) {
            Ok(checked) => checked.warnings,
            Err(found) => found,
        };
        let shown: String = found.iter().map(Diagnostic::render).collect();
        let recorded = case.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&recorded, &shown).unwrap();
        }
        if fs::read_to_string(&recorded).unwrap_or_default() != shown {
            wrong.push(format!("{}:\n{shown}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn split_files(text: &str) -> Vec<SourceFile> {
    let parts = text
        .split("# file: ")
        .filter(|part| !part.trim().is_empty());
    let files = parts.map(|part| {
        let (path, text) = part.split_once('\n').unwrap();
        let kind = if path == "twinblk.toml" {
            FileKind::Cluster
        } else {
            FileKind::Resources
        };
        file(kind, path, text)
    });
    files.collect()
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,400}") {
        check_hostile(&text);
    }

    /// A valid file with a stretch of it replaced: deeper than random text gets.
    #[test]
    fn no_damage_makes_the_reader_panic(
        start in 0.0..1.0_f64,
        len in 0_usize..60,
        insert in "[-\\[\\]{}=\"'.,#a-z0-9\n\\PC]{0,40}",
    ) {
        let whole: Vec<char> = format!("{CLUSTER}\n{WEB}\n{DB}").chars().collect();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "any place will do")]
        let start = (whole.len() as f64 * start) as usize;
        let end = (start + len).min(whole.len());
        let text: String =
            whole[..start].iter().copied().chain(insert.chars()).chain(whole[end..].iter().copied()).collect();
        check_hostile(&text);
    }
}

/// No panic, the same answer twice, and a refusal always has an error in it.
fn check_hostile(text: &str) {
    for kind in [FileKind::Cluster, FileKind::Resources] {
        let files = [file(kind, "x.toml", text)];
        let answer = parse(&files);
        assert_eq!(answer, parse(&files));
        if let Err(found) = answer {
            assert!(found.iter().any(|one| !one.id.is_warning()));
            for one in found {
                assert!(one.render().ends_with('\n'));
            }
        }
    }
}

#[test]
fn the_canonical_form_keeps_what_is_not_default() {
    let text = WEB
        .replace("[resource.vm-web]\n", "[resource.vm-web]\nforward = true\n")
        .replace("on-failover = \"start\"", "on-failover = \"leave\"");
    let files = [
        example()[0].clone(),
        file(FileKind::Resources, "vm-web.toml", &text),
    ];
    let config = parse(&files).unwrap().config;
    assert!(config.resources[0].forward);
    let again = parse(&[file(
        FileKind::Cluster,
        "twinblk.toml",
        &config.to_toml(false),
    )]);
    assert_eq!(again.unwrap().config.resources, config.resources);
}

#[test]
fn a_guest_is_named_once_and_can_be_written_in_one_place_only() {
    let with = |web: &str, db: &str| {
        let files = [
            example()[0].clone(),
            file(FileKind::Resources, "vm-web.toml", web),
            file(FileKind::Resources, "vm-db.toml", db),
        ];
        let found = parse(&files).err().unwrap_or_default();
        let wrong = |one: &&Diagnostic| one.id == ErrorId::BadValue;
        found.iter().filter(wrong).count()
    };
    assert_eq!(with(WEB, DB), 0);
    let forward = WEB.replace("[resource.vm-web]\n", "[resource.vm-web]\nforward = true\n");
    assert_eq!(with(&forward, DB), 1);
    let leave = forward.replace("on-failover = \"start\"", "on-failover = \"leave\"");
    assert_eq!(with(&leave, DB), 0);
    assert_eq!(
        with(WEB, &DB.replace("domain = \"db\"", "domain = \"web\"")),
        1
    );
    for name in ["", "100", "-x", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"] {
        let text = DB.replace("domain = \"db\"", &format!("domain = \"{name}\""));
        assert_eq!(with(WEB, &text), 1, "{name}");
    }
}
