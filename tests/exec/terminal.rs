//! `--mask` on a terminal: the command has a terminal too.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use pty_process::Size;
use rustix::process::Signal;

use crate::pty::{Terminal, bare};
use crate::support::wait_until;
use crate::tools::{Running, TOKEN, Vault};

fn masked(vault: &Vault, options: &[&str], script: &str) -> Command {
    let rest = ["--", "/bin/sh", "-c", script];
    let mut command = vault.exec(&[&["--mask"], options, &rest].concat());
    command.env("TERM", "xterm");
    command
}

/// The pause between the two pieces of the value is longer than the time for which a terminal
/// holds back what may become a value.
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
    // This little might be the echo of keys.
    terminal.shows(&format!("[REDACTED]\r\n{}", &TOKEN[..3]));
    terminal.types("\n");
    assert!(terminal.wait().success());
}

#[test]
fn the_terminal_of_the_command_has_the_same_settings() {
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
    assert!(terminal.is_cooked(), "the mode is restored");
}

#[test]
fn keys_reach_the_command_and_their_echo_comes_back() {
    let vault = Vault::with_token();
    let script = "echo ready; read line; echo \"got $line\"; cat";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.shows("ready");
    wait_until("the terminal is in raw mode", || !terminal.is_cooked());
    // The first letters of a value appear if nothing follows.
    terminal.types("can");
    terminal.shows("can");
    terminal.types("dle\r");
    terminal.shows("got candle\r\n");
    // A whole value at once does not, not even as the echo of a paste.
    terminal.types(&format!("{TOKEN}\r"));
    terminal.shows("[REDACTED]\r\n[REDACTED]\r\n");
    // End of file is a key too.
    terminal.types("\u{4}");
    assert_eq!(terminal.wait().code(), Some(0));
    assert!(!terminal.shown().contains("canary"));
    assert!(terminal.is_cooked());
}

#[test]
fn interrupt_is_a_key_for_the_command() {
    let vault = Vault::with_token();
    let mut terminal = Terminal::start(&masked(&vault, &[], "echo ready; exec sleep 1000"));
    terminal.shows("ready");
    wait_until("the terminal is in raw mode", || !terminal.is_cooked());
    terminal.types("\u{3}");
    assert_eq!(terminal.wait().signal(), Some(Signal::INT.as_raw()));
    assert!(terminal.is_cooked());

    let script = "trap 'echo caught' INT; echo ready; read line; read line; echo got $line";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.shows("ready");
    wait_until("the terminal is in raw mode", || !terminal.is_cooked());
    terminal.types("\u{3}");
    terminal.shows("caught");
    terminal.types("more\r");
    terminal.types("more\r");
    terminal.wait();
    terminal.shows("got");
}

#[test]
fn the_mode_of_the_terminal_is_restored_after_every_end() {
    let vault = Vault::with_token();
    for signal in [Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut terminal = Terminal::start(&masked(&vault, &[], "echo ready; exec sleep 1000"));
        terminal.shows("ready");
        wait_until("the terminal is in raw mode", || !terminal.is_cooked());
        terminal.signal(signal);
        assert_eq!(terminal.wait().signal(), Some(signal.as_raw()));
        assert!(terminal.is_cooked(), "{signal:?}");
    }
    // A command that cannot start.
    let mut command = vault.exec(&["--mask", "--", "/no/such/command"]);
    command.env("TERM", "xterm");
    let mut terminal = Terminal::start(&command);
    assert_eq!(terminal.wait().code(), Some(127));
    terminal.shows("cannot run /no/such/command");
    assert!(terminal.is_cooked());
}

#[test]
fn a_resize_reaches_the_command() {
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
fn a_stream_that_is_no_terminal_stays_none() {
    let vault = Vault::with_token();
    let file = vault.file("out");
    // Only standard error is a terminal.
    let script = "test -t 0 || echo no 0 >&2; test -t 1 || echo no 1 >&2; test -t 2 && echo is 2 >&2; \
                  stty size <&2 >&2; echo $APP_TOKEN; echo $APP_TOKEN >&2; \
                  : < /dev/tty && echo controlling >&2";
    let command = masked(&vault, &[], script);
    let into = std::fs::File::create(&file).expect("makes a file");
    let mut terminal = Terminal::start_with(|pts| {
        let command = bare(&command).stdin(Stdio::null()).stdout(into);
        Running(command.spawn(pts).expect("starts"))
    });
    assert_eq!(terminal.wait().code(), Some(0));
    terminal.shows("controlling\r\n");
    let expected = "no 0\r\nno 1\r\nis 2\r\n33 77\r\n[REDACTED]\r\ncontrolling\r\n";
    assert_eq!(terminal.shown(), expected);
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), "[REDACTED]\n");

    // In a pipeline, other commands may read the keys, and an interrupt of the terminal
    // reaches the command directly.
    let command = masked(&vault, &[], "test -t 1 && echo is 1; cat; exec sleep 1000");
    let (input, output) = std::io::pipe().expect("a pipe");
    let mut terminal = Terminal::start_with(|pts| {
        Running(bare(&command).stdin(input).spawn(pts).expect("starts"))
    });
    (&output).write_all(TOKEN.as_bytes()).expect("writes");
    drop(output);
    terminal.shows("is 1\r\n[REDACTED]");
    assert!(terminal.is_cooked());
    terminal.types("\u{3}");
    assert_eq!(terminal.wait().signal(), Some(Signal::INT.as_raw()));
}

#[test]
fn much_output_reaches_the_terminal_in_order() {
    let vault = Vault::with_token();
    let script = "i=0; while [ $i -lt 3000 ]; do echo $i $APP_TOKEN; i=$((i+1)); done";
    let mut terminal = Terminal::start(&masked(&vault, &[], script));
    terminal.wait();
    terminal.shows("2999 [REDACTED]\r\n");
    let lines: Vec<_> = (0..3000).map(|number| format!("{number} [REDACTED]\r\n")).collect();
    assert!(terminal.shown() == lines.concat(), "{}", terminal.shown().len());
}

#[test]
fn a_change_restarts_the_command_on_a_terminal() {
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
fn without_mask_the_command_shares_the_terminal() {
    let vault = Vault::with_token();
    let options = ["--watch", "--", "/bin/sh", "-c"];
    let script = "trap 'echo one; n=1$n' INT; test -t 0 && test -t 1 && : < /dev/tty && echo ready; \
                  while [ -z \"$n\" ]; do sleep 0.01; done; echo $n; exit 3";
    let mut terminal = Terminal::start(&vault.exec(&[&options[..], &[script]].concat()));
    terminal.shows("ready");
    assert!(terminal.is_cooked());
    terminal.types("\u{3}");
    // The terminal sent the signal, and exec does not send it again. After an interrupt,
    // the command is not restarted.
    assert_eq!(terminal.wait().code(), Some(3));
    terminal.shows("one\r\n1\r\n");
}
