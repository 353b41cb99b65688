//! `--mask` without a terminal: pipes carry the output.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{eventually, wait_until};
use crate::tools::{Ended, Running, TOKEN, Vault, lines};

#[test]
fn values_are_replaced_in_both_streams_and_all_forms() {
    let vault = Vault::with_token();
    let script = "printf 'a%sb\\n' $APP_TOKEN; printf %s $APP_TOKEN | base64; \
                  printf %s $APP_TOKEN | od -An -tx1 | tr -d ' \\n'; echo; \
                  echo \"error: $APP_TOKEN\" >&2; exit 4";
    let ended = vault.shell(&["--mask"], script);
    assert_eq!(ended.stdout, "a[REDACTED]b\n[REDACTED]\n[REDACTED]\n");
    assert_eq!(ended.stderr, "error: [REDACTED]\n");
    assert_eq!(ended.status.code(), Some(4));
    let ended = vault.shell(&["--mask"], "echo $APP_TOKEN; kill -SEGV $$");
    assert_eq!(ended.stdout, "[REDACTED]\n");
    assert_eq!(ended.status.signal(), Some(Signal::SEGV.as_raw()));
    assert!(!ended.status.core_dumped());
}

#[test]
fn one_stream_for_both_keeps_its_order() {
    let vault = Vault::with_token();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i $APP_TOKEN >&2; done";
    let exec = vault.exec(&["--mask", "--", "/bin/sh", "-c", script]);
    let mut outer = Command::new("/bin/sh");
    outer.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(exec.get_program()).args(exec.get_args());
    outer.env("INTENTFRAME_VAULT_SOCKET", &vault.service.socket);
    let lines: Vec<_> =
        (1..10).map(|number| format!("out {number}\nerr {number} [REDACTED]\n")).collect();
    let expected = lines.concat();
    assert_eq!(Ended::of(&mut outer).ok(), expected);
}

#[test]
fn much_output_is_relayed_unchanged() {
    let vault = Vault::with_token();
    let text: Vec<u8> = (0..6_000_000_u32).flat_map(u32::to_ne_bytes).collect();
    let file = vault.file("much");
    fs::write(&file, &text).expect("writes");
    let path = file.to_str().expect("UTF-8");
    let output = vault.exec(&["--mask", "--", "cat", path]).output().expect("runs");
    assert!(output.status.success());
    assert!(output.stdout == text, "{} bytes of {}", output.stdout.len(), text.len());
    // Standard input is not relayed.
    let input = fs::File::open(&file).expect("opens");
    let output = vault.exec(&["--mask", "--", "cat"]).stdin(input).output().expect("runs");
    assert!(output.stdout == text, "{} bytes of {}", output.stdout.len(), text.len());
}

#[test]
fn a_slow_reader_slows_the_command_down() {
    // The capacity of a pipe: exec writes this much before it blocks.
    const PIPE_BYTES: u64 = 64 * 1024;

    let vault = Vault::with_token();
    let mut command = vault.exec(&["--mask", "--", "yes"]);
    let mut running = Running::start(&mut command);
    // When the pipes are full, exec stops reading, and its memory stops growing.
    let status = format!("/proc/{}/status", running.0.id());
    let io = format!("/proc/{}/io", running.0.id());
    let field = |file: &str, name: &str| -> u64 {
        let text = fs::read_to_string(file).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("is there");
        line.split_whitespace().next().expect("a number").parse().expect("a number")
    };
    let mut before = 0;
    let mut same = 0;
    let read = eventually("it reads no more", || {
        let now = field(&io, "rchar:");
        same = if now == before && now >= PIPE_BYTES { same + 1 } else { 0 };
        before = now;
        (same > 50).then_some(now)
    });
    assert!(read < 4_000_000, "{read}");
    assert!(field(&status, "VmRSS:") < 40_000, "{} kB", field(&status, "VmRSS:"));
    // A reader that goes ends the command as it would without exec.
    drop(running.0.stdout.take());
    assert_eq!(running.wait().signal(), Some(Signal::PIPE.as_raw()));
}

