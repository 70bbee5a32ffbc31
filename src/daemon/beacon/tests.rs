//! Three nodes of one process over real UDP on loopback, with real stores; the shard is a list.

use super::super::resources::Resources;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, OnceLock};

use replicator::types::{NodeId, ReplicaId, Role, ViewNumber, VoterId};

use super::*;
use crate::config::{FileKind, SourceFile, parse};
use crate::controller::{
    Configured, ControllerSettings, EngineReport, Order, ReplicaFacts, Timing,
};
use crate::daemon::api::ShardHandle;
use crate::daemon::board::Board;
use crate::daemon::history::History;
use crate::daemon::listeners::Keeper;
use crate::daemon::mailbox::Mailbox;
use crate::daemon::node::CONTROLLER_INPUTS_MAX;
use crate::daemon::store_thread::{self, STORE_REQUESTS_MAX};
use crate::daemon::voter_store::{StoreIdentity, VoterStore};

/// Longer than anything here takes, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// A shard that only remembers what it was told.
#[derive(Default)]
struct Told {
    commands: Mutex<Vec<ShardCommand>>,
    turns: AtomicU64,
    hangs: AtomicBool,
}

impl ShardHandle for Told {
    fn send(&self, command: ShardCommand) {
        self.commands.lock().unwrap().push(command);
    }

