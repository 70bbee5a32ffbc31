//! The engine's disk and metadata commands on every backend and kind of file.

use std::path::Path;
use std::time::Duration;

use super::scratch::{Scratch, loop_device};
use crate::engine::{DiskCommand, DiskReply, MetaPage, MetaRequest};
use crate::io::disk::Disk;
use crate::io::disk_queue::{DiskQueue, DiskResult};
use crate::io::meta_queue::MetaQueue;
use crate::io::{Backend, BufferPool, Portable, Ring, Token, Wait, clock};
use crate::types::{
    BlockCount, BlockIndex, BlockRange, ByteLen, ByteOffset, DiskError, OpId, Payload, VolumeId,
    VolumeRow,
};

const LEN: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the test on both backends over a file on disk, one in memory and a loop device.
fn each(test: impl Fn(&mut dyn Backend, &Path)) {
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(Portable::new().unwrap())];
    backends.extend(
        Ring::new()
            .ok()
            .map(|ring| Box::new(ring) as Box<dyn Backend>),
    );
    for backend in &mut backends {
        for scratch in [Scratch::on_disk(), Scratch::in_memory()] {
            test(backend.as_mut(), &scratch.file("data", LEN));
        }
        let scratch = Scratch::on_disk();
        if let Some(device) = loop_device(&scratch.file("data", LEN)) {
            test(backend.as_mut(), device.path());
        }
    }
}

struct Rig<'a> {
    backend: &'a mut dyn Backend,
    queue: DiskQueue,
}

impl Rig<'_> {
    fn run(&mut self, command: DiskCommand) -> DiskResult {
        self.queue.begin(self.backend, OpId(5), command);
        let begin = clock::now();
        let mut done = Vec::new();
        loop {
            assert!(clock::now().since(begin) < PATIENCE);
            self.backend
                .turn(Wait::at_most(Duration::from_millis(100)), &mut done)
                .unwrap();
            for completion in done.drain(..) {
                if let Some((op, result)) = self.queue.on_completion(self.backend, completion) {
                    assert_eq!((op, self.queue.in_flight()), (OpId(5), 0));
                    return result;
                }
            }
        }
    }

    fn read(&mut self, range: BlockRange) -> Payload {
        match self.run(DiskCommand::Read(range)).unwrap() {
            DiskReply::Data(payload) => payload,
            DiskReply::Done => panic!("a read without data"),
        }
    }
}

fn one_disk(path: &Path, pool: BufferPool, base: Token) -> DiskQueue {
    let disk = Disk::open(path).unwrap();
    DiskQueue::new(VolumeRow::only(VolumeId(0)), vec![disk], pool, base)
}

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

#[test]
fn writes_zeroes_and_flushes_are_read_back() {
    each(|backend, path| {
        let pool = BufferPool::new();
        let queue = one_disk(path, pool, Token(1 << 40));
        let mut rig = Rig { backend, queue };
        // From a vector: not aligned, so it is copied.
        let payload = Payload::from(vec![9; 64 * 4096 + 1]).slice(1, 64 * 4096 + 1);
        for fua in [true, false] {
            let write = DiskCommand::Write {
                range: blocks(1, 64),
                payload: payload.clone(),
                fua,
            };
            assert_eq!(rig.run(write), Ok(DiskReply::Done));
        }
        assert_eq!(rig.run(DiskCommand::Flush), Ok(DiskReply::Done));
        for (at, may_unmap, fua) in [(8, true, false), (16, false, false), (24, true, true)] {
            let zeroes = DiskCommand::Zeroes {
                range: blocks(at, 4),
                may_unmap,
                fua,
            };
            assert_eq!(rig.run(zeroes), Ok(DiskReply::Done));
        }
        let all = rig.read(blocks(0, 70));
        for (nr, block) in all.chunks(4096).enumerate() {
            let zero =
                !(1..65).contains(&nr) || [8, 16, 24].iter().any(|at| (*at..at + 4).contains(&nr));
            let expected = if zero { 0 } else { 9 };
            assert!(
                block.iter().all(|&byte| byte == expected),
                "block {nr} of {path:?}"
            );
        }
    });
}

