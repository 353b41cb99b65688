//! KV v2: data, versions, check-and-set, metadata.

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};

use crate::target::{Refused, Target, on_each, unique};
use crate::vault_server::client::{Ask, Got};

const MISMATCH: &str = "check-and-set parameter did not match the current version";
const REQUIRED: &str = "check-and-set parameter required for this call";

impl Target {
    #[track_caller]
    fn write(&self, path: &str, fields: &Value) -> Value {
        let body = json!({ "data": fields });
        self.root.post(&self.kv(&format!("data/{path}")), &body).expect(200).json()["data"].clone()
    }

    #[track_caller]
    fn write_with_cas(&self, path: &str, cas: &Value) -> Got {
        let body = json!({ "data": { "f": "v" }, "options": { "cas": cas } });
        self.root.post(&self.kv(&format!("data/{path}")), &body)
    }

    #[track_caller]
    fn patch(&self, path: &str, fields: &Value) -> Got {
        self.root.patch(&self.kv(&format!("data/{path}")), &json!({ "data": fields }))
    }

    #[track_caller]
    fn patch_with_cas(&self, path: &str, cas: u64) -> Got {
        let body = json!({ "data": { "f": "patched" }, "options": { "cas": cas } });
        self.root.patch(&self.kv(&format!("data/{path}")), &body)
    }

    #[track_caller]
    fn read(&self, path: &str) -> Got {
        self.root.get(&self.kv(&format!("data/{path}")))
    }

    #[track_caller]
    fn fields(&self, path: &str) -> Value {
        self.read(path).expect(200).json()["data"]["data"].clone()
    }

    #[track_caller]
    fn metadata(&self, path: &str) -> Value {
        self.root.get(&self.kv(&format!("metadata/{path}"))).expect(200).json()["data"].clone()
    }

    #[track_caller]
    fn destroy(&self, path: &str, versions: &[u64]) {
        let body = json!({ "versions": versions });
        self.root.post(&self.kv(&format!("destroy/{path}")), &body).expect(204);
    }

    #[track_caller]
    fn delete(&self, path: &str) {
        self.root.delete(&self.kv(&format!("data/{path}"))).expect(204);
    }
}

/// An answer without the parts that differ from one request to the next.
fn steady(mut answer: Value) -> Value {
    let request_id = answer["request_id"].take();
    assert_eq!(request_id.as_str().map(str::len), Some(36), "a UUID: {request_id}");
    for pointer in ["/data/created_time", "/data/metadata/created_time"] {
        if let Some(time) = answer.pointer_mut(pointer) {
            assert_is_a_time(time);
            *time = json!("T");
        }
    }
    answer
}

#[track_caller]
fn assert_is_a_time(time: &Value) {
    let text = time.as_str().expect("a string");
    assert!(text.starts_with("20") && text.ends_with('Z') && text.len() >= 20, "{text}");
}

#[test]
fn a_secret_is_written_and_read() {
    on_each(|vault| {
        vault.read("a/b").refused_silently(404);
        let body = json!({ "data": { "f": "v", "g": "" } });
        let written = vault.root.post(&vault.kv("data/a/b"), &body).expect(200).json();
        assert_eq!(
            steady(written),
            json!({
                "request_id": null, "lease_id": "", "renewable": false, "lease_duration": 0,
                "data": {
                    "version": 1, "created_time": "T", "deletion_time": "", "destroyed": false,
                    "custom_metadata": null,
                },
                "wrap_info": null, "warnings": null, "auth": null,
            })
        );
        assert_eq!(
            steady(vault.read("a/b").expect(200).json()),
            json!({
                "request_id": null, "lease_id": "", "renewable": false, "lease_duration": 0,
                "data": {
                    "data": { "f": "v", "g": "" },
                    "metadata": {
                        "version": 1, "created_time": "T", "deletion_time": "",
                        "destroyed": false, "custom_metadata": null,
                    },
                },
                "wrap_info": null, "warnings": null, "auth": null,
            })
        );
        // A write replaces all fields, by PUT as well.
        let put = Ask::new("PUT", &vault.kv("data/a/b")).json(&json!({ "data": { "h": "w" } }));
        assert_eq!(vault.root.ask(&put).expect(200).json()["data"]["version"], 2);
        assert_eq!(vault.fields("a/b"), json!({ "h": "w" }));
    });
}

