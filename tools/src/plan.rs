//! `--dry-run`: what an order would change, from the status alone. Pure. The daemon's refusals are
//! not foreseen: a plan says what would be tried.

use replicator::admin::{ResourceStatus, Verb};
use replicator::types::{ConnectionState, DiskState, Role};

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
        Verb::Primary { .. } => step(!primary, format!("{name}: promote")),
        Verb::Secondary { .. } => {
            step(primary, format!("{name}: demote, and hold so"));
        }
        Verb::Status { .. } | Verb::Events2 { .. } | Verb::Version => {}
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
                    resource: resource()
                },
                &down()
            )
            .len(),
            1
        );
    }
}
