//! The `hashicorp` backend: HashiCorp Vault or OpenBao, KV version 2.
//!
//! ```text
//! HashiCorpVault    the trait's calls
//!    |
//! sharing           who waits for whose request: one read for many, one write for many
//!    |
//! kv                what is asked of the KV engine, and what its answers mean
//!    |      \
//!    |     auth     the token: obtained, kept alive (lease), replaced when it is dead
//!    |      /
//! upstream          one request: time-outs, retries, the breaker, requests in flight
//!    |
//! pending           its first attempt, where that is a read that waits without a thread
//!                   (exchange: the bytes, on a connection that the HTTP library keeps)
//! ```

#![allow(dead_code, unused_imports, reason = "being replaced")]

mod auth;
mod breaker;
mod clock;
mod exchange;
mod in_flight;
mod jitter;
mod kv;
mod lease;
mod pending;
mod settings;
mod sharing;
mod upstream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Field, VaultError};
use crate::model::{CredentialRef, Namespace};
use crate::secret::Secret;
use crate::settings::Environment;

use super::{BackendStatus, CredentialVault};
use auth::Auth;
use kv::{Found, Kv, KvError};
pub use settings::HashiCorpOptions;
use settings::Settings;
use sharing::Namespaces;
use upstream::{Unavailable, Upstream};

/// Keeps values in the KV v2 engine of HashiCorp Vault or OpenBao: the secret
/// `<prefix>/<namespace>`, with a field for each key.
///
/// Nothing is connected before the first call. A thread of its own, started by that call,
/// keeps the token alive.
///
/// # Logging
///
/// At level TRACE the HTTP library beneath prints every byte that it sends and receives,
/// tokens and values included, under the target `ureq_proto::util`. The binary's logger
/// never lets that through; a program that embeds this must keep the targets `ureq` and
/// `ureq_proto` at INFO or above.
pub struct HashiCorpVault(Arc<Parts>);

struct Parts {
    upstream: Arc<Upstream>,
    kv: Kv,
    namespaces: Namespaces,
}

impl HashiCorpVault {
    /// Takes what `options` leave open from `environment`.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`], naming the setting that is missing or cannot be.
    pub fn new(options: HashiCorpOptions, environment: &Environment) -> Result<Self, VaultError> {
        let settings = Settings::new(options, environment)?;
        let upstream = Upstream::new(&settings)
            .map_err(|reason| VaultError::ValidationFailed { field: Field::Backend, reason })?;
        let upstream = Arc::new(upstream);
        let (mount, prefix) = (settings.mount.clone(), settings.prefix.clone());
        let auth = Auth::new(settings, Arc::clone(&upstream));
        let kv = Kv::new(Arc::clone(&upstream), auth, mount, prefix);
        Ok(Self(Arc::new(Parts { upstream, kv, namespaces: Namespaces::default() })))
    }

    fn read(&self, namespace: &Namespace) -> Result<Arc<Found>, KvError> {
        self.0.namespaces.read(namespace, &self.0.kv)
    }
}

/// The value among what was found.
fn value(
    found: Result<Arc<Found>, KvError>,
    at: &CredentialRef,
) -> Result<Option<Secret>, VaultError> {
    let read_failed = |reason| VaultError::ReadFailed { at: at.clone(), reason };
    let found = found.map_err(|error| vault_error(error, read_failed))?;
    let Some(field) = found.fields().and_then(|fields| fields.get(at.key())) else {
        return Ok(None);
    };
    field.text().map(Some).ok_or_else(|| {
        let reason = "its field in Vault holds something other than text, which this \
                      service did not write; store a text, or delete it";
        read_failed(reason.to_owned())
    })
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
        value(self.read(at.namespace()), at)
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        self.0.namespaces.store(at.namespace(), at.key(), value, &self.0.kv).map_err(|error| {
            vault_error(error, |reason| VaultError::StoreFailed { at: at.clone(), reason })
        })
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.0.namespaces.delete(at.namespace(), at.key(), &self.0.kv).map_err(|error| {
            vault_error(error, |reason| VaultError::DeleteFailed { at: at.clone(), reason })
        })
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let found = self.read(at.namespace()).map_err(|error| {
            vault_error(error, |reason| VaultError::ReadFailed { at: at.clone(), reason })
        })?;
        Ok(found.fields().is_some_and(|fields| fields.contains_key(at.key())))
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let found = self
            .read(namespace)
            .map_err(|error| vault_error(error, |reason| unavailable(&Unavailable::new(reason))))?;
        Ok(found.fields().map(|fields| fields.keys().cloned().collect()).unwrap_or_default())
    }

    fn check(&self) -> Result<(), VaultError> {
        self.0.kv.check().map_err(|error| {
            let refused = |reason| VaultError::ValidationFailed { field: Field::Backend, reason };
            vault_error(error, refused)
        })
    }

    fn status(&self) -> BackendStatus {
        let renewal = self.0.kv.auth().status();
        let works = self.0.upstream.works() && !renewal.is_in_trouble();
        BackendStatus { works, renewal: Some(renewal), ..BackendStatus::default() }
    }

    fn close(&self) {
        self.0.kv.auth().close();
    }
}

fn vault_error(error: KvError, refused: impl FnOnce(String) -> VaultError) -> VaultError {
    match error {
        KvError::Unavailable(error) => unavailable(&error),
        KvError::Refused(reason) => refused(reason),
    }
}

fn unavailable(error: &Unavailable) -> VaultError {
    VaultError::BackendUnavailable {
        backend: "hashicorp".to_owned(),
        reason: error.reason.clone(),
        retry_after: error.retry_after.max(Duration::from_secs(1)),
    }
}
