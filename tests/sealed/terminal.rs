//! The prompt for a passphrase.

use std::process::Command;

use crate::pty::Terminal;
use crate::tools::{Store, assert_values};

const WORDS: &str = "correct horse battery staple";

#[test]
fn a_passphrase_is_asked_for_twice_when_it_is_new_and_never_shown() {
    let (store, service) = Store::with_values();
    service.stop();
    let before = store.files();
    let mut terminal = Terminal::start(&store.seal(&["rewrap"]));
    terminal.answers("New passphrase", WORDS);
    terminal.answers("Again", "correct horse battery stable");
    assert_eq!(terminal.wait().code(), Some(2), "{}", terminal.shown());
    terminal.shows("the two passphrases are not the same");
    assert_eq!(store.files(), before);

    let mut terminal = Terminal::start(&store.seal(&["rewrap"]));
    terminal.answers("New passphrase", WORDS);
    terminal.answers("Again", WORDS);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.shown());
    assert!(!terminal.shown().contains("battery"), "{}", terminal.shown());

    let mut terminal = Terminal::start(&store.seal(&["rekey"]));
    terminal.answers("Passphrase of the vault", WORDS);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.shown());
    terminal.shows("3 values");

    let socket = store.0.socket();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    serve.args(["serve", "--backend", "sealed", "--socket"]).arg(&socket);
    serve.env("INTENTFRAME_DATA_DIR", store.0.data_dir());
    let terminal = Terminal::start(&serve);
    terminal.answers("Passphrase of the vault", WORDS);
    terminal.shows("serving the sealed backend");
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
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.shown());
    assert!(store.run(&["status"]).ok().contains("key\tpassphrase"));
    assert!(!store.key_file().exists());
    let words = store.file("words", WORDS, 0o600);
    let setup = store.setup().option("--passphrase-fd", "5");
    let service = setup.after(&format!("exec 5< {}", words.display())).start();
    assert_values(&service, 0);
}
