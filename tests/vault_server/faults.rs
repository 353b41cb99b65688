//! What only the test server has: faults, the journal, the movable clock, stop and restart.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::target::{DEAD, Refused as _};
use crate::vault_server::VaultServer;
use crate::vault_server::client::{Ask, Client};
use crate::vault_server::faults::{Fault, When};
use crate::vault_server::journal::most_at_once;

const PATH: &str = "secret/data/x";

fn write(client: &Client, value: &str) -> std::io::Result<u16> {
    let ask = Ask::new("POST", PATH).json(&json!({ "data": { "f": value } }));
    client.connect()?.ask(client, &ask).map(|got| got.status)
}

fn stored(vault: &VaultServer) -> Value {
    vault.read("x").map_or(Value::Null, |fields| fields["f"].clone())
}

#[test]
fn a_connection_ends_before_or_after_the_effect() {
    let vault = VaultServer::start();
    let client = vault.client();
    let errors = |fault: Fault| {
        vault.fault(fault).next(1);
        write(&client, "new").expect_err("no answer").kind()
    };
    assert_eq!(errors(Fault::Reset(When::Before)), ErrorKind::ConnectionReset);
    assert_eq!(errors(Fault::Close(When::Before)), ErrorKind::UnexpectedEof);
    assert_eq!(stored(&vault), Value::Null);
    assert_eq!(errors(Fault::Reset(When::After)), ErrorKind::ConnectionReset);
    assert_eq!(stored(&vault), "new");
    assert_eq!(errors(Fault::Close(When::After)), ErrorKind::UnexpectedEof);
    assert_eq!(write(&client, "newer").expect("an answer"), 200);
    let statuses: Vec<_> = vault.requests().iter().map(|entry| entry.status).collect();
    assert_eq!(statuses, [None, None, None, None, Some(200)]);
}

#[test]
fn half_an_answer_is_no_answer() {
    let vault = VaultServer::start();
    let client = vault.client();
    vault.fault(Fault::Half).next(2);
    assert_eq!(write(&client, "new").expect_err("half").kind(), ErrorKind::UnexpectedEof);
    assert_eq!(stored(&vault), "new");
    // Of an answer without a body, half of the head.
    let delete = client.connect().expect("listens").ask(&client, &Ask::new("DELETE", PATH));
    assert_eq!(delete.expect_err("half").kind(), ErrorKind::UnexpectedEof);
    assert_eq!(stored(&vault), Value::Null);
    // An answer in chunks.
    vault.write("x", &json!({ "f": "v".repeat(10_000) }));
    vault.fault(Fault::Half).next(1);
    let get = client.connect().expect("listens").ask(&client, &Ask::new("GET", PATH));
    assert_eq!(get.expect_err("half").kind(), ErrorKind::UnexpectedEof);
    client.get(PATH).expect(200);
}

