//! A connection in its handshake phase.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustls::{ClientConnection, StreamOwned};

use crate::case::{Stop, Verdict, ensure, fail, same};
use crate::tls::Credentials;
use crate::uri::Endpoint;
use crate::wire::{Reader, opt, option, rep};

/// A server that says nothing for this long has hung. Longer than any healthy disk needs for what is
/// asked here.
const PATIENCE: Duration = Duration::from_secs(15);

/// Longest message that a server may send in a handshake.
const REPLY_LEN_MAX: u32 = 1 << 20;

/// See the module.
pub(crate) struct Conn {
    stream: Stream,
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// One reply to an option.
#[derive(Clone, Debug)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

impl Conn {
    /// Connects; nothing was read yet.
    pub(crate) fn open(endpoint: &Endpoint) -> Verdict<Self> {
        let opened = match endpoint {
            Endpoint::Tcp(address) => TcpStream::connect(address).and_then(|stream| {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Stream::Tcp(stream))
            }),
            Endpoint::Unix(path) => UnixStream::connect(path).and_then(|stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Stream::Unix(stream))
            }),
        };
        match opened {
            Ok(stream) => Ok(Self { stream }),
            Err(error) => fail(format!("cannot connect: {error}")),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Verdict {
        let sent = match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        };
        sent.map_err(|error| Stop::Failed(format!("while sending: {error}")))
    }

    /// Sends each byte alone.
    pub(crate) fn send_slowly(&mut self, bytes: &[u8]) -> Verdict {
        bytes
            .iter()
            .try_for_each(|byte| self.send(std::slice::from_ref(byte)))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
            // Whether TLS was ended in order makes no difference to a protocol that knows its own
            // lengths.
            Stream::Tls(stream) => match stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(0),
                result => result,
            },
        }
    }

    /// Asks for TLS and goes on within it.
    pub(crate) fn start_tls(mut self, credentials: &Credentials) -> Verdict<Self> {
        let kind = self.option_kind(opt::STARTTLS, &[])?;
        same("reply to STARTTLS", kind, rep::ACK)?;
        let Stream::Tcp(stream) = self.stream else {
            return fail("TLS twice, or not by TCP");
        };
        match credentials.start(stream) {
            Ok(stream) => Ok(Self {
                stream: Stream::Tls(Box::new(stream)),
            }),
            Err(error) => fail(format!("no TLS: {error}")),
        }
    }

    /// What comes until the server closes, or hangs, holds no option reply.
    pub(crate) fn expect_no_option_reply(&mut self) -> Verdict {
        let mut buffer = vec![0; 4096];
        let mut all = Vec::new();
        while let Ok(count) = self.read(&mut buffer) {
            if count == 0 {
                break;
            }
            all.extend_from_slice(&buffer[..count]);
        }
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let answered = all.windows(magic.len()).any(|window| window == magic);
        ensure(!answered, || "clear text was answered".to_owned())
    }

    pub(crate) fn take(&mut self, len: usize) -> Verdict<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut filled = 0;
        while filled < len {
            match self.read(&mut bytes[filled..]) {
                Ok(0) => return fail("the server closed the connection"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return fail(format!("no answer: {error}")),
            }
        }
        Ok(bytes)
    }

    /// The server closes without another byte.
    pub(crate) fn expect_closed(&mut self) -> Verdict {
        let mut byte = [0];
        match self.read(&mut byte) {
            Ok(0) => Ok(()),
            Ok(_) => fail("the server sends instead of closing"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(error) => fail(format!("the connection stays open: {error}")),
        }
    }

    /// Reads until the server closes; an error if it rather says nothing more.
    pub(crate) fn read_to_close(&mut self) -> Verdict {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return fail(format!("the connection stays open: {error}")),
            }
        }
    }

    /// Reads the greeting; its handshake flags.
    pub(crate) fn greeting(&mut self) -> Verdict<u16> {
        let greeting = self.take(18)?;
        same("first magic", &greeting[..8], b"NBDMAGIC")?;
        same("second magic", &greeting[8..16], b"IHAVEOPT")?;
        Ok(u16::from_be_bytes([greeting[16], greeting[17]]))
    }

    pub(crate) fn send_option(&mut self, number: u32, data: &[u8]) -> Verdict {
        self.send(&option(number, data))
    }

    /// Sends an option and reads its replies up to the final one.
    pub(crate) fn option(&mut self, number: u32, data: &[u8]) -> Verdict<Vec<OptionReply>> {
        self.send_option(number, data)?;
        self.replies(number)
    }

    /// The kind of the final reply to an option.
    pub(crate) fn option_kind(&mut self, number: u32, data: &[u8]) -> Verdict<u32> {
        let replies = self.option(number, data)?;
        Ok(replies.last().map_or(0, |last| last.kind))
    }

    pub(crate) fn replies(&mut self, number: u32) -> Verdict<Vec<OptionReply>> {
        let mut replies = Vec::new();
        loop {
            let reply = self.reply(number)?;
            let is_final = reply.kind == rep::ACK || reply.kind & rep::ERROR_BIT != 0;
            replies.push(reply);
            if is_final {
                return Ok(replies);
            }
        }
    }

    fn reply(&mut self, number: u32) -> Verdict<OptionReply> {
        let head = self.take(20)?;
        let mut reader = Reader(&head);
        same(
            "magic of an option reply",
            reader.u64(),
            Some(0x0003_e889_0455_65a9),
        )?;
        same("option that is answered", reader.u32(), Some(number))?;
        let (kind, len) = (reader.u32().unwrap_or(0), reader.u32().unwrap_or(0));
        ensure(len <= REPLY_LEN_MAX, || {
            format!("an option reply of {len} bytes")
        })?;
        let data = self.take(usize::try_from(len).unwrap_or(usize::MAX))?;
        if kind == rep::ACK {
            ensure(data.is_empty(), || "an ACK with data".to_owned())?;
        }
        if kind & rep::ERROR_BIT != 0 {
            ensure(
                data.len() <= 4096 && std::str::from_utf8(&data).is_ok(),
                || format!("an error text that is no string: {data:x?}"),
            )?;
        }
        Ok(OptionReply { kind, data })
    }

    /// The next option is still understood.
    pub(crate) fn expect_in_step(&mut self) -> Verdict {
        let kind = self.option_kind(0x7fff_fff0, &[])?;
        same("reply to an unknown option", kind, rep::ERR_UNSUP)
    }
}
