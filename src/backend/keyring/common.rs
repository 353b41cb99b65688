//! The parts that macOS and Windows share.

// The signatures are those that Linux needs, where more can fail.
#![allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps, clippy::unused_self)]

use keyring_core::Error;
use keyring_core::error::PlatformError;

use super::Failure;

/// These stores do not tell whether the keyring is locked.
pub(super) struct Watch;

impl Watch {
    pub(super) fn open() -> Result<Self, Failure> {
        Ok(Self)
    }

    pub(super) fn locked(&self) -> Result<bool, Failure> {
        Ok(false)
    }
}

/// `None` if there is no such item.
pub(super) fn found<T>(result: keyring_core::Result<T>) -> Result<Option<T>, Failure> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Error::NoEntry) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The kind of an error of these stores says all that its cause says.
pub(super) fn failure_of(cause: PlatformError, other: fn(String) -> Failure) -> Failure {
    other(cause.to_string())
}
