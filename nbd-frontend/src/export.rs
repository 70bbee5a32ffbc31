//! What a connection may attach to.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::sync::Arc;

use crate::proto::constants::{STRING_LEN_MAX, transmission_flag as flag};
use crate::proto::reply::ReplyStyle;

/// Whether writes are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Reads and writes.
    #[default]
    ReadWrite,
    /// Reads only; every write is answered EPERM.
    ReadOnly,
}

/// Why a client does not get an export, in words for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody gets it now. LIST shows it all the same.
    NotNow(String),
    /// Not this client. LIST does not show it.
    NotAllowed(String),
}

impl Refusal {
    /// The words.
    #[must_use]
    pub fn text(&self) -> &str {
        let (Self::NotNow(text) | Self::NotAllowed(text)) = self;
        text
    }
}

/// One volume as one client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Name in LIST and INFO; not empty, UTF-8 without NUL, at most 4096 bytes.
    pub name: String,
    /// Other names that are accepted but not listed.
    pub aliases: Vec<String>,
    /// Text for people; may be empty, at most 4096 bytes.
    pub description: String,
    /// Size in bytes, below 2^63 (clients treat offsets as signed).
    pub size: u64,
    /// Whether writes are served.
    pub access: Access,
    /// Whether LIST names it.
    pub listed: bool,
    /// Why this client does not get it, if it does not.
    pub refusal: Option<Refusal>,
}

impl Export {
    /// A writable export without aliases and description.
    #[must_use]
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            aliases: Vec::new(),
            description: String::new(),
            size,
            access: Access::ReadWrite,
            listed: true,
            refusal: None,
        }
    }

    /// The same bytes, to be read only, under names of its own that LIST does not show.
    #[must_use]
    pub fn read_only(&self, name: impl Into<String>, aliases: Vec<String>) -> Self {
        Self {
            name: name.into(),
            aliases,
            access: Access::ReadOnly,
            listed: false,
            ..self.clone()
        }
    }

    /// Whether this client may never have it.
    pub(crate) fn is_forbidden(&self) -> bool {
        matches!(self.refusal, Some(Refusal::NotAllowed(_)))
    }

    /// Transmission flags as sent in the handshake.
    #[must_use]
    pub fn transmission_flags(&self, style: ReplyStyle) -> u16 {
        let base = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE;
        let access = match self.access {
            Access::ReadWrite => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO,
            Access::ReadOnly => flag::READ_ONLY,
        };
        let df = match style {
            ReplyStyle::Simple => 0,
            ReplyStyle::Structured | ReplyStyle::Extended => flag::SEND_DF,
        };
        base | access | df
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    fn check(&self) -> Result<(), ExportError> {
        for name in std::iter::once(&self.name).chain(&self.aliases) {
            if name.is_empty() || name.len() > STRING_LEN_MAX || name.contains('\0') {
                return Err(ExportError::Name { name: name.clone() });
            }
        }
        if self.description.len() > STRING_LEN_MAX || self.description.contains('\0') {
            return Err(ExportError::Description {
                name: self.name.clone(),
            });
        }
        if self.size > i64::MAX.unsigned_abs() {
            return Err(ExportError::Size {
                name: self.name.clone(),
                size: self.size,
            });
        }
        Ok(())
    }
}

/// Position of an export in its [`ExportList`]; the volume number when volumes are listed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportIndex(pub usize);

/// The exports behind one socket, immutable and cheap to share between its connections.
///
/// The first one is the default export, which the empty name finds, unless there is none.
#[derive(Debug, Clone)]
pub struct ExportList {
    exports: Arc<[Export]>,
    has_default: bool,
}

/// Why a list of exports cannot be offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Empty, too long, or with a NUL.
    #[error("export name {name:?} must have 1 to 4096 bytes and no NUL")]
    Name {
        /// The name in question.
        name: String,
    },
    /// Too long, or with a NUL.
    #[error("description of export {name:?} must have at most 4096 bytes and no NUL")]
    Description {
        /// Name of the export.
        name: String,
    },
    /// 2^63 bytes or more.
    #[error("export {name:?} has {size} bytes; NBD clients take less than 2^63")]
    Size {
        /// Name of the export.
        name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// Two exports answer to one name.
    #[error("two exports answer to the name {name:?}")]
    Duplicate {
        /// The name in question.
        name: String,
    },
}

