//! A connection that the HTTP library keeps for its next request, and that others may use
//! until then.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustls::ClientConnection;

use super::stream::{Stream, is_quiet};

/// A TCP connection or a Unix socket, in the clear or within TLS. A TLS handshake is made
/// by the first write.
///
/// It belongs to one user at a time, who may have it wait, or not.
pub(crate) struct Link {
    socket: Socket,
    tls: Option<Mutex<ClientConnection>>,
    /// Whether reading and writing return at once, come what may.
    is_hasty: AtomicBool,
    /// A request was begun on it whose answer has not been read to its end.
    is_spoilt: AtomicBool,
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Link {
    fn new(socket: Socket, tls: Option<ClientConnection>) -> Self {
        Self {
            socket,
            tls: tls.map(Mutex::new),
            is_hasty: AtomicBool::new(false),
            is_spoilt: AtomicBool::new(false),
        }
    }

    pub(super) fn tcp(stream: TcpStream, tls: Option<ClientConnection>) -> Self {
        Self::new(Socket::Tcp(stream), tls)
    }

    pub(super) fn unix(stream: UnixStream) -> Self {
        Self::new(Socket::Unix(stream), None)
    }

    /// Whether reading and writing return at once from now on: with
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) where they would have to wait.
    pub(crate) fn set_hasty(&self, is_hasty: bool) {
        self.is_hasty.store(is_hasty, Ordering::Relaxed);
    }

    /// Has the HTTP library, when it wants to use it again, not do so.
    pub(crate) fn set_spoilt(&self, is_spoilt: bool) {
        self.is_spoilt.store(is_spoilt, Ordering::Release);
    }

    pub(crate) fn is_spoilt(&self) -> bool {
        self.is_spoilt.load(Ordering::Acquire)
    }

    fn is_hasty(&self) -> bool {
        self.is_hasty.load(Ordering::Relaxed)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What TLS reads from and writes to.
struct Bare<'a>(&'a Link);

impl Read for Bare<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let flags = if self.0.is_hasty() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        Ok(recv(&self.0.socket, buffer, flags)?.0)
    }
}

impl Write for Bare<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = if self.0.is_hasty() { SendFlags::DONTWAIT } else { SendFlags::empty() };
        Ok(send(&self.0.socket, bytes, flags | SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lock(tls: &Mutex<ClientConnection>) -> MutexGuard<'_, ClientConnection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Read for &Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => Bare(self).read(buffer),
            Some(tls) => rustls::Stream::new(&mut *lock(tls), &mut Bare(self)).read(buffer),
        }
    }
}

impl Write for &Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => Bare(self).write(bytes),
            Some(tls) => rustls::Stream::new(&mut *lock(tls), &mut Bare(self)).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &self.tls {
            None => Ok(()),
            Some(tls) => rustls::Stream::new(&mut *lock(tls), &mut Bare(self)).flush(),
        }
    }
}

/// Shows nothing of TLS, which has the keys.
impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

/// The link, as the HTTP library has it.
pub(crate) struct KeptLink(Arc<Link>);

impl Read for KeptLink {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Write for KeptLink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

impl Stream for KeptLink {
    const RESET_MEANS_UNREAD: bool = false;

    fn is_quiet(&self) -> bool {
        !self.0.is_spoilt() && is_quiet(&self.0.socket)
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.0.socket {
            Socket::Tcp(stream) => {
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)
            }
            Socket::Unix(stream) => stream.set_timeout(timeout),
        }
    }

    fn is_tls(&self) -> bool {
        self.0.tls.is_some()
    }
}

/// Where a connector leaves word of the last link that it made.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastLink(Arc<Mutex<Weak<Link>>>);

impl LastLink {
    fn link(&self) -> MutexGuard<'_, Weak<Link>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link, as long as the HTTP library keeps it.
    pub(crate) fn get(&self) -> Option<Arc<Link>> {
        self.link().upgrade()
    }

    /// Hands the link to the HTTP library, and remembers it.
    pub(super) fn keep(&self, link: Link) -> KeptLink {
        let link = Arc::new(link);
        *self.link() = Arc::downgrade(&link);
        KeptLink(link)
    }
}

/// Hands the link to the HTTP library alone.
impl From<Link> for KeptLink {
    fn from(link: Link) -> Self {
        Self(Arc::new(link))
    }
}
