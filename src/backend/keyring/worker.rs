//! A worker thread with a queue, so that calls into the keyring can have a deadline.
//!
//! The keyring's libraries block, for up to a year if nobody answers a prompt. Calls therefore
//! run on a thread of their own, and a caller waits no longer than it wants to. A thread that
//! hangs is abandoned, and a new one continues with the queue. A thread cannot be stopped from
//! outside, so the number of threads that hang at a time is limited.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use super::Failure;
use crate::sync::lock;

/// The threads of one worker: the current one, and those that were abandoned and still hang.
const MAX_THREADS: usize = 1 + 4;

/// A queue of jobs and the thread that does them. The thread owns a `K`: a connection, which
/// the jobs open and use again. The first job starts the thread.
pub(super) struct Worker<K: 'static> {
    name: &'static str,
    shared: Arc<Shared<K>>,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Condvar,
}

struct State<K> {
    queue: VecDeque<(Arc<Ticket>, Task<K>)>,
    /// The current thread. Any other ends after its job.
    current: Option<ThreadId>,
    /// The job that the current thread is doing.
    running: Option<Arc<Ticket>>,
    is_closed: bool,
    /// The number of threads, with the abandoned ones.
    threads: usize,
}

type Task<K> = Box<dyn FnOnce(&mut Option<K>) + Send>;

impl<K: 'static> Worker<K> {
    /// A worker whose threads have `name`.
    pub(super) fn new(name: &'static str) -> Self {
        let state = State {
            queue: VecDeque::new(),
            current: None,
            running: None,
            is_closed: false,
            threads: 0,
        };
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new() };
        Self { name, shared: Arc::new(shared) }
    }

    /// Queues `task`. The channel gives its result. The channel closes without one if the
    /// task panics or is never begun.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Option<K>, &Ticket) -> T + Send + 'static,
    ) -> Result<(Arc<Ticket>, Receiver<T>), Failure> {
        let (reply, result) = sync_channel(1);
        let ticket = Arc::new(Ticket::default());
        let of_task = Arc::clone(&ticket);
        let run = Box::new(move |connection: &mut Option<K>| {
            // A result that nobody waits for any more is dropped, and wiped, here.
            drop(reply.send(task(connection, &of_task)));
        });
        let mut state = lock(&self.shared.state);
        self.ensure_thread(&mut state)?;
        state.queue.push_back((Arc::clone(&ticket), run));
        drop(state);
        self.shared.changed.notify_one();
        Ok((ticket, result))
    }

    fn ensure_thread(&self, state: &mut State<K>) -> Result<(), Failure> {
        if state.is_closed {
            return Err(Failure::Closed);
        }
        if state.current.is_some() {
            return Ok(());
        }
        if state.threads == MAX_THREADS {
            return Err(Failure::AllHang);
        }
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || run(&shared))
            .map_err(|error| Failure::Absent(format!("no thread for it: {error}")))?;
        state.current = Some(thread.thread().id());
        state.threads += 1;
        Ok(())
    }

    /// Whether the thread is doing the job of `ticket`.
    pub(super) fn is_running(&self, ticket: &Arc<Ticket>) -> bool {
        lock(&self.shared.state)
            .running
            .as_ref()
            .is_some_and(|running| Arc::ptr_eq(running, ticket))
    }

    /// Whether the thread is doing a job that its caller no longer waits for.
    pub(super) fn is_stuck(&self) -> bool {
        lock(&self.shared.state).is_stuck()
    }

    /// Abandons the thread if it [is stuck](Self::is_stuck). A new one does the queued jobs; if
    /// too many threads hang already, the jobs are dropped.
    pub(super) fn abandon_if_stuck(&self) {
        let mut state = lock(&self.shared.state);
        if state.is_stuck() {
            state.leave_thread();
            if !state.queue.is_empty() && self.ensure_thread(&mut state).is_err() {
                state.queue.clear();
            }
        }
    }

    /// Accepts no more jobs and drops the queued ones. The thread ends after the job that it is
    /// doing.
    pub(super) fn close(&self) {
        let mut state = lock(&self.shared.state);
        state.is_closed = true;
        state.queue.clear();
        state.leave_thread();
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl<K> State<K> {
    fn is_stuck(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.is_wanted())
    }

    fn leave_thread(&mut self) {
        self.current = None;
        self.running = None;
    }
}

impl<K: 'static> Drop for Worker<K> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<K: 'static> fmt::Debug for Worker<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The loop of one thread.
fn run<K>(shared: &Shared<K>) {
    let own = Some(thread::current().id());
    let mut connection = None;
    let mut state = lock(&shared.state);
    while state.current == own {
        let Some((ticket, task)) = state.queue.pop_front() else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        // If its caller has gone, it was told that nothing changed.
        if !ticket.is_wanted() {
            continue;
        }
        state.running = Some(ticket);
        drop(state);
        if catch_unwind(AssertUnwindSafe(|| task(&mut connection))).is_err() {
            connection = None;
        }
        state = lock(&shared.state);
        if state.current == own {
            state.running = None;
        }
    }
    state.threads -= 1;
}

