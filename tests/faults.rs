//! Faults of what the service stands on: what a client sees, what is kept, and how it recovers.
//! docs/faults.md lists them all, with the tests of those that other test programs cover.
#![cfg(target_os = "linux")]

#[path = "support/clock.rs"]
mod clock;
#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use intentframe_credentials::mask_value;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::{Value, json};

use hashicorp::{POLICY, Target, health, wait_until_quiet};
use support::{
    Place, Response, Running, Service, Setup, cannot_here, delete, eventually, get, put, skip,
    wait_until,
};

const KEPT: &str = "/v1/credentials/faults/kept";
const NEW: &str = "/v1/credentials/faults/new";
const OLD: &str = "OLD-the-first-canary";
const NEXT: &str = "NEW-another-canary";

fn body(value: &str) -> Value {
    json!({ "value": value })
}

#[track_caller]
fn stored(service: &Service, path: &str, value: &str) {
    let answer = service.put(path, &body(value));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Checks the status and that the detail contains `hint`, but no value.
#[track_caller]
fn assert_refused(answer: &Response, status: u16, hint: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("Retry-After").is_some(), status == 503);
    let json = answer.json();
    let detail = json["detail"].as_str().expect("a string");
    assert!(detail.contains(hint) && !detail.contains("canary"), "{detail}");
}

/// Checks that each kind of change is refused, and on which terms.
#[track_caller]
fn assert_changes_refused(service: &Service, status: u16, hint: &str) {
    for request in [put(KEPT, &body(NEXT)), put(NEW, &body(NEXT)), delete(KEPT)] {
        assert_refused(&service.connect().exchange(&request), status, hint);
    }
}

/// Each listed credential with its preview.
#[track_caller]
fn listed(service: &Service) -> Vec<(String, String)> {
    let answer = service.get("/v1/credentials/faults");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let listing = answer.json();
    let summaries = listing.as_array().expect("a list").iter();
    summaries.map(|it| (text(&it["key"]), text(&it["masked_preview"]))).collect()
}

/// Checks that a listing has exactly these credentials, with the previews of these values.
#[track_caller]
fn assert_listed(service: &Service, credentials: &[(&str, &str)]) {
    let expected: Vec<_> =
        credentials.iter().map(|(key, value)| ((*key).to_owned(), mask_value(value))).collect();
    assert_eq!(listed(service), expected);
}

/// Checks that only `kept` is there, with its old value.
#[track_caller]
fn assert_unchanged(service: &Service) {
    assert_listed(service, &[("kept", OLD)]);
    assert_eq!(service.get(KEPT).value(), OLD);
    assert_eq!(service.get(NEW).status, 404);
}

/// Checks that changes work, without a restart.
#[track_caller]
fn assert_recovered(service: &mut Service) {
    assert_unchanged(service);
    stored(service, KEPT, NEXT);
    stored(service, NEW, OLD);
    assert_eq!((service.get(KEPT).value(), service.get(NEW).value()), (NEXT.into(), OLD.into()));
    assert_listed(service, &[("kept", NEXT), ("new", OLD)]);
    wait_until("it is ok", || service.get("/health").json()["status"] == "ok");
    assert!(service.exit_status().is_none(), "{}", service.log());
    assert!(!service.log().contains("canary"), "{}", service.log());
}

// The database.

#[test]
fn a_locked_database_delays_changes_and_then_refuses_them() {
    let (place, mut service) = Place::serving();
    stored(&service, KEPT, OLD);
    let mut other = rusqlite::Connection::open(place.database()).expect("opens");
    let lock = other.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive);
    let lock = lock.expect("nothing is written at the moment");

    let begun = |request: &[u8]| hashicorp::begin(&service, request);
    let mut change = begun(&put(KEPT, &body(NEXT)));
    while change.is_silent() {
        // Reads do not wait for the lock.
        assert_unchanged(&service);
        service.assert_healthy();
    }
    assert_refused(&change.response(), 500, "another process has it locked; end that process");
    // A lock that is released in time is only a delay.
    let mut late = begun(&put(KEPT, &body(OLD)));
    wait_until_quiet(&service);
    assert!(late.is_silent());
    lock.rollback().expect("releases the lock");
    assert_eq!(late.response().status, 200);
    assert_recovered(&mut service);
}