#[test]
fn half_an_answer_can_be_followed_by_silence() {
    let vault = VaultServer::start();
    vault.fault(Fault::HalfThenSilence).next(1);
    let client = vault.client();
    let waiting = thread::spawn(move || write(&client, "new"));
    vault.wait_until("half an answer", |entries| {
        entries.first().is_some_and(|entry| entry.ended.is_some())
    });
    assert!(!waiting.is_finished());
    vault.close_connections();
    assert_eq!(
        waiting.join().expect("no panic").expect_err("half").kind(),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(stored(&vault), "new");
}

#[test]
fn a_request_hangs_until_it_is_released() {
    let vault = VaultServer::start();
    let hang_before = vault.fault(Fault::Hang(When::Before)).on("POST", "secret/").until_cleared();
    let spawn = || {
        let client = vault.client();
        thread::spawn(move || write(&client, "new").expect("an answer"))
    };
    let (first, second) = (spawn(), spawn());
    hang_before.wait_for_hanging(2);
    assert_eq!(stored(&vault), Value::Null);
    // Others go by.
    vault.client().get(PATH).expect(404);
    hang_before.let_through(1);
    vault.wait_until("an answer to one of them", |entries| {
        entries.iter().any(|entry| entry.is("POST", PATH) && entry.status.is_some())
    });
    assert_eq!(hang_before.hanging(), 1);
    hang_before.release();
    assert_eq!([first.join().expect("no panic"), second.join().expect("no panic")], [200, 200]);
    assert_eq!(hang_before.hits(), 2);

    let hang_after = vault.fault(Fault::Hang(When::After)).next(1);
    vault.as_root("DELETE", "secret/metadata/x", None);
    let third = spawn();
    hang_after.wait_for_hanging(1);
    assert_eq!(stored(&vault), "new");
    vault.clear_faults();
    assert_eq!(third.join().expect("no panic"), 200);
    assert_eq!(vault.most_in_flight(), 3);
}

#[test]
fn answers_that_no_healthy_server_gives() {
    let vault = VaultServer::start();
    let client = vault.client();
    let get = |fault: Fault| {
        vault.fault(fault).on("GET", "secret/data/").next(1);
        client.get(PATH)
    };
    get(Fault::sealed()).refused(503, "Vault is sealed");
    let limited = get(Fault::too_many_requests(Duration::from_secs(7))).expect(429);
    assert_eq!(limited.header("Retry-After"), Some("7"));
    let limited = get(Fault::too_many_requests_without_retry_after()).expect(429);
    assert_eq!(limited.header("Retry-After"), None);
    get(Fault::internal_error()).expect(500);
    get(Fault::bad_gateway()).expect(502);
    get(Fault::behind()).expect(412);
    assert!(get(Fault::upgrading()).expect(400).errors()[0].starts_with("Upgrading from"));
    get(Fault::forbidden()).expect(403);
    get(Fault::no_such_method()).expect(405);
    let moved = get(Fault::redirect("http://127.0.0.1:9")).expect(307);
    assert_eq!(moved.header("Location"), Some("http://127.0.0.1:9/v1/secret/data/x"));
    assert!(serde_json::from_slice::<Value>(&get(Fault::garbage()).expect(200).body).is_err());
    assert!(get(Fault::other_json()).expect(200).json()["data"]["data"].is_null());
    vault.fault(Fault::Bytes(b"\x16\x03\x01 not HTTP\r\n\r\n".to_vec())).next(1);
    let error = client.connect().expect("listens").ask(&client, &Ask::new("GET", PATH));
    assert_eq!(error.expect_err("not HTTP").kind(), ErrorKind::InvalidData);
    assert_eq!(vault.answered("GET", PATH, 503), 1);
    client.get(PATH).expect(404);
}

#[test]
fn a_fault_is_met_by_those_that_it_is_for() {
    let vault = VaultServer::start();
    let client = vault.client();
    let fault = vault.fault(Fault::sealed()).on("GET", "secret/data/a").after(1).next(2);
    let statuses = |path: &str, times: usize| -> Vec<u16> {
        (0..times).map(|_| client.get(path).status).collect()
    };
    assert_eq!(statuses("secret/data/b", 2), [404, 404]);
    assert_eq!(statuses("secret/data/a", 4), [404, 503, 503, 404]);
    assert_eq!(fault.hits(), 2);
    let fault = vault.fault(Fault::sealed()).on_path("secret/").until_cleared();
    assert_eq!(statuses("secret/data/a", 3), [503; 3]);
    client.delete("secret/data/a").expect(503);
    client.get("auth/token/lookup-self").expect(200);
    fault.clear();
    assert_eq!(statuses("secret/data/a", 1), [404]);
    // Two at once: the first one comes first.
    vault.fault(Fault::sealed()).next(1);
    vault.fault(Fault::internal_error()).next(1);
    assert_eq!(statuses("secret/data/a", 3), [503, 500, 404]);
}

#[test]
fn a_token_can_be_lost_at_any_moment() {
    let vault = VaultServer::start();
    let token = vault.token(&json!({ "policies": ["default"] }));
    let client = vault.client().with_token(&token);
    client.get("auth/token/lookup-self").expect(200);
    vault.fault(Fault::RevokeToken).next(1);
    client.get("auth/token/lookup-self").refused(403, DEAD);
    let other = vault.token(&json!({}));
    vault.revoke(&other);
    vault.client().with_token(&other).get(PATH).refused(403, DEAD);
    let role = vault.approle("app", &json!({}));
    let login = json!({ "role_id": role.role_id, "secret_id": role.secret_id });
    let got = vault.client().without_token().post("auth/approle/login", &login).expect(200);
    assert_eq!(vault.living_tokens(), 2);
    vault.revoke_all();
    assert_eq!(vault.living_tokens(), 1);
    let token = got.json()["auth"]["client_token"].as_str().expect("a token").to_owned();
    vault.client().with_token(&token).get("auth/token/lookup-self").refused(403, DEAD);
    assert_eq!(vault.count("POST", "auth/approle/login"), 1);
}

#[test]
fn requests_can_be_slow_together_or_in_turn() {
    let vault = VaultServer::start();
    let together = |fault: Fault| {
        let fault = vault.fault(fault).until_cleared();
        let begin = Instant::now();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| vault.client().get(PATH).expect(404));
            }
        });
        fault.clear();
        begin.elapsed()
    };
    let latency = Duration::from_millis(30);
    assert!(together(Fault::Slow(latency)) >= latency);
    assert!(together(Fault::SlowDisk(latency)) >= 4 * latency);
}

