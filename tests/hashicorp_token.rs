//! The token of the hashicorp backend: obtained, renewed, replaced when it is dead. A dead token
//! is told apart from a refusal by policy.
#![cfg(unix)]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use intentframe_credentials::{CredentialVault, RenewalState};
use serde_json::{Value, json};

use hashicorp::proxy::{Fault, When};
use hashicorp::{
    AppRole, POLICY, Target, begin_fetch, begin_store, fetch, health, stored, vault_get,
    vault_store,
};
use support::{Connection, Place, Service, eventually, wait_until};

const LOGIN: &str = "auth/approle/login";
const RENEW: &str = "auth/token/renew-self";
const LOOKUP: &str = "auth/token/lookup-self";

#[track_caller]
fn wait_for_state(service: &Service, state: &str) -> Value {
    eventually(&format!("the state {state}"), || {
        let renewal = health(service)["renewal"].take();
        (renewal["state"] == state).then_some(renewal)
    })
}

/// Writes a file that only its owner can read, as a whole.
fn write_secret(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, format!("{text}\n")).expect("writes");
    fs::rename(&new, path).expect("renames");
}

/// Stores and reads without a pause while `act` runs; nothing may fail.
fn in_use<T>(service: &Service, act: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let user = scope.spawn(|| {
            for round in 0.. {
                let value = round.to_string();
                stored(service, "in-use", "key", &value);
                assert_eq!(fetch(service, "in-use", "key").value(), value);
                if done.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        let result = act();
        done.store(true, Ordering::SeqCst);
        user.join().expect("no request fails");
        result
    })
}

#[test]
fn a_refusal_by_policy_is_told_from_a_dead_token() {
    let Some(target) = Target::new() else { return };
    let policy =
        target.policy("some", r#"path "MOUNT/data/intentframe/mine" { capabilities = ["read"] }"#);
    let service = target.role_service(json!({ "token_policies": [policy] }));
    target.write("mine", &json!({ "key": "value" }));
    target.write("theirs", &json!({ "key": "value" }));
    for _ in 0..3 {
        let answer = fetch(&service, "theirs", "key");
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(answer.text().contains("does not grant read on"), "{}", answer.text());
        assert_eq!(fetch(&service, "mine", "key").value(), "value");
    }
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(fetch(&service, "theirs", "key").status, 500));
        }
    });
    assert_eq!(target.accessors("r").len(), 1, "nobody has logged in again");
    let renewal = health(&service)["renewal"].take();
    assert_eq!((&renewal["state"], &renewal["last_error"]), (&json!("active"), &Value::Null));
}

