//! `import`: stores the credentials of an export, or those of another program.

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressFinish};
use intentframe_credentials::export_file::{Entry, ExportError, Header};
use intentframe_credentials::service::VaultService;
use intentframe_credentials::{CredentialRecord, Secret, VaultError};

use super::export::{Export, check, open, read};
use super::local::Local;
use super::prelude::*;
use super::{export, foreign, seal, signals};

/// Store the credentials of an export, or of another program. The service must be stopped.
#[derive(ArgsInfo, Clone, FromArgs)]
#[argh(subcommand, name = "import", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault import --backend hashicorp --dry-run vault.export\n\
               credential-vault import --backend hashicorp vault.export\n\
               credential-vault import --from csv --dry-run logins.csv",
    note = "The whole file is checked before anything is stored. A credential that is there\n\
            already with the same value and metadata is skipped, so that the same command\n\
            continues after an interruption. One that is different is a conflict: it stays\n\
            as it is, and the exit code is 1, unless --replace is given.\n\n\
            With --from, the value alone decides what is there already. On a terminal,\n\
            import shows what it would do, and asks. `--from python` only checks."
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

    /// where the credentials come from: dotenv, csv, json, pass or python
    #[argh(option, arg_name = "name")]
    from: Option<String>,

    /// with --from: the namespace that the names of the other program are put into
    #[argh(option, arg_name = "name")]
    namespace: Option<String>,

    /// replace credentials that are there already with another value or other metadata
    #[argh(switch)]
    replace: bool,

    /// print what would be done with each credential, and change nothing
    #[argh(switch)]
    dry_run: bool,

    /// the export
    #[argh(positional)]
    file: Option<PathBuf>,
}

pub fn run(args: &Import, context: &Context) -> Result<(), Failure> {
    match (args.from.as_deref(), &args.file) {
        (Some("python"), None) => {
            let (data_dir, backend) = (args.data_dir.clone(), args.backend.clone());
            export::run(Export { data_dir, backend, dry_run: true, ..Export::default() }, context)?;
            output::text("all of them have their values, where `serve` finds them: nothing moves\n")
        }
        (Some(from), _) => from_other(from, args, context),
        (None, Some(file)) => from_export(file, args, context),
        (None, None) => Err(Failure::usage("name the file of the export")),
    }
}

fn from_export(file: &Path, args: &Import, context: &Context) -> Result<(), Failure> {
    let unusable = |error: ExportError| {
        let code = if matches!(error, ExportError::Io(_)) { OTHER } else { USAGE };
        Failure::new(code, format!("{}: {error}", file.display())).hint("nothing was changed")
    };
    let input = File::open(file).map_err(cannot(format!("read {}", file.display())))?;
    let header = Header::read(&mut BufReader::new(input)).map_err(unusable)?;
    let is_passphrase = Some(header.needs_passphrase());
    let key = seal::key(args.key_file.clone(), args.passphrase_fd, is_passphrase, context)?;
    let credentials = check(file, &key).map_err(unusable)?;
    let service = open_service(args, context)?;
    let stop = signals::stop_flag().map_err(cannot("handle signals"))?;
    let entries = read(file, &key)
        .map_err(unusable)?
        .map(|entry| entry.map_err(|error| Failure::other(format!("{}: {error}", file.display()))));
    let conflicts = take_all(&service, entries, credentials, args, &stop)?;
    finish(&service, &conflicts)
}

fn from_other(from: &str, args: &Import, context: &Context) -> Result<(), Failure> {
    let found = foreign::read(from, args.file.as_deref(), args.namespace.clone())?;
    let service = open_service(args, context)?;
    let mut left = found.skipped;
    let take = |args: &Import, stop: &AtomicBool| {
        let entries = found.entries.iter().map(Ok);
        take_all(&service, entries, found.entries.len() as u64, args, stop)
    };
    if !args.dry_run && io::stdin().is_terminal() {
        let dry = Import { dry_run: true, ..args.clone() };
        let why = [&left[..], &take(&dry, &AtomicBool::new(false))?].concat().join("\n");
        output::text(&format!("{why}\nStore them? [y/N] "))?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(cannot("read the answer"))?;
        if !answer.trim().eq_ignore_ascii_case("y") {
            return Err(Failure::other("nothing was changed"));
        }
    }
    let stop = signals::stop_flag().map_err(cannot("handle signals"))?;
    left.extend(take(args, &stop)?);
    finish(&service, &left)
}

fn open_service(args: &Import, context: &Context) -> Result<VaultService, Failure> {
    let local = Local::new(context, args.data_dir.as_deref(), args.backend.clone(), None)?;
    open(local, args.dry_run, context)
}

/// Takes the entries, up to the first error or signal, and prints how many. Returns the conflicts.
fn take_all(
    service: &VaultService,
    entries: impl Iterator<Item = Result<impl Borrow<Entry>, Failure>>,
    count: u64,
    args: &Import,
    stop: &AtomicBool,
) -> Result<Vec<String>, Failure> {
    let bar = ProgressBar::new(count).with_finish(ProgressFinish::AndClear);
    let (mut stored, mut same, mut conflicts, mut names) = (0, 0, Vec::new(), String::new());
    let taken = bar.wrap_iter(entries).try_for_each(|entry| {
        if stop.load(Ordering::Relaxed) {
            return Err(Failure::new(130, "interrupted; the same command continues"));
        }
        let entry = entry?;
        match take(service, entry.borrow(), args) {
            Ok(true) => {
                stored += 1;
                names.extend([&*output::escaped(&entry.borrow().record.at.to_string()), "\n"]);
            }
            Ok(false) => same += 1,
            Err(error @ VaultError::StoreFailed { .. }) => conflicts.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    });
    let would = if args.dry_run { "would be " } else { "" };
    let names = if args.dry_run && args.from.is_some() { &names } else { "" };
    let report = format!("{stored} {would}stored, {same} are there already");
    output::text(&format!("{names}{report}, {} conflicts\n", conflicts.len()))?;
    taken.map(|()| conflicts)
}

/// `left` is what was not taken, and why.
fn finish(service: &VaultService, left: &[String]) -> Result<(), Failure> {
    service.close().map_err(Failure::other)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::new(NOT_FOUND, left.join("\n")))
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
        has_value(value)
            && record.as_ref().is_some_and(|it| args.from.is_some() || is_same(it, &entry.record))
    };
    let is_free = match service.look(at) {
        Ok((record, value)) if is_whole(&record, &value) => return Ok(false),
        // A value that nothing lists gets its metadata.
        Ok((record, value)) => value.is_none() || (record.is_none() && has_value(&value)),
        Err(VaultError::ReadFailed { .. }) => false,
        Err(error) => return Err(error),
    };
    if !is_free && !args.replace {
        return Err(failed("another value or other metadata is there; --replace replaces it"));
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
