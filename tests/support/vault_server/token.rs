//! Tokens: their lives, and `auth/token/`, after `OpenBao`'s token store and expiration manager.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::approle::Renewal;
use super::exchange::{Answer, Operation, Outcome, Refusal, Request};
use super::policy::RESPONSE_WRAPPING;
use super::state::State;
use super::values::{
    Object, flag, human_duration, integer, object, random_base62, rfc3339, rounded_to_seconds,
    seconds, strings, text, truncated_to_seconds, unix_seconds,
};

/// The system's default and maximum lease: 32 days.
pub const SYSTEM_TTL: Duration = Duration::from_hours(768);

/// The number of uses left when the last one is under way.
const LAST_USE: i64 = -1;

#[derive(Clone)]
pub struct Token {
    pub id: String,
    /// It exists nowhere but in itself: no accessor, no renewal, no revocation.
    pub batch: bool,
    pub accessor: String,
    pub policies: Vec<String>,
    pub path: String,
    pub meta: Option<Object>,
    pub display_name: String,
    pub num_uses: i64,
    pub parent: Option<String>,
    pub namespace: String,
    pub entity_id: String,
    pub created: SystemTime,
    pub creation_ttl: Duration,
    pub period: Duration,
    pub explicit_max_ttl: Duration,
    /// `None` for the first root token, which has none.
    pub lease: Option<Lease>,
    /// The `AppRole` mount and role that it came from: asked again at each renewal.
    pub role: Option<(String, String)>,
    pub wrapped: Option<Wrapped>,
}

#[derive(Clone)]
pub struct Lease {
    pub issued: SystemTime,
    /// `None` for a root token, which does not expire.
    pub expires: Option<SystemTime>,
    pub renewed: Option<SystemTime>,
    pub renewable: bool,
    /// What a renewal without an increment grants.
    pub ttl: Duration,
}

/// An answer that waits for its wrapping token.
#[derive(Clone)]
pub struct Wrapped {
    pub body: Vec<u8>,
    pub ttl: Duration,
    pub created: SystemTime,
    pub creation_path: String,
    /// The accessor of a token or secret id in it.
    pub accessor: Option<Value>,
}

impl Token {
    pub fn is_wrapping(&self) -> bool {
        self.policies == [RESPONSE_WRAPPING]
    }

    fn kind(&self) -> &'static str {
        if self.batch { "batch" } else { "service" }
    }

    fn ttl_left(&self, now: SystemTime) -> u64 {
        let expires = self.lease.as_ref().and_then(|lease| lease.expires);
        let left = expires.and_then(|at| at.duration_since(rounded_to_seconds(now)).ok());
        left.unwrap_or_default().as_secs()
    }

    fn describe(&self, now: SystemTime) -> Object {
        let mut data = object(json!({
            "id": self.id,
            "accessor": self.accessor,
            "policies": self.policies,
            "path": self.path,
            "meta": self.meta,
            "display_name": self.display_name,
            "num_uses": self.num_uses,
            "orphan": self.parent.is_none(),
            "creation_time": unix_seconds(self.created),
            "creation_ttl": self.creation_ttl.as_secs(),
            "expire_time": null,
            "ttl": self.ttl_left(now),
            "explicit_max_ttl": self.explicit_max_ttl.as_secs(),
            "entity_id": self.entity_id,
            "type": self.kind(),
        }));
        let mut set = |name: &str, value: Value| data.insert(name.to_owned(), value);
        if !self.period.is_zero() {
            set("period", json!(self.period.as_secs()));
        }
        if !self.namespace.is_empty() {
            set("namespace_path", json!(self.namespace));
        }
        if let Some(lease) = &self.lease {
            set("renewable", json!(lease.renewable));
            set("issue_time", json!(rfc3339(lease.issued)));
            if let Some(expires) = lease.expires {
                set("expire_time", json!(rfc3339(expires)));
            }
            if let Some(renewed) = lease.renewed {
                set("last_renewal", json!(rfc3339(renewed)));
                set("last_renewal_time", json!(unix_seconds(renewed)));
            }
        }
        data
    }

    /// The `auth` of an answer that makes or renews it.
    fn auth(&self, ttl: Duration) -> Object {
        object(json!({
            "client_token": self.id,
            "accessor": self.accessor,
            "policies": self.policies,
            "token_policies": self.policies,
            "metadata": self.meta,
            "lease_duration": ttl.as_secs(),
            "renewable": self.lease.as_ref().is_some_and(|lease| lease.renewable),
            "entity_id": self.entity_id,
            "token_type": self.kind(),
            "orphan": self.parent.is_none(),
            "mfa_requirement": null,
            "num_uses": self.num_uses,
        }))
    }
}

