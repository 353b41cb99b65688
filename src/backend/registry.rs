//! The names that `--backend` knows, and what each one makes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, RwLock};
use std::time::Duration;

use crate::error::{Field, VaultError};
use crate::secret::SecretWatch;
use crate::settings::Environment;

#[cfg(feature = "keyring")]
use super::KeyringVault;
#[cfg(all(unix, feature = "client"))]
use super::ServiceVault;
use super::{CredentialVault, EnvVault};
#[cfg(all(unix, feature = "hashicorp"))]
use super::{HashiCorpOptions, HashiCorpVault};

/// What a backend may be made from. Read once, at the edge of the process; a backend
/// looks at nothing else.
#[derive(Debug)]
pub struct BackendOptions {
    /// The process environment as it was at start-up.
    pub environment: Environment,
    /// How long one call to the operating system's keyring may take.
    pub keyring_timeout: Duration,
    /// Hears of the secrets that a backend holds for itself: tokens, not values.
    pub secret_watch: Option<SecretWatch>,
    /// The socket that the process listens on itself, to which a backend that forwards must
    /// not lead back.
    pub own_socket: Option<PathBuf>,
}

impl BackendOptions {
    /// The defaults, over `environment`: 30 s for a keyring call.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            keyring_timeout: Duration::from_secs(30),
            secret_watch: None,
            own_socket: None,
        }
    }
}

/// Makes a backend.
pub type BackendFactory = fn(&BackendOptions) -> Result<Arc<dyn CredentialVault>, VaultError>;

fn registry() -> &'static RwLock<BTreeMap<String, BackendFactory>> {
    static REGISTRY: OnceLock<RwLock<BTreeMap<String, BackendFactory>>> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let built_in: &[(&str, BackendFactory)] = &[
            ("env", |options| Ok(Arc::new(EnvVault::new(options.environment.clone())))),
            #[cfg(all(unix, feature = "hashicorp"))]
            ("hashicorp", |options| {
                let secret_watch = options.secret_watch.clone();
                let unset = HashiCorpOptions { secret_watch, ..HashiCorpOptions::default() };
                Ok(Arc::new(HashiCorpVault::new(unset, &options.environment)?))
            }),
            #[cfg(feature = "keyring")]
            ("keyring", |options| Ok(Arc::new(KeyringVault::new(options.keyring_timeout)))),
            #[cfg(all(unix, feature = "client"))]
            ("service", |options| Ok(Arc::new(ServiceVault::from_options(options)?))),
        ];
        RwLock::new(built_in.iter().map(|&(name, make)| (name.to_owned(), make)).collect())
    })
}

/// Adds a backend under `name`, for [`create_vault`] to find.
///
/// # Errors
///
/// [`VaultError::ValidationFailed`] when the name is taken: a backend that holds
/// secrets is never swapped for another behind its users' backs.
pub fn register_backend(name: &str, factory: BackendFactory) -> Result<(), VaultError> {
    let mut backends = registry().write().unwrap_or_else(std::sync::PoisonError::into_inner);
    if backends.contains_key(name) {
        return Err(VaultError::ValidationFailed {
            field: Field::Backend,
            reason: format!("the name {name:?} is taken; choose another"),
        });
    }
    backends.insert(name.to_owned(), factory);
    Ok(())
}

/// The names that [`create_vault`] knows, sorted.
#[must_use]
pub fn registered_backends() -> Vec<String> {
    registry().read().unwrap_or_else(std::sync::PoisonError::into_inner).keys().cloned().collect()
}

/// Makes the backend that is registered as `name`.
///
/// # Errors
///
/// [`VaultError::ValidationFailed`], listing the registered names, when there is none of
/// that name; else what the backend's own constructor says.
pub fn create_vault(
    name: &str,
    options: &BackendOptions,
) -> Result<Arc<dyn CredentialVault>, VaultError> {
    let factory =
        registry().read().unwrap_or_else(std::sync::PoisonError::into_inner).get(name).copied();
    match factory {
        Some(make) => make(options),
        None => Err(VaultError::ValidationFailed {
            field: Field::Backend,
            reason: format!(
                "there is none named {name:?}; registered: {}",
                registered_backends().join(", ")
            ),
        }),
    }
}
