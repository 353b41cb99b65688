//! Sockets, connections and their threads; the end of all that, and its beginning anew.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::json;

use super::VaultServer;
use super::clock::Clock;
use super::exchange::{Call, Reply};
use super::faults::{Active, Fault, Faults, When};
use super::http::{Reader, Received, written};
use super::journal::Journal;
use super::state::State;

/// What all connections share.
pub struct Shared {
    state: Mutex<State>,
    pub clock: Clock,
    pub faults: Faults,
    pub journal: Journal,
    requires_vault_request: bool,
    /// Odd while the server listens. A request of an earlier life has no effect any more.
    life: AtomicU64,
    accepted: AtomicU64,
    open: Mutex<HashMap<u64, Stream>>,
}

impl Shared {
    pub fn new(clock: Clock, requires_vault_request: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new(VaultServer::ROOT_TOKEN, clock.now())),
            clock,
            faults: Faults::default(),
            journal: Journal::default(),
            requires_vault_request,
            life: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
            open: Mutex::default(),
        })
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Stream>> {
        self.open.lock().expect("nothing panics while it is held")
    }

    fn lives(&self, life: u64) -> bool {
        self.life.load(Ordering::SeqCst) == life
    }

    /// The request's effect and answer; `None` in a life that is over.
    fn apply(&self, call: &Call, life: u64) -> Option<Reply> {
        if self.requires_vault_request && !call.vault_request {
            let error = json!({ "errors": ["missing \"X-Vault-Request\" header"] });
            return Some(Reply::json(412, &error));
        }
        let mut state = self.state();
        // Under the lock under which a life ends.
        self.lives(life).then(|| state.handle(call, self.clock.now()))
    }
}

