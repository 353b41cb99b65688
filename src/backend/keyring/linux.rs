//! Linux: the Secret Service on the session bus (gnome-keyring and its like).
//!
//! Items have the attributes and the label that Python's `keyring` package writes, so either
//! side finds, replaces and deletes what the other wrote.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use dbus_secret_service::{EncryptionType, Error as ServiceError, Item, Path, SecretService};
use dbus_secret_service_keyring_store::{Store, cred::Wrapper};
use keyring_core::api::CredentialStoreApi;
use keyring_core::error::PlatformError;
use keyring_core::{Entry, Error};

use crate::secret::Secret;

use super::{Failure, Place};

/// Advice on a locked keyring.
pub(super) const UNLOCK: &str = "unlock it: log in to the desktop session, or give its password \
     to the standard input of `gnome-keyring-daemon --replace --unlock`";

/// Advice when there is no keyring.
pub(super) const START: &str = "start a Secret Service (gnome-keyring, KWallet, KeePassXC) on \
     the session bus that DBUS_SESSION_BUS_ADDRESS names; or keep the values encrypted in the \
     vault's own database: `credential-vault serve --backend sealed`";

/// The attribute that Python's `keyring` adds to `service` and `username`. It searches for the
/// item to replace by all three, so beside an item without it, it would make a second one.
const APPLICATION: (&str, &str) = ("application", "Python keyring library");

/// The store, whose calls may prompt, and a connection beside it that never does.
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
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a store, or a delete, of the item possible without a prompt.
    pub(super) fn prepare_change(&self, at: &Place, is_store: bool) -> Result<(), Failure> {
        let found = self.watch.0.search_items(attributes(at))?;
        if !found.locked.is_empty() {
            let locked: Vec<&Item<'_>> = found.locked.iter().collect();
            self.watch.0.unlock_all(&locked)?;
        } else if found.unlocked.is_empty() && (is_store || self.watch.locked()?) {
            self.unlock()?;
        }
        Ok(())
    }

    /// Unlocks the default collection, and makes one if there is none, as Python's `keyring`
    /// does. Waits until the prompt is answered; that of `KWallet` completes by itself if the
    /// wallet is open.
    fn unlock(&self) -> Result<(), Failure> {
        let service = &self.watch.0;
        let collection = match service.get_default_collection() {
            Err(ServiceError::NoResult) => service.create_collection("Default", "default"),
            found => found,
        }?;
        collection.ensure_unlocked()?;
        if collection.is_locked()? { Err(Failure::Locked) } else { Ok(()) }
    }

    /// Repeats a search that has found nothing, if the collection was locked: a locked one may
    /// not be searched.
    fn unlocked<T>(
        &self,
        search: impl Fn() -> Result<T, Failure>,
        is_empty: impl Fn(&T) -> bool,
    ) -> Result<T, Failure> {
        let found = search()?;
        if !is_empty(&found) || !self.watch.locked()? {
            return Ok(found);
        }
        self.unlock()?;
        search()
    }

    pub(super) fn get(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        self.unlocked(|| self.find(at), Option::is_none)
    }

    fn find(&self, at: &Place) -> Result<Option<Secret>, Failure> {
        let bytes = match self.entry(at)?.get_secret() {
            Ok(bytes) => bytes,
            Err(Error::NoEntry) => return Ok(None),
            Err(Error::Ambiguous(items)) => match self.newest_first(items)?.first() {
                Some(newest) => newest.get_secret()?,
                None => return Ok(None),
            },
            Err(error) => return Err(error.into()),
        };
        Secret::from_utf8(bytes).map(Some).map_err(|_| Failure::NotText)
    }

    pub(super) fn set(&self, at: &Place, value: &Secret) -> Result<(), Failure> {
        let mut items = self.newest_first(self.search(at)?)?.into_iter();
        let item = items.next().map_or_else(|| self.entry(at), Ok)?;
        // Until the newest item has the new value, a read finds its old one.
        for older in items {
            older.delete_credential()?;
        }
        item.set_secret(value.expose().as_bytes())?;
        match self.make_findable_by_python(&item, at) {
            // The value is stored. A later store can add the attribute.
            Err(Failure::Refused(reason)) => {
                let (Place { service, user }, (name, _)) = (at, APPLICATION);
                log::warn!(
                    "keyring: {service} / {user} has no {name:?} attribute ({reason}); Python's \
                     keyring package would store it a second time"
                );
                Ok(())
            }
            result => result,
        }
    }

    /// Adds the attribute by which Python's `keyring` recognises the item as its own.
    ///
    /// This is done at every store, not only when an item is made, so the next store repairs what
    /// a crash between the two calls leaves.
    fn make_findable_by_python(&self, item: &Entry, at: &Place) -> Result<(), Failure> {
        let (name, value) = APPLICATION;
        if item.get_attributes()?.get(name).is_some_and(|present| present == value) {
            return Ok(());
        }
        match item.update_attributes(&HashMap::from([APPLICATION])).map_err(Failure::from) {
            // KeePassXC takes no attributes beside these, not even those that it gave us.
            Err(Failure::Refused(_)) => {
                let mut all = attributes(at);
                let found = self.watch.0.search_items(all.clone())?.unlocked;
                all.extend([APPLICATION]);
                Ok(found.iter().try_for_each(|item| item.set_attributes(all.clone()))?)
            }
            updated => updated,
        }
    }

    pub(super) fn delete(&self, at: &Place) -> Result<bool, Failure> {
        let items = self.newest_first(self.search(at)?)?;
        // The newest goes last: if one cannot be deleted, reads still find the same value.
        for item in items.iter().rev() {
            item.delete_credential()?;
        }
        Ok(!items.is_empty())
    }

    pub(super) fn has(&self, at: &Place) -> Result<bool, Failure> {
        Ok(!self.unlocked(|| self.search(at), Vec::is_empty)?.is_empty())
    }

    /// The user names under `service`, unsorted; twice if there are two items.
    pub(super) fn users(&self, service: &str) -> Result<Vec<String>, Failure> {
        let search = || Ok(self.store.search(&HashMap::from([("service", service)]))?);
        let items = self.unlocked(search, Vec::is_empty)?;
        let mut users = Vec::with_capacity(items.len());
        for item in items {
            users.extend(item.get_attributes()?.remove("username"));
        }
        Ok(users)
    }

    /// The credential's item, which the entry searches for at each call, or will make.
    fn entry(&self, at: &Place) -> Result<Entry, Failure> {
        let label = format!("Password for '{}' on '{}'", at.user, at.service);
        let modifiers = HashMap::from([("label", &*label)]);
        Ok(self.store.build(&at.service, &at.user, Some(&modifiers))?)
    }

    /// The credential's items: mostly one, but two if Python made one beside ours.
    fn search(&self, at: &Place) -> Result<Vec<Entry>, Failure> {
        Ok(self.store.search(&attributes(at))?)
    }

    /// Sorts the items of one credential; the one that was written last comes first.
    fn newest_first(&self, items: Vec<Entry>) -> Result<Vec<Entry>, Failure> {
        if items.len() < 2 {
            return Ok(items);
        }
        let mut by_age = Vec::with_capacity(items.len());
        for item in items {
            by_age.push((self.watch.age_order(&item)?, item));
        }
        by_age.sort_by_key(|(age, _)| Reverse(*age));
        Ok(by_age.into_iter().map(|(_, item)| item).collect())
    }
}

