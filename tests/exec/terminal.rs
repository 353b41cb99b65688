//! `--mask` on a terminal, which stays one for the command.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use pty_process::Size;
use pty_process::blocking::{Pts, Pty, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::support::{eventually, wait_until};
use crate::tools::{TOKEN, Vault};

/// A terminal with a command on it, and what it shows.
struct Terminal {
    ours: Arc<Pty>,
    /// Another handle on the command's side: its settings can be seen when it is gone.
    theirs: OwnedFd,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(command: &Command) -> Self {
        Self::start_with(|pts| {
            let command = bare(command);
            command.spawn(pts).expect("starts")
        })
    }

    fn start_with(spawn: impl FnOnce(Pts) -> Child) -> Self {
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

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic")).into_owned()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        wait_until(&format!("{text:?} in {:?}", self.shown()), || self.shown().contains(text));
    }

    fn types(&self, keys: &str) {
        (&*self.ours).write_all(keys.as_bytes()).expect("takes them");
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.theirs).expect("it is a terminal")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is running");
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        eventually("it ends", || self.child.try_wait().expect("can be waited for"))
    }

    fn is_cooked(&self) -> bool {
        self.settings()
            .local_modes
            .contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command with its streams where the terminal puts them.
fn bare(command: &Command) -> pty_process::blocking::Command {
    let mut fresh = pty_process::blocking::Command::new(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        fresh = fresh.env(name, value.expect("is set"));
    }
    fresh
}

fn masked(vault: &Vault, options: &[&str], script: &str) -> Command {
    let rest = ["--", "/bin/sh", "-c", script];
    let mut command = vault.exec(&[&["--mask"], options, &rest].concat());
    command.env("TERM", "xterm");
    command
}

/// However long the pause between its pieces is: the second comes when a key is pressed after
/// what was written behind our back has been seen, and that after more than the time for
/// which short pieces are held back.
#[test]
fn most_of_a_value_is_not_shown_before_it_is_certain() {
    let vault = Vault::with_token();
    let (first, rest) = TOKEN.split_at(TOKEN.len() - 2);
    let script = format!(
        "stty -echo; printf 'start '; printf %s '{first}'; sleep 0.3; printf x > {}; \
         read key; printf '%s\\n' '{rest}'; printf %s '{}'; read key",
        vault.file("paused").display(),
        &TOKEN[..3],
    );
    let mut terminal = Terminal::start(&masked(&vault, &[], &script));
    wait_until("the pause is over", || vault.file("paused").exists());
    terminal.shows("start ");
    assert!(!terminal.shown().contains(&first[..8]), "{:?}", terminal.shown());
    terminal.types("\n");
    terminal.shows("start [REDACTED]\r\n");
    // So little might as well be the echo of keys.
    terminal.shows(&format!("[REDACTED]\r\n{}", &TOKEN[..3]));
    terminal.types("\n");
    assert!(terminal.wait().success());
}

#[test]
fn the_command_has_a_terminal_like_ours() {
    let vault = Vault::with_token();
    let script = "tty >&2; test -t 0 && test -t 1 && test -t 2 && echo all; stty size; stty -a | grep -o ' icanon'; \
                  : < /dev/tty && echo controlling; printf '\\033[31m%s\\033[0m\\n' $APP_TOKEN; \
                  echo err: $APP_TOKEN >&2; exit 9";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    assert_eq!(terminal.wait().code(), Some(9));
    terminal.shows("\r\nerr: [REDACTED]\r\n");
    let shown = terminal.shown();
    let expected = "all\r\n33 77\r\n icanon\r\ncontrolling\r\n\u{1b}[31m[REDACTED]\u{1b}[0m\r\n";
    assert!(shown.contains(expected), "{shown:?}");
    assert!(!shown.contains("canary"));
    assert!(terminal.is_cooked(), "as it was before");
}

#[test]
fn keys_reach_the_command_and_their_echo_comes_back() {
    let vault = Vault::with_token();
    let script = "echo ready; read line; echo \"got $line\"; cat";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.shows("ready");
    wait_until("keys go through as they are", || !terminal.is_cooked());
    // The first letters of a value are shown when nothing follows.
    terminal.types("can");
    terminal.shows("can");
    terminal.types("dle\r");
    terminal.shows("got candle\r\n");
    // A whole value in one go is not, not even as the echo of a paste.
    terminal.types(&format!("{TOKEN}\r"));
    terminal.shows("[REDACTED]\r\n[REDACTED]\r\n");
    // End of file is a key as well.
    terminal.types("\u{4}");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(!terminal.shown().contains("canary"));
    assert!(terminal.is_cooked());
}

#[test]
fn interrupt_is_a_key_and_ends_what_it_ends() {
    let vault = Vault::with_token();
    let mut terminal = Terminal::start(&masked(&vault, &[], "echo ready; exec sleep 1000"));
    terminal.shows("ready");
    wait_until("keys go through as they are", || !terminal.is_cooked());
    terminal.types("\u{3}");
    assert_eq!(terminal.wait().signal(), Some(Signal::INT.as_raw()));
    assert!(terminal.is_cooked());

    let script = "trap 'echo caught' INT; echo ready; read line; read line; echo got $line";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.shows("ready");
    wait_until("keys go through as they are", || !terminal.is_cooked());
    terminal.types("\u{3}");
    terminal.shows("caught");
    terminal.types("more\r");
    terminal.types("more\r");
    terminal.wait();
    terminal.shows("got");
}

#[test]
fn the_terminal_is_as_before_however_it_ends() {
    let vault = Vault::with_token();
    for signal in [Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut terminal = Terminal::start(&masked(&vault, &[], "echo ready; exec sleep 1000"));
        terminal.shows("ready");
        wait_until("keys go through as they are", || !terminal.is_cooked());
        terminal.signal(signal);
        assert_eq!(terminal.wait().signal(), Some(signal.as_raw()));
        assert!(terminal.is_cooked(), "{signal:?}");
    }
    // A command that cannot be started.
    let mut command = vault.exec(&["--mask", "--", "/no/such/command"]);
    command.env("TERM", "xterm");
    let mut terminal = Terminal::start(&command);
    assert_eq!(terminal.wait().code(), Some(127));
    terminal.shows("cannot run /no/such/command");
    assert!(terminal.is_cooked());
}

#[test]
fn the_size_follows_ours() {
    let vault = Vault::with_token();
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.shows("ready");
    terminal.ours.resize(Size::new(20, 40)).expect("has a size");
    terminal.shows("20 40");
    terminal.signal(Signal::TERM);
    terminal.wait();
}

#[test]
fn a_terminal_that_goes_away_takes_the_command_with_it() {
    let vault = Vault::with_token();
    let said = vault.file("said");
    let script = format!(
        "trap 'echo hung up > {0}; exit 1' HUP; echo ready; while :; do sleep 0.01; done",
        said.display()
    );
    let mut terminal = Terminal::start(&masked(&vault, &[], &script));
    terminal.shows("ready");
    // As the kernel does when the window is closed; our thread still holds the terminal.
    terminal.signal(Signal::HUP);
    terminal.wait();
    assert_eq!(std::fs::read_to_string(said).expect("it was told"), "hung up\n");
}

#[test]
fn only_what_is_on_a_terminal_is_given_one() {
    let vault = Vault::with_token();
    let file = vault.file("out");
    // Standard output to a file, and nothing to type: errors are on a terminal.
    let script = "test -t 0 || echo no 0 >&2; test -t 1 || echo no 1 >&2; test -t 2 && echo is 2 >&2; \
                  stty size <&2 >&2; echo $APP_TOKEN; echo $APP_TOKEN >&2; \
                  : < /dev/tty && echo controlling >&2";
    let command = masked(&vault, &[], script);
    let into = std::fs::File::create(&file).expect("makes a file");
    let mut terminal = Terminal::start_with(|pts| {
        bare(&command).stdin(Stdio::null()).stdout(into).spawn(pts).expect("starts")
    });
    assert_eq!(terminal.wait().code(), Some(0));
    terminal.shows("controlling\r\n");
    let expected = "no 0\r\nno 1\r\nis 2\r\n33 77\r\n[REDACTED]\r\ncontrolling\r\n";
    assert_eq!(terminal.shown(), expected);
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), "[REDACTED]\n");

    // As one of a pipeline: the terminal's keys are the others' to read, and its
    // interrupt reaches the command at once.
    let command = masked(&vault, &[], "test -t 1 && echo is 1; cat; exec sleep 1000");
    let (input, output) = std::io::pipe().expect("a pipe");
    let mut terminal =
        Terminal::start_with(|pts| bare(&command).stdin(input).spawn(pts).expect("starts"));
    (&output).write_all(TOKEN.as_bytes()).expect("writes");
    drop(output);
    terminal.shows("is 1\r\n[REDACTED]");
    assert!(terminal.is_cooked());
    terminal.types("\u{3}");
    assert_eq!(terminal.wait().signal(), Some(Signal::INT.as_raw()));
}