#[test]
fn a_read_past_the_end_is_short() {
    each(|backend, path| {
        let queue = one_disk(path, BufferPool::new(), Token(0));
        let mut rig = Rig { backend, queue };
        let past = DiskCommand::Read(blocks(LEN / 4096 - 1, 2));
        assert_eq!(rig.run(past), Err(DiskError::Short));
    });
}

#[test]
fn metadata_requests_run_in_order_one_after_the_other() {
    each(|backend, path| {
        let pool = BufferPool::new();
        let disk = Disk::open(path).unwrap();
        let mut queue = MetaQueue::new(disk, ByteOffset(1 << 20), pool, Token(9 << 40));
        let page = |nr: u64, fill: u8| MetaPage {
            offset: ByteOffset(nr * 4096),
            bytes: vec![fill; 4096].into(),
        };
        let requests = [
            MetaRequest::Write(vec![page(0, 1)]),
            MetaRequest::Write(vec![page(5, 2), page(0, 3), page(1, 4)]),
            MetaRequest::Read {
                offset: ByteOffset(4090),
                len: ByteLen(12),
            },
            MetaRequest::Write(Vec::new()),
            MetaRequest::Write(vec![page(0, 6)]),
            MetaRequest::Read {
                offset: ByteOffset(0),
                len: ByteLen(4096),
            },
            MetaRequest::Read {
                offset: ByteOffset(LEN),
                len: ByteLen(4096),
            },
        ];
        for (op, request) in (0..).zip(requests.clone()) {
            queue.begin(backend, OpId(op), request);
        }
        let (mut done, mut results) = (Vec::new(), Vec::new());
        let begin = clock::now();
        while queue.in_flight() > 0 {
            assert!(clock::now().since(begin) < PATIENCE);
            backend
                .turn(Wait::at_most(Duration::from_millis(100)), &mut done)
                .unwrap();
            for completion in done.drain(..) {
                results.extend(queue.on_completion(backend, completion));
            }
        }
        let order: Vec<u64> = results.iter().map(|(op, _)| op.0).collect();
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6]);
        let data = |bytes: Vec<u8>| Ok(DiskReply::Data(bytes.into()));
        assert_eq!(results[2].1, data([[3; 6], [4; 6]].concat()));
        assert_eq!(results[5].1, data(vec![6; 4096]));
        assert_eq!(results[6].1, Err(DiskError::Short));
    });
}

/// Promise 4 rests on it: the marks of an extent are written before the log page that forgets it.
#[test]
fn behind_a_failed_metadata_write_nothing_is_carried_out() {
    each(|backend, path| {
        let disk = Disk::open(path).unwrap();
        let mut queue = MetaQueue::new(disk, ByteOffset(0), BufferPool::new(), Token(9 << 40));
        let page = |offset: u64, fill: u8| MetaPage {
            offset: ByteOffset(offset),
            bytes: vec![fill; 4096].into(),
        };
        // No file reaches that far.
        let impossible = page(i64::MAX.unsigned_abs() / 4096 * 4096, 1);
        queue.begin(backend, OpId(0), MetaRequest::Write(vec![page(0, 1)]));
        queue.begin(backend, OpId(1), MetaRequest::Write(vec![impossible]));
        queue.begin(backend, OpId(2), MetaRequest::Write(vec![page(0, 2)]));
        let (mut done, mut results) = (Vec::new(), Vec::new());
        let begin = clock::now();
        while queue.in_flight() > 0 {
            assert!(clock::now().since(begin) < PATIENCE);
            backend
                .turn(Wait::at_most(Duration::from_millis(100)), &mut done)
                .unwrap();
            for completion in done.drain(..) {
                results.extend(queue.on_completion(backend, completion));
            }
        }
        let ok: Vec<_> = results
            .iter()
            .map(|(op, result)| (op.0, result.is_ok()))
            .collect();
        assert_eq!(ok, [(0, true), (1, false), (2, false)]);
        assert_eq!(std::fs::read(path).unwrap()[0], 1);
    });
}

