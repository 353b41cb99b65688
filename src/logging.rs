//! Log lines on standard error, as `RUST_LOG` asks, within bounds that keep values out.

use env_logger::Logger;
use intentframe_credentials::Environment;
use log::{Level, LevelFilter, Log, Metadata, Record, SetLoggerError};

/// Starts logging: `RUST_LOG` (in `env_logger`'s form), or `default` where it is unset.
///
/// Whatever `RUST_LOG` says, other crates are heard from INFO upwards only. Below that
/// some print what passes through them: `ureq_proto` each byte of a request and an answer.
///
/// # Errors
///
/// When a logger has been set already.
pub fn init(environment: &Environment, default: LevelFilter) -> Result<(), SetLoggerError> {
    let mut builder = env_logger::Builder::new();
    match environment.setting("RUST_LOG") {
        Some(filters) => builder.parse_filters(filters),
        None => builder.filter_level(default),
    };
    let logger = Bounded(builder.build());
    log::set_max_level(logger.0.filter());
    log::set_boxed_logger(Box::new(logger))
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
}
