//! The whole service in one value: settings in, a running vault out. The layers are wired together
//! here and nowhere else. A host program embeds the vault through it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::{BackendOptions, create_vault};
use crate::error::VaultError;
use crate::metadata::{MetadataError, MetadataStore};
use crate::model::{CredentialRef, StoreRequest};
use crate::peer::is_unmapped;
use crate::policy::PolicyError;
use crate::router::{Access, Router};
use crate::secret::Secret;
use crate::server::{Endpoint, Limits, Listener, Server, SocketAccess, StartError};
use crate::service::VaultService;

pub use crate::metadata::DATABASE;

/// The default number of blocking workers: enough for stores that arrive together to share a
/// commit, and for backend calls to wait side by side.
pub const DEFAULT_WORKERS: usize = 32;

/// The settings of a vault.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub endpoint: Endpoint,
    /// Which users can connect to a socket that is bound by its path. More than this user needs a
    /// policy.
    pub socket_access: SocketAccess,
    /// The directory of the metadata database, created if it is missing. It is not used with a
    /// backend that keeps the metadata itself.
    pub data_dir: PathBuf,
    /// The registered name of the backend.
    pub backend: String,
    /// The input of the backend's factory.
    pub backend_options: BackendOptions,
    /// Threads that carry out requests which may wait for a backend or a commit; at least 2.
    pub workers: usize,
    /// The limits for clients.
    pub limits: Limits,
    /// Whether previews show nothing of a value; see [`VaultService::hide_previews`].
    pub hide_previews: bool,
    /// The policy file that gives rights to other users. Without one, only this user and root are
    /// served. It cannot be used with a backend that keeps the metadata itself.
    pub policy: Option<PathBuf>,
    /// The file that every decision about a value is recorded in.
    pub audit_log: Option<PathBuf>,
    /// The token that every request over TCP must have.
    pub bearer: Option<Secret>,
    /// Stored before the first request is served. For development.
    pub seeds: Vec<(CredentialRef, StoreRequest)>,
    /// Whether metadata without a value in the backend is dropped at the start. For a backend that
    /// keeps values in memory, with a data directory of its own.
    pub forget_metadata_without_value: bool,
}

impl Settings {
    /// The usual settings for a vault at `endpoint`.
    #[must_use]
    pub fn new(
        endpoint: Endpoint,
        data_dir: PathBuf,
        backend: &str,
        backend_options: BackendOptions,
    ) -> Self {
        Self {
            endpoint,
            socket_access: SocketAccess::default(),
            data_dir,
            backend: backend.to_owned(),
            backend_options,
            workers: DEFAULT_WORKERS,
            limits: Limits::default(),
            hide_previews: false,
            policy: None,
            audit_log: None,
            bearer: None,
            seeds: Vec::new(),
            forget_metadata_without_value: false,
        }
    }
}

/// Why a vault did not start, or did not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The backend, or the database.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// In this user namespace, other users cannot be told from this one.
    #[error(
        "the user namespace does not map this user, so that it cannot be told from others; start \
         the service outside of it, or map the user (unshare --map-current-user)"
    )]
    Unmapped,
    /// The socket is open to other users, and there is no policy.
    #[error(
        "other users may connect to this socket (its mode is wider than 0600), which takes a \
         policy that says what they may do; give --policy FILE, or make the socket private \
         (systemd: SocketMode=0600)"
    )]
    SharedWithoutPolicy,
    /// The backend keeps the metadata itself, so that the consumers of a credential are unknown.
    #[error("a policy needs the metadata, which another service keeps; give that one the policy")]
    PolicyWithoutMetadata,
    /// The audit log.
    #[error("the audit log {} cannot be used: {source}", path.display())]
    AuditLog {
        /// The file.
        path: PathBuf,
        /// The problem.
        source: io::Error,
    },
    /// The socket.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Pending changes could not be written when it stopped.
    #[error("stopped, but what was still to be written is lost: {0}")]
    Flush(MetadataError),
    /// Requests still ran when the time for them was over.
    #[error("stopped, but some requests had not finished")]
    NotDrained,
}

