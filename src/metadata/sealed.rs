//! The values of the backend `sealed`: encrypted, in a table of the same database. Whoever reads
//! or writes one here brings or gets a sealed message; this module knows no key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior};

use crate::model::{CredentialRecord, CredentialRef, Namespace};

use super::writer::Blob;
use super::{MetadataError, MetadataStore, file, lock, schema};

type Result<T> = std::result::Result<T, MetadataError>;

/// Makes the new message of a credential from the present one.
pub type Reseal<'a> = &'a dyn Fn(&CredentialRef, &[u8]) -> Result<Vec<u8>>;

/// How many bytes of encrypted values stay in memory: without them, `SQLite` halves the rate of
/// reads.
const CACHE_BYTES: usize = 1 << 20;

/// About what an entry takes beside its message and its name.
const ENTRY_BYTES: usize = 128;

/// Encrypted values that were read lately.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// `None` while a change of the credential is under way: then it is read from the database.
    blobs: HashMap<CredentialRef, Option<Arc<[u8]>>>,
    bytes: usize,
    /// How many changes have ended. A reader that began before the last one may have read what was
    /// there before, and keeps it to itself.
    changes: u64,
}

impl Cache {
    fn begin_change(&mut self, at: &CredentialRef) {
        if let Some(Some(blob)) = self.blobs.insert(at.clone(), None) {
            self.bytes -= size(at, &blob);
        }
    }

    fn end_change(&mut self, at: &CredentialRef) {
        self.blobs.remove(at);
        self.changes += 1;
    }

    fn insert(&mut self, at: &CredentialRef, blob: &Arc<[u8]>, changes: u64) {
        let size = size(at, blob);
        if self.changes != changes || size > CACHE_BYTES {
            return;
        }
        if self.bytes + size > CACHE_BYTES {
            self.blobs.retain(|_, blob| blob.is_none());
            self.bytes = 0;
        }
        if let Entry::Vacant(vacant) = self.blobs.entry(at.clone()) {
            vacant.insert(Some(Arc::clone(blob)));
            self.bytes += size;
        }
    }
}

fn size(at: &CredentialRef, blob: &[u8]) -> usize {
    ENTRY_BYTES + at.namespace().as_str().len() + at.key().len() + blob.len()
}

impl MetadataStore {
    /// Commits the record and the encrypted value of a credential in one transaction; `None`
    /// removes either.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put).
    pub fn put_sealed(
        &self,
        at: &CredentialRef,
        record: Option<CredentialRecord>,
        blob: Option<Vec<u8>>,
    ) -> Result<()> {
        lock(&self.cache).begin_change(at);
        let blob = blob.map_or(Blob::Delete, Blob::Put);
        let outcome = self.change(at.clone(), record, false, blob);
        lock(&self.cache).end_change(at);
        outcome.map(drop)
    }

    /// The encrypted value of a credential.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn blob(&self, at: &CredentialRef) -> Result<Option<Arc<[u8]>>> {
        let changes = {
            let cache = lock(&self.cache);
            if let Some(Some(blob)) = cache.blobs.get(at) {
                return Ok(Some(Arc::clone(blob)));
            }
            cache.changes
        };
        let blob = self.readers.read(|connection| Ok(blob(connection, at)?))?;
        let blob = blob.map(Arc::from);
        if let Some(blob) = &blob {
            lock(&self.cache).insert(at, blob, changes);
        }
        Ok(blob)
    }

    /// The keys in the namespace that have an encrypted value, sorted by bytes.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn sealed_keys(&self, namespace: &Namespace) -> Result<Vec<String>> {
        self.readers.read(|connection| {
            let sql = "SELECT key FROM vault_sealed WHERE namespace = ?1 ORDER BY key";
            let mut statement = connection.prepare_cached(sql)?;
            let keys = statement.query_map([namespace.as_str()], |row| row.get(0))?;
            Ok(keys.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// The key header in the file at `path`, and the number of encrypted values. The file is only
    /// read, whether or not a vault has it open.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`].
    pub fn seal(path: &Path) -> Result<(Option<String>, u64)> {
        if !path.exists() {
            return Ok((None, 0));
        }
        let path = path.canonicalize().map_err(|error| MetadataError::Failed(error.to_string()))?;
        let connection = schema::connect(&path, file::beside(&path, file::WAL).exists())?;
        // An older version, or another program, may have made the file.
        if !connection.table_exists(None::<&str>, "vault_seal")? {
            return Ok((None, 0));
        }
        let sql = "SELECT (SELECT header FROM vault_seal), COUNT(*) FROM vault_sealed";
        Ok(connection
            .query_row(sql, [], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))?)
    }

    /// Replaces the key header, and each encrypted value by what `reseal` makes of it, in one
    /// transaction. Without `reseal`, the values stay. Nothing else may use the store meanwhile.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], or that of `reseal`; nothing has changed.
    pub fn set_seal(&self, header: &str, reseal: Option<Reseal<'_>>) -> Result<()> {
        let path = &self.readers.file.path;
        let mut connection =
            schema::open(path).map_err(|reason| schema::unusable(path, &reason))?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(reseal) = reseal {
            let sql = "SELECT namespace, key FROM vault_sealed";
            let names: Vec<(String, String)> = transaction
                .prepare(sql)?
                .query_map([], |row| row.try_into())?
                .collect::<rusqlite::Result<_>>()?;
            for (namespace, key) in names {
                let at = CredentialRef::parse(&namespace, &key).map_err(|error| {
                    MetadataError::Failed(format!(
                        "an encrypted value has an invalid name: {error}"
                    ))
                })?;
                let Some(old) = blob(&transaction, &at)? else { continue };
                set(&transaction, &at, Some(&reseal(&at, &old)?))?;
            }
        }
        transaction.execute("INSERT OR REPLACE INTO vault_seal VALUES (1, ?1)", [header])?;
        Ok(transaction.commit()?)
    }
}

fn blob(connection: &Connection, at: &CredentialRef) -> rusqlite::Result<Option<Vec<u8>>> {
    let sql = "SELECT blob FROM vault_sealed WHERE namespace = ?1 AND key = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    // Something that is no blob is no sealed message either.
    let bytes = |row: &Row<'_>| Ok(row.get_ref(0)?.as_bytes().unwrap_or_default().to_vec());
    statement.query_row([at.namespace().as_str(), at.key()], bytes).optional()
}

/// Inserts or replaces the encrypted value of one credential; `None` deletes it.
pub(super) fn set(
    connection: &Connection,
    at: &CredentialRef,
    blob: Option<&[u8]>,
) -> rusqlite::Result<()> {
    let (namespace, key) = (at.namespace().as_str(), at.key());
    match blob {
        Some(blob) => connection
            .prepare_cached("INSERT OR REPLACE INTO vault_sealed VALUES (?1, ?2, ?3)")?
            .execute((namespace, key, blob)),
        None => connection
            .prepare_cached("DELETE FROM vault_sealed WHERE namespace = ?1 AND key = ?2")?
            .execute((namespace, key)),
    }
    .map(drop)
}
