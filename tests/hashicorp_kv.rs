//! The hashicorp backend on the KV v2 engine: changing one field never loses another one,
//! however the mount, the secret and the policy are set up, and whoever else writes.
#![cfg(unix)]

mod support;

#[path = "support/contract.rs"]
mod contract;
#[path = "support/hashicorp.rs"]
mod hashicorp;
#[path = "support/sequences.rs"]
mod sequences;

use std::thread;

use serde_json::{Map, Value, json};

use hashicorp::proxy::{Fault, When};
use hashicorp::{
    MODES, Mode, POLICY, POLICY_WITH_DESTROY, Target, at, begin_remove, begin_store, fetch, remove,
    removed, store, stored,
};
use support::{Place, Service, assert_wire_contract, request};

fn status_of_head(service: &Service, namespace: &str, key: &str) -> u16 {
    let mut connection = service.connect();
    connection.send(&request("HEAD", &at(namespace, key), "", b""));
    connection.response_to_head().status
}

fn keys_listed(service: &Service, namespace: &str) -> Vec<Value> {
    let listing = service.get(&format!("/v1/credentials/{namespace}")).json();
    listing.as_array().expect("a list").iter().map(|row| row["key"].clone()).collect()
}

#[test]
fn the_contract_of_the_trait() {
    for mode in MODES {
        let Some(target) = Target::new() else { return };
        eprintln!("{mode:?}");
        let token = target.token_of_mode(mode);
        let vault = target.vault(&[("VAULT_TOKEN", &token)]);
        contract::contract(&vault, "contract-");
        sequences::agree(&vault, "random-", 8, |_| None, |_| ());
        assert_eq!(target.namespaces(), [] as [Value; 0], "nothing is left behind");
    }
}

#[test]
fn every_row_of_the_wire_contract() {
    let Some(target) = Target::new() else { return };
    let service = target.service(POLICY);
    assert_wire_contract(&service.socket);
    assert_eq!(service.get("/health").json()["backend"], "HashiCorpVault");
    assert_eq!(target.namespaces(), [] as [Value; 0], "nothing is left behind");
}

#[test]
fn each_operation_is_one_round_trip() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.service(POLICY);
    stored(&service, "openai", "api_key", "first");

    let connections = proxy.connections();
    proxy.clear_requests();
    for value in ["one", "two", "three"] {
        stored(&service, "openai", "api_key", value);
        stored(&service, "openai", "other", value);
    }
    assert_eq!((proxy.requests().len(), proxy.count("PATCH", "data/intentframe/openai")), (6, 6));

    proxy.clear_requests();
    assert_eq!(fetch(&service, "openai", "api_key").value(), "three");
    assert_eq!(status_of_head(&service, "openai", "other"), 200);
    assert_eq!(fetch(&service, "openai", "none").status, 404);
    assert_eq!((proxy.count("", "/data/"), proxy.count("GET", "data/intentframe/openai")), (3, 3));

    // A first store finds nothing to patch, and creates the secret with a check-and-set of 0.
    proxy.clear_requests();
    stored(&service, "anthropic", "api_key", "first");
    assert_eq!(proxy.count("", "/data/"), 2);
    assert_eq!(proxy.answered("POST", "data/intentframe/anthropic", 200), 1);
    assert_eq!(proxy.connections(), connections, "connections are kept");
    assert!(proxy.requests().iter().all(|it| it.head.contains("\nx-vault-request: true")));
}

#[test]
fn a_policy_without_patch_is_asked_once() {
    let Some(target) = Target::new() else { return };
    let service = target.service_of_mode(Mode::NoPatch);
    target.write("openai", &json!({ "someone": "else's" }));
    for round in ["one", "two", "three"] {
        stored(&service, "openai", "api_key", round);
        assert_eq!(target.read("openai"), Some(json!({ "someone": "else's", "api_key": round })));
    }
    assert_eq!(target.proxy.count("PATCH", ""), 1);
    removed(&service, "openai", "api_key");
    assert_eq!(target.read("openai"), Some(json!({ "someone": "else's" })));
    removed(&service, "openai", "someone");
    assert_eq!(target.metadata("openai"), None);
    stored(&service, "openai", "api_key", "again");
    assert_eq!(fetch(&service, "openai", "api_key").value(), "again");
}

