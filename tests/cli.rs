//! The command line as people and scripts use it, against the real service and a fake one.
#![cfg(unix)]

#[path = "support/fake.rs"]
mod fake;
mod support;
#[path = "support/terminal.rs"]
mod terminal;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fake::{Fake, Reply, json, no_body};
use serde_json::{Value, json as value};
use support::{Ended, Place};
use tempfile::TempDir;
use terminal::Terminal;

const SECRET: &str = "sk-canary-0123456789";

/// A command whose environment contains the socket only.
fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    command.args(arguments).env_clear().env("INTENTFRAME_VAULT_SOCKET", socket);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(socket: &Path, arguments: &[&str]) -> Ended {
    command(socket, arguments).output().expect("runs").into()
}

fn run_with_input(mut command: Command, input: &[u8]) -> Ended {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("starts");
    // A command that rejects its arguments does not read.
    let _ = child.stdin.take().expect("is piped").write_all(input);
    child.wait_with_output().expect("ends").into()
}

fn store(socket: &Path, arguments: &[&str], input: &[u8]) -> Ended {
    run_with_input(command(socket, &[&["store"], arguments].concat()), input)
}

// Against the real service.

#[test]
fn a_credential_is_stored_read_listed_and_deleted() {
    let (_place, service) = Place::serving();
    let vault = |arguments: &[&str]| run(&service.socket, arguments);

    let missing = vault(&["get", "openai/api_key"]).expect(1);
    assert_eq!(missing.stdout, "");
    assert!(missing.stderr.contains("no credential openai/api_key"), "{}", missing.stderr);
    assert!(missing.stderr.contains("credential-vault store openai/api_key"), "what to do");
    vault(&["has", "openai/api_key"]).expect(1);
    assert_eq!(vault(&["list"]).ok(), "");
    assert_eq!(vault(&["list", "--json"]).ok(), "[]\n");

    let options = [
        "openai/api_key",
        "--delivery-mode=runtime_env",
        "--consumer",
        "uwe",
        "--consumer=jarvis",
        "--env-name",
        "OPENAI_API_KEY",
    ];
    let stored = store(&service.socket, &options, format!("{SECRET}\n").as_bytes());
    assert_eq!(stored.ok(), "");
    store(&service.socket, &["email.you@gmail.com/pass word%"], "пароль 🔑\"\\\n".as_bytes()).ok();

    assert_eq!(vault(&["get", "openai/api_key"]).ok(), SECRET, "the bare value");
    assert_eq!(vault(&["get", "email.you@gmail.com/pass word%"]).ok(), "пароль 🔑\"\\");
    assert_eq!(
        vault(&["get", "--json", "openai/api_key"]).ok(),
        format!("{{\"value\":\"{SECRET}\"}}\n")
    );
    assert_eq!(vault(&["has", "openai/api_key"]).ok(), "");
    assert_eq!(vault(&["has", "openai/api_key", "--json"]).ok(), "{\"exists\":true}\n");
    assert_eq!(vault(&["has", "openai/x", "--json"]).expect(1).stdout, "{\"exists\":false}\n");

    assert_eq!(vault(&["runtime-env"]).ok(), "openai\tapi_key\tOPENAI_API_KEY\tuwe,jarvis\n");
    let entries: Value =
        serde_json::from_str(&vault(&["runtime-env", "--json"]).ok()).expect("JSON");
    assert_eq!(entries[0]["allowed_consumers"], value!(["uwe", "jarvis"]));

    let listing = vault(&["list"]).ok();
    let lines: Vec<Vec<_>> = listing.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0][..4], ["email.you@gmail.com", "pass word%", "executor_only", "****"]);
    assert_eq!(lines[1][..4], ["openai", "api_key", "runtime_env", "sk-can....89"]);
    assert!(lines.iter().all(|line| line.len() == 6 && line[4].ends_with('Z')), "{listing}");
    assert_eq!(vault(&["list", "openai"]).ok().lines().count(), 1);
    assert_eq!(vault(&["list", "nobody"]).ok(), "");
    assert_eq!(
        vault(&["list", "--json"]).ok().trim_end(),
        service.get("/v1/credentials").text(),
        "the wire's JSON as it is"
    );

    let health = vault(&["health"]).ok();
    assert!(health.starts_with("status\tok\nbackend\tEnvVault\ncredential_count\t2\n"), "{health}");
    let health: Value = serde_json::from_str(&vault(&["health", "--json"]).ok()).expect("JSON");
    assert_eq!(health["credential_count"], 2);

    assert_eq!(vault(&["delete", "openai/api_key"]).ok(), "");
    vault(&["get", "openai/api_key"]).expect(1);
    assert_eq!(
        vault(&["delete", "openai/api_key"]).ok(),
        "",
        "deleting succeeds without a credential"
    );
}

