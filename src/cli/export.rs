//! `export`: writes all credentials to an encrypted file.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use argh::FromArgs;
use indicatif::ProgressBar;
use intentframe_credentials::export_file::{Entry, ExportError, Header, Reader, Writer};
use intentframe_credentials::metadata::MetadataStore;
use intentframe_credentials::seal::KeySource;
use intentframe_credentials::service::VaultService;
use intentframe_credentials::{CredentialRecord, VaultError, create_vault, ownership};

use super::Context;
use super::failure::{Failure, cannot};
use super::local::{Local, check_new, rename_new};
use super::{output, seal};

/// Write all credentials, with values and metadata, to a new encrypted file.
#[derive(FromArgs)]
#[argh(subcommand, name = "export", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault export --key-file vault-export.key vault.export\n\
               credential-vault export --backend hashicorp --dry-run vault.export",
    note = "The key is the file or the passphrase given, else $CREDENTIALS_DIRECTORY/vault-key,\n\
            else a passphrase that it asks for. Without the key, nobody can read the export.\n\
            The service may be running. After an interruption, the same command continues.\n\
            `import` reads the file."
)]
pub struct Export {
    /// the data directory of the service (INTENTFRAME_DATA_DIR, else ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the backend of the service (IF_VAULT_BACKEND, else keyring)
    #[argh(option, arg_name = "name")]
    backend: Option<String>,

    /// read the passphrase of the backend sealed from this file descriptor
    #[argh(option, arg_name = "number")]
    vault_passphrase_fd: Option<i32>,

    /// encrypt with the key in this file (`openssl rand -hex 32` makes one; mode 0400)
    #[argh(option, arg_name = "path")]
    key_file: Option<PathBuf>,

    /// encrypt with the passphrase from this file descriptor
    #[argh(option, arg_name = "number")]
    passphrase_fd: Option<i32>,

    /// read everything, print the names, and write nothing
    #[argh(switch)]
    dry_run: bool,

    /// the file to create; an existing one is not replaced
    #[argh(positional)]
    file: PathBuf,
}

pub fn run(args: &Export, context: &Context) -> Result<(), Failure> {
    let local = Local::new(context, None, args.data_dir.as_deref(), args.backend.clone())?;
    if !local.database.exists() {
        let directory = local.data_dir.display();
        return Err(Failure::usage(format!("there is no database in {directory}"))
            .hint("--data-dir PATH or INTENTFRAME_DATA_DIR selects another directory"));
    }
    check_new(&args.file)?;
    let service = open(local, args.vault_passphrase_fd, true, context)?;
    let records = service.records()?;
    let mut missing = Vec::new();
    let report = if args.dry_run {
        let mut names = String::new();
        each(&service, &records, &mut missing, |entry| {
            let name = entry.record.at.to_string();
            names.extend([&*output::escaped(&name), "\n"]);
            Ok(())
        })?;
        names
    } else {
        write(args, &service, &records, &mut missing, context)?
    };
    output::text(&report)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::other(format!("not all can be exported:\n{}", missing.join("\n"))))
}

/// The vault of the data directory. With `read_only`, a service may be using it.
pub fn open(
    mut local: Local,
    passphrase_fd: Option<i32>,
    read_only: bool,
    context: &Context,
) -> Result<VaultService, Failure> {
    let options = &mut local.backend_options;
    options.read_only = read_only;
    if local.backend == "sealed" {
        options.passphrase = seal::passphrase(options, passphrase_fd, context)?;
    }
    let vault = create_vault(&local.backend, options)?;
    if vault.metadata_keeper().is_some() || !vault.is_durable() {
        return Err(Failure::usage("this backend keeps values in memory or in another service")
            .hint("for `service`: run it where the other one runs, with that one's options"));
    }
    vault.check()?;
    let open = if read_only { MetadataStore::open_read_only } else { MetadataStore::open };
    let metadata = match vault.in_database() {
        Some(vault) => vault.database()?,
        None => Arc::new(open(&local.database).map_err(VaultError::from)?),
    };
    let hides = context.environment.setting("IF_VAULT_PREVIEW") == Some("none");
    let service = VaultService::new(vault, metadata).hide_previews(hides);
    if !read_only {
        service.settle();
    }
    Ok(service)
}

