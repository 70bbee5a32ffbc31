//! `--dry-run`: what an order would change, from the status alone. Pure. The daemon's refusals are
//! not foreseen: a plan says what would be tried.

use replicator::admin::{MaxRate, ResourceStatus, Verb};
use replicator::types::{ConnectionState, DiskState, ReplicationState, Role};

use crate::show::size::size;

/// The steps an order would take on this resource; none if it is so already.
#[must_use]
pub fn plan(verb: &Verb, resource: &ResourceStatus) -> Vec<String> {
    let name = &resource.name;
    let primary = resource.role == Some(Role::Primary);
    let mut steps = Vec::new();
    let mut step = |when: bool, text: String| {
        if when {
            steps.push(text);
        }
    };
    match verb {
        Verb::Up { .. } => {
            step(!resource.up, format!("{name}: attach, connect, export"));
            step(resource.held, format!("{name}: lift the hold made by hand"));
        }
        Verb::Down { .. } => {
            step(resource.up && primary, format!("{name}: demote"));
            step(
                resource.up,
                format!("{name}: stop exporting, disconnect, detach"),
            );
        }
        Verb::Attach { .. } => {
            let away = resource.volumes.iter().any(|volume| is_away(volume.disk));
            step(away, format!("{name}: attach"));
        }
        Verb::Detach { .. } => {
            let attached = resource.volumes.iter().any(|volume| !is_away(volume.disk));
            step(attached, format!("{name}: detach"));
        }
        Verb::Connect { .. } => {
            let alone = resource
                .peers
                .iter()
                .any(|peer| !resource.up || is_alone(peer.connection));
            step(alone, format!("{name}: connect"));
        }
        Verb::Disconnect { .. } => {
            let wants = resource
                .peers
                .iter()
                .any(|peer| resource.up && !is_alone(peer.connection));
            step(wants, format!("{name}: disconnect"));
        }
        Verb::PauseSync { .. } => {
            step(!resource.sync_paused, format!("{name}: hold resyncs"));
        }
        Verb::ResumeSync { .. } => {
            step(resource.sync_paused, format!("{name}: let resyncs go on"));
        }
        Verb::Resize { size: wanted, .. } => {
            // Of several only the last can be meant.
            let now = resource.volumes.last().and_then(|it| it.size_bytes);
            let to = wanted.map_or("as large as both disks allow".to_owned(), |wanted| {
                format!("to {}", size(wanted))
            });
            step(
                wanted.is_none() || *wanted != now,
                format!("{name}: enlarge the volume {to}, zeroing what is new on both"),
            );
        }
        Verb::SuspendIo { .. } => {
            let goes_on = resource.suspended.as_deref() != Some("user");
            step(goes_on, format!("{name}: suspend writes, make all durable"));
        }
        Verb::ResumeIo { .. } => {
            let held = resource.suspended.as_deref() == Some("user");
            step(held, format!("{name}: let writes go on"));
        }
        Verb::Resync { max_rate, .. } => {
            let unlimited = *max_rate == MaxRate::Unlimited;
            let differs = resource.resync_limit_bytes_per_second != max_rate.limit()
                || resource.resync_unlimited != unlimited;
            let speed = match max_rate {
                MaxRate::Auto => "as fast as guests do not feel it".to_owned(),
                MaxRate::Unlimited => "as fast as disks and link allow".to_owned(),
                MaxRate::BytesPerSecond(rate) => format!("at {}/s at most", size(*rate)),
            };
            step(differs, format!("{name}: resync {speed}"));
        }
        Verb::Verify { repair, stop, .. } => {
            let mut volumes = resource.peers.iter().flat_map(|peer| &peer.volumes);
            let runs = volumes.any(|volume| {
                matches!(
                    volume.replication,
                    ReplicationState::VerifyS | ReplicationState::VerifyT
                )
            });
            let what = match (stop, repair) {
                (true, _) => "stop the verify",
                (false, true) => "compare both replicas, write again what differs",
                (false, false) => "compare both replicas",
            };
            step(runs == *stop, format!("{name}: {what}"));
        }
        Verb::Invalidate { from, .. } => {
            let why = "leave this node out of the view, throw its data away, copy all from";
            step(true, format!("{name}: {why} {from}"));
        }
        Verb::InvalidateRemote { peer, .. } => {
            let what = format!("leave {peer} out of the view, throw its data away, copy all to it");
            step(true, format!("{name}: {what}"));
        }
        Verb::Primary { force: true, .. } => {
            step(
                !primary || resource.suspended.is_some(),
                format!("{name}: promote, by force where nothing else will do"),
            );
        }
        Verb::Primary { .. } => step(!primary, format!("{name}: promote")),
        Verb::Secondary { .. } => {
            step(primary, format!("{name}: demote, and hold so"));
        }
        Verb::Move { to, .. } => {
            let there = resource.view_primary.as_ref() == Some(to) && !resource.held;
            step(!there, format!("{name}: demote, and promote on {to}"));
        }
        Verb::NodeDrain
        | Verb::NodeResume
        | Verb::Maintenance { .. }
        | Verb::ConfirmFenced { .. }
        | Verb::Status { .. }
        | Verb::Events2 { .. }
        | Verb::Why { .. }
        | Verb::Quorum
        | Verb::WhatIf { .. }
        | Verb::History { .. }
        | Verb::Version
        | Verb::Reexec
        | Verb::Room { .. }
        | Verb::Adjust { .. } => {}
    }
    steps
}