#[test]
fn check_succeeds_only_if_every_credential_exists() {
    let (place, service) = Place::serving();
    for name in ["a/k", "b/k"] {
        store(&service.socket, &[name], b"v").ok();
    }
    let check = |names: &[&str]| run(&service.socket, &[&["check"], names].concat());
    assert_eq!(check(&["a/k", "b/k"]).ok(), "");
    assert_eq!(check(&["--json", "a/k"]).ok(), "{\"ok\":true,\"missing\":[]}\n");
    let lacking = check(&["a/k", "a/x", "b/k", "c/k"]).expect(1);
    assert_eq!(lacking.stdout, "a/x\nc/k\n");
    assert!(lacking.stderr.contains("2 of 4 credentials are missing"), "{}", lacking.stderr);
    assert_eq!(
        check(&["--json", "c/k"]).expect(1).stdout,
        "{\"ok\":false,\"missing\":[\"c/k\"]}\n"
    );
    check(&[]).expect(2);
    check(&["nonsense"]).expect(2);

    drop(service);
    let gone = run(&place.socket(), &["check", "a/k", "b/k"]).expect(1);
    assert_eq!(gone.stdout, "a/k\nb/k\n", "the service confirmed none");
    assert!(gone.stderr.contains("no vault answers"), "{}", gone.stderr);
    let gone = run(&place.socket(), &["check", "--json", "a/k"]).expect(1);
    let report: Value = serde_json::from_str(&gone.stdout).expect("JSON");
    assert_eq!(report["ok"], false);
    assert_eq!(report["missing"], value!(["a/k"]));
}

#[test]
fn a_stored_value_is_returned_unchanged() {
    let (_place, service) = Place::serving();
    let round_trip = |options: &[&str], input: &str| {
        store(&service.socket, &[&["n/k"], options].concat(), input.as_bytes()).ok();
        run(&service.socket, &["get", "n/k"]).ok()
    };
    assert_eq!(round_trip(&[], "v\n"), "v");
    assert_eq!(round_trip(&[], "v\r\n"), "v");
    assert_eq!(round_trip(&[], "v\n\n"), "v\n");
    assert_eq!(round_trip(&["--keep-newline"], "v\n"), "v\n");
    assert_eq!(round_trip(&[], "a\0b\tc"), "a\0b\tc");
    assert_eq!(round_trip(&["--allow-empty"], ""), "");
    let longest = "\u{1}".repeat(256 * 1024);
    assert!(round_trip(&[], &longest) == longest);

    for (input, complaint) in [
        (&b"\n"[..], "empty"),
        (b"", "empty"),
        (b"sk-canary\xff", "not UTF-8"),
        (&vec![b'v'; 256 * 1024 + 1], "longer than 256 KiB"),
        (&vec![b'v'; 3 << 20], "longer than 256 KiB"),
    ] {
        let refused = store(&service.socket, &["n/k"], input).expect(2);
        assert!(refused.stderr.contains(complaint), "{}", refused.stderr);
        assert!(!refused.stderr.contains("canary"), "{}", refused.stderr);
    }
    assert!(run(&service.socket, &["get", "n/k"]).ok() == longest, "it is unchanged");
}

// Against a fake service.

