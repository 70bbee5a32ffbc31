//! Lines of `events2`.

use std::collections::BTreeMap;

use replicator::admin::{Event, EventKind, rfc3339_millis};
use serde_json::{Map, Value};

/// What is printed beside the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventForm {
    /// The time first.
    pub timestamps: bool,
    /// Sizes and counters last.
    pub statistics: bool,
    /// `OLD->NEW` for what changed.
    pub diff: bool,
}

type Fields = Vec<(String, String)>;

/// Prints events; remembers states for [`EventForm::diff`].
#[derive(Debug, Default)]
pub struct EventPrinter {
    form: EventForm,
    /// By what identifies the object.
    last: BTreeMap<Fields, Fields>,
}

/// Fields that say which object it is; the rest are its states.
const IDENTITY: [&str; 3] = ["name", "peer", "volume"];

impl EventPrinter {
    /// For lines of this form.
    #[must_use]
    pub fn new(form: EventForm) -> Self {
        Self {
            form,
            last: BTreeMap::new(),
        }
    }

    /// One line, ended.
    pub fn line(&mut self, event: &Event) -> String {
        let mut line = String::new();
        if self.form.timestamps {
            line += &rfc3339_millis(event.unix_millis);
            line.push(' ');
        }
        line += event.event.word();
        line.push(' ');
        line += &event.object;
        for (name, value) in self.fields(event) {
            line += &format!(" {name}:{value}");
        }
        line.push('\n');
        line
    }

    fn fields(&mut self, event: &Event) -> Fields {
        let mut fields = event.fields.clone();
        if self.form.diff {
            self.mark_changes(event, &mut fields);
        }
        if self.form.statistics {
            fields.extend(event.statistics.iter().cloned());
        }
        fields
    }

    fn mark_changes(&mut self, event: &Event, fields: &mut [(String, String)]) {
        let is_identity = |field: &&(String, String)| IDENTITY.contains(&field.0.as_str());
        let mut object: Vec<_> = event.fields.iter().filter(is_identity).cloned().collect();
        object.push(("object".to_owned(), event.object.clone()));
        if event.event == EventKind::Destroy {
            self.last.remove(&object);
            return;
        }
        let before = self
            .last
            .insert(object, event.fields.clone())
            .unwrap_or_default();
        for (name, value) in fields {
            let old = before.iter().find(|(old_name, _)| old_name == name);
            if let Some((_, old)) = old.filter(|(_, old)| old != value) {
                *value = format!("{old}->{value}");
            }
        }
    }
}

/// The event as one JSON object: `timestamp`, `event`, `object`, then its fields.
#[must_use]
pub fn event_json(event: &Event, statistics: bool) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: &str| object.insert(name.to_owned(), Value::from(value));
    put("timestamp", &rfc3339_millis(event.unix_millis));
    put("event", event.event.word());
    put("object", &event.object);
    let extra = event.statistics.iter().filter(|_| statistics);
    for (name, value) in event.fields.iter().chain(extra) {
        put(name, value);
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{healthy, resyncing};
    use super::*;

    /// 2026-11-21T20:04:11.402Z
    const AT: u64 = 1_795_291_451_402;

    #[test]
    fn the_documented_lines() {
        let mut printer = EventPrinter::new(EventForm {
            timestamps: true,
            ..EventForm::default()
        });
        let events = Event::snapshot(&healthy(), AT);
        assert!(events.iter().any(|event| printer.line(event)
            == "2026-11-21T20:04:11.402Z exists resource name:vm-web role:Primary suspended:no \
                may_promote:no promotion_score:10101\n"));
        assert_eq!(
            printer.line(&Event::end_of_snapshot(AT)),
            "2026-11-21T20:04:11.402Z exists -\n"
        );
    }

    #[test]
    fn a_diff_shows_old_and_new() {
        let mut old = healthy();
        old.resources.remove(0);
        let mut printer = EventPrinter::new(EventForm {
            diff: true,
            ..EventForm::default()
        });
        for event in Event::snapshot(&old, AT) {
            printer.line(&event);
        }
        let changes = Event::changes(&old, &resyncing(), AT);
        assert_eq!(
            printer.line(&changes[0]),
            "change peer-device name:vm-web peer:kvm-b volume:0 \
             replication:Established->SyncSource peer-disk:UpToDate->Inconsistent\n"
        );
    }

    #[test]
    fn json_has_the_fields_flat() {
        let events = Event::snapshot(&resyncing(), AT);
        let event = events.last().expect("it names its parts");
        let value = event_json(event, true);
        assert_eq!(value["object"], "peer-device");
        assert_eq!(value["out-of-sync"], "26972389376");
        assert!(event_json(event, false).get("out-of-sync").is_none());
    }
}
