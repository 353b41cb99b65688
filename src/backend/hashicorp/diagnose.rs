//! What `doctor` asks of the server: how long the token lasts, and what its policy grants.

use serde_json::{Value, json};

use crate::backend::Finding;

use super::kv::Kv;
use super::message::{Error, Request, Unavailable, number};
use super::settings::Settings;
use super::variables::Source;

/// Nothing is ever stored in this namespace.
pub(super) const TRIAL: &str = "credential-vault.trial";
const DAY: u64 = 24 * 3600;

/// Asks the server for the token's properties and the capabilities of its policy
/// (<https://developer.hashicorp.com/vault/api-docs/system/capabilities-self>).
pub(super) fn diagnose(kv: &Kv) -> Vec<Finding> {
    let address = &kv.http.settings.address;
    let [data, metadata, destroy] =
        ["data", "metadata", "destroy"].map(|what| kv.path(what, TRIAL));
    let paths = json!({ "paths": [data, metadata, destroy] }).to_string();
    let requests = [
        Request::new("GET", "auth/token/lookup-self"),
        Request::with_body("POST", "sys/capabilities-self", paths.as_bytes()),
    ];
    let [lookup, capabilities] = requests.map(|request| match kv.ask(request) {
        Ok(reply) if reply.is_success() => Ok(reply.json()["data"].take()),
        Ok(reply) => Err(reply.explain()),
        Err(Error::Unavailable(Unavailable { reason, .. }) | Error::Refused(reason)) => Err(reason),
    });
    let unknown = |kind| move |reason| Finding::new(kind, address, reason);
    vec![
        lookup.map_or_else(unknown("token-unknown"), |data| token(&kv.http.settings, &data)),
        capabilities.map_or_else(unknown("grants-unknown"), |granted| {
            grants(&granted, [&data, &metadata, &destroy])
        }),
    ]
}

/// Whether the policy grants all that the service needs.
fn grants(granted: &Value, [data, metadata, destroy]: [&str; 3]) -> Finding {
    let has = |path: &str, capability: &str| {
        let list = granted[path].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).any(|it| it == capability || it == "root")
    };
    let needed = ["read", "create", "update"].into_iter();
    let mut missing: Vec<_> = needed.filter(|capability| !has(data, capability)).collect();
    let destroys = has(metadata, "read") && has(destroy, "update");
    missing.extend((!has(metadata, "delete") && !destroys).then_some("delete (on its metadata)"));
    match &*missing {
        [] if has(data, "patch") => Finding::new("grants", data, "the policy grants all of it"),
        [] => Finding::new("grants-patch", data, "the policy does not grant patch"),
        all => Finding::new("grants-missing", data, format!("no {}", all.join(", "))),
    }
}

/// Whether the token will expire although the service renews it.
fn token(settings: &Settings, data: &Value) -> Finding {
    let (ttl, address) = (number(data, "/ttl"), &settings.address);
    let is_renewed = settings.renew && data["renewable"] == true;
    let lasts = data["expire_time"].is_null()
        || (settings.renew && settings.app_role.is_some())
        || (is_renewed && number(data, "/period") > 0);
    if lasts {
        return Finding::new("token", address, "it does not expire, or is replaced in time");
    }
    let is_in_file = matches!(settings.token, Some(Source::File { .. }));
    let kind = if is_renewed || is_in_file || ttl > DAY { "token-ends" } else { "token-ends-soon" };
    let how = if is_renewed { "renewed only up to its maximum" } else { "not renewed" };
    Finding::new(kind, address, format!("the token expires in {ttl} s, and is {how}"))
}
