//! Models of the two places where threads meet: the service's own code, on locks that let a
//! scheduler choose the order of every step. Each model runs for some seconds, in a new order each
//! time, and fails if a promise is broken or all threads wait. A failure prints the schedule, which
//! `shuttle::replay` repeats.
//!
//! The code under test names its parts by paths such as `super::poll`. Here those lead to models of
//! the kernel, of clients and of Vault.

extern crate self as crossbeam_channel;

mod channel;
mod hashicorp;
mod router;
mod server;

/// Stands in for src/sync.rs.
mod sync {
    pub(crate) use shuttle::sync::*;
}

/// Stands in for src/caller.rs.
mod caller {
    pub type Peer = ();
}

pub use channel::{Receiver, RecvError, RecvTimeoutError, Sender};

use std::time::{Duration, Instant};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

/// A name and what it explores.
type Model = (&'static str, fn());

const MODELS: [Model; 6] = [
    ("hand-over: every request is answered", server::models::every_request_is_answered),
    ("hand-over: the queue is full", server::models::the_queue_is_full),
    ("hand-over: making room", server::models::making_room),
    ("hand-over: overdue connections", server::models::overdue_connections),
    ("hand-over: draining", server::models::draining),
    ("single-flight", hashicorp::each_caller_gets_its_own_outcome),
];

/// Seconds for each model, unless the first argument says otherwise.
const SECONDS: u64 = 16;

fn main() {
    let seconds = std::env::args().nth(1).map_or(SECONDS, |it| it.parse().expect("seconds"));
    for (name, model) in MODELS {
        let half = Duration::from_secs(seconds) / 2;
        // Any thread at each step; and few changes of priority, which finds what needs a long wait.
        let orders = explore(half, model, RandomScheduler::new)
            + explore(half, model, |orders| PctScheduler::new(3, orders));
        println!("{name}: {orders} orders in {seconds} s, all fine");
    }
}

fn explore<S: Scheduler + 'static>(
    time: Duration,
    model: fn(),
    scheduler: fn(usize) -> S,
) -> usize {
    const ORDERS: usize = 100;
    let (start, mut explored) = (Instant::now(), 0);
    while start.elapsed() < time {
        let mut config = Config::new();
        config.stack_size = 0x2_0000;
        explored += Runner::new(scheduler(ORDERS), config).run(model);
    }
    explored
}
