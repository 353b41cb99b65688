//! The command line: from arguments to an exit code.
// argh prints doc comments as help: backticks would stay, and brackets mean "optional".
#![allow(clippy::doc_markdown, rustdoc::broken_intra_doc_links)]

mod args;
mod audit;
mod backup;
mod child;
mod commands;
mod completions;
mod config;
mod dev;
mod doctor;
mod dotenv;
mod exec;
mod export;
mod failure;
mod foreign;
mod hardening;
mod import;
mod local;
mod logging;
mod metadata;
mod output;
mod policy;
mod rotate;
mod seal;
mod seed;
mod serve;
mod signals;
mod store;
mod supervised;
mod systemd_credentials;
mod usage;
mod validate;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use argh::{EarlyExit, FromArgs as _};
use intentframe_credentials::client::{ClientOptions, VaultClient};
use intentframe_credentials::redact::RegisteredSecrets;
use intentframe_credentials::{Environment, settings};
use log::LevelFilter;

use args::{Arguments, Command};
use config::Config;
use failure::{Failure, USAGE};
use hardening::CoreLimit;
use usage::Usage;

/// The imports that nearly all commands share.
mod prelude {
    pub use std::path::{Path, PathBuf};

    pub use argh::{ArgsInfo, FromArgs};

    pub(super) use super::args::credential;
    pub(super) use super::failure::{Failure, NOT_FOUND, OTHER, REFUSED, USAGE, cannot};
    pub(super) use super::{Context, output};
}

/// How long a command waits for an answer. Longer than the 30 s that the service gives a
/// keyring, so that the user sees what the service says about a locked one.
const TIMEOUT: Duration = Duration::from_secs(35);

const VERSION: &str = concat!("credential-vault ", env!("CARGO_PKG_VERSION"), "\n");

/// The context of every command.
struct Context {
    environment: Environment,
    /// The options that every command has.
    socket: Option<PathBuf>,
    server_uid: Option<u32>,
    /// Values that are replaced in what this process logs.
    secrets: RegisteredSecrets,
    /// For the processes that `exec` starts.
    core_limit: CoreLimit,
    config: Config,
    /// The words after `--`: the command that `exec` runs, or those of `rotate`.
    program: Vec<OsString>,
}

impl Context {
    /// The socket of the service.
    fn socket(&self) -> Result<PathBuf, Failure> {
        Ok(settings::socket(self.socket.as_deref(), &self.environment)?)
    }

    /// The path in an option, else in a variable.
    fn setting_path(
        &self,
        given: Option<PathBuf>,
        variable: &str,
    ) -> Result<Option<PathBuf>, Failure> {
        let path = given.or_else(|| self.environment.setting(variable).map(PathBuf::from));
        Ok(path.map(|path| settings::expand_tilde(&path, &self.environment)).transpose()?)
    }

    /// The value of an option, else of a variable, which has this form.
    fn setting<T: FromStr>(
        &self,
        given: Option<T>,
        variable: &str,
        form: &str,
    ) -> Result<Option<T>, Failure> {
        match self.environment.setting(variable) {
            Some(text) if given.is_none() => text.parse().map(Some),
            _ => Ok(given),
        }
        .map_err(|_| Failure::usage(format!("{variable}: {form}")))
    }

