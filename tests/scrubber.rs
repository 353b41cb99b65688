//! [`CredentialScrubber`] against the Python package's definition of its digest.
#![cfg(unix)]

mod support;

use std::io::Write;
use std::process::{Command, Stdio};

use intentframe_credentials::redact::{CredentialScrubber, REDACTED_VALUE, SENSITIVE_KEYS};
use serde_json::{Map, Value, json};
use support::{Random, skip};

#[test]
fn every_sensitive_key_is_scrubbed_in_any_case() {
    let ours = CredentialScrubber::default();
    for key in SENSITIVE_KEYS {
        let title = key[..1].to_uppercase() + &key[1..];
        for key in [key.to_owned(), key.to_uppercase(), title] {
            let scrubbed = ours.scrub(&json!({ (key.as_str()): "made-up", "other": 1 }));
            assert_eq!(scrubbed, json!({ (key.as_str()): REDACTED_VALUE, "other": 1 }));
        }
    }
    assert_eq!(SENSITIVE_KEYS.len(), 19);
}

#[test]
fn scrubbing_reaches_everything_and_leaves_the_document_alone() {
    let document = json!({
        "user": "alice",
        "Token": {"nested": ["made-up-1"]},
        "list": [{"password": null}, {"api_key": ["made-up-2"]}, [[{"SSN": 7}]], "password"],
        "deep": {"er": {"est": {"Authorization": "Bearer made-up-3", "note": "password"}}},
        "tokens": 3,
        "my_token": "kept: the key is another",
    });
    let before = document.clone();
    let scrubbed = CredentialScrubber::default().scrub(&document);
    assert_eq!(document, before);
    assert_eq!(
        scrubbed,
        json!({
            "user": "alice",
            "Token": "[REDACTED]",
            "list": [{"password": "[REDACTED]"}, {"api_key": "[REDACTED]"}, [[{"SSN": "[REDACTED]"}]], "password"],
            "deep": {"er": {"est": {"Authorization": "[REDACTED]", "note": "password"}}},
            "tokens": 3,
            "my_token": "kept: the key is another",
        })
    );
}

const PYTHON: &str = r#"
import hashlib, json, sys
for line in sys.stdin.buffer:
    document = json.loads(line)
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    print(hashlib.sha256(canonical.encode()).hexdigest())
"#;

#[test]
fn digests_of_many_documents_are_those_of_a_python_at_hand() {
    let mut numbers = Random(1);
    let mut documents: Vec<String> =
        (0..3000).map(|_| value(&mut numbers, 4).to_string()).collect();
    // Floats as people write them. They must be read as Python reads them.
    documents.extend((0..3000).map(|_| {
        let (digits, point) = (numbers.next() % 1_000_000_000_000_000_000, numbers.next() % 18);
        let digits = format!("{digits:018}0");
        let (whole, fraction) = digits.split_at(usize::try_from(point).expect("it is small") + 1);
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        format!(
            "[{whole}.{fraction}e{}]",
            i64::try_from(numbers.next() % 600).expect("small") - 340
        )
    }));
    let spawned = Command::new("python3")
        .args(["-c", PYTHON])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let odd = [
        r#"{"to": "bob@example.org", "amount": 12.50, "note": "für \u20ac 🔑\u007f\u2028"}"#,
        r#"{"\uffff":1,"\ud800\udc00":2,"a":{"z":1e16,"y":1e-7,"x":-0.0,"v":18446744073709551615}}"#,
        r#""\"\\/\b\f\n\r\t\u0001""#,
        "[0.1, 100000000000000000000.0, 1e22, 123456.789e-10, -9223372036854775808]",
        r#"{"b":1,"a":[true,false,null],"":"x"}"#,
    ];
    documents.extend(odd.map(str::to_owned));
    let Ok(mut python) = spawned else {
        skip("the comparison needs Python: apt-get install python3");
        return;
    };
    let mut stdin = python.stdin.take().expect("it is piped");
    let input = documents.join("\n");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = python.wait_with_output().expect("its output can be read");
    writer.join().expect("it does not panic").expect("Python reads all of it");
    assert!(output.status.success());
    let digests = String::from_utf8(output.stdout).expect("hex is ASCII");
    assert_eq!(digests.lines().count(), documents.len());
    for (document, digest) in documents.iter().zip(digests.lines()) {
        let parsed: Value = serde_json::from_str(document).expect("it is JSON");
        assert_eq!(CredentialScrubber::hash_params(&parsed), digest, "{document}");
    }
}

fn value(numbers: &mut Random, depth: u32) -> Value {
    match numbers.next() % if depth == 0 { 7 } else { 9 } {
        0 => Value::Null,
        1 => json!(numbers.next().is_multiple_of(2)),
        2 => json!(numbers.next()),
        3 => json!(numbers.next().cast_signed() >> (numbers.next() % 64)),
        // Any float, then one of ordinary size.
        4 => json!(f64::from_bits(numbers.next())),
        5 => {
            json!(f64::from((numbers.next() >> 32) as u32) / f64::from(1 << (numbers.next() % 31)))
        }
        6 => json!(text(numbers)),
        7 => (0..numbers.next() % 5).map(|_| value(numbers, depth - 1)).collect(),
        _ => {
            let members =
                (0..numbers.next() % 6).map(|_| (text(numbers), value(numbers, depth - 1)));
            Value::Object(members.collect::<Map<_, _>>())
        }
    }
}

/// ASCII with its controls, then other characters on both sides of the surrogates, which UTF-16
/// would sort differently.
fn text(numbers: &mut Random) -> String {
    let any = |numbers: &mut Random| match numbers.next() % 4 {
        0 => char::from_u32((numbers.next() % 0x11_0000) as u32).unwrap_or('\u{ffff}'),
        1 => char::from_u32(0xe000 + (numbers.next() % 0x2000) as u32).unwrap_or('\u{10000}'),
        _ => char::from((numbers.next() % 128) as u8),
    };
    (0..numbers.next() % 6).map(|_| any(numbers)).collect()
}
