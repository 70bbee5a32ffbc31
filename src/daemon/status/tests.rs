//! What `status` says in each phase of a resource's life on this node.

use std::sync::Arc;
use std::time::Duration;

use replicator::engine::Progress;
use replicator::types::{
    BlockCount, DataGeneration, InSync, ResourceId, ResyncRate, ViewCause, ViewNumber, VoterSet,
};

use super::*;
use crate::config::{FileKind, SourceFile, parse};
use crate::controller;
use crate::daemon::api::NbdClient;

const CONFIG: &str = r#"
config-version = 1
[cluster]
name = "lab"
[net]
tls = "off"
[node.kvm-a]
address = ["127.0.0.1:1"]
[node.kvm-b]
address = ["127.0.0.1:2"]
[node.arb]
role = "arbitrator"
address = ["127.0.0.1:3"]
[resource.vm]
[[resource.vm.volume]]
id = 0
disk = { kvm-a = "/d/a", kvm-b = "/d/b" }
meta = { kvm-a = "/m/a", kvm-b = "/m/b" }
"#;

const NOW: Moment = Moment {
    now: Instant(100_000_000_000),
    unix_millis: 1_000_000_000_000,
};

fn vm() -> ResourceId {
    ResourceId::of_name("vm")
}

fn status_of(node: NodeId, board: &BoardState) -> Status {
    status_with(CONFIG, node, board)
}

fn status_with(config: &str, node: NodeId, board: &BoardState) -> Status {
    let file = SourceFile {
        kind: FileKind::Cluster,
        path: "lab.toml".to_owned(),
        text: config.to_owned(),
    };
    let config = parse(&[file]).expect("the configuration holds").config;
    let resources: Vec<_> = config.resources.iter().cloned().map(Arc::new).collect();
    let place = Place {
        resources: &resources,
        config: &config,
        node,
        run_dir: Path::new("/run/twinblk"),
    };
    assemble(place, board, NOW, None)
}

fn view() -> View {
    View {
        number: ViewNumber(7),
        primary: NodeId::A,
        in_sync: InSync::only(NodeId::A),
        data_generation: DataGeneration(1),
        replicas: [None; 2],
        voters: VoterSet::default(),
        size_blocks: 256,
        held: false,
        lossy: false,
        forced: false,
        cause: ViewCause::TookOver,
    }
}

fn known_to_the_controller(up: bool) -> controller::ResourceSnapshot {
    controller::ResourceSnapshot {
        up,
        activated: up,
        view: Some(view()),
        lease_remaining: None,
        lease_lapsed: false,
        may_promote: false,
        blockers: Vec::new(),
        proposal: None,
        last_abort: None,
        peer: None,
        peer_well_since: None,
        move_blocker: None,
    }
}

fn serving() -> ResourceSnapshot {
    ResourceSnapshot {
        engine: Snapshot {
            role: Role::Primary,
            disk: DiskState::UpToDate,
            connection: ConnectionState::Connected,
            disconnected_at: None,
            refused: None,
            replication: ReplicationState::SyncSource,
            peer_role: Role::Secondary,
            peer_disk: DiskState::Inconsistent,
            view: ViewNumber(7),
            out_of_sync_blocks: 6,
            resync: Some(Progress {
                total_blocks: 10,
                done_blocks: 4,
                copied_blocks: 3,
                same_blocks: 1,
                rule: Some(Rule::NoLineage),
                full: true,
                began: Instant(98_000_000_000),
                ended: None,
            }),
            sync_paused: false,
            peer_sync_paused: false,
            resync_rate: ResyncRate::Auto,
            throttled: None,
            resync_pace: None,
            invalidate_pending: false,
            invalidations: 0,
            verify: None,
            verifies_begun: 0,
            held: None,
            room: None,
            grow: None,
            suspension: None,
            size_blocks: Some(BlockCount(256).0),
            rtt: Some(Duration::from_micros(41)),
            lag_bytes: 0,
            lag_since: None,
            inflight: 0,
            counters: Counters::default(),
        },
        at: NOW.now,
        nbd_clients: vec![NbdClient {
            forwarded: false,
            pid: Some(5),
            uid: Some(0),
            address: None,
            place: 0,
        }]
        .into(),
        io_backend: Some("io_uring"),
        attach_error: None,
        volumes: Vec::new(),
        failed_place: None,
    }
}

