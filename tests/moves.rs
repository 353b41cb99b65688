//! `export` and `import`: credentials move between backends and hosts, whole and unchanged.
#![cfg(target_os = "linux")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
#[path = "support/session.rs"]
mod session;
mod support;
#[path = "support/terminal.rs"]
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use hashicorp::proxy::{Fault, When};
use hashicorp::{POLICY, Target};
use intentframe_credentials::export_file::{Entry, Writer};
use intentframe_credentials::seal::KeySource;
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{CredentialRecord, CredentialRef, Secret, StoreRequest};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::{Ended, Place, Service, Setup, set_mode, wait_until};
use terminal::Terminal;

/// One side of a move: a data directory, with a backend and its environment.
struct Side {
    place: Place,
    backend: &'static str,
    environment: Vec<(String, String)>,
}

impl Side {
    fn new(backend: &'static str, environment: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let environment = environment.iter().map(owned).collect();
        Self { place: Place::new(), backend, environment }
    }

    fn of_target(target: &Target) -> Self {
        let token = target.token_for(POLICY);
        let variables = [
            ("VAULT_ADDR", &*target.proxy.address),
            ("VAULT_KV_MOUNT", &target.mount),
            ("VAULT_TOKEN", &token),
        ];
        Self::new("hashicorp", &variables)
    }

    fn keyring() -> Self {
        Self::new("keyring", &[("DBUS_SESSION_BUS_ADDRESS", &session::bus())])
    }

    fn serve(&self) -> Service {
        let setup = self.place.setup_with(self.backend);
        let with = |setup: Setup, (name, value): &(String, String)| setup.env(name, value);
        self.environment.iter().fold(setup, with).start()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
        command.args(arguments).args(["--backend", self.backend, "--data-dir"]);
        command.arg(self.place.data_dir()).env_clear().env("HOME", self.place.root());
        command.envs(self.environment.iter().cloned()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        ended(self.command(arguments).output().expect("runs"))
    }

    /// Stores `count` credentials with all metadata, each in a namespace of its own.
    fn fill(&self, count: u32) {
        let service = self.serve();
        for number in 0..count {
            let body = json!({
                "value": value(number),
                "delivery_mode": if number % 2 == 0 { "executor_only" } else { "runtime_env" },
                "allowed_consumers": ["jarvis", "edi \u{1f511}"],
                "env_name": format!("TOKEN_{number}"),
                "validator_id": "v1",
            });
            let at = path(number);
            assert_eq!(service.put(&at, &body).status, 200);
            if number % 3 == 0 {
                service.get(&at).value();
            }
        }
        service.stop();
        let database = rusqlite::Connection::open(self.place.database()).expect("opens");
        let sql = "UPDATE credential_metadata SET created_at = '2020-01-01T00:00:00+00:00',
             last_validated_at = '2021-01-01T00:00:00.500000+00:00' WHERE namespace LIKE '%1'";
        database.execute(sql, []).expect("changes");
    }

    /// All rows of the database, as text.
    fn rows(&self) -> Vec<String> {
        let database = rusqlite::Connection::open(self.place.database()).expect("opens");
        let sql =
            "SELECT concat_ws('|', namespace, key, delivery_mode, allowed_consumers, env_name,
             validator_id, masked_preview, created_at, updated_at, last_validated_at,
             coalesce(last_used_at, 'never')) FROM credential_metadata ORDER BY namespace, key";
        let mut statement = database.prepare(sql).expect("prepares");
        let rows = statement.query_map([], |row| row.get(0)).expect("reads");
        rows.map(|row| row.expect("text")).collect()
    }

    fn open_intents(&self) -> u32 {
        let database = rusqlite::Connection::open(self.place.database()).expect("opens");
        let sql = "SELECT count(*) FROM vault_intents";
        database.query_row(sql, [], |row| row.get(0)).expect("counts")
    }

    /// Checks through the service that the first `count` credentials have their values.
    #[track_caller]
    fn assert_values(&self, count: u32) {
        let service = self.serve();
        for number in 0..count {
            assert_eq!(service.get(&path(number)).value(), value(number));
        }
        service.stop();
    }
}

