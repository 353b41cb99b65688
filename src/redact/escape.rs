//! Hex digits, and the escapes in JSON strings (RFC 8259).

use zeroize::Zeroizing;

/// Creates a buffer that is wiped when it is dropped. It must not grow beyond `capacity`, since
/// that would leave a copy behind.
pub(super) fn scratch(capacity: usize) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(Vec::with_capacity(capacity))
}

pub(super) type Digits = &'static [u8; 16];
pub(super) const LOWER: Digits = b"0123456789abcdef";
pub(super) const UPPER: Digits = b"0123456789ABCDEF";

pub(super) fn hex(byte: u8, digits: Digits) -> [u8; 2] {
    [digits[usize::from(byte >> 4)], digits[usize::from(byte & 0xf)]]
}

/// Which characters a JSON library escapes, beyond those it must.
#[derive(Clone, Copy)]
pub(super) struct JsonStyle {
    digits: Digits,
    /// Whether characters outside ASCII become `\u` escapes.
    ascii: bool,
    /// More ASCII characters to escape: `/` as `\/`, the others with `\u`.
    also: &'static [u8],
}

/// The default of Python's `json.dumps`.
pub(super) const PYTHON: JsonStyle = JsonStyle { digits: LOWER, ascii: true, also: b"\x7f" };

/// `ascii` and `also` of the styles. `<>&` are unsafe in HTML; Go escapes them by default.
const STYLES: [(bool, &[u8]); 12] = [
    (false, b""),
    (false, b"/"),
    (false, b"<>&"),
    (false, b"/<>&"),
    (false, b"<>&='"), // Gson
    (false, b"\x7f"),  // jq
    (true, b"\x7f"),
    (true, b"\x7f/"),
    (true, b"\x7f<>&"),
    (true, b"\x7f/<>&"),
    (true, b"/"),            // PHP
    (true, b"\x7f<>&'\"+`"), // .NET
];

pub(super) fn json_styles() -> impl Iterator<Item = JsonStyle> {
    let with = |digits| STYLES.map(|(ascii, also)| JsonStyle { digits, ascii, also });
    [LOWER, UPPER].into_iter().flat_map(with)
}

impl JsonStyle {
    /// Escapes `value`, without quotation marks around it.
    pub(super) fn escape(self, value: &str) -> Zeroizing<Vec<u8>> {
        let mut text = scratch(value.len() * 6);
        for character in value.chars() {
            match character {
                '/' if self.also.contains(&b'/') => text.extend_from_slice(br"\/"),
                '"' if !self.also.contains(&b'"') => text.extend_from_slice(b"\\\""),
                '\\' => text.extend_from_slice(br"\\"),
                '\u{8}' => text.extend_from_slice(br"\b"),
                '\u{c}' => text.extend_from_slice(br"\f"),
                '\n' => text.extend_from_slice(br"\n"),
                '\r' => text.extend_from_slice(br"\r"),
                '\t' => text.extend_from_slice(br"\t"),
                _ if self.needs_unicode_escape(character) => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        let [high, low] = unit.to_be_bytes();
                        text.extend_from_slice(b"\\u");
                        text.extend_from_slice(&hex(high, self.digits));
                        text.extend_from_slice(&hex(low, self.digits));
                    }
                }
                _ => text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        text
    }

    fn needs_unicode_escape(self, character: char) -> bool {
        match character {
            '\0'..='\u{1f}' => true,
            ' '..='\u{7f}' => self.also.contains(&(character as u8)),
            // Libraries that make JSON safe for HTML also escape JavaScript's line separators.
            '\u{2028}' | '\u{2029}' => self.ascii || self.also.contains(&b'<'),
            _ => self.ascii,
        }
    }
}
