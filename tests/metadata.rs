//! The metadata database: files of other programs, durability and undo.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use intentframe_credentials::metadata::{Filter, MetadataError, MetadataStore};
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{
    CredentialRecord, CredentialRef, DeliveryMode, Secret, StoreRequest,
};
use rusqlite::Connection;
use tempfile::TempDir;

/// The table as the Python service creates it.
const PYTHON_SCHEMA: &str = include_str!("support/python.sql");

fn place() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("credentials.db");
    (directory, file)
}

fn at(key: &str) -> CredentialRef {
    CredentialRef::parse("n", key).expect("valid")
}

/// The record of a value that is stored for the first time now.
fn row(key: &str, value: &str) -> CredentialRecord {
    let request = StoreRequest::new(Secret::new(value.to_owned()));
    CredentialRecord::new(at(key), &request, Timestamp::now())
}

fn records(store: &MetadataStore) -> Vec<CredentialRecord> {
    let mut records = Vec::new();
    store.for_each(&Filter::All, &mut |record| records.push(record)).expect("lists");
    records
}

fn column(file: &Path, column: &str, key: &str) -> Option<String> {
    let sql = format!("SELECT {column} FROM credential_metadata WHERE key = ?1");
    Connection::open(file)
        .expect("opens")
        .query_row(&sql, [key], |row| row.get(0))
        .expect("is there")
}

#[cfg(unix)]
fn mode(file: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(file).expect("is there").permissions().mode() & 0o777
}

#[cfg(unix)]
fn set_mode(file: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).expect("changes the mode");
}

/// Checks that opening fails with `hint` in the message and leaves everything unchanged.
#[track_caller]
fn assert_refused_untouched(directory: &TempDir, file: &Path, hint: &str) {
    let before = fs::read(file).expect("is there");
    let error = MetadataStore::open(file).expect_err("rejected");
    assert!(matches!(error, MetadataError::Unusable { .. }), "{error}");
    assert!(error.to_string().contains(hint), "{error}");
    assert!(fs::read(file).expect("is there") == before, "the file was touched");
    let names: Vec<_> = fs::read_dir(directory.path())
        .expect("lists")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["credentials.db"], "nothing is left beside it");
}

#[test]
fn a_python_file_is_taken_over_and_stays_readable_to_python() {
    let (_directory, file) = place();
    let python = Connection::open(&file).expect("opens");
    python.execute_batch(PYTHON_SCHEMA).expect("creates");
    python
        .execute_batch(
            "INSERT INTO credential_metadata VALUES ('n', 'old', 'runtime_env', '[\"uwe\"]', 'OLD',
             'v', 'sk-pro....YZ', '2026-11-23T18:17:36+00:00', '2026-11-23T20:17:36.5+02:00',
             '2026-11-23T18:17:37.000001+00:00', NULL)",
        )
        .expect("inserts");
    drop(python);
    #[cfg(unix)]
    set_mode(&file, 0o644);

    let store = MetadataStore::open(&file).expect("opens");
    let [record] = &records(&store)[..] else { panic!("one record") };
    assert_eq!(record.delivery_mode, DeliveryMode::RuntimeEnv);
    assert_eq!(record.allowed_consumers, ["uwe"]);
    assert_eq!(record.updated_at.to_string(), "2026-11-23T18:17:36.500000Z");
    store.put(row("old", "another value")).expect("stores");
    store.put(row("new", "short")).expect("stores");
    store.close().expect("closes");

    #[cfg(unix)]
    assert_eq!(mode(&file), 0o600);
    assert_eq!(column(&file, "created_at", "old").as_deref(), Some("2026-11-23T18:17:36+00:00"));
    let validated = column(&file, "last_validated_at", "old");
    assert_eq!(validated.as_deref(), Some("2026-11-23T18:17:37.000001+00:00"));
    assert_eq!(column(&file, "masked_preview", "old").as_deref(), Some("anothe....ue"));
    assert_eq!(column(&file, "allowed_consumers", "new").as_deref(), Some("[]"));
    assert!(column(&file, "updated_at", "new").expect("is set").ends_with("+00:00"));
    assert_eq!(column(&file, "last_used_at", "new"), None);
}

