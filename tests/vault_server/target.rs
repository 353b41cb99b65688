//! The server that an assertion runs on, and all that the assertion makes there.

use std::cell::RefCell;
use std::env;
use std::io::Read as _;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::vault_server::VaultServer;
use crate::vault_server::client::{Ask, Client, Got};

/// What a policy says no with; a dead token gets [`DEAD`].
pub const REFUSED: &str = "1 error occurred:\n\t* permission denied\n\n";
pub const DEAD: &str = "permission denied";

/// How long something may take that a real server does by itself.
const PATIENCE: Duration = Duration::from_secs(30);

static REAL: Mutex<()> = Mutex::new(());

/// A Vault at an address with a root token, and mounts of its own on it.
pub struct Target {
    pub root: Client,
    /// A KV v2 mount.
    pub mount: String,
    /// A mount of `AppRole`.
    pub approle: String,
    own: Option<VaultServer>,
    made: RefCell<Vec<Ask>>,
}

/// Runs the assertions on the test server and, where there is one, on a real server.
#[track_caller]
pub fn on_each(assertions: impl Fn(&Target)) {
    // Shown only when an assertion fails.
    eprintln!("on the test server:");
    assertions(&Target::own());
    if env::var_os("VAULT_ADDR").is_some() {
        // One after the other: `OpenBao` 2.6.2 can deadlock where a mount goes while a
        // namespace comes. Whether another test failed does not matter.
        let _turn = REAL.lock().unwrap_or_else(PoisonError::into_inner);
        eprintln!("on the server at VAULT_ADDR:");
        assertions(&Target::real());
    }
}

/// A name that nothing else has.
pub fn unique(what: &str) -> String {
    let mut random = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .expect("Unix has it");
    let random = u64::from_ne_bytes(random);
    format!("{what}-{random:016x}")
}

impl Target {
    fn own() -> Self {
        let own = VaultServer::builder().stopped_clock().start();
        Self::on(own.client(), Some(own))
    }

    fn real() -> Self {
        let address = env::var("VAULT_ADDR").expect("the caller has looked");
        let token = env::var("VAULT_TOKEN").expect("VAULT_ADDR goes with VAULT_TOKEN");
        Self::on(Client::new(&address, &token), None)
    }

    fn on(root: Client, own: Option<VaultServer>) -> Self {
        let target = Self {
            root,
            mount: unique("kv"),
            approle: unique("approle"),
            own,
            made: RefCell::default(),
        };
        let kv = json!({ "type": "kv", "options": { "version": "2" } });
        target.make_mount(&target.mount, &kv);
        target.make_auth(&target.approle);
        target
    }

    /// Mounts secrets; unmounted at the end.
    #[track_caller]
    pub fn make_mount(&self, path: &str, body: &Value) {
        self.root.post(&format!("sys/mounts/{path}"), body).expect(204);
        self.at_the_end(Ask::new("DELETE", &format!("sys/mounts/{path}")));
        // A mount may upgrade itself for a moment.
        self.eventually("a mount that answers", || {
            (self.root.get(&format!("{path}/data/none")).status == 404).then_some(())
        });
    }

    #[track_caller]
    fn make_auth(&self, path: &str) {
        self.root.post(&format!("sys/auth/{path}"), &json!({ "type": "approle" })).expect(204);
        self.at_the_end(Ask::new("DELETE", &format!("sys/auth/{path}")));
    }

    /// What puts the server back as it was.
    pub fn at_the_end(&self, ask: Ask) {
        self.made.borrow_mut().push(ask);
    }

    /// A path in the KV mount: `data/x`.
    pub fn kv(&self, path: &str) -> String {
        format!("{}/{path}", self.mount)
    }

    /// Stores a policy under a name of its own.
    #[track_caller]
    pub fn policy(&self, hcl: &str) -> String {
        let name = unique("policy");
        let path = format!("sys/policies/acl/{name}");
        self.root.post(&path, &json!({ "policy": hcl })).expect(204);
        self.at_the_end(Ask::new("DELETE", &path));
        name
    }

    /// A client with a new orphan token.
    #[track_caller]
    pub fn token(&self, fields: &Value) -> Client {
        let got = self.root.post("auth/token/create-orphan", fields).expect(200);
        self.client_of(&got)
    }

    /// A client with the token of an answer; revoked at the end.
    #[track_caller]
    pub fn client_of(&self, got: &Got) -> Client {
        let answer = got.json();
        let token = answer["auth"]["client_token"].as_str().expect("a token");
        if !token.starts_with("b.") {
            let revoke = Ask::new("POST", "auth/token/revoke").json(&json!({ "token": token }));
            self.at_the_end(revoke);
        }
        self.root.with_token(token)
    }

    /// A client whose token has a policy of this text and the default one.
    #[track_caller]
    pub fn allowed(&self, hcl: &str) -> Client {
        self.token(&json!({ "policies": [self.policy(hcl)] }))
    }

    /// Makes a role of the `AppRole` mount; its role id and a secret id.
    #[track_caller]
    pub fn role(&self, name: &str, fields: &Value) -> (String, String) {
        let path = format!("auth/{}/role/{name}", self.approle);
        self.root.post(&path, fields).expect(204);
        let role_id = self.root.get(&format!("{path}/role-id")).expect(200).json();
        let role_id = role_id["data"]["role_id"].as_str().expect("a role id").to_owned();
        (role_id, self.secret_id(name))
    }

    #[track_caller]
    pub fn secret_id(&self, role: &str) -> String {
        let path = format!("auth/{}/role/{role}/secret-id", self.approle);
        let secret_id = self.root.post(&path, &json!({})).expect(200).json();
        secret_id["data"]["secret_id"].as_str().expect("a secret id").to_owned()
    }

    #[track_caller]
    pub fn log_in(&self, role_id: &str, secret_id: &str) -> Got {
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        self.root.without_token().post(&format!("auth/{}/login", self.approle), &body)
    }

    /// Waits for what time brings: on the test server by moving its clock.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut moved = Duration::ZERO;
        loop {
            if let Some(answer) = attempt() {
                return answer;
            }
            if let Some(own) = &self.own {
                assert!(moved < PATIENCE, "not within {PATIENCE:?}: {what}");
                own.clock().advance(Duration::from_millis(500));
                moved += Duration::from_millis(500);
            } else {
                assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    #[track_caller]
    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        self.eventually(what, || condition().then_some(()));
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.own.is_some() {
            return;
        }
        for ask in self.made.borrow().iter().rev() {
            // A failed test must not end in a panic during a panic.
            let _ = self.root.connect().and_then(|mut connection| connection.ask(&self.root, ask));
        }
    }
}

/// Fails the test unless the answer is a refusal by exactly these words.
pub trait Refused {
    fn refused(self, status: u16, error: &str);
    /// A refusal without words.
    fn refused_silently(self, status: u16);
}

impl Refused for Got {
    #[track_caller]
    fn refused(self, status: u16, error: &str) {
        assert_eq!((self.status, self.errors()), (status, vec![error.to_owned()]));
    }

    #[track_caller]
    fn refused_silently(self, status: u16) {
        assert_eq!((self.status, self.json()), (status, json!({ "errors": [] })));
    }
}
