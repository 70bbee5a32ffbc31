//! LIST_META_CONTEXT and SET_META_CONTEXT.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::BTreeSet;

use crate::case::{Case, Verdict, ensure, must, same, should, skip};
use crate::conn::{Conn, OptionReply};
use crate::target::Context;
use crate::wire::{Reader, cmd, counted, err, meta_request, opt, rep};

const OPTION_TYPES: &str = "Option types";
const BASE: &str = "The `base:` metadata namespace";
const QUERYING: &str = "Metadata querying";

const INVALID: &str =
    "syntactically invalid: the server MUST fail the request with NBD_REP_ERR_INVALID";
const ALLOCATION: &str = "base:allocation";

pub(super) const CASES: &[Case] = &[
    must(
        "list-contexts-by-no-query",
        OPTION_TYPES,
        "zero queries: MUST return all the metadata contexts",
        |c| lists(c, &[], true),
    )
    .in_chunked_styles(),
    must(
        "list-contexts-by-wildcard",
        BASE,
        "MUST support `base:` as a wildcard during LIST_META_CONTEXT",
        |c| lists(c, &["base:"], true),
    )
    .in_chunked_styles(),
    must(
        "list-contexts-by-name",
        OPTION_TYPES,
        "MUST return those contexts which match one or more queries",
        |c| lists(c, &["x-nobody:thing", ALLOCATION], true),
    )
    .in_chunked_styles(),
    must(
        "list-contexts-unknown-namespace",
        OPTION_TYPES,
        "MUST ignore query strings belonging to an unknown namespace",
        |c| lists(c, &["x-nobody:thing"], false),
    )
    .in_chunked_styles(),
    must(
        "list-contexts-unknown-leaf",
        BASE,
        "leaf-name not recognized: MUST ignore it rather than report an error",
        |c| lists(c, &["base:no-such-leaf"], false),
    )
    .in_chunked_styles(),
    must(
        "list-contexts-nothing-found",
        OPTION_TYPES,
        "none found: MUST send a single reply of type NBD_REP_ACK",
        |c| {
            let mut conn = c.with_contexts()?;
            let request = meta_request(c.export(), &["x-nobody:"]);
            same(
                "replies",
                conn.option(opt::LIST_META_CONTEXT, &request)?.len(),
                1,
            )
        },
    )
    .in_chunked_styles(),
    should(
        "list-contexts-ids-are-zero",
        OPTION_TYPES,
        "the context ID in these replies SHOULD be set to zero",
        |c| {
            let mut conn = c.with_contexts()?;
            let replies = conn.option(opt::LIST_META_CONTEXT, &meta_request(c.export(), &[]))?;
            let ids: Vec<u32> = contexts(&replies)?.iter().map(|(id, _)| *id).collect();
            ensure(ids.iter().all(|id| *id == 0), || format!("{ids:?}"))
        },
    )
    .in_chunked_styles(),
    must(
        "list-contexts-names-are-proper",
        QUERYING,
        "a namespace, followed by a colon, followed by a leaf-name",
        |c| {
            let mut conn = c.with_contexts()?;
            let replies = conn.option(opt::LIST_META_CONTEXT, &meta_request(c.export(), &[]))?;
            for (_, name) in contexts(&replies)? {
                let namespace = name.split_once(':').map_or("", |(namespace, _)| namespace);
                ensure(!namespace.is_empty(), || format!("context {name:?}"))?;
            }
            Ok(())
        },
    )
    .in_chunked_styles(),
    should(
        "list-contexts-unknown-export",
        OPTION_TYPES,
        "name of export for which we wish to list metadata contexts",
        |c| unknown_export(c, opt::LIST_META_CONTEXT),
    )
    .in_chunked_styles(),
    should(
        "set-context-unknown-export",
        OPTION_TYPES,
        "name of export for which we wish to list metadata contexts",
        |c| unknown_export(c, opt::SET_META_CONTEXT),
    )
    .in_chunked_styles(),
    should(
        "set-context-needs-chunks",
        OPTION_TYPES,
        "structured replies not negotiated: SHOULD send NBD_REP_ERR_INVALID",
        |c| {
            let mut conn = c.haggling()?;
            let kind = conn.option_kind(
                opt::SET_META_CONTEXT,
                &meta_request(c.export(), &[ALLOCATION]),
            )?;
            if kind == rep::ERR_UNSUP {
                return skip("no metadata contexts");
            }
            let proper = kind == rep::ERR_INVALID || kind == rep::ERR_EXT_HEADER_REQD;
            ensure(proper, || format!("reply {kind:#x}"))?;
            c.go(conn)?.expect_alive()
        },
    ),
    must(
        "set-context-selects",
        OPTION_TYPES,
        "MUST reply with one NBD_REP_META_CONTEXT for each selected context",
        |c| sets(c, &[ALLOCATION], true),
    )
    .in_chunked_styles(),
    must(
        "set-context-ignores-the-wildcard",
        BASE,
        "MUST ignore `base:` during SET_META_CONTEXT",
        |c| sets(c, &["base:"], false),
    )
    .in_chunked_styles(),
    must(
        "set-context-of-no-query",
        OPTION_TYPES,
        "If zero queries are sent, the server MUST select no metadata contexts",
        |c| sets(c, &[], false),
    )
    .in_chunked_styles(),
    must(
        "set-context-unknown-namespace",
        OPTION_TYPES,
        "not an error if SET_META_CONTEXT does not select any context",
        |c| sets(c, &["x-nobody:thing"], false),
    )
    .in_chunked_styles(),
    must(
        "set-context-unknown-leaf",
        BASE,
        "leaf-name not recognized: MUST ignore it rather than report an error",
        |c| sets(c, &["base:no-such-leaf"], false),
    )
    .in_chunked_styles(),
    must(
        "set-context-twice-in-one",
        OPTION_TYPES,
        "each selected context with a unique metadata context ID",
        |c| {
            let mut conn = c.with_contexts()?;
            let request = meta_request(c.export(), &[ALLOCATION, ALLOCATION]);
            let found = contexts(&conn.option(opt::SET_META_CONTEXT, &request)?)?;
            let ids: BTreeSet<u32> = found.iter().map(|(id, _)| *id).collect();
            same("different ids", ids.len(), found.len())?;
            c.go(conn)?.expect_alive()
        },
    )
    .in_chunked_styles(),
    must(
        "set-context-replaces",
        OPTION_TYPES,
        "Issuing this command replaces all previously-set metadata contexts",
        |c| {
            let mut conn = allocation_selected(c)?;
            conn.option(opt::SET_META_CONTEXT, &meta_request(c.export(), &[]))?;
            no_status(c, conn)
        },
    )
    .in_chunked_styles(),
    must(
        "set-context-failed-replaces-too",
        OPTION_TYPES,
        "replaces all previously-set contexts (including when this command fails)",
        |c| {
            let mut conn = allocation_selected(c)?;
            let kind = conn.option_kind(opt::SET_META_CONTEXT, &[])?;
            ensure(kind & rep::ERROR_BIT != 0, || format!("reply {kind:#x}"))?;
            no_status(c, conn)
        },
    )
    .in_chunked_styles(),
    must("contexts-without-data", OPTION_TYPES, INVALID, |c| {
        malformed(c, &[])
    })
    .in_chunked_styles(),
    must("contexts-without-a-count", OPTION_TYPES, INVALID, |c| {
        malformed(c, &counted(c.export()))
    })
    .in_chunked_styles(),
    must("contexts-name-too-long", OPTION_TYPES, INVALID, |c| {
        let mut data = meta_request(c.export(), &[ALLOCATION]);
        data[..4].copy_from_slice(&[0, 0, 0xff, 0xff]);
        malformed(c, &data)
    })
    .in_chunked_styles(),
    must("contexts-query-too-long", OPTION_TYPES, INVALID, |c| {
        let mut data = meta_request(c.export(), &[ALLOCATION]);
        let at = data.len() - ALLOCATION.len() - 1;
        data[at] += 1;
        malformed(c, &data)
    })
    .in_chunked_styles(),
    must("contexts-query-of-4-gib", OPTION_TYPES, INVALID, |c| {
        let mut data = meta_request(c.export(), &[ALLOCATION]);
        let at = data.len() - ALLOCATION.len() - 4;
        data[at..at + 4].copy_from_slice(&[0xff; 4]);
        malformed(c, &data)
    })
    .in_chunked_styles(),
    must("contexts-too-few-queries", OPTION_TYPES, INVALID, |c| {
        let mut data = counted(c.export());
        data.extend([0, 0, 0, 2]);
        data.extend(counted(ALLOCATION.as_bytes()));
        malformed(c, &data)
    })
    .in_chunked_styles(),
    must("contexts-count-of-4-gib", OPTION_TYPES, INVALID, |c| {
        let mut data = counted(c.export());
        data.extend([0xff; 4]);
        malformed(c, &data)
    })
    .in_chunked_styles(),
    must("contexts-trailing-bytes", OPTION_TYPES, INVALID, |c| {
        let mut data = meta_request(c.export(), &[ALLOCATION]);
        data.extend(b"more");
        malformed(c, &data)
    })
    .in_chunked_styles(),
    must(
        "contexts-many-queries",
        OPTION_TYPES,
        "LIST MAY fail with NBD_REP_ERR_TOO_BIG if too many queries are requested",
        |c| {
            let mut conn = c.with_contexts()?;
            let queries = vec!["x-nobody:thing"; 500];
            for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
                let kind = conn.option_kind(number, &meta_request(c.export(), &queries))?;
                let proper = kind == rep::ACK || kind == rep::ERR_TOO_BIG;
                ensure(proper, || format!("reply {kind:#x}"))?;
            }
            conn.expect_in_step()
        },
    )
    .in_chunked_styles(),
    should(
        "status-without-contexts",
        QUERYING,
        "Servers SHOULD reply NBD_EINVAL to BLOCK_STATUS without a context",
        |c| {
            let conn = c.with_contexts()?;
            no_status(c, conn)
        },
    )
    .in_chunked_styles(),
];