#[test]
fn fields_need_not_be_strings() {
    on_each(|vault| {
        let fields = json!({
            "text": "é \u{1F511} \" \\ \u{1} </>", "number": 1, "truth": true, "nothing": null,
            "list": [1, "two", [3]], "object": { "deep": { "er": "x" } },
        });
        vault.write("odd", &fields);
        assert_eq!(vault.fields("odd"), fields);
        vault.patch("odd", &json!({ "text": "t" })).expect(200);
        let mut expected = fields;
        expected["text"] = json!("t");
        assert_eq!(vault.fields("odd"), expected);
        // Numbers go through 64-bit floats.
        vault.write("numbers", &json!({ "big": 12_345_678_901_234_567_890_u64, "half": 1.50 }));
        let numbers = vault.fields("numbers");
        assert_eq!(numbers, json!({ "big": 12_345_678_901_234_567_000_u64, "half": 1.5 }));
    });
}

#[test]
fn a_patch_changes_some_fields_and_leaves_the_others() {
    on_each(|vault| {
        vault.write("p", &json!({ "a": "1", "b": "2", "deep": { "x": "1", "y": "2" } }));
        let patched = vault.patch("p", &json!({ "b": "3", "c": "4" })).expect(200);
        assert_eq!(patched.json()["data"]["version"], 2);
        vault.patch("p", &json!({ "a": null, "deep": { "x": null, "z": "3" } })).expect(200);
        assert_eq!(
            vault.fields("p"),
            json!({ "b": "3", "c": "4", "deep": { "y": "2", "z": "3" } })
        );
        // A null in something new leaves nothing, even in an array.
        let new = json!({ "deep": { "n": { "x": null }, "l": [{ "x": null }, null] } });
        vault.patch("p", &new).expect(200);
        assert_eq!(
            vault.fields("p")["deep"],
            json!({ "y": "2", "z": "3", "n": {}, "l": [{}, null] })
        );
        // What changes nothing makes a version all the same.
        for nothing in [json!({}), json!({ "never": null })] {
            vault.patch("p", &nothing).expect(200);
        }
        assert_eq!(vault.metadata("p")["current_version"], 6);
        // The last field's removal leaves a secret without fields.
        vault.patch("p", &json!({ "b": null, "c": null, "deep": null })).expect(200);
        assert_eq!(vault.fields("p"), json!({}));
        // Null for all of them leaves one that no patch can change.
        let path = vault.kv("data/p");
        vault.root.patch(&path, &json!({ "data": null })).expect(200);
        assert_eq!(vault.fields("p"), Value::Null);
    });
}

#[test]
fn a_patch_has_a_media_type_of_its_own() {
    on_each(|vault| {
        vault.write("m", &json!({ "a": "1" }));
        let path = vault.kv("data/m");
        let ask = |media_type: &str| {
            let body = json!({ "data": { "a": "2" } }).to_string();
            let ask = Ask::new("PATCH", &path).bytes(body.as_bytes());
            vault.root.ask(&if media_type.is_empty() {
                ask
            } else {
                ask.header("Content-Type", media_type)
            })
        };
        ask("application/json").refused(
            415,
            "PATCH requires Content-Type of application/merge-patch+json, provided \
             application/json",
        );
        ask("").refused(400, "mime: no media type");
        ask("application/merge-patch+json; charset=utf-8").expect(200);
        // A write takes whatever it is called.
        for media_type in ["application/json", "text/plain", "application/x-www-form-urlencoded"] {
            let body = json!({ "data": { "a": "3" } }).to_string();
            let post = Ask::new("POST", &path).header("Content-Type", media_type);
            vault.root.ask(&post.bytes(body.as_bytes())).expect(200);
        }
    });
}

