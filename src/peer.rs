//! [`Peer`]: who is at the other end of a connection, as the kernel vouches for it.

use std::fmt;
use std::net::SocketAddr;

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
