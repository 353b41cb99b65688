//! Policies: what they say, which rule decides, and what is refused.

use serde_json::{Value, json};

use crate::target::{REFUSED, Refused, Target, on_each, unique};
use crate::vault_server::client::{Ask, Client};

/// What a client may do with one secret, asked by trying.
fn may(client: &Client, vault: &Target, name: &str) -> Vec<&'static str> {
    let path = vault.kv(&format!("data/{name}"));
    let there = || vault.root.get(&path).status == 200;
    let mut allowed = Vec::new();
    let body = json!({ "data": { "f": "v" } });
    vault.root.delete(&vault.kv(&format!("metadata/{name}"))).expect(204);
    if client.post(&path, &body).status == 200 {
        assert!(there());
        allowed.push("create");
    }
    vault.root.post(&path, &body).expect(200);
    for (method, ask) in [
        ("update", Ask::new("POST", &path).json(&body)),
        ("patch", Ask::new("PATCH", &path).merge_patch(&body)),
        ("read", Ask::new("GET", &path)),
        ("delete", Ask::new("DELETE", &path)),
    ] {
        let got = client.ask(&ask);
        if got.status == 403 {
            got.refused(403, REFUSED);
        } else {
            allowed.push(method);
        }
    }
    allowed
}

impl Target {
    /// A client whose policy has these rules, their paths within the KV mount.
    #[track_caller]
    fn client_with(&self, rules: &[(&str, &str)]) -> Client {
        self.client_with_policies(&[rules])
    }

    #[track_caller]
    fn client_with_policies(&self, policies: &[&[(&str, &str)]]) -> Client {
        let hcl = |rules: &[(&str, &str)]| -> String {
            let rule = |(path, capabilities): &(&str, &str)| {
                let list: Vec<String> =
                    capabilities.split(' ').map(|name| format!("{name:?}")).collect();
                let list = list.join(", ");
                format!("path {:?} {{\n  capabilities = [{list}]\n}}\n", self.kv(path))
            };
            rules.iter().map(rule).collect()
        };
        let names: Vec<String> = policies.iter().map(|rules| self.policy(&hcl(rules))).collect();
        self.token(&json!({ "policies": names }))
    }
}

#[test]
fn each_capability_allows_its_own_requests() {
    on_each(|vault| {
        for capability in ["create", "update", "patch", "read", "delete"] {
            let client = vault.client_with(&[("data/*", capability)]);
            assert_eq!(may(&client, vault, "x"), [capability]);
        }
        let client = vault.client_with(&[("data/*", "create update read delete")]);
        assert_eq!(may(&client, vault, "x"), ["create", "update", "read", "delete"]);
        // No patch: whether the secret is there or not.
        client.patch(&vault.kv("data/none"), &json!({ "data": {} })).refused(403, REFUSED);
        assert_eq!(may(&vault.client_with(&[("other/*", "read")]), vault, "x"), [""; 0]);
    });
}

#[test]
fn metadata_has_capabilities_of_its_own() {
    on_each(|vault| {
        let client = vault.client_with(&[
            ("data/*", "create update read delete"),
            ("metadata/*", "read list delete"),
        ]);
        let data = vault.kv("data/d/x");
        client.post(&data, &json!({ "data": { "f": "v" } })).expect(200);
        client.get(&vault.kv("metadata/d/x")).expect(200);
        for path in ["metadata/d", "metadata/d/", "metadata/"] {
            client.list(&vault.kv(path)).expect(200);
            client.get(&vault.kv(&format!("{path}?list=true"))).expect(200);
        }
        client.post(&vault.kv("metadata/d/x"), &json!({ "max_versions": 3 })).refused(403, REFUSED);
        let versions = json!({ "versions": [1] });
        for operation in ["delete", "undelete", "destroy"] {
            client.post(&vault.kv(&format!("{operation}/d/x")), &versions).refused(403, REFUSED);
        }
        client.get(&vault.kv("config")).refused(403, REFUSED);
        client.delete(&vault.kv("metadata/d/x")).expect(204);
        vault.root.get(&data).refused_silently(404);
        // A rule for the folder without a slash is one for its listing.
        let client = vault.client_with(&[("metadata/d", "list")]);
        client.list(&vault.kv("metadata/d")).refused_silently(404);
        client.list(&vault.kv("metadata/e")).refused(403, REFUSED);
        // Without create and update on the metadata, destroy needs an update of its own.
        let client = vault.client_with(&[("destroy/*", "update")]);
        client.post(&vault.kv("destroy/d/x"), &versions).expect(204);
    });
}