/// Calls `take` for each credential, as it is now. Adds to `missing` those that have no value, or
/// one that cannot be read.
fn each(
    service: &VaultService,
    records: &[CredentialRecord],
    missing: &mut Vec<String>,
    mut take: impl FnMut(Entry) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for CredentialRecord { at, .. } in records {
        match service.look(at) {
            Ok((Some(record), Some(value))) => take(Entry { record, value })?,
            // It was deleted meanwhile.
            Ok((None, _)) => {}
            Ok((Some(_), None)) => missing.push(format!("{at}: it has no value")),
            Err(error @ VaultError::ReadFailed { .. }) => missing.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write(
    args: &Export,
    service: &VaultService,
    records: &[CredentialRecord],
    missing: &mut Vec<String>,
    context: &Context,
) -> Result<String, Failure> {
    let mut part = OsString::from(&args.file);
    part.push(".part");
    let part = Path::new(&part);
    let failed = || cannot(format!("write {}", part.display()));
    let unusable = |error: ExportError| Failure::other(format!("{}: {error}", part.display()));
    let options = &mut OpenOptions::new();
    let mut file =
        ownership::open(part, options.read(true).write(true).create(true)).map_err(failed())?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            return Err(Failure::other("another export writes it now"));
        }
        Err(TryLockError::Error(error)) => return Err(failed()(error)),
        Ok(()) => {}
    }
    let read_again = || File::open(part).map(BufReader::new).map_err(failed());
    let mut input = read_again()?;
    let header = match Header::read(&mut input) {
        Err(ExportError::Truncated) => None,
        header => Some(header.map_err(unusable)?),
    };
    let needs_passphrase = header.as_ref().map(Header::needs_passphrase);
    let key = seal::key_of_export(
        args.key_file.as_deref(),
        args.passphrase_fd,
        needs_passphrase,
        context,
    )?;
    let mut kept = 0;
    let mut writer = if let Some(header) = header {
        let mut reader = Reader::new(input, header, &key)
            .map_err(|error| unusable(error).hint("remove it to begin again with another key"))?;
        let mut length = reader.length();
        // What has changed since is exported again, with everything that follows it.
        for record in records {
            match reader.next() {
                Some(Ok(entry)) if is_same(record, &entry.record) => {
                    (kept, length) = (kept + 1, reader.length());
                }
                _ => break,
            }
        }
        file.set_len(length).map_err(failed())?;
        file.seek(SeekFrom::End(0)).map_err(failed())?;
        reader.into_writer(&file, kept as u64)
    } else {
        file.set_len(0).map_err(failed())?;
        Writer::new(&file, &key).map_err(unusable)?
    };
    let bar = ProgressBar::new(records.len() as u64).with_position(kept as u64);
    each(service, &records[kept..], missing, |entry| {
        bar.inc(1);
        writer.put(entry).map_err(unusable)
    })?;
    bar.finish_and_clear();
    let (_, credentials) = writer.finish().map_err(unusable)?;
    file.sync_all().map_err(failed())?;
    check(read_again()?, &key).map_err(unusable)?;
    rename_new(part, &args.file)?;
    let shown = args.file.to_string_lossy();
    Ok(format!(
        "{}: {credentials} credentials ({kept} of them by an interrupted export)\n",
        output::escaped(&shown)
    ))
}

/// Reads a whole file.
pub fn check(mut input: BufReader<File>, key: &KeySource) -> Result<u64, ExportError> {
    let header = Header::read(&mut input)?;
    let mut reader = Reader::new(input, header, key)?;
    reader.try_for_each(|entry| entry.map(drop))?;
    Ok(reader.credentials())
}

/// Whether two records are of the same store. A read changes one, and a setting the preview.
pub fn is_same(one: &CredentialRecord, other: &CredentialRecord) -> bool {
    let other = CredentialRecord {
        last_used_at: one.last_used_at,
        masked_preview: one.masked_preview.clone(),
        ..other.clone()
    };
    *one == other
}
