//! One file per subcommand: glue, and the only place that prints.

pub mod check;

/// Parses the command line, runs it, and turns an error chain into an exit code.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
