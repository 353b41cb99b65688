//! Long listings: made and sent by the page, in chunks, while everything else goes on.
#![cfg(unix)]

mod support;

use std::io::{ErrorKind, Read as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use intentframe_credentials::client::VaultClient;
use intentframe_credentials::daemon::{Daemon, Settings};
use intentframe_credentials::server::{Endpoint, Limits};
use intentframe_credentials::{BackendOptions, Environment};
use serde_json::{Value, json};

use support::{Connection, Place, Response, delete, get, put, request};

/// The names in a listing, as `namespace/key`.
fn names(answer: &Response) -> Vec<String> {
    let text = |it: &Value| it.as_str().expect("a string").to_owned();
    let name = |it: &Value| format!("{}/{}", text(&it["namespace"]), text(&it["key"]));
    answer.json().as_array().expect("a list").iter().map(name).collect()
}

fn seeded(rows: u32) -> Vec<String> {
    (0..rows).map(|row| format!("seeded/key-{row:06}")).collect()
}

fn is_chunked(answer: &Response) -> bool {
    answer.header("Transfer-Encoding") == Some("chunked")
}

#[test]
fn each_credential_is_listed_once_while_others_come_and_go() {
    let place = Place::new();
    place.seed_database(10_000);
    let service = place.start();
    let expected = seeded(10_000);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..3 {
            let (service, ended) = (&service, &ended);
            scope.spawn(move || {
                let mut connection = service.connect();
                for n in (0..).step_by(97) {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    // Before, between and after those that stay; and one of those itself.
                    let row = n % 10_000;
                    for path in [
                        format!("/v1/credentials/aaa/{writer}"),
                        format!("/v1/credentials/seeded/key-{row:06}-{writer}"),
                        format!("/v1/credentials/zzz/{writer}"),
                    ] {
                        let stored = connection.exchange(&put(&path, &json!({ "value": "v" })));
                        assert_eq!(stored.status, 200);
                        assert_eq!(connection.exchange(&delete(&path)).status, 200);
                    }
                    let path = format!("/v1/credentials/seeded/key-{row:06}");
                    let stored = connection.exchange(&put(&path, &json!({ "value": "v" })));
                    assert_eq!(stored.status, 200);
                }
            });
        }
        let mut connection = service.connect();
        for target in ["/v1/credentials", "/v1/credentials/seeded"].repeat(3) {
            let answer = connection.exchange(&get(target));
            assert!(is_chunked(&answer) && answer.header("Content-Length").is_none());
            let names = names(&answer);
            assert!(names.is_sorted_by(|a, b| a < b), "{target}");
            let stays = |name: &String| name.len() == "seeded/key-000000".len();
            assert!(names.into_iter().filter(stays).eq(expected.iter().cloned()), "{target}");
        }
        ended.store(true, Ordering::Relaxed);
    });
}

/// A listing may just fill its first page, or have one element more.
#[test]
fn a_listing_of_any_length_is_whole() {
    let place = Place::new();
    let most = 320;
    place.seed_database(most);
    let service = place.start();
    let mut connection = service.connect();
    let (mut short, mut long) = (0, 0);
    for rows in (200..=most).rev() {
        let answer = connection.exchange(&get("/v1/credentials/seeded"));
        assert!(names(&answer) == seeded(rows), "{rows} rows");
        if is_chunked(&answer) {
            assert_eq!(short, 0, "{rows} rows are in chunks, more are not");
            long += 1;
        } else {
            short += 1;
        }
        let path = format!("/v1/credentials/seeded/key-{:06}", rows - 1);
        assert_eq!(connection.exchange(&delete(&path)).status, 200);
    }
    assert!(short > 0 && long > 0, "{short} short ones, {long} long ones");
}

#[test]
fn a_long_list_of_variables_is_whole() {
    let place = Place::new();
    place.seed_database(5000);
    let database = rusqlite::Connection::open(place.database()).expect("opens");
    let sql = "UPDATE credential_metadata SET delivery_mode = 'runtime_env', env_name = 'A'
               WHERE key >= 'key-001000'";
    database.execute_batch(sql).expect("updates");
    drop(database);
    let answer = place.start().get("/v1/runtime-env");
    assert!(is_chunked(&answer));
    assert!(names(&answer) == seeded(5000)[1000..]);
    assert_eq!(answer.json()[0]["env_name"], "A");
}

#[test]
fn requests_behind_a_long_listing_get_their_own_answers() {
    let place = Place::new();
    place.seed_database(10_000);
    let service = place.start();
    let path = "/v1/credentials/behind/key";
    let mut connection = service.connect();
    let store = put(path, &json!({ "value": "v" }));
    let list = get("/v1/credentials/seeded");
    let closing = request("GET", "/v1/credentials/seeded", "Connection: close\r\n", b"");
    connection.send(&[&list[..], &store, &list, &get(path), &closing].concat());
    let answers = connection.responses_to_end();
    assert_eq!(answers.len(), 5);
    for n in [0, 2, 4] {
        assert!(is_chunked(&answers[n]));
        assert!(names(&answers[n]) == seeded(10_000), "answer {n}");
        assert_eq!(answers[n].closes(), n == 4);
    }
    assert_eq!(answers[1].json(), json!({ "status": "stored" }));
    assert_eq!(answers[3].value(), "v");
}

/// The client can tell: there is no last chunk.
#[test]
fn a_listing_that_fails_in_the_middle_ends_the_connection() {
    let place = Place::new();
    place.seed_database(10_000);
    let database = rusqlite::Connection::open(place.database()).expect("opens");
    let sql = "UPDATE credential_metadata SET created_at = 'never' WHERE key = 'key-009000'";
    database.execute_batch(sql).expect("updates");
    drop(database);
    let service = place.start();
    let mut connection = service.connect();
    connection.send(&get("/v1/credentials"));
    let error = connection.try_response(false).expect_err("it is not whole");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(service.log().contains("seeded/key-009000"), "the row is named");
    VaultClient::new(&service.socket).list_all().expect_err("it is not whole");
    service.assert_healthy();
}

#[test]
fn a_client_that_stops_reading_a_listing_is_cut_off_and_others_go_on() {
    let place = Place::new();
    place.seed_database(10_000);
    let endpoint = Endpoint::Unix(place.socket());
    let options = BackendOptions::new(Environment::default());
    let limits = Limits { write: Duration::from_millis(500), ..Limits::default() };
    let settings = Settings::new(endpoint, place.data_dir(), "env", options);
    let daemon = Daemon::start(&Settings { limits, ..settings }).expect("starts");

    let mut stopped: Vec<_> = (0..8)
        .map(|_| {
            let mut connection = Connection::open(&place.socket());
            connection.send(&get("/v1/credentials"));
            let mut stream = connection.another_handle();
            stream.read_exact(&mut vec![0; 100 * 1024]).expect("the start of the listing");
            stream
        })
        .collect();
    let mut other = Connection::open(&place.socket());
    for _ in 0..5 {
        assert!(names(&other.exchange(&get("/v1/credentials"))) == seeded(10_000));
    }
    // The place of a connection is free once the service has closed it.
    daemon.stop();
    daemon.join().expect("no connection is left after the deadline for writing");
    for stream in &mut stopped {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("what the socket still held, and the end");
        assert!(rest.len() < 1024 * 1024 && !rest.ends_with(b"0\r\n\r\n"), "{}", rest.len());
    }
}
