//! What two configurations say differently, key by key.

use std::collections::BTreeMap;
use std::path::PathBuf;

use replicator::types::NodeId;

use super::canonical::{Table, toml_text};
use super::types::{Config, ResourceConfig};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only the second has this resource.
    Added(String),
    /// Only the first has it.
    Removed(String),
    /// A key has another value.
    Key {
        /// The resource it belongs to; `None`: to the cluster.
        resource: Option<String>,
        /// `net.timeout`, `vm-web.volume[0].disk`.
        key: String,
        /// Its value in the first as TOML; `None`: it has none.
        from: Option<String>,
        /// Its value in the second.
        to: Option<String>,
    },
}

impl Difference {
    /// The resource it is about.
    #[must_use]
    pub fn resource(&self) -> Option<&str> {
        match self {
            Self::Added(name) | Self::Removed(name) => Some(name),
            Self::Key { resource, .. } => resource.as_deref(),
        }
    }
}

impl Config {
    /// What `new` says differently, in the order of its keys' names.
    #[must_use]
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let (old_keys, new_keys) = (self.flat(), new.flat());
        let mut found: Vec<_> = new
            .resources
            .iter()
            .filter(|it| self.resource(&it.name).is_none())
            .map(|it| Difference::Added(it.name.clone()))
            .collect();
        let gone = self.resources.iter();
        let gone = gone.filter(|it| new.resource(&it.name).is_none());
        found.extend(gone.map(|it| Difference::Removed(it.name.clone())));
        let in_both = |name: &str| self.resource(name).is_some() && new.resource(name).is_some();
        let keys: BTreeMap<_, ()> = old_keys
            .keys()
            .chain(new_keys.keys())
            .map(|it| (it, ()))
            .collect();
        for (at, ()) in keys {
            let (from, to) = (old_keys.get(at), new_keys.get(at));
            if from == to || at.resource.as_deref().is_some_and(|name| !in_both(name)) {
                continue;
            }
            found.push(Difference::Key {
                resource: at.resource.clone(),
                key: at.key.clone(),
                from: from.cloned(),
                to: to.cloned(),
            });
        }
        found
    }

    /// Each key with its value, defaults included.
    fn flat(&self) -> BTreeMap<At, String> {
        let mut flat = BTreeMap::new();
        let mut volume = 0;
        for table in self.tables() {
            let (resource, prefix) = place_of(&table, &mut volume);
            for entry in &table.entries {
                let key = match prefix.is_empty() {
                    true => entry.key.to_owned(),
                    false => format!("{prefix}.{}", entry.key),
                };
                let at = At {
                    resource: resource.clone(),
                    key,
                };
                flat.insert(at, toml_text(&entry.value));
            }
        }
        flat
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    resource: Option<String>,
    key: String,
}

/// The resource of a table, and what its keys are called after. `volume` counts within a resource.
fn place_of(table: &Table, volume: &mut usize) -> (Option<String>, String) {
    let path: Vec<&str> = table.path.iter().map(String::as_str).collect();
    match path[..] {
        ["resource", name] => {
            *volume = 0;
            (Some(name.to_owned()), name.to_owned())
        }
        ["resource", name, "volume"] => {
            *volume += 1;
            (
                Some(name.to_owned()),
                format!("{name}.volume[{}]", *volume - 1),
            )
        }
        ["resource", name, ref rest @ ..] => {
            (Some(name.to_owned()), format!("{name}.{}", rest.join(".")))
        }
        _ => (None, path.join(".")),
    }
}

/// Keys of a resource's own table that may change while it is up.
const LIVE: [&str; 6] = [
    "prefer",
    "failback",
    "hold-down",
    "priority",
    "failover",
    "nbd-allow",
];

