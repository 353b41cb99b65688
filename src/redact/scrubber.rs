//! [`CredentialScrubber`]: removes the values of sensitive keys from JSON documents.

use std::collections::HashSet;
use std::io::{self, Write};

use serde::Serialize as _;
use serde_json::ser::{Formatter, Serializer};
use serde_json::{Number, Value};
use sha2::{Digest, Sha256};

use super::REDACTED_VALUE;
use super::escape;

/// The keys whose values count as secrets. Their case does not matter.
pub const SENSITIVE_KEYS: [&str; 19] = [
    "password",
    "secret",
    "token",
    "api_key",
    "apikey",
    "api_secret",
    "credential",
    "credentials",
    "private_key",
    "access_key",
    "secret_key",
    "auth",
    "authorization",
    "bearer",
    "ssn",
    "credit_card",
    "card_number",
    "refresh_token",
    "app_password",
];

/// Replaces the values of sensitive keys in JSON documents.
///
/// ```
/// use intentframe_credentials::redact::CredentialScrubber;
/// use serde_json::json;
///
/// let scrubber = CredentialScrubber::default();
/// let scrubbed = scrubber.scrub(&json!({"to": "a@b.c", "login": {"Password": "made-up"}}));
/// assert_eq!(scrubbed, json!({"to": "a@b.c", "login": {"Password": "[REDACTED]"}}));
/// ```
#[derive(Debug, Clone)]
pub struct CredentialScrubber {
    /// In lower case.
    sensitive_keys: HashSet<String>,
    redacted_value: String,
}

impl Default for CredentialScrubber {
    /// Uses [`SENSITIVE_KEYS`] and [`REDACTED_VALUE`].
    fn default() -> Self {
        Self::new(SENSITIVE_KEYS, REDACTED_VALUE)
    }
}

impl CredentialScrubber {
    /// Creates a scrubber of these keys, in any case, that puts `redacted_value` in place of
    /// their values.
    pub fn new<K: AsRef<str>>(
        sensitive_keys: impl IntoIterator<Item = K>,
        redacted_value: impl Into<String>,
    ) -> Self {
        let lower = |key: K| key.as_ref().to_lowercase();
        Self {
            sensitive_keys: sensitive_keys.into_iter().map(lower).collect(),
            redacted_value: redacted_value.into(),
        }
    }

    /// Whether the value of `key` counts as a secret.
    #[must_use]
    pub fn is_sensitive(&self, key: &str) -> bool {
        self.sensitive_keys.contains(&key.to_lowercase())
    }

    /// Returns a copy of the document without the values of sensitive keys, of any type and at
    /// any depth.
    #[must_use]
    pub fn scrub(&self, document: &Value) -> Value {
        match document {
            Value::Object(members) => members
                .iter()
                .map(|(key, value)| {
                    let scrubbed = if self.is_sensitive(key) {
                        Value::String(self.redacted_value.clone())
                    } else {
                        self.scrub(value)
                    };
                    (key.clone(), scrubbed)
                })
                .collect(),
            Value::Array(items) => items.iter().map(|item| self.scrub(item)).collect(),
            other => other.clone(),
        }
    }

    /// Returns the SHA-256 of the document's canonical JSON, in hex: members in the order of their
    /// keys' code points, no whitespace, and everything outside ASCII as `\u` escapes.
    ///
    /// It equals Python's
    /// `sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())`.
    /// The numbers are those in the [`Value`]: `serde_json` turns an integer beyond 64 bits into a
    /// float, Python does not.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "writing to a hash does not fail")]
    pub fn hash_params(document: &Value) -> String {
        let mut sorted = document.clone();
        // Without serde_json's `preserve_order` they are sorted already. The order of UTF-8's
        // bytes is that of the code points.
        sorted.sort_all_objects();
        let mut hash = Sha256::new();
        let mut serializer = Serializer::with_formatter(&mut hash, Python);
        sorted.serialize(&mut serializer).expect("a document serialises, and a hash takes writes");
        format!("{:x}", hash.finalize())
    }
}

/// Writes JSON as Python does, without whitespace.
struct Python;

impl Formatter for Python {
    fn write_f64<W: Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let number = Number::from_f64(value).expect("a document has only finite numbers");
        writer.write_all(python_float(&number.to_string()).as_bytes())
    }

    /// The fragment has none of the characters that every JSON string must escape.
    fn write_string_fragment<W: Write + ?Sized>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(&escape::PYTHON.escape(fragment))
    }
}

/// Changes a float from the notation of `serde_json` to that of Python's `repr`. Python also has
/// an exponent from 1e-5 up to 1e-4, and every exponent has a sign and at least two digits.
///
/// The digits stay those of `serde_json`. The standard library differs where two numbers of as
/// few digits are equally near: 874638715002178.25 ends in .3 there, in .2 here.
fn python_float(text: &str) -> String {
    if let Some((mantissa, exponent)) = text.split_once('e') {
        let exponent: i32 = exponent.parse().expect("a float's exponent is a small number");
        return format!("{mantissa}e{exponent:+03}");
    }
    let (sign, unsigned) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let Some(digits) = unsigned.strip_prefix("0.0000") else { return text.to_owned() };
    let (first, rest) = digits.split_at(1);
    let dot = if rest.is_empty() { "" } else { "." };
    format!("{sign}{first}{dot}{rest}e-05")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (1e-7, "1e-07"),
            (-1.5e-10, "-1.5e-10"),
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (874_638_715_002_178.2, "874638715002178.2"),
        ] {
            assert_eq!(
                python_float(&Number::from_f64(float).expect("it is finite").to_string()),
                text
            );
        }
    }

    #[test]
    fn keys_and_the_replacement_can_be_chosen() {
        let scrubber = CredentialScrubber::new(["PIN", "Größe"], "***");
        assert_eq!(
            scrubber.scrub(&json!({"pin": 1, "GRÖSSE": 2, "größe": 3, "GRÖßE": 4, "token": 5})),
            json!({"pin": "***", "GRÖSSE": 2, "größe": "***", "GRÖßE": "***", "token": 5})
        );
    }
}
