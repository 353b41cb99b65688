//! The connections that read: few, opened when first needed, lent to one caller each.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension};

use crate::model::{CredentialRecord, CredentialRef, DeliveryMode};

use super::row::columns;
use super::{Filter, MetadataError, row, schema};

/// Each has its page cache and statements; more would be memory for little speed.
const MAX_READERS: usize = 2;

/// The pool of reading connections.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    pool: Mutex<Pool>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Connection>,
    lent: usize,
    closed: bool,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, pool: Mutex::default(), returned: Condvar::new() }
    }

    /// A reader, as soon as one is free.
    pub(super) fn borrow(&self) -> Result<Reader<'_>, MetadataError> {
        let mut pool = self
            .returned
            .wait_while(self.lock(), |pool| !pool.closed && pool.lent >= MAX_READERS)
            .unwrap_or_else(PoisonError::into_inner);
        if pool.closed {
            return Err(MetadataError::Closed);
        }
        pool.lent += 1;
        let idle = pool.idle.pop();
        drop(pool);
        // From here on, dropping the reader gives its place back.
        let mut reader = Reader { readers: self, connection: idle };
        if reader.connection.is_none() {
            reader.connection = Some(schema::open_reader(&self.path)?);
        }
        Ok(reader)
    }

    /// Closes the idle connections; the others close when they are given back.
    pub(super) fn close(&self) {
        let mut pool = self.lock();
        pool.closed = true;
        pool.idle.clear();
        self.returned.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Pool> {
        // No caller's code runs under the lock, and each change is complete in itself.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    readers: &'a Readers,
    connection: Option<Connection>,
}

impl Reader<'_> {
    pub(super) fn record(
        &self,
        at: &CredentialRef,
    ) -> Result<Option<CredentialRecord>, MetadataError> {
        record(self.connection(), at)?
    }

    pub(super) fn for_each(
        &self,
        filter: Filter<'_>,
        visit: &mut dyn FnMut(CredentialRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        let (sql, parameter) = match filter {
            Filter::All => (
                concat!("SELECT ", columns!(), " FROM credential_metadata ORDER BY namespace, key"),
                None,
            ),
            Filter::Namespace(namespace) => (
                concat!(
                    "SELECT ",
                    columns!(),
                    " FROM credential_metadata WHERE namespace = ?1 ORDER BY namespace, key"
                ),
                Some(namespace.as_str()),
            ),
            Filter::RuntimeEnv => (
                concat!(
                    "SELECT ",
                    columns!(),
                    " FROM credential_metadata WHERE delivery_mode = ?1 ORDER BY namespace, key"
                ),
                Some(DeliveryMode::RuntimeEnv.as_str()),
            ),
        };
        let mut statement = self.connection().prepare_cached(sql)?;
        let mut rows = statement.query(rusqlite::params_from_iter(parameter))?;
        while let Some(row) = rows.next()? {
            if visit(row::read(row)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn count(&self) -> Result<u64, MetadataError> {
        let mut statement =
            self.connection().prepare_cached("SELECT COUNT(*) FROM credential_metadata")?;
        let count: i64 = statement.query_row([], |row| row.get(0))?;
        Ok(u64::try_from(count).expect("a count is not negative"))
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("borrow() gives out only readers with a connection")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        let mut pool = self.readers.lock();
        pool.lent -= 1;
        if !pool.closed {
            pool.idle.extend(self.connection.take());
        }
        self.readers.returned.notify_one();
    }
}

/// The record of one credential, as it is in the database. The outer error is the
/// database's, the inner this row's.
pub(super) fn record(
    connection: &Connection,
    at: &CredentialRef,
) -> rusqlite::Result<Result<Option<CredentialRecord>, MetadataError>> {
    let mut statement = connection.prepare_cached(concat!(
        "SELECT ",
        columns!(),
        " FROM credential_metadata WHERE namespace = ?1 AND key = ?2"
    ))?;
    let row = statement.query_row([at.namespace().as_str(), at.key()], |row| Ok(row::read(row)));
    Ok(row.optional()?.transpose())
}
