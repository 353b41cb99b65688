//! The process environment, read once.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::secret::Secret;

/// A snapshot of environment variables. Cheap to clone; its `Debug` shows no values,
/// since any of them may be a secret. Variables that are not UTF-8 are left out.
#[derive(Clone, Default)]
pub struct Environment(Arc<HashMap<String, Secret>>);

impl Environment {
    /// The environment of this process, now.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// The variable's value; the empty string is a value.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&Secret> {
        self.0.get(name)
    }

    /// The value of a setting, for which an empty variable is as good as none.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.var(name).map(Secret::expose).filter(|value| !value.is_empty())
    }

    /// Every variable.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(vars: I) -> Self {
        Self(Arc::new(vars.into_iter().map(|(name, value)| (name, Secret::new(value))).collect()))
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Environment({} variables)", self.0.len())
    }
}
