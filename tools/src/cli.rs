//! The words of the command line. A verb that is not built is not here, and so refused as unknown.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use replicator::admin::MaxRate;
use twinblk::config::Rate;

use crate::demo::DemoArgs;
use crate::selector::{Selector, one_resource, one_volume, whole_resource, with_peer, with_volume};

/// Exit codes, at the end of every help text and man page.
pub const EXIT_CODES: &str = "\
Exit codes: 0 ok, 1 operation failed, 2 usage, 3 configuration invalid, 4 refused by a safety rule, \
5 no quorum or lease not granted, 6 peer or daemon unreachable, 7 no such resource, node or guest, \
8 permission, 9 timed out waiting, 12 status --check: degraded, 13 --check: data unavailable or \
held, 14 --dry-run: changes pending, 130 interrupted.";

/// Looks after twinblk: replicated volumes for KVM guests.
#[derive(Clone, Debug, Parser)]
#[command(name = "twinadm", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take the text for the program's")]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Directory of twinblk.toml and resources.d [default: /etc/twinblk]
    #[arg(short = 'C', long, global = true, value_name = "DIR")]
    pub config: Option<PathBuf>,
    /// Directory of the daemon's control.sock
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/run/twinblk"
    )]
    pub run_dir: PathBuf,
    /// The node the verb is about, reached through the daemon here [default: that daemon's node]
    #[arg(long, global = true, value_name = "NODE")]
    pub node: Option<String>,
    /// Only say what would change; exit 14 if anything would
    #[arg(short = 'n', long, global = true)]
    pub dry_run: bool,
    /// Form of the output
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "plain",
        value_name = "FORM"
    )]
    pub output: OutputForm,
    /// Colour of messages on a terminal
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "WHEN"
    )]
    pub color: ColorChoice,
    /// No messages but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// More detail; repeat for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How long to wait, such as 30s or 2m
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Answer yes to questions
    #[arg(short, long, global = true)]
    pub yes: bool,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// For people.
    Plain,
    /// For programs.
    Json,
}

