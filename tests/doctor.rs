//! `doctor`: each kind of finding, on real files, sockets, keyrings and servers.
#![cfg(target_os = "linux")]

#[path = "support/hashicorp.rs"]
mod hashicorp;
#[path = "support/session.rs"]
mod session;
mod support;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hashicorp::{POLICY_WITHOUT_PATCH, Target, stored};
use intentframe_credentials::{BackendOptions, CredentialRef, Environment, Secret, create_vault};
use rusqlite::Connection as Database;
use serde_json::{Value, json};
use support::{Place, Running, Setup, cannot_here, is_root, mode, set_mode, wait_until};

const VALUE: &str = "sk-canary-0123456789";

/// What `doctor` found, and its exit code.
struct Examined {
    code: i32,
    findings: Vec<Value>,
}

#[track_caller]
fn examine(setup: Setup) -> Examined {
    let output = setup.argument("--json").run("doctor");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let (code, stdout) = (output.status.code().expect("an exit code"), text(output.stdout));
    let stderr = text(output.stderr);
    assert!(!stdout.contains("canary") && !stderr.contains("canary"), "{stdout} {stderr}");
    let findings = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout} {stderr}"));
    let examined = Examined { code, findings };
    for it in &examined.findings {
        let words = |name: &str| it[name].as_str().is_some_and(|text| !text.is_empty());
        assert!(words("about") && words("what"), "{it}");
        assert_eq!(words("why") && words("do"), it["severity"] != "ok", "{it}");
    }
    let is_left = |it: &&Value| it["severity"] == "problem" && it["fixed"].is_null();
    let left = examined.findings.iter().filter(is_left).count();
    assert_eq!(code, i32::from(left > 0), "{:#?} {stderr}", examined.findings);
    examined
}

impl Examined {
    /// The findings of one kind.
    fn all(&self, kind: &str) -> Vec<&Value> {
        self.findings.iter().filter(|it| it["kind"] == kind).collect()
    }

    /// The only finding of its kind.
    #[track_caller]
    fn one(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind}: {:#?}", self.findings);
        all[0]
    }

    /// The kinds of findings that are not `ok`, sorted.
    fn bad(&self) -> Vec<&str> {
        let bad = self.findings.iter().filter(|it| it["severity"] != "ok");
        let mut kinds: Vec<_> = bad.map(|it| it["kind"].as_str().expect("a text")).collect();
        kinds.sort_unstable();
        kinds
    }

    /// Everything that was found about `about`.
    fn about(&self, about: &Path) -> Vec<&Value> {
        let about = about.to_str().expect("UTF-8");
        self.findings.iter().filter(|it| it["about"] == about).collect()
    }
}

fn execute(place: &Place, sql: &str) {
    let database = Database::open(place.database()).expect("opens");
    database.busy_timeout(support::DEADLINE).expect("sets it");
    database.execute_batch(sql).expect("executes");
}

