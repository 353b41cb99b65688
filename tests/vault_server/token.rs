//! Tokens: what they say of themselves, how they are renewed, and how they end.

use serde_json::{Value, json};

use crate::target::{DEAD, REFUSED, Refused, Target, on_each};
use crate::vault_server::client::{Ask, Client};

impl Client {
    /// What the client's token says of itself.
    #[track_caller]
    fn own_token(&self) -> Value {
        self.get("auth/token/lookup-self").expect(200).json()["data"].clone()
    }

    /// Renews the client's token; the `auth` of the answer.
    #[track_caller]
    fn renew(&self) -> Value {
        self.post("auth/token/renew-self", &json!({})).expect(200).json()["auth"].clone()
    }

    fn is_alive(&self) -> bool {
        self.get("auth/token/lookup-self").status == 200
    }

    fn id(&self) -> &str {
        self.token.as_deref().expect("it has one")
    }
}

impl Target {
    #[track_caller]
    fn wait_for_death(&self, client: &Client) {
        self.wait_until("a dead token", || !client.is_alive());
        client.get("auth/token/lookup-self").refused(403, DEAD);
    }
}

#[test]
fn a_token_says_what_it_is() {
    on_each(|vault| {
        let body = json!({
            "ttl": "1h", "explicit_max_ttl": "2h", "num_uses": 9, "display_name": "app",
            "meta": { "for": "a test" },
        });
        let created = vault.root.post("auth/token/create", &body).expect(200);
        let client = vault.client_of(&created);
        let auth = created.json()["auth"].clone();
        assert_eq!(
            auth,
            json!({
                "client_token": client.id(), "accessor": auth["accessor"],
                "policies": ["root"], "token_policies": ["root"],
                "metadata": { "for": "a test" }, "lease_duration": 3600, "renewable": true,
                "entity_id": "", "token_type": "service", "orphan": false,
                "mfa_requirement": null, "num_uses": 9,
            })
        );
        assert!(auth["accessor"].as_str().is_some_and(|accessor| accessor.len() == 24));

        let mut token = client.own_token();
        let left = token["ttl"].take().as_u64().expect("seconds");
        assert!((3590..=3600).contains(&left), "{left}");
        for name in ["creation_time", "expire_time", "issue_time"] {
            assert!(!token[name].take().is_null(), "{name}");
        }
        assert_eq!(
            token,
            json!({
                "id": client.id(), "accessor": auth["accessor"], "policies": ["root"],
                "path": "auth/token/create", "meta": { "for": "a test" },
                "display_name": "token-app", "num_uses": 8, "orphan": false,
                "creation_time": null, "creation_ttl": 3600, "expire_time": null, "ttl": null,
                "explicit_max_ttl": 7200, "entity_id": "", "type": "service",
                "renewable": true, "issue_time": null,
            })
        );
        // By POST, by its id, and by its accessor; these are uses as well.
        let lookup = client.post("auth/token/lookup-self", &json!({})).expect(200);
        assert_eq!(lookup.json()["data"]["num_uses"], 7);
        let by_id = vault.root.post("auth/token/lookup", &json!({ "token": client.id() }));
        assert_eq!(by_id.expect(200).json()["data"]["display_name"], "token-app");
        let by_accessor =
            vault.root.post("auth/token/lookup-accessor", &json!({ "accessor": auth["accessor"] }));
        let by_accessor = by_accessor.expect(200).json();
        assert_eq!(by_accessor["data"]["id"], "");
        assert_eq!(by_accessor["data"]["display_name"], "token-app");
    });
}

#[test]
fn a_root_token_does_not_expire() {
    on_each(|vault| {
        let root = vault.root.own_token();
        assert_eq!((&root["ttl"], &root["expire_time"]), (&json!(0), &Value::Null));
        assert_eq!((&root["policies"], &root["creation_ttl"]), (&json!(["root"]), &json!(0)));
        // That it cannot be renewed, either, is said in other words by a development server.
        assert!(root.get("renewable").is_none_or(|renewable| renewable == &json!(false)));
        let refused = vault.root.post("auth/token/renew-self", &json!({})).expect(400).json();
        let words = refused["errors"][0].as_str().expect("a reason");
        assert!(["invalid lease ID", "lease is not renewable"].contains(&words), "{words}");
    });
}

