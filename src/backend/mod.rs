//! Backends: the trait [`CredentialVault`], its implementations, and the registry of names.

mod env;
mod finding;
#[cfg(all(unix, feature = "client"))]
mod forward;
#[cfg(all(unix, feature = "hashicorp"))]
mod hashicorp;
#[cfg(feature = "keyring")]
mod keyring;
mod registry;
#[cfg(all(unix, feature = "sealed"))]
mod sealed;
mod status;

pub use env::EnvVault;
pub use finding::Finding;
#[cfg(all(unix, feature = "client"))]
pub use forward::{ServiceVault, UPSTREAM_UID_VARIABLE, UPSTREAM_VARIABLE};
#[cfg(all(unix, feature = "hashicorp"))]
pub use hashicorp::HashiCorpVault;
#[cfg(feature = "keyring")]
pub use keyring::KeyringVault;
pub use registry::{
    BackendFactory, BackendOptions, create_vault, register_backend, registered_backends,
};
#[cfg(all(unix, feature = "sealed"))]
pub use sealed::{KEY_FILE, SealedVault};
pub use status::{BackendStatus, RenewalState, RenewalStatus};

use std::sync::Arc;

use crate::error::VaultError;
#[cfg(feature = "server")]
use crate::metadata::MetadataStore;
use crate::model::{
    CredentialRecord, CredentialRef, MaskedSummary, Namespace, RecordSummary, RuntimeEnvEntry,
    StoreRequest, Validity,
};
use crate::secret::Secret;

/// The backends of this crate. A host program adds its own with [`register_backend`].
const BUILT_IN: &[(&str, BackendFactory)] = &[
    ("env", |options| Ok(Arc::new(EnvVault::new(options.environment.clone())))),
    #[cfg(all(unix, feature = "hashicorp"))]
    ("hashicorp", |options| {
        Ok(Arc::new(HashiCorpVault::new(&options.environment, options.secret_watch.clone())?))
    }),
    #[cfg(feature = "keyring")]
    ("keyring", |options| Ok(Arc::new(KeyringVault::new(options.keyring_timeout)))),
    #[cfg(all(unix, feature = "sealed"))]
    ("sealed", |options| Ok(Arc::new(SealedVault::from_options(options)?))),
    #[cfg(all(unix, feature = "client"))]
    ("service", |options| Ok(Arc::new(ServiceVault::from_options(options)?))),
];

/// A store of values.
///
/// It knows nothing of metadata (but see [`MetadataKeeper`]). The service (`VaultService`)
/// keeps value and metadata consistent, in this order:
///
/// 1. One transaction commits the new metadata row (for a delete: its removal) and an *intent*:
///    the row before, the row after, and a salted hash of the new value.
/// 2. [`store`](Self::store) or [`delete`](Self::delete) is called.
/// 3. The caller gets its answer. The intent is removed with a later commit.
///
/// | the second step | the row | the intent |
/// |---|---|---|
/// | succeeds | stays | is removed |
/// | fails, and says that nothing has changed | is restored in one transaction; later, if the database cannot be written | is removed in the same |
/// | fails with [`BackendUnavailable`](VaultError::BackendUnavailable), or panics: the outcome is unknown | is restored | stays open |
/// | is interrupted by a crash | is settled at the next start | stays open |
///
/// An open intent is *settled* by asking for the value: if there is none, there is no row; if it has the hash of the new value, the row is the one after the change;
/// otherwise it is the one before, with the preview of the value that is there. This happens at
/// the start; before a change and before a read whose `allowed_consumers` decide; and in the
/// background, with growing pauses, until the backend answers. A change that was not made stays
/// open for ten seconds more, since a request may still be on its way to the backend.
///
/// An implementation therefore needs no undo of its own, but each call must do all or nothing:
/// if `store` or `delete` returns an error, the value is what it was before. The exception is
/// `BackendUnavailable`, after which it may also be the new one.
///
/// Where hosts share metadata ([`SharedMetadata`]), the record is written there between the first
/// and the second step, and is restored or settled like the row, before it. The rows are then a copy,
/// which is made equal before each listing.
///
/// A store whose values are in the metadata database ([`InDatabase`]) needs neither order nor undo:
/// value and metadata are one transaction.
///
/// Calls come from many threads and may block. Two calls for one credential never overlap if
/// one of them is a store or a delete.
pub trait CredentialVault: Send + Sync {
    /// The name in `/health`, such as `EnvVault`: that of the Python class it replaces.
    fn name(&self) -> &str;

    /// Whether calls may wait for a disk, a network, or another process. The service answers
    /// such calls on its blocking workers. A backend that only reads memory returns `false`.
    fn may_block(&self) -> bool {
        true
    }

    /// Whether values outlive the process. If not, an import is refused, and what a crash has
    /// interrupted is not settled.
    fn is_durable(&self) -> bool {
        true
    }

    /// The value of the credential, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`]; [`VaultError::ReadFailed`] if what is stored cannot
    /// be a value, for example because it is not UTF-8.
    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError>;

    /// Like [`get`](Self::get), when nobody waits for the value, at the start and in the
    /// background: a backend that would ask a person to unlock it is unavailable instead.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get).
    fn peek(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        self.get(at)
    }

