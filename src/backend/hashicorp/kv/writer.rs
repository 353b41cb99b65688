//! Changing a secret: storing fields, and removing one.

use std::thread;
use std::time::Duration;

use crate::backend::hashicorp::clock;
use crate::backend::hashicorp::message::{Error, Reply, Request, number};
use crate::backend::hashicorp::settings::Settings;
use crate::backoff::{Backoff, full_jitter};

use super::data::{Change, Found, patch, whole};
use super::{Kv, done, refused};

/// How a secret must be written, as learnt from earlier changes.
#[derive(Debug, Default)]
pub(in super::super) struct Habits {
    /// When an old server or the policy refused `PATCH`.
    patch_refused: Option<Duration>,
    /// Writes without check-and-set are refused.
    cas_required: bool,
}

impl Habits {
    /// Policies change, and servers are replaced.
    const FORGET_AFTER: Duration = Duration::from_secs(5 * 60);

    fn may_patch(&self) -> bool {
        self.patch_refused.is_none_or(|at| clock::now().saturating_sub(at) > Self::FORGET_AFTER)
    }

    /// Whether nothing has been learnt that must be remembered.
    pub(in super::super) fn are_usual(&self) -> bool {
        !self.cas_required && self.may_patch()
    }
}

/// Changes one secret.
pub(in super::super) struct Writer<'a> {
    kv: &'a Kv,
    name: &'a str,
    /// The path of its data.
    path: String,
    habits: &'a mut Habits,
    /// Whether changes name the version that they are made to.
    is_checked: bool,
    /// How many more conflicts with other writers are tolerated.
    conflicts_left: u32,
    backoff: Backoff,
}

impl<'a> Writer<'a> {
    pub(in super::super) fn new(kv: &'a Kv, name: &'a str, habits: &'a mut Habits) -> Self {
        let path = kv.path("data", name);
        let backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
        Self { kv, name, path, habits, is_checked: false, conflicts_left: 16, backoff }
    }

    /// Stores the fields, and keeps the others that the secret has.
    ///
    /// The server merges by itself where it can (`PATCH`), in one round trip. Where the mount
    /// or the secret requires check-and-set, the version is read and sent along. Where the
    /// server or the policy does not allow `PATCH`, the secret is read and written whole, on
    /// the condition that its version is still the same.
    pub(in super::super) fn merge(&mut self, changes: &[Change]) -> Result<(), Error> {
        loop {
            let is_blind = self.habits.may_patch() && !self.habits.cas_required;
            let found = if is_blind { None } else { Some(self.kv.read(self.name)?) };
            if self.try_to_change(found.as_ref(), changes)?.is_some() {
                return Ok(());
            }
        }
    }

    /// Makes one attempt to change the secret, and returns its new version. Returns `None` if
    /// another writer was first, or if the secret must be written in another way.
    fn try_to_change(
        &mut self,
        found: Option<&Found>,
        changes: &[Change],
    ) -> Result<Option<u64>, Error> {
        if let Some(found) = found
            && !self.habits.may_patch()
        {
            return self.write(found, changes, "create and update");
        }
        let is_checked = self.habits.cas_required || self.is_checked;
        let cas = found.filter(|_| is_checked).map(|found| found.version);
        let reply = self.send("PATCH", &patch(changes, cas))?;
        match reply.status {
            403 | 405 => self.habits.patch_refused = Some(clock::now()),
            400 if cas.is_none() && reply.says("check-and-set parameter required") => {
                self.habits.cas_required = true;
            }
            404 => {
                // The version of what was deleted, or 0 if there has never been anything.
                let version = number(&reply.json(), "/data/version");
                if version == 0 && !reply.errors.is_empty() {
                    return Err(refused(&reply, "patch", &self.path));
                }
                if changes.iter().all(|change| change.value.is_none()) {
                    return Ok(Some(version));
                }
                if self.is_checked && found.is_some_and(|found| found.version != version) {
                    return Ok(None);
                }
                return self.write(&Found { version, fields: None }, changes, "create");
            }
            _ => return self.outcome(&reply, "patch"),
        }
        Ok(None)
    }

    /// Writes the secret as a whole. Returns `None` if another writer was first.
    fn write(
        &mut self,
        found: &Found,
        changes: &[Change],
        needs: &str,
    ) -> Result<Option<u64>, Error> {
        let reply = self.send("POST", &whole(found, changes))?;
        self.outcome(&reply, needs)
    }

