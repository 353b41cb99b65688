//! The hashicorp backend while the server is down, slow or broken: what callers get, how many
//! requests are sent, and how it recovers.
#![cfg(unix)]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::array;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use hashicorp::bao::{self, DiskServer};
use hashicorp::proxy::{Fault, When};
use hashicorp::{POLICY, Target, begin_fetch, fetch, health, store, stored};
use support::{Connection, Place, Service, eventually, wait_until};

/// Answers that need nothing of the server arrive within this time.
const AT_ONCE: Duration = Duration::from_millis(500);

#[track_caller]
fn at_once<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    assert!(start.elapsed() < AT_ONCE, "{what} took {:?}", start.elapsed());
    result
}

/// `/health` and the listings are right and fast, whatever the server does.
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
    let place = Place::new();
    let address = format!("http://127.0.0.1:{}", bao::free_port());
    let setup = place.setup_with("hashicorp").env("VAULT_ADDR", &address);
    let mut service = setup.env("VAULT_TOKEN", "a-token").spawn();
    assert_eq!(service.wait().code(), Some(5));
    let log = service.log();
    for text in ["the connection failed", "VAULT_ADDR", "--wait-for-backend", &address] {
        assert!(log.contains(text), "{text}: {log}");
    }
    assert!(!place.socket().exists() && !place.database().exists(), "nothing is left behind");
}

#[test]
fn a_start_that_waits_for_the_server_goes_on_when_it_is_there() {
    let Some(target) = Target::new() else { return };
    let role = target.approle("r", json!({}));
    target.proxy.stop();
    let setup = target.setup_with_role(&target.place, &role).argument("--wait-for-backend");
    let mut service = setup.clone().spawn();
    wait_until("it waits", || service.log().contains("waiting for it"));
    assert!(!target.place.socket().exists());
    target.proxy.restart();
    service.wait_until_ready();
    stored(&service, "openai", "key", "value");
    drop(service);

    // One that is sealed is waited for as well; and not any longer after a signal.
    target.proxy.all(Fault::sealed(), "", "");
    let mut service = setup.spawn();
    wait_until("it waits", || service.log().contains("sealed"));
    service.signal(rustix::process::Signal::TERM);
    assert_eq!(service.wait().code(), Some(0));
}

/// Waiting would not make the token good.
#[test]
fn a_start_with_a_bad_token_says_so_and_ends() {
    let Some(target) = Target::new() else { return };
    let setup = target.setup(&target.place, "no-such-token");
    for setup in [setup.clone(), setup.argument("--wait-for-backend")] {
        let mut service = setup.spawn();
        assert_eq!(service.wait().code(), Some(2));
        let log = service.log();
        assert!(log.contains("the token is not valid"), "{log}");
        assert!(!log.contains("no-such-token"), "{log}");
    }
}

/// Requests get 503, answers that do not need the server are unaffected, and the service
/// recovers by itself.
#[test]
fn an_outage_is_reported_until_it_ends() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let role = target.approle("r", json!({}));
    let service =
        target.setup_with_role(&target.place, &role).env("VAULT_CLIENT_TIMEOUT", "1").start();
    stored(&service, "openai", "key", "value");
    stored(&service, "openai", "other", "value");
    assert_eq!(rest_works(&service, 2)["status"], "ok");

    let outage = || {
        let answer = eventually("a request fails", || {
            Some(fetch(&service, "openai", "key")).filter(|answer| answer.status != 200)
        });
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("Retry-After").is_some());
        // The server may have stored it; but the answer is a failure, and no listing has it.
        assert_eq!(store(&service, "openai", "unknown", "value").status, 503);
        let health = eventually("it is degraded", || {
            Some(rest_works(&service, 2)).filter(|health| health["status"] == "degraded")
        });
        assert!(health["renewal"]["ttl_seconds"].is_u64(), "{health}");
    };
    let recovery = || {
        wait_until("it works by itself", || fetch(&service, "openai", "key").status == 200);
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        wait_until("it is ok", || rest_works(&service, 2)["status"] == "ok");
    };

    proxy.stop();
    outage();
    proxy.restart();
    recovery();

    let bad_gateway = Fault::error(502, "bad gateway");
    for fault in
        [Fault::sealed(), Fault::Reset(When::Before), Fault::Hold(When::Before), bad_gateway]
    {
        let fault = proxy.all(fault, "", "");
        outage();
        fault.clear();
        recovery();
    }
    let metadata = service.get("/v1/credentials/openai").json();
    assert_eq!(metadata.as_array().map(Vec::len), Some(2), "failed stores left nothing");
}

/// Many callers and the probes of `/health` cause few requests to a dead server.
#[test]
fn a_dead_server_gets_few_requests() {
    const CALLERS: usize = 16;
    const OUTAGE: Duration = Duration::from_secs(3);
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.role_service(json!({ "token_ttl": "2s" }));
    let sealed = proxy.all(Fault::sealed(), "", "");
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
    // The requests under way when the outage began, the breaker's trials at 0.25, 0.5, 1 and
    // 2 s, the renewals, and a probe a second for /health.
    assert!(sent <= CALLERS * 3 + 20, "{sent}");
    assert!(asked > sent as u64);
}

