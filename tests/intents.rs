//! Value and metadata after crashes and errors between the steps of a change, with a backend that
//! fails where the test wants.
#![cfg(unix)]

mod support;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use intentframe_credentials::metadata::{MetadataStore, Snapshot};
use intentframe_credentials::service::VaultService;
use intentframe_credentials::{
    CredentialRecord, CredentialRef, CredentialVault, DeliveryMode, Namespace, Secret,
    StoreRequest, VaultError,
};
use rusqlite::Connection;
use support::wait_until;
use tempfile::TempDir;

const OLD: &str = "old-value-of-1st-store";
const NEW: &str = "new-value-of-2nd-store";

const FILL_DISK: &str = "
    CREATE TRIGGER insertion BEFORE INSERT ON credential_metadata
    BEGIN SELECT RAISE(ABORT, 'not now'); END;
    CREATE TRIGGER deletion BEFORE DELETE ON credential_metadata
    BEGIN SELECT RAISE(ABORT, 'not now'); END";

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Works,
    Refuses,
    /// Refuses, while the database cannot be written any more.
    RefusesWithFullDisk,
    /// Unavailable, without or with an effect.
    Lost {
        has_effect: bool,
    },
    Panics {
        has_effect: bool,
    },
    /// Every call is unavailable, also one that reads.
    Away,
}

/// Values in memory, which outlive the service, and a mood.
struct Moody {
    values: Mutex<HashMap<CredentialRef, String>>,
    mood: Mutex<Mood>,
    database: PathBuf,
    /// The database as a crash before and after the effect of the last change would leave it.
    crashes: [TempDir; 2],
}

impl Moody {
    fn new(database: &Path) -> Arc<Self> {
        let crashes = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
        let (values, mood) = (Mutex::default(), Mutex::new(Mood::Works));
        Arc::new(Self { values, mood, database: database.to_owned(), crashes })
    }

    fn mood(&self) -> Mood {
        *self.mood.lock().expect("not poisoned")
    }

    fn set_mood(&self, mood: Mood) {
        *self.mood.lock().expect("not poisoned") = mood;
    }

    fn set(&self, at: &CredentialRef, value: Option<&str>) -> bool {
        let mut values = self.values.lock().expect("not poisoned");
        match value {
            Some(value) => values.insert(at.clone(), value.to_owned()),
            None => values.remove(at),
        }
        .is_some()
    }

    fn snapshot(&self, crash: usize) {
        copy(&self.database, self.crashes[crash].path());
    }

    fn change(&self, at: &CredentialRef, value: Option<&str>) -> Result<bool, VaultError> {
        self.snapshot(0);
        let mood = self.mood();
        let refused = || "the backend refuses".to_owned();
        if mood == Mood::RefusesWithFullDisk {
            let database = Connection::open(&self.database).expect("opens");
            database.execute_batch(FILL_DISK).expect("creates");
        }
        match (mood, value) {
            (Mood::Refuses | Mood::RefusesWithFullDisk, Some(_)) => {
                return Err(VaultError::StoreFailed { at: at.clone(), reason: refused() });
            }
            (Mood::Refuses, None) => {
                return Err(VaultError::DeleteFailed { at: at.clone(), reason: refused() });
            }
            (Mood::Panics { has_effect: false }, _) => panic!("on purpose"),
            (Mood::Away | Mood::Lost { has_effect: false }, _) => return Err(unavailable()),
            _ => {}
        }
        let existed = self.set(at, value);
        self.snapshot(1);
        match mood {
            Mood::Panics { .. } => panic!("on purpose"),
            Mood::Lost { .. } => Err(unavailable()),
            _ => Ok(existed),
        }
    }
}

/// Copies a database and its log into a directory.
fn copy(database: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join("credentials.db");
    for suffix in ["", "-wal"] {
        let name = |file: &Path| PathBuf::from(format!("{}{suffix}", file.display()));
        fs::copy(name(database), name(&copy)).expect("copies");
    }
    copy
}

fn unavailable() -> VaultError {
    let (backend, reason) = ("moody".to_owned(), "it is away".to_owned());
    VaultError::BackendUnavailable { backend, reason, retry_after: Duration::from_secs(1) }
}

impl CredentialVault for Moody {
    fn name(&self) -> &'static str {
        "Moody"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        if self.mood() == Mood::Away {
            return Err(unavailable());
        }
        let values = self.values.lock().expect("not poisoned");
        Ok(values.get(at).map(|value| Secret::new(value.clone())))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        self.change(at, Some(value.expose())).map(drop)
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.change(at, None)
    }

    fn list_keys(&self, _: &Namespace) -> Result<Vec<String>, VaultError> {
        Ok(Vec::new())
    }
}

struct Scene {
    vault: Arc<Moody>,
    service: VaultService,
    database: PathBuf,
    _place: TempDir,
}

