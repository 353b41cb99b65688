//! What is in the database, and what somebody who may write to it can do.

use intentframe_credentials::{CredentialRef, Secret};

use crate::contract::contract;
use crate::sequences;
use crate::support::assert_wire_contract;
use crate::tools::{Store, VALUE, assert_values};

#[test]
fn the_contract_of_the_trait() {
    let store = Store::new();
    let vault = store.vault(None);
    contract(&*vault, "contract-");
    sequences::agree(&*vault, "random-", 16, |_| None, |_| ());
    vault.close();
    vault.close();
}

#[test]
fn the_wire_contract() {
    let store = Store::new();
    let service = store.setup().start();
    assert_wire_contract(&service.socket);
    assert_eq!(service.get("/health").json()["backend"], "SealedVault");
}

#[test]
fn a_flipped_bit_is_an_error_of_that_credential_alone() {
    let (store, service) = Store::with_values();
    service.stop();
    let length: u32 = store
        .database()
        .query_row("SELECT length(blob) FROM vault_sealed WHERE key = 'key1'", [], |row| row.get(0))
        .expect("is there");
    // The version, the salt, the message, the tag.
    for at in [0, 1, 34, length as usize - 1] {
        let flip = || {
            let database = store.database();
            let sql = "SELECT blob FROM vault_sealed WHERE key = 'key1'";
            let mut blob: Vec<u8> = database.query_row(sql, [], |row| row.get(0)).expect("reads");
            blob[at] ^= 4;
            let sql = "UPDATE vault_sealed SET blob = ?1 WHERE key = 'key1'";
            assert_eq!(database.execute(sql, [blob]).expect("writes"), 1);
        };
        flip();
        let service = store.setup().start();
        let answer = service.get("/v1/credentials/openai/key1");
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(answer.text().contains("openai/key1 cannot be read"), "{}", answer.text());
        for key in [0, 2] {
            let answer = service.get(&format!("/v1/credentials/openai/key{key}"));
            assert_eq!(answer.value(), format!("{VALUE}-{key}"));
        }
        assert_eq!(service.get("/v1/credentials").json().as_array().map(Vec::len), Some(3));
        service.stop();
        flip();
    }
    // Stored again, it is whole.
    let service = store.setup().start();
    assert_values(&service, 3);
}

#[test]
fn a_row_opens_in_its_own_place_only() {
    let (store, service) = Store::with_values();
    service.stop();
    let (other, service) = Store::with_values();
    service.stop();
    let database = store.database();
    let path = other.0.database();
    database.execute("ATTACH ?1 AS other", [path.to_str()]).expect("attaches");
    database
        .execute_batch(
            "CREATE TEMP TABLE kept AS SELECT * FROM main.vault_sealed;
             UPDATE main.vault_sealed SET blob = (SELECT blob FROM kept WHERE key =
                CASE vault_sealed.key WHEN 'key0' THEN 'key1' ELSE 'key0' END)
                WHERE key IN ('key0', 'key1');
             UPDATE main.vault_sealed SET blob = (SELECT blob FROM other.vault_sealed
                WHERE key = 'key2') WHERE key = 'key2'",
        )
        .expect("swaps");
    drop(database);
    let service = store.setup().start();
    for key in 0..3 {
        let answer = service.get(&format!("/v1/credentials/openai/key{key}"));
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(answer.text().contains("belongs elsewhere"), "{}", answer.text());
    }
}

/// Readers keep encrypted values in memory, and must not keep an old one.
#[test]
fn a_reader_never_sees_an_older_value_than_before() {
    let store = Store::new();
    let vault = store.vault(None);
    let at = CredentialRef::parse("openai", "counter").expect("valid");
    let number = |number: u32| Secret::new(number.to_string());
    vault.store(&at, &number(0)).expect("stores");
    let stored = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|threads| {
        for _ in 0..3 {
            threads.spawn(|| {
                let mut seen = 0;
                while seen < 200 {
                    let least = stored.load(std::sync::atomic::Ordering::SeqCst).max(seen);
                    let value = vault.get(&at).expect("reads").expect("is there");
                    seen = value.expose().parse().expect("a number");
                    assert!(seen >= least, "{seen} after {least}");
                }
            });
        }
        for next in 1..=200 {
            vault.store(&at, &number(next)).expect("stores");
            stored.store(next, std::sync::atomic::Ordering::SeqCst);
        }
    });
    vault.close();
}

#[test]
fn more_values_than_memory_keeps_are_read_from_the_database() {
    let store = Store::new();
    let vault = store.vault(None);
    let long = "x".repeat(200 * 1024);
    let at = |n: usize| CredentialRef::parse("long", &format!("key{n}")).expect("valid");
    for n in 0..12 {
        vault.store(&at(n), &Secret::new(format!("{n}{long}"))).expect("stores");
    }
    for n in (0..12).chain((0..12).rev()) {
        let value = vault.get(&at(n)).expect("reads").expect("is there");
        assert_eq!(value.expose(), format!("{n}{long}"));
    }
    vault.close();
}
