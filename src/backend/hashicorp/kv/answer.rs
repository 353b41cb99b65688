//! The answers of the KV engine.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::value::RawValue;
use zeroize::Zeroize;

use crate::backend::hashicorp::reply::Reply;
use crate::secret::Secret;

/// A field as it is stored: any JSON. It is wiped when it is dropped, and has no `Debug`.
pub(in super::super) struct Field(Option<Box<RawValue>>);

/// The fields of a secret, by key.
pub(in super::super) type Fields = BTreeMap<String, Field>;

/// The result of a read.
pub(in super::super) enum Found {
    /// There is no current version. A check-and-set must name this version, which is 0 if
    /// there has never been one.
    Nothing {
        version: u64,
    },
    Secret {
        version: u64,
        fields: Fields,
    },
}

impl Field {
    pub(super) fn raw(&self) -> Option<&RawValue> {
        self.0.as_deref()
    }

    /// The text, or `None` if the field is something else, such as a number.
    pub(in super::super) fn text(&self) -> Option<Secret> {
        serde_json::from_str(self.raw().map_or("null", RawValue::get)).ok().map(Secret::new)
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

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

impl Found {
    /// What a 200 or 404 says; `None` if it is not the answer of a KV engine.
    pub(super) fn in_reply(reply: &Reply) -> Option<Self> {
        #[derive(Deserialize)]
        struct Data {
            data: Option<Fields>,
            metadata: Version,
        }

        let answer: Option<Answer<Data>> = serde_json::from_slice(&reply.body).ok();
        match (reply.status, answer.and_then(|answer| answer.data)) {
            // The fields are null if the version was written so.
            (200, Some(Data { data, metadata: Version { version } })) => {
                Some(Self::Secret { version, fields: data.unwrap_or_default() })
            }
            // The version was soft-deleted or destroyed.
            (404, Some(Data { metadata: Version { version }, .. })) => {
                Some(Self::Nothing { version })
            }
            (404, None) if reply.says_nothing() => Some(Self::Nothing { version: 0 }),
            _ => None,
        }
    }

    pub(super) fn version(&self) -> u64 {
        match self {
            Self::Nothing { version } | Self::Secret { version, .. } => *version,
        }
    }

    pub(in super::super) fn fields(&self) -> Option<&Fields> {
        match self {
            Self::Nothing { .. } => None,
            Self::Secret { fields, .. } => Some(fields),
        }
    }

    /// Whether the current version has no fields.
    pub(super) fn is_empty_secret(&self) -> bool {
        self.fields().is_some_and(BTreeMap::is_empty)
    }
}

/// Whether another writer was first: the status is 400, not 412.
pub(super) fn is_conflict(reply: &Reply) -> bool {
    reply.status == 400 && reply.says("did not match the current version")
}

/// Whether writes need check-and-set.
pub(super) fn wants_cas(reply: &Reply) -> bool {
    reply.status == 400 && reply.says("check-and-set parameter required")
}

/// The version that a write created.
pub(super) fn written_version(reply: &Reply) -> Option<u64> {
    let answer: Answer<Version> = serde_json::from_slice(&reply.body).ok()?;
    answer.data.map(|data| data.version)
}

/// The version that a 404 to `PATCH` names: the deleted one, or 0 if there has never been
/// one. `None` if the 404 means something else.
pub(super) fn version_of_nothing(reply: &Reply) -> Option<u64> {
    written_version(reply).or_else(|| reply.says_nothing().then_some(0))
}

/// The versions up to this one that a secret's metadata lists.
pub(super) fn versions_up_to(reply: &Reply, version: u64) -> Option<Vec<u64>> {
    #[derive(Deserialize)]
    struct Metadata {
        versions: BTreeMap<u64, Box<RawValue>>,
    }

    let answer: Answer<Metadata> = serde_json::from_slice(&reply.body).ok()?;
    let versions = answer.data.filter(|_| reply.is_success())?.versions;
    Some(versions.into_keys().filter(|kept| *kept <= version).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_a_value() {
        let fields: Fields = serde_json::from_str(r#"{"n":1,"t":"\u00e9","e":""}"#).expect("JSON");
        let value = |key: &str| fields[key].text().map(|text| text.expose().to_owned());
        assert_eq!(value("t").as_deref(), Some("é"));
        assert_eq!(value("e").as_deref(), Some(""));
        assert_eq!(value("n"), None);
    }
}
