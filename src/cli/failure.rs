//! How a command fails: what is said, and the exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

use intentframe_credentials::client::ClientError;
use intentframe_credentials::spawn::{Problem, SpawnError};

use super::output::escaped;

/// Why a command ends with a code other than 0. The codes are documented in `--help`.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: Option<String>,
}

const NOT_FOUND: u8 = 1;
const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const REFUSED: u8 = 4;
const OTHER: u8 = 5;

impl Failure {
    /// 1, and the reason.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self { code: NOT_FOUND, message: Some(message.to_string()) }
    }

    /// 1, where the output says it all.
    pub fn silent_not_found() -> Self {
        Self { code: NOT_FOUND, message: None }
    }

    /// The same failure, with code 1.
    pub fn into_not_found(self) -> Self {
        Self { code: NOT_FOUND, ..self }
    }

    /// 2: the command, or what was given to it, is not what it has to be.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { code: USAGE, message: Some(message.to_string()) }
    }

    /// The code that a command which was run has ended with; it has said the rest itself.
    pub fn of_command(code: u8) -> Self {
        Self { code, message: None }
    }

    /// A command that was to be run did not start: 127 when there is none of this name,
    /// else 126, as env(1) and the shells have it.
    pub fn not_started(message: impl fmt::Display, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
        Self { code, message: Some(message.to_string()) }
    }

    /// 5.
    pub fn other(message: impl fmt::Display) -> Self {
        Self { code: OTHER, message: Some(message.to_string()) }
    }

    /// What a failed write to standard output means: a reader that has seen enough
    /// (`| head`) ends the command quietly, anything else is told.
    pub fn from_output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self { code: 0, message: None }
        } else {
            Self::other(format!("cannot write to standard output: {error}"))
        }
    }

    /// What to print after `credential-vault: `, safe for a terminal.
    pub fn message(&self) -> Option<String> {
        self.message.as_deref().map(|message| {
            message.trim_end().split('\n').map(escaped).collect::<Vec<_>>().join("\n")
        })
    }

    /// The code to exit with.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (code, advice) = match &error {
            ClientError::Unreachable { .. } => {
                (UNREACHABLE, "--socket PATH or INTENTFRAME_VAULT_SOCKET says where it listens")
            }
            ClientError::TimedOut { .. } => {
                (UNREACHABLE, "`credential-vault health` tells whether it answers at all")
            }
            ClientError::OutcomeUnknown { .. } => {
                (UNREACHABLE, "`credential-vault list` shows what is stored, and since when")
            }
            ClientError::ForeignServer { .. } => (
                REFUSED,
                "if that is the vault's own user, say so: credential-vault --server-uid UID ...",
            ),
            ClientError::Refused { status: 403, .. } => {
                (REFUSED, "run the command as the user that the vault serves")
            }
            ClientError::Refused { .. } => (REFUSED, ""),
            ClientError::Failed { status: 503, .. } => {
                (OTHER, "when that is done, try again; `credential-vault health` names the backend")
            }
            ClientError::Failed { .. } => (OTHER, "the service's log says more"),
            ClientError::Protocol { .. } => (
                OTHER,
                "is the socket that of the vault? --socket PATH or INTENTFRAME_VAULT_SOCKET \
                 names another",
            ),
            _ => (OTHER, ""),
        };
        let message =
            if advice.is_empty() { error.to_string() } else { format!("{error}\n  {advice}") };
        Self { code, message: Some(message) }
    }
}

impl From<SpawnError> for Failure {
    fn from(error: SpawnError) -> Self {
        let problems = match error {
            SpawnError::Problems(problems) => problems,
            SpawnError::Client(error) => return error.into(),
            error => return Self::other(error),
        };
        let not_given = problems.iter().find_map(|problem| match problem {
            Problem::NotGiven { error: ClientError::Refused { .. }, .. } => Some(REFUSED),
            Problem::NotGiven { .. } => Some(OTHER),
            _ => None,
        });
        let is_missing = |problem: &Problem| matches!(problem, Problem::Missing { .. });
        let code = match not_given {
            Some(code) => code,
            None if problems.iter().any(is_missing) => NOT_FOUND,
            None => USAGE,
        };
        let mut message = SpawnError::Problems(problems).to_string();
        message.push_str(
            "\nnothing was started; --only, --namespace and --consumer choose among credentials, \
             --env NAME=NAMESPACE/KEY names\na variable (and with --allow-executor-only takes an \
             executor_only one), `credential-vault store` stores one anew",
        );
        Self { code, message: Some(message) }
    }
}