impl ResourceConfig {
    /// This one with the values of `new` that may change while it is up; `None` if all of them may.
    ///
    /// So `None` means: take `new` as it is.
    #[must_use]
    pub fn with_live_values_of(&self, new: &Self) -> Option<Self> {
        let mut mixed = self.clone();
        mixed.prefer = new.prefer;
        mixed.failback = new.failback;
        mixed.hold_down = new.hold_down;
        mixed.priority = new.priority;
        mixed.failover = new.failover;
        mixed.nbd_allow.clone_from(&new.nbd_allow);
        // Of several volumes only the last can grow; where the others end the next one begins.
        if let (Some(last), Some(known)) = (mixed.volumes.last_mut(), new.volumes.last())
            && last.id == known.id
        {
            last.size = known.size;
        }
        (mixed != *new).then_some(mixed)
    }

    /// Whether this key, as [`Difference::Key`] names it, may change while it is up.
    #[must_use]
    pub fn is_live(&self, key: &str) -> bool {
        let own = key
            .strip_prefix(&self.name)
            .and_then(|it| it.strip_prefix('.'));
        own.is_some_and(|own| LIVE.contains(&own)) || self.is_size(key)
    }

    /// Whether this key says which volumes there are, or where another than the first one starts: that is
    /// fixed when metadata are made.
    #[must_use]
    pub fn is_fixed(&self, new: &Self, key: &str) -> bool {
        let own = key
            .strip_prefix(&self.name)
            .and_then(|own| own.strip_prefix(".volume["));
        let Some((nr, key)) = own.and_then(|own| own.split_once("].")) else {
            return false;
        };
        let nr = nr.parse().unwrap_or(usize::MAX);
        let id = |of: &Self| of.volumes.get(nr).map(|volume| volume.id);
        let last = self.volumes.len().max(new.volumes.len()).saturating_sub(1);
        id(self) != id(new) || key == "size" && nr < last
    }

    /// Whether it is the `size` of one of its volumes, which counts when metadata are made.
    #[must_use]
    pub fn is_size(&self, key: &str) -> bool {
        let own = key.strip_prefix(&self.name);
        own.is_some_and(|own| own.starts_with(".volume[") && own.ends_with("].size"))
    }
}

/// A device that two resources would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedTwice {
    /// The device or file.
    pub path: PathBuf,
    /// A resource that has it.
    pub first: String,
    /// Another one, or the same.
    pub second: String,
}