/// What limits a token's life, as `framework.CalculateTTL` takes it; zero means no limit.
#[derive(Clone, Copy, Default)]
pub struct Limits {
    pub increment: Duration,
    pub ttl: Duration,
    pub period: Duration,
    pub max_ttl: Duration,
    pub explicit_max_ttl: Duration,
}

/// A TTL, with the warnings that belong to it; `None` past the maximum.
pub fn granted_ttl(
    limits: Limits,
    issued: SystemTime,
    now: SystemTime,
) -> Option<(Duration, Vec<String>)> {
    let mut warnings = Vec::new();
    let max = [SYSTEM_TTL, limits.max_ttl, limits.explicit_max_ttl]
        .into_iter()
        .filter(|limit| !limit.is_zero())
        .min()
        .expect("the system's limit is among them");
    let set = |wanted: Duration| (!wanted.is_zero()).then_some(wanted);
    let (mut ttl, cap) = if limits.period.is_zero() {
        (set(limits.increment).or(set(limits.ttl)).unwrap_or(SYSTEM_TTL), Some(max))
    } else {
        if limits.period > max {
            warnings.push(format!(
                "period of {:?} exceeded the effective max_ttl of {:?}; period value is capped \
                 accordingly",
                human_duration(limits.period),
                human_duration(max)
            ));
        }
        (limits.period.min(max), set(limits.explicit_max_ttl))
    };
    if let Some(cap) = cap {
        let end = truncated_to_seconds(issued) + cap;
        let left = end.duration_since(truncated_to_seconds(now)).ok()?;
        if left.is_zero() {
            return None;
        }
        if ttl > left {
            warnings.push(format!(
                "TTL of {:?} exceeded the effective max_ttl of {:?}; TTL value is capped \
                 accordingly",
                human_duration(ttl),
                human_duration(left)
            ));
            ttl = left;
        }
    }
    Some((ttl, warnings))
}

/// Policies as `OpenBao` keeps them: lower case, sorted, each once; `root` alone.
pub fn sanitized(policies: &[String], add_default: bool) -> Vec<String> {
    let mut policies: Vec<String> = policies.iter().map(|name| name.to_lowercase()).collect();
    if policies.iter().any(|name| name == "root") {
        return vec!["root".to_owned()];
    }
    if add_default {
        policies.push("default".to_owned());
    }
    policies.sort();
    policies.dedup();
    policies
}

fn duration_of(data: &Object, name: &str) -> Result<Duration, Refusal> {
    let Some(value) = data.get(name) else { return Ok(Duration::ZERO) };
    let seconds = seconds(value)
        .ok_or_else(|| Refusal::bad_request(format!("time: invalid duration {value}")))?;
    let seconds = u64::try_from(seconds)
        .map_err(|_| Refusal::bad_request(format!("{name} must be positive")))?;
    Ok(Duration::from_secs(seconds))
}

/// What the maker of a token asks for.
struct Wanted {
    batch: bool,
    period: Duration,
    explicit_max_ttl: Duration,
    ttl: Duration,
    num_uses: i64,
    no_parent: bool,
}

