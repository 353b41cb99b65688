//! The prompt for a passphrase.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;

use pty_process::blocking::{Pty, open};

use crate::support::{eventually, wait_until};
use crate::tools::{Store, assert_values, stop};

const WORDS: &str = "correct horse battery staple";

/// A command on a terminal, and what it has shown.
struct Terminal {
    ours: Arc<Pty>,
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(command: &Command) -> Self {
        let (ours, theirs) = open().expect("a terminal");
        let mut fresh = pty_process::blocking::Command::new(command.get_program())
            .args(command.get_args())
            .env_clear();
        for (name, value) in command.get_envs() {
            fresh = fresh.env(name, value.expect("is set"));
        }
        let child = fresh.spawn(theirs).expect("starts");
        let (ours, shown) = (Arc::new(ours), Arc::<Mutex<Vec<u8>>>::default());
        let (reader, into) = (Arc::clone(&ours), Arc::clone(&shown));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = (&*reader).read(&mut bytes) {
                into.lock().expect("no panic").extend_from_slice(&bytes[..count]);
            }
        });
        Self { ours, child, shown }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic")).into_owned()
    }

    #[track_caller]
    fn answers(&self, question: &str, with: &str) {
        wait_until(question, || self.shown().contains(question));
        (&*self.ours).write_all(format!("{with}\n").as_bytes()).expect("takes it");
    }

    #[track_caller]
    fn code(&mut self) -> Option<i32> {
        eventually("it ends", || self.child.try_wait().expect("can be waited for")).code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_passphrase_is_asked_for_twice_when_it_is_new_and_never_shown() {
    let (store, service) = Store::with_values();
    stop(service);
    let before = store.files();
    let mut terminal = Terminal::start(&store.seal(&["rewrap"]));
    terminal.answers("New passphrase", WORDS);
    terminal.answers("Again", "correct horse battery stable");
    assert_eq!(terminal.code(), Some(2), "{}", terminal.shown());
    wait_until("why", || terminal.shown().contains("the two passphrases are not the same"));
    assert_eq!(store.files(), before);

    let mut terminal = Terminal::start(&store.seal(&["rewrap"]));
    terminal.answers("New passphrase", WORDS);
    terminal.answers("Again", WORDS);
    assert_eq!(terminal.code(), Some(0), "{}", terminal.shown());
    assert!(!terminal.shown().contains("battery"), "{}", terminal.shown());

    let mut terminal = Terminal::start(&store.seal(&["rekey"]));
    terminal.answers("Passphrase of the vault", WORDS);
    assert_eq!(terminal.code(), Some(0), "{}", terminal.shown());
    wait_until("the end", || terminal.shown().contains("3 values"));

    let socket = store.0.socket();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    serve.args(["serve", "--backend", "sealed", "--socket"]).arg(&socket);
    serve.env("INTENTFRAME_DATA_DIR", store.0.data_dir());
    let terminal = Terminal::start(&serve);
    terminal.answers("Passphrase of the vault", WORDS);
    wait_until("it serves", || terminal.shown().contains("serving the sealed backend"));
    let answer = crate::support::Connection::open(&socket)
        .exchange(&crate::support::get("/v1/credentials/openai/key1"));
    assert!(answer.value().ends_with("-1"));
}

#[test]
fn a_new_store_asks_if_it_is_told_to() {
    let store = Store::new();
    let mut terminal = Terminal::start(&store.seal(&["init", "--passphrase"]));
    terminal.answers("New passphrase", WORDS);
    terminal.answers("Again", WORDS);
    assert_eq!(terminal.code(), Some(0), "{}", terminal.shown());
    assert!(store.run(&["status"]).ok().contains("key\tpassphrase"));
    assert!(!store.key_file().exists());
    let words = store.file("words", WORDS, 0o600);
    let setup = store.setup().argument("--passphrase-fd").argument("5");
    let service = setup.after(&format!("exec 5< {}", words.display())).start();
    assert_values(&service, 0);
}
