//! The commands that ask one question: health, list, get, has, delete, runtime-env, check.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use intentframe_credentials::client::{ClientError, VaultClient};
use intentframe_credentials::text::nearest;
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{CredentialRef, MaskedSummary, Namespace};
use serde::Serialize;
use serde_json::json;

use super::audit;
use super::prelude::*;

/// Show the state of the service.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "health", help_triggers("-h", "--help"))]
pub struct Health {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

pub fn health(args: &Health, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let health = client.health()?;
    if args.json {
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
    output::rows(&["VAULT", &client.socket().display().to_string()], &rows)
}

/// List credentials without their values.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "list", help_triggers("-h", "--help"))]
#[argh(note = "If standard output is not a terminal, each line has these fields, separated by\n\
            tabs: namespace, key, delivery mode, masked preview, time stored, time last used;\n\
            with --long also who used it last, the host that stored it, consumers, variable.")]
pub struct List {
    /// print JSON
    #[argh(switch)]
    json: bool,

    /// also show which host stored each credential, its consumers and its variable, and who used
    /// it last, if there is an audit log
    #[argh(switch)]
    long: bool,

    /// the audit log, with --long (IF_VAULT_AUDIT_LOG)
    #[argh(option, arg_name = "path")]
    audit_log: Option<PathBuf>,

    /// only those that were not used for so many days; one that was never used counts from its
    /// creation
    #[argh(option, arg_name = "days")]
    stale: Option<u32>,

    /// the order: name (the default), used or created, the latest first
    #[argh(option, arg_name = "order")]
    sort: Option<String>,

    /// only those of this namespace
    #[argh(positional)]
    namespace: Option<String>,
}

pub fn list(args: List, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let namespace = args.namespace.as_deref().map(Namespace::new).transpose();
    let namespace = namespace.map_err(Failure::usage)?;
    if args.long {
        let mut records = client.records()?;
        records.retain(|it| {
            namespace.as_ref().is_none_or(|name| name.as_str() == it.summary.namespace)
        });
        arrange(&mut records, |it| &it.summary, &args)?;
        if args.json {
            return output::json(&records);
        }
        let log = context.setting_path(args.audit_log, "IF_VAULT_AUDIT_LOG")?;
        let mut users = log.as_deref().map(audit::last_users).transpose()?.unwrap_or_default();
        let rows = records.into_iter().map(|it| {
            let user = users.remove(&name(&it.summary));
            let more = [user, it.stored_by, Some(it.allowed_consumers.join(",")), it.env_name];
            let more = more.map(Option::unwrap_or_default);
            [&row(it.summary)[..], &more].concat()
        });
        let head = [HEAD, &["BY", "STORED BY", "CONSUMERS", "VARIABLE"]].concat();
        return output::rows(&head, &rows.collect::<Vec<_>>());
    }
    let mut summaries = match namespace {
        None => client.list_all()?,
        Some(name) => client.list_namespace(&name)?,
    };
    arrange(&mut summaries, |it| it, &args)?;
    if args.json {
        return output::json(&summaries);
    }
    output::rows(HEAD, &summaries.into_iter().map(row).collect::<Vec<_>>())
}

/// Chooses and sorts what is listed, as the options say.
fn arrange<T>(
    listed: &mut Vec<T>,
    of: impl Fn(&T) -> &MaskedSummary,
    args: &List,
) -> Result<(), Failure> {
    const DAY: u64 = 24 * 60 * 60;

    if let Some(days) = args.stale {
        let now = Timestamp::now();
        let used = |it: &MaskedSummary| it.last_used_at.unwrap_or(it.created_at);
        listed.retain(|it| now.seconds_since(used(of(it))) >= u64::from(days) * DAY);
    }
    match args.sort.as_deref() {
        None | Some("name") => {}
        Some("used") => listed.sort_by_key(|it| Reverse(of(it).last_used_at)),
        Some("created") => listed.sort_by_key(|it| Reverse(of(it).created_at)),
        Some(_) => return Err(Failure::usage("--sort is name, used or created")),
    }
    Ok(())
}

const HEAD: &[&str] = &["NAMESPACE", "KEY", "DELIVERY", "VALUE", "STORED", "LAST USED"];

/// The cells below [`HEAD`].
fn row(summary: MaskedSummary) -> [String; 6] {
    // People read minutes; programs get the microseconds of the wire.
    let is_terminal = output::is_terminal();
    let time = |time: Timestamp| {
        let text = time.to_string();
        match text.get(.."2026-11-23T18:17".len()) {
            Some(minutes) if is_terminal => format!("{}Z", minutes.replace('T', " ")),
            _ => text,
        }
    };
    [
        summary.namespace,
        summary.key,
        summary.delivery_mode.as_str().to_owned(),
        summary.masked_preview,
        time(summary.updated_at),
        summary.last_used_at.map(time).unwrap_or_default(),
    ]
}

/// Print the value of a credential.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "get", help_triggers("-h", "--help"))]
#[argh(note = "If standard output is a terminal, a newline follows the value, and control\n\
            characters other than newlines and tabs are escaped.")]
pub struct Get {
    /// print JSON
    #[argh(switch)]
    json: bool,

    /// the credential, as NAMESPACE/KEY
    #[argh(positional)]
    credential: String,
}

pub fn get(args: &Get, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let at = credential(&args.credential)?;
    let value = client.get(&at)?.ok_or_else(|| not_found(&at, &client))?;
    if args.json {
        output::json(&BTreeMap::from([("value", value.expose())]))
    } else if output::is_terminal() {
        output::value(value.expose())
    } else {
        output::text(value.expose())
    }
}

/// Test whether a credential exists. The exit code is 0 if it does, and 1 if not.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "has", help_triggers("-h", "--help"))]
pub struct Has {
    /// print JSON
    #[argh(switch)]
    json: bool,

    /// the credential, as NAMESPACE/KEY
    #[argh(positional)]
    credential: String,
}

pub fn has(args: &Has, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let at = credential(&args.credential)?;
    let exists = client.has(&at)?;
    if args.json {
        output::json(&json!({ "exists": exists }))?;
    }
    match exists {
        true => Ok(()),
        false if args.json => Err(Failure::silent(NOT_FOUND)),
        false => Err(not_found(&at, &client)),
    }
}

/// Delete a credential. This succeeds even if the credential does not exist.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "delete", help_triggers("-h", "--help"))]
pub struct Delete {
    /// the credential, as NAMESPACE/KEY
    #[argh(positional)]
    credential: String,
}

pub fn delete(args: &Delete, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    Ok(client.delete(&credential(&args.credential)?)?)
}

/// List the credentials delivered as environment variables, without their values.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "runtime-env", help_triggers("-h", "--help"))]
#[argh(note = "If standard output is not a terminal, each line has these fields, separated by\n\
            tabs: namespace, key, variable, consumers (separated by commas; empty if every\n\
            consumer is allowed).")]
pub struct RuntimeEnv {
    /// print JSON
    #[argh(switch)]
    json: bool,
}

pub fn runtime_env(args: &RuntimeEnv, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let entries = client.list_runtime_env()?;
    if args.json {
        return output::json(&entries);
    }
    let everyone = if output::is_terminal() { "everyone" } else { "" };
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let consumers = Some(entry.allowed_consumers.join(",")).filter(|it| !it.is_empty());
            let consumers = consumers.unwrap_or_else(|| everyone.to_owned());
            [entry.namespace, entry.key, entry.env_name.unwrap_or_default(), consumers]
        })
        .collect();
    output::rows(&["NAMESPACE", "KEY", "VARIABLE", "CONSUMERS"], &rows)
}

