//! The settings, with their defaults and limits. `docs/vault.md` describes them.

use std::net::IpAddr;
use std::time::Duration;

use ureq::http::Uri;
use ureq::http::uri::Authority;

use crate::secret::SecretWatch;
use crate::settings::Environment;

use super::tls::Tls;
use super::variables::{DURATION, Form, NUMBER, SWITCH, Source, parsed};

/// The checked settings.
#[derive(Debug)]
pub(super) struct Settings {
    /// An `http://`, `https://` or `unix://` URL without a final slash.
    pub(super) address: String,
    pub(super) tls: Tls,
    /// Hosts that a redirect may lead to, besides that of `address`; without a port, any port.
    pub(super) redirect_hosts: Vec<Authority>,
    pub(super) namespace: Option<String>,
    pub(super) mount: String,
    pub(super) prefix: String,
    /// The name of this host, if the metadata is on the server too.
    pub(super) node: Option<String>,
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

const HOSTS: Form<Vec<Authority>> =
    ("hosts such as vault-2.example or vault-2.example:8200, separated by commas", |text| {
        let hosts = text.split(',').map(str::trim).filter(|host| !host.is_empty());
        hosts.map(|host| host.parse().ok()).collect()
    });
const METADATA: Form<bool> = ("local or vault", |text| match text {
    "local" => Some(false),
    "vault" => Some(true),
    _ => None,
});
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
const LARGEST_MAX_IN_FLIGHT: usize = 1024;

impl Settings {
    /// Reads and checks the settings.
    ///
    /// # Errors
    ///
    /// A text that names the missing or unusable variable.
    pub(super) fn new(
        environment: &Environment,
        secret_watch: Option<SecretWatch>,
    ) -> Result<Self, String> {
        let setting = |name| environment.setting(name);
        let agent = setting("VAULT_AGENT_ADDR");
        let address = parse_address(agent.or_else(|| setting("VAULT_ADDR")).ok_or(
            "VAULT_ADDR is not set; set it to the server's address, such as \
             https://vault.example:8200",
        )?)?;
        let token = Source::new(environment, "VAULT_TOKEN");
        let app_role = app_role(environment)?;
        if token.is_none() && app_role.is_none() && agent.is_none() {
            return Err("there is no credential for Vault; set VAULT_TOKEN, or VAULT_ROLE_ID \
                        and VAULT_SECRET_ID (or one of their _FILE forms)"
                .to_owned());
        }
        let timeout = parsed(environment, "VAULT_CLIENT_TIMEOUT", DURATION, DEFAULT_TIMEOUT)?;
        let max_in_flight = parsed(environment, "IF_VAULT_MAX_IN_FLIGHT", NUMBER, 16)?;
        if timeout.is_zero() || max_in_flight == 0 {
            return Err("VAULT_CLIENT_TIMEOUT and IF_VAULT_MAX_IN_FLIGHT must not be 0".to_owned());
        }
        let folder = |name, default| path(name, setting(name).unwrap_or(default), is_plain);
        let namespace = setting("VAULT_NAMESPACE")
            .filter(|text| !text.trim_matches('/').is_empty())
            .map(|text| path("VAULT_NAMESPACE", text, |c| c.is_ascii_graphic()));
        let is_shared = parsed(environment, "IF_VAULT_METADATA", METADATA, false)?;
        let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let node = || setting("IF_VAULT_NODE").map_or_else(host_name, str::to_owned);
        Ok(Self {
            node: is_shared.then(node),
            tls: Tls::new(environment, address.starts_with("https://"))?,
            redirect_hosts: parsed(environment, "VAULT_REDIRECT_HOSTS", HOSTS, Vec::new())?,
            address,
            namespace: namespace.transpose()?,
            mount: folder("VAULT_KV_MOUNT", "secret")?,
            prefix: folder("VAULT_PATH_PREFIX", "intentframe")?,
            token,
            app_role,
            renew: parsed(environment, "VAULT_RENEW", SWITCH, true)?,
            timeout: timeout.min(LONGEST_TIMEOUT),
            max_retries: parsed(environment, "VAULT_MAX_RETRIES", NUMBER, 2)?,
            max_in_flight: max_in_flight.min(LARGEST_MAX_IN_FLIGHT),
            secret_watch,
        })
    }

