//! The load: 4 KiB random writes over one NBD connection, a fixed number of them outstanding.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nbd_frontend::client::{Client, ClientCommand};
use nbd_frontend::proto::reply::ReplyStyle;

pub(crate) const BLOCK: usize = 4096;

/// What one measured run gave.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) ops: u64,
    pub(crate) seconds: f64,
    /// Median latency in microseconds.
    pub(crate) p50_us: f64,
    /// Seed of every block written: what both replicas must hold at the end.
    pub(crate) written: Vec<Option<u64>>,
}

/// Writes every byte once, so that no measured write has to allocate: a volume in use, not a new
/// sparse file, is what users have.
pub(crate) fn fill(socket: &Path, export: &str, size: u64) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let mut link = Link::connect(socket, export)?;
    let data = vec![0x5a; usize::try_from(STEP)?];
    for offset in (0..size).step_by(usize::try_from(STEP)?) {
        link.client.submit(ClientCommand::Write {
            offset,
            data: &data,
            fua: false,
        })?;
        link.wait_for_reply()?;
    }
    link.flush()
}

/// Writes for `time` with `depth` requests outstanding, then flushes.
pub(crate) fn run(
    socket: &Path,
    export: &str,
    blocks: usize,
    depth: usize,
    time: Duration,
) -> Result<Run> {
    let mut link = Link::connect(socket, export)?;
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut written = vec![None; blocks];
    let mut started = vec![Instant::now(); depth + 1];
    let mut slots: Vec<(u64, usize, usize)> = Vec::with_capacity(depth);
    let mut free: Vec<usize> = (0..depth).collect();
    let mut busy = vec![false; blocks];
    let mut latencies = Vec::with_capacity(1 << 20);
    let (begin, mut ops) = (Instant::now(), 0u64);
    loop {
        let running = begin.elapsed() < time;
        while running && let Some(slot) = free.pop() {
            let block = loop {
                random = next(random);
                let block = usize::try_from(random >> 20)? % blocks;
                if !busy[block] {
                    break block;
                }
            };
            busy[block] = true;
            written[block] = Some(random);
            let data = content(random);
            let offset = (block * BLOCK) as u64;
            let cookie = link.client.submit(ClientCommand::Write {
                offset,
                data: &data,
                fua: false,
            })?;
            started[slot] = Instant::now();
            slots.push((cookie, slot, block));
        }
        if slots.is_empty() {
            break;
        }
        link.exchange()?;
        while let Some(reply) = link.client.next_reply() {
            reply
                .result
                .map_err(|error| anyhow::anyhow!("write failed: {error:?}"))?;
            let at = slots
                .iter()
                .position(|(cookie, ..)| *cookie == reply.cookie);
            let (_, slot, block) = slots.swap_remove(at.context("a reply nobody waits for")?);
            latencies.push(started[slot].elapsed().as_secs_f64() * 1e6);
            busy[block] = false;
            free.push(slot);
            ops += 1;
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    link.flush()?;
    latencies.sort_by(f64::total_cmp);
    let p50_us = latencies.get(latencies.len() / 2).copied().unwrap_or(0.0);
    Ok(Run {
        ops,
        seconds,
        p50_us,
        written,
    })
}

/// Blocks of `image` that do not hold what was written last.
pub(crate) fn mismatches(image: &Path, written: &[Option<u64>]) -> Result<usize> {
    let bytes = std::fs::read(image).with_context(|| image.display().to_string())?;
    let differs = |(block, seed): (usize, &Option<u64>)| {
        let at = block * BLOCK;
        seed.is_some_and(|seed| bytes.get(at..at + BLOCK) != Some(content(seed).as_slice()))
    };
    Ok(written
        .iter()
        .enumerate()
        .filter(|entry| differs(*entry))
        .count())
}

fn content(seed: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK];
    for (nr, word) in data.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed ^ nr as u64).to_le_bytes());
    }
    data
}

/// splitmix64.
fn next(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Link {
    socket: UnixStream,
    client: Client,
    buffer: Vec<u8>,
}

impl Link {
    fn connect(socket: &Path, export: &str) -> Result<Self> {
        let socket = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let client = Client::new(export, ReplyStyle::Simple);
        let mut link = Self {
            socket,
            client,
            buffer: vec![0; 1 << 16],
        };
        while link.client.export().is_none() {
            link.exchange()?;
        }
        Ok(link)
    }

    /// Sends everything queued, receives whatever comes.
    fn exchange(&mut self) -> Result<()> {
        let output = self.client.take_output();
        if !output.is_empty() {
            self.socket.write_all(&output)?;
        }
        let received = self.socket.read(&mut self.buffer)?;
        if received == 0 {
            bail!("the server closed the connection");
        }
        self.client.handle_bytes(&self.buffer[..received])?;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.client.submit(ClientCommand::Flush)?;
        self.wait_for_reply()
    }

    fn wait_for_reply(&mut self) -> Result<()> {
        loop {
            self.exchange()?;
            if let Some(reply) = self.client.next_reply() {
                return reply
                    .result
                    .map(drop)
                    .map_err(|error| anyhow::anyhow!("the server says {error:?}"));
            }
        }
    }
}
