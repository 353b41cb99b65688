//! Where the key that wraps a data key comes from.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::header::hex;
use super::{SealError, random};
use crate::ownership;
use crate::secret::Secret;

/// A key file has at least as many bytes, so that nobody puts a password into one.
const LEAST: usize = 32;
const MOST: u64 = 4096;

/// The file's name in the directory of systemd's credentials.
const CREDENTIAL: &str = "vault-key";

/// A key that a user keeps.
#[derive(Debug)]
pub enum KeySource {
    /// A file that only this user may read, which belongs to this user or root.
    File(PathBuf),
    /// A file in the directory that systemd passes in `$CREDENTIALS_DIRECTORY`
    /// (systemd.exec(5)). It is readable for this unit alone, whatever its mode.
    Credential(PathBuf),
    /// A passphrase.
    Passphrase(Secret),
}

impl KeySource {
    /// The key that systemd passes to this unit, if it does.
    #[must_use]
    pub fn of_unit(credentials_directory: &Path) -> Option<Self> {
        let path = credentials_directory.join(CREDENTIAL);
        path.exists().then_some(Self::Credential(path))
    }

    /// Creates a key file (mode 0400) with 256 random bits.
    ///
    /// # Errors
    ///
    /// [`SealError::Unusable`] if there is a file, or it cannot be written.
    pub fn create_file(path: &Path) -> Result<Self, SealError> {
        let content = Zeroizing::new(format!("{}\n", hex(&*Zeroizing::new(random::<32>()?))));
        // An unfinished file would be taken for a key.
        let write = |_: &Path, mut file: &File| file.write_all(content.as_bytes());
        let written = ownership::create_whole(path, 0o400, write).flatten();
        written.map_err(|error| {
            SealError::Unusable(format!("cannot create the key file {}: {error}", path.display()))
        })?;
        Ok(Self::File(path.to_owned()))
    }

    /// The secret bytes of a file, without a line break at their end.
    pub(crate) fn read(&self) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (path, is_private) = match self {
            Self::File(path) => (path, false),
            Self::Credential(path) => (path, true),
            Self::Passphrase(secret) => {
                return Ok(Zeroizing::new(secret.expose().as_bytes().to_vec()));
            }
        };
        let failed =
            |reason: String| SealError::Unusable(format!("{self} cannot be used: {reason}"));
        let file = ownership::open(path, OpenOptions::new().read(true))
            .map_err(|error| failed(error.to_string()))?;
        let mode = file.metadata().map_err(|error| failed(error.to_string()))?.mode();
        if !is_private && mode & 0o077 != 0 {
            let path = path.display();
            return Err(failed(format!("other users may read it; run chmod 400 {path}")));
        }
        // With room for all of it, so that no copy is left behind.
        let mut content = Zeroizing::new(Vec::with_capacity(8192));
        file.take(MOST + 1).read_to_end(&mut content).map_err(|error| failed(error.to_string()))?;
        while content.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            content.pop();
        }
        if content.len() < LEAST || content.len() as u64 > MOST {
            return Err(failed(format!(
                "a key file has {LEAST} to {MOST} bytes; make one with `openssl rand -hex 32`"
            )));
        }
        Ok(content)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "the key file {}", path.display()),
            Self::Credential(path) => write!(f, "the credential {}", path.display()),
            Self::Passphrase(_) => f.write_str("the passphrase"),
        }
    }
}