#[test]
fn a_patch_needs_a_version_that_is_there() {
    on_each(|vault| {
        let empty = |got: Got| {
            assert_eq!((got.status, got.text()), (404, String::new()));
            assert_eq!(got.header("Content-Type"), Some("application/json"));
        };
        empty(vault.patch("absent", &json!({ "a": "1" })));
        empty(vault.patch_with_cas("absent", 0));
        vault.root.post(&vault.kv("metadata/bare"), &json!({ "max_versions": 5 })).expect(204);
        empty(vault.patch("bare", &json!({ "a": "1" })));

        vault.write("deleted", &json!({ "a": "1" }));
        vault.delete("deleted");
        let gone = vault.patch("deleted", &json!({ "a": "2" })).expect(404).json();
        assert_eq!(
            (&gone["data"]["version"], &gone["data"]["destroyed"]),
            (&json!(1), &json!(false))
        );
        assert_is_a_time(&gone["data"]["deletion_time"]);
        assert_eq!((gone.get("errors"), gone["data"].get("metadata")), (None, None));
        let gone = vault.patch_with_cas("deleted", 1).expect(404).json();
        assert_eq!(gone["data"]["version"], 1);
        vault.patch_with_cas("deleted", 7).refused(400, MISMATCH);

        vault.write("destroyed", &json!({ "a": "1" }));
        vault.destroy("destroyed", &[1]);
        let gone = vault.patch("destroyed", &json!({ "a": "2" })).expect(404).json();
        assert_eq!(gone["data"]["version"], 1);
        assert_eq!(
            (&gone["data"]["destroyed"], &gone["data"]["deletion_time"]),
            (&json!(true), &json!(""))
        );
    });
}

#[test]
fn check_and_set_compares_the_current_version() {
    on_each(|vault| {
        vault.write_with_cas("c", &json!(1)).refused(400, MISMATCH);
        vault.write_with_cas("c", &json!(0)).expect(200);
        vault.write_with_cas("c", &json!(0)).refused(400, MISMATCH);
        vault.write_with_cas("c", &json!(2)).refused(400, MISMATCH);
        vault.write_with_cas("c", &json!(-1)).refused(400, MISMATCH);
        vault.write_with_cas("c", &json!("1")).expect(200);
        vault
            .write_with_cas("c", &json!("x"))
            .refused(400, "error parsing check-and-set parameter");
        vault.patch_with_cas("c", 1).refused(400, MISMATCH);
        vault.patch_with_cas("c", 2).expect(200);
        assert_eq!(vault.fields("c"), json!({ "f": "patched" }));

        // A deleted or destroyed version is the current one still.
        vault.delete("c");
        vault.write_with_cas("c", &json!(0)).refused(400, MISMATCH);
        vault.write_with_cas("c", &json!(3)).expect(200);
        vault.destroy("c", &[4]);
        vault.write_with_cas("c", &json!(0)).refused(400, MISMATCH);
        vault.write_with_cas("c", &json!(4)).expect(200);

        // Metadata alone is no version.
        vault.root.post(&vault.kv("metadata/bare"), &json!({ "max_versions": 5 })).expect(204);
        vault.write_with_cas("bare", &json!(0)).expect(200);
    });
}

#[test]
fn a_secret_can_require_check_and_set() {
    on_each(|vault| {
        vault.root.post(&vault.kv("metadata/s"), &json!({ "cas_required": true })).expect(204);
        let write = json!({ "data": { "a": "1" } });
        vault.root.post(&vault.kv("data/s"), &write).refused(400, REQUIRED);
        vault.root.patch(&vault.kv("data/s"), &write).refused(400, REQUIRED);
        vault.write_with_cas("s", &json!(0)).expect(200);
        vault.root.patch(&vault.kv("data/s"), &write).refused(400, REQUIRED);
        vault.patch_with_cas("s", 1).expect(200);
        // Deletion takes no condition.
        vault.delete("s");
        vault.root.delete(&vault.kv("metadata/s")).expect(204);
    });
}

