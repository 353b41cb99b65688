//! Reading single settings from the environment. The error about an unusable one names the
//! variable and never shows its value.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::settings::Environment;

/// How a setting is written, and its parser.
pub(super) type Form<T> = (&'static str, fn(&str) -> Option<T>);

pub(super) const NUMBER: Form<usize> = ("a number", |text| text.parse().ok());

/// The spellings of Go's `strconv.ParseBool`.
pub(super) const SWITCH: Form<bool> = ("true or false", |text| match text {
    "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
    "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
    _ => None,
});

/// Seconds, or numbers with units as in Go: `90`, `90s`, `1m30s`, `500ms`.
pub(super) const DURATION: Form<Duration> =
    ("a number of seconds or a duration such as 1m30s", |text| match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => text.parse::<SignedDuration>().ok()?.try_into().ok(),
    });

/// The variable's value, or the default if it is not set.
pub(super) fn parsed<T>(
    environment: &Environment,
    name: &str,
    (form, parse): Form<T>,
    default: T,
) -> Result<T, String> {
    let Some(text) = environment.setting(name) else { return Ok(default) };
    parse(text).ok_or_else(|| format!("{name} must be {form}"))
}

/// A credential that was given, or that is read from a file each time it is needed.
#[derive(Debug)]
pub(super) enum Source {
    Given(Secret),
    File { variable: String, path: PathBuf },
}

impl Source {
    /// The variable `name`, else the file that `<name>_FILE` names.
    pub(super) fn new(environment: &Environment, name: &str) -> Option<Self> {
        if let Some(text) = environment.setting(name) {
            return Some(Self::Given(Secret::new(text.to_owned())));
        }
        let variable = format!("{name}_FILE");
        let path = PathBuf::from(environment.setting(&variable)?);
        // A role ID is no secret.
        if name != "VAULT_ROLE_ID" {
            warn_if_exposed(&variable, &path);
        }
        Some(Self::File { variable, path })
    }

    /// The text, trimmed.
    ///
    /// # Errors
    ///
    /// A text that names the file if it cannot be read or is empty.
    pub(super) fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Given(text) => Ok(Secret::new(text.expose().trim().to_owned())),
            Self::File { variable, path } => match read_file(variable, path)?.trim() {
                "" => Err(format!("{variable}: {} is empty", path.display())),
                text => Ok(Secret::new(text.to_owned())),
            },
        }
    }
}

/// Warns of a secret file that everybody can read. The group is not looked at: with systemd's
/// `LoadCredential=`, an access control list for the service alone shows as the group's mode.
pub(super) fn warn_if_exposed(variable: &str, path: &Path) {
    const READABLE_BY_OTHERS: u32 = 0o004;

    if fs::metadata(path).is_ok_and(|file| file.mode() & READABLE_BY_OTHERS != 0) {
        let path = path.display();
        log::warn!("{variable}: every user can read {path}; make it private: chmod 600 {path}");
    }
}

/// The content of the file at `path`, which `variable` names.
pub(super) fn read_file(variable: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| format!("{variable}: {} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_have_units_as_in_go() {
        let millis = |text| DURATION.1(text).map(|duration| duration.as_millis());
        assert_eq!(millis("90"), Some(90_000));
        assert_eq!(millis("1m30s"), Some(90_000));
        assert_eq!(millis("1.5s"), Some(1_500));
        assert_eq!(millis("250ms"), Some(250));
        assert_eq!(millis("1h"), Some(3_600_000));
        for text in ["", "s", "1x", "-1s", "1m30"] {
            assert_eq!(millis(text), None, "{text:?}");
        }
    }
}
