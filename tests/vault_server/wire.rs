//! HTTP: connections, framing, headers.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::target::{Target, on_each};
use crate::vault_server::client::Ask;

impl Target {
    /// Sends text as it is, and reads up to the end of the connection.
    #[track_caller]
    fn raw(&self, text: &str) -> String {
        let host = self.root.address.0.strip_prefix("http://").expect("plain HTTP");
        let mut stream = TcpStream::connect(host).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
        let token = self.root.token.as_deref().expect("root's");
        stream.write_all(text.replace("TOKEN", token).as_bytes()).expect("it takes them");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text, then the end");
        answer
    }
}

#[test]
fn a_connection_serves_many_requests() {
    on_each(|vault| {
        let mut connection = vault.root.connect().expect("it listens");
        let path = vault.kv("data/x");
        let body = json!({ "data": { "f": "v" } });
        for (ask, status) in [
            (Ask::new("GET", &path), 404),
            (Ask::new("POST", &path).json(&body), 200),
            (Ask::new("PATCH", &path).bytes(b"{}"), 400),
            (Ask::new("HEAD", &path), 405),
            (Ask::new("PATCH", &path).merge_patch(&body), 200),
            (Ask::new("DELETE", &path), 204),
            (Ask::new("LIST", &vault.kv("metadata/")), 200),
        ] {
            assert_eq!(
                connection.ask(&vault.root, &ask).expect("an answer").status,
                status,
                "{ask:?}"
            );
        }
        // Sent before the answer to the last one is there.
        for _ in 0..3 {
            connection.send(&vault.root, &Ask::new("GET", "sys/seal-status")).expect("it takes it");
        }
        for _ in 0..3 {
            connection.answer(false).expect("an answer").expect(200);
        }
    });
}

#[test]
fn a_client_can_have_the_connection_closed() {
    on_each(|vault| {
        let head = "GET /v1/sys/seal-status HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n";
        let answer = vault.raw(head);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
        let answer = vault.raw("GET /v1/sys/seal-status HTTP/1.0\r\nHost: v\r\n\r\n");
        assert!(answer.contains(" 200 OK\r\n"), "{answer}");
    });
}

#[test]
fn large_bodies_come_and_go_in_chunks() {
    on_each(|vault| {
        let path = vault.kv("data/large");
        let fields = json!({ "a": "x".repeat(50_000), "b": "y" });
        let body = json!({ "data": fields }).to_string();
        // A request in two chunks.
        let (first, second) = body.split_at(30_000);
        let answer = vault.raw(&format!(
            "POST /v1/{path} HTTP/1.1\r\nHost: v\r\nX-Vault-Token: TOKEN\r\nConnection: \
             close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n\
             0\r\n\r\n",
            first.len(),
            second.len()
        ));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let got = vault.root.get(&path).expect(200);
        assert_eq!(got.json()["data"]["data"], fields);
        assert_eq!(got.header("Transfer-Encoding"), Some("chunked"));
        assert_eq!(got.header("Content-Length"), None);
        let small = vault.root.get("sys/seal-status").expect(200);
        assert_eq!(small.header("Transfer-Encoding"), None);
        assert!(small.header("Content-Length").is_some());
    });
}

#[test]
fn a_client_can_ask_before_it_sends() {
    on_each(|vault| {
        let answer = vault.raw(&format!(
            "POST /v1/{} HTTP/1.1\r\nHost: v\r\nX-Vault-Token: TOKEN\r\nExpect: \
             100-continue\r\nConnection: close\r\nContent-Length: 11\r\n\r\n{{\"data\":{{}}}}",
            vault.kv("data/x")
        ));
        assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
    });
}

#[test]
fn every_answer_says_that_it_is_json_and_not_to_be_kept() {
    on_each(|vault| {
        for (ask, status) in [
            (Ask::new("GET", "auth/token/lookup-self"), 200),
            (Ask::new("GET", &vault.kv("data/none")), 404),
            (Ask::new("DELETE", &vault.kv("data/none")), 204),
            (Ask::new("PATCH", &vault.kv("data/none")).merge_patch(&json!({ "data": {} })), 404),
            (Ask::new("BREW", &vault.kv("data/none")), 405),
        ] {
            let got = vault.root.ask(&ask).expect(status);
            assert_eq!(got.header("Content-Type"), Some("application/json"), "{ask:?}");
            assert_eq!(got.header("Cache-Control"), Some("no-store"), "{ask:?}");
        }
    });
}

#[test]
fn what_is_not_the_api_is_not_there() {
    on_each(|vault| {
        for (target, status) in [("/v2/secret", "404 Not Found"), ("/v1", "404 Not Found")] {
            let answer = vault
                .raw(&format!("GET {target} HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{target}: {answer}");
        }
        let answer = vault.raw("nonsense\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    });
}