#[test]
fn newer_foreign_and_damaged_files_are_rejected_unchanged() {
    let (directory, file) = place();
    let newer = Connection::open(&file).expect("opens");
    newer.execute_batch(PYTHON_SCHEMA).expect("creates");
    newer.execute_batch("PRAGMA user_version = 7").expect("sets");
    drop(newer);
    assert_refused_untouched(&directory, &file, "newer");

    fs::remove_file(&file).expect("removes");
    Connection::open(&file)
        .expect("opens")
        .execute_batch("CREATE TABLE songs (a)")
        .expect("creates");
    assert_refused_untouched(&directory, &file, "credential");

    fs::write(&file, b"no database at all, but some text that is long enough").expect("writes");
    assert_refused_untouched(&directory, &file, "SQLite");

    fs::remove_file(&file).expect("removes");
    let whole = Connection::open(&file).expect("opens");
    whole.execute_batch(PYTHON_SCHEMA).expect("creates");
    for n in 0..200 {
        whole
            .execute(
                "INSERT INTO credential_metadata (namespace, key, created_at, updated_at)
                 VALUES ('n', ?1, '2026-11-23T18:17:36+00:00', '2026-11-23T18:17:36+00:00')",
                [format!("key-{n}")],
            )
            .expect("inserts");
    }
    drop(whole);
    let mut bytes = fs::read(&file).expect("reads");
    bytes[4096..12_288].fill(0xa5);
    fs::write(&file, bytes).expect("writes");
    assert_refused_untouched(&directory, &file, "damaged");
}

/// A killed process leaves its log: it is read, but not moved into the file.
#[test]
fn a_newer_file_with_a_log_is_rejected_and_both_are_unchanged() {
    let (directory, file) = place();
    let newer = Connection::open(&file).expect("opens");
    newer.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())).expect("switches");
    newer.execute_batch(PYTHON_SCHEMA).expect("creates");
    newer.execute_batch("PRAGMA user_version = 7").expect("sets");
    let (_copy, killed) = place();
    let log = |file: &Path| PathBuf::from(format!("{}-wal", file.display()));
    fs::copy(&file, &killed).expect("copies");
    fs::copy(log(&file), log(&killed)).expect("copies");
    let content = || [&killed, &log(&killed)].map(|file| fs::read(file).expect("is there"));
    let before = content();
    let error = MetadataStore::open(&killed).expect_err("rejected");
    assert!(error.to_string().contains("newer"), "{error}");
    assert!(content() == before, "a file was touched");

    // If there was no log, none is left behind.
    drop(newer);
    assert_refused_untouched(&directory, &file, "newer");
}

/// Windows has no service, so no lock either.
#[test]
#[cfg(unix)]
fn one_vault_at_a_time_uses_a_directory() {
    use intentframe_credentials::metadata::Snapshot;

    let (directory, file) = place();
    let store = MetadataStore::open(&file).expect("opens");
    store.put(row("key", "v")).expect("stores");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(directory.path(), &link).expect("links");
    for file in [file.clone(), link.join("credentials.db")] {
        let error = MetadataStore::open(&file).expect_err("it is in use");
        assert!(error.to_string().contains("another vault uses it"), "{error}");
    }
    assert!(Snapshot::open(&file).and_then(|it| it.find(&at("key"))).expect("reads").is_some());
    store.close().expect("closes");
    let store = MetadataStore::open(&file).expect("opens");
    assert_eq!(store.count().expect("counts"), 1);
}

#[test]
fn an_empty_file_is_a_new_database() {
    let (_directory, file) = place();
    fs::write(&file, b"").expect("writes");
    let store = MetadataStore::open(&file).expect("opens");
    assert_eq!(store.count().expect("counts"), 0);
}

#[test]
fn a_touch_is_listed_at_once_and_written_soon() {
    let (_directory, file) = place();
    let store = MetadataStore::open(&file).expect("opens");
    store.put(row("key", "v")).expect("stores");
    let used = Timestamp::parse("2030-01-02T03:04:05.000006Z").expect("valid");
    store.touch(&at("key"), used);
    assert_eq!(records(&store)[0].last_used_at, Some(used));
    let deadline = Instant::now() + Duration::from_secs(30);
    while column(&file, "last_used_at", "key").is_none() {
        assert!(Instant::now() < deadline, "never written");
        std::thread::yield_now();
    }
    let written = column(&file, "last_used_at", "key");
    assert_eq!(written.as_deref(), Some("2030-01-02T03:04:05.000006+00:00"));

    // Times never go backwards, and closing writes the pending ones.
    store.touch(&at("key"), Timestamp::parse("2029-01-01T00:00:00Z").expect("valid"));
    assert_eq!(records(&store)[0].last_used_at, Some(used));
    let later = Timestamp::parse("2031-01-01T00:00:00Z").expect("valid");
    store.touch(&at("key"), later);
    store.close().expect("closes");
    let written = column(&file, "last_used_at", "key");
    assert_eq!(written.as_deref(), Some("2031-01-01T00:00:00+00:00"));
    assert!(matches!(store.count(), Err(MetadataError::Closed)));
}

#[test]
fn an_invalid_row_is_named_in_the_error() {
    let (_directory, file) = place();
    let store = MetadataStore::open(&file).expect("opens");
    store.put(row("key", "v")).expect("stores");
    Connection::open(&file)
        .expect("opens")
        .execute_batch("UPDATE credential_metadata SET created_at = 'yesterday'")
        .expect("changes");
    let error = store.for_each(&Filter::All, &mut |_| ()).expect_err("no timestamp");
    assert!(
        error.to_string().contains("n/key") && error.to_string().contains("created_at"),
        "{error}"
    );
}
