//! Changing a secret: storing fields, and removing one.

use std::thread;
use std::time::Duration;

use crate::backend::hashicorp::clock;
use crate::backend::hashicorp::message::{Error, Repeat, Reply, Request, number};
use crate::backoff::{Backoff, full_jitter};
use crate::model::Namespace;

use super::data::{Changes, Found, patch, patch_away, whole};
use super::{Kv, done, refused};

/// What earlier changes showed about how a secret can be written.
#[derive(Debug, Default)]
pub(in super::super) struct Habits {
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
    pub(in super::super) fn are_usual(&self) -> bool {
        !self.cas_required && self.may_patch()
    }
}

/// Changes the secret of one namespace.
pub(in super::super) struct Writer<'a> {
    kv: &'a Kv,
    namespace: &'a Namespace,
    /// The path of its data.
    path: String,
    habits: &'a mut Habits,
    /// How often another writer may still be first.
    conflicts_left: u32,
    backoff: Backoff,
}

impl<'a> Writer<'a> {
    pub(in super::super) fn new(
        kv: &'a Kv,
        namespace: &'a Namespace,
        habits: &'a mut Habits,
    ) -> Self {
        let path = kv.path("data", namespace.as_str());
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
        Self { kv, namespace, path, habits, conflicts_left: 16, backoff }
    }

    /// Stores the fields, and keeps the others that the secret has.
    ///
    /// The server merges by itself where it can (`PATCH`), in one round trip. Where the mount
    /// or the secret requires check-and-set, the version is read and sent along. Where the
    /// server or the policy does not allow `PATCH`, the secret is read and written whole, on
    /// the condition that its version is still the same.
    pub(in super::super) fn merge(&mut self, changes: &Changes<'_>) -> Result<(), Error> {
        let mut cas = None;
        loop {
            if !self.habits.may_patch() {
                let reply = self.send("POST", &whole(&self.read()?, changes, None))?;
                if !is_conflict(&reply) {
                    return done(&reply, "create and update", &self.path);
                }
                self.pause()?;
                continue;
            }
            if self.habits.cas_required && cas.is_none() {
                cas = Some(self.read()?.version);
            }
            let mut reply = self.send("PATCH", &patch(changes, cas))?;
            if reply.status == 404 {
                // The version of what was deleted, or 0 if there has never been anything.
                let version = number(&reply.json(), "/data/version");
                if version == 0 && !reply.says_nothing() {
                    return Err(refused(&reply, "patch", &self.path));
                }
                reply =
                    self.send("POST", &whole(&Found { version, fields: None }, changes, None))?;
                if !is_conflict(&reply) {
                    return done(&reply, "create", &self.path);
                }
            }
            match reply.status {
                403 | 405 => self.habits.patch_refused = Some(clock::now()),
                _ if wants_cas(&reply) && cas.is_none() => self.habits.cas_required = true,
                _ if is_conflict(&reply) => {
                    cas = None;
                    self.pause()?;
                }
                _ => return done(&reply, "patch", &self.path),
            }
        }
    }