impl Scene {
    /// A service that has stored `OLD`, if `has_old`.
    fn new(has_old: bool) -> Self {
        let place = tempfile::tempdir().expect("a temporary directory");
        let database = place.path().join("credentials.db");
        let vault = Moody::new(&database);
        let service = service(&vault, &database);
        if has_old {
            service.store(&at(), &request(OLD)).expect("stores");
        }
        Self { vault, service, database, _place: place }
    }

    /// Starts a service on what a crash before (0) or after (1) the effect of the last change has
    /// left, with this value in the backend.
    fn after_crash(&self, crash: usize, value: Option<&str>) -> (VaultService, PathBuf, TempDir) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let left = self.vault.crashes[crash].path().join("credentials.db");
        let database = copy(&left, directory.path());
        self.vault.set(&at(), value);
        (service(&self.vault, &database), database, directory)
    }

    fn record(&self) -> Option<CredentialRecord> {
        record(&self.database)
    }
}

fn service(vault: &Arc<Moody>, database: &Path) -> VaultService {
    let metadata = MetadataStore::open(database).expect("opens");
    VaultService::new(Arc::clone(vault) as Arc<dyn CredentialVault>, metadata)
}

fn at() -> CredentialRef {
    CredentialRef::parse("n", "key").expect("valid")
}

/// A store whose metadata can be told from those of another value.
fn request(value: &str) -> StoreRequest {
    let mut request = StoreRequest::new(Secret::new(value.to_owned()));
    request.env_name = Some(value.replace('-', "_"));
    request.allowed_consumers = vec![value.to_owned()];
    request.delivery_mode = DeliveryMode::RuntimeEnv;
    request
}

fn record(database: &Path) -> Option<CredentialRecord> {
    Snapshot::open(database).and_then(|it| it.find(&at())).expect("reads")
}

fn intents(database: &Path) -> i64 {
    let sql = "SELECT count(*) FROM vault_intents";
    let database = Connection::open(database).expect("opens");
    database.query_row(sql, [], |row| row.get(0)).expect("counts")
}

/// Asserts that the row is that of the store of `value`, or that there is none.
#[track_caller]
fn assert_row_of(value: Option<&str>, record: Option<&CredentialRecord>) {
    let expected = value.map(|value| CredentialRecord::new(at(), &request(value), moment()));
    let found = record.map(|record| CredentialRecord {
        created_at: moment(),
        updated_at: moment(),
        ..record.clone()
    });
    assert_eq!(found, expected);
}

fn moment() -> intentframe_credentials::time::Timestamp {
    intentframe_credentials::time::Timestamp::parse("2026-11-23T18:17:36Z").expect("valid")
}

/// A store, or a delete if `value` is `None`.
fn change(service: &VaultService, value: Option<&str>) -> Result<(), VaultError> {
    match value {
        Some(value) => service.store(&at(), &request(value)),
        None => service.delete(&at()).map(drop),
    }
}

/// Every kind of change: what was there, and what is to be there.
const CHANGES: [(bool, Option<&str>); 4] =
    [(false, Some(NEW)), (true, Some(NEW)), (true, None), (false, None)];

#[test]
fn a_crash_at_each_step_is_settled_at_the_next_start() {
    for (has_old, new) in CHANGES {
        let scene = Scene::new(has_old);
        let old = has_old.then_some(OLD);
        change(&scene.service, new).expect("works");
        for (crash, value) in [(0, old), (1, new)] {
            let (service, database, _directory) = scene.after_crash(crash, value);
            service.settle();
            assert_row_of(value, record(&database).as_ref());
            // A crash while it was settled changes nothing.
            drop(service);
            let service = self::service(&scene.vault, &database);
            service.settle();
            assert_row_of(value, record(&database).as_ref());
        }
    }
}

#[test]
fn a_refused_change_is_undone_with_its_intent() {
    for (has_old, new) in CHANGES {
        let scene = Scene::new(has_old);
        let before = scene.record();
        scene.vault.set_mood(Mood::Refuses);
        change(&scene.service, new).expect_err("refused");
        assert_eq!(scene.record(), before, "to the microsecond");
        assert_eq!(intents(&scene.database), 0);
    }
}

/// The error or the panic of a change that may have been made, and what is listed soon after.
#[test]
fn an_unknown_outcome_is_settled_in_the_background() {
    for has_effect in [false, true] {
        for mood in [Mood::Lost { has_effect }, Mood::Panics { has_effect }] {
            for (has_old, new) in CHANGES {
                let scene = Scene::new(has_old);
                scene.vault.set_mood(mood);
                std::thread::scope(|scope| {
                    let changing = scope.spawn(|| change(&scene.service, new));
                    let is_panic = matches!(mood, Mood::Panics { .. });
                    assert_eq!(changing.join().is_err(), is_panic);
                });
                let value = if has_effect { new } else { has_old.then_some(OLD) };
                let name = value.map(|value| request(value).env_name);
                wait_until("it is settled", || {
                    scene.record().map(|record| record.env_name) == name
                });
                assert_row_of(value, scene.record().as_ref());
            }
        }
    }
}