/// A connection of either kind.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends it for both sides; whoever reads from it wakes up.
    fn end(&self) {
        // It may have ended already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Makes the peer see a reset once this is closed.
    fn reset_at_close(&self) {
        if let Self::Tcp(stream) = self {
            sockopt::set_socket_linger(stream, Some(Duration::ZERO)).expect("a socket has it");
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sockets that are listened on, or the port that is kept while they are not.
pub struct Listening {
    shared: Arc<Shared>,
    port: u16,
    /// Bound and never listened on: nobody else can get the port, and where no other socket
    /// listens, connections are refused.
    _reserved: OwnedFd,
    socket: Option<PathBuf>,
    phase: Mutex<Phase>,
}

enum Phase {
    /// The threads that accept.
    Running(Vec<JoinHandle<()>>),
    Stopped,
}

impl Listening {
    pub fn start(shared: Arc<Shared>, socket: Option<PathBuf>) -> Self {
        let reserved = bind(0).expect("a port is free");
        let port = port_of(&reserved);
        let phase = Mutex::new(Phase::Stopped);
        let listening = Self { shared, port, _reserved: reserved, socket, phase };
        listening.restart();
        listening
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    pub fn open(&self) -> usize {
        self.shared.open().len()
    }

    pub fn close_connections(&self) {
        for stream in self.shared.open().values() {
            stream.end();
        }
    }

    pub fn restart(&self) {
        let mut phase = self.phase.lock().expect("nothing panics while it is held");
        let Phase::Stopped = &*phase else { return };
        let tcp = bind(self.port).expect("the port is reserved");
        net::listen(&tcp, 1024).expect("a bound socket can listen");
        let life = self.shared.life.fetch_add(1, Ordering::SeqCst) + 1;
        let tcp = TcpListener::from(tcp);
        let shared = self.shared.clone();
        let mut threads = vec![thread::spawn(move || {
            accept_all(&shared, life, || {
                let (stream, _) = tcp.accept()?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            });
        })];
        if let Some(path) = &self.socket {
            // What a killed server left.
            let _ = std::fs::remove_file(path);
            let unix = UnixListener::bind(path).expect("binds in a directory of its own");
            let shared = self.shared.clone();
            threads.push(thread::spawn(move || {
                accept_all(&shared, life, || Ok(Stream::Unix(unix.accept()?.0)));
            }));
        }
        *phase = Phase::Running(threads);
    }

    pub fn stop(&self) {
        let mut phase = self.phase.lock().expect("nothing panics while it is held");
        let Phase::Running(threads) = &mut *phase else { return };
        {
            // Nothing has an effect from here on.
            let _state = self.shared.state();
            self.shared.life.fetch_add(1, Ordering::SeqCst);
        }
        // Wakes the threads that accept: they see that their life is over.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(path) = &self.socket {
            drop(UnixStream::connect(path));
        }
        for thread in threads.drain(..) {
            thread.join().expect("accepting does not panic");
        }
        self.close_connections();
        *phase = Phase::Stopped;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared.faults.clear();
        self.stop();
    }
}

fn bind(port: u16) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    // Connections of an earlier life may still hold the port.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))?;
    Ok(socket)
}

fn port_of(socket: &OwnedFd) -> u16 {
    let address = net::getsockname(socket).expect("it is bound");
    SocketAddr::try_from(address).expect("an address of the Internet").port()
}

fn accept_all(shared: &Arc<Shared>, life: u64, accept: impl Fn() -> io::Result<Stream>) {
    loop {
        // A peer may be gone before it is accepted.
        let Ok(stream) = accept() else { continue };
        if !shared.lives(life) {
            return;
        }
        let number = shared.accepted.fetch_add(1, Ordering::SeqCst) + 1;
        let handle = stream.try_clone().expect("a descriptor is free");
        shared.open().insert(number, handle);
        let shared = shared.clone();
        thread::spawn(move || {
            let resets = serve(&shared, life, number, &stream);
            let handle = shared.open().remove(&number);
            // Both descriptors have to be closed for a reset; `end` would close in order.
            if !resets {
                stream.end();
            }
            drop((handle, stream));
        });
    }
}

/// Answers until the connection ends; whether that is to be a reset.
fn serve(shared: &Shared, life: u64, number: u64, stream: &Stream) -> bool {
    let Ok(reading) = stream.try_clone() else { return false };
    let mut reader = Reader::new(reading);
    let Ok(mut writing) = stream.try_clone() else { return false };
    // A client that has gone is the business of its test.
    while let Ok(Some(received)) = reader.next() {
        let (call, keeps_alive) = match received {
            Received::Call { call, keeps_alive } => (call, keeps_alive),
            Received::Hopeless(reply) => {
                drop(writing.write_all(&written(&reply, false, true)));
                return false;
            }
            Received::Unusable { reply, keeps_alive } => {
                let written = writing.write_all(&written(&reply, false, !keeps_alive));
                if written.is_err() || !keeps_alive {
                    return false;
                }
                continue;
            }
        };
        let accessor = call.token.as_ref().and_then(|id| {
            let state = shared.state();
            state.living(id, shared.clock.now()).map(|token| token.accessor.clone())
        });
        let entry = shared.journal.begin(&call, accessor, number);
        let end = answer(shared, life, &call);
        let (status, bytes, then) = end.written(call.method == "HEAD", !keeps_alive);
        // Before the client can see the answer, and send its next request elsewhere.
        shared.journal.end(entry, status);
        let written = writing.write_all(&bytes);
        match then {
            Then::Next if keeps_alive && written.is_ok() => {}
            Then::Next | Then::Close => return false,
            Then::Reset => {
                stream.reset_at_close();
                return true;
            }
            Then::Silence => while reader.next().is_ok_and(|next| next.is_some()) {},
        }
    }
    false
}

/// How a request ends.
enum End {
    Answered(Reply),
    /// A part of the answer, and what follows.
    Half(Reply, Then),
    Bytes(Vec<u8>),
    Nothing(Then),
}

enum Then {
    Next,
    Close,
    Reset,
    Silence,
}

impl End {
    fn written(self, to_head: bool, closes: bool) -> (Option<u16>, Vec<u8>, Then) {
        match self {
            Self::Answered(reply) => {
                (Some(reply.status), written(&reply, to_head, closes), Then::Next)
            }
            Self::Half(reply, then) => {
                let mut bytes = written(&reply, to_head, closes);
                // Of an answer without a body, the end of the head is missing.
                bytes.truncate(bytes.len() - (reply.body.len() / 2).max(2));
                (None, bytes, then)
            }
            Self::Bytes(bytes) => (None, bytes, Then::Close),
            Self::Nothing(then) => (None, Vec::new(), then),
        }
    }
}

fn answer(shared: &Shared, life: u64, call: &Call) -> End {
    let (delays, fault) = shared.faults.met_by(call);
    for delay in delays {
        delay.delay();
    }
    let apply = || match shared.apply(call, life) {
        Some(reply) => End::Answered(reply),
        None => End::Nothing(Then::Close),
    };
    let Some(active) = fault else { return apply() };
    let hold = |active: &Active| active.hold(|| !shared.lives(life));
    let half = |then| match apply() {
        End::Answered(reply) => End::Half(reply, then),
        other => other,
    };
    match active.fault().clone() {
        Fault::Reset(When::Before) => End::Nothing(Then::Reset),
        Fault::Close(When::Before) => End::Nothing(Then::Close),
        Fault::Reset(When::After) => {
            apply();
            End::Nothing(Then::Reset)
        }
        Fault::Close(When::After) => {
            apply();
            End::Nothing(Then::Close)
        }
        Fault::Hang(When::Before) => {
            hold(&active);
            apply()
        }
        Fault::Hang(When::After) => {
            let end = apply();
            hold(&active);
            end
        }
        Fault::Half => half(Then::Close),
        Fault::HalfThenSilence => half(Then::Silence),
        Fault::Answer(reply) => End::Answered(with_path(reply, call)),
        Fault::AnswerAfter(reply) => {
            apply();
            End::Answered(reply)
        }
        Fault::Bytes(bytes) => End::Bytes(bytes),
        Fault::RevokeToken => {
            if let Some(token) = &call.token {
                shared.state().revoke(token);
            }
            apply()
        }
        Fault::Slow(_) | Fault::SlowDisk(_) => apply(),
    }
}

/// A redirect to another server means the same path there.
fn with_path(mut reply: Reply, call: &Call) -> Reply {
    for (name, value) in &mut reply.headers {
        if *name == "Location" {
            write!(value, "/v1/{}", call.path).expect("a string takes everything");
        }
    }
    reply
}
