//! The server: one request to it, with its retries, its limits, and what it said.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::uri::Authority;
use ureq::http::{HeaderValue, Method, Request, Uri};
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::transport::{
    LastLink, Link, NoResolver, NotConnected, TcpConnector, UnixConnector, tls,
};

use super::breaker::{Breaker, Outcome, Ticket};
use super::exchange::Answer;
use super::in_flight::{InFlight, MAX_IDLE, Place, Seat};
use super::settings::{Address, Settings};
use super::{clock, jitter};

/// The server cannot be asked, or cannot answer; the text says why and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Unavailable {
    pub(super) reason: String,
    /// When it is worth trying again.
    pub(super) retry_after: Duration,
}

impl Unavailable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: Duration::from_secs(1) }
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    method: Method,
    path: &'a str,
    token: Option<&'a Secret>,
    body: Option<(&'static str, &'a [u8])>,
    repeat: Repeat,
    /// Its failure says nothing of others.
    is_apart: bool,
}

/// When a request may be sent again that met a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Always,
    /// When it has not had an effect: twice would not be the same as once.
    IfUnsent,
    Never,
}

impl<'a> Ask<'a> {
    /// A request without a body. The path is the one after `/v1/`.
    pub(super) fn new(method: Method, path: &'a str, token: Option<&'a Secret>) -> Self {
        Self { method, path, token, body: None, repeat: Repeat::Always, is_apart: false }
    }

    pub(super) fn json(self, body: &'a [u8]) -> Self {
        Self { body: Some(("application/json", body)), ..self }
    }

    pub(super) fn merge_patch(self, body: &'a [u8]) -> Self {
        Self { body: Some(("application/merge-patch+json", body)), ..self }
    }

    /// The same, for a request of which two would not be the same as one.
    pub(super) fn only_once(self) -> Self {
        Self { repeat: Repeat::IfUnsent, ..self }
    }

    /// The same, for a request that nobody waits for: when it fails, others are sent all the
    /// same.
    pub(super) fn apart(self) -> Self {
        Self { is_apart: true, ..self }
    }

    /// The same, for a request that is right at this moment only.
    pub(super) fn only_now(self) -> Self {
        Self { repeat: Repeat::Never, ..self }
    }
}

/// What the server answered, when that was neither a failure nor a wish to be asked again.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// What it says went wrong, in its own words.
    errors: String,
}

