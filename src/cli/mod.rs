//! The command line: from arguments to an exit code.

mod args;
mod check;
mod dev;
mod dotenv;
mod exec;
mod failure;
mod hardening;
mod logging;
mod output;
mod read;
mod seed;
mod serve;
mod supervised;
mod write;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use intentframe_credentials::client::{ClientOptions, VaultClient};
use intentframe_credentials::redact::RegisteredSecrets;
use intentframe_credentials::{CredentialRef, Environment};
use log::LevelFilter;

use logging::LoggingError;

use args::{Arguments, Command, Parsed};
use failure::Failure;
use output::Output;

/// How long a command waits. Longer than the 30 s that the service gives a keyring, so
/// that what is heard of a locked one is the service's own advice.
const TIMEOUT: Duration = Duration::from_secs(35);

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let environment = Environment::of_process();
    let secrets = RegisteredSecrets::default();
    logging::register_environment(&environment, &secrets);
    let ended = run(std::env::args_os().skip(1).collect(), &environment, &secrets);
    let Err(failure) = ended else { return ExitCode::SUCCESS };
    if let Some(message) = failure.message().map(|message| secrets.redact(message)) {
        // With standard error gone there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "credential-vault: {message}");
    }
    failure.exit_code()
}

fn run(
    arguments: Vec<OsString>,
    environment: &Environment,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    let (arguments, to_run) = match args::parse(arguments)? {
        Parsed::Run(arguments, to_run) => (arguments, to_run),
        Parsed::Print(text) => return Output::stdout().text(&text),
    };
    let Arguments { socket, server_uid, command, .. } = *arguments;
    let level = match command {
        Some(Command::Serve(_) | Command::Dev(_)) => LevelFilter::Info,
        _ => LevelFilter::Warn,
    };
    // Before a value gets here.
    let core_limit = hardening::forbid_core();
    // Files in memory are opened by way of this process's own in /proc.
    let is_open = matches!(&command, Some(Command::Exec(exec)) if exec.files.is_some());
    let hidden = if is_open { Ok(()) } else { hardening::hide() };
    start_logging(environment, level, secrets)?;
    if let Err(error) = core_limit.as_ref().map(drop).and(hidden.as_ref().map(drop)) {
        log::warn!("a core of this process could be written: {error}");
    }
    // A `--socket` after the command wins over one before it.
    let client = |after: Option<PathBuf>| -> Result<VaultClient, Failure> {
        let path = after.as_deref().or(socket.as_deref());
        let options = ClientOptions { timeout: TIMEOUT, server_uid };
        VaultClient::from_environment(path, environment, &options).map_err(Failure::usage)
    };
    match command {
        None => Err(Failure::usage("no command given; `credential-vault --help` lists them")),
        Some(Command::Serve(mut serve)) => {
            serve.socket = serve.socket.or(socket);
            serve::run(&serve, environment, secrets)
        }
        Some(Command::Dev(mut dev)) => {
            dev.socket = dev.socket.or(socket);
            dev::run(&dev, environment, secrets)
        }
        Some(Command::Health(args)) => read::health(&client(args.socket)?, args.json),
        Some(Command::List(args)) => {
            read::list(&client(args.socket)?, args.namespace.as_deref(), args.json)
        }
        Some(Command::Get(args)) => {
            read::get(&client(args.socket)?, &credential(&args.credential)?, args.json)
        }
        Some(Command::Has(args)) => {
            read::has(&client(args.socket)?, &credential(&args.credential)?, args.json)
        }
        Some(Command::RuntimeEnv(args)) => read::runtime_env(&client(args.socket)?, args.json),
        Some(Command::Check(args)) => {
            check::run(&client(args.socket)?, &args.credentials, args.json)
        }
        Some(Command::Store(mut args)) => {
            let client = client(args.socket.take())?;
            write::store(&client, args, secrets)
        }
        Some(Command::Exec(mut args)) => {
            let client = client(args.socket.take())?;
            exec::run(client, &args, to_run, core_limit.ok())
        }
        Some(Command::Delete(args)) => {
            write::delete(&client(args.socket)?, &credential(&args.credential)?)
        }
    }
}

fn start_logging(
    environment: &Environment,
    level: LevelFilter,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    logging::init(environment, level, secrets).map_err(|error| match error {
        LoggingError::UnknownFormat => Failure::usage(error),
        LoggingError::AlreadySet(_) => Failure::other(error),
    })
}

/// Reads `NAMESPACE/KEY`. What was written is not repeated in the error: it may be a
/// value that went to the wrong place.
fn credential(written: &str) -> Result<CredentialRef, Failure> {
    let advice = "a credential is named NAMESPACE/KEY, as in openai/api_key";
    let Some((namespace, key)) = written.split_once('/') else {
        return Err(Failure::usage(advice));
    };
    if key.contains('/') {
        return Err(Failure::usage(format!(
            "{advice}: a single slash; within the namespace use dots, as in github.myorg/token"
        )));
    }
    CredentialRef::parse(namespace, key)
        .map_err(|error| Failure::usage(format!("{error} ({advice})")))
}
