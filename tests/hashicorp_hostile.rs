//! Answers of a hostile or broken Vault, and settings that expose the token.
#![cfg(unix)]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use intentframe_credentials::{CredentialVault as _, RenewalState, SecretWatch};
use serde_json::json;

use hashicorp::proxy::{Fault, Proxy};
use hashicorp::{POLICY, Target, fetch, health, store, stored, vault_get};
use support::{set_mode, wait_until};

const RENEW: &str = "auth/token/renew-self";

/// The answer to a renewal, with this text where the seconds of the lease should be.
fn renewal(lease: &str) -> Fault {
    let body = format!(
        r#"{{"auth": {{"client_token": "hvs.canary", "lease_duration": {lease},
        "renewable": true, "num_uses": {lease}}}, "wrap_info": {{"ttl": {lease}}}}}"#
    );
    Fault::answer(200, "", body.as_bytes())
}

/// Whatever the server answers once, the token is kept alive afterwards.
#[test]
fn no_answer_ends_the_renewal() {
    let huge = "Retry-After: 18446744073709551615\r\n";
    let faults = [
        renewal("18446744073709551615"),
        renewal("18446744073709551616"),
        renewal("1e300"),
        renewal("-1"),
        renewal("\"1h\""),
        Fault::answer(429, huge, b""),
        Fault::answer(503, huge, b""),
        Fault::answer(503, &huge.replace("15", "1500000000000000000000"), b""),
        Fault::answer(200, huge, b"[[["),
    ];
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(|| survives(fault));
        }
    });
}

fn survives(fault: Fault) {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let described = format!("{fault:?}");
    let service = target.role_service(json!({ "token_ttl": "3s" }));
    let fault = proxy.next(1, fault, "POST", RENEW);
    stored(&service, "openai", "key", "value");
    fault.wait_for_hits(1);
    // A lease that is too long is believed until a request meets the dead token.
    target.revoke_tokens_of("r");
    assert_eq!(fetch(&service, "openai", "key").value(), "value", "{described}");
    // The thread is alive if it renews the new token.
    let before = proxy.answered("POST", RENEW, 200);
    wait_until("a renewal", || proxy.answered("POST", RENEW, 200) > before);
    wait_until("all is well", || health(&service)["renewal"]["last_error"].is_null());
    let health = health(&service);
    assert_eq!(health["status"], "ok", "{described}: {health}");
    assert_eq!(health["renewal"]["state"], "active", "{described}: {health}");
}

/// In the last second of its life, a token's TTL is 0 in a renewal's and in a lookup's answer. It
/// is not taken for one that never expires.
#[test]
fn a_token_in_its_last_second_is_replaced() {
    let Some(target) = Target::new() else { return };
    let body = br#"{"data": {"ttl": 0, "renewable": true, "expire_time": "2026-01-01T00:00:00Z"}}"#;
    // The check at the start looks the token up, too.
    let fault = target.proxy.next(2, Fault::answer(200, "", body), "GET", "auth/token/lookup-self");
    let service = target.service(POLICY);
    stored(&service, "openai", "key", "value");
    fault.wait_for_hits(2);
    target.proxy.wait_for_requests("POST", RENEW, 1);
    drop(service);

    let service = target.role_service(json!({ "token_ttl": "3s" }));
    let fault = target.proxy.next(1, renewal("0"), "POST", RENEW);
    stored(&service, "openai", "key", "value");
    fault.wait_for_hits(1);
    target.proxy.wait_for_requests("POST", "auth/approle/login", 2);
}

/// The thread that renews the token goes on after a panic, and `/health` shows the panic. Here a
/// login panics, in the code of the program that embeds the vault.
#[test]
fn a_panic_of_the_renewal_is_shown_and_repeated() {
    let Some(target) = Target::new() else { return };
    let role = target.approle("r", json!({ "token_ttl": "2s", "token_max_ttl": "3s" }));
    // Starts at 0, and counts panics from 1.
    let panics = Arc::<AtomicUsize>::default();
    let counting = Arc::clone(&panics);
    let watch = SecretWatch::new(move |_| {
        let one_more = |count: usize| count.checked_sub(1).map(|_| count + 1);
        let panics = counting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        assert!(panics.is_err(), "on purpose");
        Arc::new(())
    });
    let ids = [("VAULT_ROLE_ID", &*role.role_id), ("VAULT_SECRET_ID", &*role.secret_id)];
    let vault = target.watched_vault(&ids, Some(watch));
    assert_eq!(vault_get(&vault, "openai", "key").expect("it works"), None);
    assert!(vault.status().works);
    panics.store(1, Ordering::SeqCst);
    wait_until("the panic is shown", || {
        let status = vault.status();
        let renewal = status.renewal.expect("a token");
        let error = renewal.last_error.unwrap_or_default();
        !status.works && renewal.state == RenewalState::Retrying && error.contains("panicked")
    });
    wait_until("it is tried again", || panics.load(Ordering::SeqCst) >= 3);
    panics.store(0, Ordering::SeqCst);
    wait_until("it recovers", || {
        let status = vault.status();
        let renewal = status.renewal.expect("a token");
        status.works && renewal.state == RenewalState::Active && renewal.last_error.is_none()
    });
    assert_eq!(vault_get(&vault, "openai", "key").expect("it works"), None);
    vault.close();
}

