//! `nbd://` and `nbd+unix://` (doc/uri.md of NetworkBlockDevice/nbd), without TLS.

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::PathBuf;

/// Where a server is and which of its exports is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uri {
    pub(crate) endpoint: Endpoint,
    pub(crate) export: String,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// Host and port, as `connect` takes them.
    Tcp(String),
    Unix(PathBuf),
}

const PORT: &str = "10809";

impl Uri {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("nbd+unix://") {
            let (path, query) = rest.split_once('?').ok_or("a socket=PATH is missing")?;
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="));
            return Ok(Self {
                endpoint: Endpoint::Unix(
                    decoded(socket.ok_or("a socket=PATH is missing")?)?.into(),
                ),
                export: export(path)?,
            });
        }
        let rest = text
            .strip_prefix("nbd://")
            .ok_or("only nbd:// and nbd+unix:// are understood")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port {
            host.to_owned()
        } else {
            format!("{host}:{PORT}")
        };
        Ok(Self {
            endpoint: Endpoint::Tcp(address),
            export: export(path)?,
        })
    }
}

fn export(path: &str) -> Result<String, String> {
    decoded(path.strip_prefix('/').unwrap_or(path))
}

/// Undoes `%xx`.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (hex, tail) = rest.split_at_checked(2).ok_or("a % without two digits")?;
        let hex = std::str::from_utf8(hex).map_err(|_| "a % without two digits")?;
        bytes.push(u8::from_str_radix(hex, 16).map_err(|_| "a % without two digits")?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| "the URI is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Endpoint, String) {
        let uri = Uri::parse(text).unwrap();
        (uri.endpoint, uri.export)
    }

    #[test]
    fn both_transports_are_understood() {
        let unix = |path: &str| Endpoint::Unix(path.into());
        let tcp = |address: &str| Endpoint::Tcp(address.to_owned());
        assert_eq!(
            parsed("nbd+unix:///vm-web?socket=/run/a%20b.sock"),
            (unix("/run/a b.sock"), "vm-web".to_owned())
        );
        assert_eq!(parsed("nbd+unix://?socket=s"), (unix("s"), String::new()));
        assert_eq!(
            parsed("nbd://host/a/1"),
            (tcp("host:10809"), "a/1".to_owned())
        );
        assert_eq!(parsed("nbd://[::1]"), (tcp("[::1]:10809"), String::new()));
        assert_eq!(parsed("nbd://[::1]:7"), (tcp("[::1]:7"), String::new()));
        assert!(Uri::parse("http://host").is_err());
        assert!(Uri::parse("nbd+unix:///a").is_err());
    }
}
