//! The `hashicorp` backend: HashiCorp Vault or OpenBao, KV version 2.
//!
//! ```text
//! HashiCorpVault    the trait's calls
//!    |
//! namespaces        one read for many callers, one merge for many stores (single_flight)
//!    |
//! kv                the requests to the KV engine, and what its answers mean
//!    |      \
//!    |     token    obtained (login), renewed (lease), replaced when it is dead (keeper)
//!    |      /
//! http              one request: permits, time-out, retries, the breaker
//!    |
//! connect           ureq's TCP and TLS, or a Unix socket
//! ```

mod breaker;
mod clock;
mod connect;
mod diagnose;
mod http;
mod kv;
mod message;
mod namespaces;
mod settings;
mod shared;
mod single_flight;
mod tls;
mod token;
mod variables;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Field, VaultError};
use crate::model::{CredentialRef, Namespace};
use crate::secret::{Secret, SecretWatch};
use crate::settings::Environment;
use crate::sync::lock;

use super::{BackendStatus, CredentialVault, Finding, SharedMetadata};
use http::Http;
use kv::{Found, Kv};
use message::{Error, Unavailable};
use namespaces::Namespaces;
use settings::Settings;

/// Keeps values in the KV v2 engine of HashiCorp Vault or OpenBao: the secret
/// `<prefix>/<namespace>` has a field for each key. With `IF_VAULT_METADATA=vault`, the secret
/// `<prefix>/.metadata/<namespace>` has the metadata.
///
/// The first call connects, and starts a thread that renews the token.
///
/// # Logging
///
/// At level TRACE the HTTP library prints every byte that it sends and receives, tokens and
/// values included, under the target `ureq_proto::util`. The binary's logger never lets that
/// through. A program that embeds this must keep the targets `ureq` and `ureq_proto` at INFO
/// or above.
pub struct HashiCorpVault {
    namespaces: Namespaces,
}

impl HashiCorpVault {
    /// Takes its settings from `environment`: `VAULT_ADDR`, `VAULT_TOKEN` and the others that
    /// `docs/vault.md` lists. `secret_watch` is called with each token, and with each secret ID
    /// while it is used.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`], which names the missing or unusable variable.
    pub fn new(
        environment: &Environment,
        secret_watch: Option<SecretWatch>,
    ) -> Result<Self, VaultError> {
        let settings = Settings::new(environment, secret_watch).map_err(invalid)?;
        let kv = Kv::new(Arc::new(Http::new(settings)));
        Ok(Self { namespaces: Namespaces::new(kv) })
    }

    fn read(
        &self,
        namespace: &Namespace,
        refused: impl FnOnce(String) -> VaultError,
    ) -> Result<Arc<Found>, VaultError> {
        self.namespaces.read(namespace.as_str()).map_err(|error| vault_error(error, refused))
    }
}

impl fmt::Debug for HashiCorpVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashiCorpVault")
    }
}

impl CredentialVault for HashiCorpVault {
    fn name(&self) -> &'static str {
        "HashiCorpVault"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        let read_failed = |reason| VaultError::ReadFailed { at: at.clone(), reason };
        let found = self.read(at.namespace(), read_failed)?;
        let Some(field) = found.field(at.key()) else { return Ok(None) };
        field.text().map(Some).ok_or_else(|| {
            let reason = "its field in Vault holds something other than text, which this \
                          service did not write; store a text, or delete it";
            read_failed(reason.to_owned())
        })
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        let (namespace, value) = (at.namespace().as_str(), Some(value.duplicate()));
        let stored = self.namespaces.change(namespace, at.key(), value);
        let store_failed = |reason| VaultError::StoreFailed { at: at.clone(), reason };
        stored.map(drop).map_err(|error| vault_error(error, store_failed))
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let deleted = self.namespaces.change(at.namespace().as_str(), at.key(), None);
        let delete_failed = |reason| VaultError::DeleteFailed { at: at.clone(), reason };
        deleted.map_err(|error| vault_error(error, delete_failed))
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let read_failed = |reason| VaultError::ReadFailed { at: at.clone(), reason };
        Ok(self.read(at.namespace(), read_failed)?.field(at.key()).is_some())
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let found = self.read(namespace, |reason| unavailable(&Unavailable::new(reason)))?;
        Ok(found.fields.iter().flat_map(|fields| fields.keys().cloned()).collect())
    }

    fn check(&self) -> Result<(), VaultError> {
        self.namespaces.kv.check().map_err(|error| vault_error(error, invalid))
    }

    fn diagnose(&self) -> Vec<Finding> {
        diagnose::diagnose(&self.namespaces.kv)
    }

    fn status(&self) -> BackendStatus {
        let kv = &self.namespaces.kv;
        let renewal = kv.tokens.status();
        let works = kv.http.works() && !renewal.is_in_trouble();
        BackendStatus { works, renewal: Some(renewal), ..BackendStatus::default() }
    }

    fn shared_metadata(&self) -> Option<&dyn SharedMetadata> {
        self.namespaces.kv.http.settings.node.as_ref().map(|_| self as &dyn SharedMetadata)
    }

    fn close(&self) {
        self.namespaces.kv.tokens.close();
    }
}

fn vault_error(error: Error, refused: impl FnOnce(String) -> VaultError) -> VaultError {
    match error {
        Error::Unavailable(error) => unavailable(&error),
        Error::Refused(reason) => refused(reason),
    }
}

fn unavailable(error: &Unavailable) -> VaultError {
    VaultError::BackendUnavailable {
        backend: "hashicorp".to_owned(),
        reason: error.reason.clone(),
        retry_after: error.pause().max(Duration::from_secs(1)),
    }
}

fn invalid(reason: String) -> VaultError {
    VaultError::ValidationFailed { field: Field::Backend, reason }
}
