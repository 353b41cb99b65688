//! [`RuntimeEnv`]: the variables of a process.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::CredentialRef;
use crate::secret::Secret;

use super::{Problem, SpawnError};

/// Variables and their values. Its `Debug` shows no values.
#[derive(Default)]
pub struct RuntimeEnv(BTreeMap<String, Delivered>);

pub(super) struct Delivered {
    pub at: CredentialRef,
    pub value: Secret,
}

impl RuntimeEnv {
    pub(super) fn new(variables: BTreeMap<String, Delivered>) -> Self {
        Self(variables)
    }

    /// The variables and their values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, delivered)| (name.as_str(), &delivered.value))
    }

    /// The values, for code that keeps them out of a log.
    pub fn values(&self) -> impl Iterator<Item = &Secret> {
        self.0.values().map(|delivered| &delivered.value)
    }

    /// The value of one variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.0.get(name).map(|delivered| &delivered.value)
    }

    /// The credential that a variable holds.
    #[must_use]
    pub fn credential(&self, name: &str) -> Option<&CredentialRef> {
        self.0.get(name).map(|delivered| &delivered.at)
    }

    /// The number of variables.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no variables.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a process would see no difference: the same names with the same values.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|((name, value), (other_name, other_value))| {
                name == other_name && value.expose() == other_value.expose()
            })
    }

    /// Checks that a variable can hold each value. A file can hold any.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Problems`], with each value that has a NUL byte.
    pub fn check_variables(&self) -> Result<(), SpawnError> {
        let with_nul = |(name, delivered): (&String, &Delivered)| {
            let has_nul = delivered.value.expose().contains('\0');
            has_nul.then(|| Problem::HasNul { at: delivered.at.clone(), name: name.clone() })
        };
        SpawnError::unless_none(self.0.iter().filter_map(with_nul).collect())
    }
}

impl fmt::Debug for RuntimeEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
