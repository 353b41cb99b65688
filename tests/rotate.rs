//! Values that are made here: `rotate` and `store --generate`, with a running service.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Ended, Place, Running, Service, wait_until};

const OLD: &str = "canary-old-0123456789";
const NEW: &str = "canary-new-0123456789";

struct Vault {
    place: Place,
    service: Service,
}

impl Vault {
    /// With `app/token`, which has all the metadata that there is.
    fn start() -> Self {
        let place = Place::new();
        let service = place.start();
        let vault = Self { place, service };
        vault.put("app/token", OLD);
        vault
    }

    fn put(&self, name: &str, value: &str) {
        let body = json!({
            "value": value, "delivery_mode": "runtime_env", "env_name": "APP_TOKEN",
            "allowed_consumers": ["uwe"], "validator_id": "app",
        });
        assert_eq!(self.service.put(&format!("/v1/credentials/{name}"), &body).status, 200);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_credential-vault"));
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
        command.env("INTENTFRAME_VAULT_SOCKET", &self.service.socket);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(&mut self.command(arguments))
    }

    fn value(&self, name: &str) -> String {
        self.service.get(&format!("/v1/credentials/{name}")).value()
    }

    fn record(&self, name: &str) -> Value {
        let all = self.service.get("/v1/records").json();
        let is_it =
            |it: &&Value| format!("{}/{}", it["namespace"], it["key"]).replace('"', "") == name;
        all.as_array().expect("a list").iter().find(is_it).expect("it is there").clone()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.root().join(name)
    }
}

#[test]
fn a_value_is_rotated_and_keeps_its_metadata_and_a_watching_command_gets_it() {
    let vault = Vault::start();
    let before = vault.record("app/token");
    let said = vault.file("said");
    let mut watching = Running::start(
        vault
            .command(&["exec", "--watch", "--interval", "0.02", "--", "/bin/sh", "-c"])
            .arg("echo $APP_TOKEN >> $SAID; while :; do sleep 0.01; done")
            .env("SAID", &said),
    );
    let seen = |value| fs::read_to_string(&said).unwrap_or_default().lines().any(|it| it == value);
    wait_until("the command has the old value", || seen(OLD));
    let make = format!("printf '%s\\r\\n' {NEW}");
    assert_eq!(vault.run(&["rotate", "app/token", "--", "/bin/sh", "-c", &make]).ok(), "");
    wait_until("the command has the new value", || seen(NEW));
    watching.signal(rustix::process::Signal::TERM);
    watching.wait();

    let mut after = vault.record("app/token");
    assert!(after["updated_at"].as_str() > before["updated_at"].as_str());
    for field in ["updated_at", "last_used_at"] {
        after[field] = before[field].clone();
    }
    assert_eq!(after, before, "all else stays");
}

#[test]
fn the_old_value_stays_until_the_new_one_passes_its_check() {
    let vault = Vault::start();
    let make = format!("printf %s {NEW}");
    let rotate = |make: &str, check: &[&str]| {
        vault.run(&[&["rotate", "app/token", "--", "/bin/sh", "-c", make], check].concat())
    };
    let too_long = "head -c 300000 /dev/zero | tr '\\0' v";
    for (make, check, code, reason) in [
        ("exit 3", "", 5, "/bin/sh failed: exit status: 3"),
        ("printf canary-bad; kill -9 $$", "", 5, "signal: 9"),
        ("echo", "", 2, "is empty"),
        (too_long, "", 2, "longer than 256 KiB"),
        ("printf '\\377'", "", 2, "not UTF-8"),
        (&make, "exit 1", 5, "/bin/sh failed: exit status: 1"),
        (&make, "grep -q something-else", 5, "exit status: 1"),
    ] {
        let check = if check.is_empty() {
            Vec::new()
        } else {
            vec!["--check", "--", "/bin/sh", "-c", check]
        };
        let refused = rotate(make, &check).refused(code);
        assert!(refused.contains(reason), "{make}: {refused}");
        assert!(refused.contains("app/token keeps its old value"), "{refused}");
        assert_eq!(vault.value("app/token"), OLD, "{make}");
    }
    // The check reads the value from standard input, and finds it in no argument or variable.
    let check = format!(
        "read -r it; [ \"$it\" = {NEW} ] && ! tr '\\0' ' ' < /proc/self/environ | grep {NEW}"
    );
    rotate(&make, &["--check", "--", "/bin/sh", "-c", &check]).ok();
    assert_eq!(vault.value("app/token"), NEW);
    // The last `--check --` counts, and a check need not read.
    let last = ["echo $2", "x", "--check", "--", "--check", "--", "/bin/true"];
    vault.run(&[&["rotate", "app/token", "--", "/bin/sh", "-c"], &last[..]].concat()).ok();
    assert_eq!(vault.value("app/token"), "--");

    vault.run(&["rotate", "app/none", "--", "/bin/true"]).failed(1, "no credential app/none");
    vault.run(&["rotate", "app/token", "--", "/no/such"]).failed(5, "cannot run /no/such");
    for words in
        [&["rotate", "app/token"][..], &["rotate", "app/token", "--", "a", "--check", "--"]]
    {
        vault.run(words).failed(2, "a command is missing");
    }
}

