//! What campaigns kept: inputs of up to 400 bytes that reach code no shorter one reaches, packed one
//! behind the other, each after its length (two bytes, big-endian).
//!
//! `TWINBLK_FUZZ_UNPACK=DIR cargo test --no-default-features corpora` puts them into `DIR/TARGET/`, for
//! libFuzzer to begin with.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs;
use std::path::Path;

/// A target, its body, and what was kept of it.
type Corpus = (&'static str, fn(&[u8]), &'static [u8]);

const CORPORA: [Corpus; 3] = [
    (
        "nbd_handshake",
        crate::nbd::handshake,
        include_bytes!("../corpora/nbd_handshake"),
    ),
    (
        "nbd_transmission",
        crate::nbd::transmission,
        include_bytes!("../corpora/nbd_transmission"),
    ),
    (
        "nbd_client",
        crate::nbd::client,
        include_bytes!("../corpora/nbd_client"),
    ),
];

fn inputs(mut packed: &[u8]) -> Vec<&[u8]> {
    let mut inputs = Vec::new();
    while let Some((len, rest)) = packed.split_first_chunk::<2>() {
        let (input, rest) = rest.split_at(u16::from_be_bytes(*len).into());
        inputs.push(input);
        packed = rest;
    }
    inputs
}

#[test]
fn what_earlier_campaigns_kept_breaks_nothing() {
    let unpack = std::env::var_os("TWINBLK_FUZZ_UNPACK");
    for (target, body, packed) in CORPORA {
        let inputs = inputs(packed);
        assert!(inputs.len() > 50, "{target}: {}", inputs.len());
        for (nr, input) in inputs.into_iter().enumerate() {
            body(input);
            if let Some(dir) = &unpack {
                let dir = Path::new(dir).join(target);
                fs::create_dir_all(&dir).unwrap();
                fs::write(dir.join(nr.to_string()), input).unwrap();
            }
        }
    }
}
