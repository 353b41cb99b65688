//! The clients, what they know of each credential, and the check of what a restarted service has.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use intentframe_credentials::{CredentialRef, mask_value};
use rusqlite::Connection as Database;
use serde_json::{Value, json};

use super::support::{Connection, DEADLINE, Random, delete, get, put};

const CLIENTS: usize = 4;
const KEYS: usize = 3;

/// The number of a store, from which its value and all its metadata follow; `None` for a delete.
type Version = Option<usize>;

fn value(version: usize) -> String {
    format!("{version:06}-of-the-torture-{:02}", version % 97)
}

fn version_of(value: &str) -> usize {
    let version = value.get(..6).and_then(|digits| digits.parse().ok());
    version.unwrap_or_else(|| panic!("nobody stored {value:?}"))
}

fn mode(version: usize) -> &'static str {
    if version.is_multiple_of(2) { "runtime_env" } else { "executor_only" }
}

fn body(version: usize) -> Value {
    json!({
        "value": value(version), "delivery_mode": mode(version),
        "allowed_consumers": [format!("consumer-{version}")], "env_name": format!("V_{version}"),
    })
}

/// A credential, which only one client changes.
struct Key {
    at: CredentialRef,
    /// What it may be: the last acknowledged version, then those of changes whose outcome the
    /// client does not know.
    possible: Vec<Version>,
    /// Whether a client has ever changed it.
    is_used: bool,
}

impl Key {
    fn path(&self) -> String {
        format!("/v1/credentials/{}", self.at)
    }

    fn is_known(&self) -> bool {
        self.possible.len() == 1
    }
}

/// Which part of the promise was checked how often, and where it was broken.
#[derive(Default)]
pub struct Tally {
    pub rounds: usize,
    /// Kills by their kind.
    pub kills: HashMap<&'static str, usize>,
    acknowledged: usize,
    stores: usize,
    deletes: usize,
    interrupted: usize,
    present: usize,
    /// The part of the promise that was broken, and how.
    pub failures: Vec<(Part, String)>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    Lost,
    Undone,
    Preview,
    Metadata,
    WithoutValue,
    WithoutListing,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kills: Vec<_> = self.kills.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        kills.sort();
        let broken = |part| self.failures.iter().filter(|(of, _)| *of == part).count();
        let (present, stores, deletes) = (self.present, self.stores, self.deletes);
        let lines = [
            format!("{} rounds, kills: {}", self.rounds, kills.join(", ")),
            format!("acknowledged under load: {} changes", self.acknowledged),
            format!("acknowledged stores readable: {stores} checked, {} lost", broken(Part::Lost)),
            format!("acknowledged deletes: {deletes} checked, {} undone", broken(Part::Undone)),
            format!("interrupted changes wholly made or not at all: {} checked", self.interrupted),
            format!("previews: {present} checked, {} of another value", broken(Part::Preview)),
            format!(
                "other metadata: {present} checked, {} of another store",
                broken(Part::Metadata)
            ),
            format!("listed credentials without a value: {}", broken(Part::WithoutValue)),
            format!("values that no listing shows: {}", broken(Part::WithoutListing)),
        ];
        lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// What all clients know.
pub struct Load {
    keys: Vec<Vec<Key>>,
    /// The number of the next store of each client.
    next: Vec<usize>,
    acknowledged: AtomicUsize,
}

impl Load {
    pub fn new() -> Self {
        let key = |client: usize, key: usize| {
            let at = CredentialRef::parse(
                &format!("torture{}", client % 2),
                &format!("key-{client}-{key}"),
            );
            Key { at: at.expect("valid"), possible: vec![None], is_used: false }
        };
        let keys = |client| (0..KEYS).map(|number| key(client, number)).collect();
        Self {
            keys: (0..CLIENTS).map(keys).collect(),
            next: (0..CLIENTS).collect(),
            acknowledged: AtomicUsize::new(0),
        }
    }

    /// The changes that were acknowledged so far.
    pub fn acknowledged(&self) -> &AtomicUsize {
        &self.acknowledged
    }

    /// Lets the clients work until the service is killed, by `kill`.
    pub fn run(&mut self, socket: &Path, random: &mut Random, kill: impl FnOnce(&AtomicUsize)) {
        let Self { keys, next, acknowledged } = self;
        let acknowledged = &*acknowledged;
        let connections: Vec<_> = keys.iter().map(|_| Connection::open(socket)).collect();
        thread::scope(|scope| {
            for ((keys, next), connection) in keys.iter_mut().zip(next).zip(connections) {
                let random = random.fork();
                scope.spawn(move || work(connection, keys, next, random, acknowledged));
            }
            kill(acknowledged);
        });
    }

