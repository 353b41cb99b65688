//! Connections besides the writer's: mostly those that read, opened on demand, used by one caller at a time.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use rusqlite::Connection;

use super::file::Opened;
use super::{MetadataError, MetadataStore, lock, schema};

/// Each idle connection keeps its page cache and statements; more would cost memory.
const MAX_IDLE: usize = 2;

impl MetadataStore {
    /// Opens the database at `path` for reading, by one thread, also while another store is open.
    /// Without a file it is empty. Nothing is changed: changes return [`MetadataError::Closed`].
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), and for a file of an older version.
    pub fn open_read_only(path: &Path) -> Result<Self, MetadataError> {
        let connection = schema::open_read_only(path);
        let connection = connection.map_err(|reason| schema::unusable(path, &reason))?;
        let readers = Readers::new(Arc::new(Opened::new(path.to_owned())));
        *lock(&readers.idle) = Some(vec![connection]);
        let (touches, cache, writer) = <_>::default();
        Ok(Self { sender: mpsc::channel().0, touches, readers, cache, writer })
    }

    /// A connection for changes that are not the writer's.
    pub(super) fn second_connection(&self) -> Result<Connection, MetadataError> {
        let path = &self.readers.file.path;
        schema::open(path).map_err(|reason| schema::unusable(path, &reason))
    }
}

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
