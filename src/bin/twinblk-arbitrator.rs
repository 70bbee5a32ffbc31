//! The arbitrator: the third voter of a pair of data nodes.

use std::process::ExitCode;

use twinblk::daemon::{self, Program};

fn main() -> ExitCode {
    daemon::main(Program::Arbitrator)
}
