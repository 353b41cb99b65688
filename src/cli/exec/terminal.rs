//! The terminal of this process, while a command has one of its own.

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

    /// Whether a person types and reads. Then a masked command gets a terminal of its own for
    /// everything. If only its output is on a terminal, it keeps the existing one for input,
    /// because other commands of the pipeline may read the keys.
    pub fn is_interactive(self) -> bool {
        self.stdin && self.stdout && is_in_foreground(rustix::stdio::stdin())
    }
}

/// Whether this process is in the foreground of the terminal, and may change its settings.
fn is_in_foreground(terminal: BorrowedFd<'_>) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

/// Gives a new terminal the settings and the size of `ours`. With `passes_through`, `ours` does
/// all the processing of a line.
pub fn make_alike(new: impl AsFd, ours: BorrowedFd<'_>, passes_through: bool) -> io::Result<()> {
    let mut settings = tcgetattr(ours)?;
    if passes_through {
        settings.output_modes -= OutputModes::OPOST;
        settings.local_modes -= LocalModes::ECHO;
    }
    tcsetattr(new.as_fd(), OptionalActions::Now, &settings)?;
    copy_size(new, ours)
}

/// Gives a new terminal the size of `ours`.
pub fn copy_size(new: impl AsFd, ours: BorrowedFd<'_>) -> io::Result<()> {
    Ok(tcsetwinsize(new, tcgetwinsize(ours)?)?)
}

/// Raw mode: every key goes to the command. Restores the former mode when dropped.
pub struct Raw {
    before: Termios,
}

impl Raw {
    pub fn enter() -> io::Result<Self> {
        let this = Self { before: tcgetattr(rustix::stdio::stdin())? };
        this.resume();
        Ok(this)
    }

    /// Enters raw mode again, after a shell had the terminal.
    pub fn resume(&self) {
        let mut raw = self.before.clone();
        raw.make_raw();
        set(&raw);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        set(&self.before);
    }
}

/// Only in the foreground: tcsetattr(3) from the background would stop this process.
fn set(settings: &Termios) {
    let stdin = rustix::stdio::stdin();
    if is_in_foreground(stdin) {
        let _ = tcsetattr(stdin, OptionalActions::Now, settings);
    }
}
