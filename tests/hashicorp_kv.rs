//! The hashicorp backend on the KV v2 engine: one field changed without losing another's,
//! whatever the mount, the secret, the policy or another writer makes of it.

mod support;

#[path = "support/contract.rs"]
mod contract;
#[path = "support/hashicorp.rs"]
mod hashicorp;

use std::thread;

use serde_json::{Map, Value, json};

use hashicorp::vault_server::faults::{Fault, When};
use hashicorp::{
    MODES, Mode, POLICY, POLICY_WITH_DESTROY, Target, at, begin_remove, begin_store, fetch,
    on_each_server, remove, removed, store, stored,
};
use support::{Place, Service, assert_wire_contract, request};

fn service_of_mode(target: &Target, place: &Place, mode: Mode) -> Service {
    target.setup(place, &target.token_of_mode(mode)).start()
}

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
        on_each_server(|target| {
            eprintln!("{mode:?}");
            let token = target.token_of_mode(mode);
            let vault = target.vault(&[("VAULT_TOKEN", &token)]);
            contract::contract(&vault, "contract-");
            assert_eq!(target.namespaces(), [] as [Value; 0], "nothing is left behind");
        });
    }
}

#[test]
fn every_row_of_the_wire_contract() {
    on_each_server(|target| {
        let place = Place::new();
        let service = target.setup(&place, &target.token_for(POLICY)).start();
        assert_wire_contract(&service.socket);
        assert_eq!(service.get("/health").json()["backend"], "HashiCorpVault");
        assert_eq!(target.namespaces(), [] as [Value; 0], "nothing is left behind");
    });
}

#[test]
fn each_operation_is_one_round_trip() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = target.setup(&place, &target.token_for(POLICY)).start();
    stored(&service, "openai", "api_key", "first");

    let connections = server.connections();
    server.clear_requests();
    for value in ["one", "two", "three"] {
        stored(&service, "openai", "api_key", value);
        stored(&service, "openai", "other", value);
    }
    assert_eq!(
        (server.requests().len(), server.count("PATCH", "secret/data/intentframe/openai")),
        (6, 6)
    );

    server.clear_requests();
    assert_eq!(fetch(&service, "openai", "api_key").value(), "three");
    assert_eq!(status_of_head(&service, "openai", "other"), 200);
    assert_eq!(fetch(&service, "openai", "none").status, 404);
    assert_eq!(
        (server.requests().len(), server.count("GET", "secret/data/intentframe/openai")),
        (3, 3)
    );

    // A first store finds nothing to patch, and creates it on the condition that it is so.
    server.clear_requests();
    stored(&service, "anthropic", "api_key", "first");
    assert_eq!(server.requests().len(), 2);
    assert_eq!(server.answered("POST", "secret/data/intentframe/anthropic", 200), 1);
    assert_eq!(server.connections(), connections, "connections are kept");
}

#[test]
fn a_policy_without_patch_is_learnt_once() {
    on_each_server(|target| {
        let place = Place::new();
        let service = service_of_mode(target, &place, Mode::NoPatch);
        target.write("openai", &json!({ "someone": "else's" }));
        for round in ["one", "two", "three"] {
            stored(&service, "openai", "api_key", round);
            assert_eq!(
                target.read("openai"),
                Some(json!({ "someone": "else's", "api_key": round }))
            );
        }
        if let Some(server) = target.test_server() {
            assert_eq!(server.count("PATCH", ""), 1);
            assert_eq!(server.count("GET", "auth/token/lookup-self"), 3, "start, stock, refusal");
        }
        removed(&service, "openai", "api_key");
        assert_eq!(target.read("openai"), Some(json!({ "someone": "else's" })));
        removed(&service, "openai", "someone");
        assert_eq!(target.metadata("openai"), None);
        stored(&service, "openai", "api_key", "again");
        assert_eq!(fetch(&service, "openai", "api_key").value(), "again");
    });
}

