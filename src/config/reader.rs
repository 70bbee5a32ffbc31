//! One table of a file, read key by key. What is read is known; what is left is a mistake.

use std::net::SocketAddr;
use std::time::Duration;

use replicator::admin::ErrorId;
use replicator::types::Failback;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Findings;
use super::failback::parse_failback;
use super::source::{Located, Span};
use super::types::{DemoteStep, Rate};
use super::units::{did_you_mean, parse_demote_steps, parse_duration, parse_rate, parse_size};

/// A table being read.
pub(super) struct Section<'a> {
    file: usize,
    /// For people: "resource `vm-web`", "`[net]`".
    what: String,
    table: &'a DeTable<'a>,
    span: Span,
    known: Vec<&'static str>,
}

/// Words a key may have, with their values.
pub(super) type Words<'w, T> = &'w [(&'static str, T)];

impl<'a> Section<'a> {
    /// The whole of a file.
    pub(super) fn root(file: usize, table: &'a DeTable<'a>) -> Self {
        let what = "this file".to_owned();
        Self::new(file, what, table, Span::new(file, 0..0))
    }

    fn new(file: usize, what: String, table: &'a DeTable<'a>, span: Span) -> Self {
        Self {
            file,
            what,
            table,
            span,
            known: Vec::new(),
        }
    }

    /// Its name for people.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    /// A value by its key, which is known from now on.
    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.accept(key);
        self.table.get(key)
    }

    /// Makes `key` known without reading it.
    pub(super) fn accept(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// Place of a key.
    pub(super) fn key_span(&self, key: &str) -> Option<Span> {
        let (name, _) = self.table.get_key_value(key)?;
        Some(Span::new(self.file, name.span()))
    }

    /// Ends the reading: warns of the keys of `no_effect` that are written, and reports the keys
    /// nobody asked for.
    pub(super) fn finish(self, no_effect: &[&str], found: &mut Findings) {
        for (key, _) in self.table {
            let (name, span) = (key.get_ref().as_ref(), Span::new(self.file, key.span()));
            if no_effect.contains(&name) {
                let message = format!("`{name}` in {} has no effect yet", self.what);
                found.at(
                    ErrorId::NoEffectYet,
                    span,
                    message,
                    "kept for the version that uses it",
                );
            } else if !self.known.contains(&name) {
                let message = format!("unknown key `{}` in {}", shown(name), self.what);
                let label = did_you_mean(name, self.known.iter().copied()).map_or_else(
                    || self.keys_hint(),
                    |known| format!("did you mean `{known}`?"),
                );
                found.at(ErrorId::UnknownKey, span, message, label);
            }
        }
    }

    fn keys_hint(&self) -> String {
        if self.known.is_empty() {
            return String::new();
        }
        format!("known here: {}", self.known.join(", "))
    }

    /// Reports that `key` is missing, if it is; `example` is what to add.
    pub(super) fn require(&self, key: &str, example: &str, found: &mut Findings) {
        if self.table.get(key).is_none() {
            let message = format!("{} has no `{key}`", self.what);
            found.at(
                ErrorId::MissingKey,
                self.span,
                message,
                format!("add {example}"),
            );
        }
    }

    /// A sub-table.
    pub(super) fn section(
        &mut self,
        key: &'static str,
        what: String,
        found: &mut Findings,
    ) -> Option<Section<'a>> {
        let value = self.value(key)?;
        let at = self.key_span(key);
        self.as_section(value, at, what, found)
    }

    /// The sub-tables of a table whose keys are names, `[node.NAME]`: name and table.
    pub(super) fn named_sections(
        &mut self,
        key: &'static str,
        found: &mut Findings,
    ) -> Vec<(Located<String>, Section<'a>)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let at = self.key_span(key);
        let Some(parent) = self.as_section(value, at, format!("`[{key}]`"), found) else {
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (name, value) in parent.table {
            let text = name.get_ref().as_ref().to_owned();
            let span = Span::new(self.file, name.span());
            let what = format!("{key} `{}`", shown(&text));
            if let Some(section) = self.as_section(value, Some(span), what, found) {
                sections.push((Located { value: text, span }, section));
            }
        }
        sections
    }

    /// The tables of an array of tables, `[[resource.NAME.volume]]`.
    pub(super) fn repeated_sections(
        &mut self,
        key: &'static str,
        found: &mut Findings,
    ) -> Vec<Section<'a>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let span = self.span_of(value);
        let Some(items) = value.get_ref().as_array() else {
            wrong_type(
                found,
                key,
                value.get_ref(),
                span,
                "tables, each begun by [[...]]",
            );
            return Vec::new();
        };
        refuse_empty(found, key, items.is_empty(), span);
        let items = items.iter().enumerate().filter_map(|(index, item)| {
            let what = format!("{key} {index} of {}", self.what);
            self.as_section(item, Some(self.span_of(item)), what, found)
        });
        items.collect()
    }

    fn as_section(
        &self,
        value: &'a Spanned<DeValue<'a>>,
        at: Option<Span>,
        what: String,
        found: &mut Findings,
    ) -> Option<Section<'a>> {
        let span = at.unwrap_or_else(|| self.span_of(value));
        match value.get_ref().as_table() {
            Some(table) => Some(Section::new(self.file, what, table, span)),
            None => {
                wrong_type(found, &what, value.get_ref(), span, "a table");
                None
            }
        }
    }

    /// A string.
    pub(super) fn string(
        &mut self,
        key: &'static str,
        found: &mut Findings,
    ) -> Option<Located<&'a str>> {
        let value = self.value(key)?;
        self.as_string(key, value, "a string", found)
    }

    fn as_string(
        &self,
        key: &str,
        value: &'a Spanned<DeValue<'a>>,
        wanted: &str,
        found: &mut Findings,
    ) -> Option<Located<&'a str>> {
        let span = self.span_of(value);
        match value.get_ref().as_str() {
            Some(text) => Some(Located { value: text, span }),
            None => {
                wrong_type(found, key, value.get_ref(), span, wanted);
                None
            }
        }
    }

    /// A string that must read as something; the error of `parse` is a hint.
    fn parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        found: &mut Findings,
    ) -> Option<Located<T>> {
        let value = self.value(key)?;
        let text = self.as_string(key, value, wanted, found)?;
        match parse(text.value) {
            Ok(value) => Some(Located {
                value,
                span: text.span,
            }),
            Err(hint) => {
                bad_value(found, key, text.value, text.span, hint);
                None
            }
        }
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, key: &'static str, found: &mut Findings) -> Option<Located<u64>> {
        self.parsed(key, "a size such as \"40GiB\"", parse_size, found)
    }

    /// A length of time.
    pub(super) fn duration(&mut self, key: &'static str, found: &mut Findings) -> Option<Duration> {
        let wanted = "a time such as \"6s\"";
        self.parsed(key, wanted, parse_duration, found)
            .map(|located| located.value)
    }

    /// How long something may take: 0, which is for ever, or `min` at least.
    pub(super) fn patience(
        &mut self,
        key: &'static str,
        min: Duration,
        found: &mut Findings,
    ) -> Option<Duration> {
        let parse = |text: &str| match parse_duration(text)? {
            short if short < min && !short.is_zero() => Err(format!(
                "write at least \"{}ms\", or \"0s\" for no limit",
                min.as_millis()
            )),
            time => Ok(time),
        };
        self.parsed(key, "a time such as \"5s\"", parse, found)
            .map(|located| located.value)
    }

    /// When a resource goes back to its preferred node.
    pub(super) fn failback(&mut self, key: &'static str, found: &mut Findings) -> Option<Failback> {
        let wanted = "\"never\", \"when-synced\" or a time such as \"Sat 02:00\"";
        self.parsed(key, wanted, parse_failback, found)
            .map(|located| located.value)
    }

    /// Steps of `on-demote`.
    pub(super) fn demote_steps(
        &mut self,
        key: &'static str,
        found: &mut Findings,
    ) -> Option<Vec<DemoteStep>> {
        let wanted = "steps such as \"shutdown:60s,destroy\"";
        self.parsed(key, wanted, parse_demote_steps, found)
            .map(|located| located.value)
    }

    /// A rate.
    pub(super) fn rate(&mut self, key: &'static str, found: &mut Findings) -> Option<Rate> {
        let wanted = "a rate such as \"250MiB/s\"";
        self.parsed(key, wanted, parse_rate, found)
            .map(|located| located.value)
    }

    /// An address to listen on; `None` inside means the empty string.
    pub(super) fn listen(
        &mut self,
        key: &'static str,
        found: &mut Findings,
    ) -> Option<Option<SocketAddr>> {
        let parse = |text: &str| match text {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| "write \"IP:PORT\", or \"\" for none".to_owned()),
        };
        self.parsed(key, "\"IP:PORT\"", parse, found)
            .map(|located| located.value)
    }

    /// One of some words.
    pub(super) fn word<T: Clone>(
        &mut self,
        key: &'static str,
        words: Words<'_, T>,
        found: &mut Findings,
    ) -> Option<Located<T>> {
        let names = || words.iter().map(|(word, _)| *word);
        let one_of = names()
            .map(|word| format!("\"{word}\""))
            .collect::<Vec<_>>()
            .join(" | ");
        let parse = |text: &str| {
            let known = words.iter().find(|(word, _)| *word == text);
            known.map(|(_, value)| value.clone()).ok_or_else(|| {
                let close = did_you_mean(text, names());
                close.map_or_else(
                    || one_of.clone(),
                    |word| format!("did you mean \"{word}\"?"),
                )
            })
        };
        self.parsed(key, &one_of, parse, found)
    }

    /// A truth value.
    pub(super) fn boolean(&mut self, key: &'static str, found: &mut Findings) -> Option<bool> {
        let value = self.value(key)?;
        let boolean = value.get_ref().as_bool();
        if boolean.is_none() {
            wrong_type(
                found,
                key,
                value.get_ref(),
                self.span_of(value),
                "true or false",
            );
        }
        boolean
    }

    /// A whole number of `range`.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u32>,
        found: &mut Findings,
    ) -> Option<Located<u32>> {
        let value = self.value(key)?;
        let span = self.span_of(value);
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(integer) = value.get_ref().as_integer() else {
            wrong_type(found, key, value.get_ref(), span, &wanted);
            return None;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => Some(Located {
                value: number,
                span,
            }),
            _ => {
                bad_value(found, key, &integer.to_string(), span, wanted);
                None
            }
        }
    }

    /// A list of strings.
    pub(super) fn strings(
        &mut self,
        key: &'static str,
        found: &mut Findings,
    ) -> Option<Vec<Located<&'a str>>> {
        let value = self.value(key)?;
        let span = self.span_of(value);
        let wanted = "a list of strings";
        let Some(items) = value.get_ref().as_array() else {
            wrong_type(found, key, value.get_ref(), span, wanted);
            return None;
        };
        refuse_empty(found, key, items.is_empty(), span);
        Some(
            items
                .iter()
                .filter_map(|item| self.as_string(key, item, wanted, found))
                .collect(),
        )
    }

    /// A string for all nodes (name `None`) or one for each of some nodes.
    pub(super) fn string_per_node(
        &mut self,
        key: &'static str,
        what: &str,
        found: &mut Findings,
    ) -> Option<Located<PerNode<'a>>> {
        let value = self.value(key)?;
        let span = self.span_of(value);
        let wanted = &format!("a {what}, or {{ NODE = \"{what}\", NODE = \"{what}\" }}");
        let Some(table) = value.get_ref().as_table() else {
            let text = self.as_string(key, value, wanted, found)?;
            return Some(Located {
                value: PerNode::Same(text),
                span,
            });
        };
        let mut each = Vec::new();
        for (name, value) in table {
            let node = Located {
                value: name.get_ref().as_ref(),
                span: Span::new(self.file, name.span()),
            };
            each.push((node, self.as_string(key, value, wanted, found)?));
        }
        Some(Located {
            value: PerNode::Each(each),
            span,
        })
    }

    fn span_of(&self, value: &Spanned<DeValue<'_>>) -> Span {
        Span::new(self.file, value.span())
    }
}