#[test]
fn a_database_that_is_moved_away_takes_no_changes_until_it_is_back() {
    let (place, mut service) = Place::serving();
    stored(&service, KEPT, OLD);
    let elsewhere = place.root().join("elsewhere.db");
    fs::rename(place.database(), &elsewhere).expect("moves");
    assert_changes_refused(&service, 500, "was moved, removed or replaced; put it back");
    assert_unchanged(&service);
    assert_eq!(health(&service)["status"], "degraded");
    fs::rename(elsewhere, place.database()).expect("moves");
    assert_recovered(&mut service);
}

/// As when a backup is put in place of the database while the service runs.
#[test]
fn a_replaced_database_gets_no_changes_of_the_old_one() {
    let (place, backup) = (Place::new(), Place::new());
    backup.seed_database(1000);
    let mut service = place.start();
    stored(&service, KEPT, OLD);
    let elsewhere = place.root().join("elsewhere.db");
    fs::rename(place.database(), &elsewhere).expect("moves");
    fs::rename(backup.database(), place.database()).expect("moves");
    assert_changes_refused(&service, 500, "restart the service to use what is there now");
    assert_unchanged(&service);
    assert_eq!(health(&service)["status"], "degraded");
    // No log is left that the next start would apply to the other file.
    service.kill();

    let service = place.start();
    assert_listed(&service, &[]);
    let seeded = service.get("/v1/credentials/seeded").json();
    assert_eq!(seeded.as_array().map(Vec::len), Some(1000));
    drop(service);
    let old = rusqlite::Connection::open(elsewhere).expect("opens");
    let sql = "SELECT group_concat(key || masked_preview) FROM credential_metadata";
    let kept: String = old.query_row(sql, [], |row| row.get(0)).expect("reads");
    assert_eq!(kept, format!("kept{}", mask_value(OLD)), "the old file has all that it had");
}

// The disk; tests/full_disk.rs has one that is full.

/// A file system in a file, mounted on the data directory in a mount namespace that a separate
/// process keeps alive. After an error it is read-only (`errors=remount-ro` in ext4(5)).
struct Ext4 {
    keeper: Running,
    device: String,
}

