//! WRITE_ZEROES, TRIM and CACHE.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::{Attached, pattern};
use crate::case::{Case, Verdict, ensure, must, same, should, skip};
use crate::target::Context;
use crate::wire::{cmd, err, flag, has};

const REQUESTS: &str = "Request types";
const ERRORS: &str = "Error values";
const COMMAND_FLAGS: &str = "Command flags";
const SIZES: &str = "Size constraints";

const ZEROES_BEYOND: &str =
    "SHOULD return NBD_ENOSPC for write zeroes beyond the size of the device";
const TRIM_BEYOND: &str = "SHOULD return NBD_EINVAL for a trim beyond the size of the device";
const BAD_FLAG: &str = "SHOULD return NBD_EINVAL for a flag not documented as applicable";

/// Where these cases write.
const AT: u64 = 1 << 20;
const LEN: u64 = 256 << 10;

pub(super) const CASES: &[Case] = &[
    must(
        "zeroes-read-back",
        REQUESTS,
        "WRITE_ZEROES: MUST ensure that the data reads back as zero",
        |c| zeroes(c, 0),
    )
    .in_each_style(),
    must(
        "zeroes-no-hole",
        COMMAND_FLAGS,
        "NO_HOLE: MUST support it if it advertises SEND_WRITE_ZEROES",
        |c| zeroes(c, flag::NO_HOLE),
    )
    .in_each_style(),
    must(
        "zeroes-fua",
        COMMAND_FLAGS,
        "FUA: MUST accept all commands with this bit set",
        |c| {
            c.attach_with(has::FUA)?;
            zeroes(c, flag::FUA)
        },
    )
    .in_each_style(),
    must(
        "zeroes-unaligned",
        REQUESTS,
        "offset and length define the location and amount of data to be zeroed",
        |c| {
            let mut attached = prepared(c, has::WRITE_ZEROES)?;
            if attached.facts.block_sizes.is_some_and(|[min, ..]| min > 1) {
                return skip("the minimum block size is above 1");
            }
            let mut model = pattern(50, usize::try_from(LEN).unwrap_or(0));
            for (at, len) in [(1, 1), (4095, 2), (5000, 10_000), (65_535, 65_538)] {
                same(
                    "error",
                    attached.error_of(cmd::WRITE_ZEROES, 0, AT + at as u64, len as u64)?,
                    0,
                )?;
                model[at..at + len].fill(0);
            }
            attached.expect_data(AT, &model)
        },
    )
    .in_each_style(),
    must(
        "zeroes-over-the-whole-export",
        SIZES,
        "MAY request an effect length larger than the maximum payload; SHOULD NOT disconnect",
        |c| {
            let mut attached = c.attach_writable(has::WRITE_ZEROES)?;
            let size = attached.facts.size;
            if size > 1 << 30 {
                return skip("the export is larger than 1 GiB");
            }
            let error = attached.error_of(cmd::WRITE_ZEROES, 0, 0, size)?;
            ensure(
                [err::NONE, err::EINVAL, err::EOVERFLOW].contains(&error),
                || format!("error {error}"),
            )?;
            attached.expect_alive()
        },
    )
    .in_each_style(),
    should(
        "zeroes-of-nothing-goes-on",
        REQUESTS,
        "write length of 0: the server SHOULD NOT disconnect",
        |c| nothing(c, cmd::WRITE_ZEROES, has::WRITE_ZEROES),
    )
    .in_each_style(),
    should("zeroes-at-the-end", REQUESTS, ZEROES_BEYOND, |c| {
        beyond(
            c,
            cmd::WRITE_ZEROES,
            has::WRITE_ZEROES,
            err::ENOSPC,
            |size| (size, 512),
        )
    })
    .in_each_style(),
    should("zeroes-across-the-end", REQUESTS, ZEROES_BEYOND, |c| {
        beyond(
            c,
            cmd::WRITE_ZEROES,
            has::WRITE_ZEROES,
            err::ENOSPC,
            |size| (size - 512, 1024),
        )
    })
    .in_each_style(),
    should("zeroes-wrapping-around", REQUESTS, ZEROES_BEYOND, |c| {
        beyond(c, cmd::WRITE_ZEROES, has::WRITE_ZEROES, err::ENOSPC, |_| {
            (u64::MAX - 511, 1024)
        })
    })
    .in_each_style(),
    should("zeroes-with-df", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, cmd::WRITE_ZEROES, has::WRITE_ZEROES, flag::DF)
    })
    .in_each_style(),
    should("zeroes-with-req-one", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, cmd::WRITE_ZEROES, has::WRITE_ZEROES, flag::REQ_ONE)
    })
    .in_each_style(),
    should("zeroes-with-unknown-flag", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, cmd::WRITE_ZEROES, has::WRITE_ZEROES, 1 << 15)
    })
    .in_each_style(),
    must(
        "fast-zero-works-or-is-not-supported",
        COMMAND_FLAGS,
        "FAST_ZERO: MUST fail quickly with NBD_ENOTSUP if not faster",
        |c| {
            let mut attached = prepared(c, has::WRITE_ZEROES | has::FAST_ZERO)?;
            match attached.error_of(cmd::WRITE_ZEROES, flag::FAST_ZERO, AT, LEN)? {
                err::NONE => attached.expect_data(AT, &vec![0; usize::try_from(LEN).unwrap_or(0)]),
                error => same("error", error, err::ENOTSUP),
            }
        },
    )
    .in_each_style(),
    should(
        "fast-zero-refused-changes-nothing",
        REQUESTS,
        "SHOULD NOT alter the contents when returning an NBD_ENOTSUP",
        |c| {
            let mut attached = prepared(c, has::WRITE_ZEROES | has::FAST_ZERO)?;
            let flags = flag::FAST_ZERO | flag::NO_HOLE;
            if attached.error_of(cmd::WRITE_ZEROES, flags, AT, LEN)? != err::ENOTSUP {
                return skip("zeroes without holes are fast here");
            }
            attached.expect_data(AT, &pattern(50, usize::try_from(LEN).unwrap_or(0)))
        },
    )
    .in_each_style(),
    should(
        "fast-zero-unoffered",
        REQUESTS,
        "did not advertise SEND_FAST_ZERO: SHOULD fail with NBD_EINVAL",
        |c| {
            let mut attached = c.attach_writable(has::WRITE_ZEROES)?;
            if attached.facts.flags & has::FAST_ZERO != 0 {
                return skip("SEND_FAST_ZERO is set");
            }
            attached.expect_error(cmd::WRITE_ZEROES, flag::FAST_ZERO, (AT, 4096), err::EINVAL)
        },
    )
    .in_each_style(),
    must("trim", REQUESTS, "TRIM: a hint; other bytes stay", |c| {
        let mut attached = prepared(c, has::TRIM)?;
        same(
            "error",
            attached.error_of(cmd::TRIM, 0, AT + 65_536, 65_536)?,
            err::NONE,
        )?;
        let model = pattern(50, usize::try_from(LEN).unwrap_or(0));
        attached.expect_data(AT, &model[..65_536])?;
        attached.expect_data(AT + 131_072, &model[131_072..])?;
        let data = pattern(51, 4096);
        attached.put(AT + 65_536, &data)?;
        attached.expect_data(AT + 65_536, &data)
    })
    .in_each_style(),
    must(
        "trim-fua",
        COMMAND_FLAGS,
        "FUA: MUST accept all commands with this bit set",
        |c| {
            let mut attached = prepared(c, has::TRIM | has::FUA)?;
            same(
                "error",
                attached.error_of(cmd::TRIM, flag::FUA, AT, 65_536)?,
                err::NONE,
            )
        },
    )
    .in_each_style(),
    should(
        "trim-of-nothing-goes-on",
        REQUESTS,
        "trim length of 0: the server SHOULD NOT disconnect",
        |c| nothing(c, cmd::TRIM, has::TRIM),
    )
    .in_each_style(),
    should("trim-at-the-end", ERRORS, TRIM_BEYOND, |c| {
        beyond(c, cmd::TRIM, has::TRIM, err::EINVAL, |size| (size, 512))
    })
    .in_each_style(),
    should("trim-across-the-end", ERRORS, TRIM_BEYOND, |c| {
        beyond(c, cmd::TRIM, has::TRIM, err::EINVAL, |size| {
            (size - 512, 1024)
        })
    })
    .in_each_style(),
    should("trim-wrapping-around", ERRORS, TRIM_BEYOND, |c| {
        beyond(c, cmd::TRIM, has::TRIM, err::EINVAL, |_| {
            (u64::MAX - 511, 1024)
        })
    })
    .in_each_style(),
    should("trim-with-no-hole", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, cmd::TRIM, has::TRIM, flag::NO_HOLE)
    })
    .in_each_style(),
    should("trim-with-unknown-flag", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, cmd::TRIM, has::TRIM, 1 << 15)
    })
    .in_each_style(),
    must(
        "cache-changes-nothing",
        REQUESTS,
        "CACHE: MUST NOT be any difference in semantics",
        |c| {
            let mut attached = prepared(c, has::CACHE)?;
            attached.ask(cmd::CACHE, 0, AT, LEN)?;
            attached.expect_data(AT, &pattern(50, usize::try_from(LEN).unwrap_or(0)))
        },
    )
    .in_each_style(),
    must(
        "cache-unknown-flag",
        REQUESTS,
        "CACHE: MUST reject any command flags it does not recognize",
        |c| {
            let mut attached = c.attach_with(has::CACHE)?;
            let error = attached.error_of(cmd::CACHE, 1 << 15, 0, 4096)?;
            ensure(error != err::NONE, || "no error".to_owned())?;
            attached.expect_alive()
        },
    )
    .in_each_style(),
    should(
        "cache-across-the-end",
        SIZES,
        "SHOULD report NBD_EINVAL if it would exceed the export size",
        |c| {
            let mut attached = c.attach_with(has::CACHE)?;
            let range = (attached.facts.size - 512, 1024);
            attached.expect_error(cmd::CACHE, 0, range, err::EINVAL)
        },
    )
    .in_each_style(),
];

