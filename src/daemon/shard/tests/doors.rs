//! Sockets that were there before the process.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use super::rig::{Node, PATIENCE, Scratch, backends};
use crate::daemon::api::InheritedSocket;

#[test]
fn who_waits_for_a_resource_that_does_not_come_is_turned_away() {
    for backend in backends() {
        for awaited in [true, false] {
            let scratch = Arc::new(Scratch::new());
            let path = scratch.path("door.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let mut client = UnixStream::connect(&path).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let door = InheritedSocket {
                path,
                socket: listener.into(),
                own: true,
                awaited,
            };
            let _node = Node::with_doors(&scratch, backend, vec![door]);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        }
    }
}
