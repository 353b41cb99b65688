//! [`Selection`]: which credentials a process gets, and under which names.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::VaultClient;
use crate::env_name;
use crate::model::{CredentialRef, Namespace, RuntimeEnvEntry};

use super::fetch::fetch;
use super::{Problem, RuntimeEnv, SpawnError};

/// Which credentials a process gets, and under which names.
///
/// A new selection has every credential with the delivery mode `runtime_env`, under the name
/// that is stored with it.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    consumer: Option<String>,
    only: BTreeSet<CredentialRef>,
    namespaces: BTreeSet<Namespace>,
    mapped: Vec<(String, CredentialRef)>,
    executor_only: bool,
}

/// The credential for each variable.
pub(super) type Plan = BTreeMap<String, CredentialRef>;

impl Selection {
    /// Selects every credential that is delivered as a variable.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves out credentials that other consumers may have, but not `name`. One that the
    /// caller names itself is not left out: it is a problem.
    #[must_use]
    pub fn consumer(mut self, name: impl Into<String>) -> Self {
        self.consumer = Some(name.into());
        self
    }

    /// Selects this credential, and otherwise only what further calls of `only` and
    /// [`namespace`](Self::namespace) name.
    #[must_use]
    pub fn only(mut self, at: CredentialRef) -> Self {
        self.only.insert(at);
        self
    }

    /// Selects this namespace, and otherwise only what further calls of `namespace` and
    /// [`only`](Self::only) name.
    #[must_use]
    pub fn namespace(mut self, namespace: Namespace) -> Self {
        self.namespaces.insert(namespace);
        self
    }

    /// Adds a credential in the variable `name` instead of its own.
    #[must_use]
    pub fn mapped(mut self, name: impl Into<String>, at: CredentialRef) -> Self {
        self.mapped.push((name.into(), at));
        self
    }

    /// Allows the caller to name credentials that only trusted services may fetch
    /// (`executor_only`). The vault lists neither their variables nor their consumers. So
    /// each needs a name by [`mapped`](Self::mapped), and the consumer is not checked.
    #[must_use]
    pub fn allow_executor_only(mut self) -> Self {
        self.executor_only = true;
        self
    }

    /// Reads the values, several at a time.
    ///
    /// # Errors
    ///
    /// [`SpawnError`], with every problem that was found. There are values only if there are
    /// no problems.
    pub fn fetch(&self, client: &VaultClient) -> Result<RuntimeEnv, SpawnError> {
        fetch(client, &self.plan(client)?)
    }

    /// Finds the credential for each variable, by what the vault lists now.
    pub(super) fn plan(&self, client: &VaultClient) -> Result<Plan, SpawnError> {
        let mut problems = Vec::new();
        let mut listed = BTreeMap::new();
        for entry in client.list_runtime_env()? {
            match CredentialRef::parse(&entry.namespace, &entry.key) {
                Ok(at) => drop(listed.insert(at, entry)),
                Err(_) if self.covers(&entry.namespace) => {
                    let RuntimeEnvEntry { namespace, key, .. } = entry;
                    problems.push(Problem::Unnameable { namespace, key });
                }
                Err(_) => {}
            }
        }
        let is_covered = |at: &CredentialRef, entry| {
            self.covers(at.namespace().as_str()) && self.is_for_consumer(entry)
        };
        let covered = listed.iter().filter(|(at, entry)| is_covered(at, entry));
        let under_own_name = covered.map(|(at, _)| at).chain(&self.only).map(|at| (None, at));
        let mapped = self.mapped.iter().map(|(name, at)| (Some(name), at));

        let mut chosen: BTreeMap<String, BTreeSet<CredentialRef>> = BTreeMap::new();
        for (name, at) in under_own_name.chain(mapped) {
            let entry = listed.get(at);
            if let Some(problem) = self.refusal(client, at, entry)? {
                problems.push(problem);
                continue;
            }
            if name.is_none() && self.mapped.iter().any(|(_, mapped)| mapped == at) {
                continue;
            }
            let at = at.clone();
            match name.or(entry.and_then(|entry| entry.env_name.as_ref())) {
                None => problems.push(Problem::NoName { at }),
                Some(name) => match env_name::check(name) {
                    Ok(()) => drop(chosen.entry(name.clone()).or_default().insert(at)),
                    Err(problem) => {
                        problems.push(Problem::Name { at, name: name.clone(), problem });
                    }
                },
            }
        }
        let mut plan = Plan::new();
        for (name, of) in chosen {
            if of.len() > 1 {
                problems.push(Problem::Conflict { name, of: of.into_iter().collect() });
            } else {
                plan.extend(of.into_iter().map(|at| (name.clone(), at)));
            }
        }
        SpawnError::unless_none(problems).map(|()| plan)
    }

    /// Whether a namespace is selected as a whole.
    fn covers(&self, namespace: &str) -> bool {
        let is_for_all = self.only.is_empty() && self.namespaces.is_empty();
        is_for_all || self.namespaces.iter().any(|it| it.as_str() == namespace)
    }

    fn is_for_consumer(&self, entry: &RuntimeEnvEntry) -> bool {
        let allowed = &entry.allowed_consumers;
        allowed.is_empty() || self.consumer.as_ref().is_none_or(|name| allowed.contains(name))
    }

    /// Why the process may not have a credential, whose `entry` the vault may have listed.
    fn refusal(
        &self,
        client: &VaultClient,
        at: &CredentialRef,
        entry: Option<&RuntimeEnvEntry>,
    ) -> Result<Option<Problem>, SpawnError> {
        let at = at.clone();
        Ok(match (entry, &self.consumer) {
            (Some(entry), Some(consumer)) if !self.is_for_consumer(entry) => {
                Some(Problem::NotForConsumer { at, consumer: consumer.clone() })
            }
            // The vault does not list what is executor_only, or does not exist.
            (None, _) if !client.has(&at)? => Some(Problem::Missing { at }),
            (None, _) if !self.executor_only => Some(Problem::ExecutorOnly { at }),
            _ => None,
        })
    }
}