fn path(number: u32) -> String {
    format!("/v1/credentials/n{number:02}/key%20{number}")
}

fn value(number: u32) -> String {
    format!("sk-canary-{number}-\u{e9}\"\\\n{}", "x".repeat(number as usize))
}

/// Checks that a command has shown no value.
fn ended(output: Output) -> Ended {
    let ended = Ended::from(output);
    assert!(!format!("{ended:?}").contains("canary"), "a value is shown: {ended:?}");
    ended
}

/// A key file and the path of an export.
struct Files {
    directory: tempfile::TempDir,
    key: String,
    export: String,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
        let (key, export) = (path("key"), path("vault.export"));
        write_key(Path::new(&key), b'k');
        Self { directory, key, export }
    }

    fn export(&self) -> [&str; 4] {
        ["export", &self.export, "--key-file", &self.key]
    }

    fn import(&self) -> [&str; 4] {
        ["import", &self.export, "--key-file", &self.key]
    }
}

fn write_key(path: &Path, byte: u8) {
    fs::write(path, [byte; 32]).expect("writes");
    set_mode(path, 0o400);
}

fn with<'a>(arguments: [&'a str; 4], more: &[&'a str]) -> Vec<&'a str> {
    [&arguments[..], more].concat()
}

/// The names and contents of all files in a directory.
fn content(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("reads").path());
    let mut files: Vec<_> =
        paths.map(|path| (path.clone(), fs::read(path).expect("reads"))).collect();
    files.sort();
    files
}

fn kill(mut child: Child) {
    child.kill().expect("it is running");
    child.wait().expect("a child can be waited for");
}

#[test]
fn credentials_move_from_a_keyring_to_vault_and_back() {
    if !session::session("credentials_move_from_a_keyring_to_vault_and_back") {
        return;
    }
    let Some(target) = Target::new() else { return };
    let (old, vault, new) = (Side::keyring(), Side::of_target(&target), Side::keyring());
    let (there, back) = (Files::new(), Files::new());
    old.fill(7);
    let rows = old.rows();
    old.run(&there.export()).says("7 credentials");
    assert_eq!(support::mode(&there.export), 0o600);
    assert!(!String::from_utf8_lossy(&fs::read(&there.export).expect("reads")).contains("n01"));
    old.run(&there.export()).failed(2, "exists already");

    vault.run(&there.import()).says("7 stored, 0 are there already, 0 conflicts");
    assert_eq!((vault.rows(), vault.open_intents()), (rows.clone(), 0));
    vault.run(&there.import()).says("0 stored, 7 are there already");

    // The service may be running, and is the only one that changes its database.
    let service = vault.serve();
    vault.run(&back.export()).says("7 credentials");
    let before = vault.rows();
    vault.run(&with(back.import(), &["--replace"])).failed(5, "another vault uses it");
    assert_eq!(vault.rows(), before);
    drop(service);

    let service = old.serve();
    for number in 0..7 {
        assert_eq!(service.connect().exchange(&support::delete(&path(number))).status, 200);
    }
    drop(service);
    new.run(&back.import()).says("7 stored");
    assert_eq!((new.rows(), new.open_intents()), (rows, 0));
    new.assert_values(7);
    vault.assert_values(7);
}

#[test]
fn a_sealed_store_moves_to_a_new_host_while_it_serves() {
    let (old, new, files) = (Side::new("sealed", &[]), Side::new("sealed", &[]), Files::new());
    old.fill(5);
    let service = old.serve();
    old.run(&files.export()).says("5 credentials");
    assert_eq!(service.get(&path(2)).value(), value(2));
    drop(service);
    new.run(&with(files.import(), &["--dry-run"])).failed(2, "`seal init` makes one");
    assert!(!new.place.data_dir().exists());
    let made = new.run(&files.import());
    assert!(made.stderr.contains("Keep a copy of it"), "{}", made.stderr);
    assert!(made.stdout.starts_with("5 stored"), "{}", made.stdout);
    new.run(&with(files.import(), &["--dry-run"])).says("0 would be stored, 5 are there already");
    assert_eq!(new.rows()[3..], old.rows()[3..], "they were not read since");
    new.assert_values(5);

    // One value that cannot be read is named, and does not hold up the others.
    let database = rusqlite::Connection::open(old.place.database()).expect("opens");
    let sql = "UPDATE vault_sealed SET blob = zeroblob(99) WHERE namespace = 'n03'";
    assert_eq!(database.execute(sql, []), Ok(1));
    drop(database);
    let again = Files::new();
    let output = old.run(&again.export()).failed(5, "n03/key 3");
    assert!(output.contains("4 credentials"), "{output}");
}

