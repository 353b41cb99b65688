//! Opening the database: checks that the file is the vault's, and creates the tables.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::row::COLUMNS;
use super::{MetadataError, file};

/// Why a file cannot be used: a sentence, or an error of `SQLite` or the system.
pub(super) type Reason = Box<dyn Error>;

/// The `PRAGMA user_version` that this version writes. The Python service leaves it at 0 and
/// does not read it.
const SCHEMA_VERSION: i64 = 3;

/// The table of the open intents.
pub(super) const INTENTS: &str = "vault_intents";
/// The table of the encrypted values.
pub(super) const SEALED: &str = "vault_sealed";

/// The tables that have a row for each of some credentials, and their columns besides its name.
const TABLES: [(&str, &str); 4] = [
    (
        INTENTS,
        "backend TEXT NOT NULL DEFAULT '', salt BLOB NOT NULL, fingerprint BLOB, before TEXT, after TEXT",
    ),
    (SEALED, "blob BLOB NOT NULL"),
    ("vault_nodes", "node TEXT NOT NULL"),
    ("vault_validations", "valid TEXT NOT NULL"),
];

/// The Python service's table, and further tables, which it ignores: anything that this service
/// adds must go into those.
fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS credential_metadata (
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
        );
        CREATE TABLE IF NOT EXISTS vault_seal (
            id INTEGER PRIMARY KEY CHECK (id = 1), header TEXT NOT NULL
        );
        CREATE TABLE IF NOT EXISTS vault_refresh (
            id INTEGER PRIMARY KEY CHECK (id = 1), at TEXT NOT NULL
        )",
    )?;
    TABLES.iter().try_for_each(|(table, columns)| {
        connection.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {table} (namespace TEXT NOT NULL, key TEXT NOT NULL,
             {columns}, PRIMARY KEY (namespace, key)) WITHOUT ROWID"
        ))
    })
}

/// How long a statement waits while another process (the Python service, a `sqlite3` shell)
/// has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the database for the writer: checks it, then creates the tables that are missing. A
/// rejected file keeps its content, and so does its log.
pub(super) fn open(path: &Path) -> Result<Connection, Reason> {
    let (connection, version) = open_existing(path)?;
    connection.execute_batch("PRAGMA query_only = OFF")?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    #[cfg(unix)]
    file::make_private(path)?;

    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        log::warn!("{}: no write-ahead log ({mode} instead): stores are slow", path.display());
    }
    // A power cut must not lose an acknowledged store; macOS needs more than fsync for that.
    // The size limit shrinks a log that grew during a long listing. What is deleted is overwritten.
    connection.execute_batch(
        "PRAGMA synchronous = FULL; PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON;
         PRAGMA journal_size_limit = 8388608; PRAGMA secure_delete = ON",
    )?;
    if version < SCHEMA_VERSION {
        let transaction = Transaction::new_unchecked(&connection, TransactionBehavior::Immediate)?;
        create_tables(&transaction)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()?;
    }
    Ok(connection)
}

/// Opens a file that exists for reading, and checks it. Returns the version of its schema, too.
pub(super) fn open_existing(path: &Path) -> Result<(Connection, i64), Reason> {
    let path = path.canonicalize()?;
    // If a killed process left a log, that must not change until the file is accepted. A log
    // that connecting creates is removed when the connection closes.
    let connection = connect(&path, file::beside(&path, file::WAL).exists())?;
    let version = check(&connection)?;
    Ok((connection, version))
}

/// Opens the database of a store that only reads; an empty one in memory if there is no file.
pub(super) fn open_read_only(path: &Path) -> Result<Connection, Reason> {
    if !path.try_exists()? {
        let connection = Connection::open_in_memory()?;
        create_tables(&connection)?;
        return Ok(connection);
    }
    match open_existing(path)? {
        (connection, SCHEMA_VERSION) => Ok(connection),
        _ => Err("it was written by an older version; start the service with it once".into()),
    }
}

/// The error of a file that cannot be used.
pub(super) fn unusable(path: &Path, reason: &Reason) -> MetadataError {
    let reason = reason.downcast_ref().map_or_else(|| reason.to_string(), explain);
    MetadataError::Unusable { path: path.to_owned(), reason }
}

/// Describes the error, with advice on what to do.
pub(super) fn explain(error: &rusqlite::Error) -> String {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another process has it locked; end that process, or try again"
        }
        Some(ErrorCode::DiskFull) => "free some space on its disk, then try again",
        Some(ErrorCode::DatabaseCorrupt) => DAMAGED,
        Some(ErrorCode::NotADatabase) => {
            "it is not an SQLite database; move it away or choose another data directory"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            "make sure that this user may write the file and its directory"
        }
        // SQLite reports an exhausted quota or file size limit like this, and some full disks.
        Some(ErrorCode::SystemIoFailure) => {
            "if its disk is full, or a quota or limit is used up, free some space and try again; \
             otherwise check the disk, which may be read-only now"
        }
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

const DAMAGED: &str =
    "it is damaged; restore it from a backup, or move it away to start with an empty one";

/// Connects to a file that exists, for reading. The file itself is opened for writing too: the
/// last connection to close removes the log, unless `keep_log` is set.
pub(super) fn connect(path: &Path, keep_log: bool) -> rusqlite::Result<Connection> {
    // Without SQLITE_OPEN_CREATE, which would create the file with another mode. Only one
    // thread at a time uses a connection, so it needs no mutex.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep_log)?;
    // A small cache, since the file is small and the system caches it too; no temporary files;
    // no functions in a schema that others may have written; no writes.
    connection.execute_batch(
        "PRAGMA cache_size = -256; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;
         PRAGMA query_only = ON",
    )?;
    Ok(connection)
}

/// Rejects a file that is not the vault's, is newer, or is damaged. Returns the version of its
/// schema. Only reads.
pub(super) fn check(connection: &Connection) -> Result<i64, Reason> {
    let sql = "SELECT (SELECT user_version FROM pragma_user_version),
            NOT EXISTS (SELECT 1 FROM sqlite_schema),
            group_concat(name, ', '), group_concat(name, ', ') FILTER (WHERE pk > 0)
         FROM pragma_table_info('credential_metadata')";
    let (version, is_empty, columns, key): (i64, bool, Option<String>, Option<String>) =
        connection.query_row(sql, [], |row| row.try_into())?;
    if !is_empty && (columns.as_deref(), key.as_deref()) != (Some(COLUMNS), Some("namespace, key"))
    {
        return Err("it is another program's database: it has no table credential_metadata with \
             the vault's columns; choose another data directory"
            .into());
    }
    if version > SCHEMA_VERSION {
        return Err(format!(
            "it was written by a newer version (schema {version}, this one knows \
             {SCHEMA_VERSION}); use that version, or choose another data directory"
        )
        .into());
    }
    let sql =
        "SELECT group_concat(name, ', ') FROM sqlite_schema WHERE type IN ('trigger', 'view')";
    let programs: Option<String> = connection.query_row(sql, [], |row| row.get(0))?;
    if let Some(programs) = programs {
        return Err(format!(
            "it has triggers or views ({programs}), which the vault never creates; find out who \
             did, and drop them"
        )
        .into());
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(format!("{}; {DAMAGED}", verdict.replace('\n', " ")).into());
    }
    Ok(version)
}
