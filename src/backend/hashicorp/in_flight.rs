//! The requests that may be under way at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::transport::{LastLink, Link};

use super::clock;

/// The requests that may be under way, each with a connection of its own. The one that was
/// used last is taken first: the server has it at hand, and those that are not needed age.
#[derive(Debug)]
pub(super) struct InFlight {
    seats: Mutex<Seats>,
    left: Condvar,
}

#[derive(Debug)]
struct Seats {
    free: Vec<Seat>,
    waiting: usize,
}

/// An HTTP client that keeps one connection.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) agent: ureq::Agent,
    /// Its connection, once it has one.
    pub(super) link: LastLink,
    used: Duration,
}

impl Seat {
    pub(super) fn new(agent: ureq::Agent, link: LastLink) -> Self {
        Self { agent, link, used: Duration::ZERO }
    }
}

/// An idle connection is not kept longer than this; servers and proxies close theirs after
/// one minute or more.
pub(super) const MAX_IDLE: Duration = Duration::from_secs(50);

/// The right to one request, and what sends it.
#[derive(Debug)]
pub(super) struct Place {
    in_flight: Arc<InFlight>,
    seat: Option<Seat>,
}

impl InFlight {
    pub(super) fn new(free: Vec<Seat>) -> Arc<Self> {
        let seats = Mutex::new(Seats { free, waiting: 0 });
        Arc::new(Self { seats, left: Condvar::new() })
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(self: &Arc<Self>, seat: Seat) -> Place {
        Place { in_flight: Arc::clone(self), seat: Some(seat) }
    }

    /// Waits for a place, until the deadline.
    pub(super) fn enter(self: &Arc<Self>, deadline: Duration) -> Option<Place> {
        let mut seats = self.seats();
        loop {
            if let Some(seat) = seats.free.pop() {
                return Some(self.place(seat));
            }
            let time = deadline.checked_sub(clock::now())?;
            seats.waiting += 1;
            seats = self.left.wait_timeout(seats, time).unwrap_or_else(PoisonError::into_inner).0;
            seats.waiting -= 1;
        }
    }

    /// A place with a connection, when both are at hand and nobody waits for one.
    pub(super) fn enter_at_once(self: &Arc<Self>) -> Option<(Place, Arc<Link>)> {
        let mut seats = self.seats();
        let seat = seats.free.last().filter(|_| seats.waiting == 0)?;
        if clock::now().saturating_sub(seat.used) >= MAX_IDLE {
            return None;
        }
        let link = seat.link.get().filter(|link| !link.is_spoilt())?;
        let seat = seats.free.pop()?;
        Some((self.place(seat), link))
    }
}

impl Place {
    pub(super) fn agent(&self) -> &ureq::Agent {
        &self.seat.as_ref().expect("it is there until the drop").agent
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(mut seat) = self.seat.take() else { return };
        seat.used = clock::now();
        let mut seats = self.in_flight.seats();
        seats.free.push(seat);
        if seats.waiting > 0 {
            self.in_flight.left.notify_one();
        }
    }
}
