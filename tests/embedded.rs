//! The service inside a host program: limits that the host chooses, and a backend of the host that
//! is slow, refuses, is unavailable, or panics.
#![cfg(unix)]

mod support;

use std::collections::HashMap;
use std::iter;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};

use intentframe_credentials::daemon::{Daemon, DaemonError, Settings};
use intentframe_credentials::model::MAX_CONSUMERS;
use intentframe_credentials::server::{Endpoint, Limits, StartError};
use intentframe_credentials::{
    BackendOptions, CredentialRef, CredentialVault, Environment, Namespace, Secret, StoreRequest,
    VaultError, register_backend,
};
use serde_json::{Value, json};

use support::{Connection, Place, delete, get, put, raise_descriptor_limit, request, wait_until};

/// A backend in memory. The key decides how a call behaves.
#[derive(Default)]
struct Moody {
    values: Mutex<HashMap<CredentialRef, String>>,
    /// How many calls for keys that begin with `slow` wait, and whether they may continue.
    slow: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Moody {
    fn mood(&self, at: &CredentialRef) {
        assert!(!at.key().starts_with("panic"), "as the key says");
        if at.key().starts_with("slow") {
            let mut slow = self.slow.lock().expect("not poisoned");
            slow.0 += 1;
            while !slow.1 {
                slow = self.changed.wait(slow).expect("not poisoned");
            }
        }
    }

    fn waiting(&self) -> usize {
        self.slow.lock().expect("not poisoned").0
    }

    fn let_go(&self) {
        self.slow.lock().expect("not poisoned").1 = true;
        self.changed.notify_all();
    }
}

impl CredentialVault for Moody {
    fn name(&self) -> &'static str {
        "MoodyVault"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        self.mood(at);
        let values = self.values.lock().expect("not poisoned");
        Ok(values.get(at).map(|value| Secret::new(value.clone())))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        self.mood(at);
        self.values.lock().expect("not poisoned").insert(at.clone(), value.expose().to_owned());
        Ok(())
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.mood(at);
        Ok(self.values.lock().expect("not poisoned").remove(at).is_some())
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.mood(at);
        Ok(self.values.lock().expect("not poisoned").contains_key(at))
    }

    fn list_keys(&self, _namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        Ok(Vec::new())
    }
}

/// A vault in this process, stopped when it is dropped.
struct Embedded {
    daemon: Option<Daemon>,
    place: Place,
}

impl Embedded {
    fn start(backend: &str, options: BackendOptions, workers: usize, limits: Limits) -> Self {
        let place = Place::new();
        let endpoint = Endpoint::Unix(place.socket());
        let settings = Settings::new(endpoint, place.data_dir(), backend, options);
        let daemon = Daemon::start(&Settings { workers, limits, ..settings }).expect("starts");
        Self { daemon: Some(daemon), place }
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.place.socket())
    }

    fn ask(&self, request: &[u8]) -> support::Response {
        self.connect().exchange(request)
    }

    fn listing(&self) -> Value {
        self.ask(&get("/v1/credentials")).json()
    }

    fn stop(&mut self) -> Result<(), DaemonError> {
        let daemon = self.daemon.take().expect("stopped once");
        daemon.stop();
        daemon.join()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            // A failed test reports its own error.
            let _ = self.stop();
        }
    }
}

/// The backends of this program's tests. The environment of each vault has the index of its
/// backend.
static MOODS: Mutex<Vec<Arc<Moody>>> = Mutex::new(Vec::new());
const WHICH: &str = "WHICH_MOODY";

#[allow(clippy::unnecessary_wraps, reason = "the registry's factories may fail")]
fn make_moody(options: &BackendOptions) -> Result<Arc<dyn CredentialVault>, VaultError> {
    let which: usize = options.environment.setting(WHICH).expect("set").parse().expect("a number");
    let vault = Arc::clone(&MOODS.lock().expect("not poisoned")[which]);
    Ok(vault)
}

/// Starts a vault with its own backend.
fn start_moody(workers: usize, limits: Limits) -> (Embedded, Arc<Moody>) {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| register_backend("moody", make_moody).expect("the name is free"));
    let moody = Arc::new(Moody::default());
    let mut all = MOODS.lock().expect("not poisoned");
    let which = all.len().to_string();
    all.push(Arc::clone(&moody));
    drop(all);
    let environment = [(WHICH.to_owned(), which)].into_iter().collect();
    let options = BackendOptions::new(environment);
    (Embedded::start("moody", options, workers, limits), moody)
}

