//! The KV version 2 engine: one secret for each namespace, one field for each key.
//! <https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2>

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::de::Deserializer;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use ureq::http::Method;
use zeroize::{Zeroize, Zeroizing};

use crate::model::Namespace;
use crate::secret::Secret;

use super::auth::{Auth, Refused, Token};
use super::pending::{Line, Pending};
use super::upstream::{Ask, Begun, Reply, Unavailable, Upstream};
use super::{clock, jitter};

/// Why an operation on a secret did not work. The same failure may be that of many callers.
#[derive(Debug, Clone)]
pub(super) enum KvError {
    /// The server cannot answer, or the token is dead; what became of a change is not known.
    Unavailable(Unavailable),
    /// The server answered, and does not do it; nothing has changed.
    Refused(String),
}

impl From<Unavailable> for KvError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

/// A field as it is kept: any JSON. Wiped when it is dropped, and shown to nobody.
pub(super) struct Field(Option<Box<RawValue>>);

impl Field {
    fn json(&self) -> &str {
        self.0.as_ref().map_or("null", |raw| raw.get())
    }

    /// The text; `None` when the field is something else, such as a number.
    pub(super) fn text(&self) -> Option<Secret> {
        serde_json::from_str(self.json()).ok().map(Secret::new)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw)))
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if let Some(raw) = self.0.take() {
            String::from(Box::<str>::from(raw)).zeroize();
        }
    }
}

/// The fields of a secret, by key.
pub(super) type Fields = BTreeMap<String, Field>;

/// What a read found.
pub(super) enum Found {
    /// There is no current version: never, or not any more. The version is what a
    /// check-and-set has to name, 0 where there has been none.
    Nothing {
        version: u64,
    },
    Secret {
        version: u64,
        fields: Fields,
    },
}

impl Found {
    fn version(&self) -> u64 {
        match self {
            Self::Nothing { version } | Self::Secret { version, .. } => *version,
        }
    }

    pub(super) fn fields(&self) -> Option<&Fields> {
        match self {
            Self::Nothing { .. } => None,
            Self::Secret { fields, .. } => Some(fields),
        }
    }
}

/// Fields to be stored.
pub(super) type Changes<'a> = [(&'a str, &'a Secret)];

/// What was learnt of how one secret may be written.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// `PATCH` was refused at this time: by an old server, or by the policy.
    patch_refused: Option<Duration>,
    /// Writes without check-and-set are refused.
    cas_required: bool,
}

impl Habits {
    /// A policy may be changed, and a server replaced.
    const FORGET_AFTER: Duration = Duration::from_mins(5);

    fn may_patch(&self) -> bool {
        self.patch_refused.is_none_or(|at| clock::now().saturating_sub(at) > Self::FORGET_AFTER)
    }

    /// Whether there is nothing in them that is worth keeping.
    pub(super) fn are_usual(&self) -> bool {
        !self.cas_required && self.may_patch()
    }
}

/// How often a change is tried again that another writer came before.
const MAX_CONFLICTS: u32 = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What it takes to begin a read without waiting.
pub(super) struct Opening {
    line: Line,
    token: Option<Arc<Token>>,
}

/// A read that has been sent, and waits without a thread.
pub(super) struct PendingRead {
    pub(super) pending: Pending,
    path: String,
    token: Option<Arc<Token>>,
}

/// The engine, as one token may use it.
pub(super) struct Kv {
    upstream: Arc<Upstream>,
    auth: Auth,
    mount: String,
    prefix: String,
    /// Nothing is ever stored there.
    trial: Namespace,
}

impl Kv {
    pub(super) fn new(upstream: Arc<Upstream>, auth: Auth, mount: String, prefix: String) -> Self {
        let trial = Namespace::new("credential-vault.trial").expect("a valid name");
        Self { upstream, auth, mount, prefix, trial }
    }

    pub(super) fn auth(&self) -> &Auth {
        &self.auth
    }

    fn path(&self, what: &str, namespace: &Namespace) -> String {
        // A namespace has no character that a path would have to encode.
        format!("{}/{what}/{}/{namespace}", self.mount, self.prefix)
    }

