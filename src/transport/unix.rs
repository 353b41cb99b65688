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

use super::stream::Era;
use super::stream::{NotConnected, StreamTransport};
use crate::peer::Process;

/// Opens the one socket, whatever the URI says, and talks to no server but one that root or
/// one of the owners runs.
#[derive(Debug)]
pub(crate) struct OwnedUnixConnector {
    socket: PathBuf,
    owners: Owners,
    era: Era,
}

/// Whom a server may run as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owners {
    /// This process's own user.
    pub(crate) ours: u32,
    /// A further one that the caller trusts.
    pub(crate) trusted: Option<u32>,
}

/// What a connector's error carries when the server runs as somebody else. Nothing has been
/// sent to it.
#[derive(Debug, thiserror::Error)]
#[error("the server runs as uid {uid}")]
pub(crate) struct ForeignServer {
    /// Whom it runs as, by the kernel's word.
    pub(crate) uid: u32,
}

impl OwnedUnixConnector {
    /// Its connections are used again, unlooked at, until `era` ends.
    pub(crate) fn new(socket: PathBuf, owners: Owners, era: Era) -> Self {
        Self { socket, owners, era }
    }

    fn check(&self, stream: &UnixStream) -> Result<(), Error> {
        const ROOT: u32 = 0;
        let Owners { ours, trusted } = self.owners;
        let Process { uid, .. } = Process::across(stream)?;
        if uid == ours || uid == ROOT || Some(uid) == trusted {
            return Ok(());
        }
        Err(Error::Other(Box::new(ForeignServer { uid })))
    }
}

impl Connector<()> for OwnedUnixConnector {
    type Out = StreamTransport<UnixStream>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let stream = connected(&self.socket, details)?;
        self.check(&stream)?;
        Ok(Some(StreamTransport::new(stream, self.era.idle())))
    }
}

fn connected(socket: &Path, details: &ConnectionDetails<'_>) -> Result<UnixStream, Error> {
    let timeout = details.timeout.not_zero().map(|timeout| *timeout);
    open(socket, timeout).map_err(|error| Error::Other(Box::new(NotConnected(error))))
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