#[test]
fn an_export_that_was_killed_leaves_no_file_and_starts_anew() {
    let Some(target) = Target::new() else { return };
    let (side, files) = (Side::of_target(&target), Files::new());
    side.fill(3);
    let held = target.proxy.next(1, Fault::Hold(When::Before), "GET", "n02");
    let child = side.command(&files.export()).spawn().expect("starts");
    held.wait_for_held(1);
    kill(child);
    held.clear();
    assert!(!Path::new(&files.export).exists());
    fs::remove_file(&files.key).expect("removes");
    let made = side.run(&files.export());
    assert!(made.stderr.contains("made the key file"), "{}", made.stderr);
    assert_eq!((made.status.code(), made.stdout.contains("3 credentials")), (Some(0), true));
    side.run(&with(files.import(), &["--dry-run"])).says("0 would be stored, 3 are there already");
}

#[test]
fn an_import_that_was_killed_leaves_whole_credentials_and_continues() {
    let cases = [(When::Before, "3 stored, 5 are there"), (When::After, "2 stored, 6 are there")];
    for (when, says) in cases {
        let Some(target) = Target::new() else { return };
        let (from, to, files) = (Side::of_target(&target), Side::of_target(&target), Files::new());
        from.fill(8);
        from.run(&files.export()).says("8 credentials");
        let rows = from.rows();
        let service = from.serve();
        for number in 0..8 {
            let deleted = service.connect().exchange(&support::delete(&path(number)));
            assert_eq!(deleted.status, 200);
        }
        service.stop();

        let held = target.proxy.next(1, Fault::Hold(when), "POST", "n05");
        let child = to.command(&files.import()).spawn().expect("starts");
        held.wait_for_held(1);
        // A request that was held stays so, as if the network had lost it.
        kill(child);
        assert_eq!(to.rows().len(), 6, "five, and the one that was being stored");
        to.run(&files.import()).says(says);
        assert_eq!(to.rows(), rows);
        to.assert_values(8);
    }
}

#[test]
fn an_import_that_is_interrupted_ends_after_a_whole_credential() {
    let Some(target) = Target::new() else { return };
    let (side, files) = (Side::of_target(&target), Files::new());
    side.fill(6);
    side.run(&files.export()).says("6 credentials");
    let rows = side.rows();
    let other = Target::new().expect("there was one");
    let to = Side::of_target(&other);
    let held = other.proxy.next(1, Fault::Hold(When::Before), "POST", "n03");
    let mut command = to.command(&files.import());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    held.wait_for_held(1);
    kill_process(Pid::from_child(&child), Signal::INT).expect("it is running");
    held.release();
    let output = child.wait_with_output().expect("it ends");
    let output = ended(output).failed(130, "interrupted");
    assert!(output.contains("4 stored"), "{output}");
    assert_eq!((to.rows(), to.open_intents()), (rows[..4].to_vec(), 0));
    to.run(&files.import()).says("2 stored, 4 are there already");
    assert_eq!(to.rows(), rows);
}

