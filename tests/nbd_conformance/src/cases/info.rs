//! INFO and GO: what they tell, what they refuse, and what the told values may be.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::case::{Case, Verdict, ensure, must, same, should, skip};
use crate::target::{Context, Facts};
use crate::wire::{counted, has, info, info_request, opt, rep};

const OPTION_TYPES: &str = "Option types";
const OPTION_REPLY_TYPES: &str = "Option reply types";
const SIZES: &str = "Size constraints";
const FLAGS: &str = "Transmission flags";
const BASELINE: &str = "Baseline";

const MALFORMED: &str = "NBD_REP_ERR_INVALID: syntactically or semantically invalid";

pub(super) const CASES: &[Case] = &[
    must(
        "info-tells-the-export",
        OPTION_REPLY_TYPES,
        "MUST send an NBD_INFO_EXPORT before NBD_REP_ACK",
        |c| {
            let facts = c.info(&[])?;
            ensure(facts.kinds.contains(&info::EXPORT), || {
                format!("only {:?}", facts.kinds)
            })
        },
    )
    .in_each_style(),
    must(
        "go-tells-the-export",
        OPTION_REPLY_TYPES,
        "MUST send an NBD_INFO_EXPORT before NBD_REP_ACK",
        |c| {
            let facts = c.attach()?.facts;
            ensure(facts.kinds.contains(&info::EXPORT), || {
                format!("only {:?}", facts.kinds)
            })
        },
    )
    .in_each_style(),
    must(
        "info-then-go-agree",
        OPTION_TYPES,
        "the server MUST reply with the same set of information",
        |c| {
            let mut conn = c.styled()?;
            let request = info_request(c.export(), &[info::BLOCK_SIZE]);
            let mut told = Facts::of(&conn.option(opt::INFO, &request)?)?;
            let mut again = Facts::of(&conn.option(opt::GO, &request)?)?;
            for facts in [&mut told, &mut again] {
                facts.kinds.sort_unstable();
                // Whether it is told may depend on the contexts by the time of GO.
                facts.flags &= !has::BLOCK_STATUS_PAYLOAD;
            }
            same("information", again, told)
        },
    )
    .in_each_style(),
    must(
        "info-stays-in-haggling",
        OPTION_TYPES,
        "INFO does not yet move to the transmission phase",
        |c| {
            let mut conn = c.haggling()?;
            for _ in 0..3 {
                conn.option(opt::INFO, &info_request(c.export(), &[]))?;
                conn.expect_in_step()?;
            }
            c.go(conn)?.expect_alive()
        },
    ),
    must(
        "go-has-no-padding",
        OPTION_TYPES,
        "MUST NOT send any zero padding bytes after the NBD_REP_ACK",
        |c| {
            let conn = c.greeted(1)?;
            c.go(conn)?.expect_alive()
        },
    ),
    should(
        "each-information-once",
        OPTION_REPLY_TYPES,
        "information type SHOULD only appear once",
        |c| {
            let mut kinds = c
                .info(&[info::BLOCK_SIZE, info::NAME, info::DESCRIPTION])?
                .kinds;
            let count = kinds.len();
            kinds.sort_unstable();
            kinds.dedup();
            same("different pieces", kinds.len(), count)
        },
    ),
    must(
        "unknown-information-is-ignored",
        OPTION_TYPES,
        "MUST ignore any information requests it does not understand",
        |c| {
            let facts = c.info(&[0x7fff, info::BLOCK_SIZE, 0xfffe])?;
            ensure(facts.kinds.contains(&info::EXPORT), || {
                format!("only {:?}", facts.kinds)
            })
        },
    ),
    must(
        "many-information-requests",
        OPTION_TYPES,
        "16 bits, number of information requests",
        |c| {
            let kinds: Vec<u16> = (100..600).collect();
            c.info(&kinds).map(drop)
        },
    ),
    must(
        "empty-name-is-the-default-export",
        OPTION_TYPES,
        "no name specifies the default export (if any)",
        |c| {
            let mut conn = c.haggling()?;
            let replies = conn.option(opt::INFO, &info_request(b"", &[]))?;
            match replies.last().map(|last| last.kind) {
                Some(rep::ACK) => {
                    let facts = Facts::of(&replies)?;
                    ensure(facts.kinds.contains(&info::EXPORT), || {
                        format!("only {:?}", facts.kinds)
                    })
                }
                Some(rep::ERR_UNKNOWN) => skip("no default export"),
                other => crate::case::fail(format!("reply {other:x?}")),
            }
        },
    ),
    must(
        "unknown-export-is-unknown",
        OPTION_TYPES,
        "NBD_REP_ERR_UNKNOWN: the chosen export does not exist",
        |c| {
            for number in [opt::INFO, opt::GO] {
                let mut conn = c.haggling()?;
                same(
                    "reply",
                    unknown_export(c, &mut conn, number)?,
                    rep::ERR_UNKNOWN,
                )?;
            }
            Ok(())
        },
    ),
    must(
        "unknown-export-then-go",
        BASELINE,
        "MUST NOT fail to parse the next message received",
        |c| {
            let mut conn = c.haggling()?;
            unknown_export(c, &mut conn, opt::GO)?;
            c.go(conn)?.expect_alive()
        },
    ),
    should(
        "unknown-export-tells-nothing",
        OPTION_TYPES,
        "In this case, the server SHOULD NOT send NBD_REP_INFO",
        |c| {
            let request = info_request(c.unknown_name()?, &[info::BLOCK_SIZE]);
            let replies = c.haggling()?.option(opt::GO, &request)?;
            same("replies", replies.len(), 1)
        },
    ),
    must(
        "name-of-4096-bytes",
        "Conventions",
        "strings MUST be no longer than 4096 bytes",
        |c| {
            c.unknown_name()?;
            let mut conn = c.haggling()?;
            let kind = conn.option_kind(opt::GO, &info_request(&[b'n'; 4096], &[]))?;
            ensure(kind & rep::ERROR_BIT != 0, || format!("reply {kind:#x}"))?;
            c.go(conn)?.expect_alive()
        },
    ),
    must(
        "name-of-5000-bytes-harms-nobody",
        "Conventions",
        "strings MUST be no longer than 4096 bytes",
        |c| {
            let mut conn = c.haggling()?;
            conn.send_option(opt::GO, &info_request(&[b'n'; 5000], &[]))?;
            c.expect_serving()
        },
    ),
    should(
        "name-longer-than-its-option",
        OPTION_REPLY_TYPES,
        MALFORMED,
        |c| {
            let mut data = info_request(c.export(), &[]);
            data[3] = data[3].wrapping_add(3);
            malformed(c, &data)
        },
    ),
    should("name-of-4-gib", OPTION_REPLY_TYPES, MALFORMED, |c| {
        let mut data = info_request(c.export(), &[]);
        data[..4].copy_from_slice(&[0xff; 4]);
        malformed(c, &data)
    }),
    should("go-without-data", OPTION_REPLY_TYPES, MALFORMED, |c| {
        malformed(c, &[])
    }),
    should("go-without-a-count", OPTION_REPLY_TYPES, MALFORMED, |c| {
        malformed(c, &counted(c.export()))
    }),
    should(
        "go-with-too-few-requests",
        OPTION_REPLY_TYPES,
        MALFORMED,
        |c| {
            let mut data = info_request(c.export(), &[info::BLOCK_SIZE]);
            let at = data.len() - 3;
            data[at] = 2;
            malformed(c, &data)
        },
    ),
    should(
        "go-with-too-many-requests",
        OPTION_REPLY_TYPES,
        MALFORMED,
        |c| {
            let mut data = info_request(c.export(), &[info::BLOCK_SIZE]);
            let at = data.len() - 3;
            data[at] = 0;
            malformed(c, &data)
        },
    ),
    must(
        "flags-has-flags",
        FLAGS,
        "bit 0, NBD_FLAG_HAS_FLAGS: MUST always be 1",
        |c| {
            let flags = c.info(&[])?.flags;
            ensure(flags & has::FLAGS != 0, || format!("{flags:#x}"))
        },
    ),
    must(
        "flags-df-only-with-chunks",
        FLAGS,
        "MUST leave SEND_DF clear if structured replies have not been negotiated",
        |c| {
            let flags = c.info(&[])?.flags;
            ensure(flags & has::DF == 0, || format!("{flags:#x}"))
        },
    ),
    must(
        "flags-fast-zero-only-with-zeroes",
        FLAGS,
        "MUST set SEND_FAST_ZERO to 0 if SEND_WRITE_ZEROES is not set",
        |c| {
            let flags = c.info(&[])?.flags;
            let proper = flags & has::FAST_ZERO == 0 || flags & has::WRITE_ZEROES != 0;
            ensure(proper, || format!("{flags:#x}"))
        },
    )
    .in_each_style(),
    must(
        "flags-status-payload-only-extended",
        FLAGS,
        "MUST NOT advertise BLOCK_STATUS_PAYLOAD without extended headers",
        |c| {
            let flags = c.info(&[])?.flags;
            ensure(flags & has::BLOCK_STATUS_PAYLOAD == 0, || {
                format!("{flags:#x}")
            })
        },
    ),
    must(
        "block-size-min",
        SIZES,
        "minimum MUST be a power of 2, MUST NOT be larger than 2^16",
        |c| {
            let [min, ..] = block_sizes(c)?;
            ensure(min.is_power_of_two() && min <= 1 << 16, || {
                format!("minimum {min}")
            })
        },
    ),
    must(
        "block-size-preferred",
        SIZES,
        "preferred MUST be a power of 2 at least as large as minimum and 512",
        |c| {
            let [min, preferred, _] = block_sizes(c)?;
            let proper = preferred.is_power_of_two() && preferred >= min.max(512);
            ensure(proper, || format!("preferred {preferred}, minimum {min}"))
        },
    ),
    must(
        "block-size-max",
        SIZES,
        "maximum MUST be at least as large as the preferred block size",
        |c| {
            let [_, preferred, max] = block_sizes(c)?;
            ensure(max >= preferred, || {
                format!("maximum {max}, preferred {preferred}")
            })
        },
    ),
    should(
        "block-size-max-at-least-1-mib",
        SIZES,
        "maximum SHOULD be at least 2^20 if the export is that large",
        |c| {
            let [_, _, max] = block_sizes(c)?;
            let size = c.info(&[])?.size;
            ensure(u64::from(max) >= size.min(1 << 20), || {
                format!("maximum {max}")
            })
        },
    ),
    should(
        "size-is-a-multiple-of-the-minimum",
        SIZES,
        "the export size SHOULD be an integer multiple of that block size",
        |c| {
            let [min, ..] = block_sizes(c)?;
            let size = c.info(&[])?.size;
            same("size modulo minimum", size % u64::from(min), 0)
        },
    ),
];

fn unknown_export(c: &Context<'_>, conn: &mut crate::conn::Conn, number: u32) -> Verdict<u32> {
    let name = c.unknown_name()?;
    conn.option_kind(number, &info_request(name, &[info::BLOCK_SIZE]))
}

fn malformed(c: &Context<'_>, data: &[u8]) -> Verdict {
    for number in [opt::INFO, opt::GO] {
        let mut conn = c.haggling()?;
        let kind = conn.option_kind(number, data)?;
        ensure(kind == rep::ERR_INVALID || kind == rep::ERR_TOO_BIG, || {
            format!("reply {kind:#x}")
        })?;
        conn.expect_in_step()?;
    }
    Ok(())
}

fn block_sizes(c: &Context<'_>) -> Verdict<[u32; 3]> {
    match c.info(&[info::BLOCK_SIZE])?.block_sizes {
        Some(sizes) => Ok(sizes),
        None => skip("no INFO_BLOCK_SIZE"),
    }
}
