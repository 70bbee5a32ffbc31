//! A small client side of the protocol, for tools and tests. Pure, like the session: the caller
//! owns the socket.
//!
//! ```text
//! Client::new ─▶ loop { send take_output(); handle_bytes(received) } until export() is Some
//! submit(command) ─▶ cookie;  next_reply() ─▶ (cookie, result), in the server's order
//! ```
//!
//! Trusts the server as little as the session trusts clients: every length is bounded by what was
//! asked for, and a reply that breaks the protocol is an error, never a panic.

// SPDX-License-Identifier: MIT OR Apache-2.0

mod handshake;
mod replies;

use crate::proto::constants::{self, command, command_flag as flag};
use crate::proto::error::NbdError;
use crate::proto::reply::ReplyStyle;
use crate::proto::request::{HeaderFormat, RequestHeader};
use handshake::Handshake;
use replies::{Expected, Replies};

/// What a client learns about its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags, see [`constants::transmission_flag`].
    pub transmission_flags: u16,
    /// Reply style in use.
    pub style: ReplyStyle,
}

/// A request as a client makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCommand<'a> {
    /// Read `len` bytes, at most 64 MiB.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Write `data`, at most 64 MiB.
    Write {
        /// First byte.
        offset: u64,
        /// Payload.
        data: &'a [u8],
        /// Answer only when durable.
        fua: bool,
    },
    /// Make every answered write durable.
    Flush,
    /// Discard a range.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Answer only when durable.
        fua: bool,
    },
    /// Zero a range.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Keep it allocated.
        no_hole: bool,
        /// Answer only when durable.
        fua: bool,
    },
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientReply {
    /// What [`Client::submit`] returned for the request.
    pub cookie: u64,
    /// The data of a read, empty for other commands, or the server's error.
    pub result: Result<Vec<u8>, NbdError>,
}

/// Why a connection is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server does not speak fixed newstyle NBD.
    #[error("not a fixed newstyle NBD server")]
    NotNewstyle,
    /// The server said no to the export.
    #[error("server refused the export (reply {reply_type:#x}): {text}")]
    Refused {
        /// Option reply type, see [`constants::option_reply`].
        reply_type: u32,
        /// The server's words, control characters escaped; may be empty.
        text: String,
    },
    /// The server broke the protocol.
    #[error("server broke the protocol: {0}")]
    Protocol(&'static str),
    /// A request before the handshake was over, or after [`Client::disconnect`].
    #[error("not attached to an export")]
    NotAttached,
    /// A request with more than 64 MiB of payload.
    #[error("request of {len} bytes, limit 64 MiB")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
}

/// The client's side of one connection.
#[derive(Debug)]
pub struct Client {
    state: State,
    /// Bytes received and not understood yet.
    input: Vec<u8>,
    output: Vec<u8>,
    next_cookie: u64,
}

#[derive(Debug)]
enum State {
    Handshake(Handshake),
    Attached(ExportInfo, Replies),
    Done,
}

impl Client {
    /// A client that will attach to the export called `name` (empty for the default one), with
    /// structured replies or extended headers if `style` says so and the server agrees.
    #[must_use]
    pub fn new(name: &str, style: ReplyStyle) -> Self {
        Self {
            state: State::Handshake(Handshake::new(name, style)),
            input: Vec::new(),
            output: Vec::new(),
            next_cookie: 1,
        }
    }

