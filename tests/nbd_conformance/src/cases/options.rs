//! Options in general, ABORT, LIST and STRUCTURED_REPLY.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::case::{Case, Verdict, ensure, fail, must, same, should, skip};
use crate::conn::OptionReply;
use crate::target::Context;
use crate::wire::{Reader, Style, info_request, opt, option, rep};

const BASELINE: &str = "Baseline";
const OPTION_TYPES: &str = "Option types";
const OPTION_REPLY_TYPES: &str = "Option reply types";
const CONVENTIONS: &str = "Conventions";
const TERMINATION: &str = "Termination of the session during option haggling";
const FIXED: &str = "Fixed newstyle negotiation";

const UNKNOWN: &str = "messages they do not implement: MUST reply NBD_REP_ERR_UNSUP";
const IN_STEP: &str = "and MUST NOT fail to parse the next message received";

pub(super) const CASES: &[Case] = &[
    must("unknown-option-0", BASELINE, UNKNOWN, |c| {
        unknown(c, 0, &[])
    }),
    must("unknown-option-99", BASELINE, UNKNOWN, |c| {
        unknown(c, 99, &[])
    }),
    must("unknown-option-32-bits", BASELINE, UNKNOWN, |c| {
        unknown(c, u32::MAX, &[])
    }),
    must("unknown-option-with-data", BASELINE, IN_STEP, |c| {
        unknown(c, 99, b"IHAVEOPT\0\0\0\x02\0\0\0\0")
    }),
    must("unknown-option-with-4-kib", BASELINE, IN_STEP, |c| {
        unknown(c, 99, &[0x49; 4096])
    }),
    must("unknown-option-with-32-kib", BASELINE, IN_STEP, |c| {
        unknown(c, 99, &[0x49; 32_768])
    }),
    must("unknown-options-many", BASELINE, IN_STEP, |c| {
        let mut conn = c.haggling()?;
        for nr in 100..120 {
            same("reply", conn.option_kind(nr, &[])?, rep::ERR_UNSUP)?;
        }
        c.go(conn)?.expect_alive()
    }),
    must(
        "option-byte-by-byte",
        FIXED,
        "the generic format of an option (a stream has no message borders)",
        |c| {
            let mut conn = c.haggling()?;
            conn.send_slowly(&option(99, b"data"))?;
            same("reply", conn.replies(99)?.len(), 1)?;
            c.go(conn)?.expect_alive()
        },
    ),
    must(
        "peek-export-unsupported",
        OPTION_TYPES,
        "PEEK_EXPORT: withdrawn, not in use",
        |c| unknown(c, opt::PEEK_EXPORT, &[]),
    ),
    must(
        "bad-option-magic-harms-nobody",
        TERMINATION,
        "a violation MAY end this session, and no other",
        |c| {
            let mut conn = c.haggling()?;
            conn.send(b"IHAVEOPU\0\0\0\x03\0\0\0\0")?;
            c.expect_serving()
        },
    ),
    must(
        "option-of-4-gib-harms-nobody",
        TERMINATION,
        "MAY hard disconnect what it believes a denial of service",
        |c| {
            let mut conn = c.haggling()?;
            conn.send(b"IHAVEOPT\0\0\0\x63\xff\xff\xff\xff")?;
            c.expect_serving()
        },
    ),
    must(
        "leaving-inside-an-option",
        TERMINATION,
        "MUST NOT hard disconnect (others) save where set out",
        |c| {
            let whole = option(opt::GO, &info_request(c.export(), &[]));
            for len in [1, 8, 12, 15, 16, 17, whole.len() - 1] {
                c.haggling()?.send(&whole[..len])?;
            }
            c.expect_serving()
        },
    ),
    must(
        "leaving-without-reading",
        TERMINATION,
        "MUST NOT hard disconnect (others) save where set out",
        |c| {
            for _ in 0..20 {
                let mut conn = c.haggling()?;
                conn.send_option(opt::LIST, &[])?;
            }
            c.expect_serving()
        },
    ),
    must(
        "abort-is-acknowledged",
        OPTION_TYPES,
        "ABORT: the server MUST reply with NBD_REP_ACK",
        |c| {
            same(
                "reply",
                c.haggling()?.option_kind(opt::ABORT, &[])?,
                rep::ACK,
            )
        },
    ),
    should(
        "abort-ignores-data",
        OPTION_TYPES,
        "ABORT: a server SHOULD ignore any data",
        |c| {
            same(
                "reply",
                c.haggling()?.option_kind(opt::ABORT, b"data")?,
                rep::ACK,
            )
        },
    ),
    should(
        "abort-without-waiting",
        OPTION_TYPES,
        "SHOULD gracefully handle ABORT and closing without waiting",
        |c| {
            c.haggling()?.send_option(opt::ABORT, &[])?;
            c.expect_serving()
        },
    ),
    must(
        "list-names-the-export",
        OPTION_TYPES,
        "LIST: NBD_REP_SERVER replies, one for each export",
        |c| {
            let names = listed(c)?;
            let canonical = c.info(&[crate::wire::info::NAME])?.name;
            let wanted = canonical.unwrap_or_else(|| c.export().to_vec());
            ensure(names.contains(&wanted), || {
                format!("{} not among {} names", shown(&wanted), names.len())
            })
        },
    ),
    must(
        "list-names-are-strings",
        CONVENTIONS,
        "UTF-8, MUST NOT contain NUL, at most 4096 bytes",
        |c| {
            for name in listed(c)? {
                let text = std::str::from_utf8(&name)
                    .ok()
                    .filter(|text| !text.contains('\0'));
                ensure(text.is_some() && name.len() <= 4096, || shown(&name))?;
            }
            Ok(())
        },
    ),
    should(
        "list-with-data-is-invalid",
        OPTION_TYPES,
        "LIST with data: SHOULD reject with NBD_REP_ERR_INVALID",
        |c| {
            let mut conn = c.haggling()?;
            same(
                "reply",
                conn.option_kind(opt::LIST, b"data")?,
                rep::ERR_INVALID,
            )?;
            conn.expect_in_step()
        },
    ),
    should(
        "list-twice",
        FIXED,
        "only a repeated change of state MAY be failed",
        |c| {
            let mut conn = c.haggling()?;
            let first = servers(&conn.option(opt::LIST, &[])?)?;
            let second = servers(&conn.option(opt::LIST, &[])?)?;
            same("exports", second, first)
        },
    ),
    must(
        "list-then-go",
        OPTION_TYPES,
        "LIST leaves the client in option haggling",
        |c| {
            let mut conn = c.haggling()?;
            conn.option(opt::LIST, &[])?;
            c.go(conn)?.expect_alive()
        },
    ),
    should(
        "starttls-with-data",
        OPTION_TYPES,
        "STARTTLS with data: an error reply",
        |c| {
            let mut conn = c.haggling()?;
            let kind = conn.option_kind(opt::STARTTLS, b"data")?;
            ensure(kind & rep::ERROR_BIT != 0, || format!("reply {kind:#x}"))?;
            conn.expect_in_step()
        },
    ),
    must(
        "starttls-never-asks-for-tls",
        "NOTLS mode",
        "MUST NOT reply to STARTTLS with NBD_REP_ERR_TLS_REQD",
        |c| {
            let kind = c.haggling()?.option_kind(opt::STARTTLS, &[])?;
            ensure(kind != rep::ERR_TLS_REQD, || {
                "NBD_REP_ERR_TLS_REQD".to_owned()
            })
        },
    ),
    should(
        "structured-reply-with-data-is-invalid",
        OPTION_TYPES,
        "STRUCTURED_REPLY with data: SHOULD reject with NBD_REP_ERR_INVALID",
        |c| with_data(c, opt::STRUCTURED_REPLY),
    ),
    should(
        "extended-headers-with-data-is-invalid",
        OPTION_TYPES,
        "EXTENDED_HEADERS with data: SHOULD reject with NBD_REP_ERR_INVALID",
        |c| with_data(c, opt::EXTENDED_HEADERS),
    ),
    must(
        "agreeing-twice",
        FIXED,
        "MAY fail the repeated message with NBD_REP_ERR_INVALID",
        |c| {
            let mut conn = c.styled()?;
            let number = c.style.option().unwrap_or(0);
            let kind = conn.option_kind(number, &[])?;
            ensure([rep::ACK, rep::ERR_INVALID].contains(&kind), || {
                format!("reply {kind:#x}")
            })?;
            c.go(conn)?.expect_alive()
        },
    )
    .in_chunked_styles(),
    should(
        "structured-after-extended",
        OPTION_TYPES,
        "already negotiated extended headers, which take precedence: NBD_REP_ERR_EXT_HEADER_REQD",
        |c| {
            let mut conn = c.styled()?;
            let kind = conn.option_kind(opt::STRUCTURED_REPLY, &[])?;
            same("reply", kind, rep::ERR_EXT_HEADER_REQD)?;
            c.go(conn)?.expect_alive()
        },
    )
    .extended(),
    should(
        "extended-after-structured",
        OPTION_TYPES,
        "A client MAY request structured replies first",
        |c| {
            let mut conn = c.haggling()?;
            if conn.option_kind(opt::STRUCTURED_REPLY, &[])? != rep::ACK {
                return skip("no structured replies");
            }
            match conn.option_kind(opt::EXTENDED_HEADERS, &[])? {
                rep::ACK => c.go(conn)?.expect_alive(),
                _ => skip("no extended headers"),
            }
        },
    )
    .extended(),
    must(
        "agreement-survives-errors",
        FIXED,
        "an option that fails changes no state",
        |c| {
            let mut conn = c.styled()?;
            conn.expect_in_step()?;
            conn.option(opt::INFO, &info_request(b"no such export, surely", &[]))?;
            conn.option(opt::LIST, &[])?;
            c.go(conn)?.expect_alive()
        },
    )
    .in_chunked_styles(),
    must(
        "error-replies-are-strings",
        OPTION_REPLY_TYPES,
        "that data is an error message string",
        |c| {
            c.unknown_name()?;
            let mut conn = c.haggling()?;
            for name in [
                b"\xff\xfe\xfd".as_slice(),
                b"a\0b",
                &[b'n'; 4096],
                "\u{1}\u{7f}\u{202e}".as_bytes(),
            ] {
                // Every error reply's text is looked at as it is received.
                let kind = conn.option_kind(opt::INFO, &info_request(name, &[]))?;
                ensure(kind & rep::ERROR_BIT != 0, || {
                    format!("reply {kind:#x} to {}", shown(name))
                })?;
            }
            conn.expect_in_step()
        },
    ),
];

