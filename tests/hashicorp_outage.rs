//! The hashicorp backend while the server is away, slow, or killed: what callers get then,
//! what is sent, and how it recovers.

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::array;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use hashicorp::vault_server::client::{Ask, Client};
use hashicorp::vault_server::faults::{Fault, When};
use hashicorp::{POLICY, Target, begin_fetch, fetch, health, store, stored};
use support::{Connection, Place, Service, cannot_here, eventually, wait_until};

/// What is answered without asking the server is answered within this time.
const AT_ONCE: Duration = Duration::from_millis(500);

#[track_caller]
fn at_once<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    assert!(start.elapsed() < AT_ONCE, "{what} took {:?}", start.elapsed());
    result
}

/// `/health` and the listings, which are right and fast whatever the server does.
#[track_caller]
fn rest_works(service: &Service, listed: usize) -> Value {
    let listing = at_once("a listing", || service.get("/v1/credentials"));
    assert_eq!(listing.status, 200);
    assert_eq!(listing.json().as_array().map(Vec::len), Some(listed));
    assert_eq!(at_once("runtime-env", || service.get("/v1/runtime-env")).status, 200);
    let health = at_once("health", || health(service));
    assert_eq!(
        (&health["backend"], &health["credential_count"]),
        (&json!("HashiCorpVault"), &json!(listed))
    );
    health
}

#[test]
fn a_start_without_the_server_says_so_and_ends() {
    let target = Target::ours();
    let place = Place::new();
    target.server().stop();
    let mut service = target.setup(&place, "a-token").spawn();
    assert_eq!(service.wait().code(), Some(5));
    let log = service.log();
    for text in ["cannot be connected to", "VAULT_ADDR", "--wait-for-backend", &target.address()] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert!(!place.socket().exists() && !place.database().exists(), "nothing is left behind");
}

#[test]
fn a_start_that_waits_for_the_server_goes_on_when_it_is_there() {
    let target = Target::ours();
    let place = Place::new();
    let role = target.approle("r", json!({}));
    target.server().stop();
    let setup = target.setup_with_role(&place, &role).argument("--wait-for-backend");
    let mut service = setup.clone().spawn();
    wait_until("it waits", || service.log().contains("waiting for it"));
    assert!(!place.socket().exists());
    target.server().restart();
    service.wait_until_ready();
    stored(&service, "openai", "key", "value");
    drop(service);

    // One that is sealed is waited for as well; and not any longer after a signal.
    target.server().seal();
    let mut service = setup.spawn();
    wait_until("it waits", || service.log().contains("sealed"));
    service.signal(rustix::process::Signal::TERM);
    assert_eq!(service.wait().code(), Some(0));
}

/// It is nothing to wait for.
#[test]
fn a_start_with_a_bad_token_says_so_and_ends() {
    let target = Target::ours();
    let place = Place::new();
    let setup = target.setup(&place, "no-such-token");
    for setup in [setup.clone(), setup.argument("--wait-for-backend")] {
        let mut service = setup.spawn();
        assert_eq!(service.wait().code(), Some(2));
        let log = service.log();
        assert!(log.contains("the token is not valid"), "{log}");
        assert!(!log.contains("no-such-token"), "{log}");
    }
}

/// Requests get 503, what does not need the server works, few are sent, and all is well by
/// itself when the server is back.
#[test]
fn an_outage_is_told_from_the_first_to_the_last_moment() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let role = target.approle("r", json!({}));
    let service = target.setup_with_role(&place, &role).env("VAULT_CLIENT_TIMEOUT", "1").start();
    stored(&service, "openai", "key", "value");
    stored(&service, "openai", "other", "value");
    assert_eq!(rest_works(&service, 2)["status"], "ok");

    let outage = || {
        let answer = eventually("a request fails", || {
            Some(fetch(&service, "openai", "key")).filter(|answer| answer.status != 200)
        });
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("Retry-After").is_some());
        // Nobody knows what becomes of it when the server hangs; but the answer is a failure,
        // and no listing has it.
        assert_eq!(store(&service, "openai", "unknown", "value").status, 503);
        let health = eventually("it is degraded", || {
            Some(rest_works(&service, 2)).filter(|health| health["status"] == "degraded")
        });
        assert!(health["renewal"]["ttl_seconds"].is_u64(), "{health}");
    };
    let recovery = || {
        wait_until("it works by itself", || fetch(&service, "openai", "key").status == 200);
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        wait_until("it is well", || rest_works(&service, 2)["status"] == "ok");
    };

    server.stop();
    outage();
    server.restart();
    recovery();

    server.seal();
    outage();
    server.unseal();
    recovery();

    for fault in [Fault::Reset(When::Before), Fault::Hang(When::Before), Fault::bad_gateway()] {
        let fault = server.fault(fault).until_cleared();
        outage();
        fault.clear();
        recovery();
    }
    let metadata = service.get("/v1/credentials/openai").json();
    assert_eq!(metadata.as_array().map(Vec::len), Some(2), "failed stores left nothing");
}

