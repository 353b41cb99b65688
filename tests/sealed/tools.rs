//! A sealed store of one test, with the service and the commands on it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use intentframe_credentials::{
    BackendOptions, CredentialRef, CredentialVault, Environment, create_vault,
};
use serde_json::json;

use crate::support::{Ended, Place, Service, Setup, set_mode};

pub const VALUE: &str = "sk-canary-0123456789-sealed";

pub struct Store(pub Place);

impl Store {
    pub fn new() -> Self {
        Self(Place::new())
    }

    /// With a running service that has stored `openai/key0` to `openai/key2`.
    pub fn with_values() -> (Self, Service) {
        let store = Self::new();
        let service = store.setup().start();
        store_values(&service, 3);
        (store, service)
    }

    pub fn setup(&self) -> Setup {
        self.0.setup_with("sealed")
    }

    /// The key file that the first start makes.
    pub fn key_file(&self) -> PathBuf {
        self.0.root().join("vault.key")
    }

    /// Writes a file in the directory of the test.
    pub fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.0.root().join(name);
        fs::write(&path, content).expect("writes");
        set_mode(&path, mode);
        path
    }

    /// The command on this store: `credential-vault seal ...`.
    pub fn seal(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
        command.arg("seal").args(arguments).env_clear().stdin(Stdio::null());
        command.env("HOME", self.0.root()).env("INTENTFRAME_DATA_DIR", self.0.data_dir());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ended {
        self.seal(arguments).output().expect("runs").into()
    }

    /// The bytes of each file in the data directory but the index of the log, which every reader
    /// writes to.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.0.data_dir()).expect("is there");
        let files = files.map(|it| it.expect("readable").path());
        let files = files.filter(|it| it.extension().is_none_or(|it| it != "db-shm"));
        files.map(|it| (it.clone(), fs::read(it).expect("reads"))).collect()
    }

    pub fn database(&self) -> rusqlite::Connection {
        let database = rusqlite::Connection::open(self.0.database()).expect("opens");
        database.busy_timeout(crate::support::DEADLINE).expect("sets a timeout");
        database
    }

    /// The backend on its own, without a service, with the key file that is given.
    pub fn vault(&self, key_file: Option<&Path>) -> Arc<dyn CredentialVault> {
        let mut options = BackendOptions::new(Environment::default());
        options.data_dir = Some(self.0.data_dir());
        options.key_file = key_file.map(Path::to_owned);
        create_vault("sealed", &options).expect("registered")
    }
}

/// Starts the service, which must refuse with the exit code 2. Returns what it says.
#[track_caller]
pub fn refusal(setup: Setup) -> String {
    let mut service = setup.spawn();
    assert_eq!(service.wait().code(), Some(2), "{}", service.log());
    service.log()
}

#[track_caller]
pub fn store_values(service: &Service, count: usize) {
    for number in 0..count {
        let path = format!("/v1/credentials/openai/key{number}");
        let answer = service.put(&path, &json!({ "value": format!("{VALUE}-{number}") }));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

#[track_caller]
pub fn assert_values(service: &Service, count: usize) {
    for number in 0..count {
        let answer = service.get(&format!("/v1/credentials/openai/key{number}"));
        assert_eq!(answer.value(), format!("{VALUE}-{number}"));
    }
}

/// Checks the values without a service.
#[track_caller]
pub fn assert_stored(vault: &dyn CredentialVault, count: usize) {
    for number in 0..count {
        let at = CredentialRef::parse("openai", &format!("key{number}")).expect("valid");
        let value = vault.get(&at).expect("reads").expect("is there");
        assert_eq!(value.expose(), format!("{VALUE}-{number}"));
    }
    vault.close();
}
