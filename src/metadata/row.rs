//! A row of `credential_metadata` as a [`CredentialRecord`], and back.

use rusqlite::Row;

use crate::model::{CredentialRecord, CredentialRef, DeliveryMode};
use crate::time::Timestamp;

use super::MetadataError;

/// The table's columns, in its order; [`read`] expects them in this order too.
pub(super) const COLUMNS: [&str; 11] = [
    "namespace",
    "key",
    "delivery_mode",
    "allowed_consumers",
    "env_name",
    "validator_id",
    "masked_preview",
    "created_at",
    "updated_at",
    "last_validated_at",
    "last_used_at",
];

/// [`COLUMNS`], for a statement.
macro_rules! columns {
    () => {
        "namespace, key, delivery_mode, allowed_consumers, env_name, validator_id, \
         masked_preview, created_at, updated_at, last_validated_at, last_used_at"
    };
}
pub(super) use columns;

/// Reads a row of all columns. The error names the row and the column, not what is in it.
pub(super) fn read(row: &Row<'_>) -> Result<CredentialRecord, MetadataError> {
    let fields = Fields(row);
    let at = CredentialRef::parse(fields.text(0)?, fields.text(1)?)
        .map_err(|error| fields.unreadable(1, &error.to_string()))?;
    let delivery_mode = DeliveryMode::from_name(fields.text(2)?)
        .ok_or_else(|| fields.unreadable(2, "it is neither executor_only nor runtime_env"))?;
    Ok(CredentialRecord {
        at,
        delivery_mode,
        allowed_consumers: fields.consumers(3)?,
        env_name: fields.optional_text(4)?.map(str::to_owned),
        validator_id: fields.optional_text(5)?.map(str::to_owned),
        masked_preview: fields.text(6)?.to_owned(),
        created_at: fields.time(7)?,
        updated_at: fields.time(8)?,
        last_validated_at: fields.optional_time(9)?,
        last_used_at: fields.optional_time(10)?,
    })
}

/// The JSON array that the column `allowed_consumers` holds.
pub(super) fn consumers_to_json(consumers: &[String]) -> String {
    serde_json::to_string(consumers).expect("a list of strings is always JSON")
}

struct Fields<'a>(&'a Row<'a>);

impl<'a> Fields<'a> {
    fn optional_text(&self, column: usize) -> Result<Option<&'a str>, MetadataError> {
        let value = self.0.get_ref(column)?;
        value.as_str_or_null().map_err(|_| self.unreadable(column, "it is not text"))
    }

    fn text(&self, column: usize) -> Result<&'a str, MetadataError> {
        self.optional_text(column)?.ok_or_else(|| self.unreadable(column, "it is not set"))
    }

    fn optional_time(&self, column: usize) -> Result<Option<Timestamp>, MetadataError> {
        let Some(text) = self.optional_text(column)? else { return Ok(None) };
        let time = Timestamp::parse(text)
            .ok_or_else(|| self.unreadable(column, "it is not ISO 8601 with an offset"))?;
        Ok(Some(time))
    }

    fn time(&self, column: usize) -> Result<Timestamp, MetadataError> {
        self.optional_time(column)?.ok_or_else(|| self.unreadable(column, "it is not set"))
    }

    fn consumers(&self, column: usize) -> Result<Vec<String>, MetadataError> {
        match self.text(column)? {
            "[]" => Ok(Vec::new()),
            json => serde_json::from_str(json)
                .map_err(|_| self.unreadable(column, "it is not a JSON array of strings")),
        }
    }

    fn unreadable(&self, column: usize, why: &str) -> MetadataError {
        let name = |column| {
            let value = self.0.get_ref(column).ok();
            value.and_then(|value| value.as_str().ok()).unwrap_or("?").escape_debug().to_string()
        };
        MetadataError::Failed(format!(
            "the row {}/{} has an unreadable {} ({why}); correct it or delete the row with \
             the program sqlite3",
            name(0),
            name(1),
            COLUMNS[column],
        ))
    }
}
