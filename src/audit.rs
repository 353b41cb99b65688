//! The audit log: a file with one JSON line for each decision about a value.
//!
//! Each line has its own SHA-256 (computed without that field) and the SHA-256 of the previous
//! line. If a line is changed, removed or added, the chain breaks there, and [`verify`] finds the
//! place. A process that may write to the file can compute all later hashes again; to notice that,
//! keep the latest hash elsewhere.
//!
//! A line is handed to the kernel before the answer goes out. It survives the end of the service
//! at any moment; whether it survives the end of the machine depends on the file system.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ownership;
use crate::sync::lock;
use crate::time::Timestamp;

/// One line. It never has a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<'a> {
    /// When it was decided.
    pub ts: Timestamp,
    /// `read`, `store`, `delete`, or `list` if that is refused.
    pub op: Cow<'a, str>,
    /// `allowed`, `refused`, `missing` (there is no such credential) or `failed`.
    pub outcome: Cow<'a, str>,
    /// The credential's namespace; unset if the request names none.
    pub namespace: Option<Cow<'a, str>>,
    /// The credential's key.
    pub key: Option<Cow<'a, str>>,
    /// The consumer whose rule allowed it, or all that the caller is if it is refused.
    pub consumer: Option<Cow<'a, str>>,
    /// The caller's user ID.
    pub uid: Option<u32>,
    /// The caller's process ID.
    pub pid: Option<i32>,
    /// The caller's program.
    pub exe: Option<Cow<'a, str>>,
    /// The caller's system unit.
    pub unit: Option<Cow<'a, str>>,
    /// The number of the rule that allowed it, from 1.
    pub rule: Option<usize>,
    /// The hash of the line before.
    pub prev: Cow<'a, str>,
}

/// The `prev` of the first line ever.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The most that a line can take, names of the greatest length included.
const MAX_LINE_BYTES: u64 = 256 * 1024;

/// An audit log that is written to.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Up to the end of the last whole line.
    length: u64,
    /// Part of a line may follow, since a write failed.
    is_torn: bool,
    last_hash: String,
}

impl AuditLog {
    /// Opens the file (mode 0600), or creates it. What is in it is continued. The start of a line
    /// at its end, which a crash can leave, is removed: its answer was never sent.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, is not safe from other users, is written by another service, or
    /// is not an audit log.
    pub fn open(path: &Path) -> io::Result<Self> {
        let state = State::open(path, None)?;
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// Writes the entry of one decision; `prev` is filled in.
    ///
    /// # Errors
    ///
    /// The line is not written. Then the caller must not get what it asked for.
    pub fn record(&self, entry: Entry<'_>) -> io::Result<()> {
        lock(&self.state).append(entry)
    }

    /// Opens the file at the path again, after it was renamed to rotate it. The first line of the
    /// new file continues the chain of the old one.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); the old file is written on.
    pub fn reopen(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        let there = self.path.symlink_metadata().ok();
        let ours = ownership::id(&state.file.metadata()?);
        if there.is_none_or(|there| ownership::id(&there) != ours) {
            *state = State::open(&self.path, Some(&state.last_hash))?;
        }
        Ok(())
    }
}

impl State {
    fn open(path: &Path, previous: Option<&str>) -> io::Result<Self> {
        ownership::check_directory(ownership::parent(path)).map_err(io::Error::other)?;
        let options = &mut OpenOptions::new();
        let mut file = ownership::open(path, options.read(true).append(true).create(true))?;
        if ownership::is_writable_by_others(&file.metadata()?) {
            return Err(io::Error::other("other users may write to it; run chmod go-w on it"));
        }
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another service writes to it"),
            TryLockError::Error(error) => error,
        })?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(MAX_LINE_BYTES)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = end.split_off(whole);
        let foreign = || io::Error::other("it is not an audit log; choose another path");
        let last_hash = match end.trim_ascii_end().rsplit(|byte| *byte == b'\n').next() {
            None | Some([]) => previous.unwrap_or(NO_HASH).to_owned(),
            Some(line) => {
                let split = std::str::from_utf8(line).ok().and_then(split);
                split.ok_or_else(foreign)?.1.to_owned()
            }
        };
        let length = size - u64::try_from(torn.len()).expect("a length in memory");
        if !torn.is_empty() {
            if !torn.iter().zip(LINE_START).all(|(is, should)| is == should) {
                return Err(foreign());
            }
            log::warn!("{}: a line that was not written in full is removed", path.display());
            file.set_len(length)?;
        }
        Ok(Self { file, length, is_torn: false, last_hash })
    }

    fn append(&mut self, entry: Entry<'_>) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.length)?;
            self.is_torn = false;
        }
        let entry = Entry { prev: Cow::Borrowed(&self.last_hash), ..entry };
        let mut line = serde_json::to_string(&entry)?;
        let hash = hash(&line);
        line.pop();
        let _ = writeln!(line, "{HASH_FIELD}{hash}\"}}");
        self.is_torn = true;
        self.file.write_all(line.as_bytes())?;
        self.is_torn = false;
        self.length += u64::try_from(line.len()).expect("a length in memory");
        self.last_hash = hash;
        Ok(())
    }
}

const LINE_START: &[u8] = b"{\"ts\":\"";
const HASH_FIELD: &str = ",\"hash\":\"";

/// A line without its hash, and the hash.
fn split(line: &str) -> Option<(String, &str)> {
    let (entry, hash) = line.strip_suffix("\"}")?.rsplit_once(HASH_FIELD)?;
    (hash.len() == NO_HASH.len()).then(|| (format!("{entry}}}"), hash))
}

