//! Requests to the server, its answers, and what they mean.

use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

pub(super) use crate::secret::wiped_json;

/// A request. Its `path` is the part after `/v1/`.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'static str,
    pub(super) path: &'a str,
    /// The content type and the content.
    pub(super) body: Option<(&'static str, &'a [u8])>,
    /// Whether it may be sent again after a failure, although the server may have carried it
    /// out.
    pub(super) may_repeat: bool,
}

impl<'a> Request<'a> {
    pub(super) fn new(method: &'static str, path: &'a str) -> Self {
        Self { method, path, body: None, may_repeat: true }
    }

    /// A request with a JSON body; a `PATCH` is a merge (RFC 7396).
    pub(super) fn with_body(method: &'static str, path: &'a str, body: &'a [u8]) -> Self {
        let is_patch = method == "PATCH";
        let kind = if is_patch { "application/merge-patch+json" } else { "application/json" };
        Self { body: Some((kind, body)), ..Self::new(method, path) }
    }
}

/// The server cannot be asked or cannot answer.
#[derive(Debug, Clone)]
pub(super) struct Unavailable {
    /// Why, and what to do about it.
    pub(super) reason: String,
    /// When another attempt is worthwhile, if that is known.
    pub(super) retry_after: Option<Duration>,
    /// The server could not be reached, did not answer in time, or cannot serve.
    pub(super) is_outage: bool,
}

impl Unavailable {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None, is_outage: false }
    }

    /// How long to wait before another attempt: `retry_after`, else a second.
    pub(super) fn pause(&self) -> Duration {
        self.retry_after.unwrap_or(Duration::from_secs(1))
    }
}

/// Why an operation failed. Callers that share a request share its failure.
#[derive(Debug, Clone)]
pub(super) enum Error {
    /// The server cannot answer, or there is no valid token. A change may or may not have
    /// been made.
    Unavailable(Unavailable),
    /// The server refused, and nothing has changed.
    Refused(String),
}

impl From<String> for Error {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl From<Unavailable> for Error {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// Its error messages. A 404 without them means that there is nothing.
    pub(super) errors: String,
    pub(super) retry_after: Option<Duration>,
    /// The URL of a redirect, or why it is not followed.
    pub(super) location: Option<Result<String, String>>,
}

/// Refusals that a working server answers with status 500: the storage's limit (1 MiB for a
/// secret with Raft), and the renewal of a token whose role was deleted.
const REFUSALS: [&str; 2] = ["value being too large", "does not exist during renewal"];

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the error messages contain `text`.
    pub(super) fn says(&self, text: &str) -> bool {
        self.errors.contains(text)
    }

    /// The status and the error messages.
    pub(super) fn explain(&self) -> String {
        let separator = if self.errors.is_empty() { "" } else { ": " };
        format!("Vault answered {}{separator}{}", self.status, self.errors)
    }

    /// The body's JSON, or null if the body is no JSON or over 1 MiB, which only a secret can
    /// be. Texts in the result are not wiped: take secrets out of it with [`text`].
    pub(super) fn json(&self) -> Value {
        const LONGEST: usize = 1024 * 1024;

        let body = Some(&self.body[..]).filter(|body| body.len() <= LONGEST);
        body.and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default()
    }

    /// Returns the answer if it is final, and an error if another attempt may help.
    pub(super) fn judged(self) -> Result<Self, Unavailable> {
        let is_refusal = || REFUSALS.iter().any(|refusal| self.says(refusal));
        let (is_outage, reason) = match self.status {
            503 if self.says("sealed") => (true, "it is sealed; unseal it".to_owned()),
            307 | 308 => {
                let refusal = self.location.and_then(Result::err);
                let nowhere = "it redirects twice, or nowhere; set VAULT_ADDR to the active node";
                (true, refusal.unwrap_or_else(|| nowhere.to_owned()))
            }
            412 | 429 => (false, self.explain()),
            // For a moment, while a mount is upgraded to version 2.
            400 if self.says("Upgrading from non-versioned") => (false, self.explain()),
            500..=599 if self.status != 501 && !(self.status == 500 && is_refusal()) => {
                (true, self.explain())
            }
            _ => return Ok(self),
        };
        Err(Unavailable { reason, retry_after: self.retry_after, is_outage })
    }
}

/// Takes the text at `pointer` out of JSON.
pub(super) fn text(json: &mut Value, pointer: &str) -> Option<String> {
    match json.pointer_mut(pointer)?.take() {
        Value::String(text) => Some(text),
        _ => None,
    }
}

/// A number in JSON; 0 if it is missing.
pub(super) fn number(json: &Value, pointer: &str) -> u64 {
    json.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}

/// The error messages in an answer, on one line. They are replaced if they repeat part of the
/// request's body or token (`sent`), since that may be a secret.
pub(super) fn errors_in(json: &Value, sent: [&[u8]; 2]) -> String {
    /// Shorter words reveal nothing and occur in every request.
    const SHORTEST_WORD: usize = 6;
    /// The first half of `secret_id`, which is in every login.
    const SECRET: &[u8] = b"secret";
    const LONGEST: usize = 400;

    let errors = json["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    let errors: Vec<&str> = errors.iter().filter_map(Value::as_str).collect();
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = errors.join("; ").chars().map(plain).take(LONGEST).collect();
    let is_separator = |c: char| c.is_whitespace() || "\"'`,;:()".contains(c);
    let repeats = text.split(is_separator).map(str::as_bytes).any(|word| {
        word.len() >= SHORTEST_WORD
            && word != SECRET
            && sent.iter().any(|sent| sent.windows(word.len()).any(|part| part == word))
    });
    if repeats { "(not shown, since it repeats part of the request)".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_repeat_the_request_are_not_shown() {
        let sent: [&[u8]; 2] = [br#"{"data":{"k":"sk-canary"}}"#, b"hvs.canary-token"];
        let errors = |text: &str| errors_in(&serde_json::json!({ "errors": [text] }), sent);
        assert_eq!(errors("permission denied"), "permission denied");
        assert_eq!(errors("two\nlines"), "two lines");
        for text in ["bad value sk-canary", "bad \"sk-canary\"", "bad token hvs.canary-token"] {
            assert!(!errors(text).contains("canary"), "{text}");
        }
        assert_eq!(errors_in(&Value::Null, sent), "");
        assert_eq!(errors_in(&serde_json::json!({}), sent), "");
    }
}
