//! Shared by the tests of the hashicorp backend: a real server, an operator's requests to it, and
//! the service in front of it.

#![allow(dead_code, reason = "each test program uses its own part of this")]

#[path = "bao.rs"]
pub mod bao;
#[path = "proxy.rs"]
pub mod proxy;

#[cfg(target_os = "linux")]
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
#[cfg(target_os = "linux")]
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use intentframe_credentials::backend::HashiCorpVault;
use intentframe_credentials::{CredentialRef, CredentialVault, Secret, SecretWatch, VaultError};
use serde_json::{Value, json};

use super::support::{Connection, Place, Response, Service, Setup, delete, get, put, skip};
use bao::Server;
use proxy::Proxy;

/// The policy in docs/vault.md.
pub const POLICY: &str = r#"
    path "MOUNT/data/intentframe/*" { capabilities = ["create", "update", "patch", "read", "delete"] }
    path "MOUNT/metadata/intentframe/*" { capabilities = ["read", "list", "delete"] }"#;

/// The same policy, without `PATCH`.
pub const POLICY_WITHOUT_PATCH: &str = r#"
    path "MOUNT/data/intentframe/*" { capabilities = ["create", "update", "read", "delete"] }
    path "MOUNT/metadata/intentframe/*" { capabilities = ["read", "list", "delete"] }"#;

/// A policy that allows destroying old versions, but not deleting metadata.
pub const POLICY_WITH_DESTROY: &str = r#"
    path "MOUNT/data/intentframe/*" { capabilities = ["create", "update", "patch", "read", "delete"] }
    path "MOUNT/metadata/intentframe/*" { capabilities = ["read", "list"] }
    path "MOUNT/destroy/intentframe/*" { capabilities = ["update"] }"#;

/// How the service may write a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With `PATCH`.
    Patch,
    /// With `PATCH` and check-and-set, which the mount requires.
    CasRequired,
    /// As a whole, since the capability `patch` is missing.
    NoPatch,
}

pub const MODES: [Mode; 3] = [Mode::Patch, Mode::CasRequired, Mode::NoPatch];

/// A test's view of the shared server: through the test's own proxy, with a KV v2 mount, policies
/// and roles that no other test uses.
pub struct Target {
    pub server: &'static Server,
    pub proxy: Proxy,
    /// For the one service that most tests start.
    pub place: Place,
    pub mount: String,
    tag: String,
    /// The paths that the operator has created.
    made: Mutex<Vec<String>>,
}

/// An `AppRole` login.
pub struct AppRole {
    pub role_id: String,
    pub secret_id: String,
}

impl Target {
    /// Returns `None` if there is no server, and reports it. Under CI that fails the test.
    #[track_caller]
    pub fn new() -> Option<Self> {
        let Some(server) = Server::shared() else {
            skip("there is no OpenBao or Vault; scripts/install-test-deps provides one");
            return None;
        };
        let tag = format!("ift-{:016x}-", RandomState::new().hash_one(0));
        let proxy = Proxy::start(&server.address);
        let (place, mount, made) = (Place::new(), format!("{tag}kv"), Mutex::default());
        let target = Self { server, proxy, place, mount, tag, made };
        target.mount_kv(&target.mount, 2);
        Some(target)
    }

    pub fn operate(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.server.operate(method, path, body)
    }

    /// Like [`operate`](Self::operate), but fails the test unless the request succeeds.
    #[track_caller]
    pub fn done(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.server.done(method, path, body)
    }

