//! `AppRole`: roles, secret ids and logins, after `OpenBao`'s `builtin/credential/approle`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::exchange::{Answer, Operation, Outcome, Refusal, Request};
use super::state::State;
use super::token::{Lease, Limits, Token, granted_ttl, sanitized};
use super::values::{
    Object, flag, integer, rfc3339, seconds, strings, text, truncated_to_seconds, uuid,
};

/// `OpenBao` locks an alias out after so many failed logins ...
const LOCKOUT_THRESHOLD: u32 = 5;
/// ... for so long, and forgets them after the same time.
const LOCKOUT: Duration = Duration::from_mins(15);

/// `OpenBao` takes expired secret ids until it tidies up, once a minute.
const TIDIED_WITHIN: Duration = Duration::from_mins(1);

const TIDYING: &str = "Tidy operation successfully started. Any information from the operation \
                       will be printed to OpenBao's server logs.";

/// One mount of the auth method.
#[derive(Default)]
pub struct AppRoles {
    roles: BTreeMap<String, Role>,
    /// Failed logins of each role id, and the last one's time.
    failures: BTreeMap<String, (u32, SystemTime)>,
}

#[derive(Clone)]
struct Role {
    id: String,
    bind_secret_id: bool,
    secret_id_num_uses: i64,
    secret_id_ttl: Duration,
    token_ttl: Duration,
    token_max_ttl: Duration,
    token_explicit_max_ttl: Duration,
    token_period: Duration,
    token_num_uses: i64,
    token_policies: Vec<String>,
    token_no_default_policy: bool,
    token_type: String,
    secret_ids: BTreeMap<String, SecretId>,
    entity_id: String,
}

#[derive(Clone)]
struct SecretId {
    accessor: String,
    num_uses: i64,
    ttl: Duration,
    created: SystemTime,
    metadata: Object,
}

/// What a role says of its tokens' renewal.
pub struct Renewal {
    pub ttl: Duration,
    pub period: Duration,
    pub max_ttl: Duration,
}

impl SecretId {
    fn expired_before(&self, time: SystemTime) -> bool {
        !self.ttl.is_zero() && self.created + self.ttl < time
    }
}

impl Role {
    fn new() -> Self {
        Self {
            id: uuid(),
            bind_secret_id: true,
            secret_id_num_uses: 0,
            secret_id_ttl: Duration::ZERO,
            token_ttl: Duration::ZERO,
            token_max_ttl: Duration::ZERO,
            token_explicit_max_ttl: Duration::ZERO,
            token_period: Duration::ZERO,
            token_num_uses: 0,
            token_policies: Vec::new(),
            token_no_default_policy: false,
            token_type: "default".to_owned(),
            secret_ids: BTreeMap::new(),
            entity_id: uuid(),
        }
    }

    fn set(&mut self, data: &Object) -> Result<(), Refusal> {
        for name in data.keys() {
            if matches!(name.as_str(), "token_bound_cidrs" | "secret_id_bound_cidrs") {
                return Err(Refusal::new(501, format!("this server has no {name}")));
            }
        }
        for (name, old_name, field) in [
            ("secret_id_ttl", "", &mut self.secret_id_ttl),
            ("token_ttl", "", &mut self.token_ttl),
            ("token_max_ttl", "", &mut self.token_max_ttl),
            ("token_explicit_max_ttl", "", &mut self.token_explicit_max_ttl),
            ("token_period", "period", &mut self.token_period),
        ] {
            if let Some(value) = data.get(name).or_else(|| data.get(old_name)) {
                let seconds = seconds(value).and_then(|seconds| u64::try_from(seconds).ok());
                *field =
                    Duration::from_secs(seconds.ok_or_else(|| {
                        Refusal::bad_request(format!("'{name}' cannot be negative"))
                    })?);
            }
        }
        if !self.token_max_ttl.is_zero() && self.token_ttl > self.token_max_ttl {
            return Err(Refusal::bad_request("'token_ttl' cannot be greater than 'token_max_ttl'"));
        }
        for (name, field) in [
            ("secret_id_num_uses", &mut self.secret_id_num_uses),
            ("token_num_uses", &mut self.token_num_uses),
        ] {
            *field = integer(data.get(name)).unwrap_or(*field);
            if *field < 0 {
                return Err(Refusal::bad_request(format!("{name} cannot be negative")));
            }
        }
        for name in ["policies", "token_policies"] {
            if data.contains_key(name) {
                self.token_policies = sanitized(&strings(data.get(name)), false);
            }
        }
        self.bind_secret_id = flag(data.get("bind_secret_id")).unwrap_or(self.bind_secret_id);
        self.token_no_default_policy =
            flag(data.get("token_no_default_policy")).unwrap_or(self.token_no_default_policy);
        match text(data, "token_type") {
            "" => {}
            kind @ ("default" | "service" | "batch") => kind.clone_into(&mut self.token_type),
            kind => {
                return Err(Refusal::bad_request(format!("invalid 'token_type' value {kind:?}")));
            }
        }
        if data.contains_key("role_id") {
            text(data, "role_id").clone_into(&mut self.id);
        }
        Ok(())
    }

