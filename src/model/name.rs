//! The names of credentials: a namespace, and a key in it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::error::{Field, VaultError};
use crate::text::is_invisible;

/// A credential's namespace: ASCII letters, digits and `_ . @ + -`, starting with a letter
/// or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Namespace(pub(super) String);

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
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "StoredRef")]
pub struct CredentialRef {
    pub(super) namespace: Namespace,
    pub(super) key: String,
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

/// The JSON of a [`CredentialRef`], before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredRef {
    namespace: String,
    key: String,
}

impl TryFrom<StoredRef> for CredentialRef {
    type Error = VaultError;

    fn try_from(name: StoredRef) -> Result<Self, VaultError> {
        Self::stored(Namespace::new(name.namespace)?, name.key)
    }
}

/// `namespace/key`; unambiguous, since neither half contains a slash.
impl fmt::Display for CredentialRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
