//! [`Process`]: the process at the other end of a connection, as the kernel reports it.

#[cfg(target_os = "linux")]
use std::sync::LazyLock;

/// A connected process, with the credentials that the kernel recorded when it connected
/// (`SO_PEERCRED` in unix(7); `LOCAL_PEERCRED` on macOS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Effective user ID.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
    /// Process ID, if the system reports it. Another process may have it by now.
    pub pid: Option<i32>,
}

impl Process {
    /// Returns the process at the other end, as it was when the connection was made: the client,
    /// or the listener if the client asks (`SO_PEERCRED`, unix(7)).
    ///
    /// # Errors
    ///
    /// The error of getsockopt(2).
    #[cfg(target_os = "linux")]
    pub fn across(stream: &impl std::os::fd::AsFd) -> std::io::Result<Self> {
        use nix::sys::socket::{getsockopt, sockopt};
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        // The kernel reports 0 for a process in another PID namespace.
        let pid = Some(credentials.pid()).filter(|&pid| pid != 0);
        Ok(Self { uid: credentials.uid(), gid: credentials.gid(), pid })
    }

    /// Returns the process at the other end (`LOCAL_PEERCRED` and `LOCAL_PEERPID`, unix(4)).
    ///
    /// # Errors
    ///
    /// The error of getpeereid(3).
    #[cfg(target_os = "macos")]
    pub fn across(stream: &impl std::os::fd::AsFd) -> std::io::Result<Self> {
        use nix::sys::socket::{getsockopt, sockopt};
        let (uid, gid) = nix::unistd::getpeereid(stream)?;
        let pid = getsockopt(stream, sockopt::LocalPeerPid).ok();
        Ok(Self { uid: uid.as_raw(), gid: gid.as_raw(), pid })
    }
}

/// Whether `uid` may stand for any user. The kernel reports every user that our user namespace
/// does not map as the overflow user (`user_namespaces(7)`); unmapped ourselves, so are we.
#[cfg(target_os = "linux")]
#[must_use]
pub fn is_unmapped(uid: u32) -> bool {
    // Read once, since every connection asks.
    static OVERFLOW: LazyLock<u32> = LazyLock::new(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap_or_default();
        text.trim().parse().unwrap_or(65534)
    });
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    if uid != *OVERFLOW {
        return false;
    }
    let is_mapped = read("/proc/self/uid_map").lines().any(|line| {
        // The first ID in this namespace, the first one outside, and their number.
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        let (Some(Some(first)), Some(_), Some(Some(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        uid.checked_sub(first).is_some_and(|offset| offset < count)
    });
    !(is_mapped && uid == rustix::process::geteuid().as_raw())
}

/// Never: there are no user namespaces.
#[cfg(not(target_os = "linux"))]
#[must_use]
pub fn is_unmapped(_: u32) -> bool {
    false
}
