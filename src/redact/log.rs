//! [`redact_credentials`]: a layer around a logger that keeps secrets out of it.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex};

use log::kv::{self, Key, Value, VisitSource};
use log::{Log, Metadata, Record};
use zeroize::Zeroizing;

use super::finder::Finder;
use super::{CredentialScrubber, Masker, REDACTED_VALUE};
use crate::Secret;
use crate::sync::lock;

/// Wraps `logger` in a layer that scrubs each record.
///
/// The value of a key-value with a sensitive name (see [`CredentialScrubber`]) becomes
/// `[REDACTED]`. So does every occurrence of a registered secret in messages and key-values,
/// in any of its encoded forms (see [`Masker`]). Records that the logger has disabled are not
/// formatted.
///
/// ```
/// use intentframe_credentials::Secret;
/// use intentframe_credentials::redact::{RegisteredSecrets, redact_credentials};
/// # struct YourLogger;
/// # impl log::Log for YourLogger {
/// #     fn enabled(&self, _: &log::Metadata<'_>) -> bool { true }
/// #     fn log(&self, record: &log::Record<'_>) {
/// #         assert_eq!(record.args().to_string(), "connecting with [REDACTED]");
/// #     }
/// #     fn flush(&self) {}
/// # }
///
/// # fn main() -> Result<(), log::SetLoggerError> {
/// let secrets = RegisteredSecrets::default();
/// log::set_boxed_logger(Box::new(redact_credentials(YourLogger, &secrets)))?;
/// log::set_max_level(log::LevelFilter::Info);
///
/// let token = Secret::new("sk-made-up-1".to_owned());
/// let _registered = secrets.register(&token);
/// log::info!("connecting with {}", token.expose()); // connecting with [REDACTED]
/// # Ok(())
/// # }
/// ```
pub fn redact_credentials<L: Log>(logger: L, secrets: &RegisteredSecrets) -> RedactingLogger<L> {
    RedactingLogger { logger, secrets: secrets.clone(), scrubber: CredentialScrubber::default() }
}

/// The secrets that a [`RedactingLogger`] looks for. Clones share them.
#[derive(Clone, Default)]
pub struct RegisteredSecrets(Arc<Mutex<Registry>>);

#[derive(Default)]
struct Registry {
    secrets: Vec<Arc<Secret>>,
    /// Built when it is first needed after a change.
    finder: Option<Arc<Finder>>,
}

impl RegisteredSecrets {
    /// Registers the secret until the returned registration is dropped.
    pub fn register(&self, secret: &Secret) -> Registration {
        let secret = Arc::new(secret.duplicate());
        let mut registry = lock(&self.0);
        registry.secrets.push(Arc::clone(&secret));
        registry.finder = None;
        Registration { secrets: self.clone(), secret }
    }

    /// Replaces registered secrets in `text`.
    #[must_use]
    pub fn redact(&self, text: String) -> String {
        redacted(&self.finder(), &text).unwrap_or(text)
    }

    fn finder(&self) -> Arc<Finder> {
        let Registry { secrets, finder } = &mut *lock(&self.0);
        let build = || Arc::new(Finder::new(secrets.iter().map(AsRef::as_ref)));
        Arc::clone(finder.get_or_insert_with(build))
    }
}

impl fmt::Debug for RegisteredSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisteredSecrets({})", lock(&self.0).secrets.len())
    }
}

/// The registration of a secret. It ends when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the registration"]
pub struct Registration {
    secrets: RegisteredSecrets,
    secret: Arc<Secret>,
}

impl Registration {
    /// Keeps the registration until the process ends.
    pub fn keep(self) {
        mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut registry = lock(&self.secrets.0);
        registry.secrets.retain(|secret| !Arc::ptr_eq(secret, &self.secret));
        registry.finder = None;
    }
}

/// A logger in a scrubbing layer; see [`redact_credentials`].
#[derive(Debug)]
pub struct RedactingLogger<L> {
    logger: L,
    secrets: RegisteredSecrets,
    scrubber: CredentialScrubber,
}

impl<L> RedactingLogger<L> {
    /// Chooses which names of key-values are sensitive.
    #[must_use]
    pub fn with_scrubber(self, scrubber: CredentialScrubber) -> Self {
        Self { scrubber, ..self }
    }
}

impl<L: Log> Log for RedactingLogger<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let finder = self.secrets.finder();
        let message = Zeroizing::new(record.args().to_string());
        let new_message = redacted(&finder, &message);
        let mut pairs = Pairs(Vec::new());
        // If the source fails, the pairs before the failure are logged.
        let _ = record.key_values().visit(&mut pairs);
        let replacements = pairs.0.iter().map(|(key, value)| {
            let new_value = if self.scrubber.is_sensitive(key.as_str()) {
                Some(REDACTED_VALUE.to_owned())
            } else {
                redacted(&finder, &Zeroizing::new(value.to_string()))
            };
            (redacted(&finder, key.as_str()), new_value)
        });
        let replacements: Vec<_> = replacements.collect();
        let pairs = pairs.0.into_iter().zip(&replacements);
        let pairs = pairs.map(|((key, value), (new_key, new_value))| {
            let key = new_key.as_deref().map_or(key, Key::from_str);
            (key, new_value.as_deref().map_or(value, Value::from))
        });
        let pairs: Vec<_> = pairs.collect();
        let args = format_args!("{}", new_message.as_deref().unwrap_or(&message));
        self.logger.log(&record.to_builder().args(args).key_values(&pairs.as_slice()).build());
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// Replaces everything that the finder finds. Returns `None` if it finds nothing.
fn redacted(finder: &Arc<Finder>, text: &str) -> Option<String> {
    let mut masker = Masker::with(Arc::clone(finder));
    let mut output = Vec::with_capacity(text.len());
    masker.mask(text.as_bytes(), &mut output);
    masker.finish(&mut output);
    if output == text.as_bytes() {
        return None;
    }
    Some(String::from_utf8(output).expect("forms are whole characters, and so is the rest"))
}

