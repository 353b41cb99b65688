//! A clock that the test sets, for one process (libfaketime).

use std::fs;
use std::path::Path;

use super::support::Setup;

/// Gives the process the date of `file`, see [`set`]. Only the date changes; the time since boot goes
/// on, as with a real clock that is set. `None` if there is no libfaketime.
pub fn set_by(file: &Path, setup: Setup) -> Option<Setup> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let library = folders
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())?;
    let settings = [
        ("LD_PRELOAD", library.to_str().expect("UTF-8")),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("UTF-8")),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    Some(settings.iter().fold(setup, |setup, (name, value)| setup.env(name, value)))
}

/// Sets the clock: `-60` is a minute behind, `+2d` two days ahead. Replaces the file at once, so that
/// no half of it is read.
pub fn set(file: &Path, offset: &str) {
    let written = file.with_extension("written");
    fs::write(&written, offset).expect("writes");
    fs::rename(written, file).expect("replaces");
}
