//! `quorum show`: who votes, who is seen, what this voter recorded, and what the deadlines mean.

use replicator::admin::{
    BallotReport, QUORUM_SCHEMA, QuorumReport, Response, TimingReport, VoterReport, rfc3339_seconds,
};
use replicator::types::{Ballot, NodeId, ResourceId, ViewNumber, VoterSet};

use super::node::{Answer, Node, Question};
use super::orders::Outcome;
use super::running::timing;
use super::why::{view_report, votes_needed};
use crate::config::TimingProfile;
use crate::controller::{NodeSnapshot, VoterRecord, VotersSnapshot};

impl Node {
    pub(super) fn quorum(&self) -> Outcome {
        let Some(Answer::Voters(voters)) = self.ask(Question::Voters) else {
            return Err(self.controller_silent());
        };
        let seen = &voters.seen;
        let mut resources: Vec<_> = voters
            .records
            .iter()
            .map(|(id, record)| self.ballot_report(*id, record))
            .collect();
        resources.sort_by(|one, other| one.resource.cmp(&other.resource));
        Ok(Response::Quorum(Box::new(QuorumReport {
            schema: QUORUM_SCHEMA.to_owned(),
            generated: rfc3339_seconds(Self::moment().unix_millis),
            node: self.name().to_owned(),
            cluster: self.config.cluster.clone(),
            quorum: seen.quorum,
            votes_seen: u8::try_from(seen.voters_seen).unwrap_or(u8::MAX),
            votes_needed: votes_needed(),
            voters: self.reports_of(&voters),
            store_error: self.board.read(|board| board.store_error.clone()),
            timing: timing_report(self.config.quorum.timing),
            outlook: outlook(seen, self.config.arbitrator().is_some()).to_owned(),
            resources,
        })))
    }

    /// The voters, for other answers; empty if the controller does not answer.
    pub(super) fn voter_reports(&self) -> Vec<VoterReport> {
        match self.ask(Question::Voters) {
            Some(Answer::Voters(voters)) => self.reports_of(&voters),
            _ => Vec::new(),
        }
    }

    fn reports_of(&self, voters: &VotersSnapshot) -> Vec<VoterReport> {
        let VotersSnapshot { seen, ids, .. } = voters;
        NodeId::ALL
            .into_iter()
            .filter(|node| self.config.node(*node).is_some())
            .map(|node| self.voter_report(node, seen, ids[node.index()].map(|id| id.0)))
            .collect()
    }

    fn voter_report(&self, node: NodeId, seen: &NodeSnapshot, id: Option<u128>) -> VoterReport {
        let voter = seen.voters[node.index()];
        let role = if node.is_data() { "data" } else { "arbitrator" };
        VoterReport {
            node: self.config.node_name(node).to_owned(),
            role: role.to_owned(),
            id: id.map(|id| format!("{id:032x}")),
            seen: voter.seen,
            last_seen_seconds: voter.last_seen.map(|ago| ago.as_secs_f64()),
            rtt_seconds: voter.rtt.map(|rtt| rtt.as_secs_f64()),
            paths_up: u8::try_from(voter.paths_up.count_ones()).unwrap_or(u8::MAX),
        }
    }

    fn ballot_report(&self, id: ResourceId, record: &VoterRecord) -> BallotReport {
        let committed = record
            .committed
            .map_or(ViewNumber::NONE, |view| view.number);
        let accepted = record.acceptor.accepted;
        let voters = record.newest().map(|view| view.voters).unwrap_or_default();
        BallotReport {
            resource: self.resource_name(id),
            promised: ballot_text(record.acceptor.promised),
            accepted: accepted.map(|(ballot, _)| ballot_text(ballot)),
            accepted_view: accepted.map(|(_, view)| view_report(&self.config, &view, committed)),
            committed_view: record.committed.map(|view| view.number.0),
            recorded: self.recorded(&voters),
            seal: record.seal.0,
        }
    }

    fn recorded(&self, voters: &VoterSet) -> Vec<String> {
        let all = NodeId::ALL.into_iter().zip(voters.0);
        all.filter(|(_, id)| id.is_some())
            .map(|(node, _)| self.config.node_name(node).to_owned())
            .collect()
    }
}

fn ballot_text(ballot: Ballot) -> String {
    format!("{}.{}.{}", ballot.round, ballot.node, ballot.incarnation)
}

fn timing_report(profile: TimingProfile) -> TimingReport {
    let name = match profile {
        TimingProfile::Fast => "fast",
        TimingProfile::Default => "default",
        TimingProfile::Relaxed => "relaxed",
    };
    let timing = timing(profile);
    let [beacon, suspicion, lease, grant] =
        [timing.beacon, timing.suspicion, timing.lease, timing.grant].map(|it| it.as_secs_f64());
    TimingReport {
        profile: name.to_owned(),
        beacon_seconds: beacon,
        suspicion_seconds: suspicion,
        lease_seconds: lease,
        grant_seconds: grant,
        words: vec![
            format!("the data nodes hear of each other every {beacon} s"),
            format!("a Primary goes on without a peer that was silent for {suspicion} s"),
            format!("a Primary cut off from everybody answers nothing after {lease} s"),
            format!("its peer takes over after {grant} s of silence, never earlier"),
        ],
    }
}

/// What the loss of one more voter would mean.
pub(super) fn outlook(seen: &NodeSnapshot, has_arbitrator: bool) -> &'static str {
    let arbitrator = seen.voters[NodeId::ARBITRATOR.index()].seen;
    match seen.voters_seen {
        0 | 1 => "no view can be changed: who serves alone goes on, and nobody begins to serve",
        2 if !has_arbitrator => {
            "there is no arbitrator: the loss of a data node holds writes until an operator decides"
        }
        2 if arbitrator => {
            "a data node is away: who serves alone goes on whatever is lost, but after a restart it \
             needs the other voter"
        }
        2 => "the arbitrator is away: the loss of a data node holds what is mirrored",
        _ => "any one of them may be lost",
    }
}