#[test]
fn a_mount_can_require_check_and_set() {
    on_each(|vault| {
        vault.root.post(&vault.kv("config"), &json!({ "cas_required": true })).expect(204);
        let config = vault.root.get(&vault.kv("config")).expect(200).json();
        assert_eq!(
            config["data"],
            json!({
                "cas_required": true, "max_versions": 0, "metadata_cas_required": false,
                "delete_version_after": "0s",
            })
        );
        let write = json!({ "data": { "a": "1" } });
        vault.root.post(&vault.kv("data/s"), &write).refused(400, REQUIRED);
        // Of a secret that is not there, the mount says this first.
        assert_eq!(vault.root.patch(&vault.kv("data/s"), &write).expect(404).text(), "");
        vault.write_with_cas("s", &json!(0)).expect(200);
        vault.root.patch(&vault.kv("data/s"), &write).refused(400, REQUIRED);
        vault.patch_with_cas("s", 1).expect(200);
        // A secret cannot say otherwise.
        let lax = json!({ "cas_required": false });
        let warned = vault.root.post(&vault.kv("metadata/s"), &lax).expect(200).json();
        assert_eq!(
            warned["warnings"],
            json!([
                "\"cas_required\" set to false, but is mandated by backend config. This value \
                   will be ignored."
            ])
        );
        vault.root.patch(&vault.kv("data/s"), &write).refused(400, REQUIRED);
    });
}

#[test]
fn what_is_wrong_with_a_body_is_said() {
    on_each(|vault| {
        let path = vault.kv("data/x");
        vault.root.post(&path, &json!({})).refused(400, "no data provided");
        vault.root.ask(&Ask::new("POST", &path)).refused(400, "no data provided");
        vault.root.post(&path, &json!({ "data": "text" })).refused(
            400,
            "error converting input for field \"data\": '' expected type \
             'map[string]interface {}', got unconvertible type 'string'",
        );
        vault.root.post(&path, &json!({ "data": null })).expect(200);
        // There is a version, and nothing in it, and no patch for it.
        assert_eq!(vault.fields("x"), Value::Null);
        vault
            .patch("x", &json!({ "a": "1" }))
            .refused(500, "1 error occurred:\n\t* resource does not exist\n\n");
        vault.root.patch(&path, &json!({ "options": {} })).refused(400, "no data provided");
        for broken in ["{\"data\":", "[]", "\"text\"", "{} {}x"] {
            let got = vault.root.ask(&Ask::new("POST", &path).bytes(broken.as_bytes()));
            let errors = got.errors();
            assert_eq!((got.status, errors.len()), (400, 1), "{broken}: {}", got.text());
            assert!(errors[0].starts_with("failed to decode JSON input: "), "{broken}: {errors:?}");
        }
        assert_eq!(vault.metadata("x")["current_version"], 1);
    });
}

#[test]
fn old_versions_can_be_read() {
    on_each(|vault| {
        for number in 1..=3 {
            vault.write("v", &json!({ "n": number }));
        }
        let read = |version: &str| vault.root.get(&vault.kv(&format!("data/v?version={version}")));
        let second = read("2").expect(200).json();
        assert_eq!(
            (&second["data"]["data"]["n"], &second["data"]["metadata"]["version"]),
            (&json!(2), &json!(2))
        );
        for latest in ["0", "-1", ""] {
            if !latest.is_empty() {
                assert_eq!(read(latest).expect(200).json()["data"]["metadata"]["version"], 3);
            }
        }
        read("4").refused_silently(404);
        let wrong = read("two");
        assert_eq!(wrong.status, 400, "{}", wrong.text());
    });
}

