//! What the backend is told: options first, then the environment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::error::{Field, VaultError};
use crate::secret::{Secret, SecretWatch};
use crate::settings::Environment;
use crate::transport::tls::TlsSettings;

/// What a [`HashiCorpVault`](super::HashiCorpVault) is made from. What is `None` is taken
/// from the environment variable that each field names, else from its default.
#[derive(Debug, Default)]
pub struct HashiCorpOptions {
    /// `VAULT_AGENT_ADDR`, else `VAULT_ADDR`: `https://host:port`, `http://host:port` or
    /// `unix:///path/to/socket`. There is no default.
    pub address: Option<String>,
    /// `VAULT_TOKEN`, or what `VAULT_TOKEN_FILE` holds. Where there is one it is used first.
    pub token: Option<Secret>,
    /// `VAULT_ROLE_ID`, or what `VAULT_ROLE_ID_FILE` holds.
    pub role_id: Option<Secret>,
    /// `VAULT_SECRET_ID`, or what `VAULT_SECRET_ID_FILE` holds.
    pub secret_id: Option<Secret>,
    /// `VAULT_SECRET_ID_WRAPPED`: the secret ID is a response-wrapping token (`false`).
    pub secret_id_wrapped: Option<bool>,
    /// `VAULT_NAMESPACE`.
    pub namespace: Option<String>,
    /// `VAULT_KV_MOUNT`: where the KV v2 engine is mounted (`secret`).
    pub kv_mount: Option<String>,
    /// `VAULT_PATH_PREFIX`: the folder of the secrets (`intentframe`).
    pub path_prefix: Option<String>,
    /// `VAULT_RENEW`: whether the token is renewed (`true`).
    pub renew: Option<bool>,
    /// `VAULT_CLIENT_TIMEOUT`, in seconds or as a duration such as `1m30s`: how long one
    /// operation may take, with all its retries (10 s).
    pub timeout: Option<Duration>,
    /// `VAULT_MAX_RETRIES`: how often a request is repeated that met a broken connection,
    /// or an answer that asks for it (2).
    pub max_retries: Option<u32>,
    /// `IF_VAULT_MAX_IN_FLIGHT`: how many requests may be under way to the server (16).
    pub max_in_flight: Option<usize>,
    /// Hears of tokens, and of secret IDs that were unwrapped or read from files.
    pub secret_watch: Option<SecretWatch>,
}

/// All of it, read and checked.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) address: Address,
    pub(super) tls: TlsSettings,
    pub(super) namespace: Option<String>,
    pub(super) mount: String,
    pub(super) prefix: String,
    pub(super) credentials: Credentials,
    pub(super) renew: bool,
    pub(super) timeout: Duration,
    pub(super) max_retries: u32,
    pub(super) max_in_flight: usize,
    pub(super) secret_watch: Option<SecretWatch>,
}

/// Where the server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A base such as `https://vault.example:8200`, without a slash at its end.
    Http(String),
    Unix(PathBuf),
}

/// What the backend may identify itself with. At least one is there, unless the address
/// is an agent's, which adds a token to requests that have none.
#[derive(Debug)]
pub(super) struct Credentials {
    pub(super) token: Option<Source>,
    pub(super) app_role: Option<AppRole>,
}

#[derive(Debug)]
pub(super) struct AppRole {
    pub(super) role_id: Source,
    pub(super) secret_id: Source,
    pub(super) wrapped: bool,
}

/// A text that is given, or read from a file each time it is needed.
#[derive(Debug)]
pub(super) enum Source {
    Given(Secret),
    File { variable: &'static str, path: PathBuf },
}

impl Source {
    /// The text, without white space around it.
    ///
    /// # Errors
    ///
    /// A text that names the file, when it cannot be read or is empty.
    pub(super) fn read(&self) -> Result<Secret, String> {
        match self {
            Self::Given(text) => Ok(Secret::new(text.expose().trim().to_owned())),
            Self::File { variable, path } => {
                let text = read_file(variable, path)?;
                match text.trim() {
                    "" => Err(format!("{variable}: {} is empty", path.display())),
                    text => Ok(Secret::new(text.to_owned())),
                }
            }
        }
    }
}

fn read_file(variable: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| format!("{variable}: {} cannot be read: {error}", path.display()))
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_MAX_RETRIES: u32 = 2;
const DEFAULT_MAX_IN_FLIGHT: usize = 16;

impl Settings {
    /// Reads what `options` leave open from `environment`.
    pub(super) fn new(
        options: HashiCorpOptions,
        environment: &Environment,
    ) -> Result<Self, VaultError> {
        Self::read(options, &Variables(environment))
            .map_err(|reason| VaultError::ValidationFailed { field: Field::Backend, reason })
    }

