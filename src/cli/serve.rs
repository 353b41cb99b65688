//! `serve`: from options and environment to a running service.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, unbounded};
use intentframe_credentials::daemon::{DEFAULT_WORKERS, Daemon, DaemonError, Settings};
use intentframe_credentials::redact::RegisteredSecrets;
use intentframe_credentials::server::Endpoint;
use intentframe_credentials::{BackendOptions, Environment, SecretWatch, VaultError, settings};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use super::args::Serve;
use super::failure::Failure;
use super::supervised::{self, Supervisor};

/// The setting that names the backend.
const BACKEND_VARIABLE: &str = "IF_VAULT_BACKEND";

/// The backend where no setting names one.
const DEFAULT_BACKEND: &str = "keyring";

/// Serves until told to stop.
pub fn run(
    args: &Serve,
    environment: &Environment,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    let socket = settings::socket(args.socket.as_deref(), environment).map_err(Failure::usage)?;
    let data_dir =
        settings::data_dir(args.data_dir.as_deref(), environment).map_err(Failure::usage)?;
    let backend = args.backend.as_deref().or_else(|| environment.setting(BACKEND_VARIABLE));
    let endpoint = match supervised::inherited_socket(environment)? {
        Some(listener) => Endpoint::Inherited(Arc::new(listener)),
        None => Endpoint::Unix(socket),
    };
    let supervisor = Supervisor::new(args.ready_fd)?;
    let mut options = BackendOptions::new(environment.clone());
    options.own_socket = endpoint.socket();
    let secrets = secrets.clone();
    options.secret_watch = Some(SecretWatch::new(move |secret| secrets.register(secret)));
    let mut settings =
        Settings::new(endpoint, data_dir, backend.unwrap_or(DEFAULT_BACKEND), options);
    settings.workers = workers(args.workers)?;
    serve_until_signal(&settings, supervisor, args.wait_for_backend, |_| Ok(()))
}

/// How many workers; none at all cannot be.
pub fn workers(count: Option<usize>) -> Result<usize, Failure> {
    match count {
        Some(0) => Err(Failure::usage("--workers is at least 1")),
        count => Ok(count.unwrap_or(DEFAULT_WORKERS)),
    }
}

/// Starts the vault, says so by `started`, and serves until SIGTERM or SIGINT. A second
/// signal ends the process at once. With `wait`, a backend that is unavailable is waited
/// for.
pub fn serve_until_signal(
    settings: &Settings,
    mut supervisor: Supervisor,
    wait: bool,
    started: impl FnOnce(&Daemon) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let signals = [SIGTERM, SIGINT];
    let signalled = Arc::new(AtomicBool::new(false));
    let cannot = |error| Failure::other(format!("signals cannot be handled: {error}"));
    for signal in signals {
        // In this order: the first signal finds the flag unset, and sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&signalled))
            .map_err(cannot)?;
        flag::register(signal, Arc::clone(&signalled)).map_err(cannot)?;
    }
    // A limit on file sizes is an error of the write that meets it, like a full disk; the
    // signal that comes with it would end the process.
    flag::register(SIGXFSZ, Arc::default()).map_err(cannot)?;
    // Before the vault starts, so that no signal is missed meanwhile.
    let told = signals_told(signals).map_err(cannot)?;
    let Some(daemon) = start(settings, wait, &told)? else {
        return Ok(());
    };
    let (_serving, ended) = bounded(0);
    supervised::start_watchdog(settings.endpoint.socket(), ended)
        .map_err(|error| Failure::other(format!("no thread for the watchdog: {error}")))?;
    log::info!("serving the {} backend at {}", settings.backend, settings.endpoint);
    started(&daemon)?;
    supervisor.ready();
    if let Ok(signal) = told.recv() {
        log::info!("{}: finishing what runs; a second signal ends it at once", name_of(signal));
    }
    Supervisor::stopping();
    daemon.stop();
    match daemon.join() {
        // Asked to stop, it has: requests that took too long are in the log.
        Err(error @ DaemonError::NotDrained) => {
            log::warn!("{error}");
            Ok(())
        }
        result => result.map_err(Failure::other),
    }
}

/// A channel on which the signals come.
fn signals_told(signals: [i32; 2]) -> io::Result<Receiver<i32>> {
    let mut told = Signals::new(signals)?;
    let (tell, hear) = unbounded();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in told.forever() {
            let _ = tell.send(signal);
        }
    })?;
    Ok(hear)
}

fn name_of(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("a signal")
}

/// Starts the vault; with `wait`, as often as its backend is unavailable. `None`: a signal
/// came first.
fn start(settings: &Settings, wait: bool, told: &Receiver<i32>) -> Result<Option<Daemon>, Failure> {
    const FIRST_PAUSE: Duration = Duration::from_millis(500);
    const LONGEST_PAUSE: Duration = Duration::from_secs(10);

    let mut pause = FIRST_PAUSE;
    loop {
        match Daemon::start(settings) {
            Ok(daemon) => return Ok(Some(daemon)),
            Err(DaemonError::Vault(error @ VaultError::BackendUnavailable { .. })) if wait => {
                log::warn!("{error}; waiting for it");
                Supervisor::waiting();
            }
            Err(error) => return Err(not_started(error)),
        }
        if let Ok(signal) = told.recv_timeout(pause) {
            log::info!("{}: not waiting any longer", name_of(signal));
            return Ok(None);
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn not_started(error: DaemonError) -> Failure {
    match error {
        DaemonError::Vault(error @ VaultError::ValidationFailed { .. }) => Failure::usage(error),
        DaemonError::Vault(error @ VaultError::BackendUnavailable { .. }) => {
            Failure::other(format!("{error}; or start with --wait-for-backend"))
        }
        error => Failure::other(error),
    }
}
