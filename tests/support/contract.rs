//! The contract of the trait `CredentialVault`, for every backend.

use intentframe_credentials::{CredentialRef, CredentialVault, Namespace, Secret};

/// Checks the contract on `vault`, in namespaces that start with `prefix` and that nothing else
/// uses. Deletes everything it stores.
///
/// # Panics
///
/// If `vault` breaks the contract.
pub fn contract(vault: &dyn CredentialVault, prefix: &str) {
    a_value_is_stored_replaced_and_deleted(vault, prefix);
    any_text_is_a_value(vault, prefix);
    any_key_is_a_key(vault, prefix);
    namespaces_do_not_mix(vault, prefix);
    calls_from_many_threads_do_not_mix(vault, prefix);
}

fn at(prefix: &str, namespace: &str, key: &str) -> CredentialRef {
    CredentialRef::parse(&format!("{prefix}{namespace}"), key).expect("valid names")
}

fn keys(vault: &dyn CredentialVault, namespace: &Namespace) -> Vec<String> {
    vault.list_keys(namespace).expect("lists")
}

fn value(vault: &dyn CredentialVault, at: &CredentialRef) -> Option<String> {
    vault.get(at).expect("reads").map(|value| value.expose().to_owned())
}

fn store(vault: &dyn CredentialVault, at: &CredentialRef, value: &str) {
    vault.store(at, &Secret::new(value.to_owned())).expect("stores");
}

fn a_value_is_stored_replaced_and_deleted(vault: &dyn CredentialVault, prefix: &str) {
    let at = at(prefix, "basic", "api_key");
    assert_eq!(value(vault, &at), None);
    assert!(!vault.has(&at).expect("asks"));
    assert!(!vault.delete(&at).expect("deletes nothing"));
    assert!(keys(vault, at.namespace()).is_empty());

    for text in ["first", "second", "second"] {
        store(vault, &at, text);
        assert_eq!(value(vault, &at).as_deref(), Some(text));
        assert!(vault.has(&at).expect("asks"));
        assert_eq!(keys(vault, at.namespace()), ["api_key"]);
    }

    assert!(vault.delete(&at).expect("deletes"));
    assert!(!vault.delete(&at).expect("deletes nothing"));
    assert_eq!(value(vault, &at), None);
    assert!(!vault.has(&at).expect("asks"));
    assert!(keys(vault, at.namespace()).is_empty());
}

fn any_text_is_a_value(vault: &dyn CredentialVault, prefix: &str) {
    let at = at(prefix, "values", "value");
    let long = "x".repeat(1000);
    for text in ["", " ", "\n", "a\tb\r\n", "пароль-пользователя 🔑", "\u{feff}x", "\"{}\\", &long]
    {
        store(vault, &at, text);
        assert_eq!(value(vault, &at).as_deref(), Some(text));
        assert!(vault.has(&at).expect("asks"), "{text:?} is a value");
    }
    assert!(vault.delete(&at).expect("deletes"));
}

fn any_key_is_a_key(vault: &dyn CredentialVault, prefix: &str) {
    let namespace = at(prefix, "keys", "any").namespace().clone();
    // Windows' keyring ignores case; tests/keyring_windows.rs has what it does then.
    let upper = if cfg!(windows) { "B" } else { "A" };
    let mut names =
        ["api_key", "a b", "ключ", "%2F", "you@gmail.com", "a'b\"c", ".", upper, "a", "*"];
    for name in names {
        store(vault, &at(prefix, "keys", name), name);
    }
    names.sort_unstable();
    assert_eq!(keys(vault, &namespace), names, "sorted, each once");
    for name in names {
        assert_eq!(value(vault, &at(prefix, "keys", name)).as_deref(), Some(name));
        assert!(vault.delete(&at(prefix, "keys", name)).expect("deletes"));
    }
    assert!(keys(vault, &namespace).is_empty());
}

fn namespaces_do_not_mix(vault: &dyn CredentialVault, prefix: &str) {
    let names = ["email.you@gmail.com", "email", "email.you", "github.myorg", "github+myorg"];
    for name in names {
        store(vault, &at(prefix, name, "password"), name);
    }
    for name in names {
        let at = at(prefix, name, "password");
        assert_eq!(value(vault, &at).as_deref(), Some(name));
        assert_eq!(keys(vault, at.namespace()), ["password"]);
        assert!(vault.delete(&at).expect("deletes"));
        assert!(keys(vault, at.namespace()).is_empty());
    }
}

fn calls_from_many_threads_do_not_mix(vault: &dyn CredentialVault, prefix: &str) {
    std::thread::scope(|threads| {
        for thread in 0..4 {
            threads.spawn(move || {
                let at = at(prefix, "threads", &format!("key{thread}"));
                for round in 0..10 {
                    let text = format!("{thread}-{round}");
                    store(vault, &at, &text);
                    assert_eq!(value(vault, &at), Some(text));
                }
                assert!(vault.delete(&at).expect("deletes"));
            });
        }
    });
    assert!(keys(vault, at(prefix, "threads", "any").namespace()).is_empty());
}