#[test]
fn a_sound_vault_has_no_findings_with_and_without_its_service() {
    let place = Place::new();
    let empty = examine(place.setup());
    assert_eq!((empty.code, empty.bad().len()), (0, 0), "{:#?}", empty.findings);
    empty.one("service-absent");
    empty.one("database-absent");
    assert!(!place.data_dir().exists(), "nothing is created");

    let service = place.start();
    assert_eq!(service.put("/v1/credentials/n/k", &json!({ "value": VALUE })).status, 200);
    let serving = examine(place.setup());
    assert!(serving.bad().is_empty(), "{:#?}", serving.findings);
    let what = serving.one("service")["what"].as_str().expect("a text").to_owned();
    let of_us = format!("pid {}", service.id());
    assert!(what.contains(&of_us) && what.contains("ok, EnvVault"), "{what}");
    serving.one("database");
    serving.one("backend-memory");

    let other = examine(place.setup_with("keyring"));
    assert!(other.one("service-other-backend")["what"].to_string().contains("EnvVault"));

    // For people, the same in sentences.
    let output = place.setup().run("doctor");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.starts_with("ok       "), "{text}");
    let usage = place.setup_with("nonsense").run("doctor");
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn files_that_are_open_to_others_are_closed() {
    let place = Place::new();
    let (policy, log) = (place.root().join("policy.toml"), place.root().join("audit.jsonl"));
    fs::write(&policy, "").expect("writes");
    let setup = || place.setup().env("IF_VAULT_POLICY", &policy).env("IF_VAULT_AUDIT_LOG", &log);
    let service = setup().start();
    assert_eq!(service.put("/v1/credentials/n/k", &json!({ "value": VALUE })).status, 200);
    let wal = place.data_dir().join("credentials.db-wal");
    let run = place.root().join("run");
    let files = [
        (place.database(), 0o644, 0o600),
        (wal, 0o660, 0o600),
        (place.data_dir(), 0o777, 0o755),
        (run, 0o775, 0o755),
        (policy.clone(), 0o666, 0o644),
        (log.clone(), 0o646, 0o644),
    ];
    for (path, open, _) in &files {
        set_mode(path, *open);
    }
    let found = examine(setup());
    assert_eq!(found.all("mode-open").len(), files.len(), "{:#?}", found.findings);
    assert_eq!(mode(place.database()), 0o644, "nothing changes without --fix");

    let fixed = examine(setup().argument("--fix"));
    assert_eq!((fixed.code, fixed.all("mode-open").len()), (0, files.len()));
    for (path, _, closed) in &files {
        assert_eq!(mode(path), *closed, "{}", path.display());
        assert!(fixed.about(path)[0]["fixed"].to_string().contains("mode 0"));
    }
    assert!(examine(setup()).bad().is_empty());
    drop(service);

    // The socket of a service without a policy.
    let service = place.start();
    set_mode(&service.socket, 0o666);
    assert_eq!(examine(place.setup()).one("mode-open")["what"], "its mode is 0666");
    assert_eq!(examine(place.setup().argument("--fix")).code, 0);
    assert_eq!(mode(&service.socket), 0o600);
}

#[test]
fn files_of_other_users_are_reported_and_left_alone() {
    const OTHER: u32 = 61_020;
    if !is_root() {
        return;
    }
    let place = Place::new();
    drop(place.start());
    for path in [place.database(), place.data_dir()] {
        chown(&path, Some(OTHER), None).expect("gives it away");
        let found = examine(place.setup().argument("--fix"));
        assert_eq!(found.code, 1);
        let what = found.about(&path)[0]["what"].to_string();
        assert!(what.contains("belongs to user 61020"), "{what}");
        chown(&path, Some(0), None).expect("takes it back");
    }
    // A link is not followed, and nothing is done to what it leads to.
    let wal = place.data_dir().join("credentials.db-wal");
    let victim = place.root().join("victim");
    fs::write(&victim, "").expect("writes");
    set_mode(&victim, 0o644);
    fs::remove_file(&wal).expect("the killed service has left it");
    std::os::unix::fs::symlink(&victim, &wal).expect("links");
    let found = examine(place.setup().argument("--fix"));
    assert!(found.about(&wal)[0]["what"].to_string().contains("not a regular file"));
    assert_eq!(mode(&victim), 0o644);
    fs::remove_file(&wal).expect("removes");

    // A socket of another user's process.
    let socket = place.socket();
    let _ = fs::remove_file(&socket);
    set_mode(place.root(), 0o755);
    set_mode(socket.parent().expect("a directory"), 0o777);
    let mut python = Command::new("python3");
    std::os::unix::process::CommandExt::uid(&mut python, OTHER);
    let script = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\n\
        s.bind(sys.argv[1])\ns.listen()\ntime.sleep(60)";
    python.args(["-c", script]).arg(&socket).current_dir("/");
    let other = Running::start(&mut python);
    wait_until("it listens", || support::try_connect(&socket).is_ok());
    let found = examine(place.setup().argument("--fix"));
    drop(other);
    assert!(found.one("service-failed")["what"].to_string().contains("user ID 61020"));
    assert!(socket.exists(), "it is not ours to remove");
}