#[test]
fn a_server_that_knows_no_patch_is_written_to_by_check_and_set() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = target.setup(&place, &target.token_for(POLICY)).start();
    target.write("old", &json!({ "a": "1", "b": "2" }));
    server.fault(Fault::no_such_method()).on("PATCH", "").until_cleared();
    stored(&service, "old", "c", "3");
    stored(&service, "new", "a", "1");
    removed(&service, "old", "a");
    assert_eq!(target.read("old"), Some(json!({ "b": "2", "c": "3" })));
    assert_eq!(target.read("new"), Some(json!({ "a": "1" })));
    assert_eq!(server.count("PATCH", "secret/data/intentframe/old"), 1, "not asked again");
}

#[test]
fn check_and_set_is_used_where_it_is_required() {
    on_each_server(|target| {
        let place = Place::new();
        let service = target.setup(&place, &target.token_for(POLICY)).start();
        let required = json!({ "cas_required": true });

        // By the secret, which has no version yet, and by one that has.
        target.done("POST", &target.path("metadata", "fresh"), Some(&required));
        stored(&service, "fresh", "a", "1");
        target.write("secret", &json!({ "a": "1" }));
        target.done("POST", &target.path("metadata", "secret"), Some(&required));
        // By the mount.
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
    });
}

/// Sixteen writers, half of them at each of two services, store different fields of one
/// secret, and delete some of their own again.
#[test]
fn writers_of_different_fields_lose_none_of_them() {
    const WRITERS: usize = 16;
    const FIELDS: usize = 8;

    for mode in MODES {
        on_each_server(|target| {
            eprintln!("{mode:?}");
            let token = target.token_of_mode(mode);
            let places = [Place::new(), Place::new()];
            let services = places.each_ref().map(|place| target.setup(place, &token).start());
            target.write("fleet", &json!({ "n": 1 }));
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
            let mut expected = Map::from_iter([("n".to_owned(), json!(1))]);
            for writer in 0..WRITERS {
                for field in 1..FIELDS {
                    let key = format!("{writer:02}-{field}");
                    expected.insert(key.clone(), json!(key));
                }
            }
            assert_eq!(target.read("fleet"), Some(Value::Object(expected)));
        });
    }
}

/// The same on a secret that comes and goes: the creation by one service meets that by
/// the other.
#[test]
fn two_services_create_one_secret_at_once() {
    for mode in MODES {
        on_each_server(|target| {
            let token = target.token_of_mode(mode);
            let places = [Place::new(), Place::new()];
            let services = places.each_ref().map(|place| target.setup(place, &token).start());
            for round in 0..8 {
                let namespace = format!("round{round}");
                thread::scope(|scope| {
                    for (key, service) in ["a", "b"].into_iter().zip(&services) {
                        let namespace = &namespace;
                        scope.spawn(move || stored(service, namespace, key, key));
                    }
                });
                assert_eq!(target.read(&namespace), Some(json!({ "a": "a", "b": "b" })));
            }
        });
    }
}

#[test]
fn fields_that_are_no_text_survive_and_cannot_be_read() {
    for mode in MODES {
        on_each_server(|target| {
            eprintln!("{mode:?}");
            let place = Place::new();
            let service = service_of_mode(target, &place, mode);
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
        });
    }
}

#[test]
fn deleted_versions_are_no_values_and_no_hindrance() {
    for mode in MODES {
        on_each_server(|target| {
            eprintln!("{mode:?}");
            let place = Place::new();
            let service = service_of_mode(target, &place, mode);
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
        });
    }
}

#[test]
fn the_last_field_takes_every_version_with_it() {
    for mode in MODES {
        on_each_server(|target| {
            let place = Place::new();
            let service = service_of_mode(target, &place, mode);
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
            // Deleting what is not there is as good, and makes nothing.
            removed(&service, "openai", "other");
            removed(&service, "never", "was");
            assert_eq!(target.namespaces(), [] as [Value; 0]);
        });
    }
}