    /// A client of the service at the socket.
    fn client(&self) -> Result<VaultClient, Failure> {
        let form = "it is a user ID, a number";
        let server_uid = self.setting(self.server_uid, "IF_VAULT_SERVER_UID", form)?;
        let options = ClientOptions { timeout: TIMEOUT, server_uid };
        Ok(VaultClient::with_options(self.socket()?, &options))
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
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let usage = Usage::new(arguments.iter().map(|it| it.to_str().unwrap_or_default()));
    let help = [&["credential-vault"], &usage.path[..], &["--help"]].concat().join(" ");
    let Err(mut failure) = run(&arguments, usage, environment, &secrets) else {
        return ExitCode::SUCCESS;
    };
    if failure.code == USAGE {
        failure = failure.hint(&format!("see `{help}`"));
    }
    if !failure.message.is_empty() {
        let message = secrets.redact(failure.printable());
        // Without standard error there is nowhere to report a failure.
        let _ = writeln!(io::stderr(), "credential-vault: {message}");
    }
    failure.code.into()
}

fn run(
    arguments: &[OsString],
    mut usage: Usage<'_>,
    mut environment: Environment,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    if let Some(done) = completions::run(arguments, &environment) {
        return done;
    }
    let dashes = arguments.iter().position(|it| usage.has_program() && it == "--");
    let end = dashes.unwrap_or(arguments.len());
    if arguments[..end].iter().any(|it| it.to_str().is_none()) {
        return Err(Failure::usage("an argument is not UTF-8"));
    }
    // The program of `exec` or `rotate` need not be UTF-8.
    let program = arguments.iter().skip(end + 1).cloned().collect();
    let parsed = match Arguments::from_args(&["credential-vault"], &usage.arguments()?) {
        Ok(parsed) if parsed.version => return output::text(VERSION),
        Ok(parsed) => parsed,
        Err(EarlyExit { output, status: Ok(()) }) => {
            return output::text(&format!("{}\n", output.trim_end()));
        }
        Err(EarlyExit { status: Err(()), .. }) => return Err(usage.error()),
    };
    let Arguments { socket, config, server_uid, command, .. } = parsed;
    let Some(command) = command else { return Err(Failure::usage("no command given")) };
    let config = config::load(config, &mut environment)?;
    logging::register_environment(&environment, secrets);
    // Before any value is in memory.
    let core_limit = hardening::forbid_core();
    // `--files` makes links through /proc, which others must be able to follow.
    let hidden = match &command {
        Command::Exec(exec) if exec.files.is_some() => Ok(()),
        _ => hardening::hide(),
    };
    let is_service =
        matches!(command, Command::Serve(_) | Command::Dev(_) | Command::SystemdCredentials(_));
    let level = if is_service { LevelFilter::Info } else { LevelFilter::Warn };
    logging::init(&environment, level, secrets)?;
    if let Some(file) = &config.unreadable {
        log::info!("{} is not used: this user may not read it", file.display());
    }
    if let Err(error) = hidden {
        log::warn!("the system may write a core of this process: {error}");
    }
    let secrets = secrets.clone();
    let context = Context { environment, socket, server_uid, secrets, core_limit, config, program };
    let done = match command {
        Command::Serve(args) => serve::run(args, &context),
        Command::Dev(args) => dev::run(args, &context),
        Command::Health(args) => commands::health(&args, &context),
        Command::List(args) => commands::list(args, &context),
        Command::Get(args) => commands::get(&args, &context),
        Command::Has(args) => commands::has(&args, &context),
        Command::Store(args) => store::run(args, &context),
        Command::Delete(args) => commands::delete(&args, &context),
        Command::RuntimeEnv(args) => commands::runtime_env(&args, &context),
        Command::Config(args) => config::run(&args, &context),
        Command::Check(args) => commands::check(args, &context),
        Command::Exec(args) => exec::run(args, &context),
        Command::Policy(args) => policy::run(args, &context),
        Command::Audit(args) => audit::run(args),
        Command::Rotate(args) => rotate::run(&args, &context),
        Command::Validate(args) => validate::run(&args, &context),
        Command::Seal(args) => seal::run(args, &context),
        Command::SystemdCredentials(args) => systemd_credentials::run(args, &context),
        Command::Doctor(args) => doctor::run(args, &context),
        Command::Metadata(args) => metadata::run(args, &context),
        Command::Backup(args) => backup::run(&args, &context),
        Command::Export(args) => export::run(args, &context),
        Command::Import(args) => import::run(&args, &context),
    };
    done.map_err(|failure| context.config.explain(failure))
}