    /// Returns the URL of a redirect if it may have the request and its token: if it leads to
    /// the server itself, or to a host in `VAULT_REDIRECT_HOSTS`. It may not lead from an
    /// encrypted or a local connection to an unencrypted one in the network.
    ///
    /// # Errors
    ///
    /// A text that names the host and the setting.
    pub(super) fn redirect(&self, location: &str) -> Result<String, String> {
        let parts = |url: &str| {
            let uri: Uri = url.parse().ok()?;
            let (scheme, default_port) = match uri.scheme_str()? {
                "http" => ("http", 80),
                "https" => ("https", 443),
                _ => return None,
            };
            Some((scheme, uri.host()?.to_ascii_lowercase(), uri.port_u16().unwrap_or(default_port)))
        };
        let (Some(from), Some(to)) = (parts(&self.address), parts(location)) else {
            return Err("it redirects to a place that cannot be used, neither its own address \
                        nor a host in VAULT_REDIRECT_HOSTS"
                .to_owned());
        };
        let (scheme, host, port) = &to;
        let was_safe = from.0 == "https" || is_loopback(&from.1) && !is_loopback(host);
        let is_exposed = was_safe && *scheme == "http";
        let is_named = self.redirect_hosts.iter().any(|named| {
            named.host().eq_ignore_ascii_case(host) && named.port_u16().is_none_or(|it| it == *port)
        });
        if from == to || (is_named && !is_exposed) {
            return Ok(location.to_owned());
        }
        let problem = if is_exposed {
            "without encryption, which VAULT_REDIRECT_HOSTS cannot allow"
        } else {
            "which is not its own address nor named in VAULT_REDIRECT_HOSTS"
        };
        Err(format!("it redirects to {scheme}://{host}:{port}, {problem}"))
    }
}

/// Whether packets to this host of a URL stay on this machine.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

fn app_role(environment: &Environment) -> Result<Option<AppRole>, String> {
    let wrapped = parsed(environment, "VAULT_SECRET_ID_WRAPPED", SWITCH, false)?;
    let ids = ["VAULT_ROLE_ID", "VAULT_SECRET_ID"].map(|name| Source::new(environment, name));
    match ids {
        [Some(role_id), Some(secret_id)] => Ok(Some(AppRole { role_id, secret_id, wrapped })),
        [None, None] => Ok(None),
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
        Some("http" | "https") if has_no_user && uri.query().is_none() => {}
        _ => return Err(unusable()),
    }
    if uri.scheme_str() == Some("http") && !uri.host().is_some_and(is_loopback) {
        log::warn!(
            "VAULT_ADDR is {base}, without encryption: whoever is between can read the token and \
             every value; use https"
        );
    }
    Ok(base.to_owned())
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
        Settings::new(&environment, None)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let settings = read(&[ADDRESS, TOKEN]).expect("complete");
        assert_eq!(settings.address, "https://vault.example:8200");
        assert_eq!((&*settings.mount, &*settings.prefix), ("secret", "intentframe"));
        assert_eq!(settings.namespace, None);
        assert!(settings.renew && !settings.tls.config().expect("usable").disable_verification());
        assert_eq!(settings.timeout, Duration::from_secs(10));
        assert_eq!((settings.max_retries, settings.max_in_flight), (2, 16));
    }

    #[test]
    fn an_agent_overrides_the_server_and_needs_no_token() {
        let settings = read(&[ADDRESS, ("VAULT_AGENT_ADDR", "unix:///run/agent.sock")]);
        let settings = settings.expect("an agent adds the token");
        assert_eq!(settings.address, "unix:///run/agent.sock");
    }

