//! [`ClientError`]: why a call of the client failed, by meaning.

use std::path::PathBuf;
use std::time::Duration;

/// Why a [`VaultClient`](super::VaultClient) returns no answer. No variant carries a value or
/// any part of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No service answers on the socket.
    #[error("no vault answers at {}: {reason}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// Why, and what to do.
        reason: String,
    },

    /// The service did not answer in time. It may have carried out a store or a delete.
    #[error("the vault at {} did not answer within {} s; its log may say why", socket.display(), after.as_secs_f32())]
    TimedOut {
        /// The socket of the service.
        socket: PathBuf,
        /// How long the client waited.
        after: Duration,
    },

    /// The connection broke after a store or a delete was sent and before its answer came.
    /// The service may have carried it out.
    #[error(
        "the vault at {} closed the connection without an answer; it may or may not have made \
         the change: look before you try again",
        socket.display()
    )]
    OutcomeUnknown {
        /// The socket of the service.
        socket: PathBuf,
    },

    /// Another user's process listens on the socket. Nothing was sent to it.
    #[error(
        "the socket {} is served by user ID {uid}, which is neither this user nor root; nothing \
         was sent to it",
        socket.display()
    )]
    ForeignServer {
        /// The socket.
        socket: PathBuf,
        /// The user ID of the process that listens.
        uid: u32,
    },

    /// The service refused the request (status 4xx).
    #[error("the vault refused: {detail} (HTTP {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason that the service gave.
        detail: String,
    },

    /// The service failed (status 5xx).
    #[error("the vault failed: {detail} (HTTP {status})")]
    Failed {
        /// The HTTP status.
        status: u16,
        /// The reason that the service gave.
        detail: String,
    },

    /// The answer is not one that the vault gives.
    #[error("the server at {} does not answer like a vault: {reason}", socket.display())]
    Protocol {
        /// The socket that was asked.
        socket: PathBuf,
        /// The rule that the answer breaks.
        reason: String,
    },
}
