//! Judges a request once; what comes out needs no further checks.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::Attachment;
use super::block_status::Contexts;
use crate::export::Access;
use crate::proto::constants::{PAYLOAD_LEN_MAX, command, command_flag as flag};
use crate::proto::error::NbdError;
use crate::proto::reply::ReplyStyle;
use crate::proto::request::{HeaderFormat, RequestHeader};

/// What a valid request asks for. Ranges are inside the export and not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing to do: answer success.
    Nothing,
    Read {
        offset: u64,
        len: u32,
    },
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    Trim {
        offset: u64,
        len: u64,
        fua: bool,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        no_hole: bool,
        fast: bool,
        fua: bool,
    },
    BlockStatus {
        offset: u64,
        len: u64,
        contexts: Contexts,
        one: bool,
    },
}

/// Why a request is answered with an error; the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) error: NbdError,
    pub(super) text: &'static str,
}

const fn fault(error: NbdError, text: &'static str) -> Fault {
    Fault { error, text }
}

/// Judges `header` against what was negotiated. DISC has no reply and is not asked about here.
pub(super) fn plan(header: &RequestHeader, attachment: &Attachment) -> Result<Plan, Fault> {
    check_flags(header, attachment)?;
    check_access(header.command, attachment)?;
    if header.command == command::FLUSH {
        return plan_flush(header);
    }
    check_range(header, attachment)?;
    let RequestHeader {
        offset,
        length: len,
        ..
    } = *header;
    let fua = header.flags & flag::FUA != 0;
    let plan = match header.command {
        command::BLOCK_STATUS => plan_block_status(header, attachment)?,
        _ if len == 0 => Plan::Nothing,
        // Nothing to prefetch into: reads come from the disk or the peer each time.
        command::CACHE => Plan::Nothing,
        command::READ => Plan::Read {
            offset,
            len: payload_len(len, attachment)?,
        },
        command::WRITE => Plan::Write {
            offset,
            len: payload_len(len, attachment)?,
            fua,
        },
        command::TRIM => Plan::Trim { offset, len, fua },
        command::WRITE_ZEROES => Plan::WriteZeroes {
            offset,
            len,
            no_hole: header.flags & flag::NO_HOLE != 0,
            fast: header.flags & flag::FAST_ZERO != 0,
            fua,
        },
        _ => return Err(UNKNOWN_COMMAND),
    };
    Ok(plan)
}

const UNKNOWN_COMMAND: Fault = fault(NbdError::Invalid, "unknown command");

/// FUA is good on every command; any other flag only where it was negotiated.
fn check_flags(header: &RequestHeader, attachment: &Attachment) -> Result<(), Fault> {
    let extended = attachment.style.request_format() == HeaderFormat::Extended;
    let of_command = match header.command {
        command::READ if attachment.style >= ReplyStyle::Structured => flag::DF,
        command::WRITE if extended => flag::PAYLOAD_LEN,
        command::READ | command::WRITE | command::FLUSH | command::TRIM | command::CACHE => 0,
        command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
        command::BLOCK_STATUS => flag::REQ_ONE,
        _ => return Err(UNKNOWN_COMMAND),
    };
    if header.flags & !(flag::FUA | of_command) != 0 {
        return Err(fault(
            NbdError::Invalid,
            "flag not allowed for this command",
        ));
    }
    Ok(())
}

fn check_access(command: u16, attachment: &Attachment) -> Result<(), Fault> {
    let writes = matches!(
        command,
        command::WRITE | command::TRIM | command::WRITE_ZEROES
    );
    match attachment.access {
        Access::ReadOnly if writes => Err(fault(NbdError::NotPermitted, "export is read-only")),
        _ => Ok(()),
    }
}

/// proto.md: ENOSPC for WRITE and WRITE_ZEROES beyond the end, EINVAL for the rest.
fn check_range(header: &RequestHeader, attachment: &Attachment) -> Result<(), Fault> {
    let inside = header
        .offset
        .checked_add(header.length)
        .is_some_and(|end| end <= attachment.size);
    let error = match header.command {
        _ if inside => return Ok(()),
        command::WRITE | command::WRITE_ZEROES => NbdError::NoSpace,
        _ => NbdError::Invalid,
    };
    Err(fault(error, "range beyond the end of the export"))
}

fn plan_flush(header: &RequestHeader) -> Result<Plan, Fault> {
    if header.offset != 0 || header.length != 0 {
        return Err(fault(NbdError::Invalid, "flush takes no offset or length"));
    }
    Ok(Plan::Flush)
}

fn plan_block_status(header: &RequestHeader, attachment: &Attachment) -> Result<Plan, Fault> {
    let contexts = attachment.contexts;
    if contexts.is_empty() {
        return Err(fault(NbdError::Invalid, "no metadata context was selected"));
    }
    if header.length == 0 {
        // An extent must not be empty.
        return Err(fault(NbdError::Invalid, "block status of an empty range"));
    }
    Ok(Plan::BlockStatus {
        offset: header.offset,
        len: header.length,
        contexts,
        one: header.flags & flag::REQ_ONE != 0,
    })
}

/// EOVERFLOW is reserved for connections whose reads are answered in chunks, EINVAL is always good.
fn payload_len(len: u64, attachment: &Attachment) -> Result<u32, Fault> {
    match u32::try_from(len) {
        Ok(len) if len <= PAYLOAD_LEN_MAX => Ok(len),
        _ => Err(fault(
            match attachment.style {
                ReplyStyle::Simple => NbdError::Invalid,
                ReplyStyle::Structured | ReplyStyle::Extended => NbdError::Overflow,
            },
            "longer than 64 MiB",
        )),
    }
}
