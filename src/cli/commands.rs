//! The commands that ask one question: health, list, get, has, delete, runtime-env, check.

use intentframe_credentials::client::ClientError;
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{CredentialRef, Namespace};
use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::Context;
use super::args::{self, Args};
use super::failure::{Failure, NOT_FOUND};
use super::output;

pub fn health(mut args: Args, context: &Context) -> Result<(), Failure> {
    let (client, json) = (context.client(&mut args)?, args.switch("--json"));
    args.end()?;
    let health = client.health()?;
    if json {
        return output::json(&health);
    }
    let mut rows = vec![
        ["status".to_owned(), health.status],
        ["backend".to_owned(), health.backend],
        ["credential_count".to_owned(), health.credential_count.to_string()],
    ];
    rows.extend(health.more.into_iter().map(|(name, value)| {
        [name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)]
    }));
    output::rows(["VAULT", &client.socket().display().to_string()], &rows)
}

pub fn list(mut args: Args, context: &Context) -> Result<(), Failure> {
    let (client, json) = (context.client(&mut args)?, args.switch("--json"));
    let summaries = match args.positionals()?.as_slice() {
        [] => client.list_all()?,
        [namespace] => {
            client.list_namespace(&Namespace::new(namespace).map_err(Failure::usage)?)?
        }
        _ => return Err(Failure::usage("list takes at most one namespace")),
    };
    if json {
        return output::json(&summaries);
    }
    // People read minutes; programs get the microseconds of the wire.
    let is_terminal = output::is_terminal();
    let time = |time: Timestamp| {
        let text = time.to_string();
        match text.get(.."2026-11-23T18:17".len()) {
            Some(minutes) if is_terminal => format!("{}Z", minutes.replace('T', " ")),
            _ => text,
        }
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
    output::rows(["NAMESPACE", "KEY", "DELIVERY", "VALUE", "STORED", "LAST USED"], &rows)
}

pub fn get(mut args: Args, context: &Context) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Value<'a> {
        value: &'a str,
    }

    let (client, json) = (context.client(&mut args)?, args.switch("--json"));
    let at = args.credential()?;
    let value = client.get(&at)?.ok_or_else(|| not_found(&at))?;
    if json {
        output::json(&Value { value: value.expose() })
    } else if output::is_terminal() {
        output::text(&Zeroizing::new(format!("{}\n", value.expose())))
    } else {
        output::text(value.expose())
    }
}

pub fn has(mut args: Args, context: &Context) -> Result<(), Failure> {
    let (client, json) = (context.client(&mut args)?, args.switch("--json"));
    let at = args.credential()?;
    let exists = client.has(&at)?;
    if json {
        output::json(&json!({ "exists": exists }))?;
    }
    match exists {
        true => Ok(()),
        false if json => Err(Failure::silent(NOT_FOUND)),
        false => Err(not_found(&at)),
    }
}

pub fn delete(mut args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client(&mut args)?;
    Ok(client.delete(&args.credential()?)?)
}

pub fn runtime_env(mut args: Args, context: &Context) -> Result<(), Failure> {
    let (client, json) = (context.client(&mut args)?, args.switch("--json"));
    args.end()?;
    let entries = client.list_runtime_env()?;
    if json {
        return output::json(&entries);
    }
    let everyone = if output::is_terminal() { "everyone" } else { "" };
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
    output::rows(["NAMESPACE", "KEY", "VARIABLE", "CONSUMERS"], &rows)
}

/// Counts a credential as missing if anything prevents the service from answering: a caller
/// must not start while it is in doubt.
pub fn check(mut args: Args, context: &Context) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Report {
        ok: bool,
        missing: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }

    let (client, json) = (context.client(&mut args)?, args.switch("--json"));
    let names = args.positionals()?;
    if names.is_empty() {
        return Err(Failure::usage("name at least one credential to check, as NAMESPACE/KEY"));
    }
    let mut missing = names.iter().map(|it| args::credential(it)).collect::<Result<Vec<_>, _>>()?;
    let mut error = None;
    missing.retain(|at| match &error {
        // If the service is gone or hangs, each further question would only cost time.
        Some(ClientError::Unreachable { .. } | ClientError::TimedOut { .. }) => true,
        _ => match client.has(at) {
            Ok(exists) => !exists,
            Err(failed) => {
                error = Some(failed);
                true
            }
        },
    });
    let count = missing.len();
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    if json {
        let error = error.as_ref().map(ToString::to_string);
        output::json(&Report { ok: count == 0, missing, error })?;
    } else {
        let lines = missing.iter().map(|name| output::escaped(name).into_owned() + "\n");
        output::text(&lines.collect::<String>())?;
    }
    match error {
        Some(error) => Err(Failure { code: NOT_FOUND, ..error.into() }),
        None if count == 0 => Ok(()),
        None => {
            let message = format!("{count} of {} credentials are missing", names.len());
            let hint = "`credential-vault store NAMESPACE/KEY` adds one";
            Err(Failure::new(NOT_FOUND, message).hint(hint))
        }
    }
}

fn not_found(at: &CredentialRef) -> Failure {
    Failure::new(NOT_FOUND, format!("there is no credential {at}")).hint(&format!(
        "`credential-vault list` shows the existing ones; `credential-vault store {at}` creates it"
    ))
}