#[test]
fn much_reaches_the_terminal_in_order() {
    let vault = Vault::with_token();
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i $APP_TOKEN; i=$((i+1)); done";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.wait();
    terminal.shows("2999 [REDACTED]\r\n");
    let lines: Vec<_> = (0..3000).map(|number| format!("{number} [REDACTED]\r\n")).collect();
    assert!(terminal.shown() == lines.concat(), "{}", terminal.shown().len());
}

#[test]
fn a_change_starts_it_again_on_a_terminal() {
    let vault = Vault::with_token();
    let options = ["--watch", "--interval", "0.02"];
    let script = "test -t 0 && test -t 1 && echo \"<$APP_TOKEN> ${#APP_TOKEN}\"; read line; echo got $line; read line";
    let mut terminal = Terminal::start(&masked(&vault, &options, script));
    terminal.shows(&format!("<[REDACTED]> {}", TOKEN.len()));
    vault.put("app/token", "canary-2", "APP_TOKEN", &[]);
    terminal.shows("<[REDACTED]> 8");
    terminal.types("after\r");
    terminal.shows("got after");
    terminal.signal(Signal::TERM);
    terminal.wait();
    assert!(terminal.is_cooked());
}

#[test]
fn without_masking_the_terminal_is_shared() {
    let vault = Vault::with_token();
    let options = ["--watch", "--", "/bin/sh", "-c"];
    let script = "trap 'echo one; n=1$n' INT; test -t 0 && test -t 1 && : < /dev/tty && echo ready; \
                  while [ -z \"$n\" ]; do sleep 0.01; done; echo $n; exit 3";
    let mut terminal = Terminal::start(&vault.exec(&[&options[..], &[script]].concat()));
    terminal.shows("ready");
    assert!(terminal.is_cooked());
    terminal.types("\u{3}");
    // It had the signal from the terminal, and not once more from us; and as somebody
    // wanted it to end, it is not started again.
    assert_eq!(terminal.wait().code(), Some(3));
    terminal.shows("one\r\n1\r\n");
}
