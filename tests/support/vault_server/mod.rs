//! A server for tests that speaks as `OpenBao` 2.6.2 does: KV v2, tokens, `AppRole`, response
//! wrapping, policies and namespaces, with a clock that can be moved and faults that can be
//! switched on. `tests/vault_server.rs` checks it against a real one.
//!
//! ```text
//! let vault = VaultServer::start();                   // KV v2 at secret/, `AppRole` at approle/
//! let token = vault.token(&json!({"ttl": "20s"}));    // as root, past faults and the journal
//! let fault = vault.fault(Fault::Hang(When::After)).on("PATCH", "secret/data/").next(1);
//! ...
//! vault.clock().advance(Duration::from_secs(21));
//! assert_eq!(vault.count("POST", "auth/approle/login"), 1);
//! vault.stop();
//! vault.restart();
//! ```
//!
//! A request travels from `http` through `faults` and `journal` to `state`, which finds the
//! namespace, the token, the policy and the route, and then to `kv`, `token`, `approle` or
//! `system`. All requests change one state under one lock: each is one moment.

#![allow(dead_code, reason = "each test program uses its own part of this")]

mod approle;
pub mod client;
pub mod clock;
pub mod exchange;
pub mod faults;
mod http;
pub mod journal;
mod kv;
mod kv1;
mod listening;
mod policy;
mod state;
mod system;
mod token;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use client::{Client, Got};
use clock::Clock;
use exchange::Call;
use faults::{Draft, Fault};
use journal::Entry;
use listening::{Listening, Shared};
use state::{Engine, Mount, Namespace};

/// How long a test waits for what has to happen at once.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a server has when it starts.
#[derive(Default)]
pub struct Builder {
    kv_mounts: Vec<String>,
    namespaces: Vec<String>,
    unix_socket: bool,
    requires_vault_request: bool,
    stopped_clock: bool,
}

impl Builder {
    /// KV v2 here too, beside `secret`.
    pub fn kv_mount(mut self, path: &str) -> Self {
        self.kv_mounts.push(path.to_owned());
        self
    }

    /// A namespace with mounts of its own: `secret` and `approle`.
    pub fn namespace(mut self, path: &str) -> Self {
        self.namespaces.push(path.to_owned());
        self
    }

    /// Listens on a Unix socket as well.
    pub fn unix_socket(mut self) -> Self {
        self.unix_socket = true;
        self
    }

    /// Refuses requests without `X-Vault-Request: true` by 412, as Vault Agent and
    /// `bao proxy` do when they are told to.
    pub fn requires_vault_request(mut self) -> Self {
        self.requires_vault_request = true;
        self
    }

    /// Only the test moves the clock.
    pub fn stopped_clock(mut self) -> Self {
        self.stopped_clock = true;
        self
    }

    pub fn start(self) -> VaultServer {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let socket = self.unix_socket.then(|| directory.path().join("vault.sock"));
        let clock = Clock::default();
        if self.stopped_clock {
            clock.stop();
        }
        let shared = Shared::new(clock, self.requires_vault_request);
        let listening = Listening::start(shared.clone(), socket.clone());
        let server = VaultServer { shared, listening, socket, _directory: directory };
        for namespace in std::iter::once("").chain(self.namespaces.iter().map(String::as_str)) {
            server.add_namespace(namespace);
        }
        for mount in &self.kv_mounts {
            server.mount_kv(mount);
        }
        server
    }
}

/// An `AppRole` of [`VaultServer::approle`].
#[derive(Debug, Clone)]
pub struct AppRole {
    pub role_id: String,
    pub secret_id: String,
}

/// A running server; stops when dropped.
pub struct VaultServer {
    shared: Arc<Shared>,
    listening: Listening,
    socket: Option<PathBuf>,
    _directory: TempDir,
}

impl VaultServer {
    pub const ROOT_TOKEN: &'static str = "root-token-of-the-test-server";

    pub fn start() -> Self {
        Self::builder().start()
    }

    pub fn builder() -> Builder {
        Builder::default()
    }

