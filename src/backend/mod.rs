//! Where values live: the trait [`CredentialVault`], its implementations, and the
//! registry that names them.

mod env;
#[cfg(all(unix, feature = "client"))]
mod forward;
#[cfg(all(unix, feature = "hashicorp"))]
mod hashicorp;
#[cfg(feature = "keyring")]
mod keyring;
mod registry;
mod status;

pub use env::EnvVault;
#[cfg(all(unix, feature = "client"))]
pub use forward::{ServiceVault, UPSTREAM_UID_VARIABLE, UPSTREAM_VARIABLE};
#[cfg(all(unix, feature = "hashicorp"))]
pub use hashicorp::{HashiCorpOptions, HashiCorpVault};
#[cfg(feature = "keyring")]
pub use keyring::KeyringVault;
pub use registry::{
    BackendFactory, BackendOptions, create_vault, register_backend, registered_backends,
};
pub use status::{BackendStatus, RenewalState, RenewalStatus};

use crate::error::VaultError;
use crate::model::{CredentialRef, MaskedSummary, Namespace, RuntimeEnvEntry, StoreRequest};
use crate::secret::Secret;

/// The metadata of a store that keeps it itself, such as another service. What the wire
/// says of credentials then comes from here, and nothing is written to a database of our own.
pub trait Catalogue {
    /// All credentials, or those of one namespace, in the order of namespace and key.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn summaries(&self, namespace: Option<&Namespace>) -> Result<Vec<MaskedSummary>, VaultError>;

    /// Those delivered as environment variables.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn runtime_env(&self) -> Result<Vec<RuntimeEnvEntry>, VaultError>;
}

/// A store of values. But for one that has a [`Catalogue`] it knows nothing of metadata; the
/// service (`VaultService`) keeps the two consistent:
///
/// - **store**: the metadata row is committed first, then [`store`](Self::store) is
///   called; if it fails, the row is put back as it was (or removed, if there was none).
/// - **delete**: the row is removed first, then [`delete`](Self::delete) is called; if
///   it fails, the row is put back.
///
/// So an implementation has only to be all or nothing in each call: when `store` or
/// `delete` gives an error, the value is what it was before, as far as that can be known
/// (a deadline that passes leaves the outcome open; the error then says so).
///
/// Calls come from many threads at once; two calls for one credential do not overlap if
/// one of them is a store or a delete.
pub trait CredentialVault: Send + Sync {
    /// The name in `/health`, such as `EnvVault`: that of the Python class it replaces.
    fn name(&self) -> &str;

    /// Whether calls may wait (for a disk, a network, another process). The service
    /// keeps such calls from holding up requests that need no backend. An
    /// implementation that only looks into memory says `false`.
    fn may_block(&self) -> bool {
        true
    }

    /// The value of the credential, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`], or [`VaultError::ReadFailed`] when what is
    /// stored cannot be a value (it is not UTF-8, say).
    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError>;

    /// Stores the value, over an earlier one if there is one.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`], or [`VaultError::StoreFailed`].
    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError>;

    /// Stores the value with what is to be known of it. A store that keeps values alone, as
    /// most do, stores the value.
    ///
    /// # Errors
    ///
    /// Those of [`store`](Self::store), and [`VaultError::ValidationFailed`].
    fn store_request(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), VaultError> {
        self.store(at, &request.value)
    }

    /// Deletes the credential, and says whether there was one.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`], or [`VaultError::DeleteFailed`].
    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError>;

    /// Whether there is a value. Does not read it where the store allows that.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError>;

    /// The keys stored in the namespace, sorted.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError>;

    /// Finds out whether the store can be used, before the service starts. An
    /// implementation that tells so with its first call says nothing here.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`], which may pass, or
    /// [`VaultError::ValidationFailed`], when something is set up wrongly.
    fn check(&self) -> Result<(), VaultError> {
        Ok(())
    }

    /// How the store is, for `/health`; within a moment, whatever state it is in.
    fn status(&self) -> BackendStatus {
        BackendStatus::default()
    }

    /// The metadata, when this store keeps it.
    fn catalogue(&self) -> Option<&dyn Catalogue> {
        None
    }

    /// Lets go of connections and threads. Calls after it give
    /// [`VaultError::BackendUnavailable`] or work on; closing twice is harmless.
    fn close(&self);
}