#[test]
fn many_requests_with_a_dead_token_make_one_login() {
    const REQUESTS: usize = 16;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.role_service(json!({ "token_ttl": "1h" }));
    for n in 0..REQUESTS {
        target.write(&format!("ns{n}"), &json!({ "key": "value" }));
    }
    let read = |n: usize| begin_fetch(&service, &format!("ns{n}"), "key");
    let write = |n: usize| begin_store(&service, &format!("ns{n}"), "other", "value");
    let kinds: [(&str, &dyn Fn(usize) -> Connection); 2] = [("GET", &read), ("PATCH", &write)];
    for (method, begin) in kinds {
        // All of them are with the server when the token dies.
        let gate = proxy.next(REQUESTS, Fault::Hold(When::Before), method, "/data/");
        let mut requests: Vec<Connection> = (0..REQUESTS).map(begin).collect();
        gate.wait_for_held(REQUESTS);
        proxy.clear_requests();
        target.revoke_tokens_of("r");
        gate.release();
        for request in &mut requests {
            let answer = request.response();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(proxy.count("POST", LOGIN), 1, "{method}");
        assert!(proxy.count("GET", LOOKUP) <= 3, "{}", proxy.count("GET", LOOKUP));
        assert_eq!(proxy.count(method, "/data/"), REQUESTS, "each is sent once more");
    }
    assert_eq!(health(&service)["status"], "ok");
}

/// A token with a limited number of uses is replaced in time.
#[test]
fn a_token_that_is_used_up_is_replaced() {
    for uses in [2, 5] {
        let Some(target) = Target::new() else { return };
        let fields = json!({ "token_ttl": "1h", "token_num_uses": uses });
        let service = target.role_service(fields);
        for n in 0..10 {
            stored(&service, "one", "key", &n.to_string());
            assert_eq!(fetch(&service, "one", "key").value(), n.to_string());
        }
        thread::scope(|scope| {
            for n in 0..8 {
                let service = &service;
                scope.spawn(move || {
                    for round in 0..3 {
                        let namespace = format!("ns{n}");
                        stored(service, &namespace, "key", &round.to_string());
                        let value = fetch(service, &namespace, "key").value();
                        assert_eq!(value, round.to_string());
                    }
                });
            }
        });
    }
}

#[test]
fn a_secret_id_in_a_file_is_read_at_each_login() {
    let Some(target) = Target::new() else { return };
    let fields = json!({ "token_ttl": "1h", "secret_id_num_uses": 1 });
    let role = target.approle("r", fields);
    let (role_file, secret_file) =
        (target.place.root().join("role"), target.place.root().join("secret"));
    write_secret(&role_file, &role.role_id);
    write_secret(&secret_file, &role.secret_id);
    let service = target
        .bare_setup(&target.place)
        .env("VAULT_ROLE_ID_FILE", &role_file)
        .env("VAULT_SECRET_ID_FILE", &secret_file)
        .start();
    stored(&service, "openai", "key", "value");

    // Rotated in time.
    write_secret(&secret_file, &target.secret_id("r"));
    target.revoke_tokens_of("r");
    assert_eq!(fetch(&service, "openai", "key").value(), "value");

    // Rotated too late: a clear answer, and recovery afterwards.
    target.revoke_tokens_of("r");
    let answer = fetch(&service, "openai", "key");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("AppRole login was refused"), "{}", answer.text());
    assert!(answer.header("Retry-After").is_some());
    assert_eq!(health(&service)["status"], "degraded");
    write_secret(&secret_file, &target.secret_id("r"));
    wait_until("it has logged in", || fetch(&service, "openai", "key").status == 200);
    let health = health(&service);
    assert_eq!((&health["status"], &health["renewal"]["last_error"]), (&json!("ok"), &Value::Null));
}

#[test]
fn a_token_in_a_file_is_read_again_when_it_is_dead() {
    let Some(target) = Target::new() else { return };
    let file = target.place.root().join("token");
    let old = target.token_for(POLICY);
    write_secret(&file, &old);
    let service = target.bare_setup(&target.place).env("VAULT_TOKEN_FILE", &file).start();
    stored(&service, "openai", "key", "value");
    write_secret(&file, &target.token_for(POLICY));
    target.revoke(&old);
    assert_eq!(fetch(&service, "openai", "key").value(), "value");

    let next = target.token_for(POLICY);
    target.revoke(fs::read_to_string(&file).expect("reads").trim());
    let answer = fetch(&service, "openai", "key");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("put a new one into /"), "{}", answer.text());
    write_secret(&file, &next);
    wait_until("it has taken it", || fetch(&service, "openai", "key").status == 200);
}

#[test]
fn a_secret_id_is_unwrapped_once() {
    let Some(target) = Target::new() else { return };
    let mut role = target.approle("r", json!({ "token_ttl": "1h" }));
    role.secret_id = target.wrapped_secret_id("r");
    let setup = target.setup_with_role(&target.place, &role).env("VAULT_SECRET_ID_WRAPPED", "true");
    let service = setup.start();
    stored(&service, "openai", "key", "value");
    target.revoke_tokens_of("r");
    assert_eq!(fetch(&service, "openai", "key").value(), "value", "logs in again with it");
    assert_eq!(target.proxy.count("POST", "sys/wrapping/lookup"), 1);
    assert_eq!(target.proxy.count("POST", "sys/wrapping/unwrap"), 1);
    assert_eq!(target.proxy.answered("POST", LOGIN, 200), 2);
}

