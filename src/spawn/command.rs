//! [`CommandCredentials`]: credentials for a [`Command`].

use std::process::Command;

use super::RuntimeEnv;

/// The variables from which the vault itself, or a client of the server behind it, gets
/// secrets: tokens, and what a token can be obtained with.
pub const VAULT_VARIABLES: &[&str] = &[
    "VAULT_TOKEN",
    "VAULT_TOKEN_FILE",
    "VAULT_ROLE_ID",
    "VAULT_ROLE_ID_FILE",
    "VAULT_SECRET_ID",
    "VAULT_SECRET_ID_FILE",
    "VAULT_SECRET_ID_WRAPPED",
    "VAULT_CLIENT_KEY",
    "VAULT_CLIENT_CERT",
    // An agent that logs in by itself answers anyone who asks.
    "VAULT_AGENT_ADDR",
    "BAO_TOKEN",
    "BAO_CLIENT_KEY",
    "BAO_CLIENT_CERT",
    "BAO_AGENT_ADDR",
];

/// Gives credentials to the process that a [`Command`] starts.
pub trait CommandCredentials {
    /// Removes [`VAULT_VARIABLES`] from the child's environment, then sets the variables of
    /// `credentials`. The command holds copies of the values until it is dropped.
    fn credentials(&mut self, credentials: &RuntimeEnv) -> &mut Self;
}

impl CommandCredentials for Command {
    fn credentials(&mut self, credentials: &RuntimeEnv) -> &mut Self {
        for name in VAULT_VARIABLES {
            self.env_remove(name);
        }
        self.envs(credentials.iter().map(|(name, value)| (name, value.expose())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vaults_own_variables_are_removed() {
        let mut command = Command::new("true");
        command.env("VAULT_TOKEN", "canary").env("KEPT", "1");
        command.credentials(&RuntimeEnv::default());
        let set: Vec<_> = command.get_envs().filter(|(_, value)| value.is_some()).collect();
        assert_eq!(set, [("KEPT".as_ref(), Some("1".as_ref()))]);
        let removed = command.get_envs().filter(|(_, value)| value.is_none()).count();
        assert_eq!(removed, VAULT_VARIABLES.len());
    }
}
