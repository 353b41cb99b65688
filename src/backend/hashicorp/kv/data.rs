//! Secrets as they are read, and the bodies of writes.

use std::collections::BTreeMap;

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::backend::hashicorp::message::{Reply, wiped_json};
use crate::secret::Secret;

/// A field as it is stored: any JSON. It is wiped when it is dropped, and has no `Debug`.
#[derive(Deserialize)]
#[serde(from = "Box<RawValue>")]
pub(in super::super) struct Field(Zeroizing<String>);

impl From<Box<RawValue>> for Field {
    fn from(raw: Box<RawValue>) -> Self {
        Self(Zeroizing::new(Box::<str>::from(raw).into()))
    }
}

impl Field {
    /// The text, or `None` if the field is something else, such as a number.
    pub(in super::super) fn text(&self) -> Option<Secret> {
        serde_json::from_str(&self.0).ok().map(Secret::new)
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
            metadata: Value,
        }

        let answer: Option<Answer> = serde_json::from_slice(&reply.body).ok();
        match (reply.status, answer.and_then(|answer| answer.data)) {
            (status @ (200 | 404), Some(Data { data, metadata })) => {
                // A 404 with a version: it was soft-deleted or destroyed. The fields of an
                // existing version are null if they were written so.
                let fields = (status == 200).then(|| data.unwrap_or_default());
                Some(Self { version: metadata["version"].as_u64()?, fields })
            }
            (404, None) if reply.errors.is_empty() => Some(Self { version: 0, fields: None }),
            _ => None,
        }
    }

    pub(in super::super) fn field(&self, key: &str) -> Option<&Field> {
        self.fields.as_ref()?.get(key)
    }

    /// Whether there is a current version without fields.
    pub(super) fn is_empty_secret(&self) -> bool {
        self.fields.as_ref().is_some_and(BTreeMap::is_empty)
    }
}

/// A change of one field.
pub(in super::super) struct Change {
    pub(in super::super) key: String,
    /// The value to store, or `None` to remove the field.
    pub(in super::super) value: Option<Secret>,
}

/// `{"data":{"key":"value"}}`, with `options` to check the version. A null removes a field
/// (RFC 7396).
pub(super) fn patch(changes: &[Change], cas: Option<u64>) -> Zeroizing<Vec<u8>> {
    let options = cas.map(|cas| json!({ "cas": cas }));
    wiped_json(&Body { data: Data { whole: None, changes }, options })
}

/// The whole secret as it was found, with these changes, on the condition that it is still at
/// that version.
pub(super) fn whole(found: &Found, changes: &[Change]) -> Zeroizing<Vec<u8>> {
    let options = Some(json!({ "cas": found.version }));
    wiped_json(&Body { data: Data { whole: Some(found), changes }, options })
}

#[derive(Serialize)]
struct Body<'a> {
    data: Data<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Value>,
}

/// The fields of a body.
struct Data<'a> {
    /// The fields that stay, unless the server merges.
    whole: Option<&'a Found>,
    changes: &'a [Change],
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let is_changed = |key: &str| self.changes.iter().any(|change| change.key == key);
        let fields = self.whole.and_then(|found| found.fields.as_ref());
        for (key, field) in fields.into_iter().flatten().filter(|(key, _)| !is_changed(key)) {
            let raw: &RawValue = serde_json::from_str(&field.0).expect("a field is JSON");
            map.serialize_entry(key, raw)?;
        }
        for Change { key, value } in self.changes {
            if self.whole.is_none() || value.is_some() {
                map.serialize_entry(key, &value.as_ref().map(Secret::expose))?;
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

    fn change(key: &str, value: Option<&str>) -> Change {
        Change { key: key.to_owned(), value: value.map(|value| Secret::new(value.to_owned())) }
    }

    #[test]
    fn other_fields_stay_as_they_were() {
        let fields = r#"{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"old"}"#;
        let found = Found { version: 3, fields: Some(serde_json::from_str(fields).expect("JSON")) };
        let body = whole(&found, &[change("t", Some("new \"quoted\""))]);
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"o":{"a":[null,"x"]},"s":"\u0041","t":"new \"quoted\""},"options":{"cas":3}}"#
        );
        assert_eq!(body.capacity(), body.len(), "it did not grow");
        let body = whole(&found, &[change("o", None)]);
        assert_eq!(
            text(&body),
            r#"{"data":{"n":1.50e2,"s":"\u0041","t":"old"},"options":{"cas":3}}"#
        );
    }

    #[test]
    fn a_patch_names_only_what_changes() {
        assert_eq!(text(&patch(&[change("k", Some("v"))], None)), r#"{"data":{"k":"v"}}"#);
        assert_eq!(
            text(&patch(&[change("k", None)], Some(7))),
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
