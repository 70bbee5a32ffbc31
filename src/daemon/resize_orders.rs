//! `resize`: a larger volume. The Primary measures both nodes' devices, refuses what there is no room
//! for, and has the engines and the controller do the rest; nothing here decides about safety.

use std::path::Path;
use std::time::Duration;

use replicator::admin::{ErrorId, ErrorReport, Request, Response, RoomReport, Verb};
use replicator::engine::{AdminRequest, GrowEnd, GrowReport, Room, Snapshot};
use replicator::io::clock;
use replicator::meta::Layout;
use replicator::types::{
    BLOCK_LEN, BlockCount, ByteLen, ConnectionState, DiskState, ReplicationState, Role,
};

use super::api::ShardCommand;
use super::control::{Answers, Asker};
use super::node::Node;
use super::orders::{ORDER_TIMEOUT, Outcome, done};
use super::relay::Kept;
use crate::config::{ResourceConfig, VolumeConfig, size_text};

/// How often the client hears how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is wanted.
pub(super) struct ResizeOrder {
    /// Of several volumes which.
    pub(super) volume: Option<u16>,
    /// How large it is to be; `None`: as large as both disks allow.
    pub(super) size: Option<u64>,
}

/// The volume that can grow, the last of its resource. What lies before it stays as it is.
struct Growing<'a> {
    resource: &'a ResourceConfig,
    volume: &'a VolumeConfig,
    /// For people.
    name: String,
    /// Bytes of the volumes before it.
    before: u64,
}

impl Growing<'_> {
    /// Its size, of so many blocks of all volumes.
    fn own(&self, blocks: u64) -> u64 {
        let total = blocks.saturating_mul(BLOCK_LEN);
        total.saturating_sub(self.before)
    }

    /// Blocks of all volumes when it has that size.
    fn total(&self, own: u64) -> BlockCount {
        BlockCount::whole_blocks_in(ByteLen(self.before.saturating_add(own)))
    }
}

/// Which volume is meant, if it can grow.
fn growing(resource: &ResourceConfig, volume: Option<u16>) -> Result<Growing<'_>, ErrorReport> {
    let name = &resource.name;
    let row = resource.row();
    let Some(last) = resource.volumes.last() else {
        let what = format!("{name} is not resized");
        return Err(ErrorReport::new(
            ErrorId::NoSuchPart,
            what,
            "it has no volume",
        ));
    };
    let next = format!("twinadm resize {name}/{} [--size SIZE]", last.id.0);
    match volume {
        None if row.is_several() => {
            let what = format!("which volume of {name} is to be larger is not said");
            let why = "only the last one can be, since the others lie before it";
            return Err(ErrorReport::new(ErrorId::NotTheLast, what, why).next(next));
        }
        Some(wanted) if resource.volumes.iter().all(|it| it.id.0 != wanted) => {
            let what = format!("{name} has no volume {wanted}");
            let why = "it is not configured";
            return Err(ErrorReport::new(ErrorId::NoSuchPart, what, why));
        }
        Some(wanted) if wanted != last.id.0 => {
            let what = format!("{name}/{wanted} stays as large as it is");
            let why = "another volume lies behind it: only the last one of a resource can grow";
            return Err(ErrorReport::new(ErrorId::NotTheLast, what, why)
                .next(next)
                .next("or make a resource of its own for what needs the room"));
        }
        Some(_) | None => {}
    }
    Ok(Growing {
        resource,
        volume: last,
        name: match row.is_several() {
            true => format!("{name}/{}", last.id.0),
            false => name.clone(),
        },
        before: row.offset(row.last_place()).0,
    })
}

