//! `sys/`: health and seals, which need no token, and mounts, policies, namespaces, wrapping.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::approle::AppRoles;
use super::exchange::{Answer, Call, Operation, Outcome, Refusal, Reply, Request};
use super::kv::Kv;
use super::kv1::Unversioned;
use super::policy::Policy;
use super::state::{Engine, Mount, Namespace, State, wrapping_token};
use super::token::Wrapped;
use super::values::{Object, rfc3339, strings, text, unix_seconds};

pub const VERSION: &str = "2.6.2";

impl State {
    /// What is answered by a sealed server too.
    pub fn handle_below_the_barrier(
        &mut self,
        call: &Call,
        now: SystemTime,
    ) -> Result<Option<Reply>, Refusal> {
        let path = call.path.as_str();
        if matches!(path, "sys/health" | "sys/seal" | "sys/unseal") && !call.namespace.is_empty() {
            return Err(Refusal::bad_request("operation unavailable in namespaces"));
        }
        match (path, call.method.as_str()) {
            ("sys/health", "GET" | "HEAD") => Ok(Some(self.health(call, now))),
            ("sys/seal-status", "GET") => Ok(Some(self.seal_status())),
            ("sys/seal", "PUT" | "POST") => {
                if self.sealed {
                    return Ok(Some(Reply::empty(204)));
                }
                let id = call.token.as_deref().unwrap_or_default();
                let token = self.living(id, now).ok_or_else(Refusal::dead_token)?;
                if token.policies != ["root"] {
                    return Err(Refusal::no_capability());
                }
                self.sealed = true;
                Ok(Some(Reply::empty(204)))
            }
            ("sys/unseal", "PUT" | "POST") => {
                let body: Object = serde_json::from_slice(&call.body).unwrap_or_default();
                match text(&body, "key") {
                    "" => Err(Refusal::bad_request(
                        "'key' must be specified in request body as JSON, or 'reset' set to true",
                    )),
                    key if key == self.unseal_key => {
                        self.sealed = false;
                        Ok(Some(self.seal_status()))
                    }
                    _ => Err(Refusal::bad_request("Unseal failed, invalid key")),
                }
            }
            ("sys/health" | "sys/seal-status" | "sys/seal" | "sys/unseal", _) => {
                Err(Refusal::bare(405))
            }
            _ => Ok(None),
        }
    }

    fn health(&self, call: &Call, now: SystemTime) -> Reply {
        let asked = |name: &str, default: u16| {
            call.query(name).and_then(|code| code.parse().ok()).unwrap_or(default)
        };
        let status = if self.sealed { asked("sealedcode", 503) } else { asked("activecode", 200) };
        let mut body = json!({
            "initialized": true,
            "sealed": self.sealed,
            "standby": false,
            "replication_performance_mode": if self.sealed { "unknown" } else { "disabled" },
            "replication_dr_mode": if self.sealed { "unknown" } else { "disabled" },
            "server_time_utc": unix_seconds(now),
            "version": VERSION,
        });
        if !self.sealed {
            body["cluster_name"] = json!("vault-cluster-test");
            body["cluster_id"] = json!(self.namespaces[""].uuid);
        }
        Reply::json(status, &body)
    }

    fn seal_status(&self) -> Reply {
        Reply::json(
            200,
            &json!({
                "type": "shamir",
                "initialized": true,
                "sealed": self.sealed,
                "t": 1,
                "n": 1,
                "progress": 0,
                "nonce": "",
                "recovery_seal": false,
                "version": VERSION,
                "migration": false,
                "storage_type": "inmem",
            }),
        )
    }

