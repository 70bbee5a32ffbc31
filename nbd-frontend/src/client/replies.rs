//! Replies on an attached connection, put together from their chunks.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::collections::{BTreeMap, VecDeque};

use super::{ClientError, ClientReply};
use crate::proto::constants::chunk;
use crate::proto::error::NbdError;
use crate::proto::reply::{ChunkHeader, ReplyHeader, ReplyStyle, SimpleHeader};
use crate::proto::wire::ByteReader;

/// Longest payload of a chunk that carries no data, in bytes: an error text or some extents.
const PLAIN_PAYLOAD_LEN_MAX: usize = 8 << 10;

/// What a request's success looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Data { offset: u64, len: u32 },
    Done,
}

#[derive(Debug)]
pub(super) struct Replies {
    style: ReplyStyle,
    outstanding: BTreeMap<u64, Partial>,
    finished: VecDeque<ClientReply>,
}

/// A reply so far.
#[derive(Debug)]
struct Partial {
    expected: Expected,
    /// First byte of the request.
    offset: u64,
    /// Allocated with the first chunk.
    data: Vec<u8>,
    /// Ranges of `data` that chunks gave, start to end.
    covered: BTreeMap<usize, usize>,
    error: Option<NbdError>,
}

const fn broken<T>(what: &'static str) -> Result<T, ClientError> {
    Err(ClientError::Protocol(what))
}

impl Replies {
    pub(super) const fn new(style: ReplyStyle) -> Self {
        Self {
            style,
            outstanding: BTreeMap::new(),
            finished: VecDeque::new(),
        }
    }

    pub(super) fn expect(&mut self, cookie: u64, offset: u64, expected: Expected) {
        let partial = Partial {
            expected,
            offset,
            data: Vec::new(),
            covered: BTreeMap::new(),
            error: None,
        };
        self.outstanding.insert(cookie, partial);
    }

    pub(super) fn next(&mut self) -> Option<ClientReply> {
        self.finished.pop_front()
    }

    pub(super) fn outstanding_count(&self) -> usize {
        self.outstanding.len()
    }

    /// Understands one reply or chunk at the front of `bytes`; its length, 0 when it is not whole.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<usize, ClientError> {
        let Some(magic) = ByteReader::new(bytes).u32() else {
            return Ok(0);
        };
        let Some(head_len) = ReplyHeader::len_of(magic) else {
            return broken("bad reply magic");
        };
        match ReplyHeader::parse(bytes) {
            None => Ok(0),
            Some(ReplyHeader::Simple(header)) => self.on_simple(header, head_len, bytes),
            Some(ReplyHeader::Chunk(header)) => self.on_chunk(header, head_len, bytes),
        }
    }

    fn on_simple(
        &mut self,
        header: SimpleHeader,
        head_len: usize,
        bytes: &[u8],
    ) -> Result<usize, ClientError> {
        if self.style == ReplyStyle::Extended {
            return broken("simple reply with extended headers");
        }
        let Some(partial) = self.outstanding.get(&header.cookie) else {
            return broken("reply to no request");
        };
        let error = NbdError::from_code(header.error);
        let data_len = match partial.expected {
            Expected::Data { .. } if self.style == ReplyStyle::Structured => {
                return broken("simple reply to a read");
            }
            Expected::Data { len, .. } if error.is_none() => to_usize(len),
            _ => 0,
        };
        let Some(data) = bytes.get(head_len..head_len + data_len) else {
            return Ok(0);
        };
        self.finish(header.cookie, error.map_or_else(|| Ok(data.to_vec()), Err));
        Ok(head_len + data_len)
    }

    fn on_chunk(
        &mut self,
        header: ChunkHeader,
        head_len: usize,
        bytes: &[u8],
    ) -> Result<usize, ClientError> {
        let spoken = match header.offset {
            None => ReplyStyle::Structured,
            Some(_) => ReplyStyle::Extended,
        };
        if self.style != spoken {
            return broken("chunk of a kind that was not agreed");
        }
        let Some(partial) = self.outstanding.get_mut(&header.cookie) else {
            return broken("chunk for no request");
        };
        if header.offset.is_some_and(|offset| offset != partial.offset) {
            return broken("reply to another offset");
        }
        let payload_len = usize::try_from(header.payload_len).unwrap_or(usize::MAX);
        if payload_len > partial.payload_len_max(header.kind) {
            return broken("chunk longer than the request");
        }
        let Some(payload) = bytes.get(head_len..head_len + payload_len) else {
            return Ok(0);
        };
        partial.take_chunk(header.kind, payload)?;
        if header.flags & chunk::FLAG_DONE != 0 {
            let result = partial.result()?;
            self.finish(header.cookie, result);
        }
        Ok(head_len + payload_len)
    }

    fn finish(&mut self, cookie: u64, result: Result<Vec<u8>, NbdError>) {
        self.outstanding.remove(&cookie);
        self.finished.push_back(ClientReply { cookie, result });
    }
}