    fn describe(&self) -> Value {
        json!({
            "bind_secret_id": self.bind_secret_id,
            "local_secret_ids": false,
            "secret_id_bound_cidrs": null,
            "secret_id_num_uses": self.secret_id_num_uses,
            "secret_id_ttl": self.secret_id_ttl.as_secs(),
            "token_bound_cidrs": [],
            "token_explicit_max_ttl": self.token_explicit_max_ttl.as_secs(),
            "token_max_ttl": self.token_max_ttl.as_secs(),
            "token_no_default_policy": self.token_no_default_policy,
            "token_num_uses": self.token_num_uses,
            "token_period": self.token_period.as_secs(),
            "token_policies": self.token_policies,
            "token_strictly_bind_ip": false,
            "token_ttl": self.token_ttl.as_secs(),
            "token_type": self.token_type,
        })
    }

    fn new_secret_id(&mut self, id: String, data: &Object, now: SystemTime) -> Outcome {
        if !self.bind_secret_id {
            return Err(Refusal::bad_request("bind_secret_id is not set on the role"));
        }
        let num_uses = integer(data.get("num_uses")).unwrap_or(self.secret_id_num_uses);
        let limit = self.secret_id_num_uses;
        if limit > 0 && (num_uses == 0 || num_uses > limit) {
            return Err(Refusal::bad_request(
                "num_uses cannot be higher than the role's secret_id_num_uses",
            ));
        }
        let wanted = data.get("ttl").and_then(seconds).and_then(|ttl| u64::try_from(ttl).ok());
        let ttl = wanted.map_or(self.secret_id_ttl, Duration::from_secs);
        if !self.secret_id_ttl.is_zero() && (ttl.is_zero() || ttl > self.secret_id_ttl) {
            return Err(Refusal::bad_request("ttl cannot be longer than the role's secret_id_ttl"));
        }
        let metadata = serde_json::from_str(text(data, "metadata")).unwrap_or_default();
        let secret_id = SecretId { accessor: uuid(), num_uses, ttl, created: now, metadata };
        let answer = Answer::data(json!({
            "secret_id": id,
            "secret_id_accessor": secret_id.accessor,
            "secret_id_ttl": ttl.as_secs(),
            "secret_id_num_uses": num_uses,
        }));
        self.secret_ids.insert(id, secret_id);
        Ok(Some(answer))
    }
}

impl AppRoles {
    /// As for a mount of secrets: `None` where a write is always an update.
    pub fn exists(&self, path: &str) -> Option<bool> {
        match path.split('/').collect::<Vec<_>>()[..] {
            ["role", name] => Some(self.roles.contains_key(&name.to_lowercase())),
            _ => None,
        }
    }

    fn tidy(&mut self, before: SystemTime) {
        for role in self.roles.values_mut() {
            role.secret_ids.retain(|_, secret_id| !secret_id.expired_before(before));
        }
    }

