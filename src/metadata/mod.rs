//! The SQLite sidecar: all that is known of a credential but its value.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::model::{CredentialRecord, CredentialRef, Namespace, StoreRequest};
use crate::time::Timestamp;

/// What can go wrong with the metadata database.
#[derive(Debug, thiserror::Error)]
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

/// Which records [`MetadataStore::for_each`] visits.
#[derive(Debug, Clone, Copy)]
pub enum Filter<'a> {
    /// Every record.
    All,
    /// Those of one namespace.
    Namespace(&'a Namespace),
    /// Those delivered as environment variables.
    RuntimeEnv,
}

/// The open database.
#[derive(Debug)]
pub struct MetadataStore {}

impl MetadataStore {
    /// Opens or creates the database.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Unusable`].
    pub fn open(_path: &Path) -> Result<Self, MetadataError> {
        todo!()
    }

    /// Commits what a store says of a credential.
    pub fn put(
        &self,
        _at: &CredentialRef,
        _request: &StoreRequest,
    ) -> Result<Option<CredentialRecord>, MetadataError> {
        todo!()
    }

    /// Removes a record.
    pub fn remove(&self, _at: &CredentialRef) -> Result<Option<CredentialRecord>, MetadataError> {
        todo!()
    }

    /// Puts a record back as it was.
    pub fn restore(
        &self,
        _at: &CredentialRef,
        _record: Option<CredentialRecord>,
    ) -> Result<(), MetadataError> {
        todo!()
    }

    /// Notes that a value was handed out.
    pub fn touch(&self, _at: &CredentialRef, _when: Timestamp) {
        todo!()
    }

    /// Visits records.
    pub fn for_each(
        &self,
        _filter: Filter<'_>,
        _visit: &mut dyn FnMut(CredentialRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        todo!()
    }

    /// How many records there are.
    pub fn count(&self) -> Result<u64, MetadataError> {
        todo!()
    }

    /// Flushes and closes.
    pub fn close(&self) -> Result<(), MetadataError> {
        todo!()
    }
}
