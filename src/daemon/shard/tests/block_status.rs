//! Block statuses while a disk does not answer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_frontend::proto::handshake::encode_option;

use super::faulty::Faults;
use super::rig::{Node, PATIENCE, Register, Scratch};
use crate::daemon::shard::engines;

/// Attached with extended headers and `base:allocation`; written by hand, since this project's
/// client asks for no block status.
struct Asker(UnixStream);

impl Asker {
    fn attach(node: &Node) -> Self {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut send = 3u32.to_be_bytes().to_vec();
        send.extend(encode_option(11, &[]));
        send.extend(encode_option(
            10,
            b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation",
        ));
        send.extend(encode_option(7, b"\0\0\0\0\0\0"));
        stream.write_all(&send).unwrap();
        // Greeting; ACK; META_CONTEXT and ACK; INFO_EXPORT and ACK.
        let mut told = [0; 18 + 20 + (20 + 19) + 20 + (20 + 12) + 20];
        stream.read_exact(&mut told).unwrap();
        Self(stream)
    }

    fn ask(&mut self, len: u64) {
        let mut send = vec![0x21, 0xe4, 0x1c, 0x71, 0, 0, 0, 7];
        send.extend([0; 16]);
        send.extend(len.to_be_bytes());
        self.0.write_all(&send).unwrap();
    }

    /// Length and status of the one extent that is told.
    fn told(&mut self) -> (u64, u64) {
        let mut reply = [0; 32 + 8 + 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6]);
        let word = |at: usize| u64::from_be_bytes(reply[at..at + 8].try_into().unwrap());
        (word(40), word(48))
    }
}

/// A filesystem that hangs keeps nobody waiting who only wants to know where its holes are: what
/// is not known in time counts as data. Later, looks find them again.
#[test]
fn a_disk_that_does_not_answer_is_taken_for_data() {
    let scratch = Arc::new(Scratch::new());
    let faults = Arc::new(Faults::default());
    let mut node = Node::alone_in(&scratch, faults.surroundings(), engines());
    node.create();
    node.up();
    Register::new().activate(&mut node, |_| {});
    let mut asker = Asker::attach(&node);
    asker.ask(1 << 20);
    assert_eq!(asker.told(), (1 << 20, 3), "a hole that reads as zeroes");

    faults.hold(true);
    // More than may look at a time: the rest is not even tried.
    for _ in 0..20 {
        asker.ask(1 << 20);
    }
    for _ in 0..20 {
        assert_eq!(asker.told(), (1 << 20, 0));
    }
    asker.ask(4096);
    assert_eq!(asker.told(), (4096, 0), "every look is taken");

    faults.hold(false);
    node.wake();
    while {
        asker.ask(8192);
        asker.told() != (8192, 3)
    } {}
}
