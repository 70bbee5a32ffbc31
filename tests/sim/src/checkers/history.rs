//! K1, K2: every cell is a register that keeps what was acknowledged.
//!
//! Per cell and value there is a *zone*: `finish` is the earliest end of an operation that proves
//! the value was there, `start` the latest begin of one. Two values whose zones each begin before
//! the other ends cannot be ordered: a stale read, a lost write or a write that came back (Gibbons
//! and Korach 1997, with unique values). A write with unknown outcome counts only once it was seen.
//!
//! Zeroes are not unique. A cell that reads as zeroes is legal if any zeroing, or the initial
//! content, explains it; such a read proves nothing about others.

use crate::clock::SimTime;
use crate::stamp::{Value, WriteNr};

use super::{Checked, Violation};

/// What a write does to its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Puts its stamp.
    Data,
    /// Zeroes.
    Zeroes,
    /// May zero or leave as it is, each cell by itself.
    Trim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    InFlight,
    Acknowledged,
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    first_cell: u64,
    cell_count: u64,
    effect: Effect,
    invoked: SimTime,
    /// When it was acknowledged, or after which it can have no effect any more.
    ended: Option<SimTime>,
    outcome: Outcome,
}

/// One write as one cell knows it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    write: WriteNr,
    /// Earliest end of a read that saw it.
    seen_by: Option<SimTime>,
    /// Latest begin of a read that saw it.
    seen_from: Option<SimTime>,
    /// A flush that began after its finish was acknowledged.
    durable: bool,
    /// Its last copy went with a power cut before any flush.
    excused: bool,
}

#[derive(Clone, Copy, Debug)]
struct Zone {
    finish: SimTime,
    start: SimTime,
}

const NEVER: SimTime = SimTime(u64::MAX);

impl Zone {
    fn contradicts(self, other: Self) -> bool {
        self.finish < other.start && other.finish < self.start
    }
}

/// Which writes must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// Everything acknowledged or seen: what a read returns.
    Acknowledged,
    /// Everything flushed: what the durable layer holds.
    Flushed,
}

/// All writes and reads of a run.
#[derive(Clone, Debug, Default)]
pub struct History {
    writes: Vec<Write>,
    cells: Vec<Vec<Entry>>,
    /// Writes of unknown outcome that may still take effect.
    open: Vec<WriteNr>,
    /// Cells with entries that are not known durable.
    not_durable: Vec<u64>,
}

fn at(index: u64) -> usize {
    usize::try_from(index).expect("cells fit in memory")
}

impl History {
    /// A history over `cell_count` cells of zeroes.
    #[must_use]
    pub fn new(cell_count: u64) -> Self {
        Self {
            cells: vec![Vec::new(); at(cell_count)],
            ..Self::default()
        }
    }

    /// Number the next write will get.
    #[must_use]
    pub fn next_write(&self) -> WriteNr {
        WriteNr(u32::try_from(self.writes.len() + 1).expect("a run has fewer writes"))
    }

    /// A client submits a write.
    pub fn invoke(
        &mut self,
        now: SimTime,
        effect: Effect,
        first_cell: u64,
        cell_count: u64,
    ) -> WriteNr {
        let write = self.next_write();
        self.writes.push(Write {
            first_cell,
            cell_count,
            effect,
            invoked: now,
            ended: None,
            outcome: Outcome::InFlight,
        });
        for cell in first_cell..first_cell + cell_count {
            self.cells[at(cell)].push(Entry {
                write,
                seen_by: None,
                seen_from: None,
                durable: false,
                excused: false,
            });
        }
        write
    }

    /// A write is acknowledged.
    ///
    /// # Errors
    /// If its effect was already impossible: a newer activation served before.
    pub fn acknowledge(&mut self, now: SimTime, write: WriteNr, fua: bool) -> Checked {
        let record = &mut self.writes[at(u64::from(write.0) - 1)];
        if record.ended.is_some() {
            return Err(Violation::new(
                "late acknowledgement",
                format!("{write:?} was acknowledged after a newer activation served"),
            ));
        }
        record.ended = Some(now);
        record.outcome = Outcome::Acknowledged;
        let cells = record.first_cell..record.first_cell + record.cell_count;
        self.open.retain(|open| *open != write);
        for cell in cells {
            if fua {
                let entry = self.entry_mut(cell, write);
                entry.durable = true;
            } else {
                self.not_durable.push(cell);
            }
        }
        Ok(())
    }

