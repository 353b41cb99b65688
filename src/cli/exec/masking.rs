//! `--mask`: what the command writes, on its way to us, without the values.
//!
//! A thread a stream reads, masks and writes; it reads on only when all is written, so a
//! slow reader slows the command, as it would without us.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use intentframe_credentials::redact::Masker;
use intentframe_credentials::spawn::RuntimeEnv;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::stdio::{stderr, stdin, stdout};

use super::terminal::{Raw, Terminals, copy_size, make_alike};

/// How much is read at a time, and how much a pipe is asked to hold.
const CHUNK: usize = 256 * 1024;

/// After this time without more, a terminal shows what might have become a value: somebody
/// waits for it, such as for the echo of a key.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// So many bytes of a value are not shown, however long the rest takes.
const TELLING: usize = 8;

/// How many changes of the credentials ago a value may have been and is still masked.
const GENERATIONS: usize = 8;

/// What is masked: the values that the command has, and those that it had.
pub struct Masks {
    generation: AtomicU64,
    masker: Mutex<Masker>,
    values: Mutex<Vec<Arc<RuntimeEnv>>>,
}

impl Masks {
    pub fn new(credentials: &Arc<RuntimeEnv>) -> Arc<Self> {
        Arc::new(Self {
            generation: AtomicU64::new(0),
            masker: Mutex::new(Masker::new(credentials.values())),
            values: Mutex::new(vec![Arc::clone(credentials)]),
        })
    }

    /// Masks these as well, from now on.
    pub fn add(&self, credentials: &Arc<RuntimeEnv>) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.push(Arc::clone(credentials));
        if values.len() > GENERATIONS {
            values.remove(0);
        }
        let masker = Masker::new(values.iter().flat_map(|credentials| credentials.values()));
        *self.masker.lock().unwrap_or_else(PoisonError::into_inner) = masker;
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn masker(&self) -> (u64, Masker) {
        let generation = self.generation.load(Ordering::Acquire);
        let masker = self.masker.lock().unwrap_or_else(PoisonError::into_inner);
        (generation, masker.another())
    }
}

/// What carries the output of one command.
pub struct Streams {
    /// The command's terminal, if it has one.
    pty: Option<OwnedFd>,
    raw: Option<Raw>,
    /// Closed when the command has ended: the other end tells the threads.
    running: Option<OwnedFd>,
    /// Disconnected once everything has been written.
    busy: Receiver<()>,
    /// Whether the command is the leader of a session of its own.
    pub is_session: bool,
}

