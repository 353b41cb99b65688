//! The `service` backend: another vault service, asked over its socket.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::{ClientError, ClientOptions, Health, VaultClient};
use crate::error::{Field, VaultError};
use crate::model::{CredentialRef, MaskedSummary, Namespace, RuntimeEnvEntry, StoreRequest};
use crate::secret::Secret;
use crate::settings;

use super::{BackendOptions, BackendStatus, CredentialVault, MetadataKeeper};

/// The setting that names the socket to forward to.
pub const UPSTREAM_VARIABLE: &str = "IF_VAULT_UPSTREAM_SOCKET";

/// The setting that says whom the service there may run as, besides this user and root.
pub const UPSTREAM_UID_VARIABLE: &str = "IF_VAULT_UPSTREAM_UID";

/// Longer than the 30 s that a service gives its keyring, so that its own advice is heard.
const TIMEOUT: Duration = Duration::from_secs(35);

/// `/health` is answered within a moment, whatever state the other service is in.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// When it is worth asking again a service that does not answer.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Forwards to another service, which keeps values and metadata alike.
#[derive(Debug)]
pub struct ServiceVault {
    client: VaultClient,
    health: VaultClient,
    /// The socket that this process listens on itself, if it does.
    own: Option<PathBuf>,
}

impl ServiceVault {
    /// Forwards to the service on `socket`; `server_uid` as in [`ClientOptions`].
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, server_uid: Option<u32>) -> Self {
        let socket = socket.into();
        let client = |timeout| {
            VaultClient::with_options(socket.clone(), &ClientOptions { timeout, server_uid })
        };
        Self { client: client(TIMEOUT), health: client(HEALTH_TIMEOUT), own: None }
    }

    /// From [`UPSTREAM_VARIABLE`], else as any client finds its socket.
    pub(super) fn from_options(options: &BackendOptions) -> Result<Self, VaultError> {
        let environment = &options.environment;
        let invalid =
            |reason: String| VaultError::ValidationFailed { field: Field::Backend, reason };
        let upstream = environment.setting(UPSTREAM_VARIABLE).map(Path::new);
        let socket =
            settings::socket(upstream, environment).map_err(|error| invalid(error.to_string()))?;
        let server_uid = environment
            .setting(UPSTREAM_UID_VARIABLE)
            .map(str::parse)
            .transpose()
            .map_err(|_| invalid(format!("{UPSTREAM_UID_VARIABLE} is a user id, a number")))?;
        Ok(Self { own: options.own_socket.clone(), ..Self::new(socket, server_uid) })
    }

    /// Follows the services that forward to one another, and refuses a way that comes back.
    fn check_for_loop(&self, own: &Path) -> Result<(), VaultError> {
        let invalid =
            |reason: String| Err(VaultError::ValidationFailed { field: Field::Backend, reason });
        let own = resolved(own);
        let mut seen = HashSet::new();
        let mut next = resolved(self.client.socket());
        loop {
            if next == own {
                return invalid(format!(
                    "the service would forward to itself at {}; name the socket of another one \
                     with {UPSTREAM_VARIABLE}, or listen elsewhere with --socket",
                    own.display()
                ));
            }
            if !seen.insert(next.clone()) {
                return invalid(format!(
                    "the services that it would forward to go round in a circle at {}",
                    next.display()
                ));
            }
            let health = if seen.len() == 1 {
                self.health().map_err(unavailable)?
            } else {
                // Whether a service further on works is for the one before it to say.
                match VaultClient::new(&next).health() {
                    Ok(health) => health,
                    Err(_) => return Ok(()),
                }
            };
            match health.more.get("upstream").and_then(serde_json::Value::as_str) {
                Some(upstream) => next = resolved(Path::new(upstream)),
                None => return Ok(()),
            }
        }
    }

    fn health(&self) -> Result<Health, ClientError> {
        self.health.health()
    }

    fn failed(at: &CredentialRef, call: Call, error: ClientError) -> VaultError {
        let at = at.clone();
        let reason = match error {
            error @ ClientError::Failed { status: 503, .. } => return unavailable(error),
            ClientError::Refused { detail, .. } | ClientError::Failed { detail, .. } => detail,
            error => return unavailable(error),
        };
        match call {
            Call::Get => VaultError::ReadFailed { at, reason },
            Call::Store => VaultError::StoreFailed { at, reason },
            Call::Delete => VaultError::DeleteFailed { at, reason },
        }
    }
}

#[derive(Clone, Copy)]
enum Call {
    Get,
    Store,
    Delete,
}

fn unavailable(error: ClientError) -> VaultError {
    let reason = match error {
        // What the other service says of its own backend is said as if it were ours.
        ClientError::Failed { status: 503, detail } => detail,
        ClientError::ForeignServer { .. } => {
            format!("{error}; {UPSTREAM_UID_VARIABLE} may name a further user")
        }
        error => error.to_string(),
    };
    VaultError::BackendUnavailable {
        backend: "service".to_owned(),
        reason,
        retry_after: RETRY_AFTER,
    }
}

/// The path with its directory's links followed, so that two names of one socket compare
/// as equal, also before there is a socket.
fn resolved(socket: &Path) -> PathBuf {
    let directory = match socket.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let path = socket.file_name().map_or_else(|| directory.clone(), |name| directory.join(name));
    path.canonicalize().unwrap_or(path)
}

impl CredentialVault for ServiceVault {
    fn name(&self) -> &'static str {
        "ServiceVault"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        self.client.get(at).map_err(|error| Self::failed(at, Call::Get, error))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        self.store_request(at, &StoreRequest::new(value.duplicate()))
    }

    /// What the other service says of a delete is the same whether there was something or
    /// not, so it is asked before.
    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let existed = self.has(at)?;
        self.client.delete(at).map_err(|error| Self::failed(at, Call::Delete, error))?;
        Ok(existed)
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.client.has(at).map_err(unavailable)
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let listed = self.client.list_namespace(namespace).map_err(unavailable)?;
        let mut keys: Vec<String> = listed.into_iter().map(|summary| summary.key).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    fn check(&self) -> Result<(), VaultError> {
        match &self.own {
            Some(own) => self.check_for_loop(own),
            None => self.health().map(drop).map_err(unavailable),
        }
    }

    fn status(&self) -> BackendStatus {
        let health = self.health();
        let works = health.as_ref().is_ok_and(|health| health.status == "ok");
        BackendStatus {
            works,
            renewal: None,
            upstream: Some(self.client.socket().to_owned()),
            credential_count: Some(health.map_or(0, |health| health.credential_count)),
        }
    }

    fn metadata_keeper(&self) -> Option<&dyn MetadataKeeper> {
        Some(self)
    }

    fn close(&self) {}
}

impl MetadataKeeper for ServiceVault {
    fn summaries(&self, namespace: Option<&Namespace>) -> Result<Vec<MaskedSummary>, VaultError> {
        match namespace {
            None => self.client.list_all(),
            Some(namespace) => self.client.list_namespace(namespace),
        }
        .map_err(unavailable)
    }

    fn runtime_env(&self) -> Result<Vec<RuntimeEnvEntry>, VaultError> {
        self.client.list_runtime_env().map_err(unavailable)
    }

    fn store_request(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), VaultError> {
        self.client.store(at, request).map_err(|error| Self::failed(at, Call::Store, error))
    }
}
