//! The `sealed` backend: values in the metadata database, encrypted.

use std::path::{self, Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::error::VaultError;
use crate::metadata::{DATABASE, MetadataError, MetadataStore, Snapshot};
use crate::model::{CredentialRecord, CredentialRef, Namespace};
use crate::ownership;
use crate::seal::{Key, KeyHeader, KeySource, SealError};
use crate::secret::{Secret, WatchedSecret};
use crate::sync::lock;

use super::registry::invalid;
use super::{BackendOptions, CredentialVault, InDatabase};

/// The name of the key file that is made beside the data directory.
pub const KEY_FILE: &str = "vault.key";

/// The variable with the directory in which systemd passes credentials to a unit
/// (systemd.exec(5)).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Keeps values in a table of the metadata database, each encrypted with its name and that of the
/// store, so that rows cannot be swapped or carried to another store.
///
/// The key is the one in [`BackendOptions::key_file`], else `$CREDENTIALS_DIRECTORY/vault-key`,
/// else [`BackendOptions::passphrase`], else the file `vault.key` beside the data directory. A
/// new store without any of them makes that file.
#[derive(Debug)]
pub struct SealedVault {
    options: BackendOptions,
    database: PathBuf,
    usual_key_file: PathBuf,
    /// What [`check`](CredentialVault::check) has found, for the first call: a passphrase takes
    /// seconds.
    checked: Mutex<Option<(KeyHeader, Key)>>,
    open: Mutex<Option<Arc<Open>>>,
}

#[derive(Debug)]
struct Open {
    store: Arc<MetadataStore>,
    header: KeyHeader,
    key: Key,
    /// Keeps the key file or the passphrase out of the log.
    _watched: Option<WatchedSecret>,
}

impl SealedVault {
    /// A vault in the database of [`BackendOptions::data_dir`], which the first call opens.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`] without a data directory.
    pub fn from_options(options: &BackendOptions) -> Result<Self, VaultError> {
        let options = options.clone();
        let Some(data_dir) = &options.data_dir else {
            return Err(invalid("sealed needs a data directory".to_owned()));
        };
        let data_dir = path::absolute(data_dir).map_err(|error| invalid(error.to_string()))?;
        // Not in the data directory, so that a copy of that does not have it.
        let usual_key_file = ownership::parent(&data_dir).join(KEY_FILE);
        let database = data_dir.join(DATABASE);
        let (checked, open) = <_>::default();
        Ok(Self { options, database, usual_key_file, checked, open })
    }

    /// The key header and the number of values, if there is a sealed store. Only reads.
    ///
    /// # Errors
    ///
    /// [`VaultError::Metadata`]; [`VaultError::ValidationFailed`] for a damaged header.
    pub fn status_of_seal(&self) -> Result<Option<(KeyHeader, u64)>, VaultError> {
        if !self.database.exists() {
            return Ok(None);
        }
        parsed(Snapshot::open(&self.database)?.seal()?)
    }

    /// Encrypts all values with a new data key, which the same key file or passphrase opens.
    /// Returns how many.
    ///
    /// # Errors
    ///
    /// Those of [`InDatabase::database`], and one that names a value which cannot be read; nothing
    /// has changed.
    pub fn rekey(&self) -> Result<u64, VaultError> {
        let (open, new_key) = (self.open()?, Key::random().map_err(unusable)?);
        let header = open.header.rewrap(&self.needed_source(&open.header)?, &new_key);
        let reseal = |at: &CredentialRef, blob: &[u8]| {
            let context = open.context(at);
            let value = open.key.open(blob, &context);
            value.and_then(|value| new_key.seal(&value, &context)).map_err(|error| {
                MetadataError::Failed(format!("{at} cannot be read: {error}; delete it first"))
            })
        };
        open.store.set_seal(&header.map_err(unusable)?.to_json(), Some(&reseal))?;
        Ok(open.store.seal()?.1)
    }

    /// Lets another key open the values, instead of the present one.
    ///
    /// # Errors
    ///
    /// Those of [`InDatabase::database`], and of a key that cannot be used; nothing has changed.
    pub fn rewrap(&self, source: &KeySource) -> Result<(), VaultError> {
        let open = self.open()?;
        let header = open.header.rewrap(source, &open.key).map_err(unusable)?;
        Ok(open.store.set_seal(&header.to_json(), None)?)
    }

    /// The key that was given, or is in its usual place.
    fn source(&self) -> Option<KeySource> {
        if let Some(path) = &self.options.key_file {
            return Some(KeySource::File(path.clone()));
        }
        let unit = self.options.environment.setting(CREDENTIALS_VARIABLE).map(Path::new);
        let given = unit
            .and_then(KeySource::of_unit)
            .or_else(|| Some(KeySource::Passphrase(self.options.passphrase.as_ref()?.duplicate())));
        let path = &self.usual_key_file;
        given.or_else(|| path.symlink_metadata().ok().map(|_| KeySource::File(path.clone())))
    }

    fn needed_source(&self, header: &KeyHeader) -> Result<KeySource, VaultError> {
        self.source().ok_or_else(|| {
            invalid(if header.needs_passphrase() {
                "a passphrase opens the values; give --passphrase-fd N, or start it on a terminal"
                    .to_owned()
            } else {
                format!(
                    "the key file of the values is missing: restore {}, or give --key-file FILE; \
                     no other key opens them",
                    self.usual_key_file.display()
                )
            })
        })
    }

    fn make_key_file(&self) -> Result<KeySource, VaultError> {
        let source = KeySource::create_file(&self.usual_key_file)
            .map_err(|error| invalid(format!("{error}; give --key-file FILE")))?;
        log::warn!(
            "made {source}. It protects a copy or a backup of the data directory alone, and not \
             from those who can read the files of this user. Keep a copy of it in another place: \
             without it, nobody can read the values"
        );
        Ok(source)
    }

    fn watch(&self, source: &KeySource) -> Result<Option<WatchedSecret>, VaultError> {
        let Some(watch) = &self.options.secret_watch else { return Ok(None) };
        let mut bytes = source.read().map_err(unusable)?;
        // The log is text: another key cannot be in it.
        let secret = Secret::from_utf8(std::mem::take(&mut *bytes)).ok();
        Ok(secret.map(|secret| watch.tell(&secret)))
    }

    /// The open database and its key. The first call opens it, or makes the store.
    fn open(&self) -> Result<Arc<Open>, VaultError> {
        let mut open = lock(&self.open);
        if let Some(open) = &*open {
            return Ok(Arc::clone(open));
        }
        let read_only = self.options.read_only;
        let open_store =
            if read_only { MetadataStore::open_read_only } else { MetadataStore::open };
        let store = Arc::new(open_store(&self.database)?);
        // Nobody else changes the header from here on.
        let (header, key, source) = if let Some((header, _)) = parsed(store.seal()?)? {
            let source = self.needed_source(&header)?;
            let checked = lock(&self.checked).take_if(|(checked, _)| *checked == header);
            let key = checked.map_or_else(|| header.data_key(&source), |(_, key)| Ok(key));
            let key = key.map_err(unusable)?;
            (header, key, source)
        } else if read_only {
            return Err(invalid("there is no sealed store yet; `seal init` makes one".to_owned()));
        } else {
            let source = self.source().map_or_else(|| self.make_key_file(), Ok)?;
            let (header, key) = KeyHeader::new(&source).map_err(unusable)?;
            store.set_seal(&header.to_json(), None)?;
            (header, key, source)
        };
        let watched = self.watch(&source)?;
        Ok(Arc::clone(open.insert(Arc::new(Open { store, header, key, _watched: watched }))))
    }
}

impl Open {
    fn context<'a>(&'a self, at: &'a CredentialRef) -> [&'a str; 4] {
        ["value", self.header.id(), at.namespace().as_str(), at.key()]
    }
}

