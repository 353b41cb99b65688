//! The service: keeps value and metadata consistent, over one backend.

use std::collections::HashSet;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::error::VaultError;
use crate::metadata::{Filter, MetadataError, MetadataStore};
use crate::model::{CredentialRecord, CredentialRef, StoreRequest};
use crate::secret::Secret;
use crate::time::Timestamp;
use crate::vault::{BackendStatus, CredentialVault};

/// One vault: a backend for the values, a database for the metadata.
///
/// The order of writes, and how a failure is undone, is told at [`CredentialVault`]. All
/// methods may be called from many threads; stores and deletes of one credential wait
/// for each other, so that its value and its metadata are always of the same store.
pub struct VaultService {
    vault: Arc<dyn CredentialVault>,
    metadata: MetadataStore,
    changing: ChangeLocks,
}

impl VaultService {
    /// Puts a backend and a database together.
    #[must_use]
    pub fn new(vault: Arc<dyn CredentialVault>, metadata: MetadataStore) -> Self {
        Self { vault, metadata, changing: ChangeLocks::default() }
    }

    /// The value, whose use is noted in `last_used_at`.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], or what the backend says.
    pub fn get(&self, at: &CredentialRef) -> Result<Secret, VaultError> {
        let value = self.vault.get(at)?.ok_or_else(|| VaultError::NotFound(at.clone()))?;
        self.metadata.touch(at, Timestamp::now());
        Ok(value)
    }

    /// Whether there is a value. Not a use of it.
    ///
    /// # Errors
    ///
    /// What the backend says.
    pub fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        self.vault.has(at)
    }

    /// Stores value and metadata; both are durable when this returns, as far as the
    /// backend keeps anything.
    ///
    /// # Errors
    ///
    /// What the database or the backend says; then neither has changed.
    pub fn store(&self, at: &CredentialRef, request: &StoreRequest) -> Result<(), VaultError> {
        let _alone = self.changing.lock(at);
        let before = self.metadata.put(at, request)?;
        self.vault.store(at, &request.value).inspect_err(|error| self.undo(at, before, error))
    }

    /// Deletes value and metadata. Says whether there was a value.
    ///
    /// # Errors
    ///
    /// What the database or the backend says; then neither has changed.
    pub fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let _alone = self.changing.lock(at);
        let before = self.metadata.remove(at)?;
        self.vault.delete(at).inspect_err(|error| self.undo(at, before, error))
    }

    /// Puts the row back as it was before a change that the backend refused.
    fn undo(&self, at: &CredentialRef, before: Option<CredentialRecord>, cause: &VaultError) {
        if let Err(error) = self.metadata.restore(at, before) {
            log::error!("{cause}; and its metadata could not be put back: {error}");
        }
    }

    /// Visits records in the order of namespace and key.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn for_each(
        &self,
        filter: Filter<'_>,
        visit: &mut dyn FnMut(CredentialRecord),
    ) -> Result<(), VaultError> {
        Ok(self.metadata.for_each(filter, &mut |record| {
            visit(record);
            ControlFlow::Continue(())
        })?)
    }

    /// How many credentials there are.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub fn count(&self) -> Result<u64, VaultError> {
        Ok(self.metadata.count()?)
    }

    /// Removes the metadata of credentials that the backend has no value for; says how
    /// many. For a backend that forgets, such as `env`, after a restart.
    ///
    /// # Errors
    ///
    /// What the database or the backend says.
    pub fn forget_metadata_without_value(&self) -> Result<usize, VaultError> {
        let mut all = Vec::new();
        self.for_each(Filter::All, &mut |record| all.push(record.at))?;
        let mut forgotten = 0;
        for at in all {
            let _alone = self.changing.lock(&at);
            if !self.vault.has(&at)? {
                self.metadata.remove(&at)?;
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

    /// How the backend is.
    #[must_use]
    pub fn backend_status(&self) -> BackendStatus {
        self.vault.status()
    }

    /// Whether reading a value may wait for something outside this process.
    #[must_use]
    pub fn reads_may_block(&self) -> bool {
        self.vault.may_block()
    }

    /// Flushes the metadata and closes both stores. Closing twice is harmless.
    ///
    /// # Errors
    ///
    /// When what was still to be written could not be.
    pub fn close(&self) -> Result<(), MetadataError> {
        self.vault.close();
        self.metadata.close()
    }
}

impl fmt::Debug for VaultService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultService").field("backend", &self.backend()).finish_non_exhaustive()
    }
}

/// The credentials that are being changed, each by one caller.
#[derive(Default)]
struct ChangeLocks {
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Default)]
struct Held {
    credentials: HashSet<CredentialRef>,
    waiting: usize,
}

struct ChangeLock<'a> {
    locks: &'a ChangeLocks,
    at: &'a CredentialRef,
}

impl ChangeLocks {
    /// Waits until nobody else changes `at`.
    fn lock<'a>(&'a self, at: &'a CredentialRef) -> ChangeLock<'a> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.credentials.contains(at) {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.credentials.insert(at.clone());
        ChangeLock { locks: self, at }
    }
}

impl Drop for ChangeLock<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.credentials.remove(self.at);
        if held.waiting > 0 {
            self.locks.released.notify_all();
        }
    }
}