#[test]
fn without_patch_on_the_server_writes_use_check_and_set() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.service(POLICY);
    target.write("old", &json!({ "a": "1", "b": "2" }));
    proxy.all(Fault::unsupported(), "PATCH", "");
    stored(&service, "old", "c", "3");
    stored(&service, "new", "a", "1");
    removed(&service, "old", "a");
    assert_eq!(target.read("old"), Some(json!({ "b": "2", "c": "3" })));
    assert_eq!(target.read("new"), Some(json!({ "a": "1" })));
    assert_eq!(proxy.count("PATCH", "data/intentframe/old"), 1, "not asked again");
}

#[test]
fn check_and_set_is_used_where_it_is_required() {
    let Some(target) = Target::new() else { return };
    let service = target.service(POLICY);
    let required = json!({ "cas_required": true });

    // Required by a secret without a version, and by one that has some.
    target.done("POST", &target.path("metadata", "fresh"), Some(&required));
    stored(&service, "fresh", "a", "1");
    target.write("secret", &json!({ "a": "1" }));
    target.done("POST", &target.path("metadata", "secret"), Some(&required));
    // Required by the mount.
    target.done("POST", &format!("{}/config", target.mount), Some(&required));
    target.write("mount", &json!({ "a": "1" }));

    for namespace in ["fresh", "secret", "mount"] {
        stored(&service, namespace, "b", "2");
        stored(&service, namespace, "b", "3");
        assert_eq!(target.read(namespace), Some(json!({ "a": "1", "b": "3" })));
        removed(&service, namespace, "b");
        assert_eq!(target.read(namespace), Some(json!({ "a": "1" })));
        removed(&service, namespace, "a");
        assert_eq!(target.metadata(namespace), None);
    }
}

/// Sixteen writers on two services create one secret, store different fields of it, and delete some
/// of their own.
#[test]
fn writers_of_different_fields_lose_none_of_them() {
    const WRITERS: usize = 16;
    const FIELDS: usize = 8;

    for mode in MODES {
        let Some(target) = Target::new() else { return };
        eprintln!("{mode:?}");
        let token = target.token_of_mode(mode);
        let places = [Place::new(), Place::new()];
        let services = places.each_ref().map(|place| target.setup(place, &token).start());
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let service = &services[writer % 2];
                scope.spawn(move || {
                    for field in 0..FIELDS {
                        let key = format!("{writer:02}-{field}");
                        stored(service, "fleet", &key, &key);
                    }
                    removed(service, "fleet", &format!("{writer:02}-0"));
                });
            }
        });
        let mut expected = Map::new();
        for writer in 0..WRITERS {
            for field in 1..FIELDS {
                let key = format!("{writer:02}-{field}");
                expected.insert(key.clone(), json!(key));
            }
        }
        assert_eq!(target.read("fleet"), Some(Value::Object(expected)));
    }
}

#[test]
fn fields_that_are_not_text_survive_and_cannot_be_read() {
    for mode in MODES {
        let Some(target) = Target::new() else { return };
        eprintln!("{mode:?}");
        let service = target.service_of_mode(mode);
        let others = json!({
            "flag": true, "list": [1, "x", null], "number": 12, "object": { "a": { "b": 1.5 } },
            "text": "theirs", "nothing": null,
        });
        target.write("theirs", &others);
        stored(&service, "theirs", "ours", "value");
        let mut expected = others.clone();
        expected["ours"] = json!("value");
        assert_eq!(target.read("theirs"), Some(expected));

        for key in ["flag", "list", "number", "object", "nothing"] {
            let answer = fetch(&service, "theirs", key);
            assert_eq!(answer.status, 500, "{key}");
            let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
            assert!(detail.contains(&format!("theirs/{key}")), "{detail}");
            assert!(detail.contains("other than text"), "{detail}");
            assert_eq!(status_of_head(&service, "theirs", key), 200, "{key}");
        }
        assert_eq!(fetch(&service, "theirs", "text").value(), "theirs");

        stored(&service, "theirs", "number", "12");
        assert_eq!(fetch(&service, "theirs", "number").value(), "12");
        for key in ["flag", "list", "number", "nothing", "text"] {
            removed(&service, "theirs", key);
        }
        let left = json!({ "object": { "a": { "b": 1.5 } }, "ours": "value" });
        assert_eq!(target.read("theirs"), Some(left));
    }
}

