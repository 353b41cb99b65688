//! Metadata that hosts share, and the copy of it in this host's database.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{CredentialVault, SharedMetadata};
use crate::error::{Field, VaultError};
use crate::metadata::{Filter, MetadataStore, lock};
use crate::model::{CredentialRecord, CredentialRef, Namespace};
use crate::service::VaultService;
use crate::text::counted;
use crate::time::Timestamp;

/// How long times of last use stay on this host.
const SHARE_USES_EVERY: Duration = Duration::from_secs(60 * 60);
/// The time of a refresh is written this often, in seconds, to spare the disk.
const TIME_EVERY: u64 = 60;

/// The metadata in a backend for which [`CredentialVault::shared_metadata`] returns something.
pub(crate) struct Shared {
    vault: Arc<dyn CredentialVault>,
    copy: Arc<MetadataStore>,
    /// Of the last refresh of everything: when it began, or when it failed, and why.
    last: Mutex<Option<(Instant, Result<(), VaultError>)>>,
    /// When everything was last refreshed.
    refreshed: Mutex<Option<Timestamp>>,
    /// Times of last use that the backend does not have, and when they were last shared.
    uses: Mutex<(HashMap<CredentialRef, Timestamp>, Instant)>,
}

impl Shared {
    /// `None` if the backend shares no metadata.
    pub(crate) fn new(
        vault: &Arc<dyn CredentialVault>,
        copy: &Arc<MetadataStore>,
    ) -> Option<Arc<Self>> {
        let refreshed = copy.refreshed().unwrap_or_default();
        if vault.shared_metadata().is_none() {
            // From now on, there are stores that only this host has.
            let noted = refreshed.filter(|_| copy.is_writable());
            let noted = noted.map_or(Ok(()), |_| copy.set_refreshed(None));
            noted.unwrap_or_else(|error| log::error!("{error}"));
            return None;
        }
        let (vault, copy, last) = (Arc::clone(vault), Arc::clone(copy), Mutex::default());
        let uses = Mutex::new((HashMap::new(), Instant::now()));
        Some(Arc::new(Self { vault, copy, last, refreshed: Mutex::new(refreshed), uses }))
    }

    pub(crate) fn backend(&self) -> &dyn SharedMetadata {
        self.vault.shared_metadata().expect("`new` has checked it")
    }

