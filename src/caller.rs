//! [`Caller`]: the facts that the kernel tells about a connected process.
//!
//! The user ID, the groups and the *system* unit are boundaries: a process cannot change them
//! without privileges. The executable is not: processes of one user may trace each other
//! (ptrace(2)), and an interpreter runs any script.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::ownership;
use crate::peer::Process;

/// A connected process, with what `/proc` says about it. Facts that cannot be had for certain
/// are left out, so that a rule that needs them does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its user, group and number when it connected.
    pub process: Process,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// The program it runs: only if the file at that path still is that program. Known of
    /// processes of the service's own user, and of all if the service is root (proc(5)).
    pub exe: Option<PathBuf>,
    /// The systemd system unit that its control group belongs to, such as `edi.service`. Never a
    /// unit of a user's own manager, since the user chooses its name.
    pub unit: Option<String>,
    /// Whether it is the process that started the service.
    pub is_supervisor: bool,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process on a Unix socket.
    Process(Caller),
    /// A TCP client; only its address is known. For development.
    Tcp(SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(caller) => caller.fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl From<Process> for Caller {
    fn from(process: Process) -> Self {
        Self { process, groups: Vec::new(), exe: None, unit: None, is_supervisor: false }
    }
}

/// `(uid_t) -1`, which is never a user or a group (setreuid(2)).
const NOBODY: u32 = u32::MAX;

impl Caller {
    /// A systemd system unit for which its manager asks. Nothing else is known of it, so that a
    /// consumer that gives more conditions than the unit does not match.
    #[must_use]
    pub fn of_unit(unit: String) -> Self {
        let process = Process { uid: NOBODY, gid: NOBODY, pid: None };
        Self { unit: Some(unit), ..Self::from(process) }
    }

    /// The process that listens at `socket`, if there is one.
    #[must_use]
    pub fn serving(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        Process::across(&stream).ok().map(Self::from)
    }

    /// Its user ID. `None` for a unit for which its manager asks.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        Some(self.process.uid).filter(|&uid| uid != NOBODY)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { uid, gid, pid } = self.process;
        write!(f, "uid {uid} gid {gid}")?;
        if let Some(pid) = pid {
            write!(f, " pid {pid}")?;
        }
        if let Some(exe) = &self.exe {
            write!(f, " exe {}", exe.display())?;
        }
        if let Some(unit) = &self.unit {
            write!(f, " unit {unit}")?;
        }
        Ok(())
    }
}

impl Caller {
    /// The process at the other end of `stream`. Its number can be given to another process
    /// once it has ended; the descriptor that the kernel keeps for the connection
    /// (`SO_PEERPIDFD`, Linux 6.5) tells that it has not. Older systems report user and
    /// group only.
    ///
    /// # Errors
    ///
    /// The error of getsockopt(2).
    pub fn across(stream: &impl AsFd, supervisor: Option<&Supervisor>) -> io::Result<Self> {
        let caller = Self::from(Process::across(stream)?);
        Ok(match pidfd::across(stream) {
            Ok(pidfd) => caller.with_facts(&pidfd, supervisor),
            Err(_) => caller,
        })
    }

    /// The process `pid`, to explain what a policy says of it.
    ///
    /// # Errors
    ///
    /// The error of `pidfd_open(2)` or of reading `/proc`: there is no such process. Always
    /// [`io::ErrorKind::Unsupported`] elsewhere than on Linux.
    pub fn of_pid(pid: i32, supervisor: Option<&Supervisor>) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd::open(number)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        // Real, effective, saved and file system ID (proc_pid_status(5)).
        let effective = |name| ids(&status, name).and_then(|ids| ids.get(1).copied());
        let (Some(uid), Some(gid)) = (effective("Uid:"), effective("Gid:")) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let process = Process { uid, gid, pid: Some(pid) };
        Ok(Self::from(process).with_facts(&pidfd, supervisor))
    }

    /// Adds the facts of `/proc`, if they are those of the process behind `pidfd`.
    fn with_facts(self, pidfd: &OwnedFd, supervisor: Option<&Supervisor>) -> Self {
        let Some(pid) = self.process.pid else { return self };
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let facts = Self {
            groups: fs::read_to_string(proc.join("status"))
                .ok()
                .and_then(|status| ids(&status, "Groups:"))
                .unwrap_or_default(),
            exe: exe(&proc).ok(),
            unit: fs::read_to_string(proc.join("cgroup")).ok().and_then(|it| system_unit(&it)),
            is_supervisor: supervisor.is_some_and(|it| it.pid == pid && is_alive(&it.pidfd)),
            ..self
        };
        // As long as it lives, its number is its own: what was read above is about it.
        if is_alive(pidfd) { facts } else { Self::from(facts.process) }
    }
}

