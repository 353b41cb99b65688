//! Every code block of README.md and docs/*.md, as it is written; and the way of a newcomer.
#![cfg(target_os = "linux")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::process::Command;

use support::{Ended, cannot_here, example, skip};

const TREE: &str = env!("CARGO_MANIFEST_DIR");

/// Runs scripts/test-docs, or says what is missing for it.
fn run(pages: &[&str]) {
    let needed = ["git", "setsid", "dbus-run-session", "gnome-keyring-daemon"];
    let has = |program: &&str| {
        Command::new(program).arg("--version").output().is_ok_and(|it| it.status.success())
    };
    if let Some(missing) = needed.iter().find(|it| !has(it)) {
        return skip(&format!("the documentation's blocks need {missing}"));
    }
    let Some(bao) = hashicorp::bao::program() else {
        return skip(
            "the documentation's blocks need bao or vault; run: scripts/install-test-deps",
        );
    };
    let ended = Ended::of(
        Command::new(format!("{TREE}/scripts/test-docs"))
            .args(pages)
            .env("CREDENTIAL_VAULT_BIN", env!("CARGO_BIN_EXE_credential-vault"))
            .env("SUPERVISOR", example("supervisor"))
            .env("CARGO", env!("CARGO"))
            .env("BAO", bao),
    );
    assert!(ended.status.success(), "{}\n{}", ended.stdout, ended.stderr);
    for line in ended.stdout.lines().filter(|line| line.starts_with("not run: ")) {
        cannot_here(line);
    }
}

#[test]
fn every_block_of_the_pages() {
    let pages = fs::read_dir(format!("{TREE}/docs")).expect("the pages");
    let pages = pages.map(|it| it.expect("readable").path());
    // tests/help.rs runs docs/commands.md.
    let pages = pages.filter(|it| it.extension().is_some_and(|it| it == "md"));
    let pages: Vec<_> = pages.filter(|it| !it.ends_with("commands.md")).collect();
    run(&pages.iter().map(|it| it.to_str().expect("UTF-8")).collect::<Vec<_>>());
}

#[test]
fn every_page_is_in_the_index_and_the_changelog_has_its_form() {
    let index = include_str!("../docs/README.md");
    for page in fs::read_dir(format!("{TREE}/docs")).expect("the pages") {
        let name = page.expect("readable").file_name().into_string().expect("UTF-8");
        assert!(name == "README.md" || index.contains(&format!("]({name})")), "{name}");
    }
    // https://keepachangelog.com/en/1.1.0/
    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    let mut last = 0;
    for line in include_str!("../CHANGELOG.md").lines() {
        if let Some(version) = line.strip_prefix("## ") {
            last = 0;
            let date = version.split_once("] - ").map(|(_, date)| date.len());
            assert!(version == "[Unreleased]" || date == Some("2026-11-24".len()), "{line}");
        } else if let Some(kind) = line.strip_prefix("### ") {
            let place = kinds.iter().position(|it| *it == kind).expect("a kind of change") + 1;
            assert!(place > last, "{line} is out of order");
            last = place;
        }
    }
}

/// The front page in a clean clone, where `cargo build` copies the program of this test, since an
/// optimised one takes minutes: install, start with a store that persists, store at a prompt,
/// run a program, see that the credential was used. The terminal shows what the page says.
#[test]
fn a_newcomer_gets_from_a_clone_to_a_used_credential() {
    run(&[&format!("{TREE}/README.md")]);
}

/// The blocks of docs/embedding.md, which scripts/test-docs looks for here. They compile; the other
/// tests of the library run what they show.
#[allow(dead_code, clippy::needless_borrow, clippy::needless_pass_by_value, reason = "as the page has them")]
#[rustfmt::skip]
mod embedding {
    use std::error::Error;

    use intentframe_credentials::Secret;

    type Tested = Result<(), Box<dyn Error>>;

    fn asking(authenticate: impl Fn(&str)) -> Tested {
        use intentframe_credentials::CredentialRef;
        use intentframe_credentials::client::VaultClient;

        let vault = VaultClient::new("/run/user/1000/credential-vault.sock");
        if let Some(key) = vault.get(&CredentialRef::parse("openai", "api_key")?)? {
            authenticate(key.expose());
        }
        Ok(())
    }

    fn starting(vault: &intentframe_credentials::client::VaultClient) -> Tested {
use std::process::Command;
        use intentframe_credentials::spawn::{CommandCredentials as _, runtime_env};

        let credentials = runtime_env(&vault, Some("jarvis"))?;
        let mut agent = Command::new("jarvis").credentials(&credentials).spawn()?;
        agent.wait()?;
        Ok(())
    }

    fn running(data_dir: std::path::PathBuf) -> Tested {
        use intentframe_credentials::daemon::{Daemon, Settings};
        use intentframe_credentials::server::Endpoint;
        use intentframe_credentials::{BackendOptions, Environment};

        let endpoint = Endpoint::Unix("/run/user/1000/vault/credential-vault.sock".into());
        let options = BackendOptions::new(Environment::of_process());
        let daemon = Daemon::start(&Settings::new(endpoint, data_dir, "keyring", options))?;
        // ... later, from any thread:
        daemon.stop();
        daemon.join()?;
        Ok(())
    }

    fn redacting(your_logger: impl log::Log + 'static, token: Secret) -> Tested {
        use intentframe_credentials::redact::{RegisteredSecrets, redact_credentials};

        let secrets = RegisteredSecrets::default();
        log::set_boxed_logger(Box::new(redact_credentials(your_logger, &secrets)))?;
        log::set_max_level(log::LevelFilter::Info);
        let _registered = secrets.register(&token);     // for as long as this lives
        Ok(())
    }
}