#[test]
fn what_is_there_stays_unless_it_is_to_be_replaced() {
    let Some(target) = Target::new() else { return };
    let (side, files) = (Side::of_target(&target), Files::new());
    side.fill(4);
    let rows = side.rows();
    side.run(&files.export()).says("4 credentials");
    let service = side.serve();
    assert_eq!(service.put(&path(1), &json!({ "value": value(1) })).status, 200);
    assert_eq!(service.put(&path(2), &json!({ "value": "another canary" })).status, 200);
    assert_eq!(service.connect().exchange(&support::delete(&path(3))).status, 200);
    service.get(&path(0)).value();
    service.stop();
    // A value that no listing shows is adopted.
    target.write("n03", &json!({ "key 3": value(3) }));

    let before = content(&side.place.data_dir());
    let dry = side.run(&with(files.import(), &["--dry-run"]));
    assert!(
        dry.stderr.contains("n01/key 1 was not stored: another")
            && dry.stderr.contains("n02/key 2 was not stored: another")
    );
    assert_eq!(dry.failed(1, "--replace"), "1 would be stored, 1 are there already, 2 conflicts\n");
    side.run(&with(files.import(), &["--dry-run", "--replace"])).says("3 would be stored");
    assert_eq!(content(&side.place.data_dir()), before, "nothing changed");

    side.run(&files.import()).failed(1, "--replace");
    assert_eq!(side.rows()[3], rows[3]);
    assert_ne!(side.rows()[1..3], rows[1..3]);
    assert_eq!(target.read("n02"), Some(json!({ "key 2": "another canary" })));
    side.run(&with(files.import(), &["--replace"])).says("2 stored, 2 are there already");
    assert_eq!(side.rows()[1..], rows[1..]);
    side.assert_values(4);

    let names = side.run(&["export", &Files::new().export, "--dry-run"]).says("");
    assert_eq!(names, "n00/key 0\nn01/key 1\nn02/key 2\nn03/key 3\n");
}

#[test]
fn files_and_keys_that_are_not_right_touch_nothing() {
    let Some(target) = Target::new() else { return };
    let (side, to, files) = (Side::of_target(&target), Side::of_target(&target), Files::new());
    side.fill(3);
    side.run(&files.export()).says("3 credentials");
    let export = fs::read(&files.export).expect("reads");
    let lines: Vec<&[u8]> = export.split_inclusive(|byte| *byte == b'\n').collect();
    let flipped = |line: usize| {
        let mut lines: Vec<Vec<u8>> = lines.iter().map(|line| line.to_vec()).collect();
        let middle = lines[line].len() / 2;
        lines[line][middle] = if lines[line][middle] == b'0' { b'1' } else { b'0' };
        lines.concat()
    };
    target.proxy.clear_requests();
    let mut damaged = vec![
        (flipped(0), "right key"),
        (flipped(1), "line 2 was changed"),
        (flipped(3), "line 4 was changed"),
        (flipped(4), "line 5 was changed"),
        ([lines[0], lines[2], lines[1], lines[3], lines[4]].concat(), "line 2 was changed"),
        ([lines[0], lines[1], lines[3], lines[4]].concat(), "line 3 was changed"),
        (lines[..4].concat(), "its end is missing"),
        (export[..export.len() - 1].to_vec(), "its end is missing"),
        ([&export, lines[4]].concat(), "line 6 was changed"),
        (b"no export\n".to_vec(), "not an export file"),
    ];
    let newer = String::from_utf8_lossy(lines[0]).replace("\"version\":1}\n", "\"version\":2}\n");
    damaged.push((newer.into_bytes(), "newer version"));
    for (bytes, says) in damaged {
        fs::write(&files.export, bytes).expect("writes");
        to.run(&files.import()).failed(2, says);
    }
    fs::write(&files.export, &export).expect("writes");
    let wrong = files.directory.path().join("wrong").to_str().expect("UTF-8").to_owned();
    write_key(Path::new(&wrong), b'w');
    to.run(&["import", &files.export, "--key-file", &wrong]).failed(2, "is not the right key");
    to.run(&["import", &files.export]).failed(2, "a key file opens it; give --key-file");
    set_mode(&wrong, 0o444);
    to.run(&["import", &files.export, "--key-file", &wrong])
        .failed(2, "other users may read it; run chmod");
    to.run(&["import", "/nowhere/file", "--key-file", &files.key]).failed(5, "cannot read");
    assert!(!to.place.data_dir().exists(), "nothing was touched");
    assert!(target.proxy.requests().is_empty(), "the backend was not asked");

    let memory = Side::new("env", &[]);
    memory.run(&files.import()).failed(2, "keeps values in memory");
    let nothing = Side::new("sealed", &[]);
    nothing.run(&Files::new().export()).failed(2, "there is no database");
}

