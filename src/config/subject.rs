//! Subjects of certificates as `nbd-allow` names them.

use std::fmt::{self, Write as _};

/// Attributes that a subject may have here, with the words of RFC 4514 and of `openssl`.
const KINDS: [(AttributeKind, &str); 10] = [
    (AttributeKind::CommonName, "CN"),
    (AttributeKind::OrganizationalUnit, "OU"),
    (AttributeKind::Organization, "O"),
    (AttributeKind::Locality, "L"),
    (AttributeKind::State, "ST"),
    (AttributeKind::Country, "C"),
    (AttributeKind::DomainComponent, "DC"),
    (AttributeKind::UserId, "UID"),
    (AttributeKind::SerialNumber, "serialNumber"),
    (AttributeKind::EmailAddress, "emailAddress"),
];

/// Type of one attribute of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names say it")]
pub enum AttributeKind {
    CommonName,
    OrganizationalUnit,
    Organization,
    Locality,
    State,
    Country,
    DomainComponent,
    UserId,
    SerialNumber,
    EmailAddress,
}

impl AttributeKind {
    fn word(self) -> &'static str {
        let known = KINDS.iter().find(|(kind, _)| *kind == self);
        known.map_or("?", |(_, word)| word)
    }
}

/// The whole subject of a certificate.
///
/// Two are equal if they have the same attributes with the same values, byte for byte: one attribute
/// more, or another case, is another subject. Only the order does not count, because programs print
/// it in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSubject(Vec<(AttributeKind, String)>);

impl CertificateSubject {
    /// Of these attributes; `None` for none, and for a value that is empty or has control
    /// characters, which nobody could write or tell apart on a screen.
    #[must_use]
    pub fn new(mut attributes: Vec<(AttributeKind, String)>) -> Option<Self> {
        let proper = |value: &str| !value.is_empty() && !value.chars().any(char::is_control);
        let all_proper = attributes.iter().all(|(_, value)| proper(value));
        attributes.sort();
        (all_proper && !attributes.is_empty()).then_some(Self(attributes))
    }

    /// Reads `CN=kvm-a,O=Example`: attributes by comma, a backslash before a comma or backslash that
    /// belongs to a value.
    ///
    /// # Errors
    /// A hint what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let attributes: Result<Vec<_>, String> =
            split(text)?.iter().map(|part| attribute(part)).collect();
        Self::new(attributes?).ok_or_else(|| "a value is empty or has control characters".into())
    }
}

impl fmt::Display for CertificateSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (kind, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}=", kind.word())?;
            for c in value.chars() {
                if matches!(c, ',' | '\\') {
                    f.write_char('\\')?;
                }
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// The parts between bare commas, without their backslashes.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let taken = match c {
            ',' => {
                parts.push(String::new());
                continue;
            }
            '\\' => match chars.next() {
                Some(escaped @ (',' | '\\')) => escaped,
                _ => return Err("a backslash stands before a comma or a backslash".to_owned()),
            },
            other => other,
        };
        if let Some(part) = parts.last_mut() {
            part.push(taken);
        }
    }
    Ok(parts)
}

fn attribute(part: &str) -> Result<(AttributeKind, String), String> {
    let example = "write the whole subject, such as \"CN=kvm-a\" or \"CN=kvm-a,O=Example\"";
    let (word, value) = part.split_once('=').ok_or(example)?;
    let word = word.trim_start();
    let known = KINDS.iter().find(|(_, known)| *known == word);
    let (kind, _) = known.ok_or_else(|| {
        let words: Vec<_> = KINDS.iter().map(|(_, word)| *word).collect();
        format!("attributes are {}", words.join(", "))
    })?;
    Ok((*kind, value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(text: &str) -> CertificateSubject {
        CertificateSubject::parse(text).unwrap()
    }

    #[test]
    fn only_the_order_of_attributes_does_not_count() {
        let whole = subject("CN=kvm-a,O=Example\\, Ltd");
        assert_eq!(whole, subject("O=Example\\, Ltd, CN=kvm-a"));
        for other in [
            "CN=kvm-a",
            "CN=kvm-b,O=Example\\, Ltd",
            "CN=KVM-A,O=Example\\, Ltd",
            "CN=kvm-a ,O=Example\\, Ltd",
            "CN=kvm-a,O=Example\\, Ltd,C=DE",
            "CN=kvm-a,CN=kvm-a,O=Example\\, Ltd",
            "O=kvm-a,CN=Example\\, Ltd",
        ] {
            assert_ne!(whole, subject(other), "{other}");
        }
    }

    #[test]
    fn what_is_printed_reads_back() {
        for text in ["CN=a", "CN=a\\,b\\\\c,O=x=y", "CN=ä,emailAddress=a@b,DC=d"] {
            let read = subject(text);
            assert_eq!(subject(&read.to_string()), read, "{text}");
        }
    }

    #[test]
    fn what_is_no_subject_is_refused() {
        for text in [
            "", "kvm-a", "CN=", "CN=a,", "cn=a", "X=a", "CN=a\\", "CN=\\a", "CN=a\nb",
        ] {
            assert!(CertificateSubject::parse(text).is_err(), "{text:?}");
        }
    }
}
