//! Bodies of the fuzz targets as ordinary functions, so that a plain test can smoke-run them.

// SPDX-License-Identifier: MIT OR Apache-2.0

#![forbid(unsafe_code)]

pub mod joining;
pub mod metadata;
pub mod nbd;
pub mod peer;

#[cfg(test)]
mod corpora;
#[cfg(test)]
mod smoke;
