//! A local vault that keeps credentials for cooperating processes.
//!
//! # A guided tour
//!
//! A request travels down this list. Each module knows the next one, never the one before.
//!
//! ```text
//! server     sockets, connections, HTTP                    bytes in, bytes out
//!    |
//! router     access, method and path, request bodies       request in, answer out
//!    |
//! service    the order of writes, and the undo of each     VaultService
//!    |     \
//! backend  metadata      the values; everything else known about them
//! ```
//!
//! - [`model`] has the types that all modules share: [`Namespace`], [`CredentialRef`],
//!   [`CredentialRecord`], [`MaskedSummary`], [`StoreRequest`]. A value is a [`Secret`].
//! - [`backend`] has the trait [`CredentialVault`], its implementations, and the registry
//!   behind [`create_vault`] and [`register_backend`].
//! - `daemon` wires everything together: settings in, a running vault out. A host program
//!   starts there; so do the binary's `serve` and `dev`.
//! - `client` talks to a running vault from another process; `spawn` starts a process with
//!   its credentials in its environment.
//! - `redact` keeps values out of streams, log lines and documents.
//!
//! # Features
//!
//! By default everything is built. With `default-features = false`, a program chooses what it
//! uses: `client` (the blocking client; no database, no keyring, no TLS), `server` (the
//! service, to embed), and the backends `keyring` and `hashicorp`. The backend `env` is always
//! there.
//!
//! # A first look
//!
//! Everything is synchronous. The caller reads the environment once, into an
//! [`Environment`]; no other module reads it.
//!
//! ```
//! use intentframe_credentials::{
//!     BackendOptions, CredentialRef, Environment, Secret, create_vault,
//! };
//!
//! # fn main() -> Result<(), intentframe_credentials::VaultError> {
//! let vault = create_vault("env", &BackendOptions::new(Environment::default()))?;
//! let at = CredentialRef::parse("openai", "api_key")?;
//! vault.store(&at, &Secret::new("sk-made-up".to_owned()))?;
//! let value = vault.get(&at)?.expect("it was just stored");
//! assert_eq!(value.expose(), "sk-made-up");
//! assert_eq!(format!("{value:?}"), "[REDACTED]");
//! # Ok(())
//! # }
//! ```

#[cfg(all(unix, feature = "server"))]
pub mod audit;
pub mod backend;
pub mod backoff;
#[cfg(all(unix, feature = "server"))]
pub mod caller;
#[cfg(feature = "server")]
mod changes;
#[cfg(all(unix, feature = "client"))]
pub mod client;
#[cfg(all(unix, feature = "server"))]
pub mod daemon;
pub mod env_name;
pub mod error;
#[cfg(all(unix, feature = "sealed"))]
pub mod export_file;
#[cfg(feature = "server")]
pub mod metadata;
pub mod model;
#[cfg(all(unix, feature = "server"))]
pub mod ownership;
pub mod peer;
#[cfg(all(unix, feature = "server"))]
pub mod policy;
#[cfg(feature = "server")]
pub mod random;
#[cfg(feature = "redact")]
pub mod redact;
#[cfg(all(unix, feature = "server"))]
pub mod router;
#[cfg(all(unix, feature = "sealed"))]
pub mod seal;
pub mod secret;
#[cfg(all(unix, feature = "server"))]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
pub mod settings;
#[cfg(feature = "server")]
mod shared;
#[cfg(all(unix, feature = "client"))]
pub mod spawn;
mod sync;
pub mod text;
pub mod time;
#[cfg(all(unix, any(feature = "client", feature = "hashicorp")))]
mod unix_socket;

pub use backend::{
    BackendFactory, BackendOptions, BackendStatus, CredentialVault, RenewalState, RenewalStatus,
    create_vault, register_backend, registered_backends,
};
#[cfg(all(unix, feature = "client"))]
pub use client::{ClientError, VaultClient};
pub use error::VaultError;
pub use model::{
    CredentialRecord, CredentialRef, DeliveryMode, MaskedSummary, Namespace, RecordSummary,
    RuntimeEnvEntry, StoreRequest, mask_value,
};
#[cfg(feature = "redact")]
pub use redact::{CredentialScrubber, REDACTED_VALUE, SENSITIVE_KEYS, redact_credentials};
pub use secret::{Secret, SecretWatch};
pub use settings::Environment;
