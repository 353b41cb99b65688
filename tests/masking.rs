//! [`Masker`] on the output of programs. The named programs made the texts.

use intentframe_credentials::Secret;
use intentframe_credentials::redact::Masker;

const VALUE: &str = "sk-proj-9fJ/q+w~Zé 🔑=\"<&>\\'x7;%2FLm0nOpQ1RstUvLm0nOpQ2RstUvLm0nOpQ3RstUv";

fn secrets(values: &[&str]) -> Vec<Secret> {
    values.iter().map(|&value| Secret::new(value.to_owned())).collect()
}

/// The whole output, which is the same for the text in one piece and byte by byte.
#[track_caller]
fn masked(values: &[&str], text: &str) -> String {
    let mut whole = Vec::new();
    let mut masker = Masker::new(&secrets(values));
    masker.mask(text.as_bytes(), &mut whole);
    masker.finish(&mut whole);

    let mut by_bytes = Vec::new();
    for byte in text.as_bytes() {
        masker.mask(std::slice::from_ref(byte), &mut by_bytes);
    }
    masker.finish(&mut by_bytes);
    let whole = String::from_utf8(whole).expect("only whole characters are replaced");
    assert_eq!(String::from_utf8_lossy(&by_bytes), whole);
    whole
}

/// The output before the end of the stream is known.
fn let_through(values: &[&str], text: &str) -> String {
    let mut output = Vec::new();
    Masker::new(&secrets(values)).mask(text.as_bytes(), &mut output);
    String::from_utf8(output).expect("characters are held back whole")
}

