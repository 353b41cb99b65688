//! `--watch`: the command restarts when its credentials change or it crashes.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::fake::{Fake, json};
use crate::support::{eventually, wait_until};
use crate::tools::{Running, TOKEN, Vault, exec, lines};

const WATCH: [&str; 3] = ["--watch", "--interval", "0.02"];

/// Runs `script`, with `$LOG` as a file to write to. The output goes to the file `said`, and
/// the log of exec to `warned`.
fn watched(vault: &Vault, options: &[&str], script: &str) -> Command {
    let rest = ["--", "/bin/sh", "-c", script];
    let mut command = vault.exec(&[&WATCH[..], options, &rest].concat());
    command.env("LOG", vault.file("log")).env("RUST_LOG", "info");
    command.stdout(fs::File::create(vault.file("said")).expect("makes a file"));
    command.stderr(fs::File::create(vault.file("warned")).expect("makes a file"));
    command
}

/// Writes its token and process ID, and runs until a signal ends it.
const SERVICE: &str = "echo $APP_TOKEN $$ >> $LOG; while :; do sleep 0.01; done";

fn first_word(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

fn is_gone(line: &str) -> bool {
    let id = line.split(' ').nth(1).expect("two words");
    !Path::new("/proc").join(id).exists()
}

#[test]
fn a_change_restarts_the_command_with_the_new_value() {
    let vault = Vault::with_token();
    vault.put("other/key", "v", "OTHER", &["edi"]);
    let log = vault.file("log");
    let mut running = Running::start(&mut watched(&vault, &["--consumer", "uwe"], SERVICE));
    assert_eq!(first_word(&lines(&log, 1)[0]), TOKEN);
    vault.put("app/token", "second", "APP_TOKEN", &[]);
    let all = lines(&log, 2);
    assert_eq!(first_word(&all[1]), "second");
    assert!(is_gone(&all[0]), "the first one was ended");
    // Changes that the command cannot see do not restart it; the last one does, once.
    vault.put("other/key", "w", "OTHER", &["edi"]);
    vault.put("app/token", "second", "APP_TOKEN", &["uwe"]);
    vault.put("app/token", "third", "APP_TOKEN", &[]);
    assert_eq!(first_word(&lines(&log, 3)[2]), "third");

    assert_eq!(running.stop().signal(), Some(Signal::TERM.as_raw()), "ends as the command did");
    let all = lines(&log, 3);
    assert_eq!(all.len(), 3);
    assert!(is_gone(&all[2]));
}

#[test]
fn a_command_that_ignores_term_is_killed_with_its_children() {
    let vault = Vault::with_token();
    let script = "trap '' TERM; sleep 1000 & echo $APP_TOKEN $! >> $LOG; while :; do wait; done";
    let log = vault.file("log");
    let mut running = Running::start(&mut watched(&vault, &["--grace", "0.05"], script));
    lines(&log, 1);
    vault.put("app/token", "second", "APP_TOKEN", &[]);
    let all = lines(&log, 2);
    assert_eq!(first_word(&all[1]), "second");
    wait_until("its child is gone as well", || is_gone(&all[0]));
    running.signal(Signal::KILL);
    running.wait();
    let child = all[1].split(' ').nth(1).expect("two words").parse().expect("a number");
    let child = rustix::process::Pid::from_raw(child).expect("not 0");
    // The command has its own process group, and outlives an exec that is killed.
    let _ = rustix::process::kill_process_group(
        rustix::process::getpgid(Some(child)).expect("it runs"),
        Signal::KILL,
    );
}

#[test]
fn a_problem_leaves_the_command_running_and_is_logged_once() {
    let mut vault = Vault::with_token();
    let (log, warned) = (vault.file("log"), vault.file("warned"));
    let mut running = Running::start(&mut watched(&vault, &["--only", "app/token"], SERVICE));
    lines(&log, 1);
    let count = |what: &str| {
        fs::read_to_string(&warned)
            .expect("a file")
            .lines()
            .filter(|line| line.contains(what))
            .count()
    };
    vault.delete("app/token");
    wait_until("it is logged", || count("app/token: the vault has no value") == 1);
    vault.service.kill();
    wait_until("it is logged", || count("no vault answers") == 1);
    vault.service = vault.place.start();
    wait_until("it is logged again", || count("app/token: the vault has no value") == 2);
    vault.put("app/token", "second", "APP_TOKEN", &[]);
    assert_eq!(first_word(&lines(&log, 2)[1]), "second");
    assert_eq!((count("no vault answers"), count("no value")), (1, 2));
    assert!(running.is_running());
    running.stop();
}

#[test]
fn a_value_that_changes_after_its_metadata_is_noticed() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    // The listing is new at once; the value only after several reads.
    let reads = Arc::new(AtomicUsize::new(0));
    let changed = Arc::new(AtomicUsize::new(0));
    let fake = Fake::new({
        let (reads, changed) = (Arc::clone(&reads), Arc::clone(&changed));
        move |asked| {
            let is_changed = changed.load(Ordering::SeqCst) == 1;
            match &*asked.what {
                "GET /v1/credentials" => json(
                    "200 OK",
                    &format!(
                        r#"[{{"namespace":"a","key":"k","delivery_mode":"runtime_env",
                        "masked_preview":"****","created_at":"2026-11-23T18:17:36.000000Z",
                        "updated_at":"2026-11-23T18:17:3{}.000000Z","last_validated_at":null,
                        "last_used_at":null,"valid":null}}]"#,
                        if is_changed { 7 } else { 6 }
                    ),
                ),
                "GET /v1/runtime-env" => json(
                    "200 OK",
                    r#"[{"namespace":"a","key":"k","env_name":"APP_TOKEN","allowed_consumers":[]}]"#,
                ),
                _ => {
                    let late = is_changed && reads.fetch_add(1, Ordering::SeqCst) >= 3;
                    json("200 OK", if late { r#"{"value":"new"}"# } else { r#"{"value":"old"}"# })
                }
            }
        }
    });
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("log");
    let mut command = exec(&fake.socket, &[&WATCH[..], &["--", "/bin/sh", "-c", SERVICE]].concat());
    let mut running = Running::start(command.env("LOG", &log));
    assert_eq!(first_word(&lines(&log, 1)[0]), "old");
    changed.store(1, Ordering::SeqCst);
    assert_eq!(first_word(&lines(&log, 2)[1]), "new");
    running.stop();
}

