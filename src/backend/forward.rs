//! The `service` backend: forwards to another vault service over its socket.

use std::collections::HashSet;
use std::path::{self, Path, PathBuf};
use std::time::Duration;

use crate::client::{ClientError, ClientOptions, Health, VaultClient};
use crate::error::VaultError;
use crate::model::{
    CredentialRef, MaskedSummary, Namespace, RecordSummary, RuntimeEnvEntry, StoreRequest, Validity,
};
use crate::secret::Secret;
use crate::settings;

use super::registry::invalid;
use super::{BackendOptions, BackendStatus, CredentialVault, MetadataKeeper};

/// The setting for the socket of the service to forward to.
pub const UPSTREAM_VARIABLE: &str = "IF_VAULT_UPSTREAM_SOCKET";

/// The setting for a user ID that this service may run as, besides root and our own.
pub const UPSTREAM_UID_VARIABLE: &str = "IF_VAULT_UPSTREAM_UID";

/// A service waits up to 30 s for its keyring. Its own error, with advice, should come first.
const TIMEOUT: Duration = Duration::from_secs(35);

/// `/health` must answer fast, whatever state the other service is in.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);

/// When a caller should try again after the other service did not answer.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Forwards to another service, which keeps both values and metadata.
#[derive(Debug)]
pub struct ServiceVault {
    client: VaultClient,
    health: VaultClient,
    /// The socket of this process's own service, if it has one.
    own: Option<PathBuf>,
}

impl ServiceVault {
    /// Forwards to the service on `socket`. For `server_uid`, see [`ClientOptions`].
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, server_uid: Option<u32>) -> Self {
        let socket = socket.into();
        let client = |timeout| {
            VaultClient::with_options(socket.clone(), &ClientOptions { timeout, server_uid })
        };
        Self { client: client(TIMEOUT), health: client(HEALTH_TIMEOUT), own: None }
    }

    /// Forwards to the socket in [`UPSTREAM_VARIABLE`], else to the one a client would use.
    pub(super) fn from_options(options: &BackendOptions) -> Result<Self, VaultError> {
        let environment = &options.environment;
        let upstream = environment.setting(UPSTREAM_VARIABLE).map(Path::new);
        let socket =
            settings::socket(upstream, environment).map_err(|error| invalid(error.to_string()))?;
        let server_uid = environment
            .setting(UPSTREAM_UID_VARIABLE)
            .map(str::parse)
            .transpose()
            .map_err(|_| invalid(format!("{UPSTREAM_UID_VARIABLE} is a user ID, a number")))?;
        Ok(Self { own: options.own_socket.clone(), ..Self::new(socket, server_uid) })
    }
}

/// The socket that a forwarding service forwards to.
fn upstream_of(health: &Health) -> Option<PathBuf> {
    Some(resolved(Path::new(health.more.get("upstream")?.as_str()?)))
}

/// The error of a call that the other service refused: `failed` makes it from the reason.
fn refused(error: ClientError, failed: impl FnOnce(String) -> VaultError) -> VaultError {
    match error {
        ClientError::Refused { detail, .. }
        | ClientError::Failed { status: ..=502 | 504.., detail } => failed(detail),
        error => unavailable(error),
    }
}

fn unavailable(error: ClientError) -> VaultError {
    let reason = match error {
        // The detail describes the backend of the other service.
        ClientError::Failed { status: 503, detail } => detail,
        ClientError::ForeignServer { .. } => {
            format!("{error}; {UPSTREAM_UID_VARIABLE} can allow another user ID")
        }
        error => error.to_string(),
    };
    VaultError::BackendUnavailable {
        backend: "service".to_owned(),
        reason,
        retry_after: RETRY_AFTER,
    }
}

/// The path with the links of its directory resolved, so that two names of one socket are
/// equal even before the socket exists.
fn resolved(socket: &Path) -> PathBuf {
    let path = path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    let path = match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path,
    };
    path.canonicalize().unwrap_or(path)
}

impl CredentialVault for ServiceVault {
    fn name(&self) -> &'static str {
        "ServiceVault"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        let failed = |reason| VaultError::ReadFailed { at: at.clone(), reason };
        self.client.get(at).map_err(|error| refused(error, failed))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        self.store_request(at, &StoreRequest::new(value.duplicate()))
    }

    /// The other service does not tell whether there was something to delete. So this asks
    /// first.
    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let existed = self.has(at)?;
        let failed = |reason| VaultError::DeleteFailed { at: at.clone(), reason };
        self.client.delete(at).map_err(|error| refused(error, failed))?;
        Ok(existed)
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.client.has(at).map_err(unavailable)
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let listed = self.summaries(Some(namespace))?;
        Ok(listed.into_iter().map(|summary| summary.key).collect())
    }

    /// Follows the chain of forwarding services. Rejects a loop, direct or indirect.
    fn check(&self) -> Result<(), VaultError> {
        let mut seen: HashSet<PathBuf> = self.own.iter().map(|own| resolved(own)).collect();
        let mut next = resolved(self.client.socket());
        let mut first = Some(&self.health);
        while seen.insert(next.clone()) {
            let upstream = match first.take() {
                Some(client) => upstream_of(&client.health().map_err(unavailable)?),
                // The service before this one reports whether it works.
                None => VaultClient::new(&next).health().ok().as_ref().and_then(upstream_of),
            };
            let Some(upstream) = upstream else { return Ok(()) };
            next = upstream;
        }
        Err(invalid(format!(
            "the service at {} would forward to itself; set {UPSTREAM_VARIABLE} to the socket of \
             another service, or listen on another socket",
            next.display()
        )))
    }

    fn status(&self) -> BackendStatus {
        let health = self.health.health().ok();
        BackendStatus {
            works: health.as_ref().is_some_and(|health| health.status == "ok"),
            renewal: None,
            upstream: Some(self.client.socket().to_owned()),
            credential_count: Some(health.map_or(0, |health| health.credential_count)),
        }
    }

    fn metadata_keeper(&self) -> Option<&dyn MetadataKeeper> {
        Some(self)
    }
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

    fn records(&self) -> Result<Vec<RecordSummary>, VaultError> {
        self.client.records().map_err(unavailable)
    }

    fn note_validity(&self, at: &CredentialRef, result: Validity) -> Result<bool, VaultError> {
        self.client.note_validity(at, result).map_err(|error| match error {
            ClientError::Refused { status: 404, .. } => VaultError::NotFound(at.clone()),
            error => unavailable(error),
        })
    }

    fn store_request(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), VaultError> {
        let failed = |reason| VaultError::StoreFailed { at: at.clone(), reason };
        self.client.store(at, request).map_err(|error| refused(error, failed))
    }
}
