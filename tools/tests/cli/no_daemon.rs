//! The real program where no daemon answers: usage, configuration, `create-md`, unreachable.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use super::support::Scratch;
use replicator::meta::{PAGE_LEN, ReplicaState, layout::SUPERBLOCK_OFFSETS, probe};
use replicator::types::{NodeId, ResourceId};

const MIB: u64 = 1 << 20;

/// What is not built is unknown, not half there.
#[test]
fn unknown_verbs_and_flags_are_usage_errors() {
    let scratch = Scratch::new();
    for line in [
        &["frobnicate"][..],
        &["top"],
        &["up"],
        &["status", "--nonsense"],
        &["primary", "r", "--yes-lose=r"],
        &[],
    ] {
        let ran = scratch.twinadm(line);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{line:?}: {ran:?}");
        assert!(!ran.err.is_empty());
    }
    let help = scratch.twinadm(&["--help"]);
    assert_eq!(help.code, 0);
    assert!(
        help.out.contains("create-md") && help.out.contains("Exit codes"),
        "{}",
        help.out
    );
    assert!(!help.out.contains("replace-disk"));
}

/// Keys are made once, shown to nobody else, and taken away only by a yes where they cannot be had again.
#[test]
fn keys_are_made_once_and_tokens_where_they_were_made() {
    let scratch = Scratch::with_resource(4 * MIB);
    let (a, b) = (
        scratch.path("a").display().to_string(),
        scratch.path("b").display().to_string(),
    );
    let ran = |words: &[&str]| scratch.twinadm(words);
    let init = ["--node", "kvm-a", "init", "lab", "--state-dir", &a];
    let wrong = ran(&["--node", "kvm-a", "init", "labb", "--state-dir", &a]);
    assert!(
        wrong.code == 3 && wrong.err.contains("twinadm init lab"),
        "{wrong:?}"
    );
    assert_eq!(
        ran(&["--node", "kvm-x", "init", "lab", "--state-dir", &a]).code,
        7
    );
    let planned = ran(&[&["-n"][..], &init].concat());
    assert_eq!(planned.code, 14, "{planned:?}");
    let made = ran(&init);
    assert_eq!((made.code, made.out.lines().count()), (0, 2), "{made:?}");
    assert!(
        made.out.lines().all(|token| token.starts_with("tbj1.")),
        "{made:?}"
    );
    let again = ran(&init);
    assert!(again.code == 4 && again.err.contains("E0440"), "{again:?}");
    let token = ran(&[
        "--node",
        "kvm-a",
        "-o",
        "json",
        "init",
        "--token",
        "kvm-b",
        "--state-dir",
        &a,
    ]);
    assert!(
        token.code == 0 && token.out.contains("\"node\":\"kvm-b\",\"token\":\"tbj1."),
        "{token:?}"
    );
    let own = [
        "--node",
        "kvm-a",
        "init",
        "--token",
        "kvm-a",
        "--state-dir",
        &a,
    ];
    let own = ran(&own);
    assert!(own.code != 0 && own.err.contains("kvm-b, arb"), "{own:?}");
    let nowhere = [
        "--node",
        "kvm-b",
        "init",
        "--token",
        "arb",
        "--state-dir",
        &b,
    ];
    let nowhere = ran(&nowhere);
    assert!(
        nowhere.code == 3 && nowhere.err.contains("E0114"),
        "{nowhere:?}"
    );

    for text in ["", "tbj1.", "hello", "-"] {
        let refused = ran(&["--node", "kvm-b", "join", text, "--state-dir", &b]);
        assert!(
            refused.code == 2 && refused.err.contains("E0442"),
            "{text}: {refused:?}"
        );
    }
    let token = made.out.lines().next().unwrap();
    let own = ran(&["--node", "kvm-a", "join", token, "--state-dir", &b]);
    assert!(own.code == 4 && own.err.contains("E0441"), "{own:?}");

    // The daemon of this directory is not the one that would answer here.
    let lock = std::fs::File::create(std::path::Path::new(&a).join("lock")).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let stays = ran(&["--node", "kvm-a", "leave", "--yes", "--state-dir", &a]);
    assert!(stays.code == 4 && stays.err.contains("E0445"), "{stays:?}");
    drop(held);
    let stays = ran(&["--node", "kvm-a", "leave", "--state-dir", &a]);
    assert!(stays.code == 4 && stays.err.contains("E0422"), "{stays:?}");
    assert_eq!(
        ran(&["--node", "kvm-a", "leave", "--yes", "--state-dir", &a]).code,
        0
    );
    assert!(!scratch.path("a/keys").exists());
    let gone = ran(&["--node", "kvm-a", "leave", "--state-dir", &a]);
    assert_eq!(gone.code, 0, "{gone:?}");
}

