//! `import`: stores the credentials of an export.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use argh::FromArgs;
use indicatif::{ProgressBar, ProgressFinish};
use intentframe_credentials::export_file::{Entry, ExportError, Header};
use intentframe_credentials::service::VaultService;
use intentframe_credentials::{CredentialRecord, Secret, VaultError};

use super::Context;
use super::export::{check, open, read};
use super::failure::{Failure, NOT_FOUND, OTHER, USAGE, cannot};
use super::local::Local;
use super::{output, seal, signals};

/// Store the credentials of an export. The service must be stopped.
#[derive(FromArgs)]
#[argh(subcommand, name = "import", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault import --backend hashicorp --dry-run vault.export\n\
               credential-vault import --backend hashicorp vault.export",
    note = "The whole file is checked before anything is stored. A credential that is there\n\
            already with the same value and metadata is skipped, so that the same command\n\
            continues after an interruption. One that is different is a conflict: it stays\n\
            as it is, and the exit code is 1, unless --replace is given."
)]
pub struct Import {
    /// the data directory of the service (INTENTFRAME_DATA_DIR, else ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the backend of the service (IF_VAULT_BACKEND, else keyring)
    #[argh(option, arg_name = "name")]
    backend: Option<String>,

    /// the key file of the export
    #[argh(option, arg_name = "path")]
    key_file: Option<PathBuf>,

    /// read the passphrase of the export from this file descriptor
    #[argh(option, arg_name = "number")]
    passphrase_fd: Option<i32>,

    /// replace credentials that are there already with another value or other metadata
    #[argh(switch)]
    replace: bool,

    /// print what would be done with each credential, and change nothing
    #[argh(switch)]
    dry_run: bool,

    /// the export
    #[argh(positional)]
    file: PathBuf,
}

pub fn run(args: &Import, context: &Context) -> Result<(), Failure> {
    let file = args.file.as_path();
    let unusable = |error: ExportError| {
        let code = if matches!(error, ExportError::Io(_)) { OTHER } else { USAGE };
        Failure::new(code, format!("{}: {error}", file.display())).hint("nothing was changed")
    };
    let input = File::open(file).map_err(cannot(format!("read {}", file.display())))?;
    let header = Header::read(&mut BufReader::new(input)).map_err(unusable)?;
    let is_passphrase = Some(header.needs_passphrase());
    let key = seal::key(args.key_file.clone(), args.passphrase_fd, is_passphrase, context)?;
    let credentials = check(file, &key).map_err(unusable)?;

    let local = Local::new(context, args.data_dir.as_deref(), args.backend.clone(), None)?;
    let service = open(local, args.dry_run, context)?;
    let stop = signals::stop_flag().map_err(cannot("handle signals"))?;
    let bar = ProgressBar::new(credentials).with_finish(ProgressFinish::AndClear);
    let (mut stored, mut same, mut conflicts) = (0, 0, Vec::new());
    let taken = bar.wrap_iter(read(file, &key).map_err(unusable)?).try_for_each(|entry| {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::new(130, "interrupted; the same command continues"));
        }
        let entry =
            entry.map_err(|error| Failure::other(format!("{}: {error}", file.display())))?;
        match take(&service, &entry, args) {
            Ok(true) => stored += 1,
            Ok(false) => same += 1,
            Err(error @ VaultError::StoreFailed { .. }) => conflicts.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    });
    let (would, count) = (if args.dry_run { "would be " } else { "" }, conflicts.len());
    output::text(&format!(
        "{stored} {would}stored, {same} are there already, {count} conflicts\n"
    ))?;
    taken?;
    service.close().map_err(Failure::other)?;
    if conflicts.is_empty() {
        return Ok(());
    }
    Err(Failure::new(NOT_FOUND, conflicts.join("\n")).hint("--replace replaces what is there"))
}

/// Stores a credential, unless it is there already, and reads it again. Returns whether it was not
/// there. A conflict is [`VaultError::StoreFailed`].
fn take(service: &VaultService, entry: &Entry, args: &Import) -> Result<bool, VaultError> {
    let at = &entry.record.at;
    let failed =
        |reason: &str| VaultError::StoreFailed { at: at.clone(), reason: reason.to_owned() };
    let has_value = |value: &Option<Secret>| {
        value.as_ref().is_some_and(|it| it.expose() == entry.value.expose())
    };
    let is_whole = |record: &Option<CredentialRecord>, value: &Option<Secret>| {
        has_value(value) && record.as_ref().is_some_and(|it| is_same(it, &entry.record))
    };
    let is_free = match service.look(at) {
        Ok((record, value)) if is_whole(&record, &value) => return Ok(false),
        // A value that nothing lists gets its metadata.
        Ok((record, value)) => value.is_none() || (record.is_none() && has_value(&value)),
        Err(VaultError::ReadFailed { .. }) => false,
        Err(error) => return Err(error),
    };
    if !is_free && !args.replace {
        return Err(failed("another value or other metadata is there"));
    }
    if args.dry_run {
        return Ok(true);
    }
    service.import(entry.record.clone(), &entry.value)?;
    match service.look(at)? {
        (record, value) if is_whole(&record, &value) => Ok(true),
        _ => Err(failed("the backend returns something else than was stored")),
    }
}

/// Whether two records are of the same store. A read and a validator change one, and a setting the
/// preview.
pub fn is_same(one: &CredentialRecord, other: &CredentialRecord) -> bool {
    let other = CredentialRecord {
        last_used_at: one.last_used_at,
        masked_preview: one.masked_preview.clone(),
        stored_by: one.stored_by.clone(),
        last_validated_at: one.last_validated_at,
        valid: one.valid,
        ..other.clone()
    };
    *one == other
}
