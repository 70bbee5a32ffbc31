//! The four flags of the daemons. Too few for a library of its own weight: the arbitrator has to
//! stay below 10 MiB.

use std::ffi::OsString;
use std::path::PathBuf;

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run, until told to stop.
    Run(Flags),
    /// `--help`
    Help,
    /// `--version`
    Version,
}

/// Where a daemon finds and puts its files, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Directory of the configuration.
    pub config: PathBuf,
    /// Name of this node.
    pub node: String,
    /// Directory of the voter store, on the root disk.
    pub state_dir: PathBuf,
    /// Directory of the sockets.
    pub run_dir: PathBuf,
}

/// Reads the arguments (without the program's name) over the defaults.
///
/// # Errors
/// What is wrong with them, for people.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    defaults: Flags,
) -> Result<Command, String> {
    let mut flags = defaults;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().ok_or("an argument is not UTF-8")?;
        let (name, inline) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match name {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            "--config" | "-C" | "--node" | "--state-dir" | "--run-dir" => {}
            _ => return Err(format!("unknown argument `{text}`")),
        }
        let value = match inline {
            Some(value) => OsString::from(value),
            None => arguments
                .next()
                .ok_or_else(|| format!("`{name}` needs a value"))?,
        };
        if value.is_empty() {
            return Err(format!("`{name}` needs a value"));
        }
        match name {
            "--config" | "-C" => flags.config = value.into(),
            "--state-dir" => flags.state_dir = value.into(),
            "--run-dir" => flags.run_dir = value.into(),
            _ => flags.node = value.into_string().map_err(|_| "a node's name is UTF-8")?,
        }
    }
    Ok(Command::Run(flags))
}

/// The text of `--help`.
#[must_use]
pub fn help(program: &str, what: &str) -> String {
    format!(
        "{what}

Usage: {program} [--config DIR] [--node NAME] [--state-dir DIR] [--run-dir DIR]

  -C, --config DIR     configuration: twinblk.toml and resources.d/  [/etc/twinblk, $TWINBLK_CONFIG]
      --node NAME      which [node.NAME] this is                     [`uname -n`]
      --state-dir DIR  voter store; on the root disk                 [/var/lib/twinblk]
      --run-dir DIR    control.sock and nbd/                         [/run/twinblk]
  -h, --help           this text
  -V, --version        the version

Runs in the foreground and logs to stderr; $TWINBLK_LOG overrides [log] level.
Exit codes: 1 failed (an address taken, a directory unusable), 2 usage, 3 configuration, 8 permission.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Flags {
        Flags {
            config: "/etc/twinblk".into(),
            node: "here".to_owned(),
            state_dir: "/var/lib/twinblk".into(),
            run_dir: "/run/twinblk".into(),
        }
    }

    fn parse_all(arguments: &[&str]) -> Result<Command, String> {
        parse(arguments.iter().map(OsString::from), defaults())
    }

    #[test]
    fn each_flag_takes_its_value_either_way() {
        let expected = Flags {
            config: "c".into(),
            node: "n".to_owned(),
            state_dir: "s=1".into(),
            run_dir: "r".into(),
        };
        let given = [
            "--config",
            "c",
            "--node=n",
            "--state-dir=s=1",
            "--run-dir",
            "r",
        ];
        assert_eq!(parse_all(&given), Ok(Command::Run(expected)));
        assert_eq!(parse_all(&[]), Ok(Command::Run(defaults())));
    }

    #[test]
    fn what_is_no_flag_is_refused() {
        for wrong in [
            &["--nod", "x"][..],
            &["--node"],
            &["--node="],
            &["up"],
            &["-x"],
        ] {
            assert!(parse_all(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_all(&["--node", "x", "--help"]), Ok(Command::Help));
    }
}
