//! [`Form`]: the ways in which programs print a value, plain or encoded.

use zeroize::Zeroizing;

use super::escape::{Digits, LOWER, UPPER, hex, json_styles, scratch};

/// One way in which a value may be written.
pub(super) struct Form {
    pub(super) text: Zeroizing<Vec<u8>>,
    /// Whether a line break may stand between any two of its characters: base64(1) and
    /// `xxd -p` wrap their lines.
    pub(super) wraps: bool,
}

/// A shorter base64 or hex form would match text that has nothing to do with the value.
const SHORTEST_ENCODED: usize = 4;

/// Every form of `value` that is not empty. Some may be equal.
pub(super) fn of(value: &str) -> Vec<Form> {
    let mut forms = Forms(Vec::new());
    forms.of_text(value);
    // The shell's `$(...)` drops the newlines at the end, and so do many programs.
    let trimmed = value.trim_end_matches(['\r', '\n']);
    if trimmed.len() < value.len() {
        forms.of_text(trimmed);
    }
    forms.0
}

struct Forms(Vec<Form>);

impl Forms {
    fn of_text(&mut self, value: &str) {
        let bytes = value.as_bytes();
        self.plain(bytes);
        if bytes.contains(&b'\n') {
            // As a terminal shows it.
            let mut text = scratch(bytes.len() * 2);
            for line in bytes.split_inclusive(|&byte| byte == b'\n') {
                match line.strip_suffix(b"\n") {
                    Some(line) => text.extend(line.iter().chain(b"\r\n")),
                    None => text.extend(line),
                }
            }
            self.plain(&text);
        }
        for alphabet in [STANDARD, URL_SAFE] {
            for before in 0..3 {
                self.base64(bytes, before, alphabet);
            }
        }
        for digits in [LOWER, UPPER] {
            let mut text = scratch(bytes.len() * 2);
            for &byte in bytes {
                text.extend_from_slice(&hex(byte, digits));
            }
            self.encoded(&text);
            for url in URL_STYLES {
                self.plain(&url.escape(bytes, digits));
            }
        }
        for style in json_styles() {
            self.plain(&style.escape(value));
        }
    }

    fn plain(&mut self, text: &[u8]) {
        if !text.is_empty() {
            self.0.push(Form { text: exactly(text), wraps: false });
        }
    }

    fn encoded(&mut self, text: &[u8]) {
        if text.len() >= SHORTEST_ENCODED {
            self.0.push(Form { text: exactly(text), wraps: true });
        }
    }

    /// The value within the base64 of a longer text, after `before` bytes (modulo three): the
    /// characters that the value alone determines. The one that it shares with the next byte
    /// is known at the end of the text, and before a newline, whose upper bits are zeros.
    fn base64(&mut self, value: &[u8], before: usize, alphabet: &[u8; 64]) {
        let mut all = scratch(before + value.len());
        all.resize(before, 0);
        all.extend_from_slice(value);
        let mut text = scratch(all.len() / 3 * 4 + 6);
        base64(&all, alphabet, &mut text);
        let from = (before * 8).div_ceil(6);
        let determined = all.len() * 8 / 6;
        if determined > from {
            self.encoded(&text[from..determined]);
        }
        if text.len() > determined {
            self.encoded(&text[from..]);
            let padded = text.len().next_multiple_of(4);
            text.resize(padded, b'=');
            self.encoded(&text[from..]);
        }
    }
}

fn exactly(text: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.to_vec())
}

// ---------------------------------------------------------------- base64 (RFC 4648)

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Without padding.
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

/// One kind of percent-encoding: what it keeps besides letters, digits, `-`, `.` and `_`.
struct UrlStyle {
    kept: &'static [u8],
    blank: &'static [u8],
}

const URL_STYLES: [UrlStyle; 7] = [
    // RFC 3986's unreserved: curl, jq.
    UrlStyle { kept: b"~", blank: b"%20" },
    // Python's quote().
    UrlStyle { kept: b"~/", blank: b"%20" },
    // JavaScript's encodeURIComponent() and encodeURI().
    UrlStyle { kept: b"~!*'()", blank: b"%20" },
    UrlStyle { kept: b"~!*'();/?:@&=+$,#", blank: b"%20" },
    // Go's PathEscape().
    UrlStyle { kept: b"~$&+=:@", blank: b"%20" },
    // Forms: Python's quote_plus() and Go's QueryEscape(), and the URL standard's.
    UrlStyle { kept: b"~", blank: b"+" },
    UrlStyle { kept: b"*", blank: b"+" },
];

impl UrlStyle {
    fn escape(&self, value: &[u8], digits: Digits) -> Zeroizing<Vec<u8>> {
        let mut text = scratch(value.len() * 3);
        for &byte in value {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => text.push(byte),
                b' ' => text.extend_from_slice(self.blank),
                byte if self.kept.contains(&byte) => text.push(byte),
                byte => {
                    text.push(b'%');
                    text.extend_from_slice(&hex(byte, digits));
                }
            }
        }
        text
    }
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
    fn empty_forms_and_very_short_encodings_are_left_out() {
        assert!(of("").is_empty());
        assert!(of("\n").iter().all(|form| !form.text.is_empty()));
        assert!(!has("a", "61") && !has("a", "YQ"));
        assert!(has("a", "a") && has("a", "YQ=="));
    }
}
