//! WRITE.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::pattern;
use crate::case::{Case, Verdict, must, same, should, skip};
use crate::target::Context;
use crate::wire::{Request, Style, cmd, err, flag, has};

const REQUESTS: &str = "Request types";
const ERRORS: &str = "Error values";
const SIZES: &str = "Size constraints";
const COMMAND_FLAGS: &str = "Command flags";
const MESSAGE: &str = "Request message";
const FLAGS: &str = "Transmission flags";

const BEYOND: &str = "SHOULD return NBD_ENOSPC for a write beyond the size of the device";
const BAD_FLAG: &str = "SHOULD return NBD_EINVAL for a flag not documented as applicable";

pub(super) const CASES: &[Case] = &[
    must(
        "write-at-the-edges",
        SIZES,
        "length added to offset may reach, not exceed, the export size",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let (data, size) = (pattern(3, 4096), attached.facts.size);
            for offset in [0, size - 4096] {
                attached.put(offset, &data)?;
                attached.expect_data(offset, &data)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "write-single-bytes",
        SIZES,
        "minimum block size of 1, unless advertised otherwise",
        |c| {
            let mut attached = c.attach_writable(0)?;
            if attached.facts.block_sizes.is_some_and(|[min, ..]| min > 1) {
                return skip("the minimum block size is above 1");
            }
            let mut model = pattern(4, 16_384);
            attached.put(65_536, &model)?;
            for (seed, (at, len)) in (5..).zip([(0, 1), (4095, 2), (1000, 5000), (16_383, 1)]) {
                let data = pattern(seed, len);
                attached.put(65_536 + at as u64, &data)?;
                model[at..at + len].copy_from_slice(&data);
            }
            attached.expect_data(65_536, &model)
        },
    )
    .in_each_style(),
    must(
        "write-of-32-mib",
        SIZES,
        "any payload not exceeding 2^25 SHOULD NOT be considered a denial of service",
        |c| {
            let mut attached = c.attach_writable(0)?;
            if attached.facts.size < 32 << 20 {
                return skip("the export is smaller than 32 MiB");
            }
            let data = pattern(9, 32 << 20);
            attached.put(0, &data)?;
            attached.expect_data(31 << 20, &data[31 << 20..])
        },
    )
    .in_each_style(),
    should(
        "write-of-nothing-goes-on",
        REQUESTS,
        "write length of 0: the server SHOULD NOT disconnect",
        |c| {
            let mut attached = c.attach_writable(0)?;
            attached.write(0, 0, &[])?;
            attached.expect_alive()
        },
    )
    .in_each_style(),
    must(
        "write-with-fua",
        COMMAND_FLAGS,
        "FUA: MUST accept all commands with this bit set",
        |c| {
            let mut attached = c.attach_writable(has::FUA)?;
            let data = pattern(10, 8192);
            same("error", attached.write(flag::FUA, 8192, &data)?, err::NONE)?;
            attached.expect_data(8192, &data)
        },
    )
    .in_each_style(),
    should("write-at-the-end", ERRORS, BEYOND, |c| {
        beyond(c, |size| size)
    })
    .in_each_style(),
    should("write-across-the-end", ERRORS, BEYOND, |c| {
        beyond(c, |size| size - 512)
    })
    .in_each_style(),
    should("write-at-offset-2-63", ERRORS, BEYOND, |c| {
        beyond(c, |_| 1 << 63)
    })
    .in_each_style(),
    should("write-wrapping-around", ERRORS, BEYOND, |c| {
        beyond(c, |_| u64::MAX - 511)
    })
    .in_each_style(),
    should("write-with-no-hole", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::NO_HOLE)
    })
    .in_each_style(),
    should("write-with-df", ERRORS, BAD_FLAG, |c| bad_flag(c, flag::DF)).in_each_style(),
    should("write-with-req-one", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::REQ_ONE)
    })
    .in_each_style(),
    should("write-with-fast-zero", ERRORS, BAD_FLAG, |c| {
        bad_flag(c, flag::FAST_ZERO)
    })
    .in_each_style(),
    should(
        "write-with-unknown-flag",
        ERRORS,
        "SHOULD return NBD_EINVAL for an unknown command flag",
        |c| bad_flag(c, 1 << 15),
    )
    .in_each_style(),
    should(
        "write-refused-changes-nothing",
        ERRORS,
        "an error, not a partial effect",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let (data, size) = (pattern(11, 4096), attached.facts.size);
            attached.put(size - 4096, &data)?;
            attached.write(0, size - 512, &[0xff; 1024])?;
            attached.write(1 << 15, size - 4096, &[0xff; 512])?;
            attached.expect_data(size - 4096, &data)
        },
    )
    .in_each_style(),
    must(
        "write-refused-long-payload-is-consumed",
        MESSAGE,
        "C: length bytes of data",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let payload = vec![0x25; 4 << 20];
            attached.write(1 << 15, 0, &payload)?;
            attached.expect_alive()
        },
    )
    .in_each_style(),
    must(
        "write-read-only",
        FLAGS,
        "READ_ONLY: the server MUST error subsequent write operations",
        |c| {
            let mut attached = c.attach_with(has::READ_ONLY)?;
            attached.expect_write_error(0, 0, 4096, err::EPERM)
        },
    )
    .in_each_style(),
    must(
        "write-byte-by-byte",
        MESSAGE,
        "a stream has no message borders",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let data = pattern(12, 512);
            let request = Request {
                command: cmd::WRITE,
                flags: if c.style == Style::Extended {
                    flag::PAYLOAD_LEN
                } else {
                    0
                },
                cookie: 77,
                offset: 0,
                len: 512,
            };
            let bytes = [request.encode(c.style), data.clone()].concat();
            attached.conn.send_slowly(&bytes[..bytes.len() - 1])?;
            attached.expect_outstanding(request);
            attached.conn.send(&bytes[bytes.len() - 1..])?;
            same("error", attached.answer(77)?.error, err::NONE)?;
            attached.expect_data(0, &data)
        },
    )
    .in_each_style(),
    must(
        "leaving-inside-a-write",
        "Terminating the transmission phase",
        "no other connection is disconnected",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let before = pattern(13, 4096);
            attached.put(0, &before)?;
            for len in [0, 1, 2048, 4095] {
                let mut gone = c.attach_writable(0)?;
                gone.submit(cmd::WRITE, 0, 0, 4096, &vec![0xff; len])?;
            }
            attached.expect_alive()?;
            c.expect_serving()?;
            attached.expect_data(0, &before)
        },
    )
    .in_each_style(),
];

fn beyond(c: &Context<'_>, offset: fn(u64) -> u64) -> Verdict {
    let mut attached = c.attach_writable(0)?;
    let offset = offset(attached.facts.size);
    attached.expect_write_error(0, offset, 1024, err::ENOSPC)
}

fn bad_flag(c: &Context<'_>, flag: u16) -> Verdict {
    c.attach_writable(0)?
        .expect_write_error(flag, 0, 1024, err::EINVAL)
}
