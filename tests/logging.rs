//! The log on standard error: its format, and the values that must not be in it.
#![cfg(unix)]

mod support;

use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Place, Service};

const TOKEN: &str = "s.canary+token/1";

fn ended(mut service: Service) -> String {
    service.signal(Signal::TERM);
    assert!(service.wait().success(), "{}", service.log());
    service.log()
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_credential-vault"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .expect("it runs")
}

#[test]
fn json_lines_have_the_content_of_text_lines() {
    let place = Place::new();
    let service = place.setup().env("IF_VAULT_LOG", "json").env("RUST_LOG", "trace").start();
    service.put("/v1/credentials/a/b", &json!({"value": "made-up"}));
    let log = ended(service);
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
    let serving = lines
        .iter()
        .find(|line| line["message"].as_str().is_some_and(|text| text.starts_with("serving the")))
        .expect("it logs that it serves");
    assert_eq!(serving["level"], "INFO");
    assert_eq!(serving["target"], "credential_vault::cli::serve");
    let time = serving["ts"].as_str().expect("it is text");
    assert!(time.ends_with('Z') && time.len() == "2026-11-23T18:17:36.320458Z".len(), "{time}");
    for line in &lines {
        for name in ["ts", "level", "target", "message"] {
            assert!(line[name].is_string(), "{line}");
        }
    }

    for setting in ["text", ""] {
        let log = ended(place.setup().env("IF_VAULT_LOG", setting).start());
        assert!(log.contains("INFO") && !log.contains('{'), "{log}");
    }
}

#[test]
fn an_unknown_format_is_a_usage_error() {
    for command in [&["serve", "--backend", "env"][..], &["health"], &["dev"]] {
        let ended = run(command, &[("IF_VAULT_LOG", "canary-xml")]);
        let stderr = String::from_utf8(ended.stderr).expect("UTF-8");
        assert_eq!(ended.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("IF_VAULT_LOG") && stderr.contains("json"), "{stderr}");
        assert!(!stderr.contains("canary"), "{stderr}");
    }
}

#[test]
fn secrets_in_the_environment_are_redacted_in_every_form() {
    // The log contains the path of the socket, and here that contains the secret.
    for name in
        ["s.canary+token%2F1", "cy5jYW5hcnkrdG9rZW4vMQ==", "732e63616e6172792b746f6b656e2f31"]
    {
        for form in ["text", "json"] {
            let place = Place::new();
            let socket = place.root().join(name).join("vault.sock");
            let path = socket.to_str().expect("UTF-8").to_owned();
            let service = place
                .bare_setup()
                .argument("--backend=env")
                .argument(format!("--socket={path}"))
                .env("VAULT_TOKEN", TOKEN)
                .env("IF_VAULT_LOG", form)
                .listening_at(socket)
                .start();
            let log = ended(service);
            assert!(log.contains("/[REDACTED]/vault.sock"), "{log}");
            assert!(!log.contains(name), "{log}");
        }
    }
}

#[test]
fn secrets_in_the_environment_are_redacted_in_messages() {
    let socket = format!("/nowhere/{TOKEN}");
    let ended = run(&["--socket", &socket, "health"], &[("MY_API_KEY", TOKEN)]);
    let stderr = String::from_utf8(ended.stderr).expect("UTF-8");
    assert_eq!(ended.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("/nowhere/[REDACTED]") && !stderr.contains(TOKEN), "{stderr}");
}