#[test]
fn a_wrapping_token_that_was_used_or_forged_is_refused() {
    let Some(target) = Target::new() else { return };
    let mut role = target.approle("r", json!({}));
    let refused = |role: &AppRole| {
        let place = &Place::new();
        let setup = target.setup_with_role(place, role).env("VAULT_SECRET_ID_WRAPPED", "true");
        let mut service = setup.spawn();
        assert_eq!(service.wait().code(), Some(5));
        assert!(service.log().contains("treat it as stolen"), "{}", service.log());
        service.log()
    };

    // Already unwrapped.
    role.secret_id = target.wrapped_secret_id("r");
    let unwrap = json!({ "token": role.secret_id });
    target.done("POST", "sys/wrapping/unwrap", Some(&unwrap));
    let log = refused(&role);
    assert!(log.contains("wrapping token is not valid or does not exist"), "{log}");

    // Made by somebody who knows its content.
    let forged = target.forged_wrapping(&json!({ "secret_id": target.secret_id("r") }));
    role.secret_id.clone_from(&forged);
    let log = refused(&role);
    assert!(log.contains("it was not made by AppRole"), "{log}");
    let unwrapped = target.done("POST", "sys/wrapping/unwrap", Some(&json!({ "token": forged })));
    assert!(unwrapped["data"]["secret_id"].is_string(), "it has been left alone");
}