impl Node {
    pub(super) fn resize_order(
        &self,
        name: &str,
        order: &ResizeOrder,
        timeout: Option<Duration>,
        asker: Asker,
        answers: &mut dyn Answers,
    ) -> Outcome {
        let resource = &*self.resource(name)?;
        let growing = growing(resource, order.volume)?;
        let (name, size) = (growing.name.as_str(), order.size);
        self.check_running(resource)?;
        let engine = self.snapshot_of(resource)?;
        self.check_may_resize(resource, &engine)?;
        let now = growing.own(engine.size_blocks.unwrap_or(0));
        let running = engine.grow.filter(|report| report.end.is_none());
        let before = engine.grow.map_or(0, |report| report.number);
        let wanted = match running {
            Some(report) => Some(growing.own(report.to_blocks)),
            None => self.size_to_be(&growing, size, now, asker)?,
        };
        let Some(wanted) = wanted else {
            return done(false, format!("{name} is {} already", size_text(now)));
        };
        if running.is_some() && size.is_some_and(|size| size != wanted) {
            let why = format!("it is being enlarged to {}", size_text(wanted));
            let report = ErrorReport::new(ErrorId::OrderUnderWay, stays(name, now), why);
            return Err(report.next("wait for its end, then give the order again"));
        }
        let since = if running.is_some() {
            before - 1
        } else {
            let to = growing.total(wanted);
            self.admin(resource, AdminRequest::Grow { to });
            before
        };
        let report = self.await_growth(&growing, since, timeout, answers)?;
        let to = growing.own(report.to_blocks);
        if to != wanted {
            // Two at once: the engine takes one.
            let why = format!("another order enlarged it to {}", size_text(to));
            let what = format!("this order for {} was not taken", size_text(wanted));
            let report = ErrorReport::new(ErrorId::OrderUnderWay, what, why);
            return Err(report.next("give the order again if it is to be larger still"));
        }
        self.grown_outcome(&growing, &report, now)
    }

    /// The size in bytes that it is to have, both nodes having room for it; `None`: it has it.
    fn size_to_be(
        &self,
        growing: &Growing<'_>,
        size: Option<u64>,
        now: u64,
        asker: Asker,
    ) -> Result<Option<u64>, ErrorReport> {
        let Growing { resource, name, .. } = growing;
        let here = self.room_here(resource, None)?;
        let there = self.room_there(resource, None, asker)?;
        let both = here.disk_bytes.min(there.disk_bytes);
        let listed = growing.volume.size;
        if let Some(listed) = listed.filter(|listed| size.is_none() && both > listed.0) {
            let listed = size_text(listed.0);
            let why = format!("size = \"{listed}\" in its file is less than both disks have");
            let report = ErrorReport::new(ErrorId::BadRequest, stays(name, now), why);
            return Err(report.next(format!("twinadm resize {name} --size {listed}, or larger")));
        }
        let wanted = size.unwrap_or(both - both % BLOCK_LEN);
        if !wanted.is_multiple_of(BLOCK_LEN) {
            let why = format!("a size is a multiple of {BLOCK_LEN} bytes");
            let report = ErrorReport::new(ErrorId::BadRequest, stays(name, now), why);
            return Err(report.next("round it up"));
        }
        if wanted == now {
            return Ok(None);
        }
        if wanted < now {
            let why = match size {
                Some(_) => format!("{} is less: guests may have data there", size_text(wanted)),
                None => "a disk is shorter than the volume".to_owned(),
            };
            return Err(ErrorReport::new(
                ErrorId::WouldShrink,
                stays(name, now),
                why,
            ));
        }
        let peer = self.config.node_name(self.node.peer());
        for (node, room) in [(self.name(), &here), (peer, &there)] {
            if room.disk_bytes < wanted {
                let device = (room.disk.as_str(), room.disk_bytes);
                return Err(no_room(stays(name, now), node, device, wanted, false));
            }
        }
        let here = self.room_here(resource, Some(wanted))?;
        let there = self.room_there(resource, Some(wanted), asker)?;
        for (node, room) in [(self.name(), &here), (peer, &there)] {
            let needed = room.meta_needed_bytes.unwrap_or(u64::MAX);
            if room.meta_bytes < needed {
                let device = (room.meta.as_str(), room.meta_bytes);
                return Err(no_room(stays(name, now), node, device, needed, true));
            }
        }
        Ok(Some(wanted))
    }

    fn check_may_resize(
        &self,
        resource: &ResourceConfig,
        engine: &Snapshot,
    ) -> Result<(), ErrorReport> {
        let name = &resource.name;
        let peer = self.config.node_name(self.node.peer());
        let what = format!("{name} is not resized");
        if engine.role != Role::Primary {
            let why = "the Primary resizes, and neither node is one as far as is known here";
            return Err(ErrorReport::new(ErrorId::NoPrimary, what, why));
        }
        if engine.connection != ConnectionState::Connected {
            let why = format!("{peer} is not connected, and both must have the room");
            let report = ErrorReport::new(ErrorId::NodeUnreachable, what, why);
            return Err(report.next(format!("twinadm wait-connect {name}")));
        }
        let whole = engine.disk == DiskState::UpToDate && engine.peer_disk == DiskState::UpToDate;
        let mirrors = matches!(
            engine.replication,
            ReplicationState::Established | ReplicationState::VerifyS
        );
        if !whole || !mirrors {
            let why = format!(
                "both replicas must be up to date: here {}, on {peer} {}",
                engine.disk, engine.peer_disk
            );
            let report = ErrorReport::new(ErrorId::NotUpToDate, what, why);
            return Err(report.next(format!("twinadm wait-sync {name}")));
        }
        Ok(())
    }

