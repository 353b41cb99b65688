//! The `keyring` backend: values in the operating system's keyring. Every call has a deadline.
//!
//! ```text
//! callers --> worker "keyring"       --> thread --> Keyring: the store, may prompt and hang
//!        \--> worker "keyring-watch" --> thread --> Watch: asks "locked?", never prompts
//! ```

#[cfg(not(target_os = "linux"))]
mod common;
mod worker;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod platform;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod platform;
#[cfg(windows)]
#[path = "windows.rs"]
mod platform;

use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use crate::error::VaultError;
use crate::model::{CredentialRef, Namespace};
use crate::secret::Secret;

use self::platform::{Keyring, START, UNLOCK, Watch};
use self::worker::{Ticket, Worker};
use super::{CredentialVault, registered_backends};

/// The name it is registered under.
const BACKEND: &str = "keyring";

/// How long a call may take before the keyring is examined. A healthy keyring answers in a
/// millisecond or two.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long a prompt may be open before its caller is told that the keyring is locked. That of
/// `KWallet` completes by itself if the wallet is open.
const PROMPT_PATIENCE: Duration = Duration::from_secs(2);

/// How long that examination may take. It needs at most two round trips.
const WATCH_PATIENCE: Duration = Duration::from_millis(500);

/// When a client may ask again: a person may have unlocked the keyring by then.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Values in the operating system's keyring, at the places where Python's `keyring`
/// package keeps them: service `com.intentframe.vault.<namespace>`, user name = key.
///
/// A thread keeps one connection. If the keyring restarts, the thread connects again. While the
/// keyring is locked, absent, or waits for a prompt, calls return
/// [`VaultError::BackendUnavailable`] at once. The first call to a locked keyring opens the
/// prompt to unlock it, once for all callers. A store or delete whose caller has been told that
/// it was not done is not done either when the prompt is answered.
///
/// On macOS and Windows a prompt looks like a slow keyring, so calls wait until their deadline.
#[derive(Debug)]
pub struct KeyringVault {
    calls: Worker<Keyring>,
    watch: Worker<Watch>,
    timeout: Duration,
}

/// Where a credential is kept.
#[derive(Debug, Clone)]
struct Place {
    service: String,
    user: String,
}

impl Place {
    fn of(at: &CredentialRef) -> Self {
        Self { service: service_of(at.namespace()), user: at.key().to_owned() }
    }
}

fn service_of(namespace: &Namespace) -> String {
    format!("com.intentframe.vault.{namespace}")
}

/// The failure of a call. Never contains a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Failure {
    /// Only a person can unlock it.
    #[error("it is locked")]
    Locked,
    /// There is no keyring.
    #[error("it cannot be reached ({0})")]
    Absent(String),
    /// This connection no longer works, but a new one may.
    #[error("it failed ({0})")]
    Lost(String),
    #[error("it refused ({0})")]
    Refused(String),
    #[error("what it has is not text; store it again")]
    NotText,
    #[error("it does not answer; nothing was changed")]
    Silent,
    #[error("it did not answer in time, and may still do what was asked")]
    Late,
    #[error("too many calls hang in it")]
    AllHang,
    /// The vault was closed.
    #[error("it was closed, since the service is stopping")]
    Closed,
}

/// Some of these errors carry data, so only those without show their own text.
impl From<keyring_core::Error> for Failure {
    fn from(error: keyring_core::Error) -> Self {
        use keyring_core::Error;
        match error {
            Error::PlatformFailure(cause) => platform::failure_of(cause, Self::Refused),
            Error::NoStorageAccess(cause) => platform::failure_of(cause, Self::Absent),
            // An item was deleted, or a second one made, since the keyring was searched.
            Error::NoEntry | Error::Ambiguous(_) => Self::Lost("its items changed".to_owned()),
            Error::BadEncoding(_) | Error::BadDataFormat(..) => Self::NotText,
            Error::TooLong(..) | Error::Invalid(..) => Self::Refused(error.to_string()),
            Error::NotSupportedByStore(what) | Error::BadStoreFormat(what) => Self::Refused(what),
            _ => Self::Refused("it gave no reason".to_owned()),
        }
    }
}

