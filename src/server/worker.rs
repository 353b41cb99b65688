//! The two pools: I/O workers, which never wait for a backend, and blocking workers, which do.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Sender, select};

use crate::caller::Peer;
use crate::router::{Answer, Call, Router};

use super::Limits;
use super::connection::{Connection, Next};
use super::parked::Parked;
use super::poll::{END, Poller};

/// The state that all threads of the server share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) router: Arc<Router>,
    pub(super) limits: Limits,
    pub(super) parked: Parked,
    /// Tells the accept loop of clients that wait.
    pub(super) clients: Poller,
    pub(super) is_stopping: AtomicBool,
    pub(super) jobs: Sender<Job>,
}

/// A request that may block, with its connection.
#[derive(Debug)]
pub(super) struct Job {
    connection: Box<Connection>,
    call: Call,
}

/// How many requests wait for a blocking worker, at most.
pub(super) const MAX_QUEUED: usize = 512;

/// Disconnected when the server has ended.
pub(super) type Ended = Receiver<Infallible>;

impl Shared {
    /// The life of an I/O worker: it serves what the poller finds ready.
    pub(super) fn serve_ready(&self) {
        let mut tokens = Vec::new();
        loop {
            if let Err(error) = self.parked.poller.wait(&mut tokens) {
                log::error!("the poller failed, and this worker ends: {error}");
                return;
            }
            for token in tokens.drain(..) {
                if token == END {
                    return;
                }
                if let Some(mut connection) = self.parked.take(token) {
                    let next = connection.turn(self);
                    self.settle(connection, next);
                }
            }
        }
    }

    /// The life of a blocking worker: it carries out what may wait for a backend.
    pub(super) fn serve_blocking(&self, jobs: &Receiver<Job>, ended: &Ended) {
        loop {
            let job = select! { recv(jobs) -> job => job, recv(ended) -> _ => Err(RecvError) };
            let Ok(Job { mut connection, call }) = job else { return };
            let answer = self.answer(&call, connection.body(), &connection.peer);
            let next = connection.answered(answer, self);
            self.settle(connection, next);
        }
    }

    /// The life of the thread that ends overdue connections. It looks once a second, or once in the
    /// shortest limit. So a deadline may be exceeded by that.
    pub(super) fn sweep(&self, ended: &Ended) {
        let Limits { request, idle, write, .. } = self.limits;
        let pause = request.min(idle).min(write).min(Duration::from_secs(1));
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
            for mut connection in self.parked.take_overdue(Instant::now()) {
                let next = connection.expire(self);
                self.settle(connection, next);
            }
        }
    }

    /// Sends a connection where its turn has left it.
    fn settle(&self, mut connection: Box<Connection>, mut next: Next) {
        loop {
            let call = match next {
                Next::Park(interest) => return self.parked.park(connection, interest),
                Next::Close => return self.parked.close(connection),
                Next::Block(call) => call,
            };
            let Err(full) = self.jobs.try_send(Job { connection, call }) else { return };
            let busy =
                Answer::error(503, "too many requests wait for the backend; try again later")
                    .with_header("Retry-After", "1");
            connection = full.into_inner().connection;
            next = connection.answered(busy, self);
        }
    }

    /// Carries a call out. A panic fails this request only.
    pub(super) fn answer(&self, call: &Call, body: &[u8], peer: &Peer) -> Answer {
        catch_unwind(AssertUnwindSafe(|| self.router.answer(call, body, peer)))
            .unwrap_or_else(|_| Answer::error(500, "internal error; see the service's log"))
    }
}
