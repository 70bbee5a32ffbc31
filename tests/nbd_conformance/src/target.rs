//! The server under judgement, and what it offers.

// SPDX-License-Identifier: MIT OR Apache-2.0

use crate::attached::Attached;
use crate::case::{Verdict, ensure, fail, skip};
use crate::conn::{Conn, OptionReply};
use crate::tls::Credentials;
use crate::uri::{Endpoint, Uri};
use crate::wire::{Reader, Style, has, info, info_request, meta_request, opt, rep};

/// See the module.
pub(crate) struct Target {
    uri: Uri,
    credentials: Option<Credentials>,
}

/// What INFO or GO said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) size: u64,
    pub(crate) flags: u16,
    /// Minimum block, preferred block, maximum payload.
    pub(crate) block_sizes: Option<[u32; 3]>,
    pub(crate) name: Option<Vec<u8>>,
    /// Kinds of all pieces, in order.
    pub(crate) kinds: Vec<u16>,
}

impl Facts {
    pub(crate) fn of(replies: &[OptionReply]) -> Verdict<Self> {
        let mut facts = Self::default();
        for reply in replies.iter().filter(|reply| reply.kind == rep::INFO) {
            let mut reader = Reader(&reply.data);
            let Some(kind) = reader.u16() else {
                return fail("an INFO reply without its type");
            };
            facts.kinds.push(kind);
            match kind {
                info::EXPORT => {
                    ensure(reply.data.len() == 12, || {
                        "INFO_EXPORT is not 12 bytes".to_owned()
                    })?;
                    facts.size = reader.u64().unwrap_or(0);
                    facts.flags = reader.u16().unwrap_or(0);
                }
                info::BLOCK_SIZE => {
                    ensure(reply.data.len() == 14, || {
                        "INFO_BLOCK_SIZE is not 14 bytes".to_owned()
                    })?;
                    let mut next = || reader.u32().unwrap_or(0);
                    facts.block_sizes = Some([next(), next(), next()]);
                }
                info::NAME => facts.name = Some(reader.0.to_vec()),
                _ => {}
            }
        }
        Ok(facts)
    }
}

/// What a case works with.
pub(crate) struct Context<'a> {
    target: &'a Target,
    pub(crate) style: Style,
}

impl Target {
    /// Attaches once, to see whether there is anything to judge.
    pub(crate) fn probe(uri: Uri) -> Verdict<Self> {
        let credentials = match (&uri.tls, &uri.endpoint) {
            (Some(dir), Endpoint::Tcp(_)) => match Credentials::read(dir, &uri.host) {
                Ok(credentials) => Some(credentials),
                Err(why) => return fail(why),
            },
            _ => None,
        };
        let target = Self { uri, credentials };
        target.context(Style::Simple).attach()?.expect_alive()?;
        Ok(target)
    }

    pub(crate) fn context(&self, style: Style) -> Context<'_> {
        Context {
            target: self,
            style,
        }
    }
}

