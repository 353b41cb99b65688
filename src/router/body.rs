//! The body of a PUT, parsed and checked.
//!
//! The value goes straight into a [`Secret`]. Every problem is reported at once, and no
//! report repeats the input.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::env_name;
use crate::model::{DeliveryMode, MAX_CONSUMER_BYTES, MAX_CONSUMERS, StoreRequest, Validity};
use crate::secret::Secret;

use super::Answer;

/// The longest value that is accepted, in bytes of UTF-8.
pub const MAX_VALUE_BYTES: usize = 256 * 1024;

/// One problem of a request, in the form that callers know from the Python service (which
/// has it from Pydantic): `loc` is the path to the input that is wrong.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    r#type: &'static str,
    loc: serde_json::Value,
    msg: Cow<'static, str>,
}

impl Problem {
    pub(super) fn new(
        r#type: &'static str,
        loc: serde_json::Value,
        msg: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { r#type, loc, msg: msg.into() }
    }
}

/// Accepts `application/json` and `application/*+json`, with any parameters.
pub(super) fn check_content_type(content_type: Option<&str>) -> Result<(), Answer> {
    let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    let media_type = media_type.trim().to_ascii_lowercase();
    let is_json = media_type.strip_prefix("application/").is_some_and(|subtype| {
        subtype == "json" || subtype.strip_suffix("+json").is_some_and(|kind| !kind.is_empty())
    });
    if is_json {
        return Ok(());
    }
    let msg = "the body must be JSON, sent with the header Content-Type: application/json";
    Err(Answer::error(422, &[Problem::new("content_type", json!(["body"]), msg)]))
}

/// Parses and checks a body. Unknown fields are ignored. If a field occurs twice, the last
/// one counts.
pub(super) fn parse(body: &[u8]) -> Result<StoreRequest, Vec<Problem>> {
    let problem = |kind, msg: &'static str| Err(vec![Problem::new(kind, json!(["body"]), msg)]);
    if body.is_empty() {
        return problem("missing", "Field required");
    }
    let invalid = |error| vec![invalid_json(body, &error)];
    let json: &RawValue = serde_json::from_slice(body).map_err(invalid)?;
    if !json.get().starts_with('{') {
        return problem("model_attributes_type", "the body must be a JSON object");
    }
    check(&serde_json::from_slice(body).map_err(invalid)?)
}

/// The parser's own message is not passed on, because it may quote the input.
fn invalid_json(body: &[u8], error: &serde_json::Error) -> Problem {
    let (line, column) = (error.line(), error.column());
    let lines_before = body.split_inclusive(|&b| b == b'\n').take(line.saturating_sub(1));
    let position = lines_before.map(<[u8]>::len).sum::<usize>() + column.saturating_sub(1);
    let msg = format!("JSON decode error at line {line} column {column}");
    Problem::new("json_invalid", json!(["body", position]), msg)
}

/// Parses the body of a result.
pub(super) fn parse_validity(body: &[u8]) -> Result<Validity, Problem> {
    // Through a map: serde takes a list for a struct too.
    let fields = serde_json::from_slice::<serde_json::Map<_, _>>(body);
    fields.and_then(|it| serde_json::from_value(it.into())).map_err(|_| {
        let msg = "Input should be an object with valid (true, false or null) and, if you like, \
            updated_at (a time)";
        Problem::new("model_type", json!(["body"]), msg)
    })
}

/// The fields of a body, not parsed yet: what is not wanted is never kept, however deep it is.
type Fields<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

fn check(fields: &Fields<'_>) -> Result<StoreRequest, Vec<Problem>> {
    let field = |name: &str| fields.get(name).copied();
    let mut problems = Vec::new();
    let mut take = |loc, checked: Checked<Option<Secret>>| {
        checked.unwrap_or_else(|(r#type, msg)| {
            problems.push(Problem::new(r#type, loc, msg));
            None
        })
    };
    let owned = |text: Secret| text.expose().to_owned();

    let value = take(json!(["body", "value"]), text(field("value"), MAX_VALUE_BYTES).map(Some));
    let mode = |json| DeliveryMode::from_name(text(Some(json), usize::MAX).ok()?.expose());
    let delivery_mode = field("delivery_mode").map_or(Some(DeliveryMode::default()), mode);
    if delivery_mode.is_none() {
        let msg = "Input should be 'executor_only' or 'runtime_env'";
        take(json!(["body", "delivery_mode"]), Err(("enum", msg.into())));
    }
    let loc = json!(["body", "allowed_consumers"]);
    let list = field("allowed_consumers").map_or("[]", RawValue::get);
    let mut allowed_consumers = Vec::new();
    match serde_json::from_str::<Vec<&RawValue>>(list) {
        Ok(names) if names.len() <= MAX_CONSUMERS => {
            for (index, name) in names.into_iter().enumerate() {
                let loc = json!(["body", "allowed_consumers", index]);
                let name = text(Some(name), MAX_CONSUMER_BYTES).map(Some);
                allowed_consumers.extend(take(loc, name).map(owned));
            }
        }
        Ok(_) => {
            let msg = format!("the list has more than {MAX_CONSUMERS} names");
            take(loc, Err(("too_long", msg.into())));
        }
        Err(_) => drop(take(loc, Err(("list_type", "Input should be a valid list".into())))),
    }
    let mut optional = |name| {
        let json = field(name).filter(|json| json.get() != "null");
        let text = json.map(|json| text(Some(json), usize::MAX)).transpose();
        take(json!(["body", name]), text).map(owned)
    };
    // A form sends a field that is not filled in as "".
    let env_name = optional("env_name").filter(|name| !name.is_empty());
    let validator_id = optional("validator_id");
    if let Some(Err(problem)) = env_name.as_deref().map(env_name::check) {
        take(json!(["body", "env_name"]), Err(("env_name", problem.to_string().into())));
    }
    match (value, delivery_mode) {
        (Some(value), Some(delivery_mode)) if problems.is_empty() => {
            Ok(StoreRequest { value, delivery_mode, allowed_consumers, env_name, validator_id })
        }
        _ => Err(problems),
    }
}

/// A field, or the type and the message of its problem.
type Checked<T> = Result<T, (&'static str, Cow<'static, str>)>;

fn text(json: Option<&RawValue>, limit: usize) -> Checked<Secret> {
    let json = json.ok_or(("missing", "Field required".into()))?.get();
    if !json.starts_with('"') {
        return Err(("string_type", "Input should be a valid string".into()));
    }
    let text = serde_json::from_str(json).map(Secret::new);
    match text.map_err(|_| ("json_invalid", "the text is not valid Unicode".into()))? {
        text if text.len() > limit => {
            Err(("string_too_long", format!("the value is longer than {limit} bytes").into()))
        }
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(body: &str) -> serde_json::Value {
        let problems = parse(body.as_bytes()).expect_err(body);
        let json = serde_json::to_value(&problems).expect("serialises");
        assert!(!json.to_string().contains("canary"), "{json}");
        json
    }

    #[test]
    fn defaults_apply_unknown_fields_are_ignored_and_the_last_of_two_counts() {
        let request =
            parse(br#"{"value":"a","x":{"y":[1]},"value":"\ud83d\udd11\u00e9","env_name":null}"#)
                .expect("a valid body");
        assert_eq!(request.value.expose(), "🔑é");
        assert_eq!(request.delivery_mode, DeliveryMode::ExecutorOnly);
        assert!(request.allowed_consumers.is_empty() && request.env_name.is_none());
    }

    #[test]
    fn all_problems_are_reported_at_once_without_the_input() {
        let json = problems(
            r#"{"value":["canary"],"delivery_mode":"canary","allowed_consumers":["canary",1],"env_name":7,"validator_id":{"canary":1}}"#,
        );
        let locs: Vec<String> =
            json.as_array().expect("a list").iter().map(|p| p["loc"].to_string()).collect();
        assert_eq!(
            locs,
            [
                r#"["body","value"]"#,
                r#"["body","delivery_mode"]"#,
                r#"["body","allowed_consumers",1]"#,
                r#"["body","env_name"]"#,
                r#"["body","validator_id"]"#,
            ]
        );
    }

    #[test]
    fn a_dangerous_env_name_is_rejected_in_either_mode() {
        for (name, mode) in [
            ("canary=x", "runtime_env"),
            ("HTTPS_PROXY", "runtime_env"),
            ("LD_PRELOAD", "runtime_env"),
            ("BASH_ENV", "executor_only"),
        ] {
            let json = problems(&format!(
                r#"{{"value":"canary","env_name":"{name}","delivery_mode":"{mode}"}}"#
            ));
            assert_eq!(json[0]["loc"], json!(["body", "env_name"]), "{name}");
            assert_eq!(json.as_array().map(Vec::len), Some(1));
            assert!(!json.to_string().contains(name), "{json}");
        }
    }

    #[test]
    fn an_empty_env_name_is_none() {
        let request = parse(br#"{"value":"a","env_name":"","delivery_mode":"runtime_env"}"#);
        assert_eq!(request.expect("a valid body").env_name, None);
    }

    #[test]
    fn a_body_must_be_json_and_an_object() {
        assert_eq!(problems("")[0]["type"], "missing");
        assert_eq!(problems("{}")[0]["loc"], json!(["body", "value"]));
        for body in ["[\"canary\"]", "\"canary\"", "1", "null", "true"] {
            assert_eq!(problems(body)[0]["type"], "model_attributes_type", "{body}");
        }
        for body in [
            "{",
            "{\"value\":\"canary",
            "canary",
            "{\"value\":\"canary\"} x",
            "{\"value\":\"\\ud800\"}",
        ] {
            assert_eq!(problems(body)[0]["type"], "json_invalid", "{body}");
        }
    }

    #[test]
    fn the_length_of_a_value_is_limited_in_bytes() {
        let body = |bytes: usize| format!("{{\"value\":\"{}\"}}", "v".repeat(bytes));
        assert!(parse(body(MAX_VALUE_BYTES).as_bytes()).is_ok());
        assert_eq!(problems(&body(MAX_VALUE_BYTES + 1))[0]["type"], "string_too_long");
    }

    #[test]
    fn the_number_and_the_length_of_consumers_are_limited() {
        let body = |names: &[String]| json!({"value": "v", "allowed_consumers": names}).to_string();
        let longest = "é".repeat(MAX_CONSUMER_BYTES / 2);
        let mut names = vec![longest.clone(); MAX_CONSUMERS];
        let request = parse(body(&names).as_bytes()).expect("just within both limits");
        assert_eq!(request.allowed_consumers, names);
        names[7].push('x');
        let problem = &problems(&body(&names))[0];
        assert_eq!(problem["type"], "string_too_long");
        assert_eq!(problem["loc"], json!(["body", "allowed_consumers", 7]));
        names[7] = longest;
        for _ in 0..2 {
            names.push("one more".to_owned());
            let problem = &problems(&body(&names))[0];
            assert_eq!(problem["type"], "too_long");
            assert_eq!(problem["loc"], json!(["body", "allowed_consumers"]));
        }
    }

    #[test]
    fn deep_nesting_is_a_wrong_type_and_no_crash() {
        let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
        assert_eq!(problems(&deep)[0]["type"], "model_attributes_type");
        let value = problems(&format!("{{\"value\":{deep}}}"));
        assert_eq!(value[0]["loc"], json!(["body", "value"]));
        let consumers = problems(&format!("{{\"value\":\"v\",\"allowed_consumers\":[{deep}]}}"));
        assert_eq!(consumers[0]["loc"], json!(["body", "allowed_consumers", 0]));
    }

    #[test]
    fn a_syntax_error_is_reported_with_its_position() {
        for (body, position) in [("{\n \"value\": canary}", 12), ("{", 0), ("{} x", 3)] {
            assert_eq!(problems(body)[0]["loc"], json!(["body", position]), "{body}");
        }
    }

    #[test]
    fn json_content_types() {
        for good in
            ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json;v=1"]
        {
            assert!(check_content_type(Some(good)).is_ok(), "{good}");
        }
        for bad in [
            None,
            Some("application/x-www-form-urlencoded"),
            Some("text/json"),
            Some("application/+json"),
            Some("json"),
        ] {
            assert_eq!(check_content_type(bad).expect_err("refused").status, 422, "{bad:?}");
        }
    }
}
