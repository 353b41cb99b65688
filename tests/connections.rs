//! How requests travel over a connection: kept alive, pipelined, split anywhere, ended
//! from either side.
#![cfg(unix)]

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread;

use serde_json::json;

use support::{Connection, DEADLINE, Place, Service, delete, get, put, put_text, request};

fn path(n: usize) -> String {
    format!("/v1/credentials/pipeline/key-{n}")
}

#[test]
fn a_hundred_requests_in_one_write_get_a_hundred_answers_in_order() {
    let (_place, service) = Place::serving();
    let mut stream = Vec::new();
    for n in 0..25 {
        let body = json!({ "value": format!("value {n} {}", "é".repeat(n)) });
        stream.extend(put(&path(n), &body));
        stream.extend(get(&path(n)));
        stream.extend(request("HEAD", &path(n), "", b""));
        stream.extend(delete(&path(n)));
    }
    let mut connection = service.connect();
    connection.send(&stream);
    for n in 0..25 {
        assert_eq!(connection.response().json(), json!({ "status": "stored" }), "{n}");
        assert_eq!(connection.response().value(), format!("value {n} {}", "é".repeat(n)));
        assert_eq!(connection.response_to_head().status, 200, "{n}");
        assert_eq!(connection.response().json(), json!({ "status": "deleted" }), "{n}");
    }
    assert!(connection.is_silent());
    assert_eq!(connection.exchange(&get("/health")).json()["credential_count"], 0);
}

/// Three requests, two with bodies, whose answers tell them apart.
fn short_pipeline() -> Vec<u8> {
    let stored = put_text("/v1/credentials/split/key", r#"{"value":"é 🔑"}"#.as_bytes());
    let refused = put_text("/v1/credentials/split/key", br#"{"value":1}"#);
    [stored, refused, get("/v1/credentials/split/key")].concat()
}

#[track_caller]
fn assert_short_pipeline_is_answered(connection: &mut Connection) {
    assert_eq!(connection.response().status, 200);
    assert_eq!(connection.response().status, 422);
    assert_eq!(connection.response().value(), "é 🔑");
    assert!(connection.is_silent());
}

#[test]
fn a_pipeline_may_be_split_at_any_byte() {
    let (_place, service) = Place::serving();
    let pipeline = short_pipeline();
    let mut connection = service.connect();
    let mut other = service.connect();
    for at in 1..pipeline.len() {
        let (first, second) = pipeline.split_at(at);
        connection.send(first);
        // By the time that another request is answered, the first part has been read.
        assert_eq!(other.exchange(&get("/health")).status, 200);
        connection.send(second);
        assert_short_pipeline_is_answered(&mut connection);
    }
}

/// More answers than the socket holds, to a client that reads none before it has sent all.
#[test]
fn a_pipeline_may_be_longer_than_every_buffer() {
    let (_place, service) = Place::serving();
    let value = "v".repeat(10_000);
    assert_eq!(service.put(&path(0), &json!({ "value": value })).status, 200);
    let mut connection = service.connect();
    for _ in 0..20 {
        connection.send(&get(&path(0)).repeat(10));
        for _ in 0..10 {
            assert_eq!(connection.response().value(), value);
        }
    }
    let requests = get(&path(0)).repeat(500);
    std::thread::scope(|scope| {
        let mut sender = Connection::over(connection.another_handle());
        scope.spawn(move || sender.send(&requests));
        for _ in 0..500 {
            assert_eq!(connection.response().value(), value);
        }
    });
}

#[test]
fn http_1_1_is_kept_alive_until_either_side_says_close() {
    let (_place, service) = Place::serving();
    let mut connection = service.connect();
    for _ in 0..100 {
        let answer = connection.exchange(&get("/health"));
        assert_eq!(answer.status, 200);
        assert!(!answer.closes());
    }
    for option in ["close", "Close", "foo, close", "close, foo"] {
        let mut connection = service.connect();
        let header = format!("Connection: {option}\r\n");
        let closing = request("GET", "/health", &header, b"");
        // What is pipelined behind it is not answered.
        connection.send(&[closing, get("/health")].concat());
        let answers = connection.responses_to_end();
        assert_eq!(answers.len(), 1, "{option}");
        assert_eq!(answers[0].status, 200);
        assert!(answers[0].closes(), "{option}");
    }
    // Errors of the application do not end a connection.
    let not_found = get("/v1/credentials/none/none");
    let refused = put_text("/v1/credentials/none/none", b"{}");
    let unknown = get("/nothing");
    let not_allowed = request("POST", "/health", "", b"{}");
    let moved = get("/health/");
    for (request, status) in
        [(not_found, 404), (refused, 422), (unknown, 404), (not_allowed, 405), (moved, 307)]
    {
        assert_eq!(connection.exchange(&request).status, status);
    }
    assert_eq!(connection.exchange(&get("/health")).status, 200);
}

#[test]
fn http_1_0_closes_unless_asked_to_keep_alive() {
    let place = Place::new();
    place.seed_database(1000);
    let service = place.start();
    for target in ["/health", "/v1/credentials"] {
        let mut connection = service.connect();
        connection.send(format!("GET {target} HTTP/1.0\r\n\r\n").as_bytes());
        let answers = connection.responses_to_end();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].status, 200);
        // HTTP/1.0 has no chunks.
        assert_eq!(answers[0].header("Transfer-Encoding"), None);
        answers[0].json();
    }
    let mut connection = service.connect();
    let keep = b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    for _ in 0..3 {
        let answer = connection.exchange(keep);
        assert_eq!(answer.status, 200);
        // Without this answer the client would not know that it may go on.
        let said = answer.header("Connection").unwrap_or_default();
        assert!(said.eq_ignore_ascii_case("keep-alive"), "{:?}", answer.headers);
    }
}

