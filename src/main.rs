//! `credential-vault`: the service, and the commands that ask it.

#[cfg(unix)]
mod cli;
#[cfg(unix)]
mod dev;
#[cfg(unix)]
mod logging;

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    cli::main()
}

/// The service and its clients speak over Unix sockets; elsewhere the library alone is
/// of use.
#[cfg(not(unix))]
fn main() -> std::process::ExitCode {
    eprintln!("credential-vault: this system has no Unix sockets; use the library instead");
    std::process::ExitCode::from(5)
}
