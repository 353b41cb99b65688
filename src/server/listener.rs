//! The listening socket: one instance per path, private from the moment it exists, gone
//! when the server is.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketType};

use super::connection::Stream;
use super::{Endpoint, StartError};
use crate::peer::{Peer, Process};

/// Connections that wait to be accepted, at most; the kernel may allow fewer.
const BACKLOG: i32 = 1024;

/// A listening socket. Dropping it closes it and removes its file.
pub(super) enum Listener {
    Unix(UnixSocket),
    Inherited(InheritedSocket),
    Tcp(TcpListener),
}

impl Listener {
    pub(super) fn bind(endpoint: &Endpoint) -> Result<Self, StartError> {
        match endpoint {
            Endpoint::Unix(path) => UnixSocket::bind(path).map(Self::Unix),
            Endpoint::Inherited(listener) => InheritedSocket::new(listener)
                .map(Self::Inherited)
                .map_err(|source| StartError::Io { endpoint: endpoint.to_string(), source }),
            Endpoint::LoopbackTcp(port) => {
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
                bound
                    .map(Self::Tcp)
                    .map_err(|source| StartError::Io { endpoint: endpoint.to_string(), source })
            }
        }
    }

    /// Takes the next connection, non-blocking, with who made it.
    pub(super) fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Unix(socket) => accept_unix(&socket.listener),
            Self::Inherited(socket) => {
                socket.wait()?;
                accept_unix(&socket.listener)
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
        }
    }

    /// Makes a thread that blocks in [`accept`](Self::accept) return from it, with an
    /// error or a connection.
    pub(super) fn wake_acceptor(&self) {
        let woken = match self {
            Self::Inherited(socket) => socket.end_wait(),
            // On Linux an accept(2) on a socket that is shut down fails at once.
            _ if cfg!(target_os = "linux")
                && rustix::net::shutdown(self, Shutdown::Read).is_ok() =>
            {
                return;
            }
            Self::Unix(socket) => UnixStream::connect(&socket.path).map(drop),
            Self::Tcp(listener) => listener.local_addr().and_then(TcpStream::connect).map(drop),
        };
        if let Err(error) = woken {
            log::warn!("the accept loop could not be woken to stop: {error}");
        }
    }

    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Unix(_) | Self::Inherited(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.listener.as_fd(),
            Self::Inherited(socket) => socket.listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A bound Unix socket and the lock that makes it the only one of its path.
pub(super) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: only that very file is removed.
    file: (u64, u64),
    /// Held until the socket's file is gone. The lock file itself stays: removing it
    /// would let two instances lock two files of one name.
    _lock: File,
}

impl UnixSocket {
    fn bind(path: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::Io { endpoint: path.display().to_string(), source };
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        create_private_directory(directory).map_err(failed)?;
        let lock = lock(path)?;
        clear_stale(path)?;
        secure_directory(directory, path)?;
        let listener = listen(path).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let file = (metadata.dev(), metadata.ino());
        Ok(Self { listener, path: path.to_owned(), file, _lock: lock })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} could not be removed: {error}", self.path.display());
        }
    }
}

/// A listening socket of somebody else's, who goes on with it when the server has ended. So
/// it is neither shut down nor connected to for the accept loop to end: no client is lost.
pub(super) struct InheritedSocket {
    listener: UnixListener,
    /// Readable when nothing more is to be accepted.
    end: PipeReader,
    ending: PipeWriter,
}

impl InheritedSocket {
    fn new(listener: &UnixListener) -> io::Result<Self> {
        let listener = listener.try_clone()?;
        // Somebody else may accept what was waited for.
        listener.set_nonblocking(true)?;
        let (end, ending) = io::pipe()?;
        Ok(Self { listener, end, ending })
    }

    /// Waits for a connection, or for the end.
    fn wait(&self) -> io::Result<()> {
        let mut watched =
            [PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.end, PollFlags::IN)];
        rustix::event::poll(&mut watched, None)?;
        if watched[1].revents().is_empty() { Ok(()) } else { Err(ErrorKind::Interrupted.into()) }
    }

    fn end_wait(&self) -> io::Result<()> {
        (&self.ending).write_all(&[0])
    }
}

fn create_private_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn lock(socket: &Path) -> Result<File, StartError> {
    let path = lock_path(socket);
    let failed = |source| StartError::Io { endpoint: format!("{} (lock)", path.display()), source };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::AlreadyRunning(socket.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Removes a socket file that nobody serves. One that answers belongs to a service that
/// knows nothing of our lock.
fn clear_stale(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Io { endpoint: path.display().to_string(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(StartError::BadPath {
            path: path.to_owned(),
            reason: "there is a file that is no socket; remove it, or choose another --socket"
                .to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // Connected, or its backlog is full, or it is not ours to ask: it lives.
        _ => Err(StartError::AlreadyRunning(path.to_owned())),
    }
}

/// Makes a directory that holds nothing but the vault's own files private (0700). One
/// that is shared with other files is left as it is, and refused where others could
/// replace the socket.
fn secure_directory(directory: &Path, socket: &Path) -> Result<(), StartError> {
    const PRIVATE: u32 = 0o700;
    const STICKY: u32 = 0o1000;
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    const OPEN_TO_OTHERS: u32 = 0o077;
    let failed = |source| StartError::Io { endpoint: directory.display().to_string(), source };
    let metadata = fs::metadata(directory).map_err(failed)?;
    let mode = metadata.mode() & 0o7777;
    if mode & OPEN_TO_OTHERS == 0 {
        return Ok(());
    }
    let lock = lock_path(socket);
    let only_ours = fs::read_dir(directory)
        .map_err(failed)?
        .all(|entry| entry.is_ok_and(|entry| entry.path() == lock || entry.path() == socket));
    let owned = metadata.uid() == rustix::process::geteuid().as_raw();
    if only_ours && owned && mode & STICKY == 0 {
        return fs::set_permissions(directory, fs::Permissions::from_mode(PRIVATE)).map_err(failed);
    }
    if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        return Err(StartError::BadPath {
            path: socket.to_owned(),
            reason: format!(
                "others may write to its directory and could replace the socket; \
                 run chmod go-w {}, or choose another --socket",
                directory.display()
            ),
        });
    }
    log::warn!("{} is open to other users; the socket itself is not (0600)", directory.display());
    Ok(())
}

/// Binds with mode 0600 from the first moment, whatever the umask.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = new_socket()?;
    // On Linux a socket's own mode is the mode that bind(2) gives its file, less the
    // umask. Elsewhere the 0700 directory covers the moment until the chmod below.
    #[cfg(target_os = "linux")]
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Takes the next connection. When there is none after all, that is as good as an
/// interruption.
fn accept_unix(listener: &UnixListener) -> io::Result<(Stream, Peer)> {
    let stream = accept_non_blocking(listener).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::Interrupted.into(),
        _ => error,
    })?;
    let process = Process::across(&stream)?;
    Ok((Stream::Unix(stream), Peer::Process(process)))
}

#[cfg(target_os = "linux")]
fn accept_non_blocking(listener: &UnixListener) -> io::Result<UnixStream> {
    use rustix::net::{SocketFlags, accept_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(UnixStream::from(accept_with(listener, flags)?))
}

#[cfg(not(target_os = "linux"))]
fn accept_non_blocking(listener: &UnixListener) -> io::Result<UnixStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

#[cfg(target_os = "linux")]
fn new_socket() -> io::Result<OwnedFd> {
    use rustix::net::{SocketFlags, socket_with};
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

#[cfg(not(target_os = "linux"))]
fn new_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket)
}