/// When messages are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set or TERM=dumb.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// One verb.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Run a pair and an arbitrator here, hurt the Primary, prove that nothing was lost
    Demo(DemoArgs),
    /// Begin a cluster here: make its authority and this node's keys, and print a token for each other
    /// node
    ///
    /// Once, on one node. The authority's key stays in `keys` of the state directory, mode 0600. Each
    /// token, one a line on stdout, lets the node it is for join within 15 minutes, while the daemon here runs.
    Init(Init),
    /// Join the cluster by a token of `init`: make this node's key and have it certified
    ///
    /// The node that issued the token is known by its authority's fingerprint, which is in it. The key
    /// that is made here never leaves this node.
    Join(Join),
    /// Remove this node's keys; refused while a resource is up here
    Leave(Leave),
    /// Make the metadata of this node's replica; no daemon needed
    CreateMd(CreateMd),
    /// Show all that this node's metadata holds, whole or damaged; only reads it
    DumpMd(Volumes),
    /// Show what decides whose data are newest, and what this node's replica would claim
    ShowGi(Volumes),
    /// Erase this node's metadata, and with it what the replica knows; the data stay
    WipeMd(Volumes),
    /// Make this node's damaged metadata whole; what it may have said is marked out of sync
    RepairMd(Volumes),
    /// Attach, connect and export resources
    Up(Resources),
    /// Stop exporting, disconnect and detach resources; a Primary is demoted first
    Down(Forceable),
    /// Attach the backing device
    Attach(Volumes),
    /// Let go of the backing device
    Detach(Volumes),
    /// Connect to the peer
    Connect(Peers),
    /// Disconnect from the peer, and stay so
    Disconnect(Peers),
    /// Hold resyncs of the resources, until `resume-sync` on the same node or its daemon's end;
    /// writes are replicated all the same, and a resync that guests wait for runs on
    PauseSync(Resources),
    /// Let resyncs of the resources go on, unless the other node holds them too
    ResumeSync(Resources),
    /// Make a volume larger while it is used, after its disks were extended on both nodes
    ///
    /// Any node may be asked. Both disks must have the room (`lvextend`, or `truncate -s` for a file),
    /// and so must the metadata (a file is lengthened by itself). What is new is zeroed on both, so
    /// nothing is resynced and no guest waits; then the view has the new size. Whatever fails in
    /// between, the volume has the old size or the new one, and the order can be given again. NBD
    /// clients see the new size when they connect again; docs/metadata.md says how for guests.
    Resize(Resize),
    /// Hold writes to the resources and make all that was written durable on both disks, so that
    /// snapshots of them can be taken; reads go on
    ///
    /// Given to the Primary. When it returns with 0, nothing is under way, and the backing device of
    /// every replica in sync holds the same, on stable storage. Writes wait until `resume-io`, or
    /// until the node is not Primary any more, whatever the reason; they are not let go on by
    /// themselves. `secondary`, `down` and `move` are refused meanwhile. A guest that waits too long
    /// for its disk may notice: keep it short.
    SuspendIo(Resources),
    /// Let writes to the resources go on
    ///
    /// It says so if they were not held any more, because another node became Primary meanwhile:
    /// snapshots taken since `suspend-io` may then not be equal.
    ResumeIo(Resources),
    /// Set how fast resyncs of the resources may go, on both nodes, until they are down
    Resync(Resync),
    /// Compare both replicas while they are used; the Primary does it, and tells in `status`
    Verify(Verify),
    /// Throw this Secondary's data away and copy everything from the peer
    Invalidate(Invalidate),
    /// Throw the peer's data away and copy everything from this node: `invalidate`, from the other
    /// side
    InvalidateRemote(InvalidateRemote),
    /// Serve the resources from this node
    ///
    /// It waits for what may still come: voters, the first word of the peer, the end of its lease. What
    /// waiting does not mend is refused.
    ///
    /// With --force this node serves over the data it has where nothing better can be had: the node
    /// with the newer data, or the other voters, are gone for good. It says first what that gives up, and
    /// does it only when the resource's name is typed. What is made then is another history: a replica
    /// of the old one is refused when it returns, and kept, until `split-brain resolve`. While the other
    /// node is heard as Primary nothing is forced.
    #[command(visible_alias = "promote")]
    Primary(Primary),
    /// Two replicas with different histories: look at both, give one of them up
    #[command(subcommand)]
    SplitBrain(SplitBrain),
    /// Stop serving the resources; no node promotes itself until `primary` or `up`
    #[command(visible_alias = "demote")]
    Secondary(Forceable),
    /// Take over what was changed in the files, without an interruption where that can be
    Adjust(Adjust),
    /// Make NODE the Primary in place of the other node, in one order; NBD clients of the old Primary
    /// are dropped and find the new one by connecting again
    ///
    /// Any node may be asked. What was acknowledged is made durable on both replicas first, then NODE
    /// takes over at once: no lease is waited for, and no order by hand holds afterwards. The old
    /// Primary stays up as Secondary. If NODE does not take over within the time that an unplanned
    /// takeover needs, the old Primary serves again and the exit code is 9.
    Move(Move),
    /// Take a node out of service, or back into it
    #[command(subcommand)]
    Node(NodeVerb),
    /// Keep both data nodes from taking anything over by themselves, or let them again
    ///
    /// While it is on, nothing changes its place but by hand: no node takes over, and one that stops hands
    /// nothing over. What a node serves it goes on serving, and serves again after a restart; leases and
    /// quorum count as ever. Each node keeps it across restarts. Told to both data nodes; with --node to
    /// that one alone.
    Maintenance(Maintenance),
    /// Say that NODE is dead, powered off or cut from its disks: the other node need not wait for it
    ///
    /// It ends the wait for what NODE was promised (its lease), so that a takeover comes at once. Refused
    /// while NODE is heard, forgotten as soon as it is. If NODE runs all the same, two nodes may serve.
    ConfirmFenced(ConfirmFenced),
    /// Start the daemon's program again in its place, for instance after an upgrade; guests run on
    ///
    /// The program on the disk says first whether it would start with the files of now; if not, nothing
    /// happens. Then everything acknowledged is made durable and NBD clients are cut off without an error:
    /// who reconnects waits in the listening sockets, which stay. Give guests a reconnect delay. Waits
    /// until this node, or its peer, serves again what it served. With --node, the daemon of that node.
    /// Refused while clients reach the Primary through this node: they would not be let in again.
    Reexec,
    /// Show how everything is
    Status(Status),
    /// Say why a node is Primary or is not: what must hold, what does not, and what helps
    ///
    /// The node itself answers, from the very checks by which it decides.
    Why(Why),
    /// Look at the voters
    #[command(subcommand)]
    Quorum(Quorum),
    /// Say what would happen, by a dry run on the live state
    #[command(subcommand)]
    WhatIf(WhatIf),
    /// Show what was decided about a resource, when, by whom and why
    ///
    /// As the node that answers noted it, on its own clock; the other one is asked with --node. Kept
    /// across restarts, in `history.log` of the state directory.
    History(History),
    /// Show the role of this node
    Role(OneResource),
    /// Show the state of the connection, one line a peer
    Cstate(OneResource),
    /// Show the disk states local/peer, one line a volume
    Dstate(OneResource),
    /// Wait until the peer is connected
    WaitConnect(OneResource),
    /// Wait until both replicas are up to date
    WaitSync(OneResource),
    /// Show the states as a stream of events
    Events2(Events2),
    /// Measure, and compare what was measured
    #[command(subcommand)]
    Bench(Bench),
    /// Things about guests
    #[command(subcommand)]
    Guest(Guest),
    /// Print the configuration in its canonical form
    Dump(Dump),
    /// Check a configuration and report every mistake at once
    Check(Check),
    /// Print the versions of this program and of the daemon
    Version,
    /// Print completions for a shell
    Completions(Completions),
    /// Write the man pages into a directory
    Man(Man),
}

