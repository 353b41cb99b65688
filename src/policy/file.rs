//! The policy file: TOML, read and checked as a whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{Consumer, Pattern, Policy, Rule};
use crate::error::VaultError;
use crate::model::Namespace;
use crate::ownership;

/// Why a policy file is not used: the file, the line if its content is not a policy, the problem,
/// and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    #[serde(default)]
    consumer: BTreeMap<String, Spanned<Consumer>>,
    #[serde(default)]
    rule: Vec<Spanned<Rule>>,
}

/// A user or a group, by number or by name.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a name or a number")]
enum Id {
    Number(u32),
    Name(String),
}

/// A problem, and where it is in the text.
type Problem = (usize, String);

impl Policy {
    /// Reads a policy file for a service that runs as `owner_uid`. The file must belong to this
    /// user or root, and be writable for nobody else; so must its directory and the ones above.
    ///
    /// # Errors
    ///
    /// [`PolicyError`].
    pub fn load(path: &Path, owner_uid: u32) -> Result<Self, PolicyError> {
        let name = path.display();
        let (text, _) = ownership::read(path)
            .map_err(|reason| PolicyError(format!("the policy {name} cannot be used: {reason}")))?;
        parse(&text, owner_uid).map_err(|(offset, reason)| {
            PolicyError(format!("{name}:{}: {reason}", line(&text, offset)))
        })
    }
}

/// The line, from 1, of an offset in bytes.
pub(super) fn line(text: &str, offset: usize) -> usize {
    let ends = text.bytes().take(offset).filter(|byte| *byte == b'\n');
    1 + ends.count()
}

pub(super) fn parse(text: &str, owner_uid: u32) -> Result<Policy, Problem> {
    let form: FileForm = toml::from_str(text)
        .map_err(|error| (error.span().map_or(0, |span| span.start), error.message().to_owned()))?;
    if let Some(empty) = form.consumer.values().find(|it| *it.get_ref() == Consumer::default()) {
        let reason = "a consumer has at least one of uid, gid, exe, unit and supervisor = true";
        return Err((empty.span().start, reason.to_owned()));
    }
    for rule in &form.rule {
        let Rule { consumers, allow, namespaces, .. } = rule.get_ref();
        let is_unknown = |name: &&Spanned<String>| !form.consumer.contains_key(name.get_ref());
        if let Some(unknown) = consumers.iter().find(is_unknown) {
            let name = unknown.get_ref();
            let reason = format!("there is no consumer {name:?}; add [consumer.{name}]");
            return Err((unknown.span().start, reason));
        }
        if consumers.is_empty() || allow.is_empty() || namespaces.is_empty() {
            let reason = "a rule names at least one of consumers, of allow, and of namespaces";
            return Err((rule.span().start, reason.to_owned()));
        }
    }
    let consumers = form.consumer.into_iter().map(|(name, it)| (name, it.into_inner())).collect();
    let rules = form.rule.into_iter().map(Spanned::into_inner).collect();
    Ok(Policy { owner_uid, consumers, rules })
}

pub(super) fn user<'de, D: Deserializer<'de>>(form: D) -> Result<Option<u32>, D::Error> {
    id(form, "user", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

pub(super) fn group<'de, D: Deserializer<'de>>(form: D) -> Result<Option<u32>, D::Error> {
    id(form, "group", |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

fn id<'de, D: Deserializer<'de>>(
    form: D,
    kind: &str,
    find: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<Option<u32>, D::Error> {
    let name = match Id::deserialize(form)? {
        Id::Number(number) => return Ok(Some(number)),
        Id::Name(name) => name,
    };
    match find(&name) {
        Ok(Some(number)) => Ok(Some(number)),
        Ok(None) => Err(D::Error::custom(format!("this system has no {kind} {name:?}"))),
        Err(error) => {
            Err(D::Error::custom(format!("the {kind} {name:?} cannot be looked up: {error}")))
        }
    }
}

pub(super) fn program<'de, D: Deserializer<'de>>(form: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(form)?;
    let is_full = path.is_absolute();
    is_full
        .then_some(Some(path))
        .ok_or_else(|| D::Error::custom("exe is the full path of a program"))
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |error: VaultError| format!("{text:?}: {error}");
        match text.strip_suffix('*') {
            None => Namespace::new(&*text).map(Self::Exact).map_err(wrong),
            Some("") => Ok(Self::Prefix(String::new())),
            Some(prefix) => match Namespace::new(prefix) {
                Ok(_) => Ok(Self::Prefix(prefix.to_owned())),
                Err(error) => Err(wrong(error)),
            },
        }
    }
}
