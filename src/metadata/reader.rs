//! The connections that read: opened on demand, used by one caller at a time.

use std::path::PathBuf;
use std::sync::Mutex;

use rusqlite::Connection;

use crate::model::{CredentialRecord, DeliveryMode};

use super::row::COLUMNS;
use super::{Filter, MetadataError, lock, row, schema};

/// Each idle connection keeps its page cache and statements; more would cost memory.
const MAX_IDLE: usize = 2;

#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    /// `None` once closed.
    idle: Mutex<Option<Vec<Connection>>>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, idle: Mutex::new(Some(Vec::new())) }
    }

    pub(super) fn for_each(
        &self,
        filter: Filter<'_>,
        visit: &mut dyn FnMut(CredentialRecord),
    ) -> Result<(), MetadataError> {
        let (condition, parameter) = match filter {
            Filter::All => ("", None),
            Filter::Namespace(namespace) => ("WHERE namespace = ?1", Some(namespace.as_str())),
            Filter::RuntimeEnv => {
                ("WHERE delivery_mode = ?1", Some(DeliveryMode::RuntimeEnv.as_str()))
            }
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM credential_metadata {condition} ORDER BY namespace, key"
        );
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(rusqlite::params_from_iter(parameter))?;
            while let Some(row) = rows.next()? {
                visit(row::read(row)?);
            }
            Ok(())
        })
    }

    pub(super) fn count(&self) -> Result<u64, MetadataError> {
        self.read(|connection| {
            let sql = "SELECT COUNT(*) FROM credential_metadata";
            let count: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    /// Closes the idle connections. Those in use are closed when their callers are done.
    pub(super) fn close(&self) {
        *lock(&self.idle) = None;
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        let idle = lock(&self.idle).as_mut().ok_or(MetadataError::Closed)?.pop();
        let connection = idle.map_or_else(|| schema::connect(&self.path, false), Ok)?;
        let result = work(&connection);
        if let Some(idle) = lock(&self.idle).as_mut().filter(|idle| idle.len() < MAX_IDLE) {
            idle.push(connection);
        }
        result
    }
}
