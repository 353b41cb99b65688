//! The vocabulary of the vault: names, records, summaries and store requests.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Field, VaultError};
use crate::secret::Secret;
use crate::text::is_invisible;
use crate::time::Timestamp;

/// The most names that [`StoreRequest::allowed_consumers`] may have.
pub const MAX_CONSUMERS: usize = 64;

/// The longest name of a consumer, in bytes.
pub const MAX_CONSUMER_BYTES: usize = 128;

/// A credential's namespace: ASCII letters, digits and `_ . @ + -`, starting with a letter
/// or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Namespace(String);

impl Namespace {
    /// Parses a namespace.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`], with what to write instead.
    pub fn new(name: impl Into<String>) -> Result<Self, VaultError> {
        let name = name.into();
        let reason = if name.contains('/') {
            "a namespace has no slash: use dots, as in github.myorg"
        } else if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
            "a namespace starts with a letter or a digit"
        } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.@+-".contains(&b)) {
            "a namespace has only letters, digits and _ . @ + -"
        } else {
            return Ok(Self(name));
        };
        Err(invalid(Field::Namespace, reason))
    }

    /// The namespace as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a credential: a namespace, and a key in it. A key is any non-empty text
/// without `/`, control characters or characters that nobody sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CredentialRef {
    namespace: Namespace,
    key: String,
}

impl CredentialRef {
    /// Creates the name of the credential `key` in `namespace`.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`] for a key that is empty, or contains a `/`, a control
    /// character or an [invisible](is_invisible) one.
    pub fn new(namespace: Namespace, key: impl Into<String>) -> Result<Self, VaultError> {
        let at = Self::stored(namespace, key.into())?;
        if at.key.chars().any(is_invisible) {
            return Err(invalid(Field::Key, "a key has no invisible characters"));
        }
        Ok(at)
    }

    /// A name in the database: the Python service takes keys with invisible characters.
    pub(crate) fn stored(namespace: Namespace, key: String) -> Result<Self, VaultError> {
        let reason = if key.is_empty() {
            "a key must not be empty"
        } else if key.contains('/') {
            "a key has no slash"
        } else if key.chars().any(char::is_control) {
            "a key has no control characters"
        } else {
            return Ok(Self { namespace, key });
        };
        Err(invalid(Field::Key, reason))
    }

    /// Parses both halves; see [`Namespace::new`] and [`CredentialRef::new`].
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`], which says which half is invalid.
    pub fn parse(namespace: &str, key: &str) -> Result<Self, VaultError> {
        Self::new(Namespace::new(namespace)?, key)
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The key in the namespace.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// `namespace/key`; unambiguous, since neither half contains a slash.
impl fmt::Display for CredentialRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.key)
    }
}

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

/// Everything known about a credential except its value: one row of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        }
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
    /// The validator's result; unset until a validator has run.
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
            valid: None,
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
    fn namespaces_follow_the_contract() {
        for good in ["openai", "email.you@gmail.com", "a", "9", "a_b.c@d+e-f"] {
            assert_eq!(Namespace::new(good).expect(good).as_str(), good);
        }
        for bad in ["", ".a", "-a", "_a", "@a", "a b", "é", "a/b", "a\n", "a\0"] {
            let error = Namespace::new(bad).expect_err(bad);
            assert!(matches!(error, VaultError::ValidationFailed { field: Field::Namespace, .. }));
        }
        let error = Namespace::new("github/myorg").expect_err("a slash");
        assert!(error.to_string().contains("use dots"), "{error}");
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
    fn keys_are_any_text_without_slash_or_control() {
        for good in ["api_key", "a b", "é", "%", "."] {
            assert_eq!(CredentialRef::parse("n", good).expect(good).key(), good);
        }
        for bad in ["", "a/b", "a\n", "\u{7f}", "\u{85}", "\0"] {
            let error = CredentialRef::parse("n", bad).expect_err(bad);
            assert!(matches!(error, VaultError::ValidationFailed { field: Field::Key, .. }));
            let namespace = Namespace::new("n").expect("valid");
            CredentialRef::stored(namespace, bad.into()).expect_err(bad);
        }
    }

    #[test]
    fn invisible_characters_are_only_in_keys_that_are_stored_already() {
        let namespace = || Namespace::new("n").expect("valid");
        for character in "\u{ad}\u{200b}\u{200e}\u{202e}\u{2060}\u{2066}\u{feff}\u{3164}".chars() {
            let key = format!("api{character}_key");
            CredentialRef::new(namespace(), &*key).expect_err(&key);
            assert_eq!(CredentialRef::stored(namespace(), key.clone()).expect("stored").key(), key);
        }
        for key in ["schlüssel", "ключ", "مفتاح", "鍵", "\u{1f511}", "❤\u{fe0f}"] {
            CredentialRef::new(namespace(), key).expect(key);
        }
    }
}