    fn snapshot_of(&self, resource: &ResourceConfig) -> Result<Snapshot, ErrorReport> {
        let found = self.board.read(|board| {
            let known = board.resources.get(&resource.id())?;
            Some(known.shard.as_ref()?.engine.clone())
        });
        found.ok_or_else(|| {
            let what = format!("no answer about {}", resource.name);
            ErrorReport::new(
                ErrorId::TimedOut,
                what,
                "its engine has not said anything yet",
            )
        })
    }

    // --- Room --------------------------------------------------------------------------------

    pub(super) fn room_order(&self, resource: &ResourceConfig, size: Option<u64>) -> Outcome {
        self.room_here(resource, size).map(Response::Room)
    }

    /// Measures the devices here; with a size, after making a metadata file long enough for it.
    fn room_here(
        &self,
        resource: &ResourceConfig,
        size: Option<u64>,
    ) -> Result<RoomReport, ErrorReport> {
        self.check_running(resource)?;
        let mut room = self.measure(resource, None)?;
        let row = resource.row();
        let before = row.offset(row.last_place()).0;
        let needed = size.map(|size| {
            let blocks = BlockCount::whole_blocks_in(ByteLen(before.saturating_add(size)));
            Layout::for_volume(blocks, room.al_slots).map_or(u64::MAX, |it| it.total().0)
        });
        // Long enough is not enough: a sparse file has no space yet.
        if let Some(needed) = needed.filter(|needed| *needed < u64::MAX) {
            room = self.measure(resource, Some(needed))?;
        }
        let path = |path: &Path| path.display().to_string();
        let paths = resource.volumes.last().map(|it| it.replica(self.node));
        Ok(RoomReport {
            disk: paths.map_or_else(String::new, |it| path(&it.disk)),
            disk_bytes: room.device.0.saturating_sub(before),
            meta: paths.map_or_else(String::new, |it| path(&it.meta)),
            meta_bytes: room.meta.0,
            meta_needed_bytes: needed,
        })
    }

    fn measure(&self, resource: &ResourceConfig, meta: Option<u64>) -> Result<Room, ErrorReport> {
        let id = resource.id();
        let before = self.snapshot_of(resource)?.room.map_or(0, |it| it.number);
        self.command(ShardCommand::Measure {
            resource: id,
            meta: meta.map(ByteLen),
        });
        let measured = self.board.wait(ORDER_TIMEOUT, |board| {
            let shard = board.resources.get(&id)?.shard.as_ref()?;
            shard.engine.room.filter(|it| it.number > before)
        });
        measured.ok_or_else(|| {
            let what = format!("the devices of {} are not measured", resource.name);
            let why = format!("no backing device is attached on {}", self.name());
            ErrorReport::new(ErrorId::NotAttached, what, why)
        })
    }

    fn room_there(
        &self,
        resource: &ResourceConfig,
        size: Option<u64>,
        asker: Asker,
    ) -> Result<RoomReport, ErrorReport> {
        let target = self.node.peer();
        let peer = self.config.node_name(target);
        let request = Request {
            verb: Verb::Room {
                resource: resource.name.clone(),
                size,
            },
            node: Some(peer.to_owned()),
            timeout_ms: None,
        };
        let mut kept = Kept::default();
        let passed = self.pass_on(target, &request, asker, &mut kept);
        let what = || format!("{} is not resized", resource.name);
        match (passed, kept.0) {
            (Ok(()), Some(Response::Room(room))) => Ok(room),
            (Ok(()), Some(Response::Error(report))) if report.id == ErrorId::BadRequest.code() => {
                let why = format!("the daemon of {peer} does not know how: {}", report.why);
                let report = ErrorReport::new(ErrorId::BadRequest, what(), why);
                Err(report.next(format!("install this version of twinblk on {peer}, too")))
            }
            (Ok(()), Some(Response::Error(report))) => Err(report),
            _ => {
                let why = format!("{peer} did not say how much room it has");
                Err(ErrorReport::new(ErrorId::NodeUnreachable, what(), why))
            }
        }
    }

    // --- The end -----------------------------------------------------------------------------