/// Test that the service answers and has all the named credentials.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "check", help_triggers("-h", "--help"))]
#[argh(note = "The exit code is 0 if all of them exist. Otherwise it is 1, even if no service\n\
            answers, and the missing ones are printed, one per line.")]
pub struct Check {
    /// print JSON
    #[argh(switch)]
    json: bool,

    /// the credentials, as NAMESPACE/KEY
    #[argh(positional)]
    credentials: Vec<String>,
}

/// Counts a credential as missing if anything prevents the service from answering: a caller
/// must not start while it is in doubt.
pub fn check(args: Check, context: &Context) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Report {
        ok: bool,
        missing: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    }

    let client = context.client()?;
    let names = args.credentials;
    if names.is_empty() {
        return Err(Failure::usage("name at least one credential to check, as NAMESPACE/KEY"));
    }
    let mut missing = names.iter().map(|it| credential(it)).collect::<Result<Vec<_>, _>>()?;
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
    let lacking: Vec<_> = missing.iter().map(ToString::to_string).collect();
    if args.json {
        let error = error.as_ref().map(ToString::to_string);
        output::json(&Report { ok: count == 0, missing: lacking, error })?;
    } else {
        let lines = lacking.iter().map(|name| output::escaped(name).into_owned() + "\n");
        output::text(&lines.collect::<String>())?;
    }
    match error {
        Some(error) => Err(Failure { code: NOT_FOUND, ..error.into() }),
        None if count == 0 => Ok(()),
        None => {
            let message = format!("{count} of {} credentials are missing", names.len());
            let hint = "`credential-vault store NAMESPACE/KEY` adds one";
            Err(Failure::new(NOT_FOUND, message).hint(&near(&missing, &client)).hint(hint))
        }
    }
}

pub fn not_found(at: &CredentialRef, client: &VaultClient) -> Failure {
    let near = near(std::slice::from_ref(at), client);
    Failure::new(NOT_FOUND, format!("there is no credential {at}")).hint(&near).hint(&format!(
        "`credential-vault list` shows the existing ones; `credential-vault store {at}` creates it"
    ))
}

/// The names most like the missing ones, of those that the caller may list.
fn near(missing: &[CredentialRef], client: &VaultClient) -> String {
    let listed = client.list_all().unwrap_or_default();
    let names: Vec<_> = listed.iter().map(name).collect();
    let near = |it: &CredentialRef| nearest(&it.to_string(), names.iter().map(String::as_str));
    let near = missing.iter().filter_map(near);
    near.map(|name| format!("did you mean {name}?")).collect::<Vec<_>>().join("\n  ")
}

/// `NAMESPACE/KEY`, as commands take it.
pub fn name(summary: &MaskedSummary) -> String {
    format!("{}/{}", summary.namespace, summary.key)
}
