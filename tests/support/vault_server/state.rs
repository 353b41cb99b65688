//! Everything that the server knows, and the way of a request through it: namespace, token,
//! policy, route, wrapping; in `OpenBao`'s order.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::approle::AppRoles;
use super::exchange::{Answer, Call, Operation, Outcome, Refusal, Reply, Request};
use super::kv::Kv;
use super::kv1::Unversioned;
use super::policy::{Acl, DEFAULT_POLICY, Policy, RESPONSE_WRAPPING, RESPONSE_WRAPPING_POLICY};
use super::token::{Lease, Token, Wrapped};
use super::values::{Object, random_base62, rfc3339, seconds, text, truncated_to_seconds, uuid};

pub struct State {
    pub sealed: bool,
    pub namespaces: BTreeMap<String, Namespace>,
    pub tokens: HashMap<String, Token>,
    pub unseal_key: String,
}

pub struct Namespace {
    pub id: String,
    pub uuid: String,
    pub policies: BTreeMap<String, Policy>,
    /// By path, with a slash at the end.
    pub mounts: BTreeMap<String, Mount>,
    /// Mounts of `AppRole`, likewise.
    pub auth: BTreeMap<String, AppRoles>,
}

pub struct Mount {
    pub accessor: String,
    pub uuid: String,
    pub description: String,
    pub engine: Engine,
}

pub enum Engine {
    Versioned(Kv),
    Unversioned(Unversioned),
}

impl Mount {
    pub fn new(engine: Engine) -> Self {
        let accessor = format!("kv_{}", &uuid()[..8]);
        Self { accessor, uuid: uuid(), description: String::new(), engine }
    }
}

impl Namespace {
    pub fn new() -> Self {
        let parsed = |source| Policy::parse(source).expect("the server's own policies parse");
        let policies = BTreeMap::from([
            ("default".to_owned(), parsed(DEFAULT_POLICY)),
            (RESPONSE_WRAPPING.to_owned(), parsed(RESPONSE_WRAPPING_POLICY)),
        ]);
        Self {
            id: random_base62(6),
            uuid: uuid(),
            policies,
            mounts: BTreeMap::new(),
            auth: BTreeMap::new(),
        }
    }
}

impl State {
    pub fn new(root_token: &str, now: SystemTime) -> Self {
        let root = Token {
            id: root_token.to_owned(),
            batch: false,
            accessor: random_base62(24),
            policies: vec!["root".to_owned()],
            path: "auth/token/root".to_owned(),
            meta: None,
            display_name: "root".to_owned(),
            num_uses: 0,
            parent: None,
            namespace: String::new(),
            entity_id: String::new(),
            created: truncated_to_seconds(now),
            creation_ttl: Duration::ZERO,
            period: Duration::ZERO,
            explicit_max_ttl: Duration::ZERO,
            lease: None,
            role: None,
            wrapped: None,
        };
        Self {
            sealed: false,
            namespaces: BTreeMap::from([(String::new(), Namespace::new())]),
            tokens: HashMap::from([(root.id.clone(), root)]),
            unseal_key: random_base62(44),
        }
    }

    pub fn handle(&mut self, call: &Call, now: SystemTime) -> Reply {
        let mut reply = self.answer(call, now).unwrap_or_else(Refusal::into_reply);
        if !call.namespace.is_empty() {
            reply.headers.push(("X-Vault-Namespace", call.namespace.clone()));
        }
        reply
    }

    fn answer(&mut self, call: &Call, now: SystemTime) -> Result<Reply, Refusal> {
        if let Some(reply) = self.handle_below_the_barrier(call, now)? {
            return Ok(reply);
        }
        let (operation, data) = parse(call)?;
        let wrap_ttl = match call.wrap_ttl.as_deref() {
            None | Some("") => None,
            Some(given) => Some(wrap_ttl(given)?),
        };
        if call.path.split('/').any(|segment| segment == "..") {
            return Err(Refusal::bad_request("relative paths not supported"));
        }
        if self.sealed {
            return Err(Refusal::sealed());
        }
        let (namespace, mut path) = self.resolve(&call.namespace, &call.path)?;
        if operation == Operation::List && !path.ends_with('/') {
            path.push('/');
        }
        if path.ends_with('/')
            && matches!(operation, Operation::Update | Operation::Create | Operation::Patch)
        {
            return Err(Refusal::bad_request("cannot write to a path ending in '/'"));
        }
        let mut request = Request {
            id: uuid(),
            operation,
            path,
            namespace,
            data,
            token: call.token.clone().filter(|token| !token.is_empty()),
            wrap_ttl,
            now,
        };
        let answer = self.handle_logical(&mut request)?;
        self.finish(&request, answer)
    }