impl Partial {
    fn payload_len_max(&self, kind: u16) -> usize {
        match (kind, self.expected) {
            (chunk::OFFSET_DATA, Expected::Data { len, .. }) => to_usize(len) + 8,
            _ => PLAIN_PAYLOAD_LEN_MAX,
        }
    }

    fn take_chunk(&mut self, kind: u16, payload: &[u8]) -> Result<(), ClientError> {
        let mut reader = ByteReader::new(payload);
        match kind {
            chunk::NONE if payload.is_empty() => Ok(()),
            chunk::OFFSET_DATA => {
                let Some(offset) = reader.u64() else {
                    return broken("short data chunk");
                };
                let data = reader.rest();
                let start = self.cover(offset, data.len())?;
                self.data[start..start + data.len()].copy_from_slice(data);
                Ok(())
            }
            chunk::OFFSET_HOLE => match (reader.u64(), reader.u32(), reader.is_empty()) {
                (Some(offset), Some(len), true) => self.cover(offset, to_usize(len)).map(|_| ()),
                _ => broken("malformed hole chunk"),
            },
            kind if kind & chunk::ERROR_BIT != 0 => {
                let Some(error) = reader.u32().and_then(NbdError::from_code) else {
                    return broken("error chunk without error");
                };
                self.error = Some(error);
                Ok(())
            }
            _ => broken("unexpected chunk"),
        }
    }

    /// Notes that a chunk gives `len` bytes at `offset` of the export; where that is in `data`.
    fn cover(&mut self, offset: u64, len: usize) -> Result<usize, ClientError> {
        let Expected::Data {
            offset: first,
            len: wanted,
        } = self.expected
        else {
            return broken("data for a request without");
        };
        let wanted = to_usize(wanted);
        let start = offset
            .checked_sub(first)
            .and_then(|start| usize::try_from(start).ok());
        let Some(start) = start.filter(|start| len > 0 && len <= wanted.saturating_sub(*start))
        else {
            return broken("chunk outside the request");
        };
        let end = start + len;
        let overlaps = self
            .covered
            .range(..end)
            .next_back()
            .is_some_and(|(_, e)| *e > start);
        if overlaps {
            return broken("chunks overlap");
        }
        self.covered.insert(start, end);
        self.data.resize(wanted, 0);
        Ok(start)
    }

    fn result(&mut self) -> Result<Result<Vec<u8>, NbdError>, ClientError> {
        if let Some(error) = self.error {
            return Ok(Err(error));
        }
        let covered: usize = self.covered.iter().map(|(start, end)| end - start).sum();
        match self.expected {
            Expected::Data { len, .. } if covered != to_usize(len) => {
                broken("read answered in part")
            }
            _ => Ok(Ok(std::mem::take(&mut self.data))),
        }
    }
}

fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
