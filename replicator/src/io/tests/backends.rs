//! Both backends pass the same tests, on files of every route.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};

use super::scratch::{Hanging, Scratch};
use crate::io::{
    Backend, BufferPool, Completion, Done, FileRoute, IoFile, Op, Portable, Ring, SendBatch,
    SendQueue, Socket, Token, Wait, ZeroMode, clock,
};

/// Far beyond what anything here takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn backends() -> Vec<Box<dyn Backend>> {
    let mut all: Vec<Box<dyn Backend>> = vec![Box::new(Portable::new().unwrap())];
    match Ring::new() {
        Ok(ring) => all.push(Box::new(ring)),
        Err(why) => eprintln!("skipped: no io_uring here: {why}"),
    }
    all
}

/// Turns until `count` completions came.
fn wait_for(backend: &mut dyn Backend, count: usize) -> Vec<Completion> {
    let begin = clock::now();
    let mut done = Vec::new();
    while done.len() < count {
        assert!(
            clock::now().since(begin) < PATIENCE,
            "{} of {count} completions",
            done.len()
        );
        backend
            .turn(Wait::at_most(Duration::from_millis(100)), &mut done)
            .unwrap();
    }
    assert_eq!(done.len(), count);
    done
}

fn run(backend: &mut dyn Backend, op: Op) -> Completion {
    backend.submit(Token(7), op);
    let completion = wait_for(backend, 1).remove(0);
    assert_eq!(completion.token, Token(7));
    completion
}

fn batch(bytes: &[u8]) -> SendBatch {
    let mut queue = SendQueue::default();
    queue.push_shared(Bytes::copy_from_slice(bytes));
    queue.begin_send().unwrap()
}

fn recv(socket: &Socket, pool: &BufferPool, len: usize, fill: bool) -> Op {
    Op::Recv {
        socket: socket.clone(),
        buf: pool.take(len),
        start: 0,
        end: len,
        fill,
    }
}

fn received(completion: &Completion) -> &[u8] {
    let Op::Recv { buf, start, .. } = &completion.op else {
        panic!("{completion:?}")
    };
    &buf.as_ref()[*start..*start + completion.count().unwrap()]
}

fn each_file(test: impl Fn(&mut dyn Backend, &IoFile, &BufferPool)) {
    for backend in &mut backends() {
        for route in [FileRoute::Ring, FileRoute::Threads, FileRoute::Inline] {
            let scratch = Scratch::on_disk();
            let path = scratch.file("data", 1 << 20);
            let file = std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap();
            let file = IoFile::new(OwnedFd::from(file), route);
            test(backend.as_mut(), &file, &BufferPool::new());
            assert_eq!(backend.in_flight(), 0);
        }
    }
}

#[test]
fn what_was_written_is_read_back_zeroed_and_read_as_zero() {
    each_file(|backend, file, pool| {
        let payload = pool.copy_of(&[0x5a; 8192]).bytes().clone();
        for durable in [false, true] {
            let offset = if durable { 65_536 } else { 4096 };
            let payload = payload.clone();
            let write = Op::Write {
                file: file.clone(),
                offset,
                payload,
                durable,
            };
            assert_eq!(run(backend, write).count(), Ok(8192));
        }
        assert_eq!(run(backend, Op::Sync { file: file.clone() }).count(), Ok(0));
        let punch = Op::Zero {
            file: file.clone(),
            offset: 4096,
            len: 4096,
            mode: ZeroMode::Punch,
        };
        match run(backend, punch).count() {
            Ok(_) => {}
            Err(Errno::EOPNOTSUPP) => return,
            Err(errno) => panic!("punching a hole: {errno}"),
        }
        let read = Op::Read {
            file: file.clone(),
            offset: 4096,
            buf: pool.take(8192),
        };
        let completion = run(backend, read);
        assert_eq!(completion.count(), Ok(8192));
        let Op::Read { buf, .. } = completion.op else {
            panic!()
        };
        assert!(buf.as_ref()[..4096].iter().all(|&byte| byte == 0));
        assert!(buf.as_ref()[4096..].iter().all(|&byte| byte == 0x5a));
    });
}