impl Reply {
    fn new(status: u16, body: Zeroizing<Vec<u8>>, ask: &Ask<'_>) -> Self {
        let errors = if status >= 400 { errors_in(&body, ask) } else { String::new() };
        Self { status, body, errors }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the server's own words have `text` in them.
    pub(super) fn says(&self, text: &str) -> bool {
        self.errors.contains(text)
    }

    /// Whether the server gave no reason: its way to say that there is nothing.
    pub(super) fn says_nothing(&self) -> bool {
        self.errors.is_empty()
    }

    /// The status, and the server's own words for it.
    pub(super) fn explain(&self) -> String {
        match &*self.errors {
            "" => format!("Vault answered {}", self.status),
            errors => format!("Vault answered {}: {errors}", self.status),
        }
    }
}

/// An answer, or a failure, as it came from one attempt.
pub(super) enum Attempt {
    Answered(Reply),
    /// To be tried again; nothing is known of what became of the request.
    Failed {
        outcome: Outcome,
        reason: String,
        /// The request has not reached the server.
        unsent: bool,
        retry_after: Option<Duration>,
    },
}

/// A request of which one attempt may have been made.
#[derive(Default)]
pub(super) struct Begun {
    pub(super) attempt: Option<Attempt>,
    /// When it has to have come to its end, retries and all.
    pub(super) deadline: Option<Duration>,
}

/// The server, as everything in this backend asks it.
pub(super) struct Upstream {
    /// For what is asked beside the others.
    agent: ureq::Agent,
    /// What comes before a path: the scheme and the authority, and `/v1/`.
    base: String,
    /// How messages name it.
    name: String,
    follows_redirects: bool,
    namespace: Option<HeaderValue>,
    timeout: Duration,
    max_retries: u32,
    breaker: Breaker,
    in_flight: Arc<InFlight>,
    /// What comes before and after the path of a read, up to the token.
    get_frame: (String, String),
    /// It has sent a request elsewhere, as standbys do that do not forward.
    sends_elsewhere: AtomicBool,
    contact: Mutex<Contact>,
    probed: Condvar,
    closed: AtomicBool,
}

/// When the server was last heard of.
#[derive(Debug, Default)]
struct Contact {
    at: Option<Duration>,
    /// Why it did not work then, if it did not.
    failure: Option<String>,
    probing: bool,
}

/// The longest answer that is read. A secret has at most 1 MiB unless the server is set up
/// otherwise, and a request 32 MiB.
const MAX_ANSWER_BYTES: u64 = 32 * 1024 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// What a server that works says with status 500 to a request that it refuses: storage with
/// a limit (Raft's is 1 MiB for a secret), and a role that has been deleted.
const REFUSALS: [&str; 2] = ["value being too large", "does not exist during renewal"];

impl Upstream {
    /// Does not connect yet.
    ///
    /// # Errors
    ///
    /// A text that says what is wrong with the TLS settings.
    pub(super) fn new(settings: &Settings) -> Result<Self, String> {
        let (connector, base, name) = Connect::new(settings)?;
        let seat = || {
            let link = LastLink::default();
            Seat::new(connector.agent(link.clone()), link)
        };
        let seats = (0..settings.max_in_flight).map(|_| seat()).collect();
        let namespace = settings.namespace.as_deref().map(HeaderValue::from_str).transpose();
        Ok(Self {
            agent: connector.agent(LastLink::default()),
            base: format!("{base}/v1/"),
            name,
            follows_redirects: matches!(settings.address, Address::Http(_)),
            namespace: namespace.map_err(|_| "VAULT_NAMESPACE fits in no header")?,
            timeout: settings.timeout,
            max_retries: settings.max_retries,
            breaker: Breaker::default(),
            in_flight: InFlight::new(seats),
            get_frame: get_frame(&base, settings.namespace.as_deref())?,
            sends_elsewhere: AtomicBool::new(false),
            contact: Mutex::default(),
            probed: Condvar::new(),
            closed: AtomicBool::new(false),
        })
    }

    /// How long one request may take, with all its retries.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// How often one request may be repeated.
    pub(super) fn max_retries(&self) -> u32 {
        self.max_retries
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sends nothing more. What is under way ends by itself.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Sends a request until it is answered, the retries are used up, or the time is.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]; what became of the request is then not known.
    pub(super) fn send(&self, ask: &Ask<'_>) -> Result<Reply, Unavailable> {
        self.go_on(ask, Begun::default())
    }

    /// The same, for a request that may have been sent once already.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]; what became of the request is then not known.
    pub(super) fn go_on(&self, ask: &Ask<'_>, begun: Begun) -> Result<Reply, Unavailable> {
        let Begun { attempt: mut first, deadline } = begun;
        let deadline = deadline.unwrap_or_else(|| clock::now() + self.timeout);
        let mut pause = FIRST_PAUSE;
        let mut retries = self.max_retries;
        loop {
            let (attempt, ticket) = match first.take() {
                Some(attempt) => (attempt, self.breaker.ticket()),
                None => self.try_once(ask, deadline)?,
            };
            let now = clock::now();
            let (outcome, reason, unsent, retry_after) = match attempt {
                Attempt::Answered(reply) => {
                    ticket.tell(Outcome::Worked, now);
                    self.note_contact(now, None);
                    return Ok(reply);
                }
                Attempt::Failed { outcome, reason, unsent, retry_after } => {
                    (outcome, reason, unsent, retry_after)
                }
            };
            if ask.is_apart && outcome == Outcome::Failed {
                drop(ticket);
            } else {
                ticket.tell(outcome, now);
                self.note_contact(now, (outcome == Outcome::Failed).then_some(&reason));
            }
            let wait = retry_after.unwrap_or_else(|| jitter::around(pause));
            let may_repeat = retries > 0
                && match ask.repeat {
                    Repeat::Always => true,
                    Repeat::IfUnsent => unsent,
                    Repeat::Never => false,
                };
            if !may_repeat || now + wait >= deadline {
                return Err(Unavailable {
                    reason: format!("Vault at {}: {reason}", self.name),
                    retry_after: wait,
                });
            }
            thread::sleep(wait);
            retries -= 1;
            pause *= 2;
        }
    }

