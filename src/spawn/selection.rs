//! [`Selection`]: which credentials a process gets, and under which names.

use std::collections::{BTreeMap, BTreeSet};

use crate::client::{ClientError, VaultClient};
use crate::env_name::{self, EnvNameProblem};
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
    allowed_names: BTreeSet<String>,
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

    /// Allows a credential in the variable `name`, although it is one of those that
    /// [`env_name::check`] denies.
    #[must_use]
    pub fn allow_name(mut self, name: impl Into<String>) -> Self {
        self.allowed_names.insert(name.into());
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
        // A vault lists only valid names.
        let listed: BTreeMap<CredentialRef, RuntimeEnvEntry> = client
            .list_runtime_env()?
            .into_iter()
            .filter_map(|it| Some((CredentialRef::parse(&it.namespace, &it.key).ok()?, it)))
            .collect();
        let covered = listed
            .iter()
            .filter(|(at, entry)| self.covers(at.namespace()) && self.is_for_consumer(entry));
        let is_mapped = |at| self.mapped.iter().any(|(_, mapped)| mapped == at);
        let own = covered.map(|(at, _)| at).chain(&self.only).filter(|at| !is_mapped(*at));
        let mapped = self.mapped.iter().map(|(name, at)| (at, Some(name)));

        let mut problems = Vec::new();
        let mut chosen: BTreeMap<String, BTreeSet<CredentialRef>> = BTreeMap::new();
        for (at, name) in own.map(|at| (at, None)).chain(mapped) {
            match self.variable(client, at, name, listed.get(at))? {
                Ok(name) => drop(chosen.entry(name).or_default().insert(at.clone())),
                Err(problem) => problems.push(problem),
            }
        }
        let mut plan = Plan::new();
        for (name, of) in chosen {
            plan.extend(of.first().map(|at| (name.clone(), at.clone())));
            if of.len() > 1 {
                problems.push(Problem::Conflict { name, of: of.into_iter().collect() });
            }
        }
        SpawnError::unless_none(problems).map(|()| plan)
    }

    /// Whether a namespace is selected as a whole.
    fn covers(&self, namespace: &Namespace) -> bool {
        let is_for_all = self.only.is_empty() && self.namespaces.is_empty();
        is_for_all || self.namespaces.contains(namespace)
    }

    fn is_for_consumer(&self, entry: &RuntimeEnvEntry) -> bool {
        let allowed = &entry.allowed_consumers;
        allowed.is_empty() || self.consumer.as_ref().is_none_or(|name| allowed.contains(name))
    }

    /// The variable for a credential: `name`, else the one in its `entry`, if the vault has
    /// listed one. Or why there is none.
    fn variable(
        &self,
        client: &VaultClient,
        at: &CredentialRef,
        name: Option<&String>,
        entry: Option<&RuntimeEnvEntry>,
    ) -> Result<Result<String, Problem>, ClientError> {
        let at = at.clone();
        Ok(Err(match (entry, &self.consumer) {
            (Some(entry), Some(consumer)) if !self.is_for_consumer(entry) => {
                Problem::NotForConsumer { at, consumer: consumer.clone() }
            }
            // The vault does not list what is executor_only, or does not exist.
            (None, _) if !client.has(&at)? => Problem::Missing { at },
            (None, _) if !self.executor_only => Problem::ExecutorOnly { at },
            _ => match name.or(entry.and_then(|entry| entry.env_name.as_ref())).cloned() {
                Some(name) if !name.is_empty() => match env_name::check(&name) {
                    Err(problem)
                        if problem != EnvNameProblem::Denied
                            || !self.allowed_names.contains(&name) =>
                    {
                        Problem::Name { at, name, problem }
                    }
                    _ => return Ok(Ok(name)),
                },
                _ => Problem::NoName { at },
            },
        }))
    }
}