#[test]
fn a_program_on_the_path_becomes_a_verb() {
    let scratch = Scratch::new();
    let program = scratch.path("twinadm-greet");
    fs::write(&program, "#!/bin/sh\necho hello $1\nexit 42\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_twinadm"))
        .args(["greet", "you"])
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", scratch.path("").display()),
        )
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(output.stdout, b"hello you\n");
}

#[test]
fn without_a_daemon_status_is_exit_6_with_nothing_on_stdout() {
    let scratch = Scratch::with_resource(4 * MIB);
    let lines = [
        &["status"][..],
        &["status", "--json"],
        &["role", "vm-web"],
        &["up", "vm-web"],
        &["-n", "up", "all"],
    ];
    // Each waits its two seconds; side by side.
    std::thread::scope(|scope| {
        for line in lines {
            let scratch = &scratch;
            scope.spawn(move || {
                let ran = scratch.twinadm(line);
                let seen = (ran.code, ran.out.as_str(), ran.id());
                assert_eq!(seen, (6, "", "E0601"), "{line:?}: {ran:?}");
                let json = line.contains(&"--json");
                assert_eq!(ran.err.starts_with('{'), json, "{}", ran.err);
                assert!(ran.err.contains("next"), "{}", ran.err);
            });
        }
    });
    let nagios = scratch.twinadm(&["status", "--nagios"]);
    assert_eq!(nagios.code, 3);
    assert!(nagios.out.starts_with("TWINBLK UNKNOWN"), "{}", nagios.out);
}

#[test]
fn a_socket_left_by_a_killed_daemon_is_not_reachable_either() {
    let scratch = Scratch::with_resource(4 * MIB);
    drop(UnixListener::bind(scratch.path("run/control.sock")).unwrap());
    let ran = scratch.twinadm(&["status"]);
    assert_eq!((ran.code, ran.id()), (6, "E0601"), "{ran:?}");
}

#[test]
fn errors_are_json_when_asked() {
    let scratch = Scratch::new();
    let ran = scratch.twinadm(&["-o", "json", "status"]);
    let value: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(value["error"]["id"], "E0601");
    assert!(
        value["error"]["next"]
            .as_array()
            .is_some_and(|next| !next.is_empty())
    );
}