#[test]
fn the_journal_knows_what_came_and_no_secret() {
    let vault = VaultServer::builder().namespace("team").start();
    let token = vault.token(&json!({}));
    let client = vault.client().with_token(&token);
    let mut connection = client.connect().expect("listens");
    connection.ask(&client, &Ask::new("GET", "secret/data/x?version=3")).expect("an answer");
    let body = json!({ "data": { "f": "the-value" } });
    connection.ask(&client, &Ask::new("POST", PATH).json(&body)).expect("an answer");
    client.in_namespace("team").with_token("s.unknown").list("secret/metadata/").expect(403);
    let entries = vault.requests();
    let [get, post, list] = &entries[..] else { panic!("three of them: {entries:?}") };
    assert!(
        get.is("GET", PATH) && post.is("POST", "secret/") && list.is("LIST", "secret/metadata/")
    );
    assert_eq!((get.query.as_str(), get.namespace.as_str()), ("version=3", ""));
    assert_eq!((list.namespace.as_str(), list.accessor.as_ref()), ("team", None));
    assert!(get.vault_request && get.accessor.is_some() && get.accessor == post.accessor);
    assert_eq!((get.connection, list.connection), (post.connection, post.connection + 1));
    assert_eq!((get.status, post.status, list.status), (Some(404), Some(200), Some(403)));
    assert_eq!(most_at_once([get, post]), 1);
    let all = format!("{entries:?}");
    assert!(!all.contains("the-value") && !all.contains(&token), "{all}");
    assert_eq!((vault.connections(), vault.count("GET", "secret/")), (2, 1));
    vault.clear_requests();
    assert_eq!(vault.requests().len(), 0);
    // What an operator does is not in it.
    vault.write("x", &json!({}));
    assert_eq!(vault.requests().len(), 0);
}

#[test]
fn a_killed_server_comes_back_as_it_was() {
    let vault = VaultServer::builder().unix_socket().start();
    let client = vault.client();
    let unix = Client::new(&vault.unix_address(), VaultServer::ROOT_TOKEN);
    assert_eq!(write(&unix, "kept").expect("an answer"), 200);
    let mut kept = client.connect().expect("listens");
    kept.ask(&client, &Ask::new("GET", PATH)).expect("an answer").expect(200);
    let hang = vault.fault(Fault::Hang(When::Before)).next(1);
    let hanging = {
        let client = client.clone();
        thread::spawn(move || write(&client, "never"))
    };
    hang.wait_for_hanging(1);
    let address = vault.address();

    vault.stop();
    assert!(hanging.join().expect("no panic").is_err());
    assert!(kept.ask(&client, &Ask::new("GET", PATH)).is_err());
    for client in [&client, &unix] {
        let refused = client.connect().err().expect("nobody listens").kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused);
    }
    assert_eq!(stored(&vault), "kept");
    vault.restart();

    assert_eq!(vault.address(), address);
    for client in [&client, &unix] {
        let fields = client.get(PATH).expect(200).json()["data"]["data"].clone();
        assert_eq!(fields, json!({ "f": "kept" }));
    }
    // Again, and under load: what was acknowledged is there.
    for _ in 0..5 {
        let written = thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let client = client.clone();
                    scope.spawn(move || {
                        let path = format!("secret/data/load-{writer}");
                        let mut count = 0;
                        while let Ok(mut connection) = client.connect() {
                            let body = json!({ "data": { "n": count + 1 } });
                            let ask = Ask::new("POST", &path).json(&body);
                            let Ok(got) = connection.ask(&client, &ask) else { break };
                            count += u64::from(got.status == 200);
                        }
                        count
                    })
                })
                .collect();
            vault.wait_for_requests("POST", "secret/data/load-", 40);
            vault.stop();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (writer, count) in written.iter().enumerate() {
            let found = vault.read(&format!("load-{writer}")).map(|fields| fields["n"].as_u64());
            let found = found.flatten().unwrap_or_default();
            assert!(found == *count || found == count + 1, "{found} of {count}");
        }
        vault.clear_requests();
        vault.restart();
    }
}

