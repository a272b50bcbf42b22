//! The `larder` command: looks into a running larder, and invalidates.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder_cli::main()
}
