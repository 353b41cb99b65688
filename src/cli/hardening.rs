//! Keeps the memory of this process, which holds values, out of core files and away from
//! other processes of the same user.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit on the size of a core file that this process was started with.
#[derive(Clone, Copy)]
pub struct CoreLimit(Rlimit);

/// Sets the limit on core files to 0, and returns the one before.
pub fn forbid_core() -> CoreLimit {
    let before = getrlimit(Resource::Core);
    // This cannot fail: the hard limit stays, and the soft one is within it.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..before });
    CoreLimit(before)
}

impl CoreLimit {
    /// Calls `start` with the original limit, so that the process it starts inherits that.
    pub fn lifted<T>(self, start: impl FnOnce() -> T) -> T {
        let _ = setrlimit(Resource::Core, self.0);
        let started = start();
        forbid_core();
        started
    }
}

/// On Linux, lets nobody but root inspect the process: no debugger can attach, and its files
/// in /proc belong to root. It also prevents the cores that the kernel pipes to a program
/// (core(5)), which ignore the limit. A program that replaces this one with execve(2) starts
/// without the restriction (`PR_SET_DUMPABLE` in prctl(2)).
#[cfg_attr(not(target_os = "linux"), expect(clippy::unnecessary_wraps, reason = "as on Linux"))]
pub fn hide() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}
