//! Runs the command below this process: starts it, forwards signals, restarts it, and waits.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{self, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};
use intentframe_credentials::backoff::Backoff;
use intentframe_credentials::spawn::RuntimeEnv;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::cli::Context;
use crate::cli::failure::{Failure, cannot};
use crate::cli::hardening;
use crate::cli::signals::Received;

use super::environment::{Inherited, Variables};
#[cfg(target_os = "linux")]
use super::files::Files;
use super::masking::{self, Masks, Streams};
use super::terminal::Terminals;

/// After running for this long, a command is no longer in a row of crashes.
const STEADY: Duration = Duration::from_secs(60);

/// How long the rest of the output may take after a signal to end.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// An event for the supervisor.
pub enum Event {
    Signal(Received),
    /// The vault has new credentials for the command.
    Changed(Arc<RuntimeEnv>),
}

/// A command and what it needs while it runs.
pub struct Supervisor<'a> {
    pub context: &'a Context,
    pub inherited: Inherited,
    pub credentials: Arc<RuntimeEnv>,
    #[cfg(target_os = "linux")]
    pub files: Option<Files>,
    pub masks: Option<Arc<Masks>>,
    pub events: Receiver<Event>,
    pub watch: Option<Watch>,
}

/// The options of `--watch`.
pub struct Watch {
    /// Whether a change sends HUP instead of restarting the command.
    pub hangs_up: bool,
    /// The time between TERM and KILL.
    pub grace: Duration,
    /// The pause between two polls of the vault.
    pub interval: Duration,
    /// How many crashes in a row are followed by a restart.
    pub max_restarts: u32,
}

/// Ends this process as the command ended, so that the parent sees no difference.
pub fn end_as(status: ExitStatus) -> Result<(), Failure> {
    let signal = status.signal().unwrap_or(0);
    if status.code().is_none() {
        // A core of this process would contain values; with --files, it could be written until
        // now.
        hardening::forbid_core();
        let _ = hardening::hide();
        // Returns only for a signal that does not end a process.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
    }
    match status.code().unwrap_or(128 + signal) {
        0 => Ok(()),
        code => Err(Failure::silent(u8::try_from(code).unwrap_or(u8::MAX))),
    }
}

impl Supervisor<'_> {
    /// Runs the command until it ends for good, and returns how it ended.
    pub fn run(mut self) -> Result<ExitStatus, Failure> {
        let max_restarts = self.watch.as_ref().map_or(0, |watch| watch.max_restarts);
        let mut crashes = 0;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            let started = Instant::now();
            let child = self.start()?;
            let (status, sent) = self.attend(child)?;
            let by = status.signal().and_then(Signal::from_named_raw);
            if sent.end || by.is_some_and(|signal| sent.forwarded.contains(&signal)) {
                return Ok(status);
            }
            let is_restart = sent.restart || (sent.hang_up && by == Some(Signal::HUP));
            if is_restart || started.elapsed() >= STEADY {
                crashes = 0;
                backoff.reset();
            }
            if is_restart {
                continue;
            }
            if status.success() || crashes >= max_restarts {
                return Ok(status);
            }
            crashes += 1;
            let pause = backoff.next_pause();
            log::warn!("the command ended ({status}); starting it again in {} s", pause.as_secs());
            let end = Instant::now() + pause;
            while let Some(event) = self.next_event(Some(end), &never()) {
                match event {
                    Event::Signal(Received { signal, .. }) if ends(signal) => {
                        return Ok(ExitStatus::from_raw(signal.as_raw()));
                    }
                    Event::Signal(_) => {}
                    Event::Changed(_) => {
                        crashes = 0;
                        backoff.reset();
                        break;
                    }
                }
            }
        }
    }

    /// Waits for the next event, and delivers new credentials. Returns `None` at the deadline, or
    /// when `busy` is disconnected.
    fn next_event(&mut self, deadline: Option<Instant>, busy: &Receiver<()>) -> Option<Event> {
        let over = deadline.map_or_else(never, at);
        loop {
            let event = select! {
                recv(self.events) -> event => event.expect("the thread of signals does not end"),
                recv(over) -> _ => return None,
                recv(busy) -> _ => return None,
            };
            // If new credentials cannot be delivered, everything stays as it is.
            if let Event::Changed(credentials) = &event
                && let Err(failure) = self.deliver(credentials)
            {
                super::warn(&failure.message);
                continue;
            }
            return Some(event);
        }
    }

    fn variables(&self, credentials: &RuntimeEnv) -> Result<Variables, Failure> {
        #[cfg(target_os = "linux")]
        if let Some(files) = &self.files {
            return self.inherited.with([("CREDENTIALS_DIRECTORY", files.directory.as_os_str())]);
        }
        self.inherited.with_credentials(credentials)
    }

    fn deliver(&mut self, credentials: &Arc<RuntimeEnv>) -> Result<(), Failure> {
        self.variables(credentials)?;
        if let Some(masks) = &self.masks {
            masks.add(credentials);
        }
        #[cfg(target_os = "linux")]
        if let Some(files) = &mut self.files {
            files.replace(credentials)?;
        }
        self.credentials = Arc::clone(credentials);
        Ok(())
    }

    fn start(&self) -> Result<Child, Failure> {
        let command = super::command(self.context, &self.variables(&self.credentials)?);
        super::start(self.context, || Child::start(command, self.masks.as_ref()))
    }

    /// Handles events until the command has ended and its output is written. The terminal is
    /// restored when this returns.
    fn attend(&mut self, mut child: Child) -> Result<(ExitStatus, Sent), Failure> {
        let mut kill_at = None;
        let status = loop {
            match self.next_event(kill_at, &never()) {
                Some(Event::Signal(Received { signal: Signal::CHILD, .. })) => {
                    let ended = child.process.try_wait().map_err(cannot("wait for the command"))?;
                    if let Some(status) = ended {
                        break status;
                    }
                }
                Some(Event::Signal(received)) => child.forward(received),
                Some(Event::Changed(_)) => match &self.watch {
                    Some(watch) if watch.hangs_up => {
                        child.sent.hang_up = true;
                        child.signal(Signal::HUP);
                    }
                    Some(watch) if !child.sent.restart => {
                        log::info!("a credential has changed; restarting the command");
                        child.sent.restart = true;
                        kill_at = Instant::now().checked_add(watch.grace);
                        child.signal(Signal::TERM);
                    }
                    _ => {}
                },
                None => {
                    kill_at = None;
                    child.signal(Signal::KILL);
                }
            }
        };
        // After a signal to end, a reader that takes nothing is given only a moment.
        let deadline = child.sent.end.then(|| Instant::now() + LAST_OUTPUT);
        if let Some(streams) = &mut child.streams {
            let busy = streams.ended();
            while let Some(event) = self.next_event(deadline, busy) {
                if matches!(event, Event::Signal(received) if ends(received.signal)) {
                    break;
                }
            }
        }
        Ok((status, child.sent))
    }
}

