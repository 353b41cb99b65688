//! The policy: which caller may do what, in which namespaces.

mod file;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::caller::Caller;
use crate::model::Namespace;
use crate::text::counted;

pub use file::PolicyError;

/// The consumers and rules of a policy file.
#[derive(Debug)]
pub struct Policy {
    owner_uid: u32,
    consumers: BTreeMap<String, Consumer>,
    rules: Vec<Rule>,
}

/// A kind of caller. All conditions that are given must hold.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Consumer {
    #[serde(deserialize_with = "file::user")]
    uid: Option<u32>,
    #[serde(deserialize_with = "file::group")]
    gid: Option<u32>,
    #[serde(deserialize_with = "file::program")]
    exe: Option<PathBuf>,
    unit: Option<String>,
    #[serde(rename = "supervisor")]
    is_supervisor: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    consumers: Vec<Spanned<String>>,
    allow: Vec<Operation>,
    namespaces: Vec<Pattern>,
    /// Whether the service's user and root keep these rights, without being among its consumers.
    #[serde(rename = "owner", default = "yes")]
    spares_owner: bool,
}

fn yes() -> bool {
    true
}

/// A namespace, or the start of one: `github.*` is `github.` and what follows.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
enum Pattern {
    Exact(Namespace),
    Prefix(String),
}

/// A right that a rule gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// To get values, and to see the credentials delivered as environment variables.
    Read,
    /// To see the names and the metadata of credentials, and whether there is one.
    List,
    /// To store values.
    Write,
    /// To delete credentials.
    Delete,
}

/// Why an operation is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant<'a> {
    /// The consumer that the rule names. `None` if the caller is the service's user or root.
    pub consumer: Option<&'a str>,
    /// The rule's number in the file, from 1. `None` if the caller needs none.
    pub rule: Option<usize>,
}

/// Why an operation is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No consumer of the policy matches.
    #[error("the policy knows no consumer that matches this process; add one, or use another user")]
    NoConsumer,
    /// The caller has no rule for it.
    #[error("no rule of the policy allows {consumers} to {operation} in {namespace}")]
    NoRule {
        /// The consumers that the caller is.
        consumers: String,
        /// The operation.
        operation: Operation,
        /// The namespace, or "any namespace".
        namespace: String,
    },
    /// The credential names consumers, and the caller is none of them, or has no rule as one.
    #[error(
        "{consumers} may not read this credential: it does not exist, or is for other consumers"
    )]
    NotForThis {
        /// The consumers that the caller is.
        consumers: String,
    },
}

impl Policy {
    /// Whether the caller may connect: the service's user, root, and every consumer.
    #[must_use]
    pub fn admits(&self, caller: &Caller) -> bool {
        self.is_owner(caller) || self.consumers_of(caller).next().is_some()
    }

    /// Decides on an operation in a namespace; without one, on whether the caller may use it in
    /// some namespace. With `allowed_consumers`, the names that a credential has, only as one of
    /// these; an empty list means everyone.
    ///
    /// # Errors
    ///
    /// The [`Refusal`].
    pub fn decide(
        &self,
        caller: &Caller,
        operation: Operation,
        namespace: Option<&str>,
        allowed_consumers: &[String],
    ) -> Result<Grant<'_>, Refusal> {
        let rules = || (1..).zip(&self.rules).filter(|(_, rule)| rule.covers(operation, namespace));
        let is_bound = || namespace.is_some() && rules().any(|(_, rule)| !rule.spares_owner);
        if self.is_owner(caller) && !is_bound() {
            return Ok(Grant { consumer: None, rule: None });
        }
        let consumers: Vec<&str> = self.consumers_of(caller).collect();
        if consumers.is_empty() {
            return Err(Refusal::NoConsumer);
        }
        let mut grants = rules().flat_map(|(number, rule)| {
            let named = rule.consumers.iter().map(|it| it.get_ref().as_str());
            let named = named.filter(|it| consumers.contains(it));
            named.map(move |it| Grant { consumer: Some(it), rule: Some(number) })
        });
        let Some(first) = grants.next() else {
            let namespace = namespace.unwrap_or("any namespace").to_owned();
            return Err(Refusal::NoRule { consumers: consumers.join(", "), operation, namespace });
        };
        let is_allowed = |grant: &Grant<'_>| {
            allowed_consumers.is_empty()
                || allowed_consumers.iter().any(|it| Some(it.as_str()) == grant.consumer)
        };
        std::iter::once(first)
            .chain(grants)
            .find(is_allowed)
            .ok_or_else(|| Refusal::NotForThis { consumers: consumers.join(", ") })
    }

    /// The names of the consumers that a caller is.
    pub fn consumers_of(&self, caller: &Caller) -> impl Iterator<Item = &str> {
        let own = self.consumers.iter().filter(|(_, it)| it.matches(caller));
        own.map(|(name, _)| name.as_str())
    }

    /// The numbers of consumers and rules.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        (self.consumers.len() as u64, self.rules.len() as u64)
    }

    /// Whether the caller is the service's user or root.
    #[must_use]
    pub fn is_owner(&self, caller: &Caller) -> bool {
        let uid = caller.process.uid;
        uid == self.owner_uid || uid == 0
    }
}

