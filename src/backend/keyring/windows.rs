//! Windows: generic credentials in the Credential Manager, where Python's `keyring`
//! keeps them. Written to the store's interface; not yet run on Windows.
//!
//! Python puts the user who was stored last at the target `service`, and moves the one who
//! was there to `user@service`. So a value is in the first place if that bears the user's
//! name, else in the second. Values are UTF-16LE, at most 1,280 units.

// The shape is what Linux needs, where more can fail.
#![allow(clippy::unused_self, clippy::unnecessary_wraps)]

use std::collections::HashMap;
use std::sync::Arc;

use keyring_core::api::CredentialStoreApi;
use keyring_core::{Entry, Error};
use windows_native_keyring_store::Store;
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::{Failure, Place};

/// What to do about a locked keyring.
pub(super) const UNLOCK: &str = "log in to Windows with the account that owns it";

/// What to do when there is no keyring.
pub(super) const START: &str = "run in a logon session that has a Credential Manager";

/// The Credential Manager. The store makes `user@service` of the two by itself.
#[derive(Debug)]
pub(super) struct Keyring(Arc<Store>);

impl Keyring {
    pub(super) fn open() -> Result<Self, Failure> {
        Store::new_with_configuration(&HashMap::from([("divider", "@")])).map(Self).map_err(failure)
    }

    /// The Credential Manager asks nobody.
    pub(super) fn write_would_prompt(&self, _at: &Place) -> Result<bool, Failure> {
        Ok(false)
    }

    pub(super) fn get(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        match self.holder(at)?.get_secret() {
            Ok(bytes) => decode(&Zeroizing::new(bytes)).map(Some),
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(failure(error)),
        }
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        self.holder(at)?.set_password(value.expose()).map_err(failure)
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        let mut existed = false;
        // The place that reads look at first goes last.
        for entry in [Some(self.second_place(at)?), self.first_place(at)?].into_iter().flatten() {
            match entry.delete_credential() {
                Ok(()) => existed = true,
                Err(Error::NoEntry) => {}
                Err(error) => return Err(failure(error)),
            }
        }
        Ok(existed)
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        match self.holder(at)?.get_attributes() {
            Ok(_) => Ok(true),
            Err(Error::NoEntry) => Ok(false),
            Err(error) => Err(failure(error)),
        }
    }

    /// The user names under `service`, in no order, with repeats where both places are
    /// taken by one.
    pub(super) fn users(&self, service: &str) -> Result<Vec<String>, Failure> {
        // The store matches targets by regular expression; a namespace has no other
        // characters that mean something in one.
        let literal = service.replace('.', "[.]").replace('+', "[+]");
        let pattern = format!("^(.*@)?{literal}$");
        let entries = self.0.search(&HashMap::from([("pattern", &*pattern)])).map_err(failure)?;
        let mut users = Vec::with_capacity(entries.len());
        for entry in entries {
            let attributes = match entry.get_attributes() {
                Ok(attributes) => attributes,
                Err(Error::NoEntry) => continue,
                Err(error) => return Err(failure(error)),
            };
            let attribute = |name| attributes.get(name).map_or("", String::as_str);
            let (target, user) = (attribute("target_name"), attribute("username"));
            if target == service || target == second_target(service, user) {
                users.push(user.to_owned());
            }
        }
        Ok(users)
    }

    /// Where the credential is, or is to be made.
    fn holder(&self, at: &Place) -> Result<Entry, Failure> {
        match self.first_place(at)? {
            Some(entry) => Ok(entry),
            None => self.second_place(at),
        }
    }

    /// The target `service`, if it is this user's.
    fn first_place(&self, at: &Place) -> Result<Option<Entry>, Failure> {
        let modifiers = HashMap::from([("target", &*at.service)]);
        let entry = self.0.build(&at.service, &at.user, Some(&modifiers)).map_err(failure)?;
        match entry.get_attributes() {
            Ok(attributes) if attributes.get("username") == Some(&at.user) => Ok(Some(entry)),
            Ok(_) | Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(failure(error)),
        }
    }

    /// The target `user@service`. No `target` modifier: with one, the store would make
    /// the credential without a user name.
    fn second_place(&self, at: &Place) -> Result<Entry, Failure> {
        self.0.build(&at.service, &at.user, None).map_err(failure)
    }
}

fn second_target(service: &str, user: &str) -> String {
    format!("{user}@{service}")
}

/// UTF-16LE, or else UTF-8, as Python's `keyring` decodes it.
fn decode(bytes: &[u8]) -> Result<Secret, Failure> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if rest.is_empty() {
        let units: Zeroizing<Vec<u16>> =
            Zeroizing::new(pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect());
        if let Ok(text) = String::from_utf16(&units) {
            return Ok(Secret::new(text));
        }
    }
    Secret::from_utf8(bytes.to_vec()).map_err(|_| Failure::NotText)
}

/// There is nothing to wait for that could be watched.
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
