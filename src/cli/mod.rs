//! The command line: from arguments to an exit code.

mod args;
mod commands;
mod dev;
mod dotenv;
mod exec;
mod failure;
mod hardening;
mod logging;
mod output;
mod seed;
mod serve;
mod signals;
mod store;
mod supervised;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use intentframe_credentials::Environment;
use intentframe_credentials::client::{ClientOptions, VaultClient};
use intentframe_credentials::redact::RegisteredSecrets;
use log::LevelFilter;

use args::Args;
use failure::{Failure, USAGE};
use hardening::CoreLimit;

/// How long a command waits for an answer. Longer than the 30 s that the service gives a
/// keyring, so that the user sees what the service says about a locked one.
const TIMEOUT: Duration = Duration::from_secs(35);

/// A command's name, its `--help`, and the function that runs it.
type Command = (&'static str, &'static str, fn(Args, &Context) -> Result<(), Failure>);

const COMMANDS: [Command; 11] = [
    ("serve", include_str!("help/serve.txt"), serve::run),
    ("dev", include_str!("help/dev.txt"), dev::run),
    ("health", include_str!("help/health.txt"), commands::health),
    ("list", include_str!("help/list.txt"), commands::list),
    ("get", include_str!("help/get.txt"), commands::get),
    ("has", include_str!("help/has.txt"), commands::has),
    ("store", include_str!("help/store.txt"), store::run),
    ("delete", include_str!("help/delete.txt"), commands::delete),
    ("runtime-env", include_str!("help/runtime-env.txt"), commands::runtime_env),
    ("check", include_str!("help/check.txt"), commands::check),
    ("exec", include_str!("help/exec.txt"), exec::run),
];

const HELP: &str = include_str!("help/credential-vault.txt");

/// What every command may use.
struct Context {
    environment: Environment,
    /// Values that are replaced in what this process logs.
    secrets: RegisteredSecrets,
    /// For the processes that `exec` starts.
    core_limit: Option<CoreLimit>,
}

impl Context {
    /// A client of the service, as `--socket` and `--server-uid` select it.
    fn client(&self, args: &mut Args) -> Result<VaultClient, Failure> {
        let socket = args.path("--socket")?;
        let options = ClientOptions { timeout: TIMEOUT, server_uid: args.number("--server-uid")? };
        Ok(VaultClient::from_environment(socket.as_deref(), &self.environment, &options)?)
    }
}

/// Starts a thread that nobody joins.
fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let environment = Environment::of_process();
    let secrets = RegisteredSecrets::default();
    logging::register_environment(&environment, &secrets);
    let arguments = std::env::args_os().skip(1).collect();
    let Err(failure) = run(arguments, environment, &secrets) else { return ExitCode::SUCCESS };
    if !failure.message.is_empty() {
        let message = secrets.redact(failure.printable());
        // Without standard error there is nowhere to report a failure.
        let _ = writeln!(io::stderr(), "credential-vault: {message}");
    }
    failure.code.into()
}

fn run(
    arguments: Vec<OsString>,
    environment: Environment,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    let mut args = Args::new(arguments)?;
    let name = args.command();
    let is_it = |(known, ..): &&Command| name.as_deref() == Some(*known);
    let Some(&(name, help, run)) = COMMANDS.iter().find(is_it) else {
        return without_command(args, name.as_deref());
    };
    if args.switch("--help") || args.switch("-h") {
        return output::text(help);
    }
    // Before any value is in memory.
    let core_limit = hardening::forbid_core();
    // `--files` makes links through /proc, which others must be able to follow.
    let hidden = if args.position("--files").is_some() { Ok(()) } else { hardening::hide() };
    let level = if matches!(name, "serve" | "dev") { LevelFilter::Info } else { LevelFilter::Warn };
    logging::init(&environment, level, secrets)?;
    for error in [core_limit.as_ref().err(), hidden.as_ref().err()].into_iter().flatten() {
        log::warn!("the system may write a core of this process: {error}");
    }
    let context = Context { environment, secrets: secrets.clone(), core_limit: core_limit.ok() };
    run(args, &context).map_err(|failure| match failure.code {
        USAGE => failure.hint(&format!("see `credential-vault {name} --help`")),
        _ => failure,
    })
}

fn without_command(mut args: Args, name: Option<&str>) -> Result<(), Failure> {
    if name == Some("help") || args.switch("--help") || args.switch("-h") {
        return output::text(HELP);
    }
    if args.switch("--version") {
        return output::text(concat!("credential-vault ", env!("CARGO_PKG_VERSION"), "\n"));
    }
    let problem = if name.is_some() { "no such command" } else { "no command given" };
    Err(Failure::usage(format!("{problem}; `credential-vault --help` lists the commands")))
}