/// Where the daemon of this node keeps what it must not lose.
#[derive(Clone, Debug, Args)]
pub struct StateDir {
    /// The daemon's state directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/twinblk")]
    pub state_dir: PathBuf,
}

/// `init`.
#[derive(Clone, Debug, Args)]
pub struct Init {
    /// The cluster's name, as in [cluster] name
    #[arg(
        value_name = "NAME",
        required_unless_present = "token",
        conflicts_with = "token"
    )]
    pub cluster: Option<String>,
    /// Only print one more token, for this node, where `init` was run
    #[arg(long, value_name = "NODE")]
    pub token: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take the text for the verb's")]
    pub state_dir: StateDir,
}

/// `join`.
#[derive(Clone, Debug, Args)]
pub struct Join {
    /// The token, or `-` to read it from standard input
    #[arg(value_name = "TOKEN")]
    pub token: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take the text for the verb's")]
    pub state_dir: StateDir,
}

/// `leave`.
#[derive(Clone, Debug, Args)]
pub struct Leave {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would take the text for the verb's")]
    pub state_dir: StateDir,
}

/// Resources.
#[derive(Clone, Debug, Args)]
pub struct Resources {
    /// A resource, or `all`
    #[arg(required = true, value_name = "RES", value_parser = whole_resource)]
    pub resources: Vec<Selector>,
}

/// `resync`.
#[derive(Clone, Debug, Args)]
pub struct Resync {
    /// A resource, or `all`
    #[arg(required = true, value_name = "RES", value_parser = whole_resource)]
    pub resources: Vec<Selector>,
    /// A rate such as 250MiB/s or `auto`, both less while guests feel it; or `unlimited`, whatever
    /// they feel
    #[arg(long, required = true, value_name = "RATE", value_parser = max_rate)]
    pub max_rate: MaxRate,
}

/// `resize`.
#[derive(Clone, Debug, Args)]
pub struct Resize {
    /// A resource; of several volumes the last one, RES/VOL
    #[arg(value_name = "RES[/VOL]", value_parser = one_volume)]
    pub resource: Selector,
    /// The volume's size afterwards, such as 50GiB [default: as large as both disks allow]
    #[arg(long, value_name = "SIZE", value_parser = twinblk::config::parse_size)]
    pub size: Option<u64>,
}

