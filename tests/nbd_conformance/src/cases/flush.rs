//! FLUSH, and what other connections see.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::pattern;
use crate::case::{Case, must, same};
use crate::wire::{cmd, err, flag, has};

const REQUESTS: &str = "Request types";
const COMMAND_FLAGS: &str = "Command flags";
const FLAGS: &str = "Transmission flags";
const ORDERING: &str = "Ordering of messages and writes";

pub(super) const CASES: &[Case] = &[
    must(
        "flush",
        REQUESTS,
        "FLUSH: the server MUST NOT send a successful reply until all is flushed",
        |c| {
            let mut attached = c.attach_with(has::FLUSH)?;
            same("error", attached.error_of(cmd::FLUSH, 0, 0, 0)?, err::NONE)
        },
    )
    .in_each_style(),
    must(
        "flush-with-fua",
        COMMAND_FLAGS,
        "FUA: MUST accept all commands with this bit set",
        |c| {
            let mut attached = c.attach_with(has::FLUSH | has::FUA)?;
            same(
                "error",
                attached.error_of(cmd::FLUSH, flag::FUA, 0, 0)?,
                err::NONE,
            )
        },
    )
    .in_each_style(),
    must(
        "flush-after-many-writes",
        ORDERING,
        "writes replied to before a FLUSH MUST be on non-volatile storage",
        |c| {
            let mut attached = c.attach_writable(has::FLUSH)?;
            let data = pattern(20, 4096);
            for nr in 0..64 {
                attached.put(nr * 4096, &data)?;
            }
            same("error", attached.error_of(cmd::FLUSH, 0, 0, 0)?, err::NONE)?;
            attached.expect_data(63 * 4096, &data)
        },
    )
    .in_each_style(),
    must(
        "flush-among-writes-in-flight",
        ORDERING,
        "The server MAY process commands out of order",
        |c| {
            let mut attached = c.attach_writable(has::FLUSH)?;
            let data = pattern(21, 65_536);
            let mut cookies = Vec::new();
            for nr in 0..16 {
                cookies.push(attached.submit(cmd::WRITE, 0, nr * 65_536, 65_536, &data)?);
                cookies.push(attached.submit(cmd::FLUSH, 0, 0, 0, &[])?);
            }
            for cookie in cookies {
                same("error", attached.answer(cookie)?.error, err::NONE)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "multi-conn-flush",
        FLAGS,
        "CAN_MULTI_CONN: the effects of FLUSH MUST be visible across all connections",
        |c| {
            let mut one = c.attach_writable(has::FLUSH | has::MULTI_CONN)?;
            let mut two = c.attach()?;
            for seed in 22..30 {
                let data = pattern(seed, 8192);
                one.put(16_384, &data)?;
                same("error", two.error_of(cmd::FLUSH, 0, 0, 0)?, err::NONE)?;
                two.expect_data(16_384, &data)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "multi-conn-fua",
        FLAGS,
        "CAN_MULTI_CONN: the effects of FUA MUST be visible across all connections",
        |c| {
            let mut one = c.attach_writable(has::FUA | has::MULTI_CONN)?;
            let mut two = c.attach()?;
            for seed in 30..38 {
                let data = pattern(seed, 8192);
                same("error", one.write(flag::FUA, 32_768, &data)?, err::NONE)?;
                two.expect_data(32_768, &data)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "write-seen-by-the-next-connection",
        REQUESTS,
        "READ: the data at offset",
        |c| {
            let mut one = c.attach_writable(has::FLUSH)?;
            let data = pattern(40, 8192);
            one.put(65_536, &data)?;
            same("error", one.error_of(cmd::FLUSH, 0, 0, 0)?, err::NONE)?;
            drop(one);
            c.attach()?.expect_data(65_536, &data)
        },
    )
    .in_each_style(),
];
