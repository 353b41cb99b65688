//! The settings: options first, then the environment, then defaults.

use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::TlsConfig;

use crate::error::{Field, VaultError};
use crate::secret::{Secret, SecretWatch};
use crate::settings::Environment;

use super::tls;
use super::variables::{Source, Variables};

/// The options of a [`HashiCorpVault`](super::HashiCorpVault). A field that is `None` is
/// taken from the environment variable in its description, else from the default in
/// parentheses.
#[derive(Debug, Default)]
pub struct HashiCorpOptions {
    /// `VAULT_AGENT_ADDR`, else `VAULT_ADDR`: `https://host:port`, `http://host:port` or
    /// `unix:///path/to/socket`. Required.
    pub address: Option<String>,
    /// `VAULT_TOKEN`, or the content of `VAULT_TOKEN_FILE`. It is preferred to an `AppRole`.
    pub token: Option<Secret>,
    /// `VAULT_ROLE_ID`, or the content of `VAULT_ROLE_ID_FILE`.
    pub role_id: Option<Secret>,
    /// `VAULT_SECRET_ID`, or the content of `VAULT_SECRET_ID_FILE`.
    pub secret_id: Option<Secret>,
    /// `VAULT_SECRET_ID_WRAPPED`: the secret ID is a response-wrapping token (`false`).
    pub secret_id_wrapped: Option<bool>,
    /// `VAULT_NAMESPACE` (none).
    pub namespace: Option<String>,
    /// `VAULT_KV_MOUNT`: the mount of the KV v2 engine (`secret`).
    pub kv_mount: Option<String>,
    /// `VAULT_PATH_PREFIX`: the folder of the secrets (`intentframe`).
    pub path_prefix: Option<String>,
    /// `VAULT_RENEW`: whether the token is renewed (`true`).
    pub renew: Option<bool>,
    /// `VAULT_CLIENT_TIMEOUT`, in seconds or as a duration such as `1m30s`: the limit of one
    /// operation with all its retries, at most a day (10 s).
    pub timeout: Option<Duration>,
    /// `VAULT_MAX_RETRIES`: how often a request is repeated after a broken connection or an
    /// answer that asks for it (2).
    pub max_retries: Option<u32>,
    /// `IF_VAULT_MAX_IN_FLIGHT`: how many requests the server is sent at a time, at most
    /// 1,024 (16).
    pub max_in_flight: Option<usize>,
    /// Called with each token, and each secret ID that was unwrapped or read from a file.
    pub secret_watch: Option<SecretWatch>,
}

/// The checked settings.
#[derive(Debug)]
pub(super) struct Settings {
    /// An `http://`, `https://` or `unix://` URL without a final slash.
    pub(super) address: String,
    pub(super) tls: TlsConfig,
    pub(super) namespace: Option<String>,
    pub(super) mount: String,
    pub(super) prefix: String,
    /// Only requests to an agent may have neither a token nor an `AppRole`: it adds its own
    /// token to them.
    pub(super) token: Option<Source>,
    pub(super) app_role: Option<AppRole>,
    pub(super) renew: bool,
    pub(super) timeout: Duration,
    pub(super) max_retries: usize,
    pub(super) max_in_flight: usize,
    pub(super) secret_watch: Option<SecretWatch>,
}

#[derive(Debug)]
pub(super) struct AppRole {
    pub(super) role_id: Source,
    pub(super) secret_id: Source,
    /// The secret ID is a response-wrapping token.
    pub(super) wrapped: bool,
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_hours(24);
const LARGEST_MAX_IN_FLIGHT: usize = 1024;

impl Settings {
    /// Reads and checks the settings.
    ///
    /// # Errors
    ///
    /// [`VaultError::ValidationFailed`], which names the variable.
    pub(super) fn new(
        options: HashiCorpOptions,
        environment: &Environment,
    ) -> Result<Self, VaultError> {
        Self::read(options, &Variables(environment))
            .map_err(|reason| VaultError::ValidationFailed { field: Field::Backend, reason })
    }

