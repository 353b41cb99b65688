//! The database as a file: only its owner may read it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

use super::MetadataError;
use super::schema::Reason;

/// The suffix of the write-ahead log, which `SQLite` keeps beside the database.
pub(super) const WAL: &str = "-wal";

/// Creates an empty file (mode 0600) if there is none, and missing directories (mode 0700). Checks
/// that it and what `SQLite` puts beside it are safe from other users, links included. Returns the
/// path with no link in it.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, Reason> {
    let path = std::path::absolute(path)?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err("it is a directory; choose another data directory".into());
    };
    let failed = |error| {
        format!("it cannot be opened for writing: {error}; fix that or use another directory")
    };
    create_directory(directory).map_err(failed)?;
    #[cfg(unix)]
    crate::ownership::check_directory(directory)?;
    let path = fs::canonicalize(directory)?.join(name);
    #[cfg(unix)]
    for suffix in [WAL, "-shm", "-journal"] {
        let file = beside(&path, suffix);
        if let Ok(metadata) = file.symlink_metadata() {
            crate::ownership::check_file(&file, &metadata)?;
        }
    }
    open_or_create(&path).map_err(failed)?;
    Ok(path)
}

/// Locks the directory of the database (flock(2)) until the returned file is closed: two vaults
/// would undo each other's changes. The lock is on the directory, since closing a second
/// descriptor of the database itself would release the locks that `SQLite` has on it.
pub(super) fn lock(database: &Path) -> Result<Option<File>, Reason> {
    if cfg!(not(unix)) {
        return Ok(None);
    }
    let directory = database.parent().unwrap_or(database);
    let file = File::open(directory)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err("another vault uses it; stop that one, or choose another data directory".into())
        }
        Err(TryLockError::Error(error)) => {
            log::warn!(
                "{} cannot be locked ({error}): start no other vault with it",
                directory.display()
            );
            Ok(None)
        }
        Ok(()) => Ok(Some(file)),
    }
}

/// The open database: its path, and the file that the path led to when it was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    id: Option<(u64, u64)>,
}

impl Opened {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { id: id(&path), path }
    }

    /// Checks that the path still leads to that file. If not, what is committed would end up in a
    /// file that the next start does not find, and a new connection would read another database
    /// with this one's log. `SQLite` does not check this for a write-ahead log
    /// (<https://www.sqlite.org/howtocorrupt.html>, section 4.2).
    pub(super) fn check(&self) -> Result<(), MetadataError> {
        if id(&self.path) == self.id {
            return Ok(());
        }
        Err(MetadataError::Failed(format!(
            "{} was moved, removed or replaced; put it back, or restart the service to use what \
             is there now",
            self.path.display()
        )))
    }
}

/// Device and inode. `None` on Windows, which lets nobody move an open file.
fn id(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.symlink_metadata().ok();
    #[cfg(unix)]
    return metadata.as_ref().map(crate::ownership::id);
    #[cfg(not(unix))]
    metadata.and(None)
}

/// The path of a file beside the database.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes the permissions of group and others. `SQLite` gives the log and its index (`-shm`)
/// the mode of the database, but an earlier process may have left them with another mode.
#[cfg(unix)]
pub(super) fn make_private(database: &Path) -> Result<(), Reason> {
    for file in ["", WAL, "-shm"].map(|suffix| beside(database, suffix)) {
        let Ok(found) = fs::metadata(&file) else { continue };
        let mode = found.permissions().mode();
        if mode & 0o077 != 0 {
            let private = fs::Permissions::from_mode(mode & 0o700);
            fs::set_permissions(&file, private).map_err(|error| {
                format!(
                    "others may read {} and its mode cannot be changed ({error}); run \
                     `chmod 600` on it as its owner",
                    file.display()
                )
            })?;
        }
    }
    Ok(())
}

fn open_or_create(path: &Path) -> io::Result<File> {
    let options = &mut OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    return crate::ownership::open(path, options);
    #[cfg(not(unix))]
    options.open(path)
}

/// Creates the directory and its missing parents. Syncs each parent, so that a new directory
/// survives a power cut. `SQLite` syncs the directory of the database itself.
fn create_directory(directory: &Path) -> io::Result<()> {
    let Some(parent) = directory.parent().filter(|_| !directory.is_dir()) else { return Ok(()) };
    create_directory(parent)?;
    let mut builder = DirBuilder::new();
    // With `recursive`, it is no error if another process has created it meanwhile.
    builder.recursive(true);
    #[cfg(unix)]
    builder.mode(0o700);
    builder.create(directory)?;
    #[cfg(unix)]
    File::open(parent)?.sync_all()?;
    Ok(())
}