    /// One attempt, when the breaker lets it through.
    fn try_once(
        &self,
        ask: &Ask<'_>,
        deadline: Duration,
    ) -> Result<(Attempt, Ticket<'_>), Unavailable> {
        if self.is_closed() {
            return Err(Unavailable::new("the vault is closed"));
        }
        let place = self.in_flight.enter(deadline).ok_or_else(|| {
            Unavailable::new(format!("too many requests wait for Vault at {}", self.name))
        })?;
        let now = clock::now();
        let ticket = self.breaker.admit(now).map_err(|pause| Unavailable {
            reason: format!(
                "Vault at {} does not work ({}); it is tried again shortly",
                self.name,
                self.last_failure()
            ),
            retry_after: pause,
        })?;
        Ok((self.attempt(place.agent(), ask, deadline.saturating_sub(now)), ticket))
    }

    /// A place and its connection, for a read that waits for nothing: when the server works
    /// and is the one that answers.
    pub(super) fn place_at_hand(&self) -> Option<(Place, Arc<Link>)> {
        let is_clear = !self.is_closed()
            && self.breaker.is_calm()
            && !self.sends_elsewhere.load(Ordering::Relaxed);
        if is_clear { self.in_flight.enter_at_once() } else { None }
    }

    /// What comes before the path of a read, and after it, up to the token.
    pub(super) fn get_frame(&self) -> (&str, &str) {
        (&self.get_frame.0, &self.get_frame.1)
    }

    /// What an answer means; `None` when the request has to be sent again to know.
    pub(super) fn judge(&self, answer: Answer, ask: &Ask<'_>) -> Option<Attempt> {
        let Answer { status, retry_after, body } = answer;
        if let 307 | 308 = status {
            self.sends_elsewhere.store(true, Ordering::Relaxed);
            return None;
        }
        Some(judged(Reply::new(status, body, ask), retry_after))
    }

    /// The outcome of a request that was not answered in time.
    pub(super) fn timed_out(&self) -> Attempt {
        Attempt::Failed {
            outcome: Outcome::Failed,
            reason: format!("it did not answer within {} s", self.timeout.as_secs_f32()),
            unsent: false,
            retry_after: None,
        }
    }

    fn attempt(&self, agent: &ureq::Agent, ask: &Ask<'_>, time: Duration) -> Attempt {
        let (mut reply, retry_after, location) = match self.exchange(agent, ask, None, time) {
            Ok(answered) => answered,
            Err(error) => return self.failed(&error),
        };
        // A standby that does not forward names the active node.
        if let (307 | 308, Some(location)) = (reply.status, location) {
            match self.exchange(agent, ask, Some(&location), time) {
                Ok((second, _, _)) => reply = second,
                Err(error) => return self.failed(&error),
            }
        }
        judged(reply, retry_after)
    }

