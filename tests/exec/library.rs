//! `spawn`: credentials for a process that a host program starts.

use std::process::Command;

use intentframe_credentials::client::{ClientError, VaultClient};
use intentframe_credentials::spawn::{
    CommandCredentials as _, Problem, Selection, SpawnError, Watcher, runtime_env,
};
use serde_json::json;

use crate::tools::{TOKEN, Vault};

#[test]
fn a_command_starts_with_what_is_for_its_consumer() {
    let vault = Vault::with_token();
    vault.put("b/one", "canary-of-edi", "B_ONE", &["edi"]);
    let client = VaultClient::new(&vault.service.socket);
    let credentials = runtime_env(&client, Some("uwe")).expect("all is there");
    assert_eq!(credentials.len(), 1);
    assert_eq!(format!("{credentials:?}"), "{\"APP_TOKEN\": [REDACTED]}");
    assert_eq!(runtime_env(&client, None).expect("all is there").len(), 2);

    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo $APP_TOKEN$VAULT_TOKEN"]).env("VAULT_TOKEN", "own");
    let output = command.credentials(&credentials).output().expect("runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{TOKEN}\n"));
}

#[test]
fn one_problem_withholds_all_values() {
    let vault = Vault::with_token();
    vault.put_json("b/one", &json!({ "value": "v", "delivery_mode": "runtime_env" }));
    vault.put("c/one", "canary\0", "C_ONE", &[]);
    let client = VaultClient::new(&vault.service.socket);
    let Err(SpawnError::Problems(problems)) = runtime_env(&client, None) else {
        panic!("it has no name")
    };
    assert!(matches!(&problems[..], [Problem::NoName { at }] if at.to_string() == "b/one"));
    vault.delete("b/one");
    let Err(SpawnError::Problems(problems)) = runtime_env(&client, None) else {
        panic!("no variable can hold it")
    };
    assert!(matches!(&problems[..], [Problem::HasNul { name, .. }] if name == "C_ONE"));

    drop(vault);
    let nobody = runtime_env(&client, None);
    assert!(matches!(nobody, Err(SpawnError::Client(ClientError::Unreachable { .. }))));
}

#[test]
fn a_watcher_reports_what_a_process_would_see() {
    let vault = Vault::with_token();
    let client = VaultClient::new(&vault.service.socket);
    let mut watcher = Watcher::start(&client, Selection::new().consumer("uwe")).expect("starts");
    let mut look = || watcher.look(&client).expect("the vault answers").map(|it| it.len());
    assert_eq!(look(), None);
    // Read, stored anew as it was, or for somebody else: no difference.
    vault.service.get("/v1/credentials/app/token");
    vault.put("app/token", TOKEN, "APP_TOKEN", &[]);
    vault.put("b/one", "2", "B_ONE", &["edi"]);
    assert_eq!(look(), None);
    vault.put("app/token", "changed", "APP_TOKEN", &[]);
    assert_eq!(look(), Some(1));
    assert_eq!(look(), None);
    vault.put("b/one", "2", "B_ONE", &["uwe"]);
    assert_eq!(look(), Some(2));
    vault.put("b/one", "2", "APP_TOKEN", &["uwe"]);
    assert!(watcher.look(&client).is_err(), "two for one variable");
    assert!(watcher.look(&client).is_err(), "and still");
    vault.delete("b/one");
    assert_eq!(watcher.look(&client).expect("again").map(|it| it.len()), Some(1));
    assert_eq!(watcher.current().get("APP_TOKEN").expect("is there").expose(), "changed");
}