    /// The longest namespace that the header and the path together begin with.
    fn resolve(&self, header: &str, path: &str) -> Result<(String, String), Refusal> {
        let header = match header.trim_matches('/') {
            "" | "root" => String::new(),
            header => format!("{header}/"),
        };
        let whole = format!("{header}{path}");
        let known = self.namespaces.keys().filter(|known| whole.starts_with(known.as_str()));
        let found = known.max_by_key(|known| known.len()).expect("the root fits everything");
        if !found.starts_with(&header) {
            return Err(Refusal::new(404, "namespace not found"));
        }
        Ok((found.clone(), whole[found.len()..].to_owned()))
    }

    fn handle_logical(&mut self, request: &mut Request) -> Outcome {
        let wrapping = matches!(
            request.path.as_str(),
            "sys/wrapping/lookup" | "sys/wrapping/unwrap" | "sys/wrapping/rewrap"
        );
        if wrapping {
            self.check_wrapping_token(request)?;
        }
        // These paths mean the token's own namespace, whichever was asked.
        if matches!(
            request.path.as_str(),
            "auth/token/lookup-self" | "auth/token/renew-self" | "auth/token/revoke-self"
        ) && let Some(token) = request.token.as_ref().and_then(|id| self.tokens.get(id))
        {
            request.namespace.clone_from(&token.namespace);
        }
        if self.needs_no_token(request) {
            return self.route(request);
        }
        let id = request.token.clone().ok_or_else(Refusal::dead_token)?;
        let token = self.living(&id, request.now).ok_or_else(Refusal::dead_token)?.clone();
        self.tell_create_from_update(request);
        let acl = self.acl(&token, wrapping.then_some(request.namespace.as_str()));
        let full_path = format!("{}{}", request.namespace, request.path);
        let allowed = acl.allows(request.operation, &full_path, |name| {
            request.data.keys().any(|given| given.to_lowercase() == name)
        }) && (!needs_sudo(&request.path) || acl.has_sudo(&full_path));
        let last_use = self.use_token(&id);
        let outcome = if allowed { self.route(request) } else { Err(Refusal::no_capability()) };
        if last_use {
            self.revoke(&id);
        }
        outcome
    }

    fn needs_no_token(&self, request: &Request) -> bool {
        let path = request.path.as_str();
        path == "sys/wrapping/lookup"
            || path.starts_with("sys/internal/ui/mounts")
            || self.namespaces[&request.namespace]
                .auth
                .keys()
                .any(|mount| path == format!("auth/{mount}login"))
    }

    fn tell_create_from_update(&self, request: &mut Request) {
        if request.operation != Operation::Update {
            return;
        }
        let namespace = &self.namespaces[&request.namespace];
        let exists = if let Some(path) = request.path.strip_prefix("auth/") {
            let mount = namespace.auth.iter().find(|(mount, _)| path.starts_with(*mount));
            mount.and_then(|(mount, roles)| roles.exists(&path[mount.len()..]))
        } else {
            mount_of(&namespace.mounts, &request.path).and_then(|mount| {
                let path = &request.path[mount.len()..];
                match &namespace.mounts[mount].engine {
                    Engine::Versioned(kv) => kv.exists(path),
                    Engine::Unversioned(kv) => Some(kv.exists(path)),
                }
            })
        };
        if exists == Some(false) {
            request.operation = Operation::Create;
        }
    }

    fn acl(&self, token: &Token, wrapping_in: Option<&str>) -> Acl {
        if token.policies == ["root"] {
            return Acl::root(&token.namespace);
        }
        let namespace = match wrapping_in {
            Some(namespace) if token.is_wrapping() => namespace,
            _ => &token.namespace,
        };
        let known = self.namespaces.get(namespace);
        let policies: Vec<&Policy> = known
            .iter()
            .flat_map(|known| token.policies.iter().filter_map(|name| known.policies.get(name)))
            .collect();
        Acl::of(namespace, &policies)
    }

    pub fn has_sudo(&self, token: &Token, request: &Request, path: &str) -> bool {
        self.acl(token, None).has_sudo(&format!("{}{path}", request.namespace))
    }

