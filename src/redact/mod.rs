//! Keeping values out of what is written: streams, log lines and JSON documents.

mod finder;
mod forms;
mod mask;

pub use mask::Masker;

/// What stands where a value was.
pub const REDACTED_VALUE: &str = "[REDACTED]";
