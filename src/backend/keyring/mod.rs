//! The `keyring` backend: values in the operating system's keyring, every call with a
//! deadline.
//!
//! ```text
//! callers --> Lane "keyring"       --> thread --> Keyring: the store, may prompt and hang
//!        \--> Lane "keyring-watch" --> thread --> Watch: asks "locked?", never prompts
//! ```

mod lane;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod platform;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod platform;
#[cfg(windows)]
#[path = "windows.rs"]
mod platform;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use crate::error::VaultError;
use crate::model::{CredentialRef, Namespace};
use crate::secret::Secret;

use self::lane::{Lane, NoWorker, Ticket, Worker};
use self::platform::{Keyring, START, UNLOCK, Watch};
use super::{CredentialVault, registered_backends};

/// The name it is registered under.
const BACKEND: &str = "keyring";

/// How long a call is waited for before the keyring's state is looked at. A healthy
/// keyring answers in a millisecond or two.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long that look may take. The answer is no more than two round trips away.
const WATCH_PATIENCE: Duration = Duration::from_millis(500);

/// What a client is told to wait: a person may have unlocked the keyring by then.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Values in the operating system's keyring, at the places where Python's `keyring`
/// package keeps them: service `com.intentframe.vault.<namespace>`, user name = key.
///
/// One connection is kept, by a thread of its own. A restart of the keyring is survived;
/// a locked or absent one is answered at once with [`VaultError::BackendUnavailable`],
/// and so is whoever comes while a prompt is open. A read of a locked keyring opens the
/// prompt to unlock it (once, not once for each reader); a store or delete does not, as
/// it would be done late, after its caller has been told that it was not.
///
/// On macOS and Windows a prompt cannot be told from a slow keyring: there, calls wait
/// until their deadline.
#[derive(Debug)]
pub struct KeyringVault {
    calls: Lane<Keyring>,
    watch: Lane<Watch>,
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

/// What can go wrong, before it is known which call it befell. Never carries a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// A person has to unlock it.
    Locked,
    /// There is none to be reached.
    Absent(String),
    /// The connection is of no more use, but a new one may be.
    Lost(String),
    /// It understood, and would not.
    Refused(String),
    /// What it keeps there is no text.
    NotText,
    /// It does not answer. If something was to be changed, it was not.
    Silent,
    /// It did not answer in time, and may yet do what it was asked.
    Late,
    /// Too many calls hang in it.
    AllHang,
    /// The vault was closed.
    Closed,
}

impl Failure {
    /// What the platforms' stores have in common. Says nothing of the data that some
    /// errors carry, so it is never their `Display` or `Debug` that is shown for those.
    fn of(error: &keyring_core::Error) -> Self {
        use keyring_core::Error;
        match error {
            Error::BadEncoding(_) | Error::BadDataFormat(..) => Self::NotText,
            Error::TooLong(what, limit) => {
                Self::Refused(format!("the {what} is longer than this keyring's limit of {limit}"))
            }
            Error::Invalid(what, why) => Self::Refused(format!("the {what} {why}")),
            Error::NotSupportedByStore(what) | Error::BadStoreFormat(what) => {
                Self::Refused(what.clone())
            }
            Error::Ambiguous(entries) => {
                Self::Refused(format!("it has {} items of that name", entries.len()))
            }
            _ => Self::Refused("it gave no reason".to_owned()),
        }
    }
}

impl From<NoWorker> for Failure {
    fn from(none: NoWorker) -> Self {
        match none {
            NoWorker::Closed => Self::Closed,
            NoWorker::AllHang => Self::AllHang,
            NoWorker::NoThread(error) => Self::Absent(format!("no thread for it: {error}")),
        }
    }
}

