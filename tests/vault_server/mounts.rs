//! Mounts, namespaces, health and seals.

use serde_json::{Value, json};

use crate::target::{DEAD, REFUSED, Refused, Target, on_each, unique};
use crate::vault_server::VaultServer;
use crate::vault_server::client::{Ask, Client};

const NO_MOUNT: &str = "no handler for route";

impl Target {
    /// A namespace with KV v2 at `secret` and `AppRole` at `approle`; gone at the end.
    #[track_caller]
    fn namespace(&self) -> (String, Client) {
        let name = unique("ns");
        let path = format!("sys/namespaces/{name}");
        let made = self.root.post(&path, &json!({})).expect(200).json();
        assert_eq!(made["data"]["path"], format!("{name}/"));
        self.at_the_end(Ask::new("DELETE", &path));
        let client = self.root.in_namespace(&name);
        let kv = json!({ "type": "kv", "options": { "version": "2" } });
        client.post("sys/mounts/secret", &kv).expect(204);
        client.post("sys/auth/approle", &json!({ "type": "approle" })).expect(204);
        self.eventually("a mount that answers", || {
            (client.get("secret/data/none").status == 404).then_some(())
        });
        (name, client)
    }
}

#[test]
fn secrets_are_mounted_and_unmounted() {
    on_each(|vault| {
        let path = unique("kv");
        let body = json!({ "type": "kv-v2", "description": "of a test" });
        vault.make_mount(&path, &body);
        vault
            .root
            .post(&format!("sys/mounts/{path}"), &body)
            .refused(400, &format!("path is already in use at {path}/"));
        let mounts = vault.root.get("sys/mounts").expect(200).json();
        for mounts in [&mounts, &mounts["data"]] {
            let mount = &mounts[format!("{path}/")];
            assert_eq!(
                (&mount["type"], &mount["description"]),
                (&json!("kv"), &json!("of a test"))
            );
            assert_eq!(mount["options"], json!({ "version": "2" }));
        }
        let data = format!("{path}/data/x");
        vault.root.post(&data, &json!({ "data": { "f": "v" } })).expect(200);
        // Clients look here for the version of a mount.
        let hcl = format!("path \"{data}\" {{ capabilities = [\"read\"] }}");
        let preflight = vault.allowed(&hcl).get(&format!("sys/internal/ui/mounts/{data}"));
        let preflight = preflight.expect(200).json();
        assert_eq!(preflight["data"]["path"], format!("{path}/"));
        assert_eq!(preflight["data"]["options"], json!({ "version": "2" }));
        vault.root.delete(&format!("sys/mounts/{path}")).expect(204);
        let gone = vault.root.get(&data).expect(404);
        assert!(gone.errors()[0].starts_with(NO_MOUNT), "{}", gone.text());
        // Mounted again, it is empty.
        vault.make_mount(&path, &body);
        vault.root.get(&data).refused_silently(404);
    });
}

#[test]
fn a_mount_can_lie_deeper() {
    on_each(|vault| {
        let path = format!("{}/deep/er", unique("kv"));
        vault.make_mount(&path, &json!({ "type": "kv", "options": { "version": "2" } }));
        vault.root.post(&format!("{path}/data/x"), &json!({ "data": { "f": "v" } })).expect(200);
        vault.root.get(&format!("{path}/data/x")).expect(200);
    });
}

#[test]
fn a_namespace_is_a_tree_of_its_own() {
    on_each(|vault| {
        let (name, inside) = vault.namespace();
        inside.post("secret/data/x", &json!({ "data": { "in": name } })).expect(200);
        let got = inside.get("secret/data/x").expect(200);
        assert_eq!(got.json()["data"]["data"]["in"], name);
        assert_eq!(got.header("X-Vault-Namespace"), Some(name.as_str()));
        // By the path, by both, and with slashes.
        vault.root.get(&format!("{name}/secret/data/x")).expect(200);
        for header in [format!("{name}/"), format!("/{name}")] {
            vault.root.in_namespace(&header).get("secret/data/x").expect(200);
        }
        assert_eq!(vault.root.in_namespace("root").get("sys/mounts").status, 200);
        let none = unique("no-ns");
        vault.root.in_namespace(&none).get("secret/data/x").refused(404, "namespace not found");
        let below = format!("{name}/{none}");
        vault.root.in_namespace(&below).get("secret/data/x").refused(404, "namespace not found");
        let nowhere = vault.root.get(&format!("{none}/secret/data/x")).expect(404);
        assert!(nowhere.errors()[0].starts_with(NO_MOUNT));
        inside.get(&vault.kv("data/x")).expect(404);
    });
}

