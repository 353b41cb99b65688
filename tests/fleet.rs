//! Several hosts that share metadata in one Vault: each has a directory of its own, and the same
//! server.
#![cfg(target_os = "linux")]

#[path = "support/clock.rs"]
mod clock;
#[path = "support/hashicorp.rs"]
mod hashicorp;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use hashicorp::proxy::{Fault, Proxy, When};
use hashicorp::{Mode, POLICY, Target, at, fetch, health, remove, removed, store, stored};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{Ended, Place, Service, Setup, wait_until};

/// The policy in docs/vault.md of a host that gets listings without values.
const LISTS_ONLY: &str = r#"
    path "MOUNT/data/intentframe/.metadata/*" { capabilities = ["read"] }
    path "MOUNT/metadata/intentframe/.metadata" { capabilities = ["list"] }
    path "MOUNT/metadata/intentframe/.metadata/" { capabilities = ["list"] }"#;

/// A host: a directory, and a way to the server that can be cut.
struct Host {
    place: Place,
    proxy: Proxy,
    name: &'static str,
}

impl Host {
    fn new(target: &Target, name: &'static str) -> Self {
        Self { place: Place::new(), proxy: Proxy::start(&target.server.address), name }
    }

    fn setup(&self, target: &Target, token: &str) -> Setup {
        self.place
            .setup_with("hashicorp")
            .env("VAULT_ADDR", &self.proxy.address)
            .env("VAULT_KV_MOUNT", &target.mount)
            .env("VAULT_TOKEN", token)
            .env("VAULT_CLIENT_TIMEOUT", "5")
            .env("IF_VAULT_METADATA", "vault")
            .env("IF_VAULT_NODE", self.name)
    }

    fn start(&self, target: &Target) -> Service {
        self.setup(target, &target.token_for(POLICY)).start()
    }

    /// Runs a command that works on the files of this host.
    fn run(&self, target: &Target, arguments: &[&str]) -> Ended {
        let setup = self.setup(target, &target.server.token);
        let [command, rest @ ..] = arguments else { panic!("a command") };
        rest.iter().fold(setup, Setup::argument).run(command).into()
    }
}

/// A listing and its age.
#[track_caller]
fn list(service: &Service, path: &str) -> (Value, Option<u64>) {
    let answer = service.get(path);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let age = answer.header("Age").map(|age| age.parse().expect("seconds"));
    (answer.json(), age)
}

#[track_caller]
fn names(service: &Service) -> Vec<String> {
    let (listed, age) = list(service, "/v1/credentials");
    assert_eq!(age, None, "it is fresh");
    let name = |it: &Value| format!("{}/{}", it["namespace"], it["key"]).replace('"', "");
    listed.as_array().expect("a list").iter().map(name).collect()
}

/// All records, without the times of last use, which a host keeps for an hour.
#[track_caller]
fn without_uses(service: &Service) -> Value {
    let (mut records, _) = list(service, "/v1/records");
    for record in records.as_array_mut().expect("a list") {
        record["last_used_at"].take();
    }
    records
}

fn client(service: &Service, arguments: &[&str]) -> Ended {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_credential-vault"));
    Ended::of(command.arg("--socket").arg(&service.socket).args(arguments))
}

