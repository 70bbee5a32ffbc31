//! The daemon: mirrors volumes with a peer and serves them to guests over NBD.

use std::process::ExitCode;

use twinblk::daemon::{self, Program};

fn main() -> ExitCode {
    daemon::main(Program::Daemon)
}