#[test]
fn a_token_belongs_to_its_namespace() {
    on_each(|vault| {
        let (name, inside) = vault.namespace();
        let hcl = "path \"secret/data/*\" { capabilities = [\"create\", \"read\"] }";
        inside.post("sys/policies/acl/app", &json!({ "policy": hcl })).expect(204);
        inside.post("auth/approle/role/app", &json!({ "token_policies": "app" })).expect(204);
        let text =
            |answer: &Value, name: &str| answer["data"][name].as_str().expect("text").to_owned();
        let role_id = text(&inside.get("auth/approle/role/app/role-id").json(), "role_id");
        let wrap = Ask::new("POST", "auth/approle/role/app/secret-id").json(&json!({}));
        let wrapped = inside.ask(&wrap.header("X-Vault-Wrap-TTL", "60s")).expect(200).json();
        // The creation path is relative to the namespace.
        assert_eq!(wrapped["wrap_info"]["creation_path"], "auth/approle/role/app/secret-id");
        let wrapping = inside.with_token(wrapped["wrap_info"]["token"].as_str().expect("a token"));
        let secret_id =
            text(&wrapping.post("sys/wrapping/unwrap", &json!({})).expect(200).json(), "secret_id");
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        let login = inside.without_token().post("auth/approle/login", &body).expect(200).json();
        let token = login["auth"]["client_token"].as_str().expect("a token");
        assert_eq!(token.split('.').count(), 3, "it ends in the namespace's name");
        let client = inside.with_token(token);
        client.post("secret/data/x", &json!({ "data": {} })).expect(200);
        client.get("secret/data/x").expect(200);
        // It is known outside, and may do nothing there; but look at itself from anywhere.
        let outside = vault.root.with_token(token);
        outside.get(&vault.kv("data/x")).refused(403, REFUSED);
        for client in [&client, &outside] {
            let data = client.get("auth/token/lookup-self").expect(200).json()["data"].clone();
            assert_eq!(data["namespace_path"], format!("{name}/"));
            client.post("auth/token/renew-self", &json!({})).expect(200);
        }
        // No login of the root namespace's, and no login there.
        assert_eq!(
            vault.root.post("auth/approle/login", &body).status,
            vault
                .root
                .post("auth/approle/login", &json!({ "role_id": unique("r"), "secret_id": "x" }))
                .status
        );
        // A policy outside reaches in by the path.
        let hcl = format!("path \"{name}/secret/data/*\" {{ capabilities = [\"read\"] }}");
        let outsider = vault.allowed(&hcl);
        outsider.in_namespace(&name).get("secret/data/x").expect(200);
        outsider.in_namespace(&name).get("secret/metadata/x").refused(403, REFUSED);
        outsider
            .in_namespace(&name)
            .post("secret/data/x", &json!({ "data": {} }))
            .refused(403, REFUSED);
    });
}

#[test]
fn the_health_is_told_to_everybody() {
    on_each(|vault| {
        let nobody = vault.root.without_token();
        let health = nobody.get("sys/health").expect(200).json();
        assert_eq!(
            (&health["initialized"], &health["sealed"], &health["standby"]),
            (&json!(true), &json!(false), &json!(false))
        );
        assert!(health["server_time_utc"].is_u64() && health["version"].is_string());
        nobody.get("sys/health?activecode=299").expect(299);
        assert_eq!(nobody.ask(&Ask::new("HEAD", "sys/health")).status, 200);
        let seal = nobody.get("sys/seal-status").expect(200).json();
        assert_eq!(
            (&seal["sealed"], &seal["initialized"], &seal["t"]),
            (&json!(false), &json!(true), &json!(1))
        );
        // In a namespace there is no health.
        let inside = nobody.in_namespace("any");
        inside.get("sys/health").refused(400, "operation unavailable in namespaces");
        inside.get("sys/seal-status").expect(200);
    });
}

/// A seal would be felt by every other test on a real server; what one answers to each of
/// these was looked up there once.
#[test]
fn a_sealed_server_answers_nothing_else() {
    let vault = VaultServer::start();
    let client = vault.client();
    client.post("secret/data/x", &json!({ "data": { "f": "v" } })).expect(200);
    client.without_token().post("sys/seal", &json!({})).refused(403, DEAD);
    client.post("sys/seal", &json!({})).expect(204);
    for got in [
        client.get("secret/data/x"),
        client.patch("secret/data/x", &json!({ "data": {} })),
        client.get("auth/token/lookup-self"),
        client.post("auth/approle/login", &json!({ "role_id": "r", "secret_id": "s" })),
        client.get("sys/mounts"),
        client.in_namespace("none").get("secret/data/x"),
    ] {
        got.refused(503, "Vault is sealed");
    }
    assert_eq!(client.get("sys/health").expect(503).json()["sealed"], true);
    assert_eq!(client.get("sys/health?sealedcode=298").status, 298);
    assert_eq!(client.get("sys/seal-status").expect(200).json()["sealed"], true);
    let nobody = client.without_token();
    nobody.post("sys/unseal", &json!({ "key": "wrong" })).expect(400);
    let unsealed = nobody.post("sys/unseal", &json!({ "key": vault.unseal_key() })).expect(200);
    assert_eq!(unsealed.json()["sealed"], false);
    client.get("secret/data/x").expect(200);
    vault.seal();
    client.get("secret/data/x").refused(503, "Vault is sealed");
    vault.unseal();
    client.get("secret/data/x").expect(200);
}
