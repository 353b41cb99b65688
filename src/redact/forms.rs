//! [`Form`]: the ways programs print a value, plain or encoded.

use zeroize::Zeroizing;

use super::escape::{Digits, LOWER, UPPER, hex, json_styles, scratch};

/// One way to write a value.
pub(super) struct Form {
    pub(super) text: Zeroizing<Vec<u8>>,
    /// Whether there may be a line break between any two characters: base64(1) and `xxd -p`
    /// wrap their lines, and fold(1) wraps any. The text itself has none then.
    pub(super) wraps: bool,
}

/// A shorter base64 or hex form would match text that has nothing to do with the value.
const SHORTEST_ENCODED: usize = 4;

/// A line of a value that has fewer characters would match too much as well.
const SHORTEST_LINE: usize = 8;

const LINE_BREAKS: [char; 2] = ['\r', '\n'];

/// Returns every form of `value` that is not empty. Some may be equal.
pub(super) fn of(value: &str) -> Vec<Form> {
    let mut forms = Forms(Vec::new());
    forms.add_all(value);
    // The shell's `$(...)` drops the newlines at the end, and so do many programs.
    let trimmed = value.trim_end_matches(LINE_BREAKS);
    if trimmed.len() < value.len() {
        forms.add_all(trimmed);
    }
    // A program may print the lines of a value apart: with a prefix, indented, or just one.
    if value.contains(LINE_BREAKS) {
        let lines = value.split(LINE_BREAKS).map(str::trim);
        for line in lines.filter(|line| line.chars().count() >= SHORTEST_LINE) {
            forms.add_plain(line);
            forms.add_json(line);
        }
    }
    forms.0
}

struct Forms(Vec<Form>);

impl Forms {
    fn add_all(&mut self, value: &str) {
        let bytes = value.as_bytes();
        self.add_plain(value);
        if bytes.contains(&b'\n') {
            // A terminal shows a newline as `\r\n`.
            let mut text = scratch(bytes.len() * 2);
            for &byte in bytes {
                text.extend((byte == b'\n').then_some(b'\r'));
                text.push(byte);
            }
            self.add(&text, false);
        }
        for alphabet in [STANDARD, URL_SAFE] {
            for before in 0..3 {
                self.add_base64(bytes, before, alphabet);
            }
        }
        for digits in [LOWER, UPPER] {
            let mut text = scratch(bytes.len() * 2);
            text.extend(bytes.iter().flat_map(|&byte| hex(byte, digits)));
            self.add(&text, true);
            for (kept, space) in URL_STYLES {
                self.add(&escape_url(bytes, kept, space, digits), false);
            }
        }
        self.add_json(value);
    }

    fn add_plain(&mut self, value: &str) {
        let wraps = value.len() >= SHORTEST_ENCODED && !value.contains(LINE_BREAKS);
        self.add(value.as_bytes(), wraps);
    }

    fn add_json(&mut self, value: &str) {
        for style in json_styles() {
            self.add(&style.escape(value), false);
        }
    }

    fn add(&mut self, text: &[u8], wraps: bool) {
        let shortest = if wraps { SHORTEST_ENCODED } else { 1 };
        // Most styles of JSON escape nothing in most values.
        let is_known = self.0.last().is_some_and(|last| *last.text == *text && last.wraps >= wraps);
        if text.len() >= shortest && !is_known {
            self.0.push(Form { text: Zeroizing::new(text.to_vec()), wraps });
        }
    }

    /// Adds the base64 of the value after `before` other bytes (modulo three): only the
    /// characters that the value alone determines. The last one also depends on the byte that
    /// follows. It is known at the end of the text, and before a newline, whose upper bits are
    /// zeros.
    fn add_base64(&mut self, value: &[u8], before: usize, alphabet: &[u8; 64]) {
        let mut all = scratch(before + value.len());
        all.resize(before, 0);
        all.extend_from_slice(value);
        let mut text = scratch(all.len() / 3 * 4 + 6);
        base64(&all, alphabet, &mut text);
        let from = (before * 8).div_ceil(6);
        let determined = all.len() * 8 / 6;
        if determined > from {
            self.add(&text[from..determined], true);
        }
        if text.len() > determined {
            self.add(&text[from..], true);
            let padded = text.len().next_multiple_of(4);
            text.resize(padded, b'=');
            self.add(&text[from..], true);
        }
    }
}

// ---------------------------------------------------------------- base64 (RFC 4648)

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Appends the base64 of `bytes`, without padding.
fn base64(bytes: &[u8], alphabet: &[u8; 64], text: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..=group.len() {
            text.push(alphabet[(bits >> (18 - 6 * place) & 0x3f) as usize]);
        }
    }
}

// ---------------------------------------------------------------- URL escapes (RFC 3986)

/// The characters that a kind of percent-encoding keeps, besides letters, digits, `-`, `.` and
/// `_`, and what it writes for a space.
const URL_STYLES: [(&[u8], &[u8]); 7] = [
    // The unreserved characters of RFC 3986: curl, jq.
    (b"~", b"%20"),
    // Python's quote().
    (b"~/", b"%20"),
    // JavaScript's encodeURIComponent() and encodeURI().
    (b"~!*'()", b"%20"),
    (b"~!*'();/?:@&=+$,#", b"%20"),
    // Go's PathEscape().
    (b"~$&+=:@", b"%20"),
    // Forms: Python's quote_plus() and Go's QueryEscape(), then the URL standard's.
    (b"~", b"+"),
    (b"*", b"+"),
];