#[test]
fn a_static_token_that_cannot_be_renewed_is_used_until_it_ends() {
    let Some(target) = Target::new() else { return };
    let policies = [target.policy("p", POLICY)];
    let fields = json!({ "policies": policies, "ttl": "3s", "renewable": false });
    let token = target.token(&fields);
    let service = target.setup(&target.place, &token).start();
    let renewal = wait_for_state(&service, "ended");
    let error = renewal["last_error"].as_str().expect("a text");
    assert!(error.contains("cannot be renewed"), "{error}");
    assert!(service.log().contains("ERROR"), "{}", service.log());
    stored(&service, "openai", "key", "value");
    assert_eq!(health(&service)["status"], "ok", "it is still good");

    let gone = eventually("the token is dead", || {
        let answer = fetch(&service, "openai", "key");
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(gone.status, 503, "{}", gone.text());
    assert!(gone.text().contains("VAULT_TOKEN is no longer good"), "{}", gone.text());
    let health = health(&service);
    assert_eq!(
        (&health["status"], &health["renewal"]["state"]),
        (&json!("degraded"), &json!("ended"))
    );
    assert_eq!(target.proxy.count("POST", RENEW), 0);
    // A token that is known to be dead causes no more requests.
    target.proxy.clear_requests();
    assert_eq!(fetch(&service, "openai", "key").status, 503);
    assert!(target.proxy.requests().len() <= 1);
}

/// The token is renewed at about half its life, and replaced when renewals no longer lengthen
/// it, so the service outlives it.
#[test]
fn a_token_is_renewed_at_half_its_life_and_replaced_at_its_cap() {
    let Some(target) = Target::new() else { return };
    let service = target.role_service(json!({ "token_ttl": "4s", "token_max_ttl": "6s" }));
    let first = target.accessors("r");
    in_use(&service, || {
        wait_until("the first token is dead", || !target.accessors("r").contains(&first[0]));
    });
    let times = |method, path| {
        let requests = target.proxy.requests();
        let found = requests.iter().filter(|request| request.is(method, path));
        found.map(|request| request.began).collect::<Vec<Instant>>()
    };
    let (logins, renewals) = (times("POST", LOGIN), times("POST", RENEW));
    let about = |time: Duration, seconds: f64| {
        assert!((time.as_secs_f64() - seconds).abs() < 0.3 * seconds, "{time:?}, not {seconds} s");
    };
    about(renewals[0] - logins[0], 2.0);
    assert!(logins[1] - logins[0] < Duration::from_secs(6), "{:?}", logins[1] - logins[0]);
    assert!(renewals.iter().filter(|at| **at < logins[1]).count() <= 3, "{renewals:?}");
    let renewal = health(&service)["renewal"].take();
    assert_eq!((&renewal["state"], &renewal["last_error"]), (&json!("active"), &Value::Null));
    assert!(renewal["ttl_seconds"].as_u64().is_some_and(|ttl| ttl <= 4), "{renewal}");
}

#[test]
fn a_periodic_token_is_renewed_for_ever() {
    let Some(target) = Target::new() else { return };
    let policies = [target.policy("p", POLICY)];
    let token = target.token(&json!({ "policies": policies, "period": "3s" }));
    let service = target.setup(&target.place, &token).start();
    let end = Instant::now() + Duration::from_secs(4);
    in_use(&service, || wait_until("it is over its period", || Instant::now() > end));
    assert_eq!(wait_for_state(&service, "active")["last_error"], Value::Null);
}

#[test]
fn a_token_without_an_end_is_left_alone() {
    let Some(target) = Target::new() else { return };
    let service = target.setup(&target.place, &target.server.token).start();
    let renewal = wait_for_state(&service, "not_needed");
    assert_eq!(renewal, json!({ "state": "not_needed", "ttl_seconds": null, "last_error": null }));
    assert_eq!(target.proxy.count("POST", RENEW), 0);
}

#[test]
fn renewal_can_be_switched_off() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let role = target.approle("r", json!({ "token_ttl": "2s" }));
    let service = target.setup_with_role(&target.place, &role).env("VAULT_RENEW", "false").start();
    let renewal = health(&service)["renewal"].take();
    assert_eq!(renewal["state"], "disabled");
    stored(&service, "openai", "key", "value");
    wait_until("its life is over", || {
        health(&service)["renewal"]["ttl_seconds"] == 0 && target.accessors("r").is_empty()
    });
    assert_eq!(proxy.count("POST", RENEW), 0);
    // A request that needs another token still gets one.
    assert_eq!(fetch(&service, "openai", "key").value(), "value");
    assert_eq!(proxy.count("POST", LOGIN), 2);
}

/// The policy `default` lets a token look itself up and renew itself. Without it, such a token is
/// replaced in time, and after it was revoked: a refusal cannot be looked up then, so a login from
/// time to time finds it out.
#[test]
fn a_token_that_may_not_renew_itself_is_replaced() {
    let Some(target) = Target::new() else { return };
    let fields = json!({ "token_ttl": "2s", "token_no_default_policy": true });
    let service = target.role_service(fields);
    let first = target.accessors("r");
    in_use(&service, || {
        wait_until("the first token is dead", || !target.accessors("r").contains(&first[0]));
    });
    target.revoke_tokens_of("r");
    wait_until("it has logged in", || {
        let answer = fetch(&service, "in-use", "key");
        assert!(matches!(answer.status, 200 | 500), "{}", answer.text());
        answer.status == 200
    });
}

/// Neither login nor renewal works for a while; the token still does.
#[test]
fn a_renewal_that_fails_is_retried_with_back_off() {
    let faults = [Fault::internal_error(), Fault::sealed(), Fault::Reset(When::Before)];
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(|| survives_a_failing_renewal(fault));
        }
    });
}

fn survives_a_failing_renewal(fault: Fault) {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.role_service(json!({ "token_ttl": "6s" }));
    let failing = proxy.all(fault, "POST", "auth/");
    in_use(&service, || {
        let renewal = wait_for_state(&service, "retrying");
        assert!(renewal["last_error"].is_string());
        wait_until("it is well, for the token is still good", || {
            health(&service)["status"] == "ok"
        });
    });
    assert!(failing.hits() <= 6, "{} requests", failing.hits());
    failing.clear();
    let renewal = wait_for_state(&service, "active");
    assert_eq!(renewal["last_error"], Value::Null);
    assert_eq!(proxy.answered("POST", RENEW, 200), 1);
}

