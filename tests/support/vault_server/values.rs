//! How the server writes times, durations and names, and reads them from a body: as Go does.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Number, Value};

pub type Object = Map<String, Value>;

/// A time as `time.RFC3339Nano` prints it.
pub fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).expect("a time of this century").to_string()
}

/// A time, or nothing as the empty string.
pub fn rfc3339_or_empty(time: Option<SystemTime>) -> String {
    time.map(rfc3339).unwrap_or_default()
}

pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

pub fn truncated_to_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_seconds(time))
}

pub fn rounded_to_seconds(time: SystemTime) -> SystemTime {
    truncated_to_seconds(time + Duration::from_millis(500))
}

/// `1h2m3s`, as `time.Duration` prints whole seconds.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// The same without the parts that are zero, as warnings have it.
pub fn human_duration(duration: Duration) -> String {
    let text = go_duration(duration);
    let text = text.strip_suffix("m0s").map_or_else(|| text.clone(), |rest| format!("{rest}m"));
    text.replace("h0m", "h")
}

/// Seconds from a number, digits, or a Go duration such as `1h30m`.
pub fn seconds(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::Number(number) => number.as_i64(),
        Value::String(text) if text.is_empty() => Some(0),
        Value::String(text) => text.parse().ok().or_else(|| go_seconds(text)),
        _ => None,
    }
}

fn go_seconds(text: &str) -> Option<i64> {
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += amount
            * match &rest[..unit] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    #[expect(clippy::cast_possible_truncation, reason = "that is what Go does, too")]
    Some(total as i64)
}

/// A number as it comes back from a versioned secret: `OpenBao` reads the stored JSON into
/// 64-bit floats, and prints the shortest digits that give the same float.
pub fn through_a_float(value: &Value) -> Value {
    match value {
        Value::Number(number) => {
            let float = number.as_f64().expect("serde_json has no other numbers");
            let digits = float.to_string();
            let number = if digits.contains('.') { None } else { digits.parse::<i64>().ok() };
            number
                .map(Number::from)
                .or_else(|| digits.parse::<u64>().ok().map(Number::from))
                .or_else(|| Number::from_f64(float))
                .map_or(Value::Null, Value::Number)
        }
        Value::Array(items) => Value::Array(items.iter().map(through_a_float).collect()),
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(name, field)| (name.clone(), through_a_float(field))).collect(),
        ),
        other => other.clone(),
    }
}

fn random_number() -> u64 {
    // Each `RandomState` has keys of its own.
    RandomState::new().build_hasher().finish()
}

/// Letters and digits that nobody can guess, as in tokens and accessors.
pub fn random_base62(length: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    (0..length)
        .map(|_| {
            let index = usize::try_from(random_number() % 62).expect("below 62");
            char::from(DIGITS[index])
        })
        .collect()
}

pub fn uuid() -> String {
    let digits = format!("{:016x}{:016x}", random_number(), random_number());
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// A list of strings, or one string with commas.
pub fn strings(value: Option<&Value>) -> Vec<String> {
    let trimmed = |text: &str| text.trim().to_owned();
    match value {
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).map(trimmed).collect(),
        Some(Value::String(text)) => {
            text.split(',').filter(|item| !item.trim().is_empty()).map(trimmed).collect()
        }
        _ => Vec::new(),
    }
}

/// A list of numbers, one number, or one string with commas.
pub fn numbers(value: Option<&Value>) -> Vec<u64> {
    let number = |value: &Value| match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    match value {
        Some(Value::Array(items)) => items.iter().filter_map(number).collect(),
        Some(Value::String(text)) => {
            text.split(',').filter_map(|item| item.trim().parse().ok()).collect()
        }
        Some(value) => number(value).into_iter().collect(),
        None => Vec::new(),
    }
}

pub fn flag(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => Some(text == "true" || text == "1"),
        Value::Number(number) => Some(number.as_i64() != Some(0)),
        _ => Some(false),
    }
}

pub fn integer(value: Option<&Value>) -> Option<i64> {
    match value? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => Some(0),
    }
}

pub fn text<'a>(data: &'a Object, name: &str) -> &'a str {
    data.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Builds an object from a literal.
pub fn object(value: Value) -> Object {
    match value {
        Value::Object(fields) => fields,
        other => panic!("not an object: {other}"),
    }
}
