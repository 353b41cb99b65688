//! Fewer requests than callers, without a cache.
//!
//! # Reads
//!
//! A caller must not get the result of a read that began before the caller arrived: a store
//! may have been acknowledged in between. But all callers who arrive while a read runs can
//! share the *next* one, which begins after all of them have arrived. Each of them gets what
//! the server said to a request that was sent after the caller's own. That is no older than
//! what a read of its own could have seen, so nobody can tell the difference:
//!
//! ```text
//! caller A  |--- read 1 ---|
//! caller B     |...........|--- read 2 ---|      B and C arrive during read 1 and
//! caller C          |......|--- read 2 ---|      share read 2, which begins after
//! caller D                      |.........|--    both; D arrives during read 2 and
//! ```                                            waits for read 3
//!
//! # Changes
//!
//! The changes of a namespace are made one after the other. Stores that wait behind another
//! change go together, as one merge of their fields, and each is acknowledged after it. If
//! the server refuses the joint merge, each store is made alone, so that only the refused
//! one fails. A delete always goes alone: its effect depends on whether its field is the
//! last one, which no store of this process may change meanwhile.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::Namespace;
use crate::secret::Secret;

use super::kv::{Found, Habits, Kv, Writer};
use super::message::{Error, Unavailable};
use super::single_flight::{Call, SingleFlight};

/// The namespaces that are in use.
#[derive(Default)]
pub(super) struct Namespaces(Mutex<HashMap<Namespace, Arc<Lanes>>>);

/// The reads and changes of one namespace.
#[derive(Default)]
struct Lanes {
    reads: SingleFlight<(), Result<Arc<Found>, Error>>,
    changes: SingleFlight<Change, Result<bool, Error>>,
    /// Used by the change that runs.
    habits: Mutex<Habits>,
}

struct Change {
    key: String,
    /// The value to store, or `None` to delete it.
    value: Option<Secret>,
}

type Waiting = VecDeque<Arc<Call<Change, Result<bool, Error>>>>;

/// The most stores in one merge.
const MOST_STORES: usize = 64;
/// The most bytes of values in one merge: a server refuses a secret of more than 1 MiB by
/// default, and each refusal costs a request for every store in it.
const MOST_BYTES: usize = 512 * 1024;

impl Namespaces {
    fn lanes(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Lanes>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses a namespace's lanes, which are kept for as long as they are used or hold habits.
    fn with<T>(&self, namespace: &Namespace, act: impl FnOnce(&Lanes) -> T) -> T {
        let lanes = Arc::clone(self.lanes().entry(namespace.clone()).or_default());
        let outcome = act(&lanes);
        let mut all = self.lanes();
        // One is in the table, and one here.
        if Arc::strong_count(&lanes) == 2 && lanes.habits().are_usual() {
            all.remove(namespace);
        }
        outcome
    }

    /// The namespace's secret, as of a moment after this call.
    pub(super) fn read(&self, namespace: &Namespace, kv: &Kv) -> Result<Arc<Found>, Error> {
        let run = |batch: &[_]| vec![kv.read(namespace).map(Arc::new); batch.len()];
        self.with(namespace, |lanes| lanes.reads.call((), VecDeque::len, run, || Err(panicked())))
    }

    /// Stores a value, or deletes it if there is none to store. Returns whether there was one
    /// to delete.
    pub(super) fn change(
        &self,
        namespace: &Namespace,
        key: &str,
        value: Option<Secret>,
        kv: &Kv,
    ) -> Result<bool, Error> {
        self.with(namespace, |lanes| {
            let run = |batch: &[Arc<Call<Change, _>>]| {
                let changes: Vec<&Change> = batch.iter().map(|call| &call.input).collect();
                make(&changes, namespace, kv, &mut lanes.habits())
            };
            let change = Change { key: key.to_owned(), value };
            lanes.changes.call(change, batch_size, run, || Err(panicked()))
        })
    }
}

impl Lanes {
    fn habits(&self) -> MutexGuard<'_, Habits> {
        self.habits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn panicked() -> Error {
    Error::Unavailable(Unavailable::new("a request to Vault failed; see the service's log"))
}

/// How many of the changes go together: one delete, or stores of different keys.
fn batch_size(waiting: &Waiting) -> usize {
    let mut keys = HashSet::new();
    let mut bytes = 0;
    for call in waiting.iter().take(MOST_STORES) {
        let Change { key, value: Some(value) } = &call.input else { break };
        bytes += value.len();
        if bytes > MOST_BYTES || !keys.insert(key) {
            break;
        }
    }
    keys.len()
}

fn make(
    changes: &[&Change],
    namespace: &Namespace,
    kv: &Kv,
    habits: &mut Habits,
) -> Vec<Result<bool, Error>> {
    let mut writer = Writer::new(kv, namespace, habits);
    if changes.len() > 1 {
        let fields: Vec<_> =
            changes.iter().map(|change| (&*change.key, change.value.as_ref())).collect();
        match writer.merge(&fields) {
            Err(Error::Refused(_)) => {}
            outcome => return vec![outcome.map(|()| true); changes.len()],
        }
    }
    let one = |change: &&Change| match &change.value {
        Some(value) => writer.merge(&[(&change.key, Some(value))]).map(|()| true),
        None => writer.remove(&change.key),
    };
    changes.iter().map(one).collect()
}
