//! The policy file: TOML, read and checked as a whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use serde::Deserialize;
use toml::Spanned;

use super::{Consumer, Operation, Pattern, Policy, Rule};
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
    consumer: BTreeMap<String, Spanned<ConsumerForm>>,
    #[serde(default)]
    rule: Vec<Spanned<RuleForm>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsumerForm {
    uid: Option<Spanned<Id>>,
    gid: Option<Spanned<Id>>,
    exe: Option<Spanned<PathBuf>>,
    unit: Option<String>,
    #[serde(default)]
    supervisor: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleForm {
    consumers: Vec<Spanned<String>>,
    allow: Vec<Operation>,
    namespaces: Vec<Spanned<String>>,
    /// Whether the service's user and root keep their rights here.
    #[serde(default = "yes")]
    owner: bool,
}

fn yes() -> bool {
    true
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
    let consumers: Vec<Consumer> = form
        .consumer
        .into_iter()
        .map(|(name, form)| consumer(name, form))
        .collect::<Result<_, _>>()?;
    let rules =
        form.rule.into_iter().map(|form| rule(form, &consumers)).collect::<Result<_, _>>()?;
    Ok(Policy { owner_uid, consumers, rules })
}

fn consumer(name: String, form: Spanned<ConsumerForm>) -> Result<Consumer, Problem> {
    let start = form.span().start;
    let form = form.into_inner();
    if matches!(
        form,
        ConsumerForm { uid: None, gid: None, exe: None, unit: None, supervisor: false }
    ) {
        let reason = "a consumer has at least one of uid, gid, exe, unit and supervisor = true";
        return Err((start, reason.to_owned()));
    }
    let uid = form.uid.map(|id| {
        number(id, "user", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
    });
    let gid = form.gid.map(|id| {
        number(id, "group", |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
    });
    if let Some(exe) = form.exe.as_ref().filter(|exe| !exe.get_ref().is_absolute()) {
        return Err((exe.span().start, "exe is the full path of a program".to_owned()));
    }
    Ok(Consumer {
        uid: uid.transpose()?,
        gid: gid.transpose()?,
        exe: form.exe.map(Spanned::into_inner),
        unit: form.unit,
        is_supervisor: form.supervisor,
        name,
    })
}

fn number(
    id: Spanned<Id>,
    kind: &str,
    find: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, Problem> {
    let start = id.span().start;
    match id.into_inner() {
        Id::Number(number) => Ok(number),
        Id::Name(name) => match find(&name) {
            Ok(Some(number)) => Ok(number),
            Ok(None) => Err((start, format!("this system has no {kind} {name:?}"))),
            Err(error) => Err((start, format!("the {kind} {name:?} cannot be looked up: {error}"))),
        },
    }
}

fn rule(form: Spanned<RuleForm>, consumers: &[Consumer]) -> Result<Rule, Problem> {
    let start = form.span().start;
    let form = form.into_inner();
    let is_known = |name: &str| consumers.iter().any(|consumer| consumer.name == name);
    if let Some(unknown) = form.consumers.iter().find(|name| !is_known(name.get_ref())) {
        let name = unknown.get_ref();
        return Err((
            unknown.span().start,
            format!("there is no consumer {name:?}; add [consumer.{name}]"),
        ));
    }
    if form.consumers.is_empty() || form.allow.is_empty() || form.namespaces.is_empty() {
        let reason = "a rule names at least one of consumers, of allow, and of namespaces";
        return Err((start, reason.to_owned()));
    }
    Ok(Rule {
        consumers: form.consumers.into_iter().map(Spanned::into_inner).collect(),
        allow: form.allow,
        namespaces: form.namespaces.into_iter().map(pattern).collect::<Result<_, _>>()?,
        binds_owner: !form.owner,
    })
}

fn pattern(text: Spanned<String>) -> Result<Pattern, Problem> {
    let (start, text) = (text.span().start, text.into_inner());
    let wrong = |error: &dyn std::fmt::Display| (start, format!("{text:?}: {error}"));
    match text.strip_suffix('*') {
        None => Namespace::new(&*text).map(Pattern::Exact).map_err(|error| wrong(&error)),
        Some("") => Ok(Pattern::Prefix(String::new())),
        Some(prefix) => match Namespace::new(prefix) {
            Ok(_) => Ok(Pattern::Prefix(prefix.to_owned())),
            Err(error) => Err(wrong(&error)),
        },
    }
}
