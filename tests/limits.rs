//! Each limit of the service: a request just within it succeeds, a request just beyond it gets
//! the limit's status, and the service continues.
#![cfg(unix)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::{
    Connection, DEADLINE, Place, Response, Service, content_length, eventually, get, put_text,
    raise_descriptor_limit, request,
};

const KIB: usize = 1024;
const HEAD_LIMIT: usize = 16 * KIB;
const BODY_LIMIT: usize = 2 * KIB * KIB;
const VALUE_LIMIT: usize = 256 * KIB;
const CONNECTION_LIMIT: usize = 1024;
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// A GET of /health whose head is `length` bytes long, filled up with `headers` headers.
fn head_of(length: usize, headers: usize) -> Vec<u8> {
    let bare = get("/health").len();
    let overhead = "X-Filler: \r\n".len();
    let filler = length - bare - headers * overhead;
    let mut lines = String::new();
    for n in 0..headers {
        let share = filler / headers + usize::from(n < filler % headers);
        lines.extend(["X-Filler: ", &"f".repeat(share), "\r\n"]);
    }
    let head = request("GET", "/health", &lines, b"");
    assert_eq!(head.len(), length);
    head
}

#[test]
fn a_head_over_16_kib_is_431() {
    let (_place, service) = Place::serving();
    for headers in [1, 60] {
        // The limit may or may not include the last CRLF, so the next case exceeds it by 5.
        let mut connection = service.connect();
        assert_eq!(connection.exchange(&head_of(HEAD_LIMIT, headers)).status, 200, "{headers}");
        assert_eq!(connection.exchange(&get("/health")).status, 200, "it is kept alive");

        assert_refused(service.connect(), &head_of(HEAD_LIMIT + 5, headers), 431);
    }
    let long_target = get(&format!("/health?{}", "q".repeat(HEAD_LIMIT)));
    assert_refused(service.connect(), &long_target, 431);

    // Heads that never end are refused at the limit.
    for endless in ["GET /health HTTP/1.1\r\nX-Filler: ", "GET /", "GET /health HTTP/1.1\r\n"] {
        let filler = if endless.ends_with('\n') { "a: b\r\n" } else { "ffffff" };
        let endless = [endless, &filler.repeat(HEAD_LIMIT / 6 + 1)].concat();
        assert_refused(service.connect(), endless.as_bytes(), 431);
    }
    service.assert_healthy();
}