    /// One request, one answer; with it the time to wait and the place to ask, where it
    /// names them.
    fn exchange(
        &self,
        agent: &ureq::Agent,
        ask: &Ask<'_>,
        elsewhere: Option<&str>,
        time: Duration,
    ) -> Result<(Reply, Option<Duration>, Option<String>), ureq::Error> {
        let uri = elsewhere.map_or_else(|| format!("{}{}", self.base, ask.path), str::to_owned);
        let mut request =
            Request::builder().method(&ask.method).uri(uri).header("X-Vault-Request", "true");
        // sys/health is no part of any namespace.
        if let Some(namespace) = self.namespace.as_ref().filter(|_| ask.path != HEALTH) {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = ask.token {
            let mut value =
                HeaderValue::from_str(token.expose()).map_err(ureq::http::Error::from)?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        let time = Some(time.max(Duration::from_millis(1)));
        let mut response = match ask.body {
            None => {
                let request = request.body(())?;
                agent.run(agent.configure_request(request).timeout_global(time).build())
            }
            Some((content_type, body)) => {
                let request = request.header("Content-Type", content_type).body(body)?;
                agent.run(agent.configure_request(request).timeout_global(time).build())
            }
        }?;
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = header("Retry-After").and_then(|seconds| seconds.parse().ok());
        let location = header("Location").filter(|location| self.may_follow(location));
        let location = location.map(str::to_owned);
        // Room for all of it, so that growing leaves no copies behind.
        let expected = response.body().content_length().unwrap_or(0).min(MAX_ANSWER_BYTES);
        let mut body =
            Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1));
        let mut reader = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).reader();
        reader.read_to_end(&mut body).map_err(ureq::Error::from)?;
        let retry_after = retry_after.map(Duration::from_secs);
        Ok((Reply::new(status, body, ask), retry_after, location))
    }

    /// A token is not sent where it could be read on the way, if it was not before.
    fn may_follow(&self, location: &str) -> bool {
        let stays_secret = location.starts_with("https://") || self.base.starts_with("http://");
        self.follows_redirects && location.contains("://") && stays_secret
    }

    fn failed(&self, error: &ureq::Error) -> Attempt {
        let failed = |reason: String, unsent| Attempt::Failed {
            outcome: Outcome::Failed,
            reason,
            unsent,
            retry_after: None,
        };
        match error {
            ureq::Error::Timeout(_) => self.timed_out(),
            ureq::Error::Other(other) => match other.downcast_ref::<NotConnected>() {
                Some(NotConnected(error)) => failed(
                    format!(
                        "it cannot be connected to ({error}); is it running, and is VAULT_ADDR its address?"
                    ),
                    true,
                ),
                None => failed("it cannot be asked".to_owned(), false),
            },
            ureq::Error::HostNotFound => {
                failed("its name is not known; is VAULT_ADDR right?".to_owned(), true)
            }
            ureq::Error::Io(error) => match tls_failure(error) {
                Some(reason) => failed(reason, true),
                None => failed(format!("the connection broke ({error})"), false),
            },
            ureq::Error::BodyExceedsLimit(_) => failed("its answer is too long".to_owned(), false),
            // These may quote what was sent or received.
            _ => failed("it does not answer in HTTP/1.1; is VAULT_ADDR right?".to_owned(), false),
        }
    }

