//! Micro-benchmarks of the pure path: no I/O, so their figures mean something on any machine.

#![allow(missing_docs, reason = "a program, not a library")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nbd_frontend::{Access, BufferPool, Completion, Export, ExportList, Output, Session};
use replicator::meta::{ActivityLog, Bitmap, Layout};
use replicator::protocol::{DataKind, Header, Message, WriteId, WriteTerms, encode};
use replicator::types::{
    BlockCount, BlockIndex, BlockRange, Payload, ReplicaId, SessionId, ViewNumber,
};

const VOLUME: BlockCount = BlockCount(1 << 20);

fn blocks(start: u64, count: u64) -> BlockRange {
    BlockRange::new(BlockIndex(start), BlockCount(count))
}

fn frames(c: &mut Criterion) {
    let payload = Payload::from(vec![7u8; 4096]);
    let message = Message::Data {
        write: WriteId(1),
        range: blocks(5, 1),
        kind: DataKind::Write(payload),
        terms: WriteTerms::default(),
    };
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("encode a 4 KiB write, with its checksum", |b| {
        b.iter(|| encode(SessionId(1), ViewNumber(2), black_box(&message)));
    });
    let encoded = encode(SessionId(1), ViewNumber(2), &message);
    group.bench_function("decode a 4 KiB write, with its checksum", |b| {
        b.iter(|| {
            let header = Header::parse(black_box(&encoded.header)).expect("made by encode");
            let payload = encoded.payload.clone().unwrap_or_default();
            Message::from_parts(&header, payload).expect("made by encode")
        });
    });
    group.finish();
}

fn tracking(c: &mut Criterion) {
    let layout = Layout::for_volume(VOLUME, 1024).expect("in range");
    let mut bitmap = Bitmap::new(layout, ReplicaId(1));
    let mut at = 0;
    c.bench_function("bitmap: set and clear one block", |b| {
        b.iter(|| {
            at = (at + 7919) % VOLUME.0;
            bitmap.set(blocks(at, 1));
            bitmap.clear(blocks(at, 1));
        });
    });
    let mut log = ActivityLog::new(layout, 1024, ReplicaId(1));
    log.begin_transaction([blocks(0, 1)]);
    log.commit_done();
    c.bench_function("activity log: a hit", |b| {
        b.iter(|| {
            black_box(log.acquire(blocks(3, 1)));
            log.release(blocks(3, 1), 1);
        });
    });
}

struct Vectors(Vec<Vec<u8>>);

impl BufferPool for Vectors {
    type Buffer = Vec<u8>;

    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let mut buffer = self.0.pop().unwrap_or_default();
        buffer.resize(len, 0);
        Some(buffer)
    }
}

fn nbd(c: &mut Criterion) {
    use nbd_frontend::client::{Client, ClientCommand};
    use nbd_frontend::proto::reply::ReplyStyle;

    let exports = ExportList::new(vec![Export {
        name: "vol".into(),
        aliases: Vec::new(),
        description: String::new(),
        size: VOLUME.bytes().0,
        access: Access::ReadWrite,
        listed: true,
        refusal: None,
    }])
    .expect("one valid export");
    let mut out = nbd_frontend::Outbox::<Vec<u8>, Vec<u8>>::default();
    let mut session = Session::new(exports, &mut out);
    let mut client = Client::new("vol", ReplyStyle::Simple);
    let mut pool = Vectors(Vec::new());
    while client.export().is_none() {
        for output in out.drain() {
            if let Output::Send(bytes) = output {
                session.note_sent(bytes.as_ref().len());
                client.handle_bytes(bytes.as_ref()).expect("our own server");
            }
        }
        session.handle_bytes(&client.take_output(), &mut pool, &mut out);
    }
    let data = vec![1u8; 4096];
    client
        .submit(ClientCommand::Write {
            offset: 0,
            data: &data,
            fua: false,
        })
        .expect("attached");
    let request = client.take_output();
    c.bench_function("NBD: parse, submit and answer a 4 KiB write", |b| {
        b.iter(|| {
            session.handle_bytes(black_box(&request), &mut pool, &mut out);
            let submitted: Vec<_> = out.drain().collect();
            for output in submitted {
                if let Output::Submit(request) = output {
                    session.complete(request.handle, Completion::<Vec<u8>>::Done, &mut out);
                    if let nbd_frontend::RequestKind::Write { data, .. } = request.kind {
                        pool.0.push(data);
                    }
                }
            }
            for output in out.drain() {
                if let Output::Send(bytes) = output {
                    session.note_sent(bytes.as_ref().len());
                }
            }
        });
    });
}

criterion_group!(benches, frames, tracking, nbd);
criterion_main!(benches);
