//! `metadata`: moves metadata between this host's database and Vault, where hosts share it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use intentframe_credentials::backend::{Revision, SharedMetadata, create_vault};
use intentframe_credentials::metadata::{Filter, MetadataStore};
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{CredentialRecord, CredentialRef, VaultError};

use super::import::is_same;
use super::local::Local;
use super::prelude::*;

/// Move metadata between this host's database and Vault, where hosts share it.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "metadata", help_triggers("-h", "--help"))]
#[argh(
    example = "IF_VAULT_METADATA=vault credential-vault metadata push --backend hashicorp",
    note = "push: writes to Vault what only this host has, or has newer.\n\
            pull: writes what Vault has to this host, which can then go back to\n\
            IF_VAULT_METADATA=local. For both, the service must be stopped.\n\
            compare: prints the differences; the exit code is 1 if there are any."
)]
pub struct Metadata {
    /// the data directory of the service (INTENTFRAME_DATA_DIR, else ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the backend of the service (IF_VAULT_BACKEND)
    #[argh(option, arg_name = "name")]
    backend: Option<String>,

    /// push: also replace what Vault has newer; pull: also remove what only this host has
    #[argh(switch)]
    replace: bool,

    /// push, pull or compare
    #[argh(positional)]
    action: String,
}

type Records = BTreeMap<CredentialRef, CredentialRecord>;

pub fn run(args: Metadata, context: &Context) -> Result<(), Failure> {
    let local = Local::new(context, args.data_dir.as_deref(), args.backend, None)?;
    let vault = create_vault(&local.backend, &local.backend_options)?;
    let shared = vault.shared_metadata().ok_or_else(|| {
        Failure::usage("this takes the backend hashicorp and IF_VAULT_METADATA=vault")
    })?;
    vault.check()?;
    let is_compare = args.action == "compare";
    let open = if is_compare { MetadataStore::open_read_only } else { MetadataStore::open };
    let store = open(&local.database).map_err(VaultError::from)?;
    let mut here = Records::new();
    let mut add = |record: CredentialRecord| drop(here.insert(record.at.clone(), record));
    store.for_each(&Filter::All, &mut add).map_err(VaultError::from)?;
    let there: Records = shared.read_all()?.into_iter().map(|it| (it.at.clone(), it)).collect();
    match args.action.as_str() {
        "push" => {
            let mut written = 0;
            for record in here.values() {
                written += usize::from(push(shared, record, args.replace)?);
            }
            store.set_refreshed(Some(Timestamp::now())).map_err(VaultError::from)?;
            output::text(&format!("{written} of {} written to Vault\n", here.len()))
        }
        "pull" => {
            let only_here = here.into_keys().filter(|at| args.replace && !there.contains_key(at));
            let mut changes: Vec<Revision> = only_here.map(|at| (at, None)).collect();
            let count = there.len();
            changes.extend(there.into_iter().map(|(at, record)| (at, Some(record))));
            store.set_all(changes).map_err(VaultError::from)?;
            output::text(&format!("{count} written to this host\n"))
        }
        "compare" => compare(&here, &there),
        _ => Err(Failure::usage("the action is push, pull or compare")),
    }
}

/// Writes a record to Vault, unless Vault has the same, or a newer one and `replace` is not set.
/// Returns whether it is written.
fn push(
    shared: &dyn SharedMetadata,
    record: &CredentialRecord,
    replace: bool,
) -> Result<bool, VaultError> {
    let is_written = Cell::new(false);
    shared.revise(record.at.namespace(), &|there| {
        let on = there.iter().find(|it| it.at == record.at);
        let is_older = |on: &CredentialRecord| replace || on.updated_at < record.updated_at;
        is_written.set(on.is_none_or(|on| !is_same(record, on) && is_older(on)));
        let node = record.stored_by.clone().or_else(|| Some(shared.node().to_owned()));
        let record = CredentialRecord { stored_by: node, ..record.clone() };
        is_written.get().then(|| (record.at.clone(), Some(record))).into_iter().collect()
    })?;
    Ok(is_written.get())
}

/// Prints a line for each credential that is on one side only, or is different.
fn compare(here: &Records, there: &Records) -> Result<(), Failure> {
    let mut report = String::new();
    for at in here.keys().chain(there.keys()).collect::<BTreeSet<_>>() {
        let what = match (here.get(at), there.get(at)) {
            (Some(one), Some(other)) if is_same(one, other) => continue,
            (Some(_), Some(_)) => "different",
            (Some(_), None) => "only here",
            (None, _) => "only in Vault",
        };
        report.extend([&output::escaped(&at.to_string()), ": ", what, "\n"]);
    }
    output::text(&report)?;
    if report.is_empty() { Ok(()) } else { Err(Failure::silent(NOT_FOUND)) }
}