impl Wanted {
    fn parse(data: &Object, sudo: bool) -> Result<Self, Refusal> {
        let batch = match text(data, "type") {
            "" | "service" => false,
            "batch" => true,
            _ => return Err(Refusal::bad_request("invalid 'token_type' value")),
        };
        let wanted = Self {
            batch,
            period: duration_of(data, "period")?,
            explicit_max_ttl: duration_of(data, "explicit_max_ttl")?,
            ttl: duration_of(data, "ttl")?,
            num_uses: integer(data.get("num_uses")).unwrap_or(0),
            no_parent: flag(data.get("no_parent")) == Some(true),
        };
        for (name, set) in [
            ("explicit_max_ttl", !wanted.explicit_max_ttl.is_zero()),
            ("num_uses", wanted.num_uses != 0),
            ("period", !wanted.period.is_zero()),
        ] {
            if batch && set {
                return Err(Refusal::bad_request(format!("batch tokens cannot have {name:?} set")));
            }
        }
        if wanted.num_uses < 0 {
            return Err(Refusal::bad_request("number of uses cannot be negative"));
        }
        for (what, set) in [
            ("specify token id", !text(data, "id").is_empty()),
            ("create orphan token", wanted.no_parent),
            ("create periodic token", !wanted.period.is_zero()),
        ] {
            if set && !sudo {
                return Err(Refusal::bad_request(format!(
                    "root or sudo privileges required to {what}"
                )));
            }
        }
        Ok(wanted)
    }
}

impl State {
    /// The token if it lives: known, not expired, not used up, and its makers too.
    pub fn living(&self, id: &str, now: SystemTime) -> Option<&Token> {
        let token = self.tokens.get(id)?;
        let expires = token.lease.as_ref().and_then(|lease| lease.expires);
        let alive = token.num_uses != LAST_USE && expires.is_none_or(|at| at >= now);
        let parent_lives =
            token.parent.as_ref().is_none_or(|parent| self.living(parent, now).is_some());
        (alive && parent_lives).then_some(token)
    }

    /// Counts one use. Whether this was the last one: the caller ends the token then.
    pub fn use_token(&mut self, id: &str) -> bool {
        let Some(token) = self.tokens.get_mut(id) else { return false };
        match token.num_uses {
            0 => false,
            1 => {
                token.num_uses = LAST_USE;
                true
            }
            _ => {
                token.num_uses -= 1;
                false
            }
        }
    }

    /// Ends a token and all that it made.
    pub fn revoke(&mut self, id: &str) {
        self.tokens.remove(id);
        let children: Vec<String> = self
            .tokens
            .values()
            .filter(|token| token.parent.as_deref() == Some(id))
            .map(|token| token.id.clone())
            .collect();
        for child in children {
            self.revoke(&child);
        }
    }

    pub fn new_token_id(&self, batch: bool, namespace: &str) -> String {
        let id = if batch {
            format!("b.{}", random_base62(140))
        } else {
            format!("s.{}", random_base62(24))
        };
        if namespace.is_empty() {
            return id;
        }
        format!("{id}.{}", self.namespaces[namespace].id)
    }

    pub fn handle_token_path(&mut self, request: &Request, path: &str) -> Outcome {
        let update = matches!(request.operation, Operation::Create | Operation::Update);
        let read = request.operation == Operation::Read;
        let own = request.token.as_deref().unwrap_or_default().to_owned();
        let named = text(&request.data, "token").to_owned();
        let other = if named.is_empty() { own.clone() } else { named.clone() };
        let ends = match path {
            "revoke-self" => Some(&own),
            "revoke" => Some(&named),
            _ => None,
        };
        if update && ends.and_then(|id| self.tokens.get(id)).is_some_and(|token| token.batch) {
            return Err(Refusal::bad_request("batch tokens cannot be revoked"));
        }
        match path {
            "create" | "create-orphan" if update => self.create_token(request, path),
            "lookup-self" if read || update => self.look_up(&own, request.now),
            "lookup" if read || update => self.look_up(&other, request.now),
            "renew-self" if update => self.renew(&own, request),
            "renew" | "revoke" if update && named.is_empty() => {
                Err(Refusal::bad_request("missing token ID"))
            }
            "renew" if update => self.renew(&named, request),
            "revoke-self" if update => {
                self.revoke(&own);
                Ok(None)
            }
            "revoke" if update => {
                self.revoke(&named);
                Ok(None)
            }
            "lookup-accessor" if update => {
                let token = self.by_accessor(text(&request.data, "accessor"))?;
                let mut answer = self.look_up(&token, request.now)?;
                if let Some(data) = answer.as_mut().and_then(|answer| answer.data.as_mut()) {
                    data.insert("id".to_owned(), json!(""));
                }
                Ok(answer)
            }
            "revoke-accessor" if update => {
                let token = self.by_accessor(text(&request.data, "accessor"))?;
                self.revoke(&token);
                Ok(None)
            }
            "accessors/" if request.operation == Operation::List => {
                let living = self.tokens.keys().filter_map(|id| self.living(id, request.now));
                let accessors = living.filter(|token| !token.batch);
                Ok(Some(Answer::keys(accessors.map(|token| token.accessor.clone()).collect())))
            }
            "create" | "create-orphan" | "lookup-self" | "lookup" | "renew-self" | "renew"
            | "revoke-self" | "revoke" | "lookup-accessor" | "revoke-accessor" => {
                Err(Refusal::unsupported_operation())
            }
            _ => Err(Refusal::unsupported_path()),
        }
    }