/// The attributes that identify the items of a credential.
fn attributes(at: &Place) -> HashMap<&str, &str> {
    HashMap::from([("service", &*at.service), ("username", &*at.user)])
}

/// A connection for questions that never open a prompt.
pub(super) struct Watch(SecretService);

impl Watch {
    pub(super) fn open() -> Result<Self, Failure> {
        // No secret travels here, so nothing must be encrypted.
        SecretService::connect(EncryptionType::Plain)
            .map(Self)
            .map_err(|error| Failure::Absent(error.to_string()))
    }

    /// Whether the default collection is locked; without one there is nothing to lock.
    pub(super) fn locked(&self) -> Result<bool, Failure> {
        match self.0.get_default_collection().and_then(|collection| collection.is_locked()) {
            Ok(locked) => Ok(locked),
            Err(ServiceError::NoResult) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The age of an item: the second of the last change, the second in which it was made, and
    /// within a second the number at the end of its path.
    fn age_order(&self, item: &Entry) -> Result<(u64, u64, u64), Failure> {
        let path = item.as_any().downcast_ref::<Wrapper>().map(Wrapper::get_path);
        let path = path.ok_or_else(|| Failure::Refused("an item has no path".to_owned()))?;
        let item = Item::new(&self.0, Path::new(path).map_err(Failure::Refused)?);
        let number = item.path.rsplit('/').next().and_then(|tail| tail.parse().ok()).unwrap_or(0);
        Ok((item.get_modified()?, item.get_created()?, number))
    }
}

/// The meaning of an error's cause, if it comes from the Secret Service, else `other` of it.
pub(super) fn failure_of(cause: PlatformError, other: fn(String) -> Failure) -> Failure {
    match cause.downcast::<ServiceError>() {
        Ok(error) => (*error).into(),
        Err(cause) => other(cause.to_string()),
    }
}

impl From<ServiceError> for Failure {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Locked | ServiceError::Prompt => Failure::Locked,
            ServiceError::NoResult => Failure::Absent("there is no default collection".to_owned()),
            ServiceError::Unavailable => Failure::Absent(error.to_string()),
            // The service has forgotten the session, and with it the key.
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
}