#[test]
fn versions_are_deleted_undeleted_and_destroyed() {
    on_each(|vault| {
        for number in 1..=3 {
            vault.write("v", &json!({ "n": number }));
        }
        let status = |version: u64| {
            let got = vault.root.get(&vault.kv(&format!("data/v?version={version}")));
            let answer = got.json();
            assert_eq!(got.status == 404, answer["data"]["data"].is_null());
            let metadata = &answer["data"]["metadata"];
            assert_eq!(metadata["version"], version);
            let deleted = metadata["deletion_time"] != "";
            (got.status, deleted, metadata["destroyed"] == true)
        };
        vault.delete("v");
        assert_eq!([status(3), status(2)], [(404, true, false), (200, false, false)]);
        let gone = vault.read("v").expect(404).json();
        assert_eq!(
            (gone["data"]["metadata"]["version"].clone(), gone.get("errors")),
            (json!(3), None)
        );
        // Again, and of what never was, it is the same to the caller.
        vault.delete("v");
        vault.delete("never");

        let versions = |operation: &str, method: &str, versions: Value| {
            let path = vault.kv(&format!("{operation}/v"));
            vault.root.ask(&Ask::new(method, &path).json(&json!({ "versions": versions })))
        };
        versions("delete", "POST", json!([1, 2, 9])).expect(204);
        assert_eq!([status(1), status(2)], [(404, true, false); 2]);
        versions("undelete", "PUT", json!("1,3")).expect(204);
        assert_eq!([status(1), status(3)], [(200, false, false); 2]);
        versions("destroy", "PUT", json!([2, 3])).expect(204);
        assert_eq!([status(2), status(3)], [(404, true, true), (404, false, true)]);
        versions("undelete", "POST", json!([3])).expect(204);
        assert_eq!(status(3), (404, false, true));
        versions("delete", "POST", json!([])).refused(400, "No version number provided");
        versions("undelete", "POST", json!([])).refused(400, "No version number provided");
        versions("destroy", "POST", json!([])).refused(400, "no version number provided");
        for operation in ["delete", "undelete", "destroy"] {
            let path = vault.kv(&format!("{operation}/never"));
            vault.root.post(&path, &json!({ "versions": [1] })).expect(204);
        }
    });
}

#[test]
fn only_so_many_versions_are_kept() {
    on_each(|vault| {
        for _ in 0..12 {
            vault.write("ten", &json!({ "a": "1" }));
        }
        let numbers = |path: &str| -> BTreeSet<u64> {
            let metadata = vault.metadata(path);
            let versions = metadata["versions"].as_object().expect("an object").clone();
            versions.keys().map(|number| number.parse().expect("a number")).collect()
        };
        assert_eq!(numbers("ten"), (3..=12).collect());
        assert_eq!(vault.metadata("ten")["oldest_version"], 3);
        vault.root.get(&vault.kv("data/ten?version=2")).refused_silently(404);

        vault.root.post(&vault.kv("metadata/two"), &json!({ "max_versions": 2 })).expect(204);
        for _ in 0..4 {
            vault.write("two", &json!({ "a": "1" }));
        }
        assert_eq!(numbers("two"), BTreeSet::from([3, 4]));

        vault.root.post(&vault.kv("config"), &json!({ "max_versions": 1 })).expect(204);
        for _ in 0..2 {
            vault.write("one", &json!({ "a": "1" }));
        }
        assert_eq!(numbers("one"), BTreeSet::from([2]));
        // The larger of the two limits counts.
        vault.write("two", &json!({ "a": "1" }));
        assert_eq!(numbers("two"), BTreeSet::from([4, 5]));
    });
}

#[test]
fn versions_can_go_by_themselves() {
    on_each(|vault| {
        let after = json!({ "delete_version_after": "2s" });
        vault.root.post(&vault.kv("metadata/short"), &after).expect(204);
        assert_eq!(vault.metadata("short")["delete_version_after"], "2s");
        let written = vault.write("short", &json!({ "a": "1" }));
        assert_is_a_time(&written["deletion_time"]);
        vault.read("short").expect(200);
        vault.wait_until("a version that is gone", || vault.read("short").status == 404);
        assert_eq!(vault.patch("short", &json!({ "a": "2" })).status, 404);
    });
}

