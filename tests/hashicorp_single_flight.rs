//! Single-flight: callers share requests to the server, and nobody reads an older value because
//! of it.
#![cfg(target_os = "linux")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde_json::{Value, json};

use hashicorp::proxy::{Fault, When};
use hashicorp::{
    MODES, Mode, POLICY, Target, at, begin_fetch, begin_remove, begin_store, fetch, stored,
    wait_until_quiet,
};
use support::{Connection, Place, Service, get};

/// The path of the secret that most tests use.
const SECRET: &str = "data/intentframe/shared";

#[test]
fn readers_that_arrive_during_a_read_share_the_next_one() {
    const READERS: usize = 20;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.service(POLICY);
    target.write("shared", &json!({ "a": "1", "b": "2" }));

    let gate = proxy.next(1, Fault::Hold(When::Before), "GET", SECRET);
    let mut first = begin_fetch(&service, "shared", "a");
    gate.wait_for_held(1);
    // Readers of both fields, and of one that does not exist.
    let mut readers: Vec<(&str, Connection)> = (0..READERS)
        .map(|n| ["a", "b", "none"][n % 3])
        .map(|key| (key, begin_fetch(&service, "shared", key)))
        .collect();
    wait_until_quiet(&service);
    gate.release();

    assert_eq!(first.response().value(), "1");
    for (key, reader) in &mut readers {
        let answer = reader.response();
        match *key {
            "a" => assert_eq!(answer.value(), "1"),
            "b" => assert_eq!(answer.value(), "2"),
            _ => assert_eq!(answer.status, 404),
        }
    }
    assert_eq!(proxy.count("GET", SECRET), 2, "one for the first reader, one for all others");
}

/// The server answers the first read before a store, but the answer arrives after it. A reader
/// that arrives after the store's acknowledgement must not get that answer.
#[test]
fn a_reader_after_an_acknowledged_store_reads_the_new_value() {
    const READERS: usize = 12;
    for mode in MODES {
        let Some(target) = Target::new() else { return };
        let proxy = &target.proxy;
        let service = target.setup(&target.place, &target.token_of_mode(mode)).start();
        stored(&service, "shared", "a", "old");
        stored(&service, "shared", "a", "old");

        proxy.clear_requests();
        let gate = proxy.next(1, Fault::Hold(When::After), "GET", SECRET);
        let mut first = begin_fetch(&service, "shared", "a");
        gate.wait_for_held(1);
        let mut early = begin_fetch(&service, "shared", "a");
        wait_until_quiet(&service);
        stored(&service, "shared", "a", "new");
        let mut late: Vec<Connection> =
            (0..READERS).map(|_| begin_fetch(&service, "shared", "a")).collect();
        wait_until_quiet(&service);
        gate.release();

        assert_eq!(first.response().value(), "old", "it asked before");
        assert_eq!(early.response().value(), "new", "the next read began after the store");
        for reader in &mut late {
            assert_eq!(reader.response().value(), "new", "{mode:?}");
        }
        let own = usize::from(mode != Mode::Patch); // the store reads, too
        assert_eq!(proxy.count("GET", SECRET), 2 + own, "{mode:?}");
    }
}

#[test]
fn a_namespace_that_hangs_delays_no_other() {
    let Some(target) = Target::new() else { return };
    let service = target.service(POLICY);
    target.write("shared", &json!({ "a": "1" }));
    target.write("other", &json!({ "a": "2" }));
    let gate = target.proxy.all(Fault::Hold(When::Before), "", SECRET);
    let mut reading = begin_fetch(&service, "shared", "a");
    let mut storing = begin_store(&service, "shared", "a", "3");
    gate.wait_for_held(2);
    assert_eq!(fetch(&service, "other", "a").value(), "2");
    stored(&service, "other", "a", "4");
    assert!(reading.is_silent() && storing.is_silent());
    gate.release();
    assert_eq!((reading.response().status, storing.response().status), (200, 200));
}

