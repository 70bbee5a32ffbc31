//! Cookies, order, unknown commands, and the end of a connection.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::pattern;
use crate::case::{Case, Verdict, ensure, must, same, should};
use crate::target::Context;
use crate::wire::{Request, Style, cmd, err, flag, has};

const TRANSMISSION: &str = "Transmission";
const MESSAGE: &str = "Request message";
const ERRORS: &str = "Error values";
const CHUNKS: &str = "Structured reply chunk message";
const END: &str = "Terminating the transmission phase";
const REQUESTS: &str = "Request types";

const UNKNOWN: &str = "SHOULD return NBD_EINVAL if it receives an unknown command";

pub(super) const CASES: &[Case] = &[
    must(
        "cookies-come-back",
        TRANSMISSION,
        "MUST use the same value for cookie, as an opaque field",
        |c| {
            let mut attached = c.attach()?;
            for cookie in [0, 1, u64::MAX, 0x6744_6698_668e_33ef, 1 << 63] {
                let request = read(cookie, 0, 512);
                attached.submit_as(request, &[])?;
                same("error", attached.answer(cookie)?.error, err::NONE)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "cookie-comes-back-with-an-error",
        TRANSMISSION,
        "MUST use the same value for cookie, as an opaque field",
        |c| {
            let mut attached = c.attach()?;
            let cookie = 0xdead_beef_0bad_cafe;
            attached.submit_as(
                Request {
                    flags: 1 << 15,
                    ..read(cookie, 0, 512)
                },
                &[],
            )?;
            let error = attached.answer(cookie)?.error;
            ensure(error != err::NONE, || "no error".to_owned())
        },
    )
    .in_each_style(),
    must(
        "cookie-may-be-used-again",
        TRANSMISSION,
        "MAY reuse cookies that are no longer in flight",
        |c| {
            let mut attached = c.attach()?;
            for _ in 0..50 {
                attached.submit_as(read(7, 0, 512), &[])?;
                same("error", attached.answer(7)?.error, err::NONE)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "many-requests-in-flight",
        TRANSMISSION,
        "the server sends corresponding replies, in any order",
        |c| {
            let mut attached = c.attach_writable(0)?;
            let data = pattern(70, 1 << 20);
            attached.put(0, &data)?;
            let mut cookies = Vec::new();
            for nr in 0..256u64 {
                let offset = nr * 4096;
                cookies.push((offset, attached.submit(cmd::READ, 0, offset, 4096, &[])?));
            }
            for (offset, cookie) in cookies {
                let answer = attached.answer(cookie)?;
                let at = usize::try_from(offset).unwrap_or(0);
                ensure(answer.data == data[at..at + 4096], || {
                    format!("other data at {offset}")
                })?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "requests-in-one-segment",
        MESSAGE,
        "a stream has no message borders",
        |c| {
            let mut attached = c.attach()?;
            let mut bytes = Vec::new();
            for cookie in 1..=20 {
                let request = read(cookie, cookie * 512, 512);
                attached.expect_outstanding(request);
                bytes.extend(request.encode(c.style));
            }
            attached.conn.send(&bytes)?;
            for cookie in 1..=20 {
                same("error", attached.answer(cookie)?.error, err::NONE)?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "errors-between-successes",
        TRANSMISSION,
        "each request has its own reply",
        |c| {
            let mut attached = c.attach()?;
            let mut cookies = Vec::new();
            for nr in 0..40 {
                let flags = if nr % 2 == 0 { 0 } else { 1 << 15 };
                cookies.push((flags, attached.submit(cmd::READ, flags, 0, 512, &[])?));
            }
            for (flags, cookie) in cookies {
                let error = attached.answer(cookie)?.error;
                ensure((error == err::NONE) == (flags == 0), || {
                    format!("error {error}")
                })?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    should("unknown-command-8", ERRORS, UNKNOWN, |c| unknown(c, 8)).in_each_style(),
    should("unknown-command-99", ERRORS, UNKNOWN, |c| unknown(c, 99)).in_each_style(),
    should("unknown-command-16-bits", ERRORS, UNKNOWN, |c| {
        unknown(c, u16::MAX)
    })
    .in_each_style(),
    should(
        "errors-are-chunks",
        CHUNKS,
        "The server SHOULD prefer sending errors via a structured reply",
        |c| {
            let mut attached = c.attach()?;
            let answer = attached.ask(99, 0, 0, 512)?;
            ensure(!answer.is_simple, || "a simple reply".to_owned())
        },
    )
    .in_chunked_styles(),
    must(
        "simple-replies-unless-agreed",
        "Simple reply message",
        "MUST be sent in response to all requests if structured replies have not been negotiated",
        |c| {
            let mut attached = c.attach()?;
            for command in [cmd::READ, 99] {
                let answer = attached.ask(command, 0, 0, 512)?;
                ensure(answer.is_simple, || "a chunk".to_owned())?;
            }
            Ok(())
        },
    ),
    must(
        "bad-request-magic-harms-nobody",
        END,
        "a violation MAY end this connection, and no other",
        |c| {
            let mut other = c.attach()?;
            let mut attached = c.attach()?;
            attached.conn.send(&[0x5a; 64])?;
            other.expect_alive()?;
            c.expect_serving()
        },
    )
    .in_each_style(),
    must(
        "leaving-inside-a-request",
        END,
        "no other connection is disconnected",
        |c| {
            let mut other = c.attach()?;
            let bytes = read(1, 0, 512).encode(c.style);
            for len in [1, 4, 27] {
                c.attach()?.conn.send(&bytes[..len])?;
            }
            other.expect_alive()?;
            c.expect_serving()
        },
    )
    .in_each_style(),
    must(
        "leaving-with-replies-unread",
        END,
        "no other connection is disconnected",
        |c| {
            let mut other = c.attach()?;
            for _ in 0..8 {
                let mut gone = c.attach()?;
                for _ in 0..32 {
                    gone.submit(cmd::READ, 0, 0, gone.facts.size.min(262_144), &[])?;
                }
            }
            other.expect_alive()?;
            c.expect_serving()
        },
    )
    .in_each_style(),
    must(
        "not-reading-stalls-nobody-else",
        TRANSMISSION,
        "other connections are served meanwhile",
        |c| {
            let mut idle = c.attach()?;
            let len = idle.facts.size.min(1 << 20);
            for _ in 0..16 {
                idle.submit(cmd::READ, 0, 0, len, &[])?;
            }
            let mut other = c.attach()?;
            for _ in 0..20 {
                other.expect_alive()?;
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "disc-closes",
        END,
        "DISC, whereupon the server MUST close the TCP connection",
        |c| {
            let mut attached = c.attach()?;
            attached.submit(cmd::DISC, 0, 0, 0, &[])?;
            attached.conn.expect_closed()
        },
    )
    .in_each_style(),
    must(
        "disc-has-no-reply",
        REQUESTS,
        "DISC: there is no reply",
        |c| {
            let mut attached = c.attach()?;
            attached.expect_alive()?;
            attached.submit(cmd::DISC, 0, 0, 0, &[])?;
            attached.conn.expect_closed()?;
            c.expect_serving()
        },
    )
    .in_each_style(),
    must(
        "disc-finishes-what-is-outstanding",
        REQUESTS,
        "DISC: the server MUST handle all outstanding requests",
        |c| {
            for round in 0..8 {
                let mut attached = c.attach_writable(0)?;
                let data = pattern(80 + round, 65_536);
                for nr in 0..32 {
                    attached.submit(cmd::WRITE, 0, nr * 65_536, 65_536, &data)?;
                }
                attached.submit(cmd::DISC, 0, 0, 0, &[])?;
                // The server is done once it has closed; what it answered before is of no interest.
                attached.conn.read_to_close()?;
                let mut after = c.attach()?;
                for nr in 0..32 {
                    after.expect_data(nr * 65_536, &data)?;
                }
            }
            Ok(())
        },
    )
    .in_each_style(),
    must(
        "fua-on-every-command",
        "Command flags",
        "FUA: MUST accept all commands with this bit set",
        |c| {
            let mut attached = c.attach_writable(has::FUA | has::CACHE)?;
            let error = attached.error_of(cmd::CACHE, flag::FUA, 0, 4096)?;
            same("error", error, err::NONE)
        },
    )
    .in_each_style(),
    must(
        "two-requests-with-one-cookie",
        TRANSMISSION,
        "cookie is an opaque field; clients only SHOULD use distinct ones",
        |c| {
            let mut attached = c.attach()?;
            let bytes = read(9, 0, 512).encode(Style::Simple);
            attached.conn.send(&[bytes.as_slice(), &bytes].concat())?;
            for _ in 0..2 {
                let reply = attached.conn.take(16 + 512)?;
                same(
                    "magic and error",
                    &reply[..8],
                    &[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0],
                )?;
                same("cookie", &reply[8..16], &9u64.to_be_bytes())?;
            }
            attached.expect_alive()
        },
    ),
];

fn read(cookie: u64, offset: u64, len: u64) -> Request {
    Request {
        command: cmd::READ,
        flags: 0,
        cookie,
        offset,
        len,
    }
}

fn unknown(c: &Context<'_>, command: u16) -> Verdict {
    c.attach()?.expect_error(command, 0, (0, 512), err::EINVAL)
}