#[test]
fn other_tokens_last_32_days_unless_told_otherwise() {
    on_each(|vault| {
        let client = vault.token(&json!({ "policies": ["default"] }));
        let token = client.own_token();
        assert_eq!(token["creation_ttl"], 768 * 3600);
        assert_eq!((&token["orphan"], &token["meta"]), (&json!(true), &Value::Null));
        let created = vault
            .root
            .post("auth/token/create-orphan", &json!({ "ttl": "900h", "policies": ["default"] }));
        vault.client_of(&created);
        let created = created.expect(200).json();
        assert_eq!(created["auth"]["lease_duration"], 768 * 3600);
        assert_eq!(
            created["warnings"],
            json!(["TTL of \"900h\" exceeded the effective max_ttl of \"768h\"; TTL value is \
                    capped accordingly"])
        );
    });
}

#[test]
fn a_dead_token_is_told_from_a_policy_by_the_words_alone() {
    on_each(|vault| {
        let path = vault.kv("data/x");
        let nobody = vault.root.without_token();
        let unknown = vault.root.with_token("s.nobodyhasthistokenatall0");
        for client in [nobody, unknown] {
            client.get(&path).refused(403, DEAD);
            client.patch(&path, &json!({ "data": {} })).refused(403, DEAD);
            client.get("auth/token/lookup-self").refused(403, DEAD);
            client.post("auth/token/renew-self", &json!({})).refused(403, DEAD);
        }
        let client = vault.token(&json!({ "policies": ["default"] }));
        client.get(&path).refused(403, REFUSED);
        client.patch(&path, &json!({ "data": {} })).refused(403, REFUSED);
        assert!(client.is_alive());
        // Without the default policy a token may not even look at itself.
        let hcl = format!("path \"{}/data/*\" {{ capabilities = [\"read\"] }}", vault.mount);
        let body = json!({ "policies": [vault.policy(&hcl)], "no_default_policy": true });
        let client = vault.token(&body);
        client.get(&path).refused_silently(404);
        client.get("auth/token/lookup-self").refused(403, REFUSED);
        client.post("auth/token/renew-self", &json!({})).refused(403, REFUSED);
    });
}

#[test]
fn a_token_comes_in_either_of_two_headers() {
    on_each(|vault| {
        let bearer = format!("Bearer {}", vault.root.id());
        let ask = Ask::new("GET", "auth/token/lookup-self").header("Authorization", &bearer);
        vault.root.without_token().ask(&ask).expect(200);
        // X-Vault-Token wins.
        vault.root.with_token("s.unknown").ask(&ask).refused(403, DEAD);
    });
}

#[test]
fn a_renewal_starts_the_ttl_again() {
    on_each(|vault| {
        let client = vault.token(&json!({ "ttl": "4s", "policies": ["default"] }));
        let token = client.own_token();
        assert_eq!((token.get("last_renewal"), &token["renewable"]), (None, &json!(true)));
        vault.wait_until("half the TTL", || client.own_token()["ttl"].as_u64() <= Some(2));
        let auth = client.renew();
        assert_eq!((&auth["lease_duration"], &auth["renewable"]), (&json!(4), &json!(true)));
        assert_eq!(auth["client_token"], client.id());
        let token = client.own_token();
        assert!(token["ttl"].as_u64() >= Some(3), "{token}");
        assert!(token["last_renewal"].is_string() && token["last_renewal_time"].is_u64());
        assert_eq!(token["creation_ttl"], 4);
        vault.wait_for_death(&client);
        client.post("auth/token/renew-self", &json!({})).refused(403, DEAD);
        client.get(&vault.kv("data/x")).refused(403, DEAD);
    });
}