    pub fn handle_system_path(&mut self, request: &Request, path: &str) -> Outcome {
        use Operation::{Create, Delete, List, Read, Update};
        let data = &request.data;
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        match (first, rest, request.operation) {
            ("mounts", "", Read) => Ok(Some(self.mounts(request))),
            ("mounts", mount, Create | Update) => self.change_mounts(request, mount),
            ("mounts", mount, Delete) => {
                self.namespace(request).mounts.remove(&with_slash(mount));
                Ok(None)
            }
            ("auth", mount, Create | Update) if !mount.is_empty() => {
                if text(data, "type") != "approle" {
                    return Err(Refusal::new(501, "this server has AppRole only"));
                }
                let auth = &mut self.namespace(request).auth;
                if auth.contains_key(&with_slash(mount)) {
                    return Err(Refusal::bad_request(format!(
                        "path is already in use at {}",
                        with_slash(mount)
                    )));
                }
                auth.insert(with_slash(mount), AppRoles::default());
                Ok(None)
            }
            ("auth", mount, Delete) => {
                self.disable_auth(request, &with_slash(mount));
                Ok(None)
            }
            ("policies", _, _) => match rest.strip_prefix("acl") {
                Some(name) => self.handle_policy(request, name.trim_matches('/')),
                None => Err(Refusal::unsupported_path()),
            },
            ("policy", name, _) => self.handle_policy(request, name.trim_matches('/')),
            ("namespaces", name, _) => self.handle_namespace(request, name.trim_matches('/')),
            ("wrapping", "lookup", Read | Update) => Ok(self.look_up_wrapped(request)),
            ("wrapping", "unwrap", Update) => Ok(self.unwrap(request)),
            ("wrapping", "rewrap", Update) => Ok(self.rewrap(request)),
            ("wrapping", "wrap", Update) => {
                if request.wrap_ttl.is_none_or(|ttl| ttl.is_zero()) {
                    return Err(Refusal::bad_request(
                        "endpoint requires response wrapping to be used",
                    ));
                }
                Ok(Some(Answer { data: Some(data.clone()), ..Answer::default() }))
            }
            ("wrapping", "unwrap" | "rewrap" | "wrap" | "lookup", _) => {
                Err(Refusal::unsupported_operation())
            }
            ("capabilities-self", "", Update) => Ok(Some(self.own_capabilities(request))),
            ("internal", rest, Read) => match rest.strip_prefix("ui/mounts/") {
                Some(path) => self.preflight(request, path),
                None => Err(Refusal::unsupported_path()),
            },
            ("mounts" | "auth", _, List | Read) => Ok(None),
            _ => Err(Refusal::unsupported_path()),
        }
    }

    fn namespace(&mut self, request: &Request) -> &mut Namespace {
        self.namespaces.get_mut(&request.namespace).expect("a request has a known one")
    }

    fn mounts(&self, request: &Request) -> Answer {
        let namespace = &self.namespaces[&request.namespace];
        let mounts: Map<String, Value> =
            namespace.mounts.iter().map(|(path, mount)| (path.clone(), mount.describe())).collect();
        Answer { data: Some(mounts), ..Answer::default() }
    }

    fn change_mounts(&mut self, request: &Request, mount: &str) -> Outcome {
        let data = &request.data;
        if let Some(mount) = mount.strip_suffix("/tune") {
            let known = self.namespace(request).mounts.get_mut(&with_slash(mount));
            let known = known.ok_or_else(|| {
                Refusal::bad_request(format!("cannot fetch sysview for path {mount:?}"))
            })?;
            if let Some(description) = data.get("description").and_then(Value::as_str) {
                description.clone_into(&mut known.description);
            }
            return Ok(None);
        }
        let version = data.get("options").and_then(|options| options.get("version"));
        let version = version.and_then(Value::as_str).unwrap_or("1");
        let engine = match (text(data, "type"), version) {
            ("kv-v2", _) | ("kv", "2") => Engine::Versioned(Kv::default()),
            ("kv-v1", _) | ("kv", "1") => Engine::Unversioned(Unversioned::default()),
            ("", _) => {
                return Err(Refusal::bad_request("backend type must be specified as a string"));
            }
            _ => return Err(Refusal::new(501, "this server has KV mounts only")),
        };
        let mounts = &mut self.namespace(request).mounts;
        if mounts.contains_key(&with_slash(mount)) {
            return Err(Refusal::bad_request(format!(
                "path is already in use at {}",
                with_slash(mount)
            )));
        }
        let mut made = Mount::new(engine);
        text(data, "description").clone_into(&mut made.description);
        mounts.insert(with_slash(mount), made);
        Ok(None)
    }

    fn disable_auth(&mut self, request: &Request, mount: &str) {
        self.namespace(request).auth.remove(mount);
        let made_there = |token: &&super::token::Token| {
            token.namespace == request.namespace
                && token.role.as_ref().is_some_and(|(from, _)| from == mount)
        };
        let tokens: Vec<String> =
            self.tokens.values().filter(made_there).map(|token| token.id.clone()).collect();
        for token in tokens {
            self.revoke(&token);
        }
    }

    fn handle_policy(&mut self, request: &Request, name: &str) -> Outcome {
        let name = name.to_lowercase();
        let policies = &mut self.namespace(request).policies;
        match request.operation {
            Operation::List => {
                let mut names: Vec<String> =
                    policies.keys().filter(|name| *name != "response-wrapping").cloned().collect();
                names.push("root".to_owned());
                Ok(Some(Answer::keys(names)))
            }
            Operation::Create | Operation::Update => {
                let source = text(&request.data, "policy");
                if source.is_empty() {
                    return Err(Refusal::bad_request("'policy' parameter not supplied or empty"));
                }
                let policy = Policy::parse(source).map_err(Refusal::bad_request)?;
                policies.insert(name, policy);
                Ok(None)
            }
            Operation::Read => Ok(policies
                .get(&name)
                .map(|policy| Answer::data(json!({ "name": name, "policy": policy.source })))),
            Operation::Delete => {
                policies.remove(&name);
                Ok(None)
            }
            _ => Err(Refusal::unsupported_operation()),
        }
    }

