//! Keeping values out of what is written: streams, log lines and JSON documents.

mod escape;
mod finder;
mod forms;
mod log;
mod mask;
mod scrubber;

pub use log::{RedactingLogger, RegisteredSecrets, Registration, redact_credentials};
pub use mask::Masker;
pub use scrubber::{CredentialScrubber, SENSITIVE_KEYS};

/// What stands where a value was.
pub const REDACTED_VALUE: &str = "[REDACTED]";
