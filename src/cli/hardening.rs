//! What keeps the memory of this process, in which values pass, out of files and from
//! other processes of the same user.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit on the size of a core that the process was started with.
#[derive(Clone, Copy)]
pub struct CoreLimit(Rlimit);

/// Has no core written when the process dies.
///
/// # Errors
///
/// What the operating system says.
pub fn forbid_core() -> io::Result<CoreLimit> {
    let before = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: Some(0), ..before })?;
    Ok(CoreLimit(before))
}

impl CoreLimit {
    /// Starts a command, which has the limit that we were started with.
    pub fn lifted<T>(self, start: impl FnOnce() -> T) -> T {
        let Self(before) = self;
        // To where it was, and below: neither can be refused.
        let _ = setrlimit(Resource::Core, before);
        let started = start();
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..before });
        started
    }
}

/// Lets nobody but root look into the process, on Linux: no debugger attaches, and its files
/// in `/proc` are root's. Nor is a core written, also not one that the kernel pipes into a
/// program (core(5)), for which the limit does not count. A program that takes the place of
/// this one is not bound by it (`PR_SET_DUMPABLE` in prctl(2)).
///
/// # Errors
///
/// What the operating system says.
#[cfg_attr(not(target_os = "linux"), expect(clippy::unnecessary_wraps, reason = "as on Linux"))]
pub fn hide() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}
