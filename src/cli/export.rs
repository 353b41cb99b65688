//! `export`: writes all credentials to an encrypted file.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressFinish};
use intentframe_credentials::export_file::{Entry, ExportError, Header, Reader, Writer};
use intentframe_credentials::metadata::MetadataStore;
use intentframe_credentials::seal::KeySource;
use intentframe_credentials::service::VaultService;
use intentframe_credentials::text::counted;
use intentframe_credentials::{VaultError, create_vault};

use super::failure::OTHER_DATA_DIR;
use super::local::{Local, create_whole};
use super::prelude::*;
use super::seal;

/// Write all credentials, with values and metadata, to a new encrypted file.
#[derive(ArgsInfo, Default, FromArgs)]
#[argh(subcommand, name = "export", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault export --key-file vault-export.key vault.export\n\
               credential-vault export --backend hashicorp --dry-run vault.export",
    note = "Without a key file and --passphrase-fd, it asks for a passphrase. Without the key,\n\
            nobody can read the export. The service may be running. `import` reads the file."
)]
pub struct Export {
    /// the data directory of the service (INTENTFRAME_DATA_DIR, else ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    pub data_dir: Option<PathBuf>,

    /// the backend of the service (IF_VAULT_BACKEND, else keyring)
    #[argh(option, arg_name = "name")]
    pub backend: Option<String>,

    /// encrypt with the key in this file, which is made if it is missing
    #[argh(option, arg_name = "path")]
    pub key_file: Option<PathBuf>,

    /// encrypt with the passphrase from this file descriptor
    #[argh(option, arg_name = "number")]
    pub passphrase_fd: Option<i32>,

    /// read everything, print the names, and write nothing
    #[argh(switch)]
    pub dry_run: bool,

    /// the file to create; an existing one is not replaced
    #[argh(positional)]
    pub file: PathBuf,
}

pub fn run(args: Export, context: &Context) -> Result<(), Failure> {
    let local = Local::new(context, args.data_dir.as_deref(), args.backend, None)?;
    if !local.database.exists() {
        let directory = local.data_dir.display();
        return Err(
            Failure::usage(format!("there is no database in {directory}")).hint(OTHER_DATA_DIR)
        );
    }
    let service = open(local, true, context)?;
    let records = service.records()?;
    let mut missing = Vec::new();
    let mut skip = |why: String| {
        missing.push(why);
        None
    };
    let entries = records.iter().filter_map(|record| match service.look(&record.at) {
        // Another fleet has other hosts, and validators of its own.
        Ok((Some(mut record), Some(value))) => {
            (record.stored_by, record.valid) = (None, None);
            Some(Ok(Entry { record, value }))
        }
        Ok((Some(_), None)) => skip(format!("{}: it has no value", record.at)),
        // It was deleted meanwhile.
        Ok((None, _)) => None,
        Err(error @ VaultError::ReadFailed { .. }) => skip(error.to_string()),
        Err(error) => Some(Err(Failure::from(error))),
    });
    let bar = ProgressBar::new(records.len() as u64).with_finish(ProgressFinish::AndClear);
    let entries = bar.wrap_iter(entries);
    let report = if args.dry_run {
        let name = |entry: Entry| output::escaped(&entry.record.at.to_string()).into_owned() + "\n";
        entries.map(|entry| entry.map(name)).collect::<Result<String, _>>()?
    } else {
        let credentials = create_whole(&args.file, |temporary, output| {
            let key = seal::key(args.key_file, args.passphrase_fd, None, context)?;
            write(temporary, output, &key, entries)
        })?;
        let file = args.file.to_string_lossy();
        format!("{}: {}\n", output::escaped(&file), counted(credentials, "credential"))
    };
    output::text(&report)?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::other(format!("not all can be exported:\n{}", missing.join("\n"))))
}

/// The vault of the data directory. With `read_only`, a service may be using it.
pub fn open(mut local: Local, read_only: bool, context: &Context) -> Result<VaultService, Failure> {
    local.backend_options.read_only = read_only;
    seal::unlock(&mut local, None, context)?;
    let vault = create_vault(&local.backend, &local.backend_options)?;
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
        service.start()?;
        service.settle();
    }
    Ok(service)
}

/// Writes a file, and reads it again. Returns the number of credentials.
fn write(
    file: &Path,
    output: &File,
    key: &KeySource,
    mut entries: impl Iterator<Item = Result<Entry, Failure>>,
) -> Result<u64, Failure> {
    let unusable = |error: ExportError| Failure::other(format!("{}: {error}", file.display()));
    let mut writer = Writer::new(output, key).map_err(unusable)?;
    entries.try_for_each(|entry| writer.put(entry?).map_err(unusable))?;
    writer.finish().map_err(unusable)?;
    check(file, key).map_err(unusable)
}

/// Reads a whole file. Returns the number of credentials.
pub fn check(file: &Path, key: &KeySource) -> Result<u64, ExportError> {
    read(file, key)?.try_fold(0, |count, entry| entry.map(|_| count + 1))
}

/// The credentials of a file.
pub fn read(file: &Path, key: &KeySource) -> Result<Reader<BufReader<File>>, ExportError> {
    let mut input = BufReader::new(File::open(file)?);
    let header = Header::read(&mut input)?;
    Reader::new(input, header, key)
}
