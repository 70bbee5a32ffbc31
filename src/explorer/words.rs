//! Steps in words, for the trace of a violation.

use super::machine::{Action, Machine};
use super::state::{Sent, State};

const NAMES: [&str; 3] = ["A", "B", "T"];

impl Machine {
    /// One step as a line.
    pub(super) fn tell(&self, before: &State, action: &Action, after: &State) -> String {
        let round = |slot: usize| self.round_name(before.sent[slot]);
        let lost = |reply: bool| if reply { "" } else { ", the answer is lost" };
        let text = match *action {
            Action::Begin { node } => format!("{} begins a round", NAMES[node]),
            Action::Prepare { slot, voter, reply } => {
                format!(
                    "{} gets the Prepare of {}{}",
                    NAMES[voter],
                    round(slot),
                    lost(reply)
                )
            }
            Action::Decide { node, kind } => match kind {
                Some(kind) => format!("{} reads the register and wishes {kind:?}", NAMES[node]),
                None => format!(
                    "{} reads the register and finishes what it finds",
                    NAMES[node]
                ),
            },
            Action::Drained { node } => format!("{} has drained and sealed on disk", NAMES[node]),
            Action::Accept { slot, voter, reply } => {
                format!(
                    "{} gets the Accept of {}{}",
                    NAMES[voter],
                    round(slot),
                    lost(reply)
                )
            }
            Action::Learn { node, number } => format!("{} hears of view {number}", NAMES[node]),
            Action::Beacon { node, reply } => {
                format!("{}'s beacon is answered{}", NAMES[node], lost(reply))
            }
            Action::LeaseEnds { node } => format!("{}'s lease ends", NAMES[node]),
            Action::GrantEnds { node } => format!("{}'s grant ends", NAMES[node]),
            Action::Crash { node, lands } => {
                let queued = if lands {
                    ", what was submitted lands"
                } else {
                    ""
                };
                format!("{} crashes and restarts{queued}", NAMES[node])
            }
            Action::Wipe => "T loses its store".to_owned(),
            Action::Stop { node } => format!("{} is demoted by hand", NAMES[node]),
            Action::GiveStopUp { node } => format!("the demotion of {} is given up", NAMES[node]),
            Action::Connect { node } => format!("{} gets a session", NAMES[node]),
            Action::Cut { node } => format!("{}'s session is cut", NAMES[node]),
            Action::Write { node } => format!("a guest writes on {}", NAMES[node]),
            Action::Replicate { node, write } => format!("{} sends write {write}", NAMES[node]),
            Action::Land { node, write } => format!("write {write} reaches {}'s disk", NAMES[node]),
            Action::Complete { node, write } => {
                format!("{} acknowledges write {write}", NAMES[node])
            }
            Action::Resync { node } => format!("{} resyncs its peer", NAMES[node]),
            Action::BeginAdd { node } => format!("{} begins an Add", NAMES[node]),
        };
        format!("{text}; {}", self.situation(after))
    }

    fn round_name(&self, sent: Sent) -> String {
        let ballot = sent.ballot.unpack();
        let view = self.table.view(sent.view).map_or_else(String::new, |view| {
            format!(" for view {} ({:?})", view.number, view.cause)
        });
        format!(
            "{}'s round {}{view}",
            NAMES[usize::from(ballot.node)],
            ballot.round
        )
    }

    /// Who serves in which view.
    fn situation(&self, state: &State) -> String {
        let serving: Vec<_> = (0..2)
            .filter_map(|node| {
                let view = self.table.view(state.nodes[node].active)?;
                let gate = if self.is_open(state, node) {
                    "open"
                } else {
                    "shut"
                };
                Some(format!(
                    "{} in view {}, gate {gate}",
                    NAMES[node], view.number
                ))
            })
            .collect();
        if serving.is_empty() {
            "nobody is active".to_owned()
        } else {
            serving.join("; ")
        }
    }
}
