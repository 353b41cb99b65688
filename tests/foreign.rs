//! `import --from`: credentials of other programs, in samples of their formats and by `pass`.
#![cfg(target_os = "linux")]

#[path = "support/session.rs"]
mod session;
mod support;
#[path = "support/terminal.rs"]
mod terminal;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::process::Signal;
use serde_json::json;
use support::{Ended, Place, skip};
use terminal::Terminal;

/// `credential-vault import` into a sealed store, or another backend.
fn import(place: &Place, backend: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.arg("import").args(arguments).args(["--backend", backend, "--data-dir"]);
    command.arg(place.data_dir()).env_clear().env("HOME", place.root());
    command.env("PATH", std::env::var_os("PATH").expect("is set"));
    command
}

fn run(place: &Place, arguments: &[&str]) -> Ended {
    let ended = Ended::of(&mut import(place, "sealed", arguments));
    assert!(!format!("{ended:?}").contains("canary"), "a value is shown: {ended:?}");
    ended
}

/// What the vault has, a line for each: the name, the variable and the value.
fn stored(place: &Place) -> Vec<String> {
    let mut service = place.setup_with("sealed").start();
    let variables = service.get("/v1/runtime-env").json();
    let mut lines = Vec::new();
    for it in service.get("/v1/credentials").json().as_array().expect("a list") {
        let (namespace, key) =
            (it["namespace"].as_str().expect("is"), it["key"].as_str().expect("is"));
        let same =
            |entry: &&serde_json::Value| entry["key"] == key && entry["namespace"] == namespace;
        let variable = variables.as_array().expect("a list").iter().find(same);
        let variable = variable.map_or("-", |it| it["env_name"].as_str().expect("has one"));
        let path = format!("/v1/credentials/{namespace}/{}", key.replace(' ', "%20"));
        lines.push(format!("{namespace}/{key} {variable} {}", service.get(&path).value()));
    }
    service.signal(Signal::TERM);
    service.wait();
    lines
}

