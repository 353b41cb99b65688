//! [`VaultClient`]: a blocking client of the service, over its Unix socket.

mod error;
mod http;

pub use error::ClientError;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::model::{
    CredentialRef, MaskedSummary, Namespace, RecordSummary, RuntimeEnvEntry, StoreRequest, Validity,
};
use crate::secret::{Secret, wiped_json};
use crate::settings::{self, Environment, PathError};
use http::{Answer, Http};

/// The default of [`ClientOptions::timeout`].
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A blocking client of the service, over its Unix socket.
///
/// It connects on the first request, keeps connections alive, and can be shared between
/// threads. Before it sends anything, it asks the kernel which user the server runs as: this
/// process's user, root, or [`ClientOptions::server_uid`]. It refuses any other.
///
/// The service may close a kept connection, for example when it restarts. The client then
/// sends a read again on a new connection. It repeats a store or a delete only if the server
/// certainly did not read it: a change that was made, and then made again, could undo what
/// someone else stored in between. Otherwise it returns [`ClientError::OutcomeUnknown`].
///
/// ```no_run
/// use intentframe_credentials::CredentialRef;
/// use intentframe_credentials::client::VaultClient;
///
/// let vault = VaultClient::new("/run/user/1000/credential-vault.sock");
/// let at = CredentialRef::parse("openai", "api_key")?;
/// if let Some(key) = vault.get(&at)? {
///     assert!(key.expose().starts_with("sk-"));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct VaultClient(Http);

/// Settings of a [`VaultClient`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long one call may take as a whole, [`DEFAULT_TIMEOUT`] by default.
    pub timeout: Duration,
    /// A user ID that the service may run as, besides root and this process's user.
    pub server_uid: Option<u32>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { timeout: DEFAULT_TIMEOUT, server_uid: None }
    }
}

/// The answer to `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok` when the service works.
    pub status: String,
    /// The backend's name, such as `KeyringVault`.
    pub backend: String,
    /// How many credentials the service knows.
    pub credential_count: u64,
    /// Further fields, such as those of a later version.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl VaultClient {
    /// Creates a client of the service that listens on `socket`. Does not connect yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::with_options(socket, &ClientOptions::default())
    }

    /// Creates a client with settings of its own.
    #[must_use]
    pub fn with_options(socket: impl Into<PathBuf>, options: &ClientOptions) -> Self {
        Self(Http { socket: socket.into(), options: options.clone(), idle: Mutex::default() })
    }

    /// Creates a client of the service on `socket`, else on the socket that
    /// `INTENTFRAME_VAULT_SOCKET` names in `environment`, else on the default one.
    ///
    /// # Errors
    ///
    /// [`PathError`], when a `~` in the path cannot be resolved.
    pub fn from_environment(
        socket: Option<&Path>,
        environment: &Environment,
        options: &ClientOptions,
    ) -> Result<Self, PathError> {
        Ok(Self::with_options(settings::socket(socket, environment)?, options))
    }

    /// The socket of the service.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.0.socket
    }

    /// Asks whether the service works.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn health(&self) -> Result<Health, ClientError> {
        self.read("/health")
    }

    /// Reads a value. Returns `None` if there is no such credential.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, ClientError> {
        self.value(&path_of(at))
    }

    /// Reads a value on behalf of a systemd system unit, such as `edi.service`, which gets what
    /// the policy of the service gives it. Only the service's user and root may ask. Returns
    /// `None` if there is no such credential.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; [`ClientError::Refused`] without such a policy.
    pub fn get_for_unit(
        &self,
        unit: &str,
        at: &CredentialRef,
    ) -> Result<Option<Secret>, ClientError> {
        self.value(&format!("/v1/units/{}/{}", segment(unit), segments(at)))
    }

    fn value(&self, path: &str) -> Result<Option<Secret>, ClientError> {
        #[derive(Deserialize)]
        struct Found {
            value: String,
        }

        let found = found(self.read::<Found>(path))?;
        Ok(found.map(|found| Secret::new(found.value)))
    }

    /// Asks whether there is such a credential. Does not set `last_used_at`.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn has(&self, at: &CredentialRef) -> Result<bool, ClientError> {
        found(self.call("HEAD", &path_of(at), b"")).map(|found| found.is_some())
    }

    /// Stores a value. Replaces an earlier one.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; after [`ClientError::TimedOut`] and [`ClientError::OutcomeUnknown`]
    /// the value may have been stored.
    pub fn store(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), ClientError> {
        self.call("PUT", &path_of(at), &store_body(request)).map(drop)
    }

    /// Deletes a credential. Succeeds even if there was none.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; after [`ClientError::TimedOut`] and [`ClientError::OutcomeUnknown`]
    /// the credential may have been deleted.
    pub fn delete(&self, at: &CredentialRef) -> Result<(), ClientError> {
        self.call("DELETE", &path_of(at), b"").map(drop)
    }

    /// Lists all credentials, ordered by namespace and key.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn list_all(&self) -> Result<Vec<MaskedSummary>, ClientError> {
        self.read("/v1/credentials")
    }

    /// Lists the credentials of one namespace, ordered by key. An unknown namespace has none.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn list_namespace(&self, namespace: &Namespace) -> Result<Vec<MaskedSummary>, ClientError> {
        self.read(&format!("/v1/credentials/{}", segment(namespace.as_str())))
    }

    /// Lists all credentials with all their metadata, ordered by namespace and key.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; [`ClientError::Protocol`] if the service does not know this listing.
    pub fn records(&self) -> Result<Vec<RecordSummary>, ClientError> {
        found(self.read("/v1/records"))?.ok_or_else(|| {
            self.0.protocol("it has no /v1/records: it is of an older version".to_owned())
        })
    }

    /// Notes the result of a validator. Returns whether the value is still the one that it checked;
    /// if not, nothing has changed.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn note_validity(&self, at: &CredentialRef, result: Validity) -> Result<bool, ClientError> {
        let body = json!(result).to_string();
        match self.call("PUT", &format!("/v1/validations/{}", segments(at)), body.as_bytes()) {
            Err(ClientError::Refused { status: 409, .. }) => Ok(false),
            outcome => outcome.map(|_| true),
        }
    }

    /// Lists the credentials that are delivered as environment variables, without values.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn list_runtime_env(&self) -> Result<Vec<RuntimeEnvEntry>, ClientError> {
        self.read("/v1/runtime-env")
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.call("GET", path, b"")?;
        serde_json::from_slice(answer.body()).map_err(|error| {
            // serde_json's message may quote what it read.
            self.0.protocol(format!("the JSON of its answer is wrong (column {})", error.column()))
        })
    }

    /// Returns the answer if its status is 200.
    fn call(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer, ClientError> {
        let answer = self.0.ask(method, path, body)?;
        let status = answer.status;
        if status == 200 {
            return Ok(answer);
        }
        let given = detail(answer.body());
        // Any web server answers 404, but not with a reason like that of the vault.
        if status == 404 && given.is_none() && method != "HEAD" {
            return Err(self.0.protocol("it answered 404 without a reason".to_owned()));
        }
        let detail = given.unwrap_or_else(|| "it gave no reason; its log may".to_owned());
        Err(match status {
            400..=499 => ClientError::Refused { status, detail },
            500..=599 => ClientError::Failed { status, detail },
            _ => self.0.protocol(format!("it answered with status {status}")),
        })
    }
}

