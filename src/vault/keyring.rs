//! The `keyring` backend.

use std::time::Duration;

use crate::error::VaultError;
use crate::model::{CredentialRef, Namespace};
use crate::secret::Secret;

use super::CredentialVault;

/// Values in the operating system's keyring.
#[derive(Debug)]
pub struct KeyringVault {}

impl KeyringVault {
    /// Does not connect until the first call.
    #[must_use]
    pub fn new(_timeout: Duration) -> Self {
        Self {}
    }
}

impl CredentialVault for KeyringVault {
    fn name(&self) -> &'static str {
        "KeyringVault"
    }
    fn get(&self, _at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        todo!()
    }
    fn store(&self, _at: &CredentialRef, _value: &Secret) -> Result<(), VaultError> {
        todo!()
    }
    fn delete(&self, _at: &CredentialRef) -> Result<bool, VaultError> {
        todo!()
    }
    fn has(&self, _at: &CredentialRef) -> Result<bool, VaultError> {
        todo!()
    }
    fn list_keys(&self, _namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        todo!()
    }
    fn close(&self) {}
}
