//! One queue and the thread that works it, so that a call can have a deadline.
//!
//! The keyring's libraries block: for a prompt that nobody answers, up to a year. So
//! calls into them run on a thread of their own, and whoever called waits for the answer
//! no longer than it wants to. A thread that hangs is given up and a new one takes its
//! place; as it cannot be ended from outside, only so many may hang at a time.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

/// Threads of one lane: the one that works, and those that were given up and still hang.
const MAX_THREADS: usize = 1 + 4;

/// Why a lane has no worker to give.
#[derive(Debug)]
pub(super) enum NoWorker {
    /// The lane was closed.
    Closed,
    /// All its threads hang.
    AllHang,
    /// The operating system gave no thread.
    NoThread(std::io::Error),
}

/// A queue with a thread that owns a `K`: a connection, made and kept by the tasks.
#[derive(Debug)]
pub(super) struct Lane<K> {
    name: &'static str,
    slot: Mutex<Slot<K>>,
    /// Every thread holds a clone for as long as it lives, so the count is theirs.
    alive: Arc<()>,
}

#[derive(Debug)]
enum Slot<K> {
    Empty,
    Working(Arc<Worker<K>>),
    Closed,
}

impl<K: 'static> Lane<K> {
    /// A lane whose threads bear `name`. The first starts with the first task.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, slot: Mutex::new(Slot::Empty), alive: Arc::new(()) }
    }

    /// The worker that takes tasks now, started if there is none.
    pub(super) fn worker(&self) -> Result<Arc<Worker<K>>, NoWorker> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Slot::Closed => return Err(NoWorker::Closed),
            Slot::Working(worker) if !worker.has_ended() => return Ok(Arc::clone(worker)),
            Slot::Working(_) | Slot::Empty => {}
        }
        if Arc::strong_count(&self.alive) > MAX_THREADS {
            return Err(NoWorker::AllHang);
        }
        let worker = Arc::new(
            Worker::start(self.name, Arc::clone(&self.alive)).map_err(NoWorker::NoThread)?,
        );
        *slot = Slot::Working(Arc::clone(&worker));
        Ok(worker)
    }

    /// Gives up a worker that hangs; the next task gets a new one.
    pub(super) fn retire(&self, worker: &Arc<Worker<K>>) {
        worker.state.retired.store(true, Ordering::Release);
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*slot, Slot::Working(current) if Arc::ptr_eq(current, worker)) {
            *slot = Slot::Empty;
        }
    }

    /// Takes no more tasks. The thread ends after the one that it is at.
    pub(super) fn close(&self) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Slot::Working(worker) = std::mem::replace(&mut *slot, Slot::Closed) {
            worker.state.retired.store(true, Ordering::Release);
        }
    }
}

type Job<K> = (Arc<Ticket>, Box<dyn FnOnce(&mut Option<K>) + Send>);

/// One thread and its queue. The thread ends when the last holder lets go of this.
#[derive(Debug)]
pub(super) struct Worker<K> {
    jobs: Sender<Job<K>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The id of the ticket that is being worked on, or 0.
    running: AtomicU64,
    /// The id of the ticket that it was found to hang in.
    hangs_in: AtomicU64,
    retired: AtomicBool,
    ended: AtomicBool,
}

impl<K: 'static> Worker<K> {
    fn start(name: &str, alive: Arc<()>) -> std::io::Result<Self> {
        let (sender, jobs) = unbounded();
        let state = Arc::new(State::default());
        let of_thread = Arc::clone(&state);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let end = SetOnDrop(&of_thread.ended);
            work(&jobs, &of_thread);
            drop((end, alive));
        })?;
        Ok(Self { jobs: sender, state })
    }

    /// Queues `task`. The answer comes on the channel; the channel breaks off without
    /// one when the task panics or is dropped unbegun.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        ticket: &Arc<Ticket>,
        task: impl FnOnce(&mut Option<K>) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (reply, answer) = bounded(1);
        let job = Box::new(move |connection: &mut Option<K>| {
            // An answer that nobody waits for any more is dropped, and wiped, here.
            drop(reply.send(task(connection)));
        });
        // If the thread has ended the job is dropped, which breaks the channel off.
        drop(self.jobs.send((Arc::clone(ticket), job)));
        answer
    }

    /// Whether it works on `ticket` right now.
    pub(super) fn is_at(&self, ticket: &Ticket) -> bool {
        self.state.running.load(Ordering::Acquire) == ticket.id
    }

    /// Notes that what it works on now does not come to an end by itself.
    pub(super) fn note_hang(&self) {
        let running = self.state.running.load(Ordering::Acquire);
        self.state.hangs_in.store(running, Ordering::Release);
    }

    /// Whether it still is at the task that it was found to hang in.
    pub(super) fn hangs(&self) -> bool {
        let running = self.state.running.load(Ordering::Acquire);
        running != 0 && running == self.state.hangs_in.load(Ordering::Acquire)
    }

    /// Whether it was given up: what is still queued here will not be done.
    pub(super) fn is_retired(&self) -> bool {
        self.state.retired.load(Ordering::Acquire)
    }

    fn has_ended(&self) -> bool {
        self.state.ended.load(Ordering::Acquire)
    }
}

