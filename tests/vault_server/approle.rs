//! `AppRole`: roles, secret ids, logins.

use serde_json::{Value, json};

use crate::target::{DEAD, Refused, Target, on_each, unique};
use crate::vault_server::client::{Ask, Client};

const INVALID: &str = "invalid role or secret ID";

impl Target {
    fn role_path(&self, rest: &str) -> String {
        format!("auth/{}/role/{rest}", self.approle)
    }
}

#[track_caller]
fn lookup(client: &Client) -> Value {
    client.get("auth/token/lookup-self").expect(200).json()["data"].clone()
}

#[test]
fn a_login_gives_a_token_of_the_role() {
    on_each(|vault| {
        let fields = json!({
            "token_ttl": "20s", "token_max_ttl": "60s", "token_policies": "b-of-tests,a-of-tests",
        });
        let (role_id, secret_id) = vault.role("app", &fields);
        let got = vault.log_in(&role_id, &secret_id).expect(200);
        let client = vault.client_of(&got);
        let auth = got.json()["auth"].clone();
        assert_eq!(
            auth,
            json!({
                "client_token": auth["client_token"], "accessor": auth["accessor"],
                "policies": ["a-of-tests", "b-of-tests", "default"],
                "token_policies": ["a-of-tests", "b-of-tests", "default"],
                "metadata": { "role_name": "app" }, "lease_duration": 20, "renewable": true,
                "entity_id": auth["entity_id"], "token_type": "service", "orphan": true,
                "mfa_requirement": null, "num_uses": 0,
            })
        );
        assert_eq!(got.json()["warnings"], Value::Null);
        let token = lookup(&client);
        assert_eq!(token["path"], format!("auth/{}/login", vault.approle));
        assert_eq!(token["display_name"], vault.approle);
        // The role's maximum is not to be seen here.
        assert_eq!((&token["explicit_max_ttl"], &token["creation_ttl"]), (&json!(0), &json!(20)));
        assert_eq!(token["meta"], json!({ "role_name": "app" }));
        // The same secret id again, and another token.
        let again = vault.log_in(&role_id, &secret_id).expect(200);
        vault.client_of(&again);
        assert_ne!(again.json()["auth"]["client_token"], auth["client_token"]);
    });
}

#[test]
fn all_wrong_credentials_are_refused_alike() {
    on_each(|vault| {
        let (role_id, secret_id) = vault.role("app", &json!({}));
        let other = vault.role("other", &json!({})).1;
        vault.log_in(&unique("no-role"), &secret_id).refused(400, INVALID);
        vault.log_in(&role_id, "no-such-secret").refused(400, INVALID);
        vault.log_in(&role_id, &other).refused(400, INVALID);
        vault.log_in(&role_id, "").refused(400, "missing secret_id");
        let login = format!("auth/{}/login", vault.approle);
        let nobody = vault.root.without_token();
        nobody.post(&login, &json!({ "role_id": role_id })).refused(400, "missing secret_id");
        // A path that is no login needs a token.
        let nowhere = format!("auth/{}/login", unique("approle"));
        nobody.post(&nowhere, &json!({ "role_id": role_id })).refused(403, DEAD);
        // A bad token beside a login does not matter.
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        let got = vault.root.with_token("s.unknown").post(&login, &body).expect(200);
        vault.client_of(&got);
        vault.client_of(
            &vault.log_in(&format!(" {role_id} "), &format!("{secret_id}\n")).expect(200),
        );
    });
}

#[test]
fn five_wrong_secret_ids_lock_a_role_id_out() {
    on_each(|vault| {
        let (role_id, secret_id) = vault.role("app", &json!({}));
        let (other_id, other_secret) = vault.role("other", &json!({}));
        for _ in 0..4 {
            vault.log_in(&role_id, "wrong").refused(400, INVALID);
        }
        // A success in between begins the count anew.
        vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        for _ in 0..5 {
            vault.log_in(&role_id, "wrong").refused(400, INVALID);
        }
        vault.log_in(&role_id, "wrong").refused(403, DEAD);
        vault.log_in(&role_id, &secret_id).refused(403, DEAD);
        vault.client_of(&vault.log_in(&other_id, &other_secret).expect(200));
    });
}

