//! Commands that get a value on their standard input.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crossbeam_channel::bounded;
use intentframe_credentials::Secret;
use rustix::process::{Pid, Signal, kill_process_group};

use super::failure::{Failure, cannot};
use super::{Context, start_thread};

/// A program and its arguments; there is at least the program.
pub fn command(words: &[impl AsRef<OsStr>]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// For `map_err`.
pub fn cannot_run(command: &Command) -> impl FnOnce(io::Error) -> Failure + use<> {
    cannot(format!("run {}", command.get_program().display()))
}

/// Runs a command to its end. Returns `None` if it, with its children, was ended for the limit.
pub fn feed(
    command: &mut Command,
    input: &Secret,
    limit: Option<Duration>,
    context: &Context,
) -> io::Result<Option<ExitStatus>> {
    if limit.is_some() {
        command.process_group(0);
    }
    let mut child = context.core_limit.lifted(|| command.stdin(Stdio::piped()).spawn())?;
    let (id, input) = (Pid::from_child(&child), input.duplicate());
    let mut pipe = child.stdin.take().expect("it is piped");
    // A command may end without reading all of it.
    start_thread("input", move || drop(pipe.write_all(input.expose().as_bytes())))?;
    let (sender, ended) = bounded(1);
    start_thread("child", move || drop(sender.send(child.wait())))?;
    let status = match limit {
        None => ended.recv().ok(),
        Some(limit) => ended.recv_timeout(limit).ok(),
    };
    if status.is_none() {
        let _ = kill_process_group(id, Signal::KILL);
    }
    status.transpose()
}
