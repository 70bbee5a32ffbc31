//! What a node is given to join by, and what the two ends of a join say.
//!
//! Beyond "does not panic": what was understood can be said again and means the same, and each value
//! has one text.

// SPDX-License-Identifier: MIT OR Apache-2.0

use twinblk::identity::message::{JoinRequest, encode_answer, parse_answer};
use twinblk::identity::token::Token;

const PREFIX: &str = "tbj1.";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Fuzzes a token and both messages: one byte of choices, then bytes of which the checksum of a token may
/// be made right, as no fuzzer finds it.
pub fn join(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else {
        return;
    };
    text(&String::from_utf8_lossy(bytes));
    let mut content = bytes.to_vec();
    if choice & 1 != 0 {
        content.extend(crc32c::crc32c(&content).to_le_bytes());
    }
    text(&format!("{PREFIX}{}", base64(&content)));
    if let Some(request) = JoinRequest::parse(bytes) {
        assert_eq!(request.encode(), bytes, "one form of a request");
    }
    if let Some(answer) = parse_answer(bytes) {
        assert_eq!(encode_answer(&answer), bytes, "one form of an answer");
    }
}

fn text(text: &str) {
    if let Ok(token) = Token::parse(text) {
        assert_eq!(token.encode(), text.trim(), "one text of a token");
    }
}

fn base64(bytes: &[u8]) -> String {
    let digit = |bits: u32| char::from(ALPHABET[(bits & 63) as usize]);
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..=group.len() {
            text.push(digit(bits >> (18 - 6 * at)));
        }
    }
    text
}
