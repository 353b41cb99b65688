//! The token: handed out to requests, and replaced when it is dead.
//!
//! [`Keeper`] obtains, renews and replaces tokens, behind a lock: however many requests meet
//! a dead token at once, one of them logs in and the others wait. A thread renews the token
//! in time; it sleeps on a channel until the next step is due or changes.

mod keeper;
mod login;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::backend::{RenewalState, RenewalStatus};
use crate::secret::{Secret, WatchedSecret};

use super::clock;
use super::http::Http;
use super::message::Unavailable;
use super::settings::Settings;
use keeper::Keeper;

/// A token.
pub(super) struct Token {
    pub(in crate::backend::hashicorp) value: Secret,
    /// How many more requests it is good for, if that is limited.
    uses_left: Option<AtomicU64>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    watched: Option<WatchedSecret>,
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

/// Hands out tokens.
pub(super) struct Tokens {
    shared: Arc<Shared>,
    keeper: Arc<Mutex<Keeper>>,
    /// The thread that renews the token, and what wakes it. If that is dropped, it ends.
    renewal: Mutex<Option<(JoinHandle<()>, Sender<()>)>>,
}

/// The state that the keeper and the requests share.
struct Shared {
    http: Arc<Http>,
    settings: Settings,
    token: RwLock<Option<Arc<Token>>>,
    status: Mutex<Status>,
}

struct Status {
    state: RenewalState,
    expires: Option<Duration>,
    last_error: Option<String>,
}

impl Shared {
    fn token(&self) -> Option<Arc<Token>> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_token(&self, token: Option<Arc<Token>>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self, secret: &Secret) -> Option<WatchedSecret> {
        self.settings.secret_watch.as_ref().map(|watch| watch.tell(secret))
    }
}

impl Tokens {
    /// Does nothing yet: the first request starts the thread.
    pub(super) fn new(settings: Settings, http: Arc<Http>) -> Self {
        let status = Status { state: RenewalState::Idle, expires: None, last_error: None };
        let shared = Arc::new(Shared {
            http,
            settings,
            token: RwLock::new(None),
            status: Mutex::new(status),
        });
        let keeper = Arc::new(Mutex::new(Keeper::new(Arc::clone(&shared))));
        Self { shared, keeper, renewal: Mutex::new(None) }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// The token for one request. There is none if an agent adds its own.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if none can be obtained.
    pub(super) fn token(&self) -> Result<Option<Arc<Token>>, Unavailable> {
        if let Settings { token: None, app_role: None, .. } = self.settings() {
            return Ok(None);
        }
        match self.shared.token() {
            Some(token) if token.take_use() => Ok(Some(token)),
            _ => self.with_keeper(Keeper::needed).map(Some),
        }
    }

    /// Finds out why the server refused a request with this token: returns another token if
    /// it was dead, and `None` if it is valid, so that the request itself was refused.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the token is dead and no other can be obtained, or if that cannot be
    /// found out.
    pub(super) fn rejected(&self, token: &Arc<Token>) -> Result<Option<Arc<Token>>, Unavailable> {
        self.with_keeper(|keeper| keeper.rejected(token))
    }

    /// Uses the keeper. A failure while this call waits for it is the failure of this call
    /// too, so that those who wait together do not fail one after the other.
    fn with_keeper<T>(
        &self,
        act: impl FnOnce(&mut Keeper) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        let asked = clock::now();
        let changed = self.renewal()?;
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
        // Its next step may be due now. If it has been woken already, it will see that.
        let _ = changed.try_send(());
        outcome
    }

    /// Starts the thread if it does not run, and returns what wakes it.
    fn renewal(&self) -> Result<Sender<()>, Unavailable> {
        let mut renewal = lock(&self.renewal);
        if self.shared.http.is_closed() {
            return Err(Unavailable::new("the vault is closed"));
        }
        if let Some((_, changed)) = &*renewal {
            return Ok(changed.clone());
        }
        let (changed, wake) = bounded(1);
        let keeper = Arc::clone(&self.keeper);
        let thread = thread::Builder::new()
            .name("vault-token".to_owned())
            .spawn(move || keep_alive(&keeper, &wake))
            .map_err(|error| Unavailable::new(format!("no thread could be started: {error}")))?;
        *renewal = Some((thread, changed.clone()));
        Ok(changed)
    }

    pub(super) fn status(&self) -> RenewalStatus {
        let status = self.shared.status();
        RenewalStatus {
            state: status.state,
            ttl: status.expires.map(|expires| expires.saturating_sub(clock::now())),
            last_error: status.last_error.clone(),
        }
    }

    /// Ends the thread: at once if it sleeps, else when its request has ended. The token is
    /// wiped when the last request has used it.
    pub(super) fn close(&self) {
        self.shared.http.close();
        if let Some((thread, changed)) = lock(&self.renewal).take() {
            drop(changed);
            if thread.join().is_err() {
                log::error!("the thread that renews the Vault token panicked");
            }
        }
        self.shared.set_token(None);
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the keeper's steps when they are due, until the channel is closed.
fn keep_alive(keeper: &Mutex<Keeper>, wake: &Receiver<()>) {
    /// A channel's time-out does not count the time that the machine is suspended, so the
    /// clock is checked in between.
    const LONGEST_WAIT: Duration = Duration::from_secs(15);

    loop {
        let plan = lock(keeper).plan;
        let wait = plan.map_or(LONGEST_WAIT, |(at, _)| at.saturating_sub(clock::now()));
        match wake.recv_timeout(wait.min(LONGEST_WAIT)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => lock(keeper).take_due_step(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
