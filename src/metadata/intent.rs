//! Intents: changes that the backend may or may not have made. The table `vault_intents` has one
//! from the commit of a change until its outcome is known.

use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest as _, Sha256};

use crate::model::{CredentialRecord, CredentialRef};
use crate::random;
use crate::secret::Secret;

use super::{MetadataError, row};

/// Recognises the value that a change was to leave behind, without keeping it.
#[derive(Debug)]
pub(crate) struct Mark {
    /// The name of the backend. Another one knows nothing of the change.
    backend: String,
    salt: [u8; 16],
    /// SHA-256 of salt and value; `None` for a delete.
    fingerprint: Option<[u8; 32]>,
}

/// A change, and what to list once its outcome is known.
#[derive(Debug)]
pub(crate) struct Intent {
    pub(crate) mark: Mark,
    /// The row if the change was not made.
    pub(crate) before: Option<CredentialRecord>,
    /// The row if it was.
    pub(crate) after: Option<CredentialRecord>,
}

impl Mark {
    /// Marks a store of `value`, or a delete if it is `None`.
    pub(crate) fn new(backend: &str, value: Option<&Secret>) -> Result<Self, MetadataError> {
        let salt = random::bytes().map_err(MetadataError::Failed)?;
        let fingerprint = value.map(|value| fingerprint(&salt, value));
        Ok(Self { backend: backend.to_owned(), salt, fingerprint })
    }

    /// Whether `found` in the backend is what the change was to leave behind.
    pub(crate) fn fits(&self, found: Option<&Secret>) -> bool {
        self.fingerprint == found.map(|value| fingerprint(&self.salt, value))
    }
}

fn fingerprint(salt: &[u8], value: &Secret) -> [u8; 32] {
    // In a box, since the binary's allocator wipes what the hash has buffered of the value.
    let mut hash = Box::new(Sha256::new_with_prefix(salt));
    hash.update(value.expose());
    hash.finalize_reset().into()
}

/// Opens the intent of a change, and replaces an earlier one of the credential.
pub(super) fn open(
    connection: &Connection,
    at: &CredentialRef,
    mark: &Mark,
    before: Option<&CredentialRecord>,
    after: Option<&CredentialRecord>,
) -> rusqlite::Result<()> {
    let json =
        |record: &CredentialRecord| serde_json::to_string(record).expect("a record is always JSON");
    let sql = "INSERT OR REPLACE INTO vault_intents
         (namespace, key, backend, salt, fingerprint, before, after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let Mark { backend, salt, fingerprint } = mark;
    let (namespace, key) = (at.namespace().as_str(), at.key());
    let (before, after) = (before.map(json), after.map(json));
    let values = params![namespace, key, backend, salt, fingerprint, before, after];
    row::execute(connection, sql, values)
}

/// The open intent of the credential.
pub(super) fn find(
    connection: &Connection,
    at: &CredentialRef,
) -> Result<Option<Intent>, MetadataError> {
    let record = |text: Option<String>| text.map(|json| serde_json::from_str(&json)).transpose();
    let sql = "SELECT backend, salt, fingerprint, before, after FROM vault_intents
         WHERE namespace = ?1 AND key = ?2";
    let row =
        connection.prepare_cached(sql)?.query_row([at.namespace().as_str(), at.key()], |row| {
            let mark = Mark { backend: row.get(0)?, salt: row.get(1)?, fingerprint: row.get(2)? };
            Ok((mark, row.get(3)?, row.get(4)?))
        });
    let Some((mark, before, after)) = row.optional()? else { return Ok(None) };
    let records = record(before).and_then(|before| Ok((before, record(after)?)));
    let (before, after) = records.map_err(|error| {
        MetadataError::Failed(format!(
            "the interrupted change of {at} cannot be read ({error}); delete its row of \
             vault_intents with the program sqlite3"
        ))
    })?;
    Ok(Some(Intent { mark, before, after }))
}

/// The credentials with an open intent for this backend.
pub(super) fn list(
    connection: &Connection,
    backend: &str,
) -> Result<Vec<CredentialRef>, MetadataError> {
    let sql = "SELECT namespace, key FROM vault_intents WHERE backend = ?1";
    row::names(connection, sql, [backend])
}