#[test]
fn every_form_that_programs_print_is_replaced() {
    for (program, text) in [
        ("printf", VALUE),
        (
            "base64(1)",
            "c2stcHJvai05ZkovcSt3flrDqSDwn5SRPSI8Jj5cJ3g3OyUyRkxtMG5PcFExUnN0VXZMbTBuT3BR\n\
             MlJzdFV2TG0wbk9wUTNSc3RVdg==",
        ),
        (
            "python b64encode, on a terminal that wraps",
            "c2stcHJvai05ZkovcSt3flrDqSDwn5SRPSI8Jj5cJ3g3OyUyRkxtMG5PcFExUnN0VXZMbTBuT3BRMlJz\r\n\
             dFV2TG0wbk9wUTNSc3RVdg==",
        ),
        (
            "go base64.RawURLEncoding",
            "c2stcHJvai05ZkovcSt3flrDqSDwn5SRPSI8Jj5cJ3g3OyUyRkxtMG5PcFExUnN0VXZMbTBuT3BRMlJz\
             dFV2TG0wbk9wUTNSc3RVdg",
        ),
        (
            "xxd -p",
            "736b2d70726f6a2d39664a2f712b777e5ac3a920f09f94913d223c263e5c\n\
             2778373b2532464c6d306e4f70513152737455764c6d306e4f7051325273\n\
             7455764c6d306e4f7051335273745576",
        ),
        (
            "xxd -p -u -c 20",
            "736B2D70726F6A2D39664A2F712B777E5AC3A920\n\
             F09F94913D223C263E5C2778373B2532464C6D30\n\
             6E4F70513152737455764C6D306E4F7051325273\n\
             7455764C6D306E4F7051335273745576",
        ),
        (
            "python hex()",
            "736b2d70726f6a2d39664a2f712b777e5ac3a920f09f94913d223c263e5c2778373b2532464c6d306e\
             4f70513152737455764c6d306e4f70513252737455764c6d306e4f7051335273745576",
        ),
        ("jq .", r#"sk-proj-9fJ/q+w~Zé 🔑=\"<&>\\'x7;%2FLm0nOpQ1RstUvLm0nOpQ2RstUvLm0nOpQ3RstUv"#),
        (
            "jq -a ., python json.dumps",
            r#"sk-proj-9fJ/q+w~Z\u00e9 \ud83d\udd11=\"<&>\\'x7;%2FLm0nOpQ1RstUvLm0nOpQ2RstUvLm0nOpQ3RstUv"#,
        ),
        (
            "go json.Marshal",
            r#"sk-proj-9fJ/q+w~Zé 🔑=\"\u003c\u0026\u003e\\'x7;%2FLm0nOpQ1RstUvLm0nOpQ2RstUvLm0nOpQ3RstUv"#,
        ),
        (
            "jq @uri, as JavaScript's encodeURIComponent",
            "sk-proj-9fJ%2Fq%2Bw~Z%C3%A9%20%F0%9F%94%91%3D%22%3C%26%3E%5C'x7%3B%252FLm0nOpQ1Rst\
             UvLm0nOpQ2RstUvLm0nOpQ3RstUv",
        ),
        (
            "python quote",
            "sk-proj-9fJ/q%2Bw~Z%C3%A9%20%F0%9F%94%91%3D%22%3C%26%3E%5C%27x7%3B%252FLm0nOpQ1Rst\
             UvLm0nOpQ2RstUvLm0nOpQ3RstUv",
        ),
        (
            "python quote_plus, go url.QueryEscape",
            "sk-proj-9fJ%2Fq%2Bw~Z%C3%A9+%F0%9F%94%91%3D%22%3C%26%3E%5C%27x7%3B%252FLm0nOpQ1Rst\
             UvLm0nOpQ2RstUvLm0nOpQ3RstUv",
        ),
        (
            "go url.PathEscape",
            "sk-proj-9fJ%2Fq+w~Z%C3%A9%20%F0%9F%94%91=%22%3C&%3E%5C%27x7%3B%252FLm0nOpQ1RstUvLm\
             0nOpQ2RstUvLm0nOpQ3RstUv",
        ),
    ] {
        assert_eq!(masked(&[VALUE], &format!("<{text}>\n")), "<[REDACTED]>\n", "{program}");
    }
}

#[test]
fn within_other_base64_no_more_is_left_than_what_the_value_shares_with_its_neighbours() {
    // printf 'user:%s@example.org' "$VALUE" | base64
    let text = "dXNlcjpzay1wcm9qLTlmSi9xK3d+WsOpIPCflJE9IjwmPlwneDc7JTJGTG0wbk9wUTFSc3RVdkxt\n\
                MG5PcFEyUnN0VXZMbTBuT3BRM1JzdFV2QGV4YW1wbGUub3Jn\n";
    assert_eq!(masked(&[VALUE], text), "dXNlcjp[REDACTED]QGV4YW1wbGUub3Jn\n");
    // python: b64encode(('a:' + value).encode()), encodebytes(('ab' + value).encode())
    let text = "YTpzay1wcm9qLTlmSi9xK3d+WsOpIPCflJE9IjwmPlwneDc7JTJGTG0wbk9wUTFSc3RVdkxtMG5PcFEyUn\
                N0VXZMbTBuT3BRM1JzdFV2";
    assert_eq!(masked(&[VALUE], text), "YTp[REDACTED]");
    let text = "YWJzay1wcm9qLTlmSi9xK3d+WsOpIPCflJE9IjwmPlwneDc7JTJGTG0wbk9wUTFSc3RVdkxtMG5P\n\
                cFEyUnN0VXZMbTBuT3BRM1JzdFV2\n";
    assert_eq!(masked(&[VALUE], text), "YWJ[REDACTED]\n");
    // echo sk-made-up-13 | base64, and with two characters less
    assert_eq!(masked(&["sk-made-up-13"], "c2stbWFkZS11cC0xMwo=\n"), "[REDACTED]o=\n");
    assert_eq!(masked(&["sk-made-up-"], "c2stbWFkZS11cC0K\n"), "[REDACTED]K\n");
}

#[test]
fn a_value_of_several_lines_is_replaced_as_a_terminal_shows_it() {
    let key = "-----BEGIN KEY-----\nTWFkZSB1cA==\n-----END KEY-----\n";
    assert_eq!(masked(&[key], &format!("{key}$ ")), "[REDACTED]$ ");
    let on_terminal = key.replace('\n', "\r\n");
    assert_eq!(masked(&[key], &format!("{on_terminal}$ ")), "[REDACTED]$ ");
    // echo "$(cat key.pem)"; a shell has dropped the last newline
    assert_eq!(masked(&[key], &format!("{}|", key.trim_end())), "[REDACTED]|");
}

#[test]
fn text_without_a_value_is_unchanged() {
    let source = include_str!("../src/redact/forms.rs");
    assert_eq!(masked(&["sk-made-up-13", "another-value-2", "über-geheim"], source), source);
    assert_eq!(masked(&[], source), source);
    assert_eq!(masked(&[""], source), source);
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let mut output = Vec::new();
    let mut masker = Masker::new(&secrets(&["sk-made-up-13"]));
    masker.mask(&bytes, &mut output);
    masker.finish(&mut output);
    assert!(output == bytes, "bytes that are no text come through");
}

#[test]
fn a_prompt_is_shown_at_once() {
    let values = ["sk-made-up-13", "hunter2-made-up", "p4ss"];
    for prompt in ["Password: ", "Continue? [y/N] ", "$ ", ">>> ", "user@host:~# ", "50% \r"] {
        assert_eq!(let_through(&values, prompt), prompt);
    }
}

#[test]
fn the_possible_beginning_of_a_value_is_held_back() {
    let mut masker = Masker::new(&secrets(&["sk-made-up-13"]));
    let mut output = Vec::new();
    masker.mask(b"key=sk-made-", &mut output);
    assert_eq!(output, b"key=");
    masker.mask(b"up-1", &mut output);
    assert_eq!(output, b"key=");
    masker.mask(b"4", &mut output);
    assert_eq!(output, b"key=sk-made-up-14");
    masker.mask(b" sk-made-up-1", &mut output);
    masker.finish(&mut output);
    assert_eq!(output, b"key=sk-made-up-14 sk-made-up-1");
}

#[test]
fn another_stream_shares_the_values_but_nothing_else() {
    let mut masker = Masker::new(&secrets(&["sk-made-up-13"]));
    let mut other = masker.another();
    let (mut output, mut other_output) = (Vec::new(), Vec::new());
    masker.mask(b"sk-made-", &mut output);
    other.mask(b"up-13 sk-made-up-13", &mut other_output);
    assert_eq!((output.as_slice(), other_output.as_slice()), (&b""[..], &b"up-13 [REDACTED]"[..]));
}

#[test]
fn debug_shows_no_value() {
    let mut masker = Masker::new(&secrets(&["sk-made-up-13"]));
    masker.mask(b"sk-made-up", &mut Vec::new());
    let shown = format!("{masker:?}");
    assert!(shown.contains("Masker") && !shown.contains("made"), "{shown}");
    assert!(!shown.contains("115, 107"), "nor its bytes: {shown}");
}

#[test]
fn the_finest_cuts_of_a_long_value_cost_no_more_than_its_length() {
    // About as long as the vault takes; each byte on its own.
    let value = (10_000..62_000).map(|number| number.to_string()).collect::<Vec<_>>().concat();
    let mut masker = Masker::new(&secrets(&[&value]));
    let mut output = Vec::new();
    for byte in value.as_bytes() {
        masker.mask(std::slice::from_ref(byte), &mut output);
    }
    assert_eq!(output, b"[REDACTED]");
}

#[test]
fn a_change_of_values_neither_shows_nor_loses_what_is_held_back() {
    // A prefix of another value, so that one is found while the other may still be.
    let old = ["canary-of-before", "canary-of-b", "y-of-before-two"];
    let all = [&old[..], &["before-the-new-canary"]].concat();
    let (before, after) = (Masker::new(&secrets(&old)), Masker::new(&secrets(&all)));
    for text in [
        "x canary-of-before y",
        "x canary-of-before-two y",
        "x canary-of-bef y",
        "x canary-of- y",
        "x Y2FuYXJ5LW9mLWJlZm9yZQ== y",
        "canary-of-beforecanary-of-before",
        "x canary-\nof-be\r\nfore-the-new-canary y",
    ] {
        let expected = masked(&all, text);
        let bytes = text.as_bytes();
        for (first, second) in
            (0..=text.len()).flat_map(|at| (at..=text.len()).map(move |to| (at, to)))
        {
            let mut masker = before.another();
            let mut output = Vec::new();
            masker.mask(&bytes[..first], &mut output);
            masker.switch_to(&after, &mut output);
            masker.mask(&bytes[first..second], &mut output);
            masker.switch_to(&after, &mut output);
            masker.mask(&bytes[second..], &mut output);
            masker.finish(&mut output);
            let shown = String::from_utf8_lossy(&output);
            // The beginning of a new value may be in the output before the change.
            let is_cut = text.contains("new") && !shown.contains("canary-");
            assert!(is_cut || shown == expected, "{text:?} at {first} and {second}: {shown}");
        }
    }
}
