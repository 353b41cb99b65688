//! The schema: whether a file is ours to use, and making it so.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::file;
use super::row::COLUMNS;

/// What `PRAGMA user_version` says of a file that this version has written. The Python
/// service leaves it 0, and does not look at it.
const SCHEMA_VERSION: i64 = 1;

/// The Python service's table. What it does not know goes into further tables.
const CREATE_TABLE: &str = "CREATE TABLE IF NOT EXISTS credential_metadata (
    namespace TEXT NOT NULL,
    key TEXT NOT NULL,
    delivery_mode TEXT NOT NULL DEFAULT 'executor_only',
    allowed_consumers TEXT NOT NULL DEFAULT '[]',
    env_name TEXT,
    validator_id TEXT,
    masked_preview TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    last_validated_at TEXT,
    last_used_at TEXT,
    PRIMARY KEY (namespace, key)
)";

/// How long a statement waits for another process (the Python service, a `sqlite3`
/// shell) to let go of the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The database file format, <https://www.sqlite.org/fileformat2.html> section 1.3.
const HEADER_LENGTH: usize = 100;
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const WRITE_VERSION: usize = 18;
const READ_VERSION: usize = 19;
const VERSION_WAL: u8 = 2;

/// Says why the file, which is not empty, cannot be used. Changes nothing, with one
/// exception: when a process died in the middle of a write without WAL, reading needs
/// the rollback that `SQLite` makes then.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let Some(header) = file::head::<HEADER_LENGTH>(path)?.filter(|head| head.starts_with(MAGIC))
    else {
        return Err("it is not an SQLite database; move it away or choose another data directory"
            .to_owned());
    };
    let wal = file::length_beside(path, file::WAL_SUFFIX);
    let has_wal =
        wal.is_some() || [WRITE_VERSION, READ_VERSION].iter().any(|&at| header[at] == VERSION_WAL);
    let checked = if has_wal {
        check_with_wal(path, wal.is_some())
    } else {
        let reading = open_to_read(path).and_then(|connection| look_at(&connection));
        match reading {
            Err(error) if is_hot_journal(&error) => {
                open_to_write(path).and_then(|connection| look_at(&connection))
            }
            checked => checked,
        }
    };
    checked.unwrap_or_else(|error| Err(explain(&error)))
}

/// Opens the file to write, makes it ours if it is not yet, and sets it up.
pub(super) fn take_over(path: &Path) -> Result<Connection, String> {
    let take_over = || -> rusqlite::Result<Connection> {
        let connection = open_to_write(path)?;
        set_up(&connection)?;
        let mode: String =
            connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            log::warn!("{}: no write-ahead log ({mode} instead): stores are slow", path.display());
        }
        // An acknowledged store survives a power cut; on macOS that takes more than fsync.
        connection.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON;",
        )?;
        // A log that a long listing held up shrinks again.
        connection.query_row("PRAGMA journal_size_limit = 8388608", [], |_| Ok(()))?;
        if user_version(&connection)? < SCHEMA_VERSION {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {CREATE_TABLE}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
            ))?;
        }
        Ok(connection)
    };
    take_over().map_err(|error| explain(&error))
}

/// Opens a connection that only reads. It has the right to write, so that it can remove
/// the log when it is the last to close, but makes no use of it else.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = open_to_write(path)?;
    set_up(&connection)?;
    connection.execute_batch("PRAGMA query_only = ON")?;
    Ok(connection)
}

/// What happened, and what to do about it.
pub(super) fn explain(error: &rusqlite::Error) -> String {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process holds it locked; end that one, or try again"
        }
        Some(ErrorCode::DiskFull) => "free some space on its disk, then try again",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            "it is damaged; restore it from a backup, or move it away to start with an empty one"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "see to it that this user may write the file and its directory"
        }
        // A quota or a limit on file sizes comes as one of these, and so do some disks.
        Some(ErrorCode::SystemIoFailure) if is_write(error) => {
            "free some space on its disk if that, a quota or a limit is used up, then try again; \
             else look after the disk"
        }
        Some(ErrorCode::SystemIoFailure) => "look after its disk",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