#[test]
fn a_passphrase_comes_from_a_descriptor_or_a_terminal() {
    let Some(target) = Target::new() else { return };
    let (side, files) = (Side::of_target(&target), Files::new());
    side.fill(2);
    let passphrase = files.directory.path().join("passphrase");
    fs::write(&passphrase, "a long passphrase\n").expect("writes");
    let by_descriptor = |command: Command| {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", r#"exec "$0" "$@" 7<"$PASSPHRASE""#]).arg(command.get_program());
        shell.args(command.get_args()).args(["--passphrase-fd", "7"]).env_clear();
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        ended(shell.env("PASSPHRASE", &passphrase).output().expect("runs"))
    };
    side.run(&["export", &files.export]).failed(2, "nobody can be asked for a passphrase");
    by_descriptor(side.command(&["export", &files.export])).says("2 credentials");
    let dry = ["import", &files.export, "--dry-run"];
    by_descriptor(side.command(&dry)).says("2 are there already");
    side.run(&with(files.import(), &[])).failed(2, "a passphrase opens it");
    side.run(&["import", &files.export, "--passphrase-fd", "9"]).failed(2, "descriptor 9");

    let typed = |arguments: &[&str], code: i32, typed: &str| {
        let terminal = Terminal::start(&side.command(arguments));
        terminal.answers("(not shown)", typed);
        let (ended, screen) = terminal.end();
        assert!(ended == Some(code) && !screen.contains("long passphrase"), "{ended:?} {screen}");
        screen
    };
    assert!(typed(&dry, 0, "a long passphrase").contains("2 are there already"));
    typed(&dry, 2, "a wrong passphrase");
    fs::remove_file(&files.export).expect("removes");
    let new = ["export", &*files.export];
    typed(&new, 2, "a long passphrase\nanother");
    assert!(typed(&new, 0, "a long passphrase\na long passphrase").contains("2 credentials"));
    by_descriptor(side.command(&dry)).says("2 are there already");
}

#[test]
fn memory_does_not_grow_with_the_values() {
    let peaks = |count: u32| {
        let (side, files, again) = (Side::new("sealed", &[]), Files::new(), Files::new());
        let source = KeySource::File(PathBuf::from(&files.key));
        let file = fs::File::create_new(&files.export).expect("creates");
        let mut writer = Writer::new(file, &source).expect("writes");
        for number in 0..count {
            let at = CredentialRef::parse("n", &format!("key-{number:06}")).expect("valid");
            let value = Secret::new(format!("{number}{}", "canary".repeat(3000)));
            let request = StoreRequest::new(value.duplicate());
            let record = CredentialRecord::new(at, &request, Timestamp::now());
            writer.put(Entry { record, value }).expect("writes");
        }
        writer.finish().expect("writes");
        let (imported, report) = peak(side.command(&files.import()));
        assert!(report.contains(&format!("{count} stored")), "{report}");
        let (exported, report) = peak(side.command(&again.export()));
        assert!(report.contains(&format!("{count} credentials")), "{report}");
        [imported, exported]
    };
    let (few, many) = (peaks(100), peaks(400));
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few + 3 * 1024, "{few} kB for 100, {many} kB for 400: 7 MB of values");
    }
}

/// Runs a command. Returns its peak of memory in kB, as last seen, and its output.
fn peak(mut command: Command) -> (u32, String) {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let status = format!("/proc/{}/status", child.id());
    let mut kilobytes = 0;
    wait_until("the command ends", || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(number) = line.and_then(|it| it.trim().strip_suffix(" kB")) {
            kilobytes = number.parse().expect("a number");
        }
        child.try_wait().expect("it is a child").is_some()
    });
    let output = child.wait_with_output().expect("it has ended").stdout;
    (kilobytes, String::from_utf8(output).expect("UTF-8"))
}
