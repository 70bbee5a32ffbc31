//! Looking at metadata and erasing it, without a daemon: `dump-md`, `show-gi` and `wipe-md` on
//! whatever lies there.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::fs;
use std::os::unix::net::UnixListener;

use nix::fcntl::{Flock, FlockArg};
use replicator::meta::layout::SUPERBLOCK_OFFSETS;
use replicator::meta::{Begin, BitmapPageNr, Loader};
use replicator::types::{BlockCount, BlockIndex, BlockRange, ByteLen};
use serde_json::Value;

use super::support::{Ran, Scratch};

const MIB: u64 = 1 << 20;
const CREATE: [&str; 4] = ["--node", "kvm-a", "create-md", "vm-web"];

fn made() -> Scratch {
    let scratch = Scratch::with_resource(4 * MIB);
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    scratch
}

fn run(scratch: &Scratch, words: &[&str]) -> Ran {
    scratch.twinadm(&[&["--node", "kvm-a"], words].concat())
}

fn dump(scratch: &Scratch) -> Ran {
    run(scratch, &["dump-md", "vm-web"])
}

fn dump_json(scratch: &Scratch) -> Value {
    let ran = run(scratch, &["dump-md", "vm-web", "-o", "json"]);
    serde_json::from_str(&ran.out).unwrap()
}

/// Changes bytes of the metadata.
fn change(scratch: &Scratch, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(scratch.path("a.md")).unwrap();
    change(&mut bytes);
    scratch.write("a.md", bytes);
}

fn damage(scratch: &Scratch, offset: u64) {
    change(scratch, |bytes| {
        bytes[usize::try_from(offset).unwrap()] ^= 0xff;
    });
}

/// Both copies become those of a newer format, with right checksums.
fn make_newer(scratch: &Scratch) {
    change(scratch, |bytes| {
        for offset in SUPERBLOCK_OFFSETS {
            let at = usize::try_from(offset.0).unwrap();
            let page = &mut bytes[at..at + 4096];
            page[8] = 2;
            page[12..16].fill(0);
            let crc = crc32c(page);
            page[12..16].copy_from_slice(&crc.to_le_bytes());
        }
    });
}

/// The slow way, by its definition.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _: u32| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(u32::MAX, byte)
}

// --- dump-md --------------------------------------------------------------------------------

#[test]
fn dump_md_shows_new_metadata_and_changes_nothing() {
    let scratch = made();
    let before = fs::read(scratch.path("a.md")).unwrap();
    let ran = dump(&scratch);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for line in [
        "superblock copy:1 offset:0 content:whole format:1 sequence:1 ",
        " counts:yes because:both-same\n",
        "superblock copy:2 offset:520192 content:whole ",
        " resource:vm-web volume:0 node-index:0 ours:yes\n",
        "state Blank in-sync-since:none last-view:none in-sync-from:none\n",
        "generation data:none bitmap-base:zeroes ",
        "size bytes:4194304 metadata:528384\n",
        "flags open:no full-sync-needed:no bits-coarse:no zero-proven:yes unwritten-bits-set:no may-be-ahead:no may-be-behind:no\n",
        "features compat:0x0 ro-compat:0x0 incompat:0x0\n",
        "activity-log content:whole slots:1024 used:0 pages:8 newest:0\n",
        "bitmap pages:1 written:0 unwritten:1 damaged:0 missing:0 block:4096\n",
        "marked blocks:0 bytes:0 all:no\n",
    ] {
        assert!(ran.out.contains(line), "{line:?} not in\n{}", ran.out);
    }
    assert!(ran.out.starts_with("vm-web/0 node:kvm-a meta:/"));
    assert!(
        ran.out
            .lines()
            .next()
            .is_some_and(|it| it.ends_with(" area:528384 in-use:no"))
    );
    assert_eq!(fs::read(scratch.path("a.md")).unwrap(), before);
}

#[test]
fn dump_md_says_the_same_in_json_and_every_key_is_documented() {
    let scratch = made();
    let value = dump_json(&scratch);
    assert_eq!(value["schema"], "twinblk.metadata/1");
    assert_eq!(value["replica"]["state"], "Blank");
    assert_eq!(value["replica"]["ours"], true);
    assert_eq!(value["superblocks"][1]["offset"], 520_192);
    assert_eq!(value["bitmap"]["marked_bytes"], 0);
    assert_eq!(value["problem"], Value::Null);
    assert_documented(&value);
}

/// Every key of `value` is named in docs/metadata.md.
fn assert_documented(value: &Value) {
    let doc = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metadata.md");
    let doc = fs::read_to_string(doc).unwrap();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    assert!(doc.contains(&format!("`{key}`")), "{key} is not documented");
                    open.push(value);
                }
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
}

