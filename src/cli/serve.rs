//! `serve`: from options and environment to a running service.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, unbounded};
use intentframe_credentials::backoff::Backoff;
use intentframe_credentials::daemon::{DEFAULT_WORKERS, Daemon, DaemonError, Settings};
use intentframe_credentials::server::Endpoint;
use intentframe_credentials::{BackendOptions, SecretWatch, VaultError, settings};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::signal_name;

use super::Context;
use super::args::Args;
use super::failure::{Failure, cannot};
use super::signals;
use super::supervised::{self, ReadyFd};

pub fn run(mut args: Args, context: &Context) -> Result<(), Failure> {
    let environment = &context.environment;
    let socket = args.path("--socket")?;
    let data_dir = args.path("--data-dir")?;
    let backend = args.value("--backend")?;
    let wait = args.switch("--wait-for-backend");
    let workers = workers(&mut args)?;
    let ready_fd = args.number("--ready-fd")?;
    args.end()?;
    let ready_fd = ready_fd.map(ReadyFd::open).transpose()?;
    let socket = settings::socket(socket.as_deref(), environment)?;
    let data_dir = settings::data_dir(data_dir.as_deref(), environment)?;
    let endpoint = match supervised::inherited_socket(environment)? {
        Some(listener) => Endpoint::Inherited(Arc::new(listener)),
        None => Endpoint::Unix(socket),
    };
    let mut options = BackendOptions::new(environment.clone());
    options.own_socket = endpoint.socket();
    let secrets = context.secrets.clone();
    options.secret_watch = Some(SecretWatch::new(move |secret| secrets.register(secret)));
    let backend =
        backend.as_deref().or(environment.setting("IF_VAULT_BACKEND")).unwrap_or("keyring");
    let mut settings = Settings::new(endpoint, data_dir, backend, options);
    settings.workers = workers;
    serve_until_signal(&settings, ready_fd, wait, |_| Ok(()))
}

/// Takes `--workers`.
pub fn workers(args: &mut Args) -> Result<usize, Failure> {
    match args.number("--workers")? {
        Some(0) => Err(Failure::usage("--workers is at least 1")),
        count => Ok(count.unwrap_or(DEFAULT_WORKERS)),
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
    let signals = handle_signals()?;
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
    if let Ok(signal) = signals.recv() {
        log::info!("{signal}: finishing the open requests; a second signal ends them");
    }
    supervised::notify(&[NotifyState::Stopping]);
    daemon.stop();
    match daemon.join() {
        // Stopping is what was asked for; the log has the requests that took too long.
        Err(error @ DaemonError::NotDrained) => {
            log::warn!("{error}");
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Handles SIGTERM and SIGINT. Returns the names of those that arrive.
fn handle_signals() -> Result<Receiver<&'static str>, Failure> {
    let to_stop = [SIGTERM, SIGINT];
    let is_stopping = Arc::new(AtomicBool::new(false));
    for signal in to_stop {
        // In this order, the first signal finds the flag unset, and then sets it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&is_stopping))
            .map_err(cannot("handle signals"))?;
        flag::register(signal, Arc::clone(&is_stopping)).map_err(cannot("handle signals"))?;
    }
    // A write beyond the limit on file sizes fails, like one to a full disk. The signal that
    // comes with it must not end the process.
    flag::register(SIGXFSZ, Arc::default()).map_err(cannot("handle signals"))?;
    let (sender, names) = unbounded();
    signals::listen(to_stop, move |received| {
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
        if let Ok(signal) = signals.recv_timeout(backoff.next_pause()) {
            log::info!("{signal}: the service was still waiting for its backend");
            return Ok(None);
        }
    }
}
