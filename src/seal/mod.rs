//! Encryption of values at rest, for the backend `sealed` and for export files.
//!
//! A message is encrypted by ChaCha20-Poly1305 (RFC 8439) under a key that is used once. That
//! key is derived by HKDF-SHA256 (RFC 5869) from a [`Key`] and 32 random bytes, which are kept
//! in front of the message. A nonce repeats only if a key does, so the nonce is always 0. Two
//! equal salts are not to be expected before 2^128 messages; random nonces of 96 bits under one key
//! would reach their limit at 2^32 (NIST SP 800-38D, section 8.3).
//!
//! ```text
//! sealed message = 0x01 (version), salt (32 bytes), ciphertext, tag (16 bytes)
//! ```

mod header;
mod source;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use zeroize::Zeroizing;

pub use header::KeyHeader;
pub(crate) use header::{hex, unhex};
pub use source::KeySource;

/// The version of sealed messages, their first byte.
const VERSION: u8 = 1;
const SALT: usize = 32;

/// Why a key cannot be used, or a message cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Encrypted by another key, for another place, or changed since.
    #[error("it was changed, or belongs elsewhere, or the key is not the right one")]
    NotAuthentic,
    /// The key is not the one that was used.
    #[error("{0} is not the right key; nothing was changed")]
    WrongKey(String),
    /// The key, or what it is for, cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// The system returns no random numbers.
    #[error("the system has no random numbers")]
    NoRandom,
}

/// A secret key of 256 bits. It is wiped when it is dropped.
pub struct Key(Zeroizing<[u8; 32]>);

impl Key {
    /// Makes a key from the system's random numbers.
    ///
    /// # Errors
    ///
    /// [`SealError::NoRandom`].
    pub fn random() -> Result<Self, SealError> {
        random().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// Derives a key from secret bytes, such as those of a key file (RFC 5869).
    fn derive(secret: &[u8], salt: &[u8], purpose: &[u8]) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        fill(&Salt::new(HKDF_SHA256, salt).extract(secret), purpose, &mut key);
        Self(key)
    }

    /// Encrypts a message. `context` says what it is and where it belongs: it opens only with the
    /// same context.
    ///
    /// # Errors
    ///
    /// [`SealError::NoRandom`]; [`SealError::Unusable`] for a message of 256 GiB.
    pub fn seal(&self, message: &[u8], context: &[&str]) -> Result<Vec<u8>, SealError> {
        let salt: [u8; SALT] = random()?;
        // It has its final size, so that no copy of the message is left behind.
        let mut sealed = Vec::with_capacity(1 + SALT + message.len() + CHACHA20_POLY1305.tag_len());
        sealed.push(VERSION);
        sealed.extend_from_slice(&salt);
        sealed.extend_from_slice(message);
        let encrypted = self.message_key(&salt).seal_in_place_separate_tag(
            Nonce::assume_unique_for_key([0; 12]),
            associated(context),
            &mut sealed[1 + SALT..],
        );
        let tag = encrypted.map_err(|_| SealError::Unusable("it is too long".to_owned()))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Decrypts a message.
    ///
    /// # Errors
    ///
    /// [`SealError::NotAuthentic`]; [`SealError::Unusable`] for a message of a newer version.
    pub fn open(&self, sealed: &[u8], context: &[&str]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (salt, message) = match sealed.split_first() {
            Some((&VERSION, rest)) => rest.split_at_checked(SALT),
            Some(_) => return Err(SealError::Unusable("a newer version sealed it".to_owned())),
            None => None,
        }
        .ok_or(SealError::NotAuthentic)?;
        let mut message = Zeroizing::new(message.to_vec());
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let opened = self.message_key(salt).open_in_place(nonce, associated(context), &mut message);
        let length = opened.map_err(|_| SealError::NotAuthentic)?.len();
        message.truncate(length);
        Ok(message)
    }

    /// The key of one message. This key is as random as a pseudorandom key, so the first step of
    /// HKDF is left out (RFC 5869, section 3.3).
    fn message_key(&self, salt: &[u8]) -> LessSafeKey {
        let mut key = Zeroizing::new([0; 32]);
        fill(&Prk::new_less_safe(HKDF_SHA256, &*self.0), salt, &mut key);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*key).expect("its keys have 32 bytes");
        LessSafeKey::new(key)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

fn fill(key: &Prk, info: &[u8], output: &mut [u8; 32]) {
    let info = [info];
    let derived = key.expand(&info, HKDF_SHA256).and_then(|it| it.fill(output));
    derived.expect("HKDF-SHA256 gives up to 8160 bytes");
}

/// Associated data: each part with its length before it, so that no two contexts look alike.
fn associated(context: &[&str]) -> Aad<Vec<u8>> {
    let mut data = Vec::new();
    for part in context {
        data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    Aad::from(data)
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    crate::random::bytes().map_err(|_| SealError::NoRandom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_opens_with_its_key_and_context_only() {
        let key = Key::random().expect("random numbers");
        let context = ["value", "id", "openai", "key"];
        let sealed = key.seal(b"canary", &context).expect("random numbers");
        assert_eq!(*key.open(&sealed, &context).expect("its own"), b"canary");
        assert!(!sealed.windows(6).any(|part| part == b"canary"));
        assert_ne!(sealed, key.seal(b"canary", &context).expect("random numbers"), "a new salt");
        for wrong in [["value", "id", "openaik", "ey"], ["value", "di", "openai", "key"]] {
            assert!(key.open(&sealed, &wrong).is_err(), "{wrong:?}");
        }
        let other = Key::random().expect("random numbers");
        assert!(other.open(&sealed, &context).is_err());
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(key.open(&changed, &context).is_err(), "byte {index}");
            assert!(key.open(&sealed[..index], &context).is_err(), "cut at {index}");
        }
    }

    /// RFC 5869, appendix A.1, but for the length.
    #[test]
    fn keys_are_derived_as_the_rfc_says() {
        let salt: Vec<u8> = (0..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let key = Key::derive(&[0x0b; 22], &salt, &info);
        assert_eq!(
            header::hex(&*key.0),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
    }
}