    /// All but the login, which needs the tokens too.
    pub fn handle(&mut self, request: &Request, path: &str) -> Outcome {
        self.tidy(request.now - TIDIED_WITHIN);
        let (data, operation) = (&request.data, request.operation);
        let update = matches!(operation, Operation::Create | Operation::Update);
        let parts: Vec<&str> = path.split('/').collect();
        let name = parts.get(1).map(|name| name.to_lowercase()).unwrap_or_default();
        match (&parts[..], operation) {
            (["tidy", "secret-id"], _) if update => {
                self.tidy(request.now);
                Ok(Some(
                    Answer { warnings: vec![TIDYING.to_owned()], ..Answer::default() }
                        .with_status(202),
                ))
            }
            (["role", ""], Operation::List) => {
                Ok(Some(Answer::keys(self.roles.keys().cloned().collect())))
            }
            (["role", _], _) if update => {
                let mut role = self.roles.get(&name).cloned().unwrap_or_else(Role::new);
                role.set(data)?;
                self.roles.insert(name, role);
                Ok(None)
            }
            (["role", _], Operation::Read) => {
                Ok(self.roles.get(&name).map(|role| Answer::data(role.describe())))
            }
            (["role", _], Operation::Delete) => {
                self.roles.remove(&name);
                Ok(None)
            }
            (["role", _, "role-id"], Operation::Read) => {
                Ok(self.roles.get(&name).map(|role| Answer::data(json!({ "role_id": role.id }))))
            }
            (["role", _, "role-id"], _) if update => {
                text(data, "role_id").clone_into(&mut self.role(&name)?.id);
                Ok(None)
            }
            (["role", _, "secret-id"], _) if update => {
                self.role(&name)?.new_secret_id(uuid(), data, request.now)
            }
            (["role", _, "secret-id", ""], Operation::List) => {
                let role = self.role(&name)?;
                let accessors = role.secret_ids.values().map(|one| one.accessor.clone()).collect();
                Ok(Some(Answer::keys(accessors)))
            }
            (["role", _, "custom-secret-id"], _) if update => {
                let id = text(data, "secret_id").to_owned();
                self.role(&name)?.new_secret_id(id, data, request.now)
            }
            (["role", _, "secret-id", "lookup"], _) if update => {
                let role = self.role(&name)?;
                Ok(role.secret_ids.get(text(data, "secret_id")).map(|secret_id| {
                    let expires = secret_id.created + secret_id.ttl;
                    Answer::data(json!({
                        "secret_id_accessor": secret_id.accessor,
                        "secret_id_num_uses": secret_id.num_uses,
                        "secret_id_ttl": secret_id.ttl.as_secs(),
                        "creation_time": rfc3339(secret_id.created),
                        "last_updated_time": rfc3339(secret_id.created),
                        "expiration_time": if secret_id.ttl.is_zero() {
                            "0001-01-01T00:00:00Z".to_owned()
                        } else {
                            rfc3339(expires)
                        },
                        "metadata": secret_id.metadata,
                        "cidr_list": [],
                        "token_bound_cidrs": [],
                    }))
                }))
            }
            (["role", _, "secret-id", "destroy"], Operation::Delete) => {
                self.role(&name)?.secret_ids.remove(text(data, "secret_id"));
                Ok(None)
            }
            (["role", _, "secret-id", "destroy"], _) if update => {
                self.role(&name)?.secret_ids.remove(text(data, "secret_id"));
                Ok(None)
            }
            (
                ["login" | "role"]
                | ["role", _]
                | ["role", _, "role-id" | "secret-id" | "custom-secret-id"]
                | ["role", _, "secret-id", "lookup" | "destroy"],
                _,
            ) => Err(Refusal::unsupported_operation()),
            _ => Err(Refusal::unsupported_path()),
        }
    }

    fn role(&mut self, name: &str) -> Result<&mut Role, Refusal> {
        self.roles
            .get_mut(name)
            .ok_or_else(|| Refusal::new(404, format!("role {name:?} does not exist")))
    }

    fn is_locked_out(&self, role_id: &str, now: SystemTime) -> bool {
        self.failures
            .get(role_id)
            .is_some_and(|(count, last)| *count >= LOCKOUT_THRESHOLD && now < *last + LOCKOUT)
    }

    fn note_failure(&mut self, role_id: &str, now: SystemTime) {
        let (count, last) = self.failures.entry(role_id.to_owned()).or_insert((0, now));
        *count = if now > *last + LOCKOUT { 1 } else { *count + 1 };
        *last = now;
    }

