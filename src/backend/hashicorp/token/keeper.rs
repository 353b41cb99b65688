//! Obtaining, renewing and replacing tokens.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::backend::RenewalState;
use crate::backend::hashicorp::http::Http;
use crate::backend::hashicorp::message::{Error, Unavailable};
use crate::backend::hashicorp::settings::AppRole;
use crate::backend::hashicorp::variables::Source;
use crate::backend::hashicorp::{clock, lock};
use crate::backoff::{Backoff, jitter};
use crate::secret::{Secret, WatchedSecret};

use super::login::{self, Lease, Login, checked};
use super::{Current, Token};

/// A step that keeps the token alive.
#[derive(Clone, Copy)]
enum Step {
    LookUp,
    Renew,
    LogIn,
}

pub(super) struct Keeper {
    http: Arc<Http>,
    current: Arc<Mutex<Current>>,
    /// The next step for the token, and its time.
    plan: Option<(Duration, Step)>,
    backoff: Backoff,
    /// Whether the token has looked itself up, which some policies forbid. If it has, a lookup
    /// that is refused means that the token is dead.
    has_looked_up: bool,
    /// When the token was obtained by a login.
    logged_in: Option<Duration>,
    /// The last failure and its time. It is the answer to all that asked before it.
    pub(super) failed: Option<(Duration, Unavailable)>,
    /// The server's refusal of the last login, and the time of the next attempt.
    login_refused: Option<(Duration, Unavailable)>,
    /// The wrapping token that was unwrapped last, and its secret ID.
    unwrapped: Option<(Secret, Secret)>,
}

