//! `--mask`: relays the command's output, with the values replaced.
//!
//! One thread per stream reads, masks and writes. It reads on only when everything is
//! written, so a slow reader slows the command down, as it would without `exec`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use intentframe_credentials::redact::Masker;
use intentframe_credentials::spawn::RuntimeEnv;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};

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
pub struct Masks {
    /// Incremented at every change.
    generation: AtomicU64,
    state: Mutex<(Masker, Vec<Arc<RuntimeEnv>>)>,
}

impl Masks {
    pub fn new(credentials: &Arc<RuntimeEnv>) -> Arc<Self> {
        let state = (Masker::new(credentials.values()), vec![Arc::clone(credentials)]);
        Arc::new(Self { generation: AtomicU64::new(0), state: Mutex::new(state) })
    }

    /// Masks these as well from now on.
    pub fn add(&self, credentials: &Arc<RuntimeEnv>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (masker, generations) = &mut *state;
        generations.push(Arc::clone(credentials));
        if generations.len() > GENERATIONS {
            generations.remove(0);
        }
        *masker = Masker::new(generations.iter().flat_map(|credentials| credentials.values()));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn masker(&self) -> (u64, Masker) {
        let generation = self.generation.load(Ordering::Acquire);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (generation, state.0.another())
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
    /// Whether the command leads a session of its own.
    pub is_session: bool,
}

/// Starts a command whose output is relayed.
pub fn start(mut command: Command, masks: &Arc<Masks>) -> io::Result<(Child, Streams)> {
    let terminals = Terminals::now();
    let is_session = terminals.is_interactive();
    let (ended, running) = io::pipe()?;
    let ended = Arc::new(OwnedFd::from(ended));
    let (done, busy) = bounded(0);
    let relay = |from, to, is_terminal| {
        let output = Output { from, to, is_terminal };
        let (ended, masks, done) = (Arc::clone(&ended), Arc::clone(masks), done.clone());
        start_thread("output", move || output.relay(&ended, &masks, done))
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
    let out = if terminals.stdout { None } else { Some(piped(stdout())?) };
    let err = match &out {
        _ if terminals.stderr => None,
        // If both are one file, they stay one pipe, which keeps the order of the writes.
        Some(out) if is_same(stdout(), stderr()) => Some(out.try_clone()?),
        _ => Some(piped(stderr())?),
    };
    // On failure, dropping this ends the threads.
    let mut streams = Streams { pty, raw: None, running: Some(running.into()), busy, is_session };

    let child = match (pts, &streams.pty) {
        (Some(pts), Some(pty)) if is_session => {
            streams.raw = Some(Raw::enter()?);
            let pty = pty.try_clone()?;
            start_thread("keys", move || relay_keys(&pty, &ended, done))?;
            let mut command = pty_process::blocking::Command::from(command);
            if let Some(err) = err {
                command = command.stderr(err);
            }
            command.spawn(pts).map_err(into_io_error)?
        }
        (pts, _) => {
            let terminal = || match &pts {
                Some(pts) => pts.as_fd().try_clone_to_owned().map(Stdio::from),
                None => Ok(Stdio::inherit()),
            };
            command.stdout(out.map_or_else(terminal, |end| Ok(end.into()))?);
            command.stderr(err.map_or_else(terminal, |end| Ok(end.into()))?);
            command.spawn()?
        }
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

    /// The command has ended. Returns a channel that is disconnected when its remaining output
    /// is written.
    pub fn ended(&mut self) -> &Receiver<()> {
        self.running = None;
        &self.busy
    }
}

/// One output stream of the command.
struct Output {
    from: OwnedFd,
    to: BorrowedFd<'static>,
    is_terminal: bool,
}

/// The result of waiting for output.
enum Read {
    Bytes(usize),
    TimedOut,
    CommandEnded,
    End,
}

impl Output {
    /// Relays until the stream ends. If nobody reads any more, it closes the stream, so that
    /// the command notices at its next write.
    fn relay(self, ended: &OwnedFd, masks: &Masks, _busy: Sender<()>) {
        let (mut generation, mut masker) = masks.masker();
        let mut input = vec![0; CHUNK];
        let mut output = Vec::with_capacity(CHUNK + 64 * 1024);
        let mut may_hold = false;
        // When the command has ended: how much of its output there may be. What its
        // descendants write from then on is not waited for.
        let mut left = None;
        loop {
            let timeout = match left {
                None if !may_hold || !self.is_terminal => None,
                Some(_) if !self.is_terminal => Some(&NOW),
                // A terminal delivers output with a delay.
                _ => Some(&IDLE),
            };
            let watched = if left.is_some() { &self.from } else { ended };
            let count = match self.read(watched, timeout, &mut input[..left.unwrap_or(CHUNK)]) {
                Read::Bytes(count) => count,
                Read::TimedOut if left.is_none() => 0,
                Read::CommandEnded => {
                    left = Some(CHUNK);
                    continue;
                }
                Read::TimedOut | Read::End => break,
            };
            if masks.generation.load(Ordering::Acquire) != generation {
                masker.finish(&mut output);
                (generation, masker) = masks.masker();
            }
            masker.mask(&input[..count], &mut output);
            // The echo of a key, or the end of a prompt.
            if count == 0 && masker.held() < TELLING {
                masker.finish(&mut output);
            }
            may_hold = count > 0;
            left = left.map(|left| left - count);
            if write_all(self.to, &output).is_err() {
                return;
            }
            output.clear();
        }
        masker.finish(&mut output);
        let _ = write_all(self.to, &output);
    }

    /// Waits for output, or for `ended` to close.
    fn read(&self, ended: &OwnedFd, timeout: Option<&Timespec>, input: &mut [u8]) -> Read {
        loop {
            let mut fds =
                [PollFd::new(&self.from, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Read::TimedOut,
                Ok(_) if fds[0].revents().is_empty() => return Read::CommandEnded,
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return Read::End,
            }
            match rustix::io::read(&self.from, &mut *input) {
                Ok(0) => return Read::End,
                Ok(count) => return Read::Bytes(count),
                Err(Errno::INTR | Errno::AGAIN) => {}
                // A terminal ends with EIO.
                Err(_) => return Read::End,
            }
        }
    }
}

/// Relays the keys typed at the terminal of this process to the command's.
fn relay_keys(pty: &OwnedFd, ended: &OwnedFd, _busy: Sender<()>) {
    const KEYS: usize = 4096;

    let mut keys = zeroize::Zeroizing::new([0; KEYS]);
    while wait_for(stdin(), PollFlags::IN, ended) {
        let mut rest: &[u8] = match rustix::io::read(stdin(), &mut keys[..]) {
            Ok(0) => return,
            Ok(count) => &keys[..count],
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // The terminal is gone; a signal reports that too.
            Err(_) => return,
        };
        while !rest.is_empty() {
            if !wait_for(pty.as_fd(), PollFlags::OUT, ended) {
                return;
            }
            match rustix::io::write(pty, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
    }
}

/// Waits until `fd` is ready. Returns false if the command has ended.
fn wait_for(fd: BorrowedFd<'_>, what: PollFlags, ended: &OwnedFd) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, what), PollFd::new(ended, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) => return fds[1].revents().is_empty(),
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Another process that shares the file has set O_NONBLOCK.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
        #[allow(unreachable_patterns, reason = "a feature of the crate adds more")]
        error => io::Error::other(error),
    }
}
