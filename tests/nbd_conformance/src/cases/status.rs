//! BLOCK_STATUS and `base:allocation`.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::{Attached, pattern};
use crate::case::{Case, Verdict, ensure, must, same, should, skip};
use crate::target::Context;
use crate::wire::{cmd, err, flag, has, info, meta_request, opt, rep};

const REQUESTS: &str = "Request types";
const REPLY_TYPES: &str = "Structured reply types";
const COMMAND_FLAGS: &str = "Command flags";
const ALLOCATION: &str = "`base:allocation` metadata context";

const ZERO: u64 = 2;

pub(super) const CASES: &[Case] = &[
    must(
        "status-one-chunk-for-each-context",
        REQUESTS,
        "exactly one chunk per selected context id",
        |c| {
            let mut attached = c.attach_for_status()?;
            same("chunks", status(&mut attached, 0, 0, 65_536)?.0, 1)
        },
    )
    .in_chunked_styles(),
    must(
        "status-of-several-contexts",
        REQUESTS,
        "exactly one chunk per selected context id",
        |c| {
            let mut conn = c.with_contexts()?;
            let replies = conn.option(opt::LIST_META_CONTEXT, &meta_request(c.export(), &[]))?;
            let names: Vec<String> = replies
                .iter()
                .filter(|reply| reply.kind == rep::META_CONTEXT)
                .filter_map(|reply| String::from_utf8(reply.data[4..].to_vec()).ok())
                .collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let replies = conn.option(opt::SET_META_CONTEXT, &meta_request(c.export(), &names))?;
            let selected = replies.len() - 1;
            if selected < 2 {
                return skip("there is only one context");
            }
            let mut attached = c.go(conn)?;
            same("chunks", status(&mut attached, 0, 0, 65_536)?.0, selected)
        },
    )
    .in_chunked_styles(),
    must(
        "status-extents-within-the-hint",
        REPLY_TYPES,
        "the first N-1 extents MUST be less than the requested length",
        |c| {
            let mut attached = patched(c)?;
            for (offset, len) in [(0, 1 << 20), (4096, 4096), (0, 8 << 20), (65_536, 512)] {
                let (_, extents) = status(&mut attached, 0, offset, len)?;
                let all_but_last: u64 = extents.iter().rev().skip(1).map(|(len, _)| len).sum();
                ensure(all_but_last < len, || {
                    format!("{extents:?} for {len} bytes")
                })?;
            }
            Ok(())
        },
    )
    .in_chunked_styles(),
    must(
        "status-req-one",
        COMMAND_FLAGS,
        "REQ_ONE: MUST NOT send metadata on more than one extent",
        |c| {
            let mut attached = patched(c)?;
            for (offset, len) in [(0, 8 << 20), (4096, 4096), (0, 512), (1 << 20, 1 << 20)] {
                let (_, extents) = status(&mut attached, flag::REQ_ONE, offset, len)?;
                same("extents", extents.len(), 1)?;
                ensure(extents[0].0 <= len, || {
                    format!("{extents:?} for {len} bytes")
                })?;
            }
            Ok(())
        },
    )
    .in_chunked_styles(),
    must(
        "status-makes-progress-to-the-end",
        REQUESTS,
        "a client can always make progress on a successful return",
        |c| {
            let mut attached = patched(c)?;
            let (mut at, size) = (0, attached.facts.size);
            for _ in 0..10_000 {
                let len = (size - at).min(1 << 30);
                let (_, extents) = status(&mut attached, 0, at, len)?;
                at += extents.iter().map(|(len, _)| len).sum::<u64>();
                if at >= size {
                    return same("end of the last extent", at, size);
                }
            }
            skip("10,000 requests were not enough")
        },
    )
    .in_chunked_styles(),
    must(
        "status-zero-means-zero",
        ALLOCATION,
        "NBD_STATE_ZERO: the block contents read as all zeroes",
        |c| {
            let mut attached = patched(c)?;
            let (_, extents) = status(&mut attached, 0, 0, 8 << 20)?;
            let mut at = 0;
            for (len, status) in extents {
                let len = len.min((8 << 20) - at);
                if status & ZERO != 0 {
                    let data = attached.get(at, len)?;
                    let zero = data.iter().all(|byte| *byte == 0);
                    ensure(zero, || format!("{len} bytes at {at} are not zero"))?;
                }
                at += len;
            }
            Ok(())
        },
    )
    .in_chunked_styles(),
    must(
        "status-of-data-is-not-zero",
        ALLOCATION,
        "NBD_STATE_ZERO: the block contents read as all zeroes",
        |c| {
            let mut attached = c.attach_for_status()?;
            writable(&attached)?;
            for round in 0..8 {
                let offset = 5 * 65_536 * round;
                attached.put(offset, &pattern(60, 65_536))?;
                let (_, extents) = status(&mut attached, 0, offset, 65_536)?;
                let zero = extents.iter().any(|(_, status)| status & ZERO != 0);
                ensure(!zero, || {
                    format!("{extents:?} for data just written at {offset}")
                })?;
            }
            Ok(())
        },
    )
    .in_chunked_styles(),
    must(
        "status-after-a-trim",
        ALLOCATION,
        "NBD_STATE_ZERO: the block contents read as all zeroes",
        |c| {
            let mut attached = c.attach_for_status()?;
            writable(&attached)?;
            if attached.facts.flags & has::TRIM == 0 {
                return skip("no TRIM");
            }
            attached.put(0, &pattern(61, 1 << 20))?;
            same(
                "error",
                attached.error_of(cmd::TRIM, 0, 0, 1 << 20)?,
                err::NONE,
            )?;
            attached.put(65_536, &pattern(62, 4096))?;
            let (_, extents) = status(&mut attached, 0, 65_536, 4096)?;
            let zero = extents.iter().any(|(_, status)| status & ZERO != 0);
            ensure(!zero, || {
                format!("{extents:?} for data written after the trim")
            })
        },
    )
    .in_chunked_styles(),
    should(
        "status-reserved-bits-are-zero",
        ALLOCATION,
        "the remainder is reserved. Servers SHOULD set it to all-zero",
        |c| {
            let mut attached = patched(c)?;
            let (_, extents) = status(&mut attached, 0, 0, 8 << 20)?;
            ensure(extents.iter().all(|(_, status)| status & !3 == 0), || {
                format!("{extents:?}")
            })
        },
    )
    .in_chunked_styles(),
    should(
        "status-neighbours-differ",
        REQUESTS,
        "SHOULD use different status values between consecutive descriptors",
        |c| {
            let mut attached = patched(c)?;
            let (_, extents) = status(&mut attached, 0, 0, 8 << 20)?;
            let differ = extents.windows(2).all(|pair| pair[0].1 != pair[1].1);
            ensure(differ, || format!("{extents:?}"))
        },
    )
    .in_chunked_styles(),
    should(
        "status-lengths-in-sectors",
        REQUESTS,
        "SHOULD use lengths that are an integer multiple of 512 bytes",
        |c| {
            let mut attached = patched(c)?;
            let (_, extents) = status(&mut attached, 0, 0, 8 << 20)?;
            ensure(extents.iter().all(|(len, _)| len % 512 == 0), || {
                format!("{extents:?}")
            })
        },
    )
    .in_chunked_styles(),
    should(
        "status-of-nothing-goes-on",
        REQUESTS,
        "status length of 0: the server SHOULD NOT disconnect",
        |c| {
            let mut attached = c.attach_for_status()?;
            attached.ask(cmd::BLOCK_STATUS, 0, 0, 0)?;
            attached.expect_alive()
        },
    )
    .in_chunked_styles(),
    should(
        "status-at-the-end",
        REQUESTS,
        "SHOULD return NBD_EINVAL beyond the size of the device",
        |c| {
            let mut attached = c.attach_for_status()?;
            let range = (attached.facts.size, 512);
            attached.expect_error(cmd::BLOCK_STATUS, 0, range, err::EINVAL)
        },
    )
    .in_chunked_styles(),
    should(
        "status-across-the-end",
        REQUESTS,
        "SHOULD return NBD_EINVAL beyond the size of the device",
        |c| {
            let mut attached = c.attach_for_status()?;
            let range = (attached.facts.size - 512, 1024);
            attached.expect_error(cmd::BLOCK_STATUS, 0, range, err::EINVAL)
        },
    )
    .in_chunked_styles(),
    should(
        "status-with-unknown-flag",
        "Error values",
        "SHOULD return NBD_EINVAL for an unknown command flag",
        |c| {
            let mut attached = c.attach_for_status()?;
            attached.expect_error(cmd::BLOCK_STATUS, 1 << 15, (0, 4096), err::EINVAL)
        },
    )
    .in_chunked_styles(),
    must(
        "status-with-fua",
        COMMAND_FLAGS,
        "FUA: MUST accept all commands with this bit set",
        |c| {
            let mut attached = c.attach_for_status()?;
            if attached.facts.flags & has::FUA == 0 {
                return skip("no FUA");
            }
            status(&mut attached, flag::FUA, 0, 4096).map(drop)
        },
    )
    .in_chunked_styles(),
    must(
        "status-same-after-info",
        "Option types",
        "contexts stay selected until replaced",
        |c| {
            let mut conn = c.with_contexts()?;
            let request = meta_request(c.export(), &["base:allocation"]);
            conn.option(opt::SET_META_CONTEXT, &request)?;
            conn.option(
                opt::INFO,
                &crate::wire::info_request(c.export(), &[info::NAME]),
            )?;
            conn.expect_in_step()?;
            let mut attached = c.go(conn)?;
            same("chunks", status(&mut attached, 0, 0, 65_536)?.0, 1)
        },
    )
    .in_chunked_styles(),
];

