//! The writer thread. Changes that wait at the same time share a commit.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use crate::backoff::Backoff;
use crate::model::{CredentialRecord, CredentialRef};
use crate::time::Timestamp;

use super::file::Opened;
use super::schema::{INTENTS, SEALED};
use super::{Mark, MetadataError, TouchMap, Touches, intent, lock, row};

/// How long touches wait, so that many of them share one commit.
const TOUCH_DELAY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) enum Message {
    /// Commit these together, then reply to each.
    Changes(Vec<Change>),
    /// Commit when the rows were last a copy of those that hosts share, then reply.
    Refreshed(Option<Timestamp>, SyncSender<Outcome>),
    /// The backend has made the change of the credential's intent, which is to be removed soon.
    Finished(CredentialRef),
    /// There are touches to write soon.
    Touched,
    /// Write everything, then end the thread.
    Close,
}

/// A change of one row.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) at: CredentialRef,
    /// The new row; `None` deletes it.
    pub(super) row: Option<CredentialRecord>,
    pub(super) kind: Kind,
    pub(super) reply: SyncSender<Outcome>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// A new row. With a mark, an intent is opened in the same transaction.
    New(Option<Mark>),
    /// The same with an intent, in the place of this shared record instead of the row, which a
    /// refresh may make old at any moment.
    Shared(Mark, Option<Box<CredentialRecord>>),
    /// A new row with the encrypted value, or without both.
    Sealed(Option<Vec<u8>>),
    /// Sets the row exactly as it was, and removes the intent if that is final.
    Undo { is_final: bool },
}

/// The row as it was before the change.
pub(crate) type Outcome = Result<Option<CredentialRecord>, MetadataError>;

/// Writes until told to close, and then releases the lock. An error means that touches are lost.
pub(super) fn run(
    connection: Connection,
    file: Arc<Opened>,
    touches: Arc<Touches>,
    inbox: Receiver<Message>,
    _lock: Option<File>,
) -> Result<(), MetadataError> {
    let backoff = Backoff::new(TOUCH_DELAY, Duration::from_secs(60));
    let finished = Vec::new();
    let mut writer = Writer { connection, file, touches, inbox, finished, due: None, backoff };
    loop {
        let (batch, is_closing) = writer.next_batch();
        let is_due = writer.due.is_some_and(|due| due <= Instant::now());
        // After a failure, every commit also tries to write the rest.
        let all = is_due || is_closing || !writer.backoff.is_fresh();
        if batch.is_empty() && !all {
            continue;
        }
        let committed = writer.commit(batch, all);
        if is_closing {
            writer.move_log();
            return committed;
        }
        if is_due && let Err(error) = committed {
            let pause = writer.backoff.next_pause();
            writer.due = Some(Instant::now() + pause);
            let uses = lock(&writer.touches).len();
            log::warn!(
                "{uses} times of last use wait to be written; next attempt in {pause:?}: {error}"
            );
        }
    }
}

struct Writer {
    connection: Connection,
    file: Arc<Opened>,
    touches: Arc<Touches>,
    inbox: Receiver<Message>,
    /// Whose intents the next commit removes. They are older than the changes in it.
    finished: Vec<CredentialRef>,
    /// When to write what waits; `None` if nothing does.
    due: Option<Instant>,
    backoff: Backoff,
}

impl Writer {
    /// Waits for the next change, and takes those that wait behind it. Returns without any when
    /// something is due. The flag says whether to close.
    ///
    /// Each caller waits for its reply, so a batch has at most one change from each thread.
    fn next_batch(&mut self) -> (Vec<Change>, bool) {
        let mut batch = Vec::new();
        let until = |due: Instant| due.saturating_duration_since(Instant::now());
        let mut wait = self.due.map_or(Duration::MAX, until);
        loop {
            match self.inbox.recv_timeout(wait) {
                Ok(Message::Changes(changes)) => batch.extend(changes),
                Ok(Message::Refreshed(at, reply)) => drop(reply.send(self.set_refreshed(at))),
                Ok(Message::Touched) => self.wake_soon(),
                Ok(Message::Finished(at)) => {
                    self.finished.push(at);
                    self.wake_soon();
                }
                Ok(Message::Close) | Err(RecvTimeoutError::Disconnected) => return (batch, true),
                Err(RecvTimeoutError::Timeout) => return (batch, false),
            }
            wait = Duration::ZERO;
        }
    }

    fn set_refreshed(&self, at: Option<Timestamp>) -> Outcome {
        self.file.check()?;
        let at = at.map_or_else(String::new, Timestamp::to_database);
        self.connection.execute("INSERT OR REPLACE INTO vault_refresh VALUES (1, ?1)", [at])?;
        Ok(None)
    }

