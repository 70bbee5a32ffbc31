//! The handshake phase: options until an export is chosen or the session ends.
//!
//! One option is collected whole (its length is bounded), answered, and forgotten. Options may come
//! in any order and number up to the limit; each error is a reply and changes nothing, except that
//! a failed SET_META_CONTEXT clears the selection, as the spec wants.

// SPDX-License-Identifier: MIT OR Apache-2.0

use super::block_status::Contexts;
use super::limits::{OPTION_COUNT_MAX, OPTION_LEN_MAX};
use super::output::Wire;
use super::{Attachment, CloseReason, Pause};
use crate::export::{Export, ExportIndex, ExportList, Refusal};
use crate::proto::constants::{CLIENT_FLAGS_LEN, OPTION_HEADER_LEN, info, option, option_reply};
use crate::proto::handshake::{
    self, ClientFlags, InfoRequest, MetaContextRequest, OptionHeader, quoted,
};
use crate::proto::reply::ReplyStyle;
use crate::proto::wire::{ByteReader, Gather};

/// What protects the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Security {
    /// Nothing, and nothing will: a socket of this machine.
    Clear,
    /// Nothing yet: only STARTTLS gets any further (the specification's FORCEDTLS mode).
    TlsWanted,
    /// TLS.
    Secured,
}

/// Where a handshake stands after the bytes given so far.
#[derive(Debug)]
pub(super) enum Progress {
    NeedsInput,
    Paused(Pause),
    Attached(Attachment),
    /// The client was told to begin.
    StartTls,
    Close(CloseReason),
}

#[derive(Debug)]
pub(super) struct Negotiation {
    stage: Stage,
    security: Security,
    part: Gather,
    option_count: u32,
    client: ClientFlags,
    style: ReplyStyle,
    /// What was selected last, and of which export.
    contexts: Option<(ExportIndex, Contexts)>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    ClientFlags,
    OptionHeader,
    OptionData(OptionHeader),
    /// TLS is being set up; the session gets no bytes meanwhile.
    StartingTls,
}

/// An end of the handshake; options that leave it going give none.
enum Verdict {
    Attach(Attachment),
    StartTls,
    Close(CloseReason),
}

impl Negotiation {
    pub(super) fn new(security: Security) -> Self {
        Self {
            stage: Stage::ClientFlags,
            security,
            part: Gather::default(),
            option_count: 0,
            client: ClientFlags::default(),
            style: ReplyStyle::Simple,
            contexts: None,
        }
    }

    pub(super) fn is_starting_tls(&self) -> bool {
        matches!(self.stage, Stage::StartingTls)
    }

    /// Forgets whatever was said in clear text, but the client flags, which are sent once, and how
    /// many options there were.
    pub(super) fn restart_secured(&mut self) {
        *self = Self {
            stage: Stage::OptionHeader,
            option_count: self.option_count,
            client: self.client,
            ..Self::new(Security::Secured)
        };
    }

    /// Takes bytes off the front of `input` until they run out or the handshake ends.
    pub(super) fn advance<B, R>(
        &mut self,
        offer: &ExportList,
        input: &mut &[u8],
        wire: &mut Wire<'_, B, R>,
    ) -> Progress {
        loop {
            if !wire.has_room() {
                return Progress::Paused(Pause::Unsent);
            }
            let want = match self.stage {
                Stage::ClientFlags => CLIENT_FLAGS_LEN,
                Stage::OptionHeader => OPTION_HEADER_LEN,
                Stage::OptionData(header) => {
                    usize::try_from(header.payload_len).unwrap_or(usize::MAX)
                }
                Stage::StartingTls if input.is_empty() => return Progress::NeedsInput,
                Stage::StartingTls => {
                    return Progress::Close(CloseReason::ClearTextBehindStartTls);
                }
            };
            if !self.part.fill(input, want) {
                return Progress::NeedsInput;
            }
            let part = std::mem::take(&mut self.part);
            let verdict = self.handle_part(part.bytes(), offer, wire);
            self.part = part;
            self.part.clear();
            match verdict {
                None => {}
                Some(Verdict::Attach(attachment)) => return Progress::Attached(attachment),
                Some(Verdict::StartTls) => {
                    self.stage = Stage::StartingTls;
                    return Progress::StartTls;
                }
                Some(Verdict::Close(reason)) => return Progress::Close(reason),
            }
        }
    }

