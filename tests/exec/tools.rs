//! A service with credentials, and commands that run with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

pub use crate::support::{Ended, Running};
use crate::support::{Place, Service, wait_until};

pub const TOKEN: &str = "canary-0123456789-abcdef";

/// A running service, and a directory for the files of commands.
pub struct Vault {
    pub service: Service,
    pub place: Place,
}

impl Vault {
    pub fn start() -> Self {
        let place = Place::new();
        Self { service: place.start(), place }
    }

    /// With `app/token` for every consumer, in `APP_TOKEN`.
    pub fn with_token() -> Self {
        let vault = Self::start();
        vault.put("app/token", TOKEN, "APP_TOKEN", &[]);
        vault
    }

    /// Stores a credential of delivery mode `runtime_env`.
    #[track_caller]
    pub fn put(&self, name: &str, value: &str, variable: &str, consumers: &[&str]) {
        self.put_json(
            name,
            &json!({
                "value": value, "delivery_mode": "runtime_env", "env_name": variable,
                "allowed_consumers": consumers,
            }),
        );
    }

    #[track_caller]
    pub fn put_json(&self, name: &str, body: &serde_json::Value) {
        let answer = self.service.put(&format!("/v1/credentials/{name}"), body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    #[track_caller]
    pub fn delete(&self, name: &str) {
        let request = crate::support::delete(&format!("/v1/credentials/{name}"));
        assert_eq!(self.service.connect().exchange(&request).status, 200);
    }

    /// `exec` whose environment contains `PATH` and the socket only.
    pub fn exec(&self, arguments: &[&str]) -> Command {
        exec(&self.service.socket, arguments)
    }

    /// Runs it to its end.
    pub fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.exec(arguments))
    }

    /// Runs a shell script to its end.
    pub fn shell(&self, options: &[&str], script: &str) -> Ended {
        self.run(&[options, &["--", "/bin/sh", "-c", script]].concat())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.root().join(name)
    }
}

pub fn exec(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.arg("exec").args(arguments).env_clear();
    command.env("PATH", "/usr/bin:/bin").env("INTENTFRAME_VAULT_SOCKET", socket);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until a file has `count` lines, and returns them.
#[track_caller]
pub fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || fs::read_to_string(path).unwrap_or_default();
    let whole = || read().matches('\n').count();
    wait_until(&format!("{count} lines, not {:?}", read()), || whole() >= count);
    read().lines().map(str::to_owned).collect()
}
