//! The `SQLite` sidecar: all that is known of a credential but its value.
//!
//! ```text
//!  put, remove, restore ──channel──▶ writer thread ──one commit for many──▶ credentials.db
//!  touch ──▶ touches in memory ──every half second──▶      ▲                     │
//!                    └───────── overlay ──────────▶ for_each, record ◀── readers ┘
//! ```
//!
//! A change is answered only after the transaction that holds it has reached the disk;
//! changes that arrive together share one. A touch (a value was handed out) is on the
//! path of every read, so it is only noted in memory; every listing lays what is noted
//! there over the rows.

mod file;
mod reader;
mod row;
mod schema;
mod touches;
mod writer;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

pub use crate::error::MetadataError;

use crate::model::{CredentialRecord, CredentialRef, Namespace, StoreRequest};
use crate::time::Timestamp;

use self::reader::Readers;
use self::touches::Touches;
use self::writer::{Change, Message, NewRow, Operation, Writer};

/// Which records [`MetadataStore::for_each`] visits.
#[derive(Debug, Clone, Copy)]
pub enum Filter<'a> {
    /// Every record.
    All,
    /// Those of one namespace.
    Namespace(&'a Namespace),
    /// Those delivered as environment variables.
    RuntimeEnv,
}

/// The open database. Shared between threads by reference; dropping it closes it.
#[derive(Debug)]
pub struct MetadataStore {
    sender: Sender<Message>,
    touches: Arc<Touches>,
    readers: Readers,
    writer: Mutex<Option<JoinHandle<()>>>,
    closed: AtomicBool,
}

