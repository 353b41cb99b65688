//! Windows: generic credentials in the Credential Manager, where Python's `keyring`
//! keeps them. Run under Wine, not yet on Windows.
//!
//! Python stores the latest user at the target `service`, and moves the user who was there to
//! `user@service`. So a value is in the first place if that has the user's name, otherwise in
//! the second. Values are UTF-16LE, at most 1,280 units.
//!
//! The Credential Manager ignores case when it looks for a target, but keeps names as they were
//! written. So what it finds counts only if both its names are exactly those of the credential.

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

/// The size of the largest value: `CRED_MAX_CREDENTIAL_BLOB_SIZE` in wincred.h.
const MAX_BYTES: usize = 5 * 512;

/// The first unit of a text that tells its byte order by it.
const BYTE_ORDER_MARK: u16 = 0xfeff;

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
        let Some(holder) = self.holder(at)? else { return Ok(None) };
        let bytes = found(holder.get_secret())?;
        bytes.map(|bytes| decode(&Zeroizing::new(bytes))).transpose()
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        let bytes = encode(value.expose())?;
        let entry = self.holder(at)?.map_or_else(|| self.free_place(at), Ok)?;
        Ok(entry.set_secret(&bytes)?)
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        let mut existed = false;
        // The place that reads look at first goes last.
        for (target, entry) in self.places(at)?.iter().rev() {
            if is_of(names(entry)?, target, at) {
                existed |= found(entry.delete_credential())?.is_some();
            }
        }
        Ok(existed)
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        Ok(self.holder(at)?.is_some())
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
            let Some((target, user)) = names(&entry)? else { continue };
            if target == service || target == format!("{user}@{service}") {
                users.push(user);
            }
        }
        Ok(users)
    }

    /// The place that has the credential; the first one if both have it.
    fn holder(&self, at: &Place) -> Result<Option<Entry>, Failure> {
        for (target, entry) in self.places(at)? {
            if is_of(names(&entry)?, &target, at) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The place where the credential will be made.
    fn free_place(&self, at: &Place) -> Result<Entry, Failure> {
        let [_, (_, entry)] = self.places(at)?;
        match names(&entry)? {
            None => Ok(entry),
            Some((target, user)) => Err(Failure::Refused(format!(
                "the Credential Manager ignores case, and has {target:?} with the user {user:?} \
                 in this place; delete that first, or choose a name that differs in more than case"
            ))),
        }
    }

    /// The places where the credential may be, each with its target: `service`, then
    /// `user@service`. The second is without a `target` modifier: with one, the store would
    /// make the credential without a user name.
    fn places(&self, at: &Place) -> Result<[(String, Entry); 2], Failure> {
        let Place { service, user } = at;
        let modifiers = HashMap::from([("target", &**service)]);
        let first = self.0.build(service, user, Some(&modifiers))?;
        let second = self.0.build(service, user, None)?;
        Ok([(service.clone(), first), (format!("{user}@{service}"), second)])
    }
}

/// The target and the user name of the entry as they were written, if it exists.
fn names(entry: &Entry) -> Result<Option<(String, String)>, Failure> {
    let Some(mut attributes) = found(entry.get_attributes())? else { return Ok(None) };
    let mut attribute = |name| attributes.remove(name).unwrap_or_default();
    Ok(Some((attribute("target_name"), attribute("username"))))
}

/// Whether the names that were found at `target` are those of the credential.
fn is_of(names: Option<(String, String)>, target: &str, at: &Place) -> bool {
    names.is_some_and(|(found, user)| found == target && user == at.user)
}

/// UTF-16LE. Readers take a leading U+FEFF or U+FFFE for a byte order mark, so text that begins
/// with one gets a mark before it.
fn encode(text: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mark = text.starts_with(['\u{feff}', '\u{fffe}']).then_some(BYTE_ORDER_MARK);
    // There are never more units than bytes of UTF-8, so the buffer is never moved.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 + 2 * text.len()));
    for unit in mark.into_iter().chain(text.encode_utf16()) {
        bytes.extend(unit.to_le_bytes());
    }
    if bytes.len() > MAX_BYTES {
        let most = MAX_BYTES / 2;
        return Err(Failure::Refused(format!(
            "the Credential Manager takes values of at most {most} UTF-16 units; shorten it, or \
             use another backend"
        )));
    }
    Ok(bytes)
}

/// UTF-16 by its byte order mark or else little-endian, or else UTF-8, as Python's `keyring`
/// decodes it.
fn decode(bytes: &[u8]) -> Result<Secret, Failure> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    if rest.is_empty() {
        let mut units: Zeroizing<Vec<u16>> =
            Zeroizing::new(pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect());
        if units.first() == Some(&BYTE_ORDER_MARK.swap_bytes()) {
            units.iter_mut().for_each(|unit| *unit = unit.swap_bytes());
        }
        let text = units.strip_prefix(&[BYTE_ORDER_MARK]).unwrap_or(&units);
        if let Ok(text) = String::from_utf16(text) {
            return Ok(Secret::new(text));
        }
    }
    Secret::from_utf8(bytes.to_vec()).map_err(|_| Failure::NotText)
}
