//! How a command fails: the message and the exit code. The codes are documented in `--help`.

use std::fmt::Display;
use std::io;

use intentframe_credentials::VaultError;
use intentframe_credentials::client::ClientError;
use intentframe_credentials::daemon::DaemonError;
use intentframe_credentials::error::{Field, MetadataError};
use intentframe_credentials::server::StartError;
use intentframe_credentials::settings::PathError;
use intentframe_credentials::spawn::{Problem, SpawnError};

use super::output::escaped;

/// Why a command ends with another exit code than 0.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    /// Empty if nothing is printed.
    pub message: String,
}

pub const NOT_FOUND: u8 = 1;
pub const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
pub const REFUSED: u8 = 4;
pub const OTHER: u8 = 5;

const OTHER_SOCKET: &str = "--socket PATH or INTENTFRAME_VAULT_SOCKET selects another socket";
pub const OTHER_DATA_DIR: &str =
    "--data-dir PATH or INTENTFRAME_DATA_DIR selects another directory";
const OTHER_BACKEND: &str = "--backend NAME or IF_VAULT_BACKEND selects the backend";
const WAIT: &str = "--wait-for-backend retries until it is available";
const HEALTH: &str = "`credential-vault health` shows whether the service answers at all";
const LIST: &str = "`credential-vault list` shows what is stored, and since when";
const TRUST: &str = "to trust that user, run `credential-vault --server-uid UID ...`";
const USER: &str =
    "run the command as the service's user, or ask for a rule in the policy of the service";
const BACKEND: &str = "then try again; `credential-vault health` shows the backend";
const LOG: &str = "the log of the service has the details";
const SPAWN: &str = "--only, --namespace and --consumer select credentials; --env \
    NAME=NAMESPACE/KEY sets a variable\n  (with --allow-executor-only, also of an executor_only \
    credential; with --allow-name NAME,\n  also one that steers programs); `credential-vault store` \
    replaces one";

impl Failure {
    pub fn new(code: u8, message: impl Display) -> Self {
        Self { code, message: message.to_string() }
    }

    /// The command line, a setting or the input is invalid.
    pub fn usage(message: impl Display) -> Self {
        Self::new(USAGE, message)
    }

    pub fn other(message: impl Display) -> Self {
        Self::new(OTHER, message)
    }

    /// Nothing is printed: what there is to say has been said.
    pub fn silent(code: u8) -> Self {
        Self::new(code, "")
    }

    /// Adds a line that says what to do next, unless it is empty.
    pub fn hint(mut self, hint: &str) -> Self {
        if !hint.is_empty() {
            self.message.extend(["\n  ", hint]);
        }
        self
    }

    /// The message, safe for a terminal.
    pub fn printable(&self) -> String {
        self.message.trim_end().split('\n').map(escaped).collect::<Vec<_>>().join("\n")
    }
}

/// For `map_err`: what cannot be done.
pub fn cannot(what: impl Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::other(format!("cannot {what}: {error}"))
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        Self::usage(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (code, hint) = match &error {
            ClientError::Unreachable { .. } => (UNREACHABLE, OTHER_SOCKET),
            ClientError::TimedOut { .. } => (UNREACHABLE, HEALTH),
            ClientError::OutcomeUnknown { .. } => (UNREACHABLE, LIST),
            ClientError::ForeignServer { .. } => (REFUSED, TRUST),
            ClientError::Refused { status: 403, .. } => (REFUSED, USER),
            ClientError::Refused { .. } => (REFUSED, ""),
            ClientError::Failed { status: 503, .. } => (OTHER, BACKEND),
            ClientError::Failed { .. } => (OTHER, LOG),
            ClientError::Protocol { .. } => (OTHER, OTHER_SOCKET),
            _ => (OTHER, ""),
        };
        Self::new(code, error).hint(hint)
    }
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        let problems = match error {
            SpawnError::Problems(problems) => problems,
            SpawnError::Client(error) => return error.into(),
            error => return Self::other(error),
        };
        let code_of = |problem: &Problem| match problem {
            Problem::NotGiven { error: ClientError::Refused { .. }, .. } => REFUSED,
            Problem::NotGiven { .. } => OTHER,
            Problem::Missing { .. } => NOT_FOUND,
            _ => USAGE,
        };
        // A service without an answer outweighs a missing credential, and that outweighs one
        // that cannot be delivered.
        let codes: Vec<u8> = problems.iter().map(code_of).collect();
        let code = [REFUSED, OTHER, NOT_FOUND].into_iter().find(|code| codes.contains(code));
        let message = format!("{}\nnothing was started", SpawnError::Problems(problems));
        Self::new(code.unwrap_or(USAGE), message).hint(SPAWN)
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        use DaemonError::{Start, Vault};
        let (code, hint) = match &error {
            Vault(VaultError::ValidationFailed { field: Field::Backend, .. }) => {
                (USAGE, OTHER_BACKEND)
            }
            Vault(VaultError::ValidationFailed { .. })
            | DaemonError::Policy(_)
            | DaemonError::PolicyWithoutMetadata
            | DaemonError::SharedWithoutPolicy => (USAGE, ""),
            Vault(VaultError::BackendUnavailable { .. }) => (OTHER, WAIT),
            Vault(VaultError::Metadata(MetadataError::Unusable { .. })) => (OTHER, OTHER_DATA_DIR),
            Start(StartError::AlreadyRunning(_) | StartError::BadPath { .. }) => {
                (OTHER, OTHER_SOCKET)
            }
            _ => (OTHER, ""),
        };
        Self::new(code, error).hint(hint)
    }
}
