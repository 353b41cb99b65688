//! The metadata database, an `SQLite` file: everything known about a credential except its
//! value.
//!
//! ```text
//!  put, remove, restore ──channel──▶ writer thread ──one commit for many──▶ credentials.db
//!  touch ──▶ map in memory ──────every half second──────▶ ▲                      │
//!                  └──────────────overlay──────────▶     page ◀──────readers─────┘
//! ```
//!
//! A change returns only after its transaction is on disk; changes that arrive together share
//! one. A touch (a value was read) is on the path of every read, so it is only noted in
//! memory. Listings lay those notes over the rows.

mod file;
mod intent;
mod reader;
mod row;
mod schema;
mod sealed;
mod snapshot;
mod writer;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rusqlite::OptionalExtension as _;

pub(crate) use self::intent::{Intent, Mark};
pub use crate::error::MetadataError;
pub(crate) use crate::sync::lock;
pub use sealed::Reseal;
pub use snapshot::{Copied, Snapshot};

use crate::backend::Revision;
use crate::model::{CredentialRecord, CredentialRef, Namespace};
use crate::time::Timestamp;

use self::file::Opened;
use self::reader::Readers;
use self::schema::Reason;
use self::sealed::Cache;
pub(crate) use self::writer::Kind;
use self::writer::{Change, Message, Outcome};

/// The database's file name in the data directory.
pub const DATABASE: &str = "credentials.db";

/// The records of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// Every record.
    All,
    /// Those of one namespace.
    Namespace(Namespace),
    /// Those delivered as environment variables.
    RuntimeEnv,
}

/// Times of last use that are not in the database yet. A listing or the writer holds on to the
/// map of one moment; a touch in the meantime copies it.
type Touches = Mutex<Arc<TouchMap>>;
type TouchMap = HashMap<CredentialRef, Timestamp>;

/// The open database. Threads share it by reference; dropping it closes it.
#[derive(Debug)]
pub struct MetadataStore {
    sender: Sender<Message>,
    touches: Arc<Touches>,
    readers: Readers,
    cache: Mutex<Cache>,
    writer: Mutex<Option<JoinHandle<Result<(), MetadataError>>>>,
}

impl MetadataStore {
    /// Opens the database at `path`, or creates it there (mode 0600), with the directories
    /// that are missing (0700). A file of the Python service is taken over in place, and
    /// stays readable to that service. No other store can be open in its directory.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Unusable`] if the file is damaged, written by a newer version or by
    /// another program, in use by another vault, or cannot be opened or created. Its content is
    /// then unchanged.
    pub fn open(path: &Path) -> Result<Self, MetadataError> {
        Self::try_open(path).map_err(|reason| schema::unusable(path, &reason))
    }