/// The key header and the number of values that the database has.
fn parsed((header, values): (Option<String>, u64)) -> Result<Option<(KeyHeader, u64)>, VaultError> {
    const DAMAGED: &str = "the key header in the database is damaged; restore a backup";
    match header.map(|json| serde_json::from_str(&json)) {
        Some(Ok(header)) => Ok(Some((header, values))),
        None if values == 0 => Ok(None),
        _ => Err(invalid(DAMAGED.to_owned())),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "`map_err` calls it")]
fn unusable(error: SealError) -> VaultError {
    invalid(error.to_string())
}

impl CredentialVault for SealedVault {
    fn name(&self) -> &'static str {
        "SealedVault"
    }

    fn may_block(&self) -> bool {
        false
    }

    fn get(&self, at: &CredentialRef) -> Result<Option<Secret>, VaultError> {
        let open = self.open()?;
        let Some(blob) = open.store.blob(at)? else { return Ok(None) };
        let failed = |reason| VaultError::ReadFailed { at: at.clone(), reason };
        let mut value = open
            .key
            .open(&blob, &open.context(at))
            .map_err(|error| failed(format!("{error}; store it again, or delete it")))?;
        let value = Secret::from_utf8(std::mem::take(&mut *value));
        value.map(Some).map_err(|error| failed(error.to_string()))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        self.put(at, self.database()?.find(at)?, Some(value))
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let existed = self.has(at)?;
        self.put(at, self.database()?.find(at)?, None)?;
        Ok(existed)
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        Ok(self.open()?.store.blob(at)?.is_some())
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        Ok(self.open()?.store.sealed_keys(namespace)?)
    }

    /// Checks the key, before any file is touched.
    fn check(&self) -> Result<(), VaultError> {
        let Some((header, _)) = self.status_of_seal()? else {
            let read = self.source().map(|source| source.read()).transpose();
            return read.map(drop).map_err(unusable);
        };
        let key = header.data_key(&self.needed_source(&header)?).map_err(unusable)?;
        *lock(&self.checked) = Some((header, key));
        Ok(())
    }

    fn in_database(&self) -> Option<&dyn InDatabase> {
        Some(self)
    }

    fn close(&self) {
        let open = lock(&self.open);
        if let Some(Err(error)) = open.as_ref().map(|open| open.store.close()) {
            log::warn!("while closing: {error}");
        }
    }
}

impl InDatabase for SealedVault {
    fn database(&self) -> Result<Arc<MetadataStore>, VaultError> {
        Ok(Arc::clone(&self.open()?.store))
    }

    fn put(
        &self,
        at: &CredentialRef,
        record: Option<CredentialRecord>,
        value: Option<&Secret>,
    ) -> Result<(), VaultError> {
        let open = self.open()?;
        let failed = |error: SealError| VaultError::StoreFailed {
            at: at.clone(),
            reason: error.to_string(),
        };
        let seal = |value: &Secret| open.key.seal(value.expose().as_bytes(), &open.context(at));
        let blob = value.map(seal).transpose().map_err(failed)?;
        Ok(open.store.put_sealed(at, record, blob)?)
    }
}