    fn wake(&self) {
        if !self.hangs.load(Ordering::Relaxed) {
            self.turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

struct Lab {
    nodes: Vec<Arc<Node>>,
    shards: Vec<Arc<Told>>,
    threads: Vec<JoinHandle<()>>,
    dir: PathBuf,
}

impl Lab {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("twinblk-{name}-{}", std::process::id()));
        let sockets = [0; 3].map(|_: i32| UdpSocket::bind("127.0.0.1:0").unwrap());
        let addresses = [0, 1, 2].map(|index: usize| vec![sockets[index].local_addr().unwrap()]);
        let mut lab = Self {
            nodes: Vec::new(),
            shards: Vec::new(),
            threads: Vec::new(),
            dir,
        };
        for (id, socket) in NodeId::ALL.into_iter().zip(sockets) {
            lab.start_node(id, Carrier::new(vec![socket], &addresses).unwrap());
        }
        lab
    }

    fn start_node(&mut self, id: NodeId, carrier: Carrier) {
        let file = SourceFile {
            kind: FileKind::Cluster,
            path: "lab.toml".to_owned(),
            text: CONFIG.to_owned(),
        };
        let mut config = parse(&[file]).expect("the configuration holds").config;
        let identity = StoreIdentity {
            cluster: "lab".to_owned(),
            node: config.node_name(id).to_owned(),
            fresh_voter: VoterId(u128::from(id.raw()) + 1),
        };
        let store = VoterStore::open(&self.dir.join(&identity.node), &identity).unwrap();
        let settings = ControllerSettings {
            node: id,
            cluster: 9,
            voter: store.node().voter,
            boot_id: u128::from(id.raw()) + 100,
            incarnation: store.node().incarnation,
            timing: Timing::FAST,
            has_arbitrator: true,
            seed: u128::from(id.raw()) + 7,
            configured: config
                .resources
                .iter()
                .map(|it| Configured::usual(it.id()))
                .collect(),
            stored: Vec::new(),
        };
        let controller = Controller::new(settings, clock::now()).unwrap();
        let shard = Arc::new(Told::default());
        let node = Arc::new(Node {
            program_path: PathBuf::new(),
            keeper: Keeper::of_this_process(false),
            program: "test",
            started: 0.0,
            node: id,
            run_dir: self.dir.clone(),
            history: History::in_memory(),
            state_dir: PathBuf::new(),
            automation: crate::daemon::automation::AutomationFile::in_memory(),
            placement: crate::daemon::placement::PlacementFile::in_memory(),
            board: Board::default(),
            ended: Mailbox::new(1).unwrap(),
            controller: Mailbox::new(CONTROLLER_INPUTS_MAX).unwrap(),
            store: Arc::new(Mailbox::new(STORE_REQUESTS_MAX).unwrap()),
            shard: OnceLock::from(Arc::clone(&shard) as Arc<dyn ShardHandle>),
            config_dir: PathBuf::new(),
            resources: Resources::new(std::mem::take(&mut config.resources)),
            adjusting: Mutex::new(()),
            hangups: AtomicBool::new(false),
            orders: AtomicU64::new(1),
            relays: Arc::default(),
            knocks: Arc::new(Mailbox::new(1).unwrap()),
            security: None,
            config,
        });
        let requests = Arc::clone(&node.store);
        self.threads
            .push(store_thread::start(store, requests, NodeSink(Arc::clone(&node))).unwrap());
        self.threads
            .push(start(Arc::clone(&node), controller, carrier).unwrap());
        self.nodes.push(node);
        self.shards.push(shard);
    }

    fn tell(&self, node: usize, report: EngineReport) {
        let resource = self.nodes[node].resources.all()[0].id();
        self.nodes[node].tell_controller(Input::Engine { resource, report });
    }

    fn order(&self, node: usize, what: Order) -> crate::controller::Done {
        let node = &self.nodes[node];
        let outcome = node.order(&node.resources.all()[0], what, PATIENCE, || true);
        outcome.expect("an answer").expect("no refusal")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.controller.push(ControllerRequest::Stop).ok();
            node.store.push(StoreRequest::Stop).ok();
        }
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

fn blank(replica: u128) -> EngineReport {
    EngineReport::Replica(ReplicaFacts {
        replica: ReplicaId(replica),
        size_blocks: 64,
        eligible: true,
        blank: true,
        lost_volatile: false,
        unclean: false,
        doubtful: false,
        behind: false,
    })
}

/// Story: three fresh nodes find each other, one is made Primary, its peer catches up and is
/// added, and from then on the peer's acks keep the Primary's lease alive.
#[test]
fn three_fresh_nodes_found_a_register_and_lease_it_over_real_sockets() {
    let lab = Lab::start("three-nodes");
    for node in &lab.nodes {
        let seen = node.board.wait(PATIENCE, |board| {
            board
                .node
                .as_ref()
                .filter(|it| it.voters_seen == 3)
                .map(|_| ())
        });
        assert!(seen.is_some(), "{} does not see all", node.name());
    }
    for (node, replica) in [(0, 50), (1, 51)] {
        lab.order(node, Order::Up);
        lab.tell(node, blank(replica));
    }
    let founded = lab.order(0, Order::Primary);
    assert!(!founded.already);
    lab.tell(
        0,
        EngineReport::SessionUp {
            peer_replica: Some(ReplicaId(51)),
        },
    );
    lab.tell(0, EngineReport::ResyncDone);
    // The shard is asked to prepare the Add; this one is always ready.
    let view = poll_until(|| {
        let told = lab.shards[0].commands.lock().unwrap();
        told.iter().find_map(|command| match command {
            ShardCommand::Engine { input, .. } => match **input {
                EngineInput::BeginAdd { view } => Some(view),
                _ => None,
            },
            _ => None,
        })
    });
    assert!(view > founded.view);
    lab.tell(
        0,
        EngineReport::AddPrepared {
            view,
            replica: ReplicaId(51),
        },
    );
    let both = |node: &Arc<Node>| {
        let resource = node.resources.all()[0].id();
        node.board.wait(PATIENCE, |board| {
            let view = board.resource(resource).controller.as_ref()?.view?;
            (view.in_sync.a && view.in_sync.b).then_some(view.number)
        })
    };
    let committed: Vec<Option<ViewNumber>> = lab.nodes[..2].iter().map(both).collect();
    assert_eq!(
        committed[0], committed[1],
        "both know the view with both in sync"
    );
    assert!(committed[0].is_some());
    let lease = lab.nodes[0].resources.leases().remove(0);
    let first = poll_until(|| Some(lease.load(Ordering::Acquire)).filter(|until| *until > 0));
    poll_until(|| (lease.load(Ordering::Acquire) > first).then_some(()));
    assert!(
        Instant(lease.load(Ordering::Acquire)) > clock::now(),
        "it is renewed in time"
    );
    let configured = lab.nodes[0].resources.all();
    let status = lab.nodes[0].board.read(|board| {
        crate::daemon::status::assemble(
            lab.nodes[0].place(&configured),
            board,
            Node::moment(),
            None,
        )
    });
    assert_eq!(status.resources[0].in_sync, ["kvm-a", "kvm-b"]);
    assert_eq!(
        status.resources[0].role,
        Some(Role::Secondary),
        "no engine said otherwise"
    );
}

#[test]
fn a_panic_of_an_essential_thread_ends_the_process() {
    let lab = Lab::start("panic");
    let sink = NodeSink(Arc::clone(&lab.nodes[0]));
    let thread = thread::spawn(move || {
        let _owned = sink;
        panic!("as if an invariant did not hold");
    });
    assert!(thread.join().is_err());
    assert!(lab.nodes[0].board.read(|board| board.fatal.is_some()));
    assert!(lab.nodes[1].board.read(|board| board.fatal.is_none()));
}

/// What `look` finds within the patience of this test.
fn poll_until<T>(look: impl Fn() -> Option<T>) -> T {
    let deadline = clock::now().plus(PATIENCE);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::now() < deadline, "it did not happen");
        thread::yield_now();
    }
}

#[test]
fn a_data_path_that_hangs_ends_its_process_and_no_other() {
    let lab = Lab::start("hang");
    lab.shards[0].hangs.store(true, Ordering::Relaxed);
    let why = lab.nodes[0]
        .board
        .wait(PATIENCE, |board| board.fatal.clone());
    assert!(why.expect("it is noticed").contains("has not moved"));
    assert_eq!(lab.nodes[1].board.read(|board| board.fatal.clone()), None);
}

/// Story: `primary --timeout 1h` is passed on by another node, and who typed it gave up.
#[test]
fn an_order_that_nobody_waits_for_keeps_no_place() {
    let lab = Lab::start("nobody-waits");
    let node = &lab.nodes[0];
    // So that it does not end by itself.
    node.controller.push(ControllerRequest::Stop).unwrap();
    let begin = clock::now();
    let mut looks = 0;
    let hour = Duration::from_secs(3600);
    let outcome = node.order(&node.resources.all()[0], Order::Primary, hour, || {
        looks += 1;
        looks < 3
    });
    assert!(outcome.is_none());
    assert!(clock::now().since(begin) < PATIENCE);
}
