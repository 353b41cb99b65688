//! [`RuntimeEnv`]: the variables of a process.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::CredentialRef;
use crate::secret::Secret;

use super::{Problem, SpawnError};

/// Variables and their values. Its `Debug` shows no values.
#[derive(Default)]
pub struct RuntimeEnv(pub(super) BTreeMap<String, (CredentialRef, Secret)>);

impl RuntimeEnv {
    /// The variables and their values, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, (_, value))| (name.as_str(), value))
    }

    /// The values, for code that keeps them out of a log.
    pub fn values(&self) -> impl Iterator<Item = &Secret> {
        self.0.values().map(|(_, value)| value)
    }

    /// The value of one variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.0.get(name).map(|(_, value)| value)
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
        let others = other.iter().map(|(name, value)| (name, value.expose()));
        self.iter().map(|(name, value)| (name, value.expose())).eq(others)
    }

    /// Checks that a variable can hold each value. A file can hold any.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Problems`], with each value that has a NUL byte.
    pub fn check_variables(&self) -> Result<(), SpawnError> {
        let with_nul = self.0.iter().filter(|(_, (_, value))| value.expose().contains('\0'));
        let problems = with_nul
            .map(|(name, (at, _))| Problem::HasNul { at: at.clone(), name: name.clone() })
            .collect();
        SpawnError::unless_none(problems)
    }
}

impl fmt::Debug for RuntimeEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