    fn handle_namespace(&mut self, request: &Request, name: &str) -> Outcome {
        let path = format!("{}{}", request.namespace, with_slash(name));
        match request.operation {
            Operation::Create | Operation::Update => {
                let namespace = self.namespaces.entry(path.clone()).or_insert_with(Namespace::new);
                Ok(Some(Answer::data(namespace.describe(&path))))
            }
            Operation::Read => Ok(self
                .namespaces
                .get(&path)
                .map(|namespace| Answer::data(namespace.describe(&path)))),
            Operation::Delete => {
                let there = self.namespaces.remove(&path).is_some();
                self.namespaces.retain(|known, _| !known.starts_with(&path));
                self.tokens.retain(|_, token| !token.namespace.starts_with(&path));
                Ok(there.then(|| Answer::data(json!({ "status": "in-progress" }))))
            }
            Operation::List => {
                let children = self.namespaces.keys().filter_map(|known| {
                    let child = known.strip_prefix(&request.namespace)?;
                    (child.matches('/').count() == 1).then(|| child.to_owned())
                });
                Ok(Some(Answer::keys(children.collect())))
            }
            _ => Err(Refusal::unsupported_operation()),
        }
    }

    fn look_up_wrapped(&self, request: &Request) -> Option<Answer> {
        let wrapped = self.tokens.get(wrapping_token(request))?.wrapped.as_ref()?;
        Some(Answer::data(json!({
            "creation_ttl": wrapped.ttl.as_secs(),
            "creation_time": rfc3339(wrapped.created),
            "creation_path": wrapped.creation_path,
        })))
    }

    fn unwrap(&mut self, request: &Request) -> Option<Answer> {
        let id = wrapping_token(request).to_owned();
        let wrapped = self.tokens.get(&id)?.wrapped.clone()?;
        self.tokens.remove(&id);
        Some(Answer { raw: Some(wrapped.body), ..Answer::default() })
    }

    fn rewrap(&mut self, request: &Request) -> Option<Answer> {
        let token = self.tokens.remove(wrapping_token(request))?;
        let wrapped = Wrapped { created: request.now, ..token.wrapped? };
        let body = self.keep_wrapped(request, wrapped).to_string().into_bytes();
        Some(Answer { raw: Some(body), ..Answer::default() })
    }

    fn own_capabilities(&self, request: &Request) -> Answer {
        let mut paths = strings(request.data.get("paths"));
        paths.extend(strings(request.data.get("path")));
        let mut data = Object::new();
        for path in &paths {
            data.insert(path.clone(), json!(self.capabilities(request, path)));
        }
        if let [path] = &paths[..] {
            data.insert("capabilities".to_owned(), json!(self.capabilities(request, path)));
        }
        Answer { data: Some(data), ..Answer::default() }
    }

    /// What command-line clients ask before they decide on a version.
    fn preflight(&self, request: &Request, path: &str) -> Outcome {
        let refused = || {
            Refusal::new(
                403,
                "preflight capability check returned 403, please ensure client's policies grant access to path",
            )
        };
        let namespace = &self.namespaces[&request.namespace];
        let whole = with_slash(path);
        let found = namespace.mounts.iter().find(|(mount, _)| whole.starts_with(mount.as_str()));
        let (mount, known) = found.ok_or_else(refused)?;
        let mut data = known.describe();
        data["path"] = json!(mount);
        Ok(Some(Answer::data(data)))
    }
}

impl Namespace {
    fn describe(&self, path: &str) -> Value {
        json!({
            "id": self.id,
            "uuid": self.uuid,
            "path": path,
            "custom_metadata": {},
            "locked": false,
            "tainted": false,
        })
    }
}

impl Mount {
    fn describe(&self) -> Value {
        let version = match self.engine {
            Engine::Versioned(_) => "2",
            Engine::Unversioned(_) => "1",
        };
        json!({
            "type": "kv",
            "accessor": self.accessor,
            "uuid": self.uuid,
            "description": self.description,
            "options": { "version": version },
            "config": { "default_lease_ttl": 0, "max_lease_ttl": 0, "force_no_cache": false },
            "local": false,
            "seal_wrap": false,
            "external_entropy_access": false,
        })
    }
}

fn with_slash(path: &str) -> String {
    format!("{}/", path.trim_matches('/'))
}