impl Context<'_> {
    pub(crate) fn export(&self) -> &[u8] {
        self.target.uri.export.as_bytes()
    }

    /// Connected, nothing read.
    pub(crate) fn connect(&self) -> Verdict<Conn> {
        Conn::open(&self.target.uri.endpoint)
    }

    /// Greeted, with client flags sent and nothing else, whether or not there is TLS.
    pub(crate) fn flagged(&self, client_flags: u32) -> Verdict<Conn> {
        let mut conn = self.connect()?;
        conn.greeting()?;
        conn.send(&client_flags.to_be_bytes())?;
        Ok(conn)
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.target.credentials.is_some()
    }

    /// The same connection, within TLS if the server has it.
    pub(crate) fn secured(&self, conn: Conn) -> Verdict<Conn> {
        match &self.target.credentials {
            None => Ok(conn),
            Some(credentials) => conn.start_tls(credentials),
        }
    }

    /// Greeted, with client flags sent, and within TLS if the server has it.
    pub(crate) fn greeted(&self, client_flags: u32) -> Verdict<Conn> {
        if self.has_tls() && client_flags & 1 == 0 {
            return skip("TLS needs fixed newstyle negotiation");
        }
        self.secured(self.flagged(client_flags)?)
    }

    /// In option haggling, with NO_ZEROES.
    pub(crate) fn haggling(&self) -> Verdict<Conn> {
        self.greeted(3)
    }

    /// In option haggling, with the reply style agreed.
    pub(crate) fn styled(&self) -> Verdict<Conn> {
        let mut conn = self.haggling()?;
        if let Some(number) = self.style.option() {
            match conn.option_kind(number, &[])? {
                rep::ACK => {}
                rep::ERR_UNSUP => return skip(format!("no {} replies", self.style.word())),
                other => return fail(format!("option {number} answered {other:#x}")),
            }
        }
        Ok(conn)
    }

    /// Attached to the export.
    pub(crate) fn attach(&self) -> Verdict<Attached> {
        let conn = self.styled()?;
        self.go(conn)
    }

    /// The same, of a connection that haggled.
    pub(crate) fn go(&self, mut conn: Conn) -> Verdict<Attached> {
        let request = info_request(self.export(), &[info::BLOCK_SIZE]);
        let replies = conn.option(opt::GO, &request)?;
        match replies.last().map(|last| last.kind) {
            Some(rep::ACK) => Ok(Attached::new(conn, self.style, Facts::of(&replies)?)),
            other => fail(format!("GO was answered {other:x?}")),
        }
    }

    /// Attached, if every one of `flags` is set.
    pub(crate) fn attach_with(&self, flags: u16) -> Verdict<Attached> {
        let attached = self.attach()?;
        if attached.facts.flags & flags != flags {
            let missing = flags & !attached.facts.flags;
            return skip(format!("transmission flags {missing:#x} are not set"));
        }
        Ok(attached)
    }

    /// Attached, if writes are taken and all of `flags` are set.
    pub(crate) fn attach_writable(&self, flags: u16) -> Verdict<Attached> {
        let attached = self.attach_with(flags)?;
        if attached.facts.flags & has::READ_ONLY != 0 {
            return skip("the export is read-only");
        }
        if attached.facts.size < 8 << 20 {
            return skip("the export is smaller than 8 MiB");
        }
        Ok(attached)
    }

    /// In option haggling with metadata contexts to be had.
    pub(crate) fn with_contexts(&self) -> Verdict<Conn> {
        let mut conn = self.styled()?;
        let request = meta_request(self.export(), &[]);
        match conn.option_kind(opt::LIST_META_CONTEXT, &request)? {
            rep::ACK => Ok(conn),
            rep::ERR_UNSUP => skip("no metadata contexts"),
            other => fail(format!("LIST_META_CONTEXT answered {other:#x}")),
        }
    }

    /// Attached with `base:allocation` selected.
    pub(crate) fn attach_for_status(&self) -> Verdict<Attached> {
        let mut conn = self.with_contexts()?;
        let request = meta_request(self.export(), &["base:allocation"]);
        let replies = conn.option(opt::SET_META_CONTEXT, &request)?;
        if !replies.iter().any(|reply| reply.kind == rep::META_CONTEXT) {
            return skip("no base:allocation");
        }
        self.go(conn)
    }

    /// INFO with these requests; `Err` of the final reply's kind.
    pub(crate) fn info(&self, kinds: &[u16]) -> Verdict<Facts> {
        let mut conn = self.styled()?;
        let replies = conn.option(opt::INFO, &info_request(self.export(), kinds))?;
        match replies.last().map(|last| last.kind) {
            Some(rep::ACK) => Facts::of(&replies),
            other => fail(format!("INFO was answered {other:x?}")),
        }
    }

    /// A name that no export has; skips where every name is one.
    pub(crate) fn unknown_name(&self) -> Verdict<&'static [u8]> {
        let name = b"no such export, surely";
        let mut conn = self.haggling()?;
        match conn.option_kind(opt::INFO, &info_request(name, &[]))? {
            rep::ACK => skip("every name is an export here"),
            _ => Ok(name),
        }
    }

    /// A new client is served.
    pub(crate) fn expect_serving(&self) -> Verdict {
        let simple = self.target.context(Style::Simple);
        simple.attach()?.expect_alive()
    }
}
