//! Response wrapping.

use serde_json::{Value, json};

use crate::target::{DEAD, REFUSED, Refused, Target, on_each};
use crate::vault_server::client::{Ask, Client, Got};

const INVALID: &str = "wrapping token is not valid or does not exist";

impl Target {
    /// Wraps a new secret id of a role; the answer.
    #[track_caller]
    fn wrapped_secret_id(&self, role: &str, ttl: &str) -> Got {
        let path = format!("auth/{}/role/{role}/secret-id", self.approle);
        self.root.ask(&Ask::new("POST", &path).json(&json!({})).header("X-Vault-Wrap-TTL", ttl))
    }

    #[track_caller]
    fn unwrap(&self, token: &str) -> Got {
        self.root.with_token(token).ask(&Ask::new("POST", "sys/wrapping/unwrap"))
    }

    #[track_caller]
    fn look_up(&self, token: &str) -> Got {
        self.root.without_token().post("sys/wrapping/lookup", &json!({ "token": token }))
    }
}

#[track_caller]
fn wrapping_token(got: &Got) -> String {
    got.json()["wrap_info"]["token"].as_str().expect("a wrapping token").to_owned()
}

#[test]
fn a_wrapped_secret_id_is_unwrapped_once() {
    on_each(|vault| {
        let (role_id, _) = vault.role("app", &json!({}));
        let got = vault.wrapped_secret_id("app", "60s").expect(200);
        let mut answer = got.json();
        let info = answer["wrap_info"].take();
        assert_eq!(
            answer,
            json!({
                "request_id": "", "lease_id": "", "renewable": false, "lease_duration": 0,
                "data": null, "wrap_info": null, "warnings": null, "auth": null,
            })
        );
        let path = format!("auth/{}/role/app/secret-id", vault.approle);
        assert_eq!((&info["ttl"], &info["creation_path"]), (&json!(60), &json!(path)));
        for name in ["accessor", "creation_time", "wrapped_accessor"] {
            assert!(info[name].is_string(), "{name}: {info}");
        }
        let token = wrapping_token(&got);

        // To look at it does not use it up, in any of three ways.
        let bearer = vault.root.with_token(&token);
        for looked_up in [
            vault.look_up(&token),
            bearer.ask(&Ask::new("POST", "sys/wrapping/lookup")),
            bearer.get("sys/wrapping/lookup"),
        ] {
            let data = looked_up.expect(200).json()["data"].clone();
            assert_eq!((&data["creation_path"], &data["creation_ttl"]), (&json!(path), &json!(60)));
            assert!(data["creation_time"].is_string());
        }

        let answer = vault.unwrap(&token).expect(200).json();
        assert_eq!((&answer["wrap_info"], &answer["auth"]), (&Value::Null, &Value::Null));
        assert_eq!(answer["data"]["secret_id_accessor"], info["wrapped_accessor"]);
        let secret_id = answer["data"]["secret_id"].as_str().expect("a secret id");
        vault.client_of(&vault.log_in(&role_id, secret_id).expect(200));

        vault.unwrap(&token).refused(400, INVALID);
        vault.look_up(&token).refused(400, INVALID);
    });
}

#[test]
fn a_wrapping_token_expires() {
    on_each(|vault| {
        vault.role("app", &json!({}));
        // Digits alone are seconds.
        let token = wrapping_token(&vault.wrapped_secret_id("app", "2").expect(200));
        vault.look_up(&token).expect(200);
        vault.wait_until("a token that is gone", || vault.look_up(&token).status == 400);
        vault.look_up(&token).refused(400, INVALID);
        vault.unwrap(&token).refused(400, INVALID);
        let wrong = vault.wrapped_secret_id("app", "soon");
        assert_eq!(wrong.status, 400, "{}", wrong.text());
        assert!(wrong.errors()[0].starts_with("error parsing X-Vault-Wrap-TTL header: "));
    });
}

