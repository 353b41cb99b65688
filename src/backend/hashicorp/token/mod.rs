//! The token: handed out to requests, and replaced when it is dead.
//!
//! [`Keeper`] obtains, renews and replaces tokens, behind a lock: however many requests meet
//! a dead token at once, one of them logs in and the others wait. A thread renews the token
//! in time; it sleeps on a channel until the next step is due or changes.

mod keeper;
mod login;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::backend::{RenewalState, RenewalStatus};
use crate::secret::{Secret, WatchedSecret};

use super::http::Http;
use super::message::Unavailable;
use super::settings::Settings;
use super::{clock, lock};
use keeper::Keeper;

/// A token.
pub(super) struct Token {
    pub(in crate::backend::hashicorp) value: Secret,
    /// How many more requests it is good for, if that is limited.
    uses_left: Option<AtomicU64>,
    /// Keeps the token registered for as long as it is held.
    _watched: Option<WatchedSecret>,
}

impl Token {
    /// Takes one of its uses, if there is one left.
    fn take_use(&self) -> bool {
        self.uses_left.as_ref().is_none_or(|left| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
        })
    }
}

/// The token now. Requests and `/health` read it without waiting for the keeper.
struct Current {
    token: Option<Arc<Token>>,
    expires: Option<Duration>,
    state: RenewalState,
    last_error: Option<String>,
}

/// Hands out tokens.
pub(super) struct Tokens {
    http: Arc<Http>,
    current: Arc<Mutex<Current>>,
    keeper: Arc<Mutex<Keeper>>,
    /// The thread that renews the token, and the channel that wakes it. The thread ends when
    /// the channel is dropped.
    renewal: Mutex<Option<(JoinHandle<()>, Sender<()>)>>,
}

impl Tokens {
    /// Does nothing yet: the first request starts the thread.
    pub(super) fn new(http: Arc<Http>) -> Self {
        let state = RenewalState::Idle;
        let current = Current { token: None, expires: None, state, last_error: None };
        let current = Arc::new(Mutex::new(current));
        let keeper = Keeper::new(Arc::clone(&http), Arc::clone(&current));
        Self { http, current, keeper: Arc::new(Mutex::new(keeper)), renewal: Mutex::default() }
    }

    /// The token for one request. There is none if an agent adds its own.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if none can be obtained.
    pub(super) fn token(&self) -> Result<Option<Arc<Token>>, Unavailable> {
        if let Settings { token: None, app_role: None, .. } = self.http.settings {
            return Ok(None);
        }
        let current = lock(&self.current).token.clone();
        match current {
            Some(token) if token.take_use() => Ok(Some(token)),
            _ => self.with_keeper(Keeper::needed).map(Some),
        }
    }

    /// Finds out why the server refused a request with this token. Returns another token if
    /// this one is dead, and `None` if it is valid and the request itself was refused.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the token is dead and no other can be obtained, or if the server does
    /// not tell whether it is dead.
    pub(super) fn rejected(&self, token: &Arc<Token>) -> Result<Option<Arc<Token>>, Unavailable> {
        self.with_keeper(|keeper| keeper.rejected(token))
    }

    /// Uses the keeper. A failure while this call waits for it is the failure of this call
    /// too, so that those that wait together do not fail one after the other.
    fn with_keeper<T>(
        &self,
        act: impl FnOnce(&mut Keeper) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        let asked = clock::now();
        let wake = self.renewal()?;
        let mut keeper = lock(&self.keeper);
        if let Some((at, error)) = &keeper.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        let outcome = act(&mut keeper);
        if let Err(error) = &outcome {
            keeper.failed = Some((clock::now(), error.clone()));
        }
        // The next step may be due earlier now. If the channel is full, the thread wakes anyway.
        let _ = wake.try_send(());
        outcome
    }

    /// Starts the thread if it does not run, and returns the channel that wakes it.
    fn renewal(&self) -> Result<Sender<()>, Unavailable> {
        let mut renewal = lock(&self.renewal);
        if self.http.is_closed() {
            return Err(Unavailable::new("the vault is closed"));
        }
        if let Some((_, wake)) = &*renewal {
            return Ok(wake.clone());
        }
        let (wake, woken) = bounded(1);
        let keeper = Arc::clone(&self.keeper);
        let thread = thread::Builder::new()
            .name("vault-token".to_owned())
            .spawn(move || keep_alive(&keeper, &woken))
            .map_err(|error| Unavailable::new(format!("no thread could be started: {error}")))?;
        *renewal = Some((thread, wake.clone()));
        Ok(wake)
    }

    pub(super) fn status(&self) -> RenewalStatus {
        let current = lock(&self.current);
        RenewalStatus {
            state: current.state,
            ttl: current.expires.map(|expires| expires.saturating_sub(clock::now())),
            last_error: current.last_error.clone(),
        }
    }

    /// Waits for the thread to end: it ends at once if it sleeps, else after its request. The
    /// token is wiped when no request uses it any more.
    pub(super) fn close(&self) {
        self.http.close();
        if let Some((thread, wake)) = lock(&self.renewal).take() {
            drop(wake);
            if thread.join().is_err() {
                log::error!("the thread that renews the Vault token panicked");
            }
        }
        lock(&self.current).token = None;
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.close();
    }
}

/// Takes the keeper's steps when they are due, until the channel is closed. A step that panics
/// is repeated like one that fails.
fn keep_alive(keeper: &Mutex<Keeper>, woken: &Receiver<()>) {
    /// A channel's time-out does not count the time that the machine is suspended, so the
    /// clock is checked in between.
    const LONGEST_WAIT: Duration = Duration::from_secs(15);

    loop {
        let step = catch_unwind(AssertUnwindSafe(|| lock(keeper).take_due_step()));
        let wait = step.unwrap_or_else(|_| lock(keeper).recover());
        if woken.recv_timeout(wait.min(LONGEST_WAIT)) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}
