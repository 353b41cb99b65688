//! docs/openapi.yaml, the document that is served, and what the router does: none of the three can
//! change without the others.
#![cfg(unix)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};
use support::{Place, Response, Service, request};

/// These come from the transport, the policy or the backend, and so with every operation.
const COMMON: [&str; 9] = ["400", "401", "403", "408", "413", "417", "431", "500", "503"];

const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];

/// What is asked, in this order: the template of the path, the method, the names in the path, the
/// body, and the status of the answer.
const CALLS: [(&str, &str, &[&str], &str, u16); 28] = [
    ("/health", "GET", &[], "", 200),
    ("/openapi.json", "GET", &[], "", 200),
    (CREDENTIAL, "GET", &["openai", "key"], "", 404),
    (CREDENTIAL, "HEAD", &["openai", "key"], "", 404),
    (CREDENTIAL, "PUT", &["openai", "key"], r#"{"value":"sk-test-0123456789"}"#, 200),
    (CREDENTIAL, "PUT", &["openai", "env"], RUNTIME_ENV, 200),
    (CREDENTIAL, "PUT", &["openai", "key"], r#"{"value":7}"#, 422),
    (CREDENTIAL, "PUT", &["openai", "key"], "{", 422),
    (CREDENTIAL, "PUT", &["-", "key"], r#"{"value":"v"}"#, 422),
    (CREDENTIAL, "PUT", &["openai", "a%2Fb"], r#"{"value":"v"}"#, 404),
    (CREDENTIAL, "GET", &["openai", "key"], "", 200),
    (CREDENTIAL, "GET", &["openai", "%ff"], "", 400),
    (CREDENTIAL, "HEAD", &["openai", "key"], "", 200),
    ("/v1/credentials", "GET", &[], "", 200),
    ("/v1/credentials/{namespace}", "GET", &["openai"], "", 200),
    ("/v1/credentials/{namespace}", "GET", &["a%2Fb"], "", 404),
    ("/v1/records", "GET", &[], "", 200),
    ("/v1/runtime-env", "GET", &[], "", 200),
    ("/v1/units/{unit}/{namespace}/{key}", "GET", &["edi.service", "openai", "key"], "", 200),
    ("/v1/units/{unit}/{namespace}/{key}", "GET", &["edi.service", "openai", "none"], "", 404),
    (VALIDATION, "PUT", &["openai", "key"], r#"{"valid":true}"#, 200),
    (VALIDATION, "PUT", &["openai", "key"], r#"{"valid":7}"#, 422),
    (VALIDATION, "PUT", &["openai", "key"], "[true]", 422),
    (VALIDATION, "PUT", &["openai", "none"], r#"{"valid":true}"#, 404),
    (VALIDATION, "PUT", &["openai", "key"], EARLIER, 409),
    (CREDENTIAL, "DELETE", &["openai", "key"], "", 200),
    (CREDENTIAL, "DELETE", &["openai", "key"], "", 200),
    (CREDENTIAL, "DELETE", &["openai", "a%2Fb"], "", 404),
];
const CREDENTIAL: &str = "/v1/credentials/{namespace}/{key}";
const VALIDATION: &str = "/v1/validations/{namespace}/{key}";
const EARLIER: &str = r#"{"valid":true,"updated_at":"2026-01-01T00:00:00.000000Z"}"#;
const RUNTIME_ENV: &str = r#"{"value":"sk-test-two","delivery_mode":"runtime_env","env_name":"TOKEN","allowed_consumers":["edi"]}"#;

const TYPE: &str = "Content-Type: application/json\r\n";

const POLICY: &str = r#"
[consumer.edi]
unit = "edi.service"
[[rule]]
consumers = ["edi"]
allow = ["read", "list"]
namespaces = ["openai"]
"#;

fn path(template: &str, names: &[&str]) -> String {
    let mut names = names.iter();
    let segments = template.split('/').map(|segment| {
        if segment.starts_with('{') { *names.next().expect("a name for each") } else { segment }
    });
    segments.collect::<Vec<_>>().join("/")
}

fn ask(service: &Service, method: &str, path: &str, body: &str) -> Response {
    let mut connection = service.connect();
    connection.send(&request(method, path, TYPE, body.as_bytes()));
    if method == "HEAD" { connection.response_to_head() } else { connection.response() }
}

/// The operations and their documented statuses.
fn documented(document: &Value) -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            if let Some(responses) = operation["responses"].as_object() {
                let statuses = responses.keys().cloned().collect();
                operations.insert((path.clone(), method.to_uppercase()), statuses);
            }
        }
    }
    operations
}

/// Follows `$ref`.
fn resolved<'a>(document: &'a Value, part: &'a Value) -> &'a Value {
    match part["$ref"].as_str() {
        Some(place) => document.pointer(&place[1..]).expect("what is referred to is there"),
        None => part,
    }
}

/// Whether the value has the schema; the keywords are those that the document uses for answers.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    let schema = resolved(document, schema);
    let type_of = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = &schema["type"];
    let has_type = |it: &Value| it.as_str() == Some(type_of);
    let fits = types.is_null()
        || has_type(types)
        || types.as_array().is_some_and(|all| all.iter().any(has_type));
    assert!(fits, "{at} is {type_of}, not {types}");
    assert!(schema["const"].is_null() || schema["const"] == *value, "{at}: {value}");
    assert!(schema["enum"].as_array().is_none_or(|all| all.contains(value)), "{at}: {value}");
    for element in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], element, &format!("{at}[]"));
    }
    let Some(fields) = value.as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(fields.contains_key(name.as_str().expect("a name")), "{at} lacks {name}");
    }
    for (name, field) in fields {
        let schema_of = &schema["properties"][name];
        assert!(
            !schema_of.is_null() || schema["additionalProperties"] != json!(false),
            "{at}.{name}"
        );
        check(document, schema_of, field, &format!("{at}.{name}"));
    }
}