impl Ext4 {
    fn mount(place: &Place) -> Option<Self> {
        const MOUNT: &str = r#"mount -o loop,errors=remount-ro "$0" "$1" &&
            findmnt -n -o SOURCE "$1" && exec cat"#;
        let mut keeper = Command::new("unshare")
            .args(["-m", "sh", "-c", MOUNT])
            .args([Self::image(place), place.data_dir()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let output = keeper.stdout.take().expect("it is piped");
        let keeper = Running(keeper);
        let mut said = String::new();
        BufReader::new(output).read_line(&mut said).expect("text");
        let device = said.trim_end().strip_prefix("/dev/")?.to_owned();
        Some(Self { keeper, device })
    }

    fn image(place: &Place) -> PathBuf {
        place.root().join("image")
    }

    fn make(place: &Place) -> bool {
        fs::create_dir(place.data_dir()).expect("creates");
        let image = fs::File::create(Self::image(place)).expect("creates");
        image.set_len(4 << 20).expect("grows");
        // Without a journal nothing is left to replay after the error.
        let options = ["-q", "-F", "-O", "^has_journal"];
        let made = Command::new("mkfs.ext4").args(options).arg(Self::image(place)).status();
        made.is_ok_and(|status| status.success())
    }

    fn setup(&self, place: &Place) -> Setup {
        let keeper = self.keeper.0.id();
        place.setup().after(&format!(r#"exec nsenter -t {keeper} -m "$0" "$@""#))
    }

    fn break_it(&self) -> bool {
        fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", self.device), "1").is_ok()
    }
}

#[test]
fn a_disk_that_becomes_read_only_refuses_changes_and_keeps_all() {
    let place = Place::new();
    let mounted = if Ext4::make(&place) { Ext4::mount(&place) } else { None };
    let Some(disk) = mounted else {
        return cannot_here("this user may mount no file system that becomes read-only");
    };
    let service = disk.setup(&place).start();
    stored(&service, KEPT, OLD);
    if !disk.break_it() {
        return cannot_here("this kernel cannot make a file system fail");
    }
    assert_changes_refused(&service, 500, "check the disk, which may be read-only");
    assert_unchanged(&service);
    service.assert_healthy();
    drop(service);

    let mut service = disk.setup(&place).spawn();
    assert!(service.wait().code().is_some_and(|code| code > 0), "{}", service.log());
    let log = service.log();
    assert!(log.contains("Read-only file system") && log.contains("another directory"), "{log}");
    drop((service, disk));

    let disk = eventually("it is mounted again", || Ext4::mount(&place));
    let service = disk.setup(&place).start();
    assert_listed(&service, &[("kept", OLD)]);
    stored(&service, NEW, NEXT);
}

// The keyring.

/// A session bus and a gnome-keyring of the test's own, both of which can be killed.
struct Session {
    place: Place,
    bus: Running,
    keyring: Running,
}

impl Session {
    fn start() -> Option<Self> {
        let place = Place::new();
        let address = Self::address(&place);
        // No directory of services: the bus must not start a second keyring.
        let config = format!(
            "<busconfig><type>session</type><listen>{address}</listen>\
             <policy context=\"default\"><allow send_destination=\"*\"/>\
             <allow receive_sender=\"*\"/><allow own=\"*\"/></policy></busconfig>"
        );
        fs::write(place.root().join("bus.conf"), config).expect("writes");
        let started =
            Self::start_bus(&place).and_then(|bus| Some((bus, Self::start_keyring(&place)?)));
        let Some((bus, keyring)) = started else {
            skip(
                "no keyring to test with; run: apt-get install gnome-keyring dbus-daemon dbus-bin",
            );
            return None;
        };
        Some(Self { place, bus, keyring })
    }

    fn address(place: &Place) -> String {
        format!("unix:path={}", place.root().join("bus").display())
    }

    fn start_bus(place: &Place) -> Option<Running> {
        let config = format!("--config-file={}", place.root().join("bus.conf").display());
        // Writes its address when it listens.
        let mut bus = Command::new("dbus-daemon")
            .args(["--nofork", "--print-address", &config])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let output = bus.stdout.take().expect("it is piped");
        let bus = Running(bus);
        BufReader::new(output).read_line(&mut String::new()).expect("text");
        Some(bus)
    }

    /// Starts the keyring, unlocked, and waits until it is on the bus.
    fn start_keyring(place: &Place) -> Option<Running> {
        let mut keyring = Command::new("gnome-keyring-daemon")
            .args(["--foreground", "--unlock", "--components=secrets"])
            .env("HOME", place.root())
            .env("XDG_RUNTIME_DIR", place.root())
            .env("DBUS_SESSION_BUS_ADDRESS", Self::address(place))
            .env_remove("XDG_DATA_HOME")
            .env_remove("GNOME_KEYRING_CONTROL")
            .env_remove("DISPLAY")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        keyring.stdin.take().expect("it is piped").write_all(b"a password").expect("reads");
        let keyring = Running(keyring);
        wait_until("the keyring is on the bus", || {
            let asked = Command::new("dbus-send")
                .args(["--session", "--print-reply=literal", "--dest=org.freedesktop.secrets"])
                .args(["/org/freedesktop/secrets", "org.freedesktop.Secret.Service.ReadAlias"])
                .arg("string:default")
                .env("DBUS_SESSION_BUS_ADDRESS", Self::address(place))
                .output();
            let reply = asked.expect("dbus-send comes with the bus").stdout;
            String::from_utf8_lossy(&reply).contains("/collection/")
        });
        Some(keyring)
    }

    fn restart_bus(&mut self) {
        self.bus = Self::start_bus(&self.place).expect("it started before");
    }

    fn restart_keyring(&mut self) {
        self.keyring = Self::start_keyring(&self.place).expect("it started before");
    }

    fn service(&self) -> Service {
        let setup = self.place.setup_with("keyring");
        setup.env("DBUS_SESSION_BUS_ADDRESS", Self::address(&self.place)).start()
    }
}

#[test]
fn a_keyring_that_is_killed_in_mid_call_loses_nothing() {
    let Some(mut session) = Session::start() else { return };
    let mut service = session.service();
    stored(&service, KEPT, OLD);
    for request in [put(KEPT, &body(NEXT)), delete(KEPT), put(NEW, &body(NEXT)), get(KEPT)] {
        session.keyring.signal(Signal::STOP);
        let mut call = hashicorp::begin(&service, &request);
        wait_until_quiet(&service);
        assert!(call.is_silent(), "it waits for the keyring");
        service.assert_healthy();
        session.keyring.0.kill().expect("it is running");
        assert_refused(&call.response(), 503, "keyring");
        assert_changes_refused(&service, 503, "keyring");
        assert_listed(&service, &[("kept", OLD)]);
        session.restart_keyring();
        wait_until("it works by itself", || service.get(KEPT).status != 503);
        assert_unchanged(&service);
    }
    assert_recovered(&mut service);
}

#[test]
fn a_session_bus_that_goes_and_comes_back_loses_nothing() {
    let Some(mut session) = Session::start() else { return };
    let mut service = session.service();
    stored(&service, KEPT, OLD);
    session.bus.0.kill().expect("it is running");
    session.bus.0.wait().expect("a child can be waited for");
    assert_changes_refused(&service, 503, "DBUS_SESSION_BUS_ADDRESS");
    assert_refused(&service.get(KEPT), 503, "DBUS_SESSION_BUS_ADDRESS");
    assert_listed(&service, &[("kept", OLD)]);
    service.assert_healthy();
    session.restart_bus();
    session.restart_keyring();
    wait_until("it works by itself", || service.get(KEPT).status != 503);
    assert_recovered(&mut service);
}

// Descriptors; tests/exhaustion.rs has clients that take them all.

#[test]
fn without_descriptors_for_vault_requests_are_refused_until_there_are_some() {
    let Some(target) = Target::new() else { return };
    let mut service = target.service(POLICY);
    let mut inside = service.connect();
    assert_eq!(inside.exchange(&put(KEPT, &body(OLD))).status, 200);
    let usual = getrlimit(Resource::Nofile);
    let limit = |current| {
        let limit = Rlimit { current, maximum: usual.maximum };
        prlimit(Some(service.pid()), Resource::Nofile, limit).expect("the hard limit stays");
    };
    limit(Some(0));
    // The connections that are kept are broken, so the next request needs a new one.
    target.proxy.stop();
    target.proxy.restart();
    for request in [put(KEPT, &body(NEXT)), put(NEW, &body(NEXT)), delete(KEPT), get(KEPT)] {
        assert_refused(&inside.exchange(&request), 503, "Vault");
    }
    assert_eq!(inside.exchange(&get("/v1/credentials")).status, 200);
    assert_eq!(inside.exchange(&get("/health")).status, 200);
    limit(usual.maximum);
    wait_until("it works by itself", || service.get(KEPT).status != 503);
    assert_recovered(&mut service);
}

// The clock.

#[test]
fn a_clock_that_is_set_back_or_forward_changes_no_answer_and_no_lease() {
    let Some(target) = Target::new() else { return };
    let role = target.approle("r", json!({ "token_ttl": "1h" }));
    let file = target.place.root().join("clock");
    let Some(setup) = clock::set_by(&file, target.setup_with_role(&target.place, &role)) else {
        return skip("no clock to set; run: apt-get install libfaketime");
    };
    clock::set(&file, "+0");
    let mut service = setup.clone().start();
    let kept = || service.get("/v1/credentials/faults").json()[0].take();
    let mut before = Value::Null;
    for offset in ["+0", "-30d", "+400d", "-400d"] {
        clock::set(&file, offset);
        for value in [NEXT, OLD] {
            stored(&service, KEPT, value);
            assert_eq!(service.get(KEPT).value(), value);
        }
        let now = kept();
        if before.is_object() {
            assert_eq!(now["created_at"], before["created_at"]);
            // Times of this form are ordered like their text.
            let is_back = now["updated_at"].as_str() < before["updated_at"].as_str();
            assert_eq!(is_back, offset.starts_with('-'), "the clock was set: {now}");
            assert!(now["last_used_at"].as_str() >= before["last_used_at"].as_str(), "{now}");
        }
        before = now;
        assert_eq!(target.proxy.count("", "approle/login"), 1, "the token is still good");
        assert_eq!(health(&service)["status"], "ok");
    }
    assert_recovered(&mut service);
    service.signal(Signal::TERM);
    assert_eq!(service.wait().code(), Some(0), "{}", service.log());

    // A start long before all of its times.
    clock::set(&file, "-800d");
    let service = setup.start();
    assert_listed(&service, &[("kept", NEXT), ("new", OLD)]);
    assert_eq!(service.get(KEPT).value(), NEXT);
}