/// What happens while the deletion of the last field is on its way, in each order, through
/// one service.
#[test]
#[cfg(target_os = "linux")]
fn deleting_the_last_field_spares_what_the_same_service_stores_meanwhile() {
    use hashicorp::wait_until_quiet;

    for mode in MODES {
        for when in [When::Before, When::After] {
            let target = Target::ours();
            let place = Place::new();
            let service = service_of_mode(&target, &place, mode);

            // The store comes while the metadata is being deleted.
            stored(&service, "last", "a", "1");
            let gate = target.server().fault(Fault::Hang(when)).on("DELETE", "").next(1);
            let mut removing = begin_remove(&service, "last", "a");
            gate.wait_for_hanging(1);
            let mut storing = begin_store(&service, "last", "b", "2");
            wait_until_quiet(&service);
            assert!(storing.is_silent(), "it waits for its turn");
            gate.release();
            assert_eq!((removing.response().status, storing.response().status), (200, 200));
            assert_eq!(target.read("last"), Some(json!({ "b": "2" })), "{mode:?} {when:?}");

            // The deletion comes while a second field is being stored.
            let writes = if mode == Mode::NoPatch { "POST" } else { "PATCH" };
            let gate = target.server().fault(Fault::Hang(when)).on(writes, "").next(1);
            let mut storing = begin_store(&service, "last", "c", "3");
            gate.wait_for_hanging(1);
            let mut removing = begin_remove(&service, "last", "b");
            wait_until_quiet(&service);
            assert!(removing.is_silent(), "it waits for its turn");
            gate.release();
            assert_eq!((removing.response().status, storing.response().status), (200, 200));
            assert_eq!(target.read("last"), Some(json!({ "c": "3" })), "{mode:?} {when:?}");
        }
    }
}

/// Between two services: a deletion that the server could not make at once is not simply
/// sent again, for there may be another field by then.
#[test]
fn a_deletion_is_not_repeated_without_another_look() {
    for fault in [
        Fault::too_many_requests(std::time::Duration::from_secs(1)),
        Fault::sealed(),
        Fault::internal_error(),
        Fault::Reset(When::Before),
    ] {
        let target = Target::ours();
        let place = Place::new();
        let service = service_of_mode(&target, &place, Mode::Patch);
        stored(&service, "last", "a", "1");
        let hanging =
            target.server().fault(Fault::Hang(When::Before)).on("GET", "secret/").after(1);
        let hanging = hanging.next(1);
        let failing = target.server().fault(fault).on("DELETE", "secret/metadata/").next(1);
        let mut removing = begin_remove(&service, "last", "a");
        failing.wait_for_hits(1);
        hanging.wait_for_hanging(1);
        target.patch("last", &json!({ "b": "another service's" }));
        hanging.release();
        let answer = removing.response();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(target.read("last"), Some(json!({ "b": "another service's" })));
    }
}

#[test]
fn a_policy_with_destroy_deletes_without_a_window() {
    on_each_server(|target| {
        let place = Place::new();
        let service = target.setup(&place, &target.token_for(POLICY_WITH_DESTROY)).start();
        for value in ["one", "two", "three"] {
            stored(&service, "openai", "api_key", value);
        }
        removed(&service, "openai", "api_key");
        assert_eq!(fetch(&service, "openai", "api_key").status, 404);
        let versions = target.metadata("openai").expect("it stays")["versions"].clone();
        for version in ["1", "2", "3"] {
            assert_eq!(versions[version]["destroyed"], true, "{version}: {versions}");
        }
        assert_eq!(target.read("openai"), Some(json!({})), "nothing is in what is left");
        stored(&service, "openai", "api_key", "again");
        assert_eq!(fetch(&service, "openai", "api_key").value(), "again");
    });
}

