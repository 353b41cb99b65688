//! What keeps the memory of this process, in which values pass, out of files and from
//! other processes of the same user.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Has no core written when the process dies, and on Linux lets nobody but root look into
/// it: no debugger attaches, and its files in `/proc` are root's.
///
/// A core that the kernel pipes into a program (core(5)) is not subject to the limit, but
/// to the second.
///
/// # Errors
///
/// What the operating system says.
pub fn harden() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    }
    Ok(())
}
