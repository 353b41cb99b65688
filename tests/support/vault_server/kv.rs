//! A KV v2 mount, after `OpenBao`'s `builtin/logical/kv`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::exchange::{Answer, Operation, Outcome, Refusal};
use super::values::{
    Object, flag, go_duration, integer, numbers, object, rfc3339, rfc3339_or_empty, seconds, text,
    through_a_float,
};

const DEFAULT_MAX_VERSIONS: u64 = 10;

#[derive(Default)]
pub struct Kv {
    config: Config,
    secrets: BTreeMap<String, Secret>,
}

#[derive(Default)]
struct Config {
    max_versions: u64,
    cas_required: bool,
    metadata_cas_required: bool,
    delete_version_after: Option<Duration>,
}

/// One secret's key metadata with its versions.
struct Secret {
    versions: BTreeMap<u64, Version>,
    current: u64,
    oldest: u64,
    metadata_version: u64,
    created: SystemTime,
    updated: SystemTime,
    max_versions: u64,
    cas_required: bool,
    metadata_cas_required: bool,
    delete_version_after: Option<Duration>,
    custom_metadata: Option<Object>,
}

struct Version {
    /// `None` when it was written as null.
    data: Option<Object>,
    created: SystemTime,
    deletion: Option<SystemTime>,
    destroyed: bool,
}

impl Version {
    fn is_gone(&self, now: SystemTime) -> bool {
        self.destroyed || self.deletion.is_some_and(|at| at <= now)
    }

    fn delete(&mut self, now: SystemTime) {
        if !self.is_gone(now) {
            self.deletion = Some(now);
        }
    }

    fn describe(&self, number: u64, custom_metadata: Option<&Object>) -> Object {
        object(json!({
            "version": number,
            "created_time": rfc3339(self.created),
            "deletion_time": rfc3339_or_empty(self.deletion),
            "destroyed": self.destroyed,
            "custom_metadata": custom_metadata,
        }))
    }
}

impl Secret {
    fn new(now: SystemTime) -> Self {
        Self {
            versions: BTreeMap::new(),
            current: 0,
            oldest: 0,
            metadata_version: 0,
            created: now,
            updated: now,
            max_versions: 0,
            cas_required: false,
            metadata_cas_required: false,
            delete_version_after: None,
            custom_metadata: None,
        }
    }

    fn add(&mut self, data: Option<Object>, config: &Config, now: SystemTime) -> Answer {
        let deletion = self.deletion_of_a_new_version(config, now);
        self.current += 1;
        let version = Version { data, created: now, deletion, destroyed: false };
        let described = version.describe(self.current, self.custom_metadata.as_ref());
        self.versions.insert(self.current, version);
        self.updated = now;
        let max = match self.max_versions.max(config.max_versions) {
            0 => DEFAULT_MAX_VERSIONS,
            max => max,
        };
        if self.current - self.oldest >= max {
            self.oldest = self.current - max + 1;
            self.versions.retain(|number, _| *number >= self.oldest);
        }
        Answer { data: Some(described), ..Answer::default() }
    }

    fn deletion_of_a_new_version(&self, config: &Config, now: SystemTime) -> Option<SystemTime> {
        let after = [config.delete_version_after, self.delete_version_after];
        after.into_iter().flatten().min().map(|after| now + after)
    }

    fn describe(&self) -> Value {
        let versions: Map<String, Value> = self
            .versions
            .iter()
            .map(|(number, version)| {
                let version = json!({
                    "created_time": rfc3339(version.created),
                    "deletion_time": rfc3339_or_empty(version.deletion),
                    "destroyed": version.destroyed,
                });
                (number.to_string(), version)
            })
            .collect();
        json!({
            "versions": versions,
            "current_version": self.current,
            "current_metadata_version": self.metadata_version,
            "oldest_version": self.oldest,
            "created_time": rfc3339(self.created),
            "updated_time": rfc3339(self.updated),
            "max_versions": self.max_versions,
            "cas_required": self.cas_required,
            "metadata_cas_required": self.metadata_cas_required,
            "delete_version_after": go_duration(self.delete_version_after.unwrap_or_default()),
            "custom_metadata": self.custom_metadata,
        })
    }
}

impl Kv {
    /// Whether what a write names is there already; `None` where a write is an update in any
    /// case. Decides between the capabilities `create` and `update`.
    pub fn exists(&self, path: &str) -> Option<bool> {
        match path.split_once('/') {
            Some(("data" | "metadata", key)) => Some(self.secrets.contains_key(key)),
            _ => None,
        }
    }

