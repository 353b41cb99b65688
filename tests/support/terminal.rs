//! A command on a terminal of its own.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;

use pty_process::Size;
use pty_process::blocking::{Pts, Pty, open};
use rustix::process::Signal;
use rustix::termios::{LocalModes, tcgetattr};

use super::support::{Running, wait_until};

/// A terminal, the command that runs on it, and the screen.
pub struct Terminal {
    pub ours: Arc<Pty>,
    /// Another descriptor of the command's side, to see its settings after the command ended.
    theirs: OwnedFd,
    child: Running,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    pub fn start(command: &Command) -> Self {
        Self::start_with(|pts| Running(bare(command).spawn(pts).expect("starts")))
    }

    pub fn start_with(spawn: impl FnOnce(Pts) -> Running) -> Self {
        let (ours, pts) = open().expect("a terminal");
        ours.resize(Size::new(33, 77)).expect("has a size");
        let theirs = pts.as_fd().try_clone_to_owned().expect("a descriptor");
        let child = spawn(pts);
        let (ours, shown) = (Arc::new(ours), Arc::<Mutex<Vec<u8>>>::default());
        let (reader, into) = (Arc::clone(&ours), Arc::clone(&shown));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = (&*reader).read(&mut bytes) {
                into.lock().expect("no panic").extend_from_slice(&bytes[..count]);
            }
        });
        Self { ours, theirs, child, shown }
    }

    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic")).into_owned()
    }

    #[track_caller]
    pub fn shows(&self, text: &str) {
        wait_until(&format!("{text:?} in {:?}", self.shown()), || self.shown().contains(text));
    }

    pub fn types(&self, keys: &str) {
        (&*self.ours).write_all(keys.as_bytes()).expect("takes them");
    }

    /// Types a line when the question is on the screen.
    #[track_caller]
    pub fn answers(&self, question: &str, with: &str) {
        self.shows(question);
        self.types(&format!("{with}\n"));
    }

    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait()
    }

    pub fn is_cooked(&self) -> bool {
        let settings = tcgetattr(&self.theirs).expect("it is a terminal");
        settings.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits for the end. Returns the exit code and the whole screen, with `\n` for the terminal's
    /// `\r\n`.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, String) {
        let code = self.wait().code();
        let Self { theirs, shown, .. } = self;
        drop(theirs);
        // The reader ends with the last descriptor of the other side.
        wait_until("the end of the output", || Arc::strong_count(&shown) == 1);
        let shown = shown.lock().expect("no panic");
        (code, String::from_utf8_lossy(&shown).replace("\r\n", "\n"))
    }
}

/// The command with the terminal as its three streams.
pub fn bare(command: &Command) -> pty_process::blocking::Command {
    let mut fresh = pty_process::blocking::Command::new(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        fresh = fresh.env(name, value.expect("is set"));
    }
    fresh
}