/// The key-values of a record.
struct Pairs<'kvs>(Vec<(Key<'kvs>, Value<'kvs>)>);

impl<'kvs> VisitSource<'kvs> for Pairs<'kvs> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.push((key, value));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps each record above DEBUG.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<String>>>);

    impl Log for Captured {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Info
        }

        fn log(&self, record: &Record<'_>) {
            struct Shown(String);
            impl<'kvs> VisitSource<'kvs> for Shown {
                fn visit_pair(
                    &mut self,
                    key: Key<'kvs>,
                    value: Value<'kvs>,
                ) -> Result<(), kv::Error> {
                    let kind = if value.to_u64().is_some() { "number" } else { "text" };
                    self.0.extend([" ", key.as_str(), "=", &value.to_string(), "(", kind, ")"]);
                    Ok(())
                }
            }
            let mut shown = Shown(record.args().to_string());
            record.key_values().visit(&mut shown).expect("the test's sources do not fail");
            self.0.lock().expect("nothing panics with it").push(shown.0);
        }

        fn flush(&self) {}
    }

    impl Captured {
        fn last(&self) -> String {
            self.0.lock().expect("nothing panics with it").last().expect("a line").clone()
        }
    }

    fn logger() -> (RegisteredSecrets, RedactingLogger<Captured>, Captured) {
        log::set_max_level(log::LevelFilter::Info);
        let (secrets, captured) = (RegisteredSecrets::default(), Captured::default());
        let logger = redact_credentials(captured.clone(), &secrets);
        (secrets, logger, captured)
    }

    fn secret(value: &str) -> Secret {
        Secret::new(value.to_owned())
    }

    #[test]
    fn messages_lose_registered_secrets_in_every_form() {
        let (secrets, logger, captured) = logger();
        let _registered = secrets.register(&secret("sk/made-up"));
        for form in ["sk/made-up", "c2svbWFkZS11cA==", "736b2f6d6164652d7570", "sk%2Fmade-up"] {
            log::info!(logger: logger, "token {form}.");
            assert_eq!(captured.last(), "token [REDACTED].");
        }
        log::info!(logger: logger, "sk/made-up");
        assert_eq!(captured.last(), "[REDACTED]");
        log::info!(logger: logger, "nothing of it: sk/made");
        assert_eq!(captured.last(), "nothing of it: sk/made");
    }

    #[test]
    fn key_values_are_scrubbed_by_name_and_value_and_keep_their_type() {
        let (secrets, logger, captured) = logger();
        let _registered = secrets.register(&secret("made-up-1"));
        let url = "https://u:made-up-1@host";
        log::info!(logger: logger, Password = "hunter2", tries = 3, url, token:% = 7; "log in");
        assert_eq!(
            captured.last(),
            "log in Password=[REDACTED](text) tries=3(number) \
             url=https://u:[REDACTED]@host(text) token=[REDACTED](text)"
        );
        log::info!(logger: logger, "made-up-1" = 1; "a key");
        assert_eq!(captured.last(), "a key [REDACTED]=1(number)");
    }

    #[test]
    fn names_can_be_replaced_and_work_without_registered_secrets() {
        let (_, logger, captured) = logger();
        let logger = logger.with_scrubber(CredentialScrubber::new(["pin"], REDACTED_VALUE));
        log::info!(logger: logger, pin = 1234, password = "shown"; "{}", "text");
        assert_eq!(captured.last(), "text pin=[REDACTED](text) password=shown(text)");
    }

    #[test]
    fn a_registration_ends_with_its_guard_unless_it_is_kept() {
        let (secrets, logger, captured) = logger();
        let registration = secrets.register(&secret("made-up-1"));
        let twice = secrets.register(&secret("made-up-1"));
        secrets.register(&secret("made-up-2")).keep();
        drop(registration);
        log::info!(logger: logger, "made-up-1 made-up-2");
        assert_eq!(captured.last(), "[REDACTED] [REDACTED]");
        drop(twice);
        log::info!(logger: logger, "made-up-1 made-up-2");
        assert_eq!(captured.last(), "made-up-1 [REDACTED]");
        assert_eq!(secrets.redact("made-up-2".to_owned()), "[REDACTED]");
        assert_eq!(format!("{secrets:?}"), "RegisteredSecrets(1)");
    }

    #[test]
    fn disabled_records_are_not_formatted() {
        struct Loud;
        impl fmt::Display for Loud {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("it was formatted");
            }
        }
        let (secrets, logger, _) = logger();
        let _registered = secrets.register(&secret("made-up-1"));
        let metadata = Metadata::builder().level(log::Level::Debug).build();
        logger.log(&Record::builder().metadata(metadata).args(format_args!("{Loud}")).build());
    }

    #[test]
    fn a_message_may_log_while_it_is_formatted() {
        struct Chatty<'l>(&'l RedactingLogger<Captured>);
        impl fmt::Display for Chatty<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                log::info!(logger: self.0, "inner made-up-1");
                f.write_str("outer made-up-1")
            }
        }
        let (secrets, logger, captured) = logger();
        let _registered = secrets.register(&secret("made-up-1"));
        log::info!(logger: logger, "{}", Chatty(&logger));
        let lines = captured.0.lock().expect("nothing panics with it").clone();
        assert_eq!(lines, ["inner [REDACTED]", "outer [REDACTED]"]);
    }
}