/// A running vault.
///
/// ```no_run
/// use intentframe_credentials::daemon::{Daemon, Settings};
/// use intentframe_credentials::server::Endpoint;
/// use intentframe_credentials::{BackendOptions, Environment};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let endpoint = Endpoint::Unix("/run/user/1000/vault/credential-vault.sock".into());
/// let options = BackendOptions::new(Environment::default());
/// let daemon = Daemon::start(&Settings::new(endpoint, "/tmp/vault".into(), "env", options))?;
/// // ... later, from any thread:
/// daemon.stop();
/// daemon.join()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Daemon {
    server: Server,
    service: Arc<VaultService>,
    router: Arc<Router>,
}

impl Daemon {
    /// Makes the backend and checks that it can be used, opens the database, and serves.
    /// Connections are accepted when this returns.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Vault`] or [`DaemonError::Start`]; nothing is left behind. After
    /// [`VaultError::BackendUnavailable`] it may be tried again with the same settings.
    pub fn start(settings: &Settings) -> Result<Self, DaemonError> {
        // The name is checked first, and then the backend: neither a wrong name nor a
        // backend that cannot be used is a reason to touch a file.
        let data_dir = Some(settings.data_dir.clone());
        let options = BackendOptions { data_dir, ..settings.backend_options.clone() };
        let vault = create_vault(&settings.backend, &options)?;
        let owner_uid = rustix::process::geteuid().as_raw();
        if is_unmapped(owner_uid) {
            return Err(DaemonError::Unmapped);
        }
        let mut access = Access::of_owner(owner_uid);
        if let Some(path) = &settings.policy {
            access = access.with_policy(path)?;
            if vault.metadata_keeper().is_some() {
                return Err(DaemonError::PolicyWithoutMetadata);
            }
        }
        if settings.endpoint.is_open_to_others()
            || settings.socket_access != SocketAccess::default()
        {
            if settings.policy.is_none() {
                return Err(DaemonError::SharedWithoutPolicy);
            }
            log::warn!("other users can connect to {}: the policy decides", settings.endpoint);
        }
        vault.check()?;
        // The socket is taken before the database: of two that start at once for one
        // socket, the second touches no file of the first.
        let listener = Listener::bind(&settings.endpoint, settings.socket_access)?;
        let service = match VaultService::over_metadata_keeper(vault) {
            Ok(service) => service,
            Err(vault) => {
                let database = settings.data_dir.join(DATABASE);
                let open = || MetadataStore::open(&database).map(Arc::new);
                let metadata = match vault.in_database() {
                    Some(vault) => vault.database()?,
                    None => open().map_err(VaultError::Metadata)?,
                };
                VaultService::new(vault, metadata)
            }
        };
        let service = Arc::new(service.hide_previews(settings.hide_previews));
        service.start()?;
        service.settle();
        if settings.forget_metadata_without_value {
            service.forget_metadata_without_value()?;
        }
        for (at, request) in &settings.seeds {
            service.store(at, request)?;
        }
        if let Some(path) = &settings.audit_log {
            access = access
                .with_audit_log(path)
                .map_err(|source| DaemonError::AuditLog { path: path.clone(), source })?;
        }
        let bearer = settings.bearer.as_ref().map(Secret::duplicate);
        let router = Arc::new(Router::new(Arc::clone(&service), access.with_bearer(bearer)));
        let server = Server::start(
            listener,
            Arc::clone(&router),
            settings.workers,
            settings.limits.clone(),
        )?;
        Ok(Self { server, service, router })
    }

    /// The service itself, for a host program that asks it in-process.
    #[must_use]
    pub fn service(&self) -> &Arc<VaultService> {
        &self.service
    }

    /// The running server.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Reads the policy again, and opens the audit log again if it was rotated. What cannot be
    /// used is reported in the log, and the old one stays.
    pub fn reload(&self) {
        self.router.access().reload();
    }

    /// Stops accepting and lets what runs finish. Does not wait.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Waits for a [`stop`](Self::stop) and for what runs to finish, then flushes and
    /// closes the database and the backend.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Flush`] or [`DaemonError::NotDrained`].
    pub fn join(self) -> Result<(), DaemonError> {
        let drained = self.server.join();
        self.service.close().map_err(DaemonError::Flush)?;
        if drained { Ok(()) } else { Err(DaemonError::NotDrained) }
    }
}