    /// Removes a field; with the last one, the secret with all its versions and its metadata.
    /// Returns whether there was such a field.
    ///
    /// The server deletes metadata without any condition. So the caller must not let anybody
    /// in this process write to the namespace meanwhile. A write of another process is lost
    /// only if it comes between the read that finds the field to be the last and the deletion
    /// that follows at once.
    pub(in super::super) fn remove(&mut self, key: &str) -> Result<bool, Error> {
        let deadline = clock::now() + self.kv.http.timeout;
        let mut retries = self.kv.http.max_retries;
        let mut tried = false;
        loop {
            let found = self.read()?;
            let Some(fields) = found.fields.as_ref().filter(|fields| fields.contains_key(key))
            else {
                return Ok(tried);
            };
            let is_last = fields.len() == 1;
            let removed =
                if is_last { self.remove_secret(&found) } else { self.remove_field(key, &found) };
            match removed {
                Ok(true) => return Ok(true),
                Ok(false) => self.pause()?,
                // By the time of a second attempt there may be a second field, so the secret
                // is read again before it.
                Err(Error::Unavailable(error))
                    if is_last && retries > 0 && clock::now() + error.retry_after < deadline =>
                {
                    thread::sleep(error.retry_after);
                    retries -= 1;
                    tried = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns `false` if another writer was first.
    fn remove_field(&mut self, key: &str, found: &Found) -> Result<bool, Error> {
        if self.habits.may_patch() {
            let cas = self.habits.cas_required.then_some(found.version);
            let reply = self.send("PATCH", &patch_away(key, cas))?;
            match reply.status {
                // Somebody else has deleted all of it.
                404 if reply.says_nothing() => return Ok(true),
                403 | 405 => self.habits.patch_refused = Some(clock::now()),
                _ if wants_cas(&reply) => {
                    self.habits.cas_required = true;
                    return Ok(false);
                }
                _ if is_conflict(&reply) => return Ok(false),
                _ => {
                    done(&reply, "patch", &self.path)?;
                    let version = number(&reply.json(), "/data/version");
                    // Another writer came between, and may have removed the other fields.
                    if Some(version) != found.version.checked_add(1) {
                        let now = self.read()?;
                        if now.is_empty_secret() {
                            return self.remove_secret(&now);
                        }
                    }
                    return Ok(true);
                }
            }
        }
        let reply = self.send("POST", &whole(found, &[], Some(key)))?;
        if is_conflict(&reply) {
            return Ok(false);
        }
        done(&reply, "update", &self.path).map(|()| true)
    }

    /// Removes the secret. Returns `false` if another writer was first.
    fn remove_secret(&self, found: &Found) -> Result<bool, Error> {
        let path = self.kv.path("metadata", self.namespace.as_str());
        let request = Request { repeat: Repeat::Never, ..Request::new("DELETE", &path) };
        let reply = self.kv.ask(request)?;
        if reply.status == 403 {
            return self.destroy(found.version, &path, &reply);
        }
        done(&reply, "delete", &path).map(|()| true)
    }

    /// Removes the secret where the policy does not grant `delete` on metadata: empties it on
    /// the condition that it is at `version`, and destroys that version and those before it.
    /// So nothing is lost that others have written since.
    fn destroy(&self, version: u64, metadata: &str, refusal: &Reply) -> Result<bool, Error> {
        let destroy = |versions: &[u64]| {
            let body = serde_json::json!({ "versions": versions }).to_string();
            let path = self.kv.path("destroy", self.namespace.as_str());
            self.kv.ask(Request::with_body("PUT", &path, body.as_bytes()))
        };
        let reply = self.kv.ask(Request::new("GET", metadata))?;
        done(&reply, "read", metadata)?;
        let json = reply.json();
        let versions = json.pointer("/data/versions").and_then(|versions| versions.as_object());
        let versions = versions.into_iter().flatten().filter_map(|(kept, _)| kept.parse().ok());
        let versions: Vec<u64> = versions.filter(|kept| *kept <= version).collect();
        // Whether the policy grants it must be known before anything changes.
        if destroy(&[])?.status == 403 {
            return Err(refused(refusal, "delete", metadata));
        }
        let reply = self.send("POST", &whole(&Found { version, fields: None }, &[], None))?;
        if is_conflict(&reply) {
            // It may have been this very request, repeated because its answer was lost.
            let now = self.read()?;
            if Some(now.version) != version.checked_add(1) || !now.is_empty_secret() {
                return Ok(false);
            }
        } else {
            done(&reply, "update", &self.path)?;
        }
        let reply = destroy(&versions)?;
        if !reply.is_success() {
            let (path, reason) = (&self.path, reply.explain());
            log::warn!("old versions of {path} could not be destroyed: {reason}");
        }
        Ok(true)
    }

    fn read(&self) -> Result<Found, Error> {
        self.kv.read_at(&self.path)
    }

    fn send(&self, method: &'static str, body: &[u8]) -> Result<Reply, Error> {
        self.kv.ask(Request::with_body(method, &self.path, body))
    }

    /// Waits for a random time after a conflict, and fails if there have been too many.
    fn pause(&mut self) -> Result<(), Error> {
        self.conflicts_left = self.conflicts_left.checked_sub(1).ok_or_else(|| {
            Error::Refused("others keep changing the secret at the same time; try again".to_owned())
        })?;
        thread::sleep(full_jitter(self.backoff.next_pause()));
        Ok(())
    }
}

/// Whether another writer was first: the status is 400, not 412.
fn is_conflict(reply: &Reply) -> bool {
    reply.status == 400 && reply.says("did not match the current version")
}

/// Whether writes need check-and-set.
fn wants_cas(reply: &Reply) -> bool {
    reply.status == 400 && reply.says("check-and-set parameter required")
}