/// The same bound as in the simulated minute (`a_dead_server_is_left_alone`), with all the
/// layers, for some real seconds.
#[test]
#[allow(clippy::print_stdout, reason = "the figure is of interest")]
fn a_dead_server_is_left_alone_by_many_callers() {
    const CALLERS: usize = 16;
    const OUTAGE: Duration = Duration::from_secs(4);
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let role = target.approle("r", json!({ "token_ttl": "2s" }));
    let service = target.setup_with_role(&place, &role).start();
    let sealed = server.fault(Fault::sealed()).until_cleared();
    let (asked, end) = (AtomicU64::new(0), Instant::now() + OUTAGE);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (service, asked) = (&service, &asked);
            scope.spawn(move || {
                while Instant::now() < end {
                    assert_eq!(fetch(service, &format!("ns{caller}"), "key").status, 503);
                    health(service);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (asked, sent) = (asked.into_inner(), sealed.hits());
    println!("{OUTAGE:?} of outage: {asked} requests and as many of /health, {sent} sent on");
    // Those that were under way at once when it began, the trials of the breaker at 0.25,
    // 0.5, 1 and 2 s, the renewals, and a probe a second for /health.
    assert!(sent <= CALLERS * 3 + 20, "{sent}");
    assert!(asked > sent as u64);
}

/// However many wait for a slow server, no more than the set number are with it, and what
/// does not need it is not held up; and nobody is turned away.
#[test]
fn a_slow_server_holds_up_only_those_who_need_it() {
    const CALLERS: usize = 100;
    const IN_FLIGHT: usize = 4;
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let setup = target.setup(&place, &target.token_for(POLICY));
    let service = setup.env("IF_VAULT_MAX_IN_FLIGHT", "4").start();
    stored(&service, "ns0", "key", "value");
    let gate = server.fault(Fault::Hang(When::Before)).on_path("secret/").until_cleared();
    let mut callers: Vec<Connection> =
        (0..CALLERS).map(|n| begin_fetch(&service, &format!("ns{n}"), "key")).collect();
    gate.wait_for_hanging(IN_FLIGHT);
    for _ in 0..10 {
        rest_works(&service, 1);
    }
    assert_eq!(gate.hanging(), IN_FLIGHT);
    gate.clear();
    for (n, caller) in callers.iter_mut().enumerate() {
        assert_eq!(caller.response().status, if n == 0 { 200 } else { 404 });
    }
    assert!(server.most_in_flight() <= IN_FLIGHT, "{}", server.most_in_flight());
}

const WRITERS: usize = 16;

/// What 16 writers were told, each of its own field.
struct Load {
    attempted: [AtomicU64; WRITERS],
    acknowledged: [AtomicU64; WRITERS],
    refused: AtomicU64,
}

impl Load {
    fn acknowledged(&self) -> u64 {
        self.acknowledged.iter().map(|count| count.load(Ordering::SeqCst)).sum()
    }

    /// Stores and reads through both services while `disturb` runs. A store is either
    /// acknowledged or 503; a value that is read is never older than the last acknowledged
    /// one, and one that was stored.
    fn run(services: &[Service; 2], disturb: impl FnOnce(&Self)) -> Self {
        let zeros = || array::from_fn(|_| AtomicU64::new(0));
        let load = Self { attempted: zeros(), acknowledged: zeros(), refused: AtomicU64::new(0) };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let (load, done) = (&load, &done);
            for writer in 0..WRITERS {
                scope.spawn(move || {
                    let (own, other) = (&services[writer % 2], &services[(writer + 1) % 2]);
                    for number in 1.. {
                        load.write(own, writer, number);
                        load.read(other, writer);
                        if done.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                });
            }
            disturb(load);
            done.store(true, Ordering::SeqCst);
        });
        load
    }

    fn write(&self, service: &Service, writer: usize, number: u64) {
        self.attempted[writer].store(number, Ordering::SeqCst);
        let answer = store(service, "fleet", &format!("writer{writer}"), &number.to_string());
        match answer.status {
            200 => self.acknowledged[writer].store(number, Ordering::SeqCst),
            503 => drop(self.refused.fetch_add(1, Ordering::SeqCst)),
            status => panic!("{status}: {}", answer.text()),
        }
    }

    fn read(&self, service: &Service, writer: usize) {
        let answer = fetch(service, "fleet", &format!("writer{writer}"));
        match answer.status {
            200 => self.check(writer, &answer.value()),
            404 => assert_eq!(self.acknowledged[writer].load(Ordering::SeqCst), 0),
            503 => drop(self.refused.fetch_add(1, Ordering::SeqCst)),
            status => panic!("{status}: {}", answer.text()),
        }
    }

    /// For the writer itself, which does not write meanwhile.
    fn check(&self, writer: usize, value: &str) {
        let value: u64 = value.parse().expect("what was written");
        let oldest = self.acknowledged[writer].load(Ordering::SeqCst);
        let newest = self.attempted[writer].load(Ordering::SeqCst);
        assert!((oldest..=newest).contains(&value), "{value} is none of {oldest} to {newest}");
    }

    /// Waits until so many more stores have been acknowledged.
    fn wait_for_more(&self, count: u64) {
        let goal = self.acknowledged() + count;
        wait_until("stores are acknowledged", || self.acknowledged() >= goal);
    }

    /// Waits until a request is refused from now on.
    fn wait_for_refusal(&self) {
        let before = self.refused.load(Ordering::SeqCst);
        wait_until("a request is refused", || self.refused.load(Ordering::SeqCst) > before);
    }

    fn check_all(&self, services: &[Service; 2]) {
        for service in services {
            for writer in 0..WRITERS {
                let answer = eventually("it has recovered", || {
                    let answer = fetch(service, "fleet", &format!("writer{writer}"));
                    (answer.status != 503).then_some(answer)
                });
                self.check(writer, &answer.value());
            }
        }
    }
}

#[test]
fn no_acknowledged_store_is_lost_when_connections_break_and_the_server_stops() {
    let target = Target::ours();
    let server = target.server();
    let places = [Place::new(), Place::new()];
    let token = target.token_for(POLICY);
    let services = places.each_ref().map(|place| target.setup(place, &token).start());
    let load = Load::run(&services, |load| {
        for when in [When::Before, When::After, When::Before] {
            load.wait_for_more(50);
            let fault = server.fault(Fault::Reset(when)).on_path("secret/").next(10);
            fault.wait_for_hits(10);
            load.wait_for_more(50);
            server.stop();
            load.wait_for_refusal();
            server.restart();
        }
        load.wait_for_more(50);
    });
    load.check_all(&services);
}

/// The same with a real server, which is killed without warning.
#[test]
fn no_acknowledged_store_is_lost_when_a_real_server_is_killed() {
    let Some(program) = ["bao", "vault"].into_iter().find_map(on_path) else {
        cannot_here("no bao or vault on the PATH; the test server is stopped instead");
        return;
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut server = RealServer::start(&program, directory.path());
    let places = [Place::new(), Place::new()];
    let services = places.each_ref().map(|place| {
        let setup = place.setup_with("hashicorp").env("VAULT_ADDR", &server.address);
        setup.env("VAULT_TOKEN", &server.root_token).start()
    });
    let load = Load::run(&services, |load| {
        for _ in 0..2 {
            load.wait_for_more(100);
            server.kill();
            load.wait_for_refusal();
            server.run();
        }
        load.wait_for_more(100);
    });
    load.check_all(&services);
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// OpenBao or Vault with file storage.
struct RealServer {
    program: PathBuf,
    directory: PathBuf,
    address: String,
    process: Option<Child>,
    unseal_key: String,
    root_token: String,
}

impl RealServer {
    fn start(program: &Path, directory: &Path) -> Self {
        let free_port = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("it listens").port()
        };
        let (port, cluster, storage) = (free_port(), free_port(), directory.join("storage"));
        let configuration = format!(
            r#"storage "file" {{ path = "{}" }}
            listener "tcp" {{
              address = "127.0.0.1:{port}"
              tls_disable = true
            }}
            api_addr = "http://127.0.0.1:{port}"
            cluster_addr = "http://127.0.0.1:{cluster}"
            ui = false
            disable_mlock = true"#,
            storage.display()
        );
        fs::write(directory.join("config.hcl"), configuration).expect("writes");
        let mut server = Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            address: format!("http://127.0.0.1:{port}"),
            process: None,
            unseal_key: String::new(),
            root_token: String::new(),
        };
        server.spawn();
        let shares = json!({ "secret_shares": 1, "secret_threshold": 1 });
        let keys = server.done("PUT", "sys/init", &shares);
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        server.unseal_key = text(&keys["keys_base64"][0]);
        server.root_token = text(&keys["root_token"]);
        server.unseal();
        let engine = json!({ "type": "kv", "options": { "version": "2" } });
        server.done("POST", "sys/mounts/secret", &engine);
        wait_until("the engine is there", || server.status_of("secret/config") == Some(200));
        server
    }

    fn client(&self) -> Client {
        Client::new(&self.address, &self.root_token)
    }

    /// The status of a GET, if there is an answer at all.
    fn status_of(&self, path: &str) -> Option<u16> {
        let client = self.client();
        let got = client.connect().ok()?.ask(&client, &Ask::new("GET", path)).ok()?;
        Some(got.status)
    }

    fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let got = self.client().ask(&Ask::new(method, path).json(body));
        assert!((200..300).contains(&got.status), "{method} {path}: {}", got.text());
        got.json()
    }

    fn spawn(&mut self) {
        let configuration = self.directory.join("config.hcl");
        let process = Command::new(&self.program)
            .arg("server")
            .arg(format!("-config={}", configuration.display()))
            .env_clear()
            .env("HOME", &self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        self.process = Some(process);
        wait_until("it listens", || self.status_of("sys/seal-status") == Some(200));
    }

    fn unseal(&self) {
        self.done("PUT", "sys/unseal", &json!({ "key": self.unseal_key }));
        wait_until("it is unsealed", || self.status_of("sys/health") == Some(200));
    }

    fn run(&mut self) {
        self.spawn();
        self.unseal();
    }

    /// By SIGKILL.
    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("it runs");
            process.wait().expect("it has ended");
        }
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        self.kill();
    }
}
