//! The service: keeps value and metadata consistent, over one backend.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::backend::{BackendStatus, CredentialVault, MetadataKeeper};
use crate::changes::{ChangeLock, Changes};
use crate::error::{Field, VaultError};
use crate::metadata::{Filter, MetadataError, MetadataStore};
use crate::model::{
    CredentialRecord, CredentialRef, HIDDEN, MaskedSummary, Namespace, RuntimeEnvEntry,
    StoreRequest, Validity, mask_value,
};
use crate::secret::Secret;
use crate::shared::Shared;
use crate::time::Timestamp;

/// How often value and metadata are read again while they change, and the pause before that.
const LOOKS: u32 = 20;
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// One vault: a backend for the values, and a database for the metadata, unless the backend
/// keeps that too.
///
/// [`CredentialVault`] documents the order of writes, and how each failure is undone. All
/// methods may be called from many threads. Stores and deletes of one credential wait for
/// each other, so that its value and its metadata always come from the same store.
pub struct VaultService {
    vault: Arc<dyn CredentialVault>,
    /// `None` if the backend keeps the metadata, as a [`MetadataKeeper`].
    changes: Option<Arc<Changes>>,
    hides_previews: bool,
}

impl VaultService {
    /// A service over a backend that keeps values only. If it keeps them in a database, that is
    /// the one to give ([`InDatabase::database`](crate::backend::InDatabase::database)).
    #[must_use]
    pub fn new(vault: Arc<dyn CredentialVault>, metadata: impl Into<Arc<MetadataStore>>) -> Self {
        let changes = Arc::new(Changes::new(Arc::clone(&vault), metadata.into()));
        Self { vault, changes: Some(changes), hides_previews: false }
    }

    /// A service over a backend that keeps the metadata itself.
    ///
    /// # Errors
    ///
    /// Returns the backend if it is not a [`MetadataKeeper`].
    pub fn over_metadata_keeper(
        vault: Arc<dyn CredentialVault>,
    ) -> Result<Self, Arc<dyn CredentialVault>> {
        if vault.metadata_keeper().is_none() {
            return Err(vault);
        }
        Ok(Self { vault, changes: None, hides_previews: false })
    }

    /// With `hides`, each preview is `****`: in the database from the next store on, and in
    /// listings at once.
    #[must_use]
    pub fn hide_previews(mut self, hides: bool) -> Self {
        self.hides_previews = hides;
        self
    }

