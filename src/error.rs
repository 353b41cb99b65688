//! The errors of the vault. No variant carries a value, a token or a request body.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::model::CredentialRef;

/// An error of a request, the backend or the database.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VaultError {
    /// There is no such credential.
    #[error("no credential {0}")]
    NotFound(CredentialRef),

    /// The backend holds something under this name that is not a value.
    #[error("{at} cannot be read: {reason}")]
    ReadFailed {
        /// The credential.
        at: CredentialRef,
        /// Why, and what to do.
        reason: String,
    },

    /// The backend refused to store; the credential is unchanged.
    #[error("{at} was not stored: {reason}")]
    StoreFailed {
        /// The credential.
        at: CredentialRef,
        /// Why, and what to do.
        reason: String,
    },

    /// The backend refused to delete; the credential is unchanged.
    #[error("{at} was not deleted: {reason}")]
    DeleteFailed {
        /// The credential.
        at: CredentialRef,
        /// Why, and what to do.
        reason: String,
    },

    /// An input is invalid; nothing was changed.
    #[error("{field}: {reason}")]
    ValidationFailed {
        /// The input.
        field: Field,
        /// The problem, or the required form.
        reason: String,
    },

    /// The backend is unreachable or locked, or did not answer in time.
    #[error("the {backend} backend is unavailable: {reason}")]
    BackendUnavailable {
        /// The backend's registered name, such as `keyring`.
        backend: String,
        /// Why, and what to do.
        reason: String,
        /// How long to wait before trying again.
        retry_after: Duration,
    },

    /// The metadata database failed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// An error of the metadata database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// The service must not or cannot use the file; the file was not changed.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// The namespace.
    Namespace,
    /// The key.
    Key,
    /// The value.
    Value,
    /// The list of consumers.
    AllowedConsumers,
    /// The name of a backend, or one of its settings.
    Backend,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}
