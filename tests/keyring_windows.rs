//! The keyring backend against the Credential Manager of Windows or Wine, beside Python's `keyring`
//! package, whose calls are played here. `make test-windows` runs this.
#![cfg(windows)]

#[path = "support/contract.rs"]
mod contract;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use intentframe_credentials::{
    BackendOptions, CredentialRef, CredentialVault, Environment, Namespace, Secret, VaultError,
    create_vault,
};
use keyring_core::api::CredentialStoreApi as _;
use keyring_core::{Entry, Error};
use windows_native_keyring_store::Store;

/// Held by a test while it runs: Wine crashes if a credential is changed while another thread
/// enumerates them. (The backend makes all its calls on one thread.)
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The vault and Python, with the namespaces of one test, which begin with its name. The names of
/// the tests differ in more than case.
struct Scene {
    vault: Arc<dyn CredentialVault>,
    store: Arc<Store>,
    test: &'static str,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(test: &'static str) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let options = BackendOptions::new(Environment::default());
        let vault = create_vault("keyring", &options).expect("registered");
        let scene = Self { vault, store: Store::new().expect("a store"), test, _turn: turn };
        scene.clear();
        scene
    }

    /// Deletes what the test, or an earlier run of it, has stored.
    fn clear(&self) {
        let pattern = format!("com[.]intentframe[.]vault[.](?i:{})", self.test);
        let left = self.store.search(&HashMap::from([("pattern", &*pattern)])).expect("searches");
        for entry in left {
            entry.delete_credential().expect("deletes");
        }
    }

    fn at(&self, namespace: &str, key: &str) -> CredentialRef {
        CredentialRef::parse(&format!("{}{namespace}", self.test), key).expect("valid names")
    }

    fn get(&self, namespace: &str, key: &str) -> Option<String> {
        let value = self.vault.get(&self.at(namespace, key)).expect("reads");
        assert_eq!(self.vault.has(&self.at(namespace, key)).expect("asks"), value.is_some());
        value.map(|value| value.expose().to_owned())
    }

    fn try_set(&self, namespace: &str, key: &str, value: &str) -> Result<(), VaultError> {
        self.vault.store(&self.at(namespace, key), &Secret::new(value.to_owned()))
    }

    fn set(&self, namespace: &str, key: &str, value: &str) {
        self.try_set(namespace, key, value).expect("stores");
    }

    fn delete(&self, namespace: &str, key: &str) -> bool {
        self.vault.delete(&self.at(namespace, key)).expect("deletes")
    }

    fn keys(&self, namespace: &str) -> Vec<String> {
        let namespace = Namespace::new(format!("{}{namespace}", self.test)).expect("valid");
        self.vault.list_keys(&namespace).expect("lists")
    }

    fn service(&self, namespace: &str) -> String {
        format!("com.intentframe.vault.{}{namespace}", self.test)
    }

    fn entry(&self, target: &str) -> Entry {
        self.store.build("", "", Some(&HashMap::from([("target", target)]))).expect("an entry")
    }

    /// The user name and the bytes at `target`, as Python's `CredRead` gets them.
    fn read(&self, target: &str) -> Option<(String, Vec<u8>)> {
        let entry = self.entry(target);
        match entry.get_attributes() {
            Ok(mut found) => {
                Some((found.remove("username").expect("one"), entry.get_secret().expect("reads")))
            }
            Err(Error::NoEntry) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// As Python's `CredWrite`.
    fn write(&self, target: &str, user: &str, bytes: &[u8]) {
        let entry = self.entry(target);
        entry.set_secret(bytes).expect("stores");
        entry.update_attributes(&HashMap::from([("username", user)])).expect("names the user");
    }

    /// `keyring.set_password` of Python: the user who is at the target `service` is moved.
    fn python_set(&self, namespace: &str, user: &str, value: &str) {
        let service = self.service(namespace);
        if let Some((moved, bytes)) = self.read(&service) {
            self.write(&format!("{moved}@{service}"), &moved, &bytes);
        }
        self.write(&service, user, &utf16(value));
    }

    /// `keyring.get_password` of Python.
    fn python_get(&self, namespace: &str, user: &str) -> Option<String> {
        let service = self.service(namespace);
        let first = self.read(&service).filter(|(found, _)| found == user);
        let (_, bytes) = first.or_else(|| self.read(&format!("{user}@{service}")))?;
        Some(text(&bytes))
    }

    /// `keyring.delete_password` of Python. Returns whether there was one.
    fn python_delete(&self, namespace: &str, user: &str) -> bool {
        let service = self.service(namespace);
        let mut existed = false;
        for target in [service.clone(), format!("{user}@{service}")] {
            if self.read(&target).is_some_and(|(found, _)| found == user) {
                self.entry(&target).delete_credential().expect("deletes");
                existed = true;
            }
        }
        existed
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.clear();
        }
        self.vault.close();
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// `bytes.decode('utf-16')` of Python, for little-endian text.
fn text(bytes: &[u8]) -> String {
    let (pairs, _) = bytes.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    let text = String::from_utf16(&units).expect("UTF-16");
    text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned()
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn the_contract() {
    let scene = Scene::new("contract-");
    contract::contract(&*scene.vault, "contract-");
    // Namespaces that are alike as regular expressions, and keys that look like places.
    for namespace in ["a.b", "aXb", "a+b", "a@b", "b"] {
        scene.set(namespace, "k", namespace);
        scene.python_set(namespace, "p", namespace);
    }
    for namespace in ["a.b", "aXb", "a+b", "a@b", "b"] {
        assert_eq!(scene.get(namespace, "k"), some(namespace));
        assert_eq!(scene.keys(namespace), ["k", "p"]);
    }
    let key = format!("k@{}", scene.service("a"));
    scene.set("b", &key, "a key");
    assert_eq!(scene.get("b", &key), some("a key"));
    assert_eq!(scene.get("a", "k"), None);
}

#[test]
fn python_reads_and_deletes_what_the_vault_stored() {
    let scene = Scene::new("to-python.");
    for (key, value) in [("a", "1"), ("b", "é \u{1f600} 漢"), ("a@b", ""), ("c", "\u{feff}x")] {
        scene.set("x", key, value);
        assert_eq!(scene.python_get("x", key), some(value));
    }
    assert!(scene.python_delete("x", "a"));
    assert_eq!(scene.get("x", "a"), None);
    assert_eq!(scene.keys("x"), ["a@b", "b", "c"]);
    scene.python_set("x", "b", "by Python");
    scene.python_set("x", "d", "new");
    for (key, value) in [("a@b", ""), ("b", "by Python"), ("c", "\u{feff}x"), ("d", "new")] {
        assert_eq!(scene.get("x", key), some(value));
        assert_eq!(scene.python_get("x", key), some(value));
    }
    assert_eq!(scene.keys("x"), ["a@b", "b", "c", "d"]);
}

#[test]
fn the_vault_reads_replaces_and_deletes_what_python_stored() {
    let scene = Scene::new("from-python.");
    for (user, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        scene.python_set("x", user, value);
        assert_eq!(scene.get("x", user), some(value));
    }
    assert_eq!(scene.get("x", "d"), None);
    scene.set("x", "a", "new in the second place");
    scene.set("x", "c", "new in the first place");
    let (user, _) = scene.read(&scene.service("x")).expect("the first place");
    assert_eq!(user, "c", "replaced where it was");
    assert_eq!(scene.python_get("x", "a"), some("new in the second place"));
    assert_eq!(scene.python_get("x", "c"), some("new in the first place"));
    assert_eq!(scene.keys("x"), ["a", "b", "c"]);
    assert!(scene.delete("x", "c"));
    assert_eq!(scene.python_get("x", "c"), None);
    assert!(scene.delete("x", "a"));
    assert!(!scene.delete("x", "a"));
    assert_eq!(scene.keys("x"), ["b"]);
}

#[test]
fn a_user_in_both_places_is_one_credential() {
    let scene = Scene::new("both.");
    for (user, value) in [("a", "old"), ("b", "2"), ("a", "new")] {
        scene.python_set("x", user, value);
    }
    assert!(scene.read(&format!("a@{}", scene.service("x"))).is_some(), "Python left the old one");
    assert_eq!(scene.get("x", "a"), some("new"));
    assert_eq!(scene.keys("x"), ["a", "b"]);
    assert!(scene.delete("x", "a"));
    assert_eq!(scene.get("x", "a"), None);
    assert_eq!(scene.python_get("x", "a"), None);
    assert_eq!(scene.keys("x"), ["b"]);
}

/// What the store of a name says that another name, `kept`, is in the way of.
fn assert_refused(result: Result<(), VaultError>, kept: &str) {
    let error = result.expect_err("refused");
    assert!(matches!(error, VaultError::StoreFailed { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("ignores case") && message.contains(kept), "{message}");
}

#[test]
fn keys_that_differ_only_in_case_never_mix() {
    let scene = Scene::new("case-of-keys.");
    scene.set("x", "Key", "upper");
    assert_refused(scene.try_set("x", "key", "lower"), &format!("Key@{}", scene.service("x")));
    assert_eq!((scene.get("x", "Key"), scene.get("x", "key")), (some("upper"), None));
    assert_eq!(scene.keys("x"), ["Key"]);
    assert!(!scene.delete("x", "key"));
    assert_eq!(scene.get("x", "Key"), some("upper"));

    // Python's two places have room for both.
    scene.python_set("x", "key", "lower");
    scene.set("x", "Key", "upper 2");
    scene.set("x", "key", "lower 2");
    assert_eq!((scene.get("x", "Key"), scene.get("x", "key")), (some("upper 2"), some("lower 2")));
    assert_eq!(scene.keys("x"), ["Key", "key"]);
    assert!(scene.delete("x", "key"));
    assert_eq!((scene.get("x", "Key"), scene.get("x", "key")), (some("upper 2"), None));

    assert!(scene.delete("x", "Key"));
    scene.set("x", "key", "lower");
    assert_eq!(scene.keys("x"), ["key"]);
}

#[test]
fn namespaces_that_differ_only_in_case_never_mix() {
    let scene = Scene::new("case-of-namespaces.");
    scene.set("GitHub", "k", "upper");
    assert_refused(scene.try_set("github", "k", "lower"), &scene.service("GitHub"));
    assert_eq!((scene.get("GitHub", "k"), scene.get("github", "k")), (some("upper"), None));
    assert_eq!((scene.keys("GitHub"), scene.keys("github")), (vec!["k".to_owned()], vec![]));
    assert!(!scene.delete("github", "k"));
    assert_eq!(scene.get("GitHub", "k"), some("upper"));

    // The first place, which is the target `service`, is not taken for one of the other namespace.
    scene.python_set("GitHub", "p", "Python's");
    assert_eq!((scene.get("GitHub", "p"), scene.get("github", "p")), (some("Python's"), None));
    assert!(!scene.delete("github", "p"));
    scene.set("github", "p", "the vault's");
    assert_eq!(scene.get("GitHub", "p"), some("Python's"));
    assert_eq!(scene.get("github", "p"), some("the vault's"));
    assert_eq!((scene.keys("GitHub").len(), scene.keys("github").len()), (2, 1));
}

#[test]
fn values_are_decoded_as_python_does() {
    let scene = Scene::new("bytes.");
    let mut with_mark = vec![0xff, 0xfe];
    with_mark.extend(utf16("é漢"));
    let big_endian = [0xfe, 0xff, 0, b'a', 0x6f, 0x22];
    let cases: [(&[u8], &str); 5] = [
        (&with_mark, "é漢"),
        (&big_endian, "a漢"),
        (&[0xff, 0xfe, 0xff, 0xfe], "\u{feff}"),
        (b"abc", "abc"),
        (b"", ""),
    ];
    for (bytes, value) in cases {
        scene.write(&scene.service("x"), "k", bytes);
        assert_eq!(scene.get("x", "k"), some(value), "{bytes:?}");
    }
    scene.write(&scene.service("x"), "k", &[0xff, 0xfe, 0xfd]);
    let error = scene.vault.get(&scene.at("x", "k")).expect_err("not text");
    assert!(matches!(error, VaultError::ReadFailed { .. }), "{error:?}");
    scene.set("x", "k", "\u{fffe}x");
    assert_eq!(scene.get("x", "k"), some("\u{fffe}x"), "not big-endian");
}

#[test]
fn a_value_or_a_name_that_is_too_long_is_refused() {
    let scene = Scene::new("long.");
    let longest = "x".repeat(1280);
    scene.set("x", "k", &longest);
    for longer in ["y".repeat(1281), "😀".repeat(641), format!("\u{feff}{}", "y".repeat(1279))] {
        let error = scene.try_set("x", "k", &longer).expect_err("too long");
        assert!(error.to_string().contains("at most 1280 UTF-16 units"), "{error}");
    }
    assert_eq!(scene.get("x", "k"), Some(longest), "it is as it was");
    let error = scene.try_set("x", &"k".repeat(40_000), "v").expect_err("too long");
    assert!(matches!(error, VaultError::StoreFailed { .. }), "{error:?}");
}
