//! `--mask`: relays the command's output, with the values replaced.
//!
//! One thread per stream reads, masks and writes. It reads on only when everything is
//! written, so a slow reader slows the command down, as it would without `exec`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use intentframe_credentials::redact::Masker;
use intentframe_credentials::spawn::RuntimeEnv;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};
use zeroize::Zeroizing;

use crate::cli::start_thread;

use super::terminal::{Raw, Terminals, copy_size, make_alike};

/// How many bytes are read at a time, and what a pipe is asked to hold.
const CHUNK: usize = 256 * 1024;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// If nothing follows for this long, a terminal shows what might have become a value: a
/// person may be waiting, for example for the echo of a key.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// This many bytes of a value are never shown, however long the rest takes.
const TELLING: usize = 8;

/// For how many changes of the credentials former values stay masked.
const GENERATIONS: usize = 8;

/// The values to mask: those that the command has, and those that it had.
pub struct Masks(Mutex<Generations>);

struct Generations {
    /// How often the credentials have changed.
    changes: usize,
    masker: Masker,
    credentials: Vec<Arc<RuntimeEnv>>,
}

impl Masks {
    pub fn new(credentials: &Arc<RuntimeEnv>) -> Arc<Self> {
        let masker = Masker::new(credentials.values());
        let credentials = vec![Arc::clone(credentials)];
        Arc::new(Self(Mutex::new(Generations { changes: 0, masker, credentials })))
    }

    /// Masks these as well from now on.
    pub fn add(&self, credentials: &Arc<RuntimeEnv>) {
        let mut generations = self.lock();
        generations.credentials.push(Arc::clone(credentials));
        if generations.credentials.len() > GENERATIONS {
            generations.credentials.remove(0);
        }
        generations.masker = Masker::new(generations.credentials.iter().flat_map(|it| it.values()));
        generations.changes += 1;
    }

