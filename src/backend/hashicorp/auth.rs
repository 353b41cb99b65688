//! The token: where it comes from, how it is kept alive, and what a request does when the
//! server refuses it.
//!
//! One thread, the keeper, obtains and renews tokens. It waits on a channel: for requests
//! that need a token or met a dead one, for the end, and, by the wait's own deadline, for
//! the time of the next renewal. So however many requests meet a dead token at once, one
//! login is made.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use serde::Deserialize;
use ureq::http::{HeaderValue, Method};
use zeroize::Zeroizing;

use crate::backend::{RenewalState, RenewalStatus};
use crate::secret::{Secret, SecretWatch, WatchedSecret};

use super::clock;
use super::lease::{self, Backoff, Lease, Next};
use super::settings::{AppRole, Credentials, Settings, Source};
use super::upstream::{Ask, Reply, Unavailable, Upstream};

/// A token, and which one in a row.
pub(super) struct Token {
    value: Secret,
    generation: u64,
    /// How many more requests it is good for, where that is limited.
    uses_left: Option<AtomicU64>,
    /// There to be dropped with it.
    #[expect(dead_code, reason = "what it does it does when it is dropped")]
    watched: Option<WatchedSecret>,
}

impl Token {
    /// Takes one of the uses. `false`: it is used up.
    fn take_use(&self) -> bool {
        self.uses_left.as_ref().is_none_or(|left| {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
        })
    }