#[test]
fn what_another_service_stores_survives_a_deletion_by_destroy() {
    let target = Target::ours();
    let place = Place::new();
    let service = target.setup(&place, &target.token_for(POLICY_WITH_DESTROY)).start();
    stored(&service, "last", "a", "1");
    // Held back right before the secret is emptied.
    let gate = target.server().fault(Fault::Hang(When::Before)).on("POST", "secret/data/").next(1);
    let mut removing = begin_remove(&service, "last", "a");
    gate.wait_for_hanging(1);
    target.patch("last", &json!({ "b": "another service's" }));
    gate.release();
    assert_eq!(removing.response().status, 200);
    assert_eq!(target.read("last"), Some(json!({ "b": "another service's" })));
}

/// The versions are destroyed as well when the answer to the step before was lost.
#[test]
fn a_deletion_by_destroy_is_finished_after_a_broken_connection() {
    for (method, path) in [("POST", "secret/data/"), ("PUT", "secret/destroy/")] {
        let target = Target::ours();
        let place = Place::new();
        let service = target.setup(&place, &target.token_for(POLICY_WITH_DESTROY)).start();
        stored(&service, "last", "a", "1");
        stored(&service, "last", "a", "2");
        let broken = target.server().fault(Fault::Reset(When::After)).on(method, path).next(1);
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
    on_each_server(|target| {
        let place = Place::new();
        let policy = r#"
            path "MOUNT/data/intentframe/*" { capabilities = ["create", "update", "patch", "read"] }
            path "MOUNT/metadata/intentframe/*" { capabilities = ["read"] }"#;
        let service = target.setup(&place, &target.token_for(policy)).start();
        stored(&service, "openai", "api_key", "value");
        let answer = remove(&service, "openai", "api_key");
        assert_eq!(answer.status, 500, "{}", answer.text());
        let detail = answer.json()["detail"].as_str().expect("a text").to_owned();
        assert!(detail.contains("does not grant delete on"), "{detail}");
        assert!(detail.contains(&target.path("metadata", "openai")), "{detail}");
        assert_eq!(fetch(&service, "openai", "api_key").value(), "value");
        assert_eq!(keys_listed(&service, "openai"), ["api_key"], "its metadata is back");
    });
}

#[test]
fn a_policy_that_forbids_writing_is_named_and_nothing_changes() {
    on_each_server(|target| {
        let place = Place::new();
        let policy = r#"path "MOUNT/data/intentframe/*" { capabilities = ["read"] }"#;
        let service = target.setup(&place, &target.token_for(policy)).start();
        target.write("openai", &json!({ "api_key": "value" }));
        let answer = store(&service, "openai", "api_key", "sk-canary");
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(answer.text().contains("does not grant create and update on"), "{}", answer.text());
        assert!(!answer.text().contains("canary"));
        assert_eq!(fetch(&service, "openai", "api_key").value(), "value");
        assert_eq!(keys_listed(&service, "openai"), [] as [Value; 0], "its metadata is back");
    });
}

/// Another writer who always comes first is not fought for ever.
#[test]
fn a_race_that_is_lost_again_and_again_ends() {
    let target = Target::ours();
    let place = Place::new();
    let service = service_of_mode(&target, &place, Mode::NoPatch);
    stored(&service, "busy", "a", "1");
    let lost = hashicorp::vault_server::exchange::Refusal::bad_request(
        "check-and-set parameter did not match the current version",
    );
    let lost = target.server().fault(Fault::Answer(lost.into_reply()));
    let lost = lost.on("POST", "secret/data/").until_cleared();
    let answer = store(&service, "busy", "a", "2");
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(answer.text().contains("at the same time"), "{}", answer.text());
    assert!((5..=32).contains(&lost.hits()), "{}", lost.hits());
    lost.clear();
    assert_eq!(fetch(&service, "busy", "a").value(), "1");
    stored(&service, "busy", "a", "3");
}
