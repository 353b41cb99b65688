//! The service: keeps value and metadata consistent, over one backend.

use std::sync::Arc;

use crate::error::VaultError;
use crate::metadata::{Filter, MetadataStore};
use crate::model::{CredentialRecord, CredentialRef, StoreRequest};
use crate::secret::Secret;
use crate::vault::CredentialVault;

/// One vault: a backend for the values, a database for the metadata.
pub struct VaultService {
    vault: Arc<dyn CredentialVault>,
    metadata: MetadataStore,
}

impl VaultService {
    /// Puts a backend and a database together.
    #[must_use]
    pub fn new(vault: Arc<dyn CredentialVault>, metadata: MetadataStore) -> Self {
        Self { vault, metadata }
    }
    /// todo
    pub fn get(&self, _at: &CredentialRef) -> Result<Secret, VaultError> {
        todo!()
    }
    /// todo
    pub fn has(&self, _at: &CredentialRef) -> Result<bool, VaultError> {
        todo!()
    }
    /// todo
    pub fn store(&self, _at: &CredentialRef, _request: StoreRequest) -> Result<(), VaultError> {
        todo!()
    }
    /// todo
    pub fn delete(&self, _at: &CredentialRef) -> Result<bool, VaultError> {
        todo!()
    }
    /// todo
    pub fn for_each(
        &self,
        _filter: Filter<'_>,
        _visit: &mut dyn FnMut(CredentialRecord),
    ) -> Result<(), VaultError> {
        todo!()
    }
    /// todo
    pub fn count(&self) -> Result<u64, VaultError> {
        Ok(self.metadata.count()?)
    }
    /// todo
    #[must_use]
    pub fn backend(&self) -> &str {
        self.vault.name()
    }
}
