//! A cluster of three `OpenBao` nodes, whose active node is killed while services store, read and
//! list.
#![cfg(unix)]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hashicorp::bao::{self, DiskServer};
use hashicorp::proxy::Proxy;
use hashicorp::{at, fetch, health, store};
use support::{Place, Random, Response, Service, wait_until};

const WRITERS: usize = 4;
/// How many credentials each writer stores in a namespace before it goes on to the next.
const IN_A_NAMESPACE: usize = 20;

/// Namespace, key and value of a credential whose store was acknowledged.
type Stored = (String, String, String);

/// A service, the load on it, and what its callers have seen.
struct Load<'a> {
    name: &'static str,
    service: Service,
    stored: Mutex<Vec<Stored>>,
    listings: AtomicUsize,
    /// Listings since the kill that came from the last known copy.
    from_copy: AtomicUsize,
    /// From the kill to the answer of the first read that began after it and succeeded.
    first_read: OnceLock<Duration>,
    killed: &'a OnceLock<Instant>,
    done: &'a AtomicBool,
}

impl Load<'_> {
    fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }

    fn stored(&self) -> MutexGuard<'_, Vec<Stored>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the request succeeded. A caller that is refused waits a little, as callers do.
    fn succeeded(&self, answer: &Response) -> bool {
        if answer.status == 503 {
            thread::sleep(Duration::from_millis(20));
            return false;
        }
        assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
        true
    }

    /// Stores values of its own, in namespaces that it shares with a writer of the other service.
    fn write(&self, writer: usize) {
        for number in (0..).take_while(|_| !self.is_done()) {
            let namespace = format!("load{writer}-{}", number / IN_A_NAMESPACE);
            let key = format!("{}-{number}", self.name);
            let value = format!("{number:06}-value-of-{}-{:02}", self.name, number % 100);
            if self.succeeded(&store(&self.service, &namespace, &key, &value)) {
                self.stored().push((namespace, key, value));
            }
        }
    }

    /// Reads what any service has stored. Such a value is never missing and never another one.
    fn read(&self, all: &[Load<'_>; 2]) {
        let mut random = Random(7);
        while !self.is_done() {
            let stored = all[random.below(2)].stored().clone();
            if stored.is_empty() {
                continue;
            }
            let (namespace, key, value) = &stored[random.below(stored.len())];
            let killed = self.killed.get();
            let answer = fetch(&self.service, namespace, key);
            if self.succeeded(&answer) {
                assert_eq!(answer.value(), *value, "{}", at(namespace, key));
                killed.map(|killed| self.first_read.get_or_init(|| killed.elapsed()));
            }
        }
    }

    /// Lists. Every listing succeeds, and has all that this service had stored before.
    fn list(&self) {
        while !self.is_done() {
            let (before, killed) = (self.stored().len(), self.killed.get().is_some());
            let answer = self.service.get("/v1/credentials");
            assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
            assert!(answer.json().as_array().is_some_and(|all| all.len() >= before));
            let is_copy = killed && answer.header("Age").is_some();
            self.listings.fetch_add(1, Ordering::SeqCst);
            self.from_copy.fetch_add(usize::from(is_copy), Ordering::SeqCst);
        }
    }

    /// Checks that the service reads and lists everything that was acknowledged.
    fn check(&self, all: &[Stored]) {
        wait_until("it is well", || health(&self.service)["status"] == "ok");
        let listing = self.service.get("/v1/credentials").json();
        let names = |it: &serde_json::Value| (it["namespace"].to_string(), it["key"].to_string());
        let listed: HashMap<_, _> =
            listing.as_array().expect("a list").iter().map(|it| (names(it), it)).collect();
        for (namespace, key, value) in all {
            let name = at(namespace, key);
            let found = listed.get(&(format!("\"{namespace}\""), format!("\"{key}\"")));
            let preview = format!("{}....{}", &value[..6], &value[value.len() - 2..]);
            assert_eq!(found.expect(&name)["masked_preview"], preview, "{name}");
            assert_eq!(fetch(&self.service, namespace, key).value(), *value, "{name}");
        }
    }
}

/// The active node is killed under load. Nothing that was acknowledged is lost; the services find
/// the new active node by themselves, one through a standby, one through a load balancer.
#[test]
fn the_active_node_is_killed_under_load() {
    let Some(program) = bao::own_program() else { return };
    let mut nodes = bao::cluster(&program);
    let token = nodes[0].server.token.clone();
    // A load balancer takes the node whose health check answers 200.
    let balancer = Proxy::start(&nodes[0].server.address);
    let balance = |nodes: &[DiskServer; 3]| {
        let active = nodes.iter().position(DiskServer::is_active);
        active.inspect(|active| balancer.point_at(&nodes[*active].server.address))
    };
    let (places, killed, done) = ([Place::new(), Place::new()], OnceLock::new(), <_>::default());
    let load = |name, place: &Place, address: &str| {
        let setup = place.setup_with("hashicorp").env("VAULT_TOKEN", &token);
        let setup = setup.env("IF_VAULT_METADATA", "vault").env("VAULT_ADDR", address);
        let (stored, listings, from_copy, first_read) = <_>::default();
        let (service, killed, done) = (setup.start(), &killed, &done);
        Load { name, service, stored, listings, from_copy, first_read, killed, done }
    };
    let loads = [
        load("standby", &places[0], &nodes[1].server.address),
        load("balanced", &places[1], &balancer.address),
    ];
    let elected = thread::scope(|scope| {
        for load in &loads {
            (0..WRITERS).for_each(|writer| drop(scope.spawn(move || load.write(writer))));
            scope.spawn(|| load.read(&loads));
            scope.spawn(|| load.list());
        }
        // The threads must end even if a wait fails.
        let _end = End(&done);
        let wait_for_stores = |nodes: &[DiskServer; 3]| {
            let goals = loads.each_ref().map(|load| load.stored().len() + 50);
            wait_until("both services store", || {
                balance(nodes);
                loads.iter().zip(goals).all(|(load, goal)| load.stored().len() >= goal)
            });
        };
        wait_for_stores(&nodes);
        let active = balance(&nodes).expect("a node is active");
        nodes[active].kill();
        let killed = killed.get_or_init(Instant::now);
        wait_until("another node is active", || balance(&nodes).is_some());
        let elected = killed.elapsed();
        wait_until("reads resume", || loads.iter().all(|load| load.first_read.get().is_some()));
        wait_for_stores(&nodes);
        elected
    });
    let all: Vec<Stored> = loads.iter().flat_map(|load| load.stored().clone()).collect();
    for load in &loads {
        let (listings, from_copy) = (&load.listings, load.from_copy.load(Ordering::SeqCst));
        eprintln!(
            "{}: after the kill, a node was active after {elected:.1?}, a read succeeded after \
             {:.1?}; {listings:?} listings, {from_copy} of them from the copy; {} stored by both",
            load.name,
            load.first_read.wait(),
            all.len(),
        );
        assert!(from_copy > 0);
        load.check(&all);
    }
}

/// Ends the load when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