/// Its size: `2 consumers, 1 rule`.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (consumers, rules) = self.size();
        write!(f, "{}, {}", counted(consumers, "consumer"), counted(rules, "rule"))
    }
}

impl Consumer {
    fn matches(&self, caller: &Caller) -> bool {
        let process = &caller.process;
        self.uid.is_none_or(|uid| uid == process.uid)
            && self.gid.is_none_or(|gid| gid == process.gid || caller.groups.contains(&gid))
            && (self.exe.is_none() || self.exe == caller.exe)
            && (self.unit.is_none() || self.unit == caller.unit)
            && (!self.is_supervisor || caller.is_supervisor)
    }
}

impl Rule {
    fn covers(&self, operation: Operation, namespace: Option<&str>) -> bool {
        let is_in = |namespace: &str| {
            self.namespaces.iter().any(|pattern| match pattern {
                Pattern::Exact(name) => name.as_str() == namespace,
                Pattern::Prefix(prefix) => namespace.starts_with(prefix),
            })
        };
        self.allow.contains(&operation) && namespace.is_none_or(is_in)
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Read, Self::List, Self::Write, Self::Delete];
        let found = all.into_iter().find(|operation| operation.to_string() == name);
        found.ok_or_else(|| format!("there is no operation {name:?}; read, list, write, delete"))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Process;

    const OWNER: u32 = 500;

    const POLICY: &str = r#"
[consumer.jarvis]
uid = 1001
exe = "/usr/bin/jarvis"

[consumer.edi]
unit = "edi.service"

[consumer.ops]
gid = 7

[consumer.parent]
supervisor = true

[[rule]]
consumers = ["jarvis", "edi"]
allow = ["read", "list"]
namespaces = ["openai", "github.*"]

[[rule]]
consumers = ["ops"]
allow = ["write", "delete"]
namespaces = ["*"]

[[rule]]
consumers = ["parent"]
allow = ["read"]
namespaces = ["sealed"]
owner = false
"#;

    fn policy() -> Policy {
        file::parse(POLICY, OWNER).expect("a policy")
    }

    fn of_uid(uid: u32) -> Caller {
        Caller::from(Process { uid, gid: uid, pid: Some(1) })
    }

    fn jarvis() -> Caller {
        Caller { exe: Some("/usr/bin/jarvis".into()), ..of_uid(1001) }
    }

    #[test]
    fn a_consumer_needs_every_condition() {
        let policy = policy();
        let names = |caller: &Caller| policy.consumers_of(caller).collect::<Vec<_>>().join(" ");
        assert_eq!(names(&jarvis()), "jarvis");
        assert_eq!(names(&of_uid(1001)), "", "the program is not known");
        assert_eq!(names(&Caller { exe: Some("/usr/bin/jarvis2".into()), ..of_uid(1001) }), "");
        assert_eq!(names(&Caller { exe: Some("/usr/bin/jarvis".into()), ..of_uid(1002) }), "");
        assert_eq!(names(&Caller { unit: Some("edi.service".into()), ..jarvis() }), "edi jarvis");
        assert_eq!(names(&Caller { groups: vec![3, 7], ..of_uid(1002) }), "ops");
        assert_eq!(names(&of_uid(7)), "ops", "the primary group counts");
        assert_eq!(names(&Caller { is_supervisor: true, ..of_uid(9) }), "parent");
        assert!(policy.admits(&of_uid(OWNER)) && policy.admits(&of_uid(0)));
        assert!(!policy.admits(&of_uid(1001)));
    }