#[test]
fn metadata_is_read_and_written() {
    on_each(|vault| {
        vault.root.get(&vault.kv("metadata/m")).refused_silently(404);
        vault.write("m", &json!({ "a": "1" }));
        let mut metadata = vault.metadata("m");
        for time in ["created_time", "updated_time"] {
            assert_is_a_time(&metadata[time].take());
        }
        assert_is_a_time(&metadata["versions"]["1"]["created_time"].take());
        assert_eq!(
            metadata,
            json!({
                "versions": { "1": { "created_time": null, "deletion_time": "", "destroyed": false } },
                "current_version": 1, "current_metadata_version": 0, "oldest_version": 0,
                "created_time": null, "updated_time": null, "max_versions": 0,
                "cas_required": false, "metadata_cas_required": false,
                "delete_version_after": "0s", "custom_metadata": null,
            })
        );
        let custom = json!({ "custom_metadata": { "owner": "me" }, "max_versions": 7 });
        vault.root.post(&vault.kv("metadata/m"), &custom).expect(204);
        let metadata = vault.metadata("m");
        assert_eq!(metadata["custom_metadata"], json!({ "owner": "me" }));
        assert_eq!(
            (&metadata["max_versions"], &metadata["current_metadata_version"]),
            (&json!(7), &json!(1))
        );
        let read = vault.read("m").expect(200).json();
        assert_eq!(read["data"]["metadata"]["custom_metadata"], json!({ "owner": "me" }));
        let more = json!({ "custom_metadata": { "team": "us", "owner": null } });
        vault.root.patch(&vault.kv("metadata/m"), &more).expect(204);
        assert_eq!(vault.metadata("m")["custom_metadata"], json!({ "team": "us" }));
        assert_eq!(vault.root.patch(&vault.kv("metadata/none"), &more).expect(404).text(), "");
    });
}

#[test]
fn the_deletion_of_metadata_is_the_end_of_a_secret() {
    on_each(|vault| {
        vault.write("gone", &json!({ "a": "1" }));
        vault.write("gone", &json!({ "a": "2" }));
        for _ in 0..2 {
            vault.root.delete(&vault.kv("metadata/gone")).expect(204);
        }
        vault.read("gone").refused_silently(404);
        vault.root.get(&vault.kv("data/gone?version=1")).refused_silently(404);
        vault.root.get(&vault.kv("metadata/gone")).refused_silently(404);
        vault.root.list(&vault.kv("metadata/")).refused_silently(404);
        // It begins again at 1.
        assert_eq!(
            vault.write_with_cas("gone", &json!(0)).expect(200).json()["data"]["version"],
            1
        );
    });
}

#[test]
fn folders_are_listed() {
    on_each(|vault| {
        vault.root.list(&vault.kv("metadata/f")).refused_silently(404);
        for path in ["f/b", "f/a", "f/a/x", "f/c/y/z", "g", "f/gone", "f/destroyed"] {
            vault.write(path, &json!({ "a": "1" }));
        }
        vault.delete("f/gone");
        vault.destroy("f/destroyed", &[1]);
        let keys = json!({ "keys": ["a", "a/", "b", "c/", "destroyed", "gone"] });
        for path in ["metadata/f", "metadata/f/"] {
            assert_eq!(vault.root.list(&vault.kv(path)).expect(200).json()["data"], keys);
            let by_get = vault.root.get(&vault.kv(&format!("{path}?list=true")));
            assert_eq!(by_get.expect(200).json()["data"], keys);
        }
        let page = vault.root.list(&vault.kv("metadata/f?after=a/&limit=2")).expect(200).json();
        assert_eq!(page["data"], json!({ "keys": ["b", "c/"] }));
        let root = vault.root.list(&vault.kv("metadata")).expect(200).json();
        assert_eq!(root["data"], json!({ "keys": ["f/", "g"] }));
        // A secret is no folder.
        vault.root.list(&vault.kv("metadata/g")).refused_silently(404);
        vault.root.get(&vault.kv("metadata/f?list=maybe")).refused_silently(400);
    });
}

#[test]
fn paths_are_what_they_decode_to() {
    on_each(|vault| {
        for (written, read) in [
            ("with%40at", "with@at"),
            ("plus+plain", "plus%2Bplain"),
            ("a%2Fb", "a/b"),
            ("sp%20ace", "sp%20ace"),
            ("caf%C3%A9", "caf%c3%a9"),
        ] {
            vault.write(written, &json!({ "is": written }));
            assert_eq!(vault.fields(read), json!({ "is": written }));
        }
        vault.read("WITH@AT").refused_silently(404);
        let keys = vault.root.list(&vault.kv("metadata/")).expect(200).json();
        let mut keys: Vec<String> =
            serde_json::from_value(keys["data"]["keys"].clone()).expect("strings");
        keys.sort();
        assert_eq!(keys, ["a/", "café", "plus+plain", "sp ace", "with@at"]);
    });
}