    /// Takes bytes from the server, all of them. After an error the connection must be closed.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.input.extend_from_slice(bytes);
        let mut taken = 0;
        let result = loop {
            match self.step(taken) {
                Ok(0) => break Ok(()),
                Ok(len) => taken += len,
                Err(error) => {
                    self.state = State::Done;
                    break Err(error);
                }
            }
        };
        self.input.drain(..taken);
        result
    }

    /// Bytes for the server, in order, since the last call.
    #[must_use]
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// The export, once attached.
    #[must_use]
    pub const fn export(&self) -> Option<&ExportInfo> {
        match &self.state {
            State::Attached(info, _) => Some(info),
            State::Handshake(_) | State::Done => None,
        }
    }

    /// Queues a request; its cookie, unique on this connection.
    pub fn submit(&mut self, request: ClientCommand<'_>) -> Result<u64, ClientError> {
        let State::Attached(info, replies) = &mut self.state else {
            return Err(ClientError::NotAttached);
        };
        let (header, payload) = encode(request, self.next_cookie)?;
        let expected = match request {
            ClientCommand::Read { offset, len } => Expected::Data { offset, len },
            _ => Expected::Done,
        };
        self.next_cookie += 1;
        put_header(header, info.style, &mut self.output)?;
        replies.expect(header.cookie, header.offset, expected);
        self.output.extend_from_slice(payload);
        Ok(header.cookie)
    }

    /// The next answer that is whole.
    pub fn next_reply(&mut self) -> Option<ClientReply> {
        match &mut self.state {
            State::Attached(_, replies) => replies.next(),
            State::Handshake(_) | State::Done => None,
        }
    }

    /// Requests submitted and not answered.
    #[must_use]
    pub fn outstanding_count(&self) -> usize {
        match &self.state {
            State::Attached(_, replies) => replies.outstanding_count(),
            State::Handshake(_) | State::Done => 0,
        }
    }

    /// Says goodbye. Await outstanding replies first; afterwards the server closes.
    pub fn disconnect(&mut self) {
        if let State::Attached(info, _) = &self.state {
            let header = RequestHeader {
                flags: 0,
                command: command::DISC,
                cookie: self.next_cookie,
                offset: 0,
                length: 0,
            };
            // Its length is 0, which every format can say.
            let said = put_header(header, info.style, &mut self.output);
            debug_assert_eq!(said, Ok(()), "a goodbye fits every format");
            self.state = State::Done;
        }
    }

    /// Understands one message at `taken`; its length, 0 when it is not whole.
    fn step(&mut self, taken: usize) -> Result<usize, ClientError> {
        let bytes = &self.input[taken..];
        match &mut self.state {
            State::Handshake(handshake) => {
                let (len, attached) = handshake.step(bytes, &mut self.output)?;
                if let Some(info) = attached {
                    self.state = State::Attached(info, Replies::new(info.style));
                }
                Ok(len)
            }
            State::Attached(_, replies) => replies.step(bytes),
            State::Done => Ok(bytes.len()),
        }
    }
}

/// Appends a request's head in the format of the connection.
fn put_header(
    mut header: RequestHeader,
    style: ReplyStyle,
    output: &mut Vec<u8>,
) -> Result<(), ClientError> {
    match style.request_format() {
        HeaderFormat::Compact => {
            let bytes = header.encode_compact();
            let len = usize::try_from(header.length).unwrap_or(usize::MAX);
            output.extend(bytes.ok_or(ClientError::TooLong { len })?);
        }
        HeaderFormat::Extended => {
            if header.command == command::WRITE {
                header.flags |= flag::PAYLOAD_LEN;
            }
            output.extend(header.encode_extended());
        }
    }
    Ok(())
}

fn encode(request: ClientCommand<'_>, cookie: u64) -> Result<(RequestHeader, &[u8]), ClientError> {
    let header = |command, flags, offset, length: u64| RequestHeader {
        flags,
        command,
        cookie,
        offset,
        length,
    };
    let fua_flag = |fua| if fua { flag::FUA } else { 0 };
    match request {
        ClientCommand::Read { offset, len } => {
            check_payload_len(usize::try_from(len).unwrap_or(usize::MAX))?;
            Ok((header(command::READ, 0, offset, len.into()), &[]))
        }
        ClientCommand::Write { offset, data, fua } => {
            let len = check_payload_len(data.len())?;
            Ok((
                header(command::WRITE, fua_flag(fua), offset, len.into()),
                data,
            ))
        }
        ClientCommand::Flush => Ok((header(command::FLUSH, 0, 0, 0), &[])),
        ClientCommand::Trim { offset, len, fua } => Ok((
            header(command::TRIM, fua_flag(fua), offset, len.into()),
            &[],
        )),
        ClientCommand::WriteZeroes {
            offset,
            len,
            no_hole,
            fua,
        } => {
            let flags = fua_flag(fua) | if no_hole { flag::NO_HOLE } else { 0 };
            Ok((
                header(command::WRITE_ZEROES, flags, offset, len.into()),
                &[],
            ))
        }
    }
}

fn check_payload_len(len: usize) -> Result<u32, ClientError> {
    match u32::try_from(len) {
        Ok(short) if short <= constants::PAYLOAD_LEN_MAX => Ok(short),
        _ => Err(ClientError::TooLong { len }),
    }
}
