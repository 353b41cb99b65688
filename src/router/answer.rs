//! Answers: status, headers and body, before they are bytes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::sync::LazyLock;

use serde::Serialize;
use tiny_http::Header;
use zeroize::Zeroizing;

use crate::error::{Field, VaultError};
use crate::secret::Secret;

use super::store_body::Problem;

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

    /// Takes it apart, to be written: status, headers, body.
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

    pub(super) fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, headers: json_headers(), body: Body::from(body) }
    }

    pub(super) fn json_of(content: &impl Serialize) -> Self {
        Self::json(200, serialize(content))
    }

    /// `{"detail": ...}`, the body of every error.
    #[must_use]
    pub fn error(status: u16, detail: &(impl Serialize + ?Sized)) -> Self {
        #[derive(Serialize)]
        struct Detail<'a, T: ?Sized> {
            detail: &'a T,
        }
        Self::json(status, serialize(&Detail { detail }))
    }

    pub(super) fn bad_request(detail: &str) -> Self {
        Self::error(400, detail)
    }

    pub(super) fn forbidden(detail: &str) -> Self {
        Self::error(403, detail)
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
        // A header is ASCII; a target that came unencoded is encoded on its way back.
        let mut ascii = String::with_capacity(location.len());
        for byte in location.bytes() {
            if byte.is_ascii_graphic() {
                ascii.push(char::from(byte));
            } else {
                let _ = write!(ascii, "%{byte:02X}");
            }
        }
        Self::empty(307).with_header("Location", &ascii)
    }

    /// The same answer with a further header.
    ///
    /// # Panics
    ///
    /// When the value is not ASCII.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        let header = Header::from_bytes(name, value).expect("callers pass printable ASCII");
        self.headers.push(header);
        self
    }
}

/// Every error of the service, as callers see it. No error carries a value.
impl From<&VaultError> for Answer {
    fn from(error: &VaultError) -> Self {
        match error {
            VaultError::NotFound(_) => Self::credential_not_found(),
            VaultError::ValidationFailed { field, reason } => {
                let loc = match field {
                    Field::Namespace => ["path", "namespace"],
                    Field::Key => ["path", "key"],
                    Field::Value => ["body", "value"],
                    Field::AllowedConsumers => ["body", "allowed_consumers"],
                    Field::Backend => ["body", "backend"],
                };
                Self::unprocessable(&[Problem::new("value_error", &loc, reason.clone())])
            }
            VaultError::BackendUnavailable { retry_after, .. } => {
                let seconds = retry_after.as_secs().max(1).to_string();
                Self::error(503, &error.to_string()).with_header("Retry-After", &seconds)
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

/// `{"value":"..."}`: the one answer with a credential's value in it.
pub(super) fn value(secret: &Secret) -> Answer {
    // Room for all of it, so that none is left behind in a smaller buffer.
    let escaped = secret.expose().bytes().map(|byte| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    });
    let mut body = Zeroizing::new(Vec::with_capacity(escaped.sum::<usize>() + 16));
    body.extend_from_slice(br#"{"value":"#);
    serde_json::to_writer(&mut *body, secret.expose()).expect("a Vec takes every write");
    body.push(b'}');
    Answer {
        status: 200,
        headers: json_headers(),
        body: Body(VecDeque::from([Segment::new(body)])),
    }
}

pub(super) fn deleted() -> Answer {
    Answer::json(200, br#"{"status":"deleted"}"#.to_vec())
}

fn json_headers() -> Vec<Header> {
    static JSON: LazyLock<Header> = LazyLock::new(|| {
        Header::from_bytes("Content-Type", "application/json").expect("a valid header")
    });
    // With room for the two that the server adds.
    let mut headers = Vec::with_capacity(3);
    headers.push(JSON.clone());
    headers
}

fn serialize(content: &(impl Serialize + ?Sized)) -> Vec<u8> {
    serde_json::to_vec(content).expect("names and texts always serialise")
}

/// A JSON list that is written element by element, for listings of many thousands.
#[derive(Default)]
pub(super) struct JsonList {
    body: Body,
    current: Vec<u8>,
}

impl JsonList {
    pub(super) fn push(&mut self, element: &impl Serialize) {
        if self.current.capacity() == 0 {
            self.current.reserve_exact(SEGMENT_BYTES);
        }
        let is_first = self.body.0.is_empty() && self.current.is_empty();
        self.current.push(if is_first { b'[' } else { b',' });
        serde_json::to_writer(&mut self.current, element).expect("a Vec takes every write");
        if self.current.len() >= SEGMENT_BYTES * 3 / 4 {
            self.body.push(std::mem::take(&mut self.current));
        }
    }

    pub(super) fn into_answer(mut self) -> Answer {
        if self.body.0.is_empty() && self.current.is_empty() {
            self.current.push(b'[');
        }
        self.current.push(b']');
        self.body.push(self.current);
        Answer { status: 200, headers: json_headers(), body: self.body }
    }
}

/// Long bodies are made of pieces of about this size, so that a listing of any length
/// needs no large block of memory, which would be slow to give back.
const SEGMENT_BYTES: usize = 16 * 1024;

/// The bytes of a body. Reading takes them out; what has been read is wiped and freed.
#[derive(Debug, Default)]
pub struct Body(VecDeque<Segment>);

struct Segment {
    bytes: Zeroizing<Vec<u8>>,
    read: usize,
}

impl Segment {
    fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self { bytes, read: 0 }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.read..]
    }
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl Body {
    /// The number of bytes not yet read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|segment| segment.rest().len()).sum()
    }

    /// Whether there is nothing to read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, when it is in one piece that nothing has been read of.
    #[must_use]
    pub fn as_one_piece(&self) -> Option<&[u8]> {
        match (self.0.len(), self.0.front()) {
            (0, _) => Some(&[]),
            (1, Some(only)) => Some(only.rest()),
            _ => None,
        }
    }

    /// The bytes, in pieces.
    pub fn into_segments(self) -> impl Iterator<Item = Zeroizing<Vec<u8>>> {
        self.0.into_iter().map(|segment| segment.bytes)
    }

    fn push(&mut self, bytes: Vec<u8>) {
        self.0.push_back(Segment::new(Zeroizing::new(bytes)));
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        let mut body = Self::default();
        body.push(bytes);
        body
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(segment) = self.0.front_mut() {
            let taken = segment.rest().read(buffer)?;
            segment.read += taken;
            if segment.rest().is_empty() {
                self.0.pop_front();
            }
            if taken > 0 || buffer.is_empty() {
                return Ok(taken);
            }
        }
        Ok(0)
    }
}
