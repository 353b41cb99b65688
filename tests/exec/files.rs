//! `--files`: credentials in files that are never on a disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::process::Signal;

use crate::support::{set_mode, wait_until};
use crate::tools::{Ended, Running, TOKEN, Vault};

#[test]
fn each_value_is_in_a_file_while_the_command_runs() {
    let vault = Vault::with_token();
    let long = "x".repeat(200_000);
    vault.put("b/long", &long, "LONG", &[]);
    vault.put("b/nul", "a\0b", "WITH_NUL", &[]);
    let directory = vault.file("credentials");
    let option = directory.to_str().expect("UTF-8");

    let script = "cd $CREDENTIALS_DIRECTORY && pwd && ls -A && stat -L -c '%a %s' * && stat -c %a . \
                  && cat APP_TOKEN && echo && env | grep -c APP_TOKEN";
    let ended = vault.shell(&["--files", option], script);
    let expected = format!(
        "{}\nAPP_TOKEN\nLONG\nWITH_NUL\n400 {}\n400 200000\n400 3\n700\n{TOKEN}\n0\n",
        directory.display(),
        TOKEN.len(),
    );
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), (&*expected, ""));
    assert_eq!(ended.status.code(), Some(1), "the exit code is the command's");
    assert!(!directory.exists());

    // The mode does not stop root from writing; the seals do.
    let script = "echo x > $CREDENTIALS_DIRECTORY/APP_TOKEN; cat $CREDENTIALS_DIRECTORY/APP_TOKEN";
    let ended = vault.shell(&["--files", option], script);
    assert_eq!(ended.stdout, TOKEN);
    assert!(!directory.exists());
}

#[test]
fn after_a_kill_no_value_remains_and_the_directory_can_be_reused() {
    let vault = Vault::with_token();
    let directory = vault.file("credentials");
    let option = directory.to_str().expect("UTF-8");
    // The command reads a pipe, so it ends when exec is gone.
    let mut command = vault.exec(&["--files", option, "--", "cat"]);
    let mut running = Running::start(command.stdin(std::process::Stdio::piped()));
    wait_until("there is a file", || directory.join("APP_TOKEN").exists());
    assert_eq!(fs::read_to_string(directory.join("APP_TOKEN")).expect("reads"), TOKEN);
    running.signal(Signal::KILL);
    running.wait();
    wait_until("nothing is behind the link", || !directory.join("APP_TOKEN").exists());
    let left = fs::read_link(directory.join("APP_TOKEN")).expect("the link is left");
    assert!(left.starts_with("/proc"), "{left:?}");

    assert_eq!(vault.shell(&["--files", option], "cat $CREDENTIALS_DIRECTORY/*").ok(), TOKEN);
    assert!(!directory.exists());
}

#[test]
fn only_an_empty_directory_of_this_user_is_used() {
    let vault = Vault::with_token();
    let directory = vault.file("credentials");
    let option = directory.to_str().expect("UTF-8");
    let run = || vault.shell(&["--files", option], "echo started");

    fs::create_dir(&directory).expect("makes it");
    set_mode(&directory, 0o755);
    assert_eq!(run().ok(), "started\n");
    assert!(directory.exists(), "it was there before");
    let mode = fs::metadata(&directory).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    fs::write(directory.join("file"), "mine").expect("writes");
    assert!(run().refused(2).contains("is not empty"));
    assert_eq!(fs::read_to_string(directory.join("file")).expect("reads"), "mine");
    fs::remove_file(directory.join("file")).expect("removes");
    symlink("/etc/passwd", directory.join("link")).expect("links");
    assert!(run().refused(2).contains("is not empty"));
    fs::remove_dir_all(&directory).expect("removes");
    symlink("/tmp", &directory).expect("links");
    assert!(run().refused(2).contains("not a directory"));
    let nowhere = vault.file("none/credentials");
    let said =
        vault.shell(&["--files", nowhere.to_str().expect("UTF-8")], "echo started").refused(2);
    assert!(said.contains("none/credentials"), "{said}");

    // A variable that is already set is not replaced.
    fs::remove_file(&directory).expect("removes");
    let mut command = vault.exec(&["--files", option, "--", "echo", "started"]);
    let said = Ended::of(command.env("CREDENTIALS_DIRECTORY", "/else")).refused(2);
    assert!(said.contains("CREDENTIALS_DIRECTORY"), "{said}");
    assert!(!directory.exists());
}

#[test]
fn a_change_replaces_the_files() {
    let vault = Vault::with_token();
    vault.put("b/old", "1", "OLD", &[]);
    let directory = vault.file("credentials");
    let options = ["--files", directory.to_str().expect("UTF-8"), "--watch", "--interval", "0.02"];
    let rest =
        ["--signal", "HUP", "--", "/bin/sh", "-c", "trap : HUP; while :; do sleep 0.01; done"];
    let mut running = Running::start(&mut vault.exec(&[&options[..], &rest].concat()));
    let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
    wait_until("there are files", || read("APP_TOKEN").is_some() && read("OLD").is_some());
    vault.put("app/token", "changed", "APP_TOKEN", &[]);
    vault.put("b/old", "1", "NEW", &[]);
    wait_until("they are replaced", || {
        let now = read("APP_TOKEN").expect("one or the other is there at any time");
        now == "changed" && read("NEW").as_deref() == Some("1") && read("OLD").is_none()
    });
    running.stop();
    assert!(!directory.exists());
}
