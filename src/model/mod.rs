//! The vocabulary of the vault: names, records, summaries and store requests.

mod name;

use serde::{Deserialize, Serialize};

use crate::error::{Field, VaultError};
use crate::secret::Secret;
use crate::time::Timestamp;

pub use self::name::{CredentialRef, Namespace};

/// The most names that [`StoreRequest::allowed_consumers`] may have.
pub const MAX_CONSUMERS: usize = 64;

/// The longest name of a consumer, in bytes.
pub const MAX_CONSUMER_BYTES: usize = 128;

/// How a credential reaches the process that uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryMode {
    /// A trusted service fetches it in-process.
    #[default]
    ExecutorOnly,
    /// The supervisor injects it as an environment variable.
    RuntimeEnv,
}

impl DeliveryMode {
    /// The name on the wire and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExecutorOnly => "executor_only",
            Self::RuntimeEnv => "runtime_env",
        }
    }

    /// Returns the mode with this name on the wire, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::ExecutorOnly, Self::RuntimeEnv].into_iter().find(|mode| mode.as_str() == name)
    }
}

/// Everything known about a credential except its value: one row of the database. Its JSON has
/// these fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialRecord {
    /// The credential's name.
    pub at: CredentialRef,
    /// How it is delivered.
    pub delivery_mode: DeliveryMode,
    /// The consumers that may have it; empty means everyone.
    pub allowed_consumers: Vec<String>,
    /// The name of the environment variable it is delivered in.
    pub env_name: Option<String>,
    /// The validator that checks whether the value still works.
    pub validator_id: Option<String>,
    /// The part of the value that may be shown; see [`mask_value`].
    pub masked_preview: String,
    /// When it was first stored.
    pub created_at: Timestamp,
    /// When it was last stored.
    pub updated_at: Timestamp,
    /// When a validator last checked it.
    pub last_validated_at: Option<Timestamp>,
    /// When its value was last read.
    pub last_used_at: Option<Timestamp>,
    /// The host that stored it, where hosts share metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_by: Option<String>,
    /// The result of a validator for this value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<bool>,
}

impl CredentialRecord {
    /// Creates the record of a credential that is stored at `now` for the first time.
    #[must_use]
    pub fn new(at: CredentialRef, request: &StoreRequest, now: Timestamp) -> Self {
        Self {
            at,
            delivery_mode: request.delivery_mode,
            allowed_consumers: request.allowed_consumers.clone(),
            env_name: request.env_name.clone(),
            validator_id: request.validator_id.clone(),
            masked_preview: mask_value(request.value.expose()),
            created_at: now,
            updated_at: now,
            last_validated_at: None,
            last_used_at: None,
            stored_by: None,
            valid: None,
        }
    }

    /// Keeps the times that a store keeps of the record that it replaces.
    #[cfg(feature = "server")]
    pub(crate) fn keep_times_of(&mut self, previous: &Self) {
        self.created_at = previous.created_at;
        self.last_validated_at = previous.last_validated_at;
        self.last_used_at = previous.last_used_at;
    }
}

/// One credential in a listing. It serialises to the wire form: these fields, in this
/// order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedSummary {
    /// The namespace.
    pub namespace: String,
    /// The key in the namespace.
    pub key: String,
    /// How the credential is delivered.
    pub delivery_mode: DeliveryMode,
    /// The part of the value that may be shown.
    pub masked_preview: String,
    /// When it was first stored.
    pub created_at: Timestamp,
    /// When it was last stored.
    pub updated_at: Timestamp,
    /// When a validator last checked it.
    pub last_validated_at: Option<Timestamp>,
    /// When its value was last read.
    pub last_used_at: Option<Timestamp>,
    /// The validator's result for this value; unset until a validator has run.
    pub valid: Option<bool>,
}

impl From<CredentialRecord> for MaskedSummary {
    fn from(record: CredentialRecord) -> Self {
        let CredentialRef { namespace: Namespace(namespace), key } = record.at;
        Self {
            namespace,
            key,
            delivery_mode: record.delivery_mode,
            masked_preview: record.masked_preview,
            created_at: record.created_at,
            updated_at: record.updated_at,
            last_validated_at: record.last_validated_at,
            last_used_at: record.last_used_at,
            valid: record.valid,
        }
    }
}

/// The result of a validator, as the body of `PUT /v1/validations/{namespace}/{key}` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// Whether the value works. `None` if that is unknown, which keeps `last_validated_at`.
    #[serde(deserialize_with = "Option::deserialize")]
    pub valid: Option<bool>,
    /// The `updated_at` of the value that was checked; `None` for whatever is there.
    pub updated_at: Option<Timestamp>,
}

/// One credential with all its metadata. The answer to `GET /v1/records` is a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSummary {
    /// The fields of every listing.
    #[serde(flatten)]
    pub summary: MaskedSummary,
    /// The consumers that may have it; empty means everyone.
    pub allowed_consumers: Vec<String>,
    /// The name of the environment variable it is delivered in.
    pub env_name: Option<String>,
    /// The validator that checks whether the value still works.
    pub validator_id: Option<String>,
    /// The host that stored it, where hosts share metadata.
    pub stored_by: Option<String>,
}

impl From<CredentialRecord> for RecordSummary {
    fn from(mut record: CredentialRecord) -> Self {
        Self {
            allowed_consumers: std::mem::take(&mut record.allowed_consumers),
            env_name: record.env_name.take(),
            validator_id: record.validator_id.take(),
            stored_by: record.stored_by.take(),
            summary: record.into(),
        }
    }
}