#[test]
fn dump_md_of_what_is_in_use_says_that_it_may_be_changing() {
    let scratch = made();
    let file = fs::File::open(scratch.path("a.md")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    let ran = dump(&scratch);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("in-use:yes"), "{}", ran.out);
    assert!(ran.err.contains("may be changing"), "{}", ran.err);
    drop(lock);
    assert!(dump(&scratch).out.contains("in-use:no"));
}

#[test]
fn dump_md_of_one_lost_copy_shows_the_other() {
    let scratch = made();
    damage(&scratch, 300);
    let ran = dump(&scratch);
    assert_eq!((ran.code, ran.id()), (1, "E1009"), "{ran:?}");
    assert!(
        ran.out
            .contains("copy:1 offset:0 content:damaged counts:no\n")
            && ran.out.contains(" counts:yes because:only-whole\n")
            && ran.out.contains("state Blank"),
        "{}",
        ran.out
    );
    damage(&scratch, 520_192 + 300);
    let ran = dump(&scratch);
    assert_eq!((ran.code, ran.id()), (1, "E1009"), "{ran:?}");
    assert!(
        ran.out
            .contains("copy:2 offset:520192 content:damaged counts:no\n")
    );
    assert!(!ran.out.contains("state "), "{}", ran.out);
}

#[test]
fn dump_md_names_damaged_pages_and_a_lost_activity_log() {
    let scratch = made();
    damage(&scratch, 524_288 + 100);
    let ran = dump(&scratch);
    assert_eq!((ran.code, ran.id()), (1, "E1009"), "{ran:?}");
    for line in [
        "bitmap pages:1 written:0 unwritten:0 damaged:1 ",
        "damaged-page 0 first-block:0\n",
        "marked blocks:1024 bytes:4194304 all:no\n",
    ] {
        assert!(ran.out.contains(line), "{line:?} not in\n{}", ran.out);
    }
    // The place of transaction 3 holds something although there never was a first one.
    damage(&scratch, 4096 * 4 + 5);
    let value = dump_json(&scratch);
    assert_eq!(value["activity_log"]["content"], "lost");
    assert_eq!(value["bitmap"]["all_marked"], true);
    assert_documented(&value);
}

#[test]
fn dump_md_of_a_truncated_area_shows_what_there_is() {
    let scratch = made();
    for (len, shown) in [
        (528_383_usize, "missing:1 "),
        (9000, "content:cut-off"),
        (4096, "content:beyond-end"),
    ] {
        change(&scratch, |bytes| bytes.truncate(len));
        let ran = dump(&scratch);
        assert_eq!((ran.code, ran.id()), (1, "E1009"), "{len}: {ran:?}");
        assert!(ran.out.contains("state Blank"), "{len}: {}", ran.out);
        assert!(ran.out.contains(shown), "{len}: {}", ran.out);
        assert!(ran.err.contains("528384 bytes"), "{len}: {}", ran.err);
    }
    change(&scratch, |bytes| bytes.truncate(100));
    assert_eq!(dump(&scratch).id(), "E1009");
    change(&scratch, Vec::clear);
    assert_eq!((dump(&scratch).code, dump(&scratch).id()), (4, "E0406"));
}

#[test]
fn dump_md_names_a_newer_format() {
    let scratch = made();
    make_newer(&scratch);
    let ran = dump(&scratch);
    assert_eq!((ran.code, ran.id()), (4, "E0421"), "{ran:?}");
    assert!(ran.out.contains("content:too-new format:2 counts:no"));
    assert!(ran.err.contains("format 2"), "{}", ran.err);
}

