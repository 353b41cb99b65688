//! The database as a file: made private, found, kept private.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

#[cfg(unix)]
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};

/// What `SQLite` appends to the database's name for the files beside it.
pub(super) const WAL_SUFFIX: &str = "-wal";
const SHM_SUFFIX: &str = "-shm";

/// Makes an empty file where there is none, and gives the path without symbolic links:
/// that is where `SQLite` puts its other files.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, String> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err("it is not a regular file; choose another data directory".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create(path).map_err(|error| format!("it cannot be created: {error}"))?;
        }
        Err(error) => return Err(unreadable(&error)),
    }
    fs::canonicalize(path).map_err(|error| unreadable(&error))
}

/// Whether there is anything in the file: an empty one is a new database.
pub(super) fn has_content(path: &Path) -> Result<bool, String> {
    Ok(fs::metadata(path).map_err(|error| unreadable(&error))?.len() > 0)
}

/// The first `N` bytes, or `None` when the file is shorter.
pub(super) fn head<const N: usize>(path: &Path) -> Result<Option<[u8; N]>, String> {
    let mut head = [0; N];
    let read = File::open(path).and_then(|mut file| io::Read::read_exact(&mut file, &mut head));
    match read {
        Ok(()) => Ok(Some(head)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(unreadable(&error)),
    }
}

/// The length of the file beside the database with this suffix, `None` if there is none.
pub(super) fn length_beside(path: &Path, suffix: &str) -> Option<u64> {
    fs::metadata(beside(path, suffix)).ok().map(|found| found.len())
}

/// Takes the rights of group and others away. `SQLite` gives the files beside a database
/// its mode; those left by an earlier process may have been made with another.
#[cfg(unix)]
pub(super) fn tighten(path: &Path) -> Result<(), String> {
    for suffix in ["", WAL_SUFFIX, SHM_SUFFIX] {
        let file = beside(path, suffix);
        let Ok(found) = fs::metadata(&file) else { continue };
        let mode = found.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode & 0o700)).map_err(
                |error| {
                    format!(
                        "others may read {} and its mode cannot be changed ({error}); \
                         run `chmod 600` on it as its owner",
                        file.display()
                    )
                },
            )?;
        }
    }
    Ok(())
}

#[cfg(not(unix))]
pub(super) fn tighten(_path: &Path) -> Result<(), String> {
    Ok(())
}

fn unreadable(error: &io::Error) -> String {
    format!("it cannot be read: {error}")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Creates the file, and the directories that are missing, for the owner alone, so that
/// they are still there after a power cut.
fn create(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let missing: Vec<&Path> = directory
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .collect();

    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    builder.mode(0o700);
    builder.create(directory)?;

    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    options.mode(0o600);
    match options.open(path) {
        Ok(_) => {}
        // Another process was faster; what it made is looked at like any other file.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(error),
    }

    #[cfg(unix)]
    for changed in std::iter::once(directory).chain(missing.iter().filter_map(|new| new.parent())) {
        let changed = if changed.as_os_str().is_empty() { Path::new(".") } else { changed };
        File::open(changed)?.sync_all()?;
    }
    #[cfg(not(unix))]
    drop(missing);
    Ok(())
}
