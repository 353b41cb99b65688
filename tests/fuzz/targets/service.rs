//! A service in this process, over a backend that can refuse.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use intentframe_credentials::backend::EnvVault;
use intentframe_credentials::metadata::MetadataStore;
use intentframe_credentials::router::{Access, Router};
use intentframe_credentials::server::{Endpoint, Limits, Listener, Server, SocketAccess};
use intentframe_credentials::service::VaultService;
use intentframe_credentials::{
    CredentialRef, CredentialVault, Environment, Namespace, Secret, VaultError,
};
use tempfile::{TempDir, tempdir};

use super::answers;

/// A backend in memory that blocks, as most do. A key that starts with `away` cannot be reached,
/// one that starts with `keep` not be changed.
struct Fake {
    values: EnvVault,
    obeys: AtomicBool,
}

pub const REFUSED: &str = "the backend keeps it as it is";

impl Fake {
    fn reach(&self, at: &CredentialRef) -> Result<&EnvVault, VaultError> {
        if self.obeys.load(Ordering::Acquire) || !at.key().starts_with("away") {
            return Ok(&self.values);
        }
        let (backend, retry_after) = ("fake".into(), Duration::from_secs(7));
        Err(VaultError::BackendUnavailable { backend, reason: "it is away".into(), retry_after })
    }

    fn keeps(&self, at: &CredentialRef) -> bool {
        !self.obeys.load(Ordering::Acquire) && at.key().starts_with("keep")
    }
}

impl CredentialVault for Fake {
    fn name(&self) -> &'static str {
        "FakeVault"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        self.reach(at)?.get(at)
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        if self.keeps(at) {
            return Err(VaultError::StoreFailed { at: at.clone(), reason: REFUSED.into() });
        }
        self.reach(at)?.store(at, value)
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        if self.keeps(at) {
            return Err(VaultError::DeleteFailed { at: at.clone(), reason: REFUSED.into() });
        }
        self.reach(at)?.delete(at)
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.reach(at)?.has(at)
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        self.values.list_keys(namespace)
    }
}

pub struct Service {
    pub router: Arc<Router>,
    backend: Arc<Fake>,
    vault: Arc<VaultService>,
    socket: PathBuf,
    _server: Server,
    _directory: TempDir,
}

impl Service {
    pub fn start() -> Self {
        let directory = tempdir().expect("a temporary directory");
        let socket = directory.path().join("run/vault.sock");
        let (values, obeys) = (EnvVault::new(Environment::default()), AtomicBool::new(false));
        let backend = Arc::new(Fake { values, obeys });
        let metadata = MetadataStore::open(&directory.path().join("data/credentials.db"));
        let vault = VaultService::new(Arc::clone(&backend) as _, metadata.expect("a new one"));
        let vault = Arc::new(vault);
        let access = Access::of_owner(rustix::process::geteuid().as_raw());
        let router = Arc::new(Router::new(Arc::clone(&vault), access));
        let endpoint = Endpoint::Unix(socket.clone());
        let listener = Listener::bind(&endpoint, SocketAccess::default()).expect("a free path");
        let server = Server::start(listener, Arc::clone(&router), 2, Limits::default());
        let server = server.expect("threads start");
        Self { router, backend, vault, socket, _server: server, _directory: directory }
    }

    /// The statuses that the service answers to the bytes of a connection, which come in these
    /// pieces, and whether it reset the connection. Then it is empty again.
    pub fn exchange(&self, pieces: &[&[u8]]) -> (Vec<u16>, bool) {
        let mut stream = UnixStream::connect(&self.socket).expect("it accepts");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("not zero");
        // It may close before it has read everything, and the answer says why.
        let sent = pieces.iter().try_for_each(|piece| stream.write_all(piece));
        // What is not complete stays so.
        let mut is_reset = sent.and_then(|()| stream.shutdown(Shutdown::Write)).is_err();
        let (mut received, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it does not close");
                    is_reset = true;
                    break;
                }
            }
        }
        self.empty();
        (answers::statuses(&received, is_reset), is_reset)
    }

    fn empty(&self) {
        self.backend.obeys.store(true, Ordering::Release);
        let mut all = Vec::new();
        self.vault.summaries(None, &mut |it| all.push((it.namespace, it.key))).expect("lists");
        for (namespace, key) in all {
            let at = CredentialRef::parse(&namespace, &key).expect("it was stored");
            assert!(self.vault.delete(&at).expect("deletes"), "{at} has metadata and no value");
        }
        self.backend.obeys.store(false, Ordering::Release);
    }
}