    fn handle_part<B, R>(
        &mut self,
        part: &[u8],
        offer: &ExportList,
        wire: &mut Wire<'_, B, R>,
    ) -> Option<Verdict> {
        let next = match self.stage {
            Stage::ClientFlags => self.on_client_flags(part),
            Stage::OptionHeader => self.on_option_header(part),
            Stage::OptionData(header) => {
                let verdict = self.on_option(header.option, part, offer, wire);
                verdict.map_or(Ok(Stage::OptionHeader), Err)
            }
            // Takes no bytes.
            Stage::StartingTls => Ok(Stage::StartingTls),
        };
        match next {
            Ok(stage) => {
                self.stage = stage;
                None
            }
            Err(verdict) => Some(verdict),
        }
    }

    fn on_client_flags(&mut self, part: &[u8]) -> Result<Stage, Verdict> {
        let word = ByteReader::new(part).u32().unwrap_or(u32::MAX);
        self.client = ClientFlags::parse(word)
            .map_err(|flags| Verdict::Close(CloseReason::UnknownClientFlags { flags }))?;
        Ok(Stage::OptionHeader)
    }

    fn on_option_header(&mut self, part: &[u8]) -> Result<Stage, Verdict> {
        let header =
            OptionHeader::parse(part).ok_or(Verdict::Close(CloseReason::BadOptionMagic))?;
        if header.payload_len > OPTION_LEN_MAX {
            return Err(Verdict::Close(CloseReason::OptionTooLong {
                len: header.payload_len,
            }));
        }
        self.option_count += 1;
        if self.option_count > OPTION_COUNT_MAX {
            return Err(Verdict::Close(CloseReason::TooManyOptions));
        }
        if !self.client.fixed_newstyle && header.option != option::EXPORT_NAME {
            return Err(Verdict::Close(CloseReason::OptionInPlainNewstyle));
        }
        Ok(Stage::OptionData(header))
    }

    fn on_option<B, R>(
        &mut self,
        number: u32,
        data: &[u8],
        offer: &ExportList,
        wire: &mut Wire<'_, B, R>,
    ) -> Option<Verdict> {
        let mut answer = Answer {
            option: number,
            wire,
        };
        if self.security == Security::TlsWanted {
            return before_tls(number, data, &mut answer);
        }
        match number {
            option::EXPORT_NAME => Some(self.on_export_name(data, offer, wire)),
            option::ABORT => {
                answer.ack();
                Some(Verdict::Close(CloseReason::Aborted))
            }
            option::LIST => {
                on_list(data, offer, &mut answer);
                None
            }
            option::INFO => {
                self.on_info(data, offer, &mut answer);
                None
            }
            option::GO => self.on_info(data, offer, &mut answer).map(Verdict::Attach),
            option::STRUCTURED_REPLY => {
                self.on_structured_reply(data, &mut answer);
                None
            }
            option::EXTENDED_HEADERS => {
                self.on_extended_headers(data, &mut answer);
                None
            }
            option::LIST_META_CONTEXT => {
                self.on_list_meta_context(data, offer, &mut answer);
                None
            }
            option::SET_META_CONTEXT => {
                self.on_set_meta_context(data, offer, &mut answer);
                None
            }
            option::STARTTLS if self.security == Security::Secured => {
                answer.error(option_reply::ERR_INVALID, "TLS is in use already");
                None
            }
            _ => {
                answer.error(option_reply::ERR_UNSUP, "option is not supported");
                None
            }
        }
    }

