//! The state of a backend, for `/health`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// The state of a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendStatus {
    /// Whether it works, as far as it knows from its own calls.
    pub works: bool,
    /// The state of its token, if it needs one that must be renewed.
    pub renewal: Option<RenewalStatus>,
    /// The socket of the service that it forwards to, if it does.
    pub upstream: Option<PathBuf>,
    /// The number of credentials, if it is a [`MetadataKeeper`](super::MetadataKeeper); 0 if it
    /// does not answer.
    pub credential_count: Option<u64>,
}

impl Default for BackendStatus {
    /// A backend that works, as far as it knows, and needs no token.
    fn default() -> Self {
        Self { works: true, renewal: None, upstream: None, credential_count: None }
    }
}

/// The state of a token that must be renewed. Serialises to the form in `/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RenewalStatus {
    /// The state of its renewal.
    pub state: RenewalState,
    /// The time until the token expires; `None` if it never does or that is not known.
    /// Serialised in seconds.
    #[serde(rename = "ttl_seconds", serialize_with = "in_seconds")]
    pub ttl: Option<Duration>,
    /// The last error, unless a later attempt has succeeded. Never contains a token.
    pub last_error: Option<String>,
}

impl RenewalStatus {
    /// Whether requests may fail because there is no valid token.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        let has_expired = self.ttl.is_some_and(|ttl| ttl.is_zero());
        has_expired || (self.state == RenewalState::Retrying && self.ttl.is_none())
    }
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn in_seconds<S: Serializer>(ttl: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    ttl.map(|ttl| ttl.as_secs()).serialize(serializer)
}

/// The state of the renewal of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RenewalState {
    /// Nothing yet: no request has needed the token.
    Idle,
    /// It is renewed or replaced in time.
    Active,
    /// The token never expires.
    NotNeeded,
    /// The last attempt failed and will be repeated.
    Retrying,
    /// The token cannot be renewed any more.
    Ended,
    /// A setting turns renewal off.
    Disabled,
}