    /// Checks the credentials and counts the use; the role's name and what the token gets.
    fn admit(&mut self, data: &Object, now: SystemTime) -> Result<(String, Object), Refusal> {
        self.tidy(now - TIDIED_WITHIN);
        let role_id = text(data, "role_id").trim().to_owned();
        if role_id.is_empty() {
            // Already the look for a lock-out trips over this.
            return Err(Refusal::new(500, "missing role_id"));
        }
        if self.is_locked_out(&role_id, now) {
            return Err(Refusal::dead_token());
        }
        let invalid = || Refusal::bad_request("invalid role or secret ID");
        let found = self.roles.iter_mut().find(|(_, role)| role.id == role_id);
        let (name, role) = found.ok_or_else(invalid)?;
        let mut metadata = Object::new();
        if role.bind_secret_id {
            let given = text(data, "secret_id").trim();
            if given.is_empty() {
                return Err(Refusal::bad_request("missing secret_id"));
            }
            let Some(secret_id) = role.secret_ids.get_mut(given) else {
                self.note_failure(&role_id, now);
                return Err(invalid());
            };
            metadata.clone_from(&secret_id.metadata);
            match secret_id.num_uses {
                0 => {}
                1 => drop(role.secret_ids.remove(given)),
                _ => secret_id.num_uses -= 1,
            }
        }
        metadata.insert("role_name".to_owned(), json!(name));
        self.failures.remove(&role_id);
        Ok((name.clone(), metadata))
    }
}

impl State {
    pub fn renewal_of(&self, namespace: &str, mount: &str, role: &str) -> Result<Renewal, Refusal> {
        let gone = || {
            let error =
                format!("failed to renew entry: role {role:?} does not exist during renewal");
            Refusal::wrapped(500, &error)
        };
        let roles = self.namespaces.get(namespace).and_then(|ns| ns.auth.get(mount));
        let role = roles.and_then(|roles| roles.roles.get(role)).ok_or_else(gone)?;
        Ok(Renewal { ttl: role.token_ttl, max_ttl: role.token_max_ttl, period: role.token_period })
    }

    pub fn log_in(&mut self, request: &Request, mount: &str) -> Outcome {
        let now = request.now;
        let namespace =
            self.namespaces.get_mut(&request.namespace).expect("a request has a known one");
        let roles = namespace.auth.get_mut(mount).expect("the route was found");
        let (name, metadata) = roles.admit(&request.data, now)?;
        let role = &roles.roles[&name];
        let limits = Limits {
            increment: Duration::ZERO,
            ttl: role.token_ttl,
            period: role.token_period,
            max_ttl: role.token_max_ttl,
            explicit_max_ttl: role.token_explicit_max_ttl,
        };
        let (ttl, warnings) =
            granted_ttl(limits, now, now).expect("nothing is past its maximum at its start");
        let batch = role.token_type == "batch";
        let token = Token {
            id: String::new(),
            batch,
            accessor: String::new(),
            policies: sanitized(&role.token_policies, !role.token_no_default_policy),
            path: format!("auth/{mount}login"),
            meta: Some(metadata),
            display_name: mount.trim_end_matches('/').replace('/', "-"),
            num_uses: role.token_num_uses,
            parent: None,
            namespace: request.namespace.clone(),
            entity_id: role.entity_id.clone(),
            created: truncated_to_seconds(now),
            creation_ttl: ttl,
            period: role.token_period,
            explicit_max_ttl: role.token_explicit_max_ttl,
            lease: Some(Lease {
                issued: now,
                expires: Some(now + ttl),
                renewed: None,
                renewable: !batch,
                ttl,
            }),
            role: Some((mount.to_owned(), name)),
            wrapped: None,
        };
        if token.policies == ["root"] {
            return Err(Refusal::bad_request("auth methods cannot create root tokens"));
        }
        let id = self.new_token_id(batch, &request.namespace);
        let accessor = self.accessor(batch, &request.namespace);
        Ok(Some(self.issue(Token { id, accessor, ..token }, ttl, warnings)))
    }
}