/// The process that started this one.
#[derive(Debug)]
pub struct Supervisor {
    pid: i32,
    pidfd: OwnedFd,
}

impl Supervisor {
    /// The present parent of the process `pid`.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = i32::try_from(*ids(&status, "PPid:")?.first()?).ok()?;
        let pidfd = pidfd::open(Pid::from_raw(parent)?).ok()?;
        Some(Self { pid: parent, pidfd })
    }

    /// This process's parent, now. `None` if it has ended, or is in another PID namespace.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let parent = rustix::process::getppid()?;
        let pidfd = pidfd::open(parent).ok()?;
        // If the parent had ended before it was opened, there would be another parent now.
        let is_same = rustix::process::getppid() == Some(parent);
        is_same.then(|| Self { pid: parent.as_raw_pid(), pidfd })
    }
}

/// Descriptors of processes.
#[cfg(target_os = "linux")]
mod pidfd {
    use super::{AsFd, OwnedFd, Pid, io};

    pub(super) fn open(pid: Pid) -> io::Result<OwnedFd> {
        use rustix::process::{PidfdFlags, pidfd_open};
        Ok(pidfd_open(pid, PidfdFlags::empty())?)
    }

    /// The one that the kernel keeps for a connection.
    pub(super) fn across(stream: &impl AsFd) -> io::Result<OwnedFd> {
        use nix::sys::socket::{getsockopt, sockopt};
        Ok(getsockopt(stream, sockopt::PeerPidfd)?)
    }
}

/// Elsewhere the kernel tells user, group and process ID only.
#[cfg(not(target_os = "linux"))]
mod pidfd {
    use super::{AsFd, OwnedFd, Pid, io};

    pub(super) fn open(_: Pid) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn across(_: &impl AsFd) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A descriptor of a process is readable once the process has ended (`pidfd_open(2)`).
fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut watched, Some(&Timespec::default())) == Ok(0)
}

/// The numbers in a line of `/proc/PID/status`.
fn ids(status: &str, name: &str) -> Option<Vec<u32>> {
    let ids = status.lines().find_map(|line| line.strip_prefix(name))?;
    ids.split_whitespace().map(|id| id.parse().ok()).collect()
}

/// The program's path, if the file there is the very file that runs: a process in a mount
/// namespace of its own can have another file at the same path.
fn exe(proc: &Path) -> io::Result<PathBuf> {
    let link = proc.join("exe");
    let path = fs::read_link(&link)?;
    let (running, there) = (fs::metadata(&link)?, fs::metadata(&path)?);
    if ownership::id(&running) == ownership::id(&there) {
        Ok(path)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// The system unit in `/proc/PID/cgroup` (cgroups(7)): the first part of the path that is
/// not a slice. Users' units are all below `user.slice`.
fn system_unit(cgroup: &str) -> Option<String> {
    let path = |hierarchy: &str| {
        cgroup.lines().find_map(|line| {
            // NUMBER:CONTROLLERS:PATH. A user chooses names in a path, also with colons.
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            (controllers == hierarchy).then(|| path.strip_prefix('/'))?
        })
    };
    // With the older hierarchies, systemd's own is a named one.
    let mut parts = path("name=systemd").or_else(|| path(""))?.split('/');
    let kind = |part: &str| Some(part.rsplit_once('.')?.1.to_owned());
    let is_slice = |part: &str| part != "user.slice" && kind(part).as_deref() == Some("slice");
    let unit = parts.find(|part| !is_slice(part))?;
    matches!(kind(unit)?.as_str(), "service" | "scope").then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::system_unit;

    #[test]
    fn only_system_units_count() {
        for (cgroup, unit) in [
            ("0::/system.slice/edi.service\n", Some("edi.service")),
            ("0::/system.slice/system-a.slice/a@1.service/deep/er\n", Some("a@1.service")),
            ("9:name=systemd:/system.slice/edi.service\n8:pids:/x\n0::/\n", Some("edi.service")),
            ("0::/machine.slice/docker-1.scope\n", Some("docker-1.scope")),
            ("0::/init.scope\n", Some("init.scope")),
            ("0::/user.slice/user-1.slice/user@1.service/app.slice/edi.service\n", None),
            ("0::/user.slice/user-1.slice/session-2.scope\n", None),
            ("0::/../edi.service\n", None),
            ("0::/system.slice/x/edi.service\n", None),
            ("0::/\n", None),
            ("4:memory:/edi.service\n", None),
            ("0::/user.slice/a:name=systemd:/system.slice/edi.service\n", None),
            ("", None),
        ] {
            assert_eq!(system_unit(cgroup).as_deref(), unit, "{cgroup}");
        }
    }
}
