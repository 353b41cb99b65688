//! Where values live: the trait [`CredentialVault`], its implementations, and the
//! registry that names them.

mod env;
#[cfg(all(unix, feature = "hashicorp"))]
mod hashicorp;
#[cfg(feature = "keyring")]
mod keyring;
mod registry;
#[cfg(all(unix, feature = "client"))]
mod service;
mod status;

pub use env::EnvVault;
#[cfg(all(unix, feature = "hashicorp"))]
pub use hashicorp::{HashiCorpOptions, HashiCorpVault};
#[cfg(feature = "keyring")]
pub use keyring::KeyringVault;
pub use registry::{
    BackendFactory, BackendOptions, create_vault, register_backend, registered_backends,
};
#[cfg(all(unix, feature = "client"))]
pub use service::{ServiceVault, UPSTREAM_UID_VARIABLE, UPSTREAM_VARIABLE};
pub use status::{BackendStatus, RenewalState, RenewalStatus};

use std::fmt;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::error::VaultError;
use crate::model::{CredentialRef, MaskedSummary, Namespace, RuntimeEnvEntry, StoreRequest};
use crate::secret::Secret;

/// How somebody who waits without a thread is told to go on.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// A read that waits without a thread, for a request that others may wait for as well.
pub trait JoinedRead: fmt::Debug + Send {
    /// Goes on with it as far as that takes no waiting, and says whether it is time to
    /// [`finish`](Self::finish). If not, it is to be called again when the store says so by
    /// its [`Wake`], when its [`source`](Self::source) can be read, or when its
    /// [`time_left`](Self::time_left) has passed.
    fn advance(&mut self) -> bool;

    /// How long, less than a millisecond, it is put off in the hope that others come who
    /// share it; then it is to be advanced.
    fn put_off(&self) -> Option<Duration> {
        None
    }

    /// What tells when to advance it. That may be another one each time it was advanced.
    #[cfg(unix)]
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// How long nothing has to come of it.
    fn time_left(&self) -> Option<Duration> {
        None
    }

    /// Whether the outcome is there, so that finishing does not block.
    fn is_done(&self) -> bool;

    /// The outcome, as [`CredentialVault::get`] gives it.
    ///
    /// # Errors
    ///
    /// Those of [`CredentialVault::get`].
    fn finish(self: Box<Self>) -> Result<Option<Secret>, VaultError>;
}

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

    /// Whether a read keeps a thread waiting, as a rule: not where [`join`](Self::join) mostly
    /// spares that.
    fn reads_keep_threads(&self) -> bool {
        self.may_block()
    }

    /// The value of the credential, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`], or [`VaultError::ReadFailed`] when what is
    /// stored cannot be a value (it is not UTF-8, say).
    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError>;

    /// Begins a request for the credential's value, or joins one that others wait for as
    /// well, instead of waiting in [`get`](Self::get). `wake` is called from
    /// any thread, when it is worth to [advance](JoinedRead::advance) it.
    ///
    /// `None`, with `wake` dropped: that would take waiting, or this store knows no such
    /// thing; call `get`.
    fn join(&self, at: &CredentialRef, wake: Wake) -> Option<Box<dyn JoinedRead>> {
        let (_, _) = (at, wake);
        None
    }

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