    fn by_accessor(&self, accessor: &str) -> Result<String, Refusal> {
        let found = self.tokens.values().find(|token| token.accessor == accessor);
        found.map(|token| token.id.clone()).ok_or_else(|| Refusal::new(403, "invalid accessor"))
    }

    fn look_up(&self, id: &str, now: SystemTime) -> Outcome {
        // The caller's own last use is under way, and still shows.
        let token = self
            .tokens
            .get(id)
            .filter(|token| token.num_uses == LAST_USE || self.living(id, now).is_some());
        let token = token.ok_or_else(|| Refusal::new(403, "bad token"))?;
        Ok(Some(Answer { data: Some(token.describe(now)), ..Answer::default() }))
    }

    fn renew(&mut self, id: &str, request: &Request) -> Outcome {
        let increment = duration_of(&request.data, "increment")?;
        let Some(token) = self.living(id, request.now) else {
            return Err(Refusal::bad_request("token not found"));
        };
        if token.batch {
            return Err(Refusal::bad_request("batch tokens cannot be renewed"));
        }
        let Some(lease) = &token.lease else {
            return Err(Refusal::bad_request("invalid lease ID"));
        };
        if !lease.renewable {
            return Err(Refusal::bad_request("lease is not renewable"));
        }
        let Renewal { ttl, period, max_ttl } = match &token.role {
            Some((mount, role)) => self.renewal_of(&token.namespace, mount, role)?,
            None => Renewal { ttl: lease.ttl, period: token.period, max_ttl: Duration::ZERO },
        };
        let explicit_max_ttl = token.explicit_max_ttl;
        let limits = Limits { increment, ttl, period, max_ttl, explicit_max_ttl };
        let (ttl, warnings) = granted_ttl(limits, lease.issued, request.now)
            .ok_or_else(|| Refusal::wrapped(500, "past the max TTL, cannot renew"))?;
        let token = self.tokens.get_mut(id).expect("it was there a moment ago");
        let lease = token.lease.as_mut().expect("it was there a moment ago");
        lease.ttl = ttl;
        lease.expires = Some(request.now + ttl);
        lease.renewed = Some(request.now);
        Ok(Some(Answer { auth: Some(token.auth(ttl)), warnings, ..Answer::default() }))
    }

