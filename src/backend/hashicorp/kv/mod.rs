//! The KV version 2 engine: one secret for each namespace, one field for each key.
//! <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2>

mod answer;
mod body;
mod remove;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

use crate::backoff::{Backoff, full_jitter};
use crate::model::Namespace;

use super::clock;
use super::http::{Http, Unavailable};
use super::reply::Reply;
use super::request::{Repeat, Request};
use super::token::{Refused, Tokens};
pub(super) use answer::Found;
use answer::{is_conflict, version_of_nothing, wants_cas};
use body::{Changes, patch, whole};

/// Why an operation on a secret failed. Callers who share a request share its failure.
#[derive(Debug, Clone)]
pub(super) enum KvError {
    /// The server cannot answer, or there is no valid token. A change may or may not have
    /// been made.
    Unavailable(Unavailable),
    /// The server refused, and nothing has changed.
    Refused(String),
}

impl From<Unavailable> for KvError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// What earlier changes showed about how a secret can be written.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// When an old server or the policy refused `PATCH`.
    patch_refused: Option<Duration>,
    /// Writes without check-and-set are refused.
    cas_required: bool,
}

impl Habits {
    /// Policies change, and servers are replaced.
    const FORGET_AFTER: Duration = Duration::from_mins(5);

    fn may_patch(&self) -> bool {
        self.patch_refused.is_none_or(|at| clock::now().saturating_sub(at) > Self::FORGET_AFTER)
    }

    /// Whether there is nothing in them to remember.
    pub(super) fn are_usual(&self) -> bool {
        !self.cas_required && self.may_patch()
    }
}

/// The engine, as seen with one token.
pub(super) struct Kv {
    http: Arc<Http>,
    tokens: Tokens,
    mount: String,
    prefix: String,
    /// A namespace in which nothing is ever stored.
    trial: Namespace,
}

impl Kv {
    pub(super) fn new(http: Arc<Http>, tokens: Tokens, mount: String, prefix: String) -> Self {
        let trial = Namespace::new("credential-vault.trial").expect("a valid name");
        Self { http, tokens, mount, prefix, trial }
    }

    pub(super) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn path(&self, what: &str, namespace: &Namespace) -> String {
        // A namespace has no character that must be encoded in a path.
        format!("{}/{what}/{}/{namespace}", self.mount, self.prefix)
    }

    /// Sends a request with the token; once more if that was dead and there is another.
    fn ask(&self, request: Request<'_>) -> Result<Reply, KvError> {
        let token = self.tokens.token()?;
        let reply = self.http.send(&request, token.as_ref().map(|token| token.value()))?;
        let Some(token) = token.filter(|_| reply.status == 403) else { return Ok(reply) };
        match self.tokens.rejected(&token)? {
            Refused::TokenIsGood => Ok(reply),
            // The login took time, and the request was right at its moment only.
            Refused::TokenReplaced(_) if request.repeat == Repeat::Never => {
                let reason = "the token was replaced meanwhile".to_owned();
                Err(Unavailable { reason, retry_after: Duration::ZERO }.into())
            }
            Refused::TokenReplaced(token) => Ok(self.http.send(&request, Some(token.value()))?),
        }
    }

    /// Reads the current version of the namespace's secret.
    pub(super) fn read(&self, namespace: &Namespace) -> Result<Found, KvError> {
        let path = self.path("data", namespace);
        let reply = self.ask(Request::new("GET", &path))?;
        match reply.status {
            200 | 404 => {}
            _ => return Err(self.refused(&reply, "read", "data", namespace)),
        }
        if let Some(found) = Found::in_reply(&reply) {
            return Ok(found);
        }
        if reply.status == 404 {
            return Err(self.refused(&reply, "read", "data", namespace));
        }
        Err(KvError::Refused(format!(
            "Vault has something at {path} that is not a secret of a KV engine of version 2; is \
             VAULT_KV_MOUNT right?"
        )))
    }