/// The callers that share a read share its failure; later callers ask again.
#[test]
fn a_failure_is_shared_by_its_read_only() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target
        .setup(&target.place, &target.token_for(POLICY))
        .env("VAULT_MAX_RETRIES", "0")
        .start();
    target.write("shared", &json!({ "a": "1" }));
    let gate = proxy.next(1, Fault::Hold(When::Before), "GET", SECRET);
    let mut first = begin_fetch(&service, "shared", "a");
    gate.wait_for_held(1);
    proxy.next(1, Fault::internal_error(), "GET", SECRET);
    let mut readers: Vec<Connection> =
        (0..5).map(|_| begin_fetch(&service, "shared", "a")).collect();
    wait_until_quiet(&service);
    gate.release();
    assert_eq!(first.response().value(), "1");
    for reader in &mut readers {
        assert_eq!(reader.response().status, 503);
    }
    assert_eq!(proxy.count("GET", SECRET), 2);
    assert_eq!(fetch(&service, "shared", "a").value(), "1");
}

#[test]
fn stores_that_wait_behind_another_go_as_one_merge() {
    const STORES: usize = 20;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.service(POLICY);
    stored(&service, "shared", "first", "0");

    proxy.clear_requests();
    let gate = proxy.all(Fault::Hold(When::Before), "PATCH", SECRET);
    let mut first = begin_store(&service, "shared", "first", "1");
    gate.wait_for_held(1);
    let mut stores: Vec<Connection> = (0..STORES)
        .map(|n| begin_store(&service, "shared", &format!("key{n}"), &format!("value{n}")))
        .collect();
    wait_until_quiet(&service);
    gate.let_one_through();
    assert_eq!(first.response().status, 200);
    // The merge is under way, and nobody is answered before it is done.
    gate.wait_for_hits(2);
    wait_until_quiet(&service);
    assert!(stores.iter_mut().all(Connection::is_silent), "acknowledged too early");
    assert_eq!(target.read("shared"), Some(json!({ "first": "1" })));
    gate.release();
    for store in &mut stores {
        assert_eq!(store.response().status, 200);
    }
    assert_eq!(proxy.count("", SECRET), 2, "one for the first store, one for all others");
    let fields = target.read("shared").expect("a secret");
    for n in 0..STORES {
        assert_eq!(fields[format!("key{n}")], format!("value{n}"));
    }
}

/// The server refuses the merge, and then one of the stores that were in it.
#[test]
fn only_the_store_that_is_refused_alone_fails() {
    // The answer of a storage with a size limit: not a sign that the server is broken.
    let too_large = "1 error occurred:\n\t* put failed due to value being too large; got 156 \
                     bytes, max 1048576 bytes\n\n";
    for mode in MODES {
        only_the_third_store_fails(mode, 400, "the value is not accepted");
        only_the_third_store_fails(mode, 500, too_large);
    }
}

fn only_the_third_store_fails(mode: Mode, status: u16, text: &str) {
    const STORES: usize = 6;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.setup(&target.place, &target.token_of_mode(mode)).start();
    stored(&service, "shared", "first", "0");
    stored(&service, "shared", "first", "1");
    let write = if mode == Mode::NoPatch { "POST" } else { "PATCH" };
    let refused = Fault::error(status, text);

    proxy.clear_requests();
    let gate = proxy.next(1, Fault::Hold(When::Before), write, SECRET);
    let _merge = proxy.next(1, refused.clone(), write, SECRET);
    let _third = proxy.after(2, 1, refused, write, SECRET);
    let mut first = begin_store(&service, "shared", "first", "2");
    gate.wait_for_held(1);
    let mut stores = Vec::new();
    for n in 0..STORES {
        stores.push(begin_store(&service, "shared", &format!("key{n}"), "value"));
        // One after another, so that their order is known.
        wait_until_quiet(&service);
    }
    gate.release();
    assert_eq!(first.response().status, 200);
    for (n, store) in stores.iter_mut().enumerate() {
        let answer = store.response();
        assert_eq!(answer.status, if n == 2 { 500 } else { 200 }, "{n}: {}", answer.text());
        if n == 2 {
            assert!(answer.text().contains(&text[..10]), "{}", answer.text());
        }
    }
    assert_eq!(proxy.count(write, SECRET), 1 + 1 + STORES, "{mode:?}");
    let fields = target.read("shared").expect("a secret");
    let listing = service.get("/v1/credentials/shared").json();
    let listed: Vec<&Value> =
        listing.as_array().expect("a list").iter().map(|row| &row["key"]).collect();
    for n in 0..STORES {
        let key = format!("key{n}");
        assert_eq!(fields.get(&key).is_some(), n != 2, "{fields}");
        assert_eq!(listed.contains(&&json!(key)), n != 2, "{listing}");
    }
}

