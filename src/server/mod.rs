//! The server: sockets and connections in front of the router.
//!
//! ```text
//! accept ──> parked (poll, one-shot) ──> I/O workers, one per core
//!               ^                          | read, parse, resolve the call
//!               |                          |-- needs no backend: answer, park
//!               |                          `-- may block ──queue──> blocking workers
//!               `─────────────────────────────────────────────────────'  answer, park
//! ```
//!
//! A connection has one owner at a time: the parking lot, an I/O worker, or a blocking worker. It
//! is moved, not shared. I/O workers never wait for a backend, so that `/health` answers whatever
//! the backends do.

mod accept;
mod buffer;
mod connection;
mod head;
mod listener;
mod parked;
mod poll;
mod response;
mod worker;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::backoff::Backoff;
use crate::router::Router;
use crate::sync::lock;

use crossbeam_channel::{Sender, bounded};
pub use listener::Listener;
use parked::Parked;
use poll::Poller;
use worker::{MAX_QUEUED, Shared};

/// The limits for clients.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Request line and headers, in bytes; more is answered 431.
    pub head_bytes: usize,
    /// A request's body, in bytes; more is answered 413.
    pub body_bytes: usize,
    /// Connections at a time. For one more, the connection that has been idle longest is closed;
    /// if none is idle, the new one is answered 503.
    pub connections: usize,
    /// From the first byte of a request to its last. A later one is answered 408.
    pub request: Duration,
    /// Between two requests on a connection; then it is closed.
    pub idle: Duration,
    /// For a client to take the next part of an answer; then the connection is closed.
    pub write: Duration,
    /// For running requests to finish when the server is stopped.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 16 * 1024,
            body_bytes: 2 * 1024 * 1024,
            connections: 1024,
            request: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(10),
            drain: Duration::from_secs(10),
        }
    }
}

/// Where the server listens.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// A Unix domain socket at this path.
    Unix(PathBuf),
    /// A Unix domain socket that is listening already, passed by the process that started this
    /// one (`sd_listen_fds(3)`). It is left as it is in the end.
    Inherited(Arc<UnixListener>),
    /// TCP on this port of the loopback address; 0 lets the system choose. For development only:
    /// TCP does not tell who connects.
    LoopbackTcp(u16),
}

/// Which users can reach a socket: the mode and the group of its file. Who may ask for what is the
/// router's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// The permission bits, such as 0660.
    pub mode: u32,
    /// The group's ID; unset leaves the group of this process.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// Mode 0600: only this user and root.
    fn default() -> Self {
        Self { mode: 0o600, group: None }
    }
}

impl SocketAccess {
    /// The mode of the socket's directory.
    fn directory(self) -> u32 {
        if self.is_shared() { 0o711 } else { 0o700 }
    }

    fn is_shared(self) -> bool {
        self.mode & 0o077 != 0
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process serves this socket.
    #[error("already running: another process serves {}; stop it, or choose another path", .0.display())]
    AlreadyRunning(PathBuf),
    /// A file that is not a socket is in the way, or the directory is not safe.
    #[error("cannot listen at {}: {reason}", path.display())]
    BadPath {
        /// The socket's path.
        path: PathBuf,
        /// The problem, and what to do.
        reason: String,
    },
    /// The system refused.
    #[error("cannot listen at {endpoint}: {source}")]
    Io {
        /// Where.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
}

/// A running server. Dropping it stops it, as [`stop`](Self::stop) does, but does not wait.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: Option<SocketAddr>,
    /// The accept loop, which holds the listener; `None` once it was stopped.
    acceptor: Mutex<Option<JoinHandle<()>>>,
    threads: Vec<JoinHandle<()>>,
    /// Its end is that of the threads which do not wait for the poller.
    _running: Sender<Infallible>,
}

/// A worker's stack. Most of them wait.
const STACK_BYTES: usize = 512 * 1024;

impl Server {
    /// Serves `router` at a bound endpoint. Requests that may wait for a backend are carried out
    /// by `workers` threads, at least 2; all others by a thread for each core.
    ///
    /// # Errors
    ///
    /// [`StartError::Io`], and nothing is left behind.
    pub fn start(
        listener: Listener,
        router: Arc<Router>,
        workers: usize,
        limits: Limits,
    ) -> Result<Self, StartError> {
        let (endpoint, address) = (listener.endpoint.clone(), listener.tcp_address());
        raise_descriptor_limit(limits.connections);
        let started = Parked::new(limits.connections).and_then(|parked| {
            let (jobs, queue) = bounded(MAX_QUEUED);
            let (running, ended) = bounded(0);
            let (clients, is_stopping) = (Poller::new()?, AtomicBool::new(false));
            let shared = Arc::new(Shared { router, limits, parked, clients, is_stopping, jobs });
            let (acceptor, threads) = (Mutex::new(None), Vec::new());
            let mut server = Self { shared, address, acceptor, threads, _running: running };
            // One at least goes on while another makes a page of a listing.
            for _ in 0..thread::available_parallelism().map_or(2, usize::from).max(2) {
                server.threads.push(server.start_thread("io", Shared::serve_ready)?);
            }
            for _ in 0..workers.max(2) {
                let (queue, ended) = (queue.clone(), ended.clone());
                server.threads.push(server.start_thread("blocking", move |shared| {
                    shared.serve_blocking(&queue, &ended);
                })?);
            }
            server.threads.push(server.start_thread("sweep", move |shared| shared.sweep(&ended))?);
            // Nobody is accepted before all threads run.
            let acceptor =
                server.start_thread("accept", move |shared| shared.accept_clients(&listener))?;
            server.acceptor = Mutex::new(Some(acceptor));
            Ok(server)
        });
        started.map_err(|source| StartError::Io { endpoint, source })
    }

