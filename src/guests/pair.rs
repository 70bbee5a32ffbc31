//! Two machines, their hypervisors and guardians under one clock, in random order, beside an oracle
//! too dumb to be wrong: at most one guest runs, and none after a younger one ran.
//!
//! Views and leases are modelled by their promises alone: a takeover waits for the grant, everything
//! else may happen at any time.

use core::time::Duration;

use replicator::types::Instant;

use super::*;
use crate::controller::lease::Timing;

const TIMING: Timing = Timing::FAST;
const TICK: Duration = Duration::from_millis(10);
const RUNS: u64 = 1_500;
const STEPS: usize = 400;

/// What is taken away from the rules, so that the oracle must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    None,
    NoFence,
    NoGuardian,
    NoStop,
    RunsUnguarded,
}

/// xorshift64*: the order of events of a run.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.throw(sides) == 0
    }
}

#[derive(Clone, Debug)]
struct Vm {
    id: ProcessId,
    cpu_on: bool,
    frozen: bool,
    /// Until when its guardian was told that it may run.
    guardian: Option<Instant>,
    /// By how much that guardian is late: at most what is left of σ + κ.
    late: Duration,
}

struct Host {
    guest: Option<Guest>,
    hangs: bool,
    vm: Option<Vm>,
    /// What the hypervisor was asked, by which life of the daemon.
    asked: Option<(u64, OrderId, Order)>,
    life: u64,
    tenure: Option<(u64, Entry)>,
    tenures: u64,
    taken: u64,
    lease: Option<Instant>,
    knows_superseded: bool,
    stop: Stop,
    /// This life's beacon thread has the guardian's socket.
    linked: bool,
}

struct World {
    mutant: Mutant,
    now: Instant,
    hosts: [Host; 2],
    owner: usize,
    solo: bool,
    grant: Instant,
    linked: bool,
    vms: u64,
    youngest_run: u64,
    log: Vec<String>,
    wrong: Option<String>,
}

impl World {
    fn new(mutant: Mutant) -> Self {
        let now = Instant(1_000_000_000);
        let host = || Host {
            guest: None,
            hangs: false,
            vm: None,
            asked: None,
            life: 0,
            tenure: None,
            tenures: 0,
            taken: 0,
            lease: None,
            knows_superseded: false,
            stop: Stop::No,
            linked: false,
        };
        let mut world = Self {
            mutant,
            now,
            hosts: [host(), host()],
            owner: 0,
            solo: false,
            grant: now.plus(TIMING.grant),
            linked: true,
            vms: 0,
            youngest_run: 0,
            log: Vec::new(),
            wrong: None,
        };
        world.boot(0);
        world.boot(1);
        world
    }

    fn settings(&self) -> GuestSettings {
        let mut timing = GuestTiming::of(&TIMING);
        if self.mutant == Mutant::NoFence {
            timing.start_after = Duration::ZERO;
        }
        GuestSettings {
            starts: true,
            on_demote: vec![
                StopStep::Shutdown(Duration::from_millis(300)),
                StopStep::Destroy,
            ],
            timing,
        }
    }

    fn boot(&mut self, node: usize) {
        let settings = self.settings();
        let now = self.now;
        let host = &mut self.hosts[node];
        host.guest = Some(Guest::new(settings, now));
        // A daemon looks for a guardian of its earlier life before it does anything else.
        host.linked = host.vm.as_ref().is_some_and(|vm| vm.guardian.is_some());
        (host.hangs, host.life) = (false, host.life + 1);
        (host.tenure, host.tenures, host.taken, host.lease) = (None, 0, 0, None);
        host.knows_superseded = false;
        host.stop = Stop::No;
    }

    fn runs(&self, node: usize) -> bool {
        self.hosts[node].guest.is_some() && !self.hosts[node].hangs
    }

    fn activate(&mut self, node: usize, entry: Entry) {
        let now = self.now;
        let host = &mut self.hosts[node];
        host.tenures += 1;
        if entry != Entry::Own {
            host.taken = host.tenures;
        }
        host.tenure = Some((host.tenures, entry));
        host.lease = Some(now);
        self.tell_guardian(node);
    }

