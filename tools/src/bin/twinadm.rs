//! `twinadm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tools::run::main(std::env::args_os().collect()))
}