#[test]
fn each_failure_has_its_exit_code() {
    let detail = |status, detail| json(status, &format!(r#"{{"detail":"{detail}"}}"#));
    for (code, reply, told) in [
        (1, detail("404 Not Found", "credential not found"), "no credential n/k"),
        (4, detail("403 Forbidden", "uid 7 may not"), "uid 7 may not"),
        (4, detail("422 Unprocessable Entity", "bad name"), "bad name"),
        (5, detail("500 Internal Server Error", "disk full"), "disk full"),
        (5, detail("503 Service Unavailable", "unlock the keyring"), "unlock the keyring"),
        (5, Reply::Last(b"SSH-2.0-OpenSSH_9\r\n".to_vec()), "does not answer like a vault"),
        (5, json("200 OK", "{}"), "does not answer like a vault"),
        (3, Reply::Last(Vec::new()), "closed the connection"),
    ] {
        let reply = std::sync::Mutex::new(Some(reply));
        let last = std::sync::Mutex::new(Vec::new());
        let fake = Fake::new(move |_| {
            // The client repeats a request whose connection broke.
            match reply.lock().expect("no panic").take() {
                Some(Reply::Last(bytes)) => {
                    last.lock().expect("no panic").clone_from(&bytes);
                    Reply::Last(bytes)
                }
                Some(reply) => reply,
                None => Reply::Last(last.lock().expect("no panic").clone()),
            }
        });
        let ended = run(&fake.socket, &["get", "n/k"]).expect(code);
        assert!(ended.stderr.starts_with("credential-vault: "), "{}", ended.stderr);
        assert!(ended.stderr.contains(told), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
    for (code, status) in [(1, "404 Not Found"), (4, "403 Forbidden"), (5, "503 Unavailable")] {
        let fake = Fake::new(move |_| no_body(status));
        run(&fake.socket, &["has", "n/k"]).expect(code);
        let doubt = run(&fake.socket, &["check", "n/k", "n/l"]).expect(1);
        assert_eq!(doubt.stdout, "n/k\nn/l\n");
    }
}

#[test]
fn an_unreachable_service_is_code_3_and_names_the_socket() {
    let dir = TempDir::new().expect("a directory");
    let socket = dir.path().join("vault.sock");
    let everything: [&[&str]; 7] = [
        &["health"],
        &["list"],
        &["get", "n/k"],
        &["has", "n/k"],
        &["delete", "n/k"],
        &["runtime-env"],
        &["store", "n/k"],
    ];
    for arguments in everything {
        let ended = run_with_input(command(&socket, arguments), b"v").expect(3);
        assert!(ended.stderr.contains(socket.to_str().expect("UTF-8")), "{}", ended.stderr);
        assert!(ended.stderr.contains("credential-vault serve"), "{}", ended.stderr);
    }
    drop(UnixListener::bind(&socket).expect("binds"));
    let stale = run(&socket, &["health"]).expect(3);
    assert!(stale.stderr.contains("nothing listens"), "{}", stale.stderr);
}

#[test]
fn options_select_the_socket_before_variables_and_defaults() {
    let dir = TempDir::new().expect("a directory");
    let home = dir.path().to_str().expect("UTF-8");
    let asked = |arguments: &[&str], variable: Option<&str>| {
        let mut command = command(Path::new(""), arguments);
        command.env_remove("INTENTFRAME_VAULT_SOCKET").env("HOME", home);
        if let Some(path) = variable {
            command.env("INTENTFRAME_VAULT_SOCKET", path);
        }
        Ended::from(command.output().expect("runs")).expect(3).stderr
    };
    for (arguments, variable, expected) in [
        (&["health"][..], None, "/.intentframe/run/credential-vault.sock"),
        (&["health"], Some(""), "/.intentframe/run/credential-vault.sock"),
        (&["health"], Some("~/variable"), "/variable"),
        (&["--socket", "~/before", "health"], Some("~/variable"), "/before"),
        (&["--socket=~/before", "health", "--socket=~/after"], None, "/after"),
    ] {
        let stderr = asked(arguments, variable);
        assert!(stderr.contains(&format!(" {home}{expected}:")), "{arguments:?}: {stderr}");
    }
    let mut homeless = command(Path::new("~/s"), &["health"]);
    let stderr = Ended::from(homeless.output().expect("runs")).expect(2).stderr;
    assert!(stderr.contains("HOME is not set"), "{stderr}");
}

#[test]
fn names_from_the_service_do_not_control_the_terminal() {
    let fake = Fake::new(|asked| match asked.what.as_str() {
        "GET /v1/runtime-env" => json(
            "200 OK",
            r#"[{"namespace":"n\u001b[2J","key":"a\tb\nc","env_name":null,"allowed_consumers":[]}]"#,
        ),
        _ => json("403 Forbidden", r#"{"detail":"\u001b]0;x\u0007no"}"#),
    });
    assert_eq!(run(&fake.socket, &["runtime-env"]).ok(), "n\\u{1b}[2J\ta\\tb\\nc\t\t\n");
    let refused = run(&fake.socket, &["health"]).expect(4);
    assert!(!refused.stderr.contains(['\u{1b}', '\u{7}']), "{:?}", refused.stderr);
    assert!(refused.stderr.contains("\\u{1b}]0;x\\u{7}no"), "{:?}", refused.stderr);
}

#[test]
fn a_closed_output_ends_a_command_quietly() {
    let entries = format!(
        "[{}]",
        vec![r#"{"namespace":"n","key":"k","env_name":"E","allowed_consumers":[]}"#; 20_000]
            .join(",")
    );
    let fake = Fake::new(move |_| json("200 OK", &entries));
    let mut child = command(&fake.socket, &["runtime-env"]).spawn().expect("starts");
    // More than a pipe holds: the command is still writing when its reader goes.
    drop(child.stdout.take());
    let ended = Ended::from(child.wait_with_output().expect("ends"));
    ended.ok();
}

#[test]
#[cfg(target_os = "linux")]
fn a_failed_write_to_the_output_is_reported() {
    let fake = Fake::new(|_| json("200 OK", r#"{"value":"v"}"#));
    let full = std::fs::File::options().write(true).open("/dev/full").expect("is there");
    let mut command = command(&fake.socket, &["get", "n/k"]);
    let ended = Ended::from(command.stdout(full).output().expect("runs")).expect(5);
    assert!(ended.stderr.contains("cannot write to standard output"), "{}", ended.stderr);
}

// On a terminal.

/// What is on a terminal after a command has ended there with success.
#[track_caller]
fn screen(command: &Command) -> String {
    let (code, screen) = Terminal::start(command).end();
    assert_eq!(code, Some(0), "{screen}");
    screen
}

#[test]
fn a_terminal_prompts_for_a_value_and_does_not_show_it() {
    let (_place, service) = Place::serving();
    let prompt = "Value for n/k";
    let storing = command(&service.socket, &["store", "n/k"]);
    let terminal = Terminal::start(&storing);
    terminal.answers(prompt, SECRET);
    let (code, screen) = terminal.end();
    assert!(code == Some(0) && !screen.contains("canary"), "{screen}");
    assert_eq!(run(&service.socket, &["get", "n/k"]).ok(), SECRET);

    let terminal = Terminal::start(&storing);
    terminal.answers(prompt, "");
    let (code, screen) = terminal.end();
    assert!(code == Some(2) && screen.contains("empty"), "{screen}");
    assert_eq!(run(&service.socket, &["get", "n/k"]).ok(), SECRET, "it is unchanged");
}

#[test]
fn people_get_tables_and_a_newline_after_a_value() {
    let fake = Fake::new(|asked| match asked.what.as_str() {
        "GET /v1/credentials/n/k" => json("200 OK", r#"{"value":"v"}"#),
        "GET /v1/runtime-env" => json("200 OK", "[]"),
        "GET /health" => {
            json("200 OK", r#"{"status":"ok","backend":"EnvVault","credential_count":1}"#)
        }
        _ => json(
            "200 OK",
            r#"[{"namespace":"openai","key":"東京","delivery_mode":"runtime_env",
                "masked_preview":"sk-pro....YZ","created_at":"2026-11-23T18:17:36.320458Z",
                "updated_at":"2026-11-23T18:17:36.320458Z","last_validated_at":null,
                "last_used_at":null,"valid":null}]"#,
        ),
    });
    let screen = |arguments: &[&str]| screen(&command(&fake.socket, arguments));
    assert_eq!(screen(&["get", "n/k"]), "v\n");
    assert_eq!(
        screen(&["list"]),
        "NAMESPACE  KEY   DELIVERY     VALUE         STORED             LAST USED\n\
             openai     東京  runtime_env  sk-pro....YZ  2026-11-23 18:17Z  -\n"
    );
    assert_eq!(screen(&["runtime-env"]), "NAMESPACE  KEY  VARIABLE  CONSUMERS\n");
    let health = screen(&["health"]);
    assert!(health.contains("backend           EnvVault\n"), "{health}");
}

#[test]
fn a_value_does_not_control_the_terminal() {
    let value = "line\tone\r\nline two \u{1b}]0;title\u{7}\u{1b}[2J\u{202e}\u{200b}\u{9b}é 東";
    let answer = serde_json::json!({ "value": value }).to_string();
    let fake = Fake::new(move |_| json("200 OK", &answer));
    let get = |options: &[&str]| command(&fake.socket, &[&["get", "n/k"], options].concat());
    assert_eq!(run(&fake.socket, &["get", "n/k"]).ok(), value, "a program gets the value");
    // The tabs of the terminal are bytes like others; each newline became CRLF.
    assert_eq!(
        screen(&get(&[])),
        "line\tone\\r\nline two \\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{202e}\\u{200b}\\u{9b}é 東\n"
    );
    let json: Value = serde_json::from_str(&screen(&get(&["--json"]))).expect("JSON");
    assert_eq!(json["value"], value);
}

// The report of the development service.

/// Starts `dev` in `directory`, and returns its output until it serves or ends.
fn dev_report(directory: &TempDir, arguments: &[&str]) -> (String, Child) {
    let root = directory.path();
    let mut command = command(&root.join("run/vault.sock"), &[&["dev"], arguments].concat());
    command.env("HOME", root).env("INTENTFRAME_DATA_DIR", root.join("production"));
    let mut child = command.current_dir(root).spawn().expect("starts");
    let mut said = String::new();
    for line in BufReader::new(child.stdout.take().expect("is piped")).lines() {
        let line = line.expect("UTF-8");
        said.push_str(&line);
        said.push('\n');
        if line.starts_with("Serving.") {
            break;
        }
    }
    (said, child)
}

/// The output of `dev`, which is then killed.
fn dev_says(directory: &TempDir, arguments: &[&str]) -> String {
    let (said, mut child) = dev_report(directory, arguments);
    child.kill().expect("is ours");
    child.wait().expect("ends");
    said
}

#[test]
fn dev_reports_what_it_seeds_and_skips_without_values() {
    let directory = TempDir::new().expect("a directory");
    let env_file = format!(
        "\u{feff}export OPENAI_API_KEY=\"{SECRET}\" # mine\r\nANTHROPIC_API_KEY=\r\n\
         EMAIL_WORK_ADDRESS = you@gmail.com\r\nEMAIL_WORK_PASSWORD='canary # 1'\r\n\
         EMAIL_HOME_ADDRESS=me@gmail.com\r\nPATH=/bin\r\ncanary\r\n"
    );
    std::fs::write(directory.path().join(".env"), env_file).expect("writes");
    let (said, mut child) = dev_report(&directory, &[]);
    let socket = directory.path().join("run/vault.sock");
    assert_eq!(run(&socket, &["get", "openai/api_key"]).ok(), SECRET);
    assert_eq!(run(&socket, &["get", "email.you@gmail.com/password"]).ok(), "canary # 1");
    assert_eq!(
        run(&socket, &["runtime-env"]).ok(),
        "openai\tapi_key\tOPENAI_API_KEY\tuwe,jarvis\n"
    );
    child.kill().expect("is ours");
    child.wait().expect("ends");

    for line in [
        "Seeding from .env.",
        "  openai               api_key   runtime_env    OPENAI_API_KEY  uwe,jarvis  sk-can....89",
        "  email.you@gmail.com  password  executor_only  -               edi         ****",
        "  ANTHROPIC_API_KEY: it is empty",
        "  EMAIL_HOME_ADDRESS: there is no EMAIL_HOME_PASSWORD to go with it",
        "  line 7: there is no = after the name",
        "  PATH",
    ] {
        assert!(said.lines().any(|it| it == line), "no {line:?} in:\n{said}");
    }
    assert!(!said.contains("canary"), "{said}");
    assert!(!directory.path().join("production").exists(), "the real service's directory");
}

#[test]
fn dev_over_tcp_needs_its_token_and_gives_out_its_seeds_only() {
    let directory = TempDir::new().expect("a directory");
    std::fs::write(directory.path().join(".env"), format!("OPENAI_API_KEY={SECRET}\n"))
        .expect("writes");
    let root = directory.path();
    let mut dev = command(&root.join("run/vault.sock"), &["dev", "--tcp", "--port", "0"]);
    dev.env("HOME", root).env("VAULT_TOKEN", "s.the-real-one").current_dir(root);
    let mut child = dev.spawn().expect("starts");
    let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
    let printed = lines.map(|line| line.expect("UTF-8")).find(|line| line.ends_with("/health"));
    let printed = printed.expect("a line for curl");
    let (token, address) = printed
        .split_once("Bearer ")
        .and_then(|(_, rest)| rest.strip_suffix("/health")?.split_once("' http://"))
        .expect("a token and an address");
    assert_eq!(token.len(), 32);
    let status = |path: &str, headers: &[&str]| {
        let mut curl = Command::new("curl");
        if rustix::process::getuid().is_root() {
            // Any user can connect.
            std::os::unix::process::CommandExt::uid(&mut curl, 61_003);
        }
        for header in headers {
            curl.args(["-H", header]);
        }
        curl.args(["--silent", "--max-time", "20", "--noproxy", "*", "-w", "\n%{http_code}"]);
        let output = curl.arg(format!("http://{address}{path}")).current_dir("/").output();
        let text = String::from_utf8(output.expect("curl is installed").stdout).expect("UTF-8");
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.to_owned(), body.to_owned())
    };
    let right = format!("Authorization: Bearer {token}");
    for (headers, expected) in [
        (&[][..], "401"),
        (&["Authorization: Bearer 0"], "401"),
        (&["Authorization: Basic 0"], "401"),
        (&[right.as_str()], "200"),
        (&[right.as_str(), "Sec-Fetch-Site: none"], "200"),
        (&[right.as_str(), "Sec-Fetch-Site: cross-site"], "403"),
        (&[right.as_str(), "Sec-Fetch-Site: same-site"], "403"),
        (&[right.as_str(), "Origin: http://localhost"], "403"),
        (&[right.as_str(), "Host: localhost:evil"], "403"),
        (&[right.as_str(), "Host: vault.example"], "403"),
    ] {
        assert_eq!(status("/v1/credentials/openai/api_key", headers).0, expected, "{headers:?}");
        assert_eq!(status("/health", headers).0, expected, "{headers:?}");
    }
    let (found, body) = status("/v1/credentials/vault/token", &[&right]);
    assert_eq!(found, "404", "{body}");
    child.kill().expect("is ours");
    child.wait().expect("ends");
}

#[test]
fn dev_without_a_file_uses_the_example_and_writes_none() {
    let directory = TempDir::new().expect("a directory");
    let said = dev_says(&directory, &[]);
    assert!(said.contains("neither .env nor .env.example"), "{said}");
    assert!(said.contains("Nothing is seeded."), "{said}");

    let example = include_str!("../.env.example");
    std::fs::write(directory.path().join(".env.example"), example).expect("writes");
    let said = dev_says(&directory, &[]);
    assert!(said.starts_with("There is no .env here; seeding from .env.example"), "{said}");
    let seeded: Vec<_> = said.lines().filter(|line| line.contains("....")).collect();
    assert_eq!(seeded.len(), 3, "{said}");
    assert!(!said.contains("Skipped") && !said.contains("Not credentials"), "{said}");
    assert!(!directory.path().join(".env").exists());

    let (_, child) = dev_report(&directory, &["--env-file", "missing.env"]);
    let refused = Ended::from(child.wait_with_output().expect("ends")).expect(2);
    assert!(refused.stderr.contains("cannot read missing.env"), "{}", refused.stderr);
}
