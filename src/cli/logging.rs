//! Log lines on standard error, as `RUST_LOG` and `IF_VAULT_LOG` select them, without values.

use std::io::Write as _;
use std::panic::{self, PanicHookInfo};
use std::thread;

use env_logger::Logger;
use intentframe_credentials::redact::{
    CredentialScrubber, RegisteredSecrets, SENSITIVE_KEYS, redact_credentials,
};
use intentframe_credentials::time::Timestamp;
use intentframe_credentials::{Environment, Secret};
use log::kv::{self, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Metadata, Record};

use super::failure::Failure;

/// Starts logging: what `RUST_LOG` selects (in the syntax of `env_logger`), or `default`.
///
/// Whatever `RUST_LOG` says, other crates log at INFO and above only. Below that, some print
/// the data they handle: `ureq_proto` prints each byte of a request and an answer. Registered
/// secrets are replaced.
pub fn init(
    environment: &Environment,
    default: LevelFilter,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    let mut builder = env_logger::Builder::new();
    match environment.setting("RUST_LOG") {
        Some(filters) => builder.parse_filters(filters),
        None => builder.filter_level(default),
    };
    match environment.setting("IF_VAULT_LOG") {
        None | Some("text") => {}
        Some("json") => {
            builder.format(|line, record| writeln!(line, "{}", json(Timestamp::now(), record)));
        }
        Some(_) => return Err(Failure::usage("IF_VAULT_LOG is either text (default) or json")),
    }
    let logger = Bounded(builder.build());
    log::set_max_level(logger.0.filter());
    log::set_boxed_logger(Box::new(redact_credentials(logger, secrets))).map_err(Failure::other)?;
    panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// Logs a panic. A message that was put together may contain a value, and is not shown; Rust's
/// own hook would print it.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload().downcast_ref().unwrap_or(&"its message is not shown");
    log::error!("the thread {name} panicked at {place}: {message}");
}

/// Shorter values occur in lines that have nothing to do with them (`true`, `none`).
const SHORTEST_SECRET: usize = 8;

/// Registers a value as a secret until this process ends.
pub fn keep_out(value: &Secret, secrets: &RegisteredSecrets) {
    if value.len() >= SHORTEST_SECRET {
        secrets.register(value).keep();
    }
}

/// Registers the secrets in the environment: the variables whose names end like a sensitive
/// one (`VAULT_TOKEN`, `OPENAI_API_KEY`), and the secret ID of an `AppRole`.
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

/// Drops the lines of other crates below INFO.
struct Bounded(Logger);

fn is_within_bounds(metadata: &Metadata<'_>) -> bool {
    let name = metadata.target().split("::").next();
    metadata.level() <= Level::Info
        || matches!(name, Some("intentframe_credentials" | "credential_vault"))
}

impl Log for Bounded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_within_bounds(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if is_within_bounds(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// The fields of every line. A key-value with such a name gets a `_` before it.
const FIXED: [&str; 4] = ["ts", "level", "target", "message"];

/// The record as one line of JSON.
fn json(time: Timestamp, record: &Record<'_>) -> String {
    let mut line = Line(String::new());
    line.pair("ts", &time.to_string().into());
    line.pair("level", &record.level().as_str().into());
    line.pair("target", &record.target().into());
    line.pair("message", &record.args().to_string().into());
    // If a source fails, the line has the pairs before.
    let _ = record.key_values().visit(&mut line);
    line.0 + "}"
}

struct Line(String);

impl Line {
    fn pair(&mut self, name: &str, value: &serde_json::Value) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.0.extend([&serde_json::json!(name).to_string(), ":", &value.to_string()]);
    }
}

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let number_or_bool = value
            .to_u64()
            .map(serde_json::Value::from)
            .or_else(|| value.to_i64().map(Into::into))
            .or_else(|| value.to_f64().map(Into::into))
            .or_else(|| value.to_bool().map(Into::into));
        let shown = number_or_bool.unwrap_or_else(|| value.to_string().into());
        let prefix = if FIXED.contains(&key.as_str()) { "_" } else { "" };
        self.pair(&format!("{prefix}{key}"), &shown);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_crates_log_below_info() {
        let logs = |target, level| {
            is_within_bounds(&Metadata::builder().target(target).level(level).build())
        };
        assert!(logs("intentframe_credentials::server", Level::Trace));
        assert!(logs("credential_vault", Level::Debug));
        assert!(!logs("ureq_proto::util", Level::Trace));
        assert!(!logs("ureq::run", Level::Debug));
        assert!(!logs("credential_vault_plugin", Level::Debug));
        assert!(logs("ureq::run", Level::Info));
    }

    #[test]
    fn a_json_line_has_all_that_the_record_has() {
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

    /// This test starts itself again as a process of its own, which panics.
    #[test]
    fn a_panic_is_logged_without_values() {
        const CHILD: &str = "VAULT_TEST_PANICS";

        if std::env::var_os(CHILD).is_some() {
            let environment = [("IF_VAULT_LOG".to_owned(), "json".to_owned())];
            let secrets = RegisteredSecrets::default();
            keep_out(&Secret::new("made-up-1".to_owned()), &secrets);
            let environment = environment.into_iter().collect();
            init(&environment, LevelFilter::Info, &secrets).expect("a logger");
            let value = std::hint::black_box("made-up-2");
            let named = |name: &str| thread::Builder::new().name(name.to_owned());
            let put_together = named("one").spawn(move || panic!("not {value}"));
            put_together.expect("a thread").join().expect_err("it panics");
            let literal = named("two").spawn(|| panic!("the literal made-up-1"));
            literal.expect("a thread").join().expect_err("it panics");
            return;
        }
        let name = "cli::logging::tests::a_panic_is_logged_without_values";
        let ended = std::process::Command::new(std::env::current_exe().expect("a path"))
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, "")
            .output()
            .expect("it runs");
        let log = String::from_utf8(ended.stderr).expect("UTF-8");
        assert!(ended.status.success(), "{log}");
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
        let [first, second] = lines[..] else { panic!("two panics: {log}") };
        assert!(first.contains("the thread one") && first.contains("logging.rs:"), "{first}");
        assert!(first.starts_with('{') && first.contains("its message is not shown"), "{first}");
        assert!(second.ends_with("the literal [REDACTED]\"}"), "{second}");
        assert!(!log.contains("made-up"), "{log}");
    }

    #[test]
    fn secrets_in_the_environment_are_recognised_by_name() {
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