impl MetadataStore {
    /// Opens the database at `path`, or creates it there (mode 0600), with the
    /// directories that are missing (0700). A file of the Python service is taken over
    /// in place, and stays readable to that service.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Unusable`] when the file is damaged, written by a newer version
    /// or another program's, or cannot be opened or created. It is then as it was.
    pub fn open(path: &Path) -> Result<Self, MetadataError> {
        let unusable = |reason: String| MetadataError::Unusable { path: path.to_owned(), reason };
        let path = file::prepare(path).map_err(unusable)?;
        if file::has_content(&path).map_err(unusable)? {
            schema::check(&path).map_err(unusable)?;
        }
        file::tighten(&path).map_err(unusable)?;
        let connection = schema::take_over(&path).map_err(unusable)?;

        let touches = Arc::new(Touches::default());
        let (sender, receiver) = unbounded();
        let writer = Writer::new(connection, Arc::clone(&touches), receiver);
        let thread = thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| unusable(format!("no thread for its writer: {error}")))?;
        Ok(Self {
            sender,
            touches,
            readers: Readers::new(path),
            writer: Mutex::new(Some(thread)),
            closed: AtomicBool::new(false),
        })
    }

    /// Commits what a store says of a credential, and gives the record that was there
    /// before, for [`restore`](Self::restore) should the backend then refuse the value.
    /// `created_at`, `last_used_at` and `last_validated_at` of that record are kept.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], and nothing has changed; [`MetadataError::Closed`].
    pub fn put(
        &self,
        at: &CredentialRef,
        request: &StoreRequest,
    ) -> Result<Option<CredentialRecord>, MetadataError> {
        // What crosses to the writer thread is the row, never the value.
        self.change(at, Change::Put(NewRow::of(request, Timestamp::now())))
    }

    /// Removes a record, and gives it.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], and nothing has changed; [`MetadataError::Closed`].
    pub fn remove(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, MetadataError> {
        self.change(at, Change::Remove)
    }

    /// Puts a record back as [`put`](Self::put) or [`remove`](Self::remove) gave it;
    /// `None` removes what is there now.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`]: it is not put back yet, but will be as soon as the
    /// database takes it, and before any other change of it; [`MetadataError::Closed`].
    pub fn restore(
        &self,
        at: &CredentialRef,
        record: Option<CredentialRecord>,
    ) -> Result<(), MetadataError> {
        let change = match record {
            Some(record) => Change::Restore(Box::new(record)),
            None => Change::Discard,
        };
        self.change(at, change).map(drop)
    }

    /// Notes that the value was handed out at `when`. Waits for no disk: every later
    /// listing shows it at once, and it is in the file within a second (if the disk
    /// takes it) or when the store is closed. Without a record it does nothing; an
    /// earlier time than the noted one is ignored.
    pub fn touch(&self, at: &CredentialRef, when: Timestamp) {
        if self.touches.note(at, when) {
            // A writer that is gone was closed, or its end is reported by every change.
            let _ = self.sender.send(Message::Touched);
        }
    }

    /// The record of one credential.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn record(&self, at: &CredentialRef) -> Result<Option<CredentialRecord>, MetadataError> {
        // Before the row is read: see `for_each`.
        let touched = self.touches.of(at);
        let mut record = self.readers.borrow()?.record(at)?;
        if let Some(record) = &mut record {
            record.last_used_at = record.last_used_at.max(touched);
        }
        Ok(record)
    }

    /// Visits records in the order of namespace and key (by bytes), until `visit`
    /// breaks off. All are of one moment.
    ///
    /// There are few readers, and `visit` holds one of them: it must not call back into
    /// this store, nor wait for a slow client.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], also when a row cannot be read (it says which);
    /// [`MetadataError::Closed`].
    pub fn for_each(
        &self,
        filter: Filter<'_>,
        visit: &mut dyn FnMut(CredentialRecord) -> ControlFlow<()>,
    ) -> Result<(), MetadataError> {
        // Touches leave memory only after their commit, so taking them first and the rows
        // second may see a touch twice but never miss one.
        let touched = self.touches.snapshot(filter);
        self.readers.borrow()?.for_each(filter, &mut |mut record| {
            record.last_used_at = record.last_used_at.max(touched.of(&record.at));
            visit(record)
        })
    }

    /// How many records there are.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`], [`MetadataError::Closed`].
    pub fn count(&self) -> Result<u64, MetadataError> {
        self.readers.borrow()?.count()
    }

    /// Writes the touches that are only in memory, ends the writer thread and leaves the
    /// database file alone in its directory. Closing again does nothing.
    ///
    /// # Errors
    ///
    /// [`MetadataError::Failed`] when touches could not be written; it is closed anyway.
    pub fn close(&self) -> Result<(), MetadataError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(thread) = writer.take() else { return Ok(()) };
        self.closed.store(true, Ordering::Release);
        // The last connection to close tidies up; that should be the writer's.
        self.readers.close();
        let (reply, answer) = bounded(1);
        let closed = match self.sender.send(Message::Close(reply)) {
            Ok(()) => answer.recv().unwrap_or_else(|_| Err(writer_stopped())),
            Err(_) => Err(writer_stopped()),
        };
        // A panic of the writer shows as no answer.
        let _ = thread.join();
        closed
    }

    fn change(
        &self,
        at: &CredentialRef,
        change: Change,
    ) -> Result<Option<CredentialRecord>, MetadataError> {
        let (reply, answer): (_, Receiver<writer::Outcome>) = bounded(1);
        let operation = Operation { at: at.clone(), change, reply };
        let gone = || {
            if self.closed.load(Ordering::Acquire) {
                MetadataError::Closed
            } else {
                writer_stopped()
            }
        };
        self.sender.send(Message::Apply(operation)).map_err(|_| gone())?;
        answer.recv().unwrap_or_else(|_| Err(gone()))
    }
}

impl Drop for MetadataStore {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::warn!("while closing: {error}");
        }
    }
}

fn writer_stopped() -> MetadataError {
    MetadataError::Failed("its writer has stopped; restart the service".to_owned())
}

/// The error of a statement, with what to do about it.
impl From<rusqlite::Error> for MetadataError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(schema::explain(&error))
    }
}