    /// Returns a name that nobody else uses on the server.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.tag)
    }

    fn made(&self, path: String) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(path);
    }

    /// Mounts a KV engine.
    #[track_caller]
    pub fn mount_kv(&self, path: &str, version: u8) {
        self.server.mount_kv("", path, version);
        self.made(format!("sys/mounts/{path}"));
    }

    /// Writes a policy, in which `MOUNT` stands for the mount, and returns its name.
    #[track_caller]
    pub fn policy(&self, name: &str, hcl: &str) -> String {
        let name = self.name(name);
        let path = format!("sys/policies/acl/{name}");
        self.done("POST", &path, Some(&json!({ "policy": hcl.replace("MOUNT", &self.mount) })));
        self.made(path);
        name
    }

    /// Creates a token, with the fields of `auth/token/create-orphan`.
    #[track_caller]
    pub fn token(&self, fields: &Value) -> String {
        let answer = self.done("POST", "auth/token/create-orphan", Some(fields));
        answer["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    /// Creates a token with this policy.
    #[track_caller]
    pub fn token_for(&self, policy: &str) -> String {
        let name = self.policy(&format!("p{:016x}", RandomState::new().hash_one(0)), policy);
        self.token(&json!({ "policies": [name], "ttl": "1h" }))
    }

    /// Creates a token that makes the service write in this way, and sets up the mount for it.
    #[track_caller]
    pub fn token_of_mode(&self, mode: Mode) -> String {
        if mode == Mode::CasRequired {
            let config = json!({ "cas_required": true });
            self.done("POST", &format!("{}/config", self.mount), Some(&config));
        }
        self.token_for(if mode == Mode::NoPatch { POLICY_WITHOUT_PATCH } else { POLICY })
    }

    /// Creates a role with these fields and the usual policy, and a secret ID.
    #[track_caller]
    pub fn approle(&self, name: &str, mut fields: Value) -> AppRole {
        if fields.get("token_policies").is_none() {
            fields["token_policies"] = json!([self.policy(&format!("{name}-policy"), POLICY)]);
        }
        let path = format!("auth/approle/role/{}", self.name(name));
        self.done("POST", &path, Some(&fields));
        self.made(path.clone());
        let role_id = self.done("GET", &format!("{path}/role-id"), None);
        AppRole {
            role_id: role_id["data"]["role_id"].as_str().expect("a role id").to_owned(),
            secret_id: self.secret_id(name),
        }
    }

    #[track_caller]
    pub fn secret_id(&self, role: &str) -> String {
        let path = format!("auth/approle/role/{}/secret-id", self.name(role));
        let answer = self.done("POST", &path, Some(&json!({})));
        answer["data"]["secret_id"].as_str().expect("a secret id").to_owned()
    }

    /// Creates a secret ID and returns a wrapping token for it.
    #[track_caller]
    pub fn wrapped_secret_id(&self, role: &str) -> String {
        self.wrapped(&format!("auth/approle/role/{}/secret-id", self.name(role)), &json!({}))
    }

    /// Returns a wrapping token for `content`, which any client can create.
    #[track_caller]
    pub fn forged_wrapping(&self, content: &Value) -> String {
        self.wrapped("sys/wrapping/wrap", content)
    }

    fn wrapped(&self, path: &str, body: &Value) -> String {
        let answer =
            self.server.done_with("POST", path, &["X-Vault-Wrap-TTL: 60s\r\n"], Some(body));
        answer["wrap_info"]["token"].as_str().expect("a wrapping token").to_owned()
    }

    /// Returns the accessors of the role's live tokens.
    #[track_caller]
    pub fn accessors(&self, role: &str) -> Vec<String> {
        let role = json!(self.name(role));
        let all = self.done("LIST", "auth/token/accessors", None);
        let all = all["data"]["keys"].as_array().cloned().unwrap_or_default();
        let is_of_role = |accessor: &Value| {
            // The token may have expired in the meantime.
            let body = json!({ "accessor": accessor });
            let (_, token) = self.operate("POST", "auth/token/lookup-accessor", Some(&body));
            token["data"]["meta"]["role_name"] == role
        };
        let found = all.iter().filter(|accessor| is_of_role(accessor));
        found.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Revokes every token of the role.
    #[track_caller]
    pub fn revoke_tokens_of(&self, role: &str) {
        for accessor in self.accessors(role) {
            let body = json!({ "accessor": accessor });
            self.done("POST", "auth/token/revoke-accessor", Some(&body));
        }
    }

    #[track_caller]
    pub fn revoke(&self, token: &str) {
        self.done("POST", "auth/token/revoke", Some(&json!({ "token": token })));
    }

    /// Returns the path of the namespace's secret; `what` is `data`, `metadata` and so on.
    pub fn path(&self, what: &str, namespace: &str) -> String {
        format!("{}/{what}/intentframe/{namespace}", self.mount)
    }

    /// Returns the fields of the namespace's secret, or `None` if there is nothing to read.
    #[track_caller]
    pub fn read(&self, namespace: &str) -> Option<Value> {
        let (status, answer) = self.operate("GET", &self.path("data", namespace), None);
        assert!(matches!(status, 200 | 404), "{status} {answer}");
        (status == 200).then(|| answer["data"]["data"].clone())
    }

    /// Replaces the namespace's secret, as another client would.
    #[track_caller]
    pub fn write(&self, namespace: &str, fields: &Value) {
        let path = self.path("data", namespace);
        let version = self.operate("GET", &self.path("metadata", namespace), None).1;
        let version = version["data"]["current_version"].as_u64().unwrap_or(0);
        self.done("POST", &path, Some(&json!({ "data": fields, "options": { "cas": version } })));
    }

    /// Changes some fields of the namespace's secret, as another service would.
    #[track_caller]
    pub fn patch(&self, namespace: &str, fields: &Value) {
        self.done("PATCH", &self.path("data", namespace), Some(&json!({ "data": fields })));
    }

    /// Returns the metadata of the namespace's secret, if there is any.
    #[track_caller]
    pub fn metadata(&self, namespace: &str) -> Option<Value> {
        let (status, answer) = self.operate("GET", &self.path("metadata", namespace), None);
        assert!(matches!(status, 200 | 404), "{status} {answer}");
        (status == 200).then(|| answer["data"].clone())
    }

    /// Returns the namespaces that have a secret, deleted or not.
    #[track_caller]
    pub fn namespaces(&self) -> Vec<Value> {
        let answer = self.operate("LIST", &format!("{}/metadata/intentframe", self.mount), None).1;
        answer["data"]["keys"].as_array().cloned().unwrap_or_default()
    }

    // The service in front of the server.

    /// Prepares a service without a token or an AppRole.
    pub fn bare_setup(&self, place: &Place) -> Setup {
        place
            .setup_with("hashicorp")
            .env("VAULT_ADDR", &self.proxy.address)
            .env("VAULT_KV_MOUNT", &self.mount)
    }

    pub fn setup(&self, place: &Place, token: &str) -> Setup {
        self.bare_setup(place).env("VAULT_TOKEN", token)
    }

    pub fn setup_with_role(&self, place: &Place, role: &AppRole) -> Setup {
        self.bare_setup(place)
            .env("VAULT_ROLE_ID", &role.role_id)
            .env("VAULT_SECRET_ID", &role.secret_id)
    }

    /// Starts a service whose token has this policy.
    #[track_caller]
    pub fn service(&self, policy: &str) -> Service {
        self.setup(&self.place, &self.token_for(policy)).start()
    }

    #[track_caller]
    pub fn service_of_mode(&self, mode: Mode) -> Service {
        self.setup(&self.place, &self.token_of_mode(mode)).start()
    }

    /// Starts a service that logs in with the role `r`, which has these fields.
    #[track_caller]
    pub fn role_service(&self, fields: Value) -> Service {
        let role = self.approle("r", fields);
        self.setup_with_role(&self.place, &role).start()
    }

    /// Creates the backend without a service, with these variables in addition to address and
    /// mount.
    pub fn vault(&self, variables: &[(&str, &str)]) -> HashiCorpVault {
        self.watched_vault(variables, None)
    }

    pub fn watched_vault(
        &self,
        variables: &[(&str, &str)],
        secret_watch: Option<SecretWatch>,
    ) -> HashiCorpVault {
        let own = [("VAULT_KV_MOUNT", &*self.mount), ("VAULT_ADDR", &*self.proxy.address)];
        let environment = own.into_iter().chain(variables.iter().copied());
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        HashiCorpVault::new(&environment.collect(), secret_watch).expect("the settings are good")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.server.own {
            return;
        }
        for path in std::mem::take(self.made.get_mut().unwrap_or_else(PoisonError::into_inner)) {
            let status = self.operate("DELETE", &path, None).0;
            if !(200..300).contains(&status) {
                eprintln!("left on the server: {path} ({status})");
            }
        }
    }
}

// Requests to the service.

/// Returns the credential's path.
pub fn at(namespace: &str, key: &str) -> String {
    format!("/v1/credentials/{namespace}/{key}")
}

pub fn store(service: &Service, namespace: &str, key: &str, value: &str) -> Response {
    service.put(&at(namespace, key), &json!({ "value": value }))
}

/// Stores a value, and fails the test if that fails.
#[track_caller]
pub fn stored(service: &Service, namespace: &str, key: &str, value: &str) {
    let answer = store(service, namespace, key, value);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

pub fn fetch(service: &Service, namespace: &str, key: &str) -> Response {
    service.get(&at(namespace, key))
}

pub fn remove(service: &Service, namespace: &str, key: &str) -> Response {
    service.connect().exchange(&delete(&at(namespace, key)))
}

/// Deletes a value, and fails the test if that fails.
#[track_caller]
pub fn removed(service: &Service, namespace: &str, key: &str) {
    let answer = remove(service, namespace, key);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Sends a request. The test reads the answer later.
#[must_use]
pub fn begin(service: &Service, request: &[u8]) -> Connection {
    let mut connection = service.connect();
    connection.send(request);
    connection
}

#[must_use]
pub fn begin_store(service: &Service, namespace: &str, key: &str, value: &str) -> Connection {
    begin(service, &put(&at(namespace, key), &json!({ "value": value })))
}

#[must_use]
pub fn begin_fetch(service: &Service, namespace: &str, key: &str) -> Connection {
    begin(service, &get(&at(namespace, key)))
}

#[must_use]
pub fn begin_remove(service: &Service, namespace: &str, key: &str) -> Connection {
    begin(service, &delete(&at(namespace, key)))
}

/// Returns `/health`, and fails the test unless it answers 200.
#[track_caller]
pub fn health(service: &Service) -> Value {
    let answer = service.get("/health");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// Waits until every thread of the service sleeps and none has run for a while. All requests have
/// then come as far as they can.
#[cfg(target_os = "linux")]
#[track_caller]
pub fn wait_until_quiet(service: &Service) {
    let directory = format!("/proc/{}/task", service.id());
    let (mut before, mut same) = (None, 0);
    super::support::wait_until("the service is quiet", || {
        let now = all_asleep(Path::new(&directory));
        same = if now.is_some() && now == before { same + 1 } else { 0 };
        before = now;
        same == 10
    });
}

/// Returns each thread's ID and its number of context switches, if all of them sleep.
#[cfg(target_os = "linux")]
fn all_asleep(directory: &Path) -> Option<Vec<(String, String)>> {
    let mut threads = Vec::new();
    for thread in fs::read_dir(directory).expect("the process is there") {
        // A thread may end in the meantime.
        let thread = thread.ok()?;
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let line = |name| status.lines().find_map(|line: &str| line.strip_prefix(name));
        if !line("State:")?.trim().starts_with('S') {
            return None;
        }
        let switches = line("voluntary_ctxt_switches:")?.trim().to_owned();
        threads.push((thread.file_name().into_string().ok()?, switches));
    }
    Some(threads)
}

// Calls to the backend without a service.

pub fn credential(namespace: &str, key: &str) -> CredentialRef {
    CredentialRef::parse(namespace, key).expect("valid names")
}

pub fn vault_get(
    vault: &HashiCorpVault,
    namespace: &str,
    key: &str,
) -> Result<Option<String>, VaultError> {
    let value = vault.get(&credential(namespace, key))?;
    Ok(value.map(|value| value.expose().to_owned()))
}

pub fn vault_store(
    vault: &HashiCorpVault,
    namespace: &str,
    key: &str,
    value: &str,
) -> Result<(), VaultError> {
    vault.store(&credential(namespace, key), &Secret::new(value.to_owned()))
}