    fn read(options: HashiCorpOptions, variables: &Variables<'_>) -> Result<Self, String> {
        let text = |option: Option<String>, name: &str| {
            option.or_else(|| variables.text(name).map(str::to_owned))
        };
        let is_agent = options.address.is_none() && variables.text("VAULT_AGENT_ADDR").is_some();
        let address =
            text(options.address, "VAULT_AGENT_ADDR").or_else(|| text(None, "VAULT_ADDR")).ok_or(
                "VAULT_ADDR is not set; set it to the server's address, such as \
                 https://vault.example:8200",
            )?;
        let address = parse_address(&address)?;
        let token = variables.source(options.token, "VAULT_TOKEN", "VAULT_TOKEN_FILE");
        let app_role = app_role(
            variables.source(options.role_id, "VAULT_ROLE_ID", "VAULT_ROLE_ID_FILE"),
            variables.source(options.secret_id, "VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE"),
            variables.parsed(options.secret_id_wrapped, "VAULT_SECRET_ID_WRAPPED", false)?,
        )?;
        if token.is_none() && app_role.is_none() && !is_agent {
            return Err("there is no credential for Vault; set VAULT_TOKEN, or VAULT_ROLE_ID \
                        and VAULT_SECRET_ID (or one of their _FILE forms)"
                .to_owned());
        }
        let timeout = variables.parsed(options.timeout, "VAULT_CLIENT_TIMEOUT", DEFAULT_TIMEOUT)?;
        let max_in_flight =
            variables.parsed(options.max_in_flight, "IF_VAULT_MAX_IN_FLIGHT", 16)?;
        if timeout.is_zero() || max_in_flight == 0 {
            return Err("VAULT_CLIENT_TIMEOUT and IF_VAULT_MAX_IN_FLIGHT must not be 0".to_owned());
        }
        let max_retries = options.max_retries.map(|number| number as usize);
        let folder = |option, name, default: &str| {
            path(name, text(option, name).as_deref().unwrap_or(default), is_plain)
        };
        let namespace = text(options.namespace, "VAULT_NAMESPACE")
            .filter(|text| !text.trim_matches('/').is_empty())
            .map(|text| path("VAULT_NAMESPACE", &text, |c| c.is_ascii_graphic()));
        Ok(Self {
            tls: tls::config(variables, address.starts_with("https://"))?,
            address,
            namespace: namespace.transpose()?,
            mount: folder(options.kv_mount, "VAULT_KV_MOUNT", "secret")?,
            prefix: folder(options.path_prefix, "VAULT_PATH_PREFIX", "intentframe")?,
            token,
            app_role,
            renew: variables.parsed(options.renew, "VAULT_RENEW", true)?,
            timeout: timeout.min(LONGEST_TIMEOUT),
            max_retries: variables.parsed(max_retries, "VAULT_MAX_RETRIES", 2)?,
            max_in_flight: max_in_flight.min(LARGEST_MAX_IN_FLIGHT),
            secret_watch: options.secret_watch,
        })
    }
}

fn app_role(
    role_id: Option<Source>,
    secret_id: Option<Source>,
    wrapped: bool,
) -> Result<Option<AppRole>, String> {
    match (role_id, secret_id) {
        (Some(role_id), Some(secret_id)) => Ok(Some(AppRole { role_id, secret_id, wrapped })),
        (None, None) => Ok(None),
        _ => Err("VAULT_ROLE_ID and VAULT_SECRET_ID go together; set both".to_owned()),
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    let unusable = || {
        "VAULT_ADDR is not an address; write it as https://vault.example:8200, \
         http://127.0.0.1:8200 or unix:///run/vault.sock"
            .to_owned()
    };
    if let Some(path) = text.strip_prefix("unix://") {
        return if path.is_empty() { Err(unusable()) } else { Ok(text.to_owned()) };
    }
    let base = text.trim_end_matches('/');
    let uri: Uri = base.parse().map_err(|_| unusable())?;
    // The part before an @ is a password, which messages would show.
    let has_no_user = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    match uri.scheme_str() {
        Some("http" | "https") if has_no_user && uri.query().is_none() => Ok(base.to_owned()),
        _ => Err(unusable()),
    }
}

/// Whether the character needs no encoding in a URL.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~@+".contains(c)
}

/// A path of one or more segments, without slashes around it.
fn path(name: &str, text: &str, is_allowed: fn(char) -> bool) -> Result<String, String> {
    let path = text.trim_matches('/');
    let is_name =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(is_allowed);
    if path.split('/').all(is_name) {
        Ok(path.to_owned())
    } else {
        Err(format!("{name} must be a path; use letters, digits and -._~@+ between slashes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: (&str, &str) = ("VAULT_ADDR", "https://vault.example:8200/");
    const TOKEN: (&str, &str) = ("VAULT_TOKEN", "canary");

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let environment =
            variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Settings::new(HashiCorpOptions::default(), &environment).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let settings = read(&[ADDRESS, TOKEN]).expect("complete");
        assert_eq!(settings.address, "https://vault.example:8200");
        assert_eq!((&*settings.mount, &*settings.prefix), ("secret", "intentframe"));
        assert_eq!(settings.namespace, None);
        assert!(settings.renew && !settings.tls.disable_verification());
        assert_eq!(settings.timeout, Duration::from_secs(10));
        assert_eq!((settings.max_retries, settings.max_in_flight), (2, 16));
    }

    #[test]
    fn options_override_the_environment_and_an_agent_overrides_the_server() {
        let environment = [ADDRESS, TOKEN, ("VAULT_RENEW", "true"), ("VAULT_KV_MOUNT", "kv")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = HashiCorpOptions {
            address: Some("unix:///run/vault.sock".to_owned()),
            renew: Some(false),
            kv_mount: Some("/team/kv/".to_owned()),
            ..HashiCorpOptions::default()
        };
        let settings =
            Settings::new(options, &environment.into_iter().collect()).expect("complete");
        assert_eq!(settings.address, "unix:///run/vault.sock");
        assert_eq!(settings.mount, "team/kv");
        assert!(!settings.renew);

        let settings = read(&[ADDRESS, ("VAULT_AGENT_ADDR", "unix:///run/agent.sock")]);
        let settings = settings.expect("an agent adds the token");
        assert_eq!(settings.address, "unix:///run/agent.sock");
    }

    #[test]
    fn an_unusable_setting_is_named_and_not_shown() {
        let canary = "sk-canary";
        for name in [
            "VAULT_RENEW",
            "VAULT_SKIP_VERIFY",
            "VAULT_CLIENT_TIMEOUT",
            "VAULT_MAX_RETRIES",
            "IF_VAULT_MAX_IN_FLIGHT",
            "VAULT_SECRET_ID_WRAPPED",
        ] {
            let error = read(&[ADDRESS, TOKEN, (name, canary)]).expect_err(name);
            assert!(error.contains(name) && !error.contains(canary), "{error}");
        }
        for address in [canary, "ftp://x", "https://user:sk-canary@x", "unix://", "https://x/?q"] {
            let error = read(&[("VAULT_ADDR", address), TOKEN]).expect_err(address);
            assert!(error.contains("VAULT_ADDR") && !error.contains(canary), "{error}");
        }
        let others =
            [("VAULT_KV_MOUNT", "a/../b"), ("VAULT_PATH_PREFIX", "a b"), ("VAULT_NAMESPACE", "ä")];
        for (name, value) in others {
            assert!(read(&[ADDRESS, TOKEN, (name, value)]).expect_err(value).contains(name));
        }
        assert!(read(&[TOKEN]).expect_err("no address").contains("VAULT_ADDR"));
        assert!(read(&[ADDRESS]).expect_err("no token").contains("VAULT_TOKEN"));
        let half = read(&[ADDRESS, ("VAULT_ROLE_ID", canary)]).expect_err("half a login");
        assert!(half.contains("VAULT_SECRET_ID") && !half.contains(canary), "{half}");
        let half = read(&[ADDRESS, TOKEN, ("VAULT_CLIENT_KEY", "/nowhere")]).expect_err("no file");
        assert!(half.contains("VAULT_CLIENT_KEY") && half.contains("/nowhere"), "{half}");
    }

    #[test]
    fn huge_numbers_are_clamped() {
        let huge = "18446744073709551615";
        let settings =
            [ADDRESS, TOKEN, ("VAULT_CLIENT_TIMEOUT", huge), ("IF_VAULT_MAX_IN_FLIGHT", huge)];
        let settings = read(&settings).expect("complete");
        assert_eq!(settings.timeout, LONGEST_TIMEOUT);
        assert_eq!(settings.max_in_flight, LARGEST_MAX_IN_FLIGHT);
    }
}