#[test]
fn another_token_can_unwrap() {
    on_each(|vault| {
        vault.role("app", &json!({}));
        let wrapped = || wrapping_token(&vault.wrapped_secret_id("app", "60s").expect(200));
        let unwrap = |client: &Client, token: &str| {
            client.post("sys/wrapping/unwrap", &json!({ "token": token }))
        };
        let token = wrapped();
        unwrap(&vault.root.without_token(), &token).refused(403, DEAD);
        let client = vault.token(&json!({ "policies": ["default"] }));
        let answer = unwrap(&client, &token).expect(200).json();
        assert!(answer["data"]["secret_id"].is_string());
        unwrap(&client, &token).refused(400, INVALID);
        // Without the default policy it may not.
        let body = json!({ "policies": ["none-of-tests"], "no_default_policy": true });
        unwrap(&vault.token(&body), &wrapped()).refused(403, REFUSED);
    });
}

#[test]
fn a_wrapping_token_is_good_for_nothing_else() {
    on_each(|vault| {
        vault.role("app", &json!({}));
        let token = wrapping_token(&vault.wrapped_secret_id("app", "60s").expect(200));
        let bearer = vault.root.with_token(&token);
        // An attempt is its one use.
        bearer.get(&vault.kv("data/x")).refused(403, REFUSED);
        vault.unwrap(&token).refused(400, INVALID);
        // And no other token is one.
        let client = vault.token(&json!({ "policies": ["default"] }));
        client.ask(&Ask::new("POST", "sys/wrapping/unwrap")).refused(400, INVALID);
        vault.unwrap("s.unknown").refused(400, INVALID);
    });
}

#[test]
fn the_creation_path_shows_what_was_forged() {
    on_each(|vault| {
        let forged = json!({ "secret_id": "not from here" });
        let ask = Ask::new("POST", "sys/wrapping/wrap").json(&forged);
        let token =
            wrapping_token(&vault.root.ask(&ask.header("X-Vault-Wrap-TTL", "60")).expect(200));
        let data = vault.look_up(&token).expect(200).json()["data"].clone();
        assert_eq!(data["creation_path"], "sys/wrapping/wrap");
        assert_eq!(vault.unwrap(&token).expect(200).json()["data"], forged);
    });
}

#[test]
fn any_answer_can_be_wrapped() {
    on_each(|vault| {
        let path = vault.kv("data/x");
        vault.root.post(&path, &json!({ "data": { "f": "v" } })).expect(200);
        let wrapped = |ask: Ask| vault.root.ask(&ask.header("X-Vault-Wrap-TTL", "60s"));
        let token = wrapping_token(&wrapped(Ask::new("GET", &path)).expect(200));
        let answer = vault.unwrap(&token).expect(200).json();
        assert_eq!(answer["data"]["data"], json!({ "f": "v" }));

        let (role_id, secret_id) = vault.role("app", &json!({}));
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        let login = Ask::new("POST", &format!("auth/{}/login", vault.approle)).json(&body);
        let got = wrapped(login).expect(200);
        let answer = vault.unwrap(&wrapping_token(&got)).expect(200);
        assert_eq!(answer.json()["auth"]["accessor"], got.json()["wrap_info"]["wrapped_accessor"]);
        vault.client_of(&answer);
        // An error is not.
        wrapped(Ask::new("GET", &vault.kv("data/none"))).refused_silently(404);
    });
}

#[test]
fn what_is_wrapped_can_be_wrapped_anew() {
    on_each(|vault| {
        vault.role("app", &json!({}));
        let token = wrapping_token(&vault.wrapped_secret_id("app", "60s").expect(200));
        let rewrap = Ask::new("POST", "sys/wrapping/rewrap").json(&json!({ "token": token }));
        let got = vault.root.ask(&rewrap).expect(200);
        let path = format!("auth/{}/role/app/secret-id", vault.approle);
        assert_eq!(got.json()["wrap_info"]["creation_path"], path);
        vault.unwrap(&token).refused(400, INVALID);
        let answer = vault.unwrap(&wrapping_token(&got)).expect(200).json();
        assert!(answer["data"]["secret_id"].is_string());
    });
}
