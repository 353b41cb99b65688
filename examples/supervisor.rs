//! A small supervisor: it starts the vault, waits until it is ready, starts a process with
//! its credentials, and stops both.
//!
//! ```sh
//! supervisor CONSUMER VAULT-ARGUMENT... -- COMMAND [ARGUMENT]...
//! cargo run --example supervisor jarvis dev -- sh -c 'echo "$OPENAI_API_KEY"'
//! ```
//!
//! It looks for `credential-vault` in its own directory, in the one above, and on the `PATH`.
//! The socket is that of `INTENTFRAME_VAULT_SOCKET`, else the default. When the process ends, or
//! on SIGTERM or SIGINT, it stops the process first, and then the vault. It exits with the exit
//! code of the process.
#![allow(clippy::print_stderr)] // an example without a logger

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    unix::run(std::env::args_os().skip(1).collect()).unwrap_or_else(|error| {
        eprintln!("supervisor: {error}");
        std::process::ExitCode::FAILURE
    })
}

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod unix {
    use std::error::Error;
    use std::ffi::OsString;
    use std::io;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command, ExitCode, ExitStatus};
    use std::time::{Duration, Instant};

    use intentframe_credentials::client::VaultClient;
    use intentframe_credentials::spawn::{CommandCredentials as _, runtime_env};
    use intentframe_credentials::{Environment, settings};
    use rustix::process::{Pid, Signal, kill_process};
    use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    /// How long the vault may take to answer, and to stop.
    const PATIENCE: Duration = Duration::from_secs(15);

    type AnyError = Box<dyn Error>;

    pub fn run(mut arguments: Vec<OsString>) -> Result<ExitCode, AnyError> {
        const USAGE: &str = "usage: supervisor CONSUMER VAULT-ARGUMENT... -- COMMAND [ARGUMENT]...";
        let dashes = arguments.iter().position(|argument| argument == "--").ok_or(USAGE)?;
        let to_run = arguments.split_off(dashes);
        let [_, program, to_program @ ..] = &to_run[..] else { return Err(USAGE.into()) };
        let [consumer, to_vault @ ..] = &arguments[..] else { return Err(USAGE.into()) };
        let consumer = consumer.to_str().ok_or("the consumer is not UTF-8")?;

        // Before anything starts, so that no SIGCHLD is missed.
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD])?;
        let socket = settings::socket(None, &Environment::of_process())?;
        let mut vault = Running(Command::new(vault_program()?).args(to_vault).spawn()?);
        let client = VaultClient::new(socket);
        vault.wait_until_ready(&client)?;

        // Without all of its credentials, the process does not start.
        let credentials = runtime_env(&client, Some(consumer))?;
        let mut process =
            Running(Command::new(program).args(to_program).credentials(&credentials).spawn()?);
        for signal in signals.forever() {
            if signal != SIGCHLD {
                process.signal(Signal::TERM);
            }
            if let Some(status) = process.0.try_wait()? {
                vault.stop()?;
                return Ok(exit_code(status));
            }
            if vault.0.try_wait()?.is_some() {
                // The process has its credentials and could go on. This supervisor stops it.
                process.stop()?;
                return Err("the vault ended".into());
            }
        }
        unreachable!("the iterator of signals does not end")
    }

    /// A child process, stopped when dropped.
    struct Running(Child);

    impl Running {
        fn wait_until_ready(&mut self, client: &VaultClient) -> Result<(), AnyError> {
            let end = Instant::now() + PATIENCE;
            while let Err(error) = client.health() {
                if let Some(status) = self.0.try_wait()? {
                    return Err(format!("the vault ended before it was ready: {status}").into());
                }
                if Instant::now() > end {
                    return Err(error.into());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        }

        fn signal(&self, signal: Signal) {
            // This fails if the process has ended already.
            let _ = kill_process(Pid::from_child(&self.0), signal);
        }

        /// Sends SIGTERM, and SIGKILL if that takes too long.
        fn stop(&mut self) -> io::Result<ExitStatus> {
            self.signal(Signal::TERM);
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                if let Some(status) = self.0.try_wait()? {
                    return Ok(status);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            self.0.kill()?;
            self.0.wait()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            if matches!(self.0.try_wait(), Ok(None)) {
                let _ = self.stop();
            }
        }
    }

    fn vault_program() -> io::Result<OsString> {
        const NAME: &str = "credential-vault";
        let here = std::env::current_exe()?;
        let beside = here.ancestors().skip(1).take(2).map(|folder| folder.join(NAME));
        let found = beside.into_iter().find(|path| path.is_file());
        Ok(found.map_or_else(|| NAME.into(), OsString::from))
    }

    fn exit_code(status: ExitStatus) -> ExitCode {
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
    }
}
