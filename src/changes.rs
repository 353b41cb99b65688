//! Changes of value and metadata: one at a time for each credential, and each of them wholly made
//! or not at all, also after a crash or an error of the backend.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::CredentialVault;
use crate::backoff::Backoff;
use crate::error::VaultError;
use crate::metadata::{Kind, Mark, MetadataStore, lock};
use crate::model::{CredentialRecord, CredentialRef, HIDDEN, Validity, mask_value};
use crate::secret::Secret;
use crate::shared::Shared;
use crate::time::Timestamp;

/// The pauses between two attempts to settle what is open.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long a change that was not made may still be made: a request that was on its way when the
/// service was killed can reach the backend after the service has started again.
const GRACE: Duration = Duration::from_secs(10);

/// The changes of one vault. [`CredentialVault`] documents their steps.
pub(crate) struct Changes {
    vault: Arc<dyn CredentialVault>,
    pub(crate) metadata: Arc<MetadataStore>,
    /// The metadata of all hosts, of which `metadata` is a copy, if the backend has that.
    pub(crate) shared: Option<Arc<Shared>>,
    /// The credentials that are being changed, each by one caller.
    held: Mutex<HashSet<CredentialRef>>,
    released: Condvar,
    open: Mutex<Open>,
    changed: Condvar,
}

/// The intents whose outcome is not known, while no caller is making the change.
#[derive(Default)]
struct Open {
    since: HashMap<CredentialRef, Instant>,
    has_thread: bool,
    is_closed: bool,
}

/// The right to change one credential, until it is dropped.
pub(crate) struct ChangeLock<'a> {
    changes: &'a Arc<Changes>,
    at: &'a CredentialRef,
}

impl Changes {
    pub(crate) fn new(vault: Arc<dyn CredentialVault>, metadata: Arc<MetadataStore>) -> Self {
        let mut interrupted = metadata.intents(vault.name()).unwrap_or_else(|error| {
            log::error!("interrupted changes are not settled: {error}");
            Vec::new()
        });
        if !vault.is_durable() {
            // Its values are gone with the process that made the changes, and their rows stay.
            interrupted.drain(..).for_each(|at| metadata.finish(&at));
        }
        let since = interrupted.into_iter().map(|at| (at, Instant::now())).collect();
        Self {
            shared: Shared::new(&vault, &metadata),
            vault,
            metadata,
            held: Mutex::default(),
            released: Condvar::new(),
            open: Mutex::new(Open { since, ..Open::default() }),
            changed: Condvar::new(),
        }
    }

    /// Waits until no other caller changes `at`.
    pub(crate) fn lock<'a>(self: &'a Arc<Self>, at: &'a CredentialRef) -> ChangeLock<'a> {
        let held = self.released.wait_while(lock(&self.held), |held| held.contains(at));
        held.unwrap_or_else(PoisonError::into_inner).insert(at.clone());
        ChangeLock { changes: self, at }
    }

    /// Settles what is open, as far as the backend answers. The rest is settled in the background.
    pub(crate) fn settle_all(self: &Arc<Self>) {
        self.try_all();
        if !lock(&self.open).since.is_empty() {
            self.settle_in_background();
        }
    }

    /// The record now, from where hosts share it or else from the database.
    pub(crate) fn find(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, VaultError> {
        self.shared.as_ref().map_or_else(|| Ok(self.metadata.find(at)?), |shared| shared.find(at))
    }

    /// Ends the thread that settles, and shares the uses.
    pub(crate) fn close(&self) {
        let was_closed = std::mem::replace(&mut lock(&self.open).is_closed, true);
        self.changed.notify_all();
        self.shared.iter().filter(|_| !was_closed).for_each(|shared| shared.share_uses());
    }

    fn settle_in_background(self: &Arc<Self>) {
        let mut open = lock(&self.open);
        if !open.has_thread && !open.is_closed {
            let changes = Arc::clone(self);
            let thread = thread::Builder::new().name("settler".into());
            // Without a thread, the next failure or the next start tries again.
            open.has_thread = thread.spawn(move || changes.run()).is_ok();
        }
    }

    fn run(self: &Arc<Self>) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            self.try_all();
            let mut open = lock(&self.open);
            if open.is_closed || open.since.is_empty() {
                open.has_thread = false;
                return;
            }
            let pause = backoff.next_pause();
            drop(self.changed.wait_timeout_while(open, pause, |open| !open.is_closed));
        }
    }

    fn try_all(self: &Arc<Self>) {
        let all: Vec<CredentialRef> = lock(&self.open).since.keys().cloned().collect();
        for at in &all {
            let lock = self.lock(at);
            let settled =
                catch_unwind(AssertUnwindSafe(|| lock.settle_with(|vault| vault.peek(at))));
            let Ok(Err(error)) = settled else { continue };
            log::warn!("a change of {at} is not settled yet: {error}");
            if matches!(error, VaultError::BackendUnavailable { .. }) {
                return;
            }
        }
    }
}

