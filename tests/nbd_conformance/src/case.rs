//! What a case is, and how it ends.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;

use crate::target::Context;
use crate::wire::Style;

/// How binding the sentence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Must,
    Should,
}

impl Level {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
        }
    }
}

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The server breached the sentence.
    Failed(String),
    /// The sentence does not apply: the server does not offer what it is about.
    Skipped(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Failed(why) | Self::Skipped(why)) = self;
        f.write_str(why)
    }
}

pub(crate) type Verdict<T = ()> = Result<T, Stop>;

pub(crate) fn fail<T>(why: impl Into<String>) -> Verdict<T> {
    Err(Stop::Failed(why.into()))
}

pub(crate) fn skip<T>(why: impl Into<String>) -> Verdict<T> {
    Err(Stop::Skipped(why.into()))
}

/// Fails unless the condition holds.
pub(crate) fn ensure(holds: bool, why: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { fail(why()) }
}

/// Fails unless both are the same.
pub(crate) fn same<T: PartialEq + fmt::Debug>(what: &str, found: T, wanted: T) -> Verdict {
    ensure(found == wanted, || {
        format!("{what}: {found:?} instead of {wanted:?}")
    })
}

/// One sentence of the specification.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    /// The heading that the sentence stands under.
    pub(crate) section: &'static str,
    /// The sentence, shortened.
    pub(crate) says: &'static str,
    pub(crate) run: fn(&Context<'_>) -> Verdict,
    styles: &'static [Style],
}

impl Case {
    /// Reply styles to run it with; one where they make no difference.
    pub(crate) fn styles(&self) -> impl Iterator<Item = Style> {
        self.styles.iter().copied()
    }

    pub(crate) fn name_in(&self, style: Style) -> String {
        if self.styles.len() == 1 {
            self.name.to_owned()
        } else {
            format!("{}/{}", self.name, style.word())
        }
    }

    /// To be run with simple replies, structured replies and extended headers.
    pub(crate) const fn in_each_style(self) -> Self {
        Self {
            styles: &[Style::Simple, Style::Structured, Style::Extended],
            ..self
        }
    }

    /// To be run wherever replies are chunks.
    pub(crate) const fn in_chunked_styles(self) -> Self {
        Self {
            styles: &[Style::Structured, Style::Extended],
            ..self
        }
    }

    /// To be run with extended headers.
    pub(crate) const fn extended(self) -> Self {
        Self {
            styles: &[Style::Extended],
            ..self
        }
    }
}

/// A sentence with MUST; run with simple replies.
pub(crate) const fn must(
    name: &'static str,
    section: &'static str,
    says: &'static str,
    run: fn(&Context<'_>) -> Verdict,
) -> Case {
    Case {
        name,
        level: Level::Must,
        section,
        says,
        run,
        styles: &[Style::Simple],
    }
}

/// A sentence with SHOULD; run with simple replies.
pub(crate) const fn should(
    name: &'static str,
    section: &'static str,
    says: &'static str,
    run: fn(&Context<'_>) -> Verdict,
) -> Case {
    Case {
        level: Level::Should,
        ..must(name, section, says, run)
    }
}