/// A value that may differ between the nodes.
#[derive(Clone, Debug)]
pub(super) enum PerNode<'a> {
    /// On all of them.
    Same(Located<&'a str>),
    /// By node name.
    Each(Vec<(Located<&'a str>, Located<&'a str>)>),
}

/// Reports a list without an item.
fn refuse_empty(found: &mut Findings, key: &str, is_empty: bool, span: Span) {
    if is_empty {
        let message = format!("`{key}` is empty");
        found.at(ErrorId::MissingKey, span, message, "at least one is needed");
    }
}

/// Reports a value that is of the right type but not possible.
pub(super) fn bad_value(
    found: &mut Findings,
    key: &str,
    value: &str,
    span: Span,
    hint: impl Into<String>,
) {
    let message = format!("`{key}` cannot be \"{}\"", shown(value));
    found.at(ErrorId::BadValue, span, message, hint);
}

fn wrong_type(found: &mut Findings, key: &str, value: &DeValue<'_>, span: Span, wanted: &str) {
    let key = if key.contains('`') {
        key.to_owned()
    } else {
        format!("`{key}`")
    };
    let message = format!("{key} is {}", with_article(value.type_str()));
    found.at(
        ErrorId::WrongType,
        span,
        message,
        format!("expected {wanted}"),
    );
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}

/// A word of the file inside a message: one line, not endless, no control characters.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 80;
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push('…');
    }
    shown
}
