//! Fewer requests than callers, without a cache.
//!
//! # Reads
//!
//! A read of a namespace that is under way began at some moment. Who arrives after that
//! moment must not be given its result: a store may have been acknowledged in between. But
//! all who arrive while it is under way may share the *next* read, which begins when this
//! one ends, after all of them have arrived. Each caller thus gets what the server said in
//! answer to a request that was sent after the caller's own; a read of its own could have
//! seen nothing newer than that in the worst case, and nobody can tell the two apart:
//!
//! ```text
//! caller A  |--- read 1 ---|
//! caller B     |...........|--- read 2 ---|      B and C arrive during read 1,
//! caller C          |......|--- read 2 ---|      and share read 2, which begins
//! caller D                      |.........|--    after both; D arrives during it,
//! ```                                            and waits for read 3
//!
//! Callers that were answered together tend to come back together, a moment later. When the
//! last read answered several, the next one is put off until as many have come, or for a
//! quarter of the time that the last one took. It then still begins after each of them.
//!
//! # Stores
//!
//! Stores to one namespace are made one after the other. Those that wait behind one under
//! way go together, as one merge of all their fields, and each is answered only after it.
//! When the server refuses the joint one, each is made alone, so that one caller's bad
//! luck is nobody else's. A delete is made alone always: what it does depends on whether
//! its field is the last, which no store of this process can change meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Namespace;
use crate::secret::Secret;

use super::kv::{Found, Habits, Kv, KvError};
use super::upstream::Unavailable;

/// The namespaces that are being read or changed.
#[derive(Default)]
pub(super) struct Namespaces(Mutex<HashMap<Namespace, Arc<Lane>>>);

/// What goes on with one namespace.
#[derive(Default)]
struct Lane {
    reads: Mutex<Reads>,
    /// As many wait for the next read as were answered by the last.
    gathered: Condvar,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Reads {
    under_way: bool,
    /// Those who wait for the next read, and how many they are.
    next: Option<Arc<Shared<ReadResult>>>,
    waiting: usize,
    /// How many the last read answered, and how long it took.
    answered: usize,
    took: Duration,
}

type ReadResult = Result<Arc<Found>, KvError>;

#[derive(Default)]
struct Changes {
    under_way: bool,
    waiting: Vec<Arc<Change>>,
    habits: Habits,
}

/// A change, until it is made.
struct Change {
    key: String,
    /// The value to be stored; `None` to delete it.
    value: Option<Secret>,
    outcome: Shared<Result<bool, KvError>>,
}

/// Something that one thread finds out and others wait for; or else one of them is called
/// upon to find it out.
struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    turn: Turn<T>,
    waiting: usize,
}