    /// The number of changes so far, and a masker for another stream.
    fn masker(&self) -> (usize, Masker) {
        let generations = self.lock();
        (generations.changes, generations.masker.another())
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads and the terminal between a command and this process.
pub struct Streams {
    /// The command's terminal, if it has one.
    pty: Option<OwnedFd>,
    raw: Option<Raw>,
    /// Closed when the command has ended, which tells the threads.
    running: Option<OwnedFd>,
    /// Disconnected when the last thread is done.
    busy: Receiver<()>,
}

/// Starts a command whose output is relayed.
pub fn start(mut command: Command, masks: &Arc<Masks>) -> io::Result<(Child, Streams)> {
    let terminals = Terminals::now();
    let is_session = terminals.is_interactive();
    let (ended, running) = io::pipe()?;
    let ended = Arc::new(OwnedFd::from(ended));
    let (done, busy) = bounded(0);
    let relay = |from, to, is_terminal| {
        let (ended, masks, done) = (Arc::clone(&ended), Arc::clone(masks), done.clone());
        start_thread("output", move || relay_output(&from, to, is_terminal, &ended, &masks, done))
    };
    let piped = |to| -> io::Result<OwnedFd> {
        let (from, end) = pipe()?;
        relay(from, to, false)?;
        Ok(end)
    };

    let (pty, pts) = if terminals.stdout || terminals.stderr {
        let ours = output_terminal(terminals);
        let (pty, pts) = pty_process::blocking::open().map_err(into_io_error)?;
        make_alike(&pts, ours, !is_session)?;
        let pty = OwnedFd::from(pty);
        // Keys may arrive faster than the command reads them.
        fcntl_setfl(&pty, fcntl_getfl(&pty)? | OFlags::NONBLOCK)?;
        relay(pty.try_clone()?, ours, true)?;
        (Some(pty), Some(pts))
    } else {
        (None, None)
    };
    let out = match &pts {
        Some(pts) if terminals.stdout => pts.as_fd().try_clone_to_owned()?,
        _ => piped(stdout())?,
    };
    let err = match &pts {
        Some(pts) if terminals.stderr => pts.as_fd().try_clone_to_owned()?,
        // If both are one file, they stay one pipe, which keeps the order of the writes.
        _ if is_same(stdout(), stderr()) => out.try_clone()?,
        _ => piped(stderr())?,
    };
    // On failure, dropping this ends the threads.
    let mut streams = Streams { pty, raw: None, running: Some(running.into()), busy };

    let child = match (pts, &streams.pty) {
        (Some(pts), Some(pty)) if is_session => {
            streams.raw = Some(Raw::enter()?);
            let pty = pty.try_clone()?;
            start_thread("keys", move || relay_keys(&pty, &ended, done))?;
            let command = pty_process::blocking::Command::from(command).stderr(err);
            command.spawn(pts).map_err(into_io_error)?
        }
        _ => command.stdout(out).stderr(err).spawn()?,
    };
    Ok((child, streams))
}

impl Streams {
    /// The terminal of this process has another size now.
    pub fn resize(&self) {
        if let Some(pty) = &self.pty {
            let _ = copy_size(pty, output_terminal(Terminals::now()));
        }
    }

    /// This process was stopped, and goes on.
    pub fn resume(&self) {
        if let Some(raw) = &self.raw {
            raw.resume();
        }
        self.resize();
    }

    /// Whether the command leads a session of its own.
    pub fn is_session(&self) -> bool {
        self.raw.is_some()
    }

    /// The command has ended. Returns a channel that is disconnected when its remaining output
    /// is written.
    pub fn ended(&mut self) -> &Receiver<()> {
        self.running = None;
        &self.busy
    }
}

/// Relays one output stream until it ends. If nobody reads any more, it closes the stream, so
/// that the command notices at its next write.
fn relay_output(
    from: &OwnedFd,
    to: BorrowedFd<'static>,
    is_terminal: bool,
    ended: &OwnedFd,
    masks: &Masks,
    _busy: Sender<()>,
) {
    let (mut changes, mut masker) = masks.masker();
    let mut input = vec![0; CHUNK];
    let mut output = Vec::with_capacity(CHUNK + 64 * 1024);
    let mut may_hold = false;
    // When the command has ended: how much of its output there may be. What its descendants
    // write from then on is not waited for.
    let mut left = None;
    loop {
        let timeout = match left {
            None if !may_hold || !is_terminal => None,
            Some(_) if !is_terminal => Some(&NOW),
            // A terminal delivers output with a delay.
            _ => Some(&IDLE),
        };
        let while_runs = left.is_none().then_some(ended);
        let input = &mut input[..left.unwrap_or(CHUNK)];
        let count = match read(from.as_fd(), input, while_runs, timeout) {
            Ok(count) => count,
            Err(Stop::TimedOut) if left.is_none() => 0,
            Err(Stop::CommandEnded) => {
                left = Some(CHUNK);
                continue;
            }
            Err(Stop::TimedOut | Stop::Closed) => break,
        };
        let newest = masks.masker();
        if newest.0 != changes {
            masker.switch_to(&newest.1, &mut output);
            changes = newest.0;
        }
        masker.mask(&input[..count], &mut output);
        // The echo of a key, or the end of a prompt.
        if count == 0 && masker.held() < TELLING {
            masker.finish(&mut output);
        }
        may_hold = count > 0;
        left = left.map(|left| left - count);
        if write_all(to, &output, None).is_err() {
            return;
        }
        output.clear();
    }
    masker.finish(&mut output);
    let _ = write_all(to, &output, None);
}

/// Relays the keys typed at the terminal of this process to the command's.
fn relay_keys(pty: &OwnedFd, ended: &OwnedFd, _busy: Sender<()>) {
    const KEYS: usize = 4096;

    let mut keys = Zeroizing::new([0; KEYS]);
    while let Ok(count) = read(stdin(), &mut keys[..], Some(ended), None) {
        if write_all(pty.as_fd(), &keys[..count], Some(ended)).is_err() {
            return;
        }
    }
}

/// Why nothing was read, or not all was written.
enum Stop {
    TimedOut,
    CommandEnded,
    Closed,
}

/// Reads what there is, at least one byte.
fn read(
    from: BorrowedFd<'_>,
    input: &mut [u8],
    ended: Option<&OwnedFd>,
    timeout: Option<&Timespec>,
) -> Result<usize, Stop> {
    loop {
        wait(from, PollFlags::IN, ended, timeout)?;
        match rustix::io::read(from, &mut *input) {
            Ok(count @ 1..) => return Ok(count),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal ends with EIO.
            Ok(0) | Err(_) => return Err(Stop::Closed),
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8], ended: Option<&OwnedFd>) -> Result<(), Stop> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // It is the command's terminal, or another process that shares the file has set
            // O_NONBLOCK.
            Err(Errno::AGAIN) => wait(to, PollFlags::OUT, ended, None)?,
            Err(_) => return Err(Stop::Closed),
        }
    }
    Ok(())
}

/// Waits until `fd` is ready or, if `ended` is given, the command has ended.
fn wait(
    fd: BorrowedFd<'_>,
    what: PollFlags,
    ended: Option<&OwnedFd>,
    timeout: Option<&Timespec>,
) -> Result<(), Stop> {
    let mut fds = vec![PollFd::from_borrowed_fd(fd, what)];
    fds.extend(ended.map(|ended| PollFd::new(ended, PollFlags::IN)));
    loop {
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(Stop::TimedOut),
            Ok(_) if fds[0].revents().is_empty() => return Err(Stop::CommandEnded),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => return Err(Stop::Closed),
        }
    }
}

/// The terminal that shows the output of this process.
fn output_terminal(terminals: Terminals) -> BorrowedFd<'static> {
    if terminals.stdout { stdout() } else { stderr() }
}

/// A pipe that holds a whole chunk.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (from, to) = io::pipe()?;
    #[cfg(target_os = "linux")]
    let _ = rustix::pipe::fcntl_setpipe_size(&from, CHUNK);
    Ok((from.into(), to.into()))
}

/// Whether both are the same file, pipe or socket.
fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

fn into_io_error(error: pty_process::Error) -> io::Error {
    if let pty_process::Error::Io(error) = error { error } else { io::Error::other(error) }
}