fn start_env(limits: Limits) -> Embedded {
    Embedded::start("env", BackendOptions::new(Environment::default()), 2, limits)
}

fn path(namespace: &str, key: &str) -> String {
    format!("/v1/credentials/{namespace}/{key}")
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    assert_eq!(Limits::default().idle, Duration::from_secs(75));
    let idle = Duration::from_secs(2);
    let vault = start_env(Limits { idle, ..Limits::default() });
    let health = get("/health");
    let start = Instant::now();
    let mut never_used = vault.connect();
    let mut used = vault.connect();
    assert_eq!(used.exchange(&health).status, 200);
    let mut in_a_request = vault.connect();
    in_a_request.send(&health[..10]);

    let mut busy = vault.connect();
    while start.elapsed() < idle * 2 {
        assert_eq!(busy.exchange(&health).status, 200);
        thread::sleep(Duration::from_millis(20));
    }
    // Closed without an answer: the client would take it for the answer to its next request.
    never_used.assert_closed();
    used.assert_closed();
    assert_eq!(in_a_request.exchange(&health[10..]).status, 200, "that is not idle");
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_is_let_go() {
    let write = Duration::from_millis(500);
    let vault = start_env(Limits { write, ..Limits::default() });
    let value = json!({ "value": "v".repeat(200_000) });
    assert_eq!(vault.ask(&put(&path("n", "large"), &value)).status, 200);
    let requests = get(&path("n", "large")).repeat(20);
    let mut connection = vault.connect();
    connection.send(&requests);
    // The service does not read from it either, so the bytes stay in the socket until the service
    // closes it.
    wait_until("it is let go", || connection.try_send(b"\r\n").is_err());
    let answers = iter::from_fn(|| connection.try_response(false).ok().flatten()).count();
    assert!(answers < 20, "all were kept for it");
    assert_eq!(vault.ask(&get("/health")).status, 200);
}

#[test]
fn slow_backend_calls_hold_up_nobody_else() {
    let (vault, moody) = start_moody(4, Limits::default());
    let mut slow: Vec<Connection> = (0..40).map(|_| vault.connect()).collect();
    for (n, connection) in slow.iter_mut().enumerate() {
        let path = path("slow", &format!("slow-{n}"));
        match n % 4 {
            0 => connection.send(&put(&path, &json!({ "value": "v" }))),
            1 => connection.send(&request("HEAD", &path, "", b"")),
            2 => connection.send(&delete(&path)),
            _ => connection.send(&get(&path)),
        }
    }
    wait_until("the backend is waited for", || moody.waiting() > 0);
    let mut other = vault.connect();
    for _ in 0..100 {
        assert_eq!(other.exchange(&get("/health")).status, 200);
        assert_eq!(other.exchange(&get("/v1/credentials")).status, 200);
        assert_eq!(other.exchange(&get("/v1/runtime-env")).status, 200);
        assert_eq!(vault.ask(&get("/no/such/route")).status, 404);
    }
    // A client that hangs up while it waits harms nobody.
    drop(slow.pop());
    moody.let_go();
    for (n, mut connection) in slow.into_iter().enumerate() {
        match n % 4 {
            0 | 2 => assert_eq!(connection.response().status, 200, "{n}"),
            1 => assert_eq!(connection.response_to_head().status, 404, "{n}"),
            _ => assert_eq!(connection.response().status, 404, "{n}"),
        }
    }
}

#[test]
fn beyond_the_queue_for_the_backend_is_503() {
    const QUEUED: usize = 512;
    const WORKERS: usize = 2;
    const TOO_MANY: usize = 10;
    raise_descriptor_limit();
    let (vault, moody) = start_moody(WORKERS, Limits::default());
    let ask = |n: usize| {
        let mut connection = vault.connect();
        connection.send(&get(&path("slow", &format!("slow-{n}"))));
        connection
    };
    // Each worker takes one request out of the queue before the test fills it.
    let mut waiting: Vec<Connection> = (0..WORKERS).map(ask).collect();
    wait_until("every worker waits", || moody.waiting() == WORKERS);
    waiting.extend((0..QUEUED + TOO_MANY).map(ask));

    // Which requests are refused depends on who reads first, but not how many.
    let mut refused = 0;
    wait_until("the rest are turned away", || {
        waiting.retain_mut(|connection| {
            if connection.is_silent() {
                return true;
            }
            let answer = connection.response();
            assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")));
            refused += 1;
            false
        });
        refused == TOO_MANY
    });
    assert_eq!(vault.ask(&get("/health")).status, 200);
    moody.let_go();
    for mut connection in waiting {
        assert_eq!(connection.response().status, 404);
    }
}

#[test]
fn a_host_that_stores_too_many_consumers_is_told_so() {
    let vault = start_env(Limits::default());
    let mut store = StoreRequest::new(Secret::new("v".to_owned()));
    store.allowed_consumers = vec!["consumer".to_owned(); MAX_CONSUMERS + 1];
    let at = CredentialRef::parse("n", "key").expect("valid");
    let service = vault.daemon.as_ref().expect("it runs").service();
    let error = service.store(&at, &store).expect_err("too many");
    assert!(error.to_string().starts_with("allowed_consumers: at most 64"), "{error}");
    assert_eq!(vault.listing(), json!([]));
}

#[test]
fn a_backend_that_panics_fails_one_request_only() {
    let (vault, _moody) = start_moody(2, Limits::default());
    let path = path("panic", "panic");
    let mut connection = vault.connect();
    for _ in 0..8 {
        for request in [get(&path), put(&path, &json!({ "value": "v" })), delete(&path)] {
            let answer = connection.exchange(&request);
            assert_eq!(answer.status, 500);
            assert!(answer.json()["detail"].is_string());
        }
    }
    assert_eq!(connection.exchange(&get("/health")).status, 200);
    assert_eq!(vault.listing(), json!([]), "nothing half-done");
    let fine = put("/v1/credentials/panic/fine", &json!({ "value": "v" }));
    assert_eq!(connection.exchange(&fine).status, 200);
}

#[test]
fn a_host_can_stop_it_and_start_it_again() {
    let mut vault = start_env(Limits::default());
    let put = put("/v1/credentials/n/key", &json!({ "value": "v" }));
    assert_eq!(vault.ask(&put).status, 200);
    let mut idle = vault.connect();
    assert_eq!(idle.exchange(&get("/health")).status, 200);

    // A second vault for the same socket is refused, and harms nothing.
    let again = || {
        let endpoint = Endpoint::Unix(vault.place.socket());
        let options = BackendOptions::new(Environment::default());
        Daemon::start(&Settings::new(endpoint, vault.place.data_dir(), "env", options))
    };
    let refused = again().expect_err("it runs already");
    assert!(matches!(refused, DaemonError::Start(StartError::AlreadyRunning(_))), "{refused}");
    assert_eq!(idle.exchange(&get("/health")).status, 200);

    let first = vault.daemon.take().expect("it runs");
    first.stop();
    first.join().expect("stops cleanly");
    idle.assert_closed();
    assert!(!vault.place.socket().exists());

    vault.daemon = Some(again().expect("nothing of the first is left"));
    assert_eq!(vault.listing()[0]["key"], "key");
}

#[test]
fn a_stop_waits_for_a_slow_backend_as_long_as_the_host_says() {
    let drain = Duration::from_millis(300);
    let (mut vault, moody) = start_moody(4, Limits { drain, ..Limits::default() });
    let mut connection = vault.connect();
    connection.send(&get(&path("stop", "slow")));
    wait_until("the backend is waited for", || moody.waiting() > 0);
    let start = Instant::now();
    let error = vault.stop().expect_err("it never answers");
    assert!(matches!(error, DaemonError::NotDrained), "{error}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    moody.let_go();

    let (mut vault, moody) = start_moody(4, Limits::default());
    let mut connection = vault.connect();
    connection.send(&get(&path("stop", "slow")));
    wait_until("the backend is waited for", || moody.waiting() > 0);
    let socket = vault.place.socket();
    thread::scope(|scope| {
        let stopping = scope.spawn(|| vault.stop());
        wait_until("it no longer accepts", || UnixStream::connect(&socket).is_err());
        moody.let_go();
        assert_eq!(connection.response().status, 404, "answered by a service that is ending");
        stopping.join().expect("no panic").expect("stops cleanly");
    });
}