#[test]
fn idle_connections_can_be_closed() {
    let vault = VaultServer::start();
    let client = vault.client();
    let mut connection = client.connect().expect("listens");
    connection.ask(&client, &Ask::new("GET", PATH)).expect("an answer");
    assert_eq!(vault.open_connections(), 1);
    vault.close_connections();
    assert!(connection.ask(&client, &Ask::new("GET", PATH)).is_err());
    client.get(PATH).expect(404);
}

#[test]
fn requests_without_the_header_can_be_refused() {
    let vault = VaultServer::builder().requires_vault_request().start();
    vault.client().get(PATH).expect(404);
    let plain = "GET /v1/sys/health HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
    let mut stream = std::net::TcpStream::connect(vault.address().trim_start_matches("http://"))
        .expect("listens");
    std::io::Write::write_all(&mut stream, plain.as_bytes()).expect("it takes them");
    let answer = std::io::read_to_string(stream).expect("text");
    assert!(answer.starts_with("HTTP/1.1 412 "), "{answer}");
    let headers: Vec<_> = vault.requests().iter().map(|entry| entry.vault_request).collect();
    assert_eq!(headers, [true, false]);
}

#[test]
fn the_clock_moves_as_the_test_says() {
    let vault = VaultServer::builder().stopped_clock().start();
    let token = vault.token(&json!({ "ttl": "20s", "policies": ["default"] }));
    let client = vault.client().with_token(&token);
    let left = || client.get("auth/token/lookup-self").expect(200).json()["data"]["ttl"].clone();
    assert_eq!(left(), 20);
    vault.clock().advance(Duration::from_secs(15));
    assert_eq!(left(), 5);
    let role = vault.approle("app", &json!({ "secret_id_ttl": "10s" }));
    vault.clock().advance(Duration::from_secs(6));
    client.get("auth/token/lookup-self").refused(403, DEAD);
    // A lock-out ends, and an expired secret id is tidied away.
    let log_in = |secret_id: &str| {
        let body = json!({ "role_id": role.role_id, "secret_id": secret_id });
        vault.client().without_token().post("auth/approle/login", &body).status
    };
    assert_eq!((0..6).map(|_| log_in("wrong")).collect::<Vec<_>>(), [400, 400, 400, 400, 400, 403]);
    vault.clock().advance(Duration::from_mins(15) + Duration::from_secs(1));
    assert_eq!(log_in(&role.secret_id), 400);
    assert_eq!(log_in(&vault.secret_id("app")), 200);
}

#[test]
fn a_sample_of_everything_in_one_place() {
    let vault = VaultServer::builder().kv_mount("other").start();
    vault.policy("app", "path \"other/data/*\" { capabilities = [\"read\"] }");
    let role = vault.approle("app", &json!({ "token_policies": "app", "secret_id_num_uses": 1 }));
    let wrapped = vault.wrapped_secret_id("app", "60s");
    let client = vault.client();
    let unwrapped = client.with_token(&wrapped).post("sys/wrapping/unwrap", &json!({}));
    let secret_id = unwrapped.expect(200).json()["data"]["secret_id"].clone();
    for secret_id in [json!(role.secret_id), secret_id] {
        let body = json!({ "role_id": role.role_id, "secret_id": secret_id });
        let login = client.without_token().post("auth/approle/login", &body).expect(200).json();
        let token = login["auth"]["client_token"].as_str().expect("a token");
        client.with_token(token).get("other/data/x").expect(404);
        client.with_token(token).get("secret/data/x").expect(403);
    }
}