/// The signals that a command was sent. They decide what its end means.
#[derive(Default)]
struct Sent {
    /// A signal to end, from outside.
    end: bool,
    restart: bool,
    hang_up: bool,
    forwarded: Vec<Signal>,
}

/// A command that was started.
struct Child {
    process: process::Child,
    streams: Option<Streams>,
    sent: Sent,
    /// Whether it is in this process's group, so that the terminal signals both.
    is_in_our_group: bool,
    has_terminal: bool,
}

impl Child {
    /// On a terminal, the command stays in the process group of `exec`, because that is the
    /// foreground. Otherwise it gets its own, so that a signal also ends its children.
    fn start(mut command: Command, masks: Option<&Arc<Masks>>) -> io::Result<Self> {
        let has_terminal = Terminals::now().any();
        if !has_terminal {
            command.process_group(0);
        }
        let (process, streams) = match masks {
            Some(masks) => masking::start(command, masks).map(|(child, it)| (child, Some(it)))?,
            None => (command.spawn()?, None),
        };
        let is_session = streams.as_ref().is_some_and(Streams::is_session);
        let is_in_our_group = has_terminal && !is_session;
        Ok(Self { process, streams, sent: Sent::default(), is_in_our_group, has_terminal })
    }

    fn forward(&mut self, received: Received) {
        let Received { signal, by_terminal } = received;
        let mut has_it = by_terminal && self.is_in_our_group;
        match (signal, &self.streams) {
            (Signal::WINCH, Some(streams)) => {
                // In a session of its own, the kernel signals the command when its terminal is
                // resized. In our group, it got the signal too early, before the resize.
                streams.resize();
                has_it = !self.is_in_our_group;
            }
            (Signal::CONT, Some(streams)) => return streams.resume(),
            (Signal::WINCH | Signal::CONT, None) => {}
            _ => {
                self.sent.forwarded.push(signal);
                // Without a terminal, HUP tells a service to read its configuration again.
                self.sent.end |= ends(signal) && (signal != Signal::HUP || self.has_terminal);
            }
        }
        if !has_it {
            self.signal(signal);
        }
    }

    /// Signals the command, or its whole process group if it has one.
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        // This fails if the command has just ended, which SIGCHLD reports.
        let _ = if self.is_in_our_group {
            kill_process(pid, signal)
        } else {
            kill_process_group(pid, signal)
        };
    }
}

/// Whether a signal asks the command to end.
fn ends(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal)
}
