//! Starts a process with its credentials in its environment.
//!
//! A [`Selection`] chooses the credentials and the names of their variables.
//! [`Selection::fetch`] reads the values, all or none: it reports every [`Problem`] at once.
//! [`CommandCredentials`] puts the values into the environment of a
//! [`Command`](std::process::Command). A [`Watcher`] detects later changes.
//!
//! ```no_run
//! use std::process::Command;
//!
//! use intentframe_credentials::client::VaultClient;
//! use intentframe_credentials::spawn::{CommandCredentials as _, runtime_env};
//!
//! let vault = VaultClient::new("/run/user/1000/credential-vault.sock");
//! let credentials = runtime_env(&vault, Some("jarvis"))?;
//! let mut agent = Command::new("jarvis").credentials(&credentials).spawn()?;
//! agent.wait()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod command;
mod environment;
mod fetch;
mod problem;
mod selection;
mod watcher;

pub use command::{CommandCredentials, VAULT_VARIABLES};
pub use environment::RuntimeEnv;
pub use problem::{Problem, SpawnError};
pub use selection::Selection;
pub use watcher::Watcher;

use crate::client::VaultClient;

/// Reads the variables of `consumer`: each credential that is delivered as a variable, and
/// whose `allowed_consumers` is empty or has that name. Without a consumer, all of them.
///
/// # Errors
///
/// [`SpawnError`]; then do not start the process. A value with a NUL byte, which no variable
/// can hold, is one of the problems.
pub fn runtime_env(client: &VaultClient, consumer: Option<&str>) -> Result<RuntimeEnv, SpawnError> {
    let mut selection = Selection::new();
    if let Some(consumer) = consumer {
        selection = selection.consumer(consumer);
    }
    let environment = selection.fetch(client)?;
    environment.check_variables()?;
    Ok(environment)
}
