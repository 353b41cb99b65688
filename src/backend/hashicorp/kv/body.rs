//! The bodies of writes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use zeroize::Zeroizing;

use crate::secret::Secret;

use super::answer::{Fields, Found};

/// Fields to store.
pub(super) type Changes<'a> = [(&'a str, &'a Secret)];

/// `{"data":{"key":"value"}}`, with `options` to check the version.
pub(super) fn patch(changes: &Changes<'_>, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    body(Data { kept: None, without: None, changes }, cas)
}

/// `{"data":{"key":null}}`, which removes a field (RFC 7396).
pub(super) fn patch_away(key: &str, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    let data: BTreeMap<&str, Option<&str>> = BTreeMap::from([(key, None)]);
    body(data, cas)
}

/// The whole secret as it was found, with some fields changed or one left out, on the
/// condition that it is still at that version.
pub(super) fn whole(
    found: &Found,
    changes: &Changes<'_>,
    without: Option<&str>,
) -> Zeroizing<Vec<u8>> {
    body(Data { kept: found.fields(), without, changes }, Some(found.version()))
}

fn body(data: impl Serialize, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    #[derive(Serialize)]
    struct Body<T> {
        data: T,
        #[serde(skip_serializing_if = "Option::is_none")]
        options: Option<Options>,
    }
    #[derive(Serialize)]
    struct Options {
        cas: u64,
    }
    struct Length(usize);
    impl Write for Length {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let body = Body { data, options: cas.map(|cas| Options { cas }) };
    // Room for all of it: a buffer that grows leaves copies behind.
    let mut length = Length(0);
    serde_json::to_writer(&mut length, &body).expect("counting cannot fail");
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, &body).expect("a Vec takes every write");
    bytes
}

/// The fields of a body.
struct Data<'a> {
    kept: Option<&'a Fields>,
    without: Option<&'a str>,
    changes: &'a Changes<'a>,
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let is_changed = |key: &str| self.changes.iter().any(|(changed, _)| *changed == key);
        for (key, field) in self.kept.into_iter().flatten() {
            if self.without != Some(key) && !is_changed(key) {
                map.serialize_entry(key, &field.raw())?;
            }
        }
        for (key, value) in self.changes {
            map.serialize_entry(key, value.expose())?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("JSON is UTF-8")
    }

    #[test]
    fn other_fields_stay_as_they_were() {
        let fields = r#"{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"old"}"#;
        let found =
            Found::Secret { version: 3, fields: serde_json::from_str(fields).expect("JSON") };
        let value = Secret::new("new \"quoted\"".to_owned());
        let body = whole(&found, &[("t", &value)], None);
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"new \"quoted\""},"options":{"cas":3}}"#
        );
        assert_eq!(body.capacity(), body.len(), "it did not grow");
        let body = whole(&found, &[], Some("o"));
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"s":"\u0041","t":"old"},"options":{"cas":3}}"#
        );
    }

    #[test]
    fn a_patch_names_only_what_changes() {
        let value = Secret::new("v".to_owned());
        assert_eq!(text(&patch(&[("k", &value)], None)), r#"{"data":{"k":"v"}}"#);
        assert_eq!(text(&patch_away("k", Some(7))), r#"{"data":{"k":null},"options":{"cas":7}}"#);
    }
}
