//! The database file as a reader sees it while a service may be writing: checked, listed, copied.

use std::path::Path;
use std::time::Duration;

use rusqlite::backup::Backup;
use rusqlite::{Connection, OpenFlags};

use crate::model::{CredentialRecord, CredentialRef};

use super::row::{self, COLUMNS};
use super::{MetadataError, MetadataStore, schema};

/// A database file that is only read. Takes no lock that a service would wait for.
#[derive(Debug)]
pub struct Snapshot(Connection);

/// The content of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// The number of credentials whose metadata it has.
    pub credentials: u64,
    /// The number of values that it has, which are encrypted.
    pub sealed_values: u64,
}

impl Snapshot {
    /// Opens the file at `path`, and checks that it is a vault's.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Unusable`] if it does not exist, is damaged, or is not a vault's.
    pub fn open(path: &Path) -> Result<Self, MetadataError> {
        let opened = schema::open_existing(path);
        opened.map(|it| Self(it.0)).map_err(|reason| schema::unusable(path, &reason))
    }

    /// The record of one credential.
    ///
    /// # Errors
    ///
    /// Those of [`records`](Self::records).
    pub fn find(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, MetadataError> {
        Ok(self.records()?.into_iter().find(|record| record.at == *at))
    }

    /// The key header of encrypted values, if there is one, and their number.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`].
    pub fn seal(&self) -> Result<(Option<String>, u64), MetadataError> {
        seal(&self.0)
    }

    /// What `SQLite` finds wrong with the file, at most ten sentences (`PRAGMA integrity_check`).
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`].
    pub fn damage(&self) -> Result<Vec<String>, MetadataError> {
        let mut check = self.0.prepare("PRAGMA integrity_check(10)")?;
        let lines = check.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
        Ok(lines.into_iter().filter(|line| line != "ok").collect())
    }

    /// The records in the order of namespace and key, without the hosts that stored them and
    /// the results of validators: the file may be of an older version.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], also if a row is invalid (the message says which one).
    pub fn records(&self) -> Result<Vec<CredentialRecord>, MetadataError> {
        let sql = format!(
            "SELECT {COLUMNS}, NULL, NULL FROM credential_metadata ORDER BY namespace, key"
        );
        self.0.prepare(&sql)?.query_map([], |row| Ok(row::read(row)))?.map(|row| row?).collect()
    }

    /// The names of the credentials whose last change is not finished, or was not when the service
    /// ended.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`].
    pub fn open_changes(&self) -> Result<Vec<String>, MetadataError> {
        if count(&self.0, "vault_intents")? == 0 {
            return Ok(Vec::new());
        }
        let mut names = self.0.prepare("SELECT namespace || '/' || key FROM vault_intents")?;
        Ok(names.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// Copies the database as it is at one moment into the empty file at `path`, without the
    /// changes that are not finished, and checks the copy (`SQLite`'s online backup,
    /// <https://sqlite.org/backup.html>).
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`].
    pub fn copy_to(&self, path: &Path) -> Result<Copied, MetadataError> {
        let failed = |error: std::io::Error| MetadataError::Failed(error.to_string());
        let path = path.canonicalize().map_err(failed)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let mut copy = Self(Connection::open_with_flags(path, flags)?);
        // All pages in one step: after a change of the database, a second step would begin again.
        let pause = Duration::from_millis(50);
        Backup::new(&self.0, &mut copy.0)?.run_to_completion(i32::MAX, pause, None)?;
        // A single file, without a log beside it.
        copy.0.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA journal_mode = DELETE")?;
        if count(&copy.0, "vault_intents")? > 0 {
            copy.0.execute_batch("DELETE FROM vault_intents; VACUUM")?;
        }
        if let Some(damage) = copy.damage()?.first() {
            return Err(MetadataError::Failed(format!("the copy is damaged: {damage}")));
        }
        Ok(Copied {
            credentials: count(&copy.0, "credential_metadata")?,
            sealed_values: count(&copy.0, "vault_sealed")?,
        })
    }
}

impl MetadataStore {
    /// The key header of encrypted values, if there is one, and their number.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn seal(&self) -> Result<(Option<String>, u64), MetadataError> {
        self.readers.read(seal)
    }
}

fn seal(connection: &Connection) -> Result<(Option<String>, u64), MetadataError> {
    let header = match count(connection, "vault_seal")? {
        0 => None,
        _ => Some(connection.query_row("SELECT header FROM vault_seal", [], |row| row.get(0))?),
    };
    Ok((header, count(connection, "vault_sealed")?))
}

/// The number of rows of a table; 0 if there is no such table.
fn count(connection: &Connection, table: &str) -> Result<u64, MetadataError> {
    if !connection.table_exists(None::<&str>, table)? {
        return Ok(0);
    }
    let sql = format!("SELECT COUNT(*) FROM {table}");
    Ok(connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?.unsigned_abs())
}
