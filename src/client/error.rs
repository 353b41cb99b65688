//! [`ClientError`]: why a call of the client failed, by meaning.

use std::path::PathBuf;
use std::time::Duration;

/// Why a [`VaultClient`](super::VaultClient) returns no answer. `socket` is the one that the
/// client was made for. No variant carries a value or any part of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant's sentence explains its fields")]
pub enum ClientError {
    /// No service answers on the socket. The `reason` says why, and what to do.
    #[error("no vault answers at {}: {reason}", socket.display())]
    Unreachable { socket: PathBuf, reason: String },

    /// The client waited for the time `after`, and there was no whole answer. The service may
    /// have carried out a store or a delete.
    #[error("the vault at {} did not answer within {} s; its log may say why", socket.display(), after.as_secs_f32())]
    TimedOut { socket: PathBuf, after: Duration },

    /// The connection broke after a store or a delete was sent and before its whole answer
    /// came. The service may have carried it out.
    #[error(
        "the vault at {} closed the connection without an answer; it may or may not have made \
         the change: look before you try again",
        socket.display()
    )]
    OutcomeUnknown { socket: PathBuf },

    /// A process of another user, `uid`, listens on the socket. Nothing was sent to it.
    #[error(
        "the socket {} is served by user ID {uid}, which is neither this user nor root; nothing \
         was sent to it",
        socket.display()
    )]
    ForeignServer { socket: PathBuf, uid: u32 },

    /// The service refused the request with the HTTP `status` 4xx. The `detail` is its reason.
    #[error("the vault refused: {detail} (HTTP {status})")]
    Refused { status: u16, detail: String },

    /// The service failed with the HTTP `status` 5xx. The `detail` is its reason.
    #[error("the vault failed: {detail} (HTTP {status})")]
    Failed { status: u16, detail: String },

    /// The answer is not one that the vault gives. The `reason` names the rule that it breaks.
    #[error("the server at {} does not answer like a vault: {reason}", socket.display())]
    Protocol { socket: PathBuf, reason: String },
}
