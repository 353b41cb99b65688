//! The one thread that writes: changes that wait together share a commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rusqlite::{Connection, OptionalExtension, params};

use crate::model::{CredentialRecord, CredentialRef, DeliveryMode, StoreRequest, mask_value};
use crate::time::Timestamp;

use super::row::{columns, consumers_to_json};
use super::touches::{Times, Touches};
use super::{MetadataError, reader};

/// How many changes may share one commit. Far more than there are threads to wait for
/// one; it only bounds how long the first of them waits.
const MAX_BATCH: usize = 256;

/// How long touches may wait for others before they are written.
const TOUCH_DELAY: Duration = Duration::from_millis(500);

/// The longest pause between attempts to write what waits, when they fail.
const MAX_RETRY: Duration = Duration::from_mins(1);

/// What is asked of the writer.
#[derive(Debug)]
pub(super) enum Message {
    /// To make a change, and answer after its commit.
    Apply(Operation),
    /// To write the touches, some time soon.
    Touched,
    /// To write them now, answer, and end.
    Close(Sender<Result<(), MetadataError>>),
}

/// A change of one record, and where its caller waits.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) at: CredentialRef,
    pub(super) change: Change,
    pub(super) reply: Sender<Outcome>,
}

/// The record as it was before the change.
pub(super) type Outcome = Result<Option<CredentialRecord>, MetadataError>;

/// See the methods of [`MetadataStore`](super::MetadataStore).
#[derive(Debug)]
pub(super) enum Change {
    Put(NewRow),
    Remove,
    Restore(Box<CredentialRecord>),
    /// Removes without reading what is removed.
    Discard,
}

/// What a store says of a credential, without the value.
#[derive(Debug)]
pub(super) struct NewRow {
    delivery_mode: DeliveryMode,
    allowed_consumers: String,
    env_name: Option<String>,
    validator_id: Option<String>,
    masked_preview: String,
    now: Timestamp,
}

impl NewRow {
    pub(super) fn of(request: &StoreRequest, now: Timestamp) -> Self {
        Self {
            delivery_mode: request.delivery_mode,
            allowed_consumers: consumers_to_json(&request.allowed_consumers),
            env_name: request.env_name.clone(),
            validator_id: request.validator_id.clone(),
            masked_preview: mask_value(request.value.expose()),
            now,
        }
    }
}