#[test]
fn an_increment_replaces_the_ttl_of_this_and_later_renewals() {
    on_each(|vault| {
        let client = vault.token(&json!({ "ttl": "1h", "policies": ["default"] }));
        for (increment, granted) in
            [(json!("30m"), 1800), (json!(60), 60), (json!("7200"), 7200), (json!("5s"), 5)]
        {
            let body = json!({ "increment": increment });
            let answer = client.post("auth/token/renew-self", &body).expect(200).json();
            assert_eq!(answer["auth"]["lease_duration"], granted);
            assert_eq!(client.renew()["lease_duration"], granted);
        }
        let by_id = json!({ "token": client.id(), "increment": "1h" });
        let answer = vault.root.post("auth/token/renew", &by_id).expect(200).json();
        assert_eq!(answer["auth"]["lease_duration"], 3600);
    });
}

#[test]
fn a_renewal_is_cut_at_the_explicit_maximum() {
    on_each(|vault| {
        let body = json!({ "ttl": "4s", "explicit_max_ttl": "6s", "policies": ["default"] });
        let client = vault.token(&body);
        let cut = vault.eventually("a lease that no longer grows", || {
            let renewed = client.post("auth/token/renew-self", &json!({})).expect(200).json();
            (renewed["auth"]["lease_duration"].as_u64() < Some(4)).then_some(renewed)
        });
        let left = cut["auth"]["lease_duration"].as_u64().expect("seconds");
        assert_eq!(cut["auth"]["renewable"], true);
        assert_eq!(
            cut["warnings"],
            json!([format!(
                "TTL of \"4s\" exceeded the effective max_ttl of \"{left}s\"; TTL value is \
                 capped accordingly"
            )])
        );
        vault.wait_for_death(&client);
        // One that asks for more than its maximum gets that at once.
        let created = vault.root.post(
            "auth/token/create-orphan",
            &json!({ "ttl": "2h", "explicit_max_ttl": "1h", "policies": ["default"] }),
        );
        vault.client_of(&created);
        assert_eq!(created.json()["auth"]["lease_duration"], 3600);
    });
}

#[test]
fn a_periodic_token_lives_as_long_as_it_is_renewed() {
    on_each(|vault| {
        let client = vault.token(&json!({ "period": "3s", "policies": ["default"] }));
        let token = client.own_token();
        assert_eq!((&token["period"], &token["creation_ttl"]), (&json!(3), &json!(3)));
        // No increment changes that.
        let body = json!({ "increment": "1h" });
        let renewed = client.post("auth/token/renew-self", &body).expect(200).json();
        assert_eq!(renewed["auth"]["lease_duration"], 3);
        for _ in 0..2 {
            vault.wait_until("a shorter life", || client.own_token()["ttl"].as_u64() <= Some(2));
            assert_eq!(client.renew()["lease_duration"], 3);
        }
        vault.wait_for_death(&client);
    });
}

#[test]
fn some_tokens_cannot_be_renewed() {
    on_each(|vault| {
        let body = json!({ "ttl": "1h", "renewable": false, "policies": ["default"] });
        let client = vault.token(&body);
        assert_eq!(client.own_token()["renewable"], false);
        client.post("auth/token/renew-self", &json!({})).refused(400, "lease is not renewable");
    });
}

#[test]
fn a_batch_token_ends_by_its_ttl_alone() {
    on_each(|vault| {
        let body = json!({ "type": "batch", "ttl": "3s", "policies": ["default"] });
        let client = vault.token(&body);
        assert!(client.id().starts_with("b."), "a batch token's prefix");
        let token = client.own_token();
        assert_eq!(
            (&token["type"], &token["renewable"], &token["accessor"], &token["num_uses"]),
            (&json!("batch"), &json!(false), &json!(""), &json!(0))
        );
        client
            .post("auth/token/renew-self", &json!({}))
            .refused(400, "batch tokens cannot be renewed");
        client
            .post("auth/token/revoke-self", &json!({}))
            .refused(400, "batch tokens cannot be revoked");
        vault.wait_for_death(&client);
        let limited = json!({ "type": "batch", "num_uses": 2, "policies": ["default"] });
        vault
            .root
            .post("auth/token/create-orphan", &limited)
            .refused(400, "batch tokens cannot have \"num_uses\" set");
    });
}

