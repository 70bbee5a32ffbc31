//! Bounds on what one connection may cost, each with its reason.

// SPDX-License-Identifier: MIT OR Apache-2.0

/// Longest option data in bytes. The largest sensible option is a 4 KiB name and a few dozen
/// metadata queries; more is an attempt to make the server hold memory before it knows the client.
pub const OPTION_LEN_MAX: u32 = 64 << 10;

/// Options in one handshake. Real clients send four; tools that list and ask about every export of
/// a socket send a few per export.
pub const OPTION_COUNT_MAX: u32 = 128;

/// Requests submitted and not completed. QEMU sends 16, fio and nbdcopy 64, the kernel 128.
pub const REQUEST_COUNT_MAX: usize = 128;

/// Payload bytes, read and written, of requests submitted and not completed. Three of the largest
/// advertised requests, and room for the largest accepted one while smaller ones are in flight.
pub const REQUEST_BYTES_MAX: u64 = 96 << 20;

/// Extents in one chunk of a block status: 16 KiB at most. The rest is asked for again.
pub const STATUS_EXTENT_COUNT_MAX: usize = 1024;

/// Bytes emitted and not yet reported as sent beyond which no further request is taken, so that a
/// client that does not read its replies stalls only itself. Large enough to keep a fast socket
/// busy while the next requests are parsed.
pub const UNSENT_BYTES_MAX: usize = 8 << 20;

/// Shortest write payload in bytes worth receiving straight into its buffer; shorter ones arrive
/// together with their neighbours in one receive.
pub const DIRECT_RECEIVE_LEN_MIN: usize = 64 << 10;

/// Shortest missing part in bytes worth a receive of its own.
pub const DIRECT_RECEIVE_TAIL_MIN: usize = 4 << 10;