    /// Compares what the service has with what the clients know, as the first requests after its
    /// start.
    pub fn check(&mut self, socket: &Path, database: &Path, tally: &mut Tally) {
        tally.acknowledged = self.acknowledged.load(Ordering::Relaxed);
        let mut connection = Connection::open(socket);
        let listing = connection.exchange(&get("/v1/credentials")).json();
        let listed: HashMap<(String, String), Value> = listing
            .as_array()
            .expect("a list")
            .iter()
            .map(|it| ((text(&it["namespace"]), text(&it["key"])), it.clone()))
            .collect();
        let rows = rows(database);
        for key in self.keys.iter_mut().flatten() {
            let answer = connection.exchange(&get(&key.path()));
            let actual: Version = match answer.status {
                404 => None,
                _ => Some(version_of(&answer.value())),
            };
            let name = (key.at.namespace().to_string(), key.at.key().to_owned());
            let what = || format!("{} is {actual:?}, expected {:?}", key.path(), key.possible);
            match key.possible[..] {
                [Some(_)] => tally.stores += 1,
                [None] => tally.deletes += usize::from(key.is_used),
                _ => tally.interrupted += 1,
            }
            if !key.possible.contains(&actual) {
                let part = if key.possible[0].is_some() { Part::Lost } else { Part::Undone };
                tally.failures.push((part, what()));
            }
            match (actual, listed.get(&name)) {
                (None, None) => {}
                (None, Some(_)) => tally.failures.push((Part::WithoutValue, what())),
                (Some(_), None) => tally.failures.push((Part::WithoutListing, what())),
                (Some(version), Some(summary)) => {
                    tally.present += 1;
                    if summary["masked_preview"] != mask_value(&value(version)) {
                        let what = format!("{}, listed as {summary}", what());
                        tally.failures.push((Part::Preview, what));
                    }
                    let expected = [
                        mode(version).to_owned(),
                        format!("[\"consumer-{version}\"]"),
                        format!("V_{version}"),
                    ];
                    if summary["delivery_mode"] != mode(version)
                        || rows.get(&name) != Some(&expected)
                    {
                        let what = format!("{}, row {:?}", what(), rows.get(&name));
                        tally.failures.push((Part::Metadata, what));
                    }
                }
            }
            key.possible = vec![actual];
        }
    }
}

fn text(json: &Value) -> String {
    json.as_str().expect("a string").to_owned()
}

/// The columns that no listing shows for every credential.
fn rows(database: &Path) -> HashMap<(String, String), [String; 3]> {
    let database = Database::open(database).expect("opens");
    database.busy_timeout(DEADLINE).expect("sets a timeout");
    let sql = "SELECT namespace, key, delivery_mode, allowed_consumers, coalesce(env_name, '')
         FROM credential_metadata";
    let mut statement = database.prepare(sql).expect("the table is there");
    let rows = statement.query_map([], |row| {
        Ok(((row.get(0)?, row.get(1)?), [row.get(2)?, row.get(3)?, row.get(4)?]))
    });
    rows.expect("reads").map(|row| row.expect("a row")).collect()
}

/// One client: stores, deletes, reads and lists until the service is gone.
fn work(
    mut connection: Connection,
    keys: &mut [Key],
    next: &mut usize,
    mut random: Random,
    acknowledged: &AtomicUsize,
) {
    let mut ask = |request: &[u8]| {
        connection.try_send(request).ok()?;
        connection.try_response(false).ok()?
    };
    loop {
        let key = &mut keys[random.below(KEYS)];
        let change = match random.below(10) {
            0..6 => {
                *next += CLIENTS;
                Some((put(&key.path(), &body(*next)), Some(*next)))
            }
            6..8 => Some((delete(&key.path()), None)),
            _ => None,
        };
        if let Some((request, version)) = change {
            key.is_used = true;
            let answer = ask(&request);
            match answer.as_ref().map(|it| it.status) {
                Some(200) => {
                    key.possible = vec![version];
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Some(503) => key.possible.push(version),
                Some(_) => panic!("{}: {}", key.path(), answer.expect("it is there").text()),
                None => return key.possible.push(version),
            }
        } else if random.below(4) == 0 {
            let Some(answer) = ask(&get("/v1/credentials")) else { return };
            assert!(matches!(answer.status, 200 | 503), "{}", answer.text());
        } else {
            let Some(answer) = ask(&get(&key.path())) else { return };
            let found = match answer.status {
                503 => continue,
                404 => None,
                _ => Some(version_of(&answer.value())),
            };
            assert!(!key.is_known() || key.possible == [found], "{found:?}: {:?}", key.possible);
        }
    }
}