fn check_answer(document: &Value, operation: (&str, &str), answer: &Response) {
    let (path, method) = operation;
    let operation = &document["paths"][path][&method.to_lowercase()];
    let documented = &operation["responses"][answer.status.to_string()];
    let at = format!("{method} {path}: {}", answer.status);
    assert!(!documented.is_null(), "{at} is not documented");
    match &resolved(document, documented)["content"]["application/json"]["schema"] {
        Value::Null => assert!(answer.body.is_empty(), "{at}"),
        schema => check(document, schema, &answer.json(), &at),
    }
}

#[test]
fn the_document_that_is_served_is_the_one_in_docs() {
    let root = env!("CARGO_MANIFEST_DIR");
    let checked = Command::new("/usr/bin/python3")
        .current_dir(root)
        .args(["scripts/openapi", "--check"])
        .output();
    let checked = checked.expect("python3 runs");
    let error = String::from_utf8_lossy(&checked.stderr);
    if error.contains("No module named 'yaml'") {
        return support::skip("no yaml package of Python; run: scripts/install-test-deps");
    }
    assert!(checked.status.success(), "{error}");
    let place = Place::new();
    let answer = place.start().get("/openapi.json");
    let embedded: Value =
        serde_json::from_str(include_str!("../src/router/openapi.json")).expect("JSON");
    assert_eq!((answer.status, answer.json()), (200, embedded));
}

#[test]
fn each_operation_has_the_documented_statuses_and_schemas() {
    let place = Place::new();
    let policy = place.root().join("policy.toml");
    std::fs::write(&policy, POLICY).expect("writes");
    let service =
        place.setup().argument("--policy").argument(policy.to_str().expect("UTF-8")).start();
    let document = service.get("/openapi.json").json();
    let mut seen: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (template, method, names, body, status) in CALLS {
        let answer = service.connect().exchange(&request(
            method,
            &path(template, names),
            TYPE,
            body.as_bytes(),
        ));
        assert_eq!(answer.status, status, "{method} {template} {names:?}: {answer:?}");
        check_answer(&document, (template, method), &answer);
        seen.entry((template.to_owned(), method.to_owned()))
            .or_default()
            .insert(status.to_string());
    }
    for statuses in seen.values_mut() {
        statuses.extend(COMMON.map(str::to_owned));
    }
    assert_eq!(documented(&document), seen);
}

#[test]
fn the_document_has_every_path_and_method_of_the_router() {
    let place = Place::new();
    let service = place.start();
    let document = service.get("/openapi.json").json();
    let operations = documented(&document);
    let paths: BTreeSet<&str> = operations.keys().map(|(path, _)| &**path).collect();
    for template in &paths {
        let methods: Vec<&str> = METHODS
            .into_iter()
            .filter(|it| operations.contains_key(&((*template).to_owned(), (*it).to_owned())))
            .collect();
        for method in METHODS {
            let answer = ask(&service, method, &path(template, &["n"; 3]), "");
            assert_eq!(answer.status != 405, methods.contains(&method), "{method} {template}");
            assert!(
                answer.status != 405 || answer.header("Allow") == Some(&methods.join(", ")),
                "{template}"
            );
        }
    }
    // The router matches a path by an arm such as `["v1", "units", unit, key] => Ok(...)`.
    let arms = include_str!("../src/router/path.rs")
        .lines()
        .filter_map(|line| line.trim().strip_prefix('[')?.split_once("] => "));
    let routed = arms.map(|(arm, _)| {
        arm.split(", ").fold(String::new(), |path, segment| match segment.strip_prefix('"') {
            Some(word) => path + "/" + word.trim_end_matches('"'),
            None => path + "/{" + segment + "}",
        })
    });
    assert_eq!(routed.collect::<BTreeSet<_>>(), paths.into_iter().map(str::to_owned).collect());
}
