//! Hex digits, and the escapes within JSON strings (RFC 8259).

use zeroize::Zeroizing;

/// A buffer that is wiped, with room for `capacity` bytes: growing would leave a copy behind.
pub(super) fn scratch(capacity: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(capacity))
}

pub(super) type Digits = &'static [u8; 16];
pub(super) const LOWER: Digits = b"0123456789abcdef";
pub(super) const UPPER: Digits = b"0123456789ABCDEF";

pub(super) fn hex(byte: u8, digits: Digits) -> [u8; 2] {
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 0xf)]]
}

/// The characters that a writer of JSON strings escapes, besides those that it must.
#[derive(Clone, Copy)]
pub(super) struct JsonStyle {
    digits: Digits,
    /// `\u` escapes for what is not ASCII.
    ascii: bool,
    /// A `\u` escape for DEL.
    delete: bool,
    /// `/` as `\/`.
    slash: bool,
    /// `\u` escapes for these, and for the line separators where there are any.
    also: &'static [u8],
}

const PLAIN: JsonStyle =
    JsonStyle { digits: LOWER, ascii: false, delete: false, slash: false, also: b"" };

/// The default of Python's `json.dumps`.
pub(super) const PYTHON: JsonStyle = JsonStyle { ascii: true, delete: true, ..PLAIN };

pub(super) fn json_styles() -> Vec<JsonStyle> {
    let mut styles = vec![
        // jq; then PHP, which does not escape DEL.
        JsonStyle { delete: true, ..PLAIN },
        JsonStyle { ascii: true, slash: true, ..PLAIN },
        // Gson, and .NET, which has no short form for a quotation mark.
        JsonStyle { also: b"<>&='", ..PLAIN },
        JsonStyle { digits: UPPER, also: b"<>&'\"+`", ..PYTHON },
    ];
    for digits in [LOWER, UPPER] {
        for slash in [false, true] {
            // The latter are unsafe within HTML: Go's default.
            for also in [&b""[..], b"<>&"] {
                styles.extend([PLAIN, PYTHON].map(|style| JsonStyle {
                    digits,
                    slash,
                    also,
                    ..style
                }));
            }
        }
    }
    styles
}

impl JsonStyle {
    /// Without the quotation marks around it.
    pub(super) fn escape(self, value: &str) -> Zeroizing<Vec<u8>> {
        let mut text = scratch(value.len() * 6);
        for character in value.chars() {
            let short = match character {
                character if is_among(self.also, character) => None,
                '"' | '\\' => Some(character),
                '/' if self.slash => Some('/'),
                '\u{8}' => Some('b'),
                '\u{c}' => Some('f'),
                '\n' => Some('n'),
                '\r' => Some('r'),
                '\t' => Some('t'),
                _ => None,
            };
            if let Some(short) = short {
                text.push(b'\\');
                text.extend_from_slice(short.encode_utf8(&mut [0; 4]).as_bytes());
            } else if self.escapes(character) {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let [high, low] = unit.to_be_bytes();
                    text.extend_from_slice(b"\\u");
                    text.extend_from_slice(&hex(high, self.digits));
                    text.extend_from_slice(&hex(low, self.digits));
                }
            } else {
                text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        text
    }

    fn escapes(self, character: char) -> bool {
        match character {
            '\0'..='\u{1f}' => true,
            '\u{7f}' => self.delete,
            '\u{2028}' | '\u{2029}' => self.ascii || !self.also.is_empty(),
            character if character.is_ascii() => is_among(self.also, character),
            _ => self.ascii,
        }
    }
}

fn is_among(set: &[u8], character: char) -> bool {
    u8::try_from(character).is_ok_and(|byte| set.contains(&byte))
}