/// `bench`.
#[derive(Clone, Debug, Subcommand)]
pub enum Bench {
    /// Measure a disk without twinblk: latencies and rates that no volume on it can pass
    ///
    /// What exists is only read: a device or file loses nothing. If PATH does not exist, a file is made
    /// there, written to, read and removed, so name one on the filesystem in question. Past the page
    /// cache (O_DIRECT), the same places in every run; no daemon needed. Holes of a sparse file are read
    /// faster than data.
    Disk(BenchDisk),
    /// Show two results of `--export-json` beside each other
    Compare(BenchCompare),
}

/// `bench disk`.
#[derive(Clone, Debug, Args)]
pub struct BenchDisk {
    /// A device or file, which is only read, or a file to be made
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// How long each case is measured
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub time: Duration,
    /// Size of the file that is made
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = bench_size)]
    pub size: u64,
    /// Write the result as JSON, too
    #[arg(long, value_name = "FILE")]
    pub export_json: Option<PathBuf>,
    /// Write the result as Markdown, too
    #[arg(long, value_name = "FILE")]
    pub export_markdown: Option<PathBuf>,
}

/// `bench compare`.
#[derive(Clone, Debug, Args)]
pub struct BenchCompare {
    /// The first result
    #[arg(value_name = "A.json")]
    pub first: PathBuf,
    /// The second one
    #[arg(value_name = "B.json")]
    pub second: PathBuf,
}

/// `adjust`.
#[derive(Clone, Debug, Args)]
pub struct Adjust {
    /// A resource [default: all, and what belongs to the cluster]
    #[arg(value_name = "RES", value_parser = whole_resource)]
    pub resource: Option<Selector>,
}

/// `verify`.
#[derive(Clone, Debug, Args)]
pub struct Verify {
    /// A resource, or `all`
    #[arg(required = true, value_name = "RES", value_parser = whole_resource)]
    pub resources: Vec<Selector>,
    /// Write what differs again, as it is on the Primary
    #[arg(long, conflicts_with = "stop")]
    pub repair: bool,
    /// Stop the one that runs
    #[arg(long)]
    pub stop: bool,
    /// Wait for its end; exit 1 if the replicas differ
    #[arg(long, conflicts_with = "stop")]
    pub wait: bool,
}

/// `invalidate`.
#[derive(Clone, Debug, Args)]
pub struct Invalidate {
    /// A resource
    #[arg(value_name = "RES", value_parser = one_resource)]
    pub resource: Selector,
    /// The node whose data are kept
    #[arg(long, value_name = "PEER")]
    pub from: String,
    /// Lose what only this replica has, of at most this size, or all of it
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true,
          default_missing_value = "all", value_parser = discard)]
    pub yes_discard: Option<u64>,
}

/// `invalidate-remote`.
#[derive(Clone, Debug, Args)]
pub struct InvalidateRemote {
    /// A resource
    #[arg(value_name = "RES", value_parser = one_resource)]
    pub resource: Selector,
    /// The node whose data are thrown away
    #[arg(long, value_name = "PEER")]
    pub peer: String,
    /// Lose what only that replica has, of at most this size, or all of it
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true,
          default_missing_value = "all", value_parser = discard)]
    pub yes_discard: Option<u64>,
}

/// `primary`.
#[derive(Clone, Debug, Args)]
pub struct Primary {
    /// A resource, or `all`
    #[arg(required = true, value_name = "RES", value_parser = whole_resource)]
    pub resources: Vec<Selector>,
    /// Serve whatever the view and the voters say, over the data that are here
    #[arg(long)]
    pub force: bool,
    /// The resource and the view as told: what --force gives up may be lost
    #[arg(
        long,
        value_name = "RES@VIEW",
        require_equals = true,
        requires = "force"
    )]
    pub yes_lose: Option<String>,
}

/// `split-brain`.
#[derive(Clone, Debug, Subcommand)]
pub enum SplitBrain {
    /// Show what each side holds that the other may lack
    Show(OneResource),
    /// Keep the data of one node and throw the other's away: `invalidate`, on the side that loses
    Resolve(Resolve),
}