#[test]
fn paths_that_mean_nothing_are_refused() {
    on_each(|vault| {
        vault.write("x", &json!({ "a": "1" }));
        let mount = &vault.mount;
        // A slash at the end reads metadata but finds no data.
        vault
            .root
            .get(&vault.kv("data/x/"))
            .refused(500, "1 error occurred:\n\t* could not find version data\n\n");
        let body = json!({ "data": {} });
        vault
            .root
            .post(&vault.kv("data/x/"), &body)
            .refused(400, "cannot write to a path ending in '/'");
        for (path, clean) in [
            (format!("{mount}//data/x"), format!("/v1/{mount}/data/x")),
            (format!("{mount}/data/../x"), format!("/v1/{mount}/x")),
            (format!("{mount}/./data/x?version=1"), format!("/v1/{mount}/data/x?version=1")),
        ] {
            let moved = vault.root.get(&path).expect(307);
            assert_eq!(moved.header("Location"), Some(clean.as_str()));
        }
        // Out of a versioned mount's paths: warnings in place of errors.
        for (path, words) in [
            ("x", "use 'bao kv get' for this operation"),
            ("data", "Non-listing operations on the root of a K/V v2 mount are not supported."),
        ] {
            let got = vault.root.get(&vault.kv(path)).expect(404).json();
            let warning = got["warnings"][0].as_str().expect("a warning");
            assert!(warning.contains(words), "{warning}");
        }
        let nowhere = unique("nowhere");
        vault.root.get(&format!("{nowhere}/data/x")).refused(
            404,
            &format!("no handler for route \"{nowhere}/data/x\". route entry not found."),
        );
        let unsupported = "1 error occurred:\n\t* unsupported operation\n\n";
        vault.root.get(&vault.kv("destroy/x")).refused(405, unsupported);
        vault.root.list(&vault.kv("data/x")).refused(405, unsupported);
        let head = Ask::new("HEAD", &vault.kv("data/x"));
        vault.root.ask(&head).expect(405);
        vault.root.ask(&Ask::new("BREW", &vault.kv("data/x"))).refused_silently(405);
    });
}

#[test]
fn an_unversioned_mount_takes_what_is_meant_for_a_versioned_one() {
    on_each(|vault| {
        let old = unique("kv1");
        vault.make_mount(&old, &json!({ "type": "kv" }));
        let path = format!("{old}/data/x");
        let body = json!({ "data": { "f": "v" }, "options": { "cas": 0 } });
        let unsupported = "1 error occurred:\n\t* unsupported operation\n\n";
        vault.root.patch(&path, &body).refused(405, unsupported);
        vault.root.get(&path).refused_silently(404);
        vault.root.post(&path, &body).expect(204);
        let got = vault.root.get(&path).expect(200).json();
        assert_eq!(got["data"], body, "and no metadata");
        vault.root.delete(&path).expect(204);
    });
}

#[test]
fn patches_of_many_writers_at_once_lose_nothing() {
    on_each(|vault| {
        vault.write("shared", &json!({ "first": "1" }));
        let path = vault.kv("data/shared");
        thread::scope(|scope| {
            for writer in 0..16 {
                let (root, path) = (&vault.root, &path);
                scope.spawn(move || {
                    let mut connection = root.connect().expect("it listens");
                    for field in 0..10 {
                        let name = format!("{writer}-{field}");
                        let body = json!({ "data": { name: "v" } });
                        let ask = Ask::new("PATCH", path).merge_patch(&body);
                        connection.ask(root, &ask).expect("an answer").expect(200);
                    }
                });
            }
        });
        assert_eq!(vault.fields("shared").as_object().expect("an object").len(), 161);
        assert_eq!(vault.metadata("shared")["current_version"], 161);
    });
}

#[test]
fn one_of_many_wins_a_check_and_set() {
    on_each(|vault| {
        let statuses: Vec<u16> = thread::scope(|scope| {
            let path = vault.kv("data/raced");
            let body = json!({ "data": {}, "options": { "cas": 0 } });
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let (root, path, body) = (vault.root.clone(), path.clone(), body.clone());
                    scope.spawn(move || root.post(&path, &body).status)
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 400).count(), 7, "{statuses:?}");
    });
}
