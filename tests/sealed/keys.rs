//! Where the key comes from, and what happens without the right one.

use std::fs;
use std::os::unix::fs::{chown, symlink};

use crate::support::{self, Setup, set_mode, wait_until};
use crate::tools::{Store, assert_values, refusal, store_values};

const OTHER_KEY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n";

fn with_key_file(store: &Store, path: &std::path::Path) -> Setup {
    store.setup().option("--key-file", path)
}

#[test]
fn the_first_start_makes_a_key_file_and_later_ones_find_it() {
    let (store, service) = Store::with_values();
    let key_file = store.key_file();
    assert_eq!(support::mode(&key_file), 0o400);
    let log = service.log();
    for part in ["vault.key", "a copy or a backup", "can read the files of this user"] {
        assert!(log.contains(part), "{part:?} in {log}");
    }
    service.stop();
    let service = store.setup().start();
    assert_values(&service, 3);
    assert!(!service.log().contains("made the key file"), "{}", service.log());
}

#[test]
fn a_start_that_was_killed_after_the_key_file_goes_on_with_it() {
    let store = Store::new();
    store.file("vault.key", OTHER_KEY, 0o400);
    // Killed while it wrote the file: that has another name until it is complete.
    store.file("vault.key.00112233.new", "0123", 0o400);
    let service = store.setup().start();
    store_values(&service, 3);
    service.stop();
    assert_eq!(fs::read_to_string(store.key_file()).expect("reads"), OTHER_KEY);
    assert_values(&with_key_file(&store, &store.key_file()).start(), 3);
}

#[test]
fn a_wrong_key_is_refused_and_nothing_is_touched() {
    let (store, mut service) = Store::with_values();
    let other = store.file("other.key", OTHER_KEY, 0o400);
    // With a log beside the database, and without.
    for kills in [true, false] {
        if kills {
            service.kill();
        } else {
            store.setup().start().stop();
        }
        let before = store.files();
        let said = refusal(with_key_file(&store, &other));
        assert!(said.contains("other.key is not the right key"), "{said}");
        assert_eq!(store.files(), before);
        let kept = store.0.root().join("kept.key");
        fs::rename(store.key_file(), &kept).expect("moves");
        let said = refusal(store.setup());
        assert!(said.contains("key file of the values is missing"), "{said}");
        assert!(!store.key_file().exists(), "no new key is made");
        assert_eq!(store.files(), before);
        fs::rename(&kept, store.key_file()).expect("moves");
    }
    assert_values(&store.setup().start(), 3);
}

#[test]
fn a_damaged_or_missing_header_is_refused_and_no_key_replaces_it() {
    let (store, service) = Store::with_values();
    service.stop();
    let header = "SELECT header FROM vault_seal";
    let header: String = store.database().query_row(header, [], |row| row.get(0)).expect("reads");
    for sql in [
        "UPDATE vault_seal SET header = '{'",
        "UPDATE vault_seal SET header = replace(header, '\"version\":1', '\"version\":2')",
        "DELETE FROM vault_seal",
    ] {
        store.database().execute_batch(sql).expect("changes");
        let before = store.files();
        let said = refusal(store.setup());
        assert!(said.contains("key header"), "{said}");
        assert_eq!(store.files(), before, "{sql}");
        let sql = "INSERT OR REPLACE INTO vault_seal VALUES (1, ?1)";
        store.database().execute(sql, [&header]).expect("restores");
    }
    assert_values(&store.setup().start(), 3);
}

#[test]
fn a_key_file_must_be_safe() {
    let store = Store::new();
    let path = store.file("a.key", OTHER_KEY, 0o440);
    let refused = |what: &str| {
        let said = refusal(with_key_file(&store, &path));
        assert!(said.contains(what), "{said}");
        assert!(!store.0.data_dir().exists(), "nothing is made");
    };
    refused("chmod 400");
    set_mode(&path, 0o400);
    fs::hard_link(&path, store.0.root().join("b.key")).expect("links");
    refused("not a regular file with a single name");
    fs::rename(&path, store.0.root().join("c.key")).expect("moves");
    refused("No such file");
    symlink("c.key", &path).expect("links");
    refused("symbolic link");
    fs::remove_file(&path).expect("removes");
    store.file("a.key", "too short\n", 0o400);
    refused("32 to 4096 bytes");
    fs::remove_file(&path).expect("removes");
    store.file("a.key", OTHER_KEY, 0o600);
    let service = with_key_file(&store, &path).start();
    store_values(&service, 1);
    service.stop();
    if support::is_root() {
        chown(&path, Some(12345), None).expect("root may");
        let said = refusal(with_key_file(&store, &path));
        assert!(said.contains("belongs to user 12345"), "{said}");
    }
}

#[test]
fn the_key_of_a_unit_is_used_and_a_key_file_comes_first() {
    let store = Store::new();
    let directory = store.0.root().join("credentials");
    fs::create_dir(&directory).expect("creates");
    // systemd gives it this mode.
    store.file("credentials/vault-key", OTHER_KEY, 0o440);
    let in_unit = |setup: Setup| setup.env("CREDENTIALS_DIRECTORY", &directory);
    let service = in_unit(store.setup()).start();
    store_values(&service, 3);
    service.stop();
    assert!(!store.key_file().exists());
    assert_values(&in_unit(store.setup()).start(), 3);
    let other = store.file("other.key", &OTHER_KEY.replace('0', "1"), 0o400);
    let said = refusal(in_unit(with_key_file(&store, &other)));
    assert!(said.contains("other.key is not the right key"), "{said}");
    let said = refusal(store.setup());
    assert!(said.contains("is missing"), "{said}");
}

#[test]
fn a_passphrase_comes_from_a_descriptor() {
    let store = Store::new();
    let words = store.file("words", "correct horse battery staple\n", 0o600);
    let with = |words: &std::path::Path| {
        let setup = store.setup().option("--passphrase-fd", "5");
        setup.after(&format!("exec 5< {}", words.display()))
    };
    let service = with(&words).start();
    store_values(&service, 3);
    service.stop();
    assert!(!store.key_file().exists());
    assert_values(&with(&words).start(), 3);
    let before = store.files();
    let wrong = store.file("wrong", "correct horse battery stable\n", 0o600);
    let said = refusal(with(&wrong));
    assert!(said.contains("the passphrase is not the right key"), "{said}");
    assert!(!said.contains("stable"), "{said}");
    let said = refusal(store.setup());
    assert!(said.contains("a passphrase opens the values; give --passphrase-fd"), "{said}");
    let key = store.file("a.key", OTHER_KEY, 0o400);
    let said = refusal(with_key_file(&store, &key));
    assert!(said.contains("a passphrase opens it, and not a key file"), "{said}");
    let empty = store.file("empty", "\n", 0o600);
    assert!(refusal(with(&empty)).contains("the passphrase is empty"));
    let closed = store.setup().option("--passphrase-fd", "77");
    assert!(refusal(closed).contains("--passphrase-fd 77 77< FILE"));
    assert_eq!(store.files(), before);
}

#[test]
fn without_a_keyring_the_log_offers_the_sealed_backend() {
    let store = Store::new();
    let mut setup = store.0.bare_setup().env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent");
    for (option, path) in [("--socket", store.0.socket()), ("--data-dir", store.0.data_dir())] {
        setup = setup.option(option, &path);
    }
    let service = setup.start();
    let command = "`credential-vault serve --backend sealed`";
    wait_until("the offer", || service.log().contains(command));
    let answer = service.get("/v1/credentials/openai/key0");
    assert!(answer.status == 503 && answer.text().contains(command), "{}", answer.text());
}
