//! A disk that fills up while the service runs, and later has room again. Each test runs on a small
//! file system, if the kernel lets it mount one (writes fail with ENOSPC), and with a limit on file
//! sizes, which needs no privilege (writes fail with EFBIG).

#![cfg(target_os = "linux")]

mod support;

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::{Resource, Rlimit, Signal, getuid, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

use support::{
    Place, Response, Running, Service, Setup, cannot_here, delete, get, put, request, wait_until,
};

const KEPT: &str = "/v1/credentials/full/kept";
const NEW: &str = "/v1/credentials/full/new";

/// A place for the service's data that can run out of room.
trait Disk {
    fn setup(&self) -> Setup;
    /// Leaves no room for the running service, or for the next one.
    fn fill(&self, running: Option<&Service>);
    fn make_room(&self, running: Option<&Service>);
    /// The path by which the test reaches the data directory.
    fn data_dir(&self) -> PathBuf;
    /// Whether the service's log is elsewhere, so that it can always be written.
    fn spares_the_log(&self) -> bool;
}

/// A limit of 0 bytes on the size of files that the service writes.
struct Limited {
    place: Place,
    from_the_start: Cell<bool>,
}

impl Limited {
    fn new() -> Self {
        Self { place: Place::new(), from_the_start: Cell::new(false) }
    }
}

fn limit_file_size(service: &Service, bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(service.pid()), Resource::Fsize, limit).expect("the hard limit stays");
}

impl Disk for Limited {
    fn setup(&self) -> Setup {
        let setup = self.place.setup();
        if self.from_the_start.get() { setup.after("ulimit -S -f 0") } else { setup }
    }

    fn fill(&self, running: Option<&Service>) {
        match running {
            Some(service) => limit_file_size(service, Some(0)),
            None => self.from_the_start.set(true),
        }
    }