#[test]
fn hosts_list_alike_and_a_lost_host_takes_nothing_with_it() {
    let Some(target) = Target::new() else { return };
    let [one, two, three] = ["one", "two", "three"].map(|name| Host::new(&target, name));
    let (mut first, second) = (one.start(&target), two.start(&target));
    let body = json!({ "value": "sk-proj-abc123XYZ", "delivery_mode": "runtime_env",
        "env_name": "OPENAI_API_KEY", "allowed_consumers": ["jarvis"] });
    assert_eq!(first.put(&at("openai", "key"), &body).status, 200);
    assert_eq!(names(&second), ["openai/key"], "at once");
    let exec = ["exec", "--consumer", "jarvis", "--", "printenv", "OPENAI_API_KEY"];
    assert_eq!(client(&second, &exec).ok(), "sk-proj-abc123XYZ\n");
    // Consumers of the values see no new field, and the Python service no new secret but one.
    assert_eq!(target.read("openai"), Some(json!({ "key": "sk-proj-abc123XYZ" })));
    let field = target.read(".metadata/openai").expect("it is there")["key"].clone();
    assert!(field.as_str().is_some_and(|text| text.contains(r#""stored_by":"one""#)), "{field}");

    // A store over the record of another host keeps its times.
    let created = list(&second, "/v1/credentials").0[0]["created_at"].clone();
    stored(&second, "openai", "key", "another-value-2");
    let (records, _) = list(&first, "/v1/records");
    assert_eq!((&records[0]["created_at"], &records[0]["stored_by"]), (&created, &json!("two")));
    assert_eq!(records[0]["masked_preview"], "anothe....-2");
    let long = client(&first, &["list", "--long"]).ok();
    assert!(long.trim_end_matches('\n').contains("\ttwo\t"), "{long}");

    // A record of a host whose clock is a minute ahead, and fields that this version does not know.
    let ahead = field
        .as_str()
        .expect("text")
        .replace("\"one\"", "\"later\",\"new\":1")
        .replace(created.as_str().expect("a time"), "2099-01-01T00:00:00.000000Z");
    target.write("ahead", &json!({ "key": "value-ahead" }));
    target.write(".metadata/ahead", &json!({ "key": ahead, "broken": "no JSON", "number": 1 }));
    assert_eq!(names(&second), ["ahead/key", "openai/key"]);
    stored(&second, "ahead", "key", "a-new-value");
    let (records, _) = list(&first, "/v1/credentials/ahead");
    assert_eq!(records[0]["masked_preview"], "****", "{records}");
    assert!(second.log().contains("ahead/broken") && !second.log().contains("no JSON"));

    // The first host is lost for good, and another one joins.
    first.kill();
    fs::remove_dir_all(one.place.data_dir()).expect("it is deleted");
    let third = three.start(&target);
    assert_eq!(without_uses(&third), without_uses(&second));
    assert_eq!(fetch(&third, "openai", "key").value(), "another-value-2");
    removed(&third, "openai", "key");
    assert_eq!(names(&second), ["ahead/key"]);
    assert_eq!(target.read(".metadata/openai"), None, "the last field takes the secret with it");
}

#[test]
fn while_vault_is_away_listings_are_old_and_values_unavailable() {
    let Some(target) = Target::new() else { return };
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let (mut service, other) = (one.start(&target), two.start(&target));
    assert_eq!(health(&service)["node"], "one");
    stored(&other, "openai", "key", "some-value-1");
    let whole = |service: &Service| list(service, "/v1/records").0;
    let listed = whole(&service);
    one.proxy.stop();
    stored(&other, "openai", "other", "some-value-2");
    for path in ["/v1/records", "/v1/credentials/openai", "/v1/runtime-env"] {
        assert!(list(&service, path).1.is_some_and(|age| age < 60), "{path}");
    }
    assert_eq!(whole(&service), listed);
    assert!(health(&service)["metadata_age"].is_u64() && health(&service)["credential_count"] == 1);
    assert_eq!(fetch(&service, "openai", "key").status, 503);
    assert_eq!(store(&service, "openai", "key", "x").status, 503);
    assert_eq!(remove(&service, "openai", "key").status, 503);
    service.kill();
    // The copy outlives a restart; the service needs Vault to start.
    one.proxy.restart();
    let service = one.start(&target);
    one.proxy.stop();
    assert!(list(&service, "/v1/credentials").1.is_some());
    one.proxy.restart();
    wait_until("it is fresh again", || list(&service, "/v1/credentials").1.is_none());
    assert_eq!(names(&service), ["openai/key", "openai/other"]);
}

#[test]
fn a_crash_between_metadata_and_value_is_settled_on_all_hosts() {
    let Some(target) = Target::new() else { return };
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let (mut service, other) = (one.start(&target), two.start(&target));
    stored(&other, "n", "old", "first-value-of-old");
    let before = list(&other, "/v1/records").0;
    for key in ["old", "new"] {
        let held = one.proxy.all(Fault::Hold(When::Before), "PATCH", "/intentframe/n");
        let connection = hashicorp::begin_store(&service, "n", key, "second-value-of-it");
        held.wait_for_held(1);
        let fields = target.read(".metadata/n").expect("it is there");
        assert!(fields[key].as_str().is_some_and(|it| it.contains("\"one\"")), "{fields}");
        service.kill();
        held.lose();
        drop(connection);
        service = one.start(&target);
        // A request that was on its way could still arrive for ten seconds; the row says what is.
        wait_until("it is settled", || list(&other, "/v1/records").0 == before);
        assert_eq!(list(&service, "/v1/records").0, before);
    }
    // A value that is refused leaves no metadata behind, and neither does metadata that is.
    for path in ["/intentframe/n", "/intentframe/.metadata/n"] {
        let refused = one.proxy.all(Fault::error(400, "no"), "PATCH", path);
        assert_eq!(store(&service, "n", "old", "third-value-of-it").status, 500);
        refused.clear();
        assert_eq!(list(&other, "/v1/records").0, before, "{path}");
    }
}

#[test]
fn sixteen_writers_on_three_hosts_lose_nothing() {
    for (mode, rounds) in [(Mode::Patch, 3), (Mode::NoPatch, 1)] {
        let Some(target) = Target::new() else { return };
        let token = target.token_of_mode(mode);
        let hosts = ["one", "two", "three"].map(|name| Host::new(&target, name));
        let services = hosts.each_ref().map(|host| host.setup(&target, &token).start());
        thread::scope(|scope| {
            for writer in 0..16 {
                let service = &services[writer % 3];
                scope.spawn(move || {
                    for round in 0..rounds {
                        stored(service, "n", &format!("{writer}-{round}"), "a-value-of-its-own");
                        stored(service, "n", "same", &format!("value-{writer:02}-{round}"));
                    }
                });
            }
        });
        let all = names(&services[0]);
        assert_eq!(all.len(), 16 * rounds + 1, "{mode:?}");
        let (first, _) = list(&services[0], "/v1/records");
        for service in &services {
            assert_eq!(list(service, "/v1/records").0, first);
        }
        let values = target.read("n").expect("values");
        assert_eq!(values.as_object().expect("fields").len(), all.len());
    }
}

#[test]
fn uses_are_shared_when_a_host_stops_and_never_go_back() {
    let Some(target) = Target::new() else { return };
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let (mut first, second) = (one.start(&target), two.start(&target));
    for key in ["used", "gone", "stored"] {
        stored(&second, "n", key, "some-value");
        fetch(&first, "n", key).value();
    }
    removed(&second, "n", "gone");
    stored(&second, "n", "stored", "a-later-value-xyz");
    let used =
        |service: &Service, row: usize| list(service, "/v1/records").0[row]["last_used_at"].clone();
    assert_eq!(used(&second, 1), Value::Null, "not shared yet");
    let here = used(&first, 1);
    assert!(here.is_string(), "a refresh does not set it back");
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    assert_eq!(names(&second), ["n/stored", "n/used"], "what is gone is not made again");
    assert_eq!(used(&second, 1), here);
    let (records, _) = list(&second, "/v1/records");
    assert_eq!(records[0]["masked_preview"], "a-late....yz", "a use does not undo a store");
}

#[test]
fn a_policy_can_give_listings_without_values() {
    let Some(target) = Target::new() else { return };
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let full = one.start(&target);
    stored(&full, "openai", "key", "some-value-1");
    let lister = two.setup(&target, &target.token_for(LISTS_ONLY)).start();
    assert_eq!(names(&lister), ["openai/key"]);
    assert_eq!(fetch(&lister, "openai", "key").status, 500);
    assert_eq!(store(&lister, "openai", "key", "x").status, 500);
    assert_eq!(list(&lister, "/v1/records"), list(&full, "/v1/records"));
}

#[test]
fn an_existing_host_moves_to_vault_and_back() {
    let Some(target) = Target::new() else { return };
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let token = target.token_for(POLICY);
    let mut local = one.setup(&target, &token).env("IF_VAULT_METADATA", "local").start();
    stored(&local, "n", "mine", "some-value-1");
    stored(&local, "n", "both", "some-value-2");
    local.signal(Signal::TERM);
    local.wait();
    let mut refused = one.setup(&target, &token).spawn();
    assert_eq!(refused.wait().code(), Some(2));
    assert!(refused.log().contains("metadata push"), "{}", refused.log());
    let other = two.start(&target);
    stored(&other, "n", "both", "some-newer-value");
    stored(&other, "n", "theirs", "some-value-3");
    let run = |action| one.run(&target, &["metadata", action]);
    assert_eq!(
        run("compare").expect(1).stdout,
        "n/both: different\nn/mine: only here\nn/theirs: only in Vault\n"
    );
    assert_eq!(run("push").ok(), "1 of 2 written to Vault\n");
    assert_eq!(run("push").ok(), "0 of 2 written to Vault\n");
    assert_eq!(names(&other), ["n/both", "n/mine", "n/theirs"]);
    let records = list(&other, "/v1/records").0;
    assert_eq!(
        (&records[0]["stored_by"], &records[1]["stored_by"]),
        (&json!("two"), &json!("one"))
    );
    let mut moved = one.start(&target);
    assert_eq!(list(&moved, "/v1/records").0, records);
    assert!(run("push").failed(5, "another vault uses it").is_empty());
    one.run(&target, &["doctor"]).says("it agrees with the database");
    moved.signal(Signal::TERM);
    moved.wait();
    stored(&other, "n", "late", "some-value-4");
    assert_eq!(run("pull").ok(), "4 written to this host\n");
    assert_eq!(run("compare").ok(), "");
    let local = one.setup(&target, &token).env("IF_VAULT_METADATA", "local").start();
    let (listed, _) = list(&local, "/v1/credentials");
    assert_eq!(listed.as_array().expect("a list").len(), 4);
    stored(&local, "n", "mine-alone", "some-value-5");
    drop(local);
    let mut refused = one.setup(&target, &token).spawn();
    assert_eq!(refused.wait().code(), Some(2), "what is only here is not removed");
    let wrong = one.place.setup().env("IF_VAULT_METADATA", "vault").run("serve");
    Ended::from(wrong).failed(2, "needs the backend hashicorp");
}

/// A listing reads the namespaces side by side, and callers that wait share the next listing.
#[test]
fn listings_read_side_by_side_and_are_shared() {
    let Some(target) = Target::new() else { return };
    let one = Host::new(&target, "one");
    let token = target.token_for(POLICY);
    let service = one.setup(&target, &token).env("IF_VAULT_MAX_IN_FLIGHT", "4").start();
    for namespace in 0..12 {
        stored(&service, &format!("n{namespace:02}"), "key", "some-value");
    }
    let names = "/metadata/intentframe/.metadata";
    let reads = "/data/intentframe/.metadata/";
    one.proxy.clear_requests();
    let held = one.proxy.all(Fault::Hold(When::Before), "GET", reads);
    let listing = || hashicorp::begin(&service, &support::get("/v1/credentials"));
    let mut first = listing();
    held.wait_for_held(4);
    let mut waiting = [(); 8].map(|()| listing());
    // Nobody waits for this listing but `waiting`.
    hashicorp::wait_until_quiet(&service);
    assert_eq!((held.held(), one.proxy.count("GET", names)), (4, 1));
    service.assert_healthy();
    held.clear();
    let count = |it: &mut support::Connection| it.response().json().as_array().map(Vec::len);
    assert_eq!(count(&mut first), Some(12));
    assert!(waiting.iter_mut().all(|it| count(it) == Some(12)));
    assert_eq!((one.proxy.count("GET", names), one.proxy.count("GET", reads)), (2, 24));
    assert!(one.proxy.most_under_way() <= 4);
    one.proxy.clear_requests();
    list(&service, "/v1/credentials/n07");
    assert_eq!(one.proxy.requests().len(), 1, "one namespace takes one request");
}

/// The copy of this host has older consumers.
#[test]
fn the_record_in_vault_decides_who_may_read() {
    let Some(target) = Target::new() else { return };
    if !support::is_root() {
        return;
    }
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let policy = one.place.root().join("policy.toml");
    let rule = "[[rule]]\nconsumers = [\"jarvis\"]\nallow = [\"read\"]\nnamespaces = [\"n\"]\n";
    fs::write(&policy, format!("[consumer.jarvis]\nuid = 61001\n\n{rule}")).expect("writes");
    fs::set_permissions(one.place.root(), fs::Permissions::from_mode(0o755)).expect("sets it");
    let setup =
        one.setup(&target, &target.token_for(POLICY)).argument("--socket-mode").argument("0666");
    let service = setup.argument("--policy").argument(policy.to_str().expect("UTF-8")).start();
    let other = two.start(&target);
    let store = |service: &Service, consumer: &str| {
        let body = json!({ "value": "some-value", "allowed_consumers": [consumer] });
        assert_eq!(service.put(&at("n", "key"), &body).status, 200);
    };
    let read = || support::curl_as(61_001, &service.socket, &[], &at("n", "key")).0;
    store(&service, "jarvis");
    assert_eq!((list(&service, "/v1/credentials").1, read()), (None, 200));
    store(&other, "edi");
    assert_eq!(read(), 403);
    store(&other, "jarvis");
    assert_eq!(read(), 200);
}

#[test]
fn clocks_that_differ_change_nothing_but_times_and_an_hour_shares_uses() {
    let Some(target) = Target::new() else { return };
    let [one, two] = ["one", "two"].map(|name| Host::new(&target, name));
    let file = |host: &Host| host.place.root().join("clock");
    let start = |host: &Host, offset: &str| {
        clock::set(&file(host), offset);
        let setup = host.setup(&target, &target.token_for(POLICY));
        clock::set_by(&file(host), setup)
            .map(|setup| setup.env("FAKETIME_DONT_FAKE_MONOTONIC", "0").start())
    };
    let (Some(ahead), Some(behind)) = (start(&one, "+60"), start(&two, "-60")) else {
        return support::skip("no clock to set; run: apt-get install libfaketime");
    };
    for (first, second) in [(&ahead, &behind), (&behind, &ahead)] {
        stored(first, "n", "key", "the-value-of-the-first");
        stored(second, "n", "key", "the-value-of-the-second");
        for host in [first, second] {
            assert_eq!(fetch(host, "n", "key").value(), "the-value-of-the-second");
            assert_eq!(names(host), ["n/key"]);
        }
        assert_eq!(without_uses(first), without_uses(second));
        assert_eq!(without_uses(first)[0]["masked_preview"], "the-va....nd");
    }
    let used = |service: &Service| list(service, "/v1/records").0[0]["last_used_at"].clone();
    clock::set(&file(&one), "+3700");
    fetch(&ahead, "n", "key").value();
    wait_until("the use is shared", || used(&behind) == used(&ahead));
    drop((ahead, behind));
}
