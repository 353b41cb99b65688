//! macOS: generic passwords in the login keychain, service and account as Python's
//! `keyring` names them. Written against the store's interface; not yet run on a Mac.
//!
//! An item that Python made lets only Python's interpreter read it unasked: the first
//! read by this program makes macOS ask the user, and the answer "Always Allow" lasts.

// The signatures are those that Linux needs, where more can fail.
#![allow(clippy::unnecessary_wraps, clippy::unused_self)]

use std::collections::HashMap;
use std::sync::Arc;

use apple_native_keyring_store::keychain::Store;
use keyring_core::Entry;
use keyring_core::api::CredentialStoreApi;

use crate::secret::Secret;

pub(super) use super::common::{Watch, failure_of, found};
use super::{Failure, Place};

/// Advice on a locked keyring.
pub(super) const UNLOCK: &str = "unlock it: log in, or run `security unlock-keychain`";

/// Advice when there is no keyring.
pub(super) const START: &str = "make a login keychain with Keychain Access";

/// The login keychain.
pub(super) struct Keyring(Arc<Store>);

impl Keyring {
    pub(super) fn open() -> Result<Self, Failure> {
        Ok(Self(Store::new()?))
    }

    /// The store does not tell. A call waits for a prompt until its deadline.
    pub(super) fn prepare_change(&self, _at: &Place, _is_store: bool) -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn get(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        let bytes = found(self.entry(at)?.get_secret())?;
        bytes.map(Secret::from_utf8).transpose().map_err(|_| Failure::NotText)
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        Ok(self.entry(at)?.set_secret(value.expose().as_bytes())?)
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        Ok(found(self.entry(at)?.delete_credential())?.is_some())
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        Ok(found(self.entry(at)?.get_credential())?.is_some())
    }

    /// The user names under `service`, in no order.
    pub(super) fn users(&self, service: &str) -> Result<Vec<String>, Failure> {
        let entries = self.0.search(&HashMap::from([("service", service)]))?;
        Ok(entries.iter().filter_map(Entry::get_specifiers).map(|(_, user)| user).collect())
    }

    fn entry(&self, at: &Place) -> Result<Entry, Failure> {
        Ok(self.0.build(&at.service, &at.user, None)?)
    }
}