#[test]
fn a_body_over_2_mib_is_413_without_being_read() {
    let (_place, service) = Place::serving();
    let path = "/v1/credentials/limits/body";

    let mut body = br#"{"value":"v"}"#.to_vec();
    body.resize(BODY_LIMIT, b' ');
    let mut connection = service.connect();
    let answer = connection.exchange(&put_text(path, &body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(connection.exchange(&get(path)).value(), "v");

    // Only the head is sent, so the answer can only depend on the announced length.
    for announced in [BODY_LIMIT + 1, 10 * BODY_LIMIT, usize::MAX] {
        let json = "Content-Type: application/json\r\n".to_owned() + &content_length(announced);
        assert_refused(service.connect(), &request("PUT", path, &json, b""), 413);
        assert_refused(service.connect(), &request("GET", "/health", &json, b""), 413);

        // The client gets no 100 Continue.
        let expecting = json + "Expect: 100-continue\r\n";
        assert_refused(service.connect(), &request("PUT", path, &expecting, b""), 413);
    }

    let beyond_numbers = "Content-Length: 99999999999999999999999999\r\n";
    let mut connection = service.connect();
    let answer = connection.exchange(&request("PUT", path, beyond_numbers, b""));
    assert!(matches!(answer.status, 400 | 413), "{}", answer.status);
    connection.assert_closed();

    assert_eq!(service.get(path).value(), "v", "as it was");
}

/// A client that reads only after it has sent everything still gets its 413.
#[test]
fn a_client_that_sends_the_whole_body_still_gets_413() {
    let (_place, service) = Place::serving();
    let mut body = br#"{"value":"v"}"#.to_vec();
    body.resize(BODY_LIMIT + 1, b' ');
    let mut connection = service.connect();
    // Fails if the service has closed the connection by then.
    let _ = connection.try_send(&put_text("/v1/credentials/limits/sent", &body));
    let answers = connection.responses_to_end();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [413]);
    assert_eq!(service.get("/v1/credentials/limits/sent").status, 404);
}

#[test]
fn a_value_over_256_kib_is_422() {
    let (_place, service) = Place::serving();
    let path = "/v1/credentials/limits/value";
    let escaped = |length: usize| format!(r#"{{"value":"{}"}}"#, r"\u0041".repeat(length));

    let full = "v".repeat(VALUE_LIMIT);
    assert_eq!(service.put(path, &json!({ "value": full })).status, 200);
    assert_eq!(service.get(path).value(), full);

    // The limit counts the value's UTF-8, not its JSON.
    let full = "é".repeat(VALUE_LIMIT / 2);
    assert_eq!(service.put(path, &json!({ "value": full })).status, 200);
    assert_eq!(service.get(path).value(), full);
    let answer = service.connect().exchange(&put_text(path, escaped(VALUE_LIMIT).as_bytes()));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let full = "A".repeat(VALUE_LIMIT);
    assert_eq!(service.get(path).value(), full);

    let over = [
        json!({ "value": "v".repeat(VALUE_LIMIT + 1) }).to_string(),
        json!({ "value": "é".repeat(VALUE_LIMIT / 2) + "v" }).to_string(),
        escaped(VALUE_LIMIT + 1),
    ];
    for body in over {
        let mut connection = service.connect();
        let answer = connection.exchange(&put_text(path, body.as_bytes()));
        assert_eq!(answer.status, 422);
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", "value"]));
        assert!(answer.body.len() < KIB, "the value is not echoed");
        assert_eq!(connection.exchange(&get(path)).value(), full, "as it was, on this connection");
    }
}

/// A service with a soft limit on descriptors that is too low for 1,024 connections. The
/// service raises it.
fn start_with_few_descriptors(place: &Place) -> Service {
    raise_descriptor_limit();
    let service = place.setup().after("ulimit -S -n 1024").start();
    service.assert_healthy();
    service
}

#[test]
fn the_longest_idle_connection_makes_room() {
    let place = Place::new();
    let service = start_with_few_descriptors(&place);
    let health = get("/health");
    let mut connections: Vec<Connection> = Vec::new();
    for _ in 0..CONNECTION_LIMIT {
        let mut connection = service.connect();
        assert_eq!(connection.exchange(&health).status, 200);
        connections.push(connection);
    }
    // A worker may answer a while before it parks the connection. Once the others are used again,
    // the first one has been idle longest.
    for connection in &mut connections[1..] {
        assert_eq!(connection.exchange(&health).status, 200);
    }
    let mut newcomer = service.connect();
    assert_eq!(newcomer.exchange(&health).status, 200, "there is always room");
    connections[0].assert_closed();
    for connection in &mut connections[1..] {
        assert_eq!(connection.exchange(&health).status, 200, "the others continue");
    }
}

#[test]
fn connections_over_1024_are_503_when_none_is_idle() {
    let place = Place::new();
    let service = start_with_few_descriptors(&place);
    let body = br#"{"value":"v"}"#;
    let headers = format!(
        "Expect: 100-continue\r\nContent-Type: application/json\r\n{}",
        content_length(body.len())
    );
    let head = request("PUT", "/v1/credentials/limits/busy", &headers, b"");
    let mut busy: Vec<Connection> = Vec::new();
    while busy.len() < CONNECTION_LIMIT {
        let mut connection = service.connect();
        // From now on it is in the middle of a request.
        assert_eq!(connection.exchange(&head).status, 100);
        busy.push(connection);
    }
    for mut connection in [service.connect(), service.connect()] {
        let answers = connection.responses_to_end();
        assert_eq!(answers.len(), 1);
        assert_eq!((answers[0].status, answers[0].header("Retry-After")), (503, Some("1")));
        assert!(answers[0].closes() && answers[0].json()["detail"].is_string());
    }
    for connection in &mut busy {
        assert_eq!(connection.exchange(body).status, 200, "those inside go on");
    }
}

/// All the ways to be slow, at the same time, because each takes the whole deadline.
#[test]
fn a_request_that_is_not_complete_after_10_seconds_is_408() {
    let (_place, service) = Place::serving();
    let path = "/v1/credentials/limits/slow";
    let body = json!({ "value": "v", "unknown": "u".repeat(100) }).to_string();
    let whole = put_text(path, body.as_bytes());
    let head_length = whole.len() - body.len();
    let expecting = "Expect: 100-continue\r\nContent-Type: application/json\r\n".to_owned()
        + &content_length(13);

    // The bytes that are sent at once, and those that follow one by one until the answer comes.
    let cases: [(&str, Vec<u8>, Vec<u8>); 6] = [
        ("a head, byte by byte", Vec::new(), head_of(HEAD_LIMIT, 1)),
        ("a head that stops", b"GET /hea".to_vec(), Vec::new()),
        ("one byte", b"G".to_vec(), Vec::new()),
        ("a body, byte by byte", whole[..head_length].to_vec(), whole[head_length..].to_vec()),
        ("a body that stops", whole[..whole.len() - 1].to_vec(), Vec::new()),
        ("a body that was asked for", request("PUT", path, &expecting, b""), Vec::new()),
    ];
    thread::scope(|scope| {
        for (name, at_once, drip) in &cases {
            let service = &service;
            scope.spawn(move || {
                // The deadline counts from the start of a request, not of its connection.
                let mut connection = service.connect();
                assert_eq!(connection.exchange(&get("/health")).status, 200);

                let start = Instant::now();
                let answer = slowly(&mut connection, at_once, drip);
                let after = start.elapsed();
                assert_eq!(answer.status, 408, "{name}");
                assert!(answer.closes(), "{name}");
                connection.assert_closed();
                let on_time = REQUEST_DEADLINE.mul_f32(0.99)..REQUEST_DEADLINE.mul_f32(1.5);
                assert!(on_time.contains(&after), "{name}: after {after:?}");
            });
        }

        // The deadline of a client that never pauses between requests is renewed with each of them.
        scope.spawn(|| {
            let (mut connection, start, half) = (service.connect(), Instant::now(), get("/health"));
            let (first, second) = half.split_at(9);
            connection.send(first);
            while start.elapsed() < REQUEST_DEADLINE + Duration::from_secs(1) {
                // A request ends and the next one begins.
                connection.send(&[second, first].concat());
                assert_eq!(connection.response().status, 200);
                thread::sleep(Duration::from_millis(50));
            }
        });

        // A connection that is idle for as long is not closed.
        let mut idle = service.connect();
        let mut used_before = service.connect();
        assert_eq!(used_before.exchange(&get("/health")).status, 200);
        // A request that is slow but in time is answered.
        let mut in_time = service.connect();
        let start = Instant::now();
        in_time.send(&whole[..head_length]);
        let mut rest = whole[head_length..].iter();
        eventually("the deadline has passed for the others", || {
            if start.elapsed() < REQUEST_DEADLINE / 2 {
                return None;
            }
            if let Some(byte) = rest.next() {
                in_time.send(&[*byte]);
                if rest.len() == 0 {
                    assert_eq!(in_time.response().status, 200);
                }
            }
            (start.elapsed() > REQUEST_DEADLINE + Duration::from_secs(1)).then_some(())
        });
        for connection in [&mut idle, &mut used_before, &mut in_time] {
            assert!(connection.is_silent());
            assert_eq!(connection.exchange(&get("/health")).status, 200);
        }
    });
    assert_eq!(service.get(path).value(), "v");
}

/// Sends some bytes at once and others one by one, until an answer comes.
fn slowly(connection: &mut Connection, at_once: &[u8], drip: &[u8]) -> Response {
    connection.send(at_once);
    let mut drip = drip.iter();
    let end = Instant::now() + DEADLINE;
    while connection.is_silent() && Instant::now() < end {
        if let Some(byte) = drip.next() {
            // Fails if the service has just closed the connection.
            let _ = connection.try_send(&[*byte]);
        }
        thread::sleep(Duration::from_millis(220));
    }
    loop {
        let answer = connection.response();
        if answer.status != 100 {
            return answer;
        }
    }
}

/// Asserts that the request is refused with `status` and the connection is then closed.
#[track_caller]
fn assert_refused(mut connection: Connection, request: &[u8], status: u16) {
    // Fails if the service refuses before it has read everything.
    let _ = connection.try_send(request);
    let answer = connection.response();
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.closes(), "{:?}", answer.headers);
    let detail: Value = answer.json()["detail"].take();
    assert!(detail.is_string(), "{detail}");
    connection.assert_closed();
}
