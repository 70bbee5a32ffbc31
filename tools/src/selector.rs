//! Which thing a verb is about, in DRBD's form: `RES`, `RES/VOL`, `RES:PEER`, `RES:PEER/VOL`, `all`.

use std::str::FromStr;

/// A selector as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// `None`: all of them.
    pub resource: Option<String>,
    /// One of its peers.
    pub peer: Option<String>,
    /// One of its volumes.
    pub volume: Option<u16>,
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, volume) = match text.split_once('/') {
            Some((rest, volume)) => {
                let number = volume
                    .parse()
                    .map_err(|_| format!("`{volume}` is no volume number"))?;
                (rest, Some(number))
            }
            None => (text, None),
        };
        let (resource, peer) = match rest.split_once(':') {
            Some((_, "")) => return Err("a peer's name follows the colon".to_owned()),
            Some((resource, peer)) => (resource, Some(peer.to_owned())),
            None => (rest, None),
        };
        if resource.is_empty() {
            return Err("write RES, RES/VOL, RES:PEER or all".to_owned());
        }
        let resource = (resource != "all").then(|| resource.to_owned());
        Ok(Self {
            resource,
            peer,
            volume,
        })
    }
}

/// A whole resource or `all`.
///
/// # Errors
/// If a volume or peer is named.
pub(crate) fn whole_resource(text: &str) -> Result<Selector, String> {
    let selector: Selector = text.parse()?;
    match (&selector.peer, selector.volume) {
        (None, None) => Ok(selector),
        _ => Err("this is about whole resources: write RES or all".to_owned()),
    }
}

/// One whole resource by its name.
///
/// # Errors
/// If it is `all`, or a volume or peer is named.
pub(crate) fn one_resource(text: &str) -> Result<Selector, String> {
    whole_resource(text).and_then(|selector| match selector.resource {
        Some(_) => Ok(selector),
        None => Err("one at a time: write RES".to_owned()),
    })
}

/// A resource, or one of its volumes.
///
/// # Errors
/// If a peer is named.
pub(crate) fn with_volume(text: &str) -> Result<Selector, String> {
    let selector: Selector = text.parse()?;
    match selector.peer {
        None => Ok(selector),
        Some(_) => Err("this is about the local disk: write RES or RES/VOL".to_owned()),
    }
}

/// One resource by its name, or one of its volumes.
///
/// # Errors
/// If it is `all`, or a peer is named.
pub(crate) fn one_volume(text: &str) -> Result<Selector, String> {
    with_volume(text).and_then(|selector| match selector.resource {
        Some(_) => Ok(selector),
        None => Err("one at a time: write RES or RES/VOL".to_owned()),
    })
}

/// A resource, or one of its peers.
///
/// # Errors
/// If a volume is named.
pub(crate) fn with_peer(text: &str) -> Result<Selector, String> {
    let selector: Selector = text.parse()?;
    match selector.volume {
        None => Ok(selector),
        Some(_) => Err("volumes share one connection: write RES or RES:PEER".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_four_forms_and_all_are_read() {
        let selector = |resource: Option<&str>, peer: Option<&str>, volume| Selector {
            resource: resource.map(str::to_owned),
            peer: peer.map(str::to_owned),
            volume,
        };
        assert_eq!("r".parse(), Ok(selector(Some("r"), None, None)));
        assert_eq!("r/1".parse(), Ok(selector(Some("r"), None, Some(1))));
        assert_eq!("r:p".parse(), Ok(selector(Some("r"), Some("p"), None)));
        assert_eq!("r:p/0".parse(), Ok(selector(Some("r"), Some("p"), Some(0))));
        assert_eq!("all".parse(), Ok(selector(None, None, None)));
    }

    #[test]
    fn halves_and_nonsense_are_refused() {
        for bad in ["", "/0", ":p", "r:", "r/", "r/x", "r/-1", "r/65536"] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
        assert!(whole_resource("r/0").is_err());
        assert!(with_volume("r:p").is_err());
        assert!(one_volume("r/1").is_ok() && one_volume("all").is_err());
        assert!(with_peer("r/0").is_err());
    }
}
