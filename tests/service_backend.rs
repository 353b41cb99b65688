//! The `service` backend: a service that forwards to another.
#![cfg(unix)]

mod support;

#[path = "support/contract.rs"]
mod contract;

use std::os::unix::fs::symlink;
use std::path::Path;

use intentframe_credentials::{BackendOptions, Environment, create_vault};
use serde_json::json;
use support::{Place, Service, Setup, assert_wire_contract, wait_until};

const UPSTREAM: &str = "IF_VAULT_UPSTREAM_SOCKET";
const KEY: &str = "/v1/credentials/openai/api_key";

fn forwarding(place: &Place, upstream: &Path) -> Setup {
    place.setup_with("service").env(UPSTREAM, upstream.to_str().expect("UTF-8"))
}

/// Two services, the second forwarding to the first.
fn pair() -> (Place, Service, Place, Service) {
    let (behind, front) = (Place::new(), Place::new());
    let service = behind.start();
    let forwarder = forwarding(&front, &service.socket).start();
    (behind, service, front, forwarder)
}

#[test]
fn the_contract_of_the_trait() {
    let (_place, service) = Place::serving();
    let upstream = service.socket.to_str().expect("UTF-8").to_owned();
    let environment: Environment = [(UPSTREAM.to_owned(), upstream)].into_iter().collect();
    let vault = create_vault("service", &BackendOptions::new(environment)).expect("registered");
    vault.check().expect("the service answers");
    contract::contract(&*vault, "contract-");
}

#[test]
fn every_row_of_the_wire_contract() {
    let (_behind, _service, _front, forwarder) = pair();
    assert_wire_contract(&forwarder.socket);
}

#[test]
fn metadata_is_kept_by_the_service_behind() {
    let (_behind, service, front, forwarder) = pair();
    let whole = json!({
        "value": "sk-proj-abc123XYZ", "delivery_mode": "runtime_env", "env_name": "OPENAI_API_KEY",
        "allowed_consumers": ["uwe", "jarvis"], "validator_id": "openai",
    });
    assert_eq!(forwarder.put(KEY, &whole).status, 200);
    assert_eq!(service.put("/v1/credentials/n/k", &json!({ "value": "v" })).status, 200);
    assert_eq!(forwarder.get(KEY).value(), "sk-proj-abc123XYZ");

    for path in
        ["/v1/credentials", "/v1/credentials/openai", "/v1/credentials/x", "/v1/runtime-env"]
    {
        assert_eq!(forwarder.get(path).json(), service.get(path).json(), "{path}");
    }
    let health = forwarder.get("/health").json();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["backend"], "ServiceVault");
    assert_eq!(health["credential_count"], 2);
    assert_eq!(health["upstream"], service.socket.to_str().expect("UTF-8"));
    assert!(!front.data_dir().exists(), "it keeps nothing itself");
}

#[test]
fn an_absent_upstream_is_a_503_until_it_is_back() {
    let (behind, service, _front, forwarder) = pair();
    assert_eq!(forwarder.put(KEY, &json!({ "value": "sk-canary" })).status, 200);
    service.stop();

    for path in [KEY, "/v1/credentials", "/v1/runtime-env"] {
        let answer = forwarder.get(path);
        assert_eq!(answer.status, 503, "{path}");
        assert!(answer.header("retry-after").is_some(), "{path}");
        assert!(answer.text().contains("no such socket"), "{}", answer.text());
    }
    let stored = forwarder.put(KEY, &json!({ "value": "sk-canary" }));
    assert_eq!(stored.status, 503);
    assert!(!stored.text().contains("canary"), "{}", stored.text());
    let health = forwarder.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("degraded")));

    let service = behind.start();
    assert_eq!(service.put(KEY, &json!({ "value": "v" })).status, 200);
    assert_eq!(forwarder.get(KEY).value(), "v");
    assert_eq!(forwarder.get("/health").json()["status"], "ok");
    assert!(!forwarder.log().contains("canary"));
}

/// The log of a service that does not start.
fn refusal(setup: Setup, code: i32) -> String {
    let mut service = setup.spawn();
    assert_eq!(service.wait().code(), Some(code), "{}", service.log());
    service.log()
}

#[test]
fn a_forwarding_loop_is_rejected() {
    let place = Place::new();
    let own = place.socket().to_str().expect("UTF-8").to_owned();
    for setup in [
        // The socket that any client would use is its own.
        place.setup_with("service").env("INTENTFRAME_VAULT_SOCKET", &own),
        forwarding(&place, &place.socket()),
    ] {
        let said = refusal(setup, 2);
        assert!(said.contains("forward to itself") && said.contains(UPSTREAM), "{said}");
    }
    // Through another name of the directory.
    let directory = place.socket().parent().expect("it has one").to_owned();
    std::fs::create_dir_all(&directory).expect("creates");
    let alias = place.root().join("alias");
    symlink(&directory, &alias).expect("links");
    let said = refusal(forwarding(&place, &alias.join("vault.sock")), 2);
    assert!(said.contains("forward to itself"), "{said}");

    // Indirectly: a second service forwards to the socket of the first.
    let front = Place::new();
    let service = place.start();
    let forwarder = forwarding(&front, &service.socket).start();
    service.stop();
    let said = refusal(forwarding(&place, &forwarder.socket), 2);
    assert!(said.contains("forward to itself"), "{said}");
}

#[test]
fn it_can_wait_for_its_upstream() {
    let (behind, front) = (Place::new(), Place::new());
    let said = refusal(forwarding(&front, &behind.socket()), 5);
    assert!(said.contains("no vault answers") && said.contains("--wait-for-backend"), "{said}");

    let waiting = forwarding(&front, &behind.socket()).argument("--wait-for-backend");
    let mut forwarder = waiting.spawn();
    wait_until("it says that it waits", || forwarder.log().contains("waiting for it"));
    let _service = behind.start();
    forwarder.wait_until_ready();
    assert_eq!(forwarder.get("/health").json()["status"], "ok");
}
