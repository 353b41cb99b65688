//! Fewer requests to the server than callers have, and nobody sees an older value for it.
#![cfg(target_os = "linux")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use hashicorp::vault_server::exchange::Refusal;
use hashicorp::vault_server::faults::{Fault, When};
use hashicorp::{
    MODES, Mode, POLICY, Target, at, begin_fetch, begin_remove, begin_store, fetch, on_each_server,
    stored, wait_until_quiet,
};
use support::{Connection, Place, Service, get, put};

/// The secret of the namespace that most tests use.
const SECRET: &str = "secret/data/intentframe/shared";

fn start(target: &Target, place: &Place) -> Service {
    target.setup(place, &target.token_for(POLICY)).start()
}

#[test]
fn readers_who_come_during_a_read_share_the_next_one() {
    const READERS: usize = 20;
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start(&target, &place);
    target.write("shared", &json!({ "a": "1", "b": "2" }));

    let gate = server.fault(Fault::Hang(When::Before)).on("GET", SECRET).next(1);
    let mut first = begin_fetch(&service, "shared", "a");
    gate.wait_for_hanging(1);
    // Readers of either field, and of one that is not there.
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
    assert_eq!(server.count("GET", SECRET), 2, "the first one's, and one for all others");
}

/// The first read has been answered by the server before the value was stored, but the
/// answer is on its way for long. Who asks after the store's acknowledgement must not get
/// it, nor any that began before.
#[test]
fn who_comes_after_an_acknowledged_store_reads_what_was_stored() {
    const READERS: usize = 12;
    for mode in MODES {
        let target = Target::ours();
        let server = target.server();
        let place = Place::new();
        let service = target.setup(&place, &target.token_of_mode(mode)).start();
        stored(&service, "shared", "a", "old");
        stored(&service, "shared", "a", "old");

        server.clear_requests();
        let gate = server.fault(Fault::Hang(When::After)).on("GET", SECRET).next(1);
        let mut first = begin_fetch(&service, "shared", "a");
        gate.wait_for_hanging(1);
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
        assert_eq!(server.count("GET", SECRET), 2 + own, "{mode:?}");
    }
}

#[test]
fn a_namespace_that_hangs_holds_up_no_other() {
    let target = Target::ours();
    let place = Place::new();
    let service = start(&target, &place);
    target.write("shared", &json!({ "a": "1" }));
    target.write("other", &json!({ "a": "2" }));
    let gate = target.server().fault(Fault::Hang(When::Before)).on_path(SECRET).until_cleared();
    let mut reading = begin_fetch(&service, "shared", "a");
    let mut storing = begin_store(&service, "shared", "a", "3");
    gate.wait_for_hanging(2);
    assert_eq!(fetch(&service, "other", "a").value(), "2");
    stored(&service, "other", "a", "4");
    assert!(reading.is_silent() && storing.is_silent());
    gate.release();
    assert_eq!((reading.response().status, storing.response().status), (200, 200));
}

/// The failure of a read is that of all who shared it; those who come later ask again.
#[test]
fn a_failure_is_shared_no_further_than_its_read() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service =
        target.setup(&place, &target.token_for(POLICY)).env("VAULT_MAX_RETRIES", "0").start();
    target.write("shared", &json!({ "a": "1" }));
    let gate = server.fault(Fault::Hang(When::Before)).on("GET", SECRET).next(1);
    let mut first = begin_fetch(&service, "shared", "a");
    gate.wait_for_hanging(1);
    server.fault(Fault::internal_error()).on("GET", SECRET).next(1);
    let mut readers: Vec<Connection> =
        (0..5).map(|_| begin_fetch(&service, "shared", "a")).collect();
    wait_until_quiet(&service);
    gate.release();
    assert_eq!(first.response().value(), "1");
    for reader in &mut readers {
        assert_eq!(reader.response().status, 503);
    }
    assert_eq!(server.count("GET", SECRET), 2);
    assert_eq!(fetch(&service, "shared", "a").value(), "1");
}