    /// `http://127.0.0.1:port`, the same after a restart.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.listening.port())
    }

    /// `unix:///path`, for a server that has one.
    pub fn unix_address(&self) -> String {
        let socket = self.socket_path().to_str().expect("UTF-8");
        format!("unix://{socket}")
    }

    pub fn socket_path(&self) -> &Path {
        self.socket.as_deref().expect("started with a Unix socket")
    }

    /// A client over TCP with the root token.
    pub fn client(&self) -> Client {
        Client::new(&self.address(), Self::ROOT_TOKEN)
    }

    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    // What an operator does. It takes no connection, meets no fault, is not in the journal,
    // and works on a stopped server too.

    /// One request as root; the answer's status and JSON.
    #[track_caller]
    pub fn as_root(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.as_root_in("", method, path, body)
    }

    #[track_caller]
    pub fn as_root_in(
        &self,
        namespace: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let call = Call {
            method: method.to_owned(),
            path: path.to_owned(),
            token: Some(Self::ROOT_TOKEN.to_owned()),
            namespace: namespace.to_owned(),
            content_type: Some("application/merge-patch+json".to_owned()),
            body: body.map(|body| body.to_string().into_bytes()).unwrap_or_default(),
            ..Call::default()
        };
        let reply = self.shared.state().handle(&call, self.shared.clock.now());
        (reply.status, serde_json::from_slice(&reply.body).unwrap_or_default())
    }

    /// The same; the test fails unless it succeeds.
    #[track_caller]
    pub fn done_as_root(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.as_root(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Makes the namespace, or fills it: KV v2 at `secret`, `AppRole` at `approle`.
    pub fn add_namespace(&self, path: &str) {
        let mut state = self.shared.state();
        let path = if path.is_empty() { String::new() } else { format!("{path}/") };
        let namespace = state.namespaces.entry(path).or_insert_with(Namespace::new);
        let kv = Mount::new(Engine::Versioned(kv::Kv::default()));
        namespace.mounts.insert("secret/".to_owned(), kv);
        namespace.auth.insert("approle/".to_owned(), approle::AppRoles::default());
    }

    #[track_caller]
    pub fn mount_kv(&self, path: &str) {
        let body = json!({ "type": "kv", "options": { "version": "2" } });
        self.done_as_root("POST", &format!("sys/mounts/{path}"), Some(&body));
    }

    #[track_caller]
    pub fn policy(&self, name: &str, hcl: &str) {
        let body = json!({ "policy": hcl });
        self.done_as_root("POST", &format!("sys/policies/acl/{name}"), Some(&body));
    }

    /// A new orphan token, with the fields of `auth/token/create`.
    #[track_caller]
    pub fn token(&self, fields: &Value) -> String {
        let answer = self.done_as_root("POST", "auth/token/create-orphan", Some(fields));
        answer["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    /// Makes or changes a role of `approle`; with a new secret id.
    #[track_caller]
    pub fn approle(&self, name: &str, fields: &Value) -> AppRole {
        self.done_as_root("POST", &format!("auth/approle/role/{name}"), Some(fields));
        let role_id = self.done_as_root("GET", &format!("auth/approle/role/{name}/role-id"), None);
        AppRole {
            role_id: role_id["data"]["role_id"].as_str().expect("a role id").to_owned(),
            secret_id: self.secret_id(name),
        }
    }

    #[track_caller]
    pub fn secret_id(&self, role: &str) -> String {
        let path = format!("auth/approle/role/{role}/secret-id");
        let answer = self.done_as_root("POST", &path, Some(&json!({})));
        answer["data"]["secret_id"].as_str().expect("a secret id").to_owned()
    }

    /// A wrapping token around a new secret id.
    #[track_caller]
    pub fn wrapped_secret_id(&self, role: &str, ttl: &str) -> String {
        let call = Call {
            method: "POST".to_owned(),
            path: format!("auth/approle/role/{role}/secret-id"),
            token: Some(Self::ROOT_TOKEN.to_owned()),
            wrap_ttl: Some(ttl.to_owned()),
            ..Call::default()
        };
        let reply = self.shared.state().handle(&call, self.shared.clock.now());
        let answer: Value = serde_json::from_slice(&reply.body).expect("JSON");
        answer["wrap_info"]["token"].as_str().expect("a wrapping token").to_owned()
    }

    /// The fields of a secret of `secret/`; `None` when there is none to read.
    #[track_caller]
    pub fn read(&self, path: &str) -> Option<Value> {
        let (status, answer) = self.as_root("GET", &format!("secret/data/{path}"), None);
        assert!(matches!(status, 200 | 404), "{status} {answer}");
        (status == 200).then(|| answer["data"]["data"].clone())
    }

    /// Replaces a secret of `secret/`; its new version.
    #[track_caller]
    pub fn write(&self, path: &str, fields: &Value) -> u64 {
        let body = json!({ "data": fields });
        let answer = self.done_as_root("POST", &format!("secret/data/{path}"), Some(&body));
        answer["data"]["version"].as_u64().expect("a version")
    }

    pub fn revoke(&self, token: &str) {
        self.shared.state().revoke(token);
    }

    /// Ends every token but the root's.
    pub fn revoke_all(&self) {
        self.shared.state().tokens.retain(|id, _| id == Self::ROOT_TOKEN);
    }

    /// How many tokens live: the root's and the others.
    pub fn living_tokens(&self) -> usize {
        let (state, now) = (self.shared.state(), self.shared.clock.now());
        state.tokens.keys().filter(|id| state.living(id, now).is_some()).count()
    }

    pub fn seal(&self) {
        self.shared.state().sealed = true;
    }

    pub fn unseal(&self) {
        self.shared.state().sealed = false;
    }

    pub fn unseal_key(&self) -> String {
        self.shared.state().unseal_key.clone()
    }

    // What goes wrong.

    /// A fault, to be narrowed down and switched on.
    pub fn fault(&self, fault: Fault) -> Draft<'_> {
        self.shared.faults.draft(fault)
    }

    /// Ends all faults; what hangs goes on.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// As a kill of the process: open connections end, new ones are refused, the port stays
    /// this server's. No request has an effect after this returns. The state stays.
    pub fn stop(&self) {
        self.listening.stop();
    }

    /// Listens again, on the same port and socket.
    pub fn restart(&self) {
        self.listening.restart();
    }

    /// Ends every open connection, as a load balancer does with idle ones.
    pub fn close_connections(&self) {
        self.listening.close_connections();
    }

    // What came.

    pub fn requests(&self) -> Vec<Entry> {
        self.shared.journal.entries()
    }

    /// How many requests of this method came for paths (without `/v1/`) that begin so.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests().iter().filter(|entry| entry.is(method, path)).count()
    }

    /// Those of [`VaultServer::count`] that were answered by this status.
    pub fn answered(&self, method: &str, path: &str, status: u16) -> usize {
        let fits = |entry: &&Entry| entry.is(method, path) && entry.status == Some(status);
        self.requests().iter().filter(fits).count()
    }

    /// How many requests were under way at once, at most.
    pub fn most_in_flight(&self) -> usize {
        journal::most_at_once(&self.requests())
    }

    /// Forgets what came so far.
    pub fn clear_requests(&self) {
        self.shared.journal.clear();
    }

    #[track_caller]
    pub fn wait_for_requests(&self, method: &str, path: &str, count: usize) {
        self.shared.journal.wait_until(&format!("{count} times {method} {path}"), |entries| {
            entries.iter().filter(|entry| entry.is(method, path)).count() >= count
        });
    }

    /// Waits until what came fits.
    #[track_caller]
    pub fn wait_until(&self, what: &str, condition: impl Fn(&[Entry]) -> bool) {
        self.shared.journal.wait_until(what, condition);
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> u64 {
        self.listening.accepted()
    }

    /// How many connections are open.
    pub fn open_connections(&self) -> usize {
        self.listening.open()
    }
}

impl Got {
    /// Fails the test unless the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }
}