#[test]
fn version_needs_no_daemon() {
    let ran = Scratch::new().twinadm(&["version"]);
    assert_eq!(
        (ran.code, ran.out),
        (0, format!("twinadm {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn completions_and_man_pages_come_from_the_same_tree() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = scratch.twinadm(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("wait-sync"), "{shell}");
    }
    fs::create_dir(scratch.path("man")).unwrap();
    let directory = scratch.path("man").display().to_string();
    assert_eq!(scratch.twinadm(&["man", &directory]).code, 0);
    for page in [
        "twinadm.1",
        "twinadm-create-md.1",
        "twinadm-primary.1",
        "twinblk-errors.7",
    ] {
        let text = fs::read_to_string(scratch.path("man").join(page)).unwrap();
        assert!(page.ends_with('7') || text.contains("Exit codes"), "{page}");
    }
    assert_eq!(scratch.twinadm(&["man", "/nonexistent"]).code, 1);
}

// --- check and dump -------------------------------------------------------------------------

#[test]
fn check_accepts_the_documented_example_and_warns() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples");
    let ran = Scratch::new().twinadm(&["check", example]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(
        ran.err
            .contains("warning[W0131]: `watchdog` in `[quorum]` has no effect yet"),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("ok, 3 nodes, 2 resources"), "{}", ran.err);
}

#[test]
fn check_shows_every_mistake_with_its_place() {
    let scratch = Scratch::with_resource(4 * MIB);
    let text = scratch.resource("size = \"4MiB\"").replace(
        "[resource.vm-web]\n",
        "[resource.vm-web]\nprefered = \"kvm-a\"\nfailbak = 1\n",
    );
    scratch.write("etc/resources.d/vm-web.toml", text);
    let ran = scratch.twinadm(&["check"]);
    assert_eq!(ran.code, 3);
    assert!(
        ran.err.contains(
            "vm-web.toml:2:1\n2 │ prefered = \"kvm-a\"\n  │ ^^^^^^^^ did you mean `prefer`?"
        ),
        "{}",
        ran.err
    );
    assert!(ran.err.contains("did you mean `failback`?"), "{}", ran.err);
    // Verbs that need the configuration say the same.
    let create = scratch.twinadm(&["--node", "kvm-a", "create-md", "vm-web"]);
    assert_eq!((create.code, create.id()), (3, "E0103"));
    // One file of the directory is judged in its place.
    let file = scratch
        .path("etc/resources.d/vm-web.toml")
        .display()
        .to_string();
    assert_eq!(scratch.twinadm(&["check", &file]).code, 3);
}

#[test]
fn a_missing_configuration_names_the_file() {
    let ran = Scratch::new().twinadm(&["check"]);
    assert_eq!((ran.code, ran.id()), (3, "E0101"), "{ran:?}");
    assert!(ran.err.contains("twinblk.toml"));
}

#[test]
fn dump_reads_back_equal_in_both_formats() {
    let scratch = Scratch::with_resource(4 * MIB);
    let toml = scratch.twinadm(&["dump", "--show-defaults"]);
    assert_eq!(toml.code, 0, "{toml:?}");
    scratch.write("again.toml", &toml.out);
    let again = scratch.path("again.toml").display().to_string();
    assert_eq!(scratch.twinadm(&["check", &again]).code, 0);
    let json = scratch.twinadm(&["dump", "--format", "json"]);
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(value["node"]["arb"]["role"], "arbitrator");
    assert_eq!(value["resource"]["vm-web"]["volume"][0]["size"], "4MiB");
    assert_eq!(value["net"]["tls"], "off");
    assert!(value["net"].get("timeout").is_none(), "a default");
}

// --- create-md ------------------------------------------------------------------------------

const CREATE: [&str; 4] = ["--node", "kvm-a", "create-md", "vm-web"];

#[test]
fn create_md_makes_a_missing_file_and_proves_a_sparse_disk() {
    let scratch = Scratch::with_resource(4 * MIB);
    let ran = scratch.twinadm(&CREATE);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(
        ran.err.contains("vm-web/0 on kvm-a: metadata made"),
        "{}",
        ran.err
    );
    let bytes = fs::read(scratch.path("a.md")).unwrap();
    let page = |index: usize| -> [u8; PAGE_LEN] {
        let at = usize::try_from(SUPERBLOCK_OFFSETS[index].0).unwrap();
        bytes[at..at + PAGE_LEN].try_into().unwrap()
    };
    let superblock = probe(&page(0), &page(1)).unwrap();
    assert_eq!(superblock.resource, ResourceId::of_name("vm-web"));
    assert_eq!(
        (superblock.node, superblock.state),
        (NodeId::A, ReplicaState::Blank)
    );
    assert_eq!(superblock.size.bytes().0, 4 * MIB);
    assert!(superblock.zero_proven && !superblock.unwritten_bits_set);
    assert_eq!(bytes.len() as u64, superblock.layout().unwrap().total().0);
    let mode = fs::metadata(scratch.path("a.md")).unwrap().mode();
    assert_eq!(mode & 0o077, 0, "metadata are nobody else's business");
}

#[test]
fn create_md_does_not_take_a_written_disk_for_zeroes() {
    let scratch = Scratch::with_resource(4 * MIB);
    let mut disk = fs::OpenOptions::new()
        .write(true)
        .open(scratch.path("a.img"))
        .unwrap();
    disk.write_all(b"data").unwrap();
    let ran = scratch.twinadm(&[&["-o", "json"][..], &CREATE].concat());
    let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["zero_proven"], false);
    assert_eq!(value["size_bytes"], 4 * MIB);
}

#[test]
fn create_md_refuses_metadata_of_ours_unless_forced() {
    let scratch = Scratch::with_resource(4 * MIB);
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    let first = fs::read(scratch.path("a.md")).unwrap();
    let again = scratch.twinadm(&CREATE);
    assert_eq!((again.code, again.id()), (4, "E0401"), "{again:?}");
    assert_eq!(
        fs::read(scratch.path("a.md")).unwrap(),
        first,
        "nothing was touched"
    );
    assert_eq!(
        scratch.twinadm(&[&CREATE[..], &["--force"]].concat()).code,
        0
    );
    assert_ne!(
        fs::read(scratch.path("a.md")).unwrap(),
        first,
        "another replica"
    );
}

#[test]
fn create_md_never_touches_foreign_data() {
    let scratch = Scratch::with_resource(4 * MIB);
    for (len, at) in [(MIB, 1080), (8 * MIB, 7 * MIB), (8 * MIB, 0), (100, 50)] {
        let mut foreign = vec![0; usize::try_from(len).unwrap()];
        foreign[usize::try_from(at).unwrap()] = 0x53;
        scratch.write("a.md", &foreign);
        for force in [&[][..], &["--force"]] {
            let ran = scratch.twinadm(&[&CREATE[..], force].concat());
            assert_eq!((ran.code, ran.id()), (4, "E0402"), "{len} {at}: {ran:?}");
        }
        assert_eq!(fs::read(scratch.path("a.md")).unwrap(), foreign);
    }
}

#[test]
fn create_md_uses_an_existing_file_only_if_it_is_zero_and_large_enough() {
    let scratch = Scratch::with_resource(4 * MIB);
    scratch.sparse("a.md", 4096);
    let small = scratch.twinadm(&CREATE);
    assert_eq!((small.code, small.id()), (4, "E0403"), "{small:?}");
    scratch.sparse("a.md", 2 * MIB);
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    assert_eq!(fs::metadata(scratch.path("a.md")).unwrap().len(), 2 * MIB);
}

#[test]
fn create_md_wants_the_disk_there_and_large_enough() {
    let scratch = Scratch::with_resource(4 * MIB - 1);
    let small = scratch.twinadm(&CREATE);
    assert_eq!((small.code, small.id()), (3, "E0117"), "{small:?}");
    assert!(small.err.contains("but `size` is 4MiB"), "{}", small.err);
    fs::remove_file(scratch.path("a.img")).unwrap();
    let missing = scratch.twinadm(&CREATE);
    assert_eq!((missing.code, missing.id()), (1, "E0410"), "{missing:?}");
    assert!(!scratch.path("a.md").exists(), "nothing was left behind");
}

#[test]
fn create_md_without_a_size_takes_the_disk_in_whole_blocks() {
    let scratch = Scratch::with_resource(4 * MIB + 100);
    scratch.write("etc/resources.d/vm-web.toml", scratch.resource(""));
    let ran = scratch.twinadm(&[&["-o", "json"][..], &CREATE].concat());
    let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["size_bytes"], 4 * MIB);
}