    /// What the caller may do on each path, for `sys/capabilities-self`.
    pub fn capabilities(&self, request: &Request, path: &str) -> Vec<&'static str> {
        let token = request.token.as_ref().and_then(|id| self.tokens.get(id));
        let full_path = format!("{}{path}", request.namespace);
        token.map(|token| self.acl(token, None).capabilities(&full_path)).unwrap_or_default()
    }

    fn route(&mut self, request: &Request) -> Outcome {
        if let Some(path) = request.path.strip_prefix("sys/") {
            return self.handle_system_path(request, path);
        }
        if let Some(path) = request.path.strip_prefix("auth/token/") {
            return self.handle_token_path(request, path);
        }
        let namespace =
            self.namespaces.get_mut(&request.namespace).expect("a request has a known one");
        if let Some(path) = request.path.strip_prefix("auth/") {
            let Some((mount, roles)) =
                namespace.auth.iter_mut().find(|(mount, _)| path.starts_with(mount.as_str()))
            else {
                return Err(Refusal::no_route(&request.path));
            };
            let rest = &path[mount.len()..];
            if rest == "login" && request.operation == Operation::Update {
                let mount = mount.clone();
                return self.log_in(request, &mount);
            }
            return roles.handle(request, rest);
        }
        let Some(mount) = mount_of(&namespace.mounts, &request.path).map(str::to_owned) else {
            return Err(Refusal::no_route(&request.path));
        };
        let path = &request.path[mount.len()..];
        let (operation, data) = (request.operation, &request.data);
        match &mut namespace.mounts.get_mut(&mount).expect("it was just found").engine {
            Engine::Versioned(kv) => kv.handle(operation, path, data, request.now),
            Engine::Unversioned(kv) => kv.handle(operation, path, data),
        }
    }

    fn finish(&mut self, request: &Request, answer: Option<Answer>) -> Result<Reply, Refusal> {
        let Some(answer) = answer else {
            return match request.operation {
                Operation::Read | Operation::List => Err(Refusal::bare(404)),
                _ => Ok(Reply::empty(204)),
            };
        };
        if let Some(body) = answer.raw {
            return Ok(Reply { body, ..Reply::empty(200) });
        }
        if let Some(status) = answer.status {
            let nothing = answer.data.is_none() && answer.warnings.is_empty();
            return Ok(if nothing {
                Reply::empty(status)
            } else {
                Reply::json(status, &answer.to_json(&request.id))
            });
        }
        let empty_list = answer.data.as_ref().is_some_and(|data| !data.contains_key("keys"));
        if request.operation == Operation::List && empty_list {
            return Err(Refusal::bare(404));
        }
        if let Some(ttl) = request.wrap_ttl {
            return Ok(self.wrap(request, &answer, ttl));
        }
        let mut body = answer.to_json(&request.id);
        if repeats_its_data(&request.path)
            && let (Some(body), Some(data)) = (body.as_object_mut(), answer.data)
        {
            for (name, value) in data {
                body.entry(name).or_insert(value);
            }
        }
        Ok(Reply::json(200, &body))
    }

    fn wrap(&mut self, request: &Request, answer: &Answer, ttl: Duration) -> Reply {
        let of_the_wrapped = |object: Option<&Object>, name: &str| {
            object.and_then(|object| object.get(name)).cloned()
        };
        let wrapped = Wrapped {
            body: answer.to_json(&request.id).to_string().into_bytes(),
            ttl,
            created: request.now,
            creation_path: request.path.clone(),
            accessor: of_the_wrapped(answer.auth.as_ref(), "accessor")
                .or_else(|| of_the_wrapped(answer.data.as_ref(), "secret_id_accessor")),
        };
        let mut body = self.keep_wrapped(request, wrapped);
        body["warnings"] = answer.to_json("")["warnings"].clone();
        Reply::json(200, &body)
    }

    /// Makes the token for what is wrapped; the answer that has it.
    pub fn keep_wrapped(&mut self, request: &Request, wrapped: Wrapped) -> Value {
        let id = self.new_token_id(false, &request.namespace);
        let accessor = self.accessor(false, &request.namespace);
        let ttl = wrapped.ttl;
        let mut wrap_info = json!({
            "token": id,
            "accessor": accessor,
            "ttl": ttl.as_secs(),
            "creation_time": rfc3339(wrapped.created),
            "creation_path": wrapped.creation_path,
        });
        if let Some(accessor) = &wrapped.accessor {
            wrap_info["wrapped_accessor"] = accessor.clone();
        }
        let token = Token {
            id: id.clone(),
            batch: false,
            accessor,
            policies: vec![RESPONSE_WRAPPING.to_owned()],
            path: request.path.clone(),
            meta: None,
            display_name: String::new(),
            num_uses: 1,
            parent: None,
            namespace: request.namespace.clone(),
            entity_id: String::new(),
            created: truncated_to_seconds(request.now),
            creation_ttl: ttl,
            period: Duration::ZERO,
            explicit_max_ttl: ttl,
            lease: Some(Lease {
                issued: request.now,
                expires: Some(request.now + ttl),
                renewed: None,
                renewable: false,
                ttl,
            }),
            role: None,
            wrapped: Some(wrapped),
        };
        self.tokens.insert(id, token);
        let mut body = Answer::default().to_json("");
        body["wrap_info"] = wrap_info;
        body
    }

    /// The wrapping token is in the body, or else it is the one that the request came with.
    fn check_wrapping_token(&self, request: &Request) -> Result<(), Refusal> {
        let id = wrapping_token(request);
        if id.is_empty() {
            return Err(Refusal::new(403, "error validating wrapping token: token is empty"));
        }
        let valid = self.living(id, request.now).is_some_and(Token::is_wrapping);
        if valid {
            Ok(())
        } else {
            Err(Refusal::bad_request("wrapping token is not valid or does not exist"))
        }
    }
}