    /// Cells of a write.
    #[must_use]
    pub fn cells_of(&self, write: WriteNr) -> core::ops::Range<u64> {
        let record = &self.writes[at(u64::from(write.0) - 1)];
        record.first_cell..record.first_cell + record.cell_count
    }

    /// Its client or its server is gone: the outcome stays unknown, it may still take effect.
    pub fn forget(&mut self, write: WriteNr) {
        let record = &mut self.writes[at(u64::from(write.0) - 1)];
        if record.outcome == Outcome::InFlight {
            record.outcome = Outcome::Unknown;
            self.open.push(write);
        }
    }

    /// A new activation serves: nothing of an earlier one may take effect from now on (R9, R14).
    pub fn close_unknown(&mut self, now: SimTime) {
        for write in self.open.drain(..) {
            self.writes[at(u64::from(write.0) - 1)].ended = Some(now);
        }
    }

    /// A client read `value` from `cell` between `invoked` and `ended`.
    ///
    /// # Errors
    /// If no order of operations explains it.
    pub fn observe(
        &mut self,
        cell: u64,
        value: Value,
        invoked: SimTime,
        ended: SimTime,
    ) -> Checked {
        self.explain(cell, value, invoked, ended, Must::Acknowledged)?;
        if let Value::Written(write) = value {
            let entry = self.entry_mut(cell, write);
            entry.seen_by = Some(entry.seen_by.map_or(ended, |seen| seen.min(ended)));
            entry.seen_from = Some(entry.seen_from.map_or(invoked, |seen| seen.max(invoked)));
            if !entry.durable {
                self.not_durable.push(cell);
            }
        }
        Ok(())
    }

    /// Whether `cell` may hold `value` now.
    ///
    /// # Errors
    /// If something that must be there was overwritten by it.
    pub fn check(&self, cell: u64, value: Value, now: SimTime, must: Must) -> Checked {
        self.explain(cell, value, now, now, must)
    }

    /// A flush that began at `invoked` is acknowledged. Returns the cells with newly durable
    /// content.
    pub fn flush(&mut self, invoked: SimTime) -> Vec<u64> {
        let mut cells = core::mem::take(&mut self.not_durable);
        cells.sort_unstable();
        cells.dedup();
        let mut covered = Vec::new();
        for cell in cells {
            let mut left = false;
            let mut newly = false;
            for index in 0..self.cells[at(cell)].len() {
                let entry = self.cells[at(cell)][index];
                if entry.durable {
                    continue;
                }
                match self.zone(&entry, Must::Acknowledged) {
                    Some(zone) if zone.finish <= invoked => {
                        self.cells[at(cell)][index].durable = true;
                        newly = true;
                    }
                    Some(_) => left = true,
                    None => {}
                }
            }
            if left {
                self.not_durable.push(cell);
            }
            if newly {
                covered.push(cell);
            }
        }
        covered
    }