enum Turn<T> {
    Waiting,
    /// Whoever sees this first is to do it.
    Yours,
    Taken,
    Done(T),
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        let state = State { turn: Turn::Waiting, waiting: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<T: Clone> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result, or `None`: it is the caller's turn to find it out.
    fn wait(&self) -> Option<T> {
        let mut state = self.state();
        loop {
            match &state.turn {
                Turn::Done(result) => return Some(result.clone()),
                Turn::Yours => {
                    state.turn = Turn::Taken;
                    return None;
                }
                Turn::Waiting | Turn::Taken => {
                    state.waiting += 1;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
            }
        }
    }

    fn finish(&self, result: T) {
        let mut state = self.state();
        state.turn = Turn::Done(result);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    fn is_finished(&self) -> bool {
        matches!(self.state().turn, Turn::Done(_))
    }

    /// Calls upon one of those who wait.
    fn call(&self) {
        let mut state = self.state();
        state.turn = Turn::Yours;
        if state.waiting > 0 {
            self.changed.notify_one();
        }
    }
}

/// The failure of a thread that panicked in the others' place.
fn panicked() -> KvError {
    KvError::Unavailable(Unavailable::new("a request to Vault failed; see the service's log"))
}

impl Namespaces {
    /// Runs `act` in the namespace's lane, which is kept only as long as somebody uses it
    /// or something worth keeping was learnt of it.
    fn within<T>(&self, namespace: &Namespace, act: impl FnOnce(&Lane) -> T) -> T {
        let lane = {
            let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match lanes.get(namespace) {
                Some(lane) => Arc::clone(lane),
                None => Arc::clone(lanes.entry(namespace.clone()).or_default()),
            }
        };
        let result = act(&lane);
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The table's and this one: nobody else has it, or can get it meanwhile.
        if Arc::strong_count(&lane) == 2 && lane.changes().habits.are_usual() {
            lanes.remove(namespace);
        }
        result
    }

    /// What the namespace's secret is, as of a moment after this call.
    pub(super) fn read(&self, namespace: &Namespace, kv: &Kv) -> ReadResult {
        self.within(namespace, |lane| lane.read(&|| kv.read(namespace)))
    }

    /// Stores a value.
    pub(super) fn store(
        &self,
        namespace: &Namespace,
        key: &str,
        value: &Secret,
        kv: &Kv,
    ) -> Result<(), KvError> {
        self.within(namespace, |lane| {
            lane.change(key, Some(value.duplicate()), namespace, kv).map(|_| ())
        })
    }

    /// Deletes a value, and says whether there was one.
    pub(super) fn delete(
        &self,
        namespace: &Namespace,
        key: &str,
        kv: &Kv,
    ) -> Result<bool, KvError> {
        self.within(namespace, |lane| lane.change(key, None, namespace, kv))
    }
}

impl Lane {
    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, fetch: &dyn Fn() -> Result<Found, KvError>) -> ReadResult {
        let mut reads = self.reads();
        let (shared, answers) = if reads.under_way {
            let shared = Arc::clone(reads.next.get_or_insert_default());
            reads.waiting += 1;
            if reads.waiting == reads.answered {
                self.gathered.notify_one();
            }
            drop(reads);
            if let Some(result) = shared.wait() {
                return result;
            }
            // Called upon: `under_way` has been left set for this read. Nobody joins it
            // once it begins.
            let mut reads = self.gather();
            reads.next = None;
            (shared, std::mem::take(&mut reads.waiting))
        } else {
            reads.under_way = true;
            drop(reads);
            (Arc::default(), 1)
        };
        let mut read =
            ReadUnderWay { lane: self, shared, answers, began: Instant::now(), result: None };
        read.result = Some(fetch().map(Arc::new));
        read.result.clone().unwrap_or_else(|| Err(panicked()))
    }

    /// Waits a moment for those to come back who were answered together.
    fn gather(&self) -> MutexGuard<'_, Reads> {
        /// For fewer it is not worth it.
        const SEVERAL: usize = 4;
        const LONGEST: Duration = Duration::from_millis(1);

        let reads = self.reads();
        if reads.answered < SEVERAL || reads.waiting >= reads.answered {
            return reads;
        }
        let moment = (reads.took / 4).min(LONGEST);
        self.gathered
            .wait_timeout_while(reads, moment, |reads| reads.waiting < reads.answered)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn change(
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

/// A read; when it ends, be it by a panic, those who shared it have its result, and one of
/// those who came meanwhile makes the next.
struct ReadUnderWay<'a> {
    lane: &'a Lane,
    shared: Arc<Shared<ReadResult>>,
    answers: usize,
    began: Instant,
    result: Option<ReadResult>,
}

impl Drop for ReadUnderWay<'_> {
    fn drop(&mut self) {
        let mut reads = self.lane.reads();
        reads.answered = self.answers;
        reads.took = self.began.elapsed();
        match &reads.next {
            Some(next) => next.call(),
            None => reads.under_way = false,
        }
        drop(reads);
        self.shared.finish(self.result.take().unwrap_or_else(|| Err(panicked())));
    }
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
            if !change.outcome.is_finished() {
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
