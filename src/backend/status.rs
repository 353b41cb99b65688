//! How a backend is, for `/health`.

use std::path::PathBuf;
use std::time::Duration;

/// How a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendStatus {
    /// Whether it works, as far as it knows without being asked for anything.
    pub works: bool,
    /// How the token is that it needs, if it needs one that has to be kept alive.
    pub renewal: Option<RenewalStatus>,
    /// The socket of the service that it forwards to, if it does.
    pub upstream: Option<PathBuf>,
    /// How many credentials there are, when it has a [catalogue](super::Catalogue); 0 when
    /// it does not answer.
    pub credential_count: Option<u64>,
}

impl Default for BackendStatus {
    /// A backend that works, as far as it knows, and needs no token.
    fn default() -> Self {
        Self { works: true, renewal: None, upstream: None, credential_count: None }
    }
}

/// How a token is that has to be kept alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalStatus {
    /// What is done for it.
    pub state: RenewalState,
    /// What is left of its life; `None` when it does not end, or that is not known.
    pub ttl: Option<Duration>,
    /// What went wrong last, unless it has been mended since. Never a token.
    pub last_error: Option<String>,
}

impl RenewalStatus {
    /// Whether requests may fail for want of a token.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        let is_over = self.ttl.is_some_and(|ttl| ttl.is_zero());
        is_over || (self.state == RenewalState::Retrying && self.ttl.is_none())
    }
}

/// What is done to keep a token alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenewalState {
    /// Nothing yet: no request has needed it.
    Idle,
    /// It is renewed, or replaced, in time.
    Active,
    /// The token does not end.
    NotNeeded,
    /// The last attempt failed, and is repeated.
    Retrying,
    /// It cannot be kept alive any longer.
    Ended,
    /// It is set not to be kept alive.
    Disabled,
}

impl RenewalState {
    /// The name in `/health`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::NotNeeded => "not_needed",
            Self::Retrying => "retrying",
            Self::Ended => "ended",
            Self::Disabled => "disabled",
        }
    }
}
