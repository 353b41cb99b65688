//! The requests about tokens, and what their answers mean.

use serde::{Deserialize, Serialize};
use ureq::http::HeaderValue;
use zeroize::Zeroizing;

use crate::backend::hashicorp::http::{Http, Unavailable};
use crate::backend::hashicorp::reply::Reply;
use crate::backend::hashicorp::request::{Repeat, Request};
use crate::secret::Secret;

use super::lease::Lease;

/// Why there is no other token.
pub(super) enum LoginError {
    Unavailable(Unavailable),
    /// The server refuses these credentials, or there are none.
    Refused(String),
}

impl From<Unavailable> for LoginError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// The answer to a login and to a renewal.
pub(super) struct Login {
    pub(super) token: Secret,
    pub(super) lease: Lease,
    /// How many requests the token is good for; 0 for any number.
    pub(super) uses: u64,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

impl Login {
    fn in_reply(reply: &Reply) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            auth: Auth,
        }
        #[derive(Deserialize)]
        struct Auth {
            client_token: String,
            #[serde(default)]
            lease_duration: u64,
            #[serde(default)]
            renewable: bool,
            #[serde(default)]
            num_uses: u64,
        }

        if !reply.is_success() {
            return None;
        }
        let Answer { auth } = serde_json::from_slice(&reply.body).ok()?;
        let lease = Lease::from_seconds(auth.lease_duration, auth.renewable);
        Some(Self { token: Secret::new(auth.client_token), lease, uses: auth.num_uses })
    }
}

/// Logs in by `AppRole`.
pub(super) fn log_in(
    http: &Http,
    role_id: &Secret,
    secret_id: &Secret,
) -> Result<Login, LoginError> {
    #[derive(Serialize)]
    struct Body<'a> {
        role_id: &'a str,
        secret_id: &'a str,
    }

    let login = Body { role_id: role_id.expose(), secret_id: secret_id.expose() };
    // Room for all of it: a buffer that grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(6 * (role_id.len() + secret_id.len()) + 64));
    serde_json::to_writer(&mut *body, &login).expect("a Vec takes every write");
    // A secret ID may be good for one login only.
    let request = Request::new("POST", "auth/approle/login").json(&body).repeat(Repeat::IfUnsent);
    let reply = http.send(&request, None)?;
    Login::in_reply(&reply).ok_or_else(|| {
        LoginError::Refused(format!(
            "the AppRole login was refused ({}); check VAULT_ROLE_ID and VAULT_SECRET_ID, and \
             whether the secret ID has expired or been used up",
            reply.explain()
        ))
    })
}

/// Renews the token. The inner error says why the server refuses.
pub(super) fn renew(http: &Http, token: &Secret) -> Result<Result<Lease, String>, Unavailable> {
    // It is apart: the token is still good, and the server may be, for all other requests.
    let request = Request::new("POST", "auth/token/renew-self").json(b"{}").apart();
    let reply = http.send(&request, Some(token))?;
    Ok(Login::in_reply(&reply).map(|login| login.lease).ok_or_else(|| reply.explain()))
}

/// Looks the token up. Returns `None` if it is dead, or may not look itself up.
pub(super) fn look_up(http: &Http, token: &Secret) -> Result<Option<Lease>, Unavailable> {
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        ttl: u64,
        #[serde(default)]
        renewable: bool,
    }

    let reply = http.send(&Request::new("GET", "auth/token/lookup-self"), Some(token))?;
    if reply.status == 403 {
        return Ok(None);
    }
    if !reply.is_success() {
        return Err(Unavailable::new(reply.explain()));
    }
    match serde_json::from_slice(&reply.body) {
        Ok(Answer { data: Data { ttl, renewable } }) => {
            Ok(Some(Lease::from_seconds(ttl, renewable)))
        }
        Err(_) => Err(Unavailable::new("the server at VAULT_ADDR is not Vault")),
    }
}

/// Unwraps a secret ID. A wrapping token that `AppRole` did not make, or that has been
/// unwrapped before, means that somebody has intercepted it.
pub(super) fn unwrap(http: &Http, wrapping: &Secret) -> Result<Secret, LoginError> {
    #[derive(Deserialize)]
    struct Wrapping {
        creation_path: String,
    }
    #[derive(Deserialize)]
    struct SecretId {
        secret_id: String,
    }

    let refused = |reason: &str| {
        LoginError::Refused(format!(
            "the wrapped secret ID cannot be used: {reason}; if nobody here has unwrapped it, \
             treat it as stolen and create a new one"
        ))
    };
    let answered = |request: Request<'_>| {
        let reply = http.send(&request, Some(wrapping))?;
        if reply.is_success() { Ok(reply) } else { Err(refused(&reply.explain())) }
    };
    let reply = answered(Request::new("POST", "sys/wrapping/lookup"))?;
    let Ok(Answer { data: Wrapping { creation_path } }) = serde_json::from_slice(&reply.body)
    else {
        return Err(refused("Vault does not say where it was made"));
    };
    if !is_secret_id_path(&creation_path) {
        return Err(refused("it was not made by AppRole"));
    }
    let request = Request::new("POST", "sys/wrapping/unwrap").repeat(Repeat::IfUnsent);
    let reply = answered(request)?;
    match serde_json::from_slice(&reply.body) {
        Ok(Answer { data: SecretId { secret_id } }) => Ok(Secret::new(secret_id)),
        Err(_) => Err(refused("it contains no secret ID")),
    }
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