fn escape_url(value: &[u8], kept: &[u8], space: &[u8], digits: Digits) -> Zeroizing<Vec<u8>> {
    let mut text = scratch(value.len() * 3);
    for &byte in value {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => text.push(byte),
            b' ' => text.extend_from_slice(space),
            _ if kept.contains(&byte) => text.push(byte),
            _ => {
                text.push(b'%');
                text.extend_from_slice(&hex(byte, digits));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(value: &str, text: &str) -> bool {
        of(value).iter().any(|form| form.text.as_slice() == text.as_bytes())
    }

    /// The right-hand sides were made by the program named.
    #[test]
    fn the_forms_are_what_programs_print() {
        let value = "sk-made/up+v\u{e9}<&>\"\\ ~key";
        for (program, text) in [
            ("printf", value),
            ("python json.dumps", r#"sk-made/up+v\u00e9<&>\"\\ ~key"#),
            ("python json.dumps, ensure_ascii=False", r#"sk-made/up+vé<&>\"\\ ~key"#),
            ("python quote", "sk-made/up%2Bv%C3%A9%3C%26%3E%22%5C%20~key"),
            ("python quote, safe=''", "sk-made%2Fup%2Bv%C3%A9%3C%26%3E%22%5C%20~key"),
            ("python quote_plus", "sk-made%2Fup%2Bv%C3%A9%3C%26%3E%22%5C+~key"),
            ("python urlsafe_b64encode", "c2stbWFkZS91cCt2w6k8Jj4iXCB-a2V5"),
            ("base64(1)", "c2stbWFkZS91cCt2w6k8Jj4iXCB+a2V5"),
            ("xxd -p", "736b2d6d6164652f75702b76c3a93c263e225c207e6b6579"),
            ("php json_encode", r#"sk-made\/up+v\u00e9<&>\"\\ ~key"#),
            ("go json.Marshal", r#"sk-made/up+vé\u003c\u0026\u003e\"\\ ~key"#),
            (".NET JsonSerializer", r"sk-made/up\u002Bv\u00E9\u003C\u0026\u003E\u0022\\ ~key"),
        ] {
            assert!(has(value, text), "{program}");
        }
        let value = "\u{1f511}\u{e9}\u{7f}\u{2028}\u{1}\u{8}";
        assert!(has(value, r"\ud83d\udd11\u00e9\u007f\u2028\u0001\b"), "python, jq -a");
        assert!(has(value, "\u{1f511}\u{e9}\\u007f\u{2028}\\u0001\\b"), "jq");
    }

    #[test]
    fn within_other_base64_the_characters_are_those_that_the_value_alone_determines() {
        for (whole, part) in [
            ("dXNlcjpzay1tYWRlLXVw", "zay1tYWRlLXVw"), // user:sk-made-up
            ("MXNrLW1hZGUtdXBAaG9zdA==", "NrLW1hZGUtdX"), // 1sk-made-up@host
            ("MjJzay1tYWRlLXVwQGhvc3Q=", "zay1tYWRlLXVw"), // 22sk-made-up@host
            ("MzMzc2stbWFkZS11cEBob3N0", "c2stbWFkZS11c"), // 333sk-made-up@host
        ] {
            assert!(whole.contains(part) && has("sk-made-up", part), "{whole}");
        }
        assert!(has("sk-made-up", "c2stbWFkZS11c"), "before something else");
        assert!(has("sk-made-up", "c2stbWFkZS11cA=="), "at the end");
        assert!(has("sk-made-up", "c2stbWFkZS11cA"), "at the end, without padding");
    }

    #[test]
    fn newlines_have_the_forms_of_terminals_and_shells() {
        let value = "line one\nline two\n";
        assert!(has(value, "line one\nline two"));
        assert!(has(value, "line one\r\nline two"));
        assert!(has(value, r"line one\nline two"));
    }

    #[test]
    fn long_lines_of_a_value_are_forms_without_their_indentation() {
        let value = "-----BEGIN KEY-----\r\n  MII\"/made+up\n\tshorter\n\n8 chars!\ré23456é8";
        for (line, is_form) in [
            ("-----BEGIN KEY-----", true),
            ("MII\"/made+up", true),
            (r#"MII\"/made+up"#, true),
            (r#"MII\"\/made+up"#, true),
            ("shorter", false),
            ("8 chars!", true),
            ("é23456é8", true),
        ] {
            assert_eq!(has(value, line), is_form, "{line}");
        }
        // A value of one line has no lines.
        assert!(!has("  one line", "one line"));
    }

    #[test]
    fn a_text_with_line_breaks_does_not_wrap() {
        for value in ["a b c d", "line one\nline two\r", "abc\rdef", "x", "\r\n"] {
            for form in of(value) {
                let has_break = form.text.iter().any(|byte| b"\r\n".contains(byte));
                assert!(!(form.wraps && (has_break || form.text.len() < SHORTEST_ENCODED)));
            }
            let plain = of(value).into_iter().find(|form| *form.text == value.as_bytes());
            assert_eq!(plain.is_some_and(|form| form.wraps), value == "a b c d", "{value:?}");
        }
    }

    #[test]
    fn empty_forms_and_very_short_encodings_are_left_out() {
        assert!(of("").is_empty());
        assert!(of("\n").iter().all(|form| !form.text.is_empty()));
        assert!(!has("a", "61") && !has("a", "YQ"));
        assert!(has("a", "a") && has("a", "YQ=="));
    }
}