/// `split-brain resolve`.
#[derive(Clone, Debug, Args)]
pub struct Resolve {
    /// A resource
    #[arg(value_name = "RES", value_parser = one_resource)]
    pub resource: Selector,
    /// The node whose data are kept; it must be Primary
    #[arg(long, value_name = "NODE")]
    pub keep: String,
    /// Lose what only the other replica has, of at most this size, or all of it
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true,
          default_missing_value = "all", value_parser = discard)]
    pub yes_discard: Option<u64>,
}

/// Resources, with force.
#[derive(Clone, Debug, Args)]
pub struct Forceable {
    /// A resource, or `all`
    #[arg(required = true, value_name = "RES", value_parser = whole_resource)]
    pub resources: Vec<Selector>,
    /// Drop NBD clients that are attached
    #[arg(long)]
    pub force: bool,
}

/// `move`.
#[derive(Clone, Debug, Args)]
pub struct Move {
    /// A resource, or `all`
    #[arg(value_name = "RES", value_parser = whole_resource)]
    pub resource: Selector,
    /// The data node that is to be Primary; any node may be asked
    #[arg(value_name = "NODE")]
    pub to: String,
}

/// `node`.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeVerb {
    /// Put NODE in standby and move all it serves to the other node, one resource after the other
    ///
    /// In standby it takes nothing over by itself, across restarts too, until `node resume`; its replicas
    /// are kept in sync. What cannot be moved stays, is named with its reason, and the exit code is 4.
    Drain(WhichNode),
    /// End the standby of NODE; what was moved away stays where it is
    Resume(WhichNode),
}

/// A node.
#[derive(Clone, Debug, Args)]
pub struct WhichNode {
    /// A data node; any node may be asked
    #[arg(value_name = "NODE")]
    pub which: String,
}

/// `maintenance`.
#[derive(Clone, Debug, Args)]
pub struct Maintenance {
    /// Whether
    #[arg(value_enum, value_name = "on|off")]
    pub switch: Switch,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Nothing is taken over.
    On,
    /// As ever.
    Off,
}

/// `confirm-fenced`.
#[derive(Clone, Debug, Args)]
pub struct ConfirmFenced {
    /// The node that is dead
    #[arg(value_name = "NODE")]
    pub dead: String,
}

/// `why`.
#[derive(Clone, Debug, Args)]
pub struct Why {
    /// A resource
    #[arg(value_name = "RES")]
    pub resource: String,
    /// The node to ask about [default: the one that answers]
    #[arg(value_name = "NODE")]
    pub about: Option<String>,
}

/// `quorum`.
#[derive(Clone, Debug, Subcommand)]
pub enum Quorum {
    /// Show who votes, who is seen, what this voter recorded, and what the deadlines mean
    Show,
}

/// `what-if`.
#[derive(Clone, Debug, Subcommand)]
pub enum WhatIf {
    /// If a node died now: which resources would move where, after how long, or why not
    Kill(WhatIfKill),
}

/// `what-if kill`.
#[derive(Clone, Debug, Args)]
pub struct WhatIfKill {
    /// The node that would be dead; any node may be asked
    #[arg(value_name = "NODE")]
    pub dead: String,
}

/// `history`.
#[derive(Clone, Debug, Args)]
pub struct History {
    /// A resource
    #[arg(value_name = "RES")]
    pub resource: String,
    /// Only the newest so many
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub last: u32,
}

/// Resources or volumes.
#[derive(Clone, Debug, Args)]
pub struct Volumes {
    /// A resource or one of its volumes, or `all`
    #[arg(required = true, value_name = "RES[/VOL]", value_parser = with_volume)]
    pub volumes: Vec<Selector>,
}

/// Resources or connections.
#[derive(Clone, Debug, Args)]
pub struct Peers {
    /// A resource or one of its peers, or `all`
    #[arg(required = true, value_name = "RES[:PEER]", value_parser = with_peer)]
    pub peers: Vec<Selector>,
}

