//! One request to the server: its permit, time-out, retries and meaning.

use std::io::{self, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use ureq::http::HeaderValue;
use zeroize::Zeroizing;

use crate::backoff::{Backoff, jitter};
use crate::secret::Secret;

use super::breaker::Breaker;
use super::clock;
use super::connect::{Dialer, NoResolver};
use super::message::{Reply, Request, Unavailable, errors_in};
use super::settings::Settings;
use super::tls::tls_failure;

/// The server, for all requests of this backend.
pub(super) struct Http {
    pub(super) settings: Settings,
    agent: ureq::Agent,
    /// The URL up to and with `/v1/`.
    base: String,
    breaker: Breaker,
    /// Holds an item for each request under way.
    permits: (Sender<()>, Receiver<()>),
    closed: AtomicBool,
}

/// The permission for one request to be under way.
struct Permit<'a>(&'a Receiver<()>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// The longest answer. A secret has at most 1 MiB by default, and a request 32 MiB.
const MAX_ANSWER_BYTES: u64 = 32 * 1024 * 1024;
const BUFFER_BYTES: usize = 32 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Servers and proxies close idle connections after a minute or more.
const MAX_IDLE: Duration = Duration::from_secs(50);
const USER_AGENT: &str = concat!("credential-vault/", env!("CARGO_PKG_VERSION"));
const HEALTH: &str = "sys/health";
/// How long [`Http::works`] waits for a probe.
const MOMENT: Duration = Duration::from_millis(50);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

impl Http {
    /// Does not connect yet.
    pub(super) fn new(settings: Settings) -> Self {
        let (dialer, base) = match settings.address.strip_prefix("unix://") {
            Some(path) => (Dialer::Unix(path.into()), "http://localhost"),
            None => (Dialer::Http(settings.tls.clone()), &*settings.address),
        };
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_age(MAX_IDLE)
            .max_idle_connections(settings.max_in_flight + 1)
            .max_idle_connections_per_host(settings.max_in_flight)
            .user_agent(USER_AGENT)
            .build();
        Self {
            base: format!("{base}/v1/"),
            agent: ureq::Agent::with_parts(config, dialer, NoResolver),
            breaker: Breaker::default(),
            permits: bounded(settings.max_in_flight),
            closed: AtomicBool::new(false),
            settings,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Makes further requests fail. Those under way go on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Sends a request until it is answered, or its retries or its time are used up.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]; the request may or may not have had its effect.
    pub(super) fn send(
        &self,
        request: &Request<'_>,
        token: Option<&Secret>,
    ) -> Result<Reply, Unavailable> {
        let Settings { address, timeout, max_retries, .. } = &self.settings;
        let deadline = clock::now().saturating_add(*timeout);
        let mut backoff = Backoff::new(FIRST_PAUSE, *timeout);
        let mut retries = *max_retries;
        loop {
            if self.is_closed() {
                return Err(Unavailable::new("the vault is closed"));
            }
            let permit = self.permit(deadline)?;
            self.breaker.admit(clock::now()).map_err(|pause| {
                let failure = self.breaker.failure().unwrap_or_default();
                let refusal = format!("Vault at {address} does not work: {failure}");
                Unavailable { retry_after: Some(pause), ..Unavailable::new(refusal) }
            })?;
            let outcome = self.attempt(request, token, deadline);
            drop(permit);
            let outage = outcome.as_ref().err().filter(|failure| failure.is_outage);
            self.breaker.report(outage.map(|failure| failure.reason.clone()), clock::now());
            let failure = match outcome {
                Ok(reply) => return Ok(reply),
                Err(failure) => failure,
            };
            let wait = failure.retry_after.unwrap_or_else(|| jitter(backoff.next_pause()));
            let time_left = deadline.saturating_sub(clock::now());
            if retries == 0 || !request.may_repeat || wait >= time_left {
                let reason = format!("Vault at {address}: {}", failure.reason);
                return Err(Unavailable { reason, retry_after: Some(wait), ..failure });
            }
            thread::sleep(wait);
            retries -= 1;
        }
    }

    fn permit(&self, deadline: Duration) -> Result<Permit<'_>, Unavailable> {
        let time = deadline.saturating_sub(clock::now());
        self.permits.0.send_timeout((), time).map_err(|_| {
            let address = &self.settings.address;
            Unavailable::new(format!("too many requests are waiting for Vault at {address}"))
        })?;
        Ok(Permit(&self.permits.1))
    }

    fn attempt(
        &self,
        request: &Request<'_>,
        token: Option<&Secret>,
        deadline: Duration,
    ) -> Result<Reply, Unavailable> {
        let time = deadline.saturating_sub(clock::now());
        let mut reply = self.exchange(request, token, None, time)?;
        // A standby that does not forward requests names the active node.
        if let (307 | 308, Some(Ok(location))) = (reply.status, &reply.location) {
            reply = self.exchange(request, token, Some(location), time)?;
        }
        reply.judged()
    }

    /// Sends one request and reads one answer.
    fn exchange(
        &self,
        ask: &Request<'_>,
        token: Option<&Secret>,
        elsewhere: Option<&str>,
        time: Duration,
    ) -> Result<Reply, ureq::Error> {
        let uri = elsewhere.map_or_else(|| format!("{}{}", self.base, ask.path), str::to_owned);
        let mut request = ureq::http::Request::builder()
            .method(ask.method)
            .uri(uri)
            .header("X-Vault-Request", "true");
        // sys/health belongs to no namespace.
        if let Some(namespace) = self.settings.namespace.as_ref().filter(|_| ask.path != HEALTH) {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(token) = token {
            let mut value =
                HeaderValue::from_str(token.expose()).map_err(ureq::http::Error::from)?;
            value.set_sensitive(true);
            request = request.header("X-Vault-Token", value);
        }
        let time = Some(time.max(Duration::from_millis(1)));
        let mut response = if let Some((content_type, body)) = ask.body {
            let request = request.header("Content-Type", content_type).body(body)?;
            self.agent.run(self.agent.configure_request(request).timeout_global(time).build())
        } else {
            let request = request.body(())?;
            self.agent.run(self.agent.configure_request(request).timeout_global(time).build())
        }?;
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = header("Retry-After").and_then(|seconds| seconds.parse::<u64>().ok());
        let location = header("Location").map(|location| self.settings.redirect(location));
        // The buffer has room for everything: one that grows leaves copies behind.
        let expected = response.body().content_length().unwrap_or(0).min(MAX_ANSWER_BYTES);
        let mut body =
            Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 1));
        let mut reader = response.body_mut().with_config().limit(MAX_ANSWER_BYTES).reader();
        reader.read_to_end(&mut body).map_err(ureq::Error::from)?;
        let retry_after = retry_after.map(|seconds| Duration::from_secs(seconds.min(3600)));
        let mut reply = Reply { status, body, errors: String::new(), retry_after, location };
        if status >= 400 {
            let body = ask.body.map_or(&[][..], |(_, body)| body);
            let token = token.map_or("", Secret::expose);
            reply.errors = errors_in(&reply.json(), [body, token.as_bytes()]);
        }
        Ok(reply)
    }

    /// Whether the server works: by the last contact if that was within a second, else by a
    /// probe, for which it waits 50 ms at most.
    pub(super) fn works(self: &Arc<Self>) -> bool {
        if self.breaker.needs_probe(clock::now()) {
            let http = Arc::clone(self);
            let (done, probed) = bounded::<()>(1);
            let probe = move || {
                http.probe();
                drop(done);
            };
            // Without a thread, `done` is dropped at once.
            let _ = thread::Builder::new().name("vault-probe".to_owned()).spawn(probe);
            let _ = probed.recv_timeout(MOMENT);
        }
        self.breaker.failure().is_none()
    }

    /// Asks the server for its health, without a permit, and even if the breaker is open.
    fn probe(&self) {
        let time = PROBE_TIMEOUT.min(self.settings.timeout);
        let failure = match self.exchange(&Request::new("GET", HEALTH), None, None, time) {
            // 429 is a standby, 472 and 473 are replicas of Vault Enterprise; all can serve.
            Ok(Reply { status: 200 | 429 | 472 | 473, .. }) => None,
            // 503 means that it is sealed, 501 that it is not initialised.
            Ok(reply) => Some(reply.explain()),
            Err(error) => Some(Unavailable::from(error).reason),
        };
        self.breaker.report(failure, clock::now());
    }
}

impl From<ureq::Error> for Unavailable {
    fn from(error: ureq::Error) -> Self {
        use io::ErrorKind::{TimedOut, WouldBlock};
        use ureq::Error;

        let advice = "is it running, and is VAULT_ADDR its address?";
        let late = || "it did not answer in time".to_owned();
        let is_late = |error: &io::Error| matches!(error.kind(), WouldBlock | TimedOut);
        let reason = match &error {
            Error::Timeout(_) => late(),
            Error::Io(error) if is_late(error) => late(),
            Error::Io(error) => tls_failure(error)
                .unwrap_or_else(|| format!("the connection failed ({error}); {advice}")),
            Error::HostNotFound => format!("its name is not known; {advice}"),
            Error::BodyExceedsLimit(_) => "its answer is too long".to_owned(),
            // From `Tls::config`.
            Error::Other(reason) => reason.to_string(),
            // The others may quote what was sent or received.
            _ => "it does not speak HTTP/1.1; is VAULT_ADDR right?".to_owned(),
        };
        Self { is_outage: true, ..Self::new(reason) }
    }
}
