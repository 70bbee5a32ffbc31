//! NBD's words ↔ the engine's. The only place that knows both; the one table of errors.

use nbd_frontend::{Completion, Contexts, NbdError, RequestKind};
use replicator::engine::{GuestError, GuestKind, GuestReply};
use replicator::io::AlignedBuf;
use replicator::types::{ByteLen, ByteOffset, ByteRange, DiskError, Payload};

/// What an NBD request comes to.
#[derive(Debug)]
pub(super) enum Order {
    /// The engine is asked this.
    Engine(GuestKind),
    /// The engine is asked this if that is faster than a write of as many bytes.
    FastZeroes { kind: GuestKind, may_unmap: bool },
    /// What is known is told.
    Status(StatusQuestion),
}

/// What a block status asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct StatusQuestion {
    pub(super) range: ByteRange,
    pub(super) contexts: Contexts,
    /// Only the first extent of each.
    pub(super) one: bool,
}

/// What an NBD request comes to, of a volume that starts at `start` of the resource's row.
pub(super) fn order(kind: RequestKind<AlignedBuf>, start: ByteOffset) -> Order {
    let in_row = |offset: u64| ByteOffset(start.0.saturating_add(offset));
    let kind = match kind {
        RequestKind::Read { offset, len } => GuestKind::Read {
            offset: in_row(offset),
            len: ByteLen(len.into()),
        },
        RequestKind::Write { offset, data, fua } => GuestKind::Write {
            offset: in_row(offset),
            payload: data.freeze(),
            fua,
        },
        RequestKind::Flush => GuestKind::Flush,
        RequestKind::Trim { offset, len, fua } => GuestKind::Trim {
            offset: in_row(offset),
            len: ByteLen(len),
            fua,
        },
        RequestKind::WriteZeroes {
            offset,
            len,
            no_hole,
            fast,
            fua,
        } => {
            let kind = GuestKind::Zeroes {
                offset: in_row(offset),
                len: ByteLen(len),
                may_unmap: !no_hole,
                fua,
            };
            if fast {
                let may_unmap = !no_hole;
                return Order::FastZeroes { kind, may_unmap };
            }
            kind
        }
        RequestKind::BlockStatus {
            offset,
            len,
            contexts,
            one,
        } => {
            let range = ByteRange::new(in_row(offset), ByteLen(len))
                .expect("the session checked the range against the size");
            return Order::Status(StatusQuestion {
                range,
                contexts,
                one,
            });
        }
    };
    Order::Engine(kind)
}

/// What the client is told of the engine's answer.
pub(super) fn completion(result: Result<GuestReply, GuestError>) -> Completion<Payload> {
    match result {
        Ok(GuestReply::Done) => Completion::Done,
        Ok(GuestReply::Data(payload)) => Completion::Data(payload),
        Err(error) => Completion::Failed(nbd_error(error)),
    }
}

/// Of NBD's closed set only what QEMU's error policies tell apart: full, or broken.
fn nbd_error(error: GuestError) -> NbdError {
    match error {
        GuestError::Io(DiskError::NoSpace) => NbdError::NoSpace,
        GuestError::Io(_) | GuestError::Forgotten => NbdError::Io,
        // The session checked against the size it told the client, so the volume shrank since.
        GuestError::OutOfRange => NbdError::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_a_broken_one() {
        let answer = |error| completion(Err(GuestError::Io(error)));
        assert_eq!(
            answer(DiskError::NoSpace),
            Completion::Failed(NbdError::NoSpace)
        );
        for error in [
            DiskError::Io,
            DiskError::Gone,
            DiskError::Other(5),
            DiskError::Timeout,
        ] {
            assert_eq!(answer(error), Completion::Failed(NbdError::Io));
        }
    }

    #[test]
    fn a_request_means_the_blocks_of_its_own_volume() {
        let start = ByteOffset(1 << 20);
        let in_row = |kind| match order(kind, start) {
            Order::Engine(
                GuestKind::Read { offset, .. }
                | GuestKind::Write { offset, .. }
                | GuestKind::Trim { offset, .. }
                | GuestKind::Zeroes { offset, .. },
            ) => offset.0,
            Order::Status(question) => question.range.offset().0,
            other => panic!("{other:?} has no place"),
        };
        let (offset, fua) = (5, false);
        let data = replicator::io::BufferPool::new().take(1);
        let contexts = Contexts::default();
        let one = false;
        for kind in [
            RequestKind::Read { offset, len: 1 },
            RequestKind::Write { offset, data, fua },
            RequestKind::Trim {
                offset,
                len: 1,
                fua,
            },
            RequestKind::WriteZeroes {
                offset,
                len: 1,
                no_hole: false,
                fast: false,
                fua,
            },
            RequestKind::BlockStatus {
                offset,
                len: 1,
                contexts,
                one,
            },
        ] {
            assert_eq!(in_row(kind), (1 << 20) + 5);
        }
    }

    #[test]
    fn zeroes_may_be_unmapped_unless_the_client_forbids_holes() {
        let kind = |no_hole, fast| {
            let zeroes = RequestKind::WriteZeroes {
                offset: 1,
                len: 2,
                no_hole,
                fast,
                fua: true,
            };
            order(zeroes, ByteOffset(0))
        };
        for no_hole in [false, true] {
            let expected = GuestKind::Zeroes {
                offset: ByteOffset(1),
                len: ByteLen(2),
                may_unmap: !no_hole,
                fua: true,
            };
            let Order::Engine(plain) = kind(no_hole, false) else {
                panic!("plain zeroes need no speed");
            };
            let Order::FastZeroes { kind, may_unmap } = kind(no_hole, true) else {
                panic!("fast zeroes are asked about");
            };
            assert_eq!((&plain, may_unmap), (&expected, !no_hole));
            assert_eq!(kind, expected);
        }
    }
}
