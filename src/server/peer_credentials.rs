//! Who connected, by the kernel's word.

use std::io;
use std::os::unix::net::UnixStream;

use crate::peer::Process;

/// The process that made the connection, as it was then (`SO_PEERCRED`, unix(7)).
#[cfg(target_os = "linux")]
pub(super) fn of(stream: &UnixStream) -> io::Result<Process> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Process {
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
        pid: Some(credentials.pid.as_raw_nonzero().get()),
    })
}

/// The process that made the connection (`LOCAL_PEERCRED` and `LOCAL_PEERPID`, unix(4)).
#[cfg(target_os = "macos")]
pub(super) fn of(stream: &UnixStream) -> io::Result<Process> {
    use nix::sys::socket::{getsockopt, sockopt};
    let (uid, gid) = nix::unistd::getpeereid(stream)?;
    let pid = getsockopt(stream, sockopt::LocalPeerPid).ok();
    Ok(Process { uid: uid.as_raw(), gid: gid.as_raw(), pid })
}
