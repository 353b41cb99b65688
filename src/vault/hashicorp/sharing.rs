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
//! Callers that were answered together tend to come back together, a moment later. So a
//! read after one that answered several is put off until as many wait for it again, or for
//! that moment. Otherwise they fall apart into groups that take turns, and each has its own
//! reads. It still begins after each of those whom it answers.
//!
//! A caller waits with its thread ([`Namespaces::read`]), or without one
//! ([`Namespaces::join`]): it leaves word how it is to be woken, or begins the read itself
//! and is woken by what tells of the answer. Only these put a read off.
//!
//! # Stores
//!
//! Stores to one namespace are made one after the other. Those that wait behind one under
//! way go together, as one merge of all their fields, and each is answered only after it.
//! When the server refuses the joint one, each is made alone, so that one caller's bad
//! luck is nobody else's. A delete is made alone always: what it does depends on whether
//! its field is the last, which no store of this process can change meanwhile.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Namespace;
use crate::secret::Secret;
use crate::vault::Wake;

use super::kv::{Found, Habits, Kv, KvError, PendingRead};
use super::upstream::Unavailable;

/// The namespaces that are being read or changed.
#[derive(Default)]
pub(super) struct Namespaces(Mutex<HashMap<Namespace, Arc<Lane>>>);

/// What goes on with one namespace.
#[derive(Default)]
struct Lane {
    reads: Mutex<Reads>,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Reads {
    /// One has begun, or somebody is to begin the next.
    under_way: bool,
    /// Those who wait for the next read, and how many they are.
    next: Option<Arc<Shared<ReadResult>>>,
    waiting: usize,
    /// How many the last read was to answer.
    callers: usize,
    /// How the one is woken who puts the next read off until so many wait for it.
    leader: Option<Wake>,
}

/// How long the next read is put off for those who are expected.
const LONGEST_PUT_OFF: Duration = Duration::from_micros(200);

impl Reads {
    fn join(&mut self) -> Arc<Shared<ReadResult>> {
        self.waiting += 1;
        Arc::clone(self.next.get_or_insert_default())
    }

    /// The one to wake who puts the next read off, when nobody more is expected.
    fn take_leader(&mut self) -> Option<Wake> {
        if self.waiting < self.callers { None } else { self.leader.take() }
    }

    /// Whether more are likely to come at once than wait for the next read already.
    fn are_more_expected(&self) -> bool {
        self.are_several() && self.waiting < self.callers
    }

    fn are_several(&self) -> bool {
        /// For fewer it is not worth waiting.
        const SEVERAL: usize = 4;

        self.callers >= SEVERAL
    }

    /// The next read begins: nobody joins it any more.
    fn begin(&mut self) {
        self.next = None;
        self.leader = None;
        self.callers = std::mem::take(&mut self.waiting);
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

impl<T> State<T> {
    fn is_appointed(&self, number: u64) -> bool {
        matches!(self.turn, Turn::Appointed(appointed) if appointed == number)
    }
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

    fn is_done(&self) -> bool {
        matches!(self.state().turn, Turn::Done(_))
    }

    /// Takes up the appointment. `false`: there is none under this number.
    fn accept(&self, number: u64) -> bool {
        let mut state = self.state();
        let is_appointed = state.is_appointed(number);
        if is_appointed {
            state.turn = Turn::Taken;
        }
        is_appointed
    }

    /// Takes back the word that was left. `true`: the one who left it was appointed, and
    /// somebody else is to be.
    fn forget(&self, number: u64) -> bool {
        let mut state = self.state();
        state.to_wake.retain(|(left, _)| *left != number);
        let is_appointed = state.is_appointed(number);
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
        Lane::read(&self.lane(namespace).lane, &|| kv.read(namespace))
    }

    /// Joins those who wait for the next read, or is to begin it. `wake` is called when it is
    /// worth to [advance](Joined::advance), unless the joined read's source tells.
    pub(super) fn join(&self, namespace: &Namespace, wake: Wake) -> Joined {
        let in_lane = self.lane(namespace);
        let lane = Arc::clone(&in_lane.lane);
        let mut reads = lane.reads();
        let shared = reads.join();
        let part = if std::mem::replace(&mut reads.under_way, true) {
            Part::Waiting { number: shared.leave_word(Arc::clone(&wake)) }
        } else {
            Part::Leading { put_off_since: None }
        };
        let leader = reads.take_leader();
        drop(reads);
        if let Some(wake) = leader {
            wake();
        }
        Joined { lane, shared, wake, part }
    }

    /// The result of a read that was joined. Waits for it, or makes it, unless
    /// [`Joined::is_done`].
    pub(super) fn finish(&self, joined: Joined, namespace: &Namespace, kv: &Kv) -> ReadResult {
        let _in_lane = InLane { namespaces: self, namespace, lane: Arc::clone(&joined.lane) };
        joined.finish(namespace, kv)
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
        let is_unused = Arc::strong_count(&self.lane) == 2;
        if is_unused && !self.lane.reads().are_several() && self.lane.changes().habits.are_usual() {
            lanes.remove(self.namespace);
        }
    }
}

/// A read that was joined.
pub(super) struct Joined {
    lane: Arc<Lane>,
    shared: Arc<Shared<ReadResult>>,
    wake: Wake,
    part: Part,
}

/// What one of those who share a read has to do with it.
enum Part {
    /// Word was left under this number.
    Waiting { number: u64 },
    /// It is to begin the read.
    Leading { put_off_since: Option<Instant> },
    /// It has begun the read.
    Making(Box<(PendingRead, ReadUnderWay)>),
    /// Nothing any more.
    Over,
}

impl Joined {
    /// Goes on with it as far as that takes no waiting. Whether it is to be
    /// [finished](Namespaces::finish).
    pub(super) fn advance(&mut self, namespace: &Namespace, kv: &Kv) -> bool {
        if let Part::Waiting { number } = self.part {
            if !self.shared.accept(number) {
                return self.shared.is_done();
            }
            self.part = Part::Leading { put_off_since: None };
        }
        if let Part::Leading { put_off_since } = &mut self.part {
            let since = *put_off_since.get_or_insert_with(Instant::now);
            let mut reads = self.lane.reads();
            if reads.are_more_expected() && since.elapsed() < LONGEST_PUT_OFF {
                reads.leader = Some(Arc::clone(&self.wake));
                return false;
            }
            drop(reads);
            let Some(opening) = kv.opening() else { return true };
            let under_way = self.lane.begin(&self.shared);
            self.part = Part::Making(Box::new((kv.begin_read(namespace, opening), under_way)));
        }
        match &mut self.part {
            Part::Making(read) => read.0.advance(),
            _ => true,
        }
    }

    /// Whether the result is there.
    pub(super) fn is_done(&self) -> bool {
        match &self.part {
            Part::Making(read) => read.0.is_answered(),
            _ => self.shared.is_done(),
        }
    }

    /// How long it is put off, for more are expected to join it.
    pub(super) fn put_off(&self) -> Option<Duration> {
        match self.part {
            Part::Leading { put_off_since: Some(since) } => {
                Some(LONGEST_PUT_OFF.saturating_sub(since.elapsed()))
            }
            _ => None,
        }
    }

    /// What tells when it is worth to go on.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.part {
            Part::Making(read) => read.0.source(),
            _ => None,
        }
    }