#[test]
fn deleted_versions_have_no_value_and_can_be_written_over() {
    for mode in MODES {
        let Some(target) = Target::new() else { return };
        eprintln!("{mode:?}");
        let service = target.service_of_mode(mode);
        for namespace in ["soft", "destroyed", "undeleted"] {
            target.write(namespace, &json!({ "old": "value" }));
            target.done("DELETE", &target.path("data", namespace), None);
        }
        let versions = json!({ "versions": [1] });
        target.done("PUT", &target.path("destroy", "destroyed"), Some(&versions));
        for namespace in ["soft", "destroyed"] {
            assert_eq!(fetch(&service, namespace, "old").status, 404);
            assert_eq!(status_of_head(&service, namespace, "old"), 404);
            removed(&service, namespace, "old");
            stored(&service, namespace, "new", "value");
            assert_eq!(target.read(namespace), Some(json!({ "new": "value" })));
            let metadata = target.metadata(namespace).expect("there is a version");
            assert_eq!(metadata["current_version"], 2, "the version goes on");
        }
        target.done("PUT", &target.path("undelete", "undeleted"), Some(&versions));
        assert_eq!(fetch(&service, "undeleted", "old").value(), "value");
    }
}

#[test]
fn deleting_the_last_field_deletes_every_version() {
    for mode in MODES {
        let Some(target) = Target::new() else { return };
        let service = target.service_of_mode(mode);
        for value in ["one", "two", "three"] {
            stored(&service, "openai", "api_key", value);
        }
        stored(&service, "openai", "other", "x");
        removed(&service, "openai", "api_key");
        let metadata = target.metadata("openai").expect("a field is left");
        assert_eq!(metadata["current_version"], 5);
        removed(&service, "openai", "other");
        assert_eq!(target.metadata("openai"), None);
        assert_eq!(target.namespaces(), [] as [Value; 0]);
        // Deleting what is not there succeeds and creates nothing.
        removed(&service, "openai", "other");
        removed(&service, "never", "was");
        assert_eq!(target.namespaces(), [] as [Value; 0]);
    }
}

/// A store and the deletion of the last field, in each order, through one service.
#[test]
#[cfg(target_os = "linux")]
fn a_store_during_the_deletion_of_the_last_field_is_kept() {
    use hashicorp::wait_until_quiet;

    for mode in MODES {
        for when in [When::Before, When::After] {
            let Some(target) = Target::new() else { return };
            let service = target.service_of_mode(mode);

            // The store comes while the metadata is being deleted.
            stored(&service, "last", "a", "1");
            let gate = target.proxy.next(1, Fault::Hold(when), "DELETE", "");
            let mut removing = begin_remove(&service, "last", "a");
            gate.wait_for_held(1);
            let mut storing = begin_store(&service, "last", "b", "2");
            wait_until_quiet(&service);
            assert!(storing.is_silent(), "it waits");
            gate.release();
            assert_eq!((removing.response().status, storing.response().status), (200, 200));
            assert_eq!(target.read("last"), Some(json!({ "b": "2" })), "{mode:?} {when:?}");

            // The deletion comes while a second field is being stored.
            let writes = if mode == Mode::NoPatch { "POST" } else { "PATCH" };
            let gate = target.proxy.next(1, Fault::Hold(when), writes, "");
            let mut storing = begin_store(&service, "last", "c", "3");
            gate.wait_for_held(1);
            let mut removing = begin_remove(&service, "last", "b");
            wait_until_quiet(&service);
            assert!(removing.is_silent(), "it waits");
            gate.release();
            assert_eq!((removing.response().status, storing.response().status), (200, 200));
            assert_eq!(target.read("last"), Some(json!({ "c": "3" })), "{mode:?} {when:?}");
        }
    }
}

/// A deletion that failed is not sent again as it was: another service may have stored a field
/// in the meantime.
#[test]
fn a_deletion_is_not_repeated_without_another_look() {
    for fault in [
        Fault::too_many_requests(Some(1)),
        Fault::sealed(),
        Fault::internal_error(),
        Fault::Reset(When::Before),
    ] {
        let Some(target) = Target::new() else { return };
        let service = target.service_of_mode(Mode::Patch);
        stored(&service, "last", "a", "1");
        let held = target.proxy.after(1, 1, Fault::Hold(When::Before), "GET", "/data/");
        let failing = target.proxy.next(1, fault, "DELETE", "/metadata/");
        let mut removing = begin_remove(&service, "last", "a");
        failing.wait_for_hits(1);
        held.wait_for_held(1);
        target.patch("last", &json!({ "b": "another service's" }));
        held.release();
        let answer = removing.response();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(target.read("last"), Some(json!({ "b": "another service's" })));
    }
}

