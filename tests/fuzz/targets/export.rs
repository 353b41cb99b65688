//! The reader of export files.

use intentframe_credentials::export_file::{Entry, ExportError, Header, Reader, Writer};
use intentframe_credentials::seal::{KeyHeader, KeySource};
use serde_json::json;

use super::Run;

/// Takes any bytes as a file, and then their lines as the plaintexts of one that has the right key.
/// Nothing panics, and what can be read can be written and read again.
pub fn export() -> Run {
    let directory = tempfile::tempdir().expect("a directory");
    let source = KeySource::create_file(&directory.path().join("key")).expect("creates");
    let (header, key) = KeyHeader::new(&source).expect("random numbers");
    let header = json!({ "format": "intentframe-export", "version": 1, "key": header }).to_string();
    Box::new(move |data| {
        // The key file stays as long as the target.
        let (_, source) = (&directory, &source);
        let _ = read(data, source);
        let mut file = format!("{header}\n");
        for (line, number) in data.split(|byte| *byte == b'\n').zip(1_u64..) {
            let context = ["export", &header, &number.to_string()];
            let sealed = key.seal(line, &context).expect("random numbers");
            file.extend(sealed.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]));
        }
        let Ok(entries) = read(file.as_bytes(), source) else { return };
        let mut written = Vec::new();
        let mut writer = Writer::new(&mut written, source).expect("the key is the right one");
        let shown = |entry: &Entry| (entry.record.clone(), entry.value.expose().to_owned());
        let before: Vec<_> = entries.iter().map(shown).collect();
        for entry in entries {
            writer.put(entry).expect("it was read");
        }
        writer.finish().expect("writes");
        let again = read(&written, source).expect("it is whole");
        assert!(again.iter().map(shown).eq(before));
    })
}

fn read(mut file: &[u8], source: &KeySource) -> Result<Vec<Entry>, ExportError> {
    let header = Header::read(&mut file)?;
    Reader::new(file, header, source)?.collect()
}
