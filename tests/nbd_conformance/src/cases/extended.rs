//! Extended headers: payloads announced by a flag, lengths of 64 bits. That replies repeat the offset
//! and have 32 bytes of head is looked at with every reply.
//!
//! Source: doc/proto.md on the branch `extension-ext-header`.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::pattern;
use crate::case::{Case, Verdict, ensure, must, same, should, skip};
use crate::target::Context;
use crate::wire::{Request, cmd, err, flag, has, opt};

const MESSAGE: &str = "Request message";
const COMMAND_FLAGS: &str = "Command flags";
const OPTION_TYPES: &str = "Option types";
const REQUESTS: &str = "Request types";

const CONSUME: &str =
    "SHOULD gracefully consume length bytes of payload and proceed with the next command";

pub(super) const CASES: &[Case] = &[
    must("extended-go", OPTION_TYPES, "EXTENDED_HEADERS: the server MUST also support NBD_OPT_GO", |c| {
        c.attach()?.expect_alive()
    })
    .extended(),
    must("extended-export-name-harms-nobody", OPTION_TYPES, "a client MUST NOT use NBD_OPT_EXPORT_NAME", |c| {
        let mut conn = c.styled()?;
        conn.send_option(opt::EXPORT_NAME, c.export())?;
        c.expect_serving()
    })
    .extended(),
    must("payload-of-a-read", COMMAND_FLAGS, "PAYLOAD_LEN will trigger an NBD_EINVAL unless the command documents a payload", |c| {
        payload(c, cmd::READ, 512)
    })
    .extended(),
    must("payload-of-a-trim", COMMAND_FLAGS, "PAYLOAD_LEN will trigger an NBD_EINVAL unless the command documents a payload", |c| {
        c.attach_with(has::TRIM)?;
        payload(c, cmd::TRIM, 512)
    })
    .extended(),
    must("payload-of-zeroes", COMMAND_FLAGS, "PAYLOAD_LEN will trigger an NBD_EINVAL unless the command documents a payload", |c| {
        c.attach_with(has::WRITE_ZEROES)?;
        payload(c, cmd::WRITE_ZEROES, 512)
    })
    .extended(),
    must("payload-of-a-flush", COMMAND_FLAGS, "PAYLOAD_LEN will trigger an NBD_EINVAL unless the command documents a payload", |c| {
        c.attach_with(has::FLUSH)?;
        payload(c, cmd::FLUSH, 512)
    })
    .extended(),
    must("payload-of-a-cache", COMMAND_FLAGS, "PAYLOAD_LEN will trigger an NBD_EINVAL unless the command documents a payload", |c| {
        c.attach_with(has::CACHE)?;
        payload(c, cmd::CACHE, 512)
    })
    .extended(),
    must("payload-of-a-status", REQUESTS, "does not support the payload form: MUST consume the payload before failing with NBD_EINVAL", |c| {
        let attached = c.attach_for_status()?;
        if attached.facts.flags & has::BLOCK_STATUS_PAYLOAD != 0 {
            return skip("BLOCK_STATUS_PAYLOAD is set");
        }
        payload(c, cmd::BLOCK_STATUS, 12)
    })
    .extended(),
    should("payload-of-an-unknown-command", MESSAGE, CONSUME, |c| payload(c, 99, 512)).extended(),
    should("payload-of-1-mib", MESSAGE, CONSUME, |c| payload(c, cmd::READ, 1 << 20)).extended(),
    should("payload-above-the-maximum", MESSAGE, "SHOULD hard disconnect on a payload larger than the maximum", |c| {
        let mut attached = c.attach()?;
        let request = Request {
            command: cmd::WRITE,
            flags: flag::PAYLOAD_LEN,
            cookie: 1,
            offset: 0,
            len: 1 << 40,
        };
        attached.submit_as(request, &[])?;
        // It may say why first.
            attached.conn.read_to_close()?;
        c.expect_serving()
    })
    .extended(),
    must("long-read-is-not-cut-to-32-bits", MESSAGE, "length is a 64-bit effect length", |c| long(c, cmd::READ, 0)).extended(),
    must("long-trim-is-not-cut-to-32-bits", MESSAGE, "length is a 64-bit effect length", |c| long(c, cmd::TRIM, has::TRIM)).extended(),
    must("long-zeroes-are-not-cut-to-32-bits", MESSAGE, "length is a 64-bit effect length", |c| {
        long(c, cmd::WRITE_ZEROES, has::WRITE_ZEROES)
    })
    .extended(),
    must("long-cache-is-not-cut-to-32-bits", MESSAGE, "length is a 64-bit effect length", |c| long(c, cmd::CACHE, has::CACHE)).extended(),
    must("longest-length-does-not-wrap", MESSAGE, "length is a 64-bit effect length", |c| {
        let mut attached = c.attach()?;
        for offset in [0, 1, 512, 4096] {
            let error = attached.error_of(cmd::READ, 0, offset, u64::MAX)?;
            ensure(error != err::NONE, || "no error".to_owned())?;
        }
        attached.expect_alive()
    })
    .extended(),
    must("status-over-the-whole-export", REQUESTS, "the effect length is a hint to the server about the range of interest", |c| {
        let mut attached = c.attach_for_status()?;
        let size = attached.facts.size;
        let answer = attached.ask(cmd::BLOCK_STATUS, 0, 0, size)?;
        same("error", answer.error, err::NONE)
    })
    .extended(),
    must("status-has-32-bits", "Structured reply types", "in base: the most-significant 32 bits of status MUST be all zeroes", |c| {
        let mut attached = c.attach_for_status()?;
        let size = attached.facts.size;
        let answer = attached.ask(cmd::BLOCK_STATUS, 0, 0, size)?;
        let mut all = answer.contexts.iter().flat_map(|(_, extents)| extents);
        ensure(all.all(|(_, status)| *status >> 32 == 0), || format!("{:?}", answer.contexts))
    })
    .extended(),
    must("trim-over-the-whole-export", REQUESTS, "64-bit transactions for commands without payload", |c| {
        let mut attached = c.attach_writable(has::TRIM)?;
        let size = attached.facts.size;
        if size > 1 << 30 {
            return skip("the export is larger than 1 GiB");
        }
        same("error", attached.error_of(cmd::TRIM, 0, 0, size)?, err::NONE)?;
        let data = pattern(90, 4096);
        attached.put(4096, &data)?;
        attached.expect_data(4096, &data)
    })
    .extended(),
];

/// A payload that `command` does not have is consumed and refused.
fn payload(c: &Context<'_>, command: u16, len: usize) -> Verdict {
    let mut attached = if command == cmd::BLOCK_STATUS {
        c.attach_for_status()?
    } else {
        c.attach()?
    };
    let request = Request {
        command,
        flags: flag::PAYLOAD_LEN,
        cookie: 5,
        offset: 0,
        len: len as u64,
    };
    attached.submit_as(request, &vec![0x21; len])?;
    same("error", attached.answer(5)?.error, err::EINVAL)?;
    attached.expect_alive()
}

/// A length whose lower 32 bits would be fine is refused.
fn long(c: &Context<'_>, command: u16, needs: u16) -> Verdict {
    let mut attached = c.attach_with(needs)?;
    if attached.facts.size >= 1 << 33 {
        return skip("the export is that large");
    }
    let error = attached.error_of(command, 0, 0, (1 << 33) + 512)?;
    ensure(error != err::NONE, || "no error".to_owned())?;
    attached.expect_alive()
}
