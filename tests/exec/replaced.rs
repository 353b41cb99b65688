//! Without options, the command replaces `exec`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;

use rustix::process::Signal;

use crate::support::set_mode;
use crate::tools::{Ended, TOKEN, Vault, exec};

#[test]
fn the_command_replaces_exec() {
    let vault = Vault::with_token();
    let mut command = vault.exec(&["--", "/bin/sh", "-c", "echo $$ $APP_TOKEN; exit 7"]);
    let child = command.spawn().expect("starts");
    let id = child.id();
    let ended = Ended::from(child.wait_with_output().expect("ends"));
    assert_eq!(ended.stdout, format!("{id} {TOKEN}\n"));
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(7), ""));

    let ended = vault.shell(&[], "kill -USR1 $$");
    assert_eq!(ended.status.signal(), Some(Signal::USR1.as_raw()));
}

#[test]
fn the_command_gets_the_original_limit_on_cores() {
    let vault = Vault::with_token();
    let files = vault.file("files");
    let files = files.to_str().expect("UTF-8");
    for options in [&[][..], &["--mask"], &["--files", files]] {
        let inner = vault.exec(&[options, &["--", "/bin/sh", "-c", "ulimit -S -c"]].concat());
        let mut outer = std::process::Command::new("/bin/sh");
        outer.args(["-c", "ulimit -S -c 8 && exec \"$@\"", "sh"]);
        outer.arg(inner.get_program()).args(inner.get_args());
        outer.env("INTENTFRAME_VAULT_SOCKET", &vault.service.socket);
        assert_eq!(Ended::of(&mut outer).ok().trim(), "8", "{options:?}");
    }
}

#[test]
fn the_command_inherits_the_original_set_of_ignored_signals() {
    let vault = Vault::with_token();
    let ignored = |line: &str| {
        let bits = line.strip_prefix("SigIgn:").expect("the line of ignored signals").trim();
        u64::from_str_radix(bits, 16).expect("hexadecimal")
    };
    let pipe = 1 << (Signal::PIPE.as_raw() - 1);
    for options in [&[][..], &["--mask"]] {
        let ended = vault.run(&[options, &["--", "grep", "SigIgn", "/proc/self/status"]].concat());
        assert_eq!(ignored(&ended.ok()) & pipe, 0, "{options:?}");
    }
    // A signal that exec was started to ignore stays ignored, as nohup(1) expects.
    let script = "trap '' HUP; exec \"$@\"";
    for options in [&[][..], &["--mask"]] {
        let inner = vault.exec(&[options, &["--", "grep", "SigIgn", "/proc/self/status"]].concat());
        let mut outer = std::process::Command::new("/bin/sh");
        outer.args(["-c", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
        outer.env("INTENTFRAME_VAULT_SOCKET", &vault.service.socket);
        let ended = Ended::of(&mut outer);
        assert_eq!(ignored(&ended.ok()) & 1, 1, "{options:?}");
    }
}

#[test]
fn arguments_are_passed_unchanged() {
    let vault = Vault::with_token();
    let odd =
        [&b"\xff\xfe"[..], b"--socket=/x", b"--", b"-h", b"a=b", b"", b"$X"].map(OsStr::from_bytes);
    let mut command = vault.exec(&["--only", "app/token", "--", "printf", "<%s>"]);
    let output = command.args(odd).output().expect("runs");
    assert_eq!(output.stdout, b"<\xff\xfe><--socket=/x><--><-h><a=b><><$X>", "{output:?}");

    let mut command = vault.exec(&["--", "env", "-0"]);
    let output = command.env("ODD", OsStr::from_bytes(b"\xff=\n")).output().expect("runs");
    assert!(output.stdout.split(|byte| *byte == 0).any(|line| line == b"ODD=\xff=\n"));
}

#[test]
fn a_command_that_cannot_start_has_the_exit_codes_of_env() {
    let vault = Vault::with_token();
    assert!(vault.run(&["--", "no-such-command"]).refused(127).contains("no-such-command"));
    let file = vault.file("not-executable");
    fs::write(&file, "#!/bin/sh\n").expect("writes");
    set_mode(&file, 0o600);
    for options in [&[][..], &["--mask"], &["--watch"]] {
        let run = |name: &str| vault.run(&[options, &["--", name]].concat());
        run("/no/such/command").refused(127);
        run(file.to_str().expect("UTF-8")).refused(126);
    }
}

#[test]
fn a_command_is_required_after_the_dashes() {
    let vault = Vault::with_token();
    for arguments in [&[][..], &["--"], &["--mask"]] {
        assert!(vault.run(arguments).refused(2).contains("no command"), "{arguments:?}");
    }
    assert!(vault.run(&["env"]).refused(2).contains("put -- before it"));
    assert!(vault.run(&["--no-such-option", "--", "env"]).refused(2).contains("no-such-option"));
    for arguments in [
        &["--grace", "1", "--", "env"][..],
        &["--watch", "--signal", "KILL", "--", "env"],
        &["--watch", "--interval", "0", "--", "env"],
        &["--watch", "--grace", "-1", "--", "env"],
        &["--env", "canary", "--", "env"],
        &["--env", "A=canary", "--", "env"],
    ] {
        vault.run(arguments).refused(2);
    }
}

#[test]
fn without_a_vault_nothing_is_started() {
    let vault = Vault::with_token();
    let nowhere = vault.file("nowhere.sock");
    for options in [&[][..], &["--mask"], &["--watch"]] {
        let mut command = exec(&nowhere, &[options, &["--", "echo", "started"]].concat());
        let said = Ended::of(&mut command).refused(3);
        assert!(said.contains("nowhere.sock"), "{said}");
    }
}
