//! The client, against servers that behave well and badly.
#![cfg(unix)]

#[path = "support/fake.rs"]
mod fake;
mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use fake::{Fake, Reply, json, no_body};
use intentframe_credentials::client::{ClientError, ClientOptions, VaultClient};
use intentframe_credentials::{CredentialRef, Namespace, Secret, StoreRequest};
use rustix::net::RecvFlags;
use support::Place;

fn at(namespace: &str, key: &str) -> CredentialRef {
    CredentialRef::parse(namespace, key).expect("valid")
}

fn impatient(socket: &Path) -> VaultClient {
    let timeout = Duration::from_millis(200);
    VaultClient::with_options(socket, &ClientOptions { timeout, ..ClientOptions::default() })
}

#[test]
fn each_call_sends_the_request_of_the_contract() {
    let fake = Fake::new(|asked| match asked.what.as_str() {
        "GET /health" => {
            json("200 OK", r#"{"status":"ok","backend":"EnvVault","credential_count":2,"x":1}"#)
        }
        "GET /v1/credentials" | "GET /v1/credentials/n" | "GET /v1/runtime-env" => {
            json("200 OK", "[]")
        }
        "GET /v1/credentials/email.you%40gmail.com/a%20b%25%C3%A9" => {
            json("200 OK", r#"{"value":"\ud83d\udd11 \u0000\n\"\\"}"#)
        }
        "HEAD /v1/credentials/n/k" => no_body("200 OK"),
        "HEAD /v1/credentials/n/none" => no_body("404 Not Found"),
        "PUT /v1/credentials/n/.." => json("200 OK", r#"{"status":"stored"}"#),
        "DELETE /v1/credentials/n/~._-" => json("200 OK", r#"{"status":"deleted"}"#),
        _ => json("404 Not Found", r#"{"detail":"Not Found"}"#),
    });
    let client = VaultClient::new(&fake.socket);
    let health = client.health().expect("health");
    assert_eq!((health.backend.as_str(), health.credential_count), ("EnvVault", 2));
    assert_eq!(health.more["x"], 1);
    assert_eq!(client.list_all().expect("lists"), []);
    assert_eq!(client.list_namespace(&Namespace::new("n").expect("valid")).expect("lists"), []);
    assert_eq!(client.list_runtime_env().expect("lists"), []);
    let value = client.get(&at("email.you@gmail.com", "a b%é")).expect("gets");
    assert_eq!(value.expect("is there").expose(), "🔑 \0\n\"\\");
    assert!(client.get(&at("n", "none")).expect("gets").is_none());
    assert!(client.has(&at("n", "k")).expect("asks"));
    assert!(!client.has(&at("n", "none")).expect("asks"));
    client.store(&at("n", ".."), &StoreRequest::new(Secret::new("🔑\"".into()))).expect("stores");
    client.delete(&at("n", "~._-")).expect("deletes");
    let error = client.records().expect_err("it does not know them");
    assert!(error.to_string().contains("of an older version"), "{error}");

    assert_eq!(fake.connections(), 1, "the connection is kept");
    let asked = fake.asked();
    for request in &asked {
        assert!(request.headers.contains(&"host: credential-vault".to_owned()), "{request:?}");
    }
    let put = asked.iter().find(|it| it.what.starts_with("PUT")).expect("was asked");
    assert!(put.headers.contains(&"content-type: application/json".to_owned()));
    assert!(!put.headers.iter().any(|it| it.starts_with("expect") || it.starts_with("transfer")));
    assert_eq!(
        put.body,
        r#"{"value":"🔑\"","delivery_mode":"executor_only","allowed_consumers":[],"env_name":null,"validator_id":null}"#
    );
}

#[test]
fn long_values_and_listings_arrive_whole() {
    let value = "é\"\u{1}".repeat(60_000);
    let (stored, listing) = (value.clone(), {
        let one = r#"{"namespace":"n","key":"k","delivery_mode":"runtime_env","masked_preview":"****",
            "created_at":"2026-11-23T18:17:36.320458Z","updated_at":"2026-11-23T18:17:36.320458Z",
            "last_validated_at":null,"last_used_at":null,"valid":null}"#;
        format!("[{}]", vec![one; 10_000].join(","))
    });
    let fake = Fake::new(move |asked| match asked.what.as_str() {
        "PUT /v1/credentials/n/k" => json("200 OK", r#"{"status":"stored"}"#),
        "GET /v1/credentials/n/k" => {
            json("200 OK", &serde_json::json!({ "value": stored }).to_string())
        }
        _ => json("200 OK", &listing),
    });
    let client = VaultClient::new(&fake.socket);
    let request = StoreRequest::new(Secret::new(value.clone()));
    client.store(&at("n", "k"), &request).expect("stores");
    let body: serde_json::Value = serde_json::from_str(&fake.asked()[0].body).expect("JSON");
    assert!(body["value"] == value.as_str());
    let got = client.get(&at("n", "k")).expect("gets").expect("is there");
    assert!(got.expose() == value);
    assert_eq!(client.list_all().expect("lists").len(), 10_000);
}

#[test]
fn a_body_in_chunks_is_joined_and_malformed_chunks_are_rejected() {
    let ask = |head: &str, chunks: &str| {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n{chunks}").into_bytes();
        // Byte by byte, so that the client sees every beginning of it.
        let fake = Fake::new(move |_| Reply::Slowly(answer.clone()));
        let client = VaultClient::new(&fake.socket);
        client.get(&at("n", "k")).map(|value| value.expect("is there").expose().len())
    };
    let chunked = "Transfer-Encoding: Chunked\r\n";
    let long = format!("7d0;x=y\r\n{}\r\n", "v".repeat(2000));
    let whole = |last: &str| ["A\r\n{\"value\":\"\r\n", &long, "2\r\n\"}\r\n", last].concat();
    assert_eq!(ask(chunked, &whole("0\r\n\r\n")).expect("gets"), 2000);

    for malformed in [
        "\r\n\r\n",
        "-1\r\n",
        "x\r\n",
        ";a\r\n\r\n",
        "0\r\nTrailer: a\r\n\r\n",
        "1\r\n  \r\n",
        "ffffffffffffffff\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let error = ask(chunked, &whole(malformed)).expect_err(malformed);
        assert!(matches!(error, ClientError::Protocol { .. }), "{malformed:?}: {error:?}");
    }
    for head in [
        "Transfer-Encoding: chunked\r\nContent-Length: 30\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
    ] {
        let error = ask(head, &whole("0\r\n\r\n")).expect_err(head);
        assert!(matches!(error, ClientError::Protocol { .. }), "{head}: {error:?}");
    }
    // Without the last chunk it is not whole.
    let error = ask(chunked, &whole("")).expect_err("cut off");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

#[test]
fn errors_are_told_apart() {
    let error = |reply: fn() -> Reply| {
        let fake = Fake::new(move |_| reply());
        VaultClient::new(&fake.socket).get(&at("n", "k")).expect_err("an error")
    };
    let refused = error(|| json("403 Forbidden", r#"{"detail":"uid 7 may not"}"#));
    assert!(
        matches!(&refused, ClientError::Refused { status: 403, detail } if detail == "uid 7 may not")
    );
    let failed = error(|| json("503 Service Unavailable", r#"{"detail":"unlock it"}"#));
    assert!(
        matches!(&failed, ClientError::Failed { status: 503, detail } if detail == "unlock it")
    );
    let plain = error(|| json("500 Internal Server Error", "Internal Server Error"));
    assert!(matches!(&plain, ClientError::Failed { status: 500, .. }));
    for garbage in [
        (|| json("200 OK", r#"{"value":"sk-canary"#)) as fn() -> Reply,
        || json("200 OK", r#"{"value":7}"#),
        || json("404 Not Found", "<html>sk-canary</html>"),
        || Reply::Last(b"SSH-2.0-sk-canary\r\n\r\n".to_vec()),
        || {
            Reply::Bytes(
                b"HTTP/1.1 307 x\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_vec(),
            )
        },
    ] {
        let error = error(garbage);
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    for broken in [(|| Reply::Last(Vec::new())) as fn() -> Reply, || {
        Reply::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"value\":\"sk-canary".to_vec())
    }] {
        let error = error(broken);
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

/// How the server of the next test treats a connection.
#[derive(Clone, Copy)]
enum Script {
    /// Answers every request.
    Answer,
    /// Answers one request, and ends the connection with the next one unread.
    LeaveUnread,
    /// Answers one request, reads the next one, and ends the connection.
    SwallowSecond,
    /// Reads the first request, and ends the connection.
    SwallowFirst,
    /// Answers one request, then answers half of the next one, and ends the connection with the
    /// end of that request unread.
    HalfAnswer,
}

/// A server that treats its connections by `scripts`, one after the other. Sends each request
/// that it read on the channel.
fn scripted(scripts: Vec<Script>) -> (tempfile::TempDir, PathBuf, mpsc::Receiver<String>) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("vault.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for script in scripts {
            let (stream, _) = listener.accept().expect("accepts");
            let read = || {
                let request = read_request(&stream);
                if let Some(request) = &request {
                    let _ = tell.send(request.clone());
                }
                request.is_some()
            };
            let answer = || {
                let body = r#"{"value":"v"}"#;
                let length = body.len();
                write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
                    .expect("writes");
            };
            match script {
                Script::Answer => {
                    while read() {
                        answer();
                    }
                }
                Script::LeaveUnread => {
                    read();
                    answer();
                    let peeked = rustix::net::recv(&stream, &mut [0; 1], RecvFlags::PEEK);
                    assert_eq!(peeked.expect("the next request comes").0, 1);
                }
                Script::SwallowSecond => {
                    read();
                    answer();
                    read();
                }
                Script::SwallowFirst => {
                    read();
                }
                Script::HalfAnswer => {
                    read();
                    answer();
                    let mut start = [0; 4];
                    (&stream).read_exact(&mut start).expect("the next request comes");
                    let _ = tell.send(String::from_utf8_lossy(&start).into_owned());
                    write!(&stream, "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{{")
                        .expect("writes");
                }
            }
        }
    });
    (dir, socket, told)
}

/// A whole request, head and body; `None` at the end of the connection.
fn read_request(mut stream: &UnixStream) -> Option<String> {
    let mut request = String::new();
    loop {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).expect("reads");
        if count == 0 {
            return None;
        }
        request.push_str(std::str::from_utf8(&some[..count]).expect("ASCII"));
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().expect("a length"))
        });
        if body.len() >= length.unwrap_or(0_usize) {
            return Some(request);
        }
    }
}

/// The client repeats any read, and a store only if the server certainly did not read it.
#[test]
#[cfg(target_os = "linux")]
fn a_store_is_repeated_only_if_it_was_not_read() {
    let get = |client: &VaultClient| client.get(&at("n", "k")).map(|value| value.is_some());
    let put = |client: &VaultClient| {
        client.store(&at("n", "k"), &StoreRequest::new(Secret::new("sk-canary".into())))
    };
    let lines = |told: mpsc::Receiver<String>| -> Vec<String> {
        told.try_iter().map(|request| request.split(' ').next().unwrap_or("").to_owned()).collect()
    };

    let (_dir, socket, told) = scripted(vec![Script::LeaveUnread, Script::Answer]);
    let client = VaultClient::new(socket);
    assert!(get(&client).expect("gets"));
    put(&client).expect("is sent again, for it was not read");
    assert_eq!(lines(told), ["GET", "PUT"]);

    let (_dir, socket, told) = scripted(vec![Script::SwallowSecond, Script::Answer]);
    let client = VaultClient::new(socket);
    assert!(get(&client).expect("gets"));
    let error = put(&client).expect_err("it was read, and nobody knows what came of it");
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    assert!(get(&client).expect("gets, over a new connection"));
    assert_eq!(lines(told), ["GET", "PUT", "GET"], "the store went once");

    let (_dir, socket, told) = scripted(vec![Script::HalfAnswer, Script::Answer]);
    let client = VaultClient::new(socket);
    assert!(get(&client).expect("gets"));
    let error = put(&client).expect_err("it was half answered");
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error:?}");
    assert!(get(&client).expect("gets, over a new connection"));
    assert_eq!(lines(told), ["GET", "PUT", "GET"], "the store went once");

    let (_dir, socket, told) = scripted(vec![Script::SwallowSecond, Script::Answer]);
    let client = VaultClient::new(socket);
    assert!(get(&client).expect("gets"));
    assert!(get(&client).expect("a read is sent again"));
    assert_eq!(lines(told), ["GET", "GET", "GET"]);

    // On a connection that never worked, nothing is sent a second time.
    let (_dir, socket, told) = scripted(vec![Script::SwallowFirst, Script::Answer]);
    let client = VaultClient::new(socket);
    let error = get(&client).expect_err("no answer");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert_eq!(lines(told), ["GET"]);
}

/// A restart closes every connection that many threads have left. No caller sees it.
#[test]
fn a_restart_of_the_service_does_not_show() {
    let (place, mut service) = Place::serving();
    let client = VaultClient::new(place.socket());
    client.store(&at("n", "k"), &StoreRequest::new(Secret::new("v".into()))).expect("stores");
    for _ in 0..3 {
        let together = Barrier::new(8);
        std::thread::scope(|threads| {
            for _ in 0..8 {
                threads.spawn(|| {
                    together.wait();
                    for _ in 0..20 {
                        client.get(&at("n", "k")).expect("gets");
                    }
                });
            }
        });
        service.kill();
        service = place.start();
        // The service has lost its values, but serves the first request.
        client.store(&at("n", "k"), &StoreRequest::new(Secret::new("v".into()))).expect("stores");
        assert!(client.has(&at("n", "k")).expect("asks"));
    }
}

#[test]
fn an_absent_service_is_unreachable() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let missing = dir.path().join("missing.sock");
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).expect("binds"));
    let too_long = dir.path().join("x".repeat(200));
    for (socket, reason) in
        [(&missing, "no such socket"), (&stale, "nothing listens"), (&too_long, "long")]
    {
        let error = VaultClient::new(socket).health().expect_err("nobody is there");
        assert!(matches!(&error, ClientError::Unreachable { .. }), "{error:?}");
        let text = error.to_string().to_lowercase();
        assert!(text.contains(reason), "{text}");
        assert!(error.to_string().contains(&*socket.to_string_lossy()), "{error}");
    }
}

#[test]
fn a_silent_service_times_out() {
    let fake = Fake::new(|_| Reply::Silence);
    let client = impatient(&fake.socket);
    let error = client.health().expect_err("no answer");
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_listener_with_a_full_queue_times_out() {
    use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("full.sock");
    let address = net::SocketAddrUnix::new(&socket).expect("short enough");
    let unix = |flags| {
        net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("a socket")
    };
    let listener = unix(SocketFlags::empty());
    net::bind(&listener, &address).expect("binds");
    net::listen(&listener, 0).expect("listens");
    let mut waiting = Vec::new();
    loop {
        let connection = unix(SocketFlags::NONBLOCK);
        match net::connect(&connection, &address) {
            Ok(()) => waiting.push(connection),
            Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
        }
    }
    let client = impatient(&socket);
    let started = Instant::now();
    let error = client.health().expect_err("no room");
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "it waited for {:?}", started.elapsed());
}
