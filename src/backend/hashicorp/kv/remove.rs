//! Removing a field, and with the last one the whole secret.

use std::thread;

use crate::backend::hashicorp::clock;
use crate::backend::hashicorp::reply::Reply;
use crate::backend::hashicorp::request::{Repeat, Request};
use crate::model::Namespace;

use super::answer::{Found, is_conflict, versions_up_to, wants_cas, written_version};
use super::body::{patch_away, whole};
use super::{Conflicts, Habits, Kv, KvError};

impl Kv {
    /// Removes a field; with the last one, the secret with all its versions and its metadata.
    /// Returns whether there was such a field.
    ///
    /// The server deletes metadata without any condition. So the caller must not let anybody
    /// in this process write to the namespace meanwhile. A write of another process is lost
    /// only if it comes between the read that finds the field to be the last and the deletion
    /// that follows at once.
    pub(in super::super) fn remove(
        &self,
        namespace: &Namespace,
        key: &str,
        habits: &mut Habits,
    ) -> Result<bool, KvError> {
        let mut conflicts = Conflicts::default();
        let deadline = clock::now() + self.http.timeout();
        let mut retries = self.http.max_retries();
        let mut tried = false;
        loop {
            let found = self.read(namespace)?;
            let Some(fields) = found.fields().filter(|fields| fields.contains_key(key)) else {
                return Ok(tried);
            };
            let removed = if fields.len() > 1 {
                self.remove_field(namespace, key, &found, habits)
            } else {
                self.remove_secret(namespace, &found)
            };
            match removed {
                Ok(true) => return Ok(true),
                Ok(false) => conflicts.pause()?,
                // By the time of a second attempt there may be a second field, so the secret
                // is read again before it.
                Err(KvError::Unavailable(error))
                    if fields.len() == 1
                        && retries > 0
                        && clock::now() + error.retry_after < deadline =>
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
    fn remove_field(
        &self,
        namespace: &Namespace,
        key: &str,
        found: &Found,
        habits: &mut Habits,
    ) -> Result<bool, KvError> {
        let path = self.path("data", namespace);
        if habits.may_patch() {
            let body = patch_away(key, habits.cas_required.then_some(found.version()));
            let reply = self.ask(Request::new("PATCH", &path).merge_patch(&body))?;
            match reply.status {
                // Somebody else has deleted all of it.
                404 if reply.says_nothing() => return Ok(true),
                403 | 405 => habits.patch_refused = Some(clock::now()),
                400 if wants_cas(&reply) => {
                    habits.cas_required = true;
                    return Ok(false);
                }
                400 if is_conflict(&reply) => return Ok(false),
                _ => {
                    self.done(&reply, "patch", namespace)?;
                    // Another writer came between, and may have removed the other fields.
                    if written_version(&reply) != found.version().checked_add(1) {
                        let now = self.read(namespace)?;
                        if now.is_empty_secret() {
                            return self.remove_secret(namespace, &now);
                        }
                    }
                    return Ok(true);
                }
            }
        }
        let reply = self.ask(Request::new("POST", &path).json(&whole(found, &[], Some(key))))?;
        if is_conflict(&reply) {
            return Ok(false);
        }
        self.done(&reply, "update", namespace).map(|()| true)
    }

    /// Removes the secret. Returns `false` if another writer was first.
    fn remove_secret(&self, namespace: &Namespace, found: &Found) -> Result<bool, KvError> {
        let path = self.path("metadata", namespace);
        let reply = self.ask(Request::new("DELETE", &path).repeat(Repeat::Never))?;
        match reply.status {
            _ if reply.is_success() => Ok(true),
            403 => self.destroy(namespace, found.version(), &reply),
            _ => Err(self.refused(&reply, "delete", "metadata", namespace)),
        }
    }

    /// Removes the secret where the policy does not grant `delete` on metadata: empties it on
    /// the condition that it is at `version`, and destroys that version and those before it.
    /// So nothing is lost that others have written since.
    fn destroy(
        &self,
        namespace: &Namespace,
        version: u64,
        refusal: &Reply,
    ) -> Result<bool, KvError> {
        let destroy = |versions: &[u64]| {
            let body = serde_json::json!({ "versions": versions }).to_string();
            let path = self.path("destroy", namespace);
            self.ask(Request::new("PUT", &path).json(body.as_bytes()))
        };
        let path = self.path("metadata", namespace);
        let reply = self.ask(Request::new("GET", &path))?;
        let Some(versions) = versions_up_to(&reply, version) else {
            return Err(self.refused(&reply, "read", "metadata", namespace));
        };
        // Whether the policy grants it must be known before anything changes.
        if destroy(&[])?.status == 403 {
            return Err(self.refused(refusal, "delete", "metadata", namespace));
        }
        let path = self.path("data", namespace);
        let empty = whole(&Found::Nothing { version }, &[], None);
        let reply = self.ask(Request::new("POST", &path).json(&empty))?;
        if is_conflict(&reply) {
            // It may have been this very request, repeated because its answer was lost.
            let now = self.read(namespace)?;
            if Some(now.version()) != version.checked_add(1) || !now.is_empty_secret() {
                return Ok(false);
            }
        } else {
            self.done(&reply, "update", namespace)?;
        }
        let reply = destroy(&versions)?;
        if !reply.is_success() {
            let reason = reply.explain();
            log::warn!("old versions of {path} could not be destroyed: {reason}");
        }
        Ok(true)
    }
}