    pub fn handle(
        &mut self,
        operation: Operation,
        path: &str,
        data: &Object,
        now: SystemTime,
    ) -> Outcome {
        use Operation::{Create, Delete, List, Patch, Read, Update};
        match (path.split_once('/'), operation) {
            (Some(("data", key)), Read) => self.read(key, data, now),
            (Some(("data", key)), Create | Update) => self.write(key, data, now),
            (Some(("data", key)), Patch) => self.patch(key, data, now),
            (Some(("data", key)), Delete) => Ok(self.delete_latest(key, now)),
            (Some(("metadata", key)), Read) => Ok(self.read_metadata(key)),
            (Some(("metadata", key)), List) => Ok(Some(Answer::keys(self.list(key, data)))),
            (Some(("metadata", key)), Create | Update) => self.write_metadata(key, data, now),
            (Some(("metadata", key)), Patch) => self.patch_metadata(key, data, now),
            (Some(("metadata", key)), Delete) => {
                self.secrets.remove(key);
                Ok(None)
            }
            (Some(("delete", key)), Create | Update) => {
                self.each_version(key, data, "No version number provided", |version| {
                    version.delete(now);
                })
            }
            (Some(("undelete", key)), Create | Update) => {
                self.each_version(key, data, "No version number provided", |version| {
                    if !version.destroyed {
                        version.deletion = None;
                    }
                })
            }
            (Some(("destroy", key)), Create | Update) => {
                self.each_version(key, data, "no version number provided", |version| {
                    version.destroyed = true;
                    version.data = None;
                })
            }
            (None, Read) if path == "config" => Ok(Some(self.read_config())),
            (None, Create | Update) if path == "config" => Ok(self.write_config(data)),
            (Some(("data" | "metadata" | "delete" | "undelete" | "destroy", _)), _) => {
                Err(Refusal::unsupported_operation())
            }
            (None, _) if path == "config" => Err(Refusal::unsupported_operation()),
            _ => invalid_path(operation, path),
        }
    }

    fn read(&self, key: &str, data: &Object, now: SystemTime) -> Outcome {
        let wanted = match data.get("version") {
            None => 0,
            version => integer(version).ok_or_else(|| {
                let given = text(data, "version");
                Refusal::bad_request(format!(
                    "Field validation failed: error converting input for field \"version\": \
                     cannot parse '' as int: strconv.ParseInt: parsing \"{given}\": invalid syntax"
                ))
            })?,
        };
        let Some(secret) = self.secrets.get(key) else {
            // The lookup of the metadata forgives a slash at the end, that of the data does not.
            if self.secrets.contains_key(key.trim_end_matches('/')) {
                return Err(Refusal::wrapped(500, "could not find version data"));
            }
            return Ok(None);
        };
        let number = u64::try_from(wanted).ok().filter(|n| *n > 0).unwrap_or(secret.current);
        let Some(version) = secret.versions.get(&number) else { return Ok(None) };
        let gone = version.is_gone(now);
        let answer = Answer::data(json!({
            "data": if gone { Value::Null } else { json!(version.data) },
            "metadata": version.describe(number, secret.custom_metadata.as_ref()),
        }));
        Ok(Some(if gone { answer.with_status(404) } else { answer }))
    }

    fn write(&mut self, key: &str, data: &Object, now: SystemTime) -> Outcome {
        if key.is_empty() {
            return Err(Refusal::bad_request("missing path"));
        }
        let fields = fields_of(data)?;
        let secret = self.secrets.get(key);
        self.config.check_cas(data, secret)?;
        let fields = fields.map(|fields| object(through_a_float(&Value::Object(fields))));
        let secret = self.secrets.entry(key.to_owned()).or_insert_with(|| Secret::new(now));
        Ok(Some(secret.add(fields, &self.config, now)))
    }

    fn patch(&mut self, key: &str, data: &Object, now: SystemTime) -> Outcome {
        let change = fields_of(data)?;
        let Some(secret) = self.secrets.get(key) else {
            return Ok(Some(Answer::default().with_status(404)));
        };
        self.config.check_cas(data, Some(secret))?;
        let Some(version) = secret.versions.get(&secret.current) else {
            return Ok(Some(Answer::default().with_status(404)));
        };
        if version.is_gone(now) {
            let data = Some(version.describe(secret.current, secret.custom_metadata.as_ref()));
            return Ok(Some(Answer { data, ..Answer::default() }.with_status(404)));
        }
        let Some(fields) = &version.data else {
            return Err(Refusal::wrapped(500, "resource does not exist"));
        };
        // Null instead of fields makes a version that has none.
        let merged = change.map(|change| {
            let mut merged = Value::Object(fields.clone());
            merge(&mut merged, &through_a_float(&Value::Object(change)));
            object(merged)
        });
        let secret = self.secrets.get_mut(key).expect("it was there a moment ago");
        Ok(Some(secret.add(merged, &self.config, now)))
    }