    /// Until when the node may serve by what it knows itself.
    fn lease_of(&self, node: usize) -> Instant {
        let alone = self.solo && node == self.owner;
        let lease = self.hosts[node].lease.filter(|_| !alone);
        lease.unwrap_or(Instant::NEVER)
    }

    fn tell_guardian(&mut self, node: usize) {
        let until = self.lease_of(node);
        let host = &mut self.hosts[node];
        if let Some(vm) = host
            .vm
            .as_mut()
            .filter(|vm| vm.guardian.is_some() && host.linked)
        {
            vm.guardian = Some(until);
        }
    }

    fn standing(&self, node: usize) -> Standing {
        let host = &self.hosts[node];
        match host.tenure {
            None => Standing::Away {
                superseded: host.knows_superseded,
            },
            Some((number, entry)) => Standing::Primary(Tenure {
                number,
                taken: host.taken,
                entry,
                serves: true,
                lease: Some(self.lease_of(node)).filter(|end| *end < Instant::NEVER),
            }),
        }
    }

    fn step(&mut self, dice: &mut Dice) {
        let node = usize::try_from(dice.throw(2)).unwrap();
        match dice.throw(24) {
            0..=7 => {
                for _ in 0..=dice.throw(20) {
                    self.tick(dice);
                }
            }
            8..=10 => self.renew(),
            11 => self.linked = dice.one_in(2),
            12 | 13 => self.take_over(),
            14 => self.recover(),
            15 => self.change_in_sync(),
            16 if dice.one_in(3) => self.hosts[node].guest = None,
            17 if self.hosts[node].guest.is_none() => self.boot(node),
            18 => self.hosts[node].hangs = !self.hosts[node].hangs && dice.one_in(2),
            19 if dice.one_in(3) => self.hosts[node].vm = None,
            20 => self.move_by_order(),
            _ => {
                let ok = !dice.one_in(5);
                self.answer(node, ok);
            }
        }
        for node in 0..2 {
            self.drive(node, |guest, now, out| guest.handle_tick(now, out));
        }
    }

    /// The kernel, the guardians and the daemons' own deadlines.
    fn tick(&mut self, dice: &mut Dice) {
        self.now = self.now.plus(TICK);
        if self.linked && !dice.one_in(8) {
            self.renew();
        }
        if dice.one_in(3) {
            self.take_over();
            self.recover();
        }
        let kill_after = GuestTiming::of(&TIMING).kill_after;
        for node in 0..2 {
            let vm = self.hosts[node].vm.as_ref();
            let over = vm.is_some_and(|vm| {
                let until = vm.guardian.unwrap_or(Instant::NEVER);
                self.now >= until.plus(kill_after).plus(vm.late)
            });
            if over && self.mutant != Mutant::NoGuardian {
                self.hosts[node].vm = None;
            }
            let known = self.hosts[1 - node].tenure.is_some() && self.owner != node;
            if known && self.linked && self.runs(node) {
                self.hosts[node].tenure = None;
                self.hosts[node].knows_superseded = true;
            }
            self.drive(node, |guest, now, out| guest.handle_tick(now, out));
            if dice.one_in(2) {
                let ok = !dice.one_in(8);
                self.answer(node, ok);
            }
        }
        self.judge();
    }

    fn renew(&mut self) {
        let (owner, peer) = (self.owner, 1 - self.owner);
        if !self.linked || !self.runs(owner) || !self.runs(peer) || self.solo {
            return;
        }
        if self.hosts[owner].tenure.is_some() {
            self.hosts[owner].lease = Some(self.now.plus(TIMING.lease));
            self.grant = self.now.plus(TIMING.grant);
            self.tell_guardian(owner);
        }
    }

    fn take_over(&mut self) {
        let peer = 1 - self.owner;
        if self.solo || !self.runs(peer) || self.now < self.grant {
            return;
        }
        self.become_primary(peer, Entry::Taken);
    }

