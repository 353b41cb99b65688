//! The pool: a fixed number of workers that serve whichever connection is ready.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Peer;
use crate::router::{Answer, Call, Router};

use super::Limits;
use super::connection::{Connection, Progress, Stream};
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
    permits: CorePermits,
    /// Events that a worker takes at a time.
    batch: usize,
    lane: BackendLane,
    started: Instant,
    draining: AtomicBool,
    stage: Mutex<Stage>,
    stage_changed: Condvar,
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
}

impl Pool {
    pub(super) fn new(router: Router, workers: usize, limits: Limits) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from).min(workers - 1);
        // Where nearly every request waits for a backend, a core is hardly ever short, and
        // an event that a worker takes with another one only waits for that.
        let (computing, batch) =
            if router.reads_may_block() { (workers, 1) } else { (cores, BATCH) };
        Ok(Self {
            router,
            poller: Poller::new()?,
            table: Table::new(limits.connections),
            permits: CorePermits::new(computing),
            batch,
            lane: BackendLane::new(workers - cores),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            stage: Mutex::new(Stage::Serving),
            stage_changed: Condvar::new(),
            limits,
        })
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
        let connection = Connection::new(stream, peer, token);
        if let Err(error) = self.table.place(token, connection, deadline, &self.poller) {
            log::error!("a connection could not be watched: {error}");
        }
    }

    /// The life of a worker.
    pub(super) fn work(&self) {
        let mut buffers = Buffers::default();
        self.permits.enter();
        loop {
            if let Some(token) = buffers.agenda.handed.pop() {
                let slot = self.table.slot(token);
                slot.set_lane_entered();
                self.serve(slot, &mut buffers);
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
                    let ready = &mut buffers.agenda.ready;
                    if let Err(error) =
                        self.permits.while_polling(|| self.poller.wait(ready, self.batch))
                    {
                        log::error!("the poller failed, and this worker ends: {error}");
                        return;
                    }
                }
            }
        }
    }

    /// Gives the connection in the slot its turn.
    fn serve(&self, slot: &Slot, buffers: &mut Buffers) {
        slot.wake(|place| {
            let Some(connection) = place else { return };
            let lane_entered = slot.take_lane_entered();
            if slot.take_hung_up() {
                connection.hear_hangup();
            }
            let progress =
                connection.turn(self, buffers, self.now(), slot.deadline(), lane_entered);
            self.settle(slot, place, &progress);
        });
    }

    /// Looks whether the connection in the slot is overdue or should end, without serving
    /// it: for threads that are no workers.
    fn check(&self, slot: &Slot) {
        slot.wake(|place| {
            let Some(connection) = place else { return };
            if slot.take_hung_up() {
                connection.hear_hangup();
            }
            let progress = connection.check(self, slot.deadline());
            // An event that a worker heard of and left to this thread is told again.
            if let Progress::Open { .. } = progress
                && let Err(error) = connection.nudge(&self.poller)
            {
                log::error!("a connection could not be watched: {error}");
            }
            self.settle(slot, place, &progress);
        });
    }

    fn settle(&self, slot: &Slot, place: &mut Option<Connection>, progress: &Progress) {
        match *progress {
            Progress::Open { deadline } => slot.set_deadline(deadline),
            Progress::Done => {
                if let Some(connection) = place.take() {
                    self.table.release_slot(connection.token());
                }
            }
        }
    }

    /// Carries a call out, in the lane if it may block. `None`: the lane is full, and the
    /// connection under `token` is queued for it. Connections that enter the lane after
    /// this call are handed to the worker.
    pub(super) fn answer(
        &self,
        call: &Call,
        body: &[u8],
        token: u64,
        lane_entered: bool,
        agenda: &mut Agenda,
    ) -> Option<Answer> {
        if !self.router.may_block(call) {
            if lane_entered {
                self.leave_lane(agenda);
            }
            return Some(self.carry_out(call, body));
        }
        if !lane_entered && !self.lane.enter_or_queue(token) {
            return None;
        }
        self.pass_on(&mut agenda.ready);
        self.permits.leave();
        let answer = self.carry_out(call, body);
        self.permits.reenter();
        self.leave_lane(agenda);
        Some(answer)
    }

    pub(super) fn leave_lane(&self, agenda: &mut Agenda) {
        agenda.handed.extend(self.lane.leave());
    }

    /// Has other workers told of these events, for this one will be busy.
    fn pass_on(&self, ready: &mut VecDeque<Event>) {
        for event in ready.drain(..) {
            // The end is told again and again anyway.
            if let Event::Ready { token, hung_up } = event {
                let slot = self.table.slot(token);
                if hung_up {
                    slot.set_hung_up();
                }
                self.check(slot);
            }
        }
    }

    /// A panic in one request is that request's failure only.
    fn carry_out(&self, call: &Call, body: &[u8]) -> Answer {
        catch_unwind(AssertUnwindSafe(|| self.router.answer(call, body)))
            .unwrap_or_else(|_| Answer::error(500, "internal error; see the service's log"))
    }

    /// The life of the thread that looks after deadlines.
    ///
    /// A deadline is always set at least the shortest limit ahead, so looking that often,
    /// and when the next known one is due, misses none; nobody has to wake this thread
    /// when a deadline changes.
    pub(super) fn watch_deadlines(&self) {
        let limits = &self.limits;
        let longest_sleep = millis(limits.request.min(limits.idle).min(limits.write)).max(1);
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        while *stage < Stage::Ended {
            let now = self.now();
            let mut next = now + longest_sleep;
            drop(stage);
            for slot in self.table.slots() {
                let deadline = slot.deadline();
                if deadline <= now {
                    self.check(slot);
                } else {
                    next = next.min(deadline);
                }
            }
            stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
            if *stage < Stage::Ended {
                let pause = Duration::from_millis((next - now).max(1));
                stage = self
                    .stage_changed
                    .wait_timeout(stage, pause)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
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
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
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
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.stage_changed.notify_all();
    }
}

pub(super) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(NEVER / 2)
}
