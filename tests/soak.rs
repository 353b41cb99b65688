//! A load of mixed and rude clients, for as long as one likes: `make soak SECONDS=60 BACKEND=env`.
//! Without settings it lasts 3 s.
//!
//! It prints a line for each promise. The load is light enough to leave the processor idle at
//! times: it is not a benchmark.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "the report")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use intentframe_credentials::mask_value;
use serde_json::{Value, json};

use hashicorp::{POLICY, Target};
use support::{Connection, Place, Random, Service, delete, get, put, request, wait_until};

const CLIENTS: u64 = 64;
/// The credentials that a client owns: nobody else changes them.
const KEYS: usize = 4;
/// The pause between two probes.
const TICK: Duration = Duration::from_millis(100);

const KINDS: [&str; 7] =
    ["reads", "writes", "deletes", "listings", "slow readers", "half-sent", "aborted"];

/// What the clients did, by kind, and what they got that they should not.
#[derive(Default)]
struct Counts {
    of_kind: [AtomicU64; KINDS.len()],
    refused: Mutex<Vec<String>>,
    lost: Mutex<Vec<String>>,
}

fn note(notes: &Mutex<Vec<String>>, text: String) {
    notes.lock().unwrap_or_else(PoisonError::into_inner).push(text);
}

/// One client, with the values that the service has acknowledged to it.
struct Client<'a> {
    service: &'a Service,
    counts: &'a Counts,
    dice: Random,
    /// Its pauses are shorter than this, in milliseconds.
    think: usize,
    namespace: String,
    values: [Option<String>; KEYS],
    writes: u64,
}

impl Client<'_> {
    fn path(&self, key: usize) -> String {
        format!("/v1/credentials/{}/key-{key}", self.namespace)
    }

    fn pause(&mut self) {
        thread::sleep(Duration::from_millis(self.dice.below(self.think) as u64));
    }

    fn run(&mut self, is_over: &AtomicBool) {
        let mut connection = self.service.connect();
        while !is_over.load(Ordering::Relaxed) {
            self.pause();
            let key = self.dice.below(KEYS);
            let roll = self.dice.below(100);
            let kind = [49, 65, 70, 80, 82, 91].iter().filter(|bound| roll >= **bound).count();
            if self.dice.below(8) == 0 {
                // Some clients connect for each request.
                connection = self.service.connect();
            }
            match kind {
                0 => self.read(&mut connection, key),
                1 => self.write(&mut connection, key),
                2 => self.delete(&mut connection, key),
                3 => self.list(&mut connection),
                4 => self.read_slowly(),
                5 => self.send_half(),
                _ => self.abort(key),
            }
            self.counts.of_kind[kind].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends a request and returns the body of the answer, if its status is 200 or `other`.
    fn ask(&self, connection: &mut Connection, request: &[u8], other: u16) -> Option<Vec<u8>> {
        let answer = connection.exchange(request);
        let is_good = answer.status == 200 || answer.status == other;
        if !is_good {
            note(&self.counts.refused, format!("{}: {}", answer.status, answer.text()));
        }
        is_good.then_some(answer.body)
    }

    fn read(&self, connection: &mut Connection, key: usize) {
        let Some(body) = self.ask(connection, &get(&self.path(key)), 404) else { return };
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        if answer["value"].as_str() != self.values[key].as_deref() {
            note(&self.counts.lost, format!("{}: {answer}", self.path(key)));
        }
    }

    fn write(&mut self, connection: &mut Connection, key: usize) {
        self.writes += 1;
        let value = format!("{:06}-{}-{key}", self.writes, self.namespace);
        let request = put(&self.path(key), &json!({ "value": value }));
        if self.ask(connection, &request, 200).is_some() {
            self.values[key] = Some(value);
        }
    }

    fn delete(&mut self, connection: &mut Connection, key: usize) {
        if self.ask(connection, &delete(&self.path(key)), 200).is_some() {
            self.values[key] = None;
        }
    }

    /// Checks that its namespace has exactly its credentials, with the previews of their values.
    fn list(&self, connection: &mut Connection) {
        let request = get(&format!("/v1/credentials/{}", self.namespace));
        let Some(body) = self.ask(connection, &request, 200) else { return };
        let listing: Vec<Value> = serde_json::from_slice(&body).expect("a list");
        let listed = listing.iter().map(|it| (it["key"].clone(), it["masked_preview"].clone()));
        let own = self.values.iter().enumerate().filter_map(|(key, value)| {
            Some((json!(format!("key-{key}")), json!(mask_value(value.as_ref()?))))
        });
        if !listed.eq(own) {
            note(&self.counts.lost, format!("{} lists {listing:?}", self.namespace));
        }
    }

    /// Asks for more than fits into the socket, and reads it with pauses.
    fn read_slowly(&self) {
        let mut connection = self.service.connect();
        connection.send(&get("/v1/credentials").repeat(8));
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(50));
            let answer = connection.response();
            if !(answer.status == 200 && answer.body.ends_with(b"]")) {
                note(&self.counts.refused, format!("{}: a listing", answer.status));
            }
        }
    }

    /// Stops in the middle of a request, which may be in its head or its body.
    fn send_half(&mut self) {
        let whole = put("/v1/credentials/soak.half/key", &json!({ "value": "never complete" }));
        let part = 1 + self.dice.below(whole.len() - 1);
        let mut connection = self.service.connect();
        connection.send(&whole[..part]);
        self.pause();
    }

    /// Hangs up before the answer.
    fn abort(&mut self, key: usize) {
        let request = match self.dice.below(3) {
            0 => get("/v1/credentials"),
            1 => request("GET", &self.path(key), "Connection: close\r\n", b""),
            // Whether this is stored is unknown, so it is nobody's.
            _ => put(&format!("/v1/credentials/soak.aborted/key-{key}"), &json!({ "value": "v" })),
        };
        self.service.connect().send(&request);
    }
}

