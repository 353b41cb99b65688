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
//! Callers that were answered together tend to come back together, a moment later. A read
//! right after one that several had to do with, as those whom it answered or as those who
//! came meanwhile, is put off until as many wait for it, or for a quarter of the time that
//! the last one took. Otherwise callers fall apart into two groups that take turns, each
//! with half of the reads. It still begins after each of those whom it answers.
//!
//! A caller waits with its thread ([`Namespaces::read`]), or leaves word how it is to be
//! woken ([`Namespaces::join`]), so that many wait for one request and cost no thread.
//!
//! # Stores
//!
//! Stores to one namespace are made one after the other. Those that wait behind one under
//! way go together, as one merge of all their fields, and each is answered only after it.
//! When the server refuses the joint one, each is made alone, so that one caller's bad
//! luck is nobody else's. A delete is made alone always: what it does depends on whether
//! its field is the last, which no store of this process can change meanwhile.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Namespace;
use crate::secret::Secret;
use crate::vault::Wake;

use super::kv::{Found, Habits, Kv, KvError};
use super::upstream::Unavailable;

/// The namespaces that are being read or changed.
#[derive(Default)]
pub(super) struct Namespaces(Mutex<HashMap<Namespace, Arc<Lane>>>);

/// What goes on with one namespace.
#[derive(Default)]
struct Lane {
    reads: Mutex<Reads>,
    /// As many wait for the next read as are expected.
    gathered: Condvar,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Reads {
    under_way: bool,
    /// Those who wait for the next read, and how many they are.
    next: Option<Arc<Shared<ReadResult>>>,
    waiting: usize,
    last: LastRead,
}

#[derive(Default, Clone, Copy)]
struct LastRead {
    /// Those whom it answered, and those who had come for the next one when it ended.
    callers: usize,
    took: Duration,
    ended: Option<Instant>,
}

impl LastRead {
    /// How many callers the next read may wait for, and how long.
    fn worth_waiting_for(&self) -> Option<(usize, Duration)> {
        /// For fewer it is not worth it.
        const SEVERAL: usize = 4;
        const LONGEST: Duration = Duration::from_millis(1);

        let is_recent = self.ended.is_some_and(|ended| ended.elapsed() < self.took);
        (self.callers >= SEVERAL && is_recent).then(|| (self.callers, (self.took / 4).min(LONGEST)))
    }
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
    /// Threads that wait.
    waiting: usize,
    /// How those are woken who wait without a thread.
    to_wake: VecDeque<(u64, Wake)>,
    /// Those who have left word so far.
    joined: u64,
}

enum Turn<T> {
    Waiting,
    /// Whichever thread sees this first is to do it.
    Anybody,
    /// The one who left word under this number is to do it.
    Appointed(u64),
    Taken,
    Done(T),
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        let state = State { turn: Turn::Waiting, waiting: 0, to_wake: VecDeque::new(), joined: 0 };
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
                Turn::Anybody => {
                    state.turn = Turn::Taken;
                    return None;
                }
                Turn::Waiting | Turn::Appointed(_) | Turn::Taken => {
                    state.waiting += 1;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
            }
        }
    }

    /// Leaves word how to be woken, once: when there is a result, or it is one's turn to
    /// find it out. Gives the number to come back with.
    fn leave_word(&self, wake: Wake) -> u64 {
        let mut state = self.state();
        state.joined += 1;
        let number = state.joined;
        state.to_wake.push_back((number, wake));
        number
    }

    fn result(&self) -> Option<T> {
        match &self.state().turn {
            Turn::Done(result) => Some(result.clone()),
            _ => None,
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.state().turn, Turn::Done(_))
    }

    fn is_appointed(&self, number: u64) -> bool {
        matches!(self.state().turn, Turn::Appointed(appointed) if appointed == number)
    }

    /// Takes up the appointment. `false`: there is none under this number.
    fn accept(&self, number: u64) -> bool {
        let mut state = self.state();
        let is_appointed = matches!(state.turn, Turn::Appointed(appointed) if appointed == number);
        if is_appointed {
            state.turn = Turn::Taken;
        }
        is_appointed
    }

    fn finish(&self, result: T) {
        let mut state = self.state();
        state.turn = Turn::Done(result);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
        let to_wake = std::mem::take(&mut state.to_wake);
        drop(state);
        for (_, wake) in to_wake {
            wake();
        }
    }

    /// Calls upon one of those who wait; the first who left word, if there is one.
    fn call(&self) {
        let mut state = self.state();
        if let Some((number, wake)) = state.to_wake.pop_front() {
            state.turn = Turn::Appointed(number);
            drop(state);
            wake();
        } else {
            state.turn = Turn::Anybody;
            if state.waiting > 0 {
                self.changed.notify_one();
            }
        }
    }
}