#[test]
fn a_stale_socket_is_removed_and_a_living_one_is_not() {
    let (place, mut service) = Place::serving();
    service.kill();
    let found = examine(place.setup());
    assert_eq!((found.code, found.bad()), (0, vec!["socket-stale"]));
    assert!(place.socket().exists());
    let fixed = examine(place.setup().argument("--fix"));
    assert_eq!(fixed.one("socket-stale")["fixed"], "removed");
    assert!(!place.socket().exists());

    // Not a service of ours: it closes each connection.
    let listener = UnixListener::bind(place.socket()).expect("binds");
    set_mode(place.socket(), 0o600);
    let closing = std::thread::spawn(move || {
        for stream in listener.incoming().take(8) {
            drop(stream);
        }
    });
    let found = examine(place.setup().argument("--fix"));
    assert_eq!(found.bad().len(), 1, "{:#?}", found.findings);
    assert!(place.socket().exists());
    while !closing.is_finished() {
        let _ = support::try_connect(&place.socket());
    }
    closing.join().expect("no panic");

    fs::remove_file(place.socket()).expect("removes");
    fs::write(place.socket(), "not a socket").expect("writes");
    set_mode(place.socket(), 0o600);
    let found = examine(place.setup().argument("--fix"));
    assert!(found.one("socket-stale")["what"].to_string().contains("not fixed"));
    assert!(place.socket().exists());
}

#[test]
fn a_damaged_database_is_reported() {
    let (place, service) = Place::serving();
    for key in 0..200 {
        let path = format!("/v1/credentials/n/k{key}");
        assert_eq!(service.put(&path, &json!({ "value": VALUE })).status, 200);
    }
    service.stop();
    assert!(examine(place.setup()).bad().is_empty());
    let whole = fs::read(place.database()).expect("reads");
    fs::write(place.database(), &whole[..whole.len() / 2]).expect("truncates");
    let found = examine(place.setup().argument("--fix"));
    assert_eq!((found.code, found.bad()), (1, vec!["database-unusable"]));
    assert_eq!(fs::read(place.database()).expect("reads"), whole[..whole.len() / 2]);

    // An index that does not belong to its table, which the start of a service does not notice.
    fs::write(place.database(), &whole).expect("restores");
    execute(
        &place,
        "PRAGMA writable_schema = ON;
         CREATE TABLE extra (a); CREATE INDEX extra_a ON extra (a); INSERT INTO extra VALUES (1);
         UPDATE sqlite_schema SET sql = 'CREATE INDEX extra_a ON extra (a DESC, 1)'
             WHERE name = 'extra_a'",
    );
    let found = examine(place.setup());
    assert_eq!((found.code, found.bad()), (1, vec!["database-unusable"]));
    fs::write(place.database(), "not a database, but some text").expect("writes");
    let what = examine(place.setup()).one("database-unusable")["what"].to_string();
    assert!(what.contains("not a database"), "{what}");
}

#[test]
fn a_disk_without_room_is_a_problem() {
    let place = Place::new();
    fs::create_dir(place.data_dir()).expect("creates");
    let output = Command::new("unshare")
        .args(if is_root() { &["-m"][..] } else { &["-m", "-U", "-r"] })
        .args([
            "sh",
            "-c",
            r#"mount -t tmpfs -o size=1m,mode=0700 none "$1" && shift && "$@""#,
            "sh",
        ])
        .arg(place.data_dir())
        .args([env!("CARGO_BIN_EXE_credential-vault"), "doctor", "--json", "--backend", "env"])
        .arg("--data-dir")
        .arg(place.data_dir())
        .arg("--socket")
        .arg(place.socket())
        .output()
        .expect("unshare starts");
    let text = String::from_utf8_lossy(&output.stdout);
    if text.is_empty() {
        return cannot_here("mounting a small file system is not permitted");
    }
    assert!(text.contains("disk-full") && output.status.code() == Some(1), "{text}");
}

