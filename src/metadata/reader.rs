//! The connections that read: opened on demand, used by one caller at a time.

use std::sync::{Arc, Mutex};

use rusqlite::Connection;

use super::file::Opened;
use super::{MetadataError, lock, schema};

/// Each idle connection keeps its page cache and statements; more would cost memory.
const MAX_IDLE: usize = 2;

#[derive(Debug)]
pub(super) struct Readers {
    pub(super) file: Arc<Opened>,
    /// `None` once closed.
    idle: Mutex<Option<Vec<Connection>>>,
}

impl Readers {
    pub(super) fn new(file: Arc<Opened>) -> Self {
        Self { file, idle: Mutex::new(Some(Vec::new())) }
    }

    /// Closes the idle connections. Those in use are closed when their callers are done.
    pub(super) fn close(&self) {
        *lock(&self.idle) = None;
    }

    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        let idle = lock(&self.idle).as_mut().ok_or(MetadataError::Closed)?.pop();
        let open = || self.file.check().and_then(|()| Ok(schema::connect(&self.file.path, false)?));
        let connection = idle.map_or_else(open, Ok)?;
        let result = work(&connection);
        if let Some(idle) = lock(&self.idle).as_mut().filter(|idle| idle.len() < MAX_IDLE) {
            idle.push(connection);
        }
        result
    }
}
