//! `status --check` and `--nagios`: how bad is it, as an exit code.

use replicator::admin::{ErrorId, ResourceStatus, Status, exit};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// Nothing is wrong.
    Fine,
    /// Something redundant is missing.
    Degraded,
    /// Guests wait, or there is no data to serve.
    Unavailable,
}

/// The worst of all resources.
#[must_use]
pub fn health(status: &Status) -> Health {
    let cluster = &status.cluster;
    let held_back = cluster.standby || cluster.maintenance;
    let troubles = [&cluster.store_error, &cluster.tls_mismatch];
    let troubled = held_back || troubles.iter().any(|it| it.is_some());
    let cluster = if cluster.arbitrator_lost() || troubled {
        Health::Degraded
    } else {
        Health::Fine
    };
    status
        .resources
        .iter()
        .map(health_of)
        .fold(cluster, Health::max)
}

fn health_of(resource: &ResourceStatus) -> Health {
    let id = resource.problem.as_deref().map(ErrorId::from_code);
    match id {
        _ if resource.suspended.is_some() => Health::Unavailable,
        None => Health::Fine,
        // Of a newer daemon: an error is worse than a warning.
        Some(None)
            if resource
                .problem
                .as_deref()
                .is_some_and(|id| id.starts_with('E')) =>
        {
            Health::Unavailable
        }
        Some(Some(id)) if id.exit() == exit::UNAVAILABLE => Health::Unavailable,
        Some(_) => Health::Degraded,
    }
}

impl Health {
    /// Exit code of `--check`.
    #[must_use]
    pub fn exit(self) -> u8 {
        match self {
            Self::Fine => exit::OK,
            Self::Degraded => exit::DEGRADED,
            Self::Unavailable => exit::UNAVAILABLE,
        }
    }
}

/// The line and the exit code of `--nagios`.
#[must_use]
pub fn nagios(status: &Status) -> (String, u8) {
    let (word, exit) = match health(status) {
        Health::Fine => ("OK", 0),
        Health::Degraded => ("WARNING", 1),
        Health::Unavailable => ("CRITICAL", 2),
    };
    let mut sentences: Vec<String> = status
        .resources
        .iter()
        .filter(|resource| resource.problem.is_some())
        .map(|resource| {
            format!(
                "{}: {}",
                resource.name,
                resource.status.as_deref().unwrap_or("problem")
            )
        })
        .collect();
    if status.cluster.store_error.is_some() {
        sentences.push(format!("{} cannot record its votes", status.node));
    }
    if let Some(why) = &status.cluster.tls_mismatch {
        sentences.push(why.clone());
    }
    if status.cluster.standby {
        sentences.push(format!("{} is in standby", status.node));
    }
    if status.cluster.maintenance {
        sentences.push(format!("maintenance is on at {}", status.node));
    }
    if status.cluster.arbitrator_lost() {
        sentences.push("the arbitrator does not answer".to_owned());
    }
    if sentences.is_empty() {
        sentences.push(format!("{} resources", status.resources.len()));
    }
    let (count, problems) = (status.resources.len(), status.cluster.problems);
    let line = format!(
        "TWINBLK {word} - {}|resources={count} problems={problems}\n",
        sentences.join("; ")
    );
    (line, exit)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{healthy, quorum_lost, resyncing};
    use super::*;

    #[test]
    fn the_three_degrees_have_their_codes() {
        assert_eq!(health(&healthy()).exit(), 0);
        assert_eq!(health(&resyncing()).exit(), 12);
        assert_eq!(health(&quorum_lost()).exit(), 13);
    }

    #[test]
    fn nagios_gets_one_line() {
        assert_eq!(
            nagios(&healthy()),
            (
                "TWINBLK OK - 2 resources|resources=2 problems=0\n".to_owned(),
                0
            )
        );
        let (line, exit) = nagios(&resyncing());
        assert_eq!(exit, 1);
        assert!(
            line.starts_with("TWINBLK WARNING - vm-web: one up-to-date copy"),
            "{line}"
        );
        assert_eq!(nagios(&quorum_lost()).1, 2);
    }

    #[test]
    fn a_node_without_a_vote_is_a_degradation() {
        let mut status = healthy();
        status.cluster.store_error = Some("no space left".to_owned());
        assert_eq!(health(&status), Health::Degraded);
        let (line, exit) = nagios(&status.concluded());
        assert!(line.contains("kvm-a cannot record its votes|"), "{line}");
        assert_eq!(exit, 1);
    }

    #[test]
    fn an_unknown_error_id_is_worse_than_an_unknown_warning() {
        let mut status = healthy();
        status.resources[0].problem = Some("W9999".to_owned());
        assert_eq!(health(&status), Health::Degraded);
        status.resources[0].problem = Some("E9999".to_owned());
        assert_eq!(health(&status), Health::Unavailable);
    }
}