fn contexts(replies: &[OptionReply]) -> Verdict<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for reply in replies
        .iter()
        .filter(|reply| reply.kind == rep::META_CONTEXT)
    {
        let mut reader = Reader(&reply.data);
        let id = reader.u32();
        let name = std::str::from_utf8(reader.0);
        let (Some(id), Ok(name)) = (id, name) else {
            return crate::case::fail("a context whose name is not UTF-8");
        };
        found.push((id, name.to_owned()));
    }
    Ok(found)
}

/// Whether `base:allocation` is among what an option with `queries` answers.
fn finds(c: &Context<'_>, number: u32, queries: &[&str], wanted: bool) -> Verdict {
    let mut conn = c.with_contexts()?;
    let replies = conn.option(number, &meta_request(c.export(), queries))?;
    same(
        "final reply",
        replies.last().map(|last| last.kind),
        Some(rep::ACK),
    )?;
    let found = contexts(&replies)?;
    let has = found.iter().any(|(_, name)| name == ALLOCATION);
    ensure(has == wanted, || format!("{queries:?} found {found:?}"))?;
    conn.expect_in_step()?;
    c.go(conn)?.expect_alive()
}

fn lists(c: &Context<'_>, queries: &[&str], wanted: bool) -> Verdict {
    finds(c, opt::LIST_META_CONTEXT, queries, wanted)
}