/// Attached, with a pattern where these cases write.
fn prepared(c: &Context<'_>, flags: u16) -> Verdict<Attached> {
    let mut attached = c.attach_writable(flags)?;
    attached.put(AT, &pattern(50, usize::try_from(LEN).unwrap_or(0)))?;
    Ok(attached)
}

fn zeroes(c: &Context<'_>, flags: u16) -> Verdict {
    let mut attached = prepared(c, has::WRITE_ZEROES)?;
    let mut model = pattern(50, usize::try_from(LEN).unwrap_or(0));
    same(
        "error",
        attached.error_of(cmd::WRITE_ZEROES, flags, AT + 65_536, 65_536)?,
        err::NONE,
    )?;
    model[65_536..131_072].fill(0);
    attached.expect_data(AT, &model)
}

fn nothing(c: &Context<'_>, command: u16, needs: u16) -> Verdict {
    let mut attached = c.attach_writable(needs)?;
    attached.ask(command, 0, 4096, 0)?;
    attached.expect_alive()
}

fn beyond(
    c: &Context<'_>,
    command: u16,
    needs: u16,
    error: u32,
    range: fn(u64) -> (u64, u64),
) -> Verdict {
    let mut attached = c.attach_writable(needs)?;
    let range = range(attached.facts.size);
    attached.expect_error(command, 0, range, error)
}

fn bad_flag(c: &Context<'_>, command: u16, needs: u16, flag: u16) -> Verdict {
    c.attach_writable(needs)?
        .expect_error(command, flag, (AT, 4096), err::EINVAL)
}