    fn start_thread(
        &self,
        name: &str,
        run: impl Fn(&Shared) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || repeat_after_panic(|| run(&shared)))
    }

    /// Where it listens, when on TCP.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Stops accepting, closes idle connections, and lets the others finish their answer. Does
    /// not wait. The socket file is gone when this returns.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        let acceptor = lock(&self.acceptor).take();
        if let Some(acceptor) = acceptor {
            self.shared.clients.end();
            acceptor.thread().unpark();
            // It goes on after a panic, so it has ended well.
            let _ = acceptor.join();
        }
        self.shared.parked.drain();
    }

    /// Waits until all connections are served after a [`stop`](Self::stop), at most
    /// [`Limits::drain`]. Says whether all were.
    #[must_use]
    pub fn join(mut self) -> bool {
        let drained = self.shared.parked.wait_until_drained(self.shared.limits.drain);
        let threads = std::mem::take(&mut self.threads);
        drop(self);
        if drained {
            for thread in threads {
                // A worker catches what panics in a request; nothing is left to report.
                let _ = thread.join();
            }
        }
        drained
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        self.shared.parked.poller.end();
    }
}

/// Runs a thread's loop until it returns. A panic costs the connection that it was about, and
/// the loop starts again after a pause.
fn repeat_after_panic(run: impl Fn()) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    while catch_unwind(AssertUnwindSafe(&run)).is_err() {
        // Stopping ends the accept loop's pause.
        thread::park_timeout(backoff.next_pause());
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.socket(), self) {
            (Some(path), _) => write!(f, "{}", path.display()),
            (None, Self::LoopbackTcp(port)) => write!(f, "127.0.0.1:{port}"),
            (None, _) => f.write_str("a socket without a path"),
        }
    }
}

impl Endpoint {
    /// Whether it is an inherited socket that other users may connect to. One without a path has no
    /// permissions that would keep them out.
    #[must_use]
    pub fn is_open_to_others(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let mode = |path: PathBuf| Some(path.symlink_metadata().ok()?.mode());
        matches!(self, Self::Inherited(_))
            && self.socket().and_then(mode).is_none_or(|mode| mode & 0o077 != 0)
    }

    /// The socket's path, when it has one.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(path) => Some(path.clone()),
            Self::Inherited(listener) => {
                listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
            }
            Self::LoopbackTcp(_) => None,
        }
    }
}

/// Raises this process's soft limit on descriptors to the number that so many connections need,
/// as far as the hard limit allows.
fn raise_descriptor_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const FOR_EVERYTHING_ELSE: u64 = 128;
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(FOR_EVERYTHING_ELSE);
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(soft) = current.filter(|soft| *soft < wanted) else { return };
    let raised = maximum.map_or(wanted, |hard| hard.min(wanted));
    if raised < wanted {
        log::warn!(
            "only {raised} descriptors are allowed, too few for {connections} connections; \
             raise the hard limit (ulimit -Hn)"
        );
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum }) {
        log::warn!("the limit on descriptors stays at {soft}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::repeat_after_panic;

    #[test]
    fn a_thread_goes_on_after_panics() {
        let runs = Cell::new(0);
        repeat_after_panic(|| {
            runs.set(runs.get() + 1);
            assert!(runs.get() == 3, "on purpose");
        });
        assert_eq!(runs.get(), 3);
    }
}
