//! Every error and warning users can meet: stable id, exit code, and what to do next in general.
//!
//! An id keeps its meaning for ever; a retired one is never given to something else. The text of a
//! report is written where it happens, with its own numbers; the next step here is what holds in
//! every case of that id.

use super::report::exit;

macro_rules! catalogue {
    ($($(#[doc = $doc:literal])+ $variant:ident = $code:literal, $exit:expr, [$($next:literal),+ $(,)?];)+) => {
        /// One kind of error or warning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ErrorId { $($(#[doc = $doc])+ $variant),+ }

        impl ErrorId {
            /// All of them, by id.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable id: `E` (an error) or `W` (a warning) and four digits.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            /// What it means in general, a sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii()),+ }
            }

            /// Exit code of a command that ends with it.
            #[must_use]
            pub fn exit(self) -> u8 {
                match self { $(Self::$variant => $exit),+ }
            }

            /// What to do next, whatever the case; never empty.
            #[must_use]
            pub fn next(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &[$($next),+]),+ }
            }
        }
    };
}

catalogue! {
    /// A configuration file or directory cannot be read.
    ConfigUnreadable = "E0101", exit::CONFIG,
        ["name the right directory with --config DIR, or make the file readable"];
    /// A file is not TOML.
    ConfigSyntax = "E0102", exit::CONFIG,
        ["mend the marked place; docs/examples has a whole configuration"];
    /// A key nobody reads.
    UnknownKey = "E0103", exit::CONFIG, ["remove the key or correct its spelling"];
    /// A string where a table was expected, and the like.
    WrongType = "E0104", exit::CONFIG, ["write the value in the form the message names"];
    /// A key without which nothing works is missing.
    MissingKey = "E0105", exit::CONFIG, ["add the key"];
    /// The right type but no possible value.
    BadValue = "E0106", exit::CONFIG, ["write one of the values the message names"];
    /// Degraded: a resync is under way.
    Resyncing = "W0107", exit::DEGRADED, ["none; it continues by itself"];
    /// Degraded: no connection to the peer.
    PeerAway = "W0108", exit::DEGRADED, ["bring the peer or the link to it back"];
    /// Degraded: the local replica is not attached or not up to date.
    LocalDiskAway = "W0109", exit::DEGRADED, ["twinadm attach RES, after mending the disk"];
    /// `config-version` is of another program.
    ConfigVersion = "E0110", exit::CONFIG, ["write config-version = 1, or install a newer twinblk"];
    /// A resource, volume or node is defined twice.
    DefinedTwice = "E0111", exit::CONFIG, ["keep one of the definitions"];
    /// One address for two nodes, or twice for one.
    AddressTwice = "E0112", exit::CONFIG, ["give each node its own IP:port"];
    /// Clear text beyond loopback was not asked for twice.
    TlsOffNotAllowed = "E0113", exit::CONFIG, [
        "use loopback addresses only, or write insecure = true on a dedicated network",
    ];
    /// TLS is required, and this node has no keys.
    TlsKeysMissing = "E0114", exit::CONFIG, [
        "on the first node: twinadm init CLUSTER; on each other one: twinadm join TOKEN",
        "to try things out on one machine: [net] tls = \"off\" with loopback addresses",
    ];
    /// NBD over TCP has no certificates.
    NbdCertificates = "E0120", exit::CONFIG, [
        "put ca-cert.pem, server-cert.pem and server-key.pem where [nbd] tls-dir says (docs/nbd.md has the commands), or listen on a loopback address, or write listen = \"\"",
    ];
    /// A node name nobody configured.
    UnknownNode = "E0115", exit::CONFIG, ["name one of the configured data nodes"];
    /// Two volumes, or data and metadata, on one device.
    DeviceTwice = "E0116", exit::CONFIG, ["give each volume and each metadata area its own device"];
    /// A backing device is smaller than the volume.
    DeviceTooSmall = "E0117", exit::CONFIG, ["enlarge the device, or write a smaller `size`"];
    /// Two resource names with one id.
    ResourceIdClash = "E0118", exit::CONFIG, ["rename one of the two resources"];
    /// Valid, but this version cannot do it.
    NotInThisVersion = "E0119", exit::CONFIG, ["write the value the message names"];
    /// Acknowledged writes could be lost by an automatic takeover.
    ProtocolALossy = "E0121", exit::CONFIG, ["protocol = \"C\""];
    /// The keys of this node are damaged, or those of another node, cluster or time.
    KeysUnusable = "E0123", exit::CONFIG, [
        "twinadm leave here, then twinadm join with a new token (twinadm init --token NODE on the first node)",
    ];
    /// The nodes of a cluster do not make one.
    ClusterShape = "E0122", exit::CONFIG, ["configure two data nodes and at most one arbitrator"];
    /// Two data nodes, no third voter.
    NoArbitrator = "W0130", exit::OK, [
        "add a [node.NAME] with role = \"arbitrator\" on any third machine",
    ];
    /// A key is accepted but changes nothing yet.
    NoEffectYet = "W0131", exit::OK, ["nothing; it is kept for the version that uses it"];
    /// Clear text beyond loopback.
    Insecure = "W0132", exit::OK, ["keep that network to the cluster alone"];
    /// Both nodes on one machine with one path.
    SharedPath = "W0133", exit::OK, ["give each node its own path: { NODE = \"...\", NODE = \"...\" }"];
    /// A key that counts for a whole resource stands beside another volume than the first.
    NoEffectHere = "W0134", exit::OK, ["write it beside volume 0, or leave it out"];
    /// Degraded: the peer's replica is not up to date and no resync runs.
    PeerDiskAway = "W0136", exit::DEGRADED, ["look at the other node: twinadm status RES there"];
    /// Degraded: made Primary by force, and the other replica's data of before are nowhere else.
    Forced = "W0141", exit::DEGRADED, ["bring the other node back, then: twinadm split-brain show RES"];
    /// The node is in standby: it takes nothing over by itself.
    Standby = "W0142", exit::DEGRADED, ["twinadm node resume NODE"];
    /// Maintenance is on: the node takes nothing over by itself.
    Maintenance = "W0143", exit::DEGRADED, ["twinadm maintenance off"];
    /// The third voter is not heard of.
    ArbitratorLost = "W0137", exit::DEGRADED, ["bring the arbitrator or the link to it back"];
    /// The node's votes cannot be recorded, so it has none.
    StoreUnwritable = "W0138", exit::DEGRADED, [
        "free space on the disk of the state directory, or mend it, then restart the daemon",
    ];
    /// Degraded: a resync waits, because an operator holds it.
    SyncPaused = "W0139", exit::DEGRADED, ["twinadm resume-sync RES"];
    /// The guest does not run, or not as it should.
    GuestTrouble = "W0145", exit::DEGRADED, ["twinadm status RES says why; virsh domstate DOMAIN --reason"];

    /// Guests' writes wait, because an operator suspended them.
    WritesSuspended = "W0150", exit::UNAVAILABLE, ["twinadm resume-io RES, once the snapshots are taken"];
    /// A volume was resized since, and the files say another `size`.
    SizeDiffers = "W0151", exit::OK, ["write the volume's size into the files of both nodes"];
    /// Degraded: the last verify found differences that were not mended.
    VerifyFound = "W0140", exit::DEGRADED, [
        "if the Primary's copy is the good one: twinadm verify RES --repair",
    ];
    /// Data that only this replica has would be lost.
    WouldDiscard = "E0203", exit::REFUSED, [
        "if they may be lost, say how much: twinadm invalidate RES --from PEER --yes-discard=SIZE",
    ];
    /// The two replicas have different histories: both served apart, and one must be given up.
    Diverged = "E0301", exit::DEGRADED, ["twinadm split-brain show RES"];
    /// Metadata of ours is there already.
    MetadataExists = "E0401", exit::REFUSED, [
        "keep it; or, if this replica's data may be forgotten: twinadm create-md RES --force",
    ];
    /// Something of others is on the device.
    ForeignSignature = "E0402", exit::REFUSED, [
        "name another device, or wipe this one yourself if nothing on it is needed",
    ];
    /// The metadata area cannot hold what it must.
    MetadataTooSmall = "E0403", exit::REFUSED, ["enlarge it, or name a path that does not exist yet"];
    /// Another process holds the device.
    DeviceInUse = "E0404", exit::REFUSED, ["twinadm down RES, then try again"];
    /// The resource is not up.
    NotUp = "E0405", exit::REFUSED, ["twinadm up RES"];
    /// No metadata of ours where it should be.
    NoMetadata = "E0406", exit::REFUSED, ["twinadm create-md RES on this node"];
    /// The metadata belongs to another resource, node or device.
    MetadataForeign = "E0407", exit::REFUSED, ["check `disk` and `meta` of this node: they may be swapped"];
    /// Not while this replica serves or is the only good one.
    LastGoodCopy = "E0408", exit::REFUSED, ["wait for the other replica: twinadm wait-sync RES"];
    /// NBD clients are attached.
    ClientsAttached = "E0409", exit::REFUSED, ["stop the clients, or use --force to drop them"];
    /// A backing device is missing or cannot be used.
    DeviceUnusable = "E0410", exit::FAILED, ["make the device, or correct its path in the resource's file"];
    /// The data here is not the newest.
    NotUpToDate = "E0411", exit::REFUSED, ["twinadm primary RES on the node that is up to date"];
    /// Another node is Primary and alive.
    PeerIsPrimary = "E0412", exit::REFUSED, [
        "move it here: twinadm move RES NODE",
    ];
    /// A refusal by the two nodes' histories.
    Unrelated = "E0413", exit::REFUSED, ["twinadm status RES on both nodes"];
    /// The arbitrator holds no data.
    ArbitratorHoldsNoData = "E0414", exit::REFUSED, ["give the order to a data node"];
    /// Another order on the same resource is under way.
    OrderUnderWay = "E0415", exit::REFUSED, ["wait for it to end, then try again"];
    /// The voter store has no vote until re-admitted.
    VoterNotAdmitted = "E0416", exit::REFUSED, ["twinadm status on the other nodes"];
    /// No backing device is attached.
    NotAttached = "E0417", exit::REFUSED, ["twinadm attach RES, after mending the disk"];
    /// There is no Primary that could be moved.
    NobodyServes = "E0418", exit::REFUSED, ["twinadm primary RES on the node that is to serve"];
    /// The replica of the node that is to be Primary is not up to date, or not up.
    PeerCannotFollow = "E0419", exit::REFUSED, [
        "twinadm wait-sync RES, then try again; twinadm status RES says what is missing",
    ];
    /// The metadata was made by a newer version.
    MetadataTooNew = "E0421", exit::REFUSED, ["use the twinblk that made it, or a newer one"];
    /// No node is Primary, and one is needed for it.
    NoPrimary = "E0423", exit::REFUSED, ["twinadm primary RES on the node whose data are good"];
    /// Something would be lost for good, and nobody said yes.
    NeedsYes = "E0422", exit::REFUSED, ["if that may be lost, say it again with --yes"];
    /// What other replicas or voters hold would be given up for good, and nobody typed that it may be.
    WouldLose = "E0424", exit::REFUSED, [
        "if that may be lost: twinadm primary RES --force --yes-lose=RES@VIEW, as it was told",
    ];
    /// The node that is said to be dead is alive.
    StillAlive = "E0426", exit::REFUSED, ["power it off first"];
    /// The node decided alone, by force, and others may have gone on without it.
    DecidedAlone = "E0428", exit::REFUSED, [
        "if nobody else served it since: twinadm primary RES; see who is there: twinadm quorum show",
    ];
    /// The node is in standby, and what it serves could not all be moved.
    NotDrained = "E0427", exit::REFUSED, ["mend what the message names, then: twinadm node drain NODE"];
    /// The replica never held anything of the resource.
    NoDataHere = "E0425", exit::REFUSED, ["attach the replica that was in use: twinadm attach RES"];
    /// An order holds guests' writes.
    IoSuspended = "E0450", exit::REFUSED, ["twinadm resume-io RES, then try again"];
    /// Writes went on before anybody resumed them.
    NotSuspended = "E0453", exit::REFUSED, [
        "discard snapshots taken since suspend-io: they may differ; then suspend again",
    ];
    /// The program of the daemon would not start with the files of now.
    RestartRefused = "E0454", exit::REFUSED, ["mend what the message names, then: twinadm reexec"];
    /// A volume never gets smaller.
    WouldShrink = "E0451", exit::REFUSED, [
        "make a new, smaller volume and copy what is wanted into it, from within the guest",
    ];
    /// A disk or a metadata area has no room for a larger volume.
    NoRoom = "E0452", exit::REFUSED, ["extend it (lvextend, truncate -s), then give the order again"];
    /// Of several volumes only the last can be made larger.
    NotTheLast = "E0455", exit::REFUSED, [
        "enlarge the last volume, or make a new resource: the others lie before it",
    ];
    /// The volume could not be made larger; it has the size it had.
    NotResized = "E1012", exit::FAILED, ["twinadm status RES, then give the order again"];
    /// The guest that uses the resource could not be stopped.
    GuestStays = "E0430", exit::REFUSED, ["shut the guest down, or use --force to end it"];
    /// This node has keys already.
    KeysExist = "E0440", exit::REFUSED, ["keep them; to give this node others: twinadm leave, then twinadm join TOKEN"];
    /// The issuer does not take the token, or not the node.
    JoinRefused = "E0441", exit::REFUSED, ["make another on the node where the cluster was begun: twinadm init --token NODE"];
    /// The text is no token.
    TokenUnreadable = "E0442", exit::USAGE, ["copy all of it, from tbj1. to its end, or pass it on: twinadm join - < FILE"];
    /// The cluster's authority is not on this node.
    NotTheAuthority = "E0443", exit::REFUSED, ["run it on the node where twinadm init was run"];
    /// What answers is not the issuer the token names.
    IssuerNotTrusted = "E0444", exit::REFUSED, [
        "see who has that address now; then make another token: twinadm init --token NODE",
    ];
    /// Resources are up that need the keys.
    KeysInUse = "E0445", exit::REFUSED, ["twinadm down all, or stop the daemon, then try again"];

    /// Too few voters answer.
    NoQuorum = "E0501", exit::QUORUM, ["bring back the arbitrator or the peer, or the link to them"];
    /// The old Primary's lease is not certainly over.
    NoLease = "E0502", exit::QUORUM, ["try again after the lease"];
    /// Guests are held.
    Held = "E0503", exit::UNAVAILABLE, ["restore the link to the peer or the arbitrator"];

    /// No daemon answers on the control socket.
    DaemonUnreachable = "E0601", exit::UNREACHABLE, [
        "start twinblkd, or name its run directory with --run-dir DIR",
    ];
    /// Another node cannot be reached from here.
    NodeUnreachable = "E0602", exit::UNREACHABLE, ["run the command on that node"];
    /// The connection ended in the middle of an answer.
    DaemonGone = "E0603", exit::UNREACHABLE, ["see its log, then try again: the order may be carried out"];

    /// No such resource.
    NoSuchResource = "E0701", exit::NOT_FOUND, ["twinadm status lists what there is"];
    /// No such node.
    NoSuchNode = "E0702", exit::NOT_FOUND, ["name a configured node with --node NAME"];
    /// No such volume or peer.
    NoSuchPart = "E0703", exit::NOT_FOUND, ["twinadm status RES lists what there is"];

    /// Not allowed by the kernel or by the daemon.
    Permission = "E0801", exit::PERMISSION, ["run it as root or as the daemon's user"];

    /// Waited long enough.
    TimedOut = "E0901", exit::TIMEOUT, ["twinadm status says what is missing; wait longer with --timeout"];

    /// The node that was to be Primary did not take over; the old Primary serves again.
    NotTaken = "E0902", exit::TIMEOUT, ["look at that node: twinadm status RES --node NODE"];

    /// A device or file failed.
    DeviceFailed = "E1001", exit::FAILED, ["see the kernel log; replace the device"];
    /// An address is taken.
    AddressTaken = "E1002", exit::FAILED, ["stop what listens there, or configure another address"];
    /// A directory of the daemon cannot be used.
    DirectoryUnusable = "E1003", exit::FAILED, ["make the directory writable for the daemon's user"];
    /// The daemon does not understand or answers nonsense.
    BadRequest = "E1004", exit::FAILED, ["use a twinadm and a twinblkd of one version"];
    /// Another daemon runs on these directories.
    AlreadyRunning = "E1005", exit::FAILED, ["stop the other daemon, or use other directories"];
    /// The voter store is damaged.
    StoreDamaged = "E1006", exit::FAILED, ["keep the file for analysis; a node without its store has no vote"];
    /// Too much at once.
    Busy = "E1007", exit::FAILED, ["try again"];
    /// The demo could not be brought to its verdict.
    DemoUnfinished = "E1008", exit::FAILED, [
        "look at the logs in the directory it named",
        "run it again with --keep",
    ];
    /// Metadata is damaged.
    MetadataDamaged = "E1009", exit::FAILED, [
        "twinadm dump-md RES shows what is left of it",
        "keep a copy of it before anything else is tried",
    ];
    /// The two replicas differ.
    ReplicasDiffer = "E1010", exit::FAILED, [
        "if the Primary's copy is the good one: twinadm verify RES --repair",
    ];
    /// A verify did not get to its end.
    VerifyUnfinished = "E1011", exit::FAILED, ["twinadm verify RES, once both are up to date"];
}