#[test]
fn closing_is_prompt_while_the_renewal_sleeps_and_while_requests_hang() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let token = target.token_for(POLICY);
    let variables = [("VAULT_TOKEN", &*token), ("VAULT_CLIENT_TIMEOUT", "2")];
    let closed_within = |vault: &dyn CredentialVault, limit: Duration| {
        let start = Instant::now();
        vault.close();
        assert!(start.elapsed() < limit, "{:?}", start.elapsed());
        vault.close();
    };

    // Never used.
    closed_within(&target.vault(&variables), Duration::from_millis(500));

    // Asleep until the next renewal, in half an hour.
    let vault = target.vault(&variables);
    vault_store(&vault, "openai", "key", "value").expect("stores");
    wait_until("it sleeps", || {
        vault.status().renewal.expect("a token").state == RenewalState::Active
    });
    closed_within(&vault, Duration::from_millis(500));
    assert!(vault_get(&vault, "openai", "key").expect_err("closed").to_string().contains("closed"));

    // A caller's request hangs; closing does not wait for it.
    let vault = target.vault(&variables);
    vault_get(&vault, "openai", "key").expect("reads");
    wait_until("it sleeps", || {
        vault.status().renewal.expect("a token").state == RenewalState::Active
    });
    let gate = proxy.all(Fault::Hold(When::Before), "GET", "/data/");
    thread::scope(|scope| {
        let reader = scope.spawn(|| vault_get(&vault, "openai", "key"));
        gate.wait_for_held(1);
        closed_within(&vault, Duration::from_millis(500));
        gate.clear();
        let value = reader.join().expect("no panic").expect("it was under way");
        assert_eq!(value.as_deref(), Some("value"));
    });

    // Its own request hangs.
    let vault = target.vault(&variables);
    let gate = proxy.all(Fault::Hold(When::Before), "GET", LOOKUP);
    vault_get(&vault, "openai", "key").expect("needs no lookup");
    gate.wait_for_held(1);
    closed_within(&vault, TIMEOUT + Duration::from_secs(1));
}

/// The login hangs: every request that waits for a token is answered in about the time that
/// one operation may take.
#[test]
fn requests_that_wait_for_a_token_are_answered_in_time() {
    const REQUESTS: usize = 16;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let role = target.approle("r", json!({ "token_ttl": "1h" }));
    let setup = target.setup_with_role(&target.place, &role).env("VAULT_CLIENT_TIMEOUT", "1");
    let service = setup.start();
    for n in 0..REQUESTS {
        target.write(&format!("ns{n}"), &json!({ "key": "value" }));
    }
    let gate = proxy.all(Fault::Hold(When::Before), "POST", LOGIN);
    target.revoke_tokens_of("r");
    let start = Instant::now();
    let mut requests: Vec<Connection> =
        (0..REQUESTS).map(|n| begin_fetch(&service, &format!("ns{n}"), "key")).collect();
    for request in &mut requests {
        let answer = request.response();
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    gate.clear();
    wait_until("it has logged in", || fetch(&service, "ns0", "key").status == 200);
}

/// A token beside an `AppRole` is used first, as long as it is good.
#[test]
fn a_token_is_preferred_to_an_approle() {
    let Some(target) = Target::new() else { return };
    let role = target.approle("r", json!({}));
    let token = target.token_for(POLICY);
    let service = target.setup_with_role(&target.place, &role).env("VAULT_TOKEN", &token).start();
    stored(&service, "openai", "key", "value");
    assert_eq!(target.proxy.count("POST", LOGIN), 0);
    target.revoke(&token);
    assert_eq!(fetch(&service, "openai", "key").value(), "value");
    assert_eq!(target.proxy.count("POST", LOGIN), 1);
}