#[test]
fn a_signal_ends_exec_although_nobody_reads() {
    let vault = Vault::with_token();
    let done = vault.file("done");
    let script = format!("trap '' TERM; yes | head -c 300000; : > {}", done.display());
    let mut command = vault.exec(&["--mask", "--", "/bin/sh", "-c", &script]);
    // The command ends, but nobody reads its output.
    let mut running = Running::start(&mut command);
    wait_until("the command has ended", || done.exists());
    assert!(running.is_running(), "its output is still to be read");
    running.signal(Signal::TERM);
    // The shell may end by itself or by the signal.
    let status = running.wait();
    let is_its_own = status.code() == Some(0) || status.signal() == Some(Signal::TERM.as_raw());
    assert!(is_its_own, "as the command has, not {status}");
}

/// The halves of the former value are on both sides of the change.
#[test]
fn a_value_that_is_cut_by_a_change_is_masked() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let (first, second) = TOKEN.split_at(TOKEN.len() - 3);
    let options = ["--mask", "--watch", "--interval", "0.02", "--signal", "HUP"];
    // The output before the second half shows that the change is known to `exec`.
    let script = format!(
        "trap 'printf %s {second}; echo; printf \"%s\\n\" canary-of-tomorrow' HUP; \
         echo ready; printf %s {first}; while :; do sleep 0.01; done"
    );
    let rest = ["--", "/bin/sh", "-c", &*script];
    let mut command = vault.exec(&[&options[..], &rest].concat());
    command.stdout(fs::File::create(&log).expect("makes a file"));
    let mut running = Running::start(&mut command);
    lines(&log, 1);
    vault.put("app/token", "canary-of-tomorrow", "APP_TOKEN", &[]);
    assert_eq!(lines(&log, 3), ["ready", "[REDACTED]", "[REDACTED]"]);
    running.stop();
}

#[test]
fn a_private_key_is_masked_line_by_line_and_however_it_is_folded() {
    let vault = Vault::start();
    let line = |letter: &str| format!("MIIcanary+/{}", letter.repeat(53));
    let lines =
        ["-----BEGIN PRIVATE KEY-----", &line("x"), &line("y"), "-----END PRIVATE KEY-----"];
    for (name, end) in [("pem/lf", "\n"), ("pem/crlf", "\r\n"), ("pem/indented", "\n    ")] {
        vault.put(name, &(lines.join(end) + "\n"), "KEY", &[]);
        let shell = |filter: &str| {
            let script = format!("printf %s \"$KEY\" | tr -d '\\r' | {filter}");
            vault.shell(&["--mask", "--only", name], &script).ok()
        };
        let prefixed = shell("sed 's/^ */INFO\\tkey: /'");
        assert_eq!(prefixed, "INFO\tkey: [REDACTED]\n".repeat(4), "{name}");
        assert_eq!(shell("sed -n 's/^ *MII.*yyy/&/p'").trim_start(), "[REDACTED]\n", "{name}");
        for width in [1, 7, 20, 40, 63] {
            let folded = shell(&format!("fold -w {width}"));
            let flat = folded.replace(['\n', ' '], "");
            assert!(!flat.contains("MII") && !flat.contains("xx"), "{name} {width}: {folded}");
        }
        let whole = vault.shell(&["--mask", "--only", name], "printf %s \"$KEY\"");
        assert_eq!(whole.ok(), "[REDACTED]", "{name}");
    }
}

#[test]
fn a_restarted_command_is_masked() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let options = ["--mask", "--watch", "--interval", "0.02", "--", "/bin/sh", "-c"];
    // The new process prints the former value too.
    let script = format!("echo $APP_TOKEN {TOKEN}; while :; do sleep 0.01; done");
    let mut command = vault.exec(&[&options[..], &[&*script]].concat());
    command.stdout(fs::File::create(&log).expect("makes a file"));
    let mut running = Running::start(&mut command);
    lines(&log, 1);
    vault.put("app/token", "canary-of-tomorrow", "APP_TOKEN", &[]);
    assert_eq!(lines(&log, 2), ["[REDACTED] [REDACTED]"; 2]);
    running.stop();
}

#[test]
fn only_the_command_reads_standard_input() {
    let vault = Vault::with_token();
    let mut command = vault.exec(&["--mask", "--", "head", "-n", "1"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("starts");
    child.stdin.take().expect("is piped").write_all(b"first\nsecond\n").expect("writes");
    assert_eq!(Ended::from(child.wait_with_output().expect("ends")).ok(), "first\n");
}
