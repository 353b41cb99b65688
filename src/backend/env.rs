//! The `env` backend, for development: values in memory, over the process environment.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use crate::error::VaultError;
use crate::model::{CredentialRef, Namespace};
use crate::secret::Secret;
use crate::settings::Environment;

use super::CredentialVault;

/// Keeps values in memory, over `<NAMESPACE>_<KEY>` in the environment.
///
/// A stored value hides the variable; deleting the value shows the variable again. Nothing
/// survives a restart. [`list_keys`](CredentialVault::list_keys) returns only the stored keys,
/// because a variable's name does not tell where its namespace ends.
#[derive(Debug)]
pub struct EnvVault {
    environment: Environment,
    overlay: RwLock<HashMap<CredentialRef, Secret>>,
}

impl EnvVault {
    /// An empty overlay over `environment`.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Self { environment, overlay: RwLock::default() }
    }
}

/// The variable of a credential: `github.myorg`, `token` -> `GITHUB_MYORG_TOKEN`.
fn variable_name(at: &CredentialRef) -> String {
    let name = format!("{}_{}", at.namespace(), at.key());
    name.to_uppercase().replace(['.', '-', '/'], "_")
}

impl CredentialVault for EnvVault {
    fn name(&self) -> &'static str {
        "EnvVault"
    }

    fn may_block(&self) -> bool {
        false
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        let value = overlay.get(at).or_else(|| self.environment.var(&variable_name(at)));
        Ok(value.map(Secret::duplicate))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        overlay.insert(at.clone(), value.duplicate());
        Ok(())
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let mut overlay = self.overlay.write().unwrap_or_else(PoisonError::into_inner);
        Ok(overlay.remove(at).is_some())
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        Ok(overlay.contains_key(at) || self.environment.var(&variable_name(at)).is_some())
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let overlay = self.overlay.read().unwrap_or_else(PoisonError::into_inner);
        let stored = overlay.keys().filter(|at| at.namespace() == namespace);
        let mut keys: Vec<String> = stored.map(|at| at.key().to_owned()).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    fn close(&self) {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault() -> EnvVault {
        let vars = [("GITHUB_MYORG_TOKEN", "from-env"), ("EMPTY_KEY", "")];
        EnvVault::new(
            vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect(),
        )
    }

    fn value(vault: &EnvVault, at: &CredentialRef) -> Option<String> {
        let value = vault.get(at).expect("the env vault has no errors");
        value.map(|value| value.expose().to_owned())
    }

    #[test]
    fn deleting_a_stored_value_shows_the_variable_again() {
        let vault = vault();
        let at = CredentialRef::parse("github.myorg", "token").expect("valid");
        assert_eq!(value(&vault, &at).as_deref(), Some("from-env"));
        vault.store(&at, &Secret::new("stored".into())).expect("stores");
        assert_eq!(value(&vault, &at).as_deref(), Some("stored"));
        assert!(vault.delete(&at).expect("deletes"));
        assert_eq!(value(&vault, &at).as_deref(), Some("from-env"));
        assert!(!vault.delete(&at).expect("deletes"));
    }

    #[test]
    fn an_empty_variable_is_a_value() {
        let vault = vault();
        let at = CredentialRef::parse("empty", "key").expect("valid");
        assert_eq!(value(&vault, &at).as_deref(), Some(""));
        assert!(vault.has(&at).expect("asks"));
    }
}