    /// Gives one of the uses back that has not been made.
    pub(super) fn give_use_back(&self) {
        if let Some(left) = &self.uses_left {
            left.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn value(&self) -> &Secret {
        &self.value
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(number {})", self.generation)
    }
}

/// What a refused request learns about its token.
pub(super) enum Refused {
    /// It was dead; here is another.
    TokenReplaced(Arc<Token>),
    /// It lives: the refusal is of the request.
    TokenIsGood,
}

/// What the keeper is told.
enum Message {
    /// A request needs a token, and there is none, or none that is not used up.
    Needed {
        at: Duration,
        reply: Sender<Result<Arc<Token>, Unavailable>>,
    },
    /// The server refused a request with this token.
    Rejected {
        generation: u64,
        at: Duration,
        reply: Sender<Result<Refused, Unavailable>>,
    },
    Stop,
}

/// Hands out tokens.
pub(super) struct Auth {
    shared: Arc<Shared>,
    keeper: Mutex<KeeperState>,
}

enum KeeperState {
    NotStarted,
    Running { inbox: Sender<Message>, thread: JoinHandle<()> },
    Closed,
}

/// What the keeper and the requests share.
struct Shared {
    upstream: Arc<Upstream>,
    credentials: Credentials,
    renew: bool,
    token: RwLock<Option<Arc<Token>>>,
    status: Mutex<Status>,
    secret_watch: Option<SecretWatch>,
}

impl Shared {
    fn watched(&self, secret: &Secret) -> Option<WatchedSecret> {
        self.secret_watch.as_ref().map(|watch| watch.tell(secret))
    }
}

struct Status {
    state: RenewalState,
    expires: Option<Duration>,
    last_error: Option<String>,
}

impl Auth {
    /// Does nothing yet: the keeper is started by the first request.
    pub(super) fn new(settings: Settings, upstream: Arc<Upstream>) -> Self {
        let status = Status { state: RenewalState::Idle, expires: None, last_error: None };
        let shared = Arc::new(Shared {
            upstream,
            credentials: settings.credentials,
            renew: settings.renew,
            token: RwLock::new(None),
            status: Mutex::new(status),
            secret_watch: settings.secret_watch,
        });
        Self { shared, keeper: Mutex::new(KeeperState::NotStarted) }
    }

    /// The token to send, once; none where an agent adds its own.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when none can be obtained.
    pub(super) fn token(&self) -> Result<Option<Arc<Token>>, Unavailable> {
        if let Some(token) = self.shared.usable_token() {
            return Ok(Some(token));
        }
        if !self.is_needed() {
            return Ok(None);
        }
        let at = clock::now();
        self.ask(|reply| Message::Needed { at, reply }).map(Some)
    }

    /// The token to send, once, when it is at hand.
    pub(super) fn token_at_hand(&self) -> Option<Arc<Token>> {
        self.shared.usable_token()
    }

    /// Whether requests need a token; not where an agent adds its own.
    pub(super) fn is_needed(&self) -> bool {
        let Credentials { token, app_role, .. } = &self.shared.credentials;
        token.is_some() || app_role.is_some()
    }

    /// What is to be made of the server's refusal of a request with this token.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when the token is dead and no other can be obtained, or when that
    /// cannot be found out.
    pub(super) fn rejected(&self, token: &Token) -> Result<Refused, Unavailable> {
        let (generation, at) = (token.generation, clock::now());
        self.ask(|reply| Message::Rejected { generation, at, reply })
    }

    fn ask<T>(
        &self,
        message: impl FnOnce(Sender<Result<T, Unavailable>>) -> Message,
    ) -> Result<T, Unavailable> {
        let inbox = self.inbox()?;
        let (reply, answer) = bounded(1);
        let closed = || Unavailable::new("the vault is closed");
        inbox.send(message(reply)).map_err(|_| closed())?;
        // The keeper may have a request of its own under way, and then one for this.
        let patience = self.shared.upstream.timeout() * 3;
        answer.recv_timeout(patience).map_err(|error| match error {
            RecvTimeoutError::Timeout => Unavailable::new("Vault did not give a token in time"),
            RecvTimeoutError::Disconnected => closed(),
        })?
    }

    fn inbox(&self) -> Result<Sender<Message>, Unavailable> {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if let KeeperState::NotStarted = *keeper {
            let (inbox, messages) = unbounded();
            let shared = Arc::clone(&self.shared);
            let thread = thread::Builder::new()
                .name("vault-token".to_owned())
                .spawn(move || Keeper::new(shared).run(&messages))
                .map_err(|error| {
                    Unavailable::new(format!("no thread could be started: {error}"))
                })?;
            *keeper = KeeperState::Running { inbox, thread };
        }
        match &*keeper {
            KeeperState::Running { inbox, .. } => Ok(inbox.clone()),
            _ => Err(Unavailable::new("the vault is closed")),
        }
    }

    /// How the token is.
    pub(super) fn status(&self) -> RenewalStatus {
        let status = self.shared.status();
        RenewalStatus {
            state: status.state,
            ttl: status.expires.map(|expires| expires.saturating_sub(clock::now())),
            last_error: status.last_error.clone(),
        }
    }

    /// Ends the keeper, and waits for it: at once when it sleeps, and when a request of
    /// its own is under way until that ends. The token is wiped with its last user.
    pub(super) fn close(&self) {
        let keeper = std::mem::replace(
            &mut *self.keeper.lock().unwrap_or_else(PoisonError::into_inner),
            KeeperState::Closed,
        );
        self.shared.upstream.close();
        if let KeeperState::Running { inbox, thread } = keeper {
            let _ = inbox.send(Message::Stop);
            drop(inbox);
            if thread.join().is_err() {
                log::error!("the thread that keeps the Vault token panicked");
            }
        }
        *self.shared.token.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Auth {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn token(&self) -> Option<Arc<Token>> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The token, with one of its uses taken.
    fn usable_token(&self) -> Option<Arc<Token>> {
        self.token().filter(|token| token.take_use())
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that obtains tokens and keeps them alive.
struct Keeper {
    shared: Arc<Shared>,
    generation: u64,
    /// What is to be done, and when.
    plan: Option<(Duration, Step)>,
    backoff: Backoff,
    /// Whether the server answers lookups of the token, which some policies forbid; as
    /// seen when it was new.
    may_look_up: Option<bool>,
    /// A lookup that began at this time found the token alive.
    found_alive: Option<Duration>,
    /// Why there was no other token, and when that was found out. It is the answer to all
    /// who had asked by then.
    failed: Option<(Duration, Unavailable)>,
    /// When the token became the token.
    adopted: Option<Duration>,
    /// What the server said to the last login, and until when none is tried again.
    login_refused: Option<(Duration, Unavailable)>,
    /// The secret ID that came out of its wrapping, and the wrapping token it came from.
    unwrapped: Option<(Secret, Secret)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    LookUp,
    Renew,
    LogIn,
}

/// Why there is no other token.
enum LoginError {
    Unavailable(Unavailable),
    /// The server does not want these credentials, or there are none.
    Refused(String),
}

impl From<Unavailable> for LoginError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl Keeper {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            generation: 0,
            plan: None,
            backoff: Backoff::default(),
            may_look_up: None,
            found_alive: None,
            failed: None,
            adopted: None,
            login_refused: None,
            unwrapped: None,
        }
    }

    fn run(mut self, inbox: &Receiver<Message>) {
        /// A machine that sleeps does not count its sleep as waiting, so the clock is
        /// looked at once in a while.
        const LONGEST_WAIT: Duration = Duration::from_secs(15);

        loop {
            let wait = self.plan.map_or(LONGEST_WAIT, |(at, _)| at.saturating_sub(clock::now()));
            match inbox.recv_timeout(wait.min(LONGEST_WAIT)) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Message::Needed { at, reply }) => {
                    let outcome = self.unless_failed_since(at, Self::needed);
                    let _ = reply.send(outcome);
                }
                Ok(Message::Rejected { generation, at, reply }) => {
                    let rejected = |keeper: &mut Self| keeper.rejected(generation, at);
                    let outcome = self.unless_failed_since(at, rejected);
                    let _ = reply.send(outcome);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some((at, step)) = self.plan
                && at <= clock::now()
            {
                self.plan = None;
                self.take(step);
            }
        }
    }

    /// What `find` finds out for a request that asked at that time; a failure since then is
    /// its failure too, so that those who wait together do not wait one after the other.
    fn unless_failed_since<T>(
        &mut self,
        at: Duration,
        find: impl FnOnce(&mut Self) -> Result<T, Unavailable>,
    ) -> Result<T, Unavailable> {
        if let Some((when, error)) = &self.failed
            && *when >= at
        {
            return Err(error.clone());
        }
        find(self).inspect_err(|error| self.failed = Some((clock::now(), error.clone())))
    }

    /// The first token, or the one after a token that was used up, or the one that another
    /// request has just had fetched.
    fn needed(&mut self) -> Result<Arc<Token>, Unavailable> {
        let token = self.shared.token();
        match (token, &self.shared.credentials.token) {
            (Some(token), _) if token.take_use() => Ok(token),
            (None, Some(source)) => {
                let value = source.read().and_then(checked);
                let value = value.map_err(|reason| self.note_error(Unavailable::new(reason)))?;
                let token = self.adopt(value, 0);
                self.plan = Some((clock::now(), Step::LookUp));
                Ok(token)
            }
            _ => self.log_in(),
        }
    }

    fn rejected(&mut self, generation: u64, at: Duration) -> Result<Refused, Unavailable> {
        let Some(token) = self.shared.token() else {
            return self.needed().map(Refused::TokenReplaced);
        };
        if token.generation != generation {
            return self.needed().map(Refused::TokenReplaced);
        }
        if self.found_alive.is_some_and(|found| found >= at) {
            return Ok(Refused::TokenIsGood);
        }
        let expires = self.shared.status().expires;
        let is_over = expires.is_some_and(|expires| expires <= clock::now());
        if !is_over {
            if self.may_look_up.is_none() {
                self.plan = None;
                if let Some(other) = self.take_stock(&token) {
                    return Ok(Refused::TokenReplaced(other));
                }
            }
            if self.may_look_up != Some(true) {
                return Ok(self.other_token().map_or(Refused::TokenIsGood, Refused::TokenReplaced));
            }
            let began = clock::now();
            if self.look_up(&token)?.is_some() {
                self.found_alive = Some(began);
                return Ok(Refused::TokenIsGood);
            }
        }
        log::warn!("Vault does not take the token any more");
        self.shared.status().expires = Some(clock::now());
        self.log_in().map(Refused::TokenReplaced)
    }

    /// Another token for one of which nobody can say whether it is dead: a new one in the
    /// file, or a login, unless the token is so young that the refusal must be of the
    /// request.
    fn other_token(&mut self) -> Option<Arc<Token>> {
        const YOUNG: Duration = Duration::from_secs(5);

        if let Some(token) = self.token_from_file().ok().flatten() {
            return Some(token);
        }
        let is_young = self.adopted.is_some_and(|at| clock::now().saturating_sub(at) < YOUNG);
        if is_young || self.shared.credentials.app_role.is_none() {
            return None;
        }
        self.log_in().ok()
    }

    fn can_log_in(&self) -> bool {
        let Credentials { token, app_role, .. } = &self.shared.credentials;
        app_role.is_some() || matches!(token, Some(Source::File { .. }))
    }

    fn take(&mut self, step: Step) {
        let other = match (step, self.shared.token()) {
            (Step::LookUp, Some(token)) => self.take_stock(&token),
            (Step::Renew, Some(token)) => self.renew(&token),
            _ => self.log_in().ok(),
        };
        // It is for the requests to come.
        if let Some(other) = other {
            other.give_use_back();
        }
    }

    /// Finds out how long the token lives, and plans for it. Where it is dead, there may be
    /// another.
    fn take_stock(&mut self, token: &Token) -> Option<Arc<Token>> {
        match self.look_up(token) {
            Ok(Some(lease)) => {
                self.may_look_up = Some(true);
                self.settle(lease, lease::after_obtaining(lease, self.can_log_in()));
            }
            Ok(None) if self.shared.credentials.app_role.is_some() => return self.log_in().ok(),
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

    /// Renews the token, or takes another where that cannot be.
    fn renew(&mut self, token: &Token) -> Option<Arc<Token>> {
        // The next request finds it used up.
        if !token.take_use() {
            return None;
        }
        let left = self.shared.status().expires.map(|at| at.saturating_sub(clock::now()));
        // The token is still good, and the server may be, too, for all but this.
        let ask = Ask::new(Method::POST, "auth/token/renew-self", Some(token.value()));
        let reply = match self.shared.upstream.send(&ask.json(b"{}").apart()) {
            Ok(reply) => reply,
            Err(error) => {
                let step = if left == Some(Duration::ZERO) { Step::LogIn } else { Step::Renew };
                self.try_again(step, error);
                return None;
            }
        };
        match login_answer(&reply) {
            Some(answer) => {
                let lease = answer.lease();
                let left = left.unwrap_or_default();
                log::info!("renewed the Vault token; {}", Lasts(lease));
                self.settle(lease, lease::after_renewing(left, lease, self.can_log_in()));
            }
            None if self.can_log_in() => {
                log::warn!("the Vault token could not be renewed ({})", reply.explain());
                return self.log_in().ok();
            }
            None => self.end(format!("the Vault token cannot be renewed: {}", reply.explain())),
        }
        None
    }

    /// How the token is; `None` when the server does not know it.
    fn look_up(&self, token: &Token) -> Result<Option<Lease>, Unavailable> {
        #[derive(Deserialize)]
        struct Answer {
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(default)]
            ttl: u64,
            #[serde(default)]
            renewable: bool,
        }

        // If it is used up, that is what the server says.
        let _ = token.take_use();
        let ask = Ask::new(Method::GET, "auth/token/lookup-self", Some(token.value()));
        let reply = self.shared.upstream.send(&ask)?;
        if reply.status == 403 {
            return Ok(None);
        }
        if !reply.is_success() {
            return Err(Unavailable::new(reply.explain()));
        }
        match serde_json::from_slice(&reply.body) {
            Ok(Answer { data }) => Ok(Some(Lease::from_seconds(data.ttl, data.renewable))),
            Err(_) => Err(Unavailable::new("what answers at VAULT_ADDR is not Vault")),
        }
    }

    /// Another token, with one of its uses taken: from the file, if a new one is in there,
    /// else by AppRole.
    fn log_in(&mut self) -> Result<Arc<Token>, Unavailable> {
        if let Some((until, error)) = &self.login_refused
            && clock::now() < *until
        {
            return Err(error.clone());
        }
        match self.try_log_in() {
            Ok(token) => Ok(token),
            Err(LoginError::Unavailable(error)) => {
                self.try_again(Step::LogIn, error.clone());
                Err(error)
            }
            Err(LoginError::Refused(reason)) => {
                let mut error = Unavailable::new(reason);
                log::error!("there is no usable Vault token: {error}");
                if self.can_log_in() {
                    // A file may have been replaced by then, or a role been mended.
                    let pause = self.backoff.after_failure();
                    let until = clock::now() + pause;
                    error.retry_after = pause;
                    self.login_refused = Some((until, error.clone()));
                    self.plan = Some((until, Step::LogIn));
                    self.shared.status().state = RenewalState::Retrying;
                } else {
                    self.shared.status().state = RenewalState::Ended;
                }
                Err(self.note_error(error))
            }
        }
    }

    fn try_log_in(&mut self) -> Result<Arc<Token>, LoginError> {
        let shared = Arc::clone(&self.shared);
        let Credentials { token: source, app_role, .. } = &shared.credentials;
        if let Some(token) = self.token_from_file().map_err(LoginError::Refused)? {
            return Ok(token);
        }
        let Some(app_role) = app_role else {
            return Err(LoginError::Refused(match source {
                Some(Source::File { path, .. }) => format!(
                    "the token in {} is no longer good; put a new one there",
                    path.display()
                ),
                _ => "VAULT_TOKEN is no longer good; set a new one, and start again".to_owned(),
            }));
        };
        let answer = self.app_role_login(app_role)?;
        let (lease, num_uses, value) = (answer.lease(), answer.num_uses, answer.client_token);
        let value = checked(value).map_err(LoginError::Refused)?;
        log::info!("logged in to Vault by AppRole; {}", Lasts(lease));
        let token = self.adopt(value, num_uses);
        self.settle(lease, lease::after_obtaining(lease, true));
        // Whether lookups tell dead tokens from refused requests is seen on a live one; but
        // one that is good for a few requests is not spent on it.
        if num_uses == 0 {
            self.may_look_up = self.look_up(&token).ok().map(|found| found.is_some());
        }
        Ok(token)
    }

    /// The token in the file, if there is a file and what is in it is new.
    fn token_from_file(&mut self) -> Result<Option<Arc<Token>>, String> {
        let Some(source @ Source::File { .. }) = &self.shared.credentials.token else {
            return Ok(None);
        };
        let value = source.read().and_then(checked)?;
        if self.shared.token().is_some_and(|old| old.value.expose() == value.expose()) {
            return Ok(None);
        }
        log::info!("took the Vault token from its file again");
        let token = self.adopt(value, 0);
        self.plan = Some((clock::now(), Step::LookUp));
        Ok(Some(token))
    }

    fn app_role_login(&mut self, app_role: &AppRole) -> Result<LoginAnswer, LoginError> {
        #[derive(serde::Serialize)]
        struct Login<'a> {
            role_id: &'a str,
            secret_id: &'a str,
        }

        let role_id = app_role.role_id.read().map_err(LoginError::Refused)?;
        let secret_id = app_role.secret_id.read().map_err(LoginError::Refused)?;
        let secret_id = if app_role.wrapped { self.unwrap(&secret_id)? } else { secret_id };
        let _watched = self.shared.watched(&secret_id);
        let login = Login { role_id: role_id.expose(), secret_id: secret_id.expose() };
        let mut body =
            Zeroizing::new(Vec::with_capacity(6 * (role_id.len() + secret_id.len()) + 64));
        serde_json::to_writer(&mut *body, &login).expect("texts serialise, and a Vec takes them");
        // A secret ID may be good for one login only.
        let ask = Ask::new(Method::POST, "auth/approle/login", None).json(&body).only_once();
        let reply = self.shared.upstream.send(&ask)?;
        login_answer(&reply).ok_or_else(|| {
            LoginError::Refused(format!(
                "the AppRole login was refused ({}); check VAULT_ROLE_ID and VAULT_SECRET_ID, \
                 and whether the secret ID has expired or been used up",
                reply.explain()
            ))
        })
    }

    /// Takes a secret ID out of its wrapping, once. A wrapping token that was not made by
    /// AppRole, or has been opened already, means that somebody was in between.
    fn unwrap(&mut self, wrapping: &Secret) -> Result<Secret, LoginError> {
        #[derive(Deserialize)]
        struct Answer<T> {
            data: T,
        }
        #[derive(Deserialize)]
        struct Wrapping {
            creation_path: String,
        }
        #[derive(Deserialize)]
        struct SecretId {
            secret_id: String,
        }

        if let Some((from, secret_id)) = &self.unwrapped
            && from.expose() == wrapping.expose()
        {
            return Ok(secret_id.duplicate());
        }
        let refused = |reason: &str| {
            LoginError::Refused(format!(
                "the wrapped secret ID cannot be used: {reason}; if nobody here has unwrapped \
                 it, treat it as stolen, and have a new one made"
            ))
        };
        let wrapping = checked(wrapping.duplicate()).map_err(LoginError::Refused)?;
        let upstream = &self.shared.upstream;
        let ask = Ask::new(Method::POST, "sys/wrapping/lookup", Some(&wrapping));
        let reply = upstream.send(&ask)?;
        if !reply.is_success() {
            return Err(refused(&reply.explain()));
        }
        let Ok(Answer { data: Wrapping { creation_path } }) = serde_json::from_slice(&reply.body)
        else {
            return Err(refused("Vault says nothing of where it was made"));
        };
        if !is_secret_id_path(&creation_path) {
            return Err(refused("it was not made by AppRole"));
        }
        let ask = Ask::new(Method::POST, "sys/wrapping/unwrap", Some(&wrapping)).only_once();
        let reply = upstream.send(&ask)?;
        if !reply.is_success() {
            return Err(refused(&reply.explain()));
        }
        let Ok(Answer { data: SecretId { secret_id } }) = serde_json::from_slice(&reply.body)
        else {
            return Err(refused("there was no secret ID in it"));
        };
        let secret_id = Secret::new(secret_id);
        self.unwrapped = Some((wrapping, secret_id.duplicate()));
        Ok(secret_id)
    }

    /// Puts a new token in everyone's reach, but for one of its uses, if they are limited
    /// (0: they are not).
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
        let mut place = self.shared.token.write().unwrap_or_else(PoisonError::into_inner);
        *place = Some(Arc::clone(&token));
        drop(place);
        let mut status = self.shared.status();
        status.expires = None;
        status.last_error = None;
        drop(status);
        token
    }

    /// Notes how long the token lives, and what is next.
    fn settle(&mut self, lease: Lease, next: Next) {
        self.backoff.reset();
        let now = clock::now();
        let (state, plan) = match next {
            Next::Nothing => (RenewalState::NotNeeded, None),
            _ if !self.shared.renew => (RenewalState::Disabled, None),
            Next::Renew { after } => (RenewalState::Active, Some((now + after, Step::Renew))),
            Next::LogIn { after } => (RenewalState::Active, Some((now + after, Step::LogIn))),
            Next::End => (RenewalState::Ended, None),
        };
        self.plan = plan;
        let mut status = self.shared.status();
        status.expires = lease.ttl.map(|ttl| now + ttl);
        status.state = state;
        status.last_error = None;
        drop(status);
        if next == Next::End && self.shared.renew {
            let reason = format!(
                "the Vault token cannot be renewed any more, and there is no AppRole to log in \
                 with; {}; set VAULT_TOKEN to a new one before",
                Lasts(lease)
            );
            self.end(reason);
        }
    }

    /// Nothing more is done for the token.
    fn end(&mut self, reason: String) {
        log::error!("{reason}");
        self.plan = None;
        let mut status = self.shared.status();
        status.state = RenewalState::Ended;
        status.last_error = Some(reason);
    }

    fn try_again(&mut self, step: Step, error: Unavailable) {
        if self.shared.upstream.is_closed() {
            return;
        }
        let pause = self.backoff.after_failure();
        log::warn!("the Vault token is not looked after: {error}; trying again in {pause:.1?}");
        self.plan = Some((clock::now() + pause, step));
        self.shared.status().state = RenewalState::Retrying;
        self.note_error(error);
    }

    fn note_error(&self, error: Unavailable) -> Unavailable {
        self.shared.status().last_error = Some(error.reason.clone());
        error
    }
}

/// What a login and a renewal answer.
struct LoginAnswer {
    client_token: Secret,
    lease_duration: u64,
    renewable: bool,
    /// How many requests it is good for; 0 for any number.
    num_uses: u64,
}

impl LoginAnswer {
    fn lease(&self) -> Lease {
        Lease::from_seconds(self.lease_duration, self.renewable)
    }
}

fn login_answer(reply: &Reply) -> Option<LoginAnswer> {
    #[derive(Deserialize)]
    struct Answer {
        auth: Auth,
    }
    #[derive(Deserialize)]
    struct Auth {
        client_token: String,
        #[serde(default)]
        lease_duration: u64,
        #[serde(default)]
        renewable: bool,
        #[serde(default)]
        num_uses: u64,
    }

    if !reply.is_success() {
        return None;
    }
    let Answer { auth: Auth { client_token, lease_duration, renewable, num_uses } } =
        serde_json::from_slice(&reply.body).ok()?;
    let client_token = Secret::new(client_token);
    Some(LoginAnswer { client_token, lease_duration, renewable, num_uses })
}

/// Whether it is where AppRole makes secret IDs: `auth/<mount>/role/<name>/secret-id`.
fn is_secret_id_path(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    match *segments {
        ["auth", .., "role", name, "secret-id"] => segments.len() >= 5 && !name.is_empty(),
        _ => false,
    }
}

/// A token that a header can carry.
fn checked(token: Secret) -> Result<Secret, String> {
    let fits = !token.is_empty() && HeaderValue::from_str(token.expose()).is_ok();
    if fits {
        Ok(token)
    } else {
        Err("the token is empty, or has characters that no token has".to_owned())
    }
}

struct Lasts(Lease);

impl fmt::Display for Lasts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.ttl {
            Some(ttl) => write!(f, "it lasts {} s", ttl.as_secs()),
            None => f.write_str("it does not end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapping_has_to_come_from_app_role() {
        assert!(is_secret_id_path("auth/approle/role/vault/secret-id"));
        assert!(is_secret_id_path("auth/team/approle/role/vault/secret-id"));
        for path in [
            "sys/wrapping/wrap",
            "auth/approle/role/vault/custom-secret-id",
            "auth/approle/role//secret-id",
            "auth/role/vault/secret-id",
            "x/auth/approle/role/vault/secret-id",
            "",
        ] {
            assert!(!is_secret_id_path(path), "{path}");
        }
    }
}
