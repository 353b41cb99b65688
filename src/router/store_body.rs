//! The body of a PUT: parsed so that the value goes straight into a [`Secret`], and
//! checked so that every problem is named at once and none echoes the input.

use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::env_name;
use crate::model::{DeliveryMode, StoreRequest};
use crate::secret::Secret;

use super::Answer;

/// The longest value that is accepted, in bytes of UTF-8.
pub const MAX_VALUE_BYTES: usize = 256 * 1024;

/// One thing that is wrong with a request, in the form that callers know from the Python service.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    r#type: &'static str,
    loc: Vec<Location>,
    msg: String,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Location {
    Name(&'static str),
    Index(usize),
}

impl Problem {
    pub(super) fn new(r#type: &'static str, loc: &[&'static str], msg: impl Into<String>) -> Self {
        let loc = loc.iter().copied().map(Location::Name).collect();
        Self { r#type, loc, msg: msg.into() }
    }

    fn at_index(mut self, index: usize) -> Self {
        self.loc.push(Location::Index(index));
        self
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
    let problem = Problem::new(
        "content_type",
        &["body"],
        "the body is read as JSON only with the header Content-Type: application/json",
    );
    Err(Answer::unprocessable(&[problem]))
}

/// Parses and checks a body. Unknown fields are ignored, as is the order of fields; of a
/// field that is there twice the last one counts.
pub(super) fn parse(body: &[u8]) -> Result<StoreRequest, Vec<Problem>> {
    if body.is_empty() {
        return Err(vec![Problem::new("missing", &["body"], "Field required")]);
    }
    match serde_json::from_slice(body) {
        Ok(Fields::Object(fields)) => fields.check(),
        Ok(Fields::NotAnObject) => Err(vec![Problem::new(
            "model_attributes_type",
            &["body"],
            "the body must be a JSON object",
        )]),
        // The parser's own message is not passed on: it may quote the input.
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let msg = format!("JSON decode error at line {line} column {column}");
            let before: usize = body
                .split_inclusive(|&b| b == b'\n')
                .take(line.saturating_sub(1))
                .map(<[u8]>::len)
                .sum();
            let position = before + column.saturating_sub(1);
            Err(vec![Problem::new("json_invalid", &["body"], msg).at_index(position)])
        }
    }
}

enum Fields {
    Object(Box<ObjectFields>),
    NotAnObject,
}

/// The known fields, each `None` until it is met.
#[derive(Default)]
struct ObjectFields {
    value: Option<Text>,
    delivery_mode: Option<Text>,
    allowed_consumers: Option<Texts>,
    env_name: Option<Text>,
    validator_id: Option<Text>,
}

impl ObjectFields {
    fn check(self) -> Result<StoreRequest, Vec<Problem>> {
        let mut problems = Vec::new();
        let value = match self.value {
            Some(Text::Value(value)) if value.len() > MAX_VALUE_BYTES => {
                let msg = format!("the value is longer than {MAX_VALUE_BYTES} bytes");
                problems.push(Problem::new("string_too_long", &["body", "value"], msg));
                None
            }
            Some(Text::Value(value)) => Some(value),
            Some(_) => {
                problems.push(not_a_string("value"));
                None
            }
            None => {
                problems.push(Problem::new("missing", &["body", "value"], "Field required"));
                None
            }
        };
        let delivery_mode = match self.delivery_mode {
            None => Some(DeliveryMode::default()),
            Some(Text::Value(name)) => DeliveryMode::from_name(name.expose()),
            Some(_) => None,
        };
        if delivery_mode.is_none() {
            let msg = "Input should be 'executor_only' or 'runtime_env'";
            problems.push(Problem::new("enum", &["body", "delivery_mode"], msg));
        }
        let allowed_consumers = match self.allowed_consumers {
            None => Vec::new(),
            Some(Texts::List(texts)) => {
                let mut names = Vec::with_capacity(texts.len());
                for (index, text) in texts.into_iter().enumerate() {
                    match text {
                        Text::Value(name) => names.push(name.expose().to_owned()),
                        _ => problems.push(not_a_string("allowed_consumers").at_index(index)),
                    }
                }
                names
            }
            Some(Texts::NotAList) => {
                let loc = ["body", "allowed_consumers"];
                problems.push(Problem::new("list_type", &loc, "Input should be a valid list"));
                Vec::new()
            }
        };
        let mut optional = |name: &'static str, text: Option<Text>| match text {
            None | Some(Text::Null) => None,
            Some(Text::Value(text)) => Some(text.expose().to_owned()),
            Some(Text::Other) => {
                problems.push(not_a_string(name));
                None
            }
        };
        let env_name = optional("env_name", self.env_name);
        let validator_id = optional("validator_id", self.validator_id);
        if let Some(Err(problem)) = env_name.as_deref().map(env_name::check) {
            problems.push(Problem::new("env_name", &["body", "env_name"], problem.to_string()));
        }
        match (value, delivery_mode) {
            (Some(value), Some(delivery_mode)) if problems.is_empty() => {
                Ok(StoreRequest { value, delivery_mode, allowed_consumers, env_name, validator_id })
            }
            _ => Err(problems),
        }
    }
}

fn not_a_string(field: &'static str) -> Problem {
    Problem::new("string_type", &["body", field], "Input should be a valid string")
}

/// What should be a string. Held as a secret, since one of them is.
enum Text {
    Value(Secret),
    Null,
    Other,
}

/// What should be a list of strings.
enum Texts {
    List(Vec<Text>),
    NotAList,
}

/// The methods of a visitor for JSON scalars that are not what is wanted.
macro_rules! visit_scalars_as {
    ($value:expr; $($visit:ident: $type:ty),+) => {
        $(fn $visit<E>(self, _: $type) -> Result<Self::Value, E> { Ok($value) })+
    };
}

/// Reads a JSON array or object to its end and forgets it.
macro_rules! skip_sequence {
    ($value:expr) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
}
macro_rules! skip_object {
    ($value:expr) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($value)
        }
    };
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text::Value(Secret::new(text.to_owned())))
            }
            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text::Null)
            }
            visit_scalars_as!(Text::Other; visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64);
            skip_sequence!(Text::Other);
            skip_object!(Text::Other);
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;
        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element()? {
                    texts.push(text);
                }
                Ok(Texts::List(texts))
            }
            fn visit_unit<E>(self) -> Result<Texts, E> {
                Ok(Texts::NotAList)
            }
            visit_scalars_as!(
                Texts::NotAList;
                visit_str: &str, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64
            );
            skip_object!(Texts::NotAList);
        }
        deserializer.deserialize_any(TextsVisitor)
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = ObjectFields::default();
                while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
                    match &*name {
                        "value" => fields.value = Some(map.next_value()?),
                        "delivery_mode" => fields.delivery_mode = Some(map.next_value()?),
                        "allowed_consumers" => fields.allowed_consumers = Some(map.next_value()?),
                        "env_name" => fields.env_name = Some(map.next_value()?),
                        "validator_id" => fields.validator_id = Some(map.next_value()?),
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Fields::Object(Box::new(fields)))
            }
            fn visit_unit<E>(self) -> Result<Fields, E> {
                Ok(Fields::NotAnObject)
            }
            visit_scalars_as!(
                Fields::NotAnObject;
                visit_str: &str, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64
            );
            skip_sequence!(Fields::NotAnObject);
        }
        deserializer.deserialize_any(FieldsVisitor)
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
    fn defaults_unknown_fields_and_the_last_of_two() {
        let request =
            parse(br#"{"value":"a","x":{"y":[1]},"value":"\ud83d\udd11\u00e9","env_name":null}"#)
                .expect("a valid body");
        assert_eq!(request.value.expose(), "🔑é");
        assert_eq!(request.delivery_mode, DeliveryMode::ExecutorOnly);
        assert!(request.allowed_consumers.is_empty() && request.env_name.is_none());
    }

    #[test]
    fn every_problem_is_named_at_once_and_no_input_is_echoed() {
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
    fn a_name_that_steers_a_process_is_refused_in_either_mode() {
        for (name, mode) in [
            ("canary=x", "runtime_env"),
            ("", "runtime_env"),
            ("LD_PRELOAD", "runtime_env"),
            ("BASH_ENV", "executor_only"),
        ] {
            let json = problems(&format!(
                r#"{{"value":"canary","env_name":"{name}","delivery_mode":"{mode}"}}"#
            ));
            assert_eq!(json[0]["loc"], serde_json::json!(["body", "env_name"]), "{name}");
            assert_eq!(json.as_array().map(Vec::len), Some(1));
            assert!(name.is_empty() || !json.to_string().contains(name), "{json}");
        }
    }

    #[test]
    fn what_is_no_object_or_no_json() {
        assert_eq!(problems("")[0]["type"], "missing");
        assert_eq!(problems("{}")[0]["loc"], serde_json::json!(["body", "value"]));
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
    fn the_longest_value_is_counted_in_bytes() {
        let body = |bytes: usize| format!("{{\"value\":\"{}\"}}", "v".repeat(bytes));
        assert!(parse(body(MAX_VALUE_BYTES).as_bytes()).is_ok());
        assert_eq!(problems(&body(MAX_VALUE_BYTES + 1))[0]["type"], "string_too_long");
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
            assert_eq!(check_content_type(bad).expect_err("refused").status(), 422, "{bad:?}");
        }
    }
}
