//! macOS: generic passwords in the login keychain, service and account as Python's
//! `keyring` names them. Written to the store's interface; not yet run on a Mac.
//!
//! An item that Python made lets only Python's interpreter read it unasked: the first
//! read by this program makes macOS ask the user, and the answer "Always Allow" lasts.

// The shape is what Linux needs, where more can fail.
#![allow(clippy::unused_self, clippy::unnecessary_wraps)]

use std::collections::HashMap;
use std::sync::Arc;

use apple_native_keyring_store::keychain::Store;
use keyring_core::api::CredentialStoreApi;
use keyring_core::{Entry, Error};

use crate::secret::Secret;

use super::{Failure, Place};

/// What to do about a locked keyring.
pub(super) const UNLOCK: &str = "unlock it: log in, or run `security unlock-keychain`";

/// What to do when there is no keyring.
pub(super) const START: &str = "make a login keychain with Keychain Access";

/// The login keychain.
#[derive(Debug)]
pub(super) struct Keyring(Arc<Store>);

impl Keyring {
    pub(super) fn open() -> Result<Self, Failure> {
        Store::new().map(Self).map_err(failure)
    }

    /// The store does not tell; a prompt is waited for until the deadline.
    pub(super) fn write_would_prompt(&self, _at: &Place) -> Result<bool, Failure> {
        Ok(false)
    }

    pub(super) fn get(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        match self.entry(at)?.get_secret() {
            Ok(bytes) => Secret::from_utf8(bytes).map(Some).map_err(|_| Failure::NotText),
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(failure(error)),
        }
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        self.entry(at)?.set_secret(value.expose().as_bytes()).map_err(failure)
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        match self.entry(at)?.delete_credential() {
            Ok(()) => Ok(true),
            Err(Error::NoEntry) => Ok(false),
            Err(error) => Err(failure(error)),
        }
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        match self.entry(at)?.get_credential() {
            Ok(_) => Ok(true),
            Err(Error::NoEntry) => Ok(false),
            Err(error) => Err(failure(error)),
        }
    }

    /// The user names under `service`, in no order.
    pub(super) fn users(&self, service: &str) -> Result<Vec<String>, Failure> {
        let entries = self.0.search(&HashMap::from([("service", service)])).map_err(failure)?;
        Ok(entries.iter().filter_map(Entry::get_specifiers).map(|(_, user)| user).collect())
    }

    fn entry(&self, at: &Place) -> Result<Entry, Failure> {
        self.0.build(&at.service, &at.user, None).map_err(failure)
    }
}

/// The keychain cannot be watched beside a prompt: the store does not tell its state.
#[derive(Debug)]
pub(super) struct Watch;

impl Watch {
    pub(super) fn open() -> Result<Self, Failure> {
        Ok(Self)
    }

    pub(super) fn locked(&self) -> Result<bool, Failure> {
        Ok(false)
    }
}

fn failure(error: Error) -> Failure {
    match error {
        Error::NoStorageAccess(cause) => Failure::Absent(cause.to_string()),
        Error::PlatformFailure(cause) => Failure::Refused(cause.to_string()),
        Error::NoEntry => Failure::Lost("an item vanished".to_owned()),
        other => Failure::of(&other),
    }
}