#[test]
fn a_command_that_succeeds_ends_exec() {
    let vault = Vault::with_token();
    let mut running = Running::start(&mut watched(&vault, &[], "echo x >> $LOG"));
    assert_eq!(running.wait().code(), Some(0));
    assert_eq!(lines(&vault.file("log"), 1).len(), 1);
}

#[test]
fn a_crash_is_followed_by_a_limited_number_of_restarts() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let crash = "echo x >> $LOG; exit 3";
    let mut running = Running::start(&mut watched(&vault, &["--max-restarts", "0"], crash));
    assert_eq!(running.wait().code(), Some(3));
    let mut running = Running::start(&mut watched(&vault, &["--max-restarts", "1"], crash));
    assert_eq!(running.wait().code(), Some(3));
    assert_eq!(lines(&log, 3).len(), 3);
    let warned = fs::read_to_string(vault.file("warned")).expect("a file");
    assert!(warned.contains("starting it again in 1 s"), "{warned}");
    let killed = "kill -USR2 $$";
    let mut running = Running::start(&mut watched(&vault, &["--max-restarts", "0"], killed));
    assert_eq!(running.wait().signal(), Some(Signal::USR2.as_raw()));
}

#[test]
fn a_change_or_a_signal_ends_the_pause_after_a_crash() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let script = "echo $APP_TOKEN $$ >> $LOG; [ $APP_TOKEN != good ] && exit 3; \
                  while :; do sleep 0.01; done";
    let mut running = Running::start(&mut watched(&vault, &[], script));
    let warned = || fs::read_to_string(vault.file("warned")).expect("a file");
    // The third pause is 4 s, and the one after it would be 8 s.
    wait_until("it pauses for long", || warned().contains("again in 4 s"));
    vault.put("app/token", "good", "APP_TOKEN", &[]);
    wait_until("it runs", || {
        fs::read_to_string(&log).expect("a file").lines().any(|line| first_word(line) == "good")
    });
    assert!(!warned().contains("again in 8 s"));
    vault.put("app/token", "bad", "APP_TOKEN", &[]);
    wait_until("it pauses", || warned().matches("again in 1 s").count() == 2);
    assert_eq!(running.stop().signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn signals_are_forwarded_and_the_exit_status_is_returned() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let script = "trap 'echo hup >> $LOG' HUP; trap 'echo usr1 >> $LOG' USR1; \
                  trap 'echo term >> $LOG; exit 5' TERM; \
                  echo ready >> $LOG; while :; do sleep 0.01; done";
    for options in [&[][..], &["--mask"]] {
        let _ = fs::remove_file(&log);
        let mut running = Running::start(&mut watched(&vault, options, script));
        for (count, signal) in [(1, Signal::HUP), (2, Signal::USR1), (3, Signal::TERM)] {
            lines(&log, count);
            running.signal(signal);
        }
        assert_eq!(running.wait().code(), Some(5));
        assert_eq!(lines(&log, 4), ["ready", "hup", "usr1", "term"]);
    }
    // If a forwarded signal kills the command, exec ends too.
    let mut running = Running::start(&mut watched(&vault, &[], SERVICE));
    lines(&log, 5);
    running.signal(Signal::USR2);
    assert_eq!(running.wait().signal(), Some(Signal::USR2.as_raw()));
}

#[test]
fn with_hup_the_command_runs_on() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let script = "trap 'cat $CREDENTIALS_DIRECTORY/APP_TOKEN >> $LOG; echo \" $$\" >> $LOG' HUP; \
                  echo ready $$ >> $LOG; while :; do sleep 0.01; done";
    let directory = vault.file("credentials");
    let options = ["--signal", "HUP", "--files", directory.to_str().expect("UTF-8")];
    let mut running = Running::start(&mut watched(&vault, &options, script));
    lines(&log, 1);
    vault.put("app/token", "second", "APP_TOKEN", &[]);
    let all = lines(&log, 2);
    assert_eq!(first_word(&all[1]), "second");
    assert_eq!(all[0].split(' ').nth(1), all[1].split(' ').nth(1), "it is the same process");
    assert_eq!(running.stop().signal(), Some(Signal::TERM.as_raw()));
    assert!(!directory.exists());
}

#[test]
fn exec_does_not_wait_for_processes_that_the_command_leaves_running() {
    let vault = Vault::with_token();
    let log = vault.file("log");
    let script = "sleep 1000 & echo x $! >> $LOG; exit 6";
    let mut running =
        Running::start(&mut watched(&vault, &["--mask", "--max-restarts", "0"], script));
    assert_eq!(running.wait().code(), Some(6));
    let line = lines(&log, 1).remove(0);
    let left = line.split(' ').nth(1).expect("two words").parse().expect("a number");
    let left = rustix::process::Pid::from_raw(left).expect("not 0");
    let killed =
        eventually("it runs on", || Some(rustix::process::kill_process(left, Signal::KILL)));
    assert_eq!(killed, Ok(()));
}
