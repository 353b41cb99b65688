//! Fewer requests than callers, without a cache.
//!
//! # Reads
//!
//! A caller must not get the result of a read that began before the caller arrived: a store
//! may have been acknowledged in between. But all callers that arrive while a read runs can
//! share the *next* one, which begins after all of them have arrived. Its answer is no older
//! than the answer to a read of the caller's own could be, so no caller can tell the
//! difference:
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
use std::slice;
use std::sync::{Arc, Mutex};

use crate::secret::Secret;

use super::kv::{Change, Found, Habits, Kv, Writer};
use super::lock;
use super::message::Error;
use super::single_flight::SingleFlight;

/// The secrets, by their names below the prefix.
pub(super) struct Namespaces {
    pub(super) kv: Kv,
    /// The secrets that are in use.
    used: Mutex<HashMap<String, Arc<Calls>>>,
}

/// The reads and changes of one secret.
#[derive(Default)]
struct Calls {
    reads: SingleFlight<(), Arc<Found>>,
    changes: SingleFlight<Change, bool>,
    /// Used by the change that runs.
    habits: Mutex<Habits>,
}

/// The most stores in one merge.
const MOST_STORES: usize = 64;
/// The most bytes of values in one merge: a server refuses a secret of more than 1 MiB by
/// default, and each refusal costs a request for every store in it.
const MOST_BYTES: usize = 512 * 1024;

impl Namespaces {
    pub(super) fn new(kv: Kv) -> Self {
        Self { kv, used: Mutex::default() }
    }

    /// Uses a secret's entry, which is kept for as long as it is used or holds habits.
    fn with<T>(&self, name: &str, act: impl FnOnce(&Calls) -> T) -> T {
        let calls = Arc::clone(lock(&self.used).entry(name.to_owned()).or_default());
        let outcome = act(&calls);
        let mut used = lock(&self.used);
        // One reference is in the table, and one here.
        if Arc::strong_count(&calls) == 2 && lock(&calls.habits).are_usual() {
            used.remove(name);
        }
        outcome
    }

    /// The secret, as it is at some moment after the call has begun.
    pub(super) fn read(&self, name: &str) -> Result<Arc<Found>, Error> {
        let run = |batch: &[()]| vec![self.kv.read(name).map(Arc::new); batch.len()];
        self.with(name, |calls| calls.reads.call((), VecDeque::len, run))
    }

    /// Stores a field, or deletes it. Returns whether there was one to delete.
    pub(super) fn change(
        &self,
        name: &str,
        key: &str,
        value: Option<Secret>,
    ) -> Result<bool, Error> {
        let change = Change { key: key.to_owned(), value };
        self.with(name, |calls| {
            calls.changes.call(change, batch_size, |batch| {
                let mut habits = lock(&calls.habits);
                make(batch, &mut Writer::new(&self.kv, name, &mut habits))
            })
        })
    }

    /// Makes the changes that `revise` wants of the secret as it is at that moment.
    pub(super) fn revise(
        &self,
        name: &str,
        revise: impl Fn(&Found) -> Vec<Change>,
    ) -> Result<(), Error> {
        self.with(name, |calls| {
            let mut habits = lock(&calls.habits);
            Writer::new(&self.kv, name, &mut habits).revise(revise)
        })
    }
}

/// How many stores of different keys are first in the queue and go together: 0 if a delete is
/// first, which goes alone.
fn batch_size(waiting: &VecDeque<(u64, Change)>) -> usize {
    let mut keys = HashSet::new();
    let mut bytes = 0;
    for (_, change) in waiting.iter().take(MOST_STORES) {
        let Change { key, value: Some(value) } = change else { break };
        bytes += value.len();
        if bytes > MOST_BYTES || !keys.insert(key) {
            break;
        }
    }
    keys.len()
}

fn make(changes: &[Change], writer: &mut Writer<'_>) -> Vec<Result<bool, Error>> {
    if changes.len() > 1 {
        match writer.merge(changes) {
            Err(Error::Refused(_)) => {}
            outcome => return vec![outcome.map(|()| true); changes.len()],
        }
    }
    let one = |change: &Change| match change.value {
        Some(_) => writer.merge(slice::from_ref(change)).map(|()| true),
        None => writer.remove(&change.key),
    };
    changes.iter().map(one).collect()
}