    /// After which time it is worth to go on, whatever has come.
    pub(super) fn time_left(&self) -> Option<Duration> {
        match &self.part {
            Part::Making(read) => Some(read.0.time_left()),
            _ => None,
        }
    }

    fn finish(mut self, namespace: &Namespace, kv: &Kv) -> ReadResult {
        let fetch = || kv.read(namespace);
        match std::mem::replace(&mut self.part, Part::Over) {
            Part::Making(read) => {
                let (read, under_way) = *read;
                under_way.end(|| kv.finish_read(namespace, read))
            }
            Part::Leading { .. } => self.lane.begin(&self.shared).end(fetch),
            Part::Waiting { .. } | Part::Over => {
                self.shared.wait().unwrap_or_else(|| self.lane.begin(&self.shared).end(fetch))
            }
        }
    }
}

/// Who was to begin the read and does not leaves it to another.
impl Drop for Joined {
    fn drop(&mut self) {
        let was_to_begin = match self.part {
            Part::Waiting { number } => self.shared.forget(number),
            Part::Leading { .. } => true,
            Part::Making(_) | Part::Over => false,
        };
        if was_to_begin {
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

    fn read(self: &Arc<Self>, fetch: &dyn Fn() -> Result<Found, KvError>) -> ReadResult {
        let mut reads = self.reads();
        let shared = reads.join();
        let is_under_way = std::mem::replace(&mut reads.under_way, true);
        let leader = reads.take_leader();
        drop(reads);
        if let Some(wake) = leader {
            wake();
        }
        let found = if is_under_way { shared.wait() } else { None };
        found.unwrap_or_else(|| self.begin(&shared).end(fetch))
    }

    /// Begins the read that others wait for.
    fn begin(self: &Arc<Self>, shared: &Arc<Shared<ReadResult>>) -> ReadUnderWay {
        self.reads().begin();
        ReadUnderWay { lane: Arc::clone(self), shared: Arc::clone(shared), result: None }
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
            reads.leader = None;
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

/// A read that has begun; when it ends, be it by a panic, those who shared it have its
/// result, and one of those who came meanwhile makes the next.
struct ReadUnderWay {
    lane: Arc<Lane>,
    shared: Arc<Shared<ReadResult>>,
    result: Option<ReadResult>,
}

impl ReadUnderWay {
    fn end(mut self, fetch: impl FnOnce() -> Result<Found, KvError>) -> ReadResult {
        let result = fetch().map(Arc::new);
        self.result = Some(result.clone());
        result
    }
}

impl Drop for ReadUnderWay {
    fn drop(&mut self) {
        let mut reads = self.lane.reads();
        let next = reads.next.clone();
        reads.under_way = next.is_some();
        drop(reads);
        if let Some(next) = next {
            next.call();
        }
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