/// A deletion goes alone, between the stores that arrived before it and after it.
#[test]
fn changes_keep_their_order() {
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.service(POLICY);
    stored(&service, "shared", "first", "0");
    stored(&service, "shared", "gone", "0");

    proxy.clear_requests();
    let gate = proxy.next(1, Fault::Hold(When::Before), "PATCH", SECRET);
    let mut answers = vec![begin_store(&service, "shared", "first", "1")];
    gate.wait_for_held(1);
    for key in ["a", "b"] {
        answers.push(begin_store(&service, "shared", key, "1"));
        wait_until_quiet(&service);
    }
    answers.push(begin_remove(&service, "shared", "gone"));
    wait_until_quiet(&service);
    for key in ["c", "d"] {
        answers.push(begin_store(&service, "shared", key, "1"));
        wait_until_quiet(&service);
    }
    gate.release();
    for answer in &mut answers {
        assert_eq!(answer.response().status, 200);
    }
    let requests = proxy.requests();
    let methods: Vec<&str> =
        requests.iter().filter(|it| it.is("", SECRET)).map(|it| &*it.method).collect();
    assert_eq!(methods, ["PATCH", "PATCH", "GET", "PATCH", "PATCH"]);
    let all = json!({ "first": "1", "a": "1", "b": "1", "c": "1", "d": "1" });
    assert_eq!(target.read("shared"), Some(all));
}

/// A merge has a size limit: large values go in several requests, and none is refused.
#[test]
fn a_merge_has_a_size_limit() {
    const STORES: usize = 8;
    let Some(target) = Target::new() else { return };
    let proxy = &target.proxy;
    let service = target.service(POLICY);
    stored(&service, "shared", "first", "0");
    proxy.clear_requests();
    let gate = proxy.next(1, Fault::Hold(When::Before), "PATCH", SECRET);
    let mut first = begin_store(&service, "shared", "first", "1");
    gate.wait_for_held(1);
    let value = "x".repeat(200 * 1024);
    let mut stores: Vec<Connection> =
        (0..STORES).map(|n| begin_store(&service, "shared", &format!("key{n}"), &value)).collect();
    wait_until_quiet(&service);
    gate.release();
    assert_eq!(first.response().status, 200);
    for store in &mut stores {
        assert_eq!(store.response().status, 200);
    }
    let requests = proxy.count("PATCH", SECRET);
    assert!((1 + 4..=STORES).contains(&requests), "{requests}");
    assert_eq!(fetch(&service, "shared", "key7").value(), value);
}

/// One writer stores increasing numbers in one field, through one service and through two, while
/// others store other fields. Nobody reads a number that was overwritten before the read began,
/// or that was not yet written; of two reads in sequence the second is not the older one.
#[test]
fn no_reader_ever_goes_back_in_time() {
    const READERS: usize = 6;
    const WRITES: u64 = 80;
    for services in [1, 2] {
        let Some(target) = Target::new() else { return };
        let token = target.token_for(POLICY);
        let places: Vec<Place> = (0..services).map(|_| Place::new()).collect();
        let services: Vec<Service> =
            places.iter().map(|place| target.setup(place, &token).start()).collect();
        stored(&services[0], "shared", "number", "0");
        let of = |n: usize| &services[n % services.len()];
        let [attempted, acknowledged, read] = [const { AtomicU64::new(0) }; 3];
        let going_on = || acknowledged.load(Ordering::SeqCst) < WRITES;
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in 1..=WRITES {
                    attempted.store(number, Ordering::SeqCst);
                    let service = of(usize::try_from(number).expect("small"));
                    stored(service, "shared", "number", &number.to_string());
                    acknowledged.store(number, Ordering::SeqCst);
                }
            });
            for n in 0..READERS {
                let (of, going_on) = (&of, &going_on);
                let (attempted, acknowledged, read) = (&attempted, &acknowledged, &read);
                scope.spawn(move || {
                    while going_on() {
                        stored(of(n), "shared", &format!("other{n}"), "value");
                    }
                });
                scope.spawn(move || {
                    let mut connection = of(n).connect();
                    while going_on() {
                        let written = acknowledged.load(Ordering::SeqCst);
                        let oldest = read.load(Ordering::SeqCst).max(written);
                        let value = connection.exchange(&get(&at("shared", "number"))).value();
                        let value: u64 = value.parse().expect("a number");
                        let newest = attempted.load(Ordering::SeqCst);
                        assert!((oldest..=newest).contains(&value), "{oldest}: {value}: {newest}");
                        read.fetch_max(value, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