#[test]
fn a_configured_resource_that_is_not_up_is_listed_with_nothing_known() {
    let status = status_of(NodeId::A, &BoardState::default());
    let vm = &status.resources[0];
    assert!(!vm.up);
    assert_eq!((vm.role, vm.volumes[0].disk), (None, None));
    assert_eq!(vm.volumes[0].export, None);
    assert_eq!(vm.volumes[0].disk_path.as_deref(), Some("/d/a"));
    assert_eq!(vm.problem, None, "not up is no problem: it was so ordered");
}

#[test]
fn a_resource_that_is_coming_up_serves_nothing_yet() {
    let mut board = BoardState::default();
    board.resource(vm()).controller = Some(known_to_the_controller(true));
    let status = status_of(NodeId::A, &board);
    let vm = &status.resources[0];
    assert!(vm.up);
    assert_eq!(vm.role, Some(Role::Secondary));
    assert_eq!(vm.volumes[0].disk, Some(DiskState::Diskless));
    assert_eq!(
        vm.volumes[0].size_bytes,
        Some(256 * BLOCK_LEN),
        "from the view"
    );
}

/// Primary, with a client and a resync.
pub(in crate::daemon) fn of_a_serving_primary() -> Status {
    let mut board = BoardState::default();
    let known = board.resource(vm());
    known.presence = Presence::Running;
    known.controller = Some(known_to_the_controller(true));
    known.note_shard(Some(serving()));
    status_of(NodeId::A, &board)
}

#[test]
fn a_serving_primary_tells_its_export_its_clients_and_the_resync() {
    let status = of_a_serving_primary();
    let vm = &status.resources[0];
    assert_eq!((vm.role, vm.view), (Some(Role::Primary), Some(7)));
    assert_eq!(vm.in_sync, ["kvm-a"]);
    let volume = &vm.volumes[0];
    assert_eq!(
        volume.export.as_deref(),
        Some("nbd+unix:///vm?socket=/run/twinblk/nbd/vm.sock")
    );
    assert_eq!(volume.nbd_clients, 1);
    let peer = &vm.peers[0].volumes[0];
    assert_eq!(peer.out_of_sync_bytes, Some(6 * BLOCK_LEN));
    let resync = peer.resync.as_ref().expect("it runs");
    assert_eq!(
        (resync.done_bytes, resync.total_bytes),
        (4 * 4096, 10 * 4096)
    );
    assert_eq!(
        resync.rate_bytes_per_second,
        Some(2 * BLOCK_LEN),
        "4 blocks in 2 s"
    );
    assert_eq!(peer.last_resync.copied_bytes, 3 * BLOCK_LEN);
    assert_eq!(peer.last_resync.ended, None);
    assert_eq!(vm.problem.as_deref(), Some("W0107"));
}

/// Of 100 and 156 blocks; the resync has reached the second.
fn of_two_volumes(change: impl FnOnce(&mut ResourceSnapshot)) -> Status {
    let config = CONFIG.replace("id = 0", "id = 0\nsize = \"400KiB\"")
        + "[[resource.vm.volume]]\nid = 3\ndisk = { kvm-a = \"/d/log\", kvm-b = \"/d/b-log\" }\n";
    let mut snapshot = serving();
    let traffic = |writes| Traffic {
        writes,
        ..Traffic::default()
    };
    snapshot.volumes = vec![
        VolumeSnapshot {
            start: BlockIndex(0),
            size_blocks: 100,
            marked_blocks: 0,
            traffic: traffic(5),
        },
        VolumeSnapshot {
            start: BlockIndex(100),
            size_blocks: 156,
            marked_blocks: 6,
            traffic: traffic(7),
        },
    ];
    snapshot.engine.counters.superblock_writes = 9;
    change(&mut snapshot);
    let mut board = BoardState::default();
    let known = board.resource(vm());
    known.presence = Presence::Running;
    known.controller = Some(known_to_the_controller(true));
    known.note_shard(Some(snapshot));
    status_with(&config, NodeId::A, &board)
}