/// `guest`.
#[derive(Clone, Debug, Subcommand)]
pub enum Guest {
    /// Print the disk element that gives the resource to a libvirt domain; no daemon needed
    Xml(OneResource),
}

/// One resource.
#[derive(Clone, Debug, Args)]
pub struct OneResource {
    /// A resource
    #[arg(value_name = "RES")]
    pub resource: String,
}

/// `create-md`.
#[derive(Clone, Debug, Args)]
pub struct CreateMd {
    /// A resource or one of its volumes, or `all`
    #[arg(required = true, value_name = "RES[/VOL]", value_parser = with_volume)]
    pub volumes: Vec<Selector>,
    /// Forget metadata of ours that is there already, and with it what this replica knows
    #[arg(long)]
    pub force: bool,
}

/// `status`.
#[derive(Clone, Debug, Args)]
pub struct Status {
    /// One resource
    #[arg(value_name = "RES")]
    pub resource: Option<String>,
    /// JSON: our schema, or the shape of `drbdsetup status --json`
    #[arg(long, value_enum, value_name = "SCHEMA", num_args = 0..=1, require_equals = true,
          default_missing_value = "twinblk")]
    pub json: Option<StatusSchema>,
    /// Keep showing it: redrawn on a terminal, else one line a change
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true,
          default_missing_value = "1s", value_parser = duration)]
    pub watch: Option<Duration>,
    /// Only resources with a problem
    #[arg(long)]
    pub problems: bool,
    /// Exit 12 if anything is degraded, 13 if data is unavailable or held
    #[arg(long)]
    pub check: bool,
    /// One line and exit code for Nagios and the like
    #[arg(long, conflicts_with_all = ["json", "watch", "check"])]
    pub nagios: bool,
}

/// Schema of `status --json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusSchema {
    /// `twinblk.status/1`.
    Twinblk,
    /// `drbdsetup status --json`.
    Drbd9,
}

/// `events2`.
#[derive(Clone, Debug, Args)]
pub struct Events2 {
    /// One resource
    #[arg(value_name = "RES")]
    pub resource: Option<String>,
    /// Stop after the snapshot
    #[arg(long)]
    pub now: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Begin each line with the time
    #[arg(long)]
    pub timestamps: bool,
    /// Show changed states as OLD->NEW
    #[arg(long)]
    pub diff: bool,
    /// Show every state of a changed object; every line does
    #[arg(long)]
    pub full: bool,
    /// Add sizes and counters
    #[arg(long)]
    pub statistics: bool,
}

/// `dump`.
#[derive(Clone, Debug, Args)]
pub struct Dump {
    /// Format
    #[arg(long, value_enum, default_value = "toml")]
    pub format: DumpFormat,
    /// Print keys that have their default value too
    #[arg(long)]
    pub show_defaults: bool,
}

/// Format of `dump`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DumpFormat {
    /// As the configuration is written.
    Toml,
    /// For programs.
    Json,
}

/// `check`.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// A configuration directory or one file of it [default: the configuration directory]
    #[arg(value_name = "FILE|DIR")]
    pub file: Option<PathBuf>,
}

/// `completions`.
#[derive(Clone, Debug, Args)]
pub struct Completions {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// `man`.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// An existing directory
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `30s`, `2m`, `500ms`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    twinblk::config::parse_duration(text)
}

/// The largest blocks that are measured are of 1 MiB.
fn bench_size(text: &str) -> Result<u64, String> {
    match twinblk::config::parse_size(text)? {
        0..0x10_0000 => Err("at least 1MiB".to_owned()),
        size => Ok(size),
    }
}

/// A size, or `all`.
fn discard(text: &str) -> Result<u64, String> {
    match text {
        "all" => Ok(u64::MAX),
        size => twinblk::config::parse_size(size),
    }
}

fn max_rate(text: &str) -> Result<MaxRate, String> {
    twinblk::config::parse_rate(text).map(|rate| match rate {
        Rate::Auto => MaxRate::Auto,
        Rate::Unlimited => MaxRate::Unlimited,
        Rate::BytesPerSecond(rate) => MaxRate::BytesPerSecond(rate),
    })
}

#[cfg(test)]
mod tests;
