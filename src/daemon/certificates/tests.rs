//! Directories of certificates, good and bad, and conversations under them.

#[path = "../../../tests/common/authority.rs"]
pub(in crate::daemon) mod authority;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use authority::{Authority, Use};
use rcgen::{KeyPair, date_time_ymd};

use super::*;

/// A directory that goes away with its value.
pub(in crate::daemon) struct Scratch(pub(in crate::daemon) PathBuf);

impl Scratch {
    pub(in crate::daemon) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nr = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("twinblk-certificates-{}-{nr}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn error_of(dir: &Path) -> String {
    Certificates::open(dir).unwrap_err().to_string()
}

#[test]
fn a_set_is_read_and_each_missing_file_is_named() {
    let scratch = Scratch::new();
    let authority = Authority::new();
    authority.write_server(&scratch.0);
    let (_, doubt) = Certificates::open(&scratch.0).unwrap();
    assert!(doubt.is_none(), "{doubt:?}");
    for name in [CA_CERTIFICATE, SERVER_CERTIFICATE, SERVER_KEY] {
        authority.write_server(&scratch.0);
        fs::remove_file(scratch.0.join(name)).unwrap();
        assert!(error_of(&scratch.0).contains(name));
        fs::write(scratch.0.join(name), "no PEM").unwrap();
        assert!(error_of(&scratch.0).contains(name));
        fs::remove_file(scratch.0.join(name)).unwrap();
    }
    authority.write_server(&scratch.0);
    fs::write(scratch.0.join(CA_REVOCATIONS), "").unwrap();
    assert!(error_of(&scratch.0).contains(CA_REVOCATIONS));
}

#[test]
fn another_certificates_key_is_refused() {
    let scratch = Scratch::new();
    Authority::new().write_server(&scratch.0);
    let other = KeyPair::generate().unwrap().serialize_pem();
    fs::write(scratch.0.join(SERVER_KEY), other).unwrap();
    assert!(error_of(&scratch.0).contains(SERVER_KEY));
}

/// At start it is only a doubt: the node has other guests. A new set like that does not replace one
/// that works.
#[test]
fn a_set_that_no_client_takes_starts_but_replaces_nothing() {
    let stale = {
        let mut params = Authority::params(Use::Server, "server");
        params.not_after = date_time_ymd(2020, 1, 1);
        params
    };
    let of_a_client = Authority::params(Use::Client, "server");
    for params in [stale, of_a_client] {
        let scratch = Scratch::new();
        let authority = Authority::new();
        authority.write_server(&scratch.0);
        let (certificates, _) = Certificates::open(&scratch.0).unwrap();
        let before = certificates.current();
        authority.write(&scratch.0, "server", &authority.issue(&params));
        let (_, doubt) = Certificates::open(&scratch.0).unwrap();
        assert!(doubt.is_some());
        certificates.reload().unwrap_err();
        assert!(Arc::ptr_eq(&before, &certificates.current()));
        authority.write_server(&scratch.0);
        certificates.reload().unwrap();
        assert!(!Arc::ptr_eq(&before, &certificates.current()));
    }
    // One that is signed by nobody the clients know.
    let scratch = Scratch::new();
    let ours = Authority::new();
    let theirs = Authority::new().issue(&Authority::params(Use::Server, "server"));
    ours.write(&scratch.0, "server", &theirs);
    assert!(Certificates::open(&scratch.0).unwrap().1.is_some());
}

#[test]
fn nothing_of_the_key_is_printed() {
    let scratch = Scratch::new();
    Authority::new().write_server(&scratch.0);
    let (certificates, _) = Certificates::open(&scratch.0).unwrap();
    let shown = format!("{certificates:?}");
    assert!(shown.len() < 200 && shown.contains("dir"), "{shown}");
}

#[test]
fn the_subject_of_an_issued_certificate_is_its_name() {
    let issued = Authority::new().issue(&Authority::params(Use::Client, "kvm-a"));
    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    let subject = subject_of(&der).unwrap();
    assert_eq!(subject.to_string(), "CN=kvm-a");
}
