//! Reads of one namespace: who begins the next one, when, and who shares it.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::Namespace;
type Wake = std::sync::Arc<dyn Fn() + Send + Sync>;

use super::super::kv::{Found, Kv, KvError, PendingRead};
use super::shared::Shared;
use super::{Lane, panicked};

pub(super) type ReadResult = Result<Arc<Found>, KvError>;

#[derive(Default)]
pub(super) struct Reads {
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

    /// Whether more are likely to come at once than wait for the next read already.
    fn are_more_expected(&self) -> bool {
        self.are_several() && self.waiting < self.callers
    }

    pub(super) fn are_several(&self) -> bool {
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

/// Lets go of them after somebody joined, and wakes who puts the next read off, if nobody more
/// is expected.
fn release(mut reads: MutexGuard<'_, Reads>) {
    let leader = if reads.are_more_expected() { None } else { reads.leader.take() };
    drop(reads);
    if let Some(wake) = leader {
        wake();
    }
}

/// A read that was joined.
pub(in super::super) struct Joined {
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
    pub(super) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Goes on with it as far as that takes no waiting. Whether it is to be
    /// [finished](Namespaces::finish).
    pub(in super::super) fn advance(&mut self, namespace: &Namespace, kv: &Kv) -> bool {
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
            // Should sending it panic, it is over for all who share it.
            self.part = Part::Over;
            let under_way = self.lane.begin(&self.shared);
            self.part = Part::Making(Box::new((kv.begin_read(namespace, opening), under_way)));
        }
        match &mut self.part {
            Part::Making(read) => read.0.pending.advance(),
            _ => true,
        }
    }

    /// Whether the result is there.
    pub(in super::super) fn is_done(&self) -> bool {
        match &self.part {
            Part::Making(read) => read.0.pending.is_answered(),
            _ => self.shared.is_done(),
        }
    }

    /// How long it is put off, for more are expected to join it.
    pub(in super::super) fn put_off(&self) -> Option<Duration> {
        match self.part {
            Part::Leading { put_off_since: Some(since) } => {
                Some(LONGEST_PUT_OFF.saturating_sub(since.elapsed()))
            }
            _ => None,
        }
    }

    /// What tells when it is worth to go on.
    pub(in super::super) fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.part {
            Part::Making(read) => read.0.pending.source(),
            _ => None,
        }
    }

    /// After which time it is worth to go on, whatever has come.
    pub(in super::super) fn time_left(&self) -> Option<Duration> {
        match &self.part {
            Part::Making(read) => Some(read.0.pending.time_left()),
            _ => None,
        }
    }

    pub(super) fn finish(mut self, namespace: &Namespace, kv: &Kv) -> ReadResult {
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
    pub(super) fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read(self: &Arc<Self>, fetch: &dyn Fn() -> Result<Found, KvError>) -> ReadResult {
        let mut reads = self.reads();
        let shared = reads.join();
        let is_under_way = std::mem::replace(&mut reads.under_way, true);
        release(reads);
        let found = if is_under_way { shared.wait() } else { None };
        found.unwrap_or_else(|| self.begin(&shared).end(fetch))
    }

    /// Joins those who wait for the next read, or is to begin it.
    pub(super) fn join(self: &Arc<Self>, wake: Wake) -> Joined {
        let mut reads = self.reads();
        let shared = reads.join();
        let part = if std::mem::replace(&mut reads.under_way, true) {
            Part::Waiting { number: shared.leave_word(Arc::clone(&wake)) }
        } else {
            Part::Leading { put_off_since: None }
        };
        release(reads);
        Joined { lane: Arc::clone(self), shared, wake, part }
    }

    /// Begins the read that others wait for.
    fn begin(self: &Arc<Self>, shared: &Arc<Shared<ReadResult>>) -> ReadUnderWay {
        self.reads().begin();
        ReadUnderWay { lane: Arc::clone(self), shared: Arc::clone(shared), result: None }
    }

    /// Nobody makes the next read yet: another is called upon, if there is one.
    fn give_up(&self, shared: &Arc<Shared<ReadResult>>) {
        let mut reads = self.reads();
        // Threads that have joined and do not wait yet hold it as well.
        if shared.is_unwaited() && Arc::strong_count(shared) <= 2 {
            reads.next = None;
            reads.leader = None;
            reads.waiting = 0;
            reads.under_way = false;
        } else {
            drop(reads);
            shared.call();
        }
    }
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