    /// The new version. Returns `None` after a pause if another writer was first.
    fn outcome(&mut self, reply: &Reply, needs: &str) -> Result<Option<u64>, Error> {
        // Another writer was first. The server does not answer 412 for that.
        if reply.status == 400 && reply.says("did not match the current version") {
            self.pause()?;
            return Ok(None);
        }
        done(reply, needs, &self.path)?;
        Ok(Some(number(&reply.json(), "/data/version")))
    }

    /// Removes a field; with the last one, the secret with all its versions and its metadata.
    /// Returns whether there was such a field.
    ///
    /// The server deletes metadata without any condition. So the caller must prevent other
    /// writes of this process to the namespace meanwhile. A write of another process is lost
    /// only if it comes between the read that shows that the field is the last one and the
    /// deletion, which follows at once.
    pub(in super::super) fn remove(&mut self, key: &str) -> Result<bool, Error> {
        let Settings { timeout, max_retries: mut retries, .. } = self.kv.http.settings;
        let deadline = clock::now().saturating_add(timeout);
        let removal = [Change { key: key.to_owned(), value: None }];
        let mut tried = false;
        loop {
            let found = self.kv.read(self.name)?;
            if found.field(key).is_none() {
                return Ok(tried);
            }
            if found.fields.as_ref().is_some_and(|fields| fields.len() > 1) {
                let Some(version) = self.try_to_change(Some(&found), &removal)? else { continue };
                // Another writer came between, and may have removed the other fields.
                if Some(version) != found.version.checked_add(1) {
                    self.remove_if_empty()?;
                }
                return Ok(true);
            }
            match self.remove_secret(&found) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                // By the time of a second attempt there may be a second field, so the secret
                // is read again before it.
                Err(Error::Unavailable(error))
                    if retries > 0 && error.pause() < deadline.saturating_sub(clock::now()) =>
                {
                    thread::sleep(error.pause());
                    retries -= 1;
                    tried = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes the changes that `revise` wants of the secret as it is at that moment.
    pub(in super::super) fn revise(
        &mut self,
        revise: impl Fn(&Found) -> Vec<Change>,
    ) -> Result<(), Error> {
        self.is_checked = true;
        loop {
            let found = self.kv.read(self.name)?;
            let changes = revise(&found);
            if changes.is_empty() {
                return Ok(());
            }
            if self.try_to_change(Some(&found), &changes)?.is_some() {
                let is_removal = changes.iter().all(|change| change.value.is_none());
                return if is_removal { self.remove_if_empty() } else { Ok(()) };
            }
        }
    }

    fn remove_if_empty(&mut self) -> Result<(), Error> {
        let now = self.kv.read(self.name)?;
        if now.is_empty_secret() {
            self.remove_secret(&now)?;
        }
        Ok(())
    }

    /// Removes the secret. Returns `false` if another writer was first.
    fn remove_secret(&mut self, found: &Found) -> Result<bool, Error> {
        let path = self.kv.path("metadata", self.name);
        let request = Request { may_repeat: false, ..Request::new("DELETE", &path) };
        let reply = self.kv.ask(request)?;
        if reply.status == 403 {
            return self.destroy(found.version, &path, &reply);
        }
        done(&reply, "delete", &path).map(|()| true)
    }

    /// Removes the secret where the policy does not grant `delete` on metadata: empties it on
    /// the condition that it is at `version`, and destroys that version and those before it.
    /// So it keeps what others have written since.
    fn destroy(&mut self, version: u64, metadata: &str, refusal: &Reply) -> Result<bool, Error> {
        let path = self.kv.path("destroy", self.name);
        let kv = self.kv;
        let destroy = |versions: &[u64]| {
            let body = serde_json::json!({ "versions": versions }).to_string();
            kv.ask(Request::with_body("PUT", &path, body.as_bytes()))
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
        if self.write(&Found { version, fields: None }, &[], "update")?.is_none() {
            // It may have been this very request, repeated because its answer was lost.
            let now = self.kv.read(self.name)?;
            if Some(now.version) != version.checked_add(1) || !now.is_empty_secret() {
                return Ok(false);
            }
        }
        let reply = destroy(&versions)?;
        if !reply.is_success() {
            log::warn!("old versions of {} are not destroyed: {}", self.path, reply.explain());
        }
        Ok(true)
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