/// A redirect to a host that nobody has named gets neither the token nor the value.
#[test]
fn a_redirect_to_an_unknown_host_is_refused() {
    let Some(target) = Target::new() else { return };
    let elsewhere = Proxy::start(&target.server.address);
    let host = elsewhere.address.replace("http://", "");
    let token = target.token_for(POLICY);
    let setup = target.setup(&target.place, &token).env("VAULT_MAX_RETRIES", "0");
    let path = target.path("data", "openai");
    let redirect = |base: &str| Fault::answer(307, &format!("Location: {base}/v1/{path}\r\n"), b"");

    for named in ["", "127.0.0.1:1,vault.example", "localhost"] {
        let service = setup.clone().env("VAULT_REDIRECT_HOSTS", named).start();
        for method in ["GET", "PATCH"] {
            // Not only the next one: the service also asks whether an earlier change was made.
            let moved = target.proxy.all(redirect(&elsewhere.address), method, "/data/");
            let answer = match method {
                "GET" => fetch(&service, "openai", "key"),
                _ => store(&service, "openai", "key", "value"),
            };
            assert!(moved.hits() > 0);
            moved.clear();
            let text = answer.text();
            assert_eq!(answer.status, 503, "{text}");
            assert!(text.contains(&host) && text.contains("VAULT_REDIRECT_HOSTS"), "{text}");
        }
        assert!(elsewhere.requests().is_empty(), "{named}");
    }

    // The same host, once it is named.
    for named in [&*host, "127.0.0.1"] {
        let service = setup.clone().env("VAULT_REDIRECT_HOSTS", named).start();
        stored(&service, "openai", "key", "value");
        elsewhere.clear_requests();
        let _moved = target.proxy.next(1, redirect(&elsewhere.address), "GET", "/data/");
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        assert_eq!(elsewhere.count("GET", "/data/"), 1);
    }

    // Away from this machine without encryption: no setting allows that. 192.0.2.1 is nobody's
    // address (RFC 5737).
    let service = setup.env("VAULT_REDIRECT_HOSTS", "192.0.2.1").start();
    let _moved = target.proxy.next(1, redirect("http://192.0.2.1:8200"), "GET", "/data/");
    let text = fetch(&service, "openai", "key").text();
    assert!(text.contains("http://192.0.2.1:8200, without encryption"), "{text}");
}

/// What exposes the token or the values is a warning at the start, and nothing else is.
#[test]
fn exposed_settings_are_warnings() {
    let Some(target) = Target::new() else { return };
    let file = target.place.root().join("token");
    fs::write(&file, target.token_for(POLICY)).expect("writes");
    let path = file.to_str().expect("UTF-8");
    let setup = target.bare_setup(&target.place).env("VAULT_TOKEN_FILE", path);
    for (mode, is_exposed) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
        set_mode(&file, mode);
        let log = setup.clone().start().log();
        let warns = log.contains("WARN") && log.contains("VAULT_TOKEN_FILE: every user can read");
        assert_eq!(warns, is_exposed, "{mode:o}: {log}");
        assert!(is_exposed || !log.contains("WARN"), "{log}");
    }
    let log = setup.clone().env("VAULT_SKIP_VERIFY", "true").start().log();
    assert!(log.contains("VAULT_SKIP_VERIFY is on"), "{log}");

    let away = setup.env("VAULT_ADDR", "http://192.0.2.1:8200");
    let mut service = away.env("VAULT_CLIENT_TIMEOUT", "100ms").spawn();
    assert_eq!(service.wait().code(), Some(5));
    let log = service.log();
    assert!(log.contains("VAULT_ADDR is http://192.0.2.1:8200, without encryption"), "{log}");
}
