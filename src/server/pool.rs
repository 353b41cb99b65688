//! The pool: a fixed number of workers that serve whichever connection is ready.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::router::{Answer, Call, Router};

use super::Limits;
use super::arrivals::Arrivals;
use super::connection::{Connection, Progress, Stream};
use super::deadlines::Deadlines;
use super::permits::{BackendLane, CorePermits};
use super::poller::{BATCH, Event, Poller};
use super::response::{self, Dates};
use super::table::{Millis, NEVER, Slot, Table};

/// What workers share.
#[derive(Debug)]
pub(super) struct Pool {
    router: Router,
    limits: Limits,
    poller: Poller,
    table: Table,
    arrivals: Arrivals,
    permits: CorePermits,
    /// Events that a worker takes at a time.
    batch: usize,
    /// A worker may stay awake for what comes next, and whether one does.
    may_stay_awake: bool,
    stays_awake: AtomicBool,
    lane: BackendLane,
    started: Instant,
    draining: AtomicBool,
    stage: Mutex<Stage>,
    stage_changed: Condvar,
    deadlines: Deadlines,
    itself: OnceLock<Weak<Pool>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    Stopping,
    Ended,
}

/// What a worker keeps from request to request.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    pub(super) dates: Dates,
    /// The turn has waited for a backend, so its idea of the time is old.
    pub(super) has_waited: bool,
    pub(super) agenda: Agenda,
}

/// What a worker is to do next.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// Events that it has taken from the poller.
    ready: VecDeque<Event>,
    /// Connections that have entered the lane, for it to serve first.
    handed: Vec<u64>,
    /// Connections whose joined reads are ready, for it to serve next, in this order: who
    /// is to make the next request comes after those who have their answer.
    woken: VecDeque<u64>,
    /// Connections whose next turn is put off until then.
    put_off: Vec<(Instant, u64)>,
    /// New connections that it has served since it last looked at the poller.
    arrivals_served: usize,
    /// How often in a row it had not to wait long for what came next.
    quick_waits: u32,
}

impl Agenda {
    /// Gives the connection its turn after a pause.
    pub(super) fn put_off(&mut self, token: u64, pause: Duration) {
        self.put_off.retain(|(_, other)| *other != token);
        self.put_off.push((Instant::now() + pause, token));
    }

    /// How long until something that was put off is due.
    fn patience(&self) -> Option<Duration> {
        let (due, _) = self.put_off.iter().min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// What was put off and is due.
    fn take_due(&mut self) -> Option<u64> {
        if self.put_off.is_empty() {
            return None;
        }
        let now = Instant::now();
        let index = self.put_off.iter().position(|(due, _)| *due <= now)?;
        Some(self.put_off.swap_remove(index).1)
    }
}

thread_local! {
    /// The pool that this thread works for, and the connections that were woken by what it
    /// has done: it serves them itself.
    static WOKEN: RefCell<(Weak<Pool>, Vec<u64>)> = const { RefCell::new((Weak::new(), Vec::new())) };
}

/// What becomes of a call.
pub(super) enum Outcome {
    Answered(Answer),
    /// The lane is full: the connection is woken when it has entered it.
    Queued,
}

/// What a worker stays awake for comes within this time, if requests come that fast.
const LONGEST_AWAKE: Duration = Duration::from_micros(50);
/// Short waits in a row before a worker stays awake: on a machine whose cores are all taken
/// it does so in vain, and then it has to be seldom.
const QUICK_WAITS: u32 = 16;
/// Rounds of the processor's own pause between two looks, some hundred nanoseconds.
const LOOK_PAUSE: u32 = 16;

impl Pool {
    pub(super) fn new(router: Router, workers: usize, limits: Limits) -> io::Result<Arc<Self>> {
        // The clients are on this machine too, and one core at least is theirs: with a worker
        // on each, every answer has a worker and a client contend for one.
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let computing = (cores - 1).clamp(1, workers - 1);
        // Where each read keeps a worker waiting, a core is hardly ever short. All workers wait
        // at the poller, and take one event at a time, for another one would only wait for that.
        let waits = router.reads_may_block();
        let pool = Arc::new(Self {
            router,
            poller: Poller::new()?,
            table: Table::new(limits.connections),
            arrivals: Arrivals::default(),
            permits: CorePermits::new(if waits { workers } else { computing }),
            batch: if waits { 1 } else { BATCH },
            may_stay_awake: cores > 1 && !waits,
            stays_awake: AtomicBool::new(false),
            lane: BackendLane::new(workers - computing),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            stage: Mutex::new(Stage::Serving),
            stage_changed: Condvar::new(),
            deadlines: Deadlines::new(),
            itself: OnceLock::new(),
            limits,
        });
        let _ = pool.itself.set(Arc::downgrade(&pool));
        Ok(pool)
    }

