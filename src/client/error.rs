//! What can go wrong between a caller and the service, by meaning.

use std::path::PathBuf;
use std::time::Duration;

/// Why a [`VaultClient`](super::VaultClient) has no answer to give. No variant carries a
/// value or any part of a request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing could be asked: there is no service behind the socket.
    #[error("no vault answers at {}: {reason}", socket.display())]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// Why, and what to do.
        reason: String,
    },

    /// The service was asked and did not answer in time; whether a store or a delete
    /// was done is not known.
    #[error("the vault at {} gave no answer within {} s; see what its log says", socket.display(), after.as_secs_f32())]
    TimedOut {
        /// The socket it listens on.
        socket: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },

    /// The connection ended after a store or a delete had been sent and before it was
    /// answered: it may have been carried out, and it may not.
    #[error(
        "the vault at {} ended the connection without an answer; whether it did what it was \
         asked is not known: look, and ask again",
        socket.display()
    )]
    OutcomeUnknown {
        /// The socket it listened on.
        socket: PathBuf,
    },

    /// Somebody else's process listens on the socket; nothing was sent to it.
    #[error(
        "the socket {} is served by uid {uid}, which is neither this user nor root; nothing was \
         sent to it",
        socket.display()
    )]
    ForeignServer {
        /// The socket.
        socket: PathBuf,
        /// Whom the process runs as that listens there.
        uid: u32,
    },

    /// The service says that this may not be (a status of 4xx).
    #[error("the vault refused: {detail} (HTTP {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the service said.
        detail: String,
    },

    /// The service could not do it (a status of 5xx).
    #[error("the vault failed: {detail} (HTTP {status})")]
    Failed {
        /// The HTTP status.
        status: u16,
        /// What the service said.
        detail: String,
    },

    /// What came back is not an answer of the vault.
    #[error("what answers at {} does not speak as the vault does: {reason}", socket.display())]
    Protocol {
        /// The socket that was asked.
        socket: PathBuf,
        /// What is wrong with the answer.
        reason: String,
    },
}
