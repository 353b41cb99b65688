//! The rows of `credential_metadata`, and the statements that read or write a single row.

use rusqlite::{Connection, OptionalExtension, Params, Row, ToSql, params};

use crate::model::{CredentialRecord, CredentialRef, DeliveryMode, Namespace};
use crate::time::Timestamp;

use super::MetadataError;

type Result<T> = std::result::Result<T, MetadataError>;

/// The columns in the table's order, which [`read`] and [`set`] rely on.
pub(super) const COLUMNS: &str = "namespace, key, delivery_mode, allowed_consumers, env_name, \
     validator_id, masked_preview, created_at, updated_at, last_validated_at, last_used_at";

/// Selects [`COLUMNS`], the name of the host that stored the credential, and the validator's result,
/// as [`read`] expects.
pub(super) fn select(condition: &str) -> String {
    let other = |column: &str, table: &str| {
        format!(
            "(SELECT {column} FROM {table} AS it
              WHERE it.namespace = all_.namespace AND it.key = all_.key)"
        )
    };
    let (node, valid) = (other("node", "vault_nodes"), other("valid", "vault_validations"));
    format!("SELECT {COLUMNS}, {node}, {valid} FROM credential_metadata AS all_ {condition}")
}

/// Returns the record of one credential. The outer error is about the database, the inner one
/// about this row.
pub(super) fn find(
    connection: &Connection,
    at: &CredentialRef,
) -> rusqlite::Result<Result<Option<CredentialRecord>>> {
    let sql = select("WHERE namespace = ?1 AND key = ?2");
    let row = connection
        .prepare_cached(&sql)?
        .query_row([at.namespace().as_str(), at.key()], |row| Ok(read(row)));
    Ok(row.optional()?.transpose())
}

/// Inserts or replaces the row of one credential; `None` deletes it.
pub(super) fn set(
    connection: &Connection,
    at: &CredentialRef,
    record: Option<&CredentialRecord>,
) -> rusqlite::Result<()> {
    let node = record.and_then(|record| record.stored_by.as_deref());
    let valid = record.and_then(|record| record.valid).map(|valid| valid.to_string());
    set_beside(connection, "vault_nodes", at, node)?;
    set_beside(connection, "vault_validations", at, valid)?;
    let Some(record) = record else { return delete(connection, "credential_metadata", at) };
    let consumers =
        serde_json::to_string(&record.allowed_consumers).expect("a list of strings is always JSON");
    let sql = format!(
        "INSERT OR REPLACE INTO credential_metadata ({COLUMNS})
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
    );
    let values = params![
        at.namespace().as_str(),
        at.key(),
        record.delivery_mode.as_str(),
        consumers,
        record.env_name,
        record.validator_id,
        record.masked_preview,
        record.created_at.to_database(),
        record.updated_at.to_database(),
        record.last_validated_at.map(Timestamp::to_database),
        record.last_used_at.map(Timestamp::to_database),
    ];
    execute(connection, &sql, values)
}

/// Sets what another table has of a credential: one column beside its name. `None` deletes it.
pub(super) fn set_beside(
    connection: &Connection,
    table: &str,
    at: &CredentialRef,
    value: Option<impl ToSql>,
) -> rusqlite::Result<()> {
    let Some(value) = value else { return delete(connection, table, at) };
    let sql = format!("INSERT OR REPLACE INTO {table} VALUES (?1, ?2, ?3)");
    execute(connection, &sql, params![at.namespace().as_str(), at.key(), value])
}

/// Deletes the row of a credential, if there is one.
pub(super) fn delete(
    connection: &Connection,
    table: &str,
    at: &CredentialRef,
) -> rusqlite::Result<()> {
    let sql = format!("DELETE FROM {table} WHERE namespace = ?1 AND key = ?2");
    execute(connection, &sql, [at.namespace().as_str(), at.key()])
}

/// Sets the time of the last use, unless the row has a later one or is gone.
pub(super) fn set_last_used(
    connection: &Connection,
    at: &CredentialRef,
    when: Timestamp,
) -> rusqlite::Result<()> {
    // Times compare as text, since both services write them in UTC.
    let sql = "UPDATE credential_metadata SET last_used_at = ?3
         WHERE namespace = ?1 AND key = ?2 AND (last_used_at IS NULL OR last_used_at < ?3)";
    execute(connection, sql, [at.namespace().as_str(), at.key(), &when.to_database()])
}

pub(super) fn execute(
    connection: &Connection,
    sql: &str,
    values: impl Params,
) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// Reads a row of [`select`]. An error names the row and the column, but not the content.
pub(super) fn read(row: &Row<'_>) -> Result<CredentialRecord> {
    let text = |text: &str| Some(text.to_owned());
    Ok(CredentialRecord {
        at: name(row)?,
        delivery_mode: required(row, 2, DeliveryMode::from_name)?,
        allowed_consumers: required(row, 3, |json| serde_json::from_str(json).ok())?,
        env_name: optional(row, 4, text)?,
        validator_id: optional(row, 5, text)?,
        masked_preview: required(row, 6, text)?,
        created_at: required(row, 7, Timestamp::parse)?,
        updated_at: required(row, 8, Timestamp::parse)?,
        last_validated_at: optional(row, 9, Timestamp::parse)?,
        last_used_at: optional(row, 10, Timestamp::parse)?,
        stored_by: optional(row, 11, text)?,
        valid: optional(row, 12, |valid| valid.parse().ok())?,
    })
}

fn name(row: &Row<'_>) -> Result<CredentialRef> {
    let namespace = required(row, 0, |text| Namespace::new(text).ok())?;
    required(row, 1, |key| CredentialRef::stored(namespace, key.to_owned()).ok())
}

/// The credentials that a statement names: namespace and key in each row.
pub(super) fn names(
    connection: &Connection,
    sql: &str,
    values: impl Params,
) -> Result<Vec<CredentialRef>> {
    connection.prepare(sql)?.query_map(values, |row| Ok(name(row)))?.map(|row| row?).collect()
}

fn required<T>(row: &Row<'_>, column: usize, parse: impl FnOnce(&str) -> Option<T>) -> Result<T> {
    optional(row, column, parse)?.ok_or_else(|| invalid(row, column))
}

fn optional<T>(
    row: &Row<'_>,
    column: usize,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>> {
    let text = row.get_ref(column)?.as_str_or_null().map_err(|_| invalid(row, column))?;
    text.map(|text| parse(text).ok_or_else(|| invalid(row, column))).transpose()
}

fn invalid(row: &Row<'_>, column: usize) -> MetadataError {
    let name = |column| row.get::<_, String>(column).unwrap_or_else(|_| "?".to_owned());
    MetadataError::Failed(format!(
        "the row {}/{} has an invalid {}; correct or delete the row with the program sqlite3",
        name(0).escape_debug(),
        name(1).escape_debug(),
        COLUMNS.split(", ").nth(column).unwrap_or("column"),
    ))
}