#[test]
fn stores_that_wait_behind_one_go_together() {
    const STORES: usize = 20;
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start(&target, &place);
    stored(&service, "shared", "first", "0");

    server.clear_requests();
    let gate = server.fault(Fault::Hang(When::Before)).on("PATCH", SECRET).until_cleared();
    let mut first = begin_store(&service, "shared", "first", "1");
    gate.wait_for_hanging(1);
    let mut stores: Vec<Connection> = (0..STORES)
        .map(|n| begin_store(&service, "shared", &format!("key{n}"), &format!("value{n}")))
        .collect();
    wait_until_quiet(&service);
    gate.let_through(1);
    assert_eq!(first.response().status, 200);
    // The joint one is under way, and nobody is answered before it is done.
    gate.wait_for_hits(2);
    wait_until_quiet(&service);
    assert!(stores.iter_mut().all(Connection::is_silent), "acknowledged too early");
    assert_eq!(target.read("shared"), Some(json!({ "first": "1" })));
    gate.release();
    for store in &mut stores {
        assert_eq!(store.response().status, 200);
    }
    assert_eq!(server.requests().len(), 2, "the first one's, and one for all others");
    let fields = target.read("shared").expect("a secret");
    for n in 0..STORES {
        assert_eq!(fields[format!("key{n}")], format!("value{n}"));
    }
}

/// The server refuses the joint store, and then one of those of which it was made.
#[test]
fn of_a_joint_store_that_is_refused_only_the_guilty_one_fails() {
    // What a storage with a limit says, which is no sign that the server does not work.
    let too_large = "1 error occurred:\n\t* put failed due to value being too large; got 156 \
                     bytes, max 1048576 bytes\n\n";
    for mode in MODES {
        only_the_guilty_one_fails(mode, 400, "the value is not what this server takes");
        only_the_guilty_one_fails(mode, 500, too_large);
    }
}