#[test]
fn a_keyring_and_a_database_that_differ_are_brought_together() {
    if !session::session("a_keyring_and_a_database_that_differ_are_brought_together") {
        return;
    }
    let place = Place::new();
    let (bus, home) = (session::bus(), std::env::var("HOME").expect("the session has it"));
    let setup =
        || place.setup_with("keyring").env("DBUS_SESSION_BUS_ADDRESS", &bus).env("HOME", &home);
    let mut service = setup().start();
    for key in ["good", "lost", "other", "short"] {
        let value = if key == "short" { "canary" } else { VALUE };
        let body = json!({ "value": value, "env_name": "KEPT" });
        assert_eq!(service.put(&format!("/v1/credentials/n/{key}"), &body).status, 200);
    }
    let sound = examine(setup());
    assert!(sound.bad().is_empty(), "{:#?}", sound.findings);
    sound.one("backend");
    sound.one("values");

    // Behind the back of the service.
    let vault = create_vault("keyring", &BackendOptions::new(Environment::default()));
    let vault = vault.expect("is registered");
    let at = |key| CredentialRef::parse("n", key).expect("valid");
    let another = Secret::new("pk-canary-of-another-kind".to_owned());
    assert!(vault.delete(&at("lost")).expect("deletes"));
    vault.store(&at("other"), &another).expect("stores");
    vault.store(&at("unlisted"), &another).expect("stores");
    execute(
        &place,
        "UPDATE credential_metadata SET masked_preview = 'xxxxxx....xx' WHERE key = 'short'",
    );
    let differences = ["preview-wrong", "preview-wrong", "value-missing", "value-unlisted"];
    // While the service runs, nothing is changed under it.
    for option in ["--json", "--fix"] {
        let found = examine(setup().argument(option));
        assert_eq!(found.bad(), differences, "{:#?}", found.findings);
        assert_eq!(found.one("value-missing")["about"], "n/lost");
        assert_eq!(found.one("value-unlisted")["about"], "n/unlisted");
        assert!(found.findings.iter().all(|it| it["fixed"].is_null()));
    }
    assert_eq!(place.column("masked_preview", "n", "other").as_deref(), Some("sk-can....89"));

    service.kill();
    let fixed = examine(setup().argument("--fix"));
    assert_eq!(fixed.code, 1, "only previews are corrected");
    assert!(fixed.one("value-missing")["fixed"].is_null());
    assert_eq!(place.column("masked_preview", "n", "other").as_deref(), Some("pk-can....nd"));
    assert_eq!(place.column("masked_preview", "n", "short").as_deref(), Some("****"));
    assert_eq!(place.column("env_name", "n", "other").as_deref(), Some("KEPT"));
    assert_eq!(place.column("last_used_at", "n", "good"), None, "reading it did not use it");
    let left = examine(setup());
    assert_eq!(left.bad(), ["value-missing", "value-unlisted"]);
    assert!(vault.delete(&at("unlisted")).expect("deletes"));
    vault.store(&at("lost"), &Secret::new(VALUE.to_owned())).expect("stores");
    assert!(examine(setup()).bad().is_empty());

    // A change that a killed service has left is for the next service to settle.
    execute(
        &place,
        "DELETE FROM vault_intents;
        INSERT INTO vault_intents (namespace, key, salt) VALUES ('n', 'gone', x'00')",
    );
    vault.store(&at("gone"), &another).expect("stores");
    let open = examine(setup().argument("--fix"));
    assert_eq!((open.code, open.bad()), (0, vec!["change-open"]));
    execute(&place, "DELETE FROM vault_intents");
    assert!(vault.delete(&at("gone")).expect("deletes"));

    // A locked keyring, and none.
    let lock = "dbus-send --session --print-reply --dest=org.freedesktop.secrets \
        /org/freedesktop/secrets org.freedesktop.Secret.Service.Lock \
        array:objpath:/org/freedesktop/secrets/aliases/default";
    let locked = Command::new("sh").args(["-c", lock]).output().expect("runs");
    assert!(locked.status.success(), "{}", String::from_utf8_lossy(&locked.stderr));
    let found = examine(setup().argument("--fix"));
    assert_eq!(found.bad(), ["backend-failed"], "nothing is compared, let alone removed");
    assert!(found.one("backend-failed")["what"].to_string().contains("unlock it"));
    let none = setup().env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent");
    let found = examine(none.argument("--fix"));
    assert!(found.one("backend-failed")["what"].to_string().contains("cannot be reached"));
}

