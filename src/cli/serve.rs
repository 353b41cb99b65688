//! `serve`: from options and environment to a running service.

use std::io;
use std::num::NonZero;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, unbounded};
use intentframe_credentials::backoff::Backoff;
use intentframe_credentials::daemon::{DEFAULT_WORKERS, Daemon, DaemonError, Settings};
use intentframe_credentials::server::Endpoint;
use intentframe_credentials::{CredentialRef, VaultError};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::signal_name;

use super::local::Local;
use super::prelude::*;
use super::seal;
use super::signals;
use super::start_thread;
use super::supervised::{self, ReadyFd};

/// Run the service.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "serve", help_triggers("-h", "--help"))]
#[argh(note = "Under a service manager, the service uses the socket passed in LISTEN_FDS. It\n\
            reports to NOTIFY_SOCKET when it is ready and when it stops, and, if\n\
            WATCHDOG_USEC is set, that it still answers.")]
pub struct Serve {
    /// keep the metadata database in this directory (INTENTFRAME_DATA_DIR, else
    /// ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// keep the values in this backend (IF_VAULT_BACKEND): keyring (the default), hashicorp,
    /// sealed (encrypted, in the database), service (another vault, at IF_VAULT_UPSTREAM_SOCKET) or env (memory)
    #[argh(option, arg_name = "name")]
    backend: Option<String>,

    /// the key of the backend sealed (IF_VAULT_KEY_FILE, else $CREDENTIALS_DIRECTORY/vault-key,
    /// else vault.key beside the data directory)
    #[argh(option, arg_name = "path")]
    key_file: Option<PathBuf>,

    /// read the passphrase of the backend sealed from this file descriptor
    #[argh(option, arg_name = "number")]
    passphrase_fd: Option<i32>,

    /// retry while the backend is unavailable, instead of exiting
    #[argh(switch)]
    wait_for_backend: bool,

    /// the number of threads that may wait for the backend
    #[argh(option, arg_name = "count")]
    workers: Option<NonZero<usize>>,

    /// the mode of the socket's file in octal, such as 0660 (0600 by default); another one needs a policy
    #[argh(option, arg_name = "mode")]
    socket_mode: Option<SocketMode>,

    /// the group of the socket's file; needs a policy
    #[argh(option, arg_name = "name")]
    socket_group: Option<String>,

    /// give other users the rights in this policy file (IF_VAULT_POLICY)
    #[argh(option, arg_name = "path")]
    policy: Option<PathBuf>,

    /// record every decision about a value in this file (IF_VAULT_AUDIT_LOG)
    #[argh(option, arg_name = "path")]
    audit_log: Option<PathBuf>,

    /// write a line to this file descriptor, then close it, once the service accepts requests
    #[argh(option, arg_name = "number")]
    ready_fd: Option<i32>,
}

pub fn run(args: Serve, context: &Context) -> Result<(), Failure> {
    let environment = &context.environment;
    let ready_fd = args.ready_fd.map(ReadyFd::open).transpose()?;
    let is_configured = args.backend.is_some() || environment.setting("IF_VAULT_BACKEND").is_some();
    let endpoint = match supervised::inherited_socket(environment)? {
        Some(inherited) => inherited,
        // The default needs HOME, which a service manager need not set.
        None => Endpoint::Unix(context.socket()?),
    };
    let needs_sealed = args.key_file.is_some() || args.passphrase_fd.is_some();
    let mut local = Local::new(context, args.data_dir.as_deref(), args.backend, args.key_file)?;
    if needs_sealed && local.backend != "sealed" {
        return Err(Failure::usage("--key-file and --passphrase-fd require --backend sealed"));
    }
    local.backend_options.own_socket = endpoint.socket();
    seal::unlock(&mut local, args.passphrase_fd, context)?;
    let Local { data_dir, backend, backend_options, .. } = local;
    let mut settings = Settings::new(endpoint, data_dir, &backend, backend_options);
    settings.workers = workers(args.workers, context)?;
    settings.hide_previews = match environment.setting("IF_VAULT_PREVIEW") {
        None | Some("full") => false,
        Some("none") => true,
        Some(_) => return Err(Failure::usage("IF_VAULT_PREVIEW is either full or none")),
    };
    if let Some(SocketMode(mode)) =
        context.setting(args.socket_mode, "IF_VAULT_SOCKET_MODE", SOCKET_MODE)?
    {
        settings.socket_access.mode = mode;
    }
    let name = args.socket_group.as_deref().or(environment.setting("IF_VAULT_SOCKET_GROUP"));
    settings.socket_access.group = name.map(group).transpose()?;
    settings.policy = context.setting_path(args.policy, "IF_VAULT_POLICY")?;
    settings.audit_log = context.setting_path(args.audit_log, "IF_VAULT_AUDIT_LOG")?;
    let wait = args.wait_for_backend.then_some(true);
    let wait = context.setting(wait, "IF_VAULT_WAIT_FOR_BACKEND", "it is either true or false")?;
    serve_until_signal(&settings, ready_fd, wait.unwrap_or(false), |daemon| {
        if is_configured { Ok(()) } else { try_keyring(daemon).map_err(cannot("start a thread")) }
    })
}