impl KeyringVault {
    /// A vault whose calls take at most `timeout`. The first call connects.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { calls: Worker::new("keyring"), watch: Worker::new("keyring-watch"), timeout }
    }

    /// Runs a `task` that changes something, once it needs no prompt. The task must be
    /// idempotent, because it may be run again on a new connection.
    fn change<T: Send + 'static>(
        &self,
        at: &CredentialRef,
        is_store: bool,
        task: impl Fn(&Keyring, &Place) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = Place::of(at);
        self.call(move |keyring, ticket| {
            keyring.prepare_change(&place, is_store)?;
            if !ticket.claim() {
                return Err(Failure::Silent);
            }
            task(keyring, &place)
        })
    }

    /// Runs `task` on the keyring's thread, and waits for the result until the deadline.
    fn call<T: Send + 'static>(
        &self,
        task: impl Fn(&Keyring, &Ticket) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.timeout;
        if self.calls.is_stuck() {
            if self.is_locked(deadline)? {
                return Err(Failure::Locked);
            }
            // It was unlocked without the prompt that the thread waits for.
            self.calls.abandon_if_stuck();
        }
        let (ticket, result) = self.calls.submit(move |connection, ticket| {
            connected(connection, ticket, Keyring::open, |keyring| task(keyring, ticket))
        })?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match result.recv_timeout(left.min(PATIENCE)) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if left > PATIENCE => {}
                Err(_) => {
                    let is_untouched = ticket.give_up();
                    self.calls.abandon_if_stuck();
                    return Err(if is_untouched { Failure::Silent } else { Failure::Late });
                }
            }
            let failure = match self.is_locked(deadline) {
                Ok(true) if self.timeout.saturating_sub(left) < PROMPT_PATIENCE => continue,
                Ok(true) => Failure::Locked,
                Ok(false) => {
                    self.calls.abandon_if_stuck();
                    continue;
                }
                // A call that has begun gets an error of its own, or may still succeed. A
                // call that is queued behind it need not wait for that.
                Err(_) if self.calls.is_running(&ticket) => continue,
                Err(failure) => failure,
            };
            if ticket.withdraw() {
                return Err(failure);
            }
        }
    }

    /// Whether the keyring waits for a person to unlock it. Never opens a prompt.
    fn is_locked(&self, deadline: Instant) -> Result<bool, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (ticket, result) = self.watch.submit(|connection, ticket| {
            connected(connection, ticket, Watch::open, Watch::locked)
        })?;
        result.recv_timeout(left.min(WATCH_PATIENCE)).unwrap_or_else(|_| {
            ticket.give_up();
            Err(Failure::Silent)
        })
    }
}

/// The error of a call that fails with `refused` if the keyring answered, but refused.
fn failed(failure: Failure, refused: impl FnOnce(String) -> VaultError) -> VaultError {
    match failure {
        Failure::NotText | Failure::Refused(_) => refused(format!("keyring: {failure}")),
        failure => unavailable(failure),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` calls it")]
fn unavailable(failure: Failure) -> VaultError {
    let advice = match failure {
        Failure::Locked => UNLOCK,
        Failure::Absent(_) => START,
        Failure::Silent => "restart it",
        Failure::Late => "ask again; if that does not help, restart it",
        Failure::AllHang => "answer its prompts or restart it",
        _ => "see its own log",
    };
    let others: Vec<String> =
        registered_backends().into_iter().filter(|name| name != BACKEND).collect();
    VaultError::BackendUnavailable {
        backend: BACKEND.to_owned(),
        reason: format!("{failure}; {advice}; or use another backend ({})", others.join(", ")),
        retry_after: RETRY_AFTER,
    }
}

/// Runs `task` on the kept connection, and opens one if there is none. If the connection is
/// lost, as it is when the keyring restarts, and the caller still waits, it is run once more on
/// a new connection.
fn connected<K, T>(
    connection: &mut Option<K>,
    ticket: &Ticket,
    open: impl Fn() -> Result<K, Failure>,
    task: impl Fn(&K) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut attempt = || {
        let kept = connection.take().map_or_else(&open, Ok)?;
        let result = task(&kept);
        if !matches!(result, Err(Failure::Lost(_))) {
            *connection = Some(kept);
        }
        result
    };
    match attempt() {
        Err(Failure::Lost(why)) if ticket.is_wanted() => {
            log::info!("keyring: connecting again ({why})");
            attempt()
        }
        result => result,
    }
}

impl CredentialVault for KeyringVault {
    fn name(&self) -> &'static str {
        "KeyringVault"
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        let place = Place::of(at);
        let refused = |reason| VaultError::ReadFailed { at: at.clone(), reason };
        self.call(move |keyring, _| keyring.get(&place)).map_err(|failure| failed(failure, refused))
    }

    fn peek(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        match self.is_locked(Instant::now() + self.timeout) {
            Ok(false) => self.get(at),
            Ok(true) => Err(unavailable(Failure::Locked)),
            Err(failure) => Err(unavailable(failure)),
        }
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        let value = value.duplicate();
        let refused = |reason| VaultError::StoreFailed { at: at.clone(), reason };
        self.change(at, true, move |keyring, place| keyring.set(place, &value))
            .map_err(|failure| failed(failure, refused))
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let refused = |reason| VaultError::DeleteFailed { at: at.clone(), reason };
        self.change(at, false, Keyring::delete).map_err(|failure| failed(failure, refused))
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let place = Place::of(at);
        self.call(move |keyring, _| keyring.has(&place)).map_err(unavailable)
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let service = service_of(namespace);
        let users = self.call(move |keyring, _| keyring.users(&service));
        let mut keys = users.map_err(unavailable)?;
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    fn close(&self) {
        self.calls.close();
        self.watch.close();
    }
}
