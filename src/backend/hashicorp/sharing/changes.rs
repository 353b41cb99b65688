//! Changes to one namespace: one after the other, and those that wait, together.

use std::sync::{Arc, MutexGuard, PoisonError};

use crate::model::Namespace;
use crate::secret::Secret;

use super::super::kv::{Habits, Kv, KvError};
use super::shared::Shared;
use super::{Lane, panicked};

#[derive(Default)]
pub(super) struct Changes {
    under_way: bool,
    waiting: Vec<Arc<Change>>,
    pub(super) habits: Habits,
}

/// A change, until it is made.
struct Change {
    key: String,
    /// The value to be stored; `None` to delete it.
    value: Option<Secret>,
    outcome: Shared<Result<bool, KvError>>,
}

impl Lane {
    pub(super) fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(
        &self,
        key: &str,
        value: Option<Secret>,
        namespace: &Namespace,
        kv: &Kv,
    ) -> Result<bool, KvError> {
        let change = Arc::new(Change { key: key.to_owned(), value, outcome: Shared::default() });
        let mut changes = self.changes();
        changes.waiting.push(Arc::clone(&change));
        if changes.under_way {
            drop(changes);
            if let Some(outcome) = change.outcome.wait() {
                return outcome;
            }
            changes = self.changes();
        } else {
            changes.under_way = true;
        }
        let batch = next_batch(&mut changes.waiting);
        let habits = std::mem::take(&mut changes.habits);
        drop(changes);
        let mut turn = ChangesUnderWay { lane: self, batch, habits };
        turn.make(namespace, kv);
        drop(turn);
        change.outcome.wait().unwrap_or_else(|| Err(panicked()))
    }
}

/// How many fields go together. A secret that is written whole has all of them anyway.
const MOST_TOGETHER: usize = 64;
/// How many bytes of values go together: a server refuses a secret of more than 1 MiB, and
/// a request that is refused costs one for each.
const MOST_BYTES_TOGETHER: usize = 512 * 1024;

/// Takes the changes that go together from the front of the queue: a delete, or stores of
/// different keys.
fn next_batch(waiting: &mut Vec<Arc<Change>>) -> Vec<Arc<Change>> {
    let mut bytes = 0;
    let mut count = 0;
    for (index, change) in waiting.iter().enumerate() {
        let Some(value) = &change.value else { break };
        bytes += value.len();
        let is_repeated = waiting[..index].iter().any(|earlier| earlier.key == change.key);
        let is_too_much = index > 0 && (bytes > MOST_BYTES_TOGETHER || index >= MOST_TOGETHER);
        if is_repeated || is_too_much {
            break;
        }
        count = index + 1;
    }
    waiting.drain(..count.max(1)).collect()
}

/// Changes; when they end, be it by a panic, each is answered, and one of those who came
/// meanwhile makes the next.
struct ChangesUnderWay<'a> {
    lane: &'a Lane,
    batch: Vec<Arc<Change>>,
    habits: Habits,
}

impl ChangesUnderWay<'_> {
    fn make(&mut self, namespace: &Namespace, kv: &Kv) {
        if let [only] = &*self.batch {
            let outcome = make_one(only, namespace, kv, &mut self.habits);
            only.outcome.finish(outcome);
            return;
        }
        let together: Vec<(&str, &Secret)> = self
            .batch
            .iter()
            .filter_map(|change| Some((&*change.key, change.value.as_ref()?)))
            .collect();
        match kv.merge(namespace, &together, &mut self.habits) {
            Ok(()) => self.batch.iter().for_each(|change| change.outcome.finish(Ok(true))),
            Err(error @ KvError::Unavailable(_)) => {
                self.batch.iter().for_each(|change| change.outcome.finish(Err(error.clone())));
            }
            Err(KvError::Refused(_)) => {
                for change in &self.batch {
                    let outcome = make_one(change, namespace, kv, &mut self.habits);
                    change.outcome.finish(outcome);
                }
            }
        }
    }
}

fn make_one(
    change: &Change,
    namespace: &Namespace,
    kv: &Kv,
    habits: &mut Habits,
) -> Result<bool, KvError> {
    match &change.value {
        Some(value) => kv.merge(namespace, &[(&change.key, value)], habits).map(|()| true),
        None => kv.remove(namespace, &change.key, habits),
    }
}

impl Drop for ChangesUnderWay<'_> {
    fn drop(&mut self) {
        for change in &self.batch {
            if !change.outcome.is_done() {
                change.outcome.finish(Err(panicked()));
            }
        }
        let mut changes = self.lane.changes();
        changes.habits = std::mem::take(&mut self.habits);
        match changes.waiting.first() {
            Some(next) => next.outcome.call(),
            None => changes.under_way = false,
        }
    }
}
