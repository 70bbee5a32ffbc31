//! Files from disk: the only place of the configuration that touches one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use replicator::admin::ErrorId;

use super::diagnostic::Diagnostic;
use super::source::{FileKind, SourceFile};
use super::{Checked, parse};

/// Longest file read; a cluster file has some KiB, a resource file less.
const FILE_LEN_MAX: u64 = 4 << 20;

/// Which files count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `twinblk.toml` and `resources.d`.
    All,
    /// `twinblk.toml` alone: the arbitrator.
    Cluster,
}

/// Reads and checks the configuration of a directory.
///
/// # Errors
/// Every mistake of every file, warnings among them.
pub fn load(directory: &Path, scope: Scope) -> Result<Checked, Vec<Diagnostic>> {
    let mut paths = vec![(FileKind::Cluster, directory.join("twinblk.toml"))];
    if scope == Scope::All {
        let found = resource_files(&directory.join("resources.d"))?;
        paths.extend(found.into_iter().map(|path| (FileKind::Resources, path)));
    }
    load_files(&paths)
}

/// Reads and checks one file in its place: a `twinblk.toml` with the `resources.d` beside it, a
/// file of `resources.d` with the `twinblk.toml` above it, any other file alone.
///
/// # Errors
/// Every mistake, warnings among them.
pub fn load_file(file: &Path) -> Result<Checked, Vec<Diagnostic>> {
    let directory = file.parent().unwrap_or(Path::new(""));
    if file.file_name().is_some_and(|name| name == "twinblk.toml") {
        return load(directory, Scope::All);
    }
    let above = directory.parent().map(|above| above.join("twinblk.toml"));
    match above.filter(|above| directory.ends_with("resources.d") && above.is_file()) {
        Some(cluster) => load_files(&[
            (FileKind::Cluster, cluster),
            (FileKind::Resources, file.to_path_buf()),
        ]),
        None => load_files(&[(FileKind::Cluster, file.to_path_buf())]),
    }
}

fn load_files(paths: &[(FileKind, PathBuf)]) -> Result<Checked, Vec<Diagnostic>> {
    let mut files = Vec::new();
    let mut unreadable = Vec::new();
    for (kind, path) in paths {
        match read(*kind, path) {
            Ok(file) => files.push(file),
            Err(diagnostic) => unreadable.push(*diagnostic),
        }
    }
    if unreadable.is_empty() {
        parse(&files)
    } else {
        Err(unreadable)
    }
}

/// The `*.toml` of a directory in the order of their names; none if it does not exist.
fn resource_files(directory: &Path) -> Result<Vec<PathBuf>, Vec<Diagnostic>> {
    let listed = fs::read_dir(directory).and_then(|entries| {
        entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()
    });
    match listed {
        Ok(mut paths) => {
            paths.retain(|path| is_resource_file(path));
            paths.sort();
            Ok(paths)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(vec![*unreadable(directory, &error)]),
    }
}

fn is_resource_file(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden
        && path
            .extension()
            .is_some_and(|extension| extension == "toml")
}

fn read(kind: FileKind, path: &Path) -> Result<SourceFile, Box<Diagnostic>> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !metadata.is_file() || metadata.len() > FILE_LEN_MAX {
        let message = format!("{} is not a file of at most 4 MiB", path.display());
        return Err(Box::new(Diagnostic::nowhere(
            ErrorId::ConfigUnreadable,
            message,
        )));
    }
    let bytes = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        let message = format!("{}: line {} is not UTF-8 text", path.display(), line + 1);
        Box::new(Diagnostic::nowhere(ErrorId::ConfigSyntax, message))
    })?;
    Ok(SourceFile {
        kind,
        path: path.display().to_string(),
        text,
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Box<Diagnostic> {
    let (id, why) = match error.kind() {
        io::ErrorKind::PermissionDenied => (ErrorId::Permission, "permission denied".to_owned()),
        io::ErrorKind::NotFound => (ErrorId::ConfigUnreadable, "it does not exist".to_owned()),
        _ => (ErrorId::ConfigUnreadable, error.to_string()),
    };
    Box::new(Diagnostic::nowhere(
        id,
        format!("cannot read {}: {why}", path.display()),
    ))
}