    fn become_primary(&mut self, node: usize, entry: Entry) {
        self.log
            .push(format!("{:?}: {node} is Primary, {entry:?}", self.now));
        self.owner = node;
        // A takeover leaves the other one out.
        self.solo = entry == Entry::Taken;
        self.grant = self.now.plus(TIMING.grant);
        self.hosts[node].knows_superseded = false;
        self.activate(node, entry);
    }

    fn recover(&mut self) {
        let owner = self.owner;
        if self.runs(owner) && self.hosts[owner].tenure.is_none() {
            self.activate(owner, Entry::Own);
        }
    }

    /// Remove and Add. An Add needs the lease, and the guardian hears of it first.
    fn change_in_sync(&mut self) {
        let owner = self.owner;
        let Some(lease) = self.hosts[owner].lease.filter(|_| self.runs(owner)) else {
            return;
        };
        if self.hosts[owner].tenure.is_none() {
            return;
        }
        if self.solo && self.linked && self.runs(1 - owner) {
            self.solo = false;
            self.renew();
        } else if !self.solo && self.now < lease {
            self.solo = true;
            self.tell_guardian(owner);
        }
    }

    fn move_by_order(&mut self) {
        let (owner, peer) = (self.owner, 1 - self.owner);
        if !self.runs(owner) || !self.runs(peer) || !self.linked || self.solo {
            return;
        }
        let stopped = self.hosts[owner].guest.as_ref().unwrap().is_stopped();
        if self.hosts[owner].stop == Stop::No {
            self.hosts[owner].stop = Stop::Asked;
            self.drive(owner, |guest, now, out| {
                guest.handle_stop(now, Stop::Asked, out)
            });
        } else if stopped || self.mutant == Mutant::NoStop {
            self.hosts[owner].tenure = None;
            self.hosts[owner].stop = Stop::No;
            self.become_primary(peer, Entry::Vacated);
            self.drive(owner, |guest, now, out| {
                guest.handle_stop(now, Stop::No, out)
            });
        }
    }

    /// The hypervisor's answer, whether or not the daemon that asked still lives.
    fn answer(&mut self, node: usize, ok: bool) {
        let Some((life, id, order)) = self.hosts[node].asked.take() else {
            return;
        };
        let asker_runs = self.runs(node) && self.hosts[node].life == life;
        if matches!(order, Order::Guard(_)) && !asker_runs {
            return;
        }
        let result = if ok {
            self.carry_out(node, order)
        } else {
            Err(Fault::TimedOut)
        };
        if asker_runs {
            let seen = self.look(node);
            self.drive(node, |guest, now, out| {
                guest.handle_done(now, id, result, seen, out)
            });
        } else if self.hosts[node].hangs {
            // It hears of it when it goes on.
            self.hosts[node].asked = Some((life, id, Order::Look));
        }
    }

    fn carry_out(&mut self, node: usize, order: Order) -> Result<(), Fault> {
        let until = Some(self.lease_of(node));
        let host = &mut self.hosts[node];
        match (order, &mut host.vm) {
            (Order::Create, None) => {
                self.vms += 1;
                let id = ProcessId {
                    pid: 1,
                    start: self.vms,
                };
                host.vm = Some(Vm {
                    id,
                    cpu_on: false,
                    frozen: false,
                    guardian: None,
                    late: TICK * u32::try_from(self.vms * 7 % 19).unwrap(),
                });
            }
            (Order::Guard(id), Some(vm)) if vm.id == id && host.tenure.is_some() => {
                vm.guardian = until;
                host.linked = true;
            }
            (Order::Resume, Some(vm)) => vm.cpu_on = true,
            (Order::Destroy, Some(_)) => host.vm = None,
            (Order::Look | Order::Shutdown, _) => {}
            _ => return Err(Fault::Said("no".to_owned())),
        }
        Ok(())
    }

