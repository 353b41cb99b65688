//! ACL policies: the part of HCL that policies are written in, and which rule decides.

use std::collections::{BTreeMap, BTreeSet};

use super::exchange::Operation;

/// Given to every token unless its maker says otherwise.
pub const DEFAULT_POLICY: &str = r#"
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "cubbyhole/*" { capabilities = ["create", "read", "update", "delete", "list"] }
path "sys/wrapping/wrap" { capabilities = ["update"] }
path "sys/wrapping/lookup" { capabilities = ["update"] }
path "sys/wrapping/unwrap" { capabilities = ["update"] }
"#;

pub const RESPONSE_WRAPPING: &str = "response-wrapping";

pub const RESPONSE_WRAPPING_POLICY: &str = r#"
path "cubbyhole/response" { capabilities = ["create", "read"] }
path "sys/wrapping/unwrap" { capabilities = ["update"] }
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    Create,
    Delete,
    List,
    Patch,
    Read,
    Sudo,
    Update,
    Scan,
    Deny,
}

impl Capability {
    const ALL: [(&'static str, Self); 9] = [
        ("create", Self::Create),
        ("delete", Self::Delete),
        ("list", Self::List),
        ("patch", Self::Patch),
        ("read", Self::Read),
        ("sudo", Self::Sudo),
        ("update", Self::Update),
        ("scan", Self::Scan),
        ("deny", Self::Deny),
    ];

    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, one)| *one == self).map_or("", |(name, _)| name)
    }

    fn of(operation: Operation) -> Option<Self> {
        match operation {
            Operation::Create => Some(Self::Create),
            Operation::Update => Some(Self::Update),
            Operation::Read => Some(Self::Read),
            Operation::List => Some(Self::List),
            Operation::Delete => Some(Self::Delete),
            Operation::Patch => Some(Self::Patch),
            Operation::Header => None,
        }
    }
}

/// What all stanzas of one path allow together.
#[derive(Debug, Clone, Default)]
struct Rule {
    capabilities: BTreeSet<Capability>,
    required_parameters: Vec<String>,
}

/// One policy, its paths as they were written.
#[derive(Clone)]
pub struct Policy {
    pub source: String,
    rules: Vec<(String, Rule)>,
}

/// The policies of one token.
pub struct Acl {
    /// Everything under this namespace is allowed.
    root: Option<String>,
    exact: BTreeMap<String, Rule>,
    prefix: BTreeMap<String, Rule>,
    wildcard: BTreeMap<String, Rule>,
}

impl Acl {
    pub fn root(namespace: &str) -> Self {
        Self { root: Some(namespace.to_owned()), ..Self::of("", &[]) }
    }

    /// Joins policies of a namespace, whose paths are relative to it.
    pub fn of(namespace: &str, policies: &[&Policy]) -> Self {
        let mut acl = Self {
            root: None,
            exact: BTreeMap::new(),
            prefix: BTreeMap::new(),
            wildcard: BTreeMap::new(),
        };
        for (path, rule) in policies.iter().flat_map(|policy| &policy.rules) {
            let path = format!("{namespace}{path}");
            let (rules, path) = if path.split('/').any(|segment| segment == "+") {
                (&mut acl.wildcard, path.as_str())
            } else if let Some(prefix) = path.strip_suffix('*') {
                (&mut acl.prefix, prefix)
            } else {
                (&mut acl.exact, path.as_str())
            };
            let known = rules.entry(path.to_owned()).or_default();
            known.capabilities.extend(&rule.capabilities);
            known.required_parameters.extend(rule.required_parameters.clone());
        }
        acl
    }

    pub fn allows(&self, operation: Operation, path: &str, has: impl Fn(&str) -> bool) -> bool {
        if let Some(root) = &self.root {
            return path.starts_with(root.as_str());
        }
        let Some(rule) = self.rule(path, operation == Operation::List) else { return false };
        let granted = !rule.capabilities.contains(&Capability::Deny)
            && Capability::of(operation).is_some_and(|wanted| rule.capabilities.contains(&wanted));
        let checked = !matches!(operation, Operation::List | Operation::Delete);
        granted && (!checked || rule.required_parameters.iter().all(|name| has(name)))
    }

    pub fn has_sudo(&self, path: &str) -> bool {
        self.root.as_ref().is_some_and(|root| path.starts_with(root.as_str()))
            || self.rule(path, true).is_some_and(|rule| {
                rule.capabilities.contains(&Capability::Sudo)
                    && !rule.capabilities.contains(&Capability::Deny)
            })
    }

    /// The names as `sys/capabilities-self` lists them.
    pub fn capabilities(&self, path: &str) -> Vec<&'static str> {
        if self.root.as_ref().is_some_and(|root| path.starts_with(root.as_str())) {
            return vec!["root"];
        }
        match self.rule(path, true) {
            Some(rule)
                if !rule.capabilities.contains(&Capability::Deny)
                    && !rule.capabilities.is_empty() =>
            {
                let mut names: Vec<_> = rule.capabilities.iter().map(|one| one.name()).collect();
                names.sort_unstable();
                names
            }
            _ => vec!["deny"],
        }
    }

    /// The most specific rule: an exact path, else by the place of its first wildcard, by
    /// whether it ends in a glob, by its wildcards' number, by its length.
    fn rule(&self, path: &str, list: bool) -> Option<&Rule> {
        let trimmed = path.trim_end_matches('/');
        self.exact
            .get(path)
            .or_else(|| if list { self.exact.get(trimmed) } else { None })
            .or_else(|| self.inexact_rule(path))
            .or_else(|| if list { self.inexact_rule(trimmed) } else { None })
    }

    fn inexact_rule(&self, path: &str) -> Option<&Rule> {
        let prefix = self
            .prefix
            .iter()
            .filter(|(prefix, _)| path.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(prefix, rule)| ((prefix.len(), false, 0, prefix.len()), rule));
        let wildcards = self.wildcard.iter().filter_map(|(pattern, rule)| {
            let body = pattern.strip_suffix('*').unwrap_or(pattern);
            let globs = body.len() < pattern.len();
            let count = matches(body, globs, path)?;
            let first = pattern.find('+').expect("it is among the wildcards");
            // Fewer wildcards are more specific.
            Some(((first, !globs, -count, body.len()), rule))
        });
        wildcards.chain(prefix).max_by_key(|(rank, _)| *rank).map(|(_, rule)| rule)
    }
}

