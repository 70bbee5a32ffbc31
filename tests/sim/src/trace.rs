//! What happened, as a hash always and as text on demand.
//!
//! The hash is what "the same seed gives the same run" means; the text is only made when a run is
//! repeated to be looked at.

use std::collections::VecDeque;
use std::fmt;

use crate::clock::SimTime;

/// Lines kept for a failure report.
const LINES_MAX: usize = 40_000;

/// A run's trace.
#[derive(Clone, Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    text: bool,
    lines: VecDeque<String>,
}

impl Trace {
    /// An empty trace; with `text` it also keeps the last lines.
    #[must_use]
    pub fn new(text: bool) -> Self {
        Self {
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            text,
            lines: VecDeque::new(),
        }
    }

    /// One event: `code` must tell it apart from any other that could have happened instead.
    pub fn note(&mut self, now: SimTime, code: u64) {
        self.events += 1;
        for word in [now.0, code] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.hash ^= self.hash >> 29;
        }
    }

    /// A line for people; `line` is only called when text is kept.
    pub fn say(&mut self, now: SimTime, line: impl FnOnce() -> String) {
        if !self.text {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        let seconds = now.0 / 1_000_000_000;
        let micros = now.0 / 1_000 % 1_000_000;
        self.lines
            .push_back(format!("{seconds:3}.{micros:06} {}", line()));
    }

    /// Whether text is kept.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.text
    }

    /// The hash so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// A short hash of a value's debug text, for codes of rare events.
#[must_use]
pub fn code_of(value: &impl fmt::Debug) -> u64 {
    struct Fnv(u64);
    impl fmt::Write for Fnv {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
            Ok(())
        }
    }
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    fmt::write(&mut hash, format_args!("{value:?}")).expect("hashing does not fail");
    hash.0
}