fn hash(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

/// An audit log whose chain holds.
#[derive(Debug)]
pub struct Verified {
    /// The number of lines.
    pub lines: u64,
    /// The hash that the first line continues: zeros, or the last one of an older file.
    pub first: String,
    /// The hash of the last line.
    pub last: String,
}

/// The first line that breaks the chain.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not what the service wrote, or not where it wrote it.
    #[error("line {line}: {reason}")]
    At {
        /// The line, from 1.
        line: u64,
        /// The problem.
        reason: &'static str,
    },
}

/// Reads one line: the entry and its hash. `None` if it is not a line of an audit log, or not
/// as it was written.
#[must_use]
pub fn parse(line: &str) -> Option<(Entry<'static>, &str)> {
    let (text, stated) = split(line)?;
    if hash(&text) != stated {
        return None;
    }
    Some((serde_json::from_str(&text).ok()?, stated))
}

/// Checks every line of an audit log.
///
/// # Errors
///
/// [`Broken`], with the first line that is wrong.
pub fn verify(log: impl BufRead) -> Result<Verified, Broken> {
    let mut verified = Verified { lines: 0, first: NO_HASH.into(), last: NO_HASH.into() };
    for line in log.lines() {
        let (text, number) = (line?, verified.lines + 1);
        let broken = |reason| Broken::At { line: number, reason };
        let (entry, hash) =
            parse(&text).ok_or_else(|| broken("it was changed, or is not of an audit log"))?;
        if number == 1 {
            verified.first = entry.prev.into_owned();
        } else if entry.prev != verified.last {
            return Err(broken("it does not follow the line before: lines were removed or added"));
        }
        hash.clone_into(&mut verified.last);
        verified.lines = number;
    }
    Ok(verified)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str) -> Entry<'_> {
        Entry {
            ts: Timestamp::now(),
            op: "read".into(),
            outcome: "allowed".into(),
            namespace: Some("openai".into()),
            key: Some(key.into()),
            consumer: None,
            uid: Some(1000),
            pid: Some(1),
            exe: None,
            unit: None,
            rule: None,
            prev: "".into(),
        }
    }

    #[test]
    fn every_change_breaks_the_chain_where_it_was_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        for part in [["a\"\n", "b"], ["c", "d"]] {
            let log = AuditLog::open(&path).expect("an audit log");
            for key in part {
                log.record(entry(key)).expect("a line");
            }
            AuditLog::open(&path).expect_err("one service at a time");
        }
        let text = std::fs::read_to_string(&path).expect("lines");
        let verified = verify(text.as_bytes()).expect("whole");
        assert_eq!((verified.lines, verified.first.as_str()), (4, NO_HASH));

        let lines: Vec<&str> = text.lines().collect();
        let broken_at = |lines: &[&str]| match verify(lines.join("\n").as_bytes()) {
            Err(Broken::At { line, .. }) => Some(line),
            _ => None,
        };
        assert_eq!(broken_at(&[lines[0], lines[2], lines[3]]), Some(2), "one removed");
        assert_eq!(broken_at(&[lines[0], lines[0], lines[1]]), Some(2), "one added");
        assert_eq!(broken_at(&[lines[1], lines[0]]), Some(2), "two swapped");
        let changed = lines[2].replace("allowed", "refused");
        assert_eq!(broken_at(&[lines[0], lines[1], &changed]), Some(3), "one changed");
        assert_eq!(broken_at(&["", lines[0]]), Some(1), "an empty one");
        assert_eq!(broken_at(&lines[1..]), None, "an older file came before");
    }

    #[test]
    fn a_torn_line_is_removed_and_another_file_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        AuditLog::open(&path).expect("new").record(entry("a")).expect("a line");
        let whole = std::fs::read_to_string(&path).expect("a line");
        std::fs::write(&path, format!("{whole}{{\"ts\":")).expect("a torn line");
        AuditLog::open(&path).expect("it is one").record(entry("b")).expect("a line");
        let text = std::fs::read_to_string(&path).expect("lines");
        assert_eq!(verify(text.as_bytes()).expect("whole").lines, 2);

        let mode = std::os::unix::fs::PermissionsExt::from_mode;
        std::fs::set_permissions(&path, mode(0o622)).expect("sets the mode");
        AuditLog::open(&path).expect_err("others may write to it");
        std::fs::set_permissions(&path, mode(0o600)).expect("sets the mode");

        for other in ["notes\n", "notes", "{\"ts\":1}\n{\"ts\":"] {
            std::fs::write(&path, other).expect("another file");
            AuditLog::open(&path).expect_err("it is not one");
            assert_eq!(std::fs::read_to_string(&path).expect("unchanged"), other);
        }
    }

    #[test]
    fn a_rotated_file_continues_the_chain() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.jsonl");
        let old = directory.path().join("audit.jsonl.1");
        let log = AuditLog::open(&path).expect("new");
        log.record(entry("a")).expect("a line");
        log.reopen().expect("nothing to do");
        std::fs::rename(&path, &old).expect("rotated");
        log.record(entry("b")).expect("a line in the old file");
        log.reopen().expect("a new file");
        log.record(entry("c")).expect("a line in the new file");
        let read = |path| verify(std::fs::read(path).expect("lines").as_slice()).expect("whole");
        let (old, new) = (read(&old), read(&path));
        assert_eq!((old.lines, new.lines), (2, 1));
        assert_eq!(new.first, old.last);
    }
}
