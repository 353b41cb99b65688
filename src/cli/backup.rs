//! `backup`: copies the database, while a service may be using it.

use intentframe_credentials::VaultError;
use intentframe_credentials::metadata::Snapshot;
use intentframe_credentials::text::counted;

use super::local::{Local, create_whole};
use super::prelude::*;

/// Copy the database to a new file, also while the service runs.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "backup", help_triggers("-h", "--help"))]
#[argh(note = "The copy is the database as it was at one moment, in a file that only you can\n\
            read. It has names, times and previews. It has no values, unless the backend is\n\
            `sealed`: then they are in it, encrypted. To restore it, stop the service, put it\n\
            in the place of credentials.db in the data directory, and remove the files\n\
            credentials.db-wal and credentials.db-shm.")]
pub struct Backup {
    /// the data directory of the service (INTENTFRAME_DATA_DIR, else ~/.intentframe/data)
    #[argh(option, arg_name = "path")]
    data_dir: Option<PathBuf>,

    /// the file to create; an existing one is not replaced
    #[argh(positional)]
    file: PathBuf,
}

pub fn run(args: &Backup, context: &Context) -> Result<(), Failure> {
    let database = Local::new(context, args.data_dir.as_deref(), None, None)?.database;
    let copied = create_whole(&args.file, |temporary, _| {
        let copied = Snapshot::open(&database).and_then(|it| it.copy_to(temporary));
        Ok(copied.map_err(VaultError::from)?)
    })?;
    let values = match copied.sealed_values {
        0 => "No values are in it: they stay in the backend, which needs a backup of its own.",
        _ => "Values are in it, sealed: to read them takes the key, which is not in it.",
    };
    output::text(&format!(
        "{}: the metadata of {}\n{values}\n",
        output::escaped(&args.file.to_string_lossy()),
        counted(copied.credentials, "credential")
    ))
}
