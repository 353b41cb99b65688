//! The values of the backend `sealed`: encrypted, in a table of the same database. Whoever reads
//! or writes one here brings or gets a sealed message; this module knows no key.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, Row, TransactionBehavior};

use crate::model::{CredentialRecord, CredentialRef, Namespace};

use super::schema::SEALED;
use super::writer::Kind;
use super::{MetadataError, MetadataStore, lock, row};

type Result<T> = std::result::Result<T, MetadataError>;

/// Makes the new message of a credential from the present one.
pub type Reseal<'a> = &'a dyn Fn(&CredentialRef, &[u8]) -> Result<Vec<u8>>;

/// How many encrypted values stay in memory, and how long one may be: a megabyte at most. Without
/// them, reads are half as fast.
const MAX_CACHED: usize = 1024;
const MAX_CACHED_BYTES: usize = 1024;

/// Encrypted values that were read lately.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// `None` while the credential is being changed: then it is read from the database.
    blobs: HashMap<CredentialRef, Option<Arc<[u8]>>>,
    /// How many changes have ended. A reader that began before the last one may have an older
    /// value, and must not leave it here.
    changes: u64,
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
        lock(&self.cache).blobs.insert(at.clone(), None);
        let outcome = self.change(at, record, Kind::Sealed(blob));
        let mut cache = lock(&self.cache);
        cache.blobs.remove(at);
        cache.changes += 1;
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
        let blob: Option<Arc<[u8]>> = blob.map(Arc::from);
        // Without a writer of its own, the store does not learn of changes.
        if let Some(blob) = &blob
            && self.is_writable()
        {
            let mut cache = lock(&self.cache);
            if cache.changes == changes && blob.len() <= MAX_CACHED_BYTES {
                if cache.blobs.len() >= MAX_CACHED {
                    cache.blobs.retain(|_, blob| blob.is_none());
                }
                cache.blobs.entry(at.clone()).or_insert_with(|| Some(Arc::clone(blob)));
            }
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

    /// Replaces the key header, and each encrypted value by what `reseal` makes of it, in one
    /// transaction. Without `reseal`, the values stay. Nothing else may use the store meanwhile.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], or that of `reseal`; nothing has changed.
    pub fn set_seal(&self, header: &str, reseal: Option<Reseal<'_>>) -> Result<()> {
        let mut connection = self.second_connection()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(reseal) = reseal {
            for at in row::names(&transaction, "SELECT namespace, key FROM vault_sealed", [])? {
                let Some(old) = blob(&transaction, &at)? else { continue };
                row::set_beside(&transaction, SEALED, &at, Some(reseal(&at, &old)?))?;
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