    fn make_room(&self, running: Option<&Service>) {
        match running {
            Some(service) => limit_file_size(service, None),
            None => self.from_the_start.set(false),
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.place.data_dir()
    }

    fn spares_the_log(&self) -> bool {
        false
    }
}

/// A file system of 1 MiB, mounted on the data directory in a mount namespace that a
/// separate process keeps alive.
struct Small {
    place: Place,
    keeper: Running,
}

impl Small {
    /// Returns `None` if this user may not mount anything, as in most containers.
    fn new() -> Option<Self> {
        let place = Place::new();
        fs::create_dir(place.data_dir()).expect("creates");
        let mut keeper = Command::new("unshare")
            .args(if getuid().is_root() { &["-m"][..] } else { &["-m", "-U", "-r"] })
            .args(["sh", "-c"])
            .arg(r#"mount -t tmpfs -o size=1m,mode=0700 none "$0" && echo mounted && exec cat"#)
            .arg(place.data_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut said = String::new();
        let output = keeper.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut said).expect("text");
        let small = Self { place, keeper: Running(keeper) };
        (said == "mounted\n").then_some(small)
    }

    fn ballast(&self) -> PathBuf {
        self.data_dir().join("ballast")
    }
}

impl Disk for Small {
    fn setup(&self) -> Setup {
        let user = if getuid().is_root() { "" } else { "-U --preserve-credentials" };
        let keeper = self.keeper.0.id();
        self.place.setup().after(&format!(r#"exec nsenter -t {keeper} -m {user} "$0" "$@""#))
    }

    fn fill(&self, _: Option<&Service>) {
        let mut ballast =
            OpenOptions::new().create(true).append(true).open(self.ballast()).expect("opens");
        let full = loop {
            if let Err(error) = ballast.write_all(&[0; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }

    fn make_room(&self, _: Option<&Service>) {
        fs::remove_file(self.ballast()).expect("it was full of it");
    }

    fn data_dir(&self) -> PathBuf {
        let data_dir = self.place.data_dir();
        let inside = data_dir.strip_prefix("/").expect("it is absolute");
        PathBuf::from(format!("/proc/{}/root", self.keeper.0.id())).join(inside)
    }

    fn spares_the_log(&self) -> bool {
        true
    }
}

/// Runs a test on both disks.
fn on_each_disk(test: impl Fn(&dyn Disk)) {
    test(&Limited::new());
    match Small::new() {
        Some(small) => test(&small),
        None => cannot_here("this user may mount no file system to fill"),
    }
}

/// Returns the time of last use in the database. Reads it from a copy, since `SQLite` cannot open a
/// file through `/proc/PID/root`.
fn last_used_at(disk: &dyn Disk, key: &str) -> Option<String> {
    let copy = TempDir::new().expect("a temporary directory");
    for name in ["credentials.db", "credentials.db-wal"] {
        // There is no log while no service runs.
        let _ = fs::copy(disk.data_dir().join(name), copy.path().join(name));
    }
    let database = rusqlite::Connection::open(copy.path().join("credentials.db")).expect("opens");
    let sql = "SELECT last_used_at FROM credential_metadata WHERE namespace = 'full' AND key = ?1";
    database.query_row(sql, [key], |row| row.get(0)).expect("the row is there")
}

/// Everything listed about the credentials except `last_used_at`.
fn listing(service: &Service) -> Value {
    let mut listing = service.get("/v1/credentials").json();
    for summary in listing.as_array_mut().expect("a list") {
        summary["last_used_at"].take();
    }
    json!([listing, service.get("/v1/runtime-env").json()])
}

fn body(value: &str) -> Value {
    let name = format!("V_{}", &value[..4]);
    json!({ "value": value, "delivery_mode": "runtime_env", "env_name": name })
}

/// Checks that the answer says what failed and what to do, and has no value in it.
#[track_caller]
fn assert_says_no_room(answer: &Response) {
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    let json = answer.json();
    let detail = json["detail"].as_str().expect("a string");
    assert!(detail.contains("disk") && detail.contains("free some space"), "{detail}");
    assert!(!answer.text().contains("canary"), "{detail}");
}

#[test]
fn a_full_disk_fails_writes_only() {
    on_each_disk(|disk| {
        let mut service = disk.setup().start();
        assert_eq!(service.put(KEPT, &body("OLD1-the-first-canary")).status, 200);
        let before = listing(&service);
        let mut kept_alive = service.connect();

        disk.fill(Some(&service));
        for _ in 0..3 {
            assert_says_no_room(&kept_alive.exchange(&put(KEPT, &body("NEW1-another-canary"))));
            assert_says_no_room(&kept_alive.exchange(&put(NEW, &body("NEW2-another-canary"))));
            assert_says_no_room(&kept_alive.exchange(&delete(KEPT)));
            assert_eq!(kept_alive.exchange(&get(KEPT)).value(), "OLD1-the-first-canary");
            assert_eq!(kept_alive.exchange(&get(NEW)).status, 404);
            kept_alive.send(&request("HEAD", NEW, "", b""));
            assert_eq!(kept_alive.response_to_head().status, 404);
            assert_eq!(listing(&service), before);
            let health = service.get("/health");
            assert_eq!((health.status, &health.json()["credential_count"]), (200, &json!(1)));
        }
        let used = service.get("/v1/credentials").json()[0]["last_used_at"].take();
        assert!(used.is_string(), "{used}");
        assert_eq!(last_used_at(disk, "kept"), None, "there was no room for it");
        if disk.spares_the_log() {
            wait_until("the log says that times of use wait", || {
                service.log().contains("wait to be written")
            });
        }

        disk.make_room(Some(&service));
        assert_eq!(kept_alive.exchange(&put(NEW, &body("NEW2-another-canary"))).status, 200);
        wait_until("the time of use is in the file", || last_used_at(disk, "kept").is_some());
        assert_eq!(kept_alive.exchange(&put(KEPT, &body("NEW1-another-canary"))).status, 200);
        assert_eq!(kept_alive.exchange(&get(KEPT)).value(), "NEW1-another-canary");
        assert_eq!(kept_alive.exchange(&get(NEW)).value(), "NEW2-another-canary");
        let after = listing(&service);
        assert!(service.exit_status().is_none());
        service.signal(Signal::TERM);
        assert_eq!(service.wait().code(), Some(0), "{}", service.log());
        assert!(last_used_at(disk, "new").is_some());
        assert!(!service.log().contains("canary"), "{}", service.log());

        let service = disk.setup().start();
        assert_eq!(listing(&service), after);
    });
}

/// Stores that share a commit fail together, and each gets its own answer.
#[test]
fn a_disk_that_fills_up_loses_no_acknowledged_store() {
    const WRITERS: usize = 6;
    on_each_disk(|disk| {
        let mut service = disk.setup().start();
        let acknowledged: [AtomicUsize; WRITERS] = Default::default();
        let path = |writer| format!("/v1/credentials/full/writer-{writer}");
        let value = |writer, round| format!("{round:06}-full-disk-{writer:02}");
        thread::scope(|scope| {
            for (writer, acknowledged) in acknowledged.iter().enumerate() {
                let mut connection = service.connect();
                scope.spawn(move || {
                    for round in 1.. {
                        let body = json!({ "value": value(writer, round) });
                        let answer = connection.exchange(&put(&path(writer), &body));
                        if answer.status != 200 {
                            assert_says_no_room(&answer);
                            break;
                        }
                        acknowledged.store(round, Ordering::SeqCst);
                    }
                });
            }
            wait_until("stores are under way", || {
                acknowledged.iter().all(|rounds| rounds.load(Ordering::SeqCst) > 0)
            });
            disk.fill(Some(&service));
        });
        let rounds = acknowledged.map(AtomicUsize::into_inner);
        let assert_listed = |service: &Service| {
            let listing = service.get("/v1/credentials/full").json();
            for (writer, round) in rounds.iter().enumerate() {
                let preview = format!("{round:06}....{writer:02}");
                assert_eq!(listing[writer]["masked_preview"], preview.as_str());
            }
        };
        for (writer, round) in rounds.iter().enumerate() {
            assert_eq!(service.get(&path(writer)).value(), value(writer, *round));
        }
        assert_listed(&service);
        service.kill();
        disk.make_room(None);
        assert_listed(&disk.setup().start());
    });
}

#[test]
fn stopping_on_a_full_disk_reports_what_is_lost() {
    on_each_disk(|disk| {
        let mut service = disk.setup().start();
        assert_eq!(service.put(KEPT, &body("OLD1-the-first-canary")).status, 200);
        let before = listing(&service);
        disk.fill(Some(&service));
        assert_eq!(service.get(KEPT).status, 200);
        service.signal(Signal::TERM);
        assert!(service.wait().code().is_some_and(|code| code > 0), "{}", service.log());
        if disk.spares_the_log() {
            let log = service.log();
            assert!(log.contains("lost") && log.contains("free some space"), "{log}");
        }
        assert!(!service.socket.exists());
        disk.make_room(None);
        assert_eq!(listing(&disk.setup().start()), before);
    });
}

#[test]
fn starting_on_a_full_disk_fails_and_changes_nothing() {
    on_each_disk(|disk| {
        let assert_does_not_start = || {
            let mut service = disk.setup().spawn();
            assert!(service.wait().code().is_some_and(|code| code > 0), "{}", service.log());
            if disk.spares_the_log() {
                let log = service.log();
                assert!(log.contains("credentials.db") && log.contains("free some space"), "{log}");
            }
            assert!(!service.socket.exists());
        };
        disk.fill(None);
        assert_does_not_start();
        disk.make_room(None);
        let mut service = disk.setup().start();
        assert_eq!(service.put(KEPT, &body("OLD1-the-first-canary")).status, 200);
        let before = listing(&service);
        service.signal(Signal::TERM);
        assert_eq!(service.wait().code(), Some(0));

        disk.fill(None);
        assert_does_not_start();
        disk.make_room(None);
        assert_eq!(listing(&disk.setup().start()), before);
    });
}
