//! The `sealed` backend: values in the metadata database, encrypted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::error::VaultError;
use crate::metadata::{DATABASE, MetadataStore};
use crate::model::{CredentialRecord, CredentialRef, Namespace};
use crate::ownership;
use crate::seal::{Key, KeyHeader, KeySource, SealError};
use crate::secret::{Secret, WatchedSecret};

use super::registry::invalid;
use super::{BackendOptions, CredentialVault, InDatabase};

/// The name of the key file that is made beside the data directory.
const KEY_FILE: &str = "vault.key";

/// The variable with the directory in which systemd passes credentials to a unit
/// (systemd.exec(5)).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Keeps values in a table of the metadata database, each encrypted under its own name and that
/// of the store, so that rows cannot be swapped or carried to another store.
///
/// The key is the one in [`BackendOptions::key_file`], else `$CREDENTIALS_DIRECTORY/vault-key`,
/// else [`BackendOptions::passphrase`], else the file `vault.key` beside the data directory. A
/// new store without any of them makes that file.
pub struct SealedVault {
    options: BackendOptions,
    data_dir: PathBuf,
    /// What [`check`](CredentialVault::check) has found out, so that no passphrase is hashed twice.
    checked: Mutex<Option<Unlocked>>,
    open: OnceLock<Open>,
}

/// The data key of a header.
struct Unlocked {
    header: KeyHeader,
    key: Key,
    /// Keeps the key file or passphrase out of the log.
    _watched: Option<WatchedSecret>,
}

struct Open {
    store: Arc<MetadataStore>,
    unlocked: Unlocked,
}

impl SealedVault {
    /// A vault in the database of [`BackendOptions::data_dir`], which the first call opens.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`] without a data directory.
    pub fn from_options(options: &BackendOptions) -> Result<Self, VaultError> {
        let options = options.clone();
        let Some(data_dir) = options.data_dir.clone() else {
            return Err(invalid("sealed needs a data directory".to_owned()));
        };
        Ok(Self { options, data_dir, checked: Mutex::default(), open: OnceLock::new() })
    }

    /// The header in the data directory, if a sealed store is there, and the number of its values.
    ///
    /// # Errors
    ///
    /// [`VaultError::Metadata`]; [`VaultError::ValidationFailed`] for a damaged header.
    pub fn header(data_dir: &Path) -> Result<(Option<KeyHeader>, u64), VaultError> {
        let (text, values) = MetadataStore::seal(&data_dir.join(DATABASE))?;
        let header = text.map(|text| serde_json::from_str(&text)).transpose();
        match header.map_err(|_| damaged())? {
            None if values > 0 => Err(damaged()),
            header => Ok((header, values)),
        }
    }

    /// The key that was given, or is in its usual place.
    ///
    /// # Errors
    ///
    /// Those of [`std::path::absolute`].
    pub fn key_source(&self) -> Result<Option<KeySource>, VaultError> {
        if let Some(path) = &self.options.key_file {
            return Ok(Some(KeySource::File(path.clone())));
        }
        let unit = self.options.environment.setting(CREDENTIALS_VARIABLE).map(Path::new);
        if let Some(source) = unit.and_then(KeySource::of_unit) {
            return Ok(Some(source));
        }
        if let Some(passphrase) = &self.options.passphrase {
            return Ok(Some(KeySource::Passphrase(passphrase.duplicate())));
        }
        let path = self.usual_key_file()?;
        Ok(path.symlink_metadata().is_ok().then_some(KeySource::File(path)))
    }

    /// Beside the data directory, so that a copy of that does not contain it.
    fn usual_key_file(&self) -> Result<PathBuf, VaultError> {
        let data_dir =
            std::path::absolute(&self.data_dir).map_err(|error| invalid(error.to_string()))?;
        Ok(ownership::parent(&data_dir).join(KEY_FILE))
    }

    fn unlock(&self, header: KeyHeader) -> Result<Unlocked, VaultError> {
        let Some(source) = self.key_source()? else {
            let reason = if header.needs_passphrase() {
                "a passphrase opens the values; give --passphrase-fd N, or start it on a terminal"
                    .to_owned()
            } else {
                let path = self.usual_key_file()?;
                format!(
                    "the key file of the values is missing: restore {}, or give --key-file FILE; \
                     no other key opens them",
                    path.display()
                )
            };
            return Err(invalid(reason));
        };
        let key = header.data_key(&source).map_err(unusable)?;
        Ok(Unlocked { header, key, _watched: self.watch(&source)? })
    }

    fn new_key(&self, source: &KeySource) -> Result<Unlocked, VaultError> {
        let (header, key) = KeyHeader::new(source).map_err(unusable)?;
        Ok(Unlocked { header, key, _watched: self.watch(source)? })
    }