pub fn wrapping_token(request: &Request) -> &str {
    match text(&request.data, "token") {
        "" => request.token.as_deref().unwrap_or_default(),
        token => token,
    }
}

fn mount_of<'a>(mounts: &'a BTreeMap<String, Mount>, path: &str) -> Option<&'a str> {
    let fits = |mount: &&String| path.starts_with(mount.as_str()) || format!("{path}/") == **mount;
    mounts
        .keys()
        .filter(|mount| fits(mount) && path.len() >= mount.len())
        .max_by_key(|mount| mount.len())
        .map(String::as_str)
}

fn needs_sudo(path: &str) -> bool {
    path.starts_with("sys/auth/")
}

/// Some old paths have the data once more, beside it.
fn repeats_its_data(path: &str) -> bool {
    ["sys/auth", "sys/mounts", "sys/policy"].iter().any(|old| {
        path.strip_prefix(old).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }) || matches!(path, "sys/capabilities" | "sys/capabilities-self" | "sys/wrapping/wrap")
}

fn wrap_ttl(given: &str) -> Result<Duration, Refusal> {
    let wrong =
        |why: &str| Refusal::bad_request(format!("error parsing X-Vault-Wrap-TTL header: {why}"));
    let seconds = seconds(&json!(given))
        .ok_or_else(|| wrong(&format!("time: invalid duration {given:?}")))?;
    let seconds =
        u64::try_from(seconds).map_err(|_| wrong("requested wrap ttl cannot be negative"))?;
    Ok(Duration::from_secs(seconds))
}

fn parse(call: &Call) -> Result<(Operation, Object), Refusal> {
    let from_query = || -> Object {
        call.query
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "help" | "list"))
            .map(|(name, value)| (name.clone(), json!(value)))
            .collect()
    };
    match call.method.as_str() {
        "GET" => match call.query("list") {
            None | Some("" | "0" | "f" | "F" | "false" | "FALSE" | "False") => {
                Ok((Operation::Read, from_query()))
            }
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok((Operation::List, from_query())),
            Some(_) => Err(Refusal::bare(400)),
        },
        "LIST" => Ok((Operation::List, from_query())),
        "HEAD" => Ok((Operation::Header, from_query())),
        "DELETE" => Ok((Operation::Delete, from_query())),
        "POST" | "PUT" => Ok((Operation::Update, body_of(call)?)),
        "PATCH" => {
            let given = call.content_type.as_deref().unwrap_or_default();
            let media_type = given.split(';').next().unwrap_or_default().trim().to_lowercase();
            if media_type.is_empty() {
                return Err(Refusal::bad_request("mime: no media type"));
            }
            if media_type != "application/merge-patch+json" {
                return Err(Refusal::new(
                    415,
                    format!(
                        "PATCH requires Content-Type of application/merge-patch+json, provided \
                         {media_type}"
                    ),
                ));
            }
            Ok((Operation::Patch, body_of(call)?))
        }
        _ => Err(Refusal::bare(405)),
    }
}

fn body_of(call: &Call) -> Result<Object, Refusal> {
    if call.body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Object::new());
    }
    let wrong = |why: &str| Refusal::bad_request(format!("failed to decode JSON input: {why}"));
    match serde_json::from_slice(&call.body) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(Value::Null) => Ok(Object::new()),
        Ok(_) => Err(wrong("json: cannot unmarshal into Go value of type map[string]interface {}")),
        // What serde_json says of the place never quotes the text.
        Err(error) => Err(wrong(&error.to_string())),
    }
}