#[test]
fn create_md_refuses_what_is_locked() {
    let scratch = Scratch::with_resource(4 * MIB);
    assert_eq!(scratch.twinadm(&CREATE).code, 0);
    let file = fs::File::open(scratch.path("a.md")).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let ran = scratch.twinadm(&[&CREATE[..], &["--force"]].concat());
    assert_eq!((ran.code, ran.id()), (4, "E0404"), "{ran:?}");
    drop(lock);
}

#[test]
fn create_md_knows_which_node_and_resource_there_are() {
    let scratch = Scratch::with_resource(4 * MIB);
    let cases = [
        (&["--node", "kvm-x", "create-md", "vm-web"][..], 7, "E0702"),
        (&["--node", "arb", "create-md", "vm-web"], 4, "E0414"),
        (&["--node", "kvm-a", "create-md", "vm-x"], 7, "E0701"),
        (&["--node", "kvm-a", "create-md", "vm-web/3"], 7, "E0703"),
    ];
    for (line, code, id) in cases {
        let ran = scratch.twinadm(line);
        assert_eq!((ran.code, ran.id()), (code, id), "{line:?}: {ran:?}");
    }
}

#[test]
fn create_md_dry_run_says_what_it_would_do_and_does_nothing() {
    let scratch = Scratch::with_resource(4 * MIB);
    let ran = scratch.twinadm(&[&["-n"][..], &CREATE].concat());
    assert_eq!(ran.code, 14, "{ran:?}");
    assert!(
        ran.out.starts_with("vm-web/0 on kvm-a: make the file "),
        "{}",
        ran.out
    );
    assert!(!scratch.path("a.md").exists());
}