#[test]
fn a_deletion_by_destroy_keeps_what_another_service_stores() {
    let Some(target) = Target::new() else { return };
    let service = target.service(POLICY_WITH_DESTROY);
    stored(&service, "last", "a", "1");
    // Held right before the secret is emptied.
    let gate = target.proxy.next(1, Fault::Hold(When::Before), "POST", "/data/");
    let mut removing = begin_remove(&service, "last", "a");
    gate.wait_for_held(1);
    target.patch("last", &json!({ "b": "another service's" }));
    gate.release();
    assert_eq!(removing.response().status, 200);
    assert_eq!(target.read("last"), Some(json!({ "b": "another service's" })));
}

/// The versions are destroyed even when the answer to the step before was lost.
#[test]
fn a_deletion_by_destroy_is_finished_after_a_broken_connection() {
    for (method, path) in [("POST", "/data/"), ("PUT", "/destroy/")] {
        let Some(target) = Target::new() else { return };
        let service = target.service(POLICY_WITH_DESTROY);
        stored(&service, "last", "a", "1");
        stored(&service, "last", "a", "2");
        let broken = target.proxy.next(1, Fault::Reset(When::After), method, path);
        removed(&service, "last", "a");
        assert_eq!(broken.hits(), 1);
        let versions = target.metadata("last").expect("it stays")["versions"].clone();
        for version in ["1", "2"] {
            assert_eq!(versions[version]["destroyed"], true, "{method} {version}: {versions}");
        }
    }
}

#[test]
fn a_policy_that_allows_neither_is_named_and_nothing_changes() {
    let Some(target) = Target::new() else { return };
    let policy = r#"
            path "MOUNT/data/intentframe/*" { capabilities = ["create", "update", "patch", "read"] }
            path "MOUNT/metadata/intentframe/*" { capabilities = ["read"] }"#;
    let service = target.service(policy);
    stored(&service, "openai", "api_key", "value");
    let answer = remove(&service, "openai", "api_key");
    assert_eq!(answer.status, 500, "{}", answer.text());
    let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
    assert!(detail.contains("does not grant delete on"), "{detail}");
    assert!(detail.contains(&target.path("metadata", "openai")), "{detail}");
    assert_eq!(fetch(&service, "openai", "api_key").value(), "value");
    assert_eq!(keys_listed(&service, "openai"), ["api_key"], "its metadata is back");
}

#[test]
fn a_policy_that_forbids_writing_is_named_and_nothing_changes() {
    let Some(target) = Target::new() else { return };
    let policy = r#"path "MOUNT/data/intentframe/*" { capabilities = ["read"] }"#;
    let service = target.service(policy);
    target.write("openai", &json!({ "api_key": "value" }));
    let answer = store(&service, "openai", "api_key", "sk-canary");
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(answer.text().contains("does not grant create and update on"), "{}", answer.text());
    assert!(!answer.text().contains("canary"));
    assert_eq!(fetch(&service, "openai", "api_key").value(), "value");
    assert_eq!(keys_listed(&service, "openai"), [] as [Value; 0], "its metadata is back");
}

/// Another writer is always faster; the attempts are bounded.
#[test]
fn a_race_that_is_always_lost_ends() {
    let Some(target) = Target::new() else { return };
    let service = target.service_of_mode(Mode::NoPatch);
    stored(&service, "busy", "a", "1");
    let lost = Fault::error(400, "check-and-set parameter did not match the current version");
    let lost = target.proxy.all(lost, "POST", "/data/");
    let answer = store(&service, "busy", "a", "2");
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(answer.text().contains("at the same time"), "{}", answer.text());
    assert!((5..=32).contains(&lost.hits()), "{}", lost.hits());
    lost.clear();
    assert_eq!(fetch(&service, "busy", "a").value(), "1");
    stored(&service, "busy", "a", "3");
}
