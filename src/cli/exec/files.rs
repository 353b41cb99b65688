//! `--files`: one file per credential, which is never on a disk.
//!
//! The values are in kernel memory (`memfd_create(2)`) that this process owns. The directory
//! has links to them through /proc. However this process ends, all that can remain is links
//! that lead nowhere.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use intentframe_credentials::spawn::RuntimeEnv;
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};

use crate::cli::failure::{Failure, cannot};

/// The directory with its files, removed when this is dropped.
pub struct Files {
    /// Its absolute path.
    pub directory: PathBuf,
    /// Whether `exec` created the directory.
    is_ours: bool,
    open: Vec<(String, File)>,
}

impl Files {
    /// Creates the directory, or takes over one of this user that is empty or was left by an
    /// `exec` that was killed.
    pub fn new(directory: &Path, credentials: &RuntimeEnv) -> Result<Self, Failure> {
        let made = make_or_take_over(directory)
            .and_then(|is_ours| Ok((fs::canonicalize(directory)?, is_ours)));
        let (directory, is_ours) = made
            .map_err(|error| Failure::usage(format!("--files {}: {error}", directory.display())))?;
        let mut files = Self { directory, is_ours, open: Vec::new() };
        files.replace(credentials)?;
        Ok(files)
    }

    /// Replaces the files by those of `credentials`, each atomically.
    pub fn replace(&mut self, credentials: &RuntimeEnv) -> Result<(), Failure> {
        let what = format!("create the files in {}", self.directory.display());
        self.try_replace(credentials).map_err(cannot(what))
    }

    fn try_replace(&mut self, credentials: &RuntimeEnv) -> io::Result<()> {
        let mut open = Vec::new();
        for (name, value) in credentials.iter() {
            let file = sealed(name, value.expose().as_bytes())?;
            let target = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            open.push((name.to_owned(), file));
            // No variable's name begins with a dot.
            let new = self.directory.join(format!(".{name}"));
            symlink(target, &new)?;
            fs::rename(new, self.directory.join(name))?;
        }
        for (name, _) in &self.open {
            if credentials.get(name).is_none() {
                fs::remove_file(self.directory.join(name))?;
            }
        }
        self.open = open;
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // A link that cannot be removed leads nowhere from now on.
        let _ = remove_links(&self.directory);
        if self.is_ours {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// A file in memory that nobody can change.
fn sealed(name: &str, value: &[u8]) -> io::Result<File> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(value)?;
    fchmod(&file, Mode::RUSR)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// Returns whether this or an earlier `exec` created the directory. Fails if it must not be
/// used.
fn make_or_take_over(directory: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        created => return created.map(|()| true),
    }
    let metadata = fs::symlink_metadata(directory)?;
    let refuse = |why: &str| Err(io::Error::other(why.to_owned()));
    if !metadata.is_dir() {
        return refuse("it already exists and is not a directory");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it already exists and belongs to another user");
    }
    let had_links = remove_links(directory)?;
    if fs::read_dir(directory)?.next().is_some() {
        return refuse("it already exists and is not empty");
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    Ok(had_links)
}

/// Removes the links into this process, or into one that is gone, and returns whether there
/// were any.
fn remove_links(directory: &Path) -> io::Result<bool> {
    let mut removed = false;
    let own = format!("/proc/{}/fd/", std::process::id());
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        let is_stale = target.starts_with("/proc") && !target.exists();
        if is_stale || target.starts_with(&own) {
            fs::remove_file(path)?;
            removed = true;
        }
    }
    Ok(removed)
}
