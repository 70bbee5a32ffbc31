//! The clients people use, against a served volume.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::cluster::{A, B, Cluster, RES, Setup};
use crate::nbd::Nbd;
use crate::tools::{have, hold_for, now, program, skip};

/// `nbdinfo` sees the export under its name, its size, and what it can do.
#[test]
fn nbdinfo_shows_the_export() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    let text = program("nbdinfo", &["--json", &cluster.nbd_uri(A)]).ok();
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 64 << 20);
    for ability in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_multi_conn",
    ] {
        assert_eq!(export[ability], true, "{ability}");
    }
    assert_eq!(export["is_read_only"], false);
    let socket = cluster.nbd_socket(A);
    let listed = program(
        "nbdinfo",
        &[
            "--list",
            "--json",
            &format!("nbd+unix:///?socket={}", socket.display()),
        ],
    )
    .ok();
    assert_eq!(
        listed.matches("\"export-name\"").count(),
        1,
        "each volume once: {listed}"
    );
    assert!(listed.contains("vm-web"));
}

/// Backup reads by a name of its own, which `status` shows and LIST does not, and cannot write by it.
#[test]
fn a_backup_reads_by_an_export_that_cannot_be_written() {
    if !have(&["nbdinfo", "qemu-img", "qemu-io"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup {
        resource: "read-only-export = true\n",
        ..Setup::default()
    });
    qemu_io(&cluster.nbd_uri(A), &["write -P 0x77 1M 64k", "flush"]);
    let status = cluster.status(A).unwrap();
    let uri = status["volumes"][0]["export_read_only"].as_str().unwrap();
    let info = program("nbdinfo", &["--json", uri]).ok();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(
        (&export["is_read_only"], &export["can_trim"]),
        (&true.into(), &false.into())
    );
    let socket = cluster.nbd_socket(A);
    let all = format!("nbd+unix:///?socket={}", socket.display());
    let listed = program("nbdinfo", &["--list", "--json", &all]).ok();
    assert_eq!(listed.matches("\"export-name\"").count(), 1, "{listed}");
    program("qemu-io", &["-f", "raw", uri, "-c", "write 0 4k"]).exits(1);
    let copy = cluster.dir.join("backup");
    let copied = [
        "convert",
        "-f",
        "raw",
        "-O",
        "raw",
        uri,
        copy.to_str().unwrap(),
    ];
    program("qemu-img", &copied).ok();
    let copy = fs::read(copy).unwrap();
    assert!(
        copy[1 << 20..(1 << 20) + (64 << 10)]
            .iter()
            .all(|it| *it == 0x77)
    );
}

/// An unknown export and a node that may not serve are refused at once, with words.
#[test]
fn unknown_exports_and_secondaries_refuse_at_once() {
    if !have(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    let unknown = cluster.nbd_uri(A).replace("vm-web?", "other?");
    let begun = now();
    for uri in [&unknown, &cluster.nbd_uri(B)] {
        assert!(!program("nbdinfo", &[uri]).exits(1).is_empty());
        program("qemu-img", &["info", "-f", "raw", uri]).exits(1);
    }
    assert!(begun.elapsed().as_secs() < 4, "took {:?}", begun.elapsed());
}

/// A client that says nothing, and one that says it byte by byte, are gone ten seconds after they
/// came; one that is attached may be silent for as long as it likes.
#[test]
fn a_slow_handshake_ends_after_ten_seconds() {
    let cluster = Cluster::serving(&Setup::default());
    let limit = Duration::from_secs(20);
    let mut attached = Nbd::attach(&cluster.nbd_socket(A), RES, limit).unwrap();
    let connect = || {
        let stream = UnixStream::connect(cluster.nbd_socket(A)).unwrap();
        stream.set_read_timeout(Some(limit)).unwrap();
        stream
    };
    let (begun, mut silent, mut slow) = (now(), connect(), connect());
    // Unknown options without data, one after the other.
    let options = b"IHAVEOPT\0\0\0\x63\0\0\0\0".iter().cycle();
    let mut bytes = [0, 0, 0, 3].iter().chain(options);
    hold_for(Duration::from_secs(9), || {
        let sent = slow.write(&[*bytes.next().unwrap()]);
        assert!(sent.is_ok(), "closed after {:?}", begun.elapsed());
    });
    let mut told = Vec::new();
    silent.read_to_end(&mut told).unwrap();
    assert_eq!(told.len(), 18, "the greeting");
    // What it had said last may not have been read: then the end is a reset.
    drop(slow.read_to_end(&mut told));
    let took = begun.elapsed();
    assert!((9..12).contains(&took.as_secs()), "took {took:?}");
    attached.read(0, 512).unwrap();
}

/// A file copied in and out again by libnbd's and by QEMU's tools is the same file.
#[test]
fn what_is_copied_in_comes_out_the_same() {
    if !have(&["nbdcopy", "qemu-img"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    let source = patchwork(&cluster, 64 << 20);
    let back = cluster.dir.join("back");
    let (from, to, uri) = (
        source.to_str().unwrap(),
        back.to_str().unwrap(),
        cluster.nbd_uri(A),
    );
    program("nbdcopy", &["--flush", from, &uri]).ok();
    program("nbdcopy", &[&uri, to]).ok();
    assert!(
        fs::read(&source).unwrap() == fs::read(&back).unwrap(),
        "nbdcopy"
    );

    program(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", from, &uri],
    )
    .ok();
    program(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", from, &uri],
    )
    .ok();
    program("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, to]).ok();
    assert!(
        fs::read(&source).unwrap() == fs::read(&back).unwrap(),
        "qemu-img"
    );
    let mut cluster = cluster;
    cluster.kill(A);
    cluster.kill(B);
    assert!(
        fs::read(cluster.disk(A)).unwrap() == fs::read(cluster.disk(B)).unwrap(),
        "replicas"
    );
}

/// Holes, data and what a lost peer lacks are told as they are.
#[test]
fn block_status_tells_holes_data_and_what_the_peer_lacks() {
    if !have(&["nbdinfo", "qemu-io", "qemu-img"]) {
        return;
    }
    let mut cluster = Cluster::serving(&Setup::default());
    let uri = cluster.nbd_uri(A);
    assert_eq!(map(&uri, "base:allocation"), [(0, 64 << 20, 3)]);
    qemu_io(&uri, &["write -P 1 4M 1M", "write -P 2 8M 64k", "flush"]);
    let written = [
        (0, 4 << 20, 3),
        (4 << 20, 1 << 20, 0),
        (5 << 20, 3 << 20, 3),
        (8 << 20, 64 << 10, 0),
        ((8 << 20) + (64 << 10), (56 << 20) - (64 << 10), 3),
    ];
    assert_eq!(map(&uri, "base:allocation"), written);
    // The same through extended headers and one extent at a time.
    let text = program("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).ok();
    let ranges: serde_json::Value = serde_json::from_str(&text).unwrap();
    let data = |range: &serde_json::Value| range["data"] == true;
    let ranges: Vec<_> = ranges
        .as_array()
        .unwrap()
        .iter()
        .filter(|r| data(r))
        .collect();
    assert_eq!(ranges.len(), 2, "{text}");
    assert_eq!(ranges[0]["start"], 4 << 20);
    assert_eq!(ranges[1]["length"], 64 << 10);

    qemu_io(&uri, &["discard 4M 1M", "flush"]);
    let after = map(&uri, "base:allocation");
    assert_eq!(after[0], (0, 8 << 20, 3), "a trim makes a hole: {after:?}");
    assert_eq!(map(&uri, "twinblk:dirty"), [(0, 64 << 20, 0)]);

    cluster.kill(B);
    qemu_io(&uri, &["write -P 3 32M 128k", "flush"]);
    let dirty = map(&uri, "twinblk:dirty");
    let marked = |(start, len, status): &(u64, u64, u64)| {
        *status == 1 && *start <= 32 << 20 && start + len >= (32 << 20) + (128 << 10)
    };
    assert!(dirty.iter().any(marked), "{dirty:?}");
    assert!(dirty.iter().any(|(_, _, status)| *status == 0), "{dirty:?}");
}

/// What `nbdinfo --map` prints for a context: start, length and status of each extent.
fn map(uri: &str, context: &str) -> Vec<(u64, u64, u64)> {
    let text = program("nbdinfo", &[&format!("--map={context}"), "--json", uri]).ok();
    let extents: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let field = |extent: &serde_json::Value, name: &str| extent[name].as_u64().unwrap();
    let row = |e: &serde_json::Value| (field(e, "offset"), field(e, "length"), field(e, "type"));
    extents.iter().map(row).collect()
}

fn qemu_io(uri: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw", uri];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    let said = program("qemu-io", &arguments).ok();
    assert!(!said.contains("failed"), "{said}");
}

/// Trim, zeroes and odd offsets through qemu-io, checked by patterns.
#[test]
fn qemu_io_trims_zeroes_and_writes_at_odd_offsets() {
    if !have(&["qemu-io"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    let commands = [
        "write -P 0x11 0 64k",
        "write -P 0x22 4000 200",
        "read -P 0x11 0 4000",
        "read -P 0x22 4000 200",
        "read -P 0x11 4200 4k",
        "write -z 8k 8k",
        "read -P 0 8k 8k",
        "discard 16k 16k",
        "write -f -P 0x33 20k 512",
        "read -P 0x33 20k 512",
        "flush",
    ];
    qemu_io(&cluster.nbd_uri(A), &commands);
}

/// fio's nbd engine writes and verifies at depth.
#[test]
fn fio_verifies_what_it_wrote() {
    if !have(&["fio"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    let uri = cluster.nbd_uri(A);
    let said = program(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--bs_unaligned=0",
            "--iodepth=16",
            "--size=16m",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=7",
        ],
    )
    .ok();
    assert!(said.contains("err= 0"), "{said}");
}

/// A file with data, zeroes and more data: 4 MiB of each in turn.
fn patchwork(cluster: &Cluster, len: usize) -> PathBuf {
    let path = cluster.dir.join("source");
    let mut state = 1_u32;
    let mut bytes = vec![0_u8; len];
    for part in bytes.chunks_mut(8 << 20) {
        for byte in part.iter_mut().take(4 << 20) {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = state.to_le_bytes()[3];
        }
    }
    fs::write(&path, bytes).unwrap();
    path
}

/// libnbd's own API, from Python: asynchronous commands, flags, and errors as errors.
#[test]
fn libnbd_from_python_sees_what_the_specification_says() {
    const SCRIPT: &str = r#"
import nbd, os, sys
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
assert h.get_size() == 64 << 20
assert h.can_multi_conn() and h.can_fua() and h.can_fast_zero() and h.can_df()
data = os.urandom(100_000)
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(len(data), 12345) == data
h.zero(50_000, 20_000, nbd.CMD_FLAG_NO_HOLE)
h.trim(4096, 1 << 20)
assert h.pread(50_000, 20_000) == bytes(50_000)
h.flush()
# Many in flight, answered in any order.
bufs = [nbd.Buffer.from_bytearray(bytearray(os.urandom(4096))) for _ in range(64)]
cookies = [h.aio_pwrite(b, (2 << 20) + n * 4096) for n, b in enumerate(bufs)]
while cookies:
    cookies = [c for c in cookies if not h.aio_command_completed(c)]
    if cookies:
        h.poll(-1)
for n, b in enumerate(bufs):
    assert h.pread(4096, (2 << 20) + n * 4096) == b.to_bytearray()
extents = []
h.block_status(64 << 20, 0, lambda context, offset, entries, error: extents.extend(entries) or 0)
assert sum(extents[0::2]) > 0
h.set_strict_mode(0)
for wrong, errno in ((lambda: h.pread(4096, 64 << 20), "EINVAL"),
                     (lambda: h.pwrite(bytes(4096), 64 << 20), "ENOSPC")):
    try:
        wrong()
    except nbd.Error as error:
        assert error.errno == errno, error
    else:
        raise AssertionError("beyond the end")
h.shutdown()
"#;
    let python = "/usr/bin/python3";
    let probe = std::process::Command::new(python)
        .args(["-c", "import nbd"])
        .output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        skip("python3-libnbd is not installed");
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    program(python, &["-c", SCRIPT, &cluster.nbd_uri(A)]).ok();
}

/// nbdkit as a client between us and others, QEMU's benchmark, and its map of the disk.
#[test]
fn nbdkit_and_the_rest_of_qemu_img_work_too() {
    if !have(&["nbdkit", "qemu-img", "nbdcopy"]) {
        return;
    }
    let cluster = Cluster::serving(&Setup::default());
    let uri = cluster.nbd_uri(A);
    let source = patchwork(&cluster, 64 << 20);
    let copy = format!("nbdcopy --connections=4 {} \"$uri\"", source.display());
    let through = ["-U", "-", "nbd", &uri, "--run", &copy];
    program("nbdkit", &through).ok();
    let path = source.display().to_string();
    program(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &path, &uri],
    )
    .ok();
    let map = program("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).ok();
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let mapped: u64 = map
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["length"].as_u64().unwrap())
        .sum();
    assert_eq!(mapped, 64 << 20);
    for write in [true, false] {
        let mut words = vec![
            "bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096", "-t", "none",
        ];
        words.extend(write.then_some("-w"));
        words.push(&uri);
        program("qemu-img", &words).ok();
    }
}