/// The writer thread's state.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    touches: Arc<Touches>,
    inbox: Receiver<Message>,
    /// Changes that put a record back and failed. Their caller has promised that nothing
    /// changed, so they are made as soon as the database takes them.
    owed: HashMap<CredentialRef, Change>,
    /// When touches and what is owed are to be written; `None` while there are none.
    due: Option<Instant>,
    /// How long to wait after the next attempt that fails.
    retry: Duration,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        touches: Arc<Touches>,
        inbox: Receiver<Message>,
    ) -> Self {
        Self { connection, touches, inbox, owed: HashMap::new(), due: None, retry: TOUCH_DELAY }
    }

    /// Works until it is told to close, or nobody is left who could tell it.
    pub(super) fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let first = match self.due {
                Some(due) => self.inbox.recv_deadline(due),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let mut closing = matches!(first, Err(RecvTimeoutError::Disconnected)).then_some(None);
            let mut next = first.ok();
            while let Some(message) = next {
                match message {
                    Message::Apply(operation) => batch.push(operation),
                    Message::Touched => {
                        self.due.get_or_insert_with(|| Instant::now() + TOUCH_DELAY);
                    }
                    Message::Close(reply) => closing = Some(Some(reply)),
                }
                let more = closing.is_none() && batch.len() < MAX_BATCH;
                next = if more { self.inbox.try_recv().ok() } else { None };
            }

            self.commit(&mut batch);
            if let Some(reply) = closing {
                let closed = self.close();
                if let Some(reply) = reply {
                    // Its caller waits for it.
                    let _ = reply.send(closed);
                }
                return;
            }
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.write_what_is_due();
            }
        }
    }

    /// Makes the changes in one transaction, then answers each.
    fn commit(&mut self, batch: &mut Vec<Operation>) {
        if let Err(error) = self.make_good() {
            // No change of a record whose present state is not what it is said to be.
            for operation in batch.extract_if(.., |it| self.owed.contains_key(&it.at)) {
                // A caller always waits for its answer.
                let _ = operation.reply.send(Err(error.clone()));
            }
        }
        if batch.is_empty() {
            return;
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        let committed = in_transaction(&self.connection, || {
            for Operation { at, change, .. } in &*batch {
                outcomes.push(self.apply(at, change)?);
            }
            Ok(())
        });
        match committed {
            // What has failed before need not wait any longer.
            Ok(()) if self.retry > TOUCH_DELAY => self.due = self.due.map(|_| Instant::now()),
            Ok(()) => {}
            Err(error) => {
                let error = MetadataError::from(error);
                outcomes.clear();
                outcomes.resize(batch.len(), Err(error));
            }
        }
        for (Operation { at, change, reply }, outcome) in batch.drain(..).zip(outcomes) {
            // A credential that is gone, or was not there, has not been used.
            let starts_anew = match &change {
                Change::Put(_) => matches!(outcome, Ok(None)),
                Change::Remove | Change::Discard => outcome.is_ok(),
                Change::Restore(_) => false,
            };
            if starts_anew {
                self.touches.forget(&at);
            }
            if outcome.is_err() && matches!(change, Change::Restore(_) | Change::Discard) {
                self.due.get_or_insert_with(|| Instant::now() + TOUCH_DELAY);
                self.owed.insert(at, change);
            }
            let _ = reply.send(outcome);
        }
    }

    /// Puts back the records that could not be put back when that was asked.
    fn make_good(&mut self) -> Result<(), MetadataError> {
        if self.owed.is_empty() {
            return Ok(());
        }
        in_transaction(&self.connection, || {
            self.owed.iter().try_for_each(|(at, change)| self.apply(at, change).map(drop))
        })?;
        for (at, change) in self.owed.drain() {
            if matches!(change, Change::Discard) {
                self.touches.forget(&at);
            }
            log::info!("the metadata of {at} is put back now");
        }
        Ok(())
    }

    /// Makes one change. The outer error is the database's, and ends the transaction; the
    /// inner is about this row alone, which is then left as it was.
    fn apply(&self, at: &CredentialRef, change: &Change) -> rusqlite::Result<Outcome> {
        let previous = match change {
            Change::Put(_) | Change::Remove => match reader::record(&self.connection, at)? {
                Ok(previous) => previous,
                Err(unreadable) => return Ok(Err(unreadable)),
            },
            Change::Restore(_) | Change::Discard => None,
        };
        match change {
            Change::Put(row) if previous.is_some() => self.update(at, row)?,
            Change::Put(row) => self.insert(at, row)?,
            Change::Restore(record) => self.replace(record)?,
            Change::Remove if previous.is_none() => {}
            Change::Remove | Change::Discard => self.delete(at)?,
        }
        // As a listing would have shown it.
        Ok(Ok(previous.map(|mut record| {
            record.last_used_at = record.last_used_at.max(self.touches.of(at));
            record
        })))
    }

    fn insert(&self, at: &CredentialRef, row: &NewRow) -> rusqlite::Result<()> {
        let now = row.now.to_database();
        self.connection
            .prepare_cached(
                "INSERT INTO credential_metadata (namespace, key, delivery_mode,
                     allowed_consumers, env_name, validator_id, masked_preview, created_at,
                     updated_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
            )?
            .execute(params![
                at.namespace().as_str(),
                at.key(),
                row.delivery_mode.as_str(),
                row.allowed_consumers,
                row.env_name,
                row.validator_id,
                row.masked_preview,
                now,
            ])
            .map(drop)
    }

    fn update(&self, at: &CredentialRef, row: &NewRow) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "UPDATE credential_metadata SET delivery_mode = ?3, allowed_consumers = ?4,
                     env_name = ?5, validator_id = ?6, masked_preview = ?7, updated_at = ?8
                 WHERE namespace = ?1 AND key = ?2",
            )?
            .execute(params![
                at.namespace().as_str(),
                at.key(),
                row.delivery_mode.as_str(),
                row.allowed_consumers,
                row.env_name,
                row.validator_id,
                row.masked_preview,
                row.now.to_database(),
            ])
            .map(drop)
    }

    fn replace(&self, record: &CredentialRecord) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(concat!(
                "INSERT OR REPLACE INTO credential_metadata (",
                columns!(),
                ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
            ))?
            .execute(params![
                record.at.namespace().as_str(),
                record.at.key(),
                record.delivery_mode.as_str(),
                consumers_to_json(&record.allowed_consumers),
                record.env_name,
                record.validator_id,
                record.masked_preview,
                record.created_at.to_database(),
                record.updated_at.to_database(),
                record.last_validated_at.map(Timestamp::to_database),
                record.last_used_at.map(Timestamp::to_database),
            ])
            .map(drop)
    }

    fn delete(&self, at: &CredentialRef) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached("DELETE FROM credential_metadata WHERE namespace = ?1 AND key = ?2")?
            .execute([at.namespace().as_str(), at.key()])
            .map(drop)
    }

    /// Writes the touches and what is owed; should that fail, tries again later, ever
    /// more rarely.
    fn write_what_is_due(&mut self) {
        let pause = match self.make_good().and_then(|()| self.write_touches()) {
            Ok(more) => {
                self.retry = TOUCH_DELAY;
                more.then_some(TOUCH_DELAY)
            }
            Err(error) => {
                let pause = self.retry;
                let what =
                    if self.owed.is_empty() { "times of last use are" } else { "metadata is" };
                log::warn!(
                    "{what} not written yet (trying again in {} ms): {error}",
                    pause.as_millis()
                );
                self.retry = (pause * 2).min(MAX_RETRY);
                Some(pause)
            }
        };
        self.due = pause.map(|pause| Instant::now() + pause);
    }

    /// Writes touches in one transaction, and says whether more have come since.
    fn write_touches(&self) -> Result<bool, MetadataError> {
        let times = self.touches.take();
        in_transaction(&self.connection, || self.update_last_used(&times))?;
        Ok(self.touches.written())
    }

    fn update_last_used(&self, times: &Times) -> rusqlite::Result<()> {
        let mut read = self.connection.prepare_cached(
            "SELECT last_used_at FROM credential_metadata WHERE namespace = ?1 AND key = ?2",
        )?;
        let mut update = self.connection.prepare_cached(
            "UPDATE credential_metadata SET last_used_at = ?3 WHERE namespace = ?1 AND key = ?2",
        )?;
        for (namespace, key, when) in times.iter() {
            // Compared here, since times with different offsets do not sort as text.
            let written = read
                .query_row([namespace, key], |row| {
                    let text = row.get_ref(0)?;
                    Ok(text.as_str().ok().and_then(Timestamp::parse))
                })
                .optional()?;
            if written.is_some_and(|written| written < Some(when)) {
                update.execute(params![namespace, key, when.to_database()])?;
            }
        }
        Ok(())
    }

    /// Writes what is only in memory, and moves the log into the database file.
    fn close(mut self) -> Result<(), MetadataError> {
        let made_good = self.make_good();
        let mut written = self.write_touches();
        // What an earlier attempt had failed to write goes first, and alone.
        if written == Ok(true) {
            written = self.write_touches();
        }
        self.connection.flush_prepared_statement_cache();
        let moved = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = moved {
            // Nothing is lost: the log stays beside the file until the next opening.
            log::warn!("the write-ahead log was not emptied: {error}");
        }
        // The answer to the caller means that the file is let go.
        drop(self.connection);
        made_good.and(written.map(drop))
    }
}

/// Does `work` in one transaction, which is rolled back if it or the commit fails.
fn in_transaction(
    connection: &Connection,
    work: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    // At once with the right to write: a transaction that only read at first cannot wait
    // for another process's.
    connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
    let done = work().and_then(|()| connection.prepare_cached("COMMIT")?.execute([]).map(drop));
    // Some errors (a full disk) end the transaction themselves.
    if done.is_err()
        && !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        log::warn!("a failed change was not rolled back: {error}");
    }
    done
}