#[test]
fn a_client_that_has_ended_its_side_still_gets_its_answers() {
    let place = Place::new();
    place.seed_database(10_000);
    let service = place.start();
    let mut connection = service.connect();
    let pipeline = [short_pipeline(), get("/v1/credentials")].concat();
    connection.send(&pipeline);
    connection.finish_sending();
    assert_eq!(connection.response().status, 200);
    assert_eq!(connection.response().status, 422);
    assert_eq!(connection.response().value(), "é 🔑");
    // Larger than a socket's buffer: the service writes it after the client has closed its side.
    assert_eq!(connection.response().json().as_array().expect("a list").len(), 10_001);
    connection.assert_closed();
}

#[test]
fn a_client_that_ends_in_the_middle_of_a_request_gets_no_answer_but_the_end() {
    let (_place, service) = Place::serving();
    let whole = put("/v1/credentials/cut/key", &json!({ "value": "v" }));
    for length in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
        let mut connection = service.connect();
        connection.send(&whole[..length]);
        connection.finish_sending();
        // A 400 would also be correct.
        for answer in connection.responses_to_end() {
            assert_eq!(answer.status, 400);
        }
    }
    assert_eq!(service.get("/v1/credentials/cut/key").status, 404, "half a store is none");
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let (_place, service) = Place::serving();
    let path = "/v1/credentials/expect/key";
    let body = br#"{"value":"after 100"}"#;
    let head = |version: &str| {
        format!(
            "PUT {path} {version}\r\nHost: h\r\nContent-Type: application/json\r\n\
             Expect: 100-Continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes()
    };

    let mut connection = service.connect();
    for _ in 0..2 {
        assert_eq!(connection.exchange(&head("HTTP/1.1")).status, 100);
        assert_eq!(connection.exchange(body).status, 200);
        assert_eq!(connection.exchange(&get(path)).value(), "after 100");
    }

    // A client may send its body without waiting. A 100 is then allowed, and one final answer is
    // required.
    let mut connection = service.connect();
    connection.send(&[&head("HTTP/1.1"), &body[..], &get("/health")].concat());
    let mut answer = connection.response();
    if answer.status == 100 {
        answer = connection.response();
    }
    assert_eq!(answer.json(), json!({ "status": "stored" }));
    assert_eq!(connection.response().status, 200);
    assert!(connection.is_silent());

    // RFC 9110, 10.1.1: a client of HTTP/1.0 does not know the answer 100.
    let mut connection = service.connect();
    connection.send(&[&head("HTTP/1.0"), &body[..]].concat());
    let statuses: Vec<u16> =
        connection.responses_to_end().iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200]);
}

/// RFC 9110, 9.3.2: whatever the status, the answer to a HEAD has no body.
#[test]
fn a_refused_head_is_answered_without_a_body() {
    let (_place, service) = Place::serving();
    let json = "Content-Type: application/json\r\nContent-Length: 5\r\n";
    let expecting = [json, "Expect: 100-continue\r\n"].concat();
    let too_long = "Content-Length: 99999999\r\n";
    for (target, headers, status) in [
        ("/health", expecting.as_str(), 405),
        ("/nothing", &expecting, 404),
        ("/v1/credentials/a%2/key", &expecting, 400),
        ("/v1/credentials/head/key", too_long, 413),
        ("/v1/credentials/head/key", "Transfer-Encoding: chunked\r\n", 400),
    ] {
        let mut connection = service.connect();
        connection.send(&request("HEAD", target, headers, b""));
        let answer = connection.response_to_head();
        assert_eq!((answer.status, answer.closes()), (status, true), "{target} {headers}");
        connection.assert_closed();
    }
}

/// A worker's buffers serve one connection after another.
#[test]
fn nothing_meant_for_a_client_that_has_gone_reaches_the_next_one() {
    let place = Place::new();
    place.seed_database(10_000);
    let service = place.start();
    for _ in 0..50 {
        let mut gone = service.connect();
        gone.send(&get("/v1/credentials").repeat(20));
        drop(gone);
        let mut next = service.connect();
        let answer = next.exchange(&get("/health"));
        assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("ok")));
    }
}

/// Sends `stream`, and returns everything up to the end of the connection. If that end were
/// missing, a client that was told `Connection: close` would wait for it.
fn answered_to_the_end(service: &Service, stream: &[u8]) -> Vec<u8> {
    let mut client = UnixStream::connect(&service.socket).expect("connects");
    client.set_read_timeout(Some(DEADLINE)).expect("not zero");
    client.write_all(stream).expect("the service takes it");
    let mut answers = Vec::new();
    client.read_to_end(&mut answers).expect("the end of the file");
    answers
}

/// A worker may close a connection while another asks the poller about it.
#[test]
fn every_client_sees_the_end_of_its_connection() {
    let closing = request("GET", "/nothing", "Connection: close\r\n", b"");
    let (_place, service) = Place::serving();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    assert!(answered_to_the_end(&service, &closing).starts_with(b"HTTP/1.1 404"));
                }
            });
        }
    });

    // More requests than a turn answers, and more bytes than one read takes. A second worker may
    // then be woken for the rest just before the first worker reads it and closes. There is only
    // one client, because another one would wake that worker too.
    let turn = get("/nothing").repeat(64);
    for round in 0..500 {
        let rest = request("GET", "/nothing", "", &vec![b'x'; 64 * 1024 + 200 * round]);
        let more = get("/nothing").repeat(round % 5);
        let answers = answered_to_the_end(&service, &[&turn[..], &rest, &more, &closing].concat());
        assert!(answers.starts_with(b"HTTP/1.1 404"));
    }
}