/// Lets all clients run for this long, and does `meanwhile` beside them.
fn load<T: Send>(
    clients: &mut [Client<'_>],
    time: Duration,
    meanwhile: impl FnOnce(&AtomicBool) -> T,
) -> T {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in clients {
            let is_over = &is_over;
            scope.spawn(move || client.run(is_over));
        }
        scope.spawn(|| {
            thread::sleep(time);
            is_over.store(true, Ordering::Relaxed);
        });
        meanwhile(&is_over)
    })
}

/// When a probe began, and how long it took.
type Took = (Instant, Duration);

/// Calls `act` every 100 ms until the load is over.
fn every_tick(is_over: &AtomicBool, mut act: impl FnMut()) -> Vec<Took> {
    let mut took = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        act();
        took.push((begun, begun.elapsed()));
        thread::sleep(TICK.saturating_sub(begun.elapsed()));
    }
    took
}

/// Probes `/health`, and beside it a program that only echoes, as the reference: the time that this
/// one takes is the machine's doing, and not the service's.
fn probe(service: &Service, is_over: &AtomicBool) -> [Vec<Took>; 2] {
    let mut cat = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("every system has it");
    let mut input = cat.stdin.take().expect("it is piped");
    let mut output = cat.stdout.take().expect("it is piped");
    let both = thread::scope(|scope| {
        let echoes = scope.spawn(|| {
            every_tick(is_over, || {
                input.write_all(b"x").expect("cat reads");
                output.read_exact(&mut [0]).expect("cat writes");
            })
        });
        let probes = every_tick(is_over, || service.assert_healthy());
        [probes, echoes.join().expect("cat echoes")]
    });
    drop(input);
    let _ = cat.wait();
    both
}

/// What the service occupies while nobody is connected. Memory is the median of 20 samples of its
/// resident set, in KiB.
struct Occupied {
    descriptors: Option<u64>,
    threads: u64,
    memory: u64,
}

fn occupied(service: &Service) -> Occupied {
    let path = service.socket.to_str().expect("UTF-8");
    wait_until("all clients are gone", || {
        let sockets = fs::read_to_string("/proc/net/unix").expect("it can be read");
        sockets.lines().filter(|line| line.ends_with(path)).count() == 1
    });
    hashicorp::wait_until_quiet(service);
    let sample = |_| {
        thread::sleep(Duration::from_millis(20));
        service.status("VmRSS")
    };
    let mut samples: Vec<u64> = (0..20).map(sample).collect();
    samples.sort_unstable();
    // Only root can read the list of descriptors.
    let descriptors = fs::read_dir(format!("/proc/{}/fd", service.id()));
    Occupied {
        descriptors: descriptors.ok().map(|list| list.count() as u64),
        threads: service.status("Threads"),
        memory: samples[10],
    }
}

/// Prints a line for each promise, and remembers whether all were kept.
struct Promises(bool);

impl Promises {
    fn check(&mut self, is_kept: bool, text: &str) {
        self.0 &= is_kept;
        println!("{} {text}", if is_kept { "kept  " } else { "BROKEN" });
    }

    /// The number is at most 5 % higher than before, or `more` higher if that is more.
    fn same(&mut self, what: &str, [before, after]: [u64; 2], more: u64) {
        let text = format!("{what}: {before} after warm-up, {after} at the end (+{more} or 5 %)");
        self.check(after <= before + more.max(before / 20), &text);
    }
}