    /// The one option that can tell no error: it succeeds or ends the connection.
    fn on_export_name<B, R>(
        &self,
        data: &[u8],
        offer: &ExportList,
        wire: &mut Wire<'_, B, R>,
    ) -> Verdict {
        if self.style == ReplyStyle::Extended {
            return Verdict::Close(CloseReason::ExportNameWithExtendedHeaders);
        }
        let found = handshake::parse_string(data)
            .ok()
            .and_then(|name| find(offer, name));
        let Some((index, export)) = found else {
            return Verdict::Close(CloseReason::UnknownExport);
        };
        if export.refusal.is_some() {
            return Verdict::Close(CloseReason::Refused);
        }
        let flags = export.transmission_flags(self.style);
        wire.send(handshake::export_name_answer(
            export.size,
            flags,
            self.client.no_zeroes,
        ));
        Verdict::Attach(self.attachment(index, export))
    }

    /// INFO and GO are one but for what follows the ACK; what GO attaches to, if it succeeds.
    fn on_info<B, R>(
        &self,
        data: &[u8],
        offer: &ExportList,
        answer: &mut Answer<'_, '_, B, R>,
    ) -> Option<Attachment> {
        let request = match InfoRequest::parse(data) {
            Ok(request) => request,
            Err(malformed) => {
                answer.error(malformed.reply_type(), &malformed.to_string());
                return None;
            }
        };
        let Some((index, export)) = find(offer, request.name) else {
            answer.unknown_export(request.name);
            return None;
        };
        // Not a hard disconnect: proto.md wants options refused until the client gets the hint,
        // and the caller's handshake timeout ends the ones that do not.
        if let Some(refusal) = &export.refusal {
            answer.error(option_reply::ERR_POLICY, refusal.text());
            return None;
        }
        self.describe(export, request, answer);
        Some(self.attachment(index, export))
    }

    fn describe<B, R>(
        &self,
        export: &Export,
        request: InfoRequest<'_>,
        answer: &mut Answer<'_, '_, B, R>,
    ) {
        let flags = export.transmission_flags(self.style);
        answer.reply(
            option_reply::INFO,
            &handshake::info_export(export.size, flags),
        );
        if request.wants_name {
            answer.reply(
                option_reply::INFO,
                &handshake::info_text(info::NAME, &export.name),
            );
        }
        if request.wants_description && !export.description.is_empty() {
            let text = handshake::info_text(info::DESCRIPTION, &export.description);
            answer.reply(option_reply::INFO, &text);
        }
        if request.wants_block_size {
            answer.reply(option_reply::INFO, &handshake::info_block_size());
        }
        answer.ack();
    }

    fn on_structured_reply<B, R>(&mut self, data: &[u8], answer: &mut Answer<'_, '_, B, R>) {
        if !data.is_empty() {
            answer.error(option_reply::ERR_INVALID, "STRUCTURED_REPLY takes no data");
            return;
        }
        match self.style {
            ReplyStyle::Simple => {
                self.style = ReplyStyle::Structured;
                answer.ack();
            }
            ReplyStyle::Structured => answer.error(
                option_reply::ERR_INVALID,
                "structured replies are already in use",
            ),
            ReplyStyle::Extended => answer.error(
                option_reply::ERR_EXT_HEADER_REQD,
                "extended headers are in use and cannot be taken back",
            ),
        }
    }

    /// Whether structured replies were agreed before makes no difference.
    fn on_extended_headers<B, R>(&mut self, data: &[u8], answer: &mut Answer<'_, '_, B, R>) {
        if !data.is_empty() {
            answer.error(option_reply::ERR_INVALID, "EXTENDED_HEADERS takes no data");
        } else if self.style == ReplyStyle::Extended {
            answer.error(
                option_reply::ERR_INVALID,
                "extended headers are already in use",
            );
        } else {
            self.style = ReplyStyle::Extended;
            answer.ack();
        }
    }

    fn on_list_meta_context<B, R>(
        &self,
        data: &[u8],
        offer: &ExportList,
        answer: &mut Answer<'_, '_, B, R>,
    ) {
        let Some((_, queries)) = self.meta_context_request(data, offer, answer) else {
            return;
        };
        // A list gives no ids.
        for (_, name) in Contexts::listed(&queries).iter() {
            let context = handshake::meta_context(0, name);
            answer.reply(option_reply::META_CONTEXT, &context);
        }
        answer.ack();
    }

