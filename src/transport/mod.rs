//! The connections under the HTTP library (ureq): Unix sockets, TCP and TLS. Made here and
//! not by ureq, so that their buffers are wiped, which hold values and tokens.

mod buffers;
#[cfg(feature = "hashicorp")]
mod link;
mod stream;
#[cfg(feature = "hashicorp")]
mod tcp;
#[cfg(feature = "hashicorp")]
pub(crate) mod tls;
mod unix;

#[cfg(feature = "hashicorp")]
pub(crate) use link::{LastLink, Link};
pub(crate) use stream::NotConnected;
#[cfg(feature = "client")]
pub(crate) use stream::{Era, Unanswered};
#[cfg(feature = "hashicorp")]
pub(crate) use tcp::TcpConnector;
pub(crate) use unix::NoResolver;
#[cfg(feature = "hashicorp")]
pub(crate) use unix::UnixConnector;
#[cfg(feature = "client")]
pub(crate) use unix::{ForeignServer, OwnedUnixConnector, Owners};
