//! A cluster of three `OpenBao` nodes, whose active node is killed while services store, read and
//! list.
#![cfg(unix)]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use hashicorp::bao::{self, DiskServer};
use hashicorp::proxy::Proxy;
use hashicorp::{at, fetch, health, store};
use support::{Place, Random, Response, Service, wait_until};

const WRITERS: usize = 4;
/// How many credentials each writer stores in a namespace before it goes on to the next.
const IN_A_NAMESPACE: usize = 20;

/// A credential whose store was acknowledged.
#[derive(Clone)]
struct Stored {
    namespace: String,
    key: String,
    value: String,
}

/// The load on one service, and what it has seen.
struct Load<'a> {
    name: &'static str,
    service: Service,
    /// Of this service's writers.
    stored: Mutex<Vec<Stored>>,
    refused: AtomicUsize,
    listings: AtomicUsize,
    /// Listings since the kill that came from the last known copy.
    from_copy: AtomicUsize,
    /// The times from the kill to the first read and the first store that began after it and
    /// succeeded.
    first_read: OnceLock<Duration>,
    first_store: OnceLock<Duration>,
    killed: &'a OnceLock<Instant>,
    done: &'a AtomicBool,
}

impl<'a> Load<'a> {
    fn on(
        name: &'static str,
        service: Service,
        killed: &'a OnceLock<Instant>,
        done: &'a AtomicBool,
    ) -> Self {
        Self {
            name,
            service,
            stored: Mutex::default(),
            refused: AtomicUsize::new(0),
            listings: AtomicUsize::new(0),
            from_copy: AtomicUsize::new(0),
            first_read: OnceLock::new(),
            first_store: OnceLock::new(),
            killed,
            done,
        }
    }

