//! The service manager's side of `serve`: the socket it passes, and what it is told.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use intentframe_credentials::Environment;
use intentframe_credentials::client::{ClientError, ClientOptions, VaultClient};
use intentframe_credentials::server::Endpoint;
use listenfd::ListenFd;
use nix::sys::socket::MsgFlags;
use sd_notify::NotifyState;

use super::failure::Failure;
use super::start_thread;

/// The listening socket that a service manager passes (`LISTEN_FDS`, `sd_listen_fds(3)`).
///
/// Must be called before any other thread starts: it removes the variables from the
/// environment.
pub fn inherited_socket(environment: &Environment) -> Result<Option<Endpoint>, Failure> {
    let is_for_us =
        environment.setting("LISTEN_PID").is_some_and(|pid| pid.parse() == Ok(std::process::id()));
    if !is_for_us {
        return Ok(None);
    }
    let mut sockets = ListenFd::from_env();
    let count = sockets.len();
    if count > 1 {
        return Err(Failure::usage(format!(
            "LISTEN_FDS passes {count} sockets, and the vault serves one; configure a single \
             ListenStream="
        )));
    }
    let unusable = |error| Failure::usage(format!("cannot use the socket of LISTEN_FDS: {error}"));
    let socket = sockets.take_unix_listener(0).map_err(unusable)?;
    Ok(socket.map(|it| Endpoint::Inherited(Arc::new(it))))
}

/// Tells the service manager, if there is one (`NOTIFY_SOCKET`).
pub fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
    }
}

/// The descriptor to write to when the service is ready (`--ready-fd`).
pub enum ReadyFd {
    /// Anything that can be opened again.
    File(File),
    Socket(RawFd),
}

impl ReadyFd {
    /// Takes over the descriptor, so that it is closed after the write: a reader may wait for
    /// the end of the file.
    pub fn open(number: RawFd) -> Result<Self, Failure> {
        const FIRST_FREE: RawFd = 3;
        if number < FIRST_FREE {
            return Err(Failure::usage("--ready-fd is 3 or more, as in: --ready-fd 3 3>ready"));
        }
        // Only unsafe code can own a descriptor by its number. Opening it again is safe.
        match OpenOptions::new().append(true).open(format!("/dev/fd/{number}")) {
            Ok(file) => {
                let _ = nix::unistd::close(number);
                Ok(Self::File(file))
            }
            // A socket cannot be opened by name.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                Ok(Self::Socket(number))
            }
            Err(error) => Err(Failure::usage(format!("cannot write to --ready-fd: {error}"))
                .hint(&format!("open it, as in: --ready-fd {number} {number}>ready"))),
        }
    }

    /// Writes a line, whose end s6 and similar programs wait for.
    pub fn write(self) -> io::Result<()> {
        const READY: &[u8] = b"ready\n";
        match self {
            Self::File(mut file) => file.write_all(READY),
            Self::Socket(number) => {
                let sent = nix::sys::socket::send(number, READY, MsgFlags::empty());
                let _ = nix::unistd::close(number);
                Ok(sent.map(drop)?)
            }
        }
    }
}

/// Notifies the watchdog of the service manager, if there is one (`WATCHDOG_USEC`), while the
/// service answers on its own socket and `ended` is connected.
pub fn start_watchdog(socket: Option<PathBuf>, ended: Receiver<()>) -> io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let pause = limit / 3;
    let options = ClientOptions { timeout: pause, ..ClientOptions::default() };
    let client = socket.map(|socket| VaultClient::with_options(socket, &options));
    start_thread("watchdog", move || {
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            match client.as_ref().map(VaultClient::health) {
                // A restart would not help if the backend is unavailable or there are too many
                // connections: the service answers.
                None
                | Some(Ok(_) | Err(ClientError::Failed { .. } | ClientError::Refused { .. })) => {
                    notify(&[NotifyState::Watchdog]);
                }
                Some(Err(error)) => {
                    log::error!("the service does not answer its watchdog: {error}");
                }
            }
        }
    })
}
