//! Where things are unless a setting says otherwise, and what `~` stands for.

use std::path::{Path, PathBuf};

use crate::environment::Environment;

/// The setting that names the service's socket.
pub const SOCKET_VARIABLE: &str = "INTENTFRAME_VAULT_SOCKET";

/// The setting that names the directory of the metadata database.
pub const DATA_DIR_VARIABLE: &str = "INTENTFRAME_DATA_DIR";

/// A path that cannot be made out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `~` stands for `HOME`, which is not set.
    #[error("HOME is not set, so {path:?} leads nowhere; set HOME, or write the path in full")]
    NoHome {
        /// The path as it was written.
        path: PathBuf,
    },
    /// `~name` would need the user database.
    #[error("{path:?} begins with another user's home, which is not looked up; write it in full")]
    OtherHome {
        /// The path as it was written.
        path: PathBuf,
    },
}

/// `path` with a leading `~` replaced by `HOME`, as a shell does.
///
/// # Errors
///
/// [`PathError`], when there is no `HOME`, or for `~name`.
pub fn expand_tilde(path: &Path, environment: &Environment) -> Result<PathBuf, PathError> {
    let mut parts = path.components();
    let first = parts.next().map(|part| part.as_os_str().as_encoded_bytes());
    match first {
        Some(b"~") => match environment.setting("HOME") {
            Some(home) => Ok(Path::new(home).join(parts)),
            None => Err(PathError::NoHome { path: path.to_owned() }),
        },
        Some([b'~', ..]) => Err(PathError::OtherHome { path: path.to_owned() }),
        _ => Ok(path.to_owned()),
    }
}

/// `~/.intentframe/run/credential-vault.sock`.
///
/// # Errors
///
/// [`PathError::NoHome`].
pub fn default_socket(environment: &Environment) -> Result<PathBuf, PathError> {
    expand_tilde(Path::new("~/.intentframe/run/credential-vault.sock"), environment)
}

/// `~/.intentframe/data`.
///
/// # Errors
///
/// [`PathError::NoHome`].
pub fn default_data_dir(environment: &Environment) -> Result<PathBuf, PathError> {
    expand_tilde(Path::new("~/.intentframe/data"), environment)
}

/// `~/.intentframe/dev-data`: never the directory of the real service.
///
/// # Errors
///
/// [`PathError::NoHome`].
pub fn default_dev_data_dir(environment: &Environment) -> Result<PathBuf, PathError> {
    expand_tilde(Path::new("~/.intentframe/dev-data"), environment)
}

/// The socket: that of an option, else of [`SOCKET_VARIABLE`], else the default.
///
/// # Errors
///
/// [`PathError`].
pub fn socket(option: Option<&Path>, environment: &Environment) -> Result<PathBuf, PathError> {
    match option.or_else(|| environment.setting(SOCKET_VARIABLE).map(Path::new)) {
        Some(path) => expand_tilde(path, environment),
        None => default_socket(environment),
    }
}

/// The data directory: that of an option, else of [`DATA_DIR_VARIABLE`], else the default.
///
/// # Errors
///
/// [`PathError`].
pub fn data_dir(option: Option<&Path>, environment: &Environment) -> Result<PathBuf, PathError> {
    match option.or_else(|| environment.setting(DATA_DIR_VARIABLE).map(Path::new)) {
        Some(path) => expand_tilde(path, environment),
        None => default_data_dir(environment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(vars: &[(&str, &str)]) -> Environment {
        vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_tilde_is_the_home_directory() {
        let environment = environment(&[("HOME", "/home/ann")]);
        let expand = |path: &str| expand_tilde(Path::new(path), &environment);
        assert_eq!(expand("~"), Ok("/home/ann".into()));
        assert_eq!(expand("~/a/b"), Ok("/home/ann/a/b".into()));
        assert_eq!(expand("/a/~"), Ok("/a/~".into()));
        assert_eq!(expand("a~b"), Ok("a~b".into()));
        assert_eq!(expand("./~"), Ok("./~".into()));
        assert_eq!(expand("~bob/a"), Err(PathError::OtherHome { path: "~bob/a".into() }));
    }

    #[test]
    fn options_win_over_the_environment_and_that_over_defaults() {
        let set = environment(&[("HOME", "/h"), (SOCKET_VARIABLE, "~/s"), (DATA_DIR_VARIABLE, "")]);
        assert_eq!(socket(Some(Path::new("~/o")), &set), Ok("/h/o".into()));
        assert_eq!(socket(None, &set), Ok("/h/s".into()));
        assert_eq!(data_dir(None, &set), Ok("/h/.intentframe/data".into()), "empty is unset");

        let bare = environment(&[]);
        assert!(matches!(socket(None, &bare), Err(PathError::NoHome { .. })));
        assert_eq!(socket(Some(Path::new("/s")), &bare), Ok("/s".into()));
    }
}