#[test]
fn the_most_specific_rule_decides_alone() {
    on_each(|vault| {
        let client = vault.client_with(&[
            ("data/*", "read"),
            ("data/app/*", "read update create"),
            ("data/app/exact", "delete"),
            ("data/+/plus", "patch"),
            ("data/a+b", "patch"),
            ("data/deep/+/x*", "create"),
            ("data/deep/one/*", "delete"),
            ("data/shut/*", "deny"),
        ]);
        for (name, expected) in [
            ("any", &["read"][..]),
            ("app/other", &["create", "update", "read"]),
            ("app/exact", &["delete"]),
            // The wildcard comes later in a longer prefix.
            ("app/plus", &["create", "update", "read"]),
            // At the same place, a rule without a glob at its end wins.
            ("zzz/plus", &["patch"]),
            ("a+b", &["patch"]),
            ("deep/two/xyz", &["create"]),
            ("deep/two/xyz/more", &["create"]),
            ("deep/two/yz", &["read"]),
            ("deep/one/xyz", &["delete"]),
            ("shut/x", &[]),
        ] {
            assert_eq!(may(&client, vault, name), expected, "{name}");
        }
    });
}

#[test]
fn policies_of_one_token_add_up_but_for_deny() {
    on_each(|vault| {
        let client = vault.client_with_policies(&[
            &[("data/*", "read"), ("data/shut", "read")],
            &[("data/*", "patch"), ("data/shut", "deny")],
        ]);
        assert_eq!(may(&client, vault, "x"), ["patch", "read"]);
        assert_eq!(may(&client, vault, "shut"), [""; 0]);
    });
}

#[test]
fn a_policy_can_require_parameters() {
    on_each(|vault| {
        let hcl = format!(
            "# only with check-and-set\npath \"{}/data/*\" {{\n  capabilities = [\"create\", \
             \"update\", \"patch\", \"read\"]\n  required_parameters = [\"options\"]\n}}\n",
            vault.mount
        );
        let client = vault.allowed(&hcl);
        let path = vault.kv("data/x");
        let bare = json!({ "data": { "f": "v" } });
        client.post(&path, &bare).refused(403, REFUSED);
        let careful = json!({ "data": { "f": "v" }, "options": { "cas": 0 } });
        client.post(&path, &careful).expect(200);
        client.patch(&path, &bare).refused(403, REFUSED);
        client.patch(&path, &json!({ "data": { "f": "w" }, "options": {} })).expect(200);
        // It counts for reading, too.
        client.get(&path).refused(403, REFUSED);
    });
}

#[test]
fn policies_are_kept_under_their_names() {
    on_each(|vault| {
        let name = unique("Policy");
        let path = format!("sys/policies/acl/{name}");
        vault.root.get(&path).refused_silently(404);
        let hcl = "path \"x/y\" { capabilities = [\"read\"] }";
        vault
            .root
            .post(&path, &json!({ "policy": "" }))
            .refused(400, "'policy' parameter not supplied or empty");
        let put = Ask::new("PUT", &path).json(&json!({ "policy": hcl }));
        let status = vault.root.ask(&put).status;
        assert!(matches!(status, 200 | 204), "200 warns of the capital letter: {status}");
        vault.at_the_end(Ask::new("DELETE", &path));
        let kept = vault.root.get(&path).expect(200).json();
        assert_eq!(kept["data"]["name"], name.to_lowercase());
        assert_eq!(kept["data"]["policy"], hcl);
        let listed = vault.root.list("sys/policies/acl").expect(200).json();
        let keys = listed["data"]["keys"].as_array().expect("keys").clone();
        for expected in [name.to_lowercase().as_str(), "default", "root"] {
            assert!(keys.contains(&json!(expected)), "{expected}: {keys:?}");
        }
        for _ in 0..2 {
            vault.root.delete(&path).expect(204);
        }
        vault.root.get(&path).refused_silently(404);
    });
}