/// Logs what to do if the keyring, which nobody chose, does not work. A client would be told only
/// by its first request.
fn try_keyring(daemon: &Daemon) -> io::Result<()> {
    let service = Arc::clone(daemon.service());
    let at = CredentialRef::parse("vault", "probe").expect("a valid name");
    start_thread("keyring-probe", move || {
        if let Err(error @ VaultError::BackendUnavailable { .. }) = service.has(&at) {
            log::warn!("{error}");
        }
    })
}

/// The number of blocking workers.
pub fn workers(given: Option<NonZero<usize>>, context: &Context) -> Result<usize, Failure> {
    let workers = context.setting(given, "IF_VAULT_WORKERS", "it is a number, at least 1")?;
    Ok(workers.map_or(DEFAULT_WORKERS, NonZero::get))
}

/// A mode in octal.
struct SocketMode(u32);

const SOCKET_MODE: &str = "give it in octal, with 0600 for the service's own user, as in 0660";

impl FromStr for SocketMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mode = u32::from_str_radix(text, 8).ok();
        mode.filter(|mode| (0o600..=0o777).contains(mode)).map(Self).ok_or(SOCKET_MODE)
    }
}

fn group(name: &str) -> Result<u32, Failure> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(Failure::usage(format!("this system has no group {name:?}"))),
        Err(error) => Err(Failure::other(format!("the group cannot be looked up: {error}"))),
    }
}

/// Starts the vault, calls `started`, and serves until SIGTERM or SIGINT. A second signal
/// ends the process at once. With `wait`, retries while the backend is unavailable.
pub fn serve_until_signal(
    settings: &Settings,
    ready_fd: Option<ReadyFd>,
    wait: bool,
    started: impl FnOnce(&Daemon) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // Before the vault starts, so that no signal is lost.
    let reloads = settings.policy.is_some() || settings.audit_log.is_some();
    let signals = handle_signals(reloads).map_err(cannot("handle signals"))?;
    let Some(daemon) = start(settings, wait, &signals)? else {
        return Ok(());
    };
    let (_serving, ended) = bounded(0);
    supervised::start_watchdog(settings.endpoint.socket(), ended)
        .map_err(cannot("start the watchdog"))?;
    log::info!("serving the {} backend at {}", settings.backend, settings.endpoint);
    started(&daemon)?;
    supervised::notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    if let Some(Err(error)) = ready_fd.map(ReadyFd::write) {
        log::warn!("cannot write to --ready-fd: {error}");
    }
    while let Ok(signal) = signals.recv() {
        if signal == RELOAD {
            daemon.reload();
            continue;
        }
        log::info!("{signal}: finishing the open requests; a second signal ends them");
        break;
    }
    supervised::notify(&[NotifyState::Stopping]);
    daemon.stop();
    match daemon.join() {
        // Stopping is what was asked for; the log has the requests that took too long.
        Err(error @ DaemonError::NotDrained) => log::warn!("{error}"),
        result => result?,
    }
    Ok(())
}

const RELOAD: &str = "SIGHUP";

/// Handles SIGTERM and SIGINT, and SIGHUP if the service can reload something. Returns the names
/// of those that arrive.
fn handle_signals(reloads: bool) -> io::Result<Receiver<&'static str>> {
    signals::stop_flag()?;
    // A write beyond the limit on file sizes fails, like one to a full disk. The signal that
    // comes with it must not end the process.
    flag::register(SIGXFSZ, Arc::default())?;
    let (sender, names) = unbounded();
    signals::listen(signals::STOP.into_iter().chain(reloads.then_some(SIGHUP)), move |received| {
        let _ = sender.send(signal_name(received.signal.as_raw()).unwrap_or("signal"));
    })?;
    Ok(names)
}

/// Starts the vault; with `wait`, retries while its backend is unavailable. Returns `None` if
/// a signal arrives first.
fn start(
    settings: &Settings,
    wait: bool,
    signals: &Receiver<&'static str>,
) -> Result<Option<Daemon>, Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    loop {
        match Daemon::start(settings) {
            Err(DaemonError::Vault(error @ VaultError::BackendUnavailable { .. })) if wait => {
                log::warn!("{error}; waiting for it");
                supervised::notify(&[NotifyState::Status("waiting for the backend")]);
            }
            result => return Ok(Some(result?)),
        }
        if let Ok(signal) = signals.recv_timeout(backoff.next_pause())
            && signal != RELOAD
        {
            log::info!("{signal}: the service was still waiting for its backend");
            return Ok(None);
        }
    }
}
