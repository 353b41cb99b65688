//! Reads that wait for the server without a worker, and go on by the ordinary way when
//! something else than a plain answer comes.
#![cfg(target_os = "linux")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::time::{Duration, Instant};

use serde_json::json;

use hashicorp::vault_server::faults::{Fault, When};
use hashicorp::{
    POLICY, Target, begin_fetch, fetch, on_each_server, store, stored, wait_until_quiet,
};
use support::{Connection, Place, Service};

const SECRETS: &str = "secret/data/intentframe/";

/// A service with a value in `openai`, which has been read, so that there is a connection.
fn start_and_read(target: &Target, place: &Place) -> Service {
    let service = target.setup(place, &target.token_for(POLICY)).start();
    stored(&service, "openai", "key", "value");
    assert_eq!(fetch(&service, "openai", "key").value(), "value");
    service
}

/// More reads hang than there are workers that may wait, and what does wait with a worker
/// is done all the same.
#[test]
fn many_reads_wait_without_a_worker() {
    const READS: usize = 12;
    const WORKERS: &str = "4";
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let setup = target.setup(&place, &target.token_for(POLICY));
    let service = setup.argument("--workers").argument(WORKERS).start();
    let namespaces: Vec<String> = (0..READS).map(|number| format!("n{number}")).collect();
    for namespace in &namespaces {
        target.write(namespace, &json!({ "key": namespace }));
    }
    let read_all = || -> Vec<Connection> {
        namespaces.iter().map(|namespace| begin_fetch(&service, namespace, "key")).collect()
    };
    let assert_all = |reads: Vec<Connection>| {
        for (namespace, mut read) in namespaces.iter().zip(reads) {
            assert_eq!(&read.response().value(), namespace);
        }
    };
    // A connection is made by a read that waits with a worker, so they become more by and by.
    for _ in 0..READS {
        let slow = server.fault(Fault::Slow(Duration::from_millis(30))).on("GET", SECRETS);
        let slow = slow.until_cleared();
        assert_all(read_all());
        slow.clear();
    }

    let gate = server.fault(Fault::Hang(When::Before)).on("GET", SECRETS).until_cleared();
    let reads = read_all();
    gate.wait_for_hanging(READS);
    stored(&service, "other", "key", "value");
    assert_eq!(service.get("/v1/credentials").status, 200);
    gate.release();
    assert_all(reads);
}

#[test]
fn long_answers_come_whole() {
    on_each_server(|target| {
        let place = Place::new();
        let service = target.setup(&place, &target.token_for(POLICY)).start();
        // In one piece, in chunks, and in more than one segment.
        for length in [1, 100, 3000, 60_000] {
            let value = "vault-".repeat(length / 6 + 1);
            let namespace = format!("long{length}");
            stored(&service, &namespace, "key", &value);
            for _ in 0..3 {
                assert_eq!(fetch(&service, &namespace, "key").value(), value);
            }
        }
        assert_eq!(fetch(&service, "nothing", "key").status, 404);
    });
}

/// A server closes idle connections when it likes, and breaks others. Nobody hears of it.
#[test]
fn what_breaks_is_asked_for_again() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start_and_read(&target, &place);
    let faults = [
        Fault::Close(When::Before),
        Fault::Reset(When::Before),
        Fault::Half,
        Fault::Bytes(b"SSH-2.0-OpenSSH_10.0\r\n\r\n".to_vec()),
        Fault::Bytes(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()),
        Fault::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}and more".to_vec()),
    ];
    for fault in faults {
        server.clear_requests();
        let fault = server.fault(fault).on("GET", SECRETS).next(1);
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        assert_eq!(fault.hits(), 1);
        assert_eq!(server.count("GET", SECRETS), 2, "once more, and no oftener");
        // The next one has a connection again, and nothing is left on it.
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
    }
    assert_eq!(hashicorp::health(&service)["status"], "ok");
}

/// What the server says is the first attempt's answer, and counts as one.
#[test]
fn an_answer_that_asks_for_patience_is_not_asked_for_twice() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let setup = target.setup(&place, &target.token_for(POLICY));
    let service = setup.env("VAULT_MAX_RETRIES", "1").start();
    stored(&service, "openai", "key", "value");
    let tries = [
        (Fault::too_many_requests_without_retry_after(), 200),
        (Fault::internal_error(), 200),
        (Fault::too_many_requests(Duration::from_hours(1)), 503),
    ];
    for (fault, status) in tries {
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        server.clear_requests();
        server.fault(fault).on("GET", SECRETS).next(1);
        assert_eq!(fetch(&service, "openai", "key").status, status);
        let asked = if status == 200 { 2 } else { 1 };
        assert_eq!(server.count("GET", SECRETS), asked, "{status}");
    }
}