/// Whether the path fits the pattern, and how many `+` that took.
fn matches(pattern: &str, globs: bool, path: &str) -> Option<i64> {
    let wanted: Vec<&str> = pattern.split('/').collect();
    let given: Vec<&str> = path.split('/').collect();
    if given.len() < wanted.len() || (!globs && given.len() != wanted.len()) {
        return None;
    }
    let mut wildcards = 0;
    for (index, (wanted_part, given_part)) in wanted.iter().zip(&given).enumerate() {
        match *wanted_part {
            "+" => wildcards += 1,
            part if part == *given_part => {}
            part if globs && index + 1 == wanted.len() && given_part.starts_with(part) => {}
            _ => return None,
        }
    }
    Some(wildcards)
}

impl Policy {
    /// Parses `path "..." { ... }` stanzas. What a test server cannot enforce is refused
    /// rather than ignored.
    pub fn parse(source: &str) -> Result<Self, String> {
        let mut tokens = Tokens { rest: source };
        let mut rules = Vec::new();
        while let Some(token) = tokens.next()? {
            match token {
                Token::Word("path") => rules.push(tokens.stanza()?),
                Token::Word("name") => {
                    tokens.expect('=')?;
                    tokens.string()?;
                }
                other => return Err(format!("failed to parse policy: unexpected {other:?}")),
            }
        }
        Ok(Self { source: source.to_owned(), rules })
    }
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Text(&'a str),
    Sign(char),
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Result<Option<Token<'a>>, String> {
        self.skip_space_and_comments();
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        if first == '"' {
            let inner = &self.rest[1..];
            let end = inner.find('"').ok_or("failed to parse policy: literal not terminated")?;
            self.rest = &inner[end + 1..];
            return Ok(Some(Token::Text(&inner[..end])));
        }
        let end = self
            .rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
            .unwrap_or(self.rest.len());
        let length = end.max(first.len_utf8());
        let (token, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(Some(if end == 0 { Token::Sign(first) } else { Token::Word(token) }))
    }

    fn skip_space_and_comments(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            let end_of_comment = if self.rest.starts_with('#') || self.rest.starts_with("//") {
                self.rest.find('\n')
            } else if self.rest.starts_with("/*") {
                self.rest.find("*/").map(|at| at + 2)
            } else {
                return;
            };
            self.rest = &self.rest[end_of_comment.unwrap_or(self.rest.len())..];
        }
    }

    fn needed(&mut self) -> Result<Token<'a>, String> {
        self.next()?.ok_or_else(|| "failed to parse policy: unexpected end".to_owned())
    }

    fn expect(&mut self, sign: char) -> Result<(), String> {
        match self.needed()? {
            Token::Sign(found) if found == sign => Ok(()),
            other => Err(format!("failed to parse policy: expected {sign}, found {other:?}")),
        }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        match self.needed()? {
            Token::Text(text) => Ok(text),
            other => Err(format!("failed to parse policy: expected a string, found {other:?}")),
        }
    }

    fn list(&mut self) -> Result<Vec<&'a str>, String> {
        self.expect('[')?;
        let mut items = Vec::new();
        loop {
            match self.needed()? {
                Token::Sign(']') => return Ok(items),
                Token::Sign(',') => {}
                Token::Text(text) => items.push(text),
                other => return Err(format!("failed to parse policy: {other:?} in a list")),
            }
        }
    }

    fn stanza(&mut self) -> Result<(String, Rule), String> {
        let written = self.string()?;
        let path = written.strip_prefix('/').unwrap_or(written);
        if path.contains("+*") {
            return Err(format!(
                "failed to parse policy: path {path:?}: invalid use of wildcards ('+*' is forbidden)"
            ));
        }
        self.expect('{')?;
        let mut rule = Rule::default();
        loop {
            match self.needed()? {
                Token::Sign('}') => return Ok((path.to_owned(), rule)),
                Token::Sign(',') => {}
                Token::Word("capabilities") => {
                    self.expect('=')?;
                    for name in self.list()? {
                        rule.capabilities.insert(capability(written, name)?);
                    }
                }
                Token::Word("required_parameters") => {
                    self.expect('=')?;
                    rule.required_parameters =
                        self.list()?.into_iter().map(str::to_lowercase).collect();
                }
                Token::Word("comment") => {
                    self.expect('=')?;
                    self.string()?;
                }
                other => {
                    return Err(format!(
                        "failed to parse policy: path {path:?}: no {other:?} here"
                    ));
                }
            }
        }
    }
}

fn capability(path: &str, name: &str) -> Result<Capability, String> {
    let known = Capability::ALL.iter().find(|(known, _)| *known == name);
    known.map(|(_, capability)| *capability).ok_or_else(|| {
        format!("failed to parse policy: path {path:?}: invalid capability {name:?}")
    })
}
