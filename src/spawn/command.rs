//! A [`Command`] that starts with credentials.

use std::process::Command;

use super::RuntimeEnv;

/// The variables by which the vault itself, or a client of the server behind it, comes to
/// secrets: tokens, and what leads to one.
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
    // An agent or a proxy that logs in by itself gives to whoever asks it.
    "VAULT_AGENT_ADDR",
    "BAO_TOKEN",
    "BAO_CLIENT_KEY",
    "BAO_CLIENT_CERT",
    "BAO_AGENT_ADDR",
];

/// Gives credentials to the process that a [`Command`] starts.
pub trait CommandCredentials {
    /// Removes the variables by which the vault comes to secrets ([`VAULT_VARIABLES`]) from
    /// the child's environment, and then sets those of `credentials`. The command holds
    /// copies of the values for as long as it lives.
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