#[test]
fn holes_and_data_of_a_file_are_found_in_order() {
    each_file(|backend, file, pool| {
        let payload = pool.copy_of(&[0x5a; 65_536]).bytes().clone();
        for offset in [131_072, 524_288] {
            let write = Op::Write {
                file: file.clone(),
                offset,
                payload: payload.clone(),
                durable: false,
            };
            assert_eq!(run(backend, write).count(), Ok(65_536));
        }
        let mut find = |offset, len, count_max| {
            let find = Op::FindExtents {
                file: file.clone(),
                offset,
                len,
                count_max,
                found: Vec::new(),
            };
            let Op::FindExtents { found, .. } = run(backend, find).op else {
                panic!("another operation came back");
            };
            let extents = found.iter().map(|extent| (extent.len, extent.is_hole));
            extents.collect::<Vec<_>>()
        };
        let all = [
            (131_072, true),
            (65_536, false),
            (327_680, true),
            (65_536, false),
            (458_752, true),
        ];
        assert_eq!(find(0, 1 << 20, 9), all);
        assert_eq!(find(0, 1 << 20, 2), all[..2]);
        assert_eq!(find(131_073, 1000, 9), [(1000, false)]);
        assert_eq!(find(196_607, 2, 9), [(1, false), (1, true)]);
        assert_eq!(find(1 << 21, 10, 9), [(10, true)], "beyond the end");
        assert_eq!(find(0, 0, 9), []);
    });
}

#[test]
fn a_read_past_the_end_is_short_and_not_an_error() {
    each_file(|backend, file, pool| {
        let at_end = (1 << 20) - 4096;
        let read = |offset| Op::Read {
            file: file.clone(),
            offset,
            buf: pool.take(8192),
        };
        assert_eq!(run(backend, read(at_end)).count(), Ok(4096));
        assert_eq!(run(backend, read(1 << 21)).count(), Ok(0));
    });
}

#[test]
fn many_operations_at_once_each_complete_once_with_their_own_data() {
    each_file(|backend, file, pool| {
        for nr in 0..200_u64 {
            let payload = pool
                .copy_of(&[u8::try_from(nr).unwrap(); 4096])
                .bytes()
                .clone();
            let offset = nr * 4096;
            backend.submit(
                Token(nr),
                Op::Write {
                    file: file.clone(),
                    offset,
                    payload,
                    durable: false,
                },
            );
        }
        let mut tokens: Vec<u64> = wait_for(backend, 200)
            .iter()
            .map(|done| done.token.0)
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..200).collect::<Vec<_>>());
        for nr in 0..200 {
            let buf = pool.take(4096);
            backend.submit(
                Token(nr),
                Op::Read {
                    file: file.clone(),
                    offset: nr * 4096,
                    buf,
                },
            );
        }
        for completion in wait_for(backend, 200) {
            let Op::Read { buf, .. } = completion.op else {
                panic!()
            };
            assert!(
                buf.as_ref()
                    .iter()
                    .all(|&byte| u64::from(byte) == completion.token.0)
            );
        }
    });
}

#[test]
fn a_device_without_space_and_a_read_only_descriptor_give_their_errno() {
    for backend in &mut backends() {
        for route in [FileRoute::Ring, FileRoute::Threads, FileRoute::Inline] {
            let payload = Bytes::from_static(&[0; 512]);
            let open = |write: bool, path: &str| {
                let file = std::fs::OpenOptions::new()
                    .read(!write)
                    .write(write)
                    .open(path)
                    .unwrap();
                IoFile::new(OwnedFd::from(file), route)
            };
            let full = open(true, "/dev/full");
            let write = Op::Write {
                file: full,
                offset: 0,
                payload: payload.clone(),
                durable: false,
            };
            assert_eq!(run(backend.as_mut(), write).count(), Err(Errno::ENOSPC));
            let read_only = open(false, "/dev/zero");
            let write = Op::Write {
                file: read_only,
                offset: 0,
                payload,
                durable: false,
            };
            assert_eq!(run(backend.as_mut(), write).count(), Err(Errno::EBADF));
        }
    }
}

fn pair(backend: &dyn Backend) -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    (backend.adopt(OwnedFd::from(ours)).unwrap(), theirs)
}

