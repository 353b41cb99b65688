//! Log lines on standard error, as `RUST_LOG` and `IF_VAULT_LOG` ask, within bounds that
//! keep values out.

use std::io::Write as _;

use env_logger::Logger;
use intentframe_credentials::redact::{
    CredentialScrubber, RegisteredSecrets, SENSITIVE_KEYS, redact_credentials,
};
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{Environment, Secret};
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

/// The setting that chooses how lines are written.
const FORMAT_VARIABLE: &str = "IF_VAULT_LOG";

/// Why logging does not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// `IF_VAULT_LOG` is something else.
    #[error("{FORMAT_VARIABLE} is `text` (as it is when unset) or `json`")]
    UnknownFormat,
    /// There is a logger already.
    #[error(transparent)]
    AlreadySet(#[from] SetLoggerError),
}

/// Starts logging: `RUST_LOG` (in `env_logger`'s form), or `default` where it is unset.
///
/// Whatever `RUST_LOG` says, other crates are heard from INFO upwards only. Below that
/// some print what passes through them: `ureq_proto` each byte of a request and an answer.
/// Registered secrets are replaced in what is heard.
///
/// # Errors
///
/// See [`LoggingError`].
pub fn init(
    environment: &Environment,
    default: LevelFilter,
    secrets: &RegisteredSecrets,
) -> Result<(), LoggingError> {
    let mut builder = env_logger::Builder::new();
    match environment.setting("RUST_LOG") {
        Some(filters) => builder.parse_filters(filters),
        None => builder.filter_level(default),
    };
    match environment.setting(FORMAT_VARIABLE) {
        None | Some("text") => {}
        Some("json") => {
            builder.format(|line, record| writeln!(line, "{}", json(Timestamp::now(), record)));
        }
        Some(_) => return Err(LoggingError::UnknownFormat),
    }
    let logger = Bounded(builder.build());
    log::set_max_level(logger.0.filter());
    log::set_boxed_logger(Box::new(redact_credentials(logger, secrets)))?;
    Ok(())
}

/// What is shorter turns up in lines that have nothing to do with it (`true`, `none`).
const SHORTEST_SECRET: usize = 8;

/// Has a value that this process holds kept out of what it says, until it ends.
pub fn keep_out(value: &Secret, secrets: &RegisteredSecrets) {
    if value.len() >= SHORTEST_SECRET {
        secrets.register(value).keep();
    }
}

/// Registers what this process was given as secrets: the variables of its environment whose
/// names end as sensitive ones do (`VAULT_TOKEN`, `OPENAI_API_KEY`), and the secret ID.
pub fn register_environment(environment: &Environment, secrets: &RegisteredSecrets) {
    let scrubber = CredentialScrubber::new(SENSITIVE_KEYS.into_iter().chain(["secret_id"]), "");
    for (name, value) in environment.iter() {
        let ends = name.match_indices('_').map(|(at, _)| &name[at + 1..]);
        let is_sensitive = std::iter::once(name).chain(ends).any(|end| scrubber.is_sensitive(end));
        if is_sensitive {
            keep_out(value, secrets);
        }
    }
}

struct Bounded(Logger);

/// Our own two crates; their log lines carry no values by design.
fn is_ours(target: &str) -> bool {
    ["intentframe_credentials", "credential_vault"].iter().any(|ours| {
        target.strip_prefix(ours).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

fn within_bounds(metadata: &Metadata<'_>) -> bool {
    metadata.level() <= Level::Info || is_ours(metadata.target())
}

impl Log for Bounded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        within_bounds(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if within_bounds(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

// ---------------------------------------------------------------- JSON lines

/// The names of what every line has; a key-value of such a name gets a `_` before it.
const FIXED: [&str; 4] = ["ts", "level", "target", "message"];

/// The record as one line of JSON.
fn json(time: Timestamp, record: &Record<'_>) -> String {
    let mut line = Line(String::from("{"));
    line.pair("ts", &serde_json::json!(time.to_string()));
    line.pair("level", &serde_json::json!(record.level().as_str()));
    line.pair("target", &serde_json::json!(record.target()));
    line.pair("message", &serde_json::json!(record.args().to_string()));
    // What a source has shown before it fails is in the line.
    let _ = record.key_values().visit(&mut line);
    line.0 + "}"
}

struct Line(String);

impl Line {
    fn pair(&mut self, name: &str, value: &serde_json::Value) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.extend([&serde_json::json!(name).to_string(), ":", &value.to_string()]);
    }
}

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut shown = Shown(serde_json::Value::Null);
        value.visit(&mut shown)?;
        if FIXED.contains(&key.as_str()) {
            self.pair(&format!("_{key}"), &shown.0);
        } else {
            self.pair(key.as_str(), &shown.0);
        }
        Ok(())
    }
}

/// A key-value's value as JSON: text, unless it is a number or a truth value.
struct Shown(serde_json::Value);

impl VisitValue<'_> for Shown {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.0 = serde_json::Value::Null;
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_crates_are_heard_below_info() {
        let heard =
            |target, level| within_bounds(&Metadata::builder().target(target).level(level).build());
        assert!(heard("intentframe_credentials::server", Level::Trace));
        assert!(heard("credential_vault", Level::Debug));
        assert!(!heard("ureq_proto::util", Level::Trace));
        assert!(!heard("ureq::run", Level::Debug));
        assert!(!heard("credential_vault_plugin", Level::Debug));
        assert!(heard("ureq::run", Level::Info));
    }

    #[test]
    fn a_json_line_has_what_the_record_has() {
        let time = Timestamp::parse("2026-11-23T18:17:36.320458Z").expect("it is a time");
        let pairs: &[(&str, Value<'_>)] = &[
            ("count", Value::from(3)),
            ("rate", Value::from(0.5)),
            ("ok", Value::from(true)),
            ("who", Value::from("a \"b\"\n")),
            ("level", Value::from("mine")),
        ];
        let line = json(
            time,
            &Record::builder()
                .level(Level::Warn)
                .target("credential_vault::x")
                .args(format_args!("two\nlines \u{1b}[0m"))
                .key_values(&pairs)
                .build(),
        );
        assert_eq!(
            line,
            r#"{"ts":"2026-11-23T18:17:36.320458Z","level":"WARN","target":"credential_vault::x","message":"two\nlines \u001b[0m","count":3,"rate":0.5,"ok":true,"who":"a \"b\"\n","_level":"mine"}"#
        );
    }

    #[test]
    fn secrets_of_the_environment_are_known_by_their_names() {
        let variables = [
            ("VAULT_TOKEN", "s.made-up-1"),
            ("VAULT_SECRET_ID", "made-up-2"),
            ("OPENAI_API_KEY", "made-up-3"),
            ("password", "made-up-4"),
            ("PATH", "/usr/bin:/bin"),
            ("XAUTHORITY", "/root/.Xauthority"),
            ("TOKEN_FILE", "/run/token-file"),
            ("USE_AUTH", "true"),
        ];
        let environment = variables
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        let secrets = RegisteredSecrets::default();
        register_environment(&environment, &secrets);
        for (name, value) in variables {
            let expected = if value.contains("made-up") { "[REDACTED]" } else { value };
            assert_eq!(secrets.redact(value.to_owned()), expected, "{name}");
        }
    }
}