    fn look(&self, node: usize) -> Seen {
        let vm = self.hosts[node].vm.as_ref();
        Seen {
            process: vm.map(|vm| vm.id),
            domain: Ok(match vm {
                None => DomainState::Off(Ended::Crashed),
                Some(vm) if vm.cpu_on => DomainState::Running,
                Some(_) => DomainState::Paused(PauseReason::Starting),
            }),
            guarded: None,
        }
    }

    fn drive(
        &mut self,
        node: usize,
        what: impl FnOnce(&mut Guest, Instant, &mut Vec<(OrderId, Order)>),
    ) {
        if !self.runs(node) {
            return;
        }
        let (now, standing) = (self.now, self.standing(node));
        let present = self.hosts[node].vm.as_ref().map(|vm| vm.id);
        let mut out = Vec::new();
        let Some(guest) = &mut self.hosts[node].guest else {
            return;
        };
        guest.handle_standing(now, standing, &mut out);
        if let Some(gone) = guest.process().filter(|id| present != Some(*id)) {
            guest.handle_exit(now, gone, &mut out);
        }
        what(guest, now, &mut out);
        for (id, order) in out {
            self.perform(node, id, order);
        }
    }

    fn perform(&mut self, node: usize, order_id: OrderId, order: Order) {
        let unguarded = self.mutant == Mutant::RunsUnguarded;
        let host = &mut self.hosts[node];
        let vm = host.vm.as_mut();
        match order {
            Order::Freeze(id) => {
                vm.filter(|vm| vm.id == id)
                    .into_iter()
                    .for_each(|vm| vm.frozen = true);
            }
            Order::Thaw(id) => {
                vm.filter(|vm| vm.id == id)
                    .into_iter()
                    .for_each(|vm| vm.frozen = false);
            }
            Order::Kill(id) if vm.is_some_and(|vm| vm.id == id) => host.vm = None,
            Order::Kill(_) => {}
            Order::Guard(_) if unguarded => {
                // Claims to have done it.
                let seen = self.look(node);
                self.drive(node, |guest, now, out| {
                    guest.handle_done(now, order_id, Ok(()), seen, out);
                });
            }
            asked => host.asked = Some((host.life, order_id, asked)),
        }
    }

    fn judge(&mut self) {
        let on = |host: &Host| {
            let vm = host.vm.as_ref();
            vm.filter(|vm| vm.cpu_on && !vm.frozen)
                .map(|vm| vm.id.start)
        };
        let running: Vec<u64> = self.hosts.iter().filter_map(on).collect();
        let oldest = running.iter().min().copied().unwrap_or(u64::MAX);
        self.youngest_run = running.iter().copied().fold(self.youngest_run, u64::max);
        if oldest < self.youngest_run {
            let youngest = self.youngest_run;
            let wrong = format!(
                "guest {oldest} runs after guest {youngest}: {:#?}",
                self.log
            );
            self.wrong.get_or_insert(wrong);
        }
    }
}

/// Runs one order of events; whether a guest ever moved.
fn run(mutant: Mutant, seed: u64) -> Result<bool, String> {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut world = World::new(mutant);
    for _ in 0..STEPS {
        world.step(&mut dice);
        world.judge();
        if let Some(wrong) = world.wrong {
            return Err(format!("seed {seed}: {wrong}"));
        }
    }
    Ok(world.youngest_run > 1)
}

#[test]
fn a_guest_never_runs_twice_nor_after_its_successor() {
    let moved = (0..RUNS).filter(|seed| match run(Mutant::None, *seed) {
        Ok(moved) => moved,
        Err(wrong) => panic!("{wrong}"),
    });
    // A model in which nothing happens would prove nothing.
    let moved = moved.count();
    assert!(moved > 750, "only {moved} runs moved a guest");
}

#[test]
fn every_rule_taken_away_is_noticed() {
    let mutants = [
        Mutant::NoFence,
        Mutant::NoGuardian,
        Mutant::NoStop,
        Mutant::RunsUnguarded,
    ];
    for mutant in mutants {
        let noticed = (0..RUNS).any(|seed| run(mutant, seed).is_err());
        assert!(noticed, "{mutant:?}");
    }
}
