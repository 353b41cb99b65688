//! Checks the name of the environment variable that delivers a credential.
//!
//! A variable affects more than the program it is meant for: loaders, shells, interpreters and
//! libraries have variables that make them load or run something, and others that name a proxy
//! or the certificates to trust. These names are rejected when a credential is stored, and again
//! when a process is started.
//!
//! This guards against accidents. It is not a boundary: no list has the variables of every
//! program, and whoever may store a value can also choose what the value does.

/// The longest name, in bytes.
pub const MAX_BYTES: usize = 255;

/// Why a name is rejected. It does not repeat the name, which may be a value in the wrong
/// place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvNameProblem {
    /// Some shells and programs cannot read a variable with this name.
    #[error("the name of a variable has the form [A-Za-z_][A-Za-z0-9_]*, up to {MAX_BYTES} bytes")]
    Malformed,
    /// The variable can make a loader, a shell, an interpreter or a tool load or run something,
    /// or tells a process where its files are, which proxy to use, or which servers to trust.
    #[error("this variable steers what a process runs or trusts, so it cannot hold a credential")]
    Denied,
}

/// Checks that a name matches `[A-Za-z_][A-Za-z0-9_]*`, and that the variable is not known to
/// change what a process runs or trusts. Ignores case, as some of the programs that read these variables do.
///
/// # Errors
///
/// [`EnvNameProblem`].
///
/// ```
/// use intentframe_credentials::env_name::{EnvNameProblem, check};
/// assert_eq!(check("OPENAI_API_KEY"), Ok(()));
/// assert_eq!(check("LD_PRELOAD"), Err(EnvNameProblem::Denied));
/// assert_eq!(check("API-KEY"), Err(EnvNameProblem::Malformed));
/// ```
pub fn check(name: &str) -> Result<(), EnvNameProblem> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !starts_well || !is_plain || name.len() > MAX_BYTES {
        return Err(EnvNameProblem::Malformed);
    }
    let name = name.to_ascii_uppercase();
    let is_denied = denied().any(|pattern| matches(pattern, &name));
    if is_denied { Err(EnvNameProblem::Denied) } else { Ok(()) }
}

/// The names, and families of names: see the file.
fn denied() -> impl Iterator<Item = &'static str> {
    let lines = include_str!("env_names.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace)
}

/// Whether `name`, which is ASCII, is `pattern`, in which each `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|at| matches(rest, &name[at..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_names_are_accepted() {
        for name in [
            "OPENAI_API_KEY",
            "_x",
            "a",
            "VAULT_TOKEN",
            "CARGO_REGISTRY_TOKEN",
            "NPM_TOKEN",
            "PYTHONANYWHERE_API_TOKEN",
            "GIT_TOKEN",
            "NODE_AUTH_TOKEN",
            "LDAP_PASSWORD",
            "PATH_TOKEN",
            "OPENAI_BASE_URL",
            "AWS_SECRET_ACCESS_KEY",
            "COR_API_KEY",
            "DOCKER_AUTH_CONFIG",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "KUBE_TOKEN",
            "PIP_EXTRA_INDEX_URL",
            "PROXY_PASSWORD",
            "PSQL_PASSWORD",
            "SSL_KEY_PASSWORD",
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        assert_eq!(check(&"N".repeat(MAX_BYTES)), Ok(()));
    }

    #[test]
    fn names_that_no_shell_reads_are_malformed() {
        for name in ["", "1A", "A-B", "A B", "A=B", "A\0", "É", "A\n", "BASH_FUNC_x%%", "a.b"] {
            assert_eq!(check(name), Err(EnvNameProblem::Malformed), "{name:?}");
        }
        assert_eq!(check(&"N".repeat(MAX_BYTES + 1)), Err(EnvNameProblem::Malformed));
    }

    #[test]
    fn variables_that_change_what_a_process_runs_or_trusts_are_denied() {
        for name in [
            "LD_PRELOAD",
            "LD_AUDIT",
            "ld_library_path",
            "DYLD_INSERT_LIBRARIES",
            "PATH",
            "BASH_ENV",
            "PYTHONPATH",
            "NODE_OPTIONS",
            "JAVA_TOOL_OPTIONS",
            "_JAVA_OPTIONS",
            "GIT_SSH_COMMAND",
            "GIT_CONFIG_KEY_0",
            "LUA_INIT_5_4",
            "npm_config_script_shell",
            "IF_VAULT_BACKEND",
            "INTENTFRAME_VAULT_SOCKET",
            // Each was once accepted, and ran a program.
            "DBUS_SESSION_BUS_ADDRESS",
            "KUBECONFIG",
            "AWS_CONFIG_FILE",
            "SSH_SK_HELPER",
            "GOCACHEPROG",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
            "PYTEST_ADDOPTS",
            "APT_CONFIG",
            "TCL_LIBRARY",
            "VIMRUNTIME",
            // Each sent requests to another server.
            "HTTPS_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "NODE_EXTRA_CA_CERTS",
        ] {
            assert_eq!(check(name), Err(EnvNameProblem::Denied), "{name}");
        }
    }

    #[test]
    fn the_list_is_in_upper_case_and_has_no_name_twice() {
        assert!(denied().count() > 200);
        for pattern in denied() {
            assert!(!pattern.is_empty() && pattern == pattern.to_ascii_uppercase(), "{pattern:?}");
            for name in [pattern.replace('*', ""), pattern.replace('*', "_X_")] {
                assert_eq!(check(&name), Err(EnvNameProblem::Denied), "{name:?}");
            }
            let also = denied().filter(|other| matches(other, &pattern.replace('*', "\0")));
            assert_eq!(also.collect::<Vec<_>>(), [pattern]);
        }
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("A", "A", true),
            ("A", "AB", false),
            ("A*", "A", true),
            ("A*", "ABC", true),
            ("*C", "ABC", true),
            ("*C", "ABCD", false),
            ("A_*_B", "A_X_Y_B", true),
            ("A_*_B", "A_B", false),
            ("A*B*C", "AXBXBXC", true),
            ("A*B*C", "AXCXB", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