/// How many contexts were told, and the first one's extents.
fn status(
    attached: &mut Attached,
    flags: u16,
    offset: u64,
    len: u64,
) -> Verdict<(usize, Vec<(u64, u64)>)> {
    let answer = attached.ask(cmd::BLOCK_STATUS, flags, offset, len)?;
    same("error of a block status", answer.error, err::NONE)?;
    let count = answer.contexts.len();
    let first = answer.contexts.into_iter().next();
    Ok((count, first.map(|(_, extents)| extents).unwrap_or_default()))
}

fn writable(attached: &Attached) -> Verdict {
    if attached.facts.flags & has::READ_ONLY != 0 || attached.facts.size < 8 << 20 {
        return skip("the export is read-only, or smaller than 8 MiB");
    }
    Ok(())
}

/// Attached, with data and zeroes in turns in the first 8 MiB if it is writable.
fn patched(c: &Context<'_>) -> Verdict<Attached> {
    let mut attached = c.attach_for_status()?;
    writable(&attached)?;
    let zeroes = attached.facts.flags & has::WRITE_ZEROES != 0;
    for nr in 0..8 {
        let at = nr << 20;
        attached.put(at, &pattern(63, 65_536))?;
        if zeroes {
            attached.ask(cmd::WRITE_ZEROES, 0, at + 65_536, (1 << 20) - 65_536)?;
        }
    }
    Ok(attached)
}
