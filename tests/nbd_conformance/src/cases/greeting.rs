//! Greeting, client flags, and EXPORT_NAME, which ends a handshake without a reply to it.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::Attached;
use crate::case::{Case, Verdict, ensure, must, same};
use crate::target::{Context, Facts};
use crate::wire::{Style, opt};

const NEWSTYLE: &str = "Newstyle negotiation";
const HANDSHAKE_FLAGS: &str = "Handshake flags";
const CLIENT_FLAGS: &str = "Client flags";
const OPTION_TYPES: &str = "Option types";
const TERMINATION: &str = "Termination of the session during option haggling";

pub(super) const CASES: &[Case] = &[
    must(
        "greeting-magic",
        NEWSTYLE,
        "S: NBDMAGIC, IHAVEOPT, 16 bits of handshake flags",
        |c| c.connect()?.greeting().map(drop),
    ),
    must(
        "greeting-fixed-newstyle",
        HANDSHAKE_FLAGS,
        "bit 0 MUST be set by servers that support fixed newstyle",
        |c| {
            let flags = c.connect()?.greeting()?;
            ensure(flags & 1 != 0, || format!("handshake flags {flags:#x}"))
        },
    ),
    must(
        "greeting-no-unknown-flag",
        HANDSHAKE_FLAGS,
        "The server MUST NOT set any other flags",
        |c| {
            let flags = c.connect()?.greeting()?;
            same("flags beyond bits 0 and 1", flags & !3, 0)
        },
    ),
    must(
        "client-flag-2-drops",
        CLIENT_FLAGS,
        "MUST drop the TCP connection if the client sets an unknown flag",
        |c| unknown_client_flag(c, 1 << 2),
    ),
    must(
        "client-flag-16-drops",
        CLIENT_FLAGS,
        "MUST drop the TCP connection if the client sets an unknown flag",
        |c| unknown_client_flag(c, 1 << 16),
    ),
    must(
        "client-flag-31-drops",
        CLIENT_FLAGS,
        "MUST drop the TCP connection if the client sets an unknown flag",
        |c| unknown_client_flag(c, 1 << 31),
    ),
    must(
        "client-flags-byte-by-byte",
        NEWSTYLE,
        "C: 32 bits, client flags (a stream has no message borders)",
        |c| {
            let mut conn = c.connect()?;
            conn.greeting()?;
            conn.send_slowly(&3u32.to_be_bytes())?;
            c.secured(conn)?.expect_in_step()
        },
    ),
    must(
        "export-name-no-zeroes",
        HANDSHAKE_FLAGS,
        "with C_NO_ZEROES the server MUST NOT send the 124 bytes",
        |c| export_name(c, 3)?.expect_alive(),
    ),
    must(
        "export-name-124-zeroes",
        NEWSTYLE,
        "124 bytes, zeroes, unless C_NO_ZEROES was negotiated",
        |c| export_name(c, 1)?.expect_alive(),
    ),
    must(
        "export-name-plain-newstyle",
        OPTION_TYPES,
        "EXPORT_NAME is the valid option in nonfixed newstyle",
        |c| export_name(c, 0)?.expect_alive(),
    ),
    must(
        "export-name-plain-no-zeroes",
        CLIENT_FLAGS,
        "C_NO_ZEROES: the server MUST NOT send the 124 bytes",
        |c| export_name(c, 2)?.expect_alive(),
    ),
    must(
        "export-name-same-as-info",
        "Option reply types",
        "INFO_EXPORT describes the same as EXPORT_NAME",
        |c| {
            let named = export_name(c, 3)?.facts;
            let info = c.info(&[])?;
            same("size", named.size, info.size)?;
            same("transmission flags", named.flags, info.flags)
        },
    ),
    must(
        "export-name-unknown-terminates",
        OPTION_TYPES,
        "export does not exist: the server MUST terminate",
        |c| {
            let mut conn = c.haggling()?;
            conn.send_option(opt::EXPORT_NAME, c.unknown_name()?)?;
            conn.expect_closed()
        },
    ),
    must(
        "export-name-4096-bytes-terminates",
        OPTION_TYPES,
        "export does not exist: the server MUST terminate",
        |c| {
            c.unknown_name()?;
            let mut conn = c.haggling()?;
            conn.send_option(opt::EXPORT_NAME, &[b'n'; 4096])?;
            conn.expect_closed()?;
            c.expect_serving()
        },
    ),
    must(
        "leaving-after-greeting",
        TERMINATION,
        "MUST NOT hard disconnect (others) save where set out",
        |c| {
            drop(c.connect()?);
            c.connect()?.greeting()?;
            drop(c.haggling()?);
            c.expect_serving()
        },
    ),
    must(
        "leaving-inside-client-flags",
        TERMINATION,
        "MUST NOT hard disconnect (others) save where set out",
        |c| {
            let mut conn = c.connect()?;
            conn.greeting()?;
            conn.send(&[0, 0])?;
            drop(conn);
            c.expect_serving()
        },
    ),
];

fn unknown_client_flag(c: &Context<'_>, flag: u32) -> Verdict {
    c.flagged(3 | flag)?.expect_closed()?;
    c.expect_serving()
}

/// Attaches by EXPORT_NAME, having sent these client flags.
fn export_name(c: &Context<'_>, client_flags: u32) -> Verdict<Attached> {
    let mut conn = c.greeted(client_flags)?;
    conn.send_option(opt::EXPORT_NAME, c.export())?;
    let answer = conn.take(10)?;
    if client_flags & 2 == 0 {
        same("padding", conn.take(124)?, vec![0; 124])?;
    }
    let mut reader = crate::wire::Reader(&answer);
    let facts = Facts {
        size: reader.u64().unwrap_or(0),
        flags: reader.u16().unwrap_or(0),
        ..Facts::default()
    };
    Ok(Attached::new(conn, Style::Simple, facts))
}
