//! `validate`: asks the validators whether values still work.

use std::io;
use std::time::Duration;

use intentframe_credentials::model::{RecordSummary, Validity};
use intentframe_credentials::{CredentialRef, VaultClient};

use super::child::{cannot_run, command, feed};
use super::commands::{self, name};
use super::logging::keep_out;
use super::prelude::*;

/// Run the validators of credentials, and note the results.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "validate", help_triggers("-h", "--help"))]
#[argh(note = "The validator of a credential is the command that the table [validators] of a\n\
            configuration file has for its validator_id. It gets the value on its standard\n\
            input. Its exit code is 0 if the value is valid, and 1 if not; with any other, or\n\
            after 30 seconds (IF_VAULT_VALIDATOR_TIMEOUT), the result is unknown.\n\n\
            The exit code is 0 if all are valid, 1 if one is invalid, else 5.")]
pub struct Validate {
    /// the credentials, as NAMESPACE/KEY; without any, all that have a validator
    #[argh(positional)]
    credentials: Vec<String>,
}

pub fn run(args: &Validate, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let form = "it is a number of seconds";
    let seconds = context.setting(None, "IF_VAULT_VALIDATOR_TIMEOUT", form)?.unwrap_or(30);
    let named: Vec<_> =
        args.credentials.iter().map(|it| credential(it)).collect::<Result<_, _>>()?;
    let mut records = client.records()?;
    let is_of = |it: &RecordSummary, at: &CredentialRef| name(&it.summary) == at.to_string();
    if let Some(none) = named.iter().find(|at| !records.iter().any(|it| is_of(it, at))) {
        return Err(commands::not_found(none, &client));
    }
    records.retain(|it| match named.as_slice() {
        [] => it.validator_id.is_some(),
        named => named.iter().any(|at| is_of(it, at)),
    });
    let mut rows = Vec::new();
    for record in records {
        let (result, why) = match check(&record, &client, context, Duration::from_secs(seconds)) {
            Ok(true) => ("valid", String::new()),
            Ok(false) => ("invalid", String::new()),
            Err(failure) => ("unknown", failure.message),
        };
        rows.push([record.summary.namespace, record.summary.key, result.to_owned(), why]);
    }
    output::rows(&["NAMESPACE", "KEY", "RESULT", "REASON"], &rows)?;
    let has = |result| rows.iter().any(|[_, _, it, _]| it == result);
    if has("invalid") {
        return Err(Failure::silent(NOT_FOUND));
    }
    if has("unknown") { Err(Failure::silent(OTHER)) } else { Ok(()) }
}

/// Whether the value is valid. An error says why that is unknown.
fn check(
    record: &RecordSummary,
    client: &VaultClient,
    context: &Context,
    limit: Duration,
) -> Result<bool, Failure> {
    let id = record.validator_id.as_deref();
    let id = id.ok_or_else(|| Failure::other("it has no validator_id"))?;
    let unknown = || Failure::other(format!("no configuration file has a validator {id:?}"));
    let (words, _) = context.config.validators.get(id).ok_or_else(unknown)?;
    let at = CredentialRef::parse(&record.summary.namespace, &record.summary.key);
    let at = at.map_err(Failure::other)?;
    let value = client.get(&at)?.ok_or_else(|| commands::not_found(&at, client))?;
    keep_out(&value, &context.secrets);
    let mut command = command(words);
    let ended = feed(command.stdout(io::stderr()), &value, Some(limit), context);
    let ended = ended.map_err(cannot_run(&command))?;
    let valid = match ended.map(|status| status.code()) {
        Some(Some(0)) => Some(true),
        Some(Some(1)) => Some(false),
        _ => None,
    };
    let result = Validity { valid, updated_at: Some(record.summary.updated_at) };
    if !client.note_validity(&at, result)? {
        return Err(Failure::other("it was stored again meanwhile"));
    }
    valid.ok_or_else(|| match ended {
        Some(status) => Failure::other(status),
        None => Failure::other(format!("no result within {} s", limit.as_secs())),
    })
}
