//! A blocking NBD client over a Unix socket, with deadlines.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nbd_frontend::proto::reply::ReplyStyle;
use nbd_frontend::{Client, ClientCommand, ClientReply};

/// One attached connection.
pub(crate) struct Nbd {
    stream: UnixStream,
    client: Client,
}

/// How an attempt ended that did not succeed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NbdFailure {
    /// The server closed, refused, or is not there.
    Closed(String),
    /// No answer within the limit.
    Silent,
}

impl Nbd {
    /// Attaches; every wait on the connection ends after `limit`.
    pub(crate) fn attach(socket: &Path, export: &str, limit: Duration) -> Result<Self, NbdFailure> {
        Self::attach_in(socket, export, limit, ReplyStyle::Simple)
    }

    /// The same with a reply style.
    pub(crate) fn attach_in(
        socket: &Path,
        export: &str,
        limit: Duration,
        style: ReplyStyle,
    ) -> Result<Self, NbdFailure> {
        let stream = UnixStream::connect(socket).map_err(|error| failure(&error))?;
        stream
            .set_read_timeout(Some(limit))
            .map_err(|error| failure(&error))?;
        stream
            .set_write_timeout(Some(limit))
            .map_err(|error| failure(&error))?;
        let mut nbd = Self {
            stream,
            client: Client::new(export, style),
        };
        while nbd.client.export().is_none() {
            nbd.turn()?;
        }
        Ok(nbd)
    }

    /// As the handshake said.
    pub(crate) fn size(&self) -> u64 {
        self.client.export().map_or(0, |export| export.size)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdFailure> {
        self.order(ClientCommand::Write {
            offset,
            data,
            fua: false,
        })
        .map(drop)
    }

    pub(crate) fn flush(&mut self) -> Result<(), NbdFailure> {
        self.order(ClientCommand::Flush).map(drop)
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, NbdFailure> {
        self.order(ClientCommand::Read { offset, len })
    }

    /// Queues a request; its cookie.
    pub(crate) fn submit(&mut self, command: ClientCommand<'_>) -> Result<u64, NbdFailure> {
        self.client
            .submit(command)
            .map_err(|error| NbdFailure::Closed(error.to_string()))
    }

    /// Sends what is queued.
    pub(crate) fn send(&mut self) -> Result<(), NbdFailure> {
        let output = self.client.take_output();
        self.stream
            .write_all(&output)
            .map_err(|error| failure(&error))
    }

    /// Sends the first `len` bytes of what is queued and forgets the rest.
    pub(crate) fn send_part(&mut self, len: usize) -> Result<(), NbdFailure> {
        let output = self.client.take_output();
        self.stream
            .write_all(&output[..len])
            .map_err(|error| failure(&error))
    }

    fn order(&mut self, command: ClientCommand<'_>) -> Result<Vec<u8>, NbdFailure> {
        self.submit(command)?;
        let reply = self.answer()?;
        reply
            .result
            .map_err(|error| NbdFailure::Closed(format!("answered {error}")))
    }

    /// The next answer, whatever it is to.
    pub(crate) fn answer(&mut self) -> Result<ClientReply, NbdFailure> {
        loop {
            if let Some(reply) = self.client.next_reply() {
                return Ok(reply);
            }
            self.turn()?;
        }
    }

    fn turn(&mut self) -> Result<(), NbdFailure> {
        self.send()?;
        let mut buffer = [0; 64 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(NbdFailure::Closed("end of stream".to_owned())),
            Ok(len) => self
                .client
                .handle_bytes(&buffer[..len])
                .map_err(|error| NbdFailure::Closed(error.to_string())),
            Err(error) => Err(failure(&error)),
        }
    }
}

fn failure(error: &io::Error) -> NbdFailure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => NbdFailure::Silent,
        _ => NbdFailure::Closed(error.to_string()),
    }
}