    #[test]
    fn slashes_around_paths_do_not_matter() {
        let settings = read(&[ADDRESS, TOKEN, ("VAULT_KV_MOUNT", "/team/kv/")]);
        assert_eq!(settings.expect("complete").mount, "team/kv");
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
        let key = ("VAULT_CLIENT_KEY", "/nowhere/key");
        let half = read(&[ADDRESS, TOKEN, key]).expect_err("no certificate");
        assert!(half.contains("VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"), "{half}");
        let none = read(&[ADDRESS, TOKEN, key, ("VAULT_CLIENT_CERT", "/nowhere/chain")]);
        let none = none.expect_err("no file");
        assert!(none.contains("VAULT_CLIENT_CERT") && none.contains("/nowhere/chain"), "{none}");
        let url = read(&[ADDRESS, TOKEN, ("VAULT_REDIRECT_HOSTS", "a, https://sk-canary/")]);
        let url = url.expect_err("no host");
        assert!(url.contains("VAULT_REDIRECT_HOSTS") && !url.contains(canary), "{url}");
    }

    /// Only the server itself and the named hosts get a redirected request, and none of them
    /// gets one in the open that was not in the open before.
    #[test]
    fn redirects_lead_to_known_hosts_only() {
        let named = "Two.example, three.example:8200 ,127.0.0.1,[::1]:8200,plain.example,";
        let redirect = |address, location: &str| {
            let hosts = ("VAULT_REDIRECT_HOSTS", named);
            read(&[("VAULT_ADDR", address), TOKEN, hosts]).expect("complete").redirect(location)
        };
        let (https, plain) = ("https://vault.example:8200", "http://vault.example:8200");
        let (local, socket) = ("http://127.0.0.1:8200", "unix:///run/vault.sock");
        let followed = [
            (https, "https://vault.example:8200/v1/x"),
            (https, "https://VAULT.example:8200/v1/x"),
            ("https://vault.example", "https://vault.example:443/v1/x"),
            (https, "https://two.example/v1/x"),
            (https, "https://TWO.example:8200/v1/x"),
            (https, "https://three.example:8200/v1/x"),
            (plain, "http://vault.example:8200/v1/x"),
            (plain, "http://plain.example/v1/x"),
            (plain, "https://two.example/v1/x"),
            (local, "http://127.0.0.1:8200/v1/x"),
            (local, "http://127.0.0.1:8300/v1/x"),
            (local, "http://[::1]:8200/v1/x"),
            (local, "https://two.example/v1/x"),
        ];
        for (address, location) in followed {
            assert_eq!(redirect(address, location).as_deref(), Ok(location), "from {address}");
        }
        let refused = [
            (https, "https://vault.example/v1/x", "vault.example:443"),
            (https, "https://vault.example:8201/v1/x", "vault.example:8201"),
            (https, "https://evil.example:8200/v1/x", "evil.example:8200"),
            (https, "https://vault.example:8200@evil.example/v1/x", "evil.example:443"),
            (https, "https://vault.example.evil.example:8200/", "evil.example:8200"),
            (https, "https://three.example/v1/x", "three.example:443"),
            (https, "http://vault.example:8200/v1/x", "http://vault.example:8200, without"),
            (https, "http://two.example/v1/x", "http://two.example:80, without encryption"),
            (https, "http://127.0.0.1:8200/v1/x", "without encryption"),
            (plain, "http://evil.example/v1/x", "evil.example:80"),
            (local, "http://plain.example/v1/x", "http://plain.example:80, without encryption"),
            (local, "http://localhost:8200/v1/x", "localhost:8200"),
            (socket, "http://127.0.0.1:8200/v1/x", "cannot be used"),
            (https, "/v1/x", "cannot be used"),
            (https, "//two.example/v1/x", "cannot be used"),
            (https, "ftp://two.example/v1/x", "cannot be used"),
            (https, "https:///v1/x", "cannot be used"),
            (https, "two.example", "cannot be used"),
        ];
        for (address, location, says) in refused {
            let error = redirect(address, location).expect_err(location);
            assert!(error.contains(says) && error.contains("VAULT_REDIRECT_HOSTS"), "{error}");
        }
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