    /// Waits for the end of the first order after the one with that number.
    fn await_growth(
        &self,
        growing: &Growing<'_>,
        since: u64,
        timeout: Option<Duration>,
        answers: &mut dyn Answers,
    ) -> Result<GrowReport, ErrorReport> {
        let (id, name) = (growing.resource.id(), &growing.name);
        let deadline = clock::now().plus(timeout.unwrap_or(ORDER_TIMEOUT));
        let mut told = None;
        loop {
            let left = deadline.since(clock::now());
            let mut newest = None;
            let ended = self.board.wait(left.min(TELL_EVERY), |board| {
                let shard = board.resources.get(&id)?.shard.as_ref()?;
                newest = shard.engine.grow.filter(|it| it.number > since);
                newest.filter(|it| it.end.is_some())
            });
            if let Some(report) = ended {
                return Ok(report);
            }
            let percent = newest.map(|it| it.zeroed_blocks * 100 / it.new_blocks.max(1));
            if percent.is_some() && percent != told {
                told = percent;
                let percent = percent.unwrap_or(0);
                let message = format!("{name}: {percent} % of the new space is zeroed here");
                answers.send(&Response::Progress { message }).ok();
            }
            // Of a client that left only the place is taken back: the engines have their order.
            if left.is_zero() || answers.is_gone() {
                let what = format!("{name} is still being enlarged");
                let why = "it goes on by itself; NBD clients see the new size at its end";
                let report = ErrorReport::new(ErrorId::TimedOut, what, why);
                return Err(report.next("give the order again to wait for it, with --timeout"));
            }
        }
    }

    fn grown_outcome(&self, growing: &Growing<'_>, report: &GrowReport, now: u64) -> Outcome {
        let name = &growing.name;
        let peer = self.config.node_name(self.node.peer());
        let size = size_text(growing.own(report.to_blocks));
        let why = match report.end {
            Some(GrowEnd::Undecided) => {
                let what = format!("whether {name} is {size} is not known yet");
                let why = "its new size was being decided when this node lost its role or its disk";
                let report = ErrorReport::new(ErrorId::NotResized, what, why);
                return Err(report.next(format!("twinadm status {}", growing.resource.name)));
            }
            Some(GrowEnd::Done) | None => {
                let message = format!(
                    "{name} is {size} now; NBD clients see it when they connect again, and the files \
                     want size = \"{size}\" on both nodes"
                );
                return done(true, message);
            }
            Some(GrowEnd::NotMirrored) => "both replicas must be in sync and connected".to_owned(),
            Some(GrowEnd::NoRoom) => format!("a device of {} has no room any more", self.name()),
            Some(GrowEnd::PeerFailed(error)) => format!("{peer} could not: {error}"),
            Some(GrowEnd::DiskFailed(error)) => {
                format!("the disk of {} could not: {error}", self.name())
            }
            Some(GrowEnd::SessionLost) => format!("the connection to {peer} was lost"),
            Some(GrowEnd::ViewChanged) => "something else was decided meanwhile".to_owned(),
            Some(GrowEnd::RoleChanged) => format!("{} is not Primary any more", self.name()),
        };
        Err(ErrorReport::new(ErrorId::NotResized, stays(name, now), why))
    }
}

fn stays(name: &str, now: u64) -> String {
    format!("{name} stays {}", size_text(now))
}

/// A device of `node` (its path and length) is shorter than `needed`.
fn no_room(
    what: String,
    node: &str,
    device: (&str, u64),
    needed: u64,
    is_meta: bool,
) -> ErrorReport {
    let (path, len) = device;
    let why = format!(
        "{path} is {} on {node}, and {} are needed",
        size_text(len),
        size_text(needed)
    );
    let is_device = Path::new(path).starts_with("/dev") && !Path::new(path).starts_with("/dev/shm");
    if is_meta && !is_device {
        let needed = size_text(needed);
        let why =
            format!("{path} on {node} cannot have {needed}: its filesystem has no space for it");
        let report = ErrorReport::new(ErrorId::NoRoom, what, why);
        return report
            .next(format!("make space on the filesystem of {path} on {node}"))
            .next("then give the order again");
    }
    let extend = match is_device {
        true => format!("on {node}: lvextend -L {needed}b {path}"),
        false => format!("on {node}: truncate -s {needed} {path}"),
    };
    ErrorReport::new(ErrorId::NoRoom, what, why)
        .next(extend)
        .next("then give the order again")
}

/// One replica has them all: they are attached and detached together, whichever is named.
pub(super) fn all_volumes(resource: &ResourceConfig) -> String {
    match resource.volumes.len() {
        1 => String::new(),
        count => format!(", with its {count} volumes,"),
    }
}