    fn last_failure(&self) -> String {
        self.contact()
            .failure
            .clone()
            .unwrap_or_else(|| "its last answers were failures".to_owned())
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_contact(&self, now: Duration, failure: Option<&String>) {
        let mut contact = self.contact();
        contact.at = Some(now);
        contact.failure = failure.cloned();
    }

    /// Whether the server works, as far as is known within a moment: what was heard of it
    /// within the last second, else what it says of itself now.
    pub(super) fn works(self: &Arc<Self>) -> bool {
        let mut contact = self.contact();
        let is_fresh = |contact: &Contact| {
            contact.at.is_some_and(|at| clock::now().saturating_sub(at) < FRESH)
        };
        if !is_fresh(&contact) && !contact.probing {
            contact.probing = true;
            drop(contact);
            let upstream = Arc::clone(self);
            let started = thread::Builder::new()
                .name("vault-probe".to_owned())
                .spawn(move || upstream.probe());
            contact = self.contact();
            if started.is_err() {
                contact.probing = false;
            }
            contact = self
                .probed
                .wait_timeout_while(contact, MOMENT, |contact| contact.probing)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        contact.failure.is_none()
    }

    /// Asks the server how it is, past the breaker, which learns of it.
    fn probe(&self) {
        let ask = Ask::new(Method::GET, HEALTH, None);
        let attempt = self.exchange(&self.agent, &ask, None, PROBE_TIMEOUT.min(self.timeout));
        let now = clock::now();
        let failure = match attempt {
            // 429 is a standby, 472 and 473 are Enterprise's replicas; all can serve.
            Ok((Reply { status: 200 | 429 | 472 | 473, .. }, _, _)) => None,
            Ok((Reply { status: 503, .. }, _, _)) => Some("it is sealed; unseal it".to_owned()),
            Ok((Reply { status: 501, .. }, _, _)) => Some("it is not initialised".to_owned()),
            Ok((reply, _, _)) => Some(reply.explain()),
            Err(error) => match self.failed(&error) {
                Attempt::Failed { reason, .. } => Some(reason),
                Attempt::Answered(_) => None,
            },
        };
        if let Ok(ticket) = self.breaker.admit(now) {
            let outcome = if failure.is_none() { Outcome::Worked } else { Outcome::Failed };
            ticket.tell(outcome, now);
        }
        self.note_contact(now, failure.as_ref());
        self.contact().probing = false;
        self.probed.notify_all();
    }
}

/// What an answer comes to.
fn judged(reply: Reply, retry_after: Option<Duration>) -> Attempt {
    let again = |outcome, reason| Attempt::Failed { outcome, reason, unsent: true, retry_after };
    match reply.status {
        503 if reply.says("sealed") => again(Outcome::Failed, "it is sealed; unseal it".to_owned()),
        307 | 308 => again(
            Outcome::Failed,
            "it sends elsewhere, where it cannot be followed; set VAULT_ADDR to the active \
             node"
                .to_owned(),
        ),
        412 | 429 => again(Outcome::Worked, reply.explain()),
        // A mount that is being upgraded to version 2 says so for a moment.
        400 if reply.says("Upgrading from non-versioned") => {
            again(Outcome::Worked, reply.explain())
        }
        501 => Attempt::Answered(reply),
        500 if REFUSALS.iter().any(|refusal| reply.says(refusal)) => Attempt::Answered(reply),
        500..=599 => Attempt::Failed {
            outcome: Outcome::Failed,
            reason: reply.explain(),
            unsent: false,
            retry_after,
        },
        _ => Attempt::Answered(reply),
    }
}

/// What is wrong with the certificates, when that is what broke the connection: before
/// anything was sent.
fn tls_failure(error: &io::Error) -> Option<String> {
    use rustls::{AlertDescription, Error};

    match rustls_error(error)? {
        Error::InvalidCertificate(reason) => Some(format!(
            "its certificate is not accepted ({reason}); is its authority in VAULT_CACERT, and \
             VAULT_ADDR its name?"
        )),
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::BadCertificate,
        ) => Some(
            "it wants another client certificate; set VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
                .to_owned(),
        ),
        _ => None,
    }
}

/// The one beneath, whatever it is wrapped in.
fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref().or_else(|| rustls_error(inner.source()?.downcast_ref()?))
}

const HEALTH: &str = "sys/health";
/// What was heard of the server is good for this long.
const FRESH: Duration = Duration::from_secs(1);
/// How long somebody who asks for the server's health is kept waiting.
const MOMENT: Duration = Duration::from_millis(50);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the server says went wrong, on one line. Nothing is taken over when it repeats
/// part of the request, which may be a value or a token.
fn errors_in(body: &[u8], ask: &Ask<'_>) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<String>,
    }
    /// Shorter words say nothing, and are in every request.
    const TELLING: usize = 6;
    /// The first half of `secret_id`, which every login has.
    const SECRET: &[u8] = b"secret";
    const LONGEST: usize = 400;

    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let text: String = errors
        .join("; ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
    let sent = ask.body.map_or(&[][..], |(_, body)| body);
    let token = ask.token.map_or(&[][..], |token| token.expose().as_bytes());
    let repeats = text.split(|c: char| c.is_whitespace() || "\"'`,;:()".contains(c)).any(|word| {
        let word = word.as_bytes();
        word.len() >= TELLING
            && word != SECRET
            && [sent, token].iter().any(|sent| sent.windows(word.len()).any(|part| part == word))
    });
    if repeats { "(not shown, for it repeats part of the request)".to_owned() } else { text }
}

