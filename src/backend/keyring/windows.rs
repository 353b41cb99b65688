//! Windows: generic credentials in the Credential Manager, where Python's `keyring`
//! keeps them. Written against the store's interface; not yet run on Windows.
//!
//! Python stores the latest user at the target `service`, and moves the user who was there to
//! `user@service`. So a value is in the first place if that has the user's name, otherwise in
//! the second. Values are UTF-16LE, at most 1,280 units.

// The signatures are those that Linux needs, where more can fail.
#![allow(clippy::unnecessary_wraps, clippy::unused_self)]

use std::collections::HashMap;
use std::sync::Arc;

use keyring_core::Entry;
use keyring_core::api::CredentialStoreApi;
use windows_native_keyring_store::Store;
use zeroize::Zeroizing;

use crate::secret::Secret;

pub(super) use super::common::{Watch, failure_of, found};
use super::{Failure, Place};

/// Advice on a locked keyring.
pub(super) const UNLOCK: &str = "log in to Windows with the account that owns it";

/// Advice when there is no keyring.
pub(super) const START: &str = "run in a logon session that has a Credential Manager";

/// The Credential Manager. The store makes `user@service` of the two by itself.
pub(super) struct Keyring(Arc<Store>);

impl Keyring {
    pub(super) fn open() -> Result<Self, Failure> {
        Ok(Self(Store::new_with_configuration(&HashMap::from([("divider", "@")]))?))
    }

    /// The Credential Manager never prompts.
    pub(super) fn prepare_change(&self, _at: &Place, _is_store: bool) -> Result<(), Failure> {
        Ok(())
    }

    pub(super) fn get(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        let bytes = found(self.holder(at)?.get_secret())?;
        bytes.map(|bytes| decode(&Zeroizing::new(bytes))).transpose()
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        Ok(self.holder(at)?.set_password(value.expose())?)
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        let mut existed = false;
        // The place that reads look at first goes last.
        for entry in [Some(self.second_place(at)?), self.first_place(at)?].into_iter().flatten() {
            existed |= found(entry.delete_credential())?.is_some();
        }
        Ok(existed)
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        Ok(found(self.holder(at)?.get_attributes())?.is_some())
    }

    /// The user names under `service`, unsorted; twice if one user has both places.
    pub(super) fn users(&self, service: &str) -> Result<Vec<String>, Failure> {
        // The store matches targets by regular expression. A namespace has no other characters
        // with a meaning there.
        let literal = service.replace('.', "[.]").replace('+', "[+]");
        let pattern = format!("^(.*@)?{literal}$");
        let entries = self.0.search(&HashMap::from([("pattern", &*pattern)]))?;
        let mut users = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(attributes) = found(entry.get_attributes())? else { continue };
            let attribute = |name| attributes.get(name).map_or("", String::as_str);
            let (target, user) = (attribute("target_name"), attribute("username"));
            if target == service || target == format!("{user}@{service}") {
                users.push(user.to_owned());
            }
        }
        Ok(users)
    }

    /// The place where the credential is, or will be made.
    fn holder(&self, at: &Place) -> Result<Entry, Failure> {
        self.first_place(at)?.map_or_else(|| self.second_place(at), Ok)
    }

    /// The target `service`, if this user has it.
    fn first_place(&self, at: &Place) -> Result<Option<Entry>, Failure> {
        let modifiers = HashMap::from([("target", &*at.service)]);
        let entry = self.0.build(&at.service, &at.user, Some(&modifiers))?;
        let attributes = found(entry.get_attributes())?;
        let is_ours = attributes.is_some_and(|found| found.get("username") == Some(&at.user));
        Ok(is_ours.then_some(entry))
    }

    /// The target `user@service`. No `target` modifier: with one, the store would make
    /// the credential without a user name.
    fn second_place(&self, at: &Place) -> Result<Entry, Failure> {
        Ok(self.0.build(&at.service, &at.user, None)?)
    }
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