impl KeyringVault {
    /// A vault whose calls take `timeout` at most. Does not connect until the first.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self { calls: Lane::new("keyring"), watch: Lane::new("keyring-watch"), timeout }
    }

    /// Runs a reading `task`, which may be run again on a new connection.
    fn read<T: Send + 'static>(
        &self,
        task: impl Fn(&Keyring) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<T, Failure> {
        self.call(move |connection, ticket| {
            twice_if_lost(ticket, || with(connection, Keyring::open, &task))
        })
    }

    /// Runs a changing `task` on a keyring that will not prompt for it. It may be run
    /// again on a new connection, which is why it has to be idempotent.
    fn change<T: Send + 'static>(
        &self,
        place: Place,
        task: impl Fn(&Keyring, &Place) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<T, Failure> {
        self.call(move |connection, ticket| {
            twice_if_lost(ticket, || {
                with(connection, Keyring::open, |keyring| {
                    if keyring.write_would_prompt(&place)? {
                        return Err(Failure::Locked);
                    }
                    if !ticket.claim() {
                        return Err(Failure::Silent);
                    }
                    task(keyring, &place)
                })
            })
        })
    }

    /// Has the keyring thread do `task`, and waits for it until the deadline.
    fn call<T: Send + 'static>(
        &self,
        task: impl Fn(&mut Option<Keyring>, &Ticket) -> Result<T, Failure> + Send + Sync + 'static,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.timeout;
        let task = Arc::new(task);
        loop {
            let worker = self.calls.worker()?;
            if worker.hangs() {
                if self.is_locked(deadline)? {
                    return Err(Failure::Locked);
                }
                // Unlocked by other means than the prompt that it hangs in.
                self.calls.retire(&worker);
                continue;
            }
            let ticket = Ticket::new();
            let answer = worker.submit(&ticket, {
                let (task, ticket) = (Arc::clone(&task), Arc::clone(&ticket));
                move |connection| task(connection, &ticket)
            });
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match answer.recv_timeout(left.min(PATIENCE)) {
                    Ok(result) => return result,
                    Err(RecvTimeoutError::Disconnected) if worker.is_retired() => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Failure::Lost("its thread broke down".to_owned()));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if left <= PATIENCE {
                    let untouched = ticket.give_up();
                    if worker.is_at(&ticket) {
                        self.calls.retire(&worker);
                    }
                    return Err(if untouched { Failure::Silent } else { Failure::Late });
                }
                if worker.is_retired() && !worker.is_at(&ticket) && ticket.withdraw() {
                    break;
                }
                if let Some(failure) = self.is_hopeless(&worker, &ticket, deadline) {
                    return Err(failure);
                }
            }
        }
    }

    /// Looks at a keyring that is slow to answer: whether, and why, to wait no longer.
    fn is_hopeless(
        &self,
        worker: &Worker<Keyring>,
        ticket: &Ticket,
        deadline: Instant,
    ) -> Option<Failure> {
        let failure = match self.is_locked(deadline) {
            Ok(false) => return None,
            Ok(true) => Failure::Locked,
            // What is being worked on finds out by itself, or may yet succeed; what is
            // behind it in the queue need not wait for that.
            Err(failure) if !worker.is_at(ticket) => failure,
            Err(_) => {
                worker.note_hang();
                return None;
            }
        };
        worker.note_hang();
        ticket.withdraw().then_some(failure)
    }

    /// Whether the keyring waits for a person to unlock it. Never makes it prompt.
    fn is_locked(&self, deadline: Instant) -> Result<bool, Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ticket = Ticket::new();
        let answer = self.watch.worker()?.submit(&ticket, {
            let ticket = Arc::clone(&ticket);
            move |connection| {
                twice_if_lost(&ticket, || with(connection, Watch::open, Watch::locked))
            }
        });
        answer.recv_timeout(left.min(WATCH_PATIENCE)).unwrap_or_else(|_| {
            ticket.withdraw();
            Err(Failure::Silent)
        })
    }

    fn unavailable(&self, failure: &Failure) -> VaultError {
        let others: Vec<String> =
            registered_backends().into_iter().filter(|name| name != BACKEND).collect();
        let or_another = format!("or pick another backend with --backend ({})", others.join(", "));
        let timeout = self.timeout;
        let reason = match failure {
            Failure::Locked => format!("it is locked; {UNLOCK}; {or_another}"),
            Failure::Absent(why) => format!("it cannot be reached ({why}); {START}; {or_another}"),
            Failure::Lost(why) | Failure::Refused(why) => {
                format!("it failed ({why}); see its own log, {or_another}")
            }
            Failure::NotText => format!("it answered with what is no text; {or_another}"),
            Failure::Silent => {
                format!("it does not answer; nothing was changed; restart it, {or_another}")
            }
            Failure::Late => format!(
                "it did not answer within {timeout:?}; what was asked may still be done, \
                 so ask again; if that does not help restart it, {or_another}"
            ),
            Failure::AllHang => {
                format!("too many calls hang in it; answer its prompts or restart it, {or_another}")
            }
            Failure::Closed => "it was closed, as the service is stopping".to_owned(),
        };
        VaultError::BackendUnavailable {
            backend: BACKEND.to_owned(),
            reason,
            retry_after: RETRY_AFTER,
        }
    }
}

/// Runs `task` on the kept connection, made if need be. One that is lost is let go of.
fn with<K, T>(
    connection: &mut Option<K>,
    open: impl FnOnce() -> Result<K, Failure>,
    task: impl FnOnce(&K) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let kept = match connection.take() {
        Some(kept) => kept,
        None => open()?,
    };
    let result = task(&kept);
    if !matches!(result, Err(Failure::Lost(_))) {
        *connection = Some(kept);
    }
    result
}

/// Tries again when the connection was lost, as it is when the keyring was restarted,
/// unless the caller has gone meanwhile.
fn twice_if_lost<T>(
    ticket: &Ticket,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    match attempt() {
        Err(Failure::Lost(why)) if ticket.is_wanted() => {
            log::info!("keyring: connecting anew ({why})");
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
        self.read(move |keyring| keyring.get(&place)).map_err(|failure| {
            let reason = match failure {
                Failure::NotText => "what the keyring has there is no text; store it anew".into(),
                Failure::Refused(why) => format!("the keyring refused ({why})"),
                other => return self.unavailable(&other),
            };
            VaultError::ReadFailed { at: at.clone(), reason }
        })
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        let value = value.duplicate();
        self.change(Place::of(at), move |keyring, place| keyring.set(place, &value)).map_err(
            |failure| match failure {
                Failure::Refused(why) => VaultError::StoreFailed {
                    at: at.clone(),
                    reason: format!("the keyring refused ({why})"),
                },
                other => self.unavailable(&other),
            },
        )
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.change(Place::of(at), Keyring::delete).map_err(|failure| match failure {
            Failure::Refused(why) => VaultError::DeleteFailed {
                at: at.clone(),
                reason: format!("the keyring refused ({why})"),
            },
            other => self.unavailable(&other),
        })
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let place = Place::of(at);
        self.read(move |keyring| keyring.has(&place)).map_err(|failure| self.unavailable(&failure))
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        let service = service_of(namespace);
        let mut keys = self
            .read(move |keyring| keyring.users(&service))
            .map_err(|failure| self.unavailable(&failure))?;
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    fn close(&self) {
        self.calls.close();
        self.watch.close();
    }
}