    /// Stores the fields, and keeps the others that the secret has.
    ///
    /// The server merges by itself where it can (`PATCH`), in one round trip. Where the mount
    /// or the secret requires check-and-set, the version is read and sent along. Where the
    /// server or the policy does not allow `PATCH`, the secret is read and written whole, on
    /// the condition that its version is still the same.
    pub(super) fn merge(
        &self,
        namespace: &Namespace,
        changes: &Changes<'_>,
        habits: &mut Habits,
    ) -> Result<(), KvError> {
        let path = self.path("data", namespace);
        let post = |found: &Found| {
            self.ask(Request::new("POST", &path).json(&whole(found, changes, None)))
        };
        let mut conflicts = Conflicts::default();
        let mut cas = None;
        loop {
            if !habits.may_patch() {
                let reply = post(&self.read(namespace)?)?;
                if !is_conflict(&reply) {
                    return self.done(&reply, "create and update", namespace);
                }
                conflicts.pause()?;
                continue;
            }
            if habits.cas_required && cas.is_none() {
                cas = Some(self.read(namespace)?.version());
            }
            let reply = self.ask(Request::new("PATCH", &path).merge_patch(&patch(changes, cas)))?;
            match reply.status {
                404 => {
                    let Some(version) = version_of_nothing(&reply) else {
                        return Err(self.refused(&reply, "patch", "data", namespace));
                    };
                    let reply = post(&Found::Nothing { version })?;
                    if !is_conflict(&reply) {
                        return self.done(&reply, "create", namespace);
                    }
                    cas = None;
                    conflicts.pause()?;
                }
                403 | 405 => habits.patch_refused = Some(clock::now()),
                400 if wants_cas(&reply) && cas.is_none() => habits.cas_required = true,
                400 if is_conflict(&reply) => {
                    cas = None;
                    conflicts.pause()?;
                }
                _ => return self.done(&reply, "patch", namespace),
            }
        }
    }

    /// Checks that the server accepts the token and has the engine.
    pub(super) fn check(&self) -> Result<(), KvError> {
        #[derive(Deserialize)]
        struct Answer {
            data: Mount,
        }
        #[derive(Deserialize)]
        struct Mount {
            options: Option<BTreeMap<String, String>>,
        }

        let lookup = self.ask(Request::new("GET", "auth/token/lookup-self"))?;
        match lookup.status {
            _ if lookup.is_success() => {}
            // The policy may forbid the token to look itself up, but must allow it to read.
            403 => drop(self.read(&self.trial)?),
            _ => return Err(Unavailable::new(lookup.explain()).into()),
        }
        // What a token may know about the mounts that it may use; a policy may forbid this too.
        let path = format!("sys/internal/ui/mounts/{}", self.mount);
        let reply = self.ask(Request::new("GET", &path))?;
        if let Ok(Answer { data: Mount { options } }) = serde_json::from_slice(&reply.body)
            && options.and_then(|options| options.get("version").cloned()).as_deref() != Some("2")
        {
            return Err(KvError::Refused(format!(
                "{} is no KV engine of version 2; set VAULT_KV_MOUNT to one, or make one: \
                 vault secrets enable -path={0} -version=2 kv",
                self.mount
            )));
        }
        Ok(())
    }

    fn done(&self, reply: &Reply, needs: &str, namespace: &Namespace) -> Result<(), KvError> {
        if reply.is_success() {
            return Ok(());
        }
        Err(self.refused(reply, needs, "data", namespace))
    }

    /// What a refusal means, and what to do about it.
    fn refused(&self, reply: &Reply, needs: &str, what: &str, namespace: &Namespace) -> KvError {
        let path = self.path(what, namespace);
        KvError::Refused(match reply.status {
            403 => {
                format!("the token is not valid, or its policy does not grant {needs} on {path}")
            }
            413 => "it is too large for Vault".to_owned(),
            404 if !reply.says_nothing() => {
                format!("{}; are VAULT_KV_MOUNT and VAULT_NAMESPACE right?", reply.explain())
            }
            _ => format!("{} (at {path})", reply.explain()),
        })
    }
}

/// Retries after changes that other writers forestalled.
struct Conflicts {
    left: u32,
    backoff: Backoff,
}

impl Default for Conflicts {
    fn default() -> Self {
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
        Self { left: 16, backoff }
    }
}

impl Conflicts {
    /// Waits for a random time, and fails if there have been too many.
    fn pause(&mut self) -> Result<(), KvError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            KvError::Refused(
                "others keep changing the secret at the same time; try again".to_owned(),
            )
        })?;
        thread::sleep(full_jitter(self.backoff.next_pause()));
        Ok(())
    }
}