#[test]
fn a_value_is_generated_and_printed_only_if_asked() {
    let vault = Vault::start();
    let store =
        |options: &[&str]| vault.run(&[&["store", "app/made", "--generate"], options].concat());
    let mut seen = Vec::new();
    for (options, length, fits) in [
        (&[][..], 32, (|c| c.is_ascii_alphanumeric()) as fn(char) -> bool),
        (&["--alphabet", "hex", "--length=64"], 64, |c| matches!(c, '0'..='9' | 'a'..='f')),
        (&["--alphabet=digits", "--length", "1"], 1, |c| c.is_ascii_digit()),
        (&["--alphabet", "base64url"], 32, |c| c.is_ascii_alphanumeric() || "-_".contains(c)),
        (&["--alphabet", "symbols", "--length", "262144"], 262_144, |c| c.is_ascii_graphic()),
    ] {
        assert_eq!(store(options).ok(), "", "{options:?}");
        let value = vault.value("app/made");
        assert!(value.len() == length && value.chars().all(fits), "{options:?}: {value}");
        seen.push(value);
    }
    // Of 262,144 characters out of 94, each occurs 2,789 times; 6 sigma are 315.
    let symbols = seen.pop().expect("the last one");
    for c in '!'..='~' {
        let count = symbols.matches(c).count();
        assert!((2_470..=3_110).contains(&count), "{c}: {count}");
    }
    let printed = store(&["--print", "--delivery-mode", "runtime_env"]).ok();
    assert_eq!(printed, vault.value("app/made") + "\n");
    assert!(!seen.contains(&printed));
    assert_eq!(vault.record("app/made")["delivery_mode"], "runtime_env");
    for (options, reason) in [
        (&["--length", "0"][..], "--length is from 1"),
        (&["--length", "262145"], "--length is from 1"),
        (&["--alphabet", "klingon"], "--alphabet is alphanumeric"),
    ] {
        store(options).failed(2, reason);
    }
    vault.run(&["store", "app/made", "--print"]).failed(2, "require --generate");
    assert_eq!(vault.value("app/made") + "\n", printed);
}

#[test]
fn stale_credentials_are_listed_and_the_latest_come_first() {
    let place = Place::new();
    place.seed_database(1);
    let database = rusqlite::Connection::open(place.database()).expect("opens");
    for (key, created, used) in [
        ("a-never", "2026-01-01", "NULL"),
        ("b-old", "2020-01-01", "'2020-02-01T00:00:00+00:00'"),
        ("c-used", "2020-01-02", "strftime('%Y-%m-%dT%H:%M:%S+00:00', 'now')"),
        ("d-new", "2020-01-03", "NULL"),
    ] {
        let created = match key {
            "d-new" => "strftime('%Y-%m-%dT%H:%M:%S+00:00', 'now')".to_owned(),
            _ => format!("'{created}T00:00:00+00:00'"),
        };
        let sql = format!(
            "INSERT INTO credential_metadata (namespace, key, masked_preview, created_at,
             updated_at, last_used_at) VALUES ('x', '{key}', '****', {created}, {created}, {used})"
        );
        database.execute(&sql, []).expect("inserts");
    }
    drop(database);
    let service = place.start();
    let vault = Vault { place, service };
    let keys = |options: &[&str]| -> Vec<String> {
        let listed = vault.run(&[&["list", "x"], options].concat()).ok();
        listed.lines().map(|it| it.split('\t').nth(1).expect("a key").to_owned()).collect()
    };
    assert_eq!(keys(&["--sort", "name"]), ["a-never", "b-old", "c-used", "d-new"]);
    assert_eq!(keys(&["--sort", "used"]), ["c-used", "b-old", "a-never", "d-new"]);
    assert_eq!(keys(&["--sort", "created", "--long"]), ["d-new", "a-never", "c-used", "b-old"]);
    assert_eq!(keys(&["--stale", "7"]), ["a-never", "b-old"]);
    assert_eq!(keys(&["--stale=1000", "--sort=used"]), ["b-old"]);
    assert_eq!(keys(&["--stale", "0"]).len(), 4);
    vault.run(&["list", "--sort", "size"]).failed(2, "--sort is name, used or created");
}
