use super::super::samples::healthy;
use super::*;
use crate::types::ReplicationState;

fn line(event: &Event) -> String {
    let mut line = format!("{} {}", event.event.word(), event.object);
    for (name, value) in &event.fields {
        line += &format!(" {name}:{value}");
    }
    line
}

fn lines(events: &[Event]) -> Vec<String> {
    events.iter().map(line).collect()
}

#[test]
fn the_snapshot_names_every_object_once() {
    let expected = [
        "exists resource name:vm-web role:Primary suspended:no may_promote:no promotion_score:10101",
        "exists device name:vm-web volume:0 disk:UpToDate open:yes",
        "exists connection name:vm-web peer:kvm-b connection:Connected role:Secondary",
        "exists peer-device name:vm-web peer:kvm-b volume:0 replication:Established peer-disk:UpToDate",
    ];
    assert_eq!(lines(&Event::snapshot(&healthy(), 0)), expected);
}

#[test]
fn only_what_changed_is_told() {
    let old = healthy();
    let mut new = healthy();
    new.resources[0].peers[0].volumes[0].replication = ReplicationState::SyncSource;
    new.resources[0].peers[0].volumes[0].out_of_sync_bytes = Some(4096);
    let changes = Event::changes(&old, &new, 0);
    assert_eq!(
        lines(&changes),
        [
            "change peer-device name:vm-web peer:kvm-b volume:0 replication:SyncSource peer-disk:UpToDate"
        ]
    );
    assert_eq!(
        changes[0].statistics,
        [("out-of-sync".to_owned(), "4096".to_owned())]
    );
}

#[test]
fn counters_alone_make_no_event() {
    let old = healthy();
    let mut new = healthy();
    new.resources[0].peers[0].volumes[0].out_of_sync_bytes = Some(4096);
    new.resources[0].peers[0].rtt_seconds = Some(1.0);
    assert_eq!(Event::changes(&old, &new, 0), []);
}

#[test]
fn a_resource_that_goes_down_loses_its_parts_first() {
    let old = healthy();
    let mut new = healthy();
    new.resources[0].up = false;
    let gone = Event::changes(&old, &new, 0);
    assert_eq!(gone.len(), 4);
    assert_eq!(
        line(&gone[0]),
        "destroy peer-device name:vm-web peer:kvm-b volume:0"
    );
    assert_eq!(line(&gone[3]), "destroy resource name:vm-web");
    let back = Event::changes(&new, &old, 0);
    assert!(back.iter().all(|event| event.event == EventKind::Create));
    assert_eq!(back[0].object, "resource");
}

#[test]
fn a_guest_is_an_object_of_its_own() {
    let old = healthy();
    let mut new = healthy();
    new.resources[0].guest = Some(GuestStatus {
        domain: "web".to_owned(),
        node: Some("kvm-a".to_owned()),
        state: "starting".to_owned(),
        why: None,
    });
    let came = Event::changes(&old, &new, 0);
    let expected = "create guest name:vm-web domain:web node:kvm-a state:starting";
    assert_eq!(lines(&came), [expected]);
    let mut running = new.clone();
    running.resources[0].guest.as_mut().unwrap().state = "running".to_owned();
    let changed = Event::changes(&new, &running, 0);
    let expected = "change guest name:vm-web domain:web node:kvm-a state:running";
    assert_eq!(lines(&changed), [expected]);
}
