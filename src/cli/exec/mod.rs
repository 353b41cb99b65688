//! `exec`: runs a command with credentials, in place of this process or below it.

mod environment;
#[cfg(target_os = "linux")]
mod files;
mod git;
mod masking;
mod options;
mod supervise;
mod terminal;

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Sender, tick, unbounded};
use intentframe_credentials::client::VaultClient;
use intentframe_credentials::spawn::Watcher;
use signal_hook::consts::{
    SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};

use super::failure::{Failure, cannot};
use super::output::escaped;
use super::{Context, child, signals, start_thread};

use environment::{Inherited, Variables};
use masking::Masks;
pub use options::Exec;
use supervise::{Event, Supervisor};

/// Does not return if the command replaces this process.
#[cfg_attr(not(target_os = "linux"), expect(clippy::needless_pass_by_value, reason = "--files"))]
pub fn run(args: Exec, context: &Context) -> Result<(), Failure> {
    const EXAMPLE: &str = "put -- before it, as in `credential-vault exec --mask -- make test`";

    if !args.git_credential.is_empty() {
        return git::answer(&args, context);
    }
    let client = context.client()?;
    let selection = args.selection()?;
    let inherited = Inherited::new(&args, std::env::vars_os());
    let watch = args.watch()?;
    if context.program.is_empty() || !args.misplaced.is_empty() {
        return Err(Failure::usage("no command to run after --").hint(EXAMPLE));
    }
    #[cfg(not(target_os = "linux"))]
    if args.files.is_some() {
        return Err(Failure::usage("--files needs memfd_create(2), which this system lacks"));
    }
    if watch.is_none() && args.files.is_none() && !args.mask {
        let variables = inherited.with_credentials(&selection.fetch(&client)?)?;
        let mut command = command(context, &variables);
        return start(context, || Err(command.exec()));
    }

    let (sender, events) = unbounded();
    // Before the command starts, so that its end is not missed.
    handle_signals(sender.clone()).map_err(cannot("handle signals"))?;
    let credentials = match &watch {
        None => Arc::new(selection.fetch(&client)?),
        Some(watch) => {
            let watcher = Watcher::start(&client, selection)?;
            let credentials = Arc::clone(watcher.current());
            let interval = watch.interval;
            start_thread("watch", move || poll(&client, watcher, interval, &sender))
                .map_err(cannot("watch the vault"))?;
            credentials
        }
    };
    let supervisor = Supervisor {
        context,
        inherited,
        masks: args.mask.then(|| Masks::new(&credentials)),
        #[cfg(target_os = "linux")]
        files: args
            .files
            .map(|directory| files::Files::new(&directory, &credentials))
            .transpose()?,
        credentials,
        events,
        watch,
    };
    // This drops the supervisor, with the files and the masks, before the process ends.
    supervise::end_as(supervisor.run()?)
}

/// Handles the signals that matter while a command runs. Those that this process was started
/// to ignore stay ignored, as nohup(1) and a shell's `&` expect.
fn handle_signals(events: Sender<Event>) -> io::Result<()> {
    // A bit per signal: proc_pid_status(5). Other systems lack the file.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let wanted = [SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH]
        .into_iter()
        .filter(|signal| *signal == SIGCHLD || ignored & (1 << (signal - 1)) == 0);
    signals::listen(wanted, move |received| drop(events.send(Event::Signal(received))))
}

/// Polls the vault, and sends every change. Logs each problem once: the command goes on with
/// the credentials that it has.
fn poll(client: &VaultClient, mut watcher: Watcher, interval: Duration, events: &Sender<Event>) {
    let mut problem: Option<String> = None;
    for _ in tick(interval) {
        let error = match watcher.look(client) {
            Ok(Some(new)) if events.send(Event::Changed(Arc::clone(new))).is_err() => return,
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|error| problem.as_ref() != Some(error)) {
            warn(error);
        }
        problem = error;
    }
}

/// Logs why the command keeps its present credentials.
fn warn(why: &str) {
    let why = why.split("\n  ").map(escaped).collect::<Vec<_>>().join("; ");
    log::warn!("the command keeps its present credentials: {why}");
}

/// The command after `--`, with exactly these variables.
fn command(context: &Context, variables: &Variables) -> Command {
    let mut command = child::command(&context.program);
    command.env_clear().envs(variables);
    command
}

/// Calls `start` with the core limit that this process was started with. The exit code is 127
/// if the command does not exist, and 126 if it cannot be started, as in env(1).
fn start<T>(context: &Context, start: impl FnOnce() -> io::Result<T>) -> Result<T, Failure> {
    const TOO_LONG: &str = "a variable may have 128 KiB, and all together somewhat more; \
        --files DIR has no such limit";

    context.core_limit.lifted(start).map_err(|error| {
        let (code, hint) = match error.kind() {
            io::ErrorKind::NotFound => (127, ""),
            // E2BIG in execve(2).
            io::ErrorKind::ArgumentListTooLong => (126, TOO_LONG),
            _ => (126, ""),
        };
        let name = context.program[0].to_string_lossy();
        Failure::new(code, format!("cannot run {name}: {error}")).hint(hint)
    })
}