fn is_away(disk: Option<DiskState>) -> bool {
    matches!(disk, None | Some(DiskState::Diskless | DiskState::Failed))
}

fn is_alone(connection: ConnectionState) -> bool {
    connection == ConnectionState::StandAlone
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::show::samples::{down, healthy};

    fn resource() -> String {
        "vm-web".to_owned()
    }

    #[test]
    fn what_is_so_already_needs_no_step() {
        let up = &healthy().resources[1];
        let verbs = [
            Verb::Up {
                resource: resource(),
            },
            Verb::Attach {
                resource: resource(),
                volume: None,
            },
            Verb::Connect {
                resource: resource(),
                peer: None,
            },
            Verb::Primary {
                resource: resource(),
                force: false,
                yes_lose: None,
            },
        ];
        for verb in verbs {
            assert_eq!(plan(&verb, up), Vec::<String>::new(), "{verb:?}");
        }
        for verb in [
            Verb::Down {
                resource: resource(),
                force: false,
            },
            Verb::Detach {
                resource: resource(),
                volume: None,
            },
            Verb::Disconnect {
                resource: resource(),
                peer: None,
            },
            Verb::Secondary {
                resource: resource(),
                force: false,
            },
        ] {
            assert_eq!(plan(&verb, &down()), Vec::<String>::new(), "{verb:?}");
        }
    }

    #[test]
    fn orders_about_resyncs_are_planned_from_what_is_ordered_already() {
        let (mut held, free) = (healthy().resources.remove(1), healthy().resources.remove(1));
        held.sync_paused = true;
        held.resync_limit_bytes_per_second = Some(1 << 20);
        let pause = Verb::PauseSync {
            resource: resource(),
        };
        let resume = Verb::ResumeSync {
            resource: resource(),
        };
        let limit = Verb::Resync {
            resource: resource(),
            max_rate: MaxRate::BytesPerSecond(1 << 20),
        };
        let none: [&str; 0] = [];
        assert_eq!(plan(&pause, &held), none);
        assert_eq!(plan(&pause, &free), ["vm-web: hold resyncs"]);
        assert_eq!(plan(&resume, &held), ["vm-web: let resyncs go on"]);
        assert_eq!(plan(&resume, &free), none);
        assert_eq!(plan(&limit, &held), none);
        assert_eq!(plan(&limit, &free), ["vm-web: resync at 1.0 MiB/s at most"]);
        let unlimited = Verb::Resync {
            resource: resource(),
            max_rate: MaxRate::Unlimited,
        };
        let auto = Verb::Resync {
            resource: resource(),
            max_rate: MaxRate::Auto,
        };
        assert_eq!(plan(&auto, &free), none);
        assert_eq!(
            plan(&unlimited, &free),
            ["vm-web: resync as fast as disks and link allow"]
        );
        let mut free = free;
        free.resync_unlimited = true;
        assert_eq!(plan(&unlimited, &free), none);
        assert_eq!(
            plan(&auto, &free),
            ["vm-web: resync as fast as guests do not feel it"]
        );
    }

    #[test]
    fn a_move_is_a_step_only_to_where_the_primary_is_not() {
        let to = |to: &str| Verb::Move {
            resource: resource(),
            to: to.to_owned(),
            passed_on: false,
        };
        let here = &healthy().resources[1];
        assert_eq!(plan(&to("kvm-a"), here), Vec::<String>::new());
        assert_eq!(
            plan(&to("kvm-b"), here),
            ["vm-web: demote, and promote on kvm-b"]
        );
    }

    #[test]
    fn the_other_way_round_there_are_steps() {
        let verb = Verb::Down {
            resource: resource(),
            force: false,
        };
        assert_eq!(
            plan(&verb, &healthy().resources[1]),
            [
                "vm-web: demote",
                "vm-web: stop exporting, disconnect, detach"
            ]
        );
        assert_eq!(
            plan(
                &Verb::Up {
                    resource: resource()
                },
                &down()
            )
            .len(),
            1
        );
        assert_eq!(
            plan(
                &Verb::Primary {
                    resource: resource(),
                    force: false,
                    yes_lose: None,
                },
                &down()
            )
            .len(),
            1
        );
    }
}
