//! Answers: status, headers and body, before they become bytes of HTTP.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::error::{Field, VaultError};
use crate::secret::{Secret, wiped_json};

use super::Call;
use super::body::Problem;

/// The name and the value of a header.
pub type Header = (&'static str, Cow<'static, str>);

/// An answer to a request.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// All headers but those of the connection and of the framing.
    pub headers: Vec<Header>,
    /// The bytes of the body; of a long listing, its first page.
    pub body: Zeroizing<Vec<u8>>,
    /// The call whose answer has the next page of the same body. If that answer does not have
    /// status 200, the listing failed in the middle.
    pub rest: Option<Box<Call>>,
}

impl Answer {
    pub(super) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Zeroizing::default(), rest: None }
    }

    fn json(status: u16, body: Zeroizing<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type", "application/json".into())];
        Self { headers, body, ..Self::empty(status) }
    }

    pub(super) fn json_of(status: u16, content: &(impl Serialize + ?Sized)) -> Self {
        let json = serde_json::to_vec(content).expect("names and texts always serialise");
        Self::json(status, Zeroizing::new(json))
    }

    /// The interface in the words of `OpenAPI` 3.1: docs/openapi.yaml as JSON.
    pub(super) fn openapi() -> Self {
        Self::json(200, Zeroizing::new(include_bytes!("openapi.json").to_vec()))
    }

    /// `{"value":"..."}`: the only answer that contains a credential's value.
    pub(super) fn value(secret: &Secret) -> Self {
        Self::json(200, wiped_json(&BTreeMap::from([("value", secret.expose())])))
    }

    /// `{"detail": ...}`, the body of every error.
    #[must_use]
    pub fn error(status: u16, detail: &(impl Serialize + ?Sized)) -> Self {
        Self::json_of(status, &json!({ "detail": detail }))
    }

    pub(super) fn not_found() -> Self {
        Self::error(404, "Not Found")
    }

    pub(super) fn credential_not_found() -> Self {
        Self::error(404, "credential not found")
    }

    pub(super) fn method_not_allowed(allow: &'static str) -> Self {
        Self::error(405, "Method Not Allowed").with_header("Allow", allow)
    }

    pub(super) fn redirect(location: &str) -> Self {
        // A header is ASCII and has no control characters, so the rest is percent-encoded.
        let mut ascii = String::with_capacity(location.len());
        for byte in location.bytes() {
            if byte.is_ascii_graphic() {
                ascii.push(char::from(byte));
            } else {
                let _ = write!(ascii, "%{byte:02X}");
            }
        }
        Self::empty(307).with_header("Location", ascii)
    }

    /// The same answer with a further header. The value must be printable ASCII.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Shows no content, which may be a value.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({}, {} bytes)", self.status, self.body.len())
    }
}

/// Every error of the service as callers see it. No error carries a value.
impl From<VaultError> for Answer {
    fn from(error: VaultError) -> Self {
        match &error {
            VaultError::NotFound(_) => Self::credential_not_found(),
            VaultError::ValidationFailed { field, reason } => {
                let part = match field {
                    Field::Namespace | Field::Key => "path",
                    Field::Value | Field::AllowedConsumers | Field::Backend => "body",
                };
                let loc = json!([part, field.to_string()]);
                Self::error(422, &[Problem::new("value_error", loc, reason.clone())])
            }
            VaultError::BackendUnavailable { retry_after, .. } => {
                let seconds = retry_after.as_secs().max(1).to_string();
                Self::error(503, &error.to_string()).with_header("Retry-After", seconds)
            }
            VaultError::ReadFailed { .. }
            | VaultError::StoreFailed { .. }
            | VaultError::DeleteFailed { .. }
            | VaultError::Metadata(_) => {
                log::error!("{error}");
                Self::error(500, &error.to_string())
            }
        }
    }
}

/// The length of a page, in bytes. With one more element it mostly fits into 64 KiB.
const PAGE_BYTES: usize = 60 * 1024;

/// A page of a JSON list.
pub(super) struct JsonPage {
    json: Zeroizing<Vec<u8>>,
    /// Precedes the next element.
    separator: u8,
}

impl JsonPage {
    pub(super) fn new(is_first: bool) -> Self {
        Self { json: Zeroizing::default(), separator: if is_first { b'[' } else { b',' } }
    }

    pub(super) fn push(&mut self, element: &impl Serialize) {
        self.json.push(std::mem::replace(&mut self.separator, b','));
        serde_json::to_writer(&mut *self.json, element).expect("a Vec takes every write");
    }

    pub(super) fn is_full(&self) -> bool {
        self.json.len() >= PAGE_BYTES
    }

    /// The answer, of which `rest` has the next page.
    pub(super) fn into_answer(mut self, rest: Option<Box<Call>>) -> Answer {
        if rest.is_none() {
            self.json.extend_from_slice(if self.separator == b'[' { b"[]" } else { b"]" });
        }
        Answer { rest, ..Answer::json(200, self.json) }
    }
}
