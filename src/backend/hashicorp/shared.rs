//! Metadata that hosts share: the secret `.metadata/<namespace>` has a field for each key, and its
//! text is JSON. No namespace begins with a dot.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde_json::{Map, Value, json};

use crate::backend::{Revision, SharedMetadata};
use crate::error::VaultError;
use crate::model::{CredentialRecord, CredentialRef, Namespace};
use crate::secret::Secret;

use super::kv::{Change, Found};
use super::message::{Error, Unavailable};
use super::{HashiCorpVault, lock, unavailable, vault_error};

const FOLDER: &str = ".metadata";

/// The fields of a record's JSON. Others, such as those of a later version, are ignored.
const FIELDS: &str = "delivery_mode allowed_consumers env_name validator_id masked_preview created_at \
     updated_at last_validated_at last_used_at stored_by valid";

impl SharedMetadata for HashiCorpVault {
    fn node(&self) -> &str {
        self.namespaces.kv.http.settings.node.as_deref().unwrap_or_default()
    }

    fn read_all(&self) -> Result<Vec<CredentialRecord>, VaultError> {
        let kv = &self.namespaces.kv;
        let names = kv.list(FOLDER).map_err(not_read)?;
        let namespaces: Vec<_> =
            names.into_iter().filter_map(|it| Namespace::new(it).ok()).collect();
        let (next, all) = (AtomicUsize::new(0), Mutex::new(Ok(Vec::new())));
        let read = || {
            while let Some(namespace) = namespaces.get(next.fetch_add(1, Ordering::Relaxed)) {
                let records = self.read_namespace(namespace);
                match (&mut *lock(&all), records) {
                    (Ok(found), Ok(records)) => found.extend(records),
                    (all, records) => {
                        // The first failure ends the reading.
                        *all = mem::replace(all, Ok(Vec::new())).and(records);
                        return;
                    }
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..kv.http.settings.max_in_flight.min(namespaces.len()) {
                // If one cannot be started, the others read more.
                let thread = thread::Builder::new().name("vault-list".into());
                let _ = thread.spawn_scoped(scope, read);
            }
            read();
        });
        let mut all: Vec<CredentialRecord> =
            all.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        all.sort_unstable_by(|one, other| one.at.cmp(&other.at));
        Ok(all)
    }

    fn read_namespace(&self, namespace: &Namespace) -> Result<Vec<CredentialRecord>, VaultError> {
        let found = self.namespaces.read(&name(namespace)).map_err(not_read)?;
        Ok(records(namespace, &found))
    }

    fn write(
        &self,
        at: &CredentialRef,
        record: Option<&CredentialRecord>,
    ) -> Result<(), VaultError> {
        let written = self.namespaces.change(&name(at.namespace()), at.key(), record.map(json_of));
        let refused = |reason: String| {
            let (at, reason) = (at.clone(), format!("its metadata: {reason}"));
            match record {
                Some(_) => VaultError::StoreFailed { at, reason },
                None => VaultError::DeleteFailed { at, reason },
            }
        };
        written.map(drop).map_err(|error| vault_error(error, refused))
    }

    fn revise(
        &self,
        namespace: &Namespace,
        revise: &dyn Fn(&[CredentialRecord]) -> Vec<Revision>,
    ) -> Result<(), VaultError> {
        let revised = self.namespaces.revise(&name(namespace), |found| {
            let revisions = revise(&records(namespace, found));
            let change = |(at, record): Revision| Change {
                key: at.key().to_owned(),
                value: record.as_ref().map(json_of),
            };
            revisions.into_iter().map(change).collect()
        });
        revised.map_err(not_read)
    }
}

fn name(namespace: &Namespace) -> String {
    format!("{FOLDER}/{namespace}")
}

/// A refusal counts as an outage: either way, only the copy is left.
fn not_read(error: Error) -> VaultError {
    vault_error(error, |reason| unavailable(&Unavailable::new(reason)))
}

fn records(namespace: &Namespace, found: &Found) -> Vec<CredentialRecord> {
    let mut records = Vec::new();
    for (key, field) in found.fields.iter().flatten() {
        let text = field.text();
        match text.and_then(|text| parse(namespace, key, text.expose())) {
            Some(record) => records.push(record),
            None => log::warn!(
                "the metadata of {namespace}/{} in Vault cannot be read, and is skipped",
                key.escape_debug()
            ),
        }
    }
    records
}

fn parse(namespace: &Namespace, key: &str, text: &str) -> Option<CredentialRecord> {
    let mut fields: Map<String, Value> = serde_json::from_str(text).ok()?;
    fields.retain(|name, _| FIELDS.split(' ').any(|it| it == name));
    fields.insert("at".to_owned(), json!({ "namespace": namespace, "key": key }));
    serde_json::from_value(fields.into()).ok()
}

fn json_of(record: &CredentialRecord) -> Secret {
    let mut json = json!(record);
    json.as_object_mut().expect("a record is an object").remove("at");
    Secret::new(json.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::StoreRequest;
    use crate::time::Timestamp;

    #[test]
    fn a_record_is_the_same_after_a_round_trip_and_later_fields_are_ignored() {
        let at = CredentialRef::parse("n", "k").expect("valid");
        let request = StoreRequest::new(Secret::new("a-value-of-some-length".to_owned()));
        let mut record = CredentialRecord::new(at.clone(), &request, Timestamp::now());
        record.stored_by = Some("one".to_owned());
        record.valid = Some(false);
        let json = json_of(&record);
        let later = json.expose().replacen('{', r#"{"later":[1],"#, 1);
        assert!(!later.contains("namespace"), "{later}");
        assert_eq!(parse(at.namespace(), "k", &later), Some(record));
        for text in ["", "[]", "{}", &later.replace("executor_only", "x")] {
            assert_eq!(parse(at.namespace(), "k", text), None, "{text}");
        }
    }
}