/// One credential that is delivered as an environment variable, without its value. The answer to
/// `GET /v1/runtime-env` is a list of these, with the fields in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeEnvEntry {
    /// The namespace.
    pub namespace: String,
    /// The key in the namespace.
    pub key: String,
    /// The variable's name. If it is unset, the supervisor reports that.
    pub env_name: Option<String>,
    /// The consumers that may have it; empty means everyone.
    pub allowed_consumers: Vec<String>,
}

impl From<CredentialRecord> for RuntimeEnvEntry {
    fn from(record: CredentialRecord) -> Self {
        let CredentialRef { namespace: Namespace(namespace), key } = record.at;
        Self {
            namespace,
            key,
            env_name: record.env_name,
            allowed_consumers: record.allowed_consumers,
        }
    }
}

/// A value to store, with its metadata. It serialises to the metadata alone, in wire order.
#[derive(Debug, Serialize)]
pub struct StoreRequest {
    /// The value. The empty string is a value.
    #[serde(skip)]
    pub value: Secret,
    /// How the credential is delivered.
    pub delivery_mode: DeliveryMode,
    /// The consumers that may have it; empty means everyone. At most [`MAX_CONSUMERS`] names of
    /// at most [`MAX_CONSUMER_BYTES`] each.
    pub allowed_consumers: Vec<String>,
    /// The name of the environment variable it is delivered in.
    pub env_name: Option<String>,
    /// The validator that checks whether the value still works.
    pub validator_id: Option<String>,
}

impl StoreRequest {
    /// Creates a request with the defaults of the wire contract.
    #[must_use]
    pub fn new(value: Secret) -> Self {
        Self {
            value,
            delivery_mode: DeliveryMode::default(),
            allowed_consumers: Vec::new(),
            env_name: None,
            validator_id: None,
        }
    }

    /// Checks the limits of `allowed_consumers`.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`].
    pub fn check_consumers(&self) -> Result<(), VaultError> {
        let names = &self.allowed_consumers;
        if names.len() <= MAX_CONSUMERS && names.iter().all(|name| name.len() <= MAX_CONSUMER_BYTES)
        {
            return Ok(());
        }
        let limits =
            format!("at most {MAX_CONSUMERS} names of at most {MAX_CONSUMER_BYTES} bytes each");
        Err(invalid(Field::AllowedConsumers, limits))
    }
}

fn invalid(field: Field, reason: impl Into<String>) -> VaultError {
    VaultError::ValidationFailed { field, reason: reason.into() }
}

/// The preview that shows nothing of a value.
pub(crate) const HIDDEN: &str = "****";

/// Returns the part of `value` that may be shown: `****` if it has fewer than 12 characters, else
/// the first 6, `....` and the last 2. Characters are Unicode scalar values.
///
/// ```
/// use intentframe_credentials::mask_value;
/// assert_eq!(mask_value("sk-proj-abc123XYZ"), "sk-pro....YZ");
/// assert_eq!(mask_value("short"), "****");
/// ```
#[must_use]
pub fn mask_value(value: &str) -> String {
    if value.chars().count() < 12 {
        return HIDDEN.to_owned();
    }
    let head_end = value.char_indices().nth(6).map_or(value.len(), |(at, _)| at);
    let tail_start = value.char_indices().nth_back(1).map_or(0, |(at, _)| at);
    format!("{}....{}", &value[..head_end], &value[tail_start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_count_characters_and_not_bytes() {
        assert_eq!(mask_value("12345678901"), "****");
        assert_eq!(mask_value("123456789012"), "123456....12");
        assert_eq!(mask_value("ключ-для-почты"), "ключ-д....ты");
        assert_eq!(mask_value("🔑🔑🔑🔑🔑🔑🔑🔑🔑🔑🔑"), "****");
        assert_eq!(mask_value(""), "****");
    }

    #[test]
    fn the_list_of_consumers_is_limited() {
        let check = |names: usize, bytes: usize| {
            let mut request = StoreRequest::new(Secret::new("v".to_owned()));
            request.allowed_consumers = vec!["c".repeat(bytes); names];
            request.check_consumers()
        };
        check(MAX_CONSUMERS, MAX_CONSUMER_BYTES).expect("at the limit");
        for (names, bytes) in [(MAX_CONSUMERS + 1, 1), (1, MAX_CONSUMER_BYTES + 1)] {
            let error = check(names, bytes).expect_err("beyond the limit");
            assert!(error.to_string().starts_with("allowed_consumers: at most 64"), "{error}");
        }
    }

    #[test]
    fn a_record_is_checked_when_it_is_read_from_json() {
        let at = CredentialRef::stored(Namespace::new("n").expect("valid"), "a\u{200b}".to_owned());
        let request = StoreRequest::new(Secret::new("v".to_owned()));
        let mut record = CredentialRecord::new(at.expect("stored"), &request, Timestamp::now());
        record.allowed_consumers = vec!["jarvis".to_owned()];
        record.last_used_at = Some(Timestamp::now());
        let json = serde_json::to_string(&record).expect("JSON");
        assert_eq!(serde_json::from_str::<CredentialRecord>(&json).expect("the same"), record);
        for (part, wrong) in [(r#"{"namespace":"n""#, r#"{"namespace":"a b""#), ("runtime", "x")] {
            let json = json.replace("executor", "runtime").replacen(part, wrong, 1);
            serde_json::from_str::<CredentialRecord>(&json).expect_err(wrong);
        }
    }
}
