//! Export files: credentials with values and metadata, encrypted. `docs/export-format.md` has the
//! format.
//!
//! A file is written and read line by line, so that its size does not matter. Each line opens only
//! in its own place of its own file, and the last one has the count: a line that was changed,
//! moved, dropped or carried from another file does not go unnoticed.

use std::io::{self, BufRead, Read as _, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::model::CredentialRecord;
use crate::seal::{Key, KeyHeader, KeySource, SealError, hex, unhex};
use crate::secret::{Secret, wiped_json};

const FORMAT: &str = "intentframe-export";
const VERSION: u64 = 1;

/// The longest line. The values of the service are much shorter, whatever their characters.
const MOST: u64 = 16 << 20;

/// A credential: everything that is known about it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The metadata.
    pub record: CredentialRecord,
    /// The value.
    #[serde(serialize_with = "expose", deserialize_with = "secret")]
    pub value: Secret,
}

fn expose<S: Serializer>(value: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(value.expose())
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

/// The content of a line after the first.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Message {
    Credential(Box<Entry>),
    End { credentials: u64 },
}

/// Why a file cannot be read or written. No variant has a value in it.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It is something else.
    #[error("it is not an export file")]
    Foreign,
    /// Its format is not known.
    #[error("it was written by a newer version; use that one")]
    Newer,
    /// A line is not the one that was written there.
    #[error("line {0} was changed, moved, or taken from another file; use a good copy of the file")]
    Damaged(u64),
    /// It has no end.
    #[error("its end is missing: it was cut off, or the export was interrupted")]
    Truncated,
    /// The key cannot be used.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The system's error.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The first line of a file.
pub struct Header {
    text: String,
    key: KeyHeader,
}

impl Header {
    /// Reads the first line.
    ///
    /// # Errors
    ///
    /// [`ExportError`]; [`ExportError::Truncated`] for an empty file.
    pub fn read(input: &mut impl BufRead) -> Result<Self, ExportError> {
        let text = line(input, 1)?;
        let mut header: Value = serde_json::from_str(&text).map_err(|_| ExportError::Foreign)?;
        match (header["format"].as_str(), header["version"].as_u64()) {
            (Some(FORMAT), Some(VERSION)) => {}
            (Some(FORMAT), _) => return Err(ExportError::Newer),
            _ => return Err(ExportError::Foreign),
        }
        let key = header.get_mut("key").map(Value::take).unwrap_or_default();
        let key = serde_json::from_value(key).map_err(|_| ExportError::Damaged(1))?;
        Ok(Self { text, key })
    }

    /// Whether a passphrase opens the file; otherwise it is a key file.
    #[must_use]
    pub fn needs_passphrase(&self) -> bool {
        self.key.needs_passphrase()
    }
}

/// A line without its line feed.
fn line(input: &mut impl BufRead, number: u64) -> Result<String, ExportError> {
    let mut line = Vec::new();
    input.take(MOST).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => String::from_utf8(line).map_err(|_| ExportError::Damaged(number)),
        _ if line.len() as u64 + 1 == MOST => Err(ExportError::Damaged(number)),
        _ => Err(ExportError::Truncated),
    }
}

/// The lines of one file.
struct Lines {
    key: Key,
    header: String,
    credentials: u64,
}

impl Lines {
    fn open(&self, line: &str) -> Option<Message> {
        let number = (self.credentials + 1).to_string();
        let message = self.key.open(&unhex(line)?, &["export", &self.header, &number]).ok()?;
        serde_json::from_slice(&message).ok()
    }

    fn write(&self, output: &mut impl Write, message: &Message) -> Result<(), ExportError> {
        let number = (self.credentials + 1).to_string();
        let mut line =
            hex(&self.key.seal(&wiped_json(message), &["export", &self.header, &number])?);
        if line.len() as u64 >= MOST {
            return Err(SealError::Unusable("a value is too long for the file".to_owned()).into());
        }
        line.push('\n');
        Ok(output.write_all(line.as_bytes())?)
    }
}

/// Writes a file.
pub struct Writer<W> {
    output: W,
    lines: Lines,
}

impl<W: Write> Writer<W> {
    /// Writes the first line, with a new data key that `source` opens.
    ///
    /// # Errors
    ///
    /// [`ExportError::Seal`], [`ExportError::Io`].
    pub fn new(mut output: W, source: &KeySource) -> Result<Self, ExportError> {
        let (header, key) = KeyHeader::new(source)?;
        let header = json!({ "format": FORMAT, "version": VERSION, "key": header }).to_string();
        output.write_all(format!("{header}\n").as_bytes())?;
        Ok(Self { output, lines: Lines { key, header, credentials: 0 } })
    }

    /// Writes a credential, with a single call of `output`.
    ///
    /// # Errors
    ///
    /// [`ExportError::Seal`], [`ExportError::Io`].
    pub fn put(&mut self, entry: Entry) -> Result<(), ExportError> {
        self.lines.write(&mut self.output, &Message::Credential(Box::new(entry)))?;
        self.lines.credentials += 1;
        Ok(())
    }

    /// Writes the last line. Returns the output and the number of credentials.
    ///
    /// # Errors
    ///
    /// [`ExportError::Seal`], [`ExportError::Io`].
    pub fn finish(mut self) -> Result<(W, u64), ExportError> {
        let credentials = self.lines.credentials;
        self.lines.write(&mut self.output, &Message::End { credentials })?;
        Ok((self.output, credentials))
    }
}

