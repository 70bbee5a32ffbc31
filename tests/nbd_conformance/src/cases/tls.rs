//! A server that demands TLS: what it does before, and what it forgets then.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::case::{Case, Verdict, must, same, skip};
use crate::conn::Conn;
use crate::target::Context;
use crate::wire::{info_request, meta_request, opt, rep};

const FORCED: &str = "FORCEDTLS mode";
const OPTION_TYPES: &str = "Option types";

pub(super) const CASES: &[Case] = &[
    must(
        "tls-any-other-option-first",
        FORCED,
        "any other option, also unsupported ones: MUST reply with NBD_REP_ERR_TLS_REQD",
        |c| {
            let mut conn = before_tls(c)?;
            for (number, data) in [
                (opt::LIST, Vec::new()),
                (opt::INFO, info_request(c.export(), &[])),
                (opt::GO, info_request(c.export(), &[])),
                (opt::STRUCTURED_REPLY, Vec::new()),
                (opt::LIST_META_CONTEXT, meta_request(c.export(), &[])),
                (opt::SET_META_CONTEXT, meta_request(c.export(), &[])),
                (0x7fff_fff0, b"data".to_vec()),
            ] {
                let kind = conn.option_kind(number, &data)?;
                same("reply", kind, rep::ERR_TLS_REQD)?;
            }
            c.secured(conn)?.expect_in_step()
        },
    ),
    must(
        "tls-export-name-first",
        OPTION_TYPES,
        "requirements not met (TLS not initiated): the server MUST terminate",
        |c| {
            let mut conn = before_tls(c)?;
            conn.send_option(opt::EXPORT_NAME, c.export())?;
            conn.expect_closed()?;
            c.expect_serving()
        },
    ),
    must(
        "tls-abort-first",
        OPTION_TYPES,
        "ABORT: the server MUST reply with NBD_REP_ACK",
        |c| {
            let kind = before_tls(c)?.option_kind(opt::ABORT, &[])?;
            same("reply", kind, rep::ACK)
        },
    ),
    must(
        "tls-starttls-with-data-first",
        OPTION_TYPES,
        "STARTTLS: either ACK or an error reply that is permitted (ERR_INVALID for data)",
        |c| {
            let mut conn = before_tls(c)?;
            let kind = conn.option_kind(opt::STARTTLS, b"data")?;
            same("reply", kind, rep::ERR_INVALID)?;
            c.secured(conn)?.expect_in_step()
        },
    ),
    must(
        "tls-starttls-twice",
        FORCED,
        "STARTTLS when TLS has been negotiated: MUST reply with NBD_REP_ERR_INVALID",
        |c| {
            let mut conn = c.secured(before_tls(c)?)?;
            let kind = conn.option_kind(opt::STARTTLS, &[])?;
            same("reply", kind, rep::ERR_INVALID)?;
            conn.expect_in_step()
        },
    ),
    must(
        "tls-state-is-forgotten",
        OPTION_TYPES,
        "MUST NOT preserve any negotiation state issued before STARTTLS",
        |c| {
            let mut conn = before_tls(c)?;
            conn.option_kind(opt::STRUCTURED_REPLY, &[])?;
            let mut conn = c.secured(conn)?;
            // It would be refused if it were in use already.
            let kind = conn.option_kind(opt::STRUCTURED_REPLY, &[])?;
            same("reply", kind, rep::ACK)
        },
    ),
    must(
        "tls-garbage-terminates",
        FORCED,
        "if the handshake is unsuccessful the server MUST terminate the session",
        |c| {
            let mut conn = before_tls(c)?;
            let kind = conn.option_kind(opt::STARTTLS, &[])?;
            same("reply", kind, rep::ACK)?;
            conn.send(b"This is no TLS handshake, nor anything like it.")?;
            conn.read_to_close()?;
            c.expect_serving()
        },
    ),
    must(
        "tls-clear-text-behind-starttls",
        FORCED,
        "after the ACK all further data MUST be sent and received over TLS",
        |c| {
            let mut conn = before_tls(c)?;
            let both = [
                crate::wire::option(opt::STARTTLS, &[]),
                crate::wire::option(opt::LIST, &[]),
            ];
            conn.send(&both.concat())?;
            same("reply", conn.replies(opt::STARTTLS)?.len(), 1)?;
            // An answer to the second would start like every option reply does.
            conn.expect_no_option_reply()?;
            c.expect_serving()
        },
    ),
];

/// Flags are sent, TLS is not begun.
fn before_tls(c: &Context<'_>) -> Verdict<Conn> {
    if c.has_tls() {
        c.flagged(3)
    } else {
        skip("no TLS here")
    }
}