    fn read(options: HashiCorpOptions, variables: &Variables<'_>) -> Result<Self, String> {
        let agent = options.address.is_none() && variables.text("VAULT_AGENT_ADDR").is_some();
        let address = options
            .address
            .as_deref()
            .or_else(|| variables.text("VAULT_AGENT_ADDR"))
            .or_else(|| variables.text("VAULT_ADDR"))
            .ok_or("VAULT_ADDR is not set; set it to the server's address, such as https://vault.example:8200")?;
        let credentials = Credentials {
            token: variables.source(options.token, "VAULT_TOKEN", "VAULT_TOKEN_FILE"),
            app_role: app_role(
                variables.source(options.role_id, "VAULT_ROLE_ID", "VAULT_ROLE_ID_FILE"),
                variables.source(options.secret_id, "VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE"),
                variables.flag(options.secret_id_wrapped, "VAULT_SECRET_ID_WRAPPED", false)?,
            )?,
        };
        if credentials.token.is_none() && credentials.app_role.is_none() && !agent {
            return Err("there is nothing to log in with; set VAULT_TOKEN, or VAULT_ROLE_ID \
                        and VAULT_SECRET_ID (or one of their _FILE forms)"
                .to_owned());
        }
        let text = |option: Option<String>, name| option.or_else(|| variables.owned(name));
        let timeout = match (options.timeout, variables.text("VAULT_CLIENT_TIMEOUT")) {
            (Some(timeout), _) => timeout,
            (None, Some(text)) => parse_duration(text).ok_or(
                "VAULT_CLIENT_TIMEOUT is neither a number of seconds nor a duration such as 1m30s",
            )?,
            (None, None) => DEFAULT_TIMEOUT,
        };
        if timeout.is_zero() {
            return Err("VAULT_CLIENT_TIMEOUT is more than 0".to_owned());
        }
        let max_in_flight = variables
            .number(options.max_in_flight, "IF_VAULT_MAX_IN_FLIGHT")?
            .unwrap_or(DEFAULT_MAX_IN_FLIGHT);
        if max_in_flight == 0 {
            return Err("IF_VAULT_MAX_IN_FLIGHT is at least 1".to_owned());
        }
        let mount = text(options.kv_mount, "VAULT_KV_MOUNT").unwrap_or("secret".to_owned());
        let prefix =
            text(options.path_prefix, "VAULT_PATH_PREFIX").unwrap_or("intentframe".to_owned());
        Ok(Self {
            address: parse_address(address)?,
            tls: tls(variables)?,
            namespace: namespace(text(options.namespace, "VAULT_NAMESPACE"))?,
            mount: folder("VAULT_KV_MOUNT", &mount)?,
            prefix: folder("VAULT_PATH_PREFIX", &prefix)?,
            credentials,
            renew: variables.flag(options.renew, "VAULT_RENEW", true)?,
            timeout,
            max_retries: variables
                .number(options.max_retries, "VAULT_MAX_RETRIES")?
                .unwrap_or(DEFAULT_MAX_RETRIES),
            max_in_flight,
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
        (Some(_), None) => Err("VAULT_ROLE_ID is set without VAULT_SECRET_ID; set both".to_owned()),
        (None, Some(_)) => Err("VAULT_SECRET_ID is set without VAULT_ROLE_ID; set both".to_owned()),
    }
}

fn tls(variables: &Variables<'_>) -> Result<TlsSettings, String> {
    let file = |name: &'static str| {
        variables.text(name).map(|path| read_file(name, Path::new(path))).transpose()
    };
    let authorities = match variables.text("VAULT_CACERT_BYTES") {
        Some(pem) => Some(pem.to_owned()),
        None => file("VAULT_CACERT")?.map(|pem| pem.to_string()),
    };
    let identity = match (file("VAULT_CLIENT_CERT")?, file("VAULT_CLIENT_KEY")?) {
        (Some(chain), Some(key)) => Some((chain.to_string(), Secret::new(key.to_string()))),
        (None, None) => None,
        _ => return Err("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY go together; set both".to_owned()),
    };
    let skip_verify = variables.flag(None, "VAULT_SKIP_VERIFY", false)?;
    Ok(TlsSettings { authorities, identity, skip_verify })
}

/// The server's address. A slash at its end is not part of it.
fn parse_address(text: &str) -> Result<Address, String> {
    let unusable = || {
        "VAULT_ADDR is no address; it looks like https://vault.example:8200, \
         http://127.0.0.1:8200 or unix:///run/vault.sock"
            .to_owned()
    };
    if let Some(path) = text.strip_prefix("unix://") {
        return match path {
            "" => Err(unusable()),
            path => Ok(Address::Unix(path.into())),
        };
    }
    let base = text.trim_end_matches('/');
    let uri: ureq::http::Uri = base.parse().map_err(|_| unusable())?;
    // What comes before an @ is a password that would end up in messages.
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    match uri.scheme_str() {
        Some("http" | "https") if plain && uri.query().is_none() => {
            Ok(Address::Http(base.to_owned()))
        }
        _ => Err(unusable()),
    }
}

/// A path of one or more segments, without slashes around it.
fn folder(name: &str, text: &str) -> Result<String, String> {
    let folder = text.trim_matches('/');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._~@+/".contains(c);
    let is_path = |segment: &str| !matches!(segment, "" | "." | "..");
    if folder.chars().all(is_plain) && folder.split('/').all(is_path) {
        Ok(folder.to_owned())
    } else {
        Err(format!("{name} is a path of letters, digits, and -._~@+ between slashes"))
    }
}

fn namespace(text: Option<String>) -> Result<Option<String>, String> {
    match text {
        Some(text) if !text.chars().all(|c| c.is_ascii_graphic()) => {
            Err("VAULT_NAMESPACE has a character that no header can carry".to_owned())
        }
        text => Ok(text.map(|text| text.trim_matches('/').to_owned()).filter(|t| !t.is_empty())),
    }
}

/// Seconds, or numbers with units as Go writes them: `90`, `90s`, `1m30s`, `500ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let units = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(units);
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

/// The environment, for settings in which a wrong text is an error that names the
/// variable, and never shows its content.
struct Variables<'a>(&'a Environment);

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.0.setting(name)
    }

    fn owned(&self, name: &str) -> Option<String> {
        self.text(name).map(str::to_owned)
    }

    fn source(&self, option: Option<Secret>, name: &str, file: &'static str) -> Option<Source> {
        option
            .or_else(|| self.text(name).map(|text| Secret::new(text.to_owned())))
            .map(Source::Given)
            .or_else(|| {
                self.text(file).map(|path| Source::File { variable: file, path: path.into() })
            })
    }

    /// A truth value, as Go's `strconv.ParseBool` takes it.
    fn flag(&self, option: Option<bool>, name: &str, default: bool) -> Result<bool, String> {
        match (option, self.text(name)) {
            (Some(flag), _) => Ok(flag),
            (None, None) => Ok(default),
            (None, Some("1" | "t" | "T" | "true" | "TRUE" | "True")) => Ok(true),
            (None, Some("0" | "f" | "F" | "false" | "FALSE" | "False")) => Ok(false),
            (None, Some(_)) => Err(format!("{name} is either true or false")),
        }
    }

    fn number<T: std::str::FromStr>(
        &self,
        option: Option<T>,
        name: &str,
    ) -> Result<Option<T>, String> {
        match (option, self.text(name)) {
            (None, Some(text)) => {
                text.parse().map(Some).map_err(|_| format!("{name} is not a number"))
            }
            (option, _) => Ok(option),
        }
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
    fn defaults_are_those_of_the_documentation() {
        let settings = read(&[ADDRESS, TOKEN]).expect("enough");
        assert_eq!(settings.address, Address::Http("https://vault.example:8200".to_owned()));
        assert_eq!((&*settings.mount, &*settings.prefix), ("secret", "intentframe"));
        assert_eq!(settings.namespace, None);
        assert!(settings.renew && !settings.tls.skip_verify);
        assert_eq!(settings.timeout, Duration::from_secs(10));
        assert_eq!((settings.max_retries, settings.max_in_flight), (2, 16));
    }

    #[test]
    fn options_win_over_the_environment_and_an_agent_over_the_server() {
        let environment = [ADDRESS, TOKEN, ("VAULT_RENEW", "true"), ("VAULT_KV_MOUNT", "kv")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = HashiCorpOptions {
            address: Some("unix:///run/vault.sock".to_owned()),
            renew: Some(false),
            kv_mount: Some("/team/kv/".to_owned()),
            ..HashiCorpOptions::default()
        };
        let settings = Settings::new(options, &environment.into_iter().collect()).expect("enough");
        assert_eq!(settings.address, Address::Unix("/run/vault.sock".into()));
        assert_eq!(settings.mount, "team/kv");
        assert!(!settings.renew);

        let settings = read(&[ADDRESS, ("VAULT_AGENT_ADDR", "unix:///run/agent.sock")]);
        let settings = settings.expect("an agent adds the token");
        assert_eq!(settings.address, Address::Unix("/run/agent.sock".into()));
    }

    #[test]
    fn a_setting_that_cannot_be_is_named_and_not_shown() {
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
        for (name, value) in [("VAULT_KV_MOUNT", "a/../b"), ("VAULT_PATH_PREFIX", "a b")] {
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
    fn durations_are_seconds_or_as_go_writes_them() {
        let millis = |text| parse_duration(text).map(|duration| duration.as_millis());
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
