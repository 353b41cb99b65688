//! The connections under the HTTP library (ureq): Unix sockets, TCP and TLS. Made here and
//! not by ureq, so that their buffers are wiped, which hold values and tokens.

mod buffers;
mod stream;
#[cfg(feature = "hashicorp")]
mod tcp;
#[cfg(feature = "hashicorp")]
pub(crate) mod tls;
mod unix;

pub(crate) use stream::NotConnected;
#[cfg(feature = "client")]
pub(crate) use stream::{Era, Unanswered};
#[cfg(feature = "hashicorp")]
pub(crate) use tcp::TcpConnector;
#[cfg(feature = "client")]
pub(crate) use unix::{ForeignServer, Owners};
pub(crate) use unix::{NoResolver, UnixConnector};
