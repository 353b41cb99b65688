//! The environment of the command.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use intentframe_credentials::spawn::{RuntimeEnv, VAULT_VARIABLES};

use super::Exec;
use crate::cli::failure::Failure;

/// A whole environment.
pub type Variables = BTreeMap<OsString, OsString>;

/// The variables that `--clean` keeps.
const CLEAN: &[&str] = &["PATH", "HOME", "LANG", "TERM"];

/// The variables that the command inherits, and whether credentials may replace them.
pub struct Inherited {
    variables: Variables,
    may_override: bool,
}

impl Inherited {
    /// Variables that give access to the vault are not inherited unless they are kept.
    pub fn new(args: &Exec, variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        // With --clean, only the listed variables are inherited; otherwise, all others.
        let listed = if args.clean { CLEAN } else { VAULT_VARIABLES };
        let is_inherited = |name: &OsStr| {
            args.keep.iter().any(|kept| name == kept.as_str())
                || listed.iter().any(|it| name == *it) == args.clean
        };
        let variables = variables.filter(|(name, _)| is_inherited(name)).collect();
        Self { variables, may_override: args.r#override }
    }

    /// The environment with the credentials in it.
    pub fn with_credentials(&self, credentials: &RuntimeEnv) -> Result<Variables, Failure> {
        credentials.check_variables()?;
        self.with(credentials.iter().map(|(name, value)| (name, value.expose().as_ref())))
    }

    /// The environment with `added` in it. A variable that has another value already is
    /// somebody's choice: without `--override` it is an error.
    pub fn with<'a>(
        &self,
        added: impl IntoIterator<Item = (&'a str, &'a OsStr)>,
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
        let message =
            format!("already set to another value: {}; nothing was started", taken.join(", "));
        Err(Failure::usage(message).hint("unset them, or use --override or --clean"))
    }
}

#[cfg(test)]
mod tests {
    use argh::FromArgs as _;

    use super::*;

    fn inherited(options: &str) -> Inherited {
        let variables = ["PATH", "HOME", "VAULT_TOKEN", "OTHER", "A_KEY"]
            .map(|name| (OsString::from(name), OsString::from("old")));
        let options: Vec<_> = options.split_whitespace().collect();
        let args = Exec::from_args(&["exec"], &options).expect("valid options");
        Inherited::new(&args, variables.into_iter())
    }

    fn names(options: &str) -> Vec<String> {
        let names = inherited(options).variables.into_keys();
        names.map(|name| name.into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn the_vaults_variables_are_not_inherited_unless_kept() {
        assert_eq!(names(""), ["A_KEY", "HOME", "OTHER", "PATH"]);
        assert_eq!(names("--clean"), ["HOME", "PATH"]);
        assert_eq!(
            names("--clean --keep OTHER --keep VAULT_TOKEN --keep UNSET"),
            ["HOME", "OTHER", "PATH", "VAULT_TOKEN"]
        );
    }

    #[test]
    fn a_variable_is_replaced_only_if_equal_or_overridden() {
        let with = |options: &str, value: &str| {
            let variables = inherited(options).with([("A_KEY", value.as_ref())]).ok()?;
            variables.get(OsStr::new("A_KEY")).cloned()
        };
        assert_eq!(with("", "new"), None);
        assert_eq!(with("", "old"), Some("old".into()));
        assert_eq!(with("--override", "new"), Some("new".into()));
        assert_eq!(with("--clean", "new"), Some("new".into()));
    }
}
