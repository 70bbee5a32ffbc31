//! Bodies of the fuzz targets as ordinary functions, so that a plain test can smoke-run them.

#![forbid(unsafe_code)]

pub mod nbd;