impl ExportList {
    /// Checks and takes the exports; the first is the default. An empty list is allowed: every
    /// client is then told that its export is unknown.
    pub fn new(exports: Vec<Export>) -> Result<Self, ExportError> {
        let mut names: Vec<&str> = Vec::new();
        for export in &exports {
            export.check()?;
            names.push(&export.name);
            names.extend(export.aliases.iter().map(String::as_str));
        }
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ExportError::Duplicate {
                name: pair[0].to_owned(),
            });
        }
        Ok(Self {
            exports: exports.into(),
            has_default: true,
        })
    }

    /// The list of a client that may not ask for anything yet.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            exports: Arc::default(),
            has_default: false,
        }
    }

    /// The same list, of which every export must be asked for by its name.
    #[must_use]
    pub fn without_default(self) -> Self {
        Self {
            has_default: false,
            ..self
        }
    }

    /// Finds an export by name, alias, or the empty name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<ExportIndex> {
        if name.is_empty() {
            return (self.has_default && !self.exports.is_empty()).then_some(ExportIndex(0));
        }
        self.exports
            .iter()
            .position(|export| export.is_called(name))
            .map(ExportIndex)
    }

    /// The export at `index`, if there is one.
    #[must_use]
    pub fn get(&self, index: ExportIndex) -> Option<&Export> {
        self.exports.get(index.0)
    }

    /// All exports in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Export> {
        self.exports.iter()
    }
}

impl<'a> IntoIterator for &'a ExportList {
    type Item = &'a Export;
    type IntoIter = std::slice::Iter<'a, Export>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_the_empty_name_find_their_export() {
        let mut first = Export::new("r0", 4096);
        first.aliases.push("r0/0".to_owned());
        let list = ExportList::new(vec![first, Export::new("r0/1", 8192)]).unwrap();
        assert_eq!(list.find(""), Some(ExportIndex(0)));
        assert_eq!(list.find("r0"), Some(ExportIndex(0)));
        assert_eq!(list.find("r0/0"), Some(ExportIndex(0)));
        assert_eq!(list.find("r0/1"), Some(ExportIndex(1)));
        assert_eq!(list.find("r"), None);
        assert_eq!(ExportList::new(vec![]).unwrap().find(""), None);
        let list = list.without_default();
        assert_eq!(list.find(""), None);
        assert_eq!(list.find("r0"), Some(ExportIndex(0)));
    }

    #[test]
    fn exports_that_cannot_be_offered_are_refused() {
        let refused = |export| ExportList::new(vec![export]).unwrap_err();
        assert!(matches!(
            refused(Export::new("", 1)),
            ExportError::Name { .. }
        ));
        assert!(matches!(
            refused(Export::new("a\0", 1)),
            ExportError::Name { .. }
        ));
        assert!(matches!(
            refused(Export::new("a", 1 << 63)),
            ExportError::Size { .. }
        ));
        let twice = vec![Export::new("a", 1), Export::new("a", 2)];
        assert_eq!(
            ExportList::new(twice).unwrap_err(),
            ExportError::Duplicate {
                name: "a".to_owned()
            }
        );
    }

    #[test]
    fn transmission_flags_follow_access_and_reply_style() {
        let mut export = Export::new("a", 1);
        assert_eq!(
            export.transmission_flags(ReplyStyle::Simple),
            0b1101_0110_1101
        );
        assert_eq!(
            export.transmission_flags(ReplyStyle::Structured),
            0b1101_1110_1101
        );
        export.access = Access::ReadOnly;
        assert_eq!(
            export.transmission_flags(ReplyStyle::Simple),
            0b101_0000_1111
        );
    }
}
