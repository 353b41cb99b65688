//! Linux: the Secret Service on the session bus (gnome-keyring and its like).
//!
//! Items are Python's: the attributes that its `keyring` package writes, and its label, so
//! that either side finds, replaces and deletes what the other wrote.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use dbus_secret_service::{EncryptionType, Error as ServiceError, Item, Path, SecretService};
use dbus_secret_service_keyring_store::{Store, cred::Wrapper};
use keyring_core::api::CredentialStoreApi;
use keyring_core::{Entry, Error};

use crate::secret::Secret;

use super::{Failure, Place};

/// What to do about a locked keyring.
pub(super) const UNLOCK: &str = "unlock it: log in to the desktop session, or give its password \
     to the standard input of `gnome-keyring-daemon --replace --unlock`";

/// What to do when there is no keyring.
pub(super) const START: &str = "start a Secret Service (gnome-keyring, KWallet, KeePassXC) on \
     the session bus that DBUS_SESSION_BUS_ADDRESS names";

/// The attribute that Python's `keyring` adds to what identifies an item. It looks for an
/// item to replace by all three, so an item without it would get a second one beside it.
const APPLICATION: (&str, &str) = ("application", "Python keyring library");

/// One connection for values, which may prompt, and one beside it, which never does.
#[derive(Debug)]
pub(super) struct Keyring {
    store: Arc<Store>,
    watch: Watch,
}

impl Keyring {
    pub(super) fn open() -> Result<Self, Failure> {
        let watch = Watch::open()?;
        match Store::new() {
            Ok(store) => Ok(Self { store, watch }),
            Err(Error::PlatformFailure(error)) => Err(Failure::Absent(error.to_string())),
            Err(error) => Err(failure(error)),
        }
    }

    /// Whether storing or deleting would make the keyring ask the user.
    pub(super) fn write_would_prompt(&self, at: &Place) -> Result<bool, Failure> {
        let attributes = HashMap::from([("service", &*at.service), ("username", &*at.user)]);
        let found = self.watch.0.search_items(attributes).map_err(|e| service_failure(&e))?;
        if !found.locked.is_empty() {
            return Ok(true);
        }
        // With no item yet, one is made in the default collection.
        Ok(found.unlocked.is_empty() && self.watch.locked()?)
    }

    pub(super) fn get(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        let bytes = match self.entry(at)?.get_secret() {
            Ok(bytes) => bytes,
            Err(Error::NoEntry) => return self.nothing_there().map(|()| None),
            Err(Error::Ambiguous(entries)) => {
                let (newest, _) = self.newest_and_others(entries)?;
                newest.get_secret().map_err(failure)?
            }
            Err(error) => return Err(failure(error)),
        };
        Secret::from_utf8(bytes).map(Some).map_err(|_| Failure::NotText)
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        let entry = self.entry(at)?;
        let entry = match entry.set_secret(value.expose().as_bytes()) {
            Ok(()) => entry,
            Err(Error::Ambiguous(entries)) => {
                // The others go first: all the while, the newest is what a read finds.
                let (newest, others) = self.newest_and_others(entries)?;
                for other in others {
                    other.delete_credential().map_err(failure)?;
                }
                newest.set_secret(value.expose().as_bytes()).map_err(failure)?;
                newest
            }
            Err(error) => return Err(failure(error)),
        };
        match make_findable_by_python(&entry) {
            // Another item has come beside it meanwhile: once more, from the start.
            Err(Error::Ambiguous(_)) => Err(Failure::Lost("a second item appeared".to_owned())),
            Err(error) => match failure(error) {
                // The value is stored; what is missing can be added by a later store.
                Failure::Refused(reason) => {
                    log::warn!(
                        "keyring: {} / {} has no {:?} attribute ({reason}); Python's keyring \
                         package would store it a second time",
                        at.service,
                        at.user,
                        APPLICATION.0
                    );
                    Ok(())
                }
                other => Err(other),
            },
            Ok(()) => Ok(()),
        }
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        match self.entry(at)?.delete_credential() {
            Ok(()) => Ok(true),
            Err(Error::NoEntry) => self.nothing_there().map(|()| false),
            Err(Error::Ambiguous(entries)) => {
                // The newest goes last: if one cannot be deleted, reads are as they were.
                let (newest, others) = self.newest_and_others(entries)?;
                for entry in others.into_iter().chain([newest]) {
                    entry.delete_credential().map_err(failure)?;
                }
                Ok(true)
            }
            Err(error) => Err(failure(error)),
        }
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        match self.entry(at)?.get_credential() {
            Ok(_) | Err(Error::Ambiguous(_)) => Ok(true),
            Err(Error::NoEntry) => self.nothing_there().map(|()| false),
            Err(error) => Err(failure(error)),
        }
    }

    /// The user names under `service`, in no order, with repeats where items are doubled.
    pub(super) fn users(&self, service: &str) -> Result<Vec<String>, Failure> {
        let entries = self.store.search(&HashMap::from([("service", service)])).map_err(failure)?;
        if entries.is_empty() {
            self.nothing_there()?;
        }
        let mut users = Vec::with_capacity(entries.len());
        for entry in entries {
            users.extend(entry.get_attributes().map_err(failure)?.remove("username"));
        }
        Ok(users)
    }

