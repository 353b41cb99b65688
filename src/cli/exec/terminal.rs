//! Our terminal, while a command has one of its own.

use std::io::{self, IsTerminal as _};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::getpgrp;
use rustix::termios::{
    LocalModes, OptionalActions, OutputModes, Termios, tcgetattr, tcgetpgrp, tcgetwinsize,
    tcsetattr, tcsetwinsize,
};

/// Which of the standard streams are terminals.
#[derive(Debug, Clone, Copy)]
pub struct Terminals {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Terminals {
    /// As they are now.
    pub fn now() -> Self {
        Self {
            stdin: io::stdin().is_terminal(),
            stdout: io::stdout().is_terminal(),
            stderr: io::stderr().is_terminal(),
        }
    }

    pub fn any(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }

    /// Whether somebody sits at both ends of us: then a command that is masked gets a
    /// terminal of its own for everything. With only its output on a terminal, it stays
    /// at ours, where others in the pipeline may read the keys.
    pub fn is_conversation(self) -> bool {
        self.stdin && self.stdout && is_in_front(rustix::stdio::stdin())
    }
}

/// Whether we are in the terminal's foreground, where its settings are ours to change.
fn is_in_front(terminal: BorrowedFd<'_>) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

/// Makes a new terminal like ours. With `passes_through`, ours does what there is to do
/// with a line.
pub fn make_alike(new: impl AsFd, ours: BorrowedFd<'_>, passes_through: bool) -> io::Result<()> {
    let mut settings = tcgetattr(ours)?;
    if passes_through {
        settings.output_modes -= OutputModes::OPOST;
        settings.local_modes -= LocalModes::ECHO;
    }
    tcsetattr(new.as_fd(), OptionalActions::Now, &settings)?;
    copy_size(new, ours)
}

/// Gives a new terminal the size of ours.
pub fn copy_size(new: impl AsFd, ours: BorrowedFd<'_>) -> io::Result<()> {
    Ok(tcsetwinsize(new, tcgetwinsize(ours)?)?)
}

/// Our terminal in raw mode: every key goes to the command as it is. As it was before when
/// this is dropped.
pub struct Raw {
    before: Termios,
    raw: Termios,
}

impl Raw {
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        let this = Self { before, raw };
        this.resume();
        Ok(this)
    }

    /// Again, after a shell has had the terminal meanwhile.
    pub fn resume(&self) {
        set(&self.raw);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        set(&self.before);
    }
}

/// Only from the foreground: to set it from elsewhere would stop us.
fn set(settings: &Termios) {
    let stdin = rustix::stdio::stdin();
    if is_in_front(stdin) {
        let _ = tcsetattr(stdin, OptionalActions::Now, settings);
    }
}
