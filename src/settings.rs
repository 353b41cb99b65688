//! The environment of the process, and the paths that depend on it.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::secret::Secret;

/// The variable that holds the path of the service's socket.
pub const SOCKET_VARIABLE: &str = "INTENTFRAME_VAULT_SOCKET";

/// The variable that holds the directory of the metadata database.
pub const DATA_DIR_VARIABLE: &str = "INTENTFRAME_DATA_DIR";

/// A snapshot of environment variables, read once and passed down.
///
/// Cloning is cheap. `Debug` shows no values, since any of them may be a secret. It has no
/// variables that are not UTF-8.
#[derive(Clone, Default)]
pub struct Environment(Arc<HashMap<String, Secret>>);

impl Environment {
    /// Reads the environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Returns the variable's value. The empty string is a value.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }

    /// Returns the value of a setting. An empty variable counts as unset.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.var(name).map(Secret::expose).filter(|value| !value.is_empty())
    }

    /// The same variables with further ones, which replace those of their names.
    #[must_use]
    pub fn with(&self, more: impl IntoIterator<Item = (String, String)>) -> Self {
        let own = self.0.iter().map(|(name, value)| (name.clone(), value.duplicate()));
        let more = more.into_iter().map(|(name, value)| (name, Secret::new(value)));
        Self(Arc::new(own.chain(more).collect()))
    }

    /// Iterates over the variables and their values, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(vars: I) -> Self {
        Self(Arc::new(vars.into_iter().map(|(name, value)| (name, Secret::new(value))).collect()))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}

/// A `~` that cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} cannot be expanded, since {reason}; write the path in full")]
pub struct PathError {
    /// The path as it was written.
    pub path: PathBuf,
    reason: &'static str,
}

/// Returns the directory that a variable of the XDG base directory specification names. One that is
/// not absolute is ignored, as the specification says.
#[must_use]
pub fn xdg<'a>(variable: &str, environment: &'a Environment) -> Option<&'a Path> {
    environment.setting(variable).map(Path::new).filter(|path| path.is_absolute())
}

/// `~/.intentframe/<part>` if it exists or `variable` is not set, else the part's place in the
/// directory that `variable` names. Each part decides for itself, so that one that is made later
/// does not move the others.
fn default_directory(
    part: &str,
    variable: &str,
    below: &str,
    environment: &Environment,
) -> Result<PathBuf, PathError> {
    let home = expand_tilde(&Path::new("~/.intentframe").join(part), environment);
    match xdg(variable, environment) {
        Some(base) if !home.as_ref().is_ok_and(|home| home.exists()) => Ok(base.join(below)),
        _ => home,
    }
}

/// Returns the socket's path: the one given, else [`SOCKET_VARIABLE`], else
/// `~/.intentframe/run/credential-vault.sock`. If `~/.intentframe/run` does not exist and
/// `XDG_RUNTIME_DIR` is set, the default is `$XDG_RUNTIME_DIR/intentframe/credential-vault.sock`.
///
/// # Errors
///
/// [`PathError`].
pub fn socket(given: Option<&Path>, environment: &Environment) -> Result<PathBuf, PathError> {
    let path = given.or_else(|| environment.setting(SOCKET_VARIABLE).map(Path::new));
    if let Some(path) = path {
        return expand_tilde(path, environment);
    }
    let directory = default_directory("run", "XDG_RUNTIME_DIR", "intentframe", environment);
    directory.map(|directory| directory.join("credential-vault.sock"))
}

/// Returns the data directory: the one given, else [`DATA_DIR_VARIABLE`], else
/// `~/.intentframe/data`. If that does not exist and `XDG_STATE_HOME` is set, the default is
/// `$XDG_STATE_HOME/intentframe/data`.
///
/// # Errors
///
/// [`PathError`].
pub fn data_dir(given: Option<&Path>, environment: &Environment) -> Result<PathBuf, PathError> {
    let path = given.or_else(|| environment.setting(DATA_DIR_VARIABLE).map(Path::new));
    match path {
        Some(path) => expand_tilde(path, environment),
        None => default_directory("data", "XDG_STATE_HOME", "intentframe/data", environment),
    }
}

/// Returns the data directory for development: the one given, else `~/.intentframe/dev-data`.
/// Ignores [`DATA_DIR_VARIABLE`], so that it is never the real service's by accident.
///
/// # Errors
///
/// [`PathError`].
pub fn dev_data_dir(given: Option<&Path>, environment: &Environment) -> Result<PathBuf, PathError> {
    expand_tilde(given.unwrap_or(Path::new("~/.intentframe/dev-data")), environment)
}

/// Replaces a leading `~` with `HOME`, as a shell does.
///
/// # Errors
///
/// [`PathError`] if `HOME` is not set, and for `~name`, which only the user database could
/// resolve.
pub fn expand_tilde(path: &Path, environment: &Environment) -> Result<PathBuf, PathError> {
    let fail = |reason| Err(PathError { path: path.to_owned(), reason });
    let mut parts = path.components();
    match parts.next().map(|part| part.as_os_str().as_encoded_bytes()) {
        Some(b"~") => match environment.setting("HOME") {
            Some(home) => Ok(Path::new(home).join(parts)),
            None => fail("HOME is not set"),
        },
        Some([b'~', ..]) => fail("it begins with another user's home directory"),
        _ => Ok(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(vars: &[(&str, &str)]) -> Environment {
        vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_leading_tilde_is_the_home_directory() {
        let environment = environment(&[("HOME", "/home/ann")]);
        let expand = |path: &str| expand_tilde(Path::new(path), &environment);
        assert_eq!(expand("~"), Ok("/home/ann".into()));
        assert_eq!(expand("~/a/b"), Ok("/home/ann/a/b".into()));
        assert_eq!(expand("/a/~"), Ok("/a/~".into()));
        assert_eq!(expand("a~b"), Ok("a~b".into()));
        assert_eq!(expand("./~"), Ok("./~".into()));
        let error = expand("~bob/a").expect_err("another user's");
        assert!(error.to_string().contains("another user's home"), "{error}");
    }

    #[test]
    fn a_given_path_wins_over_the_environment_and_that_over_the_default() {
        let set = environment(&[("HOME", "/h"), (SOCKET_VARIABLE, "~/s"), (DATA_DIR_VARIABLE, "")]);
        assert_eq!(socket(Some(Path::new("~/o")), &set), Ok("/h/o".into()));
        assert_eq!(socket(None, &set), Ok("/h/s".into()));
        assert_eq!(data_dir(None, &set), Ok("/h/.intentframe/data".into()), "empty is unset");

        let bare = environment(&[]);
        let error = socket(None, &bare).expect_err("no home");
        assert!(error.to_string().contains("HOME is not set"), "{error}");
        assert_eq!(socket(Some(Path::new("/s")), &bare), Ok("/s".into()));
    }
}
