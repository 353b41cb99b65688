//! [`Peer`]: who is at the other end of a connection, as the kernel vouches for it.

use std::fmt;
#[cfg(unix)]
use std::io;
use std::net::SocketAddr;
#[cfg(unix)]
use std::os::unix::net::UnixStream;

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A process, by the credentials that the kernel recorded when it connected
    /// (`SO_PEERCRED` in unix(7); `LOCAL_PEERCRED` on macOS).
    Process(Process),
    /// A TCP client, of which nothing but the address is known. Development only.
    Tcp(SocketAddr),
}

/// A connected process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id, where the system tells it. It may have been reused since.
    pub pid: Option<i32>,
}

impl Process {
    /// The process at the other end: the one that connected, as it was then, or seen from
    /// there the one that listens (`SO_PEERCRED`, unix(7)).
    ///
    /// # Errors
    ///
    /// What getsockopt(2) says.
    #[cfg(target_os = "linux")]
    pub fn across(stream: &UnixStream) -> io::Result<Self> {
        use nix::sys::socket::{getsockopt, sockopt};
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        // A process of another pid namespace has none here, which reads as 0.
        let pid = Some(credentials.pid()).filter(|&pid| pid != 0);
        Ok(Self { uid: credentials.uid(), gid: credentials.gid(), pid })
    }

    /// The process at the other end (`LOCAL_PEERCRED` and `LOCAL_PEERPID`, unix(4)).
    ///
    /// # Errors
    ///
    /// What getsockopt(2) says.
    #[cfg(target_os = "macos")]
    pub fn across(stream: &UnixStream) -> io::Result<Self> {
        use nix::sys::socket::{getsockopt, sockopt};
        let (uid, gid) = nix::unistd::getpeereid(stream)?;
        let pid = getsockopt(stream, sockopt::LocalPeerPid).ok();
        Ok(Self { uid: uid.as_raw(), gid: gid.as_raw(), pid })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(Process { uid, gid, pid: Some(pid) }) => {
                write!(f, "uid {uid} gid {gid} pid {pid}")
            }
            Self::Process(Process { uid, gid, pid: None }) => write!(f, "uid {uid} gid {gid}"),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}
