//! The connections that read: opened on demand, used by one caller at a time.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;

use rusqlite::Connection;

use crate::model::{CredentialRecord, CredentialRef};

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

    pub(super) fn visit(
        &self,
        filter: &Filter,
        from: Option<&CredentialRef>,
        visit: &mut dyn FnMut(CredentialRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        let (mut namespace, key) =
            from.map_or(("", ""), |from| (from.namespace().as_str(), from.key()));
        // Both forms of the comparison search the index of the primary key.
        let condition = match filter {
            Filter::All => "(namespace, key) >= (?1, ?2)",
            Filter::Namespace(name) => {
                namespace = name.as_str();
                "namespace = ?1 AND key >= ?2"
            }
            Filter::RuntimeEnv => "(namespace, key) >= (?1, ?2) AND delivery_mode = 'runtime_env'",
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM credential_metadata WHERE {condition} ORDER BY namespace, key"
        );
        self.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([namespace, key])?;
            while let Some(row) = rows.next()? {
                if visit(row::read(row)?).is_break() {
                    break;
                }
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
