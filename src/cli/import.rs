//! `import`: stores the credentials of an export.

use std::fs::File;
use std::io::{BufReader, Seek as _};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use argh::FromArgs;
use indicatif::{ProgressBar, ProgressFinish};
use intentframe_credentials::VaultError;
use intentframe_credentials::export_file::{Entry, ExportError, Header, Reader};
use intentframe_credentials::service::VaultService;

use super::Context;
use super::export::{check, is_same, open};
use super::failure::{Failure, NOT_FOUND, cannot};
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

    /// read the passphrase of the backend sealed from this file descriptor
    #[argh(option, arg_name = "number")]
    vault_passphrase_fd: Option<i32>,

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
    let shown = args.file.display();
    let unusable = |error: ExportError| {
        let code = if matches!(error, ExportError::Io(_)) { 5 } else { 2 };
        Failure::new(code, format!("{shown}: {error}")).hint("nothing was changed")
    };
    let failed = || cannot(format!("read {shown}"));
    let mut file = File::open(&args.file).map_err(failed())?;
    let rewound = |file: &mut File| {
        file.rewind().and_then(|()| file.try_clone()).map(BufReader::new).map_err(failed())
    };
    let header = Header::read(&mut rewound(&mut file)?).map_err(unusable)?;
    let needs_passphrase = Some(header.needs_passphrase());
    let key = seal::key_of_export(
        args.key_file.as_deref(),
        args.passphrase_fd,
        needs_passphrase,
        context,
    )?;
    let credentials = check(rewound(&mut file)?, &key).map_err(unusable)?;

    let local = Local::new(context, None, args.data_dir.as_deref(), args.backend.clone())?;
    let service = open(local, args.vault_passphrase_fd, args.dry_run, context)?;
    let mut input = rewound(&mut file)?;
    let header = Header::read(&mut input).map_err(unusable)?;
    let entries = Reader::new(input, header, &key).map_err(unusable)?;
    let entries =
        entries.map(|entry| entry.map_err(|error| Failure::other(format!("{shown}: {error}"))));
    let bar = ProgressBar::new(credentials).with_finish(ProgressFinish::AndClear);
    Sink::new(service, args.replace, args.dry_run).take_all(bar.wrap_iter(entries))
}

/// Stores credentials from any source, unless they are there already.
pub struct Sink {
    service: VaultService,
    replaces: bool,
    is_dry_run: bool,
    stored: u64,
    same: u64,
    /// Credentials that are different, or could not be stored, and why.
    conflicts: Vec<String>,
}

impl Sink {
    pub fn new(service: VaultService, replaces: bool, is_dry_run: bool) -> Self {
        Self { service, replaces, is_dry_run, stored: 0, same: 0, conflicts: Vec::new() }
    }

    /// Takes one after the other, until SIGINT or SIGTERM arrives. Prints a report at the end.
    pub fn take_all(
        mut self,
        mut entries: impl Iterator<Item = Result<Entry, Failure>>,
    ) -> Result<(), Failure> {
        let stop = signals::stop_flag().map_err(cannot("handle signals"))?;
        let taken = entries.try_for_each(|entry| {
            if stop.load(Ordering::Relaxed) {
                return Err(Failure::new(130, "interrupted; the same command continues"));
            }
            self.take(&entry?)
        });
        let would = if self.is_dry_run { "would be " } else { "" };
        output::text(&format!(
            "{} {would}stored, {} are there already, {} conflicts\n",
            self.stored,
            self.same,
            self.conflicts.len()
        ))?;
        taken?;
        self.service.close().map_err(Failure::other)?;
        match self.conflicts.as_slice() {
            [] => Ok(()),
            names => {
                Err(Failure::new(NOT_FOUND, names.join("\n"))
                    .hint("--replace replaces what is there"))
            }
        }
    }

    fn take(&mut self, entry: &Entry) -> Result<(), Failure> {
        let at = &entry.record.at;
        let is_free = match self.service.look(at) {
            Ok((_, None)) => true,
            Ok((record, Some(value))) if value.expose() == entry.value.expose() => match record {
                Some(record) if is_same(&record, &entry.record) => {
                    self.same += 1;
                    return Ok(());
                }
                // A value that nothing lists gets its metadata.
                record => record.is_none(),
            },
            Ok(_) | Err(VaultError::ReadFailed { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !is_free && !self.replaces {
            self.conflicts.push(format!("{at}: another value or other metadata is there"));
            return Ok(());
        }
        match if self.is_dry_run { Ok(()) } else { self.store(entry) } {
            Ok(()) => self.stored += 1,
            Err(error @ VaultError::StoreFailed { .. }) => self.conflicts.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Stores it, and reads it again.
    fn store(&self, entry: &Entry) -> Result<(), VaultError> {
        self.service.import(entry.record.clone(), &entry.value)?;
        match self.service.look(&entry.record.at)? {
            (Some(record), Some(value))
                if is_same(&record, &entry.record) && value.expose() == entry.value.expose() =>
            {
                Ok(())
            }
            _ => Err(VaultError::StoreFailed {
                at: entry.record.at.clone(),
                reason: "the backend returns something else than was stored".to_owned(),
            }),
        }
    }
}
