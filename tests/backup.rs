//! `backup`: a copy of the database that is taken while the service is under load.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rusqlite::Connection as Database;
use serde_json::{Value, json};
use support::{Ended, Place, wait_until};

const BACKUP: &str = "backup.db";

/// Runs `backup` on the data directory of `place`.
fn backup(place: &Place, file: &Path) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.args(["backup", "--data-dir"]).args([&place.data_dir(), file]);
    Ended::of(command.env_clear().env("HOME", place.root()))
}

/// The names in `directory` that are not of the database itself.
fn leftovers(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).expect("reads").map(|entry| entry.expect("reads"));
    let names = names.map(|entry| entry.file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name.starts_with(BACKUP)).collect();
    names.sort();
    names
}

#[test]
fn a_backup_under_load_is_consistent_and_serves() {
    let place = Place::new();
    let file = place.root().join(BACKUP);
    let service = place.start();
    let (stored, done) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (service, stored, done) = (&service, &stored, &done);
            scope.spawn(move || {
                let mut connection = service.connect();
                for round in 0.. {
                    // All that describes a credential is of one round.
                    let body = json!({
                        "value": format!("{round:06}-made-up"), "validator_id": format!("{round:06}"),
                    });
                    let path = format!("/v1/credentials/w{writer}/k{}", round % 50);
                    let answer = connection.exchange(&support::put(&path, &body));
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    stored.fetch_add(1, Ordering::SeqCst);
                    if done.load(Ordering::SeqCst) {
                        break;
                    }
                }
            });
        }
        for copy in 0..3 {
            let goal = stored.load(Ordering::SeqCst) + 250;
            wait_until("more is stored", || stored.load(Ordering::SeqCst) > goal);
            let before = service.get("/v1/credentials").json();
            let _ = fs::remove_file(&file);
            let said = backup(&place, &file).ok();
            assert!(said.contains("No values are in it"), "{said}");
            assert_eq!(support::mode(&file), 0o600);
            assert_eq!(leftovers(place.root()), [BACKUP], "a single file");

            let restored = Place::new();
            fs::create_dir(restored.data_dir()).expect("creates");
            fs::copy(&file, restored.database()).expect("copies");
            let serving = restored.start();
            let rows = serving.get("/v1/credentials").json();
            let rows = rows.as_array().expect("a listing");
            assert!(rows.len() >= before.as_array().expect("a listing").len(), "copy {copy}");
            assert!(said.contains(&format!("of {} credentials", rows.len())), "{said}");
            let database = Database::open(restored.database()).expect("opens");
            let sql = "SELECT COUNT(*) FROM credential_metadata
                WHERE substr(masked_preview, 1, 6) <> validator_id OR created_at > updated_at";
            let torn: i64 = database.query_row(sql, [], |row| row.get(0)).expect("counts");
            assert_eq!(torn, 0, "rows of two rounds");
            // What was acknowledged before the backup began is in it.
            let time = |row: &Value| row["updated_at"].as_str().expect("a time").to_owned();
            let place_of = |row: &Value| (row["namespace"].clone(), row["key"].clone());
            for old in before.as_array().expect("a listing") {
                let new = rows.iter().find(|row| place_of(row) == place_of(old));
                assert!(time(new.expect("is in it")) >= time(old), "{old}");
            }
        }
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_backup_has_no_unfinished_changes_and_replaces_nothing() {
    let (place, mut service) = Place::serving();
    let body = json!({ "value": "sk-made-up-value" });
    assert_eq!(service.put("/v1/credentials/n/k", &body).status, 200);
    service.kill();
    let database = Database::open(place.database()).expect("opens");
    let intent = "INSERT OR REPLACE INTO vault_intents (namespace, key, backend, salt, fingerprint)
        VALUES ('n', 'other', 'EnvVault', x'00', x'c0ffee00c0ffee')";
    database.execute_batch(intent).expect("inserts");

    // Without a service, and with a log that a killed one has left.
    let file = place.root().join(BACKUP);
    assert!(backup(&place, &file).ok().contains("of 1 credential\n"));
    let copy = Database::open(&file).expect("opens");
    let open: i64 =
        copy.query_row("SELECT COUNT(*) FROM vault_intents", [], |row| row.get(0)).expect("counts");
    assert_eq!(open, 0);
    let bytes = fs::read(&file).expect("reads");
    let fingerprint = [0xc0, 0xff, 0xee, 0, 0xc0, 0xff, 0xee];
    assert!(!bytes.windows(7).any(|part| part == fingerprint), "no trace of it");

    backup(&place, &file).failed(2, "exists already");
    assert_eq!(fs::read(&file).expect("reads"), bytes, "it is unchanged");
    let nowhere = place.root().join("none/backup.db");
    backup(&place, &nowhere).failed(2, "none cannot be checked");
    let empty = Place::new();
    backup(&empty, &empty.root().join(BACKUP)).failed(5, "cannot be used: No such file");
    assert!(leftovers(empty.root()).is_empty());

    // A damaged database gives no backup.
    drop(database);
    let length = fs::metadata(place.database()).expect("is there").len();
    let damaged = fs::File::options().write(true).open(place.database()).expect("opens");
    damaged.set_len(length / 2).expect("truncates");
    backup(&place, &place.root().join("backup.db2")).failed(5, "damaged");
    assert_eq!(leftovers(place.root()), [BACKUP]);
}

#[test]
fn a_backup_of_a_sealed_store_has_its_values_and_needs_its_key() {
    let place = Place::new();
    let service = place.setup_with("sealed").start();
    let body = json!({ "value": "sk-made-up-value" });
    assert_eq!(service.put("/v1/credentials/n/k", &body).status, 200);
    let file = place.root().join(BACKUP);
    let said = backup(&place, &file).ok();
    assert!(said.contains("of 1 credential\n") && said.contains("sealed"), "{said}");
    let bytes = fs::read(&file).expect("reads");
    assert!(!bytes.windows(10).any(|part| part == b"made-up-va"), "no value in plain text");

    let restored = Place::new();
    fs::create_dir(restored.data_dir()).expect("creates");
    fs::copy(&file, restored.database()).expect("copies");
    let mut without_key = restored.setup_with("sealed").spawn();
    assert_eq!(without_key.wait().code(), Some(2), "{}", without_key.log());
    fs::copy(place.root().join("vault.key"), restored.root().join("vault.key")).expect("copies");
    let serving = restored.setup_with("sealed").start();
    assert_eq!(serving.get("/v1/credentials/n/k").value(), "sk-made-up-value");
}
