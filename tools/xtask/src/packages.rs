//! Installs, on Debian and as root, the packages that the tests drive.
//!
//! Where that is not possible (another system, no root, no network) it says what is missing and
//! goes on: those tests skip with their reason, or fail where `CI=true`.

use std::path::Path;
use std::process::Command;

use crate::run;

/// A package and how one sees, without dpkg, that what it brings is there.
struct Package {
    name: &'static str,
    there: Probe,
    /// Comes from the backports suite where the release's own QEMU is older than [`QEMU_MIN`].
    qemu: bool,
}

enum Probe {
    Program(&'static str),
    File(&'static str),
}

/// The oldest QEMU the tests are written for: `reconnect-delay` and `open-timeout` as described.
const QEMU_MIN: (u32, u32) = (8, 2);

const PACKAGES: &[Package] = &[
    qemu("qemu-utils", Probe::Program("qemu-io")),
    qemu("qemu-system-x86", Probe::Program("qemu-system-x86_64")),
    plain("libnbd-bin", Probe::Program("nbdinfo")),
    plain(
        "python3-libnbd",
        Probe::File("/usr/lib/python3/dist-packages/nbd.py"),
    ),
    plain("openssl", Probe::Program("openssl")),
    plain("nbdkit", Probe::Program("nbdkit")),
    plain("fio", Probe::Program("fio")),
    plain("iproute2", Probe::Program("ip")),
    plain("nftables", Probe::Program("nft")),
    plain("strace", Probe::Program("strace")),
    plain("e2fsprogs", Probe::Program("mke2fs")),
    plain("busybox-static", Probe::Program("busybox")),
    plain("libvirt-daemon", Probe::Program("libvirtd")),
    plain(
        "libvirt-daemon-driver-qemu",
        Probe::File("/usr/share/doc/libvirt-daemon-driver-qemu/copyright"),
    ),
    plain("libvirt-clients", Probe::Program("virsh")),
    plain(
        "python3-prometheus-client",
        Probe::File("/usr/lib/python3/dist-packages/prometheus_client/parser.py"),
    ),
    plain("python3-pip", Probe::Program("pip3")),
];

const fn qemu(name: &'static str, there: Probe) -> Package {
    Package {
        name,
        there,
        qemu: true,
    }
}

const fn plain(name: &'static str, there: Probe) -> Package {
    Package {
        name,
        there,
        qemu: false,
    }
}

impl Package {
    fn is_there(&self) -> bool {
        match self.there {
            Probe::Program(program) => run::has_program(program),
            Probe::File(file) => Path::new(file).exists(),
        }
    }
}

/// Installs what is missing; false when something still is.
pub(crate) fn install() -> Result<bool, String> {
    let qemu_too_old = qemu_version().is_some_and(|version| version < QEMU_MIN);
    let wanted: Vec<&Package> = PACKAGES
        .iter()
        .filter(|package| !package.is_there() || (package.qemu && qemu_too_old))
        .collect();
    if wanted.is_empty() {
        println!("nothing to install");
        return Ok(true);
    }
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    println!("missing or too old: {}", names.join(" "));
    if !run::has_program("apt-get") {
        println!("no apt-get here: install these by hand, or the tests that use them are skipped");
        return Ok(false);
    }
    if !is_root() {
        println!(
            "not root: run `cargo xtask packages` as root, or the tests that use them are skipped"
        );
        return Ok(false);
    }
    if !run::passes(apt_get().arg("update"))? {
        println!("apt-get update failed; trying with the lists there are");
    }
    let (qemu, other): (Vec<&Package>, Vec<&Package>) =
        wanted.into_iter().partition(|package| package.qemu);
    let other_ok = other.is_empty() || install_named(&other, None)?;
    // QEMU last and all of it from one suite: programs of two versions push each other out.
    let qemu_ok = qemu.is_empty() || install_qemu()?;
    Ok(other_ok && qemu_ok)
}

fn install_qemu() -> Result<bool, String> {
    let all: Vec<&Package> = PACKAGES.iter().filter(|package| package.qemu).collect();
    if candidate_version("qemu-utils").is_some_and(|version| version >= QEMU_MIN) {
        return install_named(&all, None);
    }
    let Some(suite) = backports_suite()? else {
        println!(
            "no suite with QEMU {}.{} or newer is known here",
            QEMU_MIN.0, QEMU_MIN.1
        );
        return install_named(&all, None);
    };
    install_named(&all, Some(&suite))
}

fn install_named(packages: &[&Package], suite: Option<&str>) -> Result<bool, String> {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends"]);
    if let Some(suite) = suite {
        command.args(["--target-release", suite]);
    }
    command.args(packages.iter().map(|package| package.name));
    run::passes(&mut command)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args([
        "-q=2",
        "-o",
        "Dpkg::Use-Pty=0",
        "-o",
        "DPkg::Lock::Timeout=120",
    ]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_root() -> bool {
    run::output(Command::new("id").arg("-u")).is_some_and(|said| said.trim() == "0")
}

/// The version of the QEMU programs here, the older one where they differ.
fn qemu_version() -> Option<(u32, u32)> {
    ["qemu-img", "qemu-system-x86_64"]
        .iter()
        .filter_map(|program| run::output(Command::new(program).arg("--version")))
        .filter_map(|said| version_in(said.split("version ").nth(1)?))
        .min()
}

/// The version that apt would install without being told a suite.
fn candidate_version(package: &str) -> Option<(u32, u32)> {
    let said = run::output(
        Command::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["policy", package]),
    )?;
    let version = said
        .split("Candidate:")
        .nth(1)?
        .split_whitespace()
        .next()?
        .to_owned();
    version_in(
        version
            .split_once(':')
            .map_or(version.as_str(), |(_epoch, rest)| rest),
    )
}

/// `8.2` out of `8.2.1+ds-1`.
fn version_in(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The name of this release's backports suite, added to apt's sources if it is not there yet.
fn backports_suite() -> Result<Option<String>, String> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(codename) = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
    else {
        return Ok(None);
    };
    let suite = format!("{codename}-backports");
    let known = run::output(Command::new("apt-cache").arg("policy")).unwrap_or_default();
    if known.contains(&format!("{suite}/")) {
        return Ok(Some(suite));
    }
    let Some(source) = apt_sources()
        .iter()
        .find_map(|text| backports_source(text, &codename))
    else {
        return Ok(None);
    };
    let path = "/etc/apt/sources.list.d/twinblk-backports.sources";
    std::fs::write(path, source).map_err(|error| format!("{path}: {error}"))?;
    println!("added {suite} to apt's sources ({path})");
    if !run::passes(apt_get().arg("update"))? {
        return Ok(None);
    }
    Ok(Some(suite))
}

/// Every apt source file's text.
fn apt_sources() -> Vec<String> {
    let mut texts: Vec<String> = std::fs::read_to_string("/etc/apt/sources.list")
        .into_iter()
        .collect();
    let mut files: Vec<_> = std::fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    texts.extend(
        files
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok()),
    );
    texts
}

/// A deb822 source for the backports suite that uses the same archive and key as the entry for
/// `codename` in `text`, which may be of either format. Pure.
fn backports_source(text: &str, codename: &str) -> Option<String> {
    let (uri, signed_by) = text
        .split("\n\n")
        .find_map(|stanza| deb822_entry(stanza, codename))
        .or_else(|| text.lines().find_map(|line| one_line_entry(line, codename)))?;
    let mut source =
        format!("Types: deb\nURIs: {uri}\nSuites: {codename}-backports\nComponents: main\n");
    if let Some(key) = signed_by {
        source.push_str(&format!("Signed-By: {key}\n"));
    }
    Some(source)
}

/// URI and key of a deb822 stanza that has `codename` among its suites.
fn deb822_entry(stanza: &str, codename: &str) -> Option<(String, Option<String>)> {
    let field = |name: &str| {
        stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim().eq_ignore_ascii_case(name)).then(|| value.trim().to_owned())
        })
    };
    let types = field("Types")?;
    let suites = field("Suites")?;
    let uris = field("URIs")?;
    if !types.split_whitespace().any(|word| word == "deb")
        || !suites.split_whitespace().any(|word| word == codename)
        || field("Enabled").is_some_and(|value| value == "no")
    {
        return None;
    }
    // A key written out inside the stanza spans lines; without its first line there is none.
    let key = field("Signed-By").filter(|value| !value.is_empty());
    Some((uris.split_whitespace().next()?.to_owned(), key))
}