#[test]
fn files_of_other_programs_become_credentials() {
    for (from, text, skipped, expected) in [
        (
            "dotenv",
            "export OPENAI_API_KEY='canary 1' # mine\nEMPTY=\ncanary\nA.B=canary2\n",
            "line 3: there is no =",
            &["env/a.b A.B canary2", "env/openai_api_key OPENAI_API_KEY canary 1"][..],
        ),
        (
            // 1Password
            "csv",
            "\u{feff}Title,Url,Username,Password,OTPAuth,Favorite,Archived,Tags,Notes\n\
             My Bank (new),https://x,me@example.com,\"can\"\"ary,1\",otpauth://c,false,false,,\"a\nb\"\n\
             my bank NEW,https://x,,canary-2,,false,false,,\n,https://x,,canary-3,,,,,\n",
            "there is another my-bank-new/password before it\n, password: ",
            &[
                "my-bank-new/notes - a\nb",
                "my-bank-new/password - can\"ary,1",
                "my-bank-new/totp - otpauth://c",
                "my-bank-new/username - me@example.com",
            ],
        ),
        (
            // KeePassXC
            "csv",
            "\"Group\",\"Title\",\"Username\",\"Password\",\"URL\",\"Notes\",\"TOTP\",\"Icon\",\"Last Modified\",\"Created\"\n\
             \"Root/Work\",\"GitHub\",\"octo\",\"canary-1\",\"\",\"\",\"\",\"0\",\"2026-01-01T00:00:00Z\",\"\"\n",
            "",
            &["github/password - canary-1", "github/username - octo"],
        ),
        (
            // Bitwarden
            "csv",
            "folder,favorite,type,name,notes,fields,reprompt,login_uri,login_username,login_password,login_totp\n\
             Social,1,login,Chat,,\"PIN: canary\",0,chat.example,me,canary-1,SEED\n",
            "",
            &[
                "chat/fields - PIN: canary",
                "chat/password - canary-1",
                "chat/totp - SEED",
                "chat/username - me",
            ],
        ),
        (
            "json",
            r#"{"encrypted":false,"folders":[],"items":[
                {"id":"1","type":1,"name":"Chat","notes":null,"favorite":false,
                 "fields":[{"name":"API key","value":"canary-3","type":1},{"name":"a/b","value":"canary"}],
                 "login":{"uris":[{"uri":"x"}],"username":"me","password":"canary-1","totp":null}},
                {"id":"2","type":2,"name":"Door","notes":"canary-2","secureNote":{"type":0}},
                {"id":"3","type":5,"name":"Host","sshKey":{"privateKey":"canary-4"}}]}"#,
            "Chat, a/b: ",
            &[
                "chat/API key - canary-3",
                "chat/password - canary-1",
                "chat/username - me",
                "door/notes - canary-2",
                "host/privateKey - canary-4",
            ],
        ),
    ] {
        let place = Place::new();
        let file = place.root().join("export");
        fs::write(&file, text).expect("writes");
        let ended = run(&place, &["--from", from, file.to_str().expect("UTF-8")]);
        let code = i32::from(!skipped.is_empty());
        let says = ended.failed(code, skipped);
        let counted = format!("{} stored, 0 are there already, 0 conflicts\n", expected.len());
        assert_eq!(says, counted);
        assert_eq!(stored(&place), expected, "{from}");
    }
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let place = Place::new();
    let file = place.root().join("export");
    let path = file.to_str().expect("UTF-8");
    for (from, text, says) in [
        ("csv", "PK\u{3}\u{4}canary", "1PUX is not read"),
        ("csv", "a,b\ncanary,canary\n", "no column `Title` or `name`"),
        ("csv", "name,password\nn,canary\nn\n", "this is no CSV"),
        ("json", "canary", "this is no JSON"),
        ("json", r#"{"encrypted":true,"items":[{"name":"canary"}]}"#, "an encrypted one"),
        ("json", r#"{"accounts":["canary"]}"#, "no export of Bitwarden"),
        ("xml", "canary", "--from takes"),
        ("pass", "canary", "--from takes"),
    ] {
        fs::write(&file, text).expect("writes");
        run(&place, &["--from", from, path]).failed(2, says);
    }
    run(&place, &["--from", "csv"]).failed(2, "--from takes");
    assert!(!place.database().exists());
}

#[test]
fn a_terminal_shows_the_plan_and_asks() {
    let place = Place::new();
    let file = place.root().join(".env");
    let arguments = ["--from", "dotenv", "--namespace", "web", file.to_str().expect("UTF-8")];
    let answer = |answer: &str| {
        let terminal = Terminal::start(&import(&place, "sealed", &arguments));
        terminal.answers("Store them? [y/N]", answer);
        terminal.end()
    };
    fs::write(&file, "A=canary-1\nB=canary-2\n").expect("writes");
    let (code, screen) = answer("no");
    assert_eq!(code, Some(5), "{screen}");
    assert!(screen.contains("web/a\nweb/b\n2 would be stored, 0 are there"), "{screen}");
    assert!(screen.contains("nothing was changed") && !screen.contains("canary"), "{screen}");
    assert!(stored(&place).is_empty());

    let (code, screen) = answer("y");
    assert!(code == Some(0) && screen.contains("\n2 stored"), "{screen}");
    fs::write(&file, "A=canary-1\nB=canary-3\nC=canary-4\n").expect("writes");
    run(&place, &[&arguments[..], &["--dry-run"]].concat()).failed(1, "web/b");
    // The same command goes on.
    run(&place, &arguments).failed(1, "web/b was not stored: another");
    assert_eq!(stored(&place), ["web/a A canary-1", "web/b B canary-2", "web/c C canary-4"]);
    run(&place, &[&arguments[..], &["--replace"]].concat()).says("1 stored, 2 are there already");
    assert_eq!(stored(&place)[1], "web/b B canary-3");
}

#[test]
fn the_password_store_is_decrypted_by_pass() {
    if ["pass", "gpg"].iter().any(|it| Command::new(it).arg("--version").output().is_err()) {
        return skip("pass and gpg are not installed: scripts/install-test-deps");
    }
    let place = Place::new();
    let home = place.root().join(".gnupg");
    fs::create_dir(&home).expect("creates");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("is ours");
    let shell = |commands: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-ec", commands]).env("HOME", place.root()).env_remove("GNUPGHOME");
        shell.env_remove("PASSWORD_STORE_DIR");
        Ended::of(&mut shell).expect(0)
    };
    shell(
        "gpg --batch --quiet --passphrase '' --quick-generate-key test@example.com default default never
         pass init test@example.com
         printf 'canary-1\\nlogin: me\\n' | pass insert --multiline work/github/token
         printf -- '-----BEGIN KEY-----\\ncanary-2\\n' | pass insert --multiline ssh/host
         printf 'canary-3\\n' | pass insert --multiline 'top level'
         echo canary >~/.password-store/work/broken.gpg",
    );
    run(&place, &["--from", "pass"]).expect(1);
    let expected = [
        "pass/top level - canary-3",
        "ssh/host - -----BEGIN KEY-----\ncanary-2\n",
        "work.github/token - canary-1",
        "work.github/token.notes - login: me",
    ];
    assert_eq!(stored(&place), expected);
    run(&place, &["--from", "pass"]).failed(1, "work/broken: pass does not decrypt it");
    shell("gpgconf --kill all");
}

/// What the Python service wrote is where this service reads it.
#[test]
fn nothing_moves_from_the_python_service() {
    if !session::session("nothing_moves_from_the_python_service") {
        return;
    }
    let place = Place::new();
    let bus = session::bus();
    let python = || {
        let mut command = import(&place, "keyring", &["--from", "python"]);
        Ended::of(command.env("DBUS_SESSION_BUS_ADDRESS", &bus))
    };
    python().failed(2, "there is no database");
    place.seed_database(1);
    let mut service = place.setup_with("keyring").env("DBUS_SESSION_BUS_ADDRESS", &bus).start();
    service.put("/v1/credentials/seeded/key-000000", &json!({ "value": "canary" }));
    service.signal(Signal::TERM);
    service.wait();
    python().says("seeded/key-000000\nall of them have their values");
    rusqlite::Connection::open(place.database())
        .expect("opens")
        .execute("UPDATE credential_metadata SET key = 'lost'", [])
        .expect("changes");
    python().failed(5, "seeded/lost: it has no value");
}