    fn watch(&self, source: &KeySource) -> Result<Option<WatchedSecret>, VaultError> {
        let Some(watch) = &self.options.secret_watch else { return Ok(None) };
        let mut bytes = source.read().map_err(unusable)?;
        // A log has text only.
        let secret = Secret::from_utf8(std::mem::take(&mut *bytes)).ok();
        Ok(secret.map(|secret| watch.tell(&secret)))
    }

    fn make_key_file(&self) -> Result<KeySource, VaultError> {
        let path = self.usual_key_file()?;
        let source = KeySource::create_file(&path).map_err(|error| {
            invalid(format!("{error}; give --key-file FILE, or start it where it can be written"))
        })?;
        log::warn!(
            "made {source}. It protects a copy or a backup of {} alone, and not from those who \
             can read the files of this user. Keep a copy of it in another place: without it, \
             nobody can read the values",
            self.data_dir.display(),
        );
        Ok(source)
    }

    /// The open database and its key.
    fn open(&self) -> Result<&Open, VaultError> {
        if let Some(open) = self.open.get() {
            return Ok(open);
        }
        let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = self.open.get() {
            return Ok(open);
        }
        let store = MetadataStore::open(&self.data_dir.join(DATABASE))?;
        // Nobody else changes it from here on.
        let (header, _) = Self::header(&self.data_dir)?;
        let unlocked = match (header, checked.take()) {
            (Some(header), Some(it)) if it.header == header => it,
            (Some(header), _) => self.unlock(header)?,
            (None, checked) => {
                let unlocked = match (checked, self.key_source()?) {
                    (Some(it), _) => it,
                    (None, Some(source)) => self.new_key(&source)?,
                    (None, None) => self.new_key(&self.make_key_file()?)?,
                };
                store.set_seal(&unlocked.header.to_json(), None)?;
                unlocked
            }
        };
        Ok(self.open.get_or_init(|| Open { store: Arc::new(store), unlocked }))
    }
}

impl Open {
    fn context<'a>(&'a self, at: &'a CredentialRef) -> [&'a str; 4] {
        ["value", self.unlocked.header.id(), at.namespace().as_str(), at.key()]
    }

    fn seal(&self, at: &CredentialRef, value: &Secret) -> Result<Vec<u8>, VaultError> {
        let sealed = self.unlocked.key.seal(value.expose().as_bytes(), &self.context(at));
        let failed = |error: SealError| VaultError::StoreFailed {
            at: at.clone(),
            reason: error.to_string(),
        };
        sealed.map_err(failed)
    }
}

fn damaged() -> VaultError {
    invalid("the key header in the database is damaged or missing; restore a backup".to_owned())
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
        let opened = open.unlocked.key.open(&blob, &open.context(at));
        let mut value =
            opened.map_err(|error| failed(format!("{error}; store it again, or delete it")))?;
        let value = Secret::from_utf8(std::mem::take(&mut *value));
        value.map(Some).map_err(|error| failed(error.to_string()))
    }

    fn store(&self, at: &CredentialRef, value: &Secret) -> Result<(), VaultError> {
        let open = self.open()?;
        Ok(open.store.set_blob(at, Some(open.seal(at, value)?))?)
    }

    fn delete(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let existed = self.has(at)?;
        self.open()?.store.set_blob(at, None)?;
        Ok(existed)
    }

    fn has(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        Ok(self.open()?.store.blob(at)?.is_some())
    }

    fn list_keys(&self, namespace: &Namespace) -> Result<Vec<String>, VaultError> {
        Ok(self.open()?.store.sealed_keys(namespace)?)
    }

    /// Checks the key. A wrong one is found out before any file is touched.
    fn check(&self) -> Result<(), VaultError> {
        let checked = match (Self::header(&self.data_dir)?.0, self.key_source()?) {
            (Some(header), _) => self.unlock(header)?,
            (None, Some(source)) => self.new_key(&source)?,
            (None, None) => return Ok(()),
        };
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked);
        Ok(())
    }

    fn in_database(&self) -> Option<&dyn InDatabase> {
        Some(self)
    }

    fn close(&self) {
        if let Some(Err(error)) = self.open.get().map(|open| open.store.close()) {
            log::warn!("while closing: {error}");
        }
    }
}

impl InDatabase for SealedVault {
    fn database(&self) -> Result<Arc<MetadataStore>, VaultError> {
        Ok(Arc::clone(&self.open()?.store))
    }

    fn store_record(&self, record: CredentialRecord, value: &Secret) -> Result<(), VaultError> {
        let open = self.open()?;
        let blob = open.seal(&record.at, value)?;
        Ok(open.store.put_sealed(record, blob)?)
    }

    fn delete_record(&self, at: &CredentialRef) -> Result<bool, VaultError> {
        let existed = self.has(at)?;
        self.open()?.store.remove_sealed(at)?;
        Ok(existed)
    }
}

impl fmt::Debug for SealedVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedVault").field("data_dir", &self.data_dir).finish_non_exhaustive()
    }
}