impl ChangeLock<'_> {
    /// Notes the result of a validator, unless the value is not the one that it checked.
    pub(crate) fn note_validity(&self, result: Validity) -> Result<bool, VaultError> {
        let Self { at, changes } = self;
        self.settle()?;
        let found = changes.find(at)?.ok_or_else(|| VaultError::NotFound((*at).clone()))?;
        if result.updated_at.is_some_and(|it| it != found.updated_at) {
            return Ok(false);
        }
        let mut noted = found.clone();
        noted.valid = result.valid;
        noted.last_validated_at =
            result.valid.map(|_| Timestamp::now()).or(found.last_validated_at);
        // Another host may have stored it meanwhile.
        if let Some(shared) = &changes.shared
            && !shared.replace(at, [Some(&found); 2], Some(&noted))?
        {
            return Ok(false);
        }
        changes.metadata.set_all(vec![((*at).clone(), Some(noted))])?;
        Ok(true)
    }

    /// Commits the new row with an intent, makes the change, and undoes the row if that fails.
    /// `value` is `None` for a delete.
    pub(crate) fn make<T>(
        &self,
        mut record: Option<CredentialRecord>,
        value: Option<&Secret>,
        change: impl FnOnce(&dyn CredentialVault) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let Self { at, changes } = self;
        let Changes { vault, metadata, shared, open, .. } = &***changes;
        match self.settle() {
            // The backend has something other than text, which can be replaced and deleted.
            Err(VaultError::ReadFailed { .. }) => {}
            settled => settled?,
        }
        let mark = Mark::new(vault.name(), value)?;
        let kind = match shared {
            None => Kind::New(Some(mark)),
            Some(shared) => {
                let before = shared.find(at)?;
                if let Some(record) = &mut record {
                    record.stored_by = Some(shared.backend().node().to_owned());
                    before.as_ref().inspect(|before| record.keep_times_of(before));
                }
                Kind::Shared(mark, before.map(Box::new))
            }
        };
        let before = metadata.change(at, record.clone(), kind)?;
        lock(open).since.remove(*at);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            if let Some(shared) = shared {
                shared.backend().write(at, record.as_ref())?;
            }
            change(&**vault)
        }));
        let mut is_unknown = match &outcome {
            Ok(Ok(_)) => {
                metadata.finish(at);
                return outcome.unwrap_or_else(|panic| resume_unwind(panic));
            }
            Ok(Err(VaultError::BackendUnavailable { .. })) | Err(_) => true,
            Ok(Err(_)) => false,
        };
        if let (Some(shared), false) = (shared, is_unknown) {
            let known = [record.as_ref(), before.as_ref()];
            is_unknown = shared.replace(at, known, before.as_ref()).is_err();
        }
        let restored = metadata.change(at, before, Kind::Undo { is_final: !is_unknown });
        if let Err(error) = &restored {
            log::error!("the metadata of {at} is not restored yet: {error}");
        }
        if is_unknown || restored.is_err() {
            lock(open).since.insert((*at).clone(), Instant::now());
            changes.settle_in_background();
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Settles the intent of the credential, if one is open: makes the row that of the value that
    /// the backend has. Somebody waits for it, so that the backend may ask a person.
    pub(crate) fn settle(&self) -> Result<(), VaultError> {
        self.settle_with(|vault| vault.get(self.at))
    }

    fn settle_with(
        &self,
        read: impl FnOnce(&dyn CredentialVault) -> Result<Option<Secret>, VaultError>,
    ) -> Result<(), VaultError> {
        let Self { at, changes } = self;
        let Changes { vault, metadata, shared, open, .. } = &***changes;
        let Some(since) = lock(open).since.get(*at).copied() else { return Ok(()) };
        if let Some(intent) = metadata.intent(at)? {
            let value = read(&**vault)?;
            let is_made = intent.mark.fits(value.as_ref());
            let known = [intent.before.clone(), intent.after.clone()];
            let mut record = match &value {
                _ if is_made => intent.after,
                None => None,
                Some(value) => intent.before.or(intent.after).map(|mut record| {
                    if record.masked_preview != HIDDEN {
                        record.masked_preview = mask_value(value.expose());
                    }
                    record
                }),
            };
            if let (Some(record), Some(row)) = (&mut record, metadata.find(at)?) {
                record.last_used_at = record.last_used_at.max(row.last_used_at);
            }
            if let Some(shared) = shared {
                shared.replace(at, known.each_ref().map(Option::as_ref), record.as_ref())?;
            }
            let is_final = is_made || since.elapsed() > GRACE;
            metadata.change(at, record, Kind::Undo { is_final })?;
            if !is_final {
                return Ok(());
            }
            let outcome = if is_made { "made" } else { "not made" };
            log::info!("an interrupted change of {at} was {outcome}, as its metadata now says");
        }
        lock(open).since.remove(*at);
        Ok(())
    }
}

