//! The key header: a data key, encrypted by a key that the user keeps.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Key, KeySource, SealError, random};
use crate::secret::Secret;

/// The version of headers.
const VERSION: u32 = 1;

/// From it, the right key file or passphrase gives the data key. It is JSON, and has no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyHeader {
    version: u32,
    /// Names the store or the file: 16 random bytes in hex.
    id: String,
    protection: Protection,
    /// For the derivation of the wrapping key: 16 random bytes in hex, new for each wrapping.
    salt: String,
    /// The data key, as a sealed message in hex.
    data_key: String,
}

/// How the wrapping key is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
enum Protection {
    /// By HKDF-SHA256 from the content of a key file.
    KeyFile,
    /// By Argon2id (RFC 9106) from a passphrase.
    Passphrase { memory_kib: u32, passes: u32, lanes: u32 },
}

/// The second recommended option of RFC 9106, section 4.
const PASSPHRASE: Protection = Protection::Passphrase { memory_kib: 65536, passes: 3, lanes: 4 };

impl KeyHeader {
    /// Makes a data key and its header.
    ///
    /// # Errors
    ///
    /// Those of [`KeySource`], and [`SealError::NoRandom`].
    pub fn new(source: &KeySource) -> Result<(Self, Key), SealError> {
        let data_key = Key::random()?;
        let id = hex(&random::<16>()?);
        Ok((Self::wrap(source, &data_key, id)?, data_key))
    }

    /// The header with the same data key, wrapped by another key.
    ///
    /// # Errors
    ///
    /// Those of [`KeySource`], and [`SealError::NoRandom`].
    pub fn rewrap(&self, source: &KeySource, data_key: &Key) -> Result<Self, SealError> {
        Self::wrap(source, data_key, self.id.clone())
    }

    fn wrap(source: &KeySource, data_key: &Key, id: String) -> Result<Self, SealError> {
        let protection = match source {
            KeySource::Passphrase(_) => PASSPHRASE,
            KeySource::File(_) | KeySource::Credential(_) => Protection::KeyFile,
        };
        let salt = hex(&random::<16>()?);
        let mut header = Self { version: VERSION, id, protection, salt, data_key: String::new() };
        let wrapping = header.wrapping_key(source)?;
        header.data_key = hex(&wrapping.seal(&*data_key.0, &header.context())?);
        Ok(header)
    }

    /// The data key.
    ///
    /// # Errors
    ///
    /// [`SealError::WrongKey`], or [`SealError::Unusable`] for a source that cannot be read, one of
    /// the wrong kind, and a header of a newer version.
    pub fn data_key(&self, source: &KeySource) -> Result<Key, SealError> {
        if self.version != VERSION {
            return Err(unusable("the key header was written by a newer version; use that one"));
        }
        let wrapping = self.wrapping_key(source)?;
        let wrong = |_| SealError::WrongKey(source.to_string());
        let sealed = unhex(&self.data_key).ok_or_else(damaged)?;
        let opened = wrapping.open(&sealed, &self.context()).map_err(wrong)?;
        let bytes: [u8; 32] = opened.as_slice().try_into().map_err(|_| damaged())?;
        Ok(Key(Zeroizing::new(bytes)))
    }

    /// The header as JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are always JSON")
    }

    /// Names the store or the file.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether a passphrase opens it; otherwise it is a key file.
    #[must_use]
    pub fn needs_passphrase(&self) -> bool {
        self.protection != Protection::KeyFile
    }

    fn context(&self) -> [&str; 2] {
        ["data key", &self.id]
    }

    fn wrapping_key(&self, source: &KeySource) -> Result<Key, SealError> {
        let salt = unhex(&self.salt).ok_or_else(damaged)?;
        match (&self.protection, source) {
            (Protection::KeyFile, KeySource::Passphrase(_)) => {
                Err(unusable("a key file opens it, and not a passphrase; give --key-file FILE"))
            }
            (Protection::KeyFile, source) => {
                Ok(Key::derive(&source.read()?, &salt, b"intentframe key file"))
            }
            (
                &Protection::Passphrase { memory_kib, passes, lanes },
                KeySource::Passphrase(secret),
            ) => of_passphrase(secret, &salt, memory_kib, passes, lanes),
            _ => Err(unusable(
                "a passphrase opens it, and not a key file; give --passphrase-fd N, or start it \
                 on a terminal",
            )),
        }
    }
}

/// The key that Argon2id derives from a passphrase.
#[cfg(feature = "passphrase")]
fn of_passphrase(
    passphrase: &Secret,
    salt: &[u8],
    memory_kib: u32,
    passes: u32,
    lanes: u32,
) -> Result<Key, SealError> {
    use argon2::{Algorithm, Argon2, Params, Version};
    // A header of somebody else could ask for more memory than the machine has.
    if memory_kib > 4 << 20 || passes > 64 {
        return Err(damaged());
    }
    let cost = Params::new(memory_kib, passes, lanes, Some(32)).map_err(|_| damaged())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost);
    let mut key = Zeroizing::new([0; 32]);
    argon2
        .hash_password_into(passphrase.expose().as_bytes(), salt, &mut *key)
        .map_err(|error| SealError::Unusable(error.to_string()))?;
    Ok(Key(key))
}

#[cfg(not(feature = "passphrase"))]
fn of_passphrase(_: &Secret, _: &[u8], _: u32, _: u32, _: u32) -> Result<Key, SealError> {
    Err(unusable(
        "this program was built without passphrases (the feature `passphrase`); use one that has \
         them, or a key file",
    ))
}

fn damaged() -> SealError {
    unusable("the key header is damaged; restore it from a backup")
}

fn unusable(reason: &str) -> SealError {
    SealError::Unusable(reason.to_owned())
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).expect("it is below 16");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The bytes of lower-case hexadecimal digits. There is only one text for the same bytes.
pub(crate) fn unhex(digits: &str) -> Option<Vec<u8>> {
    let pair = |at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    let bytes = (0..digits.len()).step_by(2).map(pair).collect::<Option<Vec<u8>>>()?;
    (hex(&bytes) == digits).then_some(bytes)
}
