//! Requests that are not valid HTTP/1.1 get one 400, and the connection is closed, so that
//! nothing behind them is taken for a request.
#![cfg(unix)]

mod support;

use std::sync::Mutex;
use std::thread;

use serde_json::json;

use support::{Place, Service, get, put, put_text, request};

const PUT: &str = "PUT /v1/credentials/malformed/key HTTP/1.1\r\nHost: h\r\n";
const BODY: &str = r#"{"value":"v"}"#;

/// Requests with a body whose length is ambiguous. A server that gets it wrong takes the body,
/// or what follows it, for a request.
fn framings() -> Vec<(&'static str, Vec<u8>)> {
    let with = |headers: &str| {
        format!("{PUT}Content-Type: application/json\r\n{headers}\r\n{BODY}").into_bytes()
    };
    let chunked = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
    let chunks = |headers: &str| format!("{PUT}{headers}\r\n{chunked}").into_bytes();
    vec![
        ("chunked", chunks("Transfer-Encoding: chunked\r\n")),
        ("chunked, spelled differently", chunks("transfer-ENCODING:CHUNKED\r\n")),
        ("identity", with("Transfer-Encoding: identity\r\nContent-Length: 13\r\n")),
        ("an unknown coding", chunks("Transfer-Encoding: xchunked\r\n")),
        ("an empty coding", with("Transfer-Encoding:\r\nContent-Length: 13\r\n")),
        ("two codings", chunks("Transfer-Encoding: gzip, chunked\r\n")),
        ("both framings", chunks("Content-Length: 13\r\nTransfer-Encoding: chunked\r\n")),
        ("both framings, reversed", chunks("Transfer-Encoding: chunked\r\nContent-Length: 13\r\n")),
        ("two equal lengths", with("Content-Length: 13\r\nContent-Length: 13\r\n")),
        ("two lengths", with("Content-Length: 13\r\nContent-Length: 2\r\n")),
        ("two lengths, reversed", with("Content-Length: 0\r\ncontent-length: 13\r\n")),
        ("two lengths in one", with("Content-Length: 13, 13\r\n")),
        ("a length with a sign", with("Content-Length: +13\r\n")),
        ("a negative length", with("Content-Length: -1\r\n")),
        ("a hexadecimal length", with("Content-Length: 0xd\r\n")),
        ("a length with a fraction", with("Content-Length: 13.0\r\n")),
        ("a length with a space inside", with("Content-Length: 1 3\r\n")),
        ("a length with an underscore", with("Content-Length: 1_3\r\n")),
        ("an empty length", with("Content-Length:\r\n")),
        ("a blank length", with("Content-Length:   \r\n")),
        ("a length in words", with("Content-Length: thirteen\r\n")),
        ("a length in other digits", with("Content-Length: ١٣\r\n")),
    ]
}