fn only_the_guilty_one_fails(mode: Mode, status: u16, text: &str) {
    const STORES: usize = 6;
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = target.setup(&place, &target.token_of_mode(mode)).start();
    stored(&service, "shared", "first", "0");
    stored(&service, "shared", "first", "1");
    let write = if mode == Mode::NoPatch { "POST" } else { "PATCH" };
    let refused = || {
        let refusal = Refusal::new(status, text);
        server.fault(Fault::Answer(refusal.into_reply())).on(write, SECRET)
    };

    server.clear_requests();
    let gate = server.fault(Fault::Hang(When::Before)).on(write, SECRET).next(1);
    let _joint = refused().next(1);
    let _guilty = refused().after(2).next(1);
    let mut first = begin_store(&service, "shared", "first", "2");
    gate.wait_for_hanging(1);
    let mut stores = Vec::new();
    for n in 0..STORES {
        stores.push(begin_store(&service, "shared", &format!("key{n}"), "value"));
        // One after the other, so that their order is known.
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
    assert_eq!(server.count(write, SECRET), 1 + 1 + STORES, "{mode:?}");
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

/// A deletion goes alone, between the stores before it and those after it.
#[test]
fn changes_keep_their_order() {
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start(&target, &place);
    stored(&service, "shared", "first", "0");
    stored(&service, "shared", "gone", "0");

    server.clear_requests();
    let gate = server.fault(Fault::Hang(When::Before)).on("PATCH", SECRET).next(1);
    let mut answers = vec![begin_store(&service, "shared", "first", "1")];
    gate.wait_for_hanging(1);
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
    let methods: Vec<String> = server.requests().into_iter().map(|entry| entry.method).collect();
    assert_eq!(methods, ["PATCH", "PATCH", "GET", "PATCH", "PATCH"]);
    let all = json!({ "first": "1", "a": "1", "b": "1", "c": "1", "d": "1" });
    assert_eq!(target.read("shared"), Some(all));
}

/// Values that are large together go in more than one request, and none is refused.
#[test]
fn what_is_too_much_together_is_not_put_together() {
    const STORES: usize = 8;
    let target = Target::ours();
    let server = target.server();
    let place = Place::new();
    let service = start(&target, &place);
    stored(&service, "shared", "first", "0");
    server.clear_requests();
    let gate = server.fault(Fault::Hang(When::Before)).on("PATCH", SECRET).next(1);
    let mut first = begin_store(&service, "shared", "first", "1");
    gate.wait_for_hanging(1);
    let value = "x".repeat(200 * 1024);
    let mut stores: Vec<Connection> =
        (0..STORES).map(|n| begin_store(&service, "shared", &format!("key{n}"), &value)).collect();
    wait_until_quiet(&service);
    gate.release();
    assert_eq!(first.response().status, 200);
    for store in &mut stores {
        assert_eq!(store.response().status, 200);
    }
    let requests = server.count("PATCH", SECRET);
    assert!((1 + 4..=STORES).contains(&requests), "{requests}");
    assert_eq!(fetch(&service, "shared", "key7").value(), value);
}

/// A write or a read of the one key, as it was seen from outside.
#[derive(Clone, Copy)]
struct Seen {
    value: u64,
    began: Instant,
    ended: Instant,
}

/// Writers of increasing numbers and readers of one key, through one service and through
/// two: nobody reads what was overwritten before the read began, or what was never
/// written, and of two reads one after the other the second does not see the older value.
#[test]
fn no_reader_ever_goes_back_in_time() {
    const WRITERS: usize = 4;
    const READERS: usize = 8;
    const TIME: Duration = Duration::from_millis(700);

    for services in [1, 2] {
        on_each_server(|target| {
            let token = target.token_for(POLICY);
            let places: Vec<Place> = (0..services).map(|_| Place::new()).collect();
            let services: Vec<Service> =
                places.iter().map(|place| target.setup(place, &token).start()).collect();
            if let Some(server) = target.test_server() {
                server
                    .fault(Fault::Slow(Duration::from_millis(1)))
                    .on("GET", SECRET)
                    .until_cleared();
            }
            let start = Instant::now();
            stored(&services[0], "shared", "number", "0");
            let first = Seen { value: 0, began: start, ended: Instant::now() };
            let (writes, reads) = (Mutex::new(vec![first]), Mutex::new(Vec::new()));
            let next = AtomicU64::new(1);
            let end = Instant::now() + TIME;
            thread::scope(|scope| {
                for n in 0..WRITERS {
                    let (service, writes, next) = (&services[n % services.len()], &writes, &next);
                    scope.spawn(move || {
                        let mut connection = service.connect();
                        while Instant::now() < end {
                            let value = next.fetch_add(1, Ordering::SeqCst);
                            let body = json!({ "value": value.to_string() });
                            let began = Instant::now();
                            let answer = connection.exchange(&put(&at("shared", "number"), &body));
                            assert_eq!(answer.status, 200, "{}", answer.text());
                            let seen = Seen { value, began, ended: Instant::now() };
                            writes.lock().expect("not poisoned").push(seen);
                        }
                    });
                }
                for n in 0..READERS {
                    let (service, reads) = (&services[n % services.len()], &reads);
                    scope.spawn(move || {
                        let mut connection = service.connect();
                        while Instant::now() < end {
                            let began = Instant::now();
                            let value = connection.exchange(&get(&at("shared", "number"))).value();
                            let value = value.parse().expect("a number");
                            let seen = Seen { value, began, ended: Instant::now() };
                            reads.lock().expect("not poisoned").push(seen);
                        }
                    });
                }
            });
            let writes = writes.into_inner().expect("not poisoned");
            let reads = reads.into_inner().expect("not poisoned");
            eprintln!("{} writes, {} reads", writes.len(), reads.len());
            assert_nobody_went_back_in_time(&writes, reads);
        });
    }
}

fn assert_nobody_went_back_in_time(writes: &[Seen], mut reads: Vec<Seen>) {
    let of_value: HashMap<u64, &Seen> = writes.iter().map(|write| (write.value, write)).collect();
    for read in &reads {
        let written = of_value.get(&read.value).expect("what was read had been written");
        assert!(written.began < read.ended, "{} was read before it was written", read.value);
        let newer = writes.iter().find(|w| w.began > written.ended && w.ended < read.began);
        if let Some(newer) = newer {
            panic!("{} was read, though {} had been acknowledged before", read.value, newer.value);
        }
    }
    // Of the reads that ended before a later one began, the one that saw the latest write.
    reads.sort_by_key(|read| read.began);
    let mut by_end = reads.clone();
    by_end.sort_by_key(|read| read.ended);
    let mut ended = by_end.iter().peekable();
    let mut latest: Option<&Seen> = None;
    for read in &reads {
        while let Some(earlier) = ended.next_if(|earlier| earlier.ended < read.began) {
            let write = of_value[&earlier.value];
            if latest.is_none_or(|latest| latest.began < write.began) {
                latest = Some(write);
            }
        }
        let written = of_value[&read.value];
        if let Some(latest) = latest.filter(|latest| written.ended < latest.began) {
            panic!("{} was read after {}, which was written later", read.value, latest.value);
        }
    }
}
