//! A resource with two volumes, without a daemon: one replica, one metadata area.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use serde_json::Value;

use super::support::{Ran, Scratch};

const MIB: u64 = 1 << 20;

/// `vm-web` with a second volume of `log` and its metadata key written as well.
fn two_volumes(log: &str) -> Scratch {
    let scratch = Scratch::with_resource(4 * MIB);
    let at = scratch.path("").display().to_string();
    let second = format!(
        "[[resource.vm-web.volume]]\nid = 1\n{log}\n\
         disk = {{ kvm-a = \"{at}a.log\", kvm-b = \"{at}b.log\" }}\n\
         meta = {{ kvm-a = \"{at}a.log.md\", kvm-b = \"{at}b.log.md\" }}\n"
    );
    let both = scratch.resource("size = \"4MiB\"") + &second;
    scratch.write("etc/resources.d/vm-web.toml", both);
    scratch.sparse("a.log", 2 * MIB);
    scratch
}

fn run(scratch: &Scratch, words: &[&str]) -> Ran {
    scratch.twinadm(&[&["--node", "kvm-a"], words].concat())
}

#[test]
fn create_md_makes_one_area_for_all_volumes_whichever_is_named_first() {
    for order in [["vm-web/0", "vm-web/1"], ["vm-web/1", "vm-web/1"]] {
        let scratch = two_volumes("size = \"2MiB\"");
        let made = run(&scratch, &["create-md", order[0]]);
        assert_eq!(made.code, 0, "{made:?}");
        assert!(made.err.contains("for 2 volumes of 6.0 MiB"), "{made:?}");
        let again = run(&scratch, &["create-md", order[1]]);
        assert_eq!(again.code, 0, "{again:?}");
        assert!(again.err.contains("made already"), "{again:?}");
        assert!(!scratch.path("a.log.md").exists(), "it is not needed");
        let whole = run(&scratch, &["create-md", "vm-web"]);
        assert_eq!((whole.code, whole.id()), (4, "E0401"), "{whole:?}");

        let dumped = run(&scratch, &["dump-md", "vm-web/1", "vm-web/0", "-o", "json"]);
        let shown: Value = serde_json::from_str(&dumped.out).expect("once");
        assert_eq!(shown["volume"], "vm-web");
        assert_eq!(shown["replica"]["ours"], true, "{dumped:?}");
        assert_eq!(shown["replica"]["size_bytes"], 6 * MIB);
        let forced = run(&scratch, &["create-md", "vm-web/1", "--force"]);
        assert_eq!((forced.code, forced.id()), (4, "E0401"), "{forced:?}");
        let kept = run(&scratch, &["wipe-md", "vm-web/1", "--yes"]);
        assert!(
            kept.code == 0 && kept.err.contains("first volume"),
            "{kept:?}"
        );
        assert_eq!(
            run(&scratch, &["dump-md", "vm-web"]).code,
            0,
            "they are there"
        );
        let nothing = run(&scratch, &["dump-md", "vm-web/2"]);
        assert_eq!((nothing.code, nothing.id()), (7, "E0703"), "{nothing:?}");
    }
}

#[test]
fn metadata_of_other_volumes_are_another_replicas() {
    let scratch = two_volumes("size = \"2MiB\"");
    assert_eq!(run(&scratch, &["create-md", "vm-web"]).code, 0);
    // The last one may be of any size, the first one not.
    let file = "etc/resources.d/vm-web.toml";
    let text = std::fs::read_to_string(scratch.path(file)).unwrap();
    scratch.write(file, text.replace("2MiB", "1MiB"));
    assert_eq!(run(&scratch, &["dump-md", "vm-web"]).code, 0);
    for other in [
        text.replace("4MiB", "3MiB"),
        text.replace("id = 1", "id = 2"),
        scratch.resource("size = \"4MiB\""),
    ] {
        scratch.write(file, &other);
        let dumped = run(&scratch, &["dump-md", "vm-web"]);
        assert_eq!((dumped.code, dumped.id()), (4, "E0407"), "{other}");
        let refused = run(&scratch, &["create-md", "vm-web"]);
        assert_eq!((refused.code, refused.id()), (4, "E0401"), "{refused:?}");
    }
}

#[test]
fn a_volume_that_was_added_does_not_cost_the_metadata_that_are_there() {
    let scratch = two_volumes("size = \"2MiB\"");
    let file = "etc/resources.d/vm-web.toml";
    let two = std::fs::read_to_string(scratch.path(file)).unwrap();
    let one = scratch.resource("size = \"4MiB\"");
    scratch.write(file, &one);
    assert_eq!(run(&scratch, &["create-md", "vm-web"]).code, 0);
    let before = run(&scratch, &["dump-md", "vm-web", "-o", "json"]);
    scratch.write(file, &two);
    let forced = run(&scratch, &["create-md", "vm-web/1", "--force"]);
    assert_eq!((forced.code, forced.id()), (4, "E0401"), "{forced:?}");
    scratch.write(file, &one);
    let after = run(&scratch, &["dump-md", "vm-web", "-o", "json"]);
    assert_eq!((after.code, after.out), (0, before.out));
}

#[test]
fn check_says_what_has_no_effect_and_what_is_missing() {
    let check = |scratch: &Scratch| {
        let directory = scratch.path("etc").display().to_string();
        run(scratch, &["check", &directory])
    };
    let checked = check(&two_volumes("size = \"2MiB\""));
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.err.contains("W0134"), "{checked:?}");
    let scratch = two_volumes("");
    assert_eq!(check(&scratch).code, 0, "the last needs no size");
    let first_without = scratch.resource("");
    let text = std::fs::read_to_string(scratch.path("etc/resources.d/vm-web.toml")).unwrap();
    let second = text
        .split_once("[[resource.vm-web.volume]]\nid = 1")
        .unwrap()
        .1;
    scratch.write(
        "etc/resources.d/vm-web.toml",
        format!("{first_without}[[resource.vm-web.volume]]\nid = 1{second}"),
    );
    let checked = check(&scratch);
    assert_eq!(checked.code, 3, "{checked:?}");
    assert!(checked.err.contains("E0105"), "{checked:?}");
}