/// Reads a database that has a write-ahead log, or may have had one. Plain reading would
/// leave an index file (`-shm`) behind; a connection that has the file to itself keeps
/// that in memory. Where another process has it open, the files beside it exist already.
fn check_with_wal(path: &Path, wal_exists: bool) -> rusqlite::Result<Result<(), String>> {
    let alone = || {
        let connection = open_to_write(path)?;
        connection.busy_timeout(Duration::ZERO)?;
        connection.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        // A log that was there stays, and is not copied into the database; one that
        // reading made is empty, and goes.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, wal_exists)?;
        look_at(&connection)
    };
    match alone() {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            look_at(&open_to_read(path)?)
        }
        checked => checked,
    }
}

/// The checks themselves; none writes.
fn look_at(connection: &Connection) -> rusqlite::Result<Result<(), String>> {
    connection.execute_batch("PRAGMA query_only = ON; PRAGMA trusted_schema = OFF")?;
    // Every check sees the same moment.
    connection.execute_batch("BEGIN")?;
    let version = user_version(connection)?;
    let columns = columns(connection)?;
    let is_empty: bool =
        connection
            .query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))?;
    if columns.is_empty() && !is_empty {
        return Ok(Err("it is another program's database; choose another data directory".into()));
    }
    if version > SCHEMA_VERSION {
        return Ok(Err(format!(
            "it was written by a newer version (schema {version}, this one knows \
             {SCHEMA_VERSION}); use that version, or another data directory"
        )));
    }
    if !is_empty && !are_ours(&columns) {
        return Ok(Err("its table credential_metadata has other columns than the vault's; \
                       choose another data directory"
            .into()));
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Ok(Err(format!(
            "it is damaged ({}); restore it from a backup, or move it away to start with an \
             empty one",
            verdict.lines().collect::<Vec<_>>().join(" ")
        )));
    }
    Ok(Ok(()))
}

/// The columns of our table, each with its place in the primary key (0: none).
fn columns(connection: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut statement = connection.prepare(
        "SELECT c.name, c.pk FROM sqlite_schema AS t, pragma_table_info(t.name) AS c
         WHERE t.type = 'table' AND t.name = 'credential_metadata' ORDER BY c.cid",
    )?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Whether these are our columns, in our order, the first two being the primary key.
fn are_ours(columns: &[(String, i64)]) -> bool {
    let keys = [1, 2].into_iter().chain(std::iter::repeat(0));
    columns.iter().map(|(name, key)| (name.as_str(), *key)).eq(COLUMNS.into_iter().zip(keys))
}

fn user_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn open_to_write(path: &Path) -> rusqlite::Result<Connection> {
    open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
}

/// Opens a file that exists: it was created with its mode, which `SQLite` would not do.
/// A connection is used by one thread at a time, which needs no mutex of `SQLite`'s.
fn open(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

/// Small caches, since the file is small and the system caches it too; nothing in
/// temporary files; no functions run from a schema that others may have written.
fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(8);
    connection.execute_batch(
        "PRAGMA cache_size = -256; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF",
    )
}

fn is_hot_journal(error: &rusqlite::Error) -> bool {
    is_one_of(error, &[ffi::SQLITE_READONLY_ROLLBACK, ffi::SQLITE_READONLY_RECOVERY])
}

/// Whether the system refused to write, or to make a file longer, for a reason that is
/// not plainly a full disk.
fn is_write(error: &rusqlite::Error) -> bool {
    is_one_of(
        error,
        &[
            ffi::SQLITE_IOERR_WRITE,
            ffi::SQLITE_IOERR_FSYNC,
            ffi::SQLITE_IOERR_TRUNCATE,
            ffi::SQLITE_IOERR_SHMSIZE,
        ],
    )
}

fn is_one_of(error: &rusqlite::Error, codes: &[i32]) -> bool {
    error.sqlite_error().is_some_and(|error| codes.contains(&error.extended_code))
}