fn setting(name: &str, default: &str) -> String {
    env::var(name).ok().filter(|it| !it.is_empty()).unwrap_or_else(|| default.to_owned())
}

#[test]
fn a_load_delays_no_probe_loses_nothing_and_leaves_nothing_behind() {
    let seconds: u64 = setting("SOAK_SECONDS", "3").parse().expect("SOAK_SECONDS is a number");
    let backend = setting("SOAK_BACKEND", "env");
    let target = if backend == "hashicorp" { Target::new() } else { None };
    let place = Place::new();
    let mut setup = match &target {
        Some(target) => target.setup(&place, &target.token_for(POLICY)),
        None => place.setup_with(&backend),
    };
    let bus = "DBUS_SESSION_BUS_ADDRESS";
    setup = setup.env(bus, setting(bus, "")).env("RUST_LOG", "warn");
    setup.program = setting("SOAK_PROGRAM", env!("CARGO_BIN_EXE_credential-vault")).into();
    let service = setup.start();
    let is_release = env::var_os("SOAK_PROGRAM").is_some();
    // The other backends are processes that need their share of the machine.
    let think = if is_release && backend == "env" { 100 } else { 400 };
    // `make test` takes a short look at a slow build, beside other programs: only a service that
    // hangs or leaks exceeds its limits.
    let (warm_up, slowest, growth) =
        if is_release { ((seconds / 2).max(15), 250, 0) } else { (1, 5000, 4096) };
    let [warm_up, limit] = [Duration::from_secs(warm_up), Duration::from_millis(slowest)];
    let counts = Counts::default();
    let mut clients: Vec<Client<'_>> = (0..CLIENTS)
        .map(|number| Client {
            service: &service,
            counts: &counts,
            dice: Random(number),
            think,
            namespace: format!("soak.client-{number}"),
            values: Default::default(),
            writes: 0,
        })
        .collect();

    // Warm-up: the same load, until caches, pools and the allocator have seen it.
    load(&mut clients, warm_up, |_| ());
    let before = occupied(&service);
    let [probes, echoes] =
        load(&mut clients, Duration::from_secs(seconds), |is_over| probe(&service, is_over));
    let after = occupied(&service);
    for client in &clients {
        let mut connection = service.connect();
        (0..KEYS).for_each(|key| client.read(&mut connection, key));
        client.list(&mut connection);
    }

    println!("\nsoak: {CLIENTS} clients for {seconds} s after {warm_up:?}, backend {backend}");
    let mut promises = Promises(true);
    let [refused, lost] = [&counts.refused, &counts.lost]
        .map(|notes| notes.lock().unwrap_or_else(PoisonError::into_inner));
    let of_kind = counts.of_kind.each_ref().map(|count| count.load(Ordering::Relaxed));
    let requests: Vec<String> =
        KINDS.iter().zip(of_kind).map(|(kind, count)| format!("{count} {kind}")).collect();
    let text = format!("requests: {}; {} refused", requests.join(", "), refused.len());
    // A keyring or a Vault that gets no processor time counts as hung for a moment.
    let most = if backend == "env" { 0 } else { of_kind.iter().sum::<u64>() / 100 };
    let is_passing = refused.iter().all(|it| it.starts_with("503"));
    promises.check(is_passing && refused.len() as u64 <= most, &text);
    let slowest = |among: &mut dyn Iterator<Item = &Took>| {
        among.map(|(_, took)| *took).max().unwrap_or_default()
    };
    let is_late = |(begun, took): &&Took| {
        let meanwhile =
            |echo: &&Took| echo.0 < *begun + *took + TICK && echo.0 + echo.1 + TICK > *begun;
        *took > limit + slowest(&mut echoes.iter().filter(meanwhile))
    };
    let late = probes.iter().filter(is_late).count();
    let text = format!(
        "/health: {} probes, slowest {:.1?} (a bare echo: {:.1?}), {late} beyond {:?}",
        probes.len(),
        slowest(&mut probes.iter()),
        slowest(&mut echoes.iter()),
        limit,
    );
    promises.check(late == 0, &text);
    match (before.descriptors, after.descriptors) {
        (Some(before), Some(after)) => promises.same("descriptors", [before, after], 2),
        _ => println!("       descriptors: only root can count them"),
    }
    promises.same("threads", [before.threads, after.threads], 0);
    promises.same("memory in KiB", [before.memory, after.memory], growth);
    let changes = of_kind[1] + of_kind[2];
    promises.check(lost.is_empty(), &format!("lost: {} of {changes} changes", lost.len()));
    for note in refused.iter().chain(lost.iter()).take(5) {
        println!("       {note}");
    }
    assert!(promises.0, "a promise is broken; see above");
}