/// The failure of a thread that panicked in the others' place.
fn panicked() -> KvError {
    KvError::Unavailable(Unavailable::new("a request to Vault failed; see the service's log"))
}

impl Namespaces {
    /// The namespace's lane.
    fn lane<'a>(&'a self, namespace: &'a Namespace) -> InLane<'a> {
        let mut lanes = self.lanes();
        let lane = match lanes.get(namespace) {
            Some(lane) => Arc::clone(lane),
            None => Arc::clone(lanes.entry(namespace.clone()).or_default()),
        };
        InLane { namespaces: self, namespace, lane }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<Namespace, Arc<Lane>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the namespace's secret is, as of a moment after this call.
    pub(super) fn read(&self, namespace: &Namespace, kv: &Kv) -> ReadResult {
        self.lane(namespace).lane.read(&|| kv.read(namespace))
    }

    /// Joins those who wait for the next read, if one is under way; `wake` is called once,
    /// when [`Joined::is_ready`].
    pub(super) fn join(&self, namespace: &Namespace, wake: Wake) -> Option<Joined> {
        let lane = Arc::clone(self.lanes().get(namespace)?);
        let mut reads = lane.reads();
        if !reads.under_way {
            return None;
        }
        let shared = lane.join_next(&mut reads);
        let number = shared.leave_word(wake);
        drop(reads);
        Some(Joined { lane, shared, number })
    }

    /// The result of a read that was joined. Waits for it, or makes it, unless
    /// [`Joined::is_done`].
    pub(super) fn finish(&self, joined: Joined, namespace: &Namespace, kv: &Kv) -> ReadResult {
        let _in_lane = InLane { namespaces: self, namespace, lane: Arc::clone(&joined.lane) };
        joined.finish(&|| kv.read(namespace))
    }

    /// Stores a value.
    pub(super) fn store(
        &self,
        namespace: &Namespace,
        key: &str,
        value: &Secret,
        kv: &Kv,
    ) -> Result<(), KvError> {
        let lane = self.lane(namespace);
        lane.lane.change(key, Some(value.duplicate()), namespace, kv).map(|_| ())
    }

    /// Deletes a value, and says whether there was one.
    pub(super) fn delete(
        &self,
        namespace: &Namespace,
        key: &str,
        kv: &Kv,
    ) -> Result<bool, KvError> {
        self.lane(namespace).lane.change(key, None, namespace, kv)
    }
}

/// A lane in use. It is kept only as long as somebody uses it, or something worth keeping
/// was learnt of it.
struct InLane<'a> {
    namespaces: &'a Namespaces,
    namespace: &'a Namespace,
    lane: Arc<Lane>,
}

impl Drop for InLane<'_> {
    fn drop(&mut self) {
        let mut lanes = self.namespaces.lanes();
        // The table's and this one: nobody else has it, or can get it meanwhile.
        if Arc::strong_count(&self.lane) == 2 && self.lane.changes().habits.are_usual() {
            lanes.remove(self.namespace);
        }
    }
}

/// A read that was joined.
pub(super) struct Joined {
    lane: Arc<Lane>,
    shared: Arc<Shared<ReadResult>>,
    number: u64,
}

