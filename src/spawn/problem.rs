//! [`Problem`] and [`SpawnError`]: why a process gets no credentials.

use crate::client::ClientError;
use crate::env_name::EnvNameProblem;
use crate::model::CredentialRef;
use crate::text::counted;

/// Why one credential (`at`) cannot be delivered. No variant has a value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's sentence explains its fields")]
pub enum Problem {
    /// The vault has no value for it.
    #[error("{at}: the vault has no value for it")]
    Missing { at: CredentialRef },
    /// It is delivered as a variable, and no name is stored for one.
    #[error("{at}: no variable is named for it (it has no env_name)")]
    NoName { at: CredentialRef },
    /// Its variable may not have the name `name`.
    #[error("{at} in {name:?}: {problem}")]
    Name { at: CredentialRef, name: String, problem: EnvNameProblem },
    /// The variable `name` was chosen for each of the credentials `of`.
    #[error("{name}: it is the variable of {}", listed(of, " and of "))]
    Conflict { name: String, of: Vec<CredentialRef> },
    /// It was asked for by name, and only trusted services may fetch it.
    #[error("{at}: it is executor_only, for a trusted service to fetch")]
    ExecutorOnly { at: CredentialRef },
    /// It was asked for by name, and `consumer` may not have it.
    #[error("{at}: it is not for the consumer {consumer:?}")]
    NotForConsumer { at: CredentialRef, consumer: String },
    /// Its value has a NUL byte, which the variable `name` cannot hold.
    #[error("{at} in {name}: its value has a NUL byte, which no variable can hold")]
    HasNul { at: CredentialRef, name: String },
    /// The vault answered the read of its value with `error`.
    #[error("{at}: {error}")]
    NotGiven { at: CredentialRef, error: ClientError },
}

/// Why there are no credentials to start a process with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The request to the vault failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// These credentials cannot be delivered. There is at least one.
    #[error("{} cannot be delivered\n  {}", credentials(.0), listed(.0, "\n  "))]
    Problems(Vec<Problem>),
}

impl SpawnError {
    /// Succeeds if there are no problems. Names each of them once, in order.
    pub(super) fn unless_none(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort_by_cached_key(ToString::to_string);
        problems.dedup_by_key(|problem| problem.to_string());
        if problems.is_empty() { Ok(()) } else { Err(Self::Problems(problems)) }
    }
}

fn credentials(problems: &[Problem]) -> String {
    counted(problems.len() as u64, "credential")
}

fn listed(items: &[impl ToString], separator: &str) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
