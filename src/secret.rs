//! [`Secret`]: the only type that holds a credential's value.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A credential's value.
///
/// It has no `Clone` and no `Display`, its `Debug` prints `[REDACTED]`, and its memory is
/// wiped when it is dropped. [`Secret::expose`] is the only way out, so searching for that
/// name lists every place where a value can leave the process.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `value`; the buffer is wiped when the secret is dropped.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// Takes ownership of bytes that a store returned.
    ///
    /// # Errors
    ///
    /// [`NotUtf8`]; the bytes are then wiped.
    pub fn from_utf8(bytes: Vec<u8>) -> Result<Self, NotUtf8> {
        String::from_utf8(bytes).map(Self::new).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            NotUtf8
        })
    }

    /// Returns the value itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the value is the empty string (which is a value).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a copy, for a backend that keeps the value and returns it. It is not called `clone`,
    /// so that nobody makes a copy by accident.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// A callback for each secret that a backend holds for longer than a request, such as a
/// token. A log filter registers those secrets, so that it can keep them out of the log.
#[derive(Clone)]
pub struct SecretWatch(Arc<dyn Fn(&Secret) -> WatchedSecret + Send + Sync>);

/// Keeps a secret registered until it is dropped; see [`SecretWatch::tell`].
pub type WatchedSecret = Box<dyn Any + Send + Sync>;

impl SecretWatch {
    /// Calls `watch` for each secret. Its result is dropped together with the secret.
    pub fn new<T: Send + Sync + 'static>(
        watch: impl Fn(&Secret) -> T + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |secret| Box::new(watch(secret))))
    }

    /// Announces a secret. The holder drops the result when it drops the secret.
    #[must_use]
    pub fn tell(&self, secret: &Secret) -> WatchedSecret {
        self.0(secret)
    }
}

impl fmt::Debug for SecretWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretWatch")
    }
}

/// The bytes of a value are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored value is not UTF-8 text")]
pub struct NotUtf8;

/// Serialises what contains a secret. The bytes are wiped when they are dropped.
#[cfg(unix)]
#[cfg(any(feature = "client", feature = "server", feature = "hashicorp"))]
pub(crate) fn wiped_json(value: &impl serde::Serialize) -> Zeroizing<Vec<u8>> {
    use std::io::{self, Write};

    struct Length(usize);
    impl Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    // The buffer has room for everything: one that grows leaves copies behind.
    let mut length = Length(0);
    serde_json::to_writer(&mut length, value).expect("counting cannot fail");
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, value).expect("a Vec takes every write");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_value() {
        let secret = Secret::new("sk-canary".into());
        assert_eq!(format!("{secret:?}"), "[REDACTED]");
        assert_eq!(format!("{:?}", Some(&secret)), "Some([REDACTED])");
        assert_eq!(secret.expose(), "sk-canary");
    }

    #[test]
    fn invalid_utf8_is_rejected_and_not_shown() {
        let error = Secret::from_utf8(vec![b'k', 0xff]).expect_err("0xff is never UTF-8");
        assert_eq!(error.to_string(), "the stored value is not UTF-8 text");
    }
}