impl Joined {
    /// Whether the result is there.
    pub(super) fn is_done(&self) -> bool {
        self.shared.is_done()
    }

    /// Whether the result is there, or it is up to the caller to find it out.
    pub(super) fn is_ready(&self) -> bool {
        self.is_done() || self.shared.is_appointed(self.number)
    }

    fn finish(self, fetch: &dyn Fn() -> Result<Found, KvError>) -> ReadResult {
        if let Some(result) = self.shared.result() {
            return result;
        }
        let lane = Arc::clone(&self.lane);
        let shared = Arc::clone(&self.shared);
        if self.shared.accept(self.number) {
            drop(self);
            return lane.make_next(shared, fetch);
        }
        drop(self);
        shared.wait().unwrap_or_else(|| lane.make_next(Arc::clone(&shared), fetch))
    }
}

/// Who was appointed and does not do it leaves it to another.
impl Drop for Joined {
    fn drop(&mut self) {
        if self.shared.accept(self.number) {
            self.lane.give_up(&self.shared);
        }
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
        let shared = self.join_next(&mut reads);
        if std::mem::replace(&mut reads.under_way, true) {
            drop(reads);
            return shared.wait().unwrap_or_else(|| self.make_next(Arc::clone(&shared), fetch));
        }
        drop(reads);
        self.make_next(shared, fetch)
    }

    fn join_next(&self, reads: &mut Reads) -> Arc<Shared<ReadResult>> {
        reads.waiting += 1;
        if reads.waiting == reads.last.callers {
            self.gathered.notify_one();
        }
        Arc::clone(reads.next.get_or_insert_default())
    }

    /// Makes the read that others wait for. `under_way` has been left set for it; nobody
    /// joins it once it begins.
    fn make_next(
        &self,
        shared: Arc<Shared<ReadResult>>,
        fetch: &dyn Fn() -> Result<Found, KvError>,
    ) -> ReadResult {
        let mut reads = self.gather();
        reads.next = None;
        let answers = std::mem::take(&mut reads.waiting);
        drop(reads);
        self.make(shared, answers, fetch)
    }

    /// Waits a moment for those to come back who were answered together.
    fn gather(&self) -> MutexGuard<'_, Reads> {
        let reads = self.reads();
        let Some((callers, moment)) = reads.last.worth_waiting_for() else { return reads };
        self.gathered
            .wait_timeout_while(reads, moment, |reads| reads.waiting < callers)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn make(
        &self,
        shared: Arc<Shared<ReadResult>>,
        answers: usize,
        fetch: &dyn Fn() -> Result<Found, KvError>,
    ) -> ReadResult {
        let began = Instant::now();
        let mut read = ReadUnderWay { lane: self, shared, answers, began, result: None };
        let result = fetch().map(Arc::new);
        read.result = Some(result.clone());
        result
    }

    /// Nobody makes the next read yet: another is called upon, if there is one.
    fn give_up(&self, shared: &Arc<Shared<ReadResult>>) {
        let mut reads = self.reads();
        let state = shared.state();
        let is_alone = state.to_wake.is_empty() && state.waiting == 0;
        drop(state);
        // Threads that have joined and do not wait yet hold it as well.
        if is_alone && Arc::strong_count(shared) <= 2 {
            reads.next = None;
            reads.waiting = 0;
            reads.under_way = false;
        } else {
            drop(reads);
            shared.call();
        }
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
        // First those who have their answer: who makes the next read may be on this thread.
        self.shared.finish(self.result.take().unwrap_or_else(|| Err(panicked())));
        let mut reads = self.lane.reads();
        reads.last = LastRead {
            callers: self.answers + reads.waiting,
            took: self.began.elapsed(),
            ended: Some(Instant::now()),
        };
        if let Some(next) = reads.next.clone() {
            drop(reads);
            next.call();
        } else {
            reads.under_way = false;
        }
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
