//! Names that mislead, and previews: what is refused, what is listed, and what is shown.
#![cfg(unix)]

mod support;

use serde_json::{Value, json};

use support::{Place, Service, delete, request};

/// `api_key` with a zero-width space, percent-encoded, and as text.
const HIDDEN_IN_PATH: &str = "/v1/credentials/seeded/api%E2%80%8B_key";
const HIDDEN: &str = "api\u{200b}_key";

fn status(service: &Service, request: &[u8]) -> (u16, String) {
    let answer = service.connect().exchange(request);
    (answer.status, answer.text())
}

#[test]
fn a_key_with_invisible_characters_cannot_pose_as_another() {
    let (_place, service) = Place::serving();
    assert_eq!(service.put("/v1/credentials/n/api_key", &json!({ "value": "own" })).status, 200);
    for invisible in ["%E2%80%8B", "%E2%80%AE", "%E2%81%A0", "%EF%BB%BF", "%C2%AD", "%E2%81%A6"] {
        let path = format!("/v1/credentials/n/api{invisible}_key");
        let answer = service.put(&path, &json!({ "value": "canary" }));
        assert_eq!(answer.status, 422, "{invisible}");
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["path", "key"]));
        assert!(!answer.text().contains("canary"));
        assert_eq!(service.get(&path).status, 404, "{invisible}");
        let mut connection = service.connect();
        connection.send(&request("HEAD", &path, "", b""));
        assert_eq!(connection.response_to_head().status, 404, "{invisible}");
        assert_eq!(status(&service, &delete(&path)), (200, r#"{"status":"deleted"}"#.to_owned()));
    }
    assert_eq!(service.get("/v1/credentials/n/api_key").value(), "own");
    assert_eq!(service.get("/v1/credentials").json().as_array().map(Vec::len), Some(1));
}

#[test]
fn an_existing_row_with_invisible_characters_is_listed_beside_the_others() {
    let place = Place::new();
    place.seed_database(2);
    let database = rusqlite::Connection::open(place.database()).expect("opens");
    let sql = "UPDATE credential_metadata
         SET key = ?1, delivery_mode = 'runtime_env', env_name = 'NAME' WHERE key = 'key-000000'";
    assert_eq!(database.execute(sql, [HIDDEN]).expect("updates"), 1);
    let service = place.start();
    for listing in ["/v1/credentials", "/v1/credentials/seeded"] {
        let listed = service.get(listing).json();
        let keys: Vec<_> = listed.as_array().expect("a list").iter().map(|it| &it["key"]).collect();
        assert_eq!(keys, [HIDDEN, "key-000001"], "{listing}");
    }
    assert_eq!(service.get("/v1/runtime-env").json()[0]["key"], HIDDEN);
    assert_eq!(service.get("/health").json()["credential_count"], 2);
    assert_eq!(service.get(HIDDEN_IN_PATH).status, 404);
    // Other credentials can be stored and read beside it.
    assert_eq!(service.put("/v1/credentials/seeded/key", &json!({ "value": "v" })).status, 200);
    assert_eq!(service.get("/v1/credentials/seeded/key").value(), "v");
}

#[test]
fn an_empty_env_name_counts_as_none() {
    let (place, service) = Place::serving();
    let body = json!({ "value": "v", "delivery_mode": "runtime_env", "env_name": "" });
    assert_eq!(service.put("/v1/credentials/n/k", &body).status, 200);
    assert_eq!(service.get("/v1/runtime-env").json()[0]["env_name"], Value::Null);
    assert_eq!(place.column("env_name", "n", "k"), None);
    for name in ["HTTPS_PROXY", "SSL_CERT_FILE", "KUBECONFIG", "A-B"] {
        let body = json!({ "value": "canary", "env_name": name });
        let answer = service.put("/v1/credentials/n/other", &body);
        assert_eq!(answer.status, 422, "{name}");
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", "env_name"]));
    }
}

#[test]
fn previews_show_nothing_if_the_setting_says_so() {
    const KEY: &str = "/v1/credentials/n/new";
    const VALUE: &str = "sk-proj-abc123XYZ";

    let place = Place::new();
    place.seed_database(1);
    let previews = |service: &Service| -> Vec<String> {
        let listed = service.get("/v1/credentials").json();
        let previews = listed.as_array().expect("a list").iter();
        previews.map(|it| it["masked_preview"].as_str().expect("text").to_owned()).collect()
    };
    let service = place.setup().env("IF_VAULT_PREVIEW", "none").start();
    assert_eq!(service.put(KEY, &json!({ "value": VALUE })).status, 200);
    assert_eq!(previews(&service), ["****", "****"], "also of what was stored earlier");
    assert_eq!(place.column("masked_preview", "n", "new").as_deref(), Some("****"));
    assert_eq!(service.get(KEY).value(), VALUE);

    // A service that passes requests on hides them as well.
    let front = Place::new();
    drop(service);
    let service = place.setup().env("IF_VAULT_PREVIEW", "full").start();
    let upstream = place.socket();
    let setup = front.setup_with("service").env("IF_VAULT_PREVIEW", "none");
    let setup = setup.env("IF_VAULT_UPSTREAM_SOCKET", &upstream);
    assert_eq!(previews(&setup.start()), ["****", "****"]);
    assert_eq!(previews(&service), ["****", "sk-pro....YZ"]);
    drop(service);

    let service = place.start();
    assert_eq!(service.put(KEY, &json!({ "value": VALUE })).status, 200);
    assert_eq!(previews(&service), ["sk-pro....YZ", "sk-pro....YZ"], "full is the default");
    drop(service);
    for invalid in ["None", "half", "0"] {
        let mut service = place.setup().env("IF_VAULT_PREVIEW", invalid).spawn();
        assert_eq!(service.wait().code(), Some(2), "{invalid}");
        assert!(service.log().contains("IF_VAULT_PREVIEW is either full or none"));
    }
}
