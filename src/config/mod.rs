//! The configuration: TOML text in, a checked [`Config`] or every mistake at once out.
//!
//! Owns the file format, its defaults, its rules and its words for mistakes. Knows no file but in
//! [`load`], and neither the node it runs on nor the state of any disk. Once a `Config` exists its
//! parts need no second look: names are valid, there are exactly two data nodes, each resource has
//! its volume with a device and a metadata area on each of them.
//!
//! ```text
//! load (files) → SourceFile → read (shape: types, keys, units) → rules (cluster) → Config
//!                                         └──────── Diagnostic ────────┘
//! ```

pub mod canonical;
mod diagnostic;
mod difference;
mod effect;
mod failback;
mod load;
mod nbd;
mod reader;
mod rules;
mod shape;
mod source;
mod subject;
mod types;
mod units;
mod volumes;

use replicator::admin::ErrorId;
use toml::de::DeTable;

pub use diagnostic::Diagnostic;
use diagnostic::Findings;
pub use difference::{Difference, UsedTwice, device_used_twice};
pub use failback::failback_text;
pub use load::{Scope, load, load_file};
use source::Span;
pub use source::{FileKind, Place, SourceFile};
pub use subject::{AttributeKind, CertificateSubject};
pub use types::{
    Config, DemoteStep, GuestConfig, LogConfig, LogTarget, MetricsConfig, NbdConfig, NetConfig,
    NodeConfig, NodeRole, OnNoQuorum, QuorumConfig, Rate, ReplicaPaths, ResourceConfig,
    ResyncConfig, TimingProfile, Tls, VerifyConfig, VolumeConfig, Watchdog,
};
pub use units::{NAME_LEN_MAX, duration_text, parse_duration, parse_rate, parse_size, size_text};

/// A configuration that holds, and what is odd about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// Warnings only, by file and place.
    pub warnings: Vec<Diagnostic>,
}

/// Checks files against each other. Pure: equal files give equal answers.
///
/// # Errors
/// Every mistake at once, warnings among them, by file and place; at least one is an error.
pub fn parse(files: &[SourceFile]) -> Result<Checked, Vec<Diagnostic>> {
    let mut found = Findings::default();
    let parsed: Vec<_> = files
        .iter()
        .map(|file| DeTable::parse_recoverable(&file.text))
        .collect();
    let mut draft = shape::Draft::default();
    let mut all_read = true;
    for (index, (file, (table, errors))) in files.iter().zip(&parsed).enumerate() {
        for error in errors {
            let span = Span::new(index, error.span().unwrap_or(0..0));
            found.at(
                ErrorId::ConfigSyntax,
                span,
                "this is not TOML",
                error.message(),
            );
        }
        if errors.is_empty() {
            shape::read_file(file.kind, index, table.get_ref(), &mut draft, &mut found);
        } else {
            // What the parser made of a broken file would only give misleading messages.
            all_read = false;
        }
    }
    let config = if all_read {
        rules::check(draft, &mut found)
    } else {
        None
    };
    let failed = found.has_errors();
    let diagnostics = found.into_diagnostics(files);
    match config {
        Some(config) if !failed => Ok(Checked {
            config,
            warnings: diagnostics,
        }),
        _ => Err(diagnostics),
    }
}

impl Config {
    /// Whether everything travels in clear text beyond this machine.
    #[must_use]
    pub fn is_insecure(&self) -> bool {
        self.net.tls == Tls::Off && self.net.insecure && !self.is_loopback()
    }
}

#[cfg(test)]
mod tests;
