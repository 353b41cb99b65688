//! A KV v1 mount: what a client meets that was pointed at the wrong kind of mount.

use std::collections::BTreeMap;

use serde_json::json;

use super::exchange::{Answer, Operation, Outcome, Refusal};
use super::values::Object;

#[derive(Default)]
pub struct Unversioned {
    secrets: BTreeMap<String, Object>,
}

impl Unversioned {
    pub fn exists(&self, path: &str) -> bool {
        self.secrets.contains_key(path)
    }

    pub fn handle(&mut self, operation: Operation, path: &str, data: &Object) -> Outcome {
        match operation {
            Operation::Read => Ok(self.secrets.get(path).map(|fields| Answer::data(json!(fields)))),
            Operation::Create | Operation::Update if data.is_empty() => {
                Err(Refusal::bad_request("missing data fields"))
            }
            Operation::Create | Operation::Update => {
                self.secrets.insert(path.to_owned(), data.clone());
                Ok(None)
            }
            Operation::Delete => {
                self.secrets.remove(path);
                Ok(None)
            }
            Operation::List => {
                let mut names: Vec<String> = self
                    .secrets
                    .keys()
                    .filter_map(|key| key.strip_prefix(path))
                    .map(|rest| match rest.split_once('/') {
                        Some((child, _)) => format!("{child}/"),
                        None => rest.to_owned(),
                    })
                    .collect();
                names.dedup();
                Ok(Some(Answer::keys(names)))
            }
            Operation::Patch | Operation::Header => Err(Refusal::unsupported_operation()),
        }
    }
}
