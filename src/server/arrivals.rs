//! New connections on their way from the accept loop to the workers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The tokens of connections that have not had their first turn, oldest first.
///
/// A new client has mostly sent its request by the time that a worker looks, and one that
/// makes a connection for each request is answered and gone after one turn. So the poller
/// hears of a connection only when it outlives its first turn.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    tokens: Mutex<VecDeque<u64>>,
    /// How many there are: most looks find none, and need no lock.
    count: AtomicUsize,
}

impl Arrivals {
    fn tokens(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection. Who does so must then see to a worker, if any is waiting.
    pub(super) fn push(&self, token: u64) {
        let mut tokens = self.tokens();
        tokens.push_back(token);
        self.count.store(tokens.len(), Ordering::SeqCst);
    }

    pub(super) fn pop(&self) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let mut tokens = self.tokens();
        let token = tokens.pop_front();
        self.count.store(tokens.len(), Ordering::SeqCst);
        token
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }
}
