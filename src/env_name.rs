//! Checks the name of the environment variable that delivers a credential.
//!
//! A variable affects more than the program it is meant for: loaders, shells, interpreters and
//! libraries have variables that make them load or run something. Permission to store a
//! credential must not become permission to choose what a process runs. So these names are
//! rejected when a credential is stored, and again when a process is started.

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
    /// or tells a process where its files are.
    #[error("this variable steers what a process runs, so it cannot hold a credential")]
    Denied,
}

/// Checks that a name matches `[A-Za-z_][A-Za-z0-9_]*`, and that the variable cannot change what
/// a process runs. Ignores case, as some of the programs that read these variables do.
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
    if is_denied(&name) { Err(EnvNameProblem::Denied) } else { Ok(()) }
}

fn is_denied(name: &str) -> bool {
    DENIED.iter().flat_map(|line| line.split(' ')).any(|denied| match denied.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == denied,
    })
}

/// Names, and prefixes of families to which a new release of a program may add. Separated by
/// spaces.
const DENIED: &[&str] = &[
    // The loader: ld.so(8), dyld(1), rld(5).
    "LD_* DYLD_* _RLD*",
    // Where a process finds its home, its programs and its files.
    "HOME LOGNAME OLDPWD PATH PATHEXT PWD SHELL TEMP TMP TMPDIR USER XDG_* _",
    // Read by libc, but not in privileged programs (ld.so(8), "Secure-execution mode").
    "GCONV_PATH GETCONF_DIR GLIBC_TUNABLES HOSTALIASES LOCALDOMAIN LOCPATH MALLOC_*",
    "NIS_PATH NLSPATH RESOLV_HOST_CONF RES_OPTIONS TERMCAP TERMINFO* TERMPATH TZDIR",
    // Shells.
    "BASHOPTS BASH_* CDPATH COMSPEC ENV FISH_FUNCTION_PATH FPATH GLOBIGNORE HISTFILE IFS",
    "INPUTRC KSH_VERSION NULLCMD POSIXLY_CORRECT PROMPT_COMMAND PS0 PS1 PS2 PS3 PS4",
    "PSMODULEPATH READNULLCMD RPROMPT SHELLOPTS ZDOTDIR",
    // Interpreters and virtual machines.
    "ASPNETCORE_HOSTINGSTARTUP* BUNDLE_GEMFILE BUNDLE_PATH BUN_OPTIONS",
    "CAML_LD_LIBRARY_PATH CLASSPATH COMPLUS_* CORECLR_* COR_* DENO_DIR",
    "DOTNET_ADDITIONAL_DEPS DOTNET_ROOT DOTNET_SHARED_STORE DOTNET_STARTUP_HOOKS",
    "ELECTRON_RUN_AS_NODE ELIXIR_ERL_OPTIONS EMACSLOADPATH ERL_AFLAGS ERL_FLAGS ERL_LIBS",
    "ERL_ZFLAGS GEM_HOME GEM_PATH GUILE_LOAD_* JAVA_HOME JAVA_OPTS JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS JULIA_DEPOT_PATH JULIA_LOAD_PATH JULIA_PROJECT LUA_CPATH* LUA_INIT*",
    "LUA_PATH* NODE_EXTRA_CA_CERTS NODE_OPTIONS NODE_PATH NODE_REPL_EXTERNAL_MODULE",
    "NODE_TLS_REJECT_UNAUTHORIZED NODE_V8_COVERAGE OCAMLRUNPARAM PERL5* PERLIO",
    "PERLIO_DEBUG PERLLIB PHPRC PHP_INI_SCAN_DIR PYTHONBREAKPOINT PYTHONCASEOK",
    "PYTHONEXECUTABLE PYTHONHOME PYTHONINSPECT PYTHONPATH PYTHONPLATLIBDIR",
    "PYTHONPYCACHEPREFIX PYTHONSTARTUP PYTHONUSERBASE PYTHONWARNINGS PYTHON_PRESITE",
    "RUBYLIB RUBYOPT RUBYSHELL R_ENVIRON* R_HOME R_LIBS* R_PROFILE* TCLLIBPATH",
    "VIRTUAL_ENV _JAVA_OPTIONS",
    // Build tools.
    "ANT_OPTS AR AS CARGO_BUILD_RUST* CARGO_ENCODED_RUSTFLAGS CARGO_HOME CC CFLAGS",
    "COMPILER_PATH CPP CXX CXXFLAGS GCC_EXEC_PREFIX GNUMAKEFLAGS GOENV GOFLAGS GOPATH",
    "GOROOT GOTOOLCHAIN GRADLE_OPTS LD LDFLAGS MAKEFILES MAKEFLAGS MAVEN_ARGS MAVEN_OPTS",
    "MFLAGS NPM_CONFIG_GIT NPM_CONFIG_GLOBALCONFIG NPM_CONFIG_NODE_OPTIONS",
    "NPM_CONFIG_PREFIX NPM_CONFIG_SCRIPT_SHELL NPM_CONFIG_SHELL NPM_CONFIG_USERCONFIG",
    "RUSTC* RUSTDOC RUSTDOCFLAGS RUSTFLAGS RUSTUP_HOME RUSTUP_TOOLCHAIN SBT_OPTS",
    // Tools that run other programs.
    "BROWSER CURL_HOME CVS_RSH EDITOR EXINIT FZF_DEFAULT_COMMAND FZF_DEFAULT_OPTS",
    "GIT_ALLOW_PROTOCOL GIT_ASKPASS GIT_COMMON_DIR GIT_CONFIG* GIT_DIR GIT_EDITOR",
    "GIT_EXEC_PATH GIT_EXTERNAL_DIFF GIT_PAGER GIT_PROXY_COMMAND GIT_SEQUENCE_EDITOR",
    "GIT_SSH GIT_SSH_COMMAND GIT_TEMPLATE_DIR GIT_WORK_TREE GREP_OPTIONS HGEDITOR HGMERGE",
    "HGRCPATH LESS LESSCLOSE LESSEDIT LESSKEY LESSKEYIN LESSOPEN MANPAGER PAGER",
    "RIPGREP_CONFIG_PATH RSYNC_RSH SSH_ASKPASS SUDO_ASKPASS SUDO_EDITOR SVN_SSH",
    "SYSTEMD_EDITOR SYSTEMD_PAGER TAR_OPTIONS VIMINIT VISUAL WGETRC",
    // Libraries that load plugins.
    "ALSA_CONFIG_PATH GIO_EXTRA_MODULES GIO_MODULE_DIR GST_PLUGIN_* GTK_EXE_PREFIX",
    "GTK_IM_MODULE_FILE GTK_MODULES GTK_PATH KRB5_CONFIG LIBGL_DRIVERS_PATH",
    "LIBVA_DRIVERS_PATH OCL_ICD_VENDORS OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES",
    "P11_KIT_CONFIG QML2_IMPORT_PATH QML_IMPORT_PATH QT_PLUGIN_PATH",
    "QT_QPA_PLATFORM_PLUGIN_PATH SASL_PATH SSLKEYLOGFILE VK_ICD_FILENAMES VK_LAYER_PATH",
    // Set by a service manager, or by the vault itself.
    "CREDENTIALS_DIRECTORY IF_VAULT_* INTENTFRAME_DATA_DIR INTENTFRAME_VAULT_SOCKET",
    "LISTEN_FD* LISTEN_PID NOTIFY_SOCKET",
];

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
    fn variables_that_change_what_a_process_runs_are_denied() {
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
            "GIT_SSH_COMMAND",
            "GIT_CONFIG_KEY_0",
            "LUA_INIT_5_4",
            "npm_config_script_shell",
            "IF_VAULT_BACKEND",
            "INTENTFRAME_VAULT_SOCKET",
        ] {
            assert_eq!(check(name), Err(EnvNameProblem::Denied), "{name}");
        }
    }

    #[test]
    fn the_table_is_in_upper_case_and_has_no_empty_name() {
        for name in DENIED.iter().flat_map(|line| line.split(' ')) {
            let name = name.trim_end_matches('*');
            assert!(!name.is_empty() && name == name.to_ascii_uppercase(), "{name:?}");
            assert_eq!(check(name), Err(EnvNameProblem::Denied), "{name:?}");
        }
    }
}
