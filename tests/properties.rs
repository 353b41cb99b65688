//! Properties that hold for any input. A failure shows the shortest input that was found, and
//! `PROPTEST_CASES` sets how many are tried.
#![cfg(unix)]

#[path = "support/contract.rs"]
mod contract;
#[allow(dead_code, reason = "the binary uses the rest")]
#[path = "../src/cli/dotenv.rs"]
mod dotenv;
#[path = "support/sequences.rs"]
mod sequences;
mod support;

use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use intentframe_credentials::backend::UPSTREAM_VARIABLE;
use intentframe_credentials::client::VaultClient;
use intentframe_credentials::redact::{Masker, REDACTED_VALUE};
use intentframe_credentials::{
    BackendOptions, CredentialRef, Environment, Secret, StoreRequest, create_vault, mask_value,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::json;
use support::{Connection, Place, get, put};

/// Checks a property on random inputs.
#[track_caller]
fn holds<S: Strategy>(inputs: &S, property: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config).run(inputs, property).unwrap_or_else(|error| panic!("{error}"));
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_env_backend_keeps_the_contract_and_agrees_with_its_model() {
    let variables = [("A_TOKEN", "of the environment"), ("A_B_TOKEN", "")];
    let options = BackendOptions::new(environment(&variables));
    let vault = create_vault("env", &options).expect("registered");
    let behind = |at: &CredentialRef| {
        let name = format!("{}_{}", at.namespace(), at.key()).to_uppercase().replace('.', "_");
        let variable = variables.iter().find(|(variable, _)| *variable == name);
        variable.map(|(_, value)| (*value).to_owned())
    };
    contract::contract(&*vault, "contract-");
    sequences::agree(&*vault, "", 256, behind, |_| ());
}

#[test]
fn a_service_and_its_listings_agree_with_the_model() {
    let (_place, service) = Place::serving();
    let upstream = environment(&[(UPSTREAM_VARIABLE, service.socket.to_str().expect("UTF-8"))]);
    let vault = create_vault("service", &BackendOptions::new(upstream)).expect("registered");
    let client = VaultClient::new(&service.socket);
    let check = |model: &sequences::Model| {
        let listed = client.list_all().expect("lists");
        let listed = listed.into_iter().map(|it| (it.namespace, it.key, it.masked_preview));
        let expected = model.iter().map(|(at, value)| {
            (at.namespace().to_string(), at.key().to_owned(), mask_value(value))
        });
        assert!(listed.eq(expected), "{model:?}");
    };
    sequences::agree(&*vault, "", 48, |_| None, check);
}

/// Percent-encodes a byte (RFC 3986, 2.1), where `style` says so or a path cannot have it.
fn encoded(byte: u8, style: u8) -> String {
    match style {
        0 if byte.is_ascii_graphic() && !b"/?%#".contains(&byte) => char::from(byte).to_string(),
        1 => format!("%{byte:02x}"),
        _ => format!("%{byte:02X}"),
    }
}

#[test]
fn a_name_is_found_however_it_is_encoded() {
    let (_place, service) = Place::serving();
    let client = VaultClient::new(&service.socket);
    let connection = std::cell::RefCell::new(Connection::open(&service.socket));
    let styles = prop::collection::vec(0_u8..3, 1..9);
    let inputs = ("[A-Za-z0-9][A-Za-z0-9_.@+-]{0,9}", sequences::key(), any::<String>(), styles);
    holds(&inputs, |(namespace, key, value, styles)| {
        let at = CredentialRef::parse(&namespace, &key)?;
        client.store(&at, &StoreRequest::new(Secret::new(value.clone())))?;
        let mut styles = styles.into_iter().cycle();
        let mut segment = |text: &str| -> String {
            text.bytes().zip(&mut styles).map(|(byte, style)| encoded(byte, style)).collect()
        };
        let path = format!("/v1/credentials/{}/{}", segment(&namespace), segment(&key));
        prop_assert_eq!(connection.borrow_mut().exchange(&get(&path)).value(), value);
        client.delete(&at)?;
        Ok(())
    });
}

/// The definition: `None` if the segment is not percent-encoded UTF-8.
fn decoded(segment: &str) -> Option<String> {
    let mut parts = segment.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|two| two.bytes().all(|it| it.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok()
}

#[test]
fn a_bad_encoding_is_never_taken_for_a_name() {
    let (_place, service) = Place::serving();
    let client = VaultClient::new(&service.socket);
    let piece = prop::sample::select(vec![
        "%",
        "%4",
        "%zz",
        "%+1",
        "%2F",
        "%00",
        "%7f",
        "%C3",
        "%a9",
        "%e2%80%8b",
        "%41",
        "%25",
        "a",
        "2",
    ]);
    let segment = prop::collection::vec(piece, 1..5);
    holds(&segment, |pieces| {
        let segment = pieces.concat();
        let path = format!("/v1/credentials/n/{segment}");
        let status = service.connect().exchange(&put(&path, &json!({ "value": "v" }))).status;
        let key = decoded(&segment);
        let at = key.as_ref().and_then(|key| CredentialRef::parse("n", key).ok());
        match (key, at) {
            (None, _) => prop_assert_eq!(status, 400),
            (Some(key), _) if key.contains('/') => prop_assert_eq!(status, 404),
            (Some(_), None) => prop_assert_eq!(status, 422),
            (Some(_), Some(at)) => {
                prop_assert_eq!(status, 200);
                prop_assert!(client.has(&at)?);
                client.delete(&at)?;
            }
        }
        prop_assert!(client.list_all()?.is_empty(), "nothing else is stored");
        Ok(())
    });
}

#[test]
fn a_preview_shows_eight_characters_of_twelve_or_more_and_else_none() {
    // Of one byte and of more, around the length that decides.
    holds(&"[a-zé🔑\\PC]{0,20}", |value| {
        let characters: Vec<char> = value.chars().collect();
        let expected = match &*characters {
            [first @ .., a, b] if characters.len() >= 12 => {
                format!("{}....{a}{b}", first[..6].iter().collect::<String>())
            }
            _ => "****".to_owned(),
        };
        prop_assert_eq!(mask_value(&value), expected);
        Ok(())
    });
}

/// A statement of a `.env` file.
#[derive(Debug, Clone)]
enum Statement {
    Set { name: String, value: String, quote: &'static str, export: bool, blanks: &'static str },
    Comment(&'static str),
    Invalid(&'static str),
}

impl Statement {
    /// The text. A value that cannot be written without quotes, or in single ones, gets double ones.
    fn text(&self) -> String {
        let Self::Set { name, value, quote, export, blanks } = self else {
            let (Self::Comment(text) | Self::Invalid(text)) = self else { unreachable!() };
            return (*text).to_owned();
        };
        let is_bare = value.trim_ascii() == value
            && !value.starts_with(['"', '\''])
            && !value.contains(['\n', '\r', '#']);
        let written = match *quote {
            "" if is_bare => value.clone(),
            "'" if !value.contains(['\'', '\r']) => format!("'{value}'"),
            _ => {
                let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
                format!("\"{}\" # comment", escaped.replace('\r', "\\r"))
            }
        };
        let export = if *export { "export " } else { "" };
        format!("{blanks}{export}{name}{blanks}={blanks}{written}{blanks}")
    }
}

#[test]
fn a_dotenv_file_says_what_its_writer_meant() {
    let set = (
        "[A-C_][A-Za-z0-9_.-]{0,2}",
        prop_oneof![any::<String>(), "[ -~]{0,20}", "[\"'\\\\$#\r\n é]{0,8}"],
        prop::sample::select(vec!["", "'", "\""]),
        any::<bool>(),
        prop::sample::select(vec!["", " ", "\t "]),
    );
    let set = set.prop_map(|(name, value, quote, export, blanks)| {
        let value = value.replace(char::REPLACEMENT_CHARACTER, "");
        Statement::Set { name, value, quote, export, blanks }
    });
    let statement = prop_oneof![
        8 => set,
        1 => prop::sample::select(vec!["", " \t", "# A='", "  #"]).prop_map(Statement::Comment),
        1 => prop::sample::select(vec!["=x", "A", "9=x", "A 'x'", "A='x' y"])
            .prop_map(Statement::Invalid),
    ];
    let file = (prop::collection::vec(statement, 0..8), prop::sample::select(vec!["\n", "\r\n"]));
    holds(&file, |(statements, line_end)| {
        let (mut text, mut invalid) = (String::new(), Vec::new());
        let mut expected: Vec<(&str, &str)> = Vec::new();
        for statement in &statements {
            match statement {
                Statement::Set { name, value, .. } => {
                    expected.retain(|(earlier, _)| earlier != name);
                    expected.push((name, value));
                }
                Statement::Comment(_) => {}
                Statement::Invalid(_) => {
                    invalid.push(format!("line {}:", text.matches('\n').count() + 1));
                }
            }
            text += &(statement.text() + line_end);
        }
        let parsed = dotenv::parse(text.as_bytes());
        let variables = parsed.variables.iter().map(|it| (it.name.as_str(), it.value.expose()));
        prop_assert_eq!(variables.collect::<Vec<_>>(), expected, "{:?}", text);
        prop_assert_eq!(parsed.problems.len(), invalid.len(), "{:?}", text);
        let all = parsed.problems.iter().zip(&invalid);
        prop_assert!(all.into_iter().all(|(problem, line)| problem.starts_with(line)));
        Ok(())
    });
}

/// Masks by a search of another kind: the places of all values at once, by automaton. A value
/// may begin where another ends; those that overlap are one.
fn masked_by_automaton(values: &[String], characters: &[String]) -> String {
    let text: String = characters.iter().filter_map(|it| it.chars().next()).collect();
    let mut longest: BTreeMap<usize, usize> = BTreeMap::new();
    let automaton = AhoCorasick::new(values).expect("they are few");
    for found in automaton.find_overlapping_iter(&text) {
        let end = longest.entry(found.start()).or_default();
        *end = found.end().max(*end);
    }
    let (mut masked, mut until) = (String::new(), 0);
    for (place, character) in characters.iter().enumerate() {
        if let Some(&end) = longest.get(&place) {
            if place >= until {
                masked += REDACTED_VALUE;
            }
            until = end.max(until);
        }
        match until.checked_sub(place) {
            None | Some(0) => masked += character,
            // A line break after the last character of a value is not the value's.
            Some(1) => masked += &character[1..],
            Some(_) => {}
        }
    }
    masked
}

/// Checks the masker on a text made of the values, of starts of them and of other characters, with
/// these line breaks, in pieces of these sizes. No base64 and no hex has only these letters.
fn the_masker_agrees(shortest: usize, line_breaks: &'static [&'static str]) {
    let value = proptest::string::string_regex(&format!("[xyz]{{{shortest},12}}")).expect("valid");
    let part = (any::<prop::sample::Index>(), 0_usize..16, "[xyz.]{0,3}");
    let inputs = (
        prop::collection::vec(value, 1..40),
        prop::collection::vec(part, 0..12),
        prop::collection::vec(prop::sample::select(line_breaks), 1..9),
        prop::collection::vec(1_usize..20, 1..5),
    );
    holds(&inputs, |(values, parts, breaks, pieces)| {
        let mut text = String::new();
        for (index, length, other) in &parts {
            let value = index.get(&values);
            text = text + &value[..*length.min(&value.len())] + other;
        }
        let characters: Vec<String> =
            text.chars().zip(breaks.iter().cycle()).map(|(it, end)| format!("{it}{end}")).collect();
        let secrets: Vec<Secret> = values.iter().cloned().map(Secret::new).collect();
        let mut masker = Masker::new(&secrets);
        let (text, mut output) = (characters.concat(), Vec::new());
        let mut rest = text.as_bytes();
        for size in pieces.iter().cycle() {
            let (piece, after) = rest.split_at(*size.min(&rest.len()));
            masker.mask(piece, &mut output);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        masker.finish(&mut output);
        let expected = masked_by_automaton(&values, &characters);
        prop_assert_eq!(String::from_utf8(output)?, expected, "{:?}", text);
        Ok(())
    });
}

#[test]
fn the_masker_finds_what_an_automaton_finds() {
    the_masker_agrees(1, &[""]);
}

#[test]
fn the_masker_finds_it_across_line_breaks_too() {
    // Values of four characters or more may have line breaks in them.
    the_masker_agrees(4, &["", "", "", "\n", "\r\n"]);
}