    pub(crate) fn find(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, VaultError> {
        let mut records = self.backend().read_namespace(at.namespace())?.into_iter();
        let row = self.copy.find(at)?;
        Ok(records.find(|record| record.at == *at).map(|it| self.with_use(it, row.as_ref())))
    }

    /// The record with the last use of this host, if that is later.
    fn with_use(
        &self,
        mut record: CredentialRecord,
        row: Option<&CredentialRecord>,
    ) -> CredentialRecord {
        let noted = lock(&self.uses).0.get(&record.at).copied();
        record.last_used_at =
            record.last_used_at.max(noted).max(row.and_then(|it| it.last_used_at));
        record
    }

    /// The seconds since everything was last refreshed.
    pub(crate) fn age(&self) -> Option<u64> {
        lock(&self.refreshed).map(|at| Timestamp::now().seconds_since(at))
    }

    /// Makes the copy equal to the backend, or the part of one namespace. Callers that wait for a
    /// refresh share the next one, which begins after they have come, or the failure of this one.
    /// Returns the age of the copy if the backend is away.
    pub(crate) fn refresh(&self, namespace: Option<&Namespace>) -> Result<Option<u64>, VaultError> {
        let came = Instant::now();
        let mut last = lock(&self.last);
        if last.as_ref().is_none_or(|(when, _)| *when < came) {
            let began = Instant::now();
            let outcome = self.read(namespace);
            let when = if outcome.is_ok() { began } else { Instant::now() };
            if let Err(error) = &outcome
                && !matches!(&*last, Some((_, Err(_))))
            {
                log::warn!("listings come from this host's copy of the metadata: {error}");
            }
            if outcome.is_ok() && namespace.is_some() {
                *last = None;
                return Ok(None);
            }
            *last = Some((when, outcome));
        }
        let Some((_, Err(error))) = &*last else { return Ok(None) };
        match (error, self.age()) {
            (VaultError::BackendUnavailable { .. }, Some(age)) => Ok(Some(age)),
            _ => Err(error.clone()),
        }
    }

    /// A change that is made meanwhile may be undone in the copy, until the next refresh.
    fn read(&self, namespace: Option<&Namespace>) -> Result<(), VaultError> {
        let read = |namespace| self.backend().read_namespace(namespace);
        let records = namespace.map_or_else(|| self.backend().read_all(), read)?;
        let filter = namespace.cloned().map_or(Filter::All, Filter::Namespace);
        let (mut rows, mut changes) = (BTreeMap::new(), Vec::new());
        self.copy.for_each(&filter, &mut |row| drop(rows.insert(row.at.clone(), row)))?;
        for record in records {
            let row = rows.remove(&record.at);
            let record = self.with_use(record, row.as_ref());
            if row.as_ref() != Some(&record) {
                changes.push((record.at.clone(), Some(record)));
            }
        }
        changes.extend(rows.into_keys().map(|at| (at, None)));
        self.copy.set_all(changes)?;
        if namespace.is_none() {
            let now = Timestamp::now();
            if self.copy.refreshed()?.is_none_or(|at| now.seconds_since(at) >= TIME_EVERY) {
                self.copy.set_refreshed(Some(now))?;
            }
            *lock(&self.refreshed) = Some(now);
        }
        Ok(())
    }

    /// Makes the first copy. Refuses rows that are none, since that would remove them.
    fn start(&self) -> Result<(), VaultError> {
        let count = self.copy.count()?;
        if self.age().is_some() {
            return Ok(());
        } else if count == 0 {
            return self.refresh(None).map(drop);
        }
        let reason = format!(
            "the metadata of {} is only on this host; run `credential-vault metadata push` first",
            counted(count, "credential")
        );
        Err(VaultError::ValidationFailed { field: Field::Backend, reason })
    }

    /// Makes the record of a credential `to`, unless another host has stored one that is none of
    /// `known`. Returns whether it is `to` now.
    pub(crate) fn replace(
        &self,
        at: &CredentialRef,
        known: [Option<&CredentialRecord>; 2],
        to: Option<&CredentialRecord>,
    ) -> Result<bool, VaultError> {
        let store =
            |it: Option<&CredentialRecord>| it.map(|it| (it.updated_at, it.stored_by.clone()));
        let is_known = Cell::new(false);
        self.backend().revise(at.namespace(), &|records| {
            let found = records.iter().find(|record| record.at == *at);
            is_known.set(known.iter().any(|it| store(*it) == store(found)));
            if is_known.get() && found != to { vec![(at.clone(), to.cloned())] } else { Vec::new() }
        })?;
        Ok(is_known.get())
    }

    /// Notes a use. The backend gets the uses of an hour together.
    pub(crate) fn note_use(self: &Arc<Self>, at: &CredentialRef, when: Timestamp) {
        let mut uses = lock(&self.uses);
        uses.0.insert(at.clone(), when);
        if uses.1.elapsed() >= SHARE_USES_EVERY {
            uses.1 = Instant::now();
            let shared = Arc::clone(self);
            // Without a thread, they are shared in an hour.
            let _ = thread::Builder::new().name("uses".into()).spawn(move || shared.share_uses());
        }
    }

    /// Gives the backend the times of last use that it does not have.
    pub(crate) fn share_uses(&self) {
        let mut times = std::mem::take(&mut lock(&self.uses).0);
        let namespaces: BTreeSet<_> = times.keys().map(|at| at.namespace().clone()).collect();
        for namespace in namespaces {
            let shared = self.backend().revise(&namespace, &|records| {
                let used = |record: &CredentialRecord| {
                    let when = times.get(&record.at).copied();
                    let is_news = when > record.last_used_at && when >= Some(record.created_at);
                    is_news.then(|| CredentialRecord { last_used_at: when, ..record.clone() })
                };
                records.iter().filter_map(used).map(|it| (it.at.clone(), Some(it))).collect()
            });
            if let Err(error) = shared {
                log::warn!("the times of last use are not shared: {error}");
                break;
            }
            times.retain(|at, _| *at.namespace() != namespace);
        }
        for (at, when) in times {
            lock(&self.uses).0.entry(at).or_insert(when);
        }
    }
}

impl VaultService {
    /// Makes the first copy of the metadata, where hosts share it. Call it before the first request.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`] if the database has metadata that is no copy; the error of
    /// the database or the backend.
    pub fn start(&self) -> Result<(), VaultError> {
        self.shared().map_or(Ok(()), |shared| shared.start())
    }

    /// Reads the metadata of one namespace or of all, where hosts share it, before a listing.
    /// Returns the age in seconds of the copy that is listed if the backend is away. It is `None`
    /// for a listing of what there is now.
    ///
    /// # Errors
    ///
    /// The error of the database; that of the backend if there is no copy yet.
    pub fn refresh(&self, namespace: Option<&Namespace>) -> Result<Option<u64>, VaultError> {
        self.shared().map_or(Ok(None), |shared| shared.refresh(namespace))
    }
}
