//! `seal init`, `rekey`, `rewrap` and `status`.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::tools::{Store, assert_stored, assert_values, refusal, store_values};

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_store_is_made_shown_and_given_another_key() {
    let store = Store::new();
    store.run(&["status"]).failed(2, "credential-vault seal init");
    store.run(&["rekey"]).failed(2, "credential-vault seal init");
    let made = store.run(&["init"]);
    assert!(made.stderr.contains("made the key file"), "{}", made.stderr);
    let shown = made.stdout;
    assert!(shown.contains("key\tkey file\nvalues\t0\n"), "{shown}");
    let id = shown.lines().find_map(|line| line.strip_prefix("store\t")).expect("an ID").to_owned();
    store.run(&["init"]).failed(2, "there is a sealed store already");
    let service = store.setup().start();
    store_values(&service, 3);
    store.run(&["rekey"]).failed(5, "another vault uses it");
    assert!(store.run(&["status"]).ok().ends_with("values\t3\n"));
    service.stop();

    let new_file = store.0.root().join("new.key");
    let rewrapped = store.run(&["rewrap", "--new-key-file", text(&new_file)]);
    assert_eq!(rewrapped.status.code(), Some(0), "{}", rewrapped.stderr);
    assert!(rewrapped.stderr.contains("made the key file"), "{}", rewrapped.stderr);
    assert_eq!(fs::metadata(&new_file).expect("is made").len(), 65);
    refusal(store.setup());
    assert_stored(&*store.vault(Some(&new_file)), 3);
    let rekeyed = store.run(&["rekey", "--key-file", text(&new_file)]).ok();
    assert!(rekeyed.contains("3 values"), "{rekeyed}");
    assert_stored(&*store.vault(Some(&new_file)), 3);
    let shown = store.seal(&["status"]).env("IF_VAULT_KEY_FILE", &new_file).output().expect("runs");
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    assert_eq!(shown, format!("store\t{id}\nkey\tkey file\nvalues\t3\n"));
}

#[test]
fn a_new_key_makes_old_rows_useless() {
    let (store, service) = Store::with_values();
    service.stop();
    let rows = |store: &Store| -> Vec<Vec<u8>> {
        let database = store.database();
        let mut rows = database.prepare("SELECT blob FROM vault_sealed ORDER BY key").expect("SQL");
        rows.query_map([], |row| row.get(0)).expect("reads").map(Result::unwrap).collect()
    };
    let before = rows(&store);
    store.run(&["rekey"]).ok();
    for (old, new) in before.iter().zip(rows(&store)) {
        assert_ne!(*old, new);
    }
    for (file, bytes) in store.files() {
        let is_left = before.iter().any(|old| bytes.windows(old.len()).any(|it| it == old));
        assert!(!is_left, "an old row in {}", file.display());
    }
    let sql = "UPDATE vault_sealed SET blob = ?1 WHERE key = 'key0'";
    store.database().execute(sql, [&before[0]]).expect("puts it back");
    let service = store.setup().start();
    assert_eq!(service.get("/v1/credentials/openai/key0").status, 500);
    assert_eq!(service.get("/v1/credentials/openai/key1").status, 200);
    service.stop();
    let before = store.files();
    store.run(&["rekey"]).failed(5, "openai/key0 cannot be read");
    assert_eq!(store.files(), before, "all or nothing");
}

#[test]
fn a_passphrase_replaces_a_key_file_and_back() {
    let (store, service) = Store::with_values();
    service.stop();
    let words = store.file("words", "correct horse battery staple", 0o600);
    let shell = |command: &str| {
        let run = format!("exec 5< {}; exec \"$0\" {command}", words.display());
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &run, env!("CARGO_BIN_EXE_credential-vault")]).env_clear();
        shell.env("HOME", store.0.root()).env("INTENTFRAME_DATA_DIR", store.0.data_dir());
        crate::support::Ended::of(&mut shell)
    };
    store.run(&["rewrap"]).failed(2, "--new-passphrase-fd");
    shell("seal rewrap --new-passphrase-fd 5").ok();
    assert!(store.run(&["status"]).ok().contains("key\tpassphrase\n"));
    store.run(&["rekey"]).failed(2, "a passphrase opens it");
    shell("seal rekey --passphrase-fd 5").ok();
    let back =
        format!("seal rewrap --passphrase-fd 5 --new-key-file {}", store.key_file().display());
    shell(&back).ok();
    assert_values(&store.setup().start(), 3);
    assert!(!store.run(&["status"]).ok().contains("passphrase"));
}

/// Killed at any instant, the store opens with its key, and has all values.
#[test]
fn a_killed_rekey_or_rewrap_has_done_all_or_nothing() {
    const VALUES: usize = 200;
    let store = Store::new();
    let service = store.setup().start();
    store_values(&service, VALUES);
    service.stop();
    let files: [PathBuf; 2] = [store.key_file(), store.0.root().join("new.key")];
    let start = Instant::now();
    store.run(&["rekey"]).ok();
    let whole = start.elapsed();
    let mut present = 0;
    for round in 0..24_u32 {
        let rewraps = round % 2 == 1;
        let next = 1 - present;
        let (key_file, new_key_file) = (text(&files[present]), text(&files[next]));
        let arguments: &[&str] = if rewraps {
            &["rewrap", "--key-file", key_file, "--new-key-file", new_key_file]
        } else {
            &["rekey", "--key-file", key_file]
        };
        let mut child = store
            .seal(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        // A different instant in each round, from the start to a little after the end.
        thread::sleep(whole * round / 20 + Duration::from_micros(u64::from(round) * 37));
        child.kill().expect("is running, or a zombie");
        child.wait().expect("ends");
        let opens = |index: usize| store.vault(Some(&files[index])).check().is_ok();
        let is_rewrapped = rewraps && !opens(present);
        if is_rewrapped {
            assert!(opens(next), "one of the keys opens it");
            present = next;
        }
        assert_stored(&*store.vault(Some(&files[present])), VALUES);
    }
}
