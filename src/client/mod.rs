//! [`VaultClient`]: the vault, asked over its socket.

mod error;

pub use error::ClientError;

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ureq::http::{Method, Request};
use zeroize::Zeroizing;

use crate::model::{
    CredentialRef, DeliveryMode, MaskedSummary, Namespace, RuntimeEnvEntry, StoreRequest,
};
use crate::secret::Secret;
use crate::settings::{self, Environment, PathError};
use crate::transport::{
    Era, ForeignServer, NoResolver, NotConnected, OwnedUnixConnector, Owners, Unanswered,
};

/// How long an answer may take, unless [`ClientOptions::timeout`] says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read: about 300,000 summaries.
const MAX_ANSWER_BYTES: u64 = 128 * 1024 * 1024;

/// How much of an unexpected answer is read for its `detail`.
const MAX_DETAIL_BYTES: usize = 64 * 1024;

/// A blocking client of the service, over its Unix socket.
///
/// It connects when it is first asked, keeps connections alive, and may be shared
/// between threads. Before anything is sent, the kernel is asked whom the server runs as:
/// it has to be this process's user, root, or [`ClientOptions::server_uid`].
///
/// A request whose kept connection turns out to be closed, before any byte of an answer, is
/// sent once more on a fresh one. A store or a delete only when the server certainly had not
/// read it: one that was carried out after all, and then repeated, could undo what somebody
/// else has stored meanwhile. It is [`ClientError::OutcomeUnknown`] instead.
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
///
/// # Logging
///
/// At level TRACE the HTTP library beneath prints every byte that it sends and receives,
/// values included, under the target `ureq_proto::util`. A program that uses this client
/// must keep the targets `ureq` and `ureq_proto` at INFO or above.
#[derive(Debug)]
pub struct VaultClient {
    socket: PathBuf,
    timeout: Duration,
    agent: ureq::Agent,
    /// Of the kept connections, which are not looked at before they are used.
    era: Era,
}

