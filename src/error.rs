//! The error hierarchy of the vault. No variant ever carries a value, a token or a
//! request body.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::CredentialRef;

/// What can go wrong between a request and the store that keeps the value.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is no such credential.
    #[error("no credential {0}")]
    NotFound(CredentialRef),

    /// The backend answered a read with something that is no value.
    #[error("{at} cannot be read: {reason}")]
    ReadFailed {
        /// Which credential.
        at: CredentialRef,
        /// Why, and what to do.
        reason: String,
    },

    /// The backend refused to store; the credential is as it was.
    #[error("{at} was not stored: {reason}")]
    StoreFailed {
        /// Which credential.
        at: CredentialRef,
        /// Why, and what to do.
        reason: String,
    },

    /// The backend refused to delete; the credential is as it was.
    #[error("{at} was not deleted: {reason}")]
    DeleteFailed {
        /// Which credential.
        at: CredentialRef,
        /// Why, and what to do.
        reason: String,
    },

    /// An input is not what it has to be; nothing was touched.
    #[error("{field}: {reason}")]
    ValidationFailed {
        /// Which input.
        field: Field,
        /// What it has to be.
        reason: String,
    },

    /// The backend cannot be reached, is locked, or did not answer in time.
    #[error("the {backend} backend is unavailable: {reason}")]
    BackendUnavailable {
        /// The backend's registered name, such as `keyring`.
        backend: String,
        /// Why, and what to do.
        reason: String,
        /// When it is worth trying again.
        retry_after: Duration,
    },

    /// The metadata database failed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// What can go wrong with the metadata database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The file is not one that this service may use; it was not touched.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The database file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A statement failed: the disk is full, the file is locked, a row is unreadable.
    #[error("the metadata database failed: {0}")]
    Failed(String),
    /// The store has been closed.
    #[error("the metadata database is closed")]
    Closed,
}

/// The input that a [`VaultError::ValidationFailed`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The namespace.
    Namespace,
    /// The key.
    Key,
    /// The value.
    Value,
    /// The name of a backend.
    Backend,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "namespace",
            Self::Key => "key",
            Self::Value => "value",
            Self::Backend => "backend",
        })
    }
}