    fn delete_latest(&mut self, key: &str, now: SystemTime) -> Option<Answer> {
        let secret = self.secrets.get_mut(key)?;
        secret.versions.get_mut(&secret.current)?.delete(now);
        None
    }

    fn each_version(
        &mut self,
        key: &str,
        data: &Object,
        none_given: &str,
        change: impl Fn(&mut Version),
    ) -> Outcome {
        let versions = numbers(data.get("versions"));
        if versions.is_empty() {
            return Err(Refusal::bad_request(none_given));
        }
        if let Some(secret) = self.secrets.get_mut(key) {
            for number in versions {
                if let Some(version) = secret.versions.get_mut(&number) {
                    change(version);
                }
            }
        }
        Ok(None)
    }

    fn read_metadata(&self, key: &str) -> Option<Answer> {
        self.secrets.get(key).map(|secret| Answer::data(secret.describe()))
    }

    fn list(&self, folder: &str, data: &Object) -> Vec<String> {
        let after = text(data, "after");
        let mut names: Vec<String> = Vec::new();
        for key in self.secrets.keys() {
            let Some(rest) = key.strip_prefix(folder) else { continue };
            let name = match rest.split_once('/') {
                Some((child, _)) => format!("{child}/"),
                None => rest.to_owned(),
            };
            if !names.contains(&name) && name.as_str() > after {
                names.push(name);
            }
        }
        names.sort();
        let limit = integer(data.get("limit")).and_then(|limit| usize::try_from(limit).ok());
        names.truncate(limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX));
        names
    }

    fn write_metadata(&mut self, key: &str, data: &Object, now: SystemTime) -> Outcome {
        if key.is_empty() {
            return Err(Refusal::bad_request("missing path"));
        }
        self.check_metadata_cas(self.secrets.get(key), data)?;
        let answer = self.warning_of_cas_required(data);
        let secret = self.secrets.entry(key.to_owned()).or_insert_with(|| Secret::new(now));
        secret.metadata_version += 1;
        secret.updated = now;
        secret.set(data);
        if let Some(custom) = data.get("custom_metadata") {
            secret.custom_metadata = custom.as_object().cloned();
        }
        Ok(answer)
    }

    fn patch_metadata(&mut self, key: &str, data: &Object, now: SystemTime) -> Outcome {
        let Some(secret) = self.secrets.get(key) else {
            return Ok(Some(Answer::default().with_status(404)));
        };
        self.check_metadata_cas(Some(secret), data)?;
        let answer = self.warning_of_cas_required(data);
        let secret = self.secrets.get_mut(key).expect("it was there a moment ago");
        secret.metadata_version += 1;
        secret.updated = now;
        secret.set(data);
        if let Some(custom) = data.get("custom_metadata") {
            let mut merged = json!(secret.custom_metadata);
            merge(&mut merged, custom);
            secret.custom_metadata = merged.as_object().cloned();
        }
        Ok(answer)
    }

    fn check_metadata_cas(&self, secret: Option<&Secret>, data: &Object) -> Result<(), Refusal> {
        let required = self.config.metadata_cas_required
            || secret.is_some_and(|secret| secret.metadata_cas_required);
        match (integer(data.get("metadata_cas")), secret) {
            (None, _) if required => {
                Err(Refusal::bad_request("metadata check-and-set parameter required for this call"))
            }
            (Some(cas), None) if cas != 0 => {
                Err(Refusal::bad_request("metadata_cas must be 0 when creating new metadata"))
            }
            (Some(cas), Some(secret)) if u64::try_from(cas) != Ok(secret.metadata_version) => {
                Err(Refusal::bad_request(
                    "metadata check-and-set parameter does not match the current version",
                ))
            }
            _ => Ok(()),
        }
    }

    fn warning_of_cas_required(&self, data: &Object) -> Option<Answer> {
        let ignored = self.config.cas_required && flag(data.get("cas_required")) == Some(false);
        ignored.then(|| Answer {
            warnings: vec![
                "\"cas_required\" set to false, but is mandated by backend config. This value \
                 will be ignored."
                    .to_owned(),
            ],
            ..Answer::default()
        })
    }

    fn read_config(&self) -> Answer {
        Answer::data(json!({
            "max_versions": self.config.max_versions,
            "cas_required": self.config.cas_required,
            "metadata_cas_required": self.config.metadata_cas_required,
            "delete_version_after":
                go_duration(self.config.delete_version_after.unwrap_or_default()),
        }))
    }

    fn write_config(&mut self, data: &Object) -> Option<Answer> {
        let config = &mut self.config;
        let max = integer(data.get("max_versions")).and_then(|max| u64::try_from(max).ok());
        config.max_versions = max.unwrap_or(config.max_versions);
        config.cas_required = flag(data.get("cas_required")).unwrap_or(config.cas_required);
        config.metadata_cas_required =
            flag(data.get("metadata_cas_required")).unwrap_or(config.metadata_cas_required);
        if let Some(after) = data.get("delete_version_after") {
            config.delete_version_after = duration(after);
        }
        None
    }
}