    /// Stores the value, and replaces the earlier one if there is one.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`] or [`VaultError::StoreFailed`].
    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError>;

    /// Deletes the credential. Returns whether there was one.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`] or [`VaultError::DeleteFailed`].
    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError>;

    /// Whether there is a value. By default this reads it, for stores that
    /// cannot tell otherwise.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.get(at).map(|value| value.is_some())
    }

    /// The keys stored in the namespace, sorted.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError>;

    /// Checks before the service starts whether the store can be used. A backend that finds
    /// out with its first call anyway checks nothing here.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`], which may pass, or
    /// [`VaultError::ValidationFailed`] if a setting is wrong.
    fn check(&self) -> Result<(), VaultError> {
        Ok(())
    }

    /// The state of the store, for `/health`. Returns within a second, whatever the state.
    fn status(&self) -> BackendStatus {
        BackendStatus::default()
    }

    /// Examines what [`check`](Self::check) does not, for `credential-vault doctor`. It may take as
    /// long as a call, and changes nothing. Returns nothing if there is nothing to examine.
    fn diagnose(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// The store as the keeper of the metadata, if it is that too.
    fn metadata_keeper(&self) -> Option<&dyn MetadataKeeper> {
        None
    }

    /// The store as the place where hosts share metadata, if it is set up for that.
    fn shared_metadata(&self) -> Option<&dyn SharedMetadata> {
        None
    }

    /// The store as one in the metadata database, if it is that.
    #[cfg(feature = "server")]
    fn in_database(&self) -> Option<&dyn InDatabase> {
        None
    }

    /// Releases connections and threads. Later calls return
    /// [`VaultError::BackendUnavailable`] or still work. Closing twice is harmless.
    fn close(&self) {}
}

/// A store that keeps the metadata as well, as another service does. The vault then writes
/// no database of its own: listings come from here, and stores bring their metadata along.
pub trait MetadataKeeper {
    /// The summaries of all credentials or of one namespace, ordered by namespace and key.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn summaries(&self, namespace: Option<&Namespace>) -> Result<Vec<MaskedSummary>, VaultError>;

    /// The credentials that are delivered as environment variables.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn runtime_env(&self) -> Result<Vec<RuntimeEnvEntry>, VaultError>;

    /// All credentials with all their metadata, ordered by namespace and key.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn records(&self) -> Result<Vec<RecordSummary>, VaultError>;

    /// Notes the result of a validator. Returns whether the value is still the one that it checked.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], [`VaultError::BackendUnavailable`].
    fn note_validity(&self, at: &CredentialRef, result: Validity) -> Result<bool, VaultError>;

    /// Stores the value with its metadata.
    ///
    /// # Errors
    ///
    /// Those of [`CredentialVault::store`], and [`VaultError::ValidationFailed`].
    fn store_request(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), VaultError>;
}

/// A new record of a credential, or `None` to remove it.
pub type Revision = (CredentialRef, Option<CredentialRecord>);

/// A store that also keeps the metadata for all hosts that share it. Each host has a copy in its
/// database, for the time while the store is away.
///
/// All methods return [`VaultError::BackendUnavailable`] if the store does not answer or refuses.
pub trait SharedMetadata {
    /// The name of this host, for [`CredentialRecord::stored_by`].
    fn node(&self) -> &str;

    /// All records, ordered by namespace and key. No part of it is older than the call.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn read_all(&self) -> Result<Vec<CredentialRecord>, VaultError>;

    /// The records of a namespace, ordered by key.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn read_namespace(&self, namespace: &Namespace) -> Result<Vec<CredentialRecord>, VaultError>;

    /// Stores the record of a credential, or removes it.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`]; [`VaultError::StoreFailed`] or
    /// [`VaultError::DeleteFailed`] if the store refuses, and nothing has changed.
    fn write(
        &self,
        at: &CredentialRef,
        record: Option<&CredentialRecord>,
    ) -> Result<(), VaultError>;

    /// Makes the changes that `revise` wants of the records of a namespace. Nobody else changes
    /// them in between: if that happens, `revise` is called again.
    ///
    /// # Errors
    ///
    /// [`VaultError::BackendUnavailable`].
    fn revise(
        &self,
        namespace: &Namespace,
        revise: &dyn Fn(&[CredentialRecord]) -> Vec<Revision>,
    ) -> Result<(), VaultError>;
}

/// A store whose values are in the metadata database, so that value and metadata change in one
/// transaction.
#[cfg(feature = "server")]
pub trait InDatabase {
    /// The database, which is opened, or created, by the first call.
    ///
    /// # Errors
    ///
    /// [`VaultError::Metadata`], or [`VaultError::ValidationFailed`] for a wrong or missing key.
    fn database(&self) -> Result<Arc<MetadataStore>, VaultError>;

    /// Replaces the value and the metadata of a credential; `None` deletes them.
    ///
    /// # Errors
    ///
    /// [`VaultError::Metadata`], [`VaultError::StoreFailed`]; nothing has changed.
    fn put(
        &self,
        at: &CredentialRef,
        record: Option<CredentialRecord>,
        value: Option<&Secret>,
    ) -> Result<(), VaultError>;
}