/// Returns `None` for an answer with status 404.
fn found<T>(outcome: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match outcome {
        Err(ClientError::Refused { status: 404, .. }) => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// The `detail` of an error. Of a list, only the place and the message of each fault: a
/// service may echo the input in it.
fn detail(body: &[u8]) -> Option<String> {
    let show = |fault: &Value| {
        let part = |it: &Value| it.to_string().replace('"', "");
        let place: Vec<String> = fault["loc"].as_array()?.iter().map(part).collect();
        Some(format!("{}: {}", place.join("."), fault["msg"].as_str()?))
    };
    match &serde_json::from_slice::<Value>(body).ok()?["detail"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(faults) => {
            Some(faults.iter().map(show).collect::<Option<Vec<_>>>()?.join("; "))
        }
        _ => None,
    }
}

fn path_of(at: &CredentialRef) -> String {
    format!("/v1/credentials/{}", segments(at))
}

fn segments(at: &CredentialRef) -> String {
    format!("{}/{}", segment(at.namespace().as_str()), segment(at.key()))
}

/// A path segment, in which all but the unreserved characters of RFC 3986 are
/// percent-encoded.
fn segment(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// The JSON of a store, in a buffer that is wiped.
fn store_body(request: &StoreRequest) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<'a> {
        value: &'a str,
        #[serde(flatten)]
        rest: &'a StoreRequest,
    }
    wiped_json(&Body { value: request.value.expose(), rest: request })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_can_share_a_client() {
        fn shared<T: Send + Sync>() {}
        shared::<VaultClient>();
        shared::<ClientError>();
    }

    #[test]
    fn segments_are_percent_encoded() {
        let at =
            CredentialRef::parse("email.you@gmail.com", "a b%c/é~-_.".replace('/', "").as_str())
                .expect("valid");
        assert_eq!(path_of(&at), "/v1/credentials/email.you%40gmail.com/a%20b%25c%C3%A9~-_.");
    }

    #[test]
    fn details_show_no_input() {
        let detail = |body: &str| detail(body.as_bytes());
        assert_eq!(detail(r#"{"detail":"Not Found"}"#).as_deref(), Some("Not Found"));
        assert_eq!(
            detail(
                r#"{"detail":[{"type":"t","loc":["body","value"],"msg":"m","input":"sk-canary"},
                              {"type":"t","loc":["body",0],"msg":"n"}]}"#
            )
            .as_deref(),
            Some("body.value: m; body.0: n")
        );
        assert_eq!(detail("Internal Server Error"), None);
        assert_eq!(detail(""), None);
    }

    #[test]
    fn the_buffer_of_a_store_does_not_grow() {
        let mut request = StoreRequest::new(Secret::new("\u{1}".repeat(10_000)));
        request.env_name = Some("NAME".into());
        let body = store_body(&request);
        assert_eq!(body.capacity(), body.len());
        assert!(body.ends_with(
            br#"","delivery_mode":"executor_only","allowed_consumers":[],"env_name":"NAME","validator_id":null}"#
        ));
    }
}