#[test]
fn what_is_no_policy_is_refused() {
    on_each(|vault| {
        let path = format!("sys/policies/acl/{}", unique("policy"));
        for (hcl, words) in [
            ("path \"x\" { capabilities = [\"fly\"] }", "path \"x\": invalid capability \"fly\""),
            ("path \"x+*\" { capabilities = [\"read\"] }", "invalid use of wildcards"),
            ("path \"x\" { capabilities = [\"read\"", "failed to parse policy"),
            ("paths \"x\" { capabilities = [\"read\"] }", "failed to parse policy"),
        ] {
            let got = vault.root.post(&path, &json!({ "policy": hcl }));
            let errors = got.errors();
            assert_eq!((got.status, errors.len()), (400, 1), "{hcl}: {}", got.text());
            assert!(errors[0].contains(words), "{hcl}: {errors:?}");
        }
    });
}

#[test]
fn a_token_can_ask_what_it_may() {
    on_each(|vault| {
        let client =
            vault.client_with(&[("data/app/*", "create read update"), ("data/no", "deny")]);
        let (app, no) = (vault.kv("data/app/x"), vault.kv("data/no"));
        let other = vault.kv("data/other");
        let body = json!({ "paths": [app, no, other] });
        let answer = client.post("sys/capabilities-self", &body).expect(200).json();
        for data in [&answer, &answer["data"]] {
            assert_eq!(data[&app], json!(["create", "read", "update"]));
            assert_eq!((&data[&no], &data[&other]), (&json!(["deny"]), &json!(["deny"])));
        }
        let body = json!({ "paths": [app] });
        let answer = client.post("sys/capabilities-self", &body).expect(200).json();
        assert_eq!(answer["capabilities"], json!(["create", "read", "update"]));
        let answer = vault.root.post("sys/capabilities-self", &body).expect(200).json();
        assert_eq!(answer["capabilities"], json!(["root"]));
    });
}

#[test]
fn a_change_of_a_policy_counts_at_once() {
    on_each(|vault| {
        let hcl = |capability: &str| -> Value {
            let path = vault.kv("data/*");
            json!({ "policy": format!("path {path:?} {{ capabilities = [{capability:?}] }}") })
        };
        let name = vault.policy(hcl("read")["policy"].as_str().expect("text"));
        let client = vault.token(&json!({ "policies": [name] }));
        client.get(&vault.kv("data/x")).refused_silently(404);
        vault.root.post(&format!("sys/policies/acl/{name}"), &hcl("update")).expect(204);
        client.get(&vault.kv("data/x")).refused(403, REFUSED);
        vault.root.delete(&format!("sys/policies/acl/{name}")).expect(204);
        client.post(&vault.kv("data/x"), &json!({ "data": {} })).refused(403, REFUSED);
    });
}

#[test]
fn enabling_an_auth_method_needs_sudo() {
    on_each(|vault| {
        let path = format!("sys/auth/{}", unique("approle"));
        let body = json!({ "type": "approle" });
        let hcl =
            |capabilities: &str| format!("path {path:?} {{ capabilities = [{capabilities}] }}");
        let all = "\"create\", \"update\", \"delete\"";
        vault.allowed(&hcl(all)).post(&path, &body).refused(403, REFUSED);
        let client = vault.allowed(&hcl(&format!("{all}, \"sudo\"")));
        client.post(&path, &body).expect(204);
        client.delete(&path).expect(204);
    });
}
