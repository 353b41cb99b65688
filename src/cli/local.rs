//! The settings that `serve` shares with the commands that work on its files and its backend.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use intentframe_credentials::daemon::DATABASE;
use intentframe_credentials::{BackendOptions, SecretWatch, ownership, settings};

use super::Context;
use super::failure::{Failure, cannot};

/// Where the service that is started with the same options and environment keeps everything.
pub struct Local {
    pub data_dir: PathBuf,
    /// The database in `data_dir`.
    pub database: PathBuf,
    /// The name of the backend, which may be wrong.
    pub backend: String,
    /// For `create_vault`, which reads nothing yet.
    pub backend_options: BackendOptions,
}

impl Local {
    /// From the options `--data-dir`, `--backend` and `--key-file`, else from the environment.
    pub fn new(
        context: &Context,
        data_dir: Option<&Path>,
        backend: Option<String>,
        key_file: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let environment = &context.environment;
        let backend =
            backend.or_else(|| environment.setting("IF_VAULT_BACKEND").map(str::to_owned));
        let data_dir = match settings::data_dir(data_dir, environment) {
            // It keeps no database, and so needs no home directory.
            Err(_) if backend.as_deref() == Some("service") => PathBuf::new(),
            data_dir => data_dir?,
        };
        let mut backend_options = BackendOptions::new(environment.clone());
        backend_options.data_dir = Some(data_dir.clone());
        backend_options.key_file = context.setting_path(key_file, "IF_VAULT_KEY_FILE")?;
        let secrets = context.secrets.clone();
        backend_options.secret_watch =
            Some(SecretWatch::new(move |secret| secrets.register(secret)));
        Ok(Self {
            database: data_dir.join(DATABASE),
            data_dir,
            backend: backend.unwrap_or_else(|| "keyring".to_owned()),
            backend_options,
        })
    }
}

/// Creates a file (mode 0600) as a whole, in a directory where only this user and root can create
/// it; see [`ownership::create_whole`].
pub fn create_whole<T>(
    file: &Path,
    write: impl FnOnce(&Path, &File) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let name = file.display();
    let exists = || Failure::usage(format!("{name} exists already; choose another file"));
    if file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    ownership::check_directory(ownership::parent(file)).map_err(Failure::usage)?;
    match ownership::create_whole(file, 0o600, write) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists()),
        created => created.map_err(cannot(format!("write {name}")))?,
    }
}
