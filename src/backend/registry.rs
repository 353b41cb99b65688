//! The registry: the names that `--backend` accepts, and how each backend is made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use crate::error::{Field, VaultError};
use crate::secret::{Secret, SecretWatch};
use crate::settings::Environment;
use crate::sync::lock;

use super::{BUILT_IN, CredentialVault};

/// The settings that a backend is made from. They are read once, when the process starts; a
/// backend reads nothing else.
#[derive(Debug, Clone)]
pub struct BackendOptions {
    /// The process environment as it was when the process started.
    pub environment: Environment,
    /// How long one call to the operating system's keyring may take.
    pub keyring_timeout: Duration,
    /// Is told of the secrets that a backend holds for itself: tokens, not values.
    pub secret_watch: Option<SecretWatch>,
    /// The socket that this process listens on. A backend that forwards must not lead back
    /// to it.
    pub own_socket: Option<PathBuf>,
    /// The directory of the metadata database, for a backend that keeps its values there.
    pub data_dir: Option<PathBuf>,
    /// Whether the backend only reads, for a process beside a running service. A backend in the
    /// metadata database then leaves that to the other process.
    pub read_only: bool,
    /// The file with the key of the backend `sealed`.
    pub key_file: Option<PathBuf>,
    /// The passphrase of the backend `sealed`.
    pub passphrase: Option<Arc<Secret>>,
}

impl BackendOptions {
    /// The defaults, over `environment`: 30 s for a keyring call.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        let keyring_timeout = Duration::from_secs(30);
        Self {
            environment,
            keyring_timeout,
            secret_watch: None,
            own_socket: None,
            data_dir: None,
            read_only: false,
            key_file: None,
            passphrase: None,
        }
    }
}

/// Makes a backend.
pub type BackendFactory = fn(&BackendOptions) -> Result<Arc<dyn CredentialVault>, VaultError>;

static REGISTRY: LazyLock<Mutex<BTreeMap<String, BackendFactory>>> = LazyLock::new(|| {
    Mutex::new(BUILT_IN.iter().map(|&(name, make)| (name.to_owned(), make)).collect())
});

/// The error of a setting of a backend.
pub(super) fn invalid(reason: String) -> VaultError {
    VaultError::ValidationFailed { field: Field::Backend, reason }
}

/// Adds a backend under `name`, for [`create_vault`].
///
/// # Errors
///
/// [`VaultError::ValidationFailed`] if the name is taken. A backend that holds secrets is never
/// replaced without its users' knowledge.
pub fn register_backend(name: &str, factory: BackendFactory) -> Result<(), VaultError> {
    let mut backends = lock(&REGISTRY);
    if backends.contains_key(name) {
        return Err(invalid(format!("the name {name:?} is taken; choose another")));
    }
    backends.insert(name.to_owned(), factory);
    Ok(())
}

/// The names that [`create_vault`] accepts, sorted.
#[must_use]
pub fn registered_backends() -> Vec<String> {
    lock(&REGISTRY).keys().cloned().collect()
}

/// Makes the backend that is registered as `name`.
///
/// # Errors
///
/// [`VaultError::ValidationFailed`] if no backend has that name; the reason lists the names.
/// Otherwise the error of the backend's own constructor.
pub fn create_vault(
    name: &str,
    options: &BackendOptions,
) -> Result<Arc<dyn CredentialVault>, VaultError> {
    let factory = lock(&REGISTRY).get(name).copied();
    let Some(make) = factory else {
        let names = registered_backends().join(", ");
        return Err(invalid(format!("there is none named {name:?}; registered: {names}")));
    };
    let vault = make(options)?;
    if options.environment.setting("IF_VAULT_METADATA") == Some("vault")
        && vault.shared_metadata().is_none()
    {
        return Err(invalid("IF_VAULT_METADATA=vault needs the backend hashicorp".to_owned()));
    }
    Ok(vault)
}