    fn itself(&self) -> Weak<Self> {
        self.itself.get().cloned().unwrap_or_default()
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(super) fn now(&self) -> Millis {
        Millis::try_from(self.started.elapsed().as_millis()).unwrap_or(NEVER)
    }

    /// Takes a new connection in, or turns it away when there are too many.
    pub(super) fn admit(&self, stream: Stream, peer: Peer) {
        let Some(token) = self.table.take_slot() else {
            log::warn!(
                "refused a connection of {peer}: there are {} already",
                self.limits.connections
            );
            response::turn_away(&stream);
            return;
        };
        let deadline = self.now() + millis(self.limits.idle);
        self.table.place(token, Connection::new(stream, peer, token), deadline);
        self.arrivals.push(token);
        self.call_for_arrivals();
    }

    /// Sees that a worker comes for the arrivals. Those that are busy come by themselves:
    /// a worker looks for arrivals after it has said that it polls, so either it sees this
    /// one or it is seen to poll.
    fn call_for_arrivals(&self) {
        if self.permits.is_polled() {
            self.poller.call();
        }
    }

    /// The life of a worker.
    pub(super) fn work(&self) {
        let mut buffers = Buffers::default();
        WOKEN.set((self.itself(), Vec::new()));
        self.permits.enter();
        loop {
            WOKEN.with_borrow_mut(|(_, woken)| buffers.agenda.woken.extend(woken.drain(..)));
            if let Some(token) = buffers.agenda.woken.pop_front() {
                self.serve(self.table.slot(token), &mut buffers);
                continue;
            }
            if let Some(token) = buffers.agenda.handed.pop() {
                let slot = self.table.slot(token);
                slot.set_lane_entered();
                self.serve(slot, &mut buffers);
                continue;
            }
            if let Some(token) = buffers.agenda.take_due() {
                self.serve(self.table.slot(token), &mut buffers);
                continue;
            }
            match buffers.agenda.ready.pop_front() {
                Some(Event::Ready { token, hung_up }) => {
                    let slot = self.table.slot(token);
                    if hung_up {
                        slot.set_hung_up();
                    }
                    self.serve(slot, &mut buffers);
                }
                Some(Event::End) => return,
                None => {
                    let arrivals_served = &mut buffers.agenda.arrivals_served;
                    // New connections must not keep it from those that the poller tells of.
                    if *arrivals_served < BATCH
                        && let Some(token) = self.arrivals.pop()
                    {
                        *arrivals_served += 1;
                        self.serve(self.table.slot(token), &mut buffers);
                        continue;
                    }
                    *arrivals_served = 0;
                    if let Err(error) = self.wait(&mut buffers.agenda) {
                        log::error!("the poller failed, and this worker ends: {error}");
                        return;
                    }
                }
            }
        }
    }

    /// Waits for what is next: asleep, or awake while one thing comes hard upon another.
    fn wait(&self, agenda: &mut Agenda) -> io::Result<()> {
        if let Some(patience) = agenda.patience() {
            // Timers are too coarse for this. Those who are waited for may need the core.
            return self.linger(agenda, patience, thread::yield_now).map(|_| ());
        }
        if self.may_stay_awake && agenda.quick_waits >= QUICK_WAITS && self.stay_awake(agenda)? {
            return Ok(());
        }
        let since = Instant::now();
        self.permits.while_polling(|| {
            let only_look = !self.arrivals.is_empty();
            self.poller.wait(&mut agenda.ready, self.batch, only_look)
        })?;
        let was_quick = since.elapsed() < LONGEST_AWAKE;
        agenda.quick_waits = if was_quick { agenda.quick_waits.saturating_add(1) } else { 0 };
        Ok(())
    }

    /// Stays awake for what comes next, if no other worker does: to sleep and be woken takes
    /// longer than to answer, and costs the client that has to wake this worker as well.
    fn stay_awake(&self, agenda: &mut Agenda) -> io::Result<bool> {
        if self.permits.is_exceeded() || self.stays_awake.swap(true, Ordering::Acquire) {
            return Ok(false);
        }
        let pause = || (0..LOOK_PAUSE).for_each(|_| spin_loop());
        let has_come = self.linger(agenda, LONGEST_AWAKE, pause);
        self.stays_awake.store(false, Ordering::Release);
        if let Ok(false) = has_come {
            agenda.quick_waits = 0;
        }
        has_come
    }

    /// Looks again and again whether something has come, and says so; gives up after a
    /// while.
    fn linger(&self, agenda: &mut Agenda, longest: Duration, pause: impl Fn()) -> io::Result<bool> {
        let since = Instant::now();
        loop {
            self.poller.wait(&mut agenda.ready, self.batch, true)?;
            if !agenda.ready.is_empty() || !self.arrivals.is_empty() {
                return Ok(true);
            }
            if since.elapsed() >= longest {
                return Ok(false);
            }
            pause();
        }
    }

    /// Gives the connection in the slot its turn.
    fn serve(&self, slot: &Slot, buffers: &mut Buffers) {
        let mut ended = None;
        slot.wake(|place| {
            let Some(connection) = place else { return };
            let lane_entered = slot.take_lane_entered();
            if slot.take_hung_up() {
                connection.hear_hangup();
            }
            let progress =
                connection.turn(self, buffers, self.now(), slot.deadline(), lane_entered);
            ended = ended.or(self.settle(slot, place, &progress));
        });
        self.release(ended);
    }

    /// Looks whether the connection in the slot is overdue or should end, without serving
    /// it: for threads that are no workers.
    fn check(&self, slot: &Slot) {
        let mut ended = None;
        slot.wake(|place| {
            let Some(connection) = place else { return };
            if slot.take_hung_up() {
                connection.hear_hangup();
            }
            let progress = connection.check(self, slot.deadline());
            // An event that a worker heard of and left to this thread is told again.
            if !matches!(progress, Progress::Done)
                && let Err(error) = connection.nudge(&self.poller)
            {
                log::error!("a connection could not be watched: {error}");
            }
            ended = ended.or(self.settle(slot, place, &progress));
        });
        self.release(ended);
    }

    /// Gives the token of the connection if that has ended.
    fn settle(
        &self,
        slot: &Slot,
        place: &mut Option<Connection>,
        progress: &Progress,
    ) -> Option<u64> {
        match *progress {
            Progress::Open { deadline } => {
                slot.set_deadline(deadline);
                None
            }
            Progress::Asking { deadline } => {
                slot.set_deadline(deadline);
                self.deadlines.announce(deadline);
                None
            }
            Progress::Done => place.take().map(|connection| {
                let token = connection.token();
                connection.close(&self.poller);
                token
            }),
        }
    }

    /// Gives back the slot of a connection that has ended. Not before it is let go of, or
    /// who takes it next would have to wait for that.
    fn release(&self, ended: Option<u64>) {
        if let Some(token) = ended {
            self.table.release_slot(token);
        }
    }

    /// Carries a call out: with others looking after what comes if it may take long, in the
    /// lane as well if it may block, or, if it can, by a request that
    /// others wait for, which is then left in `joined`; for such a call it is called again
    /// when that is ready. Connections that enter the lane after this call, or are woken by
    /// it, are handed to the worker.
    pub(super) fn answer(
        &self,
        call: &Call,
        body: &[u8],
        token: u64,
        mut lane_entered: bool,
        agenda: &mut Agenda,
    ) -> Outcome {
        let may_block = self.router.may_block(call);
        if !may_block {
            if lane_entered {
                self.leave_lane(agenda);
            }
            let takes_long = self.router.may_take_long(call);
            if takes_long {
                self.pass_on(agenda);
                self.permits.leave();
            }
            let answer = self.carry_out(call, body);
            if takes_long {
                self.permits.reenter();
            }
            return Outcome::Answered(answer);
        }
        lane_entered = lane_entered || self.lane.enter_or_queue(token);
        if !lane_entered {
            return Outcome::Queued;
        }
        self.pass_on(agenda);
        self.permits.leave();
        let answer = self.carry_out(call, body);
        self.permits.reenter();
        self.leave_lane(agenda);
        Outcome::Answered(answer)
    }

    pub(super) fn leave_lane(&self, agenda: &mut Agenda) {
        agenda.handed.extend(self.lane.leave());
    }

    /// Has other workers told of what this one was to do next, for it will be busy.
    fn pass_on(&self, agenda: &mut Agenda) {
        for event in agenda.ready.drain(..) {
            // The end is told again and again anyway.
            if let Event::Ready { token, hung_up } = event {
                let slot = self.table.slot(token);
                if hung_up {
                    slot.set_hung_up();
                }
                self.check(slot);
            }
        }
        let put_off = agenda.put_off.drain(..).map(|(_, token)| token);
        for token in agenda.woken.drain(..).chain(put_off) {
            self.check(self.table.slot(token));
        }
        if !self.arrivals.is_empty() {
            self.call_for_arrivals();
        }
    }

    /// A panic in one request is that request's failure only.
    fn carry_out(&self, call: &Call, body: &[u8]) -> Answer {
        let answer = || self.router.answer(call, body);
        catch_unwind(AssertUnwindSafe(answer))
            .unwrap_or_else(|_| Answer::error(500, "internal error; see the service's log"))
    }

    /// The life of the thread that looks after deadlines. Nobody has to wake it when one
    /// changes, unless that may be sooner than the shortest limit.
    pub(super) fn watch_deadlines(&self) {
        let limits = &self.limits;
        let longest_sleep = millis(limits.request.min(limits.idle).min(limits.write)).max(1);
        let is_over = || *self.stage() == Stage::Ended;
        while !is_over() {
            self.deadlines.look();
            let now = self.now();
            let mut next = now + longest_sleep;
            for slot in self.table.slots() {
                let deadline = slot.deadline();
                if deadline <= now {
                    self.check(slot);
                } else {
                    next = next.min(deadline);
                }
            }
            self.deadlines.sleep(now, next, is_over);
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends idle connections now and the others with their next answer.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.reach(Stage::Stopping);
        for slot in self.table.slots() {
            self.check(slot);
        }
    }

    pub(super) fn wait_until_stopping(&self) {
        let mut stage = self.stage();
        while *stage < Stage::Stopping {
            stage = self.stage_changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn wait_until_drained(&self) -> bool {
        self.table.wait_until_empty(self.limits.drain)
    }

    /// Sends the workers home.
    pub(super) fn end(&self) {
        self.reach(Stage::Ended);
        self.permits.end();
        self.poller.end();
    }

    fn reach(&self, stage: Stage) {
        *self.stage() = stage;
        self.stage_changed.notify_all();
        self.deadlines.wake();
    }
}

pub(super) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(NEVER / 2)
}
