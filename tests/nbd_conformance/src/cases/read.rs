//! READ.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::pattern;
use crate::case::{Case, Verdict, ensure, must, same, should, skip};
use crate::target::Context;
use crate::wire::{cmd, err, flag, has};

const REQUESTS: &str = "Request types";
const ERRORS: &str = "Error values";
const SIZES: &str = "Size constraints";
const COMMAND_FLAGS: &str = "Command flags";
const CHUNKS: &str = "Structured reply chunk message";

const BEYOND: &str = "SHOULD return NBD_EINVAL for a read beyond the size of the device";
const BAD_FLAG: &str = "SHOULD return NBD_EINVAL for a flag not documented as applicable";

pub(super) const CASES: &[Case] = &[
    must(
        "read-what-was-written",
        REQUESTS,
        "READ: the server replies with the data at offset",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let data = pattern(1, 65_536);
            attached.put(4096, &data)?;
            attached.expect_data(4096, &data)?;
            attached.expect_data(8192, &data[4096..12_288])
        },
    )
    .in_each_style(),
    must(
        "read-first-and-last-block",
        SIZES,
        "length added to offset may reach, not exceed, the export size",
        |c| {
            let mut attached = c.attach()?;
            let size = attached.facts.size;
            let len = size.min(4096);
            attached.get(0, len)?;
            attached.get(size - len, len).map(drop)
        },
    )
    .in_each_style(),
    must(
        "read-single-bytes",
        SIZES,
        "minimum block size of 1, unless advertised otherwise",
        |c| {
            let mut attached = c.attach_writable(0)?;
            if attached.facts.block_sizes.is_some_and(|[min, ..]| min > 1) {
                return skip("the minimum block size is above 1");
            }
            let data = pattern(2, 8192);
            attached.put(0, &data)?;
            for (at, len) in [(0, 1), (511, 2), (1, 1), (4095, 3), (8191, 1), (777, 4099)] {
                attached.expect_data(at as u64, &data[at..at + len])?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "read-32-mib",
        SIZES,
        "any payload not exceeding 2^25 SHOULD NOT be considered a denial of service",
        |c| {
            let mut attached = c.attach()?;
            if attached.facts.size < 32 << 20 {
                return skip("the export is smaller than 32 MiB");
            }
            attached.get(0, 32 << 20).map(drop)
        },
    )
    .in_each_style(),
    should(
        "read-of-nothing-goes-on",
        REQUESTS,
        "read length of 0: the server SHOULD NOT disconnect",
        |c| {
            let mut attached = c.attach()?;
            attached.ask(cmd::READ, 0, 0, 0)?;
            attached.expect_alive()
        },
    )
    .in_each_style(),
    should("read-at-the-end", ERRORS, BEYOND, |c| {
        beyond(c, |size| (size, 512))
    })
    .in_each_style(),
    should("read-across-the-end", ERRORS, BEYOND, |c| {
        beyond(c, |size| (size - 512, 1024))
    })
    .in_each_style(),
    should("read-at-offset-2-63", ERRORS, BEYOND, |c| {
        beyond(c, |_| (1 << 63, 512))
    })
    .in_each_style(),
    should("read-wrapping-around", ERRORS, BEYOND, |c| {
        beyond(c, |_| (u64::MAX - 511, 1024))
    })
    .in_each_style(),
    should(
        "read-of-4-gib",
        REQUESTS,
        "a large read may be refused, not cause a disconnect",
        |c| {
            let mut attached = c.attach()?;
            if attached.facts.size >= 0xffff_f000 {
                return skip("the export is that large");
            }
            let error = attached.error_of(cmd::READ, 0, 0, 0xffff_f000)?;
            ensure([err::EINVAL, err::EOVERFLOW].contains(&error), || {
                format!("error {error}")
            })?;
            attached.expect_alive()
        },
    )
    .in_each_style(),
    must(
        "read-with-fua",
        COMMAND_FLAGS,
        "FUA: MUST accept all commands with this bit set",
        |c| {
            let mut attached = c.attach_with(has::FUA)?;
            same(
                "error",
                attached.error_of(cmd::READ, flag::FUA, 0, 4096)?,
                err::NONE,
            )
        },
    )
    .in_each_style(),
    should("read-with-no-hole", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::NO_HOLE)
    })
    .in_each_style(),
    should("read-with-req-one", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::REQ_ONE)
    })
    .in_each_style(),
    should("read-with-fast-zero", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::FAST_ZERO)
    })
    .in_each_style(),
    should(
        "read-with-unknown-flag",
        ERRORS,
        "SHOULD return NBD_EINVAL for an unknown command flag",
        |c| bad_flag(c, 1 << 15),
    )
    .in_each_style(),
    should("read-with-df-unoffered", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::DF)
    }),
    must(
        "read-with-df-is-one-chunk",
        COMMAND_FLAGS,
        "DF: at most one content chunk in reply",
        |c| {
            let mut attached = c.attach_with(has::DF)?;
            let answer = attached.ask(cmd::READ, flag::DF, 0, 65_536)?;
            same("error", answer.error, err::NONE)?;
            same("content chunks", answer.content_chunks, 1)
        },
    )
    .in_chunked_styles(),
    must(
        "read-with-df-of-64-kib",
        REQUESTS,
        "DF with at most 65,536 bytes MUST NOT be refused with NBD_EOVERFLOW",
        |c| {
            let mut attached = c.attach_with(has::DF)?;
            same(
                "error",
                attached.error_of(cmd::READ, flag::DF, 4096, 65_536)?,
                err::NONE,
            )
        },
    )
    .in_chunked_styles(),
    must(
        "read-error-is-a-chunk",
        CHUNKS,
        "MUST NOT use a simple reply for NBD_CMD_READ (even for an early NBD_EINVAL)",
        |c| {
            let mut attached = c.attach()?;
            let answer = attached.ask(cmd::READ, 1 << 15, 0, 512)?;
            ensure(!answer.is_simple, || "a simple reply".to_owned())
        },
    )
    .in_chunked_styles(),
];

fn beyond(c: &Context<'_>, range: fn(u64) -> (u64, u64)) -> Verdict {
    let mut attached = c.attach()?;
    let range = range(attached.facts.size);
    attached.expect_error(cmd::READ, 0, range, err::EINVAL)
}

fn bad_flag(c: &Context<'_>, flag: u16) -> Verdict {
    c.attach()?
        .expect_error(cmd::READ, flag, (0, 512), err::EINVAL)
}
