//! Obtaining, renewing and replacing tokens.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::backend::RenewalState;
use crate::backend::hashicorp::clock;
use crate::backend::hashicorp::message::{Error, Unavailable};
use crate::backend::hashicorp::settings::{AppRole, Credentials};
use crate::backend::hashicorp::variables::Source;
use crate::backoff::{Backoff, jitter};
use crate::secret::Secret;

use super::lease::{Lease, Next, Step};
use super::login::{self, Login, checked};
use super::{Shared, Token};

pub(super) struct Keeper {
    shared: Arc<Shared>,
    generation: u64,
    /// The next step for the token, and its time.
    pub(super) plan: Option<(Duration, Step)>,
    backoff: Backoff,
    /// Whether the token may look itself up, which some policies forbid; `None` if it has not
    /// been tried while the token was certainly good.
    may_look_up: Option<bool>,
    /// When the last lookup that found the token alive began.
    found_alive: Option<Duration>,
    /// The last failure and its time. It is the answer to all who asked before it.
    pub(super) failed: Option<(Duration, Unavailable)>,
    /// When the token was obtained.
    adopted: Option<Duration>,
    /// The server's refusal of the last login, and until when there is no other attempt.
    login_refused: Option<(Duration, Unavailable)>,
    /// The wrapping token that was unwrapped last, and its secret ID.
    unwrapped: Option<(Secret, Secret)>,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            generation: 0,
            plan: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_mins(1)),
            may_look_up: None,
            found_alive: None,
            failed: None,
            adopted: None,
            login_refused: None,
            unwrapped: None,
        }
    }

    /// Takes the next step if it is due.
    pub(super) fn take_due_step(&mut self) {
        let Some((_, step)) = self.plan.take_if(|(at, _)| *at <= clock::now()) else { return };
        let other = match (step, self.shared.token()) {
            (Step::LookUp, Some(token)) => self.take_stock(&token),
            (Step::Renew, Some(token)) => self.renew(&token),
            _ => self.log_in().ok(),
        };
        // A new token is for the requests to come.
        if let Some(other) = other {
            other.give_use_back();
        }
    }

    /// The first token, or the one after a token that was used up.
    pub(super) fn needed(&mut self) -> Result<Arc<Token>, Unavailable> {
        match (self.shared.token(), &self.shared.settings.credentials.token) {
            (Some(token), _) if token.take_use() => Ok(token),
            (None, Some(source)) => {
                let value = source.read().and_then(checked);
                let value = value.map_err(|reason| self.note_error(Unavailable::new(reason)))?;
                let token = self.adopt(value, 0);
                // The request need not wait for the lookup.
                self.plan = Some((clock::now(), Step::LookUp));
                Ok(token)
            }
            _ => self.log_in(),
        }
    }

    /// Finds out why the server refused a request with the token of this generation.
    pub(super) fn rejected(
        &mut self,
        generation: u64,
        asked: Duration,
    ) -> Result<Option<Arc<Token>>, Unavailable> {
        let current = self.shared.token().filter(|token| token.generation == generation);
        let Some(token) = current else { return self.needed().map(Some) };
        if self.found_alive.is_some_and(|found| found >= asked) {
            return Ok(None);
        }
        let expires = self.shared.status().expires;
        if expires.is_none_or(|expires| expires > clock::now()) {
            if self.may_look_up.is_none() {
                self.plan = None;
                let other = self.take_stock(&token);
                if other.is_some() {
                    return Ok(other);
                }
            }
            if self.may_look_up != Some(true) {
                return Ok(self.other_token());
            }
            let began = clock::now();
            if self.look_up(&token)?.is_some() {
                self.found_alive = Some(began);
                return Ok(None);
            }
        }
        log::warn!("Vault no longer accepts the token");
        self.shared.status().expires = Some(clock::now());
        self.log_in().map(Some)
    }

    /// Another token for one that may not look itself up and so may be dead: the one in the
    /// file if it is new, or a login. A token that is very young is taken to be good.
    fn other_token(&mut self) -> Option<Arc<Token>> {
        const YOUNG: Duration = Duration::from_secs(5);

        if let Some(token) = self.token_from_file().ok().flatten() {
            return Some(token);
        }
        let is_young = self.adopted.is_some_and(|at| clock::now().saturating_sub(at) < YOUNG);
        if is_young || self.shared.settings.credentials.app_role.is_none() {
            return None;
        }
        self.log_in().ok()
    }

    fn can_log_in(&self) -> bool {
        let Credentials { token, app_role, .. } = &self.shared.settings.credentials;
        app_role.is_some() || matches!(token, Some(Source::File { .. }))
    }

    fn look_up(&self, token: &Token) -> Result<Option<Lease>, Unavailable> {
        // If it is used up, the server says so.
        let _ = token.take_use();
        login::look_up(&self.shared.http, &token.value)
    }

    /// Finds out how long the token lives, and plans for it. Returns another token if it is
    /// dead.
    fn take_stock(&mut self, token: &Token) -> Option<Arc<Token>> {
        match self.look_up(token) {
            Ok(Some(lease)) => {
                self.may_look_up = Some(true);
                self.settle(lease, lease.after_obtaining(self.can_log_in()));
            }
            Ok(None) if self.shared.settings.credentials.app_role.is_some() => {
                return self.log_in().ok();
            }
            Ok(None) => {
                self.may_look_up = Some(false);
                let reason = "Vault refuses to look the token up: it is dead, or its policy \
                              lacks read on auth/token/lookup-self; it is not renewed";
                self.end(reason.to_owned());
            }
            Err(error) => self.try_again(Step::LookUp, error),
        }
        None
    }

    /// Renews the token. Returns another one if that is refused.
    fn renew(&mut self, token: &Token) -> Option<Arc<Token>> {
        // The next request finds a token that is used up, and replaces it.
        if !token.take_use() {
            return None;
        }
        let left = self.shared.status().expires.map(|at| at.saturating_sub(clock::now()));
        match login::renew(&self.shared.http, &token.value) {
            Ok(Ok(lease)) => {
                log::info!("renewed the Vault token; {lease}");
                let left = left.unwrap_or_default();
                self.settle(lease, lease.after_renewing(left, self.can_log_in()));
            }
            Ok(Err(reason)) if self.can_log_in() => {
                log::warn!("the Vault token could not be renewed ({reason})");
                return self.log_in().ok();
            }
            Ok(Err(reason)) => self.end(format!("the Vault token cannot be renewed: {reason}")),
            Err(error) => {
                let step = if left == Some(Duration::ZERO) { Step::LogIn } else { Step::Renew };
                self.try_again(step, error);
            }
        }
        None
    }

    /// Another token, with one of its uses taken.
    fn log_in(&mut self) -> Result<Arc<Token>, Unavailable> {
        match &self.login_refused {
            Some((until, error)) if clock::now() < *until => return Err(error.clone()),
            _ => {}
        }
        match self.try_log_in() {
            Ok(token) => Ok(token),
            Err(Error::Unavailable(error)) => {
                self.try_again(Step::LogIn, error.clone());
                Err(error)
            }
            Err(Error::Refused(reason)) => {
                let mut error = Unavailable::new(reason);
                log::error!("there is no usable Vault token: {error}");
                let state = if self.can_log_in() {
                    // By then a file may have been replaced, or a role repaired.
                    let pause = jitter(self.backoff.next_pause());
                    let until = clock::now() + pause;
                    error.retry_after = pause;
                    self.login_refused = Some((until, error.clone()));
                    self.plan = Some((until, Step::LogIn));
                    RenewalState::Retrying
                } else {
                    RenewalState::Ended
                };
                self.shared.status().state = state;
                Err(self.note_error(error))
            }
        }
    }

    /// Takes the token from the file if there is a new one, else logs in by `AppRole`.
    fn try_log_in(&mut self) -> Result<Arc<Token>, Error> {
        if let Some(token) = self.token_from_file().map_err(Error::Refused)? {
            return Ok(token);
        }
        let shared = Arc::clone(&self.shared);
        let Some(app_role) = &shared.settings.credentials.app_role else {
            return Err(Error::Refused(match &shared.settings.credentials.token {
                Some(Source::File { path, .. }) => {
                    format!(
                        "the token in {} is no longer good; put a new one there",
                        path.display()
                    )
                }
                _ => "VAULT_TOKEN is no longer good; set a new one and restart".to_owned(),
            }));
        };
        let Login { token, lease, uses } = self.app_role_login(app_role)?;
        let token = checked(token).map_err(Error::Refused)?;
        log::info!("logged in to Vault by AppRole; {lease}");
        let token = self.adopt(token, uses);
        self.settle(lease, lease.after_obtaining(true));
        // Now that the token is certainly good, a lookup shows whether it may look itself up.
        // One that is good for a few requests is not spent on that.
        if uses == 0 {
            self.may_look_up = self.look_up(&token).ok().map(|found| found.is_some());
        }
        Ok(token)
    }

    /// The token in the file, if it is another one than before.
    fn token_from_file(&mut self) -> Result<Option<Arc<Token>>, String> {
        let Some(source @ Source::File { .. }) = &self.shared.settings.credentials.token else {
            return Ok(None);
        };
        let value = source.read().and_then(checked)?;
        if self.shared.token().is_some_and(|old| old.value.expose() == value.expose()) {
            return Ok(None);
        }
        log::info!("read the Vault token from its file again");
        let token = self.adopt(value, 0);
        // The lookup comes first: once requests use the token, a refused lookup could mean
        // that it has been revoked meanwhile, or that it may not look itself up.
        Ok(Some(self.take_stock(&token).unwrap_or(token)))
    }

    fn app_role_login(&mut self, app_role: &AppRole) -> Result<Login, Error> {
        let role_id = app_role.role_id.read().map_err(Error::Refused)?;
        let mut secret_id = app_role.secret_id.read().map_err(Error::Refused)?;
        if app_role.wrapped {
            secret_id = self.unwrap(secret_id)?;
        }
        let _watched = self.shared.watched(&secret_id);
        login::log_in(&self.shared.http, &role_id, &secret_id)
    }

    /// Unwraps a secret ID, which works once.
    fn unwrap(&mut self, wrapping: Secret) -> Result<Secret, Error> {
        if let Some((known, secret_id)) = &self.unwrapped
            && known.expose() == wrapping.expose()
        {
            return Ok(secret_id.duplicate());
        }
        let wrapping = checked(wrapping).map_err(Error::Refused)?;
        let secret_id = login::unwrap(&self.shared.http, &wrapping)?;
        self.unwrapped = Some((wrapping, secret_id.duplicate()));
        Ok(secret_id)
    }

    /// Makes this the token for all requests. One of its uses is taken, if they are limited (0
    /// means that they are not).
    fn adopt(&mut self, value: Secret, uses: u64) -> Arc<Token> {
        self.generation += 1;
        let uses_left = uses.checked_sub(1).map(AtomicU64::new);
        let watched = self.shared.watched(&value);
        let token = Arc::new(Token { value, generation: self.generation, uses_left, watched });
        self.may_look_up = None;
        self.found_alive = None;
        self.failed = None;
        self.adopted = Some(clock::now());
        self.login_refused = None;
        self.shared.set_token(Some(Arc::clone(&token)));
        let mut status = self.shared.status();
        status.expires = None;
        status.last_error = None;
        drop(status);
        token
    }

    /// Notes how long the token lives and what follows.
    fn settle(&mut self, lease: Lease, next: Next) {
        self.backoff.reset();
        let now = clock::now();
        let (state, plan) = match next {
            Next::Nothing => (RenewalState::NotNeeded, None),
            _ if !self.shared.settings.renew => (RenewalState::Disabled, None),
            Next::After(pause, step) => (RenewalState::Active, Some((now + pause, step))),
            Next::End => (RenewalState::Ended, None),
        };
        self.plan = plan;
        let mut status = self.shared.status();
        status.expires = lease.ttl.map(|ttl| now + ttl);
        status.state = state;
        status.last_error = None;
        drop(status);
        if state == RenewalState::Ended {
            self.end(format!(
                "the Vault token cannot be renewed any longer, and there is no AppRole to log in \
                 with; {lease}; set VAULT_TOKEN to a new one before then"
            ));
        }
    }

    /// Gives the token's renewal up.
    fn end(&mut self, reason: String) {
        log::error!("{reason}");
        self.plan = None;
        let mut status = self.shared.status();
        status.state = RenewalState::Ended;
        status.last_error = Some(reason);
    }

    /// Repeats a step after a pause.
    fn try_again(&mut self, step: Step, error: Unavailable) {
        if self.shared.http.is_closed() {
            return;
        }
        let pause = jitter(self.backoff.next_pause());
        log::warn!("the Vault token could not be renewed: {error}; trying again in {pause:.1?}");
        self.plan = Some((clock::now() + pause, step));
        self.shared.status().state = RenewalState::Retrying;
        self.note_error(error);
    }

    fn note_error(&self, error: Unavailable) -> Unavailable {
        self.shared.status().last_error = Some(error.reason.clone());
        error
    }
}