#[test]
fn a_receive_waits_for_bytes_and_ends_with_the_stream() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let pool = BufferPool::new();
        let (socket, mut theirs) = pair(backend);
        backend.submit(Token(1), recv(&socket, &pool, 65_536, false));
        let mut none = Vec::new();
        backend
            .turn(Wait::at_most(Duration::from_millis(1)), &mut none)
            .unwrap();
        assert!(none.is_empty());
        theirs.write_all(b"hello").unwrap();
        assert_eq!(received(&wait_for(backend, 1)[0]), b"hello");
        drop(theirs);
        assert_eq!(run(backend, recv(&socket, &pool, 16, false)).count(), Ok(0));
    }
}

#[test]
fn a_filling_receive_completes_only_when_full_or_at_the_end() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let pool = BufferPool::new();
        let (socket, mut theirs) = pair(backend);
        let writer = std::thread::spawn(move || {
            for piece in [100_000, 1, 99_999, 50_000] {
                theirs.write_all(&vec![3; piece]).unwrap();
            }
        });
        let full = run(backend, recv(&socket, &pool, 200_000, true));
        assert_eq!(received(&full), vec![3; 200_000]);
        let rest = run(backend, recv(&socket, &pool, 200_000, true));
        assert_eq!(rest.count(), Ok(50_000), "the stream ended");
        writer.join().unwrap();
    }
}

#[test]
fn a_batch_larger_than_the_socket_goes_out_whole() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let (socket, mut theirs) = pair(backend);
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|nr| nr.to_le_bytes()[1]).collect();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).unwrap();
            all
        });
        let sent = run(
            backend,
            Op::Send {
                socket: socket.clone(),
                batch: batch(&bytes),
            },
        );
        assert_eq!(sent.count(), Ok(bytes.len()));
        drop((sent, socket));
        assert!(reader.join().unwrap() == bytes);
    }
}

#[test]
fn sending_to_a_peer_that_left_is_an_error_and_not_a_signal() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let (socket, theirs) = pair(backend);
        drop(theirs);
        let sent = run(
            backend,
            Op::Send {
                socket,
                batch: batch(b"anybody?"),
            },
        );
        assert_eq!(sent.count(), Err(Errno::EPIPE));
    }
}

#[test]
fn shutting_a_socket_down_ends_what_is_in_flight_on_it() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let pool = BufferPool::new();
        let (socket, _theirs) = pair(backend);
        backend.submit(Token(1), recv(&socket, &pool, 10, true));
        let stuck = Op::Send {
            socket: socket.clone(),
            batch: batch(&vec![0; 8 << 20]),
        };
        backend.submit(Token(2), stuck);
        backend
            .turn(Wait::at_most(Duration::from_millis(1)), &mut Vec::new())
            .unwrap();
        assert_eq!(backend.in_flight(), 2);
        socket.shutdown();
        drop(socket);
        for completion in wait_for(backend, 2) {
            match completion.token {
                Token(1) => assert_eq!(completion.count(), Ok(0)),
                _ => assert_eq!(completion.count(), Err(Errno::EPIPE)),
            }
        }
    }
}

#[test]
fn a_cancelled_accept_completes_as_cancelled() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let scratch = Scratch::on_disk();
        let listener = UnixListener::bind(scratch.path("socket")).unwrap();
        let listener = backend.adopt(OwnedFd::from(listener)).unwrap();
        let key = backend.submit(Token(1), Op::Accept { listener });
        backend
            .turn(Wait::at_most(Duration::from_millis(1)), &mut Vec::new())
            .unwrap();
        backend.cancel(key);
        let completion = wait_for(backend, 1).remove(0);
        assert_eq!(completion.count(), Err(Errno::ECANCELED));
        backend.cancel(key);
        assert_eq!(backend.in_flight(), 0, "a late cancel finds nothing");
    }
}

#[test]
fn connecting_and_accepting_meet_over_tcp() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let pool = BufferPool::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener = backend.adopt(OwnedFd::from(listener)).unwrap();
        backend.submit(Token(1), Op::Accept { listener });
        let dialler = tcp_socket(backend);
        let address = Box::new(SockaddrStorage::from(address));
        backend.submit(
            Token(2),
            Op::Connect {
                socket: dialler.clone(),
                address,
            },
        );
        let mut accepted = None;
        for completion in wait_for(backend, 2) {
            match completion.result.unwrap() {
                Done::Accepted(socket) => accepted = Some(socket),
                Done::Count(count) => assert_eq!((completion.token, count), (Token(2), 0)),
            }
        }
        backend.submit(Token(3), recv(&accepted.unwrap(), &pool, 4, true));
        backend.submit(
            Token(4),
            Op::Send {
                socket: dialler,
                batch: batch(b"ping"),
            },
        );
        let mut done = wait_for(backend, 2);
        done.sort_by_key(|completion| completion.token);
        assert_eq!(received(&done[0]), b"ping");
    }
}

