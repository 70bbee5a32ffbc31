//! `nbd://`, `nbds://` and `nbd+unix://` (doc/uri.md of NetworkBlockDevice/nbd).

// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::PathBuf;

/// Where a server is and which of its exports is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Uri {
    pub(crate) endpoint: Endpoint,
    pub(crate) export: String,
    /// The host without its port, for its certificate.
    pub(crate) host: String,
    /// Where the certificates for TLS are, if there is to be TLS.
    pub(crate) tls: Option<PathBuf>,
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
                host: String::new(),
                tls: None,
            });
        }
        let (rest, is_secure) = match (text.strip_prefix("nbd://"), text.strip_prefix("nbds://")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => {
                return Err("only nbd://, nbds:// and nbd+unix:// are understood".into());
            }
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let dir = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("tls-certificates="));
        let tls = match (is_secure, dir) {
            (false, _) => None,
            (true, Some(dir)) => Some(decoded(dir)?.into()),
            (true, None) => return Err("a tls-certificates=DIR is missing".to_owned()),
        };
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.contains(']'));
        let address = if has_port {
            host.to_owned()
        } else {
            format!("{host}:{PORT}")
        };
        Ok(Self {
            host: bare(&address),
            endpoint: Endpoint::Tcp(address),
            export: export(path)?,
            tls,
        })
    }
}

/// The host of an address with a port.
fn bare(address: &str) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_matches(['[', ']']).to_owned()
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
        let secure = Uri::parse("nbds://[::1]:7/a?tls-certificates=%2fd&x=y").unwrap();
        assert_eq!(secure.tls, Some("/d".into()));
        assert_eq!((&*secure.host, &*secure.export), ("::1", "a"));
        assert_eq!(Uri::parse("nbd://host/a").unwrap().tls, None);
        assert!(Uri::parse("nbds://host/a").is_err());
        assert!(Uri::parse("http://host").is_err());
        assert!(Uri::parse("nbd+unix:///a").is_err());
    }
}