#[test]
fn a_secret_id_has_so_many_uses() {
    on_each(|vault| {
        let (role_id, secret_id) = vault.role("once", &json!({ "secret_id_num_uses": 1 }));
        vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        vault.log_in(&role_id, &secret_id).refused(400, INVALID);

        let (role_id, _) = vault.role("many", &json!({ "secret_id_num_uses": 5 }));
        let path = vault.role_path("many/secret-id");
        let made = vault.root.post(&path, &json!({ "num_uses": 2 })).expect(200).json();
        assert_eq!(
            made["data"],
            json!({
                "secret_id": made["data"]["secret_id"],
                "secret_id_accessor": made["data"]["secret_id_accessor"],
                "secret_id_num_uses": 2, "secret_id_ttl": 0,
            })
        );
        let secret_id = made["data"]["secret_id"].as_str().expect("a secret id");
        for _ in 0..2 {
            vault.client_of(&vault.log_in(&role_id, secret_id).expect(200));
        }
        vault.log_in(&role_id, secret_id).refused(400, INVALID);
        vault
            .root
            .post(&path, &json!({ "num_uses": 6 }))
            .refused(400, "num_uses cannot be higher than the role's secret_id_num_uses");
    });
}

#[test]
fn a_secret_id_has_a_ttl() {
    on_each(|vault| {
        let (role_id, secret_id) = vault.role("brief", &json!({ "secret_id_ttl": "2s" }));
        vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        // It is good until the server tidies up, which it does once a minute. (To look at it by
        // logging in would lock the role out.)
        let tidy = format!("auth/{}/tidy/secret-id", vault.approle);
        let lookup = vault.role_path("brief/secret-id/lookup");
        let body = json!({ "secret_id": secret_id });
        vault.wait_until("a secret id that is gone", || {
            vault.root.post(&tidy, &json!({})).expect(202);
            vault.root.post(&lookup, &body).status == 204
        });
        vault.log_in(&role_id, &secret_id).refused(400, INVALID);
    });
}

#[test]
fn secret_ids_are_looked_up_and_destroyed() {
    on_each(|vault| {
        let (role_id, secret_id) = vault.role("app", &json!({}));
        let body = json!({ "secret_id": secret_id });
        let found = vault.root.post(&vault.role_path("app/secret-id/lookup"), &body);
        let found = found.expect(200).json();
        assert_eq!(found["data"]["secret_id_num_uses"], 0);
        let accessors = vault.root.list(&vault.role_path("app/secret-id")).expect(200).json();
        assert_eq!(accessors["data"]["keys"], json!([found["data"]["secret_id_accessor"]]));
        vault.root.post(&vault.role_path("app/secret-id/destroy"), &body).expect(204);
        vault.log_in(&role_id, &secret_id).refused(400, INVALID);
        let custom = json!({ "secret_id": "chosen-by-a-test" });
        vault.root.post(&vault.role_path("app/custom-secret-id"), &custom).expect(200);
        vault.client_of(&vault.log_in(&role_id, "chosen-by-a-test").expect(200));
    });
}

#[test]
fn a_role_is_made_read_changed_and_deleted() {
    on_each(|vault| {
        vault.root.get(&vault.role_path("app")).refused_silently(404);
        let fields = json!({ "token_ttl": "10m", "token_max_ttl": 1200, "token_policies": ["p"] });
        let (role_id, secret_id) = vault.role("App", &fields);
        vault.root.post(&vault.role_path("app"), &json!({ "token_num_uses": 3 })).expect(204);
        let role = vault.root.get(&vault.role_path("app")).expect(200).json();
        for (name, value) in [
            ("token_ttl", json!(600)),
            ("token_max_ttl", json!(1200)),
            ("token_num_uses", json!(3)),
            ("token_policies", json!(["p"])),
            ("bind_secret_id", json!(true)),
            ("secret_id_num_uses", json!(0)),
            ("secret_id_ttl", json!(0)),
            ("token_type", json!("default")),
        ] {
            assert_eq!(role["data"][name], value, "{name}");
        }
        let roles = vault.root.list(&format!("auth/{}/role", vault.approle)).expect(200).json();
        assert_eq!(roles["data"]["keys"], json!(["app"]));
        let got = vault.log_in(&role_id, &secret_id).expect(200);
        assert_eq!(got.json()["auth"]["num_uses"], 3);
        vault.client_of(&got);

        vault
            .root
            .post(&vault.role_path("app"), &json!({ "token_ttl": "1h" }))
            .refused(400, "'token_ttl' cannot be greater than 'token_max_ttl'");
        let chosen = unique("role-id");
        vault.root.post(&vault.role_path("app/role-id"), &json!({ "role_id": chosen })).expect(204);
        vault.log_in(&role_id, &secret_id).refused(400, INVALID);
        vault.client_of(&vault.log_in(&chosen, &secret_id).expect(200));
        for _ in 0..2 {
            vault.root.delete(&vault.role_path("app")).expect(204);
        }
        vault.log_in(&chosen, &secret_id).refused(400, INVALID);
        vault
            .root
            .post(&vault.role_path("app/secret-id"), &json!({}))
            .refused(404, "role \"app\" does not exist");
    });
}