    /// Sends a request with the token; once more when that was dead and there is another.
    fn ask(&self, method: &Method, path: &str, body: Payload<'_>) -> Result<Reply, KvError> {
        let token = self.auth.token()?;
        self.ask_with(token.as_ref(), |_| Begun::default(), method, path, body)
    }

    /// The same, for a request that may have been sent once already, with this token.
    fn ask_with(
        &self,
        token: Option<&Arc<Token>>,
        begun: impl FnOnce(&Ask<'_>) -> Begun,
        method: &Method,
        path: &str,
        body: Payload<'_>,
    ) -> Result<Reply, KvError> {
        let ask = |token| {
            let ask = Ask::new(method.clone(), path, token);
            match body {
                Payload::None => ask,
                Payload::NoneNow => ask.only_now(),
                Payload::Json(body) => ask.json(body),
                Payload::MergePatch(body) => ask.merge_patch(body),
            }
        };
        let first = ask(token.map(|token| token.value()));
        let reply = self.upstream.go_on(&first, begun(&first))?;
        let Some(token) = token else { return Ok(reply) };
        if reply.status != 403 {
            return Ok(reply);
        }
        match self.auth.rejected(token)? {
            Refused::TokenIsGood => Ok(reply),
            // The moment for it has passed with the login.
            Refused::TokenReplaced(_) if matches!(body, Payload::NoneNow) => {
                let reason = "the token was replaced meanwhile".to_owned();
                Err(Unavailable { reason, retry_after: Duration::ZERO }.into())
            }
            Refused::TokenReplaced(token) => Ok(self.upstream.send(&ask(Some(token.value())))?),
        }
    }

    /// The current version of the namespace's secret.
    pub(super) fn read(&self, namespace: &Namespace) -> Result<Found, KvError> {
        let reply = self.ask(&Method::GET, &self.path("data", namespace), Payload::None)?;
        self.found(&reply, namespace)
    }

    /// What it takes to begin a read that nobody has to wait for; `None` when something is
    /// missing.
    pub(super) fn opening(&self) -> Option<Opening> {
        let is_needed = self.auth.is_needed();
        let token = if is_needed { Some(self.auth.token_at_hand()?) } else { None };
        let line = Line::at_hand(&self.upstream);
        if let (None, Some(token)) = (&line, &token) {
            token.give_use_back();
        }
        Some(Opening { line: line?, token })
    }

    /// Begins a read.
    pub(super) fn begin_read(&self, namespace: &Namespace, opening: Opening) -> PendingRead {
        let Opening { line, token } = opening;
        let path = self.path("data", namespace);
        let pending = line.get(&path, token.as_ref().map(|token| token.value()));
        PendingRead { pending, path, token }
    }

    /// What a read that was begun comes to. Waits, if it was not
    /// [answered](PendingRead::is_answered).
    pub(super) fn finish_read(
        &self,
        namespace: &Namespace,
        read: PendingRead,
    ) -> Result<Found, KvError> {
        let PendingRead { pending, path, token } = read;
        let begun = |ask: &Ask<'_>| pending.end(ask);
        let reply = self.ask_with(token.as_ref(), begun, &Method::GET, &path, Payload::None)?;
        self.found(&reply, namespace)
    }

    /// The secret that the server showed.
    fn found(&self, reply: &Reply, namespace: &Namespace) -> Result<Found, KvError> {
        #[derive(Deserialize)]
        struct Answer {
            data: Option<Data>,
        }
        #[derive(Deserialize)]
        struct Data {
            data: Option<Fields>,
            metadata: Option<Metadata>,
        }
        #[derive(Deserialize)]
        struct Metadata {
            version: u64,
        }

        let data = match reply.status {
            200 | 404 => serde_json::from_slice::<Answer>(&reply.body).ok().and_then(|a| a.data),
            _ => return Err(self.refused(reply, "read", "data", namespace)),
        };
        match (reply.status, data) {
            (200, Some(Data { data: Some(fields), metadata: Some(Metadata { version }) })) => {
                Ok(Found::Secret { version, fields })
            }
            // A version that was written as null.
            (200, Some(Data { data: None, metadata: Some(Metadata { version }) })) => {
                Ok(Found::Secret { version, fields: Fields::new() })
            }
            // A soft-deleted or destroyed version.
            (404, Some(Data { metadata: Some(Metadata { version }), .. })) => {
                Ok(Found::Nothing { version })
            }
            (404, _) if reply.says_nothing() => Ok(Found::Nothing { version: 0 }),
            (404, _) => Err(self.refused(reply, "read", "data", namespace)),
            _ => Err(KvError::Refused(format!(
                "what Vault has at {} is no secret of a KV engine of version 2; is \
                 VAULT_KV_MOUNT right?",
                self.path("data", namespace)
            ))),
        }
    }

    /// Stores the fields, whatever others the secret has, and keeps those.
    ///
    /// The server merges by itself where it can (`PATCH`), in one round trip. Where the
    /// mount or the secret wants check-and-set, the version is read and named; where the
    /// server or the policy knows no `PATCH`, the secret is read, and written whole, on the
    /// condition that its version has not changed meanwhile.
    pub(super) fn merge(
        &self,
        namespace: &Namespace,
        changes: &Changes<'_>,
        habits: &mut Habits,
    ) -> Result<(), KvError> {
        let data = self.path("data", namespace);
        let mut conflicts = Conflicts::default();
        let mut cas = None;
        loop {
            if !habits.may_patch() {
                let found = self.read(namespace)?;
                let body = whole(Some(&found), changes, None);
                let reply = self.ask(&Method::POST, &data, Payload::Json(&body))?;
                if is_conflict(&reply) {
                    conflicts.pause()?;
                    continue;
                }
                return self.done(&reply, "create and update", namespace);
            }
            if habits.cas_required && cas.is_none() {
                cas = Some(self.read(namespace)?.version());
            }
            let body = patch(changes, cas);
            let reply = self.ask(&Method::PATCH, &data, Payload::MergePatch(&body))?;
            match reply.status {
                404 => {
                    let Some(version) = version_of_nothing(&reply) else {
                        return Err(self.refused(&reply, "patch", "data", namespace));
                    };
                    let found = Found::Nothing { version };
                    let body = whole(Some(&found), changes, None);
                    let reply = self.ask(&Method::POST, &data, Payload::Json(&body))?;
                    if !is_conflict(&reply) {
                        return self.done(&reply, "create", namespace);
                    }
                    cas = None;
                    conflicts.pause()?;
                }
                403 | 405 => habits.patch_refused = Some(clock::now()),
                400 if wants_cas(&reply) && cas.is_none() => habits.cas_required = true,
                400 if is_conflict(&reply) => {
                    cas = None;
                    conflicts.pause()?;
                }
                _ => return self.done(&reply, "patch", namespace),
            }
        }
    }

    /// Removes a field; with the last one, the secret with all its versions and its
    /// metadata. Says whether there was such a field.
    ///
    /// The server deletes metadata without any condition, so the caller sees to it that
    /// nobody in this process writes to the namespace meanwhile. Another process's write
    /// would have to come between the read, which finds the field to be the last, and the
    /// deletion that follows at once.
    pub(super) fn remove(
        &self,
        namespace: &Namespace,
        key: &str,
        habits: &mut Habits,
    ) -> Result<bool, KvError> {
        let mut conflicts = Conflicts::default();
        let deadline = clock::now() + self.upstream.timeout();
        let mut retries = self.upstream.max_retries();
        let mut tried = false;
        loop {
            let found = self.read(namespace)?;
            let Some(fields) = found.fields().filter(|fields| fields.contains_key(key)) else {
                return Ok(tried);
            };
            let removed = if fields.len() == 1 {
                match self.remove_secret(namespace, &found) {
                    // There may be a second field by the time of another attempt, so that
                    // takes another look.
                    Err(KvError::Unavailable(error))
                        if retries > 0 && clock::now() + error.retry_after < deadline =>
                    {
                        thread::sleep(error.retry_after);
                        retries -= 1;
                        tried = true;
                        continue;
                    }
                    removed => removed?,
                }
            } else {
                self.remove_field(namespace, key, &found, habits)?
            };
            if removed {
                return Ok(true);
            }
            conflicts.pause()?;
        }
    }

    /// `false` when another writer came before.
    fn remove_field(
        &self,
        namespace: &Namespace,
        key: &str,
        found: &Found,
        habits: &mut Habits,
    ) -> Result<bool, KvError> {
        let data = self.path("data", namespace);
        if habits.may_patch() {
            let cas = habits.cas_required.then_some(found.version());
            let body = patch_away(key, cas);
            let reply = self.ask(&Method::PATCH, &data, Payload::MergePatch(&body))?;
            match reply.status {
                // Somebody else has deleted all of it.
                404 if reply.says_nothing() => return Ok(true),
                403 | 405 => habits.patch_refused = Some(clock::now()),
                400 if wants_cas(&reply) => {
                    habits.cas_required = true;
                    return Ok(false);
                }
                400 if is_conflict(&reply) => return Ok(false),
                _ => {
                    self.done(&reply, "patch", namespace)?;
                    // Another writer has been there: it may have removed the other fields.
                    if written_version(&reply) != Some(found.version() + 1)
                        && let now @ Found::Secret { .. } = self.read(namespace)?
                        && now.fields().is_some_and(BTreeMap::is_empty)
                    {
                        return self.remove_secret(namespace, &now);
                    }
                    return Ok(true);
                }
            }
        }
        let body = whole(Some(found), &[], Some(key));
        let reply = self.ask(&Method::POST, &data, Payload::Json(&body))?;
        if is_conflict(&reply) {
            return Ok(false);
        }
        self.done(&reply, "update", namespace).map(|()| true)
    }

    /// Removes the secret as it was found. `false` when another writer came before.
    fn remove_secret(&self, namespace: &Namespace, found: &Found) -> Result<bool, KvError> {
        let metadata = self.path("metadata", namespace);
        let reply = self.ask(&Method::DELETE, &metadata, Payload::NoneNow)?;
        match reply.status {
            _ if reply.is_success() => Ok(true),
            403 => self.destroy(namespace, found.version(), &reply),
            _ => Err(self.refused(&reply, "delete", "metadata", namespace)),
        }
    }

    /// For a policy without `delete` on metadata: empties the secret on the condition that
    /// it is at `version`, and destroys that version and those before it. Nothing that
    /// anybody has written since can be lost.
    fn destroy(
        &self,
        namespace: &Namespace,
        version: u64,
        refusal: &Reply,
    ) -> Result<bool, KvError> {
        #[derive(Serialize)]
        struct Versions {
            versions: Vec<u64>,
        }

        let kept = self.versions_up_to(namespace, version)?;
        let body = serde_json::to_vec(&Versions { versions: kept }).expect("numbers serialise");
        let destroy = self.path("destroy", namespace);
        // Whether the policy allows it is found out before anything has changed.
        let trial = self.ask(&Method::PUT, &destroy, Payload::Json(br#"{"versions":[]}"#))?;
        if trial.status == 403 {
            return Err(self.refused(refusal, "delete", "metadata", namespace));
        }
        let empty = whole(Some(&Found::Nothing { version }), &[], None);
        let reply =
            self.ask(&Method::POST, &self.path("data", namespace), Payload::Json(&empty))?;
        if is_conflict(&reply) {
            // It may have been this very request, sent again because its answer was lost.
            let now = self.read(namespace)?;
            let is_emptied =
                now.version() == version + 1 && now.fields().is_some_and(BTreeMap::is_empty);
            if !is_emptied {
                return Ok(false);
            }
        } else {
            self.done(&reply, "update", namespace)?;
        }
        let reply = self.ask(&Method::PUT, &destroy, Payload::Json(&body))?;
        if !reply.is_success() {
            log::warn!(
                "old versions of {} could not be destroyed: {}",
                self.path("data", namespace),
                reply.explain()
            );
        }
        Ok(true)
    }

    /// The versions that the secret still has, up to this one.
    fn versions_up_to(&self, namespace: &Namespace, version: u64) -> Result<Vec<u64>, KvError> {
        #[derive(Deserialize)]
        struct Answer {
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            versions: BTreeMap<u64, Box<RawValue>>,
        }

        let reply = self.ask(&Method::GET, &self.path("metadata", namespace), Payload::None)?;
        match serde_json::from_slice(&reply.body) {
            Ok(Answer { data }) if reply.is_success() => {
                Ok(data.versions.into_keys().filter(|kept| *kept <= version).collect())
            }
            _ => Err(self.refused(&reply, "read", "metadata", namespace)),
        }
    }

    /// Checks that the server can be used: that it takes the token, and has the engine.
    pub(super) fn check(&self) -> Result<(), KvError> {
        #[derive(Deserialize)]
        struct Answer {
            data: Mount,
        }
        #[derive(Deserialize)]
        struct Mount {
            options: Option<BTreeMap<String, String>>,
        }

        let lookup = self.ask(&Method::GET, "auth/token/lookup-self", Payload::None)?;
        match lookup.status {
            _ if lookup.is_success() => {}
            // Its policy may not let it look itself up, but has to let it read.
            403 => drop(self.read(&self.trial)?),
            _ => return Err(KvError::Unavailable(Unavailable::new(lookup.explain()))),
        }
        // What a token may know of the mounts that it may use; a policy may forbid even that.
        let path = format!("sys/internal/ui/mounts/{}", self.mount);
        let reply = self.ask(&Method::GET, &path, Payload::None)?;
        if let Ok(Answer { data: Mount { options } }) = serde_json::from_slice(&reply.body)
            && options.and_then(|options| options.get("version").cloned()).as_deref() != Some("2")
        {
            return Err(KvError::Refused(format!(
                "{} is no KV engine of version 2; set VAULT_KV_MOUNT to one, or make one: \
                 vault secrets enable -path={0} -version=2 kv",
                self.mount
            )));
        }
        Ok(())
    }

    fn done(&self, reply: &Reply, needs: &str, namespace: &Namespace) -> Result<(), KvError> {
        if reply.is_success() {
            return Ok(());
        }
        Err(self.refused(reply, needs, "data", namespace))
    }

    /// What a refusal means, and what to do about it.
    fn refused(&self, reply: &Reply, needs: &str, what: &str, namespace: &Namespace) -> KvError {
        let path = self.path(what, namespace);
        KvError::Refused(match reply.status {
            403 => {
                format!("the token is not valid, or its policy does not grant {needs} on {path}")
            }
            413 => "it is too large for Vault".to_owned(),
            404 if !reply.says_nothing() => {
                format!("{}; are VAULT_KV_MOUNT and VAULT_NAMESPACE right?", reply.explain())
            }
            _ => format!("{} (at {path})", reply.explain()),
        })
    }
}

/// The body of a request.
#[derive(Clone, Copy)]
enum Payload<'a> {
    None,
    /// None, for a request that is not to be repeated.
    NoneNow,
    Json(&'a [u8]),
    MergePatch(&'a [u8]),
}

/// Other writers, who come before, again and again.
#[derive(Default)]
struct Conflicts(u32);

impl Conflicts {
    /// Waits a while by chance, longer each time, up to a number of times.
    fn pause(&mut self) -> Result<(), KvError> {
        if self.0 == MAX_CONFLICTS {
            return Err(KvError::Refused(
                "others keep changing the secret at the same time; try again".to_owned(),
            ));
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.0).min(LONGEST_PAUSE);
        thread::sleep(jitter::up_to(pause));
        self.0 += 1;
        Ok(())
    }
}

fn is_conflict(reply: &Reply) -> bool {
    reply.status == 400 && reply.says("did not match the current version")
}

fn wants_cas(reply: &Reply) -> bool {
    reply.status == 400 && reply.says("check-and-set parameter required")
}

#[derive(Deserialize)]
struct Written {
    data: Option<WrittenVersion>,
}

#[derive(Deserialize)]
struct WrittenVersion {
    version: u64,
}

/// The version that a write made.
fn written_version(reply: &Reply) -> Option<u64> {
    let written: Written = serde_json::from_slice(&reply.body).ok()?;
    written.data.map(|data| data.version)
}

/// The version that a 404 to `PATCH` names: of what was deleted, or 0 where there never was
/// anything. `None` when the 404 says that something else is wrong.
fn version_of_nothing(reply: &Reply) -> Option<u64> {
    written_version(reply).or_else(|| reply.says_nothing().then_some(0))
}

/// `{"data":{"key":"value"}}`, with `options` where a version is to be checked.
fn patch(changes: &Changes<'_>, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    body(Data { kept: None, without: None, changes }, cas)
}

/// `{"data":{"key":null}}`: merge-patch's way to remove a field (RFC 7396).
fn patch_away(key: &str, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    let data: BTreeMap<&str, Option<&str>> = BTreeMap::from([(key, None)]);
    body(data, cas)
}

/// The whole secret as it was found, with some fields changed or one left out, on the
/// condition that it has not changed meanwhile.
fn whole(
    found: Option<&Found>,
    changes: &Changes<'_>,
    without: Option<&str>,
) -> Zeroizing<Vec<u8>> {
    let kept = found.and_then(Found::fields);
    body(Data { kept, without, changes }, found.map(Found::version))
}

fn body(data: impl Serialize, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<T> {
        data: T,
        #[serde(skip_serializing_if = "Option::is_none")]
        options: Option<Options>,
    }
    #[derive(Serialize)]
    struct Options {
        cas: u64,
    }
    /// Counts.
    struct Length(usize);
    impl std::io::Write for Length {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let body = Body { data, options: cas.map(|cas| Options { cas }) };
    // Room for all of it, so that growing leaves no copies behind.
    let mut length = Length(0);
    serde_json::to_writer(&mut length, &body).expect("counting takes every write");
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, &body).expect("a Vec takes every write");
    bytes
}

/// The fields of a body.
struct Data<'a> {
    kept: Option<&'a Fields>,
    without: Option<&'a str>,
    changes: &'a Changes<'a>,
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let is_changed = |key: &str| self.changes.iter().any(|(changed, _)| *changed == key);
        for (key, field) in self.kept.into_iter().flatten() {
            if self.without != Some(key) && !is_changed(key) {
                map.serialize_entry(key, &field.0)?;
            }
        }
        for (key, value) in self.changes {
            map.serialize_entry(key, value.expose())?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(version: u64, json: &str) -> Found {
        Found::Secret { version, fields: serde_json::from_str(json).expect("JSON") }
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("JSON is UTF-8")
    }

    #[test]
    fn what_others_wrote_survives_as_it_was() {
        let found = found(3, r#"{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"old"}"#);
        let value = Secret::new("new \"quoted\"".to_owned());
        let body = whole(Some(&found), &[("t", &value)], None);
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"new \"quoted\""},"options":{"cas":3}}"#
        );
        assert_eq!(body.capacity(), body.len(), "it did not grow");
        let body = whole(Some(&found), &[], Some("o"));
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"s":"\u0041","t":"old"},"options":{"cas":3}}"#
        );
    }

    #[test]
    fn a_patch_names_only_what_changes() {
        let value = Secret::new("v".to_owned());
        assert_eq!(text(&patch(&[("k", &value)], None)), r#"{"data":{"k":"v"}}"#);
        assert_eq!(text(&patch_away("k", Some(7))), r#"{"data":{"k":null},"options":{"cas":7}}"#);
    }

    #[test]
    fn only_text_is_a_value() {
        let found = found(1, r#"{"n":1,"t":"\u00e9","e":""}"#);
        let fields = found.fields().expect("fields");
        let value = |key: &str| fields[key].text().map(|text| text.expose().to_owned());
        assert_eq!(value("t").as_deref(), Some("é"));
        assert_eq!(value("e").as_deref(), Some(""));
        assert_eq!(value("n"), None);
    }
}
