//! Reading single settings: from the environment, from files, as numbers and durations.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::settings::Environment;

/// The environment. An unusable value is an error that names the variable and never shows
/// the value.
pub(super) struct Variables<'a>(pub(super) &'a Environment);

impl Variables<'_> {
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.setting(name)
    }

    /// The content of the file that a variable names.
    pub(super) fn file(&self, name: &str) -> Result<Option<Zeroizing<String>>, String> {
        self.text(name).map(|path| read_file(name, Path::new(path))).transpose()
    }

    /// A credential: the option, else the variable `name`, else the file that the variable
    /// `file` names.
    pub(super) fn source(
        &self,
        option: Option<Secret>,
        name: &str,
        file: &'static str,
    ) -> Option<Source> {
        option
            .or_else(|| self.text(name).map(|text| Secret::new(text.to_owned())))
            .map(Source::Given)
            .or_else(|| {
                self.text(file).map(|path| Source::File { variable: file, path: path.into() })
            })
    }

    /// The option, else the variable's value, else the default.
    pub(super) fn parsed<T: Setting>(
        &self,
        option: Option<T>,
        name: &str,
        default: T,
    ) -> Result<T, String> {
        match (option, self.text(name)) {
            (None, Some(text)) => T::parse(text).ok_or(format!("{name} must be {}", T::FORM)),
            (option, _) => Ok(option.unwrap_or(default)),
        }
    }
}

/// A setting that is not a text.
pub(super) trait Setting: Sized {
    /// How it is written.
    const FORM: &str;

    fn parse(text: &str) -> Option<Self>;
}

impl Setting for usize {
    const FORM: &str = "a number";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Setting for bool {
    const FORM: &str = "true or false";

    /// The spellings of Go's `strconv.ParseBool`.
    fn parse(text: &str) -> Option<Self> {
        match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        }
    }
}

impl Setting for Duration {
    const FORM: &str = "a number of seconds or a duration such as 1m30s";

    /// Seconds, or numbers with units as Go writes them: `90`, `90s`, `1m30s`, `500ms`.
    fn parse(text: &str) -> Option<Self> {
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let mut total = Duration::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let (number, after) = rest.split_at(rest.find(|c| !is_number(c))?);
            let (unit, after) = after.split_at(after.find(is_number).unwrap_or(after.len()));
            let seconds = match unit {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            let number: f64 = number.parse().ok()?;
            total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
            rest = after;
        }
        (!text.is_empty()).then_some(total)
    }
}

/// A credential that was given, or that is read from a file each time it is needed.
#[derive(Debug)]
pub(super) enum Source {
    Given(Secret),
    File { variable: &'static str, path: PathBuf },
}

impl Source {
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

fn read_file(variable: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| format!("{variable}: {} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_have_units_as_in_go() {
        let millis = |text| Duration::parse(text).map(|duration| duration.as_millis());
        assert_eq!(millis("90"), Some(90_000));
        assert_eq!(millis("1m30s"), Some(90_000));
        assert_eq!(millis("1.5s"), Some(1_500));
        assert_eq!(millis("250ms"), Some(250));
        assert_eq!(millis("1h"), Some(3_600_000));
        for text in ["", "s", "1x", "-1s", "1m30", "1 s"] {
            assert_eq!(millis(text), None, "{text:?}");
        }
    }
}