#[test]
fn dump_md_of_what_is_no_metadata_says_what_it_is() {
    let scratch = made();
    let expect = |code: i32, id: &str| {
        let ran = dump(&scratch);
        assert_eq!((ran.code, ran.id()), (code, id), "{ran:?}");
        assert!(ran.err.contains("next"), "{}", ran.err);
    };
    scratch.write("a.md", vec![0x53; 1 << 20]);
    expect(4, "E0402");
    scratch.sparse("a.md", 1 << 20);
    expect(4, "E0406");
    fs::remove_file(scratch.path("a.md")).unwrap();
    expect(4, "E0406");
    fs::create_dir(scratch.path("a.md")).unwrap();
    expect(1, "E0410");
    fs::remove_dir(scratch.path("a.md")).unwrap();
    let _socket = UnixListener::bind(scratch.path("a.md")).unwrap();
    expect(1, "E0410");
    fs::remove_file(scratch.path("a.md")).unwrap();
    // Nobody ever writes into it: it must not be waited for.
    nix::unistd::mkfifo(
        &scratch.path("a.md"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    expect(1, "E0410");
}

#[test]
fn dump_md_tells_swapped_metadata() {
    let scratch = made();
    fs::copy(scratch.path("a.md"), scratch.path("b.md")).unwrap();
    let ran = scratch.twinadm(&["--node", "kvm-b", "dump-md", "vm-web"]);
    assert_eq!((ran.code, ran.id()), (4, "E0407"), "{ran:?}");
    assert!(ran.out.contains("node-index:0 ours:no"), "{}", ran.out);
    assert!(ran.err.contains("another node"), "{}", ran.err);
}

// --- show-gi --------------------------------------------------------------------------------

#[test]
fn show_gi_without_a_daemon_says_what_the_disk_knows() {
    let scratch = made();
    let ran = run(&scratch, &["show-gi", "vm-web"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    for part in [
        " generation:none bitmap-base:zeroes\n",
        "state Blank in-sync-since:none ",
        "claim blank:yes inconsistent:no dirty-blocks:0 ",
        "\n# Blank: ",
        "metadata alone cannot say",
    ] {
        assert!(ran.out.contains(part), "{part:?} not in\n{}", ran.out);
    }
    assert!(!ran.out.contains("\nview ") && !ran.out.contains("\npeer "));
    let ran = run(&scratch, &["show-gi", "vm-web", "-o", "json"]);
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["schema"], "twinblk.generations/1");
    assert_eq!(value["claim"]["blank"], true);
    assert_documented(&value);
}

#[test]
fn show_gi_shows_damaged_metadata_and_refuses_what_is_none() {
    let scratch = made();
    damage(&scratch, 524_288 + 100);
    let ran = run(&scratch, &["show-gi", "vm-web"]);
    assert_eq!((ran.code, ran.id()), (1, "E1009"), "{ran:?}");
    assert!(
        ran.out.contains("dirty-blocks:1024 ") && ran.out.contains("coarse:yes"),
        "{}",
        ran.out
    );
    make_newer(&scratch);
    let ran = run(&scratch, &["show-gi", "vm-web"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.id()), (4, "", "E0421"));
    scratch.write("a.md", [7; 9000]);
    assert_eq!(run(&scratch, &["show-gi", "vm-web"]).id(), "E0402");
}

// --- wipe-md --------------------------------------------------------------------------------

const WIPE: [&str; 3] = ["wipe-md", "vm-web", "--yes"];

fn metadata(scratch: &Scratch) -> Vec<u8> {
    fs::read(scratch.path("a.md")).unwrap()
}

/// As a replica that was used leaves it: marks in the bitmap, a transaction in the activity log.
fn use_it(scratch: &Scratch) {
    let bytes = metadata(scratch);
    let mut loader = Loader::new(ByteLen(u64::try_from(bytes.len()).unwrap()));
    while let Some(range) = loader.next_read() {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        loader.feed(&bytes[at(range.offset().0)..at(range.end().0)]);
    }
    let mut opened = loader.finish().unwrap();
    let blocks = BlockRange::new(BlockIndex(3), BlockCount(2));
    opened.bitmap.set(blocks);
    let mut pages = vec![opened.bitmap.write_page(BitmapPageNr(0))];
    let Begin::Transaction(transaction) = opened.activity_log.begin_transaction([blocks]) else {
        panic!("an empty log takes an extent");
    };
    pages.push(transaction.page);
    pages.push(opened.superblock.next_write(|it| it.open = true));
    pages.push(opened.superblock.next_write(|_| {}));
    change(scratch, |bytes| {
        for page in pages {
            let at = usize::try_from(page.offset.0).unwrap();
            bytes[at..at + 4096].copy_from_slice(&page.bytes);
        }
    });
}

#[test]
fn wipe_md_asks_then_erases_everything_and_is_idempotent() {
    let scratch = made();
    use_it(&scratch);
    let before = metadata(&scratch);
    let asked = run(&scratch, &["wipe-md", "vm-web"]);
    assert_eq!((asked.code, asked.id()), (4, "E0422"), "{asked:?}");
    assert!(asked.err.contains("lost would be"), "{}", asked.err);
    let dry = run(&scratch, &["wipe-md", "vm-web", "-n"]);
    assert_eq!(dry.code, 14, "{dry:?}");
    assert!(dry.out.contains("this replica is Blank"), "{}", dry.out);
    assert_eq!(metadata(&scratch), before, "nothing was touched");

    let ran = run(&scratch, &WIPE);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("lost: ") && ran.err.contains("data are untouched"));
    let after = metadata(&scratch);
    assert!(after.iter().all(|byte| *byte == 0) && after.len() == before.len());

    let again = run(&scratch, &WIPE);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.err.contains("no metadata"), "{}", again.err);
    assert_eq!(run(&scratch, &["wipe-md", "vm-web", "-n"]).code, 0);
    assert_eq!(dump(&scratch).id(), "E0406");
    assert_eq!(scratch.twinadm(&CREATE).code, 0, "there is room for new");
}

#[test]
fn wipe_md_says_the_same_in_json() {
    let scratch = made();
    let words = ["wipe-md", "vm-web", "--yes", "-o", "json"];
    for erased in [8192, 0] {
        let ran = run(&scratch, &words);
        let value: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((ran.code, &value["erased_bytes"]), (0, &erased.into()));
        assert_documented(&value);
    }
}

/// Power failed after the superblocks were gone: no replica is there, whatever is left, and the
/// next try finishes it.
#[test]
fn a_half_wiped_area_holds_no_replica_and_is_wiped_further() {
    let scratch = made();
    use_it(&scratch);
    change(&scratch, |bytes| {
        for offset in SUPERBLOCK_OFFSETS {
            let at = usize::try_from(offset.0).unwrap();
            bytes[at..at + 4096].fill(0);
        }
    });
    assert_eq!(dump(&scratch).id(), "E0406");
    assert_eq!(scratch.twinadm(&CREATE).code, 4, "something is left");
    assert_eq!(run(&scratch, &["wipe-md", "vm-web", "-n"]).code, 14);
    assert_eq!(run(&scratch, &WIPE).code, 0);
    assert!(metadata(&scratch).iter().all(|byte| *byte == 0));
}

#[test]
fn wipe_md_of_damaged_or_short_metadata_leaves_nothing_of_it() {
    for damage_it in [
        (|scratch| {
            damage(scratch, 300);
            damage(scratch, 520_192 + 300);
        }) as fn(&Scratch),
        |scratch| damage(scratch, 300),
        |scratch| damage(scratch, 524_288 + 70),
        |scratch| change(scratch, |bytes| bytes.truncate(526_000)),
        |scratch| change(scratch, |bytes| bytes.truncate(9000)),
    ] {
        let scratch = made();
        use_it(&scratch);
        damage_it(&scratch);
        assert_eq!(run(&scratch, &WIPE).code, 0);
        let left: Vec<usize> = (0..)
            .zip(metadata(&scratch))
            .filter_map(|(at, byte)| (byte != 0).then_some(at))
            .collect();
        let part_of_a_page = metadata(&scratch).len() / 4096 * 4096;
        assert!(left.iter().all(|at| *at >= part_of_a_page), "{left:?}");
        assert!(matches!(dump(&scratch).id(), "E0406" | "E1009"));
    }
}

#[test]
fn wipe_md_never_touches_what_is_not_this_replicas() {
    let scratch = made();
    let refused = |node: &str, code: i32, id: &str| {
        let before = metadata(&scratch);
        for words in [&["--yes"][..], &["--yes", "--dry-run"]] {
            let line = [&["--node", node, "wipe-md", "vm-web"], words].concat();
            let ran = scratch.twinadm(&line);
            assert_eq!((ran.code, ran.id()), (code, id), "{ran:?}");
            assert!(ran.err.contains("next"));
        }
        assert_eq!(metadata(&scratch), before);
    };
    // Somebody made a filesystem over the first copy.
    change(&scratch, |bytes| bytes[..4096].fill(0x53));
    refused("kvm-a", 4, "E0402");
    scratch.write("a.md", vec![0x53; 1 << 20]);
    refused("kvm-a", 4, "E0402");
    fs::remove_file(scratch.path("a.md")).unwrap();
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    make_newer(&scratch);
    refused("kvm-a", 4, "E0421");
    fs::remove_file(scratch.path("a.md")).unwrap();
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    let file = fs::File::open(scratch.path("a.md")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    refused("kvm-a", 4, "E0404");
    drop(lock);
    fs::copy(scratch.path("a.md"), scratch.path("b.md")).unwrap();
    refused("kvm-b", 4, "E0407");
    assert_eq!(
        fs::read(scratch.path("b.md")).unwrap(),
        metadata(&scratch),
        "the metadata of kvm-a"
    );
}

#[test]
fn wipe_md_where_nothing_is_needs_nothing() {
    let scratch = Scratch::with_resource(4 * MIB);
    let ran = run(&scratch, &["wipe-md", "vm-web"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("no metadata"), "{}", ran.err);
    assert!(!scratch.path("a.md").exists());
    scratch.write("a.md", [7; 100]);
    assert_eq!(run(&scratch, &WIPE).code, 0);
    assert_eq!(metadata(&scratch), [7; 100]);
    fs::remove_file(scratch.path("a.md")).unwrap();
    fs::create_dir(scratch.path("a.md")).unwrap();
    let ran = run(&scratch, &WIPE);
    assert_eq!((ran.code, ran.id()), (1, "E0410"), "{ran:?}");
}

// --- repair-md ------------------------------------------------------------------------------

const REPAIR: [&str; 2] = ["repair-md", "vm-web"];

#[test]
fn repair_md_mends_each_kind_of_damage_and_marks_what_was_lost() {
    let all = 4 * MIB;
    // What is damaged, and the bytes that are marked afterwards.
    let cases: [(&str, &[u64], u64); 4] = [
        ("the first copy", &[300], all),
        ("the second copy", &[520_192 + 300], all),
        ("a bitmap page", &[524_288 + 70], all),
        ("the activity log", &[4096 * 5 + 9], all),
    ];
    for (what, places, marked) in cases {
        let scratch = made();
        use_it(&scratch);
        let id = dump_json(&scratch)["replica"]["id"].clone();
        places.iter().for_each(|at| damage(&scratch, *at));
        assert_eq!(dump(&scratch).code, 1, "{what}");
        let before = metadata(&scratch);
        let dry = run(&scratch, &["repair-md", "vm-web", "-n"]);
        assert_eq!(dry.code, 14, "{what}: {dry:?}");
        assert_eq!(metadata(&scratch), before, "{what}");
        let ran = run(&scratch, &REPAIR);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        assert!(ran.err.contains("done: "), "{what}: {}", ran.err);
        let after = dump(&scratch);
        assert_eq!(after.code, 0, "{what}: {after:?}");
        let shown = dump_json(&scratch);
        assert_eq!(shown["replica"]["id"], id, "{what}");
        assert_eq!(
            shown["replica"]["flags"]["open"], true,
            "{what}: a crash stays one"
        );
        assert_eq!(shown["bitmap"]["marked_bytes"], marked, "{what}");
        let again = run(&scratch, &REPAIR);
        assert!(again.err.contains("nothing to repair"), "{what}: {again:?}");
        assert_eq!(again.code, 0);
    }
}

#[test]
fn repair_md_refuses_where_nothing_safe_can_be_said() {
    let scratch = made();
    let refused = |code: i32, id: &str| {
        let before = metadata(&scratch);
        let ran = run(&scratch, &REPAIR);
        assert_eq!((ran.code, ran.id()), (code, id), "{ran:?}");
        assert!(ran.err.contains("is not repaired") && ran.err.contains("next"));
        assert_eq!(metadata(&scratch), before);
    };
    change(&scratch, |bytes| bytes[..4096].fill(0x53));
    refused(4, "E0402");
    damage(&scratch, 520_192 + 300);
    refused(1, "E1009");
    scratch.write("a.md", vec![0; 1 << 20]);
    refused(4, "E0406");
    fs::remove_file(scratch.path("a.md")).unwrap();
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    change(&scratch, |bytes| bytes.truncate(526_000));
    refused(1, "E1009");
    fs::remove_file(scratch.path("a.md")).unwrap();
    assert_eq!(run(&scratch, &REPAIR).id(), "E0406");
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    let json = run(&scratch, &["repair-md", "vm-web", "-o", "json"]);
    let value: Value = serde_json::from_str(&json.out).unwrap();
    assert_documented(&value);
    fs::copy(scratch.path("a.md"), scratch.path("b.md")).unwrap();
    let ran = scratch.twinadm(&["--node", "kvm-b", "repair-md", "vm-web"]);
    assert_eq!((ran.code, ran.id()), (4, "E0407"), "{ran:?}");
    let file = fs::File::open(scratch.path("a.md")).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    assert_eq!(run(&scratch, &REPAIR).id(), "E0404");
    drop(lock);
}

#[test]
fn metadata_verbs_know_which_node_and_resource_there_are() {
    let scratch = made();
    let cases = [
        (["--node", "kvm-x", "dump-md", "vm-web"], 7, "E0702"),
        (["--node", "arb", "dump-md", "vm-web"], 4, "E0414"),
        (["--node", "kvm-a", "dump-md", "vm-x"], 7, "E0701"),
        (["--node", "kvm-a", "dump-md", "vm-web/3"], 7, "E0703"),
    ];
    for (line, code, id) in cases {
        let ran = scratch.twinadm(&line);
        assert_eq!((ran.code, ran.id()), (code, id), "{line:?}: {ran:?}");
    }
}