    fn entry(&self, at: &Place) -> Result<Entry, Failure> {
        let label = format!("Password for '{}' on '{}'", at.user, at.service);
        let modifiers = HashMap::from([("label", &*label)]);
        self.store.build(&at.service, &at.user, Some(&modifiers)).map_err(failure)
    }

    /// A service whose collection is locked may find nothing because it cannot look.
    fn nothing_there(&self) -> Result<(), Failure> {
        if self.watch.locked()? { Err(Failure::Locked) } else { Ok(()) }
    }

    /// Parts the items of one credential into the one that was written last, and the rest.
    fn newest_and_others(&self, entries: Vec<Entry>) -> Result<(Entry, Vec<Entry>), Failure> {
        let mut by_age = Vec::with_capacity(entries.len());
        for entry in entries {
            by_age.push((self.watch.age_order(&entry)?, entry));
        }
        by_age.sort_by_key(|(age, _)| Reverse(*age));
        let mut entries = by_age.into_iter().map(|(_, entry)| entry);
        let newest = entries
            .next()
            .ok_or_else(|| Failure::Refused("it named no item of several".to_owned()))?;
        Ok((newest, entries.collect()))
    }
}

/// Adds the attribute by which Python's `keyring` recognises the item as its own.
///
/// Done at every store and not just when an item is made: a crash between the two calls
/// then leaves nothing that the next store does not put right.
fn make_findable_by_python(entry: &Entry) -> Result<(), Error> {
    let (name, value) = APPLICATION;
    if entry.get_attributes()?.get(name).is_some_and(|present| present == value) {
        return Ok(());
    }
    entry.update_attributes(&HashMap::from([APPLICATION]))
}

/// A connection on which only questions are asked that no prompt can come of.
pub(super) struct Watch(SecretService);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch {
    pub(super) fn open() -> Result<Self, Failure> {
        // No secret travels here, so there is nothing to encrypt.
        SecretService::connect(EncryptionType::Plain)
            .map(Self)
            .map_err(|error| Failure::Absent(error.to_string()))
    }

    /// Whether the default collection is locked; without one there is nothing to lock.
    pub(super) fn locked(&self) -> Result<bool, Failure> {
        match self.0.get_default_collection().and_then(|collection| collection.is_locked()) {
            Ok(locked) => Ok(locked),
            Err(ServiceError::NoResult) => Ok(false),
            Err(error) => Err(service_failure(&error)),
        }
    }

    /// Orders the items of one credential by when they were written: seconds of the last
    /// change and of the making, and within a second the number that ends the path.
    fn age_order(&self, entry: &Entry) -> Result<(u64, u64, u64), Failure> {
        let path = entry
            .as_any()
            .downcast_ref::<Wrapper>()
            .map(Wrapper::get_path)
            .ok_or_else(|| Failure::Refused("an item has no path".to_owned()))?;
        let number = path.rsplit('/').next().and_then(|tail| tail.parse().ok()).unwrap_or(0);
        let path = Path::new(path).map_err(Failure::Refused)?;
        let item = Item::new(&self.0, path);
        let modified = item.get_modified().map_err(|e| service_failure(&e))?;
        let created = item.get_created().map_err(|e| service_failure(&e))?;
        Ok((modified, created, number))
    }
}

/// What an error of the store means. Never shows data that an error may carry.
fn failure(error: Error) -> Failure {
    match error {
        Error::PlatformFailure(cause) | Error::NoStorageAccess(cause) => {
            match cause.downcast_ref::<ServiceError>() {
                Some(cause) => service_failure(cause),
                None => Failure::Refused(cause.to_string()),
            }
        }
        // What was found has gone again before it could be used.
        Error::NoEntry => Failure::Lost("an item vanished".to_owned()),
        other => Failure::of(&other),
    }
}

fn service_failure(error: &ServiceError) -> Failure {
    match error {
        ServiceError::Locked | ServiceError::Prompt => Failure::Locked,
        ServiceError::NoResult => Failure::Absent("there is no default collection".to_owned()),
        ServiceError::Unavailable => Failure::Absent(error.to_string()),
        // The key of a session that the service has forgotten.
        ServiceError::Crypto(_) => Failure::Lost("a value could not be decrypted".to_owned()),
        ServiceError::Dbus(cause) => {
            let name = cause.name().unwrap_or_default();
            let text = format!("{name}: {}", cause.message().unwrap_or_default());
            match name.rsplit('.').next().unwrap_or_default() {
                "IsLocked" => Failure::Locked,
                "NoSession" | "NoSuchObject" | "UnknownObject" | "UnknownMethod"
                | "UnknownInterface" | "NoReply" | "Disconnected" | "ServiceUnknown"
                | "NameHasNoOwner" | "NoServer" | "Timeout" | "TimedOut" => Failure::Lost(text),
                _ if name.contains(".Spawn.") => Failure::Lost(text),
                _ => Failure::Refused(text),
            }
        }
        other => Failure::Refused(other.to_string()),
    }
}