    /// Power was cut. `survivors` gives what each replica in `in_sync` that has kept its volatile
    /// cache holds of a cell. Where there is none, what was not flushed is excused.
    ///
    /// # Errors
    /// If there are survivors and something acknowledged is on none of them.
    pub fn power_cut(&mut self, now: SimTime, survivors: impl Fn(u64) -> Vec<Value>) -> Checked {
        let mut cells = self.not_durable.clone();
        cells.sort_unstable();
        cells.dedup();
        for cell in cells {
            let values = survivors(cell);
            if values.is_empty() {
                self.excuse(cell);
                continue;
            }
            let checks = values
                .iter()
                .map(|value| self.check(cell, *value, now, Must::Acknowledged));
            checks.min_by_key(Result::is_err).unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// A replica that guests were ahead of serves now (protocol A): what was flushed must be there,
    /// and of the rest, `in_order`, nothing that was submitted after something that is missing had
    /// been acknowledged (I4). What is missing is excused.
    ///
    /// # Errors
    /// If it is no such prefix.
    pub fn survive(
        &mut self,
        now: SimTime,
        in_order: bool,
        holds: impl Fn(u64) -> Value,
    ) -> Checked {
        let mut missing = NEVER;
        let mut lost = Vec::new();
        for cell in self.touched().collect::<Vec<_>>() {
            let value = holds(cell);
            self.check(cell, value, now, Must::Flushed)?;
            if self.check(cell, value, now, Must::Acknowledged).is_err() {
                missing = missing.min(self.first_missing(cell, value));
                lost.push(cell);
            }
        }
        for cell in self.touched().filter(|_| in_order) {
            let Value::Written(write) = holds(cell) else {
                continue;
            };
            if self.writes[at(u64::from(write.0) - 1)].invoked > missing {
                let detail = format!(
                    "cell {cell} holds {write:?}, submitted after {} when something missing had \
                     been acknowledged; {}",
                    missing.0,
                    self.tell(cell)
                );
                return Err(Violation::new("survivor is a prefix", detail));
            }
        }
        for cell in lost {
            self.excuse(cell);
        }
        Ok(())
    }

    /// When the first write was acknowledged that a cell with this value surely lacks: zeroes may be
    /// of the newest write that makes some.
    fn first_missing(&self, cell: u64, value: Value) -> SimTime {
        let zeroing = |entry: &&Entry| self.record(entry).effect != Effect::Data;
        let there = match value {
            Value::Written(write) => Some(write),
            Value::Zero => {
                let newest = self.cells[at(cell)].iter().rev().find(zeroing);
                newest.map(|entry| entry.write)
            }
            Value::Garbage => None,
        };
        let from = there.map_or(SimTime(0), |write| {
            self.writes[at(u64::from(write.0) - 1)].invoked
        });
        let entries = self.cells[at(cell)].iter();
        entries
            .filter(|entry| !entry.durable && Some(entry.write) != there)
            .filter_map(|entry| self.zone(entry, Must::Acknowledged))
            .filter(|zone| zone.start > from)
            .map(|zone| zone.finish)
            .min()
            .unwrap_or(NEVER)
    }

    /// The last volatile copy of a cell may be gone: what was never flushed may be there or not.
    fn excuse(&mut self, cell: u64) {
        for index in 0..self.cells[at(cell)].len() {
            let entry = self.cells[at(cell)][index];
            if entry.durable {
                continue;
            }
            let entry = &mut self.cells[at(cell)][index];
            (entry.seen_by, entry.seen_from, entry.excused) = (None, None, true);
        }
    }

    /// An operator promoted a replica by force: what was written before may be there or not.
    pub fn force(&mut self) {
        for entry in self.cells.iter_mut().flatten() {
            (entry.seen_by, entry.seen_from, entry.excused) = (None, None, true);
            entry.durable = false;
        }
        self.not_durable.clear();
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acknowledged(&self) -> usize {
        self.writes
            .iter()
            .filter(|write| write.outcome == Outcome::Acknowledged)
            .count()
    }

    /// Cells that any write touched, in order.
    pub fn touched(&self) -> impl Iterator<Item = u64> + '_ {
        (0..)
            .zip(&self.cells)
            .filter(|(_, entries)| !entries.is_empty())
            .map(|(cell, _)| cell)
    }

    fn entry_mut(&mut self, cell: u64, write: WriteNr) -> &mut Entry {
        self.cells[at(cell)]
            .iter_mut()
            .find(|entry| entry.write == write)
            .expect("a write is entered in each of its cells")
    }

    fn record(&self, entry: &Entry) -> &Write {
        &self.writes[at(u64::from(entry.write.0) - 1)]
    }

    /// The zone of a write that certainly took effect; `None` if it need not have.
    fn zone(&self, entry: &Entry, must: Must) -> Option<Zone> {
        let record = self.record(entry);
        let promised = record.outcome == Outcome::Acknowledged
            && record.effect != Effect::Trim
            && !entry.excused;
        if !(promised || entry.seen_by.is_some()) || (must == Must::Flushed && !entry.durable) {
            return None;
        }
        Some(self.zone_if_effective(entry))
    }

    fn zone_if_effective(&self, entry: &Entry) -> Zone {
        let record = self.record(entry);
        let ended = if entry.excused { None } else { record.ended };
        Zone {
            finish: ended.unwrap_or(NEVER).min(entry.seen_by.unwrap_or(NEVER)),
            start: record.invoked.max(entry.seen_from.unwrap_or_default()),
        }
    }

    fn explain(
        &self,
        cell: u64,
        value: Value,
        invoked: SimTime,
        ended: SimTime,
        must: Must,
    ) -> Checked {
        let legal = match value {
            Value::Garbage => false,
            Value::Written(write) => {
                self.cells[at(cell)]
                    .iter()
                    .any(|entry| entry.write == write)
                    && self.fits(cell, Some(write), invoked, ended, must)
            }
            Value::Zero => {
                self.fits(cell, None, invoked, ended, must)
                    || self.cells[at(cell)].iter().any(|entry| {
                        self.record(entry).effect != Effect::Data
                            && self.fits(cell, Some(entry.write), invoked, ended, must)
                    })
            }
        };
        if legal {
            return Ok(());
        }
        let promise = match must {
            Must::Acknowledged => "acknowledged write lost",
            Must::Flushed => "flushed write not durable",
        };
        Err(Violation::new(
            promise,
            format!(
                "cell {cell} holds {value:?} at {}; {}",
                ended.0,
                self.tell(cell)
            ),
        ))
    }

    /// Whether a read of `write` (or of the initial content) contradicts nothing.
    fn fits(
        &self,
        cell: u64,
        write: Option<WriteNr>,
        invoked: SimTime,
        ended: SimTime,
        must: Must,
    ) -> bool {
        let own = write.map(|write| {
            self.cells[at(cell)]
                .iter()
                .find(|entry| entry.write == write)
                .expect("looked up by the caller")
        });
        if own.is_some_and(|entry| self.record(entry).invoked > ended) {
            return false;
        }
        let before = own.map_or(
            Zone {
                finish: SimTime(0),
                start: SimTime(0),
            },
            |entry| self.zone_if_effective(entry),
        );
        let zone = Zone {
            finish: before.finish.min(ended),
            start: before.start.max(invoked),
        };
        self.cells[at(cell)]
            .iter()
            .filter(|entry| Some(entry.write) != write)
            .filter_map(|entry| self.zone(entry, must))
            .all(|other| !zone.contradicts(other))
    }

    /// The last writes of a cell, for people.
    #[must_use]
    pub fn tell(&self, cell: u64) -> String {
        use core::fmt::Write as _;
        let entries = &self.cells[at(cell)];
        let mut text = String::from("writes:");
        for entry in &entries[entries.len().saturating_sub(14)..] {
            let record = self.record(entry);
            let ended = record
                .ended
                .map_or_else(|| "-".into(), |ended| ended.0.to_string());
            write!(
                text,
                " #{} {:?} {:?} {}..{}{}{}{};",
                entry.write.0,
                record.effect,
                record.outcome,
                record.invoked.0,
                ended,
                if entry.seen_by.is_some() { " seen" } else { "" },
                if entry.durable { " durable" } else { "" },
                if entry.excused { " excused" } else { "" },
            )
            .expect("a string takes everything");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(value: u64) -> SimTime {
        SimTime(value)
    }

    fn written(history: &mut History, invoked: u64, acked: u64) -> WriteNr {
        let write = history.invoke(time(invoked), Effect::Data, 0, 1);
        history.acknowledge(time(acked), write, false).unwrap();
        write
    }

    fn read(history: &mut History, write: WriteNr, invoked: u64, ended: u64) -> Checked {
        history.observe(0, Value::Written(write), time(invoked), time(ended))
    }

    #[test]
    fn an_overwritten_value_is_stale_and_a_concurrent_one_is_not() {
        let mut history = History::new(1);
        let first = written(&mut history, 1, 5);
        let second = written(&mut history, 3, 8);
        assert!(read(&mut history, first, 9, 10).is_ok());
        assert!(read(&mut history, second, 11, 12).is_err(), "it came back");
        let third = written(&mut history, 20, 25);
        assert!(read(&mut history, first, 26, 27).is_err());
        assert!(read(&mut history, third, 26, 27).is_ok());
    }

    #[test]
    fn zeroes_where_an_acknowledged_write_was_are_a_loss() {
        let mut history = History::new(1);
        assert!(history.observe(0, Value::Zero, time(0), time(1)).is_ok());
        written(&mut history, 2, 3);
        assert!(
            history
                .check(0, Value::Zero, time(4), Must::Acknowledged)
                .is_err()
        );
        assert!(
            history
                .check(0, Value::Garbage, time(4), Must::Acknowledged)
                .is_err()
        );
    }

    #[test]
    fn an_unknown_write_may_show_or_not_until_a_new_activation_serves() {
        let mut history = History::new(1);
        let first = written(&mut history, 1, 2);
        let lost = history.invoke(time(3), Effect::Data, 0, 1);
        history.forget(lost);
        assert!(read(&mut history, first, 5, 6).is_ok());
        history.close_unknown(time(7));
        let second = written(&mut history, 8, 9);
        assert!(read(&mut history, lost, 10, 11).is_err(), "it landed late");
        assert!(read(&mut history, second, 10, 11).is_ok());
        assert!(history.acknowledge(time(12), lost, false).is_err());
    }

    #[test]
    fn what_was_read_must_stay() {
        let mut history = History::new(1);
        let first = written(&mut history, 1, 2);
        let lost = history.invoke(time(3), Effect::Data, 0, 1);
        history.forget(lost);
        assert!(read(&mut history, lost, 5, 6).is_ok());
        assert!(read(&mut history, first, 7, 8).is_err());
    }

    #[test]
    fn a_trim_may_zero_or_not() {
        let mut history = History::new(1);
        let first = written(&mut history, 1, 2);
        let trim = history.invoke(time(3), Effect::Trim, 0, 1);
        history.acknowledge(time(4), trim, false).unwrap();
        assert!(
            history
                .check(0, Value::Zero, time(5), Must::Acknowledged)
                .is_ok()
        );
        assert!(read(&mut history, first, 5, 6).is_ok());
        written(&mut history, 7, 8);
        assert!(
            history
                .check(0, Value::Zero, time(9), Must::Acknowledged)
                .is_err()
        );
    }

    #[test]
    fn a_power_cut_of_the_last_copy_excuses_only_what_was_not_flushed() {
        let mut history = History::new(1);
        let flushed = written(&mut history, 1, 2);
        assert_eq!(history.flush(time(3)), [0]);
        let cached = written(&mut history, 4, 5);
        assert!(
            history
                .check(0, Value::Written(flushed), time(6), Must::Flushed)
                .is_ok()
        );
        let elsewhere = history.clone();
        history.power_cut(time(6), |_| Vec::new()).unwrap();
        assert!(read(&mut history, flushed, 7, 8).is_ok());

        let mut history = elsewhere.clone();
        history
            .power_cut(time(6), |_| vec![Value::Written(cached)])
            .unwrap();
        assert!(
            read(&mut history, flushed, 7, 8).is_err(),
            "the peer still had it"
        );

        let mut history = elsewhere;
        assert!(
            history
                .power_cut(time(6), |_| vec![Value::Written(flushed)])
                .is_err()
        );
    }

    #[test]
    fn a_flush_covers_what_was_acknowledged_before_it_began() {
        let mut history = History::new(2);
        written(&mut history, 1, 5);
        let later = history.invoke(time(2), Effect::Data, 1, 1);
        history.acknowledge(time(7), later, false).unwrap();
        assert_eq!(history.flush(time(6)), [0]);
        assert!(
            history
                .check(0, Value::Zero, time(8), Must::Flushed)
                .is_err()
        );
        assert!(
            history
                .check(1, Value::Zero, time(8), Must::Flushed)
                .is_ok()
        );
    }
}