#[test]
fn each_of_several_volumes_says_its_own_and_what_is_the_resources_is_said_once() {
    let report = |end| VerifyReport {
        differing_blocks: 3,
        ranges: vec![BlockRange::new(BlockIndex(99), BlockCount(3))],
        end,
        ..VerifyReport::default()
    };
    let status = of_two_volumes(|snapshot| {
        let client = NbdClient {
            place: 1,
            ..snapshot.nbd_clients[0].clone()
        };
        snapshot.nbd_clients = vec![client].into();
        snapshot.engine.verify = Some(report(Some((NOW.now, VerifyEnd::Done))));
    });
    let [data, log] = status.resources[0].volumes.as_slice() else {
        panic!("two volumes");
    };
    assert_eq!((data.volume, log.volume), (0, 3));
    assert_eq!(data.size_bytes, Some(100 * BLOCK_LEN));
    assert_eq!(log.size_bytes, Some(156 * BLOCK_LEN));
    assert_eq!(log.disk_path.as_deref(), Some("/d/log"));
    assert_eq!(
        log.export.as_deref(),
        Some("nbd+unix:///vm/3?socket=/run/twinblk/nbd/vm.sock")
    );
    assert_eq!((data.nbd_clients, log.nbd_clients), (0, 1));
    let counts = [data, log].map(|it| it.statistics.expect("attached"));
    assert_eq!(counts.map(|it| it.writes), [5, 7]);
    assert_eq!(counts.map(|it| it.superblock_writes), [9, 0]);
    let [data, log] = status.resources[0].peers[0].volumes.as_slice() else {
        panic!("two volumes");
    };
    assert_eq!(data.out_of_sync_bytes, Some(0));
    assert_eq!(log.out_of_sync_bytes, Some(6 * BLOCK_LEN));
    assert!(
        data.resync.is_none() && log.resync.is_some(),
        "it is there now"
    );
    let found = [data, log].map(|it| it.last_verify.clone().expect("both have some"));
    assert_eq!(
        found.each_ref().map(|it| it.differing_bytes),
        [3 * BLOCK_LEN, 0]
    );
    let places = found.map(|it| (it.ranges[0].offset_bytes, it.ranges[0].len_bytes));
    assert_eq!(places, [(99 * BLOCK_LEN, BLOCK_LEN), (0, 2 * BLOCK_LEN)]);
}

#[test]
fn of_several_disks_the_one_that_failed_is_shown() {
    for (engine, other) in [
        (DiskState::Failed, DiskState::Detaching),
        (DiskState::Diskless, DiskState::Diskless),
    ] {
        let status = of_two_volumes(|snapshot| {
            snapshot.engine.disk = engine;
            snapshot.failed_place = Some(1);
        });
        let vm = &status.resources[0];
        let disks = vm.volumes.iter().map(|it| it.disk);
        assert!(disks.eq([other, DiskState::Failed].map(Some)));
        let said = vm.status.as_deref().expect("a problem");
        assert!(said.contains("Failed (volume 3, /d/log)"), "{said}");
    }
}

/// Before the shard said anything, and of a resource that is down.
#[test]
fn the_sizes_of_several_volumes_are_known_from_the_view() {
    let config = CONFIG.replace("id = 0", "id = 0\nsize = \"400KiB\"")
        + "[[resource.vm.volume]]\nid = 1\ndisk = \"/d/log\"\n";
    let mut board = BoardState::default();
    board.resource(vm()).controller = Some(known_to_the_controller(false));
    let status = status_with(&config, NodeId::A, &board);
    let sizes = status.resources[0].volumes.iter().map(|it| it.size_bytes);
    assert!(sizes.eq([Some(100 * BLOCK_LEN), Some(156 * BLOCK_LEN)]));
}