impl Keeper {
    pub(super) fn new(http: Arc<Http>, current: Arc<Mutex<Current>>) -> Self {
        Self {
            http,
            current,
            plan: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
            has_looked_up: false,
            logged_in: None,
            failed: None,
            login_refused: None,
            unwrapped: None,
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        lock(&self.current)
    }

    fn token(&self) -> Option<Arc<Token>> {
        self.current().token.clone()
    }

    /// Sets the state that `/health` shows.
    fn report(&self, state: RenewalState, last_error: Option<String>) {
        let mut current = self.current();
        current.state = state;
        current.last_error = last_error;
    }

    fn watched(&self, secret: &Secret) -> Option<WatchedSecret> {
        self.http.settings.secret_watch.as_ref().map(|watch| watch.tell(secret))
    }

    /// Takes the next step if it is due. Returns the time until the one after it.
    pub(super) fn take_due_step(&mut self) -> Duration {
        if let Some((_, step)) = self.plan.take_if(|(at, _)| *at <= clock::now()) {
            match (step, self.token()) {
                (Step::LookUp, Some(token)) => self.take_stock(&token),
                (Step::Renew, Some(token)) => self.renew(&token),
                _ => drop(self.log_in()),
            }
        }
        self.plan.map_or(Duration::MAX, |(at, _)| at.saturating_sub(clock::now()))
    }

    /// Plans anew after a step has panicked, and returns the time until the next attempt. What
    /// is known of the token's life may be wrong, so `/health` is `degraded` until a step
    /// succeeds.
    pub(super) fn recover(&mut self) -> Duration {
        self.current().expires = None;
        let error = Unavailable::new("the thread that renews it panicked; see the service's log");
        self.try_again(Step::LookUp, &error).saturating_sub(clock::now())
    }

    /// Returns the first token, or another one when the current one is used up.
    pub(super) fn needed(&mut self) -> Result<Arc<Token>, Unavailable> {
        match (self.token(), &self.http.settings.token) {
            (Some(token), _) if token.take_use() => Ok(token),
            (None, Some(source)) => {
                let value = source.read().and_then(checked).map_err(Unavailable::new)?;
                let token = self.adopt(value, 0);
                // The request need not wait for the lookup.
                self.plan = Some((clock::now(), Step::LookUp));
                Ok(token)
            }
            _ => self.log_in(),
        }
    }

    /// Finds out why the server refused a request with this token.
    pub(super) fn rejected(
        &mut self,
        token: &Arc<Token>,
    ) -> Result<Option<Arc<Token>>, Unavailable> {
        if !self.token().is_some_and(|current| Arc::ptr_eq(&current, token)) {
            return self.needed().map(Some);
        }
        let expires = self.current().expires;
        if expires.is_none_or(|expires| expires > clock::now()) {
            if self.look_up(token)?.is_some() {
                return Ok(None);
            }
            if !self.has_looked_up {
                return Ok(if self.has_other() { self.log_in().ok() } else { None });
            }
        }
        log::warn!("Vault no longer accepts the token");
        self.current().expires = Some(clock::now());
        self.log_in().map(Some)
    }

    /// Whether a token that may not look itself up, and so may be dead, can be replaced: by a
    /// new one in the file, or by a login. Shortly after a login the token counts as good.
    fn has_other(&self) -> bool {
        const YOUNG: Duration = Duration::from_secs(5);

        let is_young = self.logged_in.is_some_and(|at| clock::now().saturating_sub(at) < YOUNG);
        let may_log_in = self.http.settings.app_role.is_some() && !is_young;
        may_log_in || self.new_in_file().is_some()
    }

    fn can_log_in(&self) -> bool {
        let settings = &self.http.settings;
        settings.app_role.is_some() || matches!(settings.token, Some(Source::File { .. }))
    }

    fn look_up(&mut self, token: &Token) -> Result<Option<Lease>, Unavailable> {
        // The server refuses a token that is used up.
        let _ = token.take_use();
        let lease = login::look_up(&self.http, &token.value)?;
        self.has_looked_up |= lease.is_some();
        Ok(lease)
    }

    /// Finds out how long the token lives, and plans for it; replaces it if it is dead.
    fn take_stock(&mut self, token: &Token) {
        match self.look_up(token) {
            Ok(Some(lease)) => self.settle(lease),
            Ok(None) if self.http.settings.app_role.is_some() => drop(self.log_in()),
            Ok(None) => self.end(
                "Vault refuses to look the token up: it is dead, or its policy lacks read on \
                 auth/token/lookup-self; it is not renewed",
            ),
            Err(error) => drop(self.try_again(Step::LookUp, &error)),
        }
    }

    /// Renews the token, or replaces it if that is refused.
    fn renew(&mut self, token: &Token) {
        /// Servers count whole seconds.
        const ROUNDING: Duration = Duration::from_secs(1);

        // If it is used up, the next request replaces it.
        if !token.take_use() {
            return;
        }
        let expires = self.current().expires.unwrap_or_default();
        let left = expires.saturating_sub(clock::now());
        match login::renew(&self.http, &token.value) {
            Ok(Ok(lease)) => {
                log::info!("renewed the Vault token");
                // A TTL that has hardly grown has reached the token's maximum TTL.
                let grew = lease.ttl.is_none_or(|ttl| ttl > left + ROUNDING);
                self.settle(Lease { renewable: lease.renewable && grew, ..lease });
            }
            Ok(Err(reason)) if self.can_log_in() => {
                log::warn!("the Vault token could not be renewed ({reason})");
                let _ = self.log_in();
            }
            Ok(Err(reason)) => self.end(format!("the Vault token cannot be renewed: {reason}")),
            Err(error) => drop(self.try_again(Step::Renew, &error)),
        }
    }

    /// Obtains another token, with one of its uses taken.
    fn log_in(&mut self) -> Result<Arc<Token>, Unavailable> {
        if let Some((until, error)) = &self.login_refused
            && clock::now() < *until
        {
            return Err(error.clone());
        }
        self.try_log_in().map_err(|error| match error {
            Error::Unavailable(error) => {
                self.try_again(Step::LogIn, &error);
                error
            }
            Error::Refused(reason) => {
                let mut error = Unavailable::new(reason);
                if self.can_log_in() {
                    // By then a file may have been replaced, or a role repaired.
                    let until = self.try_again(Step::LogIn, &error);
                    error.retry_after = Some(until.saturating_sub(clock::now()));
                    self.login_refused = Some((until, error.clone()));
                } else {
                    self.end(error.reason.clone());
                }
                error
            }
        })
    }

    /// Takes the token from the file if there is a new one, else logs in by `AppRole`.
    fn try_log_in(&mut self) -> Result<Arc<Token>, Error> {
        if let Some(value) = self.new_in_file() {
            let token = self.adopt(value, 0);
            self.take_stock(&token);
            return Ok(self.token().unwrap_or(token));
        }
        let http = Arc::clone(&self.http);
        let Some(app_role) = &http.settings.app_role else {
            let advice = match &http.settings.token {
                Some(Source::File { path, .. }) => format!("put a new one into {}", path.display()),
                _ => "set a new one and restart".to_owned(),
            };
            return Err(Error::Refused(format!("VAULT_TOKEN is no longer good; {advice}")));
        };
        let Login { token, lease, uses } = self.app_role_login(app_role)?;
        log::info!("logged in to Vault by AppRole");
        let token = self.adopt(checked(token)?, uses);
        self.logged_in = Some(clock::now());
        self.settle(lease);
        // Now that the token is certainly good, a lookup shows whether it may look itself up.
        // One that is good for a few requests is not spent on that.
        if uses == 0 {
            let _ = self.look_up(&token);
        }
        Ok(token)
    }

    /// The token in the file, if it can be read and is another one than before.
    fn new_in_file(&self) -> Option<Secret> {
        let Some(source @ Source::File { .. }) = &self.http.settings.token else { return None };
        let value = source.read().and_then(checked).ok()?;
        let is_old = self.token().is_some_and(|old| old.value.expose() == value.expose());
        (!is_old).then_some(value)
    }

    fn app_role_login(&mut self, app_role: &AppRole) -> Result<Login, Error> {
        let role_id = app_role.role_id.read()?;
        let mut secret_id = app_role.secret_id.read()?;
        if app_role.wrapped {
            secret_id = self.unwrap(secret_id)?;
        }
        let _watched = self.watched(&secret_id);
        login::log_in(&self.http, &role_id, &secret_id)
    }

    /// Unwraps a secret ID, which works once.
    fn unwrap(&mut self, wrapping: Secret) -> Result<Secret, Error> {
        if let Some((known, secret_id)) = &self.unwrapped
            && known.expose() == wrapping.expose()
        {
            return Ok(secret_id.duplicate());
        }
        let wrapping = checked(wrapping)?;
        let secret_id = login::unwrap(&self.http, &wrapping)?;
        self.unwrapped = Some((wrapping, secret_id.duplicate()));
        Ok(secret_id)
    }

    /// Makes this the token for all requests. `uses` is their number, 0 for any number; one of
    /// them is taken for the caller.
    fn adopt(&mut self, value: Secret, uses: u64) -> Arc<Token> {
        let uses_left = uses.checked_sub(1).map(AtomicU64::new);
        let token = Arc::new(Token { _watched: self.watched(&value), value, uses_left });
        self.has_looked_up = false;
        self.logged_in = None;
        self.failed = None;
        self.login_refused = None;
        let mut current = self.current();
        current.token = Some(Arc::clone(&token));
        current.expires = None;
        current.last_error = None;
        drop(current);
        token
    }

    /// Records how long the token lives, and plans what follows.
    fn settle(&mut self, lease: Lease) {
        /// No answer is believed for longer. A wrong one, of a lease of 2^64 - 1 seconds, would
        /// keep the token from being renewed.
        const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

        self.backoff.reset();
        let now = clock::now();
        self.current().expires = lease.ttl.map(|ttl| now.saturating_add(ttl));
        let renew = self.http.settings.renew;
        let state = match lease.ttl {
            None => RenewalState::NotNeeded,
            Some(_) if !renew => RenewalState::Disabled,
            Some(ttl) if !lease.renewable && !self.can_log_in() => {
                return self.end(format!(
                    "the Vault token cannot be renewed any longer, and there is no AppRole to \
                     log in with; set VAULT_TOKEN to a new one within {} s",
                    ttl.as_secs()
                ));
            }
            Some(_) => RenewalState::Active,
        };
        // Half of its life is a margin for outages of the server.
        let (wait, step) = match lease.ttl.map(|ttl| ttl / 2).filter(|half| *half <= LONGEST) {
            Some(half) if lease.renewable => (half, Step::Renew),
            Some(half) => (half, Step::LogIn),
            None => (LONGEST, Step::LookUp),
        };
        self.plan = renew.then(|| (now.saturating_add(jitter(wait)), step));
        self.report(state, None);
    }

    /// Gives up the token's renewal.
    fn end(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        log::error!("{reason}");
        self.plan = None;
        self.report(RenewalState::Ended, Some(reason));
    }

    /// Plans to repeat a step after a pause. Returns the time of the next attempt.
    fn try_again(&mut self, step: Step, error: &Unavailable) -> Duration {
        let reason = &error.reason;
        let pause = jitter(self.backoff.next_pause());
        if !self.http.is_closed() {
            log::warn!("could not renew the Vault token: {reason}; trying again in {pause:.1?}");
        }
        let at = clock::now().saturating_add(pause);
        self.plan = Some((at, step));
        self.report(RenewalState::Retrying, Some(reason.clone()));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::hashicorp::settings::Settings;

    #[test]
    fn no_lease_is_believed_for_longer_than_a_day() {
        let variables = [("VAULT_ADDR", "https://vault.example"), ("VAULT_TOKEN", "canary")];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = Settings::new(&environment.into_iter().collect(), None).expect("complete");
        let (token, expires, last_error) = (None, None, None);
        let current = Current { token, expires, state: RenewalState::Idle, last_error };
        let current = Arc::new(Mutex::new(current));
        let mut keeper = Keeper::new(Arc::new(Http::new(settings)), current);
        let day = Duration::from_secs(24 * 60 * 60);
        let leases = [None, Some(day * 3), Some(day * 365_000), Some(Duration::MAX)];
        for ttl in leases {
            keeper.settle(Lease { ttl, renewable: true });
            let (at, step) = keeper.plan.expect("a step is planned");
            assert!(matches!(step, Step::LookUp), "{ttl:?}");
            assert!(at > clock::now() + day / 2 && at < clock::now() + day * 2, "{ttl:?}: {at:?}");
        }
        keeper.settle(Lease { ttl: Some(day), renewable: true });
        let (at, step) = keeper.plan.expect("a step is planned");
        assert!(matches!(step, Step::Renew) && at < clock::now() + day, "at half its life");
    }
}
