//! What stands between a process and its credentials.

use std::fmt;

use crate::client::ClientError;
use crate::env_name::EnvNameProblem;
use crate::model::CredentialRef;

/// One credential that cannot be delivered as it was asked for. No variant has a value.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The vault has no value for it.
    Missing {
        /// Which credential.
        at: CredentialRef,
    },
    /// It is delivered as a variable, and has no name for one.
    NoName {
        /// Which credential.
        at: CredentialRef,
    },
    /// Its name is none that a variable may have.
    Name {
        /// Which credential.
        at: CredentialRef,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: EnvNameProblem,
    },
    /// One variable for several credentials.
    Conflict {
        /// The variable.
        name: String,
        /// Which credentials.
        of: Vec<CredentialRef>,
    },
    /// It was asked for by name, and is for trusted services alone.
    ExecutorOnly {
        /// Which credential.
        at: CredentialRef,
    },
    /// It was asked for by name, and is not for this consumer.
    NotForConsumer {
        /// Which credential.
        at: CredentialRef,
        /// The consumer.
        consumer: String,
    },
    /// Its value has a NUL byte, which no variable can hold.
    HasNul {
        /// Which credential.
        at: CredentialRef,
        /// Its variable.
        name: String,
    },
    /// The vault lists it under a name that it would not take.
    Unnameable {
        /// The namespace as it is listed.
        namespace: String,
        /// The key as it is listed.
        key: String,
    },
    /// The vault has not given its value.
    NotGiven {
        /// Which credential.
        at: CredentialRef,
        /// What it said.
        error: ClientError,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { at } => write!(f, "{at}: the vault has no value for it"),
            Self::NoName { at } => {
                write!(f, "{at}: no variable is named for it (it has no env_name)")
            }
            Self::Name { at, name, problem } => write!(f, "{at} in {name:?}: {problem}"),
            Self::Conflict { name, of } => {
                let of: Vec<_> = of.iter().map(ToString::to_string).collect();
                write!(f, "{name}: it is the variable of {}", of.join(" and of "))
            }
            Self::ExecutorOnly { at } => {
                write!(f, "{at}: it is executor_only, for a trusted service to fetch")
            }
            Self::NotForConsumer { at, consumer } => {
                write!(f, "{at}: it is not for the consumer {consumer:?}")
            }
            Self::HasNul { at, name } => {
                write!(f, "{at} in {name}: its value has a NUL byte, which no variable can hold")
            }
            Self::Unnameable { namespace, key } => {
                write!(f, "{namespace}/{key}: it is listed under a name that cannot be asked for")
            }
            Self::NotGiven { at, error } => write!(f, "{at}: {error}"),
        }
    }
}

/// Why there are no credentials to start a process with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The vault could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// These credentials cannot be delivered; there is at least one.
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
}

impl SpawnError {
    /// Nothing, or what was found to be in the way.
    pub(super) fn unless_none(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self::Problems(problems)) }
    }
}

fn list(problems: &[Problem]) -> String {
    let mut text = match problems.len() {
        1 => "a credential cannot be delivered".to_owned(),
        count => format!("{count} credentials cannot be delivered"),
    };
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}