    fn create_token(&mut self, request: &Request, path: &str) -> Outcome {
        let data = &request.data;
        let own = request.token.as_deref().unwrap_or_default();
        let parent = self.tokens.get(own).cloned().ok_or_else(Refusal::dead_token)?;
        let sudo = self.has_sudo(&parent, request, &format!("auth/token/{path}"));
        if parent.num_uses != 0 {
            return Err(Refusal::bad_request("restricted use token cannot generate child tokens"));
        }
        if parent.batch {
            return Err(Refusal::bad_request("batch tokens cannot create more tokens"));
        }
        let Wanted { batch, period, explicit_max_ttl, ttl, num_uses, no_parent } =
            Wanted::parse(data, sudo)?;
        let policies = Self::child_policies(request, &parent, sudo)?;
        let root = policies == ["root"];
        let orphan = no_parent || path == "create-orphan";
        let mut warnings = Vec::new();
        let mut granted = ttl;
        if !root || !period.is_zero() || !ttl.is_zero() {
            let limits = Limits { ttl, period, explicit_max_ttl, ..Limits::default() };
            let (ttl, cap_warnings) = granted_ttl(limits, request.now, request.now)
                .expect("nothing is past its maximum at its start");
            granted = ttl;
            warnings = cap_warnings;
        } else if !explicit_max_ttl.is_zero() {
            granted = explicit_max_ttl;
        }
        let id = match text(data, "id") {
            "" => self.new_token_id(batch, &request.namespace),
            id => id.to_owned(),
        };
        let display_name = match text(data, "display_name") {
            "" => "token".to_owned(),
            name => format!("token-{name}"),
        };
        let expires = (!granted.is_zero()).then(|| request.now + granted);
        let token = Token {
            id,
            batch,
            accessor: self.accessor(batch, &request.namespace),
            policies,
            path: format!("auth/token/{path}"),
            meta: data.get("meta").and_then(Value::as_object).cloned(),
            display_name,
            num_uses,
            parent: (!orphan).then(|| own.to_owned()),
            namespace: request.namespace.clone(),
            entity_id: if orphan { String::new() } else { parent.entity_id.clone() },
            created: truncated_to_seconds(request.now),
            creation_ttl: granted,
            period,
            explicit_max_ttl,
            lease: Some(Lease {
                issued: request.now,
                expires,
                renewed: None,
                renewable: !batch
                    && expires.is_some()
                    && flag(data.get("renewable")) != Some(false),
                ttl: granted,
            }),
            role: None,
            wrapped: None,
        };
        for name in &token.policies {
            if !self.namespaces[&request.namespace].policies.contains_key(name) && name != "root" {
                warnings.push(format!("Policy {name:?} does not exist"));
            }
        }
        Ok(Some(self.issue(token, granted, warnings)))
    }

    fn child_policies(
        request: &Request,
        parent: &Token,
        sudo: bool,
    ) -> Result<Vec<String>, Refusal> {
        let wanted = strings(request.data.get("policies"));
        let no_default = flag(request.data.get("no_default_policy")) == Some(true);
        let mut policies = if parent.namespace != request.namespace {
            sanitized(&wanted, !no_default)
        } else if wanted.is_empty() {
            parent.policies.clone()
        } else if sudo {
            sanitized(&wanted, !no_default)
        } else {
            let wanted = sanitized(&wanted, false);
            if !wanted.iter().all(|name| parent.policies.contains(name)) {
                return Err(Refusal::bad_request("child policies must be subset of parent"));
            }
            let add_default = parent.policies.iter().any(|name| name == "default");
            sanitized(&wanted, add_default && !no_default)
        };
        if no_default {
            policies.retain(|name| name != "default");
        }
        if policies.iter().any(|name| name == RESPONSE_WRAPPING) {
            return Err(Refusal::bad_request(format!(
                "cannot assign policy {RESPONSE_WRAPPING:?}"
            )));
        }
        if policies == ["root"] && parent.policies != ["root"] {
            return Err(Refusal::bad_request(
                "root tokens may not be created without parent token being root",
            ));
        }
        Ok(policies)
    }

    pub fn accessor(&self, batch: bool, namespace: &str) -> String {
        if batch {
            return String::new();
        }
        let accessor = random_base62(24);
        if namespace.is_empty() {
            return accessor;
        }
        format!("{accessor}.{}", self.namespaces[namespace].id)
    }

    /// Registers a new token.
    pub fn issue(&mut self, token: Token, ttl: Duration, warnings: Vec<String>) -> Answer {
        let answer = Answer { auth: Some(token.auth(ttl)), warnings, ..Answer::default() };
        self.tokens.insert(token.id.clone(), token);
        answer
    }
}
