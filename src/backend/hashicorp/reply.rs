//! The server's answers, and what they mean for the request.

use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    /// Its error messages.
    pub(super) errors: String,
    pub(super) retry_after: Option<Duration>,
    /// Another URL to send the request to.
    pub(super) location: Option<String>,
}

/// An attempt that failed, or that the server wants repeated.
pub(super) struct Failure {
    pub(super) reason: String,
    /// The server could not be reached, did not answer in time, or cannot serve.
    pub(super) is_outage: bool,
    /// The request had certainly no effect.
    pub(super) unsent: bool,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn outage(reason: impl Into<String>, unsent: bool) -> Self {
        Self { reason: reason.into(), is_outage: true, unsent, retry_after: None }
    }
}

/// What a working server says with status 500 about a request that it refuses: a limit of
/// its storage (1 MiB for a secret with Raft), or a role that was deleted.
const REFUSALS: [&str; 2] = ["value being too large", "does not exist during renewal"];

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether the error messages contain `text`.
    pub(super) fn says(&self, text: &str) -> bool {
        self.errors.contains(text)
    }

    /// Whether there are no error messages. A 404 without them means that there is nothing.
    pub(super) fn says_nothing(&self) -> bool {
        self.errors.is_empty()
    }

    /// The status and the error messages.
    pub(super) fn explain(&self) -> String {
        match &*self.errors {
            "" => format!("Vault answered {}", self.status),
            errors => format!("Vault answered {}: {errors}", self.status),
        }
    }

    /// Tells final answers from those after which the request may be repeated.
    pub(super) fn judged(self) -> Result<Self, Failure> {
        let retry_after = self.retry_after;
        let unsent = |is_outage, reason| Failure { reason, is_outage, unsent: true, retry_after };
        let is_refusal = || REFUSALS.iter().any(|refusal| self.says(refusal));
        Err(match self.status {
            503 if self.says("sealed") => unsent(true, "it is sealed; unseal it".to_owned()),
            307 | 308 => unsent(
                true,
                "it redirects to a place that cannot be used; set VAULT_ADDR to the active node"
                    .to_owned(),
            ),
            412 | 429 => unsent(false, self.explain()),
            // For a moment, while a mount is upgraded to version 2.
            400 if self.says("Upgrading from non-versioned") => unsent(false, self.explain()),
            500..=599 if self.status != 501 && !(self.status == 500 && is_refusal()) => {
                Failure { unsent: false, ..unsent(true, self.explain()) }
            }
            _ => return Ok(self),
        })
    }
}

/// The error messages in an answer, on one line. They are replaced if they repeat part of
/// what was `sent`, which may be a value or a token.
pub(super) fn errors_in(body: &[u8], sent: [&[u8]; 2]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<String>,
    }
    /// Shorter words reveal nothing and occur in every request.
    const SHORTEST_WORD: usize = 6;
    /// The first half of `secret_id`, which is in every login.
    const SECRET: &[u8] = b"secret";
    const LONGEST: usize = 400;

    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let text: String = errors
        .join("; ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST)
        .collect();
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
        let errors = |text: &str| {
            errors_in(serde_json::json!({ "errors": [text] }).to_string().as_bytes(), sent)
        };
        assert_eq!(errors("permission denied"), "permission denied");
        assert_eq!(errors("two\nlines"), "two lines");
        for text in ["bad value sk-canary", "bad \"sk-canary\"", "bad token hvs.canary-token"] {
            assert!(!errors(text).contains("canary"), "{text}");
        }
        assert_eq!(errors_in(b"<html>", sent), "");
        assert_eq!(errors_in(b"{}", sent), "");
    }
}