    fn stored(&self) -> Vec<Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self) -> usize {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether the request succeeded. A caller that is refused waits a little, as callers do.
    fn succeeded(&self, began: Instant, answer: &Response, first: &OnceLock<Duration>) -> bool {
        match answer.status {
            200 => {
                if let Some(killed) = self.killed.get().filter(|killed| began > **killed) {
                    first.get_or_init(|| killed.elapsed());
                }
                true
            }
            503 => {
                self.refused.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(20));
                false
            }
            status => panic!("{}: {status} {}", self.name, answer.text()),
        }
    }

    /// Stores values of its own, in namespaces that it shares with a writer of the other service.
    fn write(&self, writer: usize) {
        for number in 0.. {
            if self.done.load(Ordering::SeqCst) {
                return;
            }
            let namespace = format!("load{writer}-{}", number / IN_A_NAMESPACE);
            let key = format!("{}-{number}", self.name);
            let value = format!("{number:06}-value-of-{}-{:02}", self.name, number % 100);
            let began = Instant::now();
            let answer = store(&self.service, &namespace, &key, &value);
            if self.succeeded(began, &answer, &self.first_store) {
                let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
                stored.push(Stored { namespace, key, value });
            }
        }
    }

    /// Reads what any service has stored. Such a value is never missing and never another one.
    fn read(&self, all: &[Load<'_>; 2]) {
        let mut random = Random(7);
        while !self.done.load(Ordering::SeqCst) {
            let stored = all[random.below(2)].stored();
            if stored.is_empty() {
                continue;
            }
            let it = &stored[random.below(stored.len())];
            let began = Instant::now();
            let answer = fetch(&self.service, &it.namespace, &it.key);
            if self.succeeded(began, &answer, &self.first_read) {
                assert_eq!(answer.value(), it.value, "{}", at(&it.namespace, &it.key));
            }
        }
    }

    /// Lists. Every listing succeeds, and has all that this service had stored before.
    fn list(&self) {
        while !self.done.load(Ordering::SeqCst) {
            let (before, killed) = (self.count(), self.killed.get().is_some());
            let answer = self.service.get("/v1/credentials");
            assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
            assert!(answer.json().as_array().is_some_and(|all| all.len() >= before));
            self.listings.fetch_add(1, Ordering::SeqCst);
            if killed && answer.header("Age").is_some() {
                self.from_copy.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Checks that the service reads and lists everything that was acknowledged.
    fn check(&self, all: &[Stored]) {
        wait_until("it is well", || health(&self.service)["status"] == "ok");
        let listing = self.service.get("/v1/credentials").json();
        let previews: HashMap<_, _> = listing
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| ((text(&it["namespace"]), text(&it["key"])), text(&it["masked_preview"])))
            .collect();
        for it in all {
            let preview = format!("{}....{}", &it.value[..6], &it.value[it.value.len() - 2..]);
            let listed = previews.get(&(&*it.namespace, &*it.key));
            assert_eq!(listed, Some(&&*preview), "{}", at(&it.namespace, &it.key));
            let answer = fetch(&self.service, &it.namespace, &it.key);
            assert_eq!(answer.value(), it.value, "{}", at(&it.namespace, &it.key));
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// The active node is killed under load. Nothing that was acknowledged is lost; the services find
/// the new active node by themselves, one through a standby, one through a load balancer.
#[test]
fn the_active_node_is_killed_under_load() {
    let Some(program) = bao::own_program() else { return };
    let mut nodes = bao::cluster(&program);
    let token = nodes[0].server.token.clone();
    // A load balancer that asks each node for its health, and takes the one that answers 200.
    let balancer = Proxy::start(&nodes[0].server.address);
    let balance = |nodes: &[DiskServer; 3]| {
        let active = nodes.iter().position(DiskServer::is_active);
        if let Some(active) = active {
            balancer.point_at(&nodes[active].server.address);
        }
        active
    };
    let places = [Place::new(), Place::new()];
    let start = |place: &Place, address: &str| {
        let setup = place.setup_with("hashicorp").env("VAULT_TOKEN", &token);
        setup.env("IF_VAULT_METADATA", "vault").env("VAULT_ADDR", address).start()
    };
    let (killed, done) = (OnceLock::new(), AtomicBool::new(false));
    let loads = [
        Load::on("standby", start(&places[0], &nodes[1].server.address), &killed, &done),
        Load::on("balanced", start(&places[1], &balancer.address), &killed, &done),
    ];
    thread::scope(|scope| {
        for load in &loads {
            for writer in 0..WRITERS {
                scope.spawn(move || load.write(writer));
            }
            let all = &loads;
            scope.spawn(move || load.read(all));
            scope.spawn(move || load.list());
        }
        // If a wait fails, the threads must end, too.
        let _end = End(&done);
        let more = |nodes: &[DiskServer; 3]| {
            let goals = loads.each_ref().map(|load| load.count() + 50);
            wait_until("both services store", || {
                balance(nodes);
                loads.iter().zip(goals).all(|(load, goal)| load.count() >= goal)
            });
        };
        more(&nodes);
        let active = balance(&nodes).expect("a node is active");
        nodes[active].kill();
        killed.set(Instant::now()).expect("it is killed once");
        wait_until("another node is active", || balance(&nodes).is_some());
        let elected = killed.wait().elapsed();
        wait_until("reads and stores resume", || {
            balance(&nodes);
            loads.iter().all(|it| it.first_read.get().is_some() && it.first_store.get().is_some())
        });
        more(&nodes);
        println!("a new node was active {elected:.1?} after the kill");
    });
    let all: Vec<Stored> = loads.iter().flat_map(Load::stored).collect();
    for load in &loads {
        println!(
            "{}: first read after {:.1?}, first store after {:.1?}; {} stored, {} refused, {} \
             listings, {} from the copy since the kill",
            load.name,
            load.first_read.wait(),
            load.first_store.wait(),
            load.count(),
            load.refused.load(Ordering::SeqCst),
            load.listings.load(Ordering::SeqCst),
            load.from_copy.load(Ordering::SeqCst),
        );
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