#[test]
fn connecting_to_a_closed_port_is_refused() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let address = Box::new(SockaddrStorage::from(address));
        let connect = Op::Connect {
            socket: tcp_socket(backend),
            address,
        };
        assert_eq!(run(backend, connect).count(), Err(Errno::ECONNREFUSED));
    }
}

fn tcp_socket(backend: &dyn Backend) -> Socket {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    backend.adopt(fd).unwrap()
}

#[test]
fn a_wake_from_another_thread_ends_the_wait_each_time() {
    for backend in &mut backends() {
        let backend = backend.as_mut();
        let (turn_ended, ended) = std::sync::mpsc::channel();
        let waker = backend.waker();
        let begin = clock::now();
        let other = std::thread::spawn(move || {
            for _ in 0..100 {
                waker.wake();
                ended.recv().unwrap();
            }
        });
        for _ in 0..100 {
            backend
                .turn(Wait::at_most(PATIENCE), &mut Vec::new())
                .unwrap();
            turn_ended.send(()).unwrap();
        }
        other.join().unwrap();
        assert!(clock::now().since(begin) < PATIENCE);
    }
}

#[test]
fn the_timeout_ends_a_wait_without_completions() {
    for backend in &mut backends() {
        let begin = clock::now();
        let timeout = Duration::from_millis(20);
        let mut done = Vec::new();
        while clock::now().since(begin) < timeout {
            backend.turn(Wait::at_most(timeout), &mut done).unwrap();
        }
        assert!(done.is_empty());
        assert!(clock::now().since(begin) < PATIENCE);
    }
}

#[test]
fn a_backend_may_be_dropped_with_operations_in_flight() {
    for mut backend in backends() {
        let pool = BufferPool::new();
        let (socket, mut theirs) = pair(backend.as_ref());
        backend.submit(Token(1), recv(&socket, &pool, 4096, false));
        backend
            .turn(Wait::at_most(Duration::from_millis(1)), &mut Vec::new())
            .unwrap();
        drop((backend, socket));
        assert_eq!(
            pool.out_bytes(),
            0,
            "memory is back, so the kernel has let go of it"
        );
        assert_eq!(
            theirs.read(&mut [0; 8]).unwrap(),
            0,
            "and so is the descriptor"
        );
    }
}

#[test]
fn a_filesystem_that_hangs_keeps_no_flush_of_another_waiting() {
    // More of them than an untold kernel has workers for each ring.
    const HUNG: Token = Token(1);
    const HEALTHY: Token = Token(2);
    let open = |path| {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        IoFile::new(OwnedFd::from(file), FileRoute::Ring)
    };
    for backend in &mut backends() {
        let scratch = Scratch::on_disk();
        let Some(hanging) = Hanging::mount(&scratch) else {
            return;
        };
        let stuck = open(hanging.file("stuck", 1 << 20));
        let healthy = open(scratch.file("healthy", 1 << 20));
        hanging.freeze(true);
        for _ in 0..64 {
            let (file, offset, len, mode) = (stuck.clone(), 0, 4096, ZeroMode::Zero);
            let zero = Op::Zero {
                file,
                offset,
                len,
                mode,
            };
            backend.submit(HUNG, zero);
        }
        let mut done = Vec::new();
        backend
            .turn(Wait::at_most(Duration::from_millis(100)), &mut done)
            .unwrap();
        assert_eq!(done.len(), 0);
        let file = healthy.clone();
        backend.submit(HEALTHY, Op::Sync { file });
        let begin = clock::now();
        while done.is_empty() && clock::now().since(begin) < Duration::from_secs(5) {
            let wait = Wait::at_most(Duration::from_millis(100));
            backend.turn(wait, &mut done).unwrap();
        }
        // Before anything can fail: a process that waits for it could not be killed.
        hanging.freeze(false);
        let tokens: Vec<_> = done.iter().map(|it| it.token).collect();
        assert_eq!(tokens, [HEALTHY], "{:?}", backend.kind());
        wait_for(backend.as_mut(), 64);
    }
}
