//! More connections than threads or file descriptors.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, prlimit};

use support::{
    Connection, DEADLINE, Place, Service, delete, get, put, raise_descriptor_limit, try_connect,
};

/// Returns the processor time that the service has used, in ticks of 10 ms (proc(5): `utime` and
/// `stime`, fields 14 and 15 of `stat`).
fn processor_ticks(service: &Service) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", service.id())).expect("it runs");
    let (_, after_name) = stat.rsplit_once(')').expect("the name is in parentheses");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    [fields[11], fields[12]].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
}

/// Waits for an interval in which the service uses almost no processor time. A service that spins
/// has none.
fn assert_does_not_spin(service: &Service) {
    let end = Instant::now() + DEADLINE;
    loop {
        let before = processor_ticks(service);
        thread::sleep(Duration::from_millis(500));
        let used = processor_ticks(service) - before;
        if used <= 2 {
            return;
        }
        assert!(Instant::now() < end, "it spins: {used} ticks of 50");
    }
}

/// Opens connections until the service accepts no more and its listener's queue is full, or until
/// `most` are open.
fn fill(service: &Service, most: usize) -> Vec<Connection> {
    let mut connections = Vec::new();
    while connections.len() < most {
        match try_connect(&service.socket) {
            Ok(stream) => connections.push(Connection::over(stream)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("cannot connect: {error}"),
        }
    }
    connections
}

fn survives(service: &mut Service, descriptors: usize) {
    let mut inside = service.connect();
    assert_eq!(inside.exchange(&get("/health")).status, 200);
    for _ in 0..2 {
        let outside = fill(service, 2 * descriptors);
        assert!(outside.len() > descriptors, "{}", outside.len());
        assert_does_not_spin(service);
        assert_eq!(inside.exchange(&get("/health")).status, 200, "who is inside is served");
        // Changes are made, and what they store is read.
        let path = "/v1/credentials/full/key";
        let stored = inside.exchange(&put(path, &serde_json::json!({ "value": "value" })));
        assert_eq!(stored.status, 200, "{}", stored.text());
        assert_eq!(inside.exchange(&get(path)).value(), "value");
        assert_eq!(inside.exchange(&delete(path)).status, 200);
        assert_eq!(
            inside.exchange(&get("/v1/credentials")).status,
            200,
            "and what it needs was opened before"
        );
        drop(outside);
        service.wait_until_ready();
    }
    assert!(service.exit_status().is_none(), "it never ended");
}

#[test]
fn a_service_started_with_few_descriptors_recovers_when_they_are_freed() {
    let place = Place::new();
    // The hard limit too, since the service raises the soft one to it.
    let mut service = place.setup().after("ulimit -n 64").start();
    survives(&mut service, 64);
}

#[test]
fn a_service_that_runs_out_of_descriptors_recovers_when_they_are_freed() {
    let (_place, mut service) = Place::serving();
    let few = Rlimit { current: Some(64), maximum: Some(64) };
    prlimit(Some(service.pid()), Resource::Nofile, few).expect("a limit may be lowered");
    survives(&mut service, 64);
}

#[test]
fn a_thousand_idle_connections_cost_no_thread() {
    raise_descriptor_limit();
    let (_place, service) = Place::serving();
    service.assert_healthy();
    let threads = service.status("Threads");
    assert!(threads < 64, "a fixed pool is small: {threads}");

    let mut idle: Vec<Connection> = (0..1000).map(|_| service.connect()).collect();
    for connection in idle.iter_mut().step_by(2) {
        assert_eq!(connection.exchange(&get("/health")).status, 200);
    }
    let mut active = service.connect();
    for _ in 0..100 {
        assert_eq!(active.exchange(&get("/health")).status, 200);
    }
    assert_eq!(service.status("Threads"), threads);
    assert_does_not_spin(&service);

    for connection in &mut idle {
        assert_eq!(connection.exchange(&get("/health")).status, 200);
    }
    assert_eq!(service.status("Threads"), threads);
}