impl Drop for ChangeLock<'_> {
    fn drop(&mut self) {
        lock(&self.changes.held).remove(self.at);
        self.changes.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{EnvVault, Revision, SharedMetadata};
    use crate::model::{Namespace, StoreRequest};
    use crate::settings::Environment;

    #[test]
    fn a_change_that_was_not_made_is_final_after_a_while() {
        let directory = tempfile::tempdir().expect("a directory");
        let metadata = MetadataStore::open(&directory.path().join("credentials.db"));
        let metadata = Arc::new(metadata.expect("it is created"));
        let vault = Arc::new(EnvVault::new(Environment::default()));
        let changes = Arc::new(Changes::new(vault, Arc::clone(&metadata)));
        let at = CredentialRef::parse("n", "key").expect("valid");
        let mark = Mark::new("EnvVault", Some(&Secret::new("value".to_owned()))).expect("random");
        metadata.change(&at, None, Kind::New(Some(mark))).expect("commits");
        let settled = |age: Duration| {
            let since = Instant::now().checked_sub(age).expect("the machine runs longer");
            lock(&changes.open).since.insert(at.clone(), since);
            changes.lock(&at).settle().expect("settles");
            metadata.intent(&at).expect("reads").is_none()
        };
        assert!(!settled(GRACE / 2), "a request may still be on its way");
        assert!(settled(GRACE * 2));
        assert!(lock(&changes.open).since.is_empty());
    }

    /// The metadata of two hosts. The other one stores right after this one has read.
    #[derive(Default)]
    struct TwoHosts {
        records: Mutex<Vec<CredentialRecord>>,
        next: Mutex<Option<CredentialRecord>>,
    }

    impl CredentialVault for TwoHosts {
        fn name(&self) -> &'static str {
            "TwoHosts"
        }

        fn get(&self, _: &CredentialRef) -> Result<Option<Secret>, VaultError> {
            Ok(None)
        }

        fn store(&self, _: &CredentialRef, _: &Secret) -> Result<(), VaultError> {
            Ok(())
        }

        fn delete(&self, _: &CredentialRef) -> Result<bool, VaultError> {
            Ok(false)
        }

        fn list_keys(&self, _: &Namespace) -> Result<Vec<String>, VaultError> {
            Ok(Vec::new())
        }

        fn shared_metadata(&self) -> Option<&dyn SharedMetadata> {
            Some(self)
        }
    }

    impl SharedMetadata for TwoHosts {
        fn node(&self) -> &'static str {
            "here"
        }

        fn read_all(&self) -> Result<Vec<CredentialRecord>, VaultError> {
            let mut records = lock(&self.records);
            let next = lock(&self.next).take().map(|it| vec![it]);
            let read = records.clone();
            *records = next.unwrap_or_else(|| read.clone());
            Ok(read)
        }

        fn read_namespace(&self, _: &Namespace) -> Result<Vec<CredentialRecord>, VaultError> {
            self.read_all()
        }

        fn write(
            &self,
            _: &CredentialRef,
            record: Option<&CredentialRecord>,
        ) -> Result<(), VaultError> {
            *lock(&self.records) = record.cloned().into_iter().collect();
            Ok(())
        }

        fn revise(
            &self,
            _: &Namespace,
            revise: &dyn Fn(&[CredentialRecord]) -> Vec<Revision>,
        ) -> Result<(), VaultError> {
            let mut records = lock(&self.records);
            if let Some((_, record)) = revise(&records).pop() {
                *records = record.into_iter().collect();
            }
            Ok(())
        }
    }

    #[test]
    fn a_result_does_not_undo_a_store_of_another_host() {
        let directory = tempfile::tempdir().expect("a directory");
        let metadata = MetadataStore::open(&directory.path().join("credentials.db"));
        let at = CredentialRef::parse("n", "key").expect("valid");
        let record = |value: &str| {
            let request = StoreRequest::new(Secret::new(value.to_owned()));
            CredentialRecord::new(at.clone(), &request, Timestamp::now())
        };
        let mine = record("a value of this host");
        let vault = Arc::new(TwoHosts::default());
        *lock(&vault.records) = vec![mine.clone()];
        let metadata = Arc::new(metadata.expect("it is created"));
        let changes = Arc::new(Changes::new(Arc::clone(&vault) as _, metadata));
        let works = Validity { valid: Some(true), updated_at: Some(mine.updated_at) };
        assert!(changes.lock(&at).note_validity(works).expect("notes"));
        assert_eq!(lock(&vault.records)[0].valid, Some(true));

        let theirs = record("the value of another host");
        *lock(&vault.next) = Some(theirs.clone());
        assert!(!changes.lock(&at).note_validity(works).expect("notes nothing"));
        assert_eq!(*lock(&vault.records), [theirs]);
    }
}
