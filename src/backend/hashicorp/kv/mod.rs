//! The KV version 2 engine: one secret for each namespace, one field for each key.
//! <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2>

mod data;
mod writer;

use std::sync::Arc;

use serde_json::Value;

use super::diagnose::TRIAL;
use super::http::Http;
use super::message::{Error, Reply, Request, Unavailable};
use super::settings::Settings;
use super::token::Tokens;
pub(super) use data::{Change, Found};
pub(super) use writer::{Habits, Writer};

/// The engine, and the tokens for it.
pub(super) struct Kv {
    pub(super) http: Arc<Http>,
    pub(super) tokens: Tokens,
}

impl Kv {
    pub(super) fn new(http: Arc<Http>) -> Self {
        Self { tokens: Tokens::new(Arc::clone(&http)), http }
    }

    /// The path of a secret's `data`, `metadata` or the like. No character of a name needs
    /// encoding in a URL.
    pub(super) fn path(&self, what: &str, name: &str) -> String {
        let Settings { mount, prefix, .. } = &self.http.settings;
        format!("{mount}/{what}/{prefix}/{name}")
    }

    /// Sends a request with the token, and once more with a new token if that one is dead.
    pub(super) fn ask(&self, request: Request<'_>) -> Result<Reply, Error> {
        let token = self.tokens.token()?;
        let reply = self.http.send(&request, token.as_ref().map(|token| &token.value))?;
        let Some(token) = token.filter(|_| reply.status == 403) else { return Ok(reply) };
        match self.tokens.rejected(&token)? {
            None => Ok(reply),
            // The login took time, so the caller must check first whether the request is still
            // right.
            Some(_) if !request.may_repeat => {
                Err(Unavailable::new("the token was replaced meanwhile").into())
            }
            Some(token) => Ok(self.http.send(&request, Some(&token.value))?),
        }
    }

    /// Reads the current version of a secret.
    pub(super) fn read(&self, name: &str) -> Result<Found, Error> {
        self.read_at(&self.path("data", name))
    }

    /// The names in a folder; those of folders end with a slash.
    pub(super) fn list(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.path("metadata", folder);
        let reply = self.ask(Request::new("GET", &format!("{path}?list=true")))?;
        if reply.status == 404 && reply.errors.is_empty() {
            return Ok(Vec::new());
        }
        done(&reply, "list", &path)?;
        let names = serde_json::from_value(reply.json()["data"]["keys"].take());
        names.map_err(|_| format!("{path} is no listing, or longer than 1 MiB").into())
    }

    fn read_at(&self, path: &str) -> Result<Found, Error> {
        let reply = self.ask(Request::new("GET", path))?;
        match Found::in_reply(&reply) {
            Some(found) => Ok(found),
            None if reply.status == 200 => Err(Error::Refused(format!(
                "Vault has something at {path} that is not a secret of a KV engine of version 2; \
                 is VAULT_KV_MOUNT right?"
            ))),
            None => Err(refused(&reply, "read", path)),
        }
    }

    /// Checks that the server accepts the token and has the engine.
    pub(super) fn check(&self) -> Result<(), Error> {
        let lookup = self.ask(Request::new("GET", "auth/token/lookup-self"))?;
        match lookup.status {
            _ if lookup.is_success() => {}
            // The policy may forbid the token to look itself up, but must allow it to read.
            403 => drop(self.read_at(&self.path("data", TRIAL))?),
            _ => return Err(Unavailable::new(lookup.explain()).into()),
        }
        // A token may ask about the mounts that it may use, unless a policy forbids this too.
        let mount = &self.http.settings.mount;
        let reply = self.ask(Request::new("GET", &format!("sys/internal/ui/mounts/{mount}")))?;
        let json = reply.json();
        let version = json.pointer("/data/options/version").and_then(Value::as_str);
        if !reply.is_success() || version == Some("2") {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "{mount} is no KV engine of version 2; set VAULT_KV_MOUNT to one, or make one: \
             vault secrets enable -path={mount} -version=2 kv"
        )))
    }
}

/// Returns an error if the request was refused. `needs` is the capability that it takes.
fn done(reply: &Reply, needs: &str, path: &str) -> Result<(), Error> {
    if reply.is_success() { Ok(()) } else { Err(refused(reply, needs, path)) }
}

/// Explains a refusal, and says what to do about it.
fn refused(reply: &Reply, needs: &str, path: &str) -> Error {
    let words = reply.explain();
    Error::Refused(match reply.status {
        403 => format!("the token is not valid, or its policy does not grant {needs} on {path}"),
        413 => "it is too large for Vault".to_owned(),
        404 if !reply.errors.is_empty() => {
            format!("{words}; are VAULT_KV_MOUNT and VAULT_NAMESPACE right?")
        }
        _ => format!("{words} (at {path})"),
    })
}