/// The host and port of a base, and what comes before a path.
fn home_and_path(base: &str) -> Result<(Authority, String), String> {
    let uri: Uri = base.parse().map_err(|_| "VAULT_ADDR is no URL")?;
    let home = uri.authority().ok_or("VAULT_ADDR names no host")?.clone();
    Ok((home, uri.path().trim_end_matches('/').to_owned()))
}

/// What comes before the path of a read, and after it, up to the token: as the HTTP library
/// would send it.
fn get_frame(base: &str, namespace: Option<&str>) -> Result<(String, String), String> {
    let (home, path) = home_and_path(base)?;
    let namespace =
        namespace.map(|name| format!("X-Vault-Namespace: {name}\r\n")).unwrap_or_default();
    let after = format!(
        " HTTP/1.1\r\nHost: {home}\r\nX-Vault-Request: true\r\n{namespace}User-Agent: \
         {USER_AGENT}\r\n"
    );
    Ok((format!("GET {path}/v1/"), after))
}

const USER_AGENT: &str = concat!("credential-vault/", env!("CARGO_PKG_VERSION"));

/// How connections are made.
enum Connect {
    Unix(PathBuf),
    Tcp(Authority, Option<Arc<rustls::ClientConfig>>),
}

impl Connect {
    /// With it what comes before a path, and how messages name the server.
    fn new(settings: &Settings) -> Result<(Self, String, String), String> {
        Ok(match &settings.address {
            Address::Unix(path) => (
                Self::Unix(path.clone()),
                "http://localhost".to_owned(),
                format!("unix://{}", path.display()),
            ),
            Address::Http(base) => {
                let is_tls = base.starts_with("https://");
                let tls = is_tls.then(|| tls::client_config(&settings.tls)).transpose()?;
                let (home, _) = home_and_path(base)?;
                (Self::Tcp(home, tls), base.clone(), base.clone())
            }
        })
    }

    /// A client that keeps one connection, and another to where it was sent on to.
    fn agent(&self, last: LastLink) -> ureq::Agent {
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_age(MAX_IDLE)
            .max_idle_connections(2)
            .max_idle_connections_per_host(1)
            .user_agent(USER_AGENT)
            .build();
        match self {
            Self::Unix(path) => {
                ureq::Agent::with_parts(config, UnixConnector::new(path.clone(), last), NoResolver)
            }
            Self::Tcp(home, tls) => {
                let connector = TcpConnector::new(home.clone(), last, tls.clone());
                ureq::Agent::with_parts(config, connector, NoResolver)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_the_request_is_not_taken_over() {
        let token = Secret::new("hvs.canary-token".to_owned());
        let ask = Ask::new(Method::POST, "x", Some(&token)).json(br#"{"data":{"k":"sk-canary"}}"#);
        let errors = |text: &str| {
            errors_in(serde_json::json!({ "errors": [text] }).to_string().as_bytes(), &ask)
        };
        assert_eq!(errors("permission denied"), "permission denied");
        assert_eq!(errors("two\nlines"), "two lines");
        for text in ["bad value sk-canary", "bad \"sk-canary\"", "bad token hvs.canary-token"] {
            assert!(!errors(text).contains("canary"), "{text}");
        }
        assert_eq!(errors_in(b"<html>", &ask), "");
        assert_eq!(errors_in(b"{}", &ask), "");
    }
}
