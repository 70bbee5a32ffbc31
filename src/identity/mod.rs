//! Who is a node of the cluster: keys, certificates, and the tokens by which a node comes to have them.
//!
//! ```text
//! init ── authority ──▶ files of the first node, tokens
//! join ── token, message ── TLS pinned to the authority ──▶ certificate, secret ──▶ files
//! daemon ── files ──▶ peers (TLS between nodes), sealing (datagrams), tokens (who may join)
//! ```
//!
//! Owns what is in `keys/` of a state directory. Knows neither threads nor what is said within TLS.
//! [`token`] and [`message`] are pure; the rest needs the feature `identity`.
//!
//! Invariant: a private key never leaves the directory it was made in, and nothing secret is in the
//! `Debug` form of anything here. See docs/decisions/0017.

#[cfg(feature = "identity")]
pub mod authority;
#[cfg(feature = "identity")]
pub mod files;
#[cfg(feature = "identity")]
pub mod joining;
pub mod message;
#[cfg(feature = "identity")]
pub mod peers;
#[cfg(feature = "identity")]
pub mod sealing;
#[cfg(feature = "identity")]
pub mod stream;
pub mod token;
#[cfg(feature = "identity")]
pub mod tokens;

#[cfg(test)]
#[cfg(feature = "identity")]
mod tests;

/// Bytes of the cluster's secret, from which the keys of datagrams are derived.
pub const SECRET_LEN: usize = 32;
