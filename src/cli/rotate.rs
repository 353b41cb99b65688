//! `rotate`: replaces a value by what a command makes.

use std::ffi::OsString;
use std::process::{ExitStatus, Stdio};

use intentframe_credentials::model::RecordSummary;
use intentframe_credentials::{CredentialRef, Secret, StoreRequest, VaultClient};

use super::child::{cannot_run, command, feed};
use super::commands::{name, not_found};
use super::logging::keep_out;
use super::prelude::*;
use super::store;

/// Replace a value by what a command prints: rotate name -- command [--check -- command]
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "rotate", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault rotate github.myorg/token -- ./new-token\n\
               credential-vault rotate db.main/password -- ./new-password --check -- ./try-password",
    note = "The standard output of the command is the new value: UTF-8 text of at most 256 KiB,\n\
            without the newline at its end. The command after --check -- gets it on its standard\n\
            input. The old value stays if a command fails or the output is empty. Delivery mode,\n\
            consumers, variable and validator stay as they are."
)]
pub struct Rotate {
    /// the credential, as NAMESPACE/KEY
    #[argh(positional)]
    credential: String,
}

pub fn run(args: &Rotate, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let at = credential(&args.credential)?;
    let words = &context.program;
    // The last one, so that the first command may have such words too.
    let split = words.windows(2).rposition(|pair| pair == ["--check", "--"]);
    let (make, check) =
        split.map_or((&words[..], None), |it| (&words[..it], Some(&words[it + 2..])));
    if make.is_empty() || check.is_some_and(<[_]>::is_empty) {
        return Err(Failure::usage("a command is missing after --")
            .hint("as in `credential-vault rotate NAMESPACE/KEY -- ./make --check -- ./test`"));
    }
    find(&client, &at)?;

    let value = new_value(make, check, context)
        .map_err(|failure| failure.hint(&format!("{at} keeps its old value")))?;
    // As it is now, since the commands may have taken long.
    let record = find(&client, &at)?;
    let request = StoreRequest {
        value,
        delivery_mode: record.summary.delivery_mode,
        allowed_consumers: record.allowed_consumers,
        env_name: record.env_name,
        validator_id: record.validator_id,
    };
    Ok(client.store(&at, &request)?)
}

fn find(client: &VaultClient, at: &CredentialRef) -> Result<RecordSummary, Failure> {
    let found = client.records()?.into_iter().find(|it| name(&it.summary) == at.to_string());
    found.ok_or_else(|| not_found(at, client))
}

/// The output of `make`, if `check` accepts it.
fn new_value(
    make: &[OsString],
    check: Option<&[OsString]>,
    context: &Context,
) -> Result<Secret, Failure> {
    let mut making = command(make);
    let child = context.core_limit.lifted(|| making.stdout(Stdio::piped()).spawn());
    let mut child = child.map_err(cannot_run(&making))?;
    let value = store::value(child.stdout.take().expect("it is piped"), false);
    let ended = child.wait().map_err(cannot_run(&making))?;
    // A command whose output is too long is ended by that.
    let value = value?;
    succeeded(make, ended)?;
    keep_out(&value, &context.secrets);
    if value.is_empty() {
        return Err(Failure::usage("the output of the command is empty"));
    }
    if let Some(check) = check {
        let mut checking = command(check);
        let ended = feed(&mut checking, &value, None, context).map_err(cannot_run(&checking))?;
        succeeded(check, ended.expect("there is no limit"))?;
    }
    Ok(value)
}

fn succeeded(words: &[OsString], status: ExitStatus) -> Result<(), Failure> {
    if status.success() {
        return Ok(());
    }
    Err(Failure::other(format!("{} failed: {status}", words[0].display())))
}
