//! A request to the server.

/// A request.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    /// The part after `/v1/`.
    pub(super) path: &'a str,
    /// Its content type and content.
    pub(super) body: Option<(&'static str, &'a [u8])>,
    pub(super) repeat: Repeat,
    /// Its failure says nothing about other requests, so that the breaker ignores it.
    pub(super) is_apart: bool,
}

/// When a request that failed may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    Always,
    /// Only if it had no effect: it is not idempotent.
    IfUnsent,
    Never,
}

impl<'a> Request<'a> {
    /// A request without a body.
    pub(super) fn new(method: &'static str, path: &'a str) -> Self {
        Self { method, path, body: None, repeat: Repeat::Always, is_apart: false }
    }

    pub(super) fn json(self, body: &'a [u8]) -> Self {
        Self { body: Some(("application/json", body)), ..self }
    }

    pub(super) fn merge_patch(self, body: &'a [u8]) -> Self {
        Self { body: Some(("application/merge-patch+json", body)), ..self }
    }

    pub(super) fn repeat(self, repeat: Repeat) -> Self {
        Self { repeat, ..self }
    }

    pub(super) fn apart(self) -> Self {
        Self { is_apart: true, ..self }
    }
}
