//! The command below us: started, signalled, started again, and waited for.

use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{self, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, never, select};
use intentframe_credentials::spawn::RuntimeEnv;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::cli::failure::Failure;
use crate::cli::hardening;

use super::Program;
use super::environment::{Inherited, Variables};
#[cfg(target_os = "linux")]
use super::files::Files;
use super::masking::{self, Masks, Streams};
use super::signals::Received;
use super::terminal::Terminals;

/// A command that has run for so long was not started in vain.
const STEADY: Duration = Duration::from_mins(1);

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// How long what a command has written waits for its reader after a signal to end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A command, and all that is done for it while it runs.
pub struct Supervisor {
    pub program: Program,
    pub inherited: Inherited,
    pub credentials: Arc<RuntimeEnv>,
    #[cfg(target_os = "linux")]
    pub files: Option<Files>,
    pub masks: Option<Arc<Masks>>,
    pub signals: Receiver<Received>,
    pub watch: Option<Watch>,
}

/// What is done about changes.
pub struct Watch {
    /// New credentials.
    pub changes: Receiver<Arc<RuntimeEnv>>,
    /// How the command hears of them.
    pub on_change: OnChange,
    /// How long it has between TERM and KILL.
    pub grace: Duration,
    /// How often in a row it is started again after a crash.
    pub max_restarts: u32,
}

/// How a command hears of new credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// It is ended by TERM, and started again with them.
    Restart,
    /// It is sent HUP.
    HangUp,
}

/// How it has ended for good.
pub enum Ending {
    /// As the command has.
    Status(ExitStatus),
    /// By this signal, when there was no command.
    Signal(Signal),
}

impl Ending {
    /// Ends this process in the same way, so that whoever waits for it sees no difference.
    pub fn end(self) -> Result<(), Failure> {
        let signal = match self {
            Self::Status(status) => match (status.code(), status.signal()) {
                (Some(0), _) => return Ok(()),
                (Some(code), _) => return Err(of_command(code)),
                (None, signal) => signal.unwrap_or(0),
            },
            Self::Signal(signal) => signal.as_raw(),
        };
        // A dump of ours would hold the values. That of --files was open until now.
        let _ = hardening::forbid_core();
        let _ = hardening::hide();
        // Returns for a signal that would not end us.
        let _ = signal_hook::low_level::emulate_default_handler(signal);
        Err(of_command(128 + signal))
    }
}

fn of_command(code: i32) -> Failure {
    Failure::of_command(u8::try_from(code).unwrap_or(u8::MAX))
}

/// What follows from the end of a command.
enum Next {
    End(ExitStatus),
    Restart,
    Crashed(ExitStatus),
}

enum Pause {
    Over,
    Changed,
    Signalled(Signal),
}

impl Supervisor {
    /// Runs the command until it has ended for good.
    pub fn run(mut self) -> Result<Ending, Failure> {
        let mut crashes = 0;
        loop {
            let started = Instant::now();
            let mut child = self.start()?;
            let status = match self.attend(&mut child)? {
                Next::End(status) => return Ok(Ending::Status(status)),
                Next::Restart => {
                    crashes = 0;
                    continue;
                }
                Next::Crashed(status) => status,
            };
            // Our terminal is as it was while no command runs.
            drop(child);
            let most = self.watch.as_ref().map_or(0, |watch| watch.max_restarts);
            if started.elapsed() >= STEADY {
                crashes = 0;
            }
            if crashes >= most {
                return Ok(Ending::Status(status));
            }
            let pause = LONGEST_PAUSE.min(FIRST_PAUSE * 2_u32.saturating_pow(crashes));
            crashes += 1;
            log::warn!(
                "the command has ended ({status}); it is started again in {} s",
                pause.as_secs()
            );
            match self.pause(pause) {
                Pause::Over => {}
                Pause::Changed => crashes = 0,
                Pause::Signalled(signal) => return Ok(Ending::Signal(signal)),
            }
        }
    }

    fn heard(&self) -> (Receiver<Received>, Receiver<Arc<RuntimeEnv>>) {
        let changes = self.watch.as_ref().map_or_else(never, |watch| watch.changes.clone());
        (self.signals.clone(), changes)
    }

    fn variables(&self, credentials: &RuntimeEnv) -> Result<Variables, Failure> {
        #[cfg(target_os = "linux")]
        if let Some(files) = &self.files {
            let directory = files.directory().as_os_str();
            return self.inherited.with_variable("CREDENTIALS_DIRECTORY", directory);
        }
        credentials.check_variables()?;
        self.inherited.with(credentials)
    }

    fn start(&self) -> Result<Child, Failure> {
        let mut command = self.program.command();
        command.env_clear().envs(self.variables(&self.credentials)?);
        let start = || Child::start(command, self.masks.as_ref());
        self.program.started(start).map_err(|error| self.program.not_started(&error))
    }

    /// Stays with a command until it has ended.
    fn attend(&mut self, child: &mut Child) -> Result<Next, Failure> {
        let (signals, mut changes) = self.heard();
        let mut grace = never();
        let mut sent = Sent::default();
        let status = loop {
            select! {
                recv(signals) -> received => {
                    let received = received.expect("its thread lives as long as we do");
                    if received.signal != Signal::CHILD {
                        child.pass_on(received, &mut sent);
                    } else if let Some(status) = child.ended()? {
                        break status;
                    }
                }
                recv(changes) -> credentials => {
                    let Ok(credentials) = credentials else {
                        changes = never();
                        continue;
                    };
                    if !self.take(credentials) {
                        continue;
                    }
                    let Some(watch) = &self.watch else { continue };
                    match watch.on_change {
                        OnChange::HangUp => {
                            sent.hang_up = true;
                            child.signal(Signal::HUP);
                        }
                        OnChange::Restart if !sent.restart => {
                            log::info!("a credential has changed; the command is started again");
                            sent.restart = true;
                            grace = after(watch.grace);
                            child.signal(Signal::TERM);
                        }
                        OnChange::Restart => {}
                    }
                }
                recv(grace) -> _ => child.signal(Signal::KILL),
            }
        };
        self.write_out(child, sent.end);
        Ok(self.next(status, &sent))
    }