    /// Settles the changes that a crash has interrupted, as far as the backend answers. What it
    /// does not answer is settled in the background when it does, and before the next change of
    /// the credential. Call it before the first request.
    pub fn settle(&self) {
        if let Some(changes) = &self.changes {
            changes.settle_all();
        }
    }

    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.changes.as_ref().and_then(|changes| changes.shared.as_ref())
    }

    pub(crate) fn metadata(&self) -> Option<&MetadataStore> {
        self.changes.as_ref().map(|changes| &*changes.metadata)
    }

    pub(crate) fn keeper(&self) -> &dyn MetadataKeeper {
        self.vault.metadata_keeper().expect("`over_metadata_keeper` checked it")
    }

    /// The value. Sets `last_used_at`.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], or the backend's error.
    pub fn get(&self, at: &CredentialRef) -> Result<Secret, VaultError> {
        let value = self.vault.get(at)?.ok_or_else(|| VaultError::NotFound(at.clone()))?;
        let now = Timestamp::now();
        self.metadata().inspect(|metadata| metadata.touch(at, now));
        self.shared().inspect(|shared| shared.note_use(at, now));
        Ok(value)
    }

    /// The value, if `permit` agrees to the `allowed_consumers` of its credential, which is not
    /// changed meanwhile. Without metadata, the list is empty.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], also if `permit` does not agree; the error of the database or the
    /// backend.
    pub fn get_if(
        &self,
        at: &CredentialRef,
        permit: impl FnOnce(&[String]) -> bool,
    ) -> Result<Secret, VaultError> {
        let lock = self.changes.as_ref().map(|changes| changes.lock(at));
        lock.as_ref().map_or(Ok(()), ChangeLock::settle)?;
        let record = self.changes.as_ref().map(|it| it.find(at)).transpose()?.flatten();
        if !permit(record.as_ref().map_or(&[], |record| &record.allowed_consumers)) {
            return Err(VaultError::NotFound(at.clone()));
        }
        self.get(at)
    }

    /// Whether there is a value. Does not set `last_used_at`.
    ///
    /// # Errors
    ///
    /// The backend's error.
    pub fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.vault.has(at)
    }

    /// Stores value and metadata. Both are durable when this returns, as far as the backend
    /// keeps anything.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`] for too many or too long names of consumers, or the
    /// error of the database or the backend. Then neither value nor metadata has changed.
    pub fn store(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), VaultError> {
        request.check_consumers()?;
        let Some(changes) = &self.changes else {
            return self.keeper().store_request(at, request);
        };
        let (lock, value) = (changes.lock(at), &request.value);
        self.put(&lock, CredentialRecord::new(at.clone(), request, Timestamp::now()), value)
    }

    fn put(
        &self,
        lock: &ChangeLock<'_>,
        mut record: CredentialRecord,
        value: &Secret,
    ) -> Result<(), VaultError> {
        if self.hides_previews {
            HIDDEN.clone_into(&mut record.masked_preview);
        }
        let at = record.at.clone();
        match self.vault.in_database() {
            Some(vault) => vault.put(&at, Some(record), Some(value)),
            None => lock.make(Some(record), Some(value), |vault| vault.store(&at, value)),
        }
    }

    /// Deletes value and metadata. Returns whether there was a value.
    ///
    /// # Errors
    ///
    /// The error of the database or the backend. Then neither value nor metadata has changed.
    pub fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let Some(changes) = &self.changes else { return self.vault.delete(at) };
        let lock = changes.lock(at);
        match self.vault.in_database() {
            Some(vault) => {
                let existed = self.vault.has(at)?;
                vault.put(at, None, None)?;
                Ok(existed)
            }
            None => lock.make(None, None, |vault| vault.delete(at)),
        }
    }

    /// All records, in the order of namespace and key. Where hosts share them, they are read there.
    ///
    /// # Errors
    ///
    /// The error of the database or the backend.
    pub fn records(&self) -> Result<Vec<CredentialRecord>, VaultError> {
        if let Some(shared) = self.shared() {
            return shared.backend().read_all();
        }
        let mut all = Vec::new();
        if let Some(metadata) = self.metadata() {
            metadata.for_each(&Filter::All, &mut |record| all.push(record))?;
        }
        Ok(all)
    }

    /// Metadata and value of one moment, while another process may be changing them. Does not set
    /// `last_used_at`.
    ///
    /// # Errors
    ///
    /// The error of the database or the backend; [`VaultError::ReadFailed`] also if a change of the
    /// credential was interrupted and is not settled yet.
    pub fn look(
        &self,
        at: &CredentialRef,
    ) -> Result<(Option<CredentialRecord>, Option<Secret>), VaultError> {
        let Some(changes) = &self.changes else { return Ok((None, self.vault.get(at)?)) };
        let metadata = &changes.metadata;
        // If this process holds the database, no other one is changing it.
        let is_alone = metadata.is_writable();
        for _ in 0..LOOKS {
            // In this order, since a change commits row and intent together, before the value.
            let (record, intent) = (changes.find(at)?, metadata.intent(at)?);
            let value = self.vault.get(at)?;
            let is_settled = is_alone || intent.is_none_or(|it| it.mark.fits(value.as_ref()));
            let updated = |it: Option<&CredentialRecord>| it.map(|it| it.updated_at);
            if is_settled && updated(changes.find(at)?.as_ref()) == updated(record.as_ref()) {
                return Ok((record, value));
            }
            thread::sleep(LOOK_PAUSE);
        }
        let reason = "a change of it was interrupted; start the service, which settles that";
        Err(VaultError::ReadFailed { at: at.clone(), reason: reason.to_owned() })
    }

    /// Stores a value with exactly this metadata, apart from the preview, as durably as
    /// [`store`](Self::store) does.
    ///
    /// # Errors
    ///
    /// The error of the database or the backend. Then neither value nor metadata has changed.
    pub fn import(&self, mut record: CredentialRecord, value: &Secret) -> Result<(), VaultError> {
        let Some(changes) = &self.changes else {
            let reason = "another service keeps the metadata".to_owned();
            return Err(VaultError::ValidationFailed { field: Field::Backend, reason });
        };
        record.masked_preview = mask_value(value.expose());
        let at = record.at.clone();
        let lock = changes.lock(&at);
        let is_new = changes.find(&at)?.is_none();
        self.put(&lock, record.clone(), value)?;
        if !is_new {
            // A store keeps some times of the row that it replaces.
            if let Some(shared) = &changes.shared {
                shared.backend().write(&at, Some(&record))?;
            }
            changes.metadata.restore(&at, Some(record))?;
        }
        Ok(())
    }

    /// Notes the result of a validator, if the value is still the one that it checked. Returns that.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`]; the error of the database or the backend.
    pub fn note_validity(&self, at: &CredentialRef, result: Validity) -> Result<bool, VaultError> {
        match &self.changes {
            Some(changes) => changes.lock(at).note_validity(result),
            None => self.keeper().note_validity(at, result),
        }
    }

    /// Visits all credentials, or those of one namespace, in the order of namespace and key.
    ///
    /// # Errors
    ///
    /// The error of the database, or of the backend.
    pub fn summaries(
        &self,
        namespace: Option<&Namespace>,
        visit: &mut dyn FnMut(MaskedSummary),
    ) -> Result<(), VaultError> {
        self.refresh(namespace)?;
        if let Some(metadata) = self.metadata() {
            let filter = namespace.cloned().map_or(Filter::All, Filter::Namespace);
            metadata.for_each(&filter, &mut |record| visit(self.summary(record)))?;
        } else {
            let summaries = self.keeper().summaries(namespace)?.into_iter();
            summaries.for_each(|it| visit(self.summary(it)));
        }
        Ok(())
    }

    /// A line of a listing, with the preview that may be shown.
    pub(crate) fn summary(&self, of: impl Into<MaskedSummary>) -> MaskedSummary {
        let mut summary = of.into();
        if self.hides_previews {
            HIDDEN.clone_into(&mut summary.masked_preview);
        }
        summary
    }

    /// Visits the credentials that are delivered as environment variables.
    ///
    /// # Errors
    ///
    /// The error of the database, or of the backend.
    pub fn runtime_env(&self, visit: &mut dyn FnMut(RuntimeEnvEntry)) -> Result<(), VaultError> {
        self.refresh(None)?;
        if let Some(metadata) = self.metadata() {
            metadata.for_each(&Filter::RuntimeEnv, &mut |record| visit(record.into()))?;
        } else {
            self.keeper().runtime_env()?.into_iter().for_each(visit);
        }
        Ok(())
    }

    /// The number of credentials in the database. `None` if the backend keeps the metadata;
    /// then its [status](Self::backend_status) has the number.
    ///
    /// # Errors
    ///
    /// The error of the database.
    pub fn count(&self) -> Result<Option<u64>, VaultError> {
        Ok(self.metadata().map(MetadataStore::count).transpose()?)
    }

    /// Whether listings may wait for something outside this process.
    #[must_use]
    pub fn listings_may_block(&self) -> bool {
        (self.changes.is_none() || self.shared().is_some()) && self.vault.may_block()
    }

    /// Removes the metadata of credentials that the backend has no value for, and returns
    /// how many. For a backend that forgets, such as `env`, after a restart.
    ///
    /// # Errors
    ///
    /// The error of the database or the backend.
    pub fn forget_metadata_without_value(&self) -> Result<usize, VaultError> {
        let Some(changes) = &self.changes else {
            return Ok(0);
        };
        let mut forgotten = 0;
        for CredentialRecord { at, .. } in self.records()? {
            let _lock = changes.lock(&at);
            if !self.vault.has(&at)? {
                changes.metadata.remove(&at)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// The backend's name in `/health`.
    #[must_use]
    pub fn backend(&self) -> &str {
        self.vault.name()
    }

    /// The state of the backend. It does not count as working if the database takes no changes.
    #[must_use]
    pub fn backend_status(&self) -> BackendStatus {
        let mut status = self.vault.status();
        status.works &= self.metadata().is_none_or(MetadataStore::is_writable);
        status
    }

    /// Whether reading a value may wait for something outside this process.
    #[must_use]
    pub fn reads_may_block(&self) -> bool {
        self.vault.may_block()
    }

    /// Flushes the metadata and closes database and backend. Closing again does nothing.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`] if something could not be written.
    pub fn close(&self) -> Result<(), MetadataError> {
        // The backend may have the same database, and does not report its failure.
        let flushed = self.close_metadata();
        self.vault.close();
        flushed
    }

    /// Also for the thread that settles, which may wait for the backend.
    fn close_metadata(&self) -> Result<(), MetadataError> {
        let Some(changes) = &self.changes else { return Ok(()) };
        changes.close();
        changes.metadata.close()
    }
}

impl Drop for VaultService {
    fn drop(&mut self) {
        if let Err(error) = self.close_metadata() {
            log::warn!("while closing: {error}");
        }
    }
}

impl fmt::Debug for VaultService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultService").field("backend", &self.backend()).finish_non_exhaustive()
    }
}
