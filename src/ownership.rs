//! Ownership: whether a file or a directory is safe from other users.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::random;

const WRITABLE_BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Checks that only this user and root can replace what is in `directory`: it and its
/// ancestors belong to one of them, and nobody else may write to them. A sticky ancestor such
/// as `/tmp` passes, since others cannot rename or remove our files there (chmod(2)).
///
/// # Errors
///
/// The problem, and what to do.
pub fn check_directory(directory: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{} cannot be checked: {error}", directory.display());
    let literal = std::path::absolute(directory).map_err(failed)?;
    let canonical = directory.canonicalize().map_err(failed)?;
    // The path as it is written may lead over links, whose owners can point them elsewhere.
    for part in literal.ancestors().chain(canonical.ancestors()) {
        let metadata = part.symlink_metadata().map_err(failed)?;
        check_owner(part, &metadata)?;
        let mode = metadata.mode();
        if metadata.is_dir() && mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
            let part = part.display();
            return Err(format!(
                "other users may write to {part}; run chmod go-w {part}, or choose another path"
            ));
        }
    }
    Ok(())
}

/// The directory that a path is in.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|it| *it != Path::new("")).unwrap_or(Path::new("."))
}

/// Device and inode: two names with the same ones are one file.
#[must_use]
pub fn id(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Opens a file that other users must not control, and checks it: a regular file with a single
/// name that belongs to this user or root. A link is not followed, and a FIFO does not block.
/// A file that is created gets mode 0600.
///
/// # Errors
///
/// The error of open(2), or one that says what is wrong with the file.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    options.truncate(false).mode(0o600).custom_flags(flags.bits().cast_signed());
    let file = options.open(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => {
            io::Error::other("it is a symbolic link; remove it, or choose another path")
        }
        _ => error,
    })?;
    check_file(path, &file.metadata()?).map_err(io::Error::other)?;
    Ok(file)
}

/// Creates a file with this mode as a whole: `write` gets a temporary file beside it, and its path;
/// the file is then synced and renamed. An existing file is not replaced. After an error, that of
/// `write` included, there is no file.
///
/// # Errors
///
/// The system's error; [`io::ErrorKind::AlreadyExists`] for an existing file.
pub fn create_whole<T, E>(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&Path, &File) -> Result<T, E>,
) -> io::Result<Result<T, E>> {
    let mut temporary = path.as_os_str().to_owned();
    let [a, b, c, d] = random::bytes().map_err(io::Error::other)?;
    temporary.push(format!(".{a:02x}{b:02x}{c:02x}{d:02x}.new"));
    let temporary = Path::new(&temporary);
    let file = File::options().write(true).create_new(true).mode(mode).open(temporary)?;
    let written = write(temporary, &file);
    let named = written.as_ref().map_or(Ok(()), |_| {
        file.sync_all()?;
        match renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE) {
            // Some file systems, such as NFS, cannot promise that.
            Err(Errno::INVAL) if path.symlink_metadata().is_err() => fs::rename(temporary, path)?,
            renamed => renamed?,
        }
        File::open(parent(path))?.sync_all()
    });
    if written.is_err() || named.is_err() {
        let _ = fs::remove_file(temporary);
    }
    named.map(|()| written)
}

/// The checks of [`open`] for a file that another library opens.
///
/// # Errors
///
/// The problem, and what to do.
pub fn check_file(path: &Path, metadata: &Metadata) -> Result<(), String> {
    check_owner(path, metadata)?;
    if !metadata.is_file() || metadata.nlink() > 1 {
        return Err(format!(
            "{} is not a regular file with a single name; remove it, or choose another path",
            path.display()
        ));
    }
    Ok(())
}

/// Reads a text file that steers this process, and its metadata. It and the directories of its path
/// belong to this user or root, and nobody else may write to them. A link to such a file is followed.
///
/// # Errors
///
/// The problem, and what to do.
pub fn read(path: &Path) -> Result<(String, Metadata), String> {
    let said = |error: io::Error| error.to_string();
    check_directory(parent(path))?;
    let target = path.canonicalize().map_err(said)?;
    check_directory(parent(&target))?;
    let mut file = open(&target, OpenOptions::new().read(true)).map_err(said)?;
    let metadata = file.metadata().map_err(said)?;
    if is_writable_by_others(&metadata) {
        return Err(format!("other users may write to it; run chmod go-w {}", target.display()));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(said)?;
    Ok((text, metadata))
}

/// Whether others than its owner may write to a file.
#[must_use]
pub fn is_writable_by_others(metadata: &Metadata) -> bool {
    metadata.mode() & WRITABLE_BY_OTHERS != 0
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), String> {
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner == own || owner == 0 {
        return Ok(());
    }
    Err(format!(
        "{} belongs to user {owner}, and not to this user ({own}) or root; choose another path",
        path.display()
    ))
}
