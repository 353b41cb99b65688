//! Connecting to a Unix socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Connects. If the listener's queue is full, Linux waits for at most the send timeout
/// (`unix_stream_connect` in `af_unix.c`). Other systems refuse at once.
#[cfg(target_os = "linux")]
pub(crate) fn connect(socket: &Path, timeout: Duration) -> io::Result<UnixStream> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

    let address = net::SocketAddrUnix::new(socket)?;
    let fd = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&fd, Timeout::Send, Some(timeout))?;
    match rustix::io::retry_on_intr(|| net::connect(&fd, &address)) {
        Ok(()) => Ok(fd.into()),
        Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn connect(socket: &Path, _timeout: Duration) -> io::Result<UnixStream> {
    UnixStream::connect(socket)
}