/// At most the configured number of requests are under way to a slow server; the others wait
/// and are answered, and answers that do not need the server are not delayed.
#[test]
fn a_slow_server_delays_only_requests_that_need_it() {
    const CALLERS: usize = 100;
    const IN_FLIGHT: usize = 4;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let setup = target.setup(&target.place, &target.token_for(POLICY));
    let service = setup.env("IF_VAULT_MAX_IN_FLIGHT", "4").start();
    stored(&service, "ns0", "key", "value");
    let gate = proxy.all(Fault::Hold(When::Before), "", "/data/");
    let mut callers: Vec<Connection> =
        (0..CALLERS).map(|n| begin_fetch(&service, &format!("ns{n}"), "key")).collect();
    gate.wait_for_held(IN_FLIGHT);
    for _ in 0..10 {
        rest_works(&service, 1);
    }
    assert_eq!(gate.held(), IN_FLIGHT);
    gate.clear();
    for (n, caller) in callers.iter_mut().enumerate() {
        assert_eq!(caller.response().status, if n == 0 { 200 } else { 404 });
    }
    assert!(proxy.most_under_way() <= IN_FLIGHT, "{}", proxy.most_under_way());
}

const WRITERS: usize = 16;

/// The answers that 16 writers got, each for its own field.
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

    /// Called by the writer itself, so it does not write at the same time.
    fn check(&self, writer: usize, value: &str) {
        let value: u64 = value.parse().expect("what was written");
        let oldest = self.acknowledged[writer].load(Ordering::SeqCst);
        let newest = self.attempted[writer].load(Ordering::SeqCst);
        assert!((oldest..=newest).contains(&value), "{value} is none of {oldest} to {newest}");
    }

    /// Waits until this many more stores have been acknowledged.
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
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let places = [Place::new(), Place::new()];
    let token = target.token_for(POLICY);
    let services = places.each_ref().map(|place| target.setup(place, &token).start());
    let load = Load::run(&services, |load| {
        for when in [When::Before, When::After, When::Before] {
            load.wait_for_more(50);
            let fault = proxy.next(10, Fault::Reset(when), "", "/data/");
            fault.wait_for_hits(10);
            load.wait_for_more(50);
            proxy.stop();
            load.wait_for_refusal();
            proxy.restart();
        }
        load.wait_for_more(50);
    });
    load.check_all(&services);
}

/// The same with a server that is killed without warning.
#[test]
fn no_acknowledged_store_is_lost_when_the_server_is_killed() {
    let Some(program) = bao::own_program() else { return };
    let mut disk = DiskServer::start(&program);
    let (address, token) = (disk.server.address.clone(), disk.server.token.clone());
    let places = [Place::new(), Place::new()];
    let services = places.each_ref().map(|place| {
        let setup = place.setup_with("hashicorp").env("VAULT_ADDR", &address);
        setup.env("VAULT_TOKEN", &token).start()
    });
    let load = Load::run(&services, |load| {
        for _ in 0..2 {
            load.wait_for_more(100);
            disk.kill();
            load.wait_for_refusal();
            disk.restart();
        }
        load.wait_for_more(100);
    });
    load.check_all(&services);
}

/// Broken answers to a read are asked for again once, and no later request is affected.
#[test]
fn a_broken_answer_is_asked_for_again() {
    let Some(target) = Target::new() else { return };
    let service = target.service(POLICY);
    // In one piece, in chunks, and in several segments.
    for length in [6, 3000, 60_000] {
        let value = "vault-".repeat(length / 6);
        stored(&service, "openai", "key", &value);
        let faults = [
            Fault::Close,
            Fault::Reset(When::Before),
            Fault::Reset(When::After),
            Fault::Half,
            Fault::LastAnswer(b"SSH-2.0-OpenSSH_10.0\r\n\r\n".to_vec()),
            Fault::LastAnswer(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
            Fault::internal_error(),
            Fault::too_many_requests(None),
        ];
        for fault in faults {
            target.proxy.clear_requests();
            let described = format!("{fault:?}");
            let fault = target.proxy.next(1, fault, "GET", "/data/");
            assert_eq!(fetch(&service, "openai", "key").value(), value, "{described}");
            assert_eq!(fault.hits(), 1);
            assert_eq!(target.proxy.count("GET", "/data/"), 2, "once more: {described}");
            assert_eq!(fetch(&service, "openai", "key").value(), value);
        }
    }
    assert_eq!(health(&service)["status"], "ok");
}

/// An answer that does not end, or that makes no sense, is an error in bounded time and memory.
#[test]
fn a_hostile_answer_is_an_error_in_time() {
    let Some(target) = Target::new() else { return };
    let setup =
        target.setup(&target.place, &target.token_for(POLICY)).env("VAULT_CLIENT_TIMEOUT", "1");
    let service = setup.env("VAULT_MAX_RETRIES", "0").start();
    stored(&service, "openai", "key", "value");
    let page = b"<!DOCTYPE html><title>Welcome</title>";
    let faults = [
        Fault::HalfThenSilence,
        Fault::Hold(When::Before),
        Fault::Drip,
        Fault::answer(200, "Content-Type: text/html\r\n", page),
        Fault::answer(200, "", br#"{"data":[1,2,3]}"#),
        Fault::answer(200, "", &vec![b' '; 100 << 20]),
        Fault::too_many_requests(Some(3600)),
        Fault::answer(307, "Location: ftp://elsewhere/\r\n", b""),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        wait_until("it works", || fetch(&service, "openai", "key").status == 200);
        let fault = target.proxy.all(fault, "GET", "/data/");
        let start = Instant::now();
        let answer = fetch(&service, "openai", "key");
        assert!(matches!(answer.status, 500 | 503), "{number}: {}", answer.text());
        assert!(start.elapsed() < Duration::from_secs(5), "{number}: {:?}", start.elapsed());
        fault.clear();
    }
    if cfg!(target_os = "linux") {
        let peak = service.status("VmHWM");
        assert!(peak < 80 * 1024, "{peak} kB");
    }
}
