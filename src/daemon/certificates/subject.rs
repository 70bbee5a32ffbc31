//! Subject of a certificate, from its DER.
//!
//! Reads only what certificates of people and hosts have, and gives up on anything else: a subject
//! that is not understood whole is equal to none that is configured. By the time it is read the
//! certificate's signature was checked.

use rustls::pki_types::CertificateDer;

use crate::config::{AttributeKind, CertificateSubject};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;

/// Object identifiers, as their DER contents.
const KINDS: [(&[u8], AttributeKind); 10] = [
    (&[0x55, 4, 3], AttributeKind::CommonName),
    (&[0x55, 4, 5], AttributeKind::SerialNumber),
    (&[0x55, 4, 6], AttributeKind::Country),
    (&[0x55, 4, 7], AttributeKind::Locality),
    (&[0x55, 4, 8], AttributeKind::State),
    (&[0x55, 4, 10], AttributeKind::Organization),
    (&[0x55, 4, 11], AttributeKind::OrganizationalUnit),
    (
        &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1],
        AttributeKind::UserId,
    ),
    (
        &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25],
        AttributeKind::DomainComponent,
    ),
    (
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1],
        AttributeKind::EmailAddress,
    ),
];

/// The subject, if every part of it is understood.
pub(in crate::daemon) fn subject_of(
    certificate: &CertificateDer<'_>,
) -> Option<CertificateSubject> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    parse(parsed.subject())
}

/// `names`: what is inside the `Name` (RFC 5280 §4.1.2.4), sets of one attribute each.
fn parse(names: &[u8]) -> Option<CertificateSubject> {
    let mut names = names;
    let mut attributes = Vec::new();
    while !names.is_empty() {
        let mut set = element(&mut names, SET)?;
        let mut attribute = element(&mut set, SEQUENCE)?;
        let kind = element(&mut attribute, OBJECT_IDENTIFIER)?;
        let (_, kind) = KINDS.iter().find(|(known, _)| *known == kind)?;
        let value = string(&mut attribute)?;
        // One attribute in the set, and nothing behind its value.
        if !set.is_empty() || !attribute.is_empty() {
            return None;
        }
        attributes.push((*kind, value.to_owned()));
    }
    CertificateSubject::new(attributes)
}

fn string<'a>(input: &mut &'a [u8]) -> Option<&'a str> {
    let tag = *input.first()?;
    let bytes = element(input, tag)?;
    match tag {
        UTF8_STRING => std::str::from_utf8(bytes).ok(),
        PRINTABLE_STRING | IA5_STRING if bytes.is_ascii() => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

/// The contents of the element at the front, which must have this tag and the shortest form of its
/// length.
fn element<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (head, rest) = input.split_first_chunk::<2>()?;
    let (len, rest) = match head[1] {
        short @ 0..=0x7f => (usize::from(short), rest),
        0x81 => {
            let (len, rest) = rest.split_first()?;
            (usize::from(*len), rest)
        }
        0x82 => {
            let (len, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*len)), rest)
        }
        _ => return None,
    };
    let shortest = match head[1] {
        0x81 => 0x80,
        0x82 => 0x100,
        _ => 0,
    };
    let (contents, rest) = rest.split_at_checked(len)?;
    *input = rest;
    (head[0] == tag && len >= shortest).then_some(contents)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(name: DistinguishedName) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_subject_is_read_whole() {
        let mut name = DistinguishedName::new();
        name.push(DnType::CountryName, "DE");
        name.push(DnType::OrganizationName, "Example, Ltd");
        let long = "k".repeat(300);
        name.push(DnType::OrganizationalUnitName, long.as_str());
        name.push(
            DnType::CommonName,
            DnValue::PrintableString("kvm-a".try_into().unwrap()),
        );
        let expected = format!("CN=kvm-a,OU={long},O=Example\\, Ltd,C=DE");
        assert_eq!(
            subject_of(&certificate(name)),
            Some(CertificateSubject::parse(&expected).unwrap())
        );
    }

    #[test]
    fn a_subject_with_something_unknown_is_none() {
        let with = |kind: DnType, value: DnValue| {
            let mut name = DistinguishedName::new();
            name.push(DnType::CommonName, "kvm-a");
            name.push(kind, value);
            subject_of(&certificate(name))
        };
        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        assert!(with(DnType::OrganizationName, utf8("Example")).is_some());
        assert_eq!(
            with(DnType::CustomDnType(vec![2, 5, 4, 12]), utf8("x")),
            None
        );
        assert_eq!(with(DnType::OrganizationName, utf8("a\0b")), None);
        assert_eq!(with(DnType::OrganizationName, utf8("")), None);
        let teletex = DnValue::TeletexString("Example".try_into().unwrap());
        assert_eq!(with(DnType::OrganizationName, teletex), None);
        assert_eq!(subject_of(&certificate(DistinguishedName::new())), None);
    }

    /// An attribute in one set with the common name would be missed by a reader that takes the
    /// first of a set; so would bytes behind a value.
    #[test]
    fn more_than_one_attribute_in_a_set_is_none() {
        let cn = b"\x30\x0c\x06\x03\x55\x04\x03\x0c\x05kvm-a";
        let set = |contents: &[u8]| {
            let len = u8::try_from(contents.len()).unwrap();
            [&[SET, len], contents].concat()
        };
        assert!(parse(&set(cn)).is_some());
        assert_eq!(parse(&set(&[cn.as_slice(), cn].concat())), None);
        assert_eq!(
            parse(&set(b"\x30\x0d\x06\x03\x55\x04\x03\x0c\x05kvm-a\0")),
            None
        );
        assert_eq!(parse(&set(&[cn.as_slice(), b"\0"].concat())), None);
        assert_eq!(
            parse(&set(b"\x30\x81\x0c\x06\x03\x55\x04\x03\x0c\x05kvm-a")),
            None
        );
        assert_eq!(parse(b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_subject_or_none(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(parse(&bytes));
        }

        #[test]
        fn one_byte_changed_is_never_read_as_the_same(at in 0_usize..16, to in any::<u8>()) {
            let good = b"\x31\x0e\x30\x0c\x06\x03\x55\x04\x03\x0c\x05kvm-a";
            let mut bytes = good.to_vec();
            bytes[at] = to;
            // UTF8String, PrintableString and IA5String say the same of ASCII.
            let same_string = at == 9 && [PRINTABLE_STRING, IA5_STRING].contains(&to);
            prop_assume!(bytes != good && !same_string);
            prop_assert_ne!(parse(&bytes), parse(good));
        }
    }
}
