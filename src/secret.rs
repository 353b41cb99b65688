//! [`Secret`]: the one type that a credential's value is held in.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// A credential's value.
///
/// It has no `Clone` and no `Display`, its `Debug` prints `[REDACTED]`, and its
/// memory is wiped when it is dropped. [`Secret::expose`] is the only way out, so
/// searching for that name lists every place that a value can leave the process.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of `value`; the buffer is wiped when the secret is dropped.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// Takes bytes that a store handed out.
    ///
    /// # Errors
    ///
    /// Gives nothing but the fact when the bytes are not UTF-8; they are wiped.
    pub fn from_utf8(bytes: Vec<u8>) -> Result<Self, NotUtf8> {
        String::from_utf8(bytes).map(Self::new).map_err(|error| {
            drop(Zeroizing::new(error.into_bytes()));
            NotUtf8
        })
    }

    /// The value itself. Every call is a place where the value may leave.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The length in bytes of UTF-8.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the value is the empty string (which is a value).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A second holder of the same value, for a store that keeps one and hands one
    /// out. Named, unlike `Clone`, so that it cannot happen by accident.
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

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

/// Hears of each secret that somebody holds for longer than a request, such as a token, and
/// gives what is to be dropped with it. So a log can be kept clean of secrets of which only
/// a backend knows.
#[derive(Clone)]
pub struct SecretWatch(Arc<Hear>);

type Hear = dyn Fn(&Secret) -> Box<dyn Any + Send + Sync> + Send + Sync;

impl SecretWatch {
    /// Tells `hear` of each secret.
    pub fn new<T: Send + Sync + 'static>(
        hear: impl Fn(&Secret) -> T + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |secret| Box::new(hear(secret))))
    }

    /// Tells of a secret. What is given back is to be dropped with it.
    #[must_use]
    pub fn tell(&self, secret: &Secret) -> WatchedSecret {
        WatchedSecret(self.0(secret))
    }
}

impl fmt::Debug for SecretWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretWatch")
    }
}

/// A secret that was told of; see [`SecretWatch::tell`].
pub struct WatchedSecret(
    #[expect(dead_code, reason = "it is there to be dropped")] Box<dyn Any + Send + Sync>,
);

/// A value's bytes are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stored value is not UTF-8 text")]
pub struct NotUtf8;

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
    fn bytes_that_are_not_utf8_are_refused_without_showing_them() {
        let error = Secret::from_utf8(vec![b'k', 0xff]).expect_err("0xff is never UTF-8");
        assert_eq!(error.to_string(), "the stored value is not UTF-8 text");
    }
}
