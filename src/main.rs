//! `credential-vault`: the service and its commands.

use std::alloc::System;

use zeroizing_alloc::ZeroAlloc;

#[cfg(unix)]
mod cli;

/// Wipes all memory when it is freed: values and tokens also pass through the buffers of libraries
/// (JSON, TLS, HTTP headers, the bus), which do not wipe them.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    cli::main()
}

/// The service and its commands need Unix sockets. On other systems only the library is useful.
#[cfg(not(unix))]
fn main() -> std::process::ExitCode {
    eprintln!("credential-vault: this system has no Unix sockets; use the library instead");
    std::process::ExitCode::from(5)
}
