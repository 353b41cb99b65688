//! Answers: status, headers and body, before they become bytes of HTTP.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::Serialize;
use serde_json::json;
use zeroize::Zeroizing;

use crate::error::{Field, VaultError};
use crate::secret::Secret;

use super::body::Problem;

/// The name and the value of a header.
pub type Header = (&'static str, Cow<'static, str>);

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    headers: Vec<Header>,
    body: Body,
}

impl Answer {
    /// The status code.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The status, the headers and the body, to be written.
    #[must_use]
    pub fn into_parts(self) -> (u16, Vec<Header>, Body) {
        (self.status, self.headers, self.body)
    }

    pub(super) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::default() }
    }

    /// The same answer to a HEAD request.
    pub(super) fn without_body(self) -> Self {
        Self { body: Body::default(), ..self }
    }

    fn json(status: u16, body: Body) -> Self {
        Self { status, headers: vec![("Content-Type", "application/json".into())], body }
    }

    pub(super) fn json_of(status: u16, content: &(impl Serialize + ?Sized)) -> Self {
        let json = serde_json::to_vec(content).expect("names and texts always serialise");
        Self::json(status, Body(vec![Zeroizing::new(json)]))
    }

    /// `{"value":"..."}`: the only answer that contains a credential's value.
    pub(super) fn value(secret: &Secret) -> Self {
        // The capacity suffices, so the buffer never grows and leaves no copy behind.
        let escaped = secret.expose().bytes().map(|byte| match byte {
            b'"' | b'\\' => 2,
            0..0x20 => 6,
            _ => 1,
        });
        let mut json = Zeroizing::new(Vec::with_capacity(escaped.sum::<usize>() + 16));
        json.extend_from_slice(br#"{"value":"#);
        serde_json::to_writer(&mut *json, secret.expose()).expect("a Vec takes every write");
        json.push(b'}');
        Self::json(200, Body(vec![json]))
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

    pub(super) fn unprocessable(problems: &[Problem]) -> Self {
        Self::error(422, problems)
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

/// Every error of the service as callers see it. No error carries a value.
impl From<&VaultError> for Answer {
    fn from(error: &VaultError) -> Self {
        match error {
            VaultError::NotFound(_) => Self::credential_not_found(),
            VaultError::ValidationFailed { field, reason } => {
                let part = match field {
                    Field::Namespace | Field::Key => "path",
                    Field::Value | Field::AllowedConsumers | Field::Backend => "body",
                };
                let loc = json!([part, field.to_string()]);
                Self::unprocessable(&[Problem::new("value_error", loc, reason.clone())])
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

/// A JSON list that is written element by element, for listings of many thousands.
#[derive(Default)]
pub(super) struct JsonList(Body);

impl JsonList {
    pub(super) fn push(&mut self, element: &impl Serialize) {
        let separator = if self.0.is_empty() { b'[' } else { b',' };
        let segment = self.0.room_for_an_element();
        segment.push(separator);
        serde_json::to_writer(segment, element).expect("a Vec takes every write");
    }

    pub(super) fn into_answer(mut self) -> Answer {
        let end: &[u8] = if self.0.is_empty() { b"[]" } else { b"]" };
        self.0.room_for_an_element().extend_from_slice(end);
        Answer::json(200, self.0)
    }
}

/// A long body consists of segments of about this size. A listing of any length then needs
/// no large block of memory, which the allocator would be slow to give back.
const SEGMENT_BYTES: usize = 16 * 1024;

/// The bytes of a body. They are wiped when they are dropped.
#[derive(Default)]
pub struct Body(Vec<Zeroizing<Vec<u8>>>);

impl Body {
    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|segment| segment.len()).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|segment| segment.is_empty())
    }

    /// The bytes, in order. Nearly every body is one segment; a long listing has more.
    pub fn into_segments(self) -> impl Iterator<Item = Zeroizing<Vec<u8>>> {
        self.0.into_iter()
    }

    /// The last segment, or a new one when the last is three quarters full: an element is
    /// mostly far shorter than the rest, and if it is not, the segment grows.
    fn room_for_an_element(&mut self) -> &mut Vec<u8> {
        if self.0.last().is_none_or(|last| last.len() >= SEGMENT_BYTES * 3 / 4) {
            self.0.push(Zeroizing::new(Vec::with_capacity(SEGMENT_BYTES)));
        }
        self.0.last_mut().expect("it was just made sure of")
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}