    #[test]
    fn a_rule_gives_its_operations_in_its_namespaces() {
        use Operation::{Delete, List, Read, Write};
        let policy = policy();
        let ops = Caller { groups: vec![7], ..of_uid(1002) };
        for (caller, allowed) in [(jarvis(), [Read, List]), (ops, [Write, Delete])] {
            for operation in [Read, List, Write, Delete] {
                for (name, is_named) in
                    [("openai", true), ("github.a", true), ("github", false), ("openai2", false)]
                {
                    let decision = policy.decide(&caller, operation, Some(name), &[]);
                    let everywhere = allowed.contains(&Write);
                    let expected = allowed.contains(&operation) && (is_named || everywhere);
                    assert_eq!(decision.is_ok(), expected, "{operation} {name} {decision:?}");
                }
            }
        }
        let grant = policy.decide(&jarvis(), Read, Some("openai"), &[]).expect("allowed");
        assert_eq!(grant, Grant { consumer: Some("jarvis"), rule: Some(1) });
        let refusal = policy.decide(&jarvis(), Write, Some("openai"), &[]).expect_err("no");
        assert_eq!(refusal.to_string(), "no rule of the policy allows jarvis to write in openai");
        assert!(policy.decide(&jarvis(), List, None, &[]).is_ok());
        assert!(policy.decide(&jarvis(), Delete, None, &[]).is_err());
    }

    #[test]
    fn the_consumers_of_a_credential_are_among_the_caller_s() {
        let policy = policy();
        let both = Caller { unit: Some("edi.service".into()), ..jarvis() };
        let read = |caller: &Caller, names: &[&str]| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let grant = policy.decide(caller, Operation::Read, Some("openai"), &names);
            grant.map(|grant| grant.consumer.unwrap_or("owner").to_owned())
        };
        assert_eq!(read(&jarvis(), &["jarvis", "uwe"]), Ok("jarvis".to_owned()));
        assert_eq!(read(&both, &["edi"]), Ok("edi".to_owned()));
        assert_eq!(read(&of_uid(OWNER), &["edi"]), Ok("owner".to_owned()));
        let refusal = Refusal::NotForThis { consumers: "jarvis".to_owned() };
        assert_eq!(read(&jarvis(), &["edi"]), Err(refusal));
    }

    #[test]
    fn a_rule_can_bind_the_owner() {
        let policy = policy();
        let read = |caller: &Caller| policy.decide(caller, Operation::Read, Some("sealed"), &[]);
        assert_eq!(read(&of_uid(OWNER)), Err(Refusal::NoConsumer));
        assert_eq!(read(&of_uid(0)), Err(Refusal::NoConsumer));
        read(&Caller { is_supervisor: true, ..of_uid(OWNER) }).expect("it is the consumer");
        let list = policy.decide(&of_uid(OWNER), Operation::List, Some("sealed"), &[]);
        list.expect("the rule is about reading");
    }

    #[test]
    fn every_mistake_names_its_line() {
        for (text, line, reason) in [
            ("[consumer.a]\nuid = 1\nuser = 2", 3, "unknown field `user`"),
            ("[consumers.a]\nuid = 1", 1, "unknown field `consumers`"),
            ("[consumer.a]\n", 1, "at least one of uid"),
            ("\n[consumer.a]\nuid = \"no-such-user\"", 3, "no user \"no-such-user\""),
            ("[consumer.a]\ngid = \"no-such-group\"", 2, "no group"),
            ("[consumer.a]\nuid = -1", 2, "a name or a number"),
            ("[consumer.a]\nexe = \"a\"", 2, "full path"),
            (
                "[[rule]]\nconsumers = [\"a\"]\nallow = [\"read\"]\nnamespaces = [\"n\"]",
                2,
                "no consumer \"a\"",
            ),
            (
                "[consumer.a]\nuid = 1\n[[rule]]\nconsumers = [\"a\"]\nallow = [\"reed\"]\nnamespaces = [\"n\"]",
                5,
                "unknown variant `reed`",
            ),
            (
                "[consumer.a]\nuid = 1\n[[rule]]\nconsumers = [\"a\"]\nallow = [\"read\"]\nnamespaces = [\"n/m\"]",
                6,
                "use dots",
            ),
            (
                "[consumer.a]\nuid = 1\n[[rule]]\nconsumers = [\"a\"]\nallow = [\"read\"]\nnamespaces = [\"a*b\"]",
                6,
                "letters, digits",
            ),
            (
                "[consumer.a]\nuid = 1\n[[rule]]\nconsumers = []\nallow = [\"read\"]\nnamespaces = [\"n\"]",
                3,
                "at least one",
            ),
            ("[[rule]]\nallow = [\"read\"]\nnamespaces = [\"n\"]", 1, "missing field `consumers`"),
            ("uid = ", 1, ""),
        ] {
            let (offset, problem) = file::parse(text, OWNER).expect_err(text);
            assert_eq!(file::line(text, offset), line, "{text} {problem}");
            assert!(problem.contains(reason), "{text}: {problem}");
        }
    }
}