fn unknown(c: &Context<'_>, number: u32, data: &[u8]) -> Verdict {
    let mut conn = c.haggling()?;
    same("reply", conn.option_kind(number, data)?, rep::ERR_UNSUP)?;
    conn.expect_in_step()?;
    c.go(conn)?.expect_alive()
}

fn with_data(c: &Context<'_>, number: u32) -> Verdict {
    let mut conn = c.haggling()?;
    let kind = conn.option_kind(number, b"data")?;
    if kind == rep::ERR_UNSUP {
        return skip("not supported");
    }
    same("reply", kind, rep::ERR_INVALID)?;
    let attached = c.go(conn)?;
    same("style after the refusal", attached.style, Style::Simple)
}

fn listed(c: &Context<'_>) -> Verdict<Vec<Vec<u8>>> {
    servers(&c.haggling()?.option(opt::LIST, &[])?)
}

fn servers(replies: &[OptionReply]) -> Verdict<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for reply in replies.iter().filter(|reply| reply.kind == rep::SERVER) {
        let mut reader = Reader(&reply.data);
        let len = reader.u32().and_then(|len| usize::try_from(len).ok());
        let Some(name) = len.and_then(|len| reader.bytes(len)) else {
            return fail("a name longer than its reply");
        };
        names.push(name.to_vec());
    }
    match replies.last().map(|last| last.kind) {
        Some(rep::ACK) => Ok(names),
        // A server may forbid listing.
        other => skip(format!("LIST was answered {other:x?}")),
    }
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .escape_debug()
        .take(80)
        .collect()
}
