//! `serve`: from options and environment to a running service.

use std::path::PathBuf;
use std::sync::Arc;

use intentframe_credentials::{BackendOptions, CredentialVault, Environment, create_vault, paths};

use super::args::Serve;
use super::failure::Failure;

/// The setting that names the backend.
const BACKEND_VARIABLE: &str = "IF_VAULT_BACKEND";

/// The backend where no setting names one.
const DEFAULT_BACKEND: &str = "keyring";

/// Serves until told to stop.
pub fn run(args: &Serve, environment: &Environment) -> Result<(), Failure> {
    let socket = paths::socket(args.socket.as_deref(), environment).map_err(Failure::usage)?;
    let data_dir =
        paths::data_dir(args.data_dir.as_deref(), environment).map_err(Failure::usage)?;
    let backend = args.backend.as_deref().or_else(|| environment.setting(BACKEND_VARIABLE));
    let options = BackendOptions::new(environment.clone());
    let vault =
        create_vault(backend.unwrap_or(DEFAULT_BACKEND), &options).map_err(Failure::usage)?;
    start(socket, data_dir, vault, workers(args.workers)?)
}

/// How many workers, where that is said; none at all cannot be.
pub fn workers(count: Option<usize>) -> Result<Option<usize>, Failure> {
    match count {
        Some(0) => Err(Failure::usage("--workers is at least 1")),
        count => Ok(count),
    }
}

/// Where the daemon is started.
fn start(
    socket: PathBuf,
    data_dir: PathBuf,
    vault: Arc<dyn CredentialVault>,
    workers: Option<usize>,
) -> Result<(), Failure> {
    let _ = (socket, data_dir, vault, workers);
    Err(Failure::other("this build has no service"))
}
