//! What `serve` has to do with whoever started it: the socket it is given, and what it tells.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::RawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use intentframe_credentials::Environment;
use intentframe_credentials::client::{ClientError, ClientOptions, VaultClient};
use listenfd::ListenFd;
use sd_notify::NotifyState;

use super::failure::Failure;

/// The listening socket that a service manager passes (`LISTEN_FDS`, `sd_listen_fds(3)`).
///
/// Called before any other thread is started: it takes the variables out of the environment.
pub fn inherited_socket(environment: &Environment) -> Result<Option<UnixListener>, Failure> {
    let is_for_us =
        environment.setting("LISTEN_PID").is_some_and(|pid| pid.parse() == Ok(std::process::id()));
    if !is_for_us {
        return Ok(None);
    }
    let mut sockets = ListenFd::from_env();
    match sockets.len() {
        0 => Ok(None),
        1 => sockets
            .take_unix_listener(0)
            .map_err(|error| Failure::usage(format!("the socket of LISTEN_FDS: {error}"))),
        count => Err(Failure::usage(format!(
            "LISTEN_FDS passes {count} sockets, and the vault serves one; give it a single \
             ListenStream="
        ))),
    }
}

/// Whom to tell how the service is.
pub struct Supervisor {
    ready: Option<ReadyFd>,
}

impl Supervisor {
    /// Checks that there is something to write to at `ready_fd`.
    pub fn new(ready_fd: Option<RawFd>) -> Result<Self, Failure> {
        let ready = ready_fd.map(ReadyFd::open).transpose()?;
        Ok(Self { ready })
    }

    /// The backend is waited for.
    pub fn waiting() {
        notify(&[NotifyState::Status("waiting for the backend")]);
    }

    /// Requests are served.
    pub fn ready(&mut self) {
        notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
        if let Some(ready) = self.ready.take()
            && let Err(error) = ready.tell()
        {
            log::warn!("nobody hears on --ready-fd that the vault is ready: {error}");
        }
    }

    /// No further requests are served.
    pub fn stopping() {
        notify(&[NotifyState::Stopping]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("the service manager cannot be told (NOTIFY_SOCKET): {error}");
    }
}

/// Where to write that the service is ready.
enum ReadyFd {
    File(std::fs::File),
    Socket(RawFd),
}

/// What is written: a line, whose end is what s6 and its like wait for.
const READY: &[u8] = b"ready\n";

impl ReadyFd {
    /// Takes the descriptor over, so that it is closed once it has been written to: a reader
    /// may wait for its end.
    fn open(number: RawFd) -> Result<Self, Failure> {
        const FIRST_FREE: RawFd = 3;
        if number < FIRST_FREE {
            return Err(Failure::usage("--ready-fd is 3 or more, as in: --ready-fd 3 3>ready"));
        }
        // To make an owner of a number takes unsafe code; a second description does not.
        match OpenOptions::new().append(true).open(format!("/dev/fd/{number}")) {
            Ok(file) => {
                close(number);
                Ok(Self::File(file))
            }
            // A socket cannot be opened by its name.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                Ok(Self::Socket(number))
            }
            Err(error) => Err(Failure::usage(format!(
                "--ready-fd {number} cannot be written to: {error}; open it, as in: \
                 --ready-fd {number} {number}>ready"
            ))),
        }
    }

    fn tell(self) -> io::Result<()> {
        match self {
            Self::File(mut file) => file.write_all(READY),
            Self::Socket(number) => {
                let sent =
                    nix::sys::socket::send(number, READY, nix::sys::socket::MsgFlags::empty());
                close(number);
                Ok(sent.map(drop)?)
            }
        }
    }
}

fn close(number: RawFd) {
    if let Err(error) = nix::unistd::close(number) {
        log::debug!("descriptor {number} was not closed: {error}");
    }
}

/// Tells the service manager again and again that the service works, if it wants to hear
/// that (`WATCHDOG_USEC`), for as long as the service answers on its own socket and `ended`
/// is not disconnected.
pub fn start_watchdog(socket: Option<PathBuf>, ended: Receiver<()>) -> io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let pause = limit / 3;
    let options = ClientOptions { timeout: pause, ..ClientOptions::default() };
    let client = socket.map(|socket| VaultClient::with_options(socket, &options));
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            if client.as_ref().is_none_or(answers) {
                notify(&[NotifyState::Watchdog]);
            }
        }
    })?;
    Ok(())
}

/// Whether it answers at all; that its backend is away, or that there are too many
/// connections, is not for a restart to mend.
fn answers(client: &VaultClient) -> bool {
    match client.health() {
        Ok(_) | Err(ClientError::Failed { .. } | ClientError::Refused { .. }) => true,
        Err(error) => {
            log::error!("the service does not answer its watchdog: {error}");
            false
        }
    }
}