/// The first device that is used twice on `node`. Files are checked for that when they are read;
/// resources of different readings beside each other are not.
#[must_use]
pub fn device_used_twice(resources: &[ResourceConfig], node: NodeId) -> Option<UsedTwice> {
    let mut seen = BTreeMap::new();
    if !node.is_data() {
        return None;
    }
    for resource in resources {
        for volume in &resource.volumes {
            let paths = volume.replica(node);
            let is_first = resource.volumes.first() == Some(volume);
            // One metadata area serves all volumes of a resource.
            for path in [&paths.disk]
                .into_iter()
                .chain(is_first.then_some(&paths.meta))
            {
                if let Some(first) = seen.insert(path, &resource.name) {
                    return Some(UsedTwice {
                        path: path.clone(),
                        first: first.clone(),
                        second: resource.name.clone(),
                    });
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FileKind, SourceFile, parse};

    const BASE: &str = r#"
config-version = 1
[cluster]
name = "lab"
[node.a]
address = ["127.0.0.1:1"]
[node.b]
address = ["127.0.0.1:2"]
[net]
tls = "off"
[resource.one]
[[resource.one.volume]]
id = 0
disk = "/dev/one"
meta = "/dev/one.md"
[resource.two]
[[resource.two.volume]]
id = 0
disk = "/dev/two"
meta = "/dev/two.md"
"#;

    fn config(text: &str) -> Config {
        let file = SourceFile {
            kind: FileKind::Cluster,
            path: "lab.toml".to_owned(),
            text: text.to_owned(),
        };
        parse(&[file]).unwrap().config
    }

    fn key(resource: Option<&str>, key: &str, from: &str, to: &str) -> Difference {
        Difference::Key {
            resource: resource.map(str::to_owned),
            key: key.to_owned(),
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
        }
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let old = config(BASE);
        assert_eq!(old.differences(&old), []);
        let new = BASE
            .replace("tls = \"off\"", "tls = \"off\"\ntimeout = \"5s\"")
            .replace("/dev/two.md", "/dev/2.md")
            .replace("[resource.one]", "[resource.one]\nfailover = \"manual\"");
        let found = old.differences(&config(&new));
        let wanted = [
            key(None, "net.timeout", "\"3s\"", "\"5s\""),
            key(Some("one"), "one.failover", "\"auto\"", "\"manual\""),
            key(
                Some("two"),
                "two.volume[0].meta",
                "\"/dev/two.md\"",
                "\"/dev/2.md\"",
            ),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn resources_come_and_go_as_a_whole() {
        let (old, new) = (config(BASE), config(&BASE.replace("one", "three")));
        let found = old.differences(&new);
        let wanted = [
            Difference::Added("three".to_owned()),
            Difference::Removed("one".to_owned()),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_is_up_takes_live_values_alone() {
        let old = config(BASE);
        let live = BASE.replace("[resource.one]", "[resource.one]\nfailover = \"manual\"");
        let (one, new) = (&old.resources[0], config(&live));
        assert_eq!(one.with_live_values_of(&new.resources[0]), None);
        let both = config(&live.replace("/dev/one.md", "/dev/1.md"));
        let mixed = one.with_live_values_of(&both.resources[0]).unwrap();
        assert_eq!(mixed.failover, both.resources[0].failover);
        assert_eq!(mixed.volumes, one.volumes);
        for difference in old.differences(&both) {
            let Difference::Key { key, .. } = difference else {
                panic!("{difference:?}");
            };
            assert_eq!(one.is_live(&key), key.ends_with(".failover"), "{key}");
        }
    }

    #[test]
    fn where_volumes_start_is_not_changed_and_only_the_last_one_grows() {
        let volumes = |sizes: &[&str]| {
            let tables = (0..).zip(sizes).map(|(nr, size)| {
                let meta = if nr == 0 { "meta = \"/m\"\n" } else { "" };
                format!(
                    "[[resource.one.volume]]\nid = {nr}\nsize = \"{size}\"\ndisk = \"/{nr}\"\n{meta}"
                )
            });
            let (before, after) = BASE.split_once("[[resource.one.volume]]").unwrap();
            let (_, after) = after.split_once("[resource.two]").unwrap();
            let all: String = tables.collect();
            config(&format!("{before}{all}[resource.two]{after}"))
        };
        let old = volumes(&["4MiB", "4MiB"]);
        let one = &old.resources[0];
        let fixed = |new: &Config| {
            let keys = old.differences(new).into_iter().map(|it| match it {
                Difference::Key { key, .. } => key,
                other => panic!("{other:?}"),
            });
            let fixed = |key: &String| one.is_fixed(&new.resources[0], key);
            keys.filter(fixed).collect::<Vec<_>>()
        };
        let longer = volumes(&["4MiB", "8MiB"]);
        assert_eq!(fixed(&longer), [""; 0]);
        assert_eq!(one.with_live_values_of(&longer.resources[0]), None);
        let shifted = volumes(&["8MiB", "4MiB"]);
        assert_eq!(fixed(&shifted), ["one.volume[0].size"]);
        assert_eq!(
            one.with_live_values_of(&shifted.resources[0]).as_ref(),
            Some(one)
        );
        let more = volumes(&["4MiB", "4MiB", "4MiB"]);
        let of_third = ["disk", "id", "size"].map(|key| format!("one.volume[2].{key}"));
        assert_eq!(fixed(&more), of_third);
        assert_eq!(
            one.with_live_values_of(&more.resources[0]).as_ref(),
            Some(one)
        );
    }

    #[test]
    fn a_device_in_two_readings_is_found() {
        let old = config(BASE);
        let both = |one: &Config, two: &Config| {
            let resources = [one.resources[0].clone(), two.resources[1].clone()];
            device_used_twice(&resources, NodeId::B)
        };
        assert_eq!(both(&old, &old), None);
        let new = config(
            &BASE
                .replace("/dev/one", "/dev/1")
                .replace("/dev/two.md", "/dev/one"),
        );
        let twice = both(&old, &new).unwrap();
        assert_eq!(
            (twice.first.as_str(), twice.second.as_str()),
            ("one", "two")
        );
        assert_eq!(both(&new, &new), None);
    }
}