impl ErrorId {
    /// The entry with this id.
    #[must_use]
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|id| id.code() == code)
    }

    /// Whether it is a warning.
    #[must_use]
    pub fn is_warning(self) -> bool {
        self.code().starts_with('W')
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_id_has_a_next_step_and_its_own_code() {
        let mut seen = BTreeSet::new();
        for id in ErrorId::ALL {
            assert!(!id.next().is_empty(), "{} has no next step", id.code());
            assert!(
                id.next().iter().all(|step| !step.trim().is_empty()),
                "{}",
                id.code()
            );
            assert!(id.meaning().ends_with('.'), "{}", id.code());
            assert!(seen.insert(id.code()), "{} is given twice", id.code());
            assert_eq!(ErrorId::from_code(id.code()), Some(*id));
        }
    }

    #[test]
    fn codes_are_a_letter_and_four_digits() {
        for id in ErrorId::ALL {
            let code = id.code();
            let digits = code.strip_prefix(['E', 'W']).expect(code);
            assert!(
                digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()),
                "{code}"
            );
        }
    }

    #[test]
    fn exit_codes_avoid_those_of_drbdadm() {
        for id in ErrorId::ALL {
            assert!(![10, 17, 20].contains(&id.exit()), "{}", id.code());
        }
    }
}
