//! `--files`: one file per credential, which no disk ever holds.
//!
//! The values are in memory of the kernel (`memfd_create(2)`) that goes with this process,
//! and in the directory are links to them through /proc. So whatever ends this process,
//! nothing is left but links that lead nowhere.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use intentframe_credentials::spawn::RuntimeEnv;
use rustix::fs::{MemfdFlags, Mode, SealFlags, fchmod, fcntl_add_seals, memfd_create};

use crate::cli::failure::Failure;

/// The directory, for as long as this lives.
pub struct Files {
    directory: PathBuf,
    /// Whether it is ours to remove.
    made: bool,
    held: Vec<(String, OwnedFd)>,
}

impl Files {
    /// Makes the directory; or takes one of ours that is empty, or has what an exec that
    /// was killed has left.
    pub fn new(directory: &Path) -> Result<Self, Failure> {
        let cannot =
            |error: io::Error| Failure::usage(format!("--files {}: {error}", directory.display()));
        let made = match DirBuilder::new().mode(0o700).create(directory) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                take_over(directory).map_err(cannot)?
            }
            Err(error) => return Err(cannot(error)),
        };
        let directory = fs::canonicalize(directory).map_err(cannot)?;
        Ok(Self { directory, made, held: Vec::new() })
    }

    /// Where the files are: an absolute path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts these credentials in the place of those before, each at once.
    pub fn replace(&mut self, credentials: &RuntimeEnv) -> Result<(), Failure> {
        let cannot = |error| {
            let directory = self.directory.display();
            Failure::other(format!("the files in {directory} cannot be made: {error}"))
        };
        let mut held = Vec::new();
        let made = credentials.iter().try_for_each(|(name, value)| {
            let file = sealed(name, value.expose().as_bytes())?;
            let link = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
            held.push((name.to_owned(), file));
            // No variable's name begins with a dot.
            let new = self.directory.join(format!(".{name}"));
            symlink(link, &new)?;
            fs::rename(new, self.directory.join(name))
        });
        made.map_err(cannot)?;
        for (name, _) in &self.held {
            if credentials.get(name).is_none() {
                fs::remove_file(self.directory.join(name)).map_err(cannot)?;
            }
        }
        self.held = held;
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What cannot be removed leads nowhere from now on.
        let _ = remove_links(&self.directory);
        if self.made {
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// A file in memory that nobody can change any more.
fn sealed(name: &str, value: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = value;
    while !rest.is_empty() {
        let written = rustix::io::write(&file, rest)?;
        rest = &rest[written..];
    }
    fchmod(&file, Mode::RUSR)?;
    fcntl_add_seals(
        &file,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(file)
}

/// Whether it was made by an exec that has ended; an error for what is not to be taken.
fn take_over(directory: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(directory)?;
    let refuse = |why: &str| Err(io::Error::other(why.to_owned()));
    if !metadata.is_dir() {
        return refuse("it is there already, and is no directory");
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return refuse("it is there already, and is another user's");
    }
    let left_over = remove_links(directory)?;
    if fs::read_dir(directory)?.next().is_some() {
        return refuse("it is there already, and is not empty");
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    Ok(left_over)
}

/// Removes the links that lead into this process, or into one that is gone; whether there
/// were any.
fn remove_links(directory: &Path) -> io::Result<bool> {
    let mut removed = false;
    let own = format!("/proc/{}/fd/", std::process::id());
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        let is_ours = target.starts_with(&own);
        let is_left = target.starts_with("/proc") && !target.exists();
        if is_ours || is_left {
            fs::remove_file(path)?;
            removed = true;
        }
    }
    Ok(removed)
}