#[test]
fn a_vault_server_and_a_database_that_differ_are_brought_together() {
    let Some(target) = Target::new() else { return };
    let place = &target.place;
    let token = target.token_for(hashicorp::POLICY);
    let setup = || target.setup(place, &token);
    let mut service = setup().start();
    for key in ["good", "lost", "other", "number", "row"] {
        stored(&service, "n", key, VALUE);
    }
    let sound = examine(setup());
    // Its token has an hour, can be renewed, and is not periodic.
    assert_eq!((sound.code, sound.bad()), (0, vec!["token-ends"]));
    sound.one("grants");
    sound.one("values");
    let another = "pk-canary-of-another-kind";
    let fields = json!({ "lost": null, "other": another, "number": 7, "unlisted": another });
    target.patch("n", &fields);
    execute(place, "UPDATE credential_metadata SET created_at = 'x' WHERE key = 'row'");
    service.kill();
    let found = examine(setup());
    // With a row that cannot be read, nobody knows what is listed.
    assert_eq!(found.bad(), ["row-invalid", "socket-stale", "token-ends"]);
    execute(place, "UPDATE credential_metadata SET created_at = updated_at");
    let fixed = examine(setup().argument("--fix"));
    assert_eq!(fixed.code, 1, "the number is left");
    assert!(fixed.one("preview-wrong")["fixed"].is_string());
    let left = ["token-ends", "value-missing", "value-shared", "value-unreadable"];
    assert_eq!(examine(setup()).bad(), left);
    target.write(
        "n",
        &json!({ "good": VALUE, "lost": VALUE, "other": another, "number": VALUE, "row": VALUE, "new": VALUE }),
    );
    let left = examine(setup());
    assert_eq!((left.code, left.bad()), (0, vec!["token-ends", "value-shared"]));
    assert_eq!(left.one("value-shared")["about"], "n/new");
}

#[test]
fn tokens_and_policies_of_a_vault_server_are_examined() {
    let Some(target) = Target::new() else { return };
    let with = |token: &str| examine(target.setup(&target.place, token));
    let found = with(&target.token_for(POLICY_WITHOUT_PATCH));
    assert_eq!((found.code, found.bad()), (0, vec!["grants-patch", "token-ends"]));
    let read_only = r#"path "MOUNT/data/intentframe/*" { capabilities = ["read"] }"#;
    let what = with(&target.token_for(read_only)).one("grants-missing")["what"].to_string();
    assert!(what.contains("create, update, delete"), "{what}");

    let policy = target.policy("whole", hashicorp::POLICY);
    let token = |more: Value| {
        let mut fields = json!({ "policies": [policy] });
        fields.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        target.token(&fields)
    };
    let periodic = with(&token(json!({ "period": "1h" })));
    assert!(periodic.bad().is_empty(), "{:#?}", periodic.findings);
    periodic.one("token");
    let ending = token(json!({ "ttl": "2m", "renewable": false }));
    let found = with(&ending);
    assert_eq!((found.code, found.bad()), (1, vec!["token-ends-soon"]));
    // In a file, another may take its place.
    let file = target.place.root().join("token");
    fs::write(&file, &ending).expect("writes");
    set_mode(&file, 0o600);
    let in_file = target.bare_setup(&target.place).env("VAULT_TOKEN_FILE", &file);
    assert_eq!(examine(in_file).bad(), ["token-ends"]);
    let unknown = token(json!({ "no_default_policy": true, "ttl": "1h" }));
    assert_eq!(with(&unknown).bad(), ["grants-unknown", "token-unknown"]);

    let role = target.approle("r", json!({ "token_policies": [policy], "token_ttl": "1m" }));
    let found = examine(target.setup_with_role(&target.place, &role));
    assert!(found.bad().is_empty(), "{:#?}", found.findings);
    // A wrapped secret ID is left to the service.
    let mut wrapped = role;
    wrapped.secret_id = target.wrapped_secret_id("r");
    let setup =
        || target.setup_with_role(&target.place, &wrapped).env("VAULT_SECRET_ID_WRAPPED", "true");
    assert_eq!(examine(setup()).bad(), ["backend-skipped"]);
    let service = setup().start();
    service.stop();

    target.revoke(&ending);
    let found = with(&ending);
    assert_eq!((found.code, found.one("backend-failed")["about"].as_str()), (1, Some("hashicorp")));
    let nowhere = target.setup(&target.place, "t").env("VAULT_ADDR", "http://127.0.0.1:1");
    assert_eq!(examine(nowhere).bad(), ["backend-failed"]);
    let unset = target.place.setup_with("hashicorp").run("doctor");
    assert_eq!(unset.status.code(), Some(2), "a setting is missing");
}

