//! The parking lot and the workers, between a model of the kernel and models of clients.

mod connection;
pub mod models;
#[allow(dead_code, reason = "the accept loop of the service uses the rest")]
#[path = "../../../../src/server/parked.rs"]
mod parked;
mod poll;
#[allow(dead_code, reason = "the accept loop of the service uses the rest")]
#[path = "../../../../src/server/worker.rs"]
mod worker;

use std::time::Duration;

/// Stands in for the limits; time does not pass here.
#[derive(Debug)]
pub struct Limits {
    pub request: Duration,
    pub idle: Duration,
    pub write: Duration,
}