#[test]
fn uses_are_counted_whatever_they_bring() {
    on_each(|vault| {
        let client = vault.token(&json!({ "num_uses": 3, "policies": ["default"] }));
        assert_eq!(client.own_token()["num_uses"], 2);
        client.get(&vault.kv("data/x")).refused(403, REFUSED);
        // The last one is under way: -1.
        assert_eq!(client.own_token()["num_uses"], -1);
        vault.wait_for_death(&client);
        client.get(&vault.kv("data/x")).refused(403, DEAD);
    });
}

#[test]
fn revocation_ends_a_token_and_what_it_made() {
    on_each(|vault| {
        let made_by = |maker: &Client, path: &str| {
            let hcl = "path \"auth/token/*\" { capabilities = [\"create\", \"update\", \"sudo\"] }";
            let body = json!({ "policies": [vault.policy(hcl)], "ttl": "1h" });
            vault.client_of(&maker.post(path, &body).expect(200))
        };
        let parent = made_by(&vault.root, "auth/token/create-orphan");
        let child = made_by(&parent, "auth/token/create");
        let grandchild = made_by(&child, "auth/token/create");
        let orphan = made_by(&parent, "auth/token/create-orphan");
        assert_eq!(child.own_token()["orphan"], false);
        assert_eq!(orphan.own_token()["orphan"], true);
        parent.post("auth/token/revoke-self", &json!({})).expect(204);
        for dead in [&parent, &child, &grandchild] {
            vault.wait_for_death(dead);
        }
        assert!(orphan.is_alive());
        vault.root.post("auth/token/revoke", &json!({ "token": orphan.id() })).expect(204);
        vault.wait_for_death(&orphan);
        // Of nobody's token, it is no error.
        vault.root.post("auth/token/revoke", &json!({ "token": orphan.id() })).expect(204);
    });
}

#[test]
fn a_token_cannot_make_a_mightier_one() {
    on_each(|vault| {
        let hcl = "path \"auth/token/create\" { capabilities = [\"update\"] }";
        let client = vault.allowed(hcl);
        let create = |body: Value| client.post("auth/token/create", &body);
        create(json!({ "policies": ["root"] }))
            .refused(400, "child policies must be subset of parent");
        create(json!({ "period": "1h" }))
            .refused(400, "root or sudo privileges required to create periodic token");
        create(json!({ "no_parent": true }))
            .refused(400, "root or sudo privileges required to create orphan token");
        create(json!({ "id": "mine" }))
            .refused(400, "root or sudo privileges required to specify token id");
        let child = vault.client_of(&create(json!({})).expect(200));
        assert_eq!(child.own_token()["policies"], client.own_token()["policies"]);
        client.post("auth/token/create-orphan", &json!({})).refused(403, REFUSED);
        let limited = vault.token(&json!({ "num_uses": 5 }));
        limited
            .post("auth/token/create", &json!({}))
            .refused(400, "restricted use token cannot generate child tokens");
    });
}

#[test]
fn policies_of_a_token_are_sorted_and_need_not_exist() {
    on_each(|vault| {
        let created = vault.root.post(
            "auth/token/create-orphan",
            &json!({ "policies": ["Zed-of-tests", "alpha-of-tests", "zed-of-tests"] }),
        );
        vault.client_of(&created);
        let created = created.expect(200).json();
        assert_eq!(
            created["auth"]["policies"],
            json!(["alpha-of-tests", "default", "zed-of-tests"])
        );
        assert_eq!(
            created["warnings"],
            json!([
                "Policy \"alpha-of-tests\" does not exist",
                "Policy \"zed-of-tests\" does not exist"
            ])
        );
    });
}

#[test]
fn times_that_are_none_are_refused() {
    on_each(|vault| {
        for (name, value) in [("ttl", "soon"), ("explicit_max_ttl", "-1s"), ("period", "1y")] {
            let got = vault.root.post("auth/token/create-orphan", &json!({ name: value }));
            assert_eq!(got.status, 400, "{name}={value}: {}", got.text());
        }
    });
}