    fn on_set_meta_context<B, R>(
        &mut self,
        data: &[u8],
        offer: &ExportList,
        answer: &mut Answer<'_, '_, B, R>,
    ) {
        self.contexts = None;
        let Some((index, queries)) = self.meta_context_request(data, offer, answer) else {
            return;
        };
        let selected = Contexts::selected(&queries);
        self.contexts = Some((index, selected));
        for (id, name) in selected.iter() {
            let context = handshake::meta_context(id, name);
            answer.reply(option_reply::META_CONTEXT, &context);
        }
        answer.ack();
    }

    /// What both metadata options check first; answers the error itself.
    fn meta_context_request<'a, B, R>(
        &self,
        data: &'a [u8],
        offer: &ExportList,
        answer: &mut Answer<'_, '_, B, R>,
    ) -> Option<(ExportIndex, Vec<&'a str>)> {
        if self.style == ReplyStyle::Simple {
            answer.error(
                option_reply::ERR_INVALID,
                "negotiate structured replies first",
            );
            return None;
        }
        match MetaContextRequest::parse(data) {
            Err(malformed) => {
                answer.error(malformed.reply_type(), &malformed.to_string());
                None
            }
            Ok(request) => match find(offer, request.name) {
                None => {
                    answer.unknown_export(request.name);
                    None
                }
                Some((_, export)) if export.is_forbidden() => {
                    let text = export.refusal.as_ref().map_or("", Refusal::text);
                    answer.error(option_reply::ERR_POLICY, text);
                    None
                }
                Some((index, _)) => Some((index, request.queries)),
            },
        }
    }

    fn attachment(&self, index: ExportIndex, export: &Export) -> Attachment {
        Attachment {
            export: index,
            size: export.size,
            access: export.access,
            style: self.style,
            contexts: match self.contexts {
                Some((of, contexts)) if of == index => contexts,
                _ => Contexts::default(),
            },
        }
    }
}

fn find<'a>(offer: &'a ExportList, name: &str) -> Option<(ExportIndex, &'a Export)> {
    let index = offer.find(name)?;
    offer.get(index).map(|export| (index, export))
}

/// What is answered where nothing goes without TLS.
fn before_tls<B, R>(
    number: u32,
    data: &[u8],
    answer: &mut Answer<'_, '_, B, R>,
) -> Option<Verdict> {
    match number {
        option::STARTTLS if data.is_empty() => {
            answer.ack();
            Some(Verdict::StartTls)
        }
        option::STARTTLS => {
            answer.error(option_reply::ERR_INVALID, "STARTTLS takes no data");
            None
        }
        option::ABORT => {
            answer.ack();
            Some(Verdict::Close(CloseReason::Aborted))
        }
        option::EXPORT_NAME => Some(Verdict::Close(CloseReason::TlsRequired)),
        _ => {
            answer.error(option_reply::ERR_TLS_REQD, "this server wants TLS first");
            None
        }
    }
}

fn on_list<B, R>(data: &[u8], offer: &ExportList, answer: &mut Answer<'_, '_, B, R>) {
    if !data.is_empty() {
        answer.error(option_reply::ERR_INVALID, "LIST takes no data");
        return;
    }
    for export in offer
        .iter()
        .filter(|export| export.listed && !export.is_forbidden())
    {
        let entry = handshake::server_entry(&export.name, &export.description);
        answer.reply(option_reply::SERVER, &entry);
    }
    answer.ack();
}

/// Replies to one option.
struct Answer<'a, 'w, B, R> {
    option: u32,
    wire: &'a mut Wire<'w, B, R>,
}

impl<B, R> Answer<'_, '_, B, R> {
    fn reply(&mut self, reply_type: u32, payload: &[u8]) {
        self.wire
            .send(handshake::option_reply(self.option, reply_type, payload));
    }

    fn ack(&mut self) {
        self.reply(option_reply::ACK, &[]);
    }

    fn error(&mut self, reply_type: u32, text: &str) {
        self.wire
            .send(handshake::option_error(self.option, reply_type, text));
    }

    fn unknown_export(&mut self, name: &str) {
        let text = if name.is_empty() {
            "which export? There is no default here".to_owned()
        } else {
            format!("no export is called {}", quoted(name))
        };
        self.error(option_reply::ERR_UNKNOWN, &text);
    }
}