    /// Writes the changes in one transaction, and the touches if `all` is set.
    /// Then replies to the changes.
    fn commit(&mut self, mut batch: Vec<Change>, all: bool) -> Result<(), MetadataError> {
        let pending = if all { Arc::clone(&lock(&self.touches)) } else { Arc::default() };
        let written = self.write(&mut batch, &pending);
        if written.is_ok() {
            self.forget(&pending, all);
        }
        let result = written.as_ref().map(drop).map_err(MetadataError::clone);
        let outcomes = written.unwrap_or_else(|error| vec![Err(error); batch.len()]);
        for (change, outcome) in batch.into_iter().zip(outcomes) {
            self.reply(change, outcome);
        }
        result
    }

    fn write(
        &self,
        batch: &mut [Change],
        pending: &TouchMap,
    ) -> Result<Vec<Outcome>, MetadataError> {
        if batch.is_empty() && self.finished.is_empty() && pending.is_empty() {
            return Ok(Vec::new());
        }
        // The next start would apply the log to the file that is there now.
        self.file.check().inspect_err(|_| self.move_log())?;
        // Takes the write lock now: a transaction that has begun with a read fails at once if
        // another process is writing.
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        for at in &self.finished {
            row::delete(&transaction, INTENTS, at)?;
        }
        for (at, &when) in pending {
            row::set_last_used(&transaction, at, when)?;
        }
        let outcomes =
            batch.iter_mut().map(|change| self.apply(change)).collect::<rusqlite::Result<_>>()?;
        transaction.commit()?;
        Ok(outcomes)
    }

    /// Makes one change. The outer error is about the database and ends the transaction. The
    /// inner one is about this row, which then stays as it is.
    fn apply(&self, change: &mut Change) -> rusqlite::Result<Outcome> {
        let Change { at, row, kind, .. } = change;
        let mut found = match kind {
            Kind::Undo { .. } => Ok(None),
            Kind::Shared(_, record) => Ok(record.as_deref().cloned()),
            _ => row::find(&self.connection, at)?,
        };
        let Ok(previous) = &mut found else { return Ok(found) };
        if let Some(previous) = previous {
            // The time that a listing shows.
            previous.last_used_at = previous.last_used_at.max(lock(&self.touches).get(at).copied());
            if let Some(row) = row {
                row.keep_times_of(previous);
            }
        }
        self.set(at, previous.as_ref(), row.as_ref(), kind)?;
        Ok(found)
    }

    /// Sets a row, and what goes with it.
    fn set(
        &self,
        at: &CredentialRef,
        previous: Option<&CredentialRecord>,
        row: Option<&CredentialRecord>,
        kind: &Kind,
    ) -> rusqlite::Result<()> {
        row::set(&self.connection, at, row)?;
        match kind {
            Kind::New(Some(mark)) | Kind::Shared(mark, _) => {
                intent::open(&self.connection, at, mark, previous, row)
            }
            Kind::Sealed(blob) => row::set_beside(&self.connection, SEALED, at, blob.as_deref()),
            Kind::Undo { is_final: true } => row::delete(&self.connection, INTENTS, at),
            _ => Ok(()),
        }
    }

    /// Drops what a commit has written.
    fn forget(&mut self, pending: &Arc<TouchMap>, all: bool) {
        self.backoff.reset();
        self.finished.clear();
        if all {
            let mut touches = lock(&self.touches);
            let is_newer = |(at, when): &(&_, &_)| pending.get(at) != Some(when);
            let newer = touches.iter().filter(is_newer).map(|(at, when)| (at.clone(), *when));
            *touches = Arc::new(newer.collect());
            self.due = (!touches.is_empty()).then(|| Instant::now() + TOUCH_DELAY);
        }
    }

    fn reply(&self, change: Change, outcome: Outcome) {
        let Change { at, row, kind, reply } = change;
        let is_undo = matches!(kind, Kind::Undo { .. });
        // A credential that is new or deleted has not been used.
        if let Ok(previous) = &outcome
            && (row.is_none() || (previous.is_none() && !is_undo))
        {
            Arc::make_mut(&mut lock(&self.touches)).remove(&at);
        }
        // The caller waits for the reply.
        let _ = reply.send(outcome);
    }

    fn wake_soon(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + TOUCH_DELAY);
    }

    /// Moves the log into the database, so that the file is alone in its directory. If that
    /// fails, nothing is lost: the next start reads the log.
    fn move_log(&self) {
        let moved = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = moved {
            log::warn!("the write-ahead log was not emptied: {error}");
        }
    }
}
