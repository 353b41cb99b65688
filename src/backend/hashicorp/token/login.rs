//! The requests about tokens, and what their answers mean.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use ureq::http::HeaderValue;

use crate::backend::hashicorp::http::Http;
use crate::backend::hashicorp::message::{
    Error, Reply, Request, Unavailable, number, text, wiped_json,
};
use crate::secret::Secret;

/// A token's lifetime, as the server states it.
#[derive(Clone, Copy)]
pub(super) struct Lease {
    /// The time until it expires; `None` if it does not expire.
    pub(super) ttl: Option<Duration>,
    pub(super) renewable: bool,
}

impl Lease {
    /// From part of an answer, where 0 seconds mean that the token does not expire.
    fn in_json(json: &Value, seconds: &str) -> Self {
        // A century: a lease of 2^64 seconds would overflow the clock.
        const LONGEST: u64 = 100 * 365 * 24 * 3600;

        let seconds = number(json, seconds).min(LONGEST);
        let ttl = (seconds > 0).then(|| Duration::from_secs(seconds));
        Self { ttl, renewable: json["renewable"] == true }
    }

    /// The lease of a token that is known to expire.
    fn expiring(self) -> Self {
        Self { ttl: self.ttl.or(Some(Duration::ZERO)), ..self }
    }
}

/// The answer to a login and to a renewal.
pub(super) struct Login {
    pub(super) token: Secret,
    pub(super) lease: Lease,
    /// How many requests the token is good for; 0 for any number.
    pub(super) uses: u64,
}

impl Login {
    fn in_reply(reply: &Reply) -> Option<Self> {
        let mut json = reply.json();
        let token = Secret::new(text(&mut json, "/auth/client_token")?);
        let lease = Lease::in_json(&json["auth"], "/lease_duration");
        reply.is_success().then(|| Self { token, lease, uses: number(&json, "/auth/num_uses") })
    }
}

/// Logs in by `AppRole`.
pub(super) fn log_in(http: &Http, role_id: &Secret, secret_id: &Secret) -> Result<Login, Error> {
    let login = BTreeMap::from([("role_id", role_id.expose()), ("secret_id", secret_id.expose())]);
    let body = wiped_json(&login);
    let reply = http.send(&Request::with_body("POST", "auth/approle/login", &body), None)?;
    Login::in_reply(&reply).ok_or_else(|| {
        Error::Refused(format!(
            "the AppRole login was refused ({}); check VAULT_ROLE_ID and VAULT_SECRET_ID, and \
             whether the secret ID has expired or been used up",
            reply.explain()
        ))
    })
}

/// Renews the token. The inner error says why the server refuses.
pub(super) fn renew(http: &Http, token: &Secret) -> Result<Result<Lease, String>, Unavailable> {
    // The keeper repeats it, more slowly: the token is still good. One that can be renewed does
    // expire, so 0 seconds are less than one.
    let request = Request::with_body("POST", "auth/token/renew-self", b"{}");
    let reply = http.send(&Request { may_repeat: false, ..request }, Some(token))?;
    let lease = Login::in_reply(&reply).map(|login| login.lease.expiring());
    Ok(lease.ok_or_else(|| reply.explain()))
}

/// Looks the token up. Returns `None` if it is dead, or may not look itself up.
pub(super) fn look_up(http: &Http, token: &Secret) -> Result<Option<Lease>, Unavailable> {
    let reply = http.send(&Request::new("GET", "auth/token/lookup-self"), Some(token))?;
    if reply.status == 403 {
        return Ok(None);
    }
    if !reply.is_success() {
        return Err(Unavailable::new(reply.explain()));
    }
    let json = reply.json();
    if json.pointer("/data").is_none() {
        return Err(Unavailable::new("the server at VAULT_ADDR is not Vault"));
    }
    let lease = Lease::in_json(&json["data"], "/ttl");
    // In the last second of a token's life its TTL is 0, too.
    Ok(Some(if json["data"]["expire_time"].is_null() { lease } else { lease.expiring() }))
}

/// Unwraps a secret ID. A wrapping token that `AppRole` did not make, or that has been
/// unwrapped before, means that somebody has intercepted it.
pub(super) fn unwrap(http: &Http, wrapping: &Secret) -> Result<Secret, Error> {
    let refused = |reason: &str| {
        Error::Refused(format!(
            "the wrapped secret ID cannot be used: {reason}; if nobody here has unwrapped it, \
             treat it as stolen and create a new one"
        ))
    };
    let answered = |request: Request<'_>| {
        let reply = http.send(&request, Some(wrapping))?;
        if reply.is_success() { Ok(reply) } else { Err(refused(&reply.explain())) }
    };
    let mut wrapped = answered(Request::new("POST", "sys/wrapping/lookup"))?.json();
    let path = text(&mut wrapped, "/data/creation_path")
        .ok_or_else(|| refused("Vault does not say where it was made"))?;
    if !is_secret_id_path(&path) {
        return Err(refused("it was not made by AppRole"));
    }
    let reply = answered(Request::new("POST", "sys/wrapping/unwrap"))?;
    let secret_id = text(&mut reply.json(), "/data/secret_id");
    secret_id.map(Secret::new).ok_or_else(|| refused("it contains no secret ID"))
}

/// Whether `AppRole` makes secret IDs at this path: `auth/<mount>/role/<name>/secret-id`.
fn is_secret_id_path(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    match *segments {
        ["auth", .., "role", name, "secret-id"] => segments.len() >= 5 && !name.is_empty(),
        _ => false,
    }
}

/// Checks that the token fits in a header.
pub(super) fn checked(token: Secret) -> Result<Secret, String> {
    if !token.is_empty() && HeaderValue::from_str(token.expose()).is_ok() {
        Ok(token)
    } else {
        Err("the token is empty, or contains characters that no token has".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_app_role_makes_wrapped_secret_ids() {
        assert!(is_secret_id_path("auth/approle/role/vault/secret-id"));
        assert!(is_secret_id_path("auth/team/approle/role/vault/secret-id"));
        for path in [
            "sys/wrapping/wrap",
            "auth/approle/role/vault/custom-secret-id",
            "auth/approle/role//secret-id",
            "auth/role/vault/secret-id",
            "x/auth/approle/role/vault/secret-id",
            "",
        ] {
            assert!(!is_secret_id_path(path), "{path}");
        }
    }
}