/// How a [`VaultClient`] asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long one request may take as a whole; [`DEFAULT_TIMEOUT`].
    pub timeout: Duration,
    /// Whom the service may run as, besides root and the user of this process.
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
    /// What a later version of the service says besides.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl VaultClient {
    /// A client of the service that listens on `socket`. Does not connect yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self::with_options(socket, &ClientOptions::default())
    }

    /// A client of the service on `socket`, else on that of `INTENTFRAME_VAULT_SOCKET` in
    /// `environment`, else on the default one.
    ///
    /// # Errors
    ///
    /// [`PathError`], when a `~` in the path leads nowhere.
    pub fn from_environment(
        socket: Option<&Path>,
        environment: &Environment,
        options: &ClientOptions,
    ) -> Result<Self, PathError> {
        Ok(Self::with_options(settings::socket(socket, environment)?, options))
    }

    /// A client of the service that listens on `socket`, which asks as `options` say.
    #[must_use]
    pub fn with_options(socket: impl Into<PathBuf>, options: &ClientOptions) -> Self {
        /// The service keeps an idle connection for 75 s.
        const MAX_IDLE: Duration = Duration::from_mins(1);
        /// As many as threads are likely to ask at a time.
        const MAX_KEPT: usize = 64;

        let socket = socket.into();
        let &ClientOptions { timeout, server_uid } = options;
        let config = ureq::Agent::config_builder()
            // ureq takes a proxy from HTTP_PROXY unless told that there is none.
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeout))
            .max_idle_age(MAX_IDLE)
            .max_idle_connections(MAX_KEPT)
            .max_idle_connections_per_host(MAX_KEPT)
            .user_agent(concat!("credential-vault/", env!("CARGO_PKG_VERSION")))
            .build();
        let ours = rustix::process::geteuid().as_raw();
        let owners = Owners { ours, trusted: server_uid };
        let era = Era::default();
        let connector = OwnedUnixConnector::new(socket.clone(), owners, era.clone());
        let agent = ureq::Agent::with_parts(config, connector, NoResolver);
        Self { socket, timeout, agent, era }
    }

    /// The socket that is asked.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How the service is.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn health(&self) -> Result<Health, ClientError> {
        self.read("/health")
    }

    /// The value, or `None` when there is no such credential.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, ClientError> {
        #[derive(Deserialize)]
        struct Answer {
            value: String,
        }

        let answer = self.ask(&Method::GET, &path_of(at), None)?;
        match answer.status {
            200 => {
                let Answer { value } = self.parse(&answer)?;
                Ok(Some(Secret::new(value)))
            }
            404 if answer.detail().is_some() => Ok(None),
            404 => Err(self.protocol("it answered 404 without a reason".to_owned())),
            _ => Err(self.unexpected(&answer)),
        }
    }

    /// Whether there is such a credential. Does not count as a use of it.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn has(&self, at: &CredentialRef) -> Result<bool, ClientError> {
        let answer = self.ask(&Method::HEAD, &path_of(at), None)?;
        match answer.status {
            200 => Ok(true),
            404 => Ok(false),
            _ => Err(self.unexpected(&answer)),
        }
    }

    /// Stores a value, over an earlier one if there is one.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; after [`ClientError::TimedOut`] and [`ClientError::OutcomeUnknown`]
    /// it may have been stored all the same.
    pub fn store(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), ClientError> {
        let answer = self.ask(&Method::PUT, &path_of(at), Some(&store_body(request)))?;
        self.expect_success(&answer)
    }

    /// Deletes a credential; that there was none is as good.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; after [`ClientError::TimedOut`] and [`ClientError::OutcomeUnknown`]
    /// it may have been deleted all the same.
    pub fn delete(&self, at: &CredentialRef) -> Result<(), ClientError> {
        let answer = self.ask(&Method::DELETE, &path_of(at), None)?;
        self.expect_success(&answer)
    }

    /// Every credential, by namespace and key.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn list_all(&self) -> Result<Vec<MaskedSummary>, ClientError> {
        self.read("/v1/credentials")
    }

    /// The credentials of one namespace, by key; none for one that is not known.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn list_namespace(&self, namespace: &Namespace) -> Result<Vec<MaskedSummary>, ClientError> {
        self.read(&format!("/v1/credentials/{}", Segment(namespace.as_str())))
    }

    /// The credentials that are delivered as environment variables; no values.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub fn list_runtime_env(&self) -> Result<Vec<RuntimeEnvEntry>, ClientError> {
        self.read("/v1/runtime-env")
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.ask(&Method::GET, path, None)?;
        match answer.status {
            200 => self.parse(&answer),
            _ => Err(self.unexpected(&answer)),
        }
    }

    fn expect_success(&self, answer: &Answer) -> Result<(), ClientError> {
        match answer.status {
            200 | 204 => Ok(()),
            _ => Err(self.unexpected(answer)),
        }
    }

    fn parse<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ClientError> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            // serde_json's message may quote what it read, so only the place is told.
            self.protocol(format!(
                "the JSON of its answer is not what it should be (column {})",
                error.column()
            ))
        })
    }

    /// The error that a status other than success stands for.
    fn unexpected(&self, answer: &Answer) -> ClientError {
        let status = answer.status;
        let detail = || match (answer.detail(), status) {
            (Some(detail), _) => detail,
            // The answer to HEAD has no body to say it in.
            (None, 403) => "it does not serve this user".to_owned(),
            (None, 503) => "its backend is unavailable; its log says why".to_owned(),
            (None, _) => "it gave no reason; its log may".to_owned(),
        };
        match status {
            400..=499 => ClientError::Refused { status, detail: detail() },
            500..=599 => ClientError::Failed { status, detail: detail() },
            _ => self.protocol(format!("it answered with status {status}")),
        }
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { socket: self.socket.clone(), reason }
    }

    /// Sends a request and reads the answer; once more on a fresh connection when a kept
    /// one turns out to be closed, and to do so again is safe (RFC 9110, 9.2.1 and 9.2.2).
    fn ask(&self, method: &Method, path: &str, body: Option<&[u8]>) -> Result<Answer, ClientError> {
        let only_reads = method.is_safe();
        let may_repeat = |gone: &Unanswered| gone.was_kept && (only_reads || gone.was_not_taken);
        let mut asked = self.ask_once(method, path, body);
        if asked.as_ref().is_err_and(|error| unanswered(error).is_some_and(may_repeat)) {
            // What closed this one has closed the others: a service that was restarted.
            self.era.end();
            asked = self.ask_once(method, path, body);
        }
        asked.map_err(|error| match unanswered(&error) {
            Some(gone) if !only_reads && !gone.was_not_taken => {
                ClientError::OutcomeUnknown { socket: self.socket.clone() }
            }
            _ => self.explain(error),
        })
    }

    fn ask_once(
        &self,
        method: &Method,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<Answer, ureq::Error> {
        let request =
            Request::builder().method(method).uri(format!("http://credential-vault{path}"));
        let mut response = match body {
            None => self.agent.run(request.body(())?)?,
            Some(body) => {
                self.agent.run(request.header("Content-Type", "application/json").body(body)?)?
            }
        };
        let status = response.status().as_u16();
        // Room for all of it, so that growing leaves no copies behind.
        let expected = response.body().content_length().unwrap_or(0).min(MAX_ANSWER_BYTES);
        let mut body =
            Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1));
        response
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER_BYTES)
            .reader()
            .read_to_end(&mut body)
            .map_err(ureq::Error::from)?;
        Ok(Answer { status, body })
    }

    fn explain(&self, error: ureq::Error) -> ClientError {
        let socket = self.socket.clone();
        match error {
            ureq::Error::Other(other) => match other.downcast::<NotConnected>() {
                Ok(refused) if refused.0.kind() == io::ErrorKind::TimedOut => {
                    ClientError::TimedOut { socket, after: self.timeout }
                }
                Ok(refused) => {
                    ClientError::Unreachable { socket, reason: why_not_connected(&refused.0) }
                }
                Err(other) => match other.downcast::<ForeignServer>() {
                    Ok(foreign) => ClientError::ForeignServer { socket, uid: foreign.uid },
                    Err(other) => self.protocol(other.to_string()),
                },
            },
            ureq::Error::Timeout(_) => ClientError::TimedOut { socket, after: self.timeout },
            ureq::Error::Io(error) if is_gone(&error) => ClientError::Unreachable {
                socket,
                reason: "it closed the connection without an answer; see what its log says"
                    .to_owned(),
            },
            ureq::Error::Io(error) => {
                ClientError::Unreachable { socket, reason: error.to_string() }
            }
            ureq::Error::BodyExceedsLimit(_) => self.protocol("its answer is too long".to_owned()),
            // ureq's messages name the rule that was broken, and may quote bytes of the
            // answer; the rule's kind is enough.
            ureq::Error::Protocol(_) | ureq::Error::Http(_) => {
                self.protocol("it is no HTTP/1.1 answer".to_owned())
            }
            error => self.protocol(error.to_string()),
        }
    }
}