fn heads() -> Vec<(&'static str, Vec<u8>)> {
    let cases: Vec<(&str, &[u8])> = vec![
        ("bare LF throughout", b"GET /health HTTP/1.1\nHost: h\n\n"),
        ("bare LF after the request line", b"GET /health HTTP/1.1\nHost: h\r\n\r\n"),
        ("bare LF after a header", b"GET /health HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
        ("bare LF as the last line", b"GET /health HTTP/1.1\r\nHost: h\r\n\n"),
        ("LF LF as the end", b"GET /health HTTP/1.1\r\nHost: h\n\n"),
        ("bare LF in the target", b"GET /hea\nlth HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("bare CR in a value", b"GET /health HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n"),
        ("CR CR LF", b"GET /health HTTP/1.1\r\nHost: h\r\r\n\r\n"),
        ("bare CR after the request line", b"GET /health HTTP/1.1\rHost: h\r\n\r\n"),
        ("HTTP/0.9", b"GET /health\r\n"),
        ("HTTP/0.9 with a head's end", b"GET /health\r\n\r\n"),
        ("HTTP/0.9, with a version", b"GET /health HTTP/0.9\r\nHost: h\r\n\r\n"),
        ("HTTP/1.2", b"GET /health HTTP/1.2\r\nHost: h\r\n\r\n"),
        ("HTTP/2.0", b"GET /health HTTP/2.0\r\nHost: h\r\n\r\n"),
        ("HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("HTTP/11.1", b"GET /health HTTP/11.1\r\nHost: h\r\n\r\n"),
        ("HTTP/1.1 and more", b"GET /health HTTP/1.1 x\r\nHost: h\r\n\r\n"),
        ("a version in small letters", b"GET /health http/1.1\r\nHost: h\r\n\r\n"),
        ("no version", b"GET /health \r\nHost: h\r\n\r\n"),
        ("no target", b"GET HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("no method", b" /health HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("an invalid method", b"G(T /health HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a space in the target", b"GET /hea lth HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("a control character in the target", b"GET /hea\x01lth HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("NUL in a name", b"GET /health HTTP/1.1\r\nHo\0st: h\r\n\r\n"),
        ("NUL in a value", b"GET /health HTTP/1.1\r\nHost: h\0\r\n\r\n"),
        ("a space before the colon", b"GET /health HTTP/1.1\r\nHost : h\r\n\r\n"),
        (
            "a length with a space before the colon",
            b"GET /health HTTP/1.1\r\nContent-Length : 5\r\n\r\nGET /",
        ),
        ("a folded header", b"GET /health HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n"),
        ("a folded header, with a tab", b"GET /health HTTP/1.1\r\nX: a\r\n\tb\r\nHost: h\r\n\r\n"),
        ("a fold before the first header", b"GET /health HTTP/1.1\r\n Host: h\r\n\r\n"),
        ("a header without a colon", b"GET /health HTTP/1.1\r\nHost\r\n\r\n"),
        ("a header without a name", b"GET /health HTTP/1.1\r\n: h\r\n\r\n"),
        ("an invalid name", b"GET /health HTTP/1.1\r\nHo(st: h\r\n\r\n"),
        ("random bytes", b"\x00\xff\xfe\x80\x01"),
        ("random text", b"hello?\r\n\r\n"),
        ("JSON", b"{\"value\":\"v\"}\r\n\r\n"),
        (
            "a TLS ClientHello",
            b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\x5f\x1c\x8f\x1a\x1d\x33\x21\x00\x20",
        ),
    ];
    cases.into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect()
}

/// Asserts for each case that the answers are `before`, then one 400, and then the connection
/// ends, also if another request follows. Nothing but these bytes is sent.
#[track_caller]
fn assert_refused(service: &Service, cases: &[(&str, Vec<u8>)], before: &[u16], prefix: &[u8]) {
    let smuggled = put("/v1/credentials/malformed/smuggled", &json!({ "value": "v" }));
    let expected = [before, &[400]].concat();
    let wrong = Mutex::new(Vec::new());
    // At the same time, because some cases may take until a deadline.
    thread::scope(|scope| {
        for (name, bytes) in cases {
            for (behind, what) in [(&b""[..], "alone"), (&smuggled, "with a request behind it")] {
                let (expected, wrong) = (&expected, &wrong);
                scope.spawn(move || {
                    let mut connection = service.connect();
                    // Fails if the service refuses before it has read everything.
                    let _ = connection.try_send(&[prefix, bytes, behind].concat());
                    let answers = connection.responses_to_end();
                    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
                    let last = answers.last().expect("an answer");
                    if statuses != *expected || !last.closes() || !last.json()["detail"].is_string()
                    {
                        let text = last.text();
                        let failure = format!("{name}, {what}: {statuses:?} {text}");
                        wrong.lock().expect("no panic").push(failure);
                    }
                });
            }
        }
    });
    let wrong = wrong.into_inner().expect("no panic");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn ambiguous_lengths_are_400_and_closed() {
    let (_place, service) = Place::serving();
    assert_refused(&service, &framings(), &[], b"");
    assert_eq!(service.get("/v1/credentials").json(), json!([]), "nothing was stored");
}

#[test]
fn heads_that_are_not_http_1_1_are_400_and_closed() {
    let (_place, service) = Place::serving();
    assert_refused(&service, &heads(), &[], b"");
    assert_eq!(service.get("/v1/credentials").json(), json!([]), "nothing was stored");
}

#[test]
fn a_good_request_before_a_bad_one_is_answered() {
    let (_place, service) = Place::serving();
    let good = put("/v1/credentials/malformed/good", &json!({ "value": "v" }));
    let cases = [framings(), heads()].concat();
    assert_refused(&service, &cases, &[200], &good);
    assert_eq!(service.get("/v1/credentials").json().as_array().expect("a list").len(), 1);
}

/// RFC 9112, 2.2: a server skips an empty line before a request line, because old clients send
/// one after a body.
#[test]
fn an_empty_line_before_a_request_is_skipped() {
    let (_place, service) = Place::serving();
    let mut connection = service.connect();
    let answer = connection.exchange(&[b"\r\n", &get("/health")[..]].concat());
    assert_eq!(answer.status, 200);
    assert_eq!(connection.exchange(&get("/health")).status, 200);
}

#[test]
fn a_body_that_looks_like_a_request_is_a_body() {
    let (_place, service) = Place::serving();
    let smuggled = put("/v1/credentials/malformed/smuggled", &json!({ "value": "v" }));
    let mut connection = service.connect();
    for method in ["GET", "DELETE", "POST"] {
        for path in ["/health", "/v1/credentials/malformed/none", "/no/such/route"] {
            connection.send(&request(method, path, "", &smuggled));
            connection.response();
        }
    }
    connection.send(&request("HEAD", "/v1/credentials/malformed/none", "", &smuggled));
    assert_eq!(connection.response_to_head().status, 404);
    assert_eq!(connection.exchange(&get("/v1/credentials")).json(), json!([]));
    assert!(connection.is_silent(), "as many answers as requests");
}

#[test]
fn hostile_json_is_422() {
    let (_place, service) = Place::serving();
    let path = "/v1/credentials/malformed/json";
    let bodies: Vec<Vec<u8>> = vec![
        "[".repeat(1_000_000).into_bytes(),
        "{\"value\":".repeat(100_000).into_bytes(),
        b"{\"value\":\"canary\xff\"}".to_vec(),
        b"{\"value\":\"\xed\xa0\x80canary\"}".to_vec(),
        br#"{"value":"\udc00\ud800canary"}"#.to_vec(),
        br#"{"value":"canary\x"}"#.to_vec(),
        b"{\"value\":\"canary\nline\"}".to_vec(),
        b"{\"value\":\"canary\0\"}".to_vec(),
        br"{'value':'canary'}".to_vec(),
        br#"{"value":"canary",}"#.to_vec(),
        b" ".to_vec(),
    ];
    let mut connection = service.connect();
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let answer = connection.exchange(&put_text(path, &body));
        assert_eq!(answer.status, 422, "{shown}: {}", answer.text());
        assert!(!answer.text().contains("canary"), "{}", answer.text());
        let detail = answer.json()["detail"].take();
        assert_eq!(detail[0]["loc"][0], "body", "{shown}: {detail}");
    }
    assert_eq!(connection.exchange(&get(path)).status, 404);

    // An unknown field may be deeply nested: it is ignored or refused, but crashes nothing.
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let answer = connection.exchange(&put_text(
        "/v1/credentials/malformed/deep",
        format!(r#"{{"value":"canary","x":{deep}}}"#).as_bytes(),
    ));
    assert!(matches!(answer.status, 200 | 422), "{}", answer.status);
    service.assert_healthy();
    assert!(!service.log().contains("canary"), "the log does not contain it either");
}

#[test]
fn hostile_paths_do_no_harm() {
    let (_place, service) = Place::serving();
    let paths = [
        "/v1/credentials/%ff/%fe",
        "/v1/credentials/a/%",
        "/v1/credentials/a/%4",
        "/v1/credentials/a/%zz",
        "/v1/credentials/../../etc/passwd",
        "/v1/credentials/%2e%2e/key",
        "/v1/credentials/a/%00",
        "/v1/credentials//key",
        "/v1/credentials/a//key",
        "//evil.example/",
        "/\\evil.example/",
        "//evil.example/%2f..",
        "/v1/credentials/a%0d%0aX-Injected:%20yes/",
        "/v1/credentials/a%0d%0aX-Injected:%20yes/key",
        "*",
        "health",
        "http://credential-vault/nothing",
    ];
    for path in paths {
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            let mut connection = service.connect();
            let body = if method == "PUT" { br#"{"value":"v"}"# } else { &b""[..] };
            let json = "Content-Type: application/json\r\n";
            let answer = connection.exchange(&request(method, path, json, body));
            assert!(answer.status < 500, "{method} {path}: {}", answer.status);
            assert_eq!(answer.header("X-Injected"), None, "{method} {path}");
            if let Some(location) = answer.header("Location") {
                assert!(
                    location.starts_with("/v1/") && !location.starts_with("//"),
                    "{method} {path}: {location}"
                );
            }
        }
    }
    service.assert_healthy();
}
