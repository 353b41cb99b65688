//! The commands that read: health, list, get, has, runtime-env.

use intentframe_credentials::client::VaultClient;
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{CredentialRef, Namespace};
use serde_json::json;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::output::Output;

pub fn health(client: &VaultClient, json: bool) -> Result<(), Failure> {
    let health = client.health()?;
    let mut output = Output::stdout();
    if json {
        return output.json(&health);
    }
    let mut rows = vec![
        ["status".to_owned(), health.status],
        ["backend".to_owned(), health.backend],
        ["credential_count".to_owned(), health.credential_count.to_string()],
    ];
    let more = health.more.into_iter().map(|(name, value)| {
        [name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)]
    });
    rows.extend(more);
    output.rows(["VAULT", &client.socket().display().to_string()], &rows)
}

pub fn list(client: &VaultClient, namespace: Option<&str>, json: bool) -> Result<(), Failure> {
    let summaries = match namespace {
        None => client.list_all()?,
        Some(namespace) => {
            client.list_namespace(&Namespace::new(namespace).map_err(Failure::usage)?)?
        }
    };
    let mut output = Output::stdout();
    if json {
        return output.json(&summaries);
    }
    // People read minutes; programs get the wire's microseconds.
    let is_terminal = output.is_terminal;
    let time = |time: Timestamp| {
        let mut text = time.to_string();
        if is_terminal && let Some(minutes) = text.get(.."2026-11-23T18:17".len()) {
            text = format!("{}Z", minutes.replace('T', " "));
        }
        text
    };
    let rows: Vec<_> = summaries
        .into_iter()
        .map(|summary| {
            [
                summary.namespace,
                summary.key,
                summary.delivery_mode.to_string(),
                summary.masked_preview,
                time(summary.updated_at),
                summary.last_used_at.map(time).unwrap_or_default(),
            ]
        })
        .collect();
    output.rows(["NAMESPACE", "KEY", "DELIVERY", "VALUE", "STORED", "LAST USED"], &rows)
}

pub fn get(client: &VaultClient, at: &CredentialRef, json: bool) -> Result<(), Failure> {
    let Some(value) = client.get(at)? else { return Err(no_such(at)) };
    let mut output = Output::stdout();
    if json {
        #[derive(serde::Serialize)]
        struct Value<'a> {
            value: &'a str,
        }
        output.json(&Value { value: value.expose() })
    } else if output.is_terminal {
        output.text(&Zeroizing::new(format!("{}\n", value.expose())))
    } else {
        output.text(value.expose())
    }
}

pub fn has(client: &VaultClient, at: &CredentialRef, json: bool) -> Result<(), Failure> {
    let exists = client.has(at)?;
    if json {
        Output::stdout().json(&json!({ "exists": exists }))?;
    }
    match exists {
        true => Ok(()),
        false if json => Err(Failure::silent_not_found()),
        false => Err(no_such(at)),
    }
}

pub fn runtime_env(client: &VaultClient, json: bool) -> Result<(), Failure> {
    let entries = client.list_runtime_env()?;
    let mut output = Output::stdout();
    if json {
        return output.json(&entries);
    }
    let everyone = if output.is_terminal { "everyone" } else { "" };
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let consumers = match entry.allowed_consumers.as_slice() {
                [] => everyone.to_owned(),
                consumers => consumers.join(","),
            };
            [entry.namespace, entry.key, entry.env_name.unwrap_or_default(), consumers]
        })
        .collect();
    output.rows(["NAMESPACE", "KEY", "VARIABLE", "CONSUMERS"], &rows)
}

fn no_such(at: &CredentialRef) -> Failure {
    Failure::not_found(format!(
        "there is no credential {at}\n  `credential-vault list` shows those there are, \
         `credential-vault store {at}` makes it"
    ))
}