#[test]
fn what_is_open_is_settled_when_the_backend_is_back() {
    let scene = Scene::new(true);
    change(&scene.service, Some(NEW)).expect("works");
    scene.vault.set_mood(Mood::Away);
    let (service, database, _directory) = scene.after_crash(1, None);
    service.settle();
    assert_row_of(Some(NEW), record(&database).as_ref());
    // Whoever needs the row is told so,
    service.get_if(&at(), |_| panic!("the row may be wrong")).expect_err("away");
    change(&service, Some(NEW)).expect_err("away");
    scene.vault.set_mood(Mood::Works);
    wait_until("it is settled", || record(&database).is_none());
}

#[test]
fn a_read_with_a_policy_and_a_change_settle_first() {
    let crashed = |value: Option<&str>| {
        let scene = Scene::new(true);
        change(&scene.service, Some(NEW)).expect("works");
        let after = scene.after_crash(0, value);
        (scene, after)
    };
    let (_scene, (service, _, _directory)) = crashed(Some(OLD));
    let value = service.get_if(&at(), |consumers| consumers == [OLD]).expect("the old store's");
    assert_eq!(value.expose(), OLD);

    // A value that neither store wrote keeps the earlier row, with its own preview.
    let (_scene, (service, database, _directory)) = crashed(Some("foreign-value-of-another"));
    service.get_if(&at(), |consumers| consumers == [OLD]).expect("the old store's");
    let row = record(&database).expect("is there");
    assert_eq!(row.masked_preview, "foreig....er");

    let (scene, (service, database, _directory)) = crashed(Some(OLD));
    scene.vault.set_mood(Mood::Refuses);
    service.delete(&at()).expect_err("refused");
    assert_row_of(Some(OLD), record(&database).as_ref());
}

/// A request that was on its way when the service was killed.
#[test]
fn a_store_that_takes_effect_late_is_listed_soon() {
    let scene = Scene::new(true);
    change(&scene.service, Some(NEW)).expect("works");
    let (service, database, _directory) = scene.after_crash(0, Some(OLD));
    service.settle();
    assert_row_of(Some(OLD), record(&database).as_ref());
    scene.vault.set(&at(), Some(NEW));
    let name = request(NEW).env_name;
    wait_until("it is settled again", || {
        record(&database).is_some_and(|record| record.env_name == name)
    });
    assert_row_of(Some(NEW), record(&database).as_ref());
    wait_until("the intent is removed", || intents(&database) == 0);
}

#[test]
fn an_intent_keeps_no_value_and_is_not_another_backends() {
    let scene = Scene::new(true);
    change(&scene.service, Some(NEW)).expect("works");
    let database = scene.vault.crashes[0].path().join("credentials.db");
    let sql = "SELECT quote(salt) || quote(fingerprint) || before || after FROM vault_intents";
    let connection = Connection::open(&database).expect("opens");
    let row: String = connection.query_row(sql, [], |row| row.get(0)).expect("is there");
    // Its name is in the environment variable and the consumers of this test.
    assert!(!row.replace(&format!("[\"{NEW}\"]"), "").contains(NEW), "{row}");
    connection.execute("UPDATE vault_intents SET backend = 'Other'", []).expect("changes");
    drop(connection);
    scene.vault.set(&at(), None);
    let service = service(&scene.vault, &database);
    service.settle();
    assert_row_of(Some(NEW), record(&database).as_ref());
    assert_eq!(intents(&database), 1);
}

#[test]
fn an_invalid_intent_is_named_in_the_error() {
    let scene = Scene::new(true);
    change(&scene.service, Some(NEW)).expect("works");
    let database = scene.vault.crashes[0].path().join("credentials.db");
    let connection = Connection::open(&database).expect("opens");
    connection.execute("UPDATE vault_intents SET after = '{}'", []).expect("changes");
    drop(connection);
    let service = service(&scene.vault, &database);
    let error = change(&service, Some(NEW)).expect_err("it cannot be read").to_string();
    assert!(error.contains("n/key") && error.contains("vault_intents"), "{error}");
}

#[test]
fn an_undo_for_which_there_is_no_room_is_made_later() {
    for has_old in [false, true] {
        let scene = Scene::new(has_old);
        scene.vault.set_mood(Mood::RefusesWithFullDisk);
        scene.service.store(&at(), &request(NEW)).expect_err("it is refused");
        scene.vault.set_mood(Mood::Works);
        let database = Connection::open(&scene.database).expect("opens");
        let sql = "SELECT count(*) FROM credential_metadata WHERE env_name = ?1";
        let env_name = NEW.replace('-', "_");
        let new_rows = || database.query_row(sql, [&env_name], |row| row.get::<_, i64>(0));
        assert_eq!(new_rows(), Ok(1), "not restored yet");
        database.execute_batch("DROP TRIGGER insertion; DROP TRIGGER deletion").expect("drops");
        wait_until("the row is restored", || new_rows() == Ok(0));
        assert_row_of(has_old.then_some(OLD), scene.record().as_ref());
    }
}