/// How the connection broke, if it did before any byte of the answer.
fn unanswered(error: &ureq::Error) -> Option<&Unanswered> {
    match error {
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn why_not_connected(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such socket; start the service (credential-vault serve), or name the \
             socket that it listens on"
                .to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nothing listens on the socket any more; start the service (credential-vault serve)"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "this user may not open the socket; the vault serves the user that started it"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

struct Answer {
    status: u16,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// What the body of an error says. Of a list, only where and what: a service may
    /// echo the input in it.
    fn detail(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Body {
            detail: Detail,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Detail {
            Text(String),
            Faults(Vec<Fault>),
        }
        #[derive(Deserialize)]
        struct Fault {
            #[serde(default)]
            loc: Vec<serde_json::Value>,
            msg: String,
        }

        if self.body.len() > MAX_DETAIL_BYTES {
            return None;
        }
        let Body { detail } = serde_json::from_slice(&self.body).ok()?;
        match detail {
            Detail::Text(text) => Some(text),
            Detail::Faults(faults) => Some(
                faults
                    .iter()
                    .map(|Fault { loc, msg }| {
                        let place: Vec<String> = loc
                            .iter()
                            .map(|part| part.as_str().map_or(part.to_string(), str::to_owned))
                            .collect();
                        if place.is_empty() {
                            msg.clone()
                        } else {
                            format!("{}: {msg}", place.join("."))
                        }
                    })
                    .collect::<Vec<_>>()
                    .join("; "),
            ),
        }
    }
}

fn path_of(at: &CredentialRef) -> String {
    format!("/v1/credentials/{}/{}", Segment(at.namespace().as_str()), Segment(at.key()))
}

/// A path segment, percent-encoded but for RFC 3986's unreserved characters.
struct Segment<'a>(&'a str);

impl std::fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                f.write_char(byte.into())?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// The JSON of a store, in a buffer that does not grow, and is wiped.
fn store_body(request: &StoreRequest) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<'a> {
        value: &'a str,
        delivery_mode: DeliveryMode,
        allowed_consumers: &'a [String],
        env_name: Option<&'a str>,
        validator_id: Option<&'a str>,
    }
    /// A control character takes six bytes: `\u0000`.
    const LONGEST_ESCAPE: usize = 6;

    let body = Body {
        value: request.value.expose(),
        delivery_mode: request.delivery_mode,
        allowed_consumers: &request.allowed_consumers,
        env_name: request.env_name.as_deref(),
        validator_id: request.validator_id.as_deref(),
    };
    // The value comes first, so whatever the rest needs, it is not copied unwiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        LONGEST_ESCAPE.saturating_mul(request.value.len()).saturating_add(4096),
    ));
    serde_json::to_writer(&mut *bytes, &body).expect("strings serialise, and memory takes writes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_may_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<VaultClient>();
        shared::<ClientError>();
    }

    #[test]
    fn segments_are_encoded_but_for_the_unreserved() {
        let at =
            CredentialRef::parse("email.you@gmail.com", "a b%c/é~-_.".replace('/', "").as_str())
                .expect("valid");
        assert_eq!(path_of(&at), "/v1/credentials/email.you%40gmail.com/a%20b%25c%C3%A9~-_.");
    }

    #[test]
    fn details_tell_what_and_where_and_no_input() {
        let detail = |body: &str| {
            Answer { status: 422, body: Zeroizing::new(body.as_bytes().to_vec()) }.detail()
        };
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
    fn the_body_of_a_store_never_grows() {
        let mut request = StoreRequest::new(Secret::new("\u{1}".repeat(10_000)));
        request.env_name = Some("NAME".into());
        let body = store_body(&request);
        assert_eq!(body.capacity(), 6 * 10_000 + 4096);
        assert!(body.ends_with(
            br#"","delivery_mode":"executor_only","allowed_consumers":[],"env_name":"NAME","validator_id":null}"#
        ));
    }
}
