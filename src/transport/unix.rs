//! Unix sockets under the HTTP library.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout};

use super::stream::{NotConnected, StreamTransport};

/// Opens the one socket, whatever the URI says.
#[derive(Debug)]
pub(crate) struct UnixConnector {
    socket: PathBuf,
}

impl UnixConnector {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }
}

impl Connector<()> for UnixConnector {
    type Out = StreamTransport<UnixStream>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<StreamTransport<UnixStream>>, Error> {
        let timeout = details.timeout.not_zero().map(|timeout| *timeout);
        match open(&self.socket, timeout) {
            Ok(stream) => Ok(Some(StreamTransport::new(stream))),
            Err(error) => Err(Error::Other(Box::new(NotConnected(error)))),
        }
    }
}

/// Connects. A listener whose queue is full keeps a caller waiting on Linux, which a
/// send timeout that is set before connecting bounds (unix(7) does not say so, the
/// kernel's `unix_stream_connect` does).
#[cfg(target_os = "linux")]
fn open(socket: &Path, timeout: Option<Duration>) -> io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    };

    let address = SocketAddrUnix::new(socket)?;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, timeout)?;
    match rustix::io::retry_on_intr(|| connect(&fd, &address)) {
        Ok(()) => Ok(fd.into()),
        Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
    }
}

/// Connects. Other systems refuse at once when a listener's queue is full.
#[cfg(not(target_os = "linux"))]
fn open(socket: &Path, _timeout: Option<Duration>) -> io::Result<UnixStream> {
    UnixStream::connect(socket)
}

/// Nothing is resolved before a connection is made; ureq asks all the same, and wants an
/// address.
#[derive(Debug)]
pub(crate) struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
        Ok(addresses)
    }
}
