//! The body of a PUT, parsed and checked.
//!
//! The value goes straight into a [`Secret`]. Every problem is reported at once, and no
//! report repeats the input.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::json;

use crate::env_name;
use crate::model::{DeliveryMode, MAX_CONSUMER_BYTES, MAX_CONSUMERS, StoreRequest};
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
    Err(Answer::unprocessable(&[Problem::new("content_type", json!(["body"]), msg)]))
}

/// Parses and checks a body. Unknown fields are ignored. If a field occurs twice, the last
/// one counts.
pub(super) fn parse(body: &[u8]) -> Result<StoreRequest, Vec<Problem>> {
    if body.is_empty() {
        return Err(vec![Problem::new("missing", json!(["body"]), "Field required")]);
    }
    let mut parser = serde_json::Deserializer::from_slice(body);
    match Wanted::Object.deserialize(&mut parser).and_then(|json| parser.end().map(|()| json)) {
        Ok(Json::Object(fields)) => check(*fields),
        Ok(_) => {
            let msg = "the body must be a JSON object";
            Err(vec![Problem::new("model_attributes_type", json!(["body"]), msg)])
        }
        Err(error) => Err(vec![invalid_json(body, &error)]),
    }
}

/// The parser's own message is not passed on, because it may quote the input.
fn invalid_json(body: &[u8], error: &serde_json::Error) -> Problem {
    let (line, column) = (error.line(), error.column());
    let lines_before = body.split_inclusive(|&b| b == b'\n').take(line.saturating_sub(1));
    let position = lines_before.map(<[u8]>::len).sum::<usize>() + column.saturating_sub(1);
    let msg = format!("JSON decode error at line {line} column {column}");
    Problem::new("json_invalid", json!(["body", position]), msg)
}

fn check(fields: Fields) -> Result<StoreRequest, Vec<Problem>> {
    let [value, delivery_mode, allowed_consumers, env_name, validator_id] = fields;
    let mut problems = Vec::new();
    let mut take = |loc, checked: Checked<Option<Secret>>| {
        checked.unwrap_or_else(|(r#type, msg)| {
            problems.push(Problem::new(r#type, loc, msg));
            None
        })
    };
    let owned = |text: Secret| text.expose().to_owned();

    let value = take(json!(["body", "value"]), text(value, MAX_VALUE_BYTES).map(Some));
    let loc = json!(["body", "delivery_mode"]);
    let delivery_mode = match delivery_mode {
        None => Some(DeliveryMode::default()),
        Some(Json::Text(name)) => DeliveryMode::from_name(name.expose()),
        Some(_) => None,
    };
    if delivery_mode.is_none() {
        take(loc, Err(("enum", "Input should be 'executor_only' or 'runtime_env'".into())));
    }
    let loc = json!(["body", "allowed_consumers"]);
    let mut consumers = Vec::new();
    match allowed_consumers {
        None => {}
        Some(Json::List(names)) if names.len() <= MAX_CONSUMERS => {
            for (index, name) in names.into_iter().enumerate() {
                let loc = json!(["body", "allowed_consumers", index]);
                let name = text(Some(name), MAX_CONSUMER_BYTES).map(Some);
                consumers.extend(take(loc, name).map(owned));
            }
        }
        Some(Json::List(_)) => {
            let msg = format!("the list has more than {MAX_CONSUMERS} names");
            take(loc, Err(("too_long", msg.into())));
        }
        Some(_) => drop(take(loc, Err(("list_type", "Input should be a valid list".into())))),
    }
    let env_name = take(json!(["body", "env_name"]), optional(env_name)).map(owned);
    // A form sends a field that is not filled in as "".
    let env_name = env_name.filter(|name| !name.is_empty());
    let validator_id = take(json!(["body", "validator_id"]), optional(validator_id)).map(owned);
    if let Some(Err(problem)) = env_name.as_deref().map(env_name::check) {
        take(json!(["body", "env_name"]), Err(("env_name", problem.to_string().into())));
    }
    match (value, delivery_mode) {
        (Some(value), Some(delivery_mode)) if problems.is_empty() => Ok(StoreRequest {
            value,
            delivery_mode,
            allowed_consumers: consumers,
            env_name,
            validator_id,
        }),
        _ => Err(problems),
    }
}

/// A field, or the type and the message of its problem.
type Checked<T> = Result<T, (&'static str, Cow<'static, str>)>;

fn text(json: Option<Json>, limit: usize) -> Checked<Secret> {
    match json {
        Some(Json::Text(text)) if text.len() <= limit => Ok(text),
        Some(Json::Text(_)) => {
            Err(("string_too_long", format!("the value is longer than {limit} bytes").into()))
        }
        Some(_) => Err(("string_type", "Input should be a valid string".into())),
        None => Err(("missing", "Field required".into())),
    }
}

fn optional(json: Option<Json>) -> Checked<Option<Secret>> {
    match json {
        None | Some(Json::Null) => Ok(None),
        json => text(json, usize::MAX).map(Some),
    }
}

/// The known fields. Each is `None` until it is met.
type Fields = [Option<Json>; 5];

const FIELD_NAMES: [&str; 5] =
    ["value", "delivery_mode", "allowed_consumers", "env_name", "validator_id"];

/// Any JSON, of which only what some field needs is kept. Texts are secrets, because one of
/// them is the value.
enum Json {
    Text(Secret),
    Null,
    /// At most one element more than [`MAX_CONSUMERS`].
    List(Vec<Json>),
    Object(Box<Fields>),
    Other,
}

/// A value in the body. Arrays and objects anywhere else are read to their end
/// and forgotten, however deep they are; only their type is reported.
#[derive(Clone, Copy)]
enum Wanted {
    Object,
    List,
    Text,
}

impl<'de> DeserializeSeed<'de> for Wanted {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Wanted {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(Secret::new(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while matches!(self, Self::List) && list.len() <= MAX_CONSUMERS {
            let Some(element) = seq.next_element_seed(Self::Text)? else { break };
            list.push(element);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        if !matches!(self, Self::Object) {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Json::Other);
        }
        let mut fields = Box::<Fields>::default();
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            let Some(field) = FIELD_NAMES.iter().position(|field| *field == name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let is_list = FIELD_NAMES[field] == "allowed_consumers";
            let wanted = if is_list { Self::List } else { Self::Text };
            fields[field] = Some(map.next_value_seed(wanted)?);
        }
        Ok(Json::Object(fields))
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
