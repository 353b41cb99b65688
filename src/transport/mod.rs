//! The connections under the HTTP library (ureq): Unix sockets, TCP and TLS. Made here and
//! not by ureq, so that their buffers are wiped, which hold values and tokens.

mod buffers;
mod stream;
mod tcp;
pub(crate) mod tls;
mod unix;

pub(crate) use stream::NotConnected;
pub(crate) use tcp::TcpConnector;
pub(crate) use unix::{NoResolver, UnixConnector};
