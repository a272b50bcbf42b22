//! The `larder` command, for tests that need it as a program.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder_cli::main()
}
