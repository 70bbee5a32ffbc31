//! Mistakes and warnings, as values and as text with a caret.

use std::fmt::Write as _;

use replicator::admin::{ErrorId, ErrorReport};

use super::source::{Place, SourceFile, Span};

/// One mistake or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Which kind.
    pub id: ErrorId,
    /// What is wrong; no full stop.
    pub message: String,
    /// Where; `None` when no file is to blame.
    pub place: Option<Place>,
    /// Beside the caret: the hint.
    pub label: String,
    /// What to do, when the label does not say it.
    pub next: Option<String>,
}

impl Diagnostic {
    /// One without a place.
    #[must_use]
    pub fn nowhere(id: ErrorId, message: impl Into<String>) -> Self {
        Self {
            id,
            message: message.into(),
            place: None,
            label: String::new(),
            next: None,
        }
    }

    /// The text for people, several lines, each ended.
    #[must_use]
    pub fn render(&self) -> String {
        let word = if self.id.is_warning() {
            "warning"
        } else {
            "error"
        };
        let mut out = format!("{word}[{}]: {}\n", self.id.code(), self.message);
        let mut gutter = 1;
        if let Some(place) = &self.place {
            gutter = place.line.to_string().len();
            let blank = " ".repeat(gutter);
            let before = " ".repeat(place.column - 1);
            let caret = "^".repeat(place.marked);
            let marked = format!("{blank} │ {before}{caret} {}", self.label);
            _ = writeln!(
                out,
                "{blank} ┌─ {}:{}:{}",
                place.path, place.line, place.column
            );
            _ = writeln!(out, "{} │ {}", place.line, place.text);
            _ = writeln!(out, "{}", marked.trim_end());
        }
        if let Some(next) = self.next_step() {
            _ = writeln!(out, "{} = next: {next}", " ".repeat(gutter));
        }
        out
    }

    /// What to do next, unless the label beside the caret says it already.
    fn next_step(&self) -> Option<&str> {
        match &self.next {
            Some(next) => Some(next),
            None if self.place.is_some() && !self.label.is_empty() => None,
            None => self.id.next().first().copied(),
        }
    }
}

impl From<&Diagnostic> for ErrorReport {
    fn from(diagnostic: &Diagnostic) -> Self {
        let why = diagnostic.place.as_ref().map_or_else(String::new, |place| {
            let at = format!("{}:{}:{}", place.path, place.line, place.column);
            if diagnostic.label.is_empty() {
                at
            } else {
                format!("{at}: {}", diagnostic.label)
            }
        });
        let report = Self::new(diagnostic.id, diagnostic.message.clone(), why);
        match &diagnostic.next {
            Some(next) => report.next(next.clone()),
            None => report,
        }
    }
}

/// What the two passes found so far.
#[derive(Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
}

struct Finding {
    span: Option<Span>,
    diagnostic: Diagnostic,
}

impl Findings {
    /// Notes one at a place; returns it for a better next step.
    pub(super) fn at(
        &mut self,
        id: ErrorId,
        span: Span,
        message: impl Into<String>,
        label: impl Into<String>,
    ) -> &mut Diagnostic {
        let diagnostic = Diagnostic {
            label: label.into(),
            ..Diagnostic::nowhere(id, message)
        };
        self.note(Some(span), diagnostic)
    }

    /// Notes one without a place.
    pub(super) fn nowhere(&mut self, id: ErrorId, message: impl Into<String>) -> &mut Diagnostic {
        self.note(None, Diagnostic::nowhere(id, message))
    }

    fn note(&mut self, span: Option<Span>, diagnostic: Diagnostic) -> &mut Diagnostic {
        self.found.push(Finding { span, diagnostic });
        let last = self.found.len() - 1;
        &mut self.found[last].diagnostic
    }

    /// Whether an error is among them.
    pub(super) fn has_errors(&self) -> bool {
        self.found
            .iter()
            .any(|finding| !finding.diagnostic.id.is_warning())
    }

    /// All of them by file and place, those without a place last: the same input gives the same
    /// list.
    pub(super) fn into_diagnostics(mut self, files: &[SourceFile]) -> Vec<Diagnostic> {
        self.found
            .sort_by_key(|finding| (finding.span.is_none(), finding.span, finding.diagnostic.id));
        let placed = self.found.into_iter().map(
            |Finding {
                 span,
                 mut diagnostic,
             }| {
                diagnostic.place = span.and_then(|span| {
                    files
                        .get(span.file)
                        .map(|file| Place::of(file, span.start, span.end))
                });
                diagnostic
            },
        );
        placed.collect()
    }
}
