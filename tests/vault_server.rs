//! The test server and a real Vault, held against the same assertions.

#[path = "support/vault_server/mod.rs"]
mod vault_server;

use serde_json::json;
use vault_server::VaultServer;

#[test]
fn smoke() {
    let vault = VaultServer::start();
    let client = vault.client();
    client.post("secret/data/a", &json!({"data": {"x": "1"}})).expect(200);
    assert_eq!(client.get("secret/data/a").expect(200).json()["data"]["data"]["x"], "1");
    client.patch("secret/data/a", &json!({"data": {"y": "2"}})).expect(200);
    assert_eq!(vault.read("a"), Some(json!({"x": "1", "y": "2"})));
    let role = vault.approle("r", &json!({"token_ttl": "20s"}));
    let got = client
        .post("auth/approle/login", &json!({"role_id": role.role_id, "secret_id": role.secret_id}));
    let token =
        got.expect(200).json()["auth"]["client_token"].as_str().expect("a token").to_owned();
    client.with_token(&token).get("auth/token/lookup-self").expect(200);
    client.with_token(&token).get("secret/data/a").expect(403);
    vault.stop();
    assert!(client.connect().is_err());
    vault.restart();
    client.get("secret/data/a").expect(200);
}
