//! `exec`: a command with its credentials, in place of this process or below it.

mod environment;
#[cfg(target_os = "linux")]
mod files;
mod masking;
mod signals;
mod supervise;
mod terminal;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, tick, unbounded};
use intentframe_credentials::Namespace;
use intentframe_credentials::client::VaultClient;
use intentframe_credentials::spawn::{RuntimeEnv, Selection, Watcher};

use crate::cli::args::Exec;
use crate::cli::credential;
use crate::cli::failure::Failure;
use crate::cli::hardening::CoreLimit;
use crate::cli::output::escaped;

use environment::Inherited;
use masking::Masks;
use supervise::{OnChange, Supervisor, Watch};

/// Runs `to_run`. Does not return when it takes the place of this process.
pub fn run(
    client: VaultClient,
    args: &Exec,
    to_run: Vec<OsString>,
    core_limit: Option<CoreLimit>,
) -> Result<(), Failure> {
    let program = program(args, to_run, core_limit)?;
    let selection = selection(args)?;
    let watching = Watching::new(args)?;
    #[cfg(not(target_os = "linux"))]
    if args.files.is_some() {
        return Err(Failure::usage("--files needs memfd_create(2), which this system has not"));
    }
    let inherited = Inherited::new(std::env::vars_os(), args.clean, &args.keep, args.r#override);
    if watching.is_none() && !args.mask && args.files.is_none() {
        return replace_us(client, &selection, &inherited, &program);
    }

    // Before the command is started, so that its end is not missed.
    let signals = signals::hear()?;
    let (credentials, watch) = match watching {
        None => (Arc::new(selection.fetch(&client)?), None),
        Some(watching) => {
            let watcher = Watcher::start(&client, selection)?;
            (Arc::clone(watcher.current()), Some(watching.start(client, watcher)?))
        }
    };
    let supervisor = Supervisor {
        program,
        inherited,
        masks: args.mask.then(|| Masks::new(&credentials)),
        #[cfg(target_os = "linux")]
        files: match &args.files {
            None => None,
            Some(directory) => {
                let mut files = files::Files::new(directory)?;
                files.replace(&credentials)?;
                Some(files)
            }
        },
        credentials,
        signals,
        watch,
    };
    // All that it holds is gone before we end as the command has.
    supervisor.run()?.end()
}

/// The command in our place.
fn replace_us(
    client: VaultClient,
    selection: &Selection,
    inherited: &Inherited,
    program: &Program,
) -> Result<(), Failure> {
    let credentials = selection.fetch(&client)?;
    credentials.check_variables()?;
    let mut command = program.command();
    command.env_clear().envs(inherited.with(&credentials)?);
    drop(client);
    Err(program.not_started(&program.started(|| command.exec())))
}

/// What `--watch` asks for.
struct Watching {
    on_change: OnChange,
    grace: Duration,
    interval: Duration,
    max_restarts: u32,
}

impl Watching {
    fn new(args: &Exec) -> Result<Option<Self>, Failure> {
        const GRACE: f64 = 30.0;
        const INTERVAL: f64 = 2.0;
        const MAX_RESTARTS: u32 = 10;

        let is_told = args.signal.is_some()
            || args.grace.is_some()
            || args.interval.is_some()
            || args.max_restarts.is_some();
        if !args.watch {
            if is_told {
                return Err(Failure::usage(
                    "--signal, --grace, --interval and --max-restarts go with --watch",
                ));
            }
            return Ok(None);
        }
        let on_change = match args.signal.as_deref().unwrap_or("TERM") {
            "TERM" | "SIGTERM" => OnChange::Restart,
            "HUP" | "SIGHUP" => OnChange::HangUp,
            _ => return Err(Failure::usage("--signal is TERM or HUP")),
        };
        let seconds = |name: &str, seconds: f64| {
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| Failure::usage(format!("{name} is a number of seconds, as in 2.5")))
        };
        let interval = seconds("--interval", args.interval.unwrap_or(INTERVAL))?;
        if interval.is_zero() {
            return Err(Failure::usage("--interval is more than 0"));
        }
        Ok(Some(Self {
            on_change,
            grace: seconds("--grace", args.grace.unwrap_or(GRACE))?,
            interval,
            max_restarts: args.max_restarts.unwrap_or(MAX_RESTARTS),
        }))
    }

    /// Follows the vault in a thread of its own.
    fn start(self, client: VaultClient, watcher: Watcher) -> Result<Watch, Failure> {
        let (tell, changes) = unbounded();
        let Self { on_change, grace, interval, max_restarts } = self;
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || follow(&client, watcher, interval, &tell))
            .map_err(|error| Failure::other(format!("the vault cannot be watched: {error}")))?;
        Ok(Watch { changes, on_change, grace, max_restarts })
    }
}