#[test]
fn an_answer_that_does_not_end_is_given_up_in_time() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let setup = target.setup(&place, &target.token_for(POLICY));
    let service = setup.env("VAULT_CLIENT_TIMEOUT", "500ms").start();
    stored(&service, "openai", "key", "value");
    for fault in [Fault::HalfThenSilence, Fault::Hang(When::Before)] {
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        let fault = server.fault(fault).on("GET", SECRETS).until_cleared();
        let start = Instant::now();
        let answer = fetch(&service, "openai", "key");
        let took = start.elapsed();
        assert_eq!(answer.status, 503);
        assert!(answer.text().contains("did not answer within 0.5 s"), "{}", answer.text());
        assert!((400..3000).contains(&took.as_millis()), "{took:?}");
        fault.clear();
    }
}

/// The node that it sends to is itself, by another name.
#[test]
fn a_standby_that_sends_elsewhere_is_followed() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start_and_read(&target, &place);
    let active = target.address().replace("127.0.0.1", "localhost");
    // It has to be asked once more to be followed the first time, and not after that.
    for asked in [2, 1, 1] {
        server.clear_requests();
        let moved = server.fault(Fault::redirect(&active)).on("GET", SECRETS).next(asked);
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
        assert_eq!(moved.hits(), asked);
        assert_eq!(server.count("GET", SECRETS), asked + 1);
    }
}

/// Who makes a read for all may leave before it is answered.
#[test]
fn who_leaves_takes_nothing_from_the_others() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start_and_read(&target, &place);
    for _ in 0..3 {
        server.clear_requests();
        let gate = server.fault(Fault::Hang(When::Before)).on("GET", SECRETS).until_cleared();
        let first = begin_fetch(&service, "openai", "key");
        gate.wait_for_hanging(1);
        let mut others: Vec<Connection> =
            (0..5).map(|_| begin_fetch(&service, "openai", "key")).collect();
        wait_until_quiet(&service);
        // The one who makes the read, the one who is to make the next, and one more.
        drop(first);
        drop(others.remove(0));
        drop(others.remove(2));
        wait_until_quiet(&service);
        gate.release();
        for other in &mut others {
            assert_eq!(other.response().value(), "value");
        }
        assert_eq!(server.count("GET", SECRETS), 2);
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
    }
}

/// Callers who were answered together and come back together share one read each time; and
/// when most of them stay away, nobody waits for them for long.
#[test]
fn those_who_come_back_together_share_a_read_and_are_not_waited_for() {
    const CALLERS: usize = 16;
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start_and_read(&target, &place);
    let gate = server.fault(Fault::Hang(When::Before)).on("GET", SECRETS).next(1);
    let mut first = begin_fetch(&service, "openai", "key");
    gate.wait_for_hanging(1);
    let mut others: Vec<Connection> =
        (0..CALLERS).map(|_| begin_fetch(&service, "openai", "key")).collect();
    wait_until_quiet(&service);
    gate.release();
    assert_eq!(first.response().value(), "value");
    for other in &mut others {
        assert_eq!(other.response().value(), "value");
    }
    server.clear_requests();
    for _ in 0..20 {
        assert_eq!(fetch(&service, "openai", "key").value(), "value");
    }
    assert_eq!(server.count("GET", SECRETS), 20, "one for each, with nobody to share it");
}

#[test]
fn a_dead_token_is_replaced_and_the_read_made() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    target.policy("reads", POLICY);
    let role = target.approle("reads", json!({ "token_policies": ["reads"], "token_ttl": "1h" }));
    let service = target.setup_with_role(&place, &role).start();
    stored(&service, "openai", "key", "value");
    assert_eq!(fetch(&service, "openai", "key").value(), "value");
    server.clear_requests();
    server.fault(Fault::RevokeToken).on("GET", SECRETS).next(1);
    assert_eq!(fetch(&service, "openai", "key").value(), "value");
    assert_eq!(server.count("GET", SECRETS), 2);
    assert_eq!(server.count("POST", "auth/approle/login"), 1);
    assert_eq!(store(&service, "openai", "key", "another").status, 200);
    assert_eq!(fetch(&service, "openai", "key").value(), "another");
}