    fn try_open(path: &Path) -> Result<Self, Reason> {
        let path = file::prepare(path)?;
        let lock = file::lock(&path)?;
        let connection = schema::open(&path)?;
        let file = Arc::new(Opened::new(path));
        let touches = Arc::new(Touches::default());
        let (sender, inbox) = mpsc::channel();
        let (of_writer, shared) = (Arc::clone(&file), Arc::clone(&touches));
        let thread = thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || writer::run(connection, of_writer, shared, inbox, lock))?;
        Ok(Self {
            sender,
            touches,
            readers: Readers::new(file),
            cache: Mutex::default(),
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Commits the record of a credential that is stored. Returns the record it replaces, for
    /// [`restore`](Self::restore) if the backend then refuses the value. The replaced
    /// record's `created_at`, `last_used_at` and `last_validated_at` are kept.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], and nothing has changed; [`MetadataError::Closed`].
    pub fn put(&self, record: CredentialRecord) -> Result<Option<CredentialRecord>, MetadataError> {
        self.change(&record.at.clone(), Some(record), Kind::New(None))
    }

    /// Removes a record, and returns it.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], and nothing has changed; [`MetadataError::Closed`].
    pub fn remove(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, MetadataError> {
        self.change(at, None, Kind::New(None))
    }

    /// Restores the record that [`put`](Self::put) or [`remove`](Self::remove) returned;
    /// `None` removes the present one.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], and nothing has changed; [`MetadataError::Closed`].
    pub fn restore(
        &self,
        at: &CredentialRef,
        record: Option<CredentialRecord>,
    ) -> Result<(), MetadataError> {
        self.change(at, record, Kind::Undo { is_final: true }).map(drop)
    }

    /// Replaces rows in one transaction; `None` removes one.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], and nothing has changed; [`MetadataError::Closed`].
    pub fn set_all(&self, rows: Vec<Revision>) -> Result<(), MetadataError> {
        let count = rows.len();
        let (reply, outcomes) = mpsc::sync_channel(count);
        let kind = || Kind::Undo { is_final: false };
        let change = move |(at, row)| Change { at, row, kind: kind(), reply: reply.clone() };
        let _ = self.sender.send(Message::Changes(rows.into_iter().map(change).collect()));
        (0..count).try_for_each(|_| self.outcome(&outcomes).map(drop))
    }

    /// When the rows were last a copy of the metadata that hosts share; `None` if they are no copy.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn refreshed(&self) -> Result<Option<Timestamp>, MetadataError> {
        self.readers.read(|connection| {
            let sql = "SELECT at FROM vault_refresh";
            let at = connection.query_row(sql, [], |row| row.get::<_, String>(0)).optional()?;
            Ok(at.and_then(|at| Timestamp::parse(&at)))
        })
    }

    /// Notes that the rows are a copy of that time, or no copy.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn set_refreshed(&self, at: Option<Timestamp>) -> Result<(), MetadataError> {
        let (reply, outcome) = mpsc::sync_channel(1);
        let _ = self.sender.send(Message::Refreshed(at, reply));
        self.outcome(&outcome).map(drop)
    }

    /// Notes that the change was made as its intent says. The intent is removed with the next
    /// commit, or within a second. If a crash comes first, settling finds the same.
    pub(crate) fn finish(&self, at: &CredentialRef) {
        // If the writer is gone, the next start settles the intent.
        let _ = self.sender.send(Message::Finished(at.clone()));
    }

    /// The open intent of the credential.
    pub(crate) fn intent(&self, at: &CredentialRef) -> Result<Option<Intent>, MetadataError> {
        self.readers.read(|connection| intent::find(connection, at))
    }

    /// The credentials with an open intent for this backend.
    pub(crate) fn intents(&self, backend: &str) -> Result<Vec<CredentialRef>, MetadataError> {
        self.readers.read(|connection| intent::list(connection, backend))
    }

    /// Notes that the value was read at `when`, without waiting for the disk. Listings show
    /// it at once; it is in the file within a second (if the disk permits), or when the store
    /// is closed. Nothing happens if there is no record, or if a later time is noted.
    pub fn touch(&self, at: &CredentialRef, when: Timestamp) {
        let mut touches = lock(&self.touches);
        let is_first = touches.is_empty();
        match Arc::make_mut(&mut touches).get_mut(at) {
            Some(noted) => *noted = when.max(*noted),
            None => drop(Arc::make_mut(&mut touches).insert(at.clone(), when)),
        }
        drop(touches);
        if is_first {
            // If the writer is gone, the store is closed, or every change reports it.
            let _ = self.sender.send(Message::Touched);
        }
    }

    /// Visits the records in the order of namespace and key (by bytes), all as of the same
    /// moment.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], also if a row is invalid (the message says which one);
    /// [`MetadataError::Closed`].
    pub fn for_each(
        &self,
        filter: &Filter,
        visit: &mut dyn FnMut(CredentialRecord),
    ) -> Result<(), MetadataError> {
        self.page(filter, None, &mut |record| {
            visit(record);
            ControlFlow::Continue(())
        })
    }

    /// Visits the same records beginning with `from`, until `visit` breaks. Each page is as of a
    /// moment of its own, and nothing is held between two of them. A record that exists all the
    /// time is on exactly one of the pages of a listing. One that is created or removed meanwhile
    /// may or may not be on one.
    ///
    /// # Errors
    ///
    /// Those of [`for_each`](Self::for_each).
    pub fn page(
        &self,
        filter: &Filter,
        from: Option<&CredentialRef>,
        visit: &mut dyn FnMut(CredentialRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        // A touch leaves memory after its commit. So with the touches read first, and the
        // rows second, none is missed.
        let touches = Arc::clone(&lock(&self.touches));
        let (namespace, key) = from.map_or(("", ""), |at| (at.namespace().as_str(), at.key()));
        // Both forms of the comparison search the index of the primary key.
        let (condition, namespace) = match filter {
            Filter::All => ("(namespace, key) >= (?1, ?2)", namespace),
            Filter::Namespace(name) => ("namespace = ?1 AND key >= ?2", name.as_str()),
            Filter::RuntimeEnv => {
                ("(namespace, key) >= (?1, ?2) AND delivery_mode = 'runtime_env'", namespace)
            }
        };
        let sql = row::select(&format!("WHERE {condition} ORDER BY namespace, key"));
        self.readers.read(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([namespace, key])?;
            while let Some(row) = rows.next()? {
                let mut record = row::read(row)?;
                record.last_used_at = record.last_used_at.max(touches.get(&record.at).copied());
                if visit(record).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    /// The record of one credential.
    ///
    /// # Errors
    ///
    /// Those of [`for_each`](Self::for_each).
    pub fn find(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, MetadataError> {
        self.readers.read(|connection| row::find(connection, at)?)
    }

    /// The number of records.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn count(&self) -> Result<u64, MetadataError> {
        self.readers.read(|connection| {
            let sql = "SELECT COUNT(*) FROM credential_metadata";
            let count: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    /// Whether changes can be made. They cannot while another file is in the place of the
    /// database, or once the writer thread has panicked: it is not started again, since nobody
    /// knows whether its last commit was made.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        lock(&self.writer).as_ref().is_some_and(|thread| !thread.is_finished())
            && self.readers.file.check().is_ok()
    }

    /// Writes the touches that are only in memory, ends the writer thread, and leaves the
    /// database file alone in its directory. Closing again does nothing.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`] if something could not be written; it is closed anyway.
    pub fn close(&self) -> Result<(), MetadataError> {
        let Some(thread) = lock(&self.writer).take() else { return Ok(()) };
        // The last connection to close removes the log; that should be the writer's.
        self.readers.close();
        // A writer that is gone has panicked, which `join` reports.
        let _ = self.sender.send(Message::Close);
        thread.join().unwrap_or_else(|_| Err(writer_stopped()))
    }

    /// Commits a change, and returns the row as it was before.
    pub(crate) fn change(
        &self,
        at: &CredentialRef,
        row: Option<CredentialRecord>,
        kind: Kind,
    ) -> Outcome {
        let (reply, outcome) = mpsc::sync_channel(1);
        let change = Change { at: at.clone(), row, kind, reply };
        let _ = self.sender.send(Message::Changes(vec![change]));
        self.outcome(&outcome)
    }

    /// Waits for the outcome of a change. Without a writer, the channel is closed.
    fn outcome(&self, outcomes: &Receiver<Outcome>) -> Outcome {
        outcomes.recv().unwrap_or_else(|_| {
            let is_closed = lock(&self.writer).is_none();
            Err(if is_closed { MetadataError::Closed } else { writer_stopped() })
        })
    }
}

impl Drop for MetadataStore {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::warn!("while closing: {error}");
        }
    }
}

/// An error of a statement, with advice on what to do.
impl From<rusqlite::Error> for MetadataError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(schema::explain(&error))
    }
}

fn writer_stopped() -> MetadataError {
    MetadataError::Failed("its writer has stopped; restart the service".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::backend::EnvVault;
    use crate::service::VaultService;
    use crate::settings::Environment;

    #[test]
    fn health_shows_a_writer_that_has_panicked() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("credentials.db");
        let service =
            |store| VaultService::new(Arc::new(EnvVault::new(Environment::default())), store);
        let store = MetadataStore::open(&path).expect("it is created");
        let broken = thread::spawn(|| panic!("on purpose"));
        let writer = lock(&store.writer).replace(broken).expect("it runs");
        store.sender.send(Message::Close).expect("the writer runs");
        writer.join().expect("no panic").expect("nothing is lost");
        let start = Instant::now();
        while store.is_writable() {
            assert!(start.elapsed() < Duration::from_secs(60), "the thread does not end");
            thread::yield_now();
        }
        let at = CredentialRef::parse("openai", "key").expect("valid");
        let error = store.remove(&at).expect_err("nobody writes");
        assert!(error.to_string().contains("restart the service"), "{error}");
        assert!(!service(store).backend_status().works);

        let store = MetadataStore::open(&path).expect("it is there");
        assert!(service(store).backend_status().works);
    }
}