/// The agreement between a caller and the thread on whether a job may still change anything.
#[derive(Debug, Default)]
pub(super) struct Ticket(AtomicU8);

/// The job has changed nothing yet.
const OPEN: u8 = 0;
/// The job may have changed something.
const CLAIMED: u8 = 1;
/// The caller no longer waits.
const GONE: u8 = 2;

impl Ticket {
    /// Whether the caller still waits.
    pub(super) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Acquire) != GONE
    }

    /// For the job, before it changes anything: whether it may. From then on the caller can no
    /// longer withdraw it.
    pub(super) fn claim(&self) -> bool {
        let claimed = self.0.compare_exchange(OPEN, CLAIMED, Ordering::AcqRel, Ordering::Acquire);
        matches!(claimed, Ok(_) | Err(CLAIMED))
    }

    /// For the caller: withdraws the job unless it is claimed. If this returns `true`, the job
    /// changes nothing.
    pub(super) fn withdraw(&self) -> bool {
        self.0.compare_exchange(OPEN, GONE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// For the caller: stops waiting. Returns whether the job was withdrawn in time; if not, it
    /// may or may not be done.
    pub(super) fn give_up(&self) -> bool {
        self.0.swap(GONE, Ordering::AcqRel) == OPEN
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::SyncSender;
    use std::time::{Duration, Instant};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// Submits a job that hangs until the sender is dropped.
    fn hang(worker: &Worker<()>) -> (Arc<Ticket>, SyncSender<()>) {
        let (release, released) = sync_channel::<()>(0);
        let (begun, has_begun) = sync_channel(1);
        let submitted = worker.submit(move |_, _| {
            let _ = begun.send(());
            let _ = released.recv();
        });
        let (ticket, _) = submitted.expect("a thread");
        has_begun.recv_timeout(SOON).expect("the job begins");
        (ticket, release)
    }

    fn seven(worker: &Worker<()>) -> Receiver<i32> {
        worker.submit(|_, _| 7).expect("a thread").1
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < SOON);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_withdrawn_job_is_not_done() {
        let worker = Worker::new("test");
        let (_, release) = hang(&worker);
        let (ticket, result) = worker.submit(|_, _| panic!("done for nobody")).expect("a thread");
        assert!(ticket.withdraw());
        drop(release);
        result.recv_timeout(SOON).map(|(): ()| ()).expect_err("dropped before it began");
        assert_eq!(seven(&worker).recv_timeout(SOON), Ok(7), "the thread goes on");
    }

    #[test]
    fn a_claimed_job_cannot_be_withdrawn() {
        let ticket = Ticket::default();
        assert!(ticket.claim() && ticket.claim(), "a second attempt may go on");
        assert!(!ticket.withdraw() && ticket.is_wanted());
        assert!(!ticket.give_up());
        assert!(!ticket.is_wanted() && !ticket.claim(), "no further attempt");
    }

    #[test]
    fn a_stuck_thread_is_replaced_until_too_many_hang() {
        let worker = Worker::new("test");
        let mut hanging = Vec::new();
        for n in 1..=MAX_THREADS {
            let (ticket, release) = hang(&worker);
            assert!(worker.is_running(&ticket) && !worker.is_stuck());
            worker.abandon_if_stuck();
            let queued = seven(&worker);
            ticket.give_up();
            assert!(worker.is_stuck());
            worker.abandon_if_stuck();
            let is_last = n == MAX_THREADS;
            assert_eq!(queued.recv_timeout(SOON).is_err(), is_last, "the queue goes on");
            hanging.push(release);
        }
        assert!(matches!(worker.submit(|_, _| ()), Err(Failure::AllHang)));
        drop(hanging.pop());
        wait_until(|| worker.submit(|_, _| ()).is_ok());
    }

    #[test]
    fn a_panic_costs_one_result_and_the_connection() {
        let worker = Worker::new("test");
        let (_, result) = worker
            .submit(|connection, _| {
                *connection = Some(());
                panic!("on purpose");
            })
            .expect("a thread");
        result.recv_timeout(SOON).map(|(): ()| ()).expect_err("no result");
        let (_, result) = worker.submit(|connection, _| *connection).expect("a thread");
        assert_eq!(result.recv_timeout(SOON), Ok(None));
    }

    #[test]
    fn a_closed_worker_drops_its_queue_and_ends_its_thread() {
        let worker = Worker::new("test");
        let (_, release) = hang(&worker);
        let queued = seven(&worker);
        worker.close();
        worker.close();
        queued.recv_timeout(SOON).expect_err("not done");
        assert!(matches!(worker.submit(|_, _| ()), Err(Failure::Closed)));
        drop(release);
        wait_until(|| lock(&worker.shared.state).threads == 0);
    }

    #[test]
    fn a_dropped_worker_ends_its_thread() {
        let worker = Worker::new("test");
        seven(&worker).recv_timeout(SOON).expect("done");
        let shared = Arc::clone(&worker.shared);
        drop(worker);
        wait_until(|| lock(&shared.state).threads == 0);
    }
}