#[test]
fn a_renewal_asks_the_role_again() {
    on_each(|vault| {
        let fields = json!({ "token_ttl": "4s", "token_max_ttl": "6s" });
        let (role_id, secret_id) = vault.role("app", &fields);
        let client = vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        let renew = || client.post("auth/token/renew-self", &json!({}));
        let cut = vault.eventually("a lease that no longer grows", || {
            let renewed = renew().expect(200).json();
            (renewed["auth"]["lease_duration"].as_u64() < Some(4)).then_some(renewed)
        });
        assert_eq!(cut["auth"]["renewable"], true);
        assert!(cut["warnings"][0].as_str().is_some_and(|text| text.contains("max_ttl")), "{cut}");
        // In its last second, it is past its maximum already.
        vault.wait_until("a dead token", || renew().status == 403);
        renew().refused(403, DEAD);

        // What the role says now counts, not what it said at the login.
        let (role_id, secret_id) = vault.role("changing", &json!({ "token_ttl": "1h" }));
        let client = vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        vault.root.post(&vault.role_path("changing"), &json!({ "token_ttl": "10m" })).expect(204);
        let renew = || client.post("auth/token/renew-self", &json!({}));
        assert_eq!(renew().expect(200).json()["auth"]["lease_duration"], 600);
        vault.root.delete(&vault.role_path("changing")).expect(204);
        renew().refused(
            500,
            "1 error occurred:\n\t* failed to renew entry: role \"changing\" does not exist \
             during renewal\n\n",
        );
        lookup(&client);
    });
}

#[test]
fn roles_make_periodic_limited_and_batch_tokens() {
    on_each(|vault| {
        let (role_id, secret_id) = vault.role("periodic", &json!({ "token_period": "1h" }));
        let client = vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        let token = lookup(&client);
        assert_eq!((&token["period"], &token["creation_ttl"]), (&json!(3600), &json!(3600)));

        let (role_id, secret_id) = vault.role("limited", &json!({ "token_num_uses": 2 }));
        let client = vault.client_of(&vault.log_in(&role_id, &secret_id).expect(200));
        assert_eq!(
            [lookup(&client)["num_uses"].clone(), lookup(&client)["num_uses"].clone()],
            [json!(1), json!(-1)]
        );
        vault.wait_until("a token that is used up", || {
            client.get("auth/token/lookup-self").status == 403
        });

        let (role_id, secret_id) = vault.role("batch", &json!({ "token_type": "batch" }));
        let got = vault.log_in(&role_id, &secret_id).expect(200);
        let auth = got.json()["auth"].clone();
        assert_eq!((&auth["token_type"], &auth["renewable"]), (&json!("batch"), &json!(false)));
        assert_eq!((&auth["accessor"], &auth["lease_duration"]), (&json!(""), &json!(768 * 3600)));
        assert_eq!(lookup(&vault.client_of(&got))["type"], "batch");

        let fields = json!({ "token_explicit_max_ttl": "1h", "token_no_default_policy": true, "token_policies": "p" });
        let (role_id, secret_id) = vault.role("capped", &fields);
        let got = vault.log_in(&role_id, &secret_id).expect(200);
        vault.client_of(&got);
        let auth = got.json()["auth"].clone();
        assert_eq!((&auth["lease_duration"], &auth["policies"]), (&json!(3600), &json!(["p"])));
    });
}

#[test]
fn the_method_is_mounted_and_unmounted() {
    on_each(|vault| {
        let body = json!({ "type": "approle" });
        vault
            .root
            .post(&format!("sys/auth/{}", vault.approle), &body)
            .refused(400, &format!("path is already in use at {}/", vault.approle));
        let path = unique("approle");
        vault.root.post(&format!("sys/auth/{path}"), &body).expect(204);
        let role = format!("auth/{path}/role/app");
        vault.root.post(&role, &json!({})).expect(204);
        vault.root.ask(&Ask::new("DELETE", &format!("sys/auth/{path}"))).expect(204);
        vault
            .root
            .get(&role)
            .refused(404, &format!("no handler for route \"{role}\". route entry not found."));
    });
}