/// Tells of every change; and once of each trouble, in which the command goes on with what
/// it has.
fn follow(
    client: &VaultClient,
    mut watcher: Watcher,
    interval: Duration,
    tell: &Sender<Arc<RuntimeEnv>>,
) {
    let mut trouble = None;
    for _ in tick(interval) {
        match watcher.look(client) {
            Ok(None) => trouble = None,
            Ok(Some(changed)) => {
                trouble = None;
                if tell.send(Arc::clone(changed)).is_err() {
                    return;
                }
            }
            Err(error) => {
                let message = error.to_string();
                if trouble.as_ref() != Some(&message) {
                    warn(&message);
                    trouble = Some(message);
                }
            }
        }
    }
}

/// Says why the command goes on with the credentials that it has.
fn warn(why: &str) {
    let why = why.split("\n  ").map(escaped).collect::<Vec<_>>().join("; ");
    log::warn!("the command goes on with the credentials that it has: {why}");
}

/// The command and its arguments.
pub struct Program {
    name: OsString,
    arguments: Vec<OsString>,
    /// What it has back of what was taken from us.
    core_limit: Option<CoreLimit>,
}

impl Program {
    /// Starts it by `start`.
    fn started<T>(&self, start: impl FnOnce() -> T) -> T {
        match self.core_limit {
            Some(limit) => limit.lifted(start),
            None => start(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.name);
        command.args(&self.arguments);
        command
    }

    fn not_started(&self, error: &io::Error) -> Failure {
        let name = self.name.to_string_lossy();
        let advice = match error.kind() {
            // execve(2): E2BIG.
            io::ErrorKind::ArgumentListTooLong => {
                "\n  a variable may hold 128 KiB, and all of them together some more; --files DIR \
                 hands longer values over"
            }
            _ => "",
        };
        Failure::not_started(format!("cannot run {name}: {error}{advice}"), error)
    }
}

fn program(
    args: &Exec,
    to_run: Vec<OsString>,
    core_limit: Option<CoreLimit>,
) -> Result<Program, Failure> {
    const EXAMPLE: &str = "put -- before it, as in `credential-vault exec --mask -- make test`";

    if !args.misplaced.is_empty() {
        return Err(Failure::usage(format!("which is the command to run?\n  {EXAMPLE}")));
    }
    let mut to_run = to_run.into_iter();
    match to_run.next() {
        Some(name) => Ok(Program { name, arguments: to_run.collect(), core_limit }),
        None => Err(Failure::usage(format!("there is no command to run\n  {EXAMPLE}"))),
    }
}

fn selection(args: &Exec) -> Result<Selection, Failure> {
    let mut selection = Selection::new();
    if let Some(consumer) = &args.consumer {
        selection = selection.consumer(consumer);
    }
    for at in &args.only {
        selection = selection.only(credential(at)?);
    }
    for name in &args.namespace {
        selection = selection.namespace(Namespace::new(name).map_err(Failure::usage)?);
    }
    for mapping in &args.env {
        let Some((name, at)) = mapping.split_once('=') else {
            return Err(Failure::usage(
                "--env maps a variable to a credential: --env NAME=NAMESPACE/KEY",
            ));
        };
        selection = selection.mapped(name, credential(at)?);
    }
    if args.allow_executor_only {
        selection = selection.allow_executor_only();
    }
    Ok(selection)
}