/// Story: `secondary` was ordered, and the session is being made anew.
#[test]
fn a_session_that_just_ended_is_no_problem_until_a_second_is_over() {
    let after = |millis: u64| {
        let mut snapshot = serving();
        snapshot.engine.role = Role::Secondary;
        snapshot.engine.connection = ConnectionState::Connecting;
        snapshot.engine.replication = ReplicationState::Off;
        snapshot.engine.peer_disk = DiskState::DUnknown;
        snapshot.engine.resync = None;
        snapshot.engine.disconnected_at = Some(Instant(NOW.now.0 - millis * 1_000_000));
        let mut board = BoardState::default();
        let known = board.resource(vm());
        known.presence = Presence::Running;
        known.controller = Some(known_to_the_controller(true));
        known.note_shard(Some(snapshot));
        status_of(NodeId::A, &board).resources[0].problem.clone()
    };
    assert_eq!(after(500), None);
    assert_eq!(after(1_500).as_deref(), Some("W0108"));
}

#[test]
fn a_voter_store_that_takes_nothing_is_a_problem_on_every_node() {
    for node in [NodeId::A, NodeId::ARBITRATOR] {
        let mut board = BoardState::default();
        let before = status_of(node, &board).cluster.problems;
        board.store_error = Some("no space left on device".to_owned());
        let cluster = status_of(node, &board).cluster;
        assert_eq!(cluster.problems, before + 1);
        assert_eq!(
            cluster.store_error.as_deref(),
            Some("no space left on device")
        );
    }
}

#[test]
fn the_end_of_a_resync_is_a_date_and_what_is_held_a_word() {
    let mut board = BoardState::default();
    let mut snapshot = serving();
    if let Some(progress) = &mut snapshot.engine.resync {
        progress.ended = Some(Instant(99_000_000_000));
    }
    snapshot.engine.held = Some(HeldReason::Lease);
    let known = board.resource(vm());
    known.presence = Presence::Running;
    known.note_shard(Some(snapshot));
    let status = status_of(NodeId::A, &board);
    let peer = &status.resources[0].peers[0].volumes[0];
    assert_eq!(peer.resync, None);
    assert_eq!(
        peer.last_resync.ended.as_deref(),
        Some("2001-09-09T01:46:39Z")
    );
    assert_eq!(status.resources[0].suspended.as_deref(), Some("quorum"));
}

#[test]
fn a_held_and_limited_resync_says_both() {
    let mut snapshot = serving();
    let rate = NonZeroU64::new(250 << 20).expect("not 0");
    snapshot.engine.replication = ReplicationState::PausedSyncS;
    snapshot.engine.sync_paused = true;
    snapshot.engine.resync_rate = ResyncRate::BytesPerSecond(rate);
    snapshot.engine.resync_pace = Some(rate.get());
    let mut board = BoardState::default();
    let known = board.resource(vm());
    known.presence = Presence::Running;
    known.note_shard(Some(snapshot));
    let vm = &status_of(NodeId::A, &board).resources[0];
    let resync = vm.peers[0].volumes[0].resync.as_ref().expect("it runs");
    assert_eq!(resync.held.as_deref(), Some("paused:user"));
    assert_eq!(resync.limit_bytes_per_second, Some(rate.get()));
    assert_eq!(resync.eta_seconds, None);
    assert_eq!(vm.resync_limit_bytes_per_second, Some(rate.get()));
    assert!(vm.sync_paused && !vm.peers[0].sync_paused);
    assert_eq!(vm.problem.as_deref(), Some("W0139"));
}

#[test]
fn a_resync_that_makes_room_for_guests_says_what_they_feel_and_when_it_ends() {
    for (felt, words) in [
        (14_400, "throttled:guest-latency 14ms"),
        (1_250, "throttled:guest-latency 1.2ms"),
    ] {
        let mut snapshot = serving();
        snapshot.engine.throttled = Some(Duration::from_micros(felt));
        let mut board = BoardState::default();
        let known = board.resource(vm());
        known.presence = Presence::Running;
        known.note_shard(Some(snapshot));
        let vm = &status_of(NodeId::A, &board).resources[0];
        let resync = vm.peers[0].volumes[0].resync.as_ref().expect("it runs");
        assert_eq!(resync.held.as_deref(), Some(words));
        assert_eq!(vm.problem.as_deref(), Some("W0107"), "not held");
    }
}

#[test]
fn the_arbitrator_has_no_resources_and_sees_itself() {
    let status = status_of(NodeId::ARBITRATOR, &BoardState::default());
    assert!(status.resources.is_empty());
    assert_eq!(status.node, "arb");
    assert_eq!(status.cluster.voters, 3);
}
