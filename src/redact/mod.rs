//! Keeps values out of streams, log records and JSON documents.

mod escape;
mod finder;
mod forms;
mod log;
mod mask;
mod scrubber;

pub use log::{RedactingLogger, RegisteredSecrets, Registration, redact_credentials};
pub use mask::Masker;
pub use scrubber::{CredentialScrubber, SENSITIVE_KEYS};

/// The text that replaces a value.
pub const REDACTED_VALUE: &str = "[REDACTED]";
