//! The listening socket: one instance for each path, private from the moment it exists, removed
//! when the server ends.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::{Endpoint, SocketAccess, StartError};
use crate::ownership;

/// How many connections wait to be accepted, at most; the kernel may allow fewer.
const BACKLOG: i32 = 1024;

/// A bound endpoint. Clients may connect, and wait until a server is started on it. Dropping it
/// closes it.
#[derive(Debug)]
pub struct Listener {
    /// Non-blocking.
    socket: Socket,
    pub(super) endpoint: String,
    /// Held until here: the file of a socket that we have bound.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// Takes the endpoint: from now on connections wait to be accepted. A socket that is bound here
    /// gets the `access`.
    ///
    /// # Errors
    ///
    /// [`StartError`], and nothing is left behind.
    pub fn bind(endpoint: &Endpoint, access: SocketAccess) -> Result<Self, StartError> {
        let failed = |source| failed(endpoint, source);
        let (socket, file) = match endpoint {
            Endpoint::Unix(path) => {
                let (listener, file) = SocketFile::bind(path, access)?;
                (Socket::Unix(listener), Some(file))
            }
            Endpoint::Inherited(listener) => {
                (Socket::Unix(listener.try_clone().map_err(failed)?), None)
            }
            Endpoint::LoopbackTcp(port) => {
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, *port));
                (Socket::Tcp(bound.map_err(failed)?), None)
            }
        };
        let endpoint = endpoint.to_string();
        let listener = Self { socket, endpoint, _file: file };
        rustix::io::ioctl_fionbio(&listener, true).map_err(|error| failed(error.into()))?;
        Ok(listener)
    }

    /// The next client that waits, on a non-blocking socket; with its address if it uses TCP.
    pub(super) fn accept(&self) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
        match &self.socket {
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok((stream.into(), None))
            }
            Socket::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok((stream.into(), Some(address)))
            }
        }
    }

    pub(super) fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Unix(_) => None,
            Socket::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Unix(listener) => listener.as_fd(),
            Socket::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn failed(endpoint: impl Display, source: io::Error) -> StartError {
    StartError::Io { endpoint: endpoint.to_string(), source }
}

/// The file of a bound socket, and the lock that makes it the only one of its path.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode of the socket's file: only that very file is removed.
    id: (u64, u64),
    /// Held until the socket's file is gone. The lock file itself stays: removing it would let
    /// two instances lock two files of one name.
    _lock: File,
}

impl SocketFile {
    fn bind(path: &Path, access: SocketAccess) -> Result<(UnixListener, Self), StartError> {
        let failed = |source| failed(path.display(), source);
        let directory = ownership::parent(path);
        DirBuilder::new()
            .recursive(true)
            .mode(access.directory())
            .create(directory)
            .map_err(failed)?;
        secure_directory(directory, path, access)?;
        let lock = lock(path)?;
        remove_stale(path)?;
        let (listener, id) = listen(path, access).map_err(failed)?;
        Ok((listener, Self { path: path.to_owned(), id, _lock: lock }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| ownership::id(&metadata) == self.id);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{} could not be removed: {error}", self.path.display());
        }
    }
}

fn lock_path(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn lock(socket: &Path) -> Result<File, StartError> {
    let path = lock_path(socket);
    let failed = |source| failed(format_args!("{} (lock)", path.display()), source);
    let options = &mut OpenOptions::new();
    let file =
        ownership::open(&path, options.read(true).write(true).create(true)).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::AlreadyRunning(socket.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Removes a socket file that no process serves. One that answers belongs to a service that
/// does not use our lock.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    let failed = |source| failed(path.display(), source);
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(StartError::BadPath {
            path: path.to_owned(),
            reason: "a file that is not a socket is in the way; remove it, or choose another path"
                .to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        // Connected, or its backlog is full, or we may not ask: it is alive.
        _ => Err(StartError::AlreadyRunning(path.to_owned())),
    }
}

/// Checks that other users cannot replace the socket. A directory that holds only the vault's own
/// files is made private first (0700), or, for a shared socket, open to pass through (0711).
fn secure_directory(
    directory: &Path,
    socket: &Path,
    access: SocketAccess,
) -> Result<(), StartError> {
    const STICKY: u32 = 0o1000;
    let failed = |source| failed(directory.display(), source);
    let opened = File::open(directory).map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    let lock = lock_path(socket);
    let only_ours = fs::read_dir(directory)
        .map_err(failed)?
        .all(|entry| entry.is_ok_and(|entry| entry.path() == lock || entry.path() == socket));
    let owned = metadata.uid() == rustix::process::geteuid().as_raw();
    let mode = metadata.mode() & 0o7777;
    let is_wrong = mode & !access.directory() != 0 || access.is_shared();
    if is_wrong && only_ours && owned && mode & STICKY == 0 {
        let private = fs::Permissions::from_mode(access.directory());
        opened.set_permissions(private).map_err(failed)?;
    } else if mode & 0o077 != 0 && !access.is_shared() {
        log::warn!("{} is open to other users; the socket itself is not", directory.display());
    }
    ownership::check_directory(directory)
        .map_err(|reason| StartError::BadPath { path: socket.to_owned(), reason })
}

/// Binds with mode 0600 from the first moment, and then gives the socket's file its group and mode.
/// Returns the file's device and inode, too.
fn listen(path: &Path, access: SocketAccess) -> io::Result<(UnixListener, (u64, u64))> {
    let socket = new_socket()?;
    // On Linux a socket's own mode is the mode that bind(2) gives its file, less the
    // umask. Elsewhere the directory covers the moment until the file has its mode.
    #[cfg(target_os = "linux")]
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    #[cfg(target_os = "linux")]
    fs::metadata("/proc/self/fd").map_err(|_| io::Error::other("/proc must be mounted"))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    let (_handle, file) = handle(path)?;
    let metadata = fs::metadata(&file)?;
    if !metadata.file_type().is_socket() || metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("another process has replaced the socket's file"));
    }
    if access.group.is_some() {
        std::os::unix::fs::chown(&file, None, access.group)?;
    }
    if metadata.mode() & 0o777 != access.mode {
        fs::set_permissions(&file, fs::Permissions::from_mode(access.mode))?;
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), ownership::id(&metadata)))
}

/// A descriptor of the file itself, and a path that leads to it: what takes the file's own path
/// meanwhile is not changed.
#[cfg(target_os = "linux")]
fn handle(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd as _;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(path, flags, Mode::empty())?;
    let file = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    Ok((handle, file))
}

/// There is no such descriptor: the directory, which is checked, is the protection.
#[cfg(not(target_os = "linux"))]
#[allow(clippy::unnecessary_wraps, reason = "as on Linux")]
fn handle(path: &Path) -> io::Result<((), PathBuf)> {
    Ok(((), path.to_owned()))
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
