//! Validators: what `validate` runs, and what the service notes.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Ended, Place, Service};

fn summary(service: &Service, key: &str) -> Value {
    let all = service.get("/v1/credentials/app").json();
    let is_it = |it: &&Value| it["key"] == key;
    all.as_array().expect("a list").iter().find(is_it).expect("it is there").clone()
}

fn put(service: &Service, key: &str, value: &str, validator: &str) {
    let body = json!({ "value": value, "validator_id": validator });
    assert_eq!(service.put(&format!("/v1/credentials/app/{key}"), &body).status, 200);
}

fn validate(socket: &Path, config: &Path, names: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.arg("--config").arg(config).arg("validate").args(names).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("INTENTFRAME_VAULT_SOCKET", socket);
    Ended::of(command.stdin(Stdio::null()))
}

#[test]
fn validators_are_run_and_their_results_noted() {
    let place = Place::new();
    let mut service = place.start();
    let config = place.root().join("vault.toml");
    // The value is on standard input, in no argument and no variable.
    let script = "read -r it; echo chatter; \
        tr '\\0' ' ' < /proc/self/environ | grep -q canary && exit 7; \
        case \"$it\" in canary-good) exit 0;; canary-bad) exit 1;; esac; exit 9";
    fs::write(
        &config,
        format!(
            "validator_timeout = 1\n[validators]\ncheck = [\"/bin/sh\", \"-c\", {script:?}]\n\
             slow = [\"/bin/sh\", \"-c\", \"sleep 1000 & wait\"]\nnone = [\"/no/such\"]\n"
        ),
    )
    .expect("writes");
    for (key, value, validator) in [
        ("bad", "canary-bad", "check"),
        ("foreign", "v", "elsewhere"),
        ("good", "canary-good", "check"),
        ("missing", "v", "none"),
        ("odd", "canary-odd", "check"),
        ("slow", "v", "slow"),
    ] {
        put(&service, key, value, validator);
    }
    let plain = json!({ "value": "v" });
    assert_eq!(service.put("/v1/credentials/app/plain", &plain).status, 200);

    let all = validate(&service.socket, &config, &[]).expect(1);
    assert_eq!(
        all.stdout,
        "app\tbad\tinvalid\t\n\
         app\tforeign\tunknown\tno configuration file has a validator \"elsewhere\"\n\
         app\tgood\tvalid\t\n\
         app\tmissing\tunknown\tcannot run /no/such: No such file or directory (os error 2)\n\
         app\todd\tunknown\texit status: 9\n\
         app\tslow\tunknown\tno result within 1 s\n"
    );
    for (key, valid) in [("bad", json!(false)), ("good", json!(true)), ("odd", Value::Null)] {
        let summary = summary(&service, key);
        assert_eq!(summary["valid"], valid, "{key}");
        assert_eq!(summary["last_validated_at"].is_null(), valid.is_null(), "{key}");
    }
    let good = validate(&service.socket, &config, &["app/good"]).expect(0);
    assert_eq!((&*good.stdout, &*good.stderr), ("app\tgood\tvalid\t\n", "chatter\n"));
    let plain = validate(&service.socket, &config, &["app/plain", "app/good"]).expect(5);
    assert!(plain.stdout.contains("app\tplain\tunknown\tit has no validator_id"), "{plain:?}");
    validate(&service.socket, &config, &["app/nothing"]).failed(1, "no credential app/nothing");

    // The result is that of this value, and outlives the service.
    let before = summary(&service, "good");
    service.signal(rustix::process::Signal::TERM);
    service.wait();
    let service = place.start();
    assert_eq!(summary(&service, "good"), before);
    assert_eq!(
        place.column("last_validated_at", "app", "good").map(|time| time.replace("+00:00", "Z")),
        before["last_validated_at"].as_str().map(str::to_owned),
    );
    put(&service, "good", "canary-other", "check");
    let after = summary(&service, "good");
    assert_eq!(after["last_validated_at"], before["last_validated_at"]);
    assert!(after["valid"].is_null(), "{after}");
}

#[test]
fn the_endpoint_notes_a_result_for_the_value_that_was_checked() {
    let (place, other) = (Place::new(), Place::new());
    let service = place.start();
    put(&service, "key", "v", "x");
    let note = |service: &Service, path: &str, body: Value| {
        let answer = service.put(&format!("/v1/validations/{path}"), &body);
        (answer.status, answer.json())
    };
    let stored = summary(&service, "key")["updated_at"].clone();
    let noted = (200, json!({ "status": "noted" }));
    assert_eq!(note(&service, "app/key", json!({ "valid": true, "updated_at": stored })), noted);
    let at = summary(&service, "key")["last_validated_at"].clone();
    assert_eq!(note(&service, "app/key", json!({ "valid": null })), noted);
    let after = summary(&service, "key");
    assert!(after["valid"].is_null() && after["last_validated_at"] == at, "{after}");

    put(&service, "key", "w", "x");
    let late = json!({ "valid": false, "updated_at": stored });
    assert_eq!(note(&service, "app/key", late.clone()).0, 409);
    assert!(summary(&service, "key")["valid"].is_null());
    assert_eq!(note(&service, "app/none", json!({ "valid": true })).0, 404);
    assert_eq!(note(&service, "a%20b/key", json!({ "valid": true })).0, 422);
    for body in [json!({}), json!({ "valid": "canary" }), json!([]), json!({ "valid": 1 })] {
        let (status, detail) = note(&service, "app/key", body);
        assert!(status == 422 && !detail.to_string().contains("canary"), "{detail}");
    }
    let wrong = service.get("/v1/validations/app/key");
    assert_eq!((wrong.status, wrong.header("Allow")), (405, Some("PUT")));

    // A service that forwards passes it on.
    let forwards = other.setup_with("service");
    let forwards =
        forwards.env("IF_VAULT_UPSTREAM_SOCKET", service.socket.to_str().expect("UTF-8"));
    let forwards = forwards.start();
    assert_eq!(note(&forwards, "app/key", json!({ "valid": false })), noted);
    assert_eq!(summary(&service, "key")["valid"], json!(false));
    assert_eq!(note(&forwards, "app/key", late).0, 409);
    assert_eq!(note(&forwards, "app/none", json!({ "valid": true })).0, 404);
}