impl Secret {
    /// What both ways of writing metadata set alike.
    fn set(&mut self, data: &Object) {
        let max = integer(data.get("max_versions")).and_then(|max| u64::try_from(max).ok());
        self.max_versions = max.unwrap_or(self.max_versions);
        self.cas_required = flag(data.get("cas_required")).unwrap_or(self.cas_required);
        self.metadata_cas_required =
            flag(data.get("metadata_cas_required")).unwrap_or(self.metadata_cas_required);
        if let Some(after) = data.get("delete_version_after") {
            self.delete_version_after = duration(after);
        }
    }
}

impl Config {
    fn check_cas(&self, data: &Object, secret: Option<&Secret>) -> Result<(), Refusal> {
        let current = secret.map_or(0, |secret| secret.current);
        let required = self.cas_required || secret.is_some_and(|secret| secret.cas_required);
        match data.get("options").and_then(|options| options.get("cas")) {
            None if required => {
                Err(Refusal::bad_request("check-and-set parameter required for this call"))
            }
            None => Ok(()),
            cas => match integer(cas) {
                None => Err(Refusal::bad_request("error parsing check-and-set parameter")),
                Some(cas) if u64::try_from(cas) == Ok(current) => Ok(()),
                Some(_) => Err(Refusal::bad_request(
                    "check-and-set parameter did not match the current version",
                )),
            },
        }
    }
}

fn duration(value: &Value) -> Option<Duration> {
    let seconds = seconds(value).and_then(|seconds| u64::try_from(seconds).ok())?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

fn fields_of(data: &Object) -> Result<Option<Object>, Refusal> {
    match data.get("data") {
        None => Err(Refusal::bad_request("no data provided")),
        Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields.clone())),
        Some(other) => {
            let kind = match other {
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                Value::Number(_) => "json.Number",
                _ => "[]interface {}",
            };
            Err(Refusal::bad_request(format!(
                "error converting input for field \"data\": '' expected type \
                 'map[string]interface {{}}', got unconvertible type '{kind}'"
            )))
        }
    }
}

/// RFC 7396, but for objects in arrays: those lose their nulls as well.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = pruned(patch);
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let fields = target.as_object_mut().expect("it was just made one");
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(_) => {
            let mut target = Value::Null;
            merge(&mut target, value);
            target
        }
        Value::Array(items) => Value::Array(items.iter().map(pruned).collect()),
        other => other.clone(),
    }
}

fn invalid_path(operation: Operation, path: &str) -> Outcome {
    let warning = match path {
        "metadata" | "data" | "delete" | "undelete" | "destroy" => {
            "Non-listing operations on the root of a K/V v2 mount are not supported.".to_owned()
        }
        _ => {
            let command = match operation {
                Operation::Create | Operation::Update => "put",
                Operation::Patch => "patch",
                Operation::Read => "get",
                Operation::List => "list",
                Operation::Delete => "delete",
                Operation::Header => return Err(Refusal::unsupported_operation()),
            };
            format!(
                "Invalid path for a versioned K/V secrets engine. See the API docs for the \
                 appropriate API endpoints to use. If using the OpenBao CLI, use 'bao kv \
                 {command}' for this operation."
            )
        }
    };
    Ok(Some(Answer { warnings: vec![warning], ..Answer::default() }.with_status(404)))
}