/// Reads the credentials of a file. The last of them is followed by `None` only if the file is
/// whole.
pub struct Reader<R> {
    input: R,
    lines: Lines,
    has_ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads what follows the header.
    ///
    /// # Errors
    ///
    /// [`ExportError::Seal`] for a wrong or unusable key.
    pub fn new(input: R, header: Header, source: &KeySource) -> Result<Self, ExportError> {
        let lines =
            Lines { key: header.key.data_key(source)?, header: header.text, credentials: 0 };
        Ok(Self { input, lines, has_ended: false })
    }

    fn read(&mut self) -> Result<Option<Entry>, ExportError> {
        let number = self.lines.credentials + 2;
        let line = line(&mut self.input, number)?;
        let damaged = || ExportError::Damaged(number);
        match self.lines.open(&line).ok_or_else(damaged)? {
            Message::Credential(entry) => {
                self.lines.credentials += 1;
                Ok(Some(*entry))
            }
            Message::End { credentials } if credentials == self.lines.credentials => {
                if !self.input.fill_buf()?.is_empty() {
                    return Err(ExportError::Damaged(number + 1));
                }
                self.has_ended = true;
                Ok(None)
            }
            Message::End { .. } => Err(damaged()),
        }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Entry, ExportError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended { None } else { self.read().transpose() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CredentialRef, StoreRequest, time::Timestamp};

    fn source(passphrase: &str) -> KeySource {
        KeySource::File(passphrase.into())
    }

    fn entry(key: &str, value: &str) -> Entry {
        let at = CredentialRef::parse("n", key).expect("valid");
        let value = Secret::new(value.to_owned());
        let request = StoreRequest::new(value.duplicate());
        Entry { record: CredentialRecord::new(at, &request, Timestamp::now()), value }
    }

    /// A key file, and an export with the values `a`, `b`, `c`.
    fn export(directory: &std::path::Path, name: &str) -> (KeySource, Vec<u8>) {
        let path = directory.join(name);
        let source = KeySource::create_file(&path).expect("creates");
        let mut writer = Writer::new(Vec::new(), &source).expect("starts");
        for value in ["a", "b", "c"] {
            writer.put(entry(value, value)).expect("writes");
        }
        (source, writer.finish().expect("ends").0)
    }

    fn read(file: &[u8], source: &KeySource) -> Result<Vec<Entry>, ExportError> {
        let mut input = file;
        let header = Header::read(&mut input)?;
        Reader::new(input, header, source)?.collect()
    }

    #[test]
    fn nothing_can_be_changed_unnoticed() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let (source, file) = export(directory.path(), "key");
        let entries = read(&file, &source).expect("whole");
        assert!(entries.iter().map(|it| it.value.expose()).eq(["a", "b", "c"]));

        for (at, length) in (0..file.len()).zip(1..) {
            read(&file[..at], &source).expect_err("cut");
            let mut changed = file.clone();
            changed[at] ^= 1 << (at % 8);
            let error = read(&changed, &source).expect_err("a bit").to_string();
            assert!(!error.contains("\"value\""), "{error}");
            if length < file.len() && file[at] != file[length] {
                changed.clone_from(&file);
                changed.swap(at, length);
                read(&changed, &source).expect_err("swapped");
            }
        }
        let lines: Vec<&[u8]> = file.split_inclusive(|byte| *byte == b'\n').collect();
        for at in 0..lines.len() {
            let mut dropped = lines.clone();
            dropped.remove(at);
            read(&dropped.concat(), &source).expect_err("dropped");
            let mut twice = lines.clone();
            twice.insert(at, lines[at]);
            read(&twice.concat(), &source).expect_err("twice");
            for other in 0..at {
                let mut swapped = lines.clone();
                swapped.swap(at, other);
                read(&swapped.concat(), &source).expect_err("swapped");
            }
        }
    }

    #[test]
    fn a_line_belongs_to_its_file_and_its_key() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let (source, file) = export(directory.path(), "key");
        let mut writer = Writer::new(Vec::new(), &source).expect("starts");
        writer.put(entry("a", "other")).expect("writes");
        let (other, _) = writer.finish().expect("ends");
        let lines = |file: &[u8]| -> Vec<Vec<u8>> {
            file.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
        };
        let (mut mixed, other) = (lines(&file), lines(&other));
        mixed[1].clone_from(&other[1]);
        let error = read(&mixed.concat(), &source).expect_err("of another file");
        assert!(matches!(error, ExportError::Damaged(2)), "{error}");

        let (wrong, _) = export(directory.path(), "other-key");
        let error = read(&file, &wrong).expect_err("another key");
        assert!(matches!(error, ExportError::Seal(SealError::WrongKey(_))), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        for (text, says) in [
            ("", "end is missing"),
            ("x", "end is missing"),
            ("x\n", "not an export"),
            ("{\"format\":\"other\",\"version\":1}\n", "not an export"),
            ("{\"format\":\"intentframe-export\",\"version\":2,\"new\":1}\n", "newer"),
            ("{\"format\":\"intentframe-export\",\"version\":1}\n", "line 1"),
        ] {
            let error = read(text.as_bytes(), &source("/nowhere")).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