/// The oracle is one array of bytes: what lies where on the devices is worked out by hand.
#[test]
fn volumes_end_to_end_read_as_one_array_and_land_on_their_own_devices() {
    each(|backend, path| {
        const SIZES: [u64; 3] = [3, 1, 8];
        let scratch = Scratch::on_disk();
        let paths = [
            scratch.file("first", 5 * 4096),
            path.to_owned(),
            scratch.file("last", 8 * 4096),
        ];
        let disks = paths.iter().map(|path| Disk::open(path).unwrap()).collect();
        let row: Vec<_> = (0..)
            .zip(SIZES)
            .map(|(nr, size)| (VolumeId(nr), BlockCount(size)))
            .collect();
        let row = VolumeRow::new(&row).unwrap();
        let queue = DiskQueue::new(row, disks, BufferPool::new(), Token(1 << 40));
        let mut rig = Rig { backend, queue };
        let mut expected = vec![0_u8; 12 * 4096];
        for (fill, (start, count)) in
            (1_u8..).zip([(0, 12), (2, 2), (2, 3), (3, 1), (0, 3), (4, 8)])
        {
            let range = blocks(start, count);
            let len = usize::try_from(range.len().0).unwrap();
            let mut bytes = vec![fill; len];
            // Each block says which it is.
            for (nr, block) in (0..).zip(bytes.chunks_mut(4096)) {
                block[0] = nr;
            }
            let at = usize::try_from(range.offset().0).unwrap();
            expected[at..at + len].copy_from_slice(&bytes);
            let write = DiskCommand::Write {
                range,
                payload: Payload::from(bytes),
                fua: fill % 2 == 0,
            };
            assert_eq!(rig.run(write), Ok(DiskReply::Done));
            assert_eq!(&rig.read(blocks(0, 12))[..], &expected[..]);
        }
        let zeroes = DiskCommand::Zeroes {
            range: blocks(1, 5),
            may_unmap: true,
            fua: true,
        };
        assert_eq!(rig.run(zeroes), Ok(DiskReply::Done));
        expected[4096..6 * 4096].fill(0);
        assert_eq!(rig.run(DiskCommand::Flush), Ok(DiskReply::Done));
        for (start, count) in [(0, 12), (2, 1), (2, 2), (3, 2), (11, 1)] {
            let range = blocks(start, count);
            let at = usize::try_from(range.offset().0).unwrap();
            let end = at + usize::try_from(range.len().0).unwrap();
            assert_eq!(&rig.read(range)[..], &expected[at..end]);
        }
        let mut start = 0;
        for (path, size) in paths.iter().zip(SIZES) {
            let end = start + usize::try_from(size).unwrap() * 4096;
            let own = std::fs::read(path).unwrap();
            assert_eq!(&own[..end - start], &expected[start..end]);
            assert!(
                own[end - start..].iter().all(|&byte| byte == 0),
                "behind its volume"
            );
            start = end;
        }
        assert_eq!(rig.queue.failed(), None);
        // Beyond the last volume's device: half of it is there, and none of it counts.
        let across = DiskCommand::Read(blocks(10, 4));
        assert_eq!(rig.run(across), Err(DiskError::Short));
        assert_eq!(rig.queue.failed(), Some(2));
        let shorter = std::fs::OpenOptions::new().write(true).open(&paths[0]);
        shorter.unwrap().set_len(2 * 4096).unwrap();
        assert_eq!(
            rig.run(DiskCommand::Read(blocks(1, 4))),
            Err(DiskError::Short)
        );
        assert_eq!(rig.queue.failed(), Some(0), "the one that failed now");
        assert_eq!(rig.queue.slowest(), None);
    });
}
