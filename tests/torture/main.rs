//! The service is killed again and again, at random instants and between the steps of stores and
//! deletes, and loses nothing. `make torture` runs 1,000 rounds.
//!
//! `IF_TORTURE_ROUNDS` is the number of rounds, divided among the backends. `IF_TORTURE_SEED`
//! repeats the clients' operations and the instants of the kills, as far as the scheduler permits.
#![cfg(target_os = "linux")]

#[path = "../support/hashicorp.rs"]
mod hashicorp;
mod load;
#[path = "../support/session.rs"]
mod session;
#[path = "../support/mod.rs"]
mod support;

use std::collections::hash_map::RandomState;
use std::env;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{Write as _, stderr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection as Database;

use hashicorp::proxy::{Fault, When};
use hashicorp::{Mode, Target};
use load::{Load, Tally};
use support::{DEADLINE, Place, Random, Service, Setup, wait_until};

const ROUNDS: &str = "IF_TORTURE_ROUNDS";
const SEED: &str = "IF_TORTURE_SEED";

/// The tests below share the rounds.
const BACKENDS: usize = 4;

/// How long a kill waits for the step before which it is to come. The clients may not take it.
const PATIENCE: Duration = Duration::from_millis(300);

/// The values' place.
enum Store {
    /// gnome-keyring, with the ID of its process.
    Keyring(String),
    Vault {
        target: Box<Target>,
        token: String,
    },
    Sealed,
}

/// A vault to kill: one service, or one that forwards to another.
struct Rig {
    name: &'static str,
    store: Store,
    place: Place,
    front: Option<Place>,
}

impl Rig {
    fn setup(&self) -> Setup {
        match &self.store {
            Store::Keyring(_) => {
                let setup = self.place.setup_with("keyring");
                setup.env("DBUS_SESSION_BUS_ADDRESS", session::bus())
            }
            Store::Vault { target, token } => target.setup(&self.place, token),
            Store::Sealed => self.place.setup_with("sealed"),
        }
    }

    /// Starts the services; clients use the last one.
    fn start(&self) -> Vec<Service> {
        let mut services = vec![self.setup().start()];
        if let Some(front) = &self.front {
            let upstream = services[0].socket.to_str().expect("UTF-8").to_owned();
            let setup = front.setup_with("service").env("IF_VAULT_UPSTREAM_SOCKET", &upstream);
            services.push(setup.start());
        }
        services
    }

    /// Kills the services in the middle of the load. Returns the kind of kill.
    fn kill(&self, services: &mut [Service], random: &mut Random) -> &'static str {
        let mut kill = |random: &mut Random| {
            let first = random.below(services.len());
            services.rotate_left(first);
            services.iter_mut().for_each(Service::kill);
        };
        match (random.below(6), &self.store) {
            // A commit waits while another process writes.
            (0, _) => {
                let database = Database::open(self.place.database()).expect("opens");
                database.busy_timeout(DEADLINE).expect("sets a timeout");
                database.execute_batch("BEGIN IMMEDIATE").expect("locks");
                a_moment(random, 20_000);
                kill(random);
                "before the commit"
            }
            (1 | 2, Store::Keyring(daemon)) => {
                session::signal("-STOP", daemon);
                a_moment(random, 20_000);
                kill(random);
                session::signal("-CONT", daemon);
                "before the keyring's answer"
            }
            (1..4, Store::Vault { target, .. }) => {
                let method = ["PATCH", "POST", "DELETE", "GET"][random.below(4)];
                let (when, kind) = match random.below(3) {
                    0 => (When::After, "after the server's change"),
                    _ => (When::Before, "before the server's change"),
                };
                let fault = target.proxy.next(1, Fault::Hold(when), method, "intentframe/");
                let end = Instant::now() + PATIENCE;
                while fault.held() == 0 && Instant::now() < end {
                    thread::sleep(Duration::from_micros(100));
                }
                let kind = if fault.held() > 0 { kind } else { "at random" };
                kill(random);
                // Half of what is held never arrives.
                if random.below(2) == 0 {
                    fault.lose();
                } else {
                    fault.clear();
                }
                kind
            }
            (4, _) => {
                kill(random);
                "after an answer"
            }
            _ => {
                a_moment(random, 4_000);
                kill(random);
                "at random"
            }
        }
    }

    fn torture(&self) {
        let number = |name| env::var(name).ok().map(|text| text.parse().expect("a number"));
        let seed = number(SEED).unwrap_or_else(|| RandomState::new().build_hasher().finish());
        let total = number(ROUNDS).map_or(30, |it| usize::try_from(it).expect("it fits"));
        let rounds = total.div_ceil(BACKENDS);
        let say = |text: &str| {
            // A closed terminal must not fail the test.
            let _ = write!(stderr(), "torture of {} (IF_TORTURE_SEED={seed}){text}", self.name);
        };
        say(&format!(": {rounds} rounds\n"));
        let (mut random, mut load, mut tally) = (Random(seed), Load::new(), Tally::default());
        let mut services = self.start();
        for _ in 0..rounds {
            let socket = services.last().expect("there is one").socket.clone();
            let (mut of_kill, changes) = (random.fork(), 1 + random.below(40));
            let before = load.acknowledged().load(Ordering::Relaxed);
            let mut kind = "";
            load.run(&socket, &mut random, |acknowledged: &AtomicUsize| {
                let enough = || acknowledged.load(Ordering::Relaxed) >= before + changes;
                wait_until("changes are acknowledged", enough);
                kind = self.kill(&mut services, &mut of_kill);
            });
            *tally.kills.entry(kind).or_default() += 1;
            if let Store::Vault { target, .. } = &self.store {
                target.proxy.wait_until_idle();
            }
            if random.below(4) == 0 {
                let mut killed = self.setup().spawn();
                a_moment(&mut random, 100_000);
                killed.kill();
                *tally.kills.entry("while it starts").or_default() += 1;
            }
            services = self.start();
            tally.rounds += 1;
            let socket = &services.last().expect("there is one").socket;
            load.check(socket, &self.place.database(), &mut tally);
        }
        say(&format!(":\n{tally}"));
        let failures = tally.failures;
        let some = &failures[..failures.len().min(10)];
        assert!(failures.is_empty(), "{SEED}={seed}: {some:#?}");
    }
}

/// Waits for a random time below `micros`: the instant of a kill.
fn a_moment(random: &mut Random, micros: usize) {
    thread::sleep(Duration::from_micros(random.below(micros) as u64));
}

#[test]
fn keyring() {
    if session::session("keyring") {
        let store = Store::Keyring(session::daemon());
        Rig { name: "keyring", store, place: Place::new(), front: None }.torture();
    }
}

fn vault() -> Option<Store> {
    let target = Box::new(Target::new()?);
    let token = target.token_of_mode(Mode::Patch);
    Some(Store::Vault { target, token })
}

#[test]
fn hashicorp_backend() {
    let Some(store) = vault() else { return };
    Rig { name: "hashicorp", store, place: Place::new(), front: None }.torture();
}

#[test]
fn service_backend() {
    let Some(store) = vault() else { return };
    let front = Some(Place::new());
    Rig { name: "service", store, place: Place::new(), front }.torture();
}

#[test]
fn sealed() {
    let (store, place) = (Store::Sealed, Place::new());
    Rig { name: "sealed", store, place, front: None }.torture();
}
