//! The environment that the command gets.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use intentframe_credentials::spawn::{RuntimeEnv, VAULT_VARIABLES};

use crate::cli::failure::Failure;

/// A whole environment.
pub type Variables = BTreeMap<OsString, OsString>;

/// What `--clean` leaves.
const CLEAN: [&str; 4] = ["PATH", "HOME", "LANG", "TERM"];

/// What the command gets of our own environment, and what may be put over it.
pub struct Inherited {
    variables: Variables,
    may_override: bool,
}

impl Inherited {
    /// Of `variables`: all but those by which the vault comes to secrets; with `clean`,
    /// hardly any. Those in `keep` stay in any case.
    pub fn new(
        variables: impl Iterator<Item = (OsString, OsString)>,
        clean: bool,
        keep: &[String],
        may_override: bool,
    ) -> Self {
        let is_one_of = |names: &[&str], name: &OsStr| names.iter().any(|it| name == *it);
        let stays = |name: &OsStr| {
            keep.iter().any(|kept| name == &**kept)
                || if clean { is_one_of(&CLEAN, name) } else { !is_one_of(VAULT_VARIABLES, name) }
        };
        let variables = variables.filter(|(name, _)| stays(name)).collect();
        Self { variables, may_override }
    }

    /// With the credentials over it. A variable that is set to something else already is
    /// somebody's choice, which is not replaced without being asked to.
    pub fn with(&self, credentials: &RuntimeEnv) -> Result<Variables, Failure> {
        let credentials = credentials.iter().map(|(name, value)| (name, value.expose().as_ref()));
        self.with_variables(credentials)
    }

    /// The same for one variable.
    pub fn with_variable(&self, name: &str, value: &OsStr) -> Result<Variables, Failure> {
        self.with_variables([(name, value)].into_iter())
    }

    fn with_variables<'a>(
        &self,
        added: impl Iterator<Item = (&'a str, &'a OsStr)>,
    ) -> Result<Variables, Failure> {
        let mut variables = self.variables.clone();
        let mut taken = Vec::new();
        for (name, value) in added {
            match variables.insert(name.into(), value.to_owned()) {
                Some(before) if before != value && !self.may_override => taken.push(name),
                _ => {}
            }
        }
        if taken.is_empty() {
            return Ok(variables);
        }
        Err(Failure::usage(format!(
            "already set to another value: {}\n  nothing was started; unset what is not meant, \
             or say --override, or --clean",
            taken.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inherited(clean: bool, keep: &[&str], may_override: bool) -> Inherited {
        let variables = ["PATH", "HOME", "VAULT_TOKEN", "OTHER", "A_KEY"]
            .map(|name| (OsString::from(name), OsString::from("old")));
        let keep: Vec<_> = keep.iter().copied().map(str::to_owned).collect();
        Inherited::new(variables.into_iter(), clean, &keep, may_override)
    }

    fn names(inherited: &Inherited) -> Vec<&str> {
        inherited.variables.keys().map(|name| name.to_str().expect("UTF-8")).collect()
    }

    #[test]
    fn the_vaults_variables_go_and_what_is_kept_stays() {
        assert_eq!(names(&inherited(false, &[], false)), ["A_KEY", "HOME", "OTHER", "PATH"]);
        assert_eq!(names(&inherited(true, &[], false)), ["HOME", "PATH"]);
        assert_eq!(
            names(&inherited(true, &["OTHER", "VAULT_TOKEN", "UNSET"], false)),
            ["HOME", "OTHER", "PATH", "VAULT_TOKEN"]
        );
    }

    #[test]
    fn a_variable_is_replaced_when_it_is_equal_or_may_be() {
        let with = |inherited: &Inherited, value: &str| {
            inherited
                .with_variable("A_KEY", value.as_ref())
                .ok()
                .map(|all| all["A_KEY".as_ref() as &OsStr].clone())
        };
        assert_eq!(with(&inherited(false, &[], false), "new"), None);
        assert_eq!(with(&inherited(false, &[], false), "old"), Some("old".into()));
        assert_eq!(with(&inherited(false, &[], true), "new"), Some("new".into()));
        assert_eq!(with(&inherited(true, &[], false), "new"), Some("new".into()));
    }
}