/// Starts a command with its output through us.
pub fn start(mut command: Command, masks: &Arc<Masks>) -> io::Result<(process::Child, Streams)> {
    let terminals = Terminals::now();
    let is_session = terminals.is_conversation();
    let our_terminal = if terminals.stdout { stdout() } else { stderr() };
    let mut outputs = Vec::new();

    let terminal = if terminals.stdout || terminals.stderr {
        let (pty, pts) = pty_process::blocking::open().map_err(into_io_error)?;
        make_alike(&pts, our_terminal, !is_session)?;
        let pty = OwnedFd::from(pty);
        // The keys may come faster than the command reads them.
        fcntl_setfl(&pty, fcntl_getfl(&pty)? | OFlags::NONBLOCK)?;
        outputs.push(Output { from: pty.try_clone()?, to: our_terminal, is_terminal: true });
        Some((pty, pts))
    } else {
        None
    };
    let mut piped = |to| -> io::Result<OwnedFd> {
        let (from, end) = pipe()?;
        outputs.push(Output { from, to, is_terminal: false });
        Ok(end)
    };
    let out = if terminals.stdout { None } else { Some(piped(stdout())?) };
    let err = match &out {
        _ if terminals.stderr => None,
        // One stream stays one: what is written to the two of them keeps its order.
        Some(out) if is_same(stdout(), stderr()) => Some(out.try_clone()?),
        _ => Some(piped(stderr())?),
    };

    let mut raw = None;
    let (mut child, pty) = match terminal {
        Some((pty, pts)) if is_session => {
            let mut command = pty_process::blocking::Command::from(command);
            if let Some(err) = err {
                command = command.stderr(err);
            }
            raw = Some(Raw::enter()?);
            (command.spawn(pts).map_err(into_io_error)?, Some(pty))
        }
        terminal => {
            let of_terminal = || match &terminal {
                Some((_, pts)) => pts.as_fd().try_clone_to_owned().map(Stdio::from),
                None => Ok(Stdio::inherit()),
            };
            command.stdout(out.map_or_else(of_terminal, |end| Ok(end.into()))?);
            command.stderr(err.map_or_else(of_terminal, |end| Ok(end.into()))?);
            let child = command.spawn()?;
            (child, terminal.map(|(pty, _)| pty))
        }
    };

    match Streams::of(outputs, pty, raw, is_session, masks) {
        Ok(streams) => Ok((child, streams)),
        Err(error) => {
            // Nobody would read what it writes.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

impl Streams {
    fn of(
        outputs: Vec<Output>,
        pty: Option<OwnedFd>,
        raw: Option<Raw>,
        is_session: bool,
        masks: &Arc<Masks>,
    ) -> io::Result<Self> {
        let (ended, running) = io::pipe()?;
        let ended = Arc::new(OwnedFd::from(ended));
        let (done, busy) = unbounded();
        for output in outputs {
            let (ended, masks, done) = (Arc::clone(&ended), Arc::clone(masks), done.clone());
            in_thread("output", move || output.pass_on(&ended, &masks, done))?;
        }
        if let (Some(pty), true) = (&pty, is_session) {
            let pty = pty.try_clone()?;
            in_thread("keys", move || pass_keys_on(&pty, &ended, done))?;
        }
        Ok(Self { pty, raw, running: Some(running.into()), busy, is_session })
    }

    /// Our terminal has another size now.
    pub fn resize(&self) {
        if let Some(pty) = &self.pty {
            let terminals = Terminals::now();
            let ours = if terminals.stdout { stdout() } else { stderr() };
            let _ = copy_size(pty, ours);
        }
    }

    /// We have been stopped, and go on.
    pub fn resume(&self) {
        if let Some(raw) = &self.raw {
            raw.resume();
        }
        self.resize();
    }

    /// The command has ended: what it has written is still to be passed on. The channel is
    /// disconnected when that is done.
    pub fn ended(&mut self) -> &Receiver<()> {
        self.running = None;
        &self.busy
    }
}

/// One stream of the command's.
struct Output {
    from: OwnedFd,
    to: BorrowedFd<'static>,
    is_terminal: bool,
}

impl Output {
    /// Until its end, or ours: with nobody to read it any more, the command is to hear of
    /// that when it writes the next time.
    fn pass_on(self, ended: &OwnedFd, masks: &Masks, _busy: Sender<()>) {
        let (mut generation, mut masker) = masks.masker();
        let mut input = vec![0; CHUNK];
        let mut output = Vec::with_capacity(CHUNK + 64 * 1024);
        let mut may_hold = false;
        let mut left = None;
        loop {
            let wait = Wait { is_idle_soon: self.is_terminal && may_hold, left };
            let count = match self.read(ended, &wait, &mut input) {
                Next::Bytes(count) => count,
                Next::Idle => 0,
                Next::CommandEnded => {
                    left = Some(self.left());
                    continue;
                }
                Next::End => break,
            };
            let current = masks.generation.load(Ordering::Acquire);
            if current != generation {
                masker.finish(&mut output);
                (generation, masker) = masks.masker();
            }
            masker.mask(&input[..count], &mut output);
            // What a key was echoed by, or the end of a prompt.
            if count == 0 && masker.held() < TELLING {
                masker.finish(&mut output);
            }
            may_hold = count > 0;
            left = left.map(|left: usize| left.saturating_sub(count));
            if write_all(self.to, &output).is_err() {
                return;
            }
            output.clear();
        }
        masker.finish(&mut output);
        let _ = write_all(self.to, &output);
    }

    fn read(&self, ended: &OwnedFd, wait: &Wait, input: &mut [u8]) -> Next {
        let has_ended = wait.left.is_some();
        let timeout = match wait.left {
            Some(0) => return Next::End,
            // A terminal hands over a moment later what was written to it.
            Some(_) if self.is_terminal => Some(&IDLE),
            Some(_) => Some(&Timespec { tv_sec: 0, tv_nsec: 0 }),
            None => wait.is_idle_soon.then_some(&IDLE),
        };
        let mut fds = [PollFd::new(&self.from, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        // Once it has ended, that is no news any more.
        let watched = if has_ended { 1 } else { 2 };
        match poll(&mut fds[..watched], timeout) {
            Ok(0) if has_ended => return Next::End,
            Ok(0) => return Next::Idle,
            Ok(_) => {}
            Err(Errno::INTR) => return self.read(ended, wait, input),
            Err(_) => return Next::End,
        }
        if fds[0].revents().is_empty() {
            return Next::CommandEnded;
        }
        let most = wait.left.unwrap_or(usize::MAX).min(input.len());
        match rustix::io::read(&self.from, &mut input[..most]) {
            // EIO is how a terminal ends.
            Ok(0) => Next::End,
            Ok(count) => Next::Bytes(count),
            Err(Errno::INTR | Errno::AGAIN) => self.read(ended, wait, input),
            Err(_) => Next::End,
        }
    }

    /// How much the command has written at most that was not read when it ended. What its
    /// descendants write from then on is not waited for.
    fn left(&self) -> usize {
        if self.is_terminal {
            return CHUNK;
        }
        rustix::io::ioctl_fionread(&self.from)
            .ok()
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(CHUNK)
    }
}

/// What a read waits for.
struct Wait {
    is_idle_soon: bool,
    /// Once the command has ended: how many bytes there may be.
    left: Option<usize>,
}

enum Next {
    Bytes(usize),
    Idle,
    CommandEnded,
    End,
}

/// What is typed at our terminal, to the command's.
fn pass_keys_on(pty: &OwnedFd, ended: &OwnedFd, _busy: Sender<()>) {
    const KEYS: usize = 4096;

    let mut keys = zeroize::Zeroizing::new([0; KEYS]);
    while wait_for(stdin(), PollFlags::IN, ended) {
        let mut rest: &[u8] = match rustix::io::read(stdin(), &mut keys[..]) {
            Ok(0) => return,
            Ok(count) => &keys[..count],
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // Our terminal is gone, of which a signal tells.
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

/// Waits until `fd` is ready; false when the command has ended.
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
            // Whoever we share it with has made it so.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The two ends of a pipe for much at a time.
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

fn in_thread(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

fn into_io_error(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
        #[allow(unreachable_patterns, reason = "another feature of the crate has more of them")]
        error => io::Error::other(error),
    }
}
