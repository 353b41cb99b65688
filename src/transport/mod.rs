//! The connections under the HTTP library (ureq): Unix sockets, TCP and TLS. Made here and
//! not by ureq, so that their buffers are wiped, which hold values and tokens.

mod buffers;
mod stream;
mod unix;

pub(crate) use stream::NotConnected;
pub(crate) use stream::{Era, Unanswered};
pub(crate) use unix::NoResolver;
pub(crate) use unix::{ForeignServer, OwnedUnixConnector, Owners};