    fn next(&self, status: ExitStatus, sent: &Sent) -> Next {
        let by = status.signal().and_then(Signal::from_named_raw);
        if sent.end || by.is_some_and(|signal| sent.forwarded.contains(&signal)) {
            Next::End(status)
        } else if sent.restart || (sent.hang_up && by == Some(Signal::HUP)) {
            Next::Restart
        } else if status.success() || self.watch.is_none() {
            Next::End(status)
        } else {
            Next::Crashed(status)
        }
    }

    /// Waits until all that the command has written is passed on. Once somebody wants it all
    /// to end, a reader that takes nothing is not waited for for long.
    fn write_out(&self, child: &mut Child, is_to_end: bool) {
        let Some(streams) = &mut child.streams else { return };
        let busy = streams.ended();
        let over = if is_to_end { after(LAST_WORDS) } else { never() };
        loop {
            select! {
                recv(busy) -> _ => return,
                recv(over) -> _ => return,
                recv(self.signals) -> received => {
                    if received.is_ok_and(|received| ends(received.signal)) {
                        return;
                    }
                }
            }
        }
    }

    fn pause(&mut self, pause: Duration) -> Pause {
        let (signals, mut changes) = self.heard();
        let over = after(pause);
        loop {
            select! {
                recv(over) -> _ => return Pause::Over,
                recv(changes) -> credentials => match credentials.map(|them| self.take(them)) {
                    Ok(true) => return Pause::Changed,
                    Ok(false) => {}
                    Err(_) => changes = never(),
                },
                recv(signals) -> received => {
                    let signal = received.expect("its thread lives as long as we do").signal;
                    if ends(signal) {
                        return Pause::Signalled(signal);
                    }
                }
            }
        }
    }

    /// Makes new credentials the ones that are handed out. What stands in their way leaves
    /// everything as it is.
    fn take(&mut self, credentials: Arc<RuntimeEnv>) -> bool {
        let taken = self.variables(&credentials).and_then(|_| {
            if let Some(masks) = &self.masks {
                masks.add(&credentials);
            }
            #[cfg(target_os = "linux")]
            if let Some(files) = &mut self.files {
                files.replace(&credentials)?;
            }
            Ok(())
        });
        match &taken {
            Ok(()) => self.credentials = credentials,
            Err(failure) => super::warn(&failure.message().unwrap_or_default()),
        }
        taken.is_ok()
    }
}

/// What a command has been sent, by which its end is understood.
#[derive(Default)]
struct Sent {
    /// Somebody wants it to end.
    end: bool,
    restart: bool,
    hang_up: bool,
    forwarded: Vec<Signal>,
}

/// A command that was started.
struct Child {
    process: process::Child,
    streams: Option<Streams>,
    /// Whether a terminal's signals reach it by themselves: it is where we are.
    is_beside_us: bool,
    has_terminal: bool,
}

impl Child {
    /// Where there is a terminal, the command stays in our process group, whose foreground
    /// it shares. Else it has one of its own, so that its children are ended with it.
    fn start(mut command: Command, masks: Option<&Arc<Masks>>) -> io::Result<Self> {
        let has_terminal = Terminals::now().any();
        if !has_terminal {
            command.process_group(0);
        }
        let (process, streams) = match masks {
            Some(masks) => {
                let (process, streams) = masking::start(command, masks)?;
                (process, Some(streams))
            }
            None => (command.spawn()?, None),
        };
        let is_session = streams.as_ref().is_some_and(|streams| streams.is_session);
        let is_beside_us = has_terminal && !is_session;
        Ok(Self { process, streams, is_beside_us, has_terminal })
    }

    /// Its status, when it has ended.
    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        self.process
            .try_wait()
            .map_err(|error| Failure::other(format!("the command cannot be waited for: {error}")))
    }

    fn pass_on(&self, received: Received, sent: &mut Sent) {
        let Received { signal, by_terminal } = received;
        let had_it = by_terminal && self.is_beside_us;
        match (signal, &self.streams) {
            (Signal::WINCH, Some(streams)) => {
                // To set the size is to send the signal, in a session of its own. Beside
                // us it had the signal, and perhaps asked for the size, before it was set.
                streams.resize();
                if self.is_beside_us {
                    self.signal(signal);
                }
            }
            (Signal::CONT, Some(streams)) => streams.resume(),
            (Signal::WINCH | Signal::CONT, None) if had_it => {}
            (Signal::WINCH | Signal::CONT, None) => self.signal(signal),
            _ => {
                if !sent.forwarded.contains(&signal) {
                    sent.forwarded.push(signal);
                }
                // Without a terminal, HUP is how a service is told to read its files again.
                sent.end |= ends(signal) && (signal != Signal::HUP || self.has_terminal);
                if !had_it {
                    self.signal(signal);
                }
            }
        }
    }

    /// Sends a signal to it; with its own process group, to all in that.
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        // It may have ended, which will be heard of.
        let _ = if self.is_beside_us {
            kill_process(pid, signal)
        } else {
            kill_process_group(pid, signal)
        };
    }
}

/// Whether a signal is a wish that the command end.
fn ends(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal)
}
