//! The requests that came, for tests that count them; never a value, never a token.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use super::DEADLINE;
use super::exchange::Call;

/// One request.
#[derive(Debug, Clone)]
pub struct Entry {
    pub method: String,
    /// Without `/v1/`.
    pub path: String,
    /// `version=3`, `list=true`: as it came.
    pub query: String,
    pub namespace: String,
    /// Whether it said `X-Vault-Request: true`.
    pub vault_request: bool,
    /// The accessor of the token that it came with, if that one was alive.
    pub accessor: Option<String>,
    /// Which connection it came over; they count from 1.
    pub connection: u64,
    pub began: Instant,
    /// When its answer began to be written, or it was given up.
    pub ended: Option<Instant>,
    /// The status of its answer; `None` for a request that got none.
    pub status: Option<u16>,
}

impl Entry {
    pub fn is(&self, method: &str, path: &str) -> bool {
        self.method == method && self.path.starts_with(path)
    }
}

#[derive(Default)]
pub struct Journal {
    pages: Mutex<Pages>,
    changed: Condvar,
}

#[derive(Default)]
struct Pages {
    entries: Vec<Entry>,
    /// How many have been forgotten: a request's number stays what it is.
    forgotten: usize,
}

impl Journal {
    pub fn begin(&self, call: &Call, accessor: Option<String>, connection: u64) -> usize {
        let query = call.query.iter().map(|(name, value)| format!("{name}={value}"));
        let entry = Entry {
            method: call.method.clone(),
            path: call.path.clone(),
            query: query.collect::<Vec<_>>().join("&"),
            namespace: call.namespace.clone(),
            vault_request: call.vault_request,
            accessor,
            connection,
            began: Instant::now(),
            ended: None,
            status: None,
        };
        let mut pages = self.pages();
        let number = pages.forgotten + pages.entries.len();
        pages.entries.push(entry);
        self.changed.notify_all();
        number
    }

    pub fn end(&self, number: usize, status: Option<u16>) {
        let mut pages = self.pages();
        let at = number.checked_sub(pages.forgotten);
        if let Some(entry) = at.and_then(|at| pages.entries.get_mut(at)) {
            entry.ended = Some(Instant::now());
            entry.status = status;
        }
        self.changed.notify_all();
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.pages().entries.clone()
    }

    /// Forgets what came so far.
    pub fn clear(&self) {
        let mut pages = self.pages();
        pages.forgotten += pages.entries.len();
        pages.entries.clear();
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, condition: impl Fn(&[Entry]) -> bool) {
        let end = Instant::now() + DEADLINE;
        let mut pages = self.pages();
        while !condition(&pages.entries) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Not while the lock is held: others would trip over it.
                drop(pages);
                panic!("not within {DEADLINE:?}: {what}");
            }
            let wait = self.changed.wait_timeout(pages, left);
            pages = wait.expect("nothing panics while it is held").0;
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().expect("nothing panics while it is held")
    }
}

/// How many of these requests were under way at once, at most.
pub fn most_at_once<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> usize {
    let mut moments: Vec<(Instant, bool)> = Vec::new();
    for entry in entries {
        moments.push((entry.began, true));
        moments.extend(entry.ended.map(|ended| (ended, false)));
    }
    // An end before a beginning at the same instant.
    moments.sort_unstable();
    let (mut now, mut most) = (0, 0);
    for (_, begins) in moments {
        now = if begins { now + 1 } else { now - 1 };
        most = most.max(now);
    }
    most
}