fn sets(c: &Context<'_>, queries: &[&str], wanted: bool) -> Verdict {
    finds(c, opt::SET_META_CONTEXT, queries, wanted)
}

fn unknown_export(c: &Context<'_>, number: u32) -> Verdict {
    let mut conn = c.with_contexts()?;
    let request = meta_request(c.unknown_name()?, &[ALLOCATION]);
    same(
        "reply",
        conn.option_kind(number, &request)?,
        rep::ERR_UNKNOWN,
    )?;
    conn.expect_in_step()
}

fn allocation_selected(c: &Context<'_>) -> Verdict<Conn> {
    let mut conn = c.with_contexts()?;
    let request = meta_request(c.export(), &[ALLOCATION]);
    conn.option(opt::SET_META_CONTEXT, &request)?;
    Ok(conn)
}

fn no_status(c: &Context<'_>, conn: Conn) -> Verdict {
    c.go(conn)?
        .expect_error(cmd::BLOCK_STATUS, 0, (0, 4096), err::EINVAL)
}

fn malformed(c: &Context<'_>, data: &[u8]) -> Verdict {
    for number in [opt::LIST_META_CONTEXT, opt::SET_META_CONTEXT] {
        let mut conn = c.with_contexts()?;
        same("reply", conn.option_kind(number, data)?, rep::ERR_INVALID)?;
        conn.expect_in_step()?;
        c.go(conn)?.expect_alive()?;
    }
    Ok(())
}
