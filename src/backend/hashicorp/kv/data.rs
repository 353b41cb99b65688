//! Secrets as they are read, and the bodies of writes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::de::Deserializer;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::{Zeroize, Zeroizing};

use crate::backend::hashicorp::message::Reply;
use crate::secret::Secret;

/// A field as it is stored: any JSON. It is wiped when it is dropped, and has no `Debug`.
pub(in super::super) struct Field(Option<Box<RawValue>>);

impl Field {
    /// The text, or `None` if the field is something else, such as a number.
    pub(in super::super) fn text(&self) -> Option<Secret> {
        serde_json::from_str(self.0.as_ref()?.get()).ok().map(Secret::new)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(|raw| Self(Some(raw)))
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if let Some(raw) = self.0.take() {
            String::from(Box::<str>::from(raw)).zeroize();
        }
    }
}

/// The fields of a secret, by key.
type Fields = BTreeMap<String, Field>;

/// The result of a read.
pub(in super::super) struct Found {
    /// The version for a check-and-set; 0 if there has never been one.
    pub(super) version: u64,
    /// The fields of the current version, if there is one.
    pub(in super::super) fields: Option<Fields>,
}

impl Found {
    /// Parses an answer. Returns `None` if it is a refusal, or not the answer of a KV engine.
    pub(super) fn in_reply(reply: &Reply) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer {
            data: Option<Data>,
        }
        #[derive(Deserialize)]
        struct Data {
            data: Option<Fields>,
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        struct Metadata {
            version: u64,
        }

        let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
        match (reply.status, answer.and_then(|answer| answer.data)) {
            // The fields are null if the version was written so.
            (200, Some(Data { data, metadata: Metadata { version } })) => {
                Some(Self { version, fields: Some(data.unwrap_or_default()) })
            }
            // The version was soft-deleted or destroyed.
            (404, Some(Data { metadata: Metadata { version }, .. })) => {
                Some(Self { version, fields: None })
            }
            (404, None) if reply.says_nothing() => Some(Self { version: 0, fields: None }),
            _ => None,
        }
    }

    /// Whether there is a current version without fields.
    pub(super) fn is_empty_secret(&self) -> bool {
        self.fields.as_ref().is_some_and(BTreeMap::is_empty)
    }
}

/// Fields to store, or to remove if they have no value.
pub(in super::super) type Changes<'a> = [(&'a str, Option<&'a Secret>)];

/// `{"data":{"key":"value"}}`, with `options` to check the version. A null removes a field
/// (RFC 7396).
pub(super) fn patch(changes: &Changes<'_>, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    body(&Data { whole: None, changes }, cas)
}

/// The whole secret as it was found, with these changes, on the condition that it is still at
/// that version.
pub(super) fn whole(found: &Found, changes: &Changes<'_>) -> Zeroizing<Vec<u8>> {
    body(&Data { whole: Some(found), changes }, Some(found.version))
}

fn body(data: &Data<'_>, cas: Option<u64>) -> Zeroizing<Vec<u8>> {
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

    let options = cas.map(|cas| format!(r#","options":{{"cas":{cas}}}"#)).unwrap_or_default();
    let write = |out: &mut dyn Write| {
        out.write_all(br#"{"data":"#)?;
        serde_json::to_writer(&mut *out, data)?;
        write!(out, "{options}}}")
    };
    // Room for all of it: a buffer that grows leaves copies behind.
    let mut length = Length(0);
    write(&mut length).expect("counting cannot fail");
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    write(&mut *bytes).expect("a Vec takes every write");
    bytes
}

/// The fields of a body.
struct Data<'a> {
    /// The fields that stay, unless the server merges.
    whole: Option<&'a Found>,
    changes: &'a Changes<'a>,
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let is_changed = |key: &str| self.changes.iter().any(|(changed, _)| *changed == key);
        for (key, field) in self.whole.and_then(|found| found.fields.as_ref()).into_iter().flatten()
        {
            if !is_changed(key) {
                map.serialize_entry(key, &field.0)?;
            }
        }
        for (key, value) in self.changes {
            if self.whole.is_none() || value.is_some() {
                map.serialize_entry(key, &value.map(Secret::expose))?;
            }
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
        let found = Found { version: 3, fields: Some(serde_json::from_str(fields).expect("JSON")) };
        let value = Secret::new("new \"quoted\"".to_owned());
        let body = whole(&found, &[("t", Some(&value))]);
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"new \"quoted\""},"options":{"cas":3}}"#
        );
        assert_eq!(body.capacity(), body.len(), "it did not grow");
        let body = whole(&found, &[("o", None)]);
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"s":"\u0041","t":"old"},"options":{"cas":3}}"#
        );
    }

    #[test]
    fn a_patch_names_only_what_changes() {
        let value = Secret::new("v".to_owned());
        assert_eq!(text(&patch(&[("k", Some(&value))], None)), r#"{"data":{"k":"v"}}"#);
        assert_eq!(
            text(&patch(&[("k", None)], Some(7))),
            r#"{"data":{"k":null},"options":{"cas":7}}"#
        );
    }

    #[test]
    fn only_text_is_a_value() {
        let fields: Fields = serde_json::from_str(r#"{"n":1,"t":"\u00e9","e":""}"#).expect("JSON");
        let value = |key: &str| fields[key].text().map(|text| text.expose().to_owned());
        assert_eq!(value("t").as_deref(), Some("é"));
        assert_eq!(value("e").as_deref(), Some(""));
        assert_eq!(value("n"), None);
    }
}
