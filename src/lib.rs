//! A local vault that keeps credentials for cooperating processes.

#[cfg(unix)]
pub mod client;
#[cfg(unix)]
pub mod daemon;
pub mod environment;
pub mod error;
pub mod metadata;
pub mod model;
pub mod paths;
pub mod peer;
#[cfg(unix)]
pub mod router;
pub mod secret;
#[cfg(unix)]
pub mod server;
pub mod service;
pub mod time;
pub mod vault;

pub use environment::Environment;
pub use error::VaultError;
pub use model::{
    CredentialRecord, CredentialRef, DeliveryMode, MaskedSummary, Namespace, RuntimeEnvEntry,
    StoreRequest, mask_value,
};
pub use secret::Secret;
pub use vault::{
    BackendFactory, BackendOptions, CredentialVault, create_vault, register_backend,
    registered_backends,
};
