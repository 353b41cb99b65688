//! Help, usage errors, completions and manual pages, each in the tool that people see it in.
#![cfg(unix)]

mod support;
#[path = "support/terminal.rs"]
mod terminal;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{Ended, Place, skip, wait_until};
use tempfile::TempDir;
use terminal::Terminal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_credential-vault");

/// A service with three credentials.
fn service(place: &Place) -> support::Service {
    let service = place.start();
    for (name, value) in [
        ("openai/api_key", "completed-1"),
        ("email.you@example.com/pass word", "completed-2"),
        ("n/k", "completed-3"),
    ] {
        let (namespace, key) = name.split_once('/').expect("two parts");
        let path = format!("/v1/credentials/{namespace}/{}", key.replace(' ', "%20"));
        let stored = service.put(&path, &json!({ "value": value }));
        assert_eq!(stored.status, 200, "{stored:?}");
    }
    service
}

/// The pages and completions, as packages install them.
fn files() -> TempDir {
    let directory = TempDir::new().expect("a directory");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/docs-files");
    Ended::of(Command::new(script).arg(PROGRAM).arg(directory.path())).ok();
    directory
}

fn has_program(name: &str) -> bool {
    let has = Command::new(name).arg("--version").output().is_ok();
    if !has {
        skip(&format!("{name} is not installed: scripts/install-test-deps"));
    }
    has
}

/// Every command's help, and the errors, as docs/commands.md has them. To write them anew:
/// `TRYCMD=overwrite cargo test --test help golden`.
#[test]
fn help_and_errors_are_those_of_the_golden_page() {
    let page = include_str!("../docs/commands.md");
    let definitions = Ended::of(Command::new(PROGRAM).arg("__definitions")).ok();
    let definitions: Value = serde_json::from_str(&definitions).expect("JSON");
    let commands = |it: &Value| it["commands"].as_array().expect("a list").clone();
    for outer in commands(&definitions) {
        let name = outer["name"].as_str().expect("text").to_owned();
        let inner = commands(&outer["command"]);
        let inner = inner.iter().map(|it| format!("{name} {}", it["name"].as_str().expect("text")));
        for name in inner.chain([name.clone()]) {
            let line = format!("\n$ credential-vault {name} --help\n");
            assert!(page.contains(&line), "docs/commands.md lacks a section with {line}");
        }
    }
    let place = Place::new();
    let service = service(&place);
    trycmd::TestCases::new()
        .register_bin("credential-vault", Path::new(PROGRAM))
        .env("INTENTFRAME_VAULT_SOCKET", service.socket.to_str().expect("UTF-8"))
        .env("HOME", "/nonexistent")
        .case("docs/commands.md");
}

// Completions.

/// Starts a shell on a terminal, sets it up, and has it complete and run command lines.
fn completes(shell: &str, options: &[&str], setup: &dyn Fn(&Path) -> String) {
    if !has_program(shell) {
        return;
    }
    let (place, files) = (Place::new(), files());
    let service = service(&place);
    let folder = Path::new(PROGRAM).parent().expect("has one").display();
    let mut command = Command::new(shell);
    command.args(options).env("TERM", "dumb").env("HOME", place.root());
    command.env("PATH", format!("{folder}:{}", std::env::var("PATH").expect("is set")));
    command.env("INTENTFRAME_VAULT_SOCKET", &service.socket);
    let terminal = Terminal::start(&command);
    terminal.types(&setup(&files.path().join("completions")));
    for (typed, completed, output) in [
        ("credential-vault runt|--js", "runtime-env|--json", "[]"),
        ("credential-vault get ope", "get openai/api_key", "completed-1"),
        ("credential-vault get email.you@ex", "email.you@example.com/pass\\ word", "completed-2"),
        ("credential-vault get --js|n/", "get --json|n/k", "{\"value\":\"completed-3\"}"),
        ("credential-vault list em", "list email.you@example.com", "executor_only"),
    ] {
        // What is typed before the prompt is there, or while the shell completes, may be lost.
        wait_until("a prompt", || terminal.shown().ends_with("ready> ") && !terminal.is_cooked());
        for (typed, completed) in typed.split('|').zip(completed.split('|')) {
            terminal.types(&format!("{typed}\t"));
            terminal.shows(completed);
        }
        terminal.types("\n");
        terminal.shows(output);
    }
    terminal.types("exit\n");
    terminal.end();
}

#[test]
fn bash_completes_commands_options_and_credentials() {
    completes("bash", &["--norc", "-i"], &|folder| {
        format!("source {}/credential-vault; PS1='ready''> '\n", folder.display())
    });
}

#[test]
fn zsh_completes_commands_options_and_credentials() {
    completes("zsh", &["-f", "-i"], &|folder| {
        let folder = folder.display();
        format!(
            "fpath=({folder} $fpath); autoload -U compinit; compinit -u -D; \
             unset zle_bracketed_paste; PS1='ready''> '\n"
        )
    });
}

#[test]
fn fish_completes_commands_options_and_credentials() {
    completes("fish", &["--no-config", "-i"], &|folder| {
        format!(
            "source {}/credential-vault.fish; function fish_prompt; echo -n 'ready''> '; end\n",
            folder.display()
        )
    });
}

#[test]
fn completions_are_quiet_and_quick_without_a_vault() {
    let place = Place::new();
    let complete = |words: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("__complete").args(words).env("INTENTFRAME_VAULT_SOCKET", place.socket());
        let ended = Ended::of(&mut command).expect(0);
        assert_eq!(ended.stderr, "");
        ended.stdout
    };
    assert_eq!(complete(&["get", ""]), "");
    assert_eq!(
        complete(&["policy", "ex"]),
        "explain\tExplain what a policy decides for a running process\n"
    );
    assert!(complete(&["--socket", "/x", "list", "--lo"]).starts_with("--long\talso show"));
    for files in [&["serve", "--data-dir", ""][..], &["exec", "--", ""], &["backup", ""]] {
        assert_eq!(complete(files), "", "{files:?}");
    }
    // A service that takes the connection and never answers.
    std::fs::create_dir(place.root().join("run")).expect("creates");
    let listener = std::os::unix::net::UnixListener::bind(place.socket()).expect("binds");
    assert_eq!(complete(&["get", ""]), "");
    drop(listener);
}

// Manual pages.

#[test]
fn manual_pages_are_shown_by_man_and_without_fault_to_mandoc() {
    if !has_program("man") || !has_program("mandoc") {
        return;
    }
    let files = files();
    let mut names = Vec::new();
    for folder in ["man1", "man5"] {
        for entry in files.path().join("man").join(folder).read_dir().expect("is there") {
            let path: PathBuf = entry.expect("reads").path();
            let lint = Ended::of(Command::new("mandoc").args(["-Tlint", "-Wwarning"]).arg(&path));
            assert_eq!((lint.stdout.as_str(), lint.status.code()), ("", Some(0)), "{path:?}");
            let man = Ended::of(Command::new("man").args(["--warnings", "-l"]).arg(&path));
            assert_eq!(man.stderr, "", "{path:?}");
            let name = path.file_name().and_then(OsStr::to_str).expect("UTF-8").to_owned();
            assert!(man.ok().contains("DESCRIPTION"), "{name}");
            names.push(name);
        }
    }
    for name in [
        "credential-vault.1",
        "credential-vault-policy-explain.1",
        "credential-vault-policy.5",
        "vault.toml.5",
    ] {
        assert!(names.iter().any(|it| it == name), "{name} in {names:?}");
    }
}
