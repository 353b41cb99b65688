//! [`Selection`]: which credentials a process gets, and under which names.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::VaultClient;
use crate::env_name;
use crate::model::{CredentialRef, Namespace, RuntimeEnvEntry};

use super::fetch::fetch;
use super::{Problem, RuntimeEnv, SpawnError};

/// Which credentials a process gets, and under which names.
///
/// A new one has every credential that is delivered as a variable (`runtime_env`), under
/// the name that is stored with it.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    consumer: Option<String>,
    only: BTreeSet<CredentialRef>,
    namespaces: BTreeSet<Namespace>,
    mapped: Vec<(String, CredentialRef)>,
    executor_only: bool,
}

/// Variables, and the credential that goes into each.
pub(super) type Plan = BTreeMap<String, CredentialRef>;

impl Selection {
    /// Every credential that is delivered as a variable.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Without those whose `allowed_consumers` names others and not `name`. One that is
    /// asked for by its own name and is not for this consumer is a problem.
    #[must_use]
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Only this one, and those that further calls of `only` and
    /// [`namespace`](Self::namespace) name.
    #[must_use]
    pub fn only(mut self, at: CredentialRef) -> Self {
        self.only.insert(at);
        self
    }

    /// Only those of this namespace, and those that further calls name.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespaces.insert(namespace);
        self
    }

    /// This one as well, in the variable `name` instead of its own.
    #[must_use]
    pub fn mapped(mut self, name: impl Into<String>, at: CredentialRef) -> Self {
        self.mapped.push((name.into(), at));
        self
    }

    /// Lets credentials that are for trusted services alone (`executor_only`) be asked for
    /// by their names. The vault lists neither their variables nor their consumers, so
    /// each needs [`mapped`](Self::mapped), and is not held against the consumer.
    #[must_use]
    pub fn allow_executor_only(mut self) -> Self {
        self.executor_only = true;
        self
    }

    /// Reads the values, several at a time.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], with every problem there is; a value is given only when all are.
    pub fn fetch(&self, client: &VaultClient) -> Result<RuntimeEnv, SpawnError> {
        fetch(client, &self.plan(client)?)
    }

    /// What goes into which variable, by what is listed now.
    pub(super) fn plan(&self, client: &VaultClient) -> Result<Plan, SpawnError> {
        let mut planning = Planning { selection: self, wanted: BTreeMap::new(), problems: vec![] };
        let mut listed = BTreeMap::new();
        for entry in client.list_runtime_env()? {
            match CredentialRef::parse(&entry.namespace, &entry.key) {
                Ok(at) => drop(listed.insert(at, entry)),
                Err(_) => planning.unnameable(entry),
            }
        }
        for (at, entry) in &listed {
            if self.takes(at, entry) {
                planning.by_own_name(at, entry);
            }
        }
        for at in &self.only {
            planning.by_request(client, at, listed.get(at), None)?;
        }
        for (name, at) in &self.mapped {
            planning.by_request(client, at, listed.get(at), Some(name))?;
        }
        planning.finish()
    }

    fn is_for_all(&self) -> bool {
        self.only.is_empty() && self.namespaces.is_empty()
    }

    /// Whether a credential is among those that are not asked for by their own name.
    fn takes(&self, at: &CredentialRef, entry: &RuntimeEnvEntry) -> bool {
        (self.is_for_all() || self.namespaces.contains(at.namespace())) && self.may_have(entry)
    }

    fn may_have(&self, entry: &RuntimeEnvEntry) -> bool {
        let allowed = &entry.allowed_consumers;
        allowed.is_empty() || self.consumer.as_ref().is_none_or(|name| allowed.contains(name))
    }

    fn is_mapped(&self, at: &CredentialRef) -> bool {
        self.mapped.iter().any(|(_, mapped)| mapped == at)
    }
}

/// A plan in the making, and what stands in its way.
struct Planning<'a> {
    selection: &'a Selection,
    wanted: BTreeMap<String, BTreeSet<CredentialRef>>,
    problems: Vec<Problem>,
}

impl Planning<'_> {
    fn unnameable(&mut self, entry: RuntimeEnvEntry) {
        let RuntimeEnvEntry { namespace, key, .. } = entry;
        let of_namespaces = &self.selection.namespaces;
        if self.selection.is_for_all() || of_namespaces.iter().any(|it| it.as_str() == namespace) {
            self.problems.push(Problem::Unnameable { namespace, key });
        }
    }

    /// In the variable that is stored with it, unless another was chosen.
    fn by_own_name(&mut self, at: &CredentialRef, entry: &RuntimeEnvEntry) {
        if self.selection.is_mapped(at) {
            return;
        }
        match &entry.env_name {
            Some(name) => self.want(name, at),
            None => self.problems.push(Problem::NoName { at: at.clone() }),
        }
    }

    /// One that was named by whoever starts the process: if it cannot be had, it is not
    /// left out.
    fn by_request(
        &mut self,
        client: &VaultClient,
        at: &CredentialRef,
        entry: Option<&RuntimeEnvEntry>,
        name: Option<&String>,
    ) -> Result<(), SpawnError> {
        let problem = match (entry, &self.selection.consumer) {
            (Some(entry), Some(consumer)) if !self.selection.may_have(entry) => {
                Problem::NotForConsumer { at: at.clone(), consumer: consumer.clone() }
            }
            // What is not listed is for executors alone, or is not there.
            (None, _) if !client.has(at)? => Problem::Missing { at: at.clone() },
            (None, _) if !self.selection.executor_only => Problem::ExecutorOnly { at: at.clone() },
            (entry, _) => {
                match (name, entry) {
                    (Some(name), _) => self.want(name, at),
                    (None, Some(entry)) => self.by_own_name(at, entry),
                    (None, None) if self.selection.is_mapped(at) => {}
                    (None, None) => self.problems.push(Problem::NoName { at: at.clone() }),
                }
                return Ok(());
            }
        };
        self.problems.push(problem);
        Ok(())
    }

    fn want(&mut self, name: &str, at: &CredentialRef) {
        match env_name::check(name) {
            Ok(()) => drop(self.wanted.entry(name.to_owned()).or_default().insert(at.clone())),
            Err(problem) => {
                let (at, name) = (at.clone(), name.to_owned());
                self.problems.push(Problem::Name { at, name, problem });
            }
        }
    }

    fn finish(self) -> Result<Plan, SpawnError> {
        let Self { wanted, mut problems, .. } = self;
        let mut plan = Plan::new();
        for (name, of) in wanted {
            let mut of = Vec::from_iter(of);
            match of.pop() {
                Some(at) if of.is_empty() => drop(plan.insert(name, at)),
                last => {
                    of.extend(last);
                    problems.push(Problem::Conflict { name, of });
                }
            }
        }
        // One that was asked for both ways has its problem once.
        problems.sort_by_cached_key(ToString::to_string);
        problems.dedup_by_key(|problem| problem.to_string());
        SpawnError::unless_none(problems).map(|()| plan)
    }
}
