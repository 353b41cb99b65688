//! Random sequences of calls, made on a backend and on a model of it.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use std::collections::BTreeMap;

use intentframe_credentials::{CredentialRef, CredentialVault, Secret};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// What a vault must hold after a sequence.
pub type Model = BTreeMap<CredentialRef, String>;

#[derive(Debug, Clone)]
enum Call {
    Store(CredentialRef, String),
    Delete(CredentialRef),
    Get(CredentialRef),
    Has(CredentialRef),
    List(CredentialRef),
}

/// Any valid key.
pub fn key() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("a valid key", |key| CredentialRef::parse("n", key).is_ok())
}

/// Names that differ in little, and some that nothing else resembles. They are few, so that calls
/// meet what earlier ones have stored.
fn name(prefix: &str) -> impl Strategy<Value = CredentialRef> + use<> {
    let prefix = prefix.to_owned();
    let namespace = prop::sample::select(vec!["a", "a.b", "a@b+c"]);
    let key = prop_oneof![
        20 => prop::sample::select(vec!["token", "Token", "a b", "%2F", "ключ"]).prop_map(str::to_owned),
        1 => key(),
    ];
    (namespace, key).prop_map(move |(namespace, key)| {
        CredentialRef::parse(&format!("{prefix}{namespace}"), &key).expect("both are valid")
    })
}

fn call(prefix: &str) -> impl Strategy<Value = Call> + use<> {
    prop_oneof![
        4 => (name(prefix), any::<String>()).prop_map(|(at, value)| Call::Store(at, value)),
        2 => name(prefix).prop_map(Call::Delete),
        2 => name(prefix).prop_map(Call::Get),
        1 => name(prefix).prop_map(Call::Has),
        1 => name(prefix).prop_map(Call::List),
    ]
}

/// Runs `cases` sequences on `vault`, in namespaces that start with `prefix`, which nothing else
/// uses. `behind` is what the vault shows of a credential that nobody has stored. After each
/// sequence `check` sees the model, and then everything is deleted.
///
/// # Panics
///
/// With the shortest sequence that was found, if the vault and its model differ.
pub fn agree(
    vault: &dyn CredentialVault,
    prefix: &str,
    cases: u32,
    behind: impl Fn(&CredentialRef) -> Option<String>,
    check: impl Fn(&Model),
) {
    let config = Config { failure_persistence: None, ..Config::with_cases(cases) };
    let calls = prop::collection::vec(call(prefix), 1..24);
    let result = TestRunner::new(config).run(&calls, |calls| {
        let mut model = Model::new();
        for call in &calls {
            make(call, vault, &mut model, &behind)?;
        }
        check(&model);
        for at in std::mem::take(&mut model).keys() {
            prop_assert!(vault.delete(at)?, "{at} is stored");
            prop_assert!(vault.list_keys(at.namespace())?.iter().all(|key| key != at.key()));
        }
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn make(
    call: &Call,
    vault: &dyn CredentialVault,
    model: &mut Model,
    behind: impl Fn(&CredentialRef) -> Option<String>,
) -> Result<(), TestCaseError> {
    let shown = |model: &Model, at| model.get(at).cloned().or_else(|| behind(at));
    match call {
        Call::Store(at, value) => {
            vault.store(at, &Secret::new(value.clone()))?;
            model.insert(at.clone(), value.clone());
        }
        Call::Delete(at) => prop_assert_eq!(vault.delete(at)?, model.remove(at).is_some()),
        Call::Get(at) => {
            let value = vault.get(at)?.map(|value| value.expose().to_owned());
            prop_assert_eq!(value, shown(model, at));
        }
        Call::Has(at) => prop_assert_eq!(vault.has(at)?, shown(model, at).is_some()),
        Call::List(at) => {
            let stored = model.keys().filter(|other| other.namespace() == at.namespace());
            let keys: Vec<&str> = stored.map(CredentialRef::key).collect();
            prop_assert_eq!(vault.list_keys(at.namespace())?, keys);
        }
    }
    Ok(())
}
