//! One guest's driver: a thread that carries out one job at a time and may hang with it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use replicator::io::pidfd::PidFd;
use replicator::types::ResourceId;

use super::guardian::{self, Charge};
use super::links::{GuardLinks, socket_of};
use super::process::Mark;
use super::thread::Finished;
use super::virsh::Hypervisor;
use crate::daemon::mailbox::Mailbox;
use crate::guests::{Fault, Order, OrderId, ProcessId, Seen};

/// The machine has one job under way at most.
const JOBS_MAX: usize = 1;

const STACK_LEN: usize = 256 * 1024;

/// What to do.
pub(super) type Job = (OrderId, Order);

/// One guest as its driver knows it.
pub(super) struct Driver {
    pub(super) id: ResourceId,
    pub(super) resource: String,
    pub(super) hypervisor: Box<dyn Hypervisor>,
    pub(super) mark: Mark,
    pub(super) links: Arc<GuardLinks>,
    /// Where guardians listen.
    pub(super) guardians: PathBuf,
    pub(super) kill_after: Duration,
    pub(super) answers: Arc<Mailbox<Finished>>,
}

impl Driver {
    /// Starts the thread; it ends when the sender is dropped and its last job is over.
    pub(super) fn start(self) -> io::Result<SyncSender<Job>> {
        let (sender, jobs) = sync_channel(JOBS_MAX);
        thread::Builder::new()
            .name("guest".to_owned())
            .stack_size(STACK_LEN)
            .spawn(move || self.run(&jobs))?;
        Ok(sender)
    }

    fn run(&self, jobs: &Receiver<Job>) {
        while let Ok((id, order)) = jobs.recv() {
            let result = self.carry_out(order);
            let (process, seen) = self.look();
            let finished = Finished::Job {
                resource: self.id,
                order: id,
                result,
                seen,
                process,
            };
            if self.answers.push(finished).is_err() {
                tracing::error!("{}: the guests' thread does not listen", self.resource);
            }
        }
    }

    fn carry_out(&self, order: Order) -> Result<(), Fault> {
        match order {
            Order::Look => Ok(()),
            Order::Create => self.hypervisor.create(),
            Order::Guard(process) => self.guard(process),
            Order::Resume => self.hypervisor.resume(),
            Order::Shutdown => self.hypervisor.shutdown(),
            Order::Destroy => self.hypervisor.destroy(),
            Order::Freeze(_) | Order::Thaw(_) | Order::Kill(_) => {
                unreachable!("signals are not sent by the driver")
            }
        }
    }

    /// The state by the hypervisor, then the process by the kernel, which does not hang.
    fn look(&self) -> (Option<(ProcessId, PidFd)>, Seen) {
        let domain = self.hypervisor.state();
        let process = self.mark.find().unwrap_or_else(|error| {
            tracing::error!(%error, "{}: processes cannot be looked at", self.resource);
            None
        });
        let guarded = process.as_ref().map(|(id, _)| {
            let socket = self.socket_of(*id);
            let there = GuardLinks::is_there(&socket);
            if !there {
                self.links.forget(&socket);
            }
            there
        });
        let seen = Seen {
            process: process.as_ref().map(|(id, _)| *id),
            domain,
            guarded,
        };
        (process, seen)
    }

    fn socket_of(&self, process: ProcessId) -> PathBuf {
        socket_of(&self.guardians, &self.resource, process, self.kill_after)
    }

    fn guard(&self, process: ProcessId) -> Result<(), Fault> {
        let socket = self.socket_of(process);
        if self.links.add(&socket) {
            return Ok(());
        }
        let not_active = || Fault::NoGuardian("this node does not serve any more".to_owned());
        let charge = Charge {
            process,
            socket,
            until: self.links.until().ok_or_else(not_active)?,
            kill_after: self.kill_after,
            name: self.resource.clone(),
        };
        guardian::start(&charge).map_err(Fault::NoGuardian)?;
        // Told again what may have changed since it was started.
        match self.links.add(&charge.socket) {
            true => Ok(()),
            false => Err(Fault::NoGuardian("it does not listen".to_owned())),
        }
    }
}