/// URI and key of a `deb [options] URI SUITE ...` line for `codename`.
fn one_line_entry(line: &str, codename: &str) -> Option<(String, Option<String>)> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(after) => after.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if suite != codename {
        return None;
    }
    let key = options
        .split_whitespace()
        .find_map(|word| word.strip_prefix("signed-by="));
    Some((uri.to_owned(), key.map(str::to_owned)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_the_archive_of_a_deb822_entry() {
        let text = "Types: deb\n# a comment\nURIs: mirror://one/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n\n\
                    Types: deb\nURIs: mirror://one/security\nSuites: bookworm-security\nComponents: main\n";
        assert_eq!(
            backports_source(text, "bookworm").as_deref(),
            Some(
                "Types: deb\nURIs: mirror://one/debian\nSuites: bookworm-backports\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/k.gpg\n"
            )
        );
        assert_eq!(backports_source(text, "trixie"), None);
    }

    #[test]
    fn backports_come_from_the_archive_of_a_one_line_entry() {
        let text = "# deb mirror://zero/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] mirror://two/debian bookworm main contrib\n";
        assert_eq!(
            backports_source(text, "bookworm").as_deref(),
            Some(
                "Types: deb\nURIs: mirror://two/debian\nSuites: bookworm-backports\nComponents: main\nSigned-By: /k.gpg\n"
            )
        );
        let plain = "deb mirror://two/debian bookworm main\n";
        assert!(
            backports_source(plain, "bookworm").is_some_and(|source| !source.contains("Signed-By"))
        );
    }

    #[test]
    fn disabled_and_source_only_entries_are_passed_over() {
        let disabled = "Types: deb\nEnabled: no\nURIs: mirror://one\nSuites: bookworm\n";
        let source_only = "Types: deb-src\nURIs: mirror://one\nSuites: bookworm\n";
        assert_eq!(backports_source(disabled, "bookworm"), None);
        assert_eq!(backports_source(source_only, "bookworm"), None);
    }

    #[test]
    fn versions_are_compared_by_their_first_two_numbers() {
        assert_eq!(version_in("10.0.2 (Debian 1:10.0.2+ds-2)"), Some((10, 0)));
        assert!(version_in("7.2+dfsg-7") < Some(QEMU_MIN));
        assert_eq!(version_in("none"), None);
    }
}
