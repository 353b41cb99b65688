//! Many clients that change the same credentials at once: value and metadata stay consistent.
#![cfg(unix)]

mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;

use intentframe_credentials::mask_value;
use serde_json::{Value, json};

use support::{Connection, Place, Random, Service, delete, get, put, request};

fn path(key: usize) -> String {
    format!("/v1/credentials/crowd/key-{key}")
}

fn summaries(service: &Service) -> Vec<Value> {
    service.get("/v1/credentials/crowd").json().as_array().expect("a list").clone()
}

#[test]
fn mixed_operations_keep_value_and_metadata_consistent() {
    const THREADS: usize = 16;
    const OPERATIONS: usize = 60;
    const KEYS: usize = 4;
    let (_place, service) = Place::serving();
    let stored = Mutex::new(HashSet::new());

    thread::scope(|scope| {
        for worker in 1..=THREADS {
            let (service, stored) = (&service, &stored);
            scope.spawn(move || {
                let mut dice = Random(worker as u64);
                let mut connection = service.connect();
                for n in 0..OPERATIONS {
                    let key = dice.below(KEYS);
                    match dice.below(10) {
                        0..4 => store(&mut connection, stored, key, &format!("{worker:03}{n:03}")),
                        4..7 => read(&mut connection, stored, key),
                        7 => {
                            let answer = connection.exchange(&delete(&path(key)));
                            assert_eq!(answer.json(), json!({ "status": "deleted" }));
                        }
                        8 => {
                            connection.send(&request("HEAD", &path(key), "", b""));
                            assert!(matches!(connection.response_to_head().status, 200 | 404));
                        }
                        _ => {
                            let listing = connection.exchange(&get("/v1/credentials/crowd"));
                            assert!(listing.json().as_array().expect("a list").len() <= 4);
                        }
                    }
                }
            });
        }
    });

    // No request runs now. Each listed credential has a value and the other way round, and
    // its metadata comes from the same store as its value.
    let summaries = summaries(&service);
    let runtime_env = service.get("/v1/runtime-env").json();
    for key in 0..KEYS {
        let name = format!("key-{key}");
        let summary = summaries.iter().find(|summary| summary["key"] == name.as_str());
        let entry = runtime_env
            .as_array()
            .expect("a list")
            .iter()
            .find(|entry| entry["key"] == name.as_str());
        let answer = service.get(&path(key));
        if answer.status == 404 {
            assert_eq!((summary, entry), (None, None), "{name}");
            continue;
        }
        let value = answer.value();
        assert!(stored.lock().expect("no panic").contains(&(key, value.clone())));
        assert_eq!(summary.expect("listed")["masked_preview"], mask_value(&value).as_str());
        assert_eq!(entry.expect("listed")["env_name"], env_name(&value));
    }
}

/// A variable name that no other value has, so that metadata shows which store it is from.
fn env_name(value: &str) -> String {
    format!("V_{}", value.replace('-', "_"))
}

/// Stores a value that is stored only once.
fn store(
    connection: &mut Connection,
    stored: &Mutex<HashSet<(usize, String)>>,
    key: usize,
    mark: &str,
) {
    let value = format!("{mark}-value-{}", &mark[4..]);
    // Noted before it is sent: a reader may see it before its writer gets the answer.
    stored.lock().expect("no panic").insert((key, value.clone()));
    let name = env_name(&value);
    let body = json!({ "value": value, "env_name": name, "delivery_mode": "runtime_env" });
    let answer = connection.exchange(&put(&path(key), &body));
    assert_eq!(answer.json(), json!({ "status": "stored" }));
}

fn read(connection: &mut Connection, stored: &Mutex<HashSet<(usize, String)>>, key: usize) {
    let answer = connection.exchange(&get(&path(key)));
    if answer.status == 404 {
        assert_eq!(answer.json(), json!({ "detail": "credential not found" }));
    } else {
        assert!(stored.lock().expect("no panic").contains(&(key, answer.value())));
    }
}