#[test]
fn changes_under_way_are_no_findings() {
    let Some(target) = Target::new() else { return };
    let token = target
        .token(&json!({ "policies": [target.policy("p", hashicorp::POLICY)], "period": "1h" }));
    let setup = || target.setup(&target.place, &token);
    let service = setup().start();
    stored(&service, "n", "settled", VALUE);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (service, done) = (&service, &done);
            scope.spawn(move || {
                for round in (0..).take_while(|_| !done.load(Ordering::SeqCst)) {
                    // No two values in a row have the same preview.
                    stored(service, "n", &format!("k{writer}"), &format!("{round:06}-canary"));
                }
            });
        }
        let examined: Vec<_> = (0..2).map(|_| examine(setup().argument("--fix"))).collect();
        done.store(true, Ordering::SeqCst);
        for found in examined {
            assert!(found.bad().is_empty(), "{:#?}", found.findings);
        }
    });

    // A service on another socket: the database is its own all the same.
    target.patch("n", &json!({ "settled": "pk-canary-of-another-kind" }));
    let elsewhere = target.place.root().join("elsewhere.sock");
    fs::rename(&service.socket, &elsewhere).expect("moves");
    let found = examine(setup().argument("--fix"));
    fs::rename(&elsewhere, &service.socket).expect("moves back");
    let what = found.one("preview-wrong")["what"].to_string();
    assert!(what.contains("not fixed") && what.contains("another vault uses it"), "{what}");
    assert_eq!(service.get("/v1/credentials").json().as_array().map(Vec::len), Some(5));

    // A service whose backend is gone.
    target.revoke(&token);
    let _ = hashicorp::fetch(&service, "n", "settled");
    let found = examine(setup());
    found.one("service-degraded");
    found.one("backend-failed");
}

#[test]
fn a_sealed_store_is_examined_while_no_service_uses_it() {
    let place = Place::new();
    let setup = || place.setup_with("sealed");
    let key = place.root().join("vault.key");
    assert!(examine(setup()).bad().is_empty() && !key.exists(), "nothing is made");
    let service = setup().start();
    for name in ["good", "lost", "damaged"] {
        let path = format!("/v1/credentials/n/{name}");
        assert_eq!(service.put(&path, &json!({ "value": VALUE })).status, 200);
    }
    let serving = examine(setup());
    assert!(serving.bad().is_empty(), "{:#?}", serving.findings);
    serving.one("backend-sealed");
    service.stop();
    let sound = examine(setup());
    assert!(sound.bad().is_empty(), "{:#?}", sound.findings);
    sound.one("values");

    execute(
        &place,
        "DELETE FROM vault_sealed WHERE key = 'lost';
         UPDATE vault_sealed SET blob = x'00' WHERE key = 'damaged'",
    );
    set_mode(&key, 0o444);
    assert_eq!(examine(setup()).bad(), ["backend-failed", "mode-open"]);
    let fixed = examine(setup().argument("--fix"));
    assert_eq!((fixed.code, mode(&key)), (1, 0o400));
    assert_eq!(fixed.bad(), ["mode-open", "value-missing", "value-unreadable"]);
    assert_eq!(fixed.one("value-unreadable")["about"], "n/damaged");
    assert_eq!(examine(setup()).bad(), ["value-missing", "value-unreadable"]);

    fs::rename(&key, place.root().join("elsewhere.key")).expect("moves");
    assert_eq!(examine(setup()).bad(), ["backend-failed"]);
    let elsewhere = place.root().join("elsewhere.key");
    let given = setup().option("--key-file", &elsewhere);
    assert_eq!(examine(given).bad(), ["value-missing", "value-unreadable"]);
}