fn work<K>(jobs: &Receiver<Job<K>>, state: &State) {
    let mut connection = None;
    for (ticket, job) in jobs {
        // Done late, a store would be done after its caller was told that it was not.
        if state.retired.load(Ordering::Acquire) || !ticket.is_wanted() {
            continue;
        }
        state.running.store(ticket.id, Ordering::Release);
        job(&mut connection);
        state.running.store(0, Ordering::Release);
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What a caller and the thread agree by on whether a task is still to be done.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    state: AtomicU8,
}

/// Nothing was changed yet.
const OPEN: u8 = 0;
/// The thread is past the point of no return.
const CLAIMED: u8 = 1;
/// The caller has gone.
const GONE: u8 = 2;

impl Ticket {
    pub(super) fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self { id: NEXT.fetch_add(1, Ordering::Relaxed), state: AtomicU8::new(OPEN) })
    }

    fn turn(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// For the thread: whether the caller still waits.
    pub(super) fn is_wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) != GONE
    }

    /// For the thread, before it changes anything: whether it may. From then on the
    /// caller can no longer withdraw.
    pub(super) fn claim(&self) -> bool {
        self.turn(OPEN, CLAIMED) || self.state.load(Ordering::Acquire) == CLAIMED
    }

    /// For the caller: takes the task back, unless the thread has claimed it. Once this
    /// has said yes, the task changes nothing.
    pub(super) fn withdraw(&self) -> bool {
        self.turn(OPEN, GONE)
    }

    /// For the caller: waits no longer, and says whether the task was withdrawn in time
    /// (else it may or may not be done).
    pub(super) fn give_up(&self) -> bool {
        self.withdraw() || {
            self.turn(CLAIMED, GONE);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A task that hangs until its sender is dropped.
    fn hang(worker: &Worker<()>, ticket: &Arc<Ticket>) -> Sender<()> {
        let (release, released) = bounded::<()>(0);
        let (begun, has_begun) = bounded(1);
        worker.submit(ticket, move |_| {
            let _ = begun.send(());
            let _ = released.recv();
        });
        has_begun.recv_timeout(SOON).expect("the task begins");
        release
    }

    #[test]
    fn a_task_whose_caller_has_gone_is_not_done() {
        let lane = Lane::<()>::new("test");
        let worker = lane.worker().expect("starts");
        let release = hang(&worker, &Ticket::new());
        let ticket = Ticket::new();
        let answer = worker.submit(&ticket, |_| panic!("done for nobody"));
        assert!(ticket.withdraw());
        drop(release);
        answer.recv_timeout(SOON).expect_err("dropped unbegun");
        let answer = worker.submit(&Ticket::new(), |_| 7);
        assert_eq!(answer.recv_timeout(SOON), Ok(7), "the thread works on");
    }

    #[test]
    fn a_claimed_task_cannot_be_withdrawn() {
        let ticket = Ticket::new();
        assert!(ticket.claim() && ticket.claim(), "a second try may go on");
        assert!(!ticket.withdraw());
        assert!(ticket.is_wanted());
        assert!(!ticket.give_up());
        assert!(!ticket.is_wanted() && !ticket.claim(), "no further try");
    }

    #[test]
    fn only_so_many_threads_hang_at_a_time() {
        let lane = Lane::<()>::new("test");
        let mut hanging = Vec::new();
        for _ in 0..MAX_THREADS {
            let worker = lane.worker().expect("starts");
            let ticket = Ticket::new();
            hanging.push(hang(&worker, &ticket));
            assert!(worker.is_at(&ticket) && !worker.hangs());
            worker.note_hang();
            assert!(worker.hangs());
            lane.retire(&worker);
            assert!(worker.is_retired());
        }
        assert!(matches!(lane.worker(), Err(NoWorker::AllHang)));
        drop(hanging.pop());
        while lane.worker().is_err() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_panic_costs_one_answer_and_not_the_lane() {
        let lane = Lane::<()>::new("test");
        let worker = lane.worker().expect("starts");
        let answer = worker.submit(&Ticket::new(), |_| panic!("on purpose"));
        answer.recv_timeout(SOON).expect_err("no answer");
        while !worker.has_ended() {
            std::thread::yield_now();
        }
        let answer = lane.worker().expect("a new one").submit(&Ticket::new(), |_| 7);
        assert_eq!(answer.recv_timeout(SOON), Ok(7));
    }

    #[test]
    fn a_closed_lane_takes_no_more() {
        let lane = Lane::<()>::new("test");
        let worker = lane.worker().expect("starts");
        lane.close();
        lane.close();
        assert!(matches!(lane.worker(), Err(NoWorker::Closed)));
        let answer = worker.submit(&Ticket::new(), |_| 7);
        answer.recv_timeout(SOON).expect_err("not done");
        drop(worker);
        while Arc::strong_count(&lane.alive) > 1 {
            std::thread::yield_now();
        }
    }
}
