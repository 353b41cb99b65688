//! [`Masker`]: replaces values and their encoded forms in a stream.

use std::fmt;
use std::mem;
use std::sync::Arc;

use zeroize::{Zeroize, Zeroizing};

use super::REDACTED_VALUE;
use super::finder::{Attempt, Finder, Outcome};
use crate::Secret;

/// Replaces values, and their encoded forms, with `[REDACTED]` in a stream of bytes.
///
/// The result does not depend on how the stream is cut into pieces. The forms are the value
/// itself, base64 (both alphabets, also as a part of a longer text), hex, and the value
/// escaped for URLs and JSON strings. If the value has several lines, so is each of them that
/// has 8 characters or more without its indentation, plain and escaped for JSON strings. Plain
/// values and lines without a line break of their own, base64 and hex of 4 bytes or more may
/// have line breaks in them. One `[REDACTED]` replaces all forms that overlap.
///
/// The masker holds back bytes that may begin a form until it is certain: at most the length
/// of the longest form, and some KiB. Everything else comes out at once.
///
/// ```
/// use intentframe_credentials::Secret;
/// use intentframe_credentials::redact::Masker;
///
/// let token = Secret::new("sk-made-up-1".to_owned());
/// let mut masker = Masker::new([&token]);
/// let mut output = Vec::new();
/// masker.mask(b"token: sk-made", &mut output);
/// assert_eq!(output, b"token: ");
/// masker.mask(b"-up-1, in base64 c2stbWFkZS11cC0x.", &mut output);
/// masker.finish(&mut output);
/// assert_eq!(output, b"token: [REDACTED], in base64 [REDACTED].");
/// ```
pub struct Masker {
    finder: Arc<Finder>,
    /// The bytes from the first undecided place to the end.
    held: Zeroizing<Vec<u8>>,
    front: Front,
}

impl Masker {
    /// Creates a masker for `values`. Ignores empty ones.
    #[must_use]
    pub fn new<'a>(values: impl IntoIterator<Item = &'a Secret>) -> Self {
        Self::with(Arc::new(Finder::new(values)))
    }

    /// Creates a masker of the same values for another stream.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::with(Arc::clone(&self.finder))
    }

    pub(super) fn with(finder: Arc<Finder>) -> Self {
        Self { finder, held: Zeroizing::default(), front: Front::default() }
    }

    /// Takes the next bytes of the stream. Appends everything that is decided to `output`.
    pub fn mask(&mut self, input: &[u8], output: &mut Vec<u8>) {
        if self.held.is_empty() {
            let decided = self.front.advance(&self.finder, input, false, output);
            append(&mut self.held, &input[decided..]);
        } else {
            append(&mut self.held, input);
            let decided = self.front.advance(&self.finder, &self.held, false, output);
            remove_front(&mut self.held, decided);
        }
    }

    /// Looks for the values of `other` from now on, also in what is held back. What a value of
    /// before is found in there already is replaced.
    pub fn switch_to(&mut self, other: &Self, output: &mut Vec<u8>) {
        self.finder = Arc::clone(&other.finder);
        let Front { attempts, longest, covered } = &mut self.front;
        attempts.clear();
        let found = mem::take(longest);
        if found > 0 && *covered == 0 {
            output.extend_from_slice(REDACTED_VALUE.as_bytes());
        }
        *covered = found.max(*covered);
        self.mask(&[], output);
    }

    /// Returns how many bytes are held back because they may begin a form.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Ends the stream: appends the held bytes. Another stream may follow.
    pub fn finish(&mut self, output: &mut Vec<u8>) {
        self.front.advance(&self.finder, &self.held, true, output);
        let held = self.held.len();
        remove_front(&mut self.held, held);
        self.front = Front::default();
    }
}

impl fmt::Debug for Masker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Masker").finish_non_exhaustive()
    }
}

/// The progress of the search in a stream.
#[derive(Default)]
struct Front {
    /// The forms that may begin at the first undecided place, and the longest that does.
    attempts: Vec<Attempt>,
    longest: usize,
    /// How many bytes from there on are known to belong to a value.
    covered: usize,
}

impl Front {
    /// Decides as many bytes as possible of `text`, which begins at the first undecided place.
    /// Returns how many. With `ended`, nothing follows the text.
    fn advance(
        &mut self,
        finder: &Finder,
        text: &[u8],
        ended: bool,
        output: &mut Vec<u8>,
    ) -> usize {
        // All bytes before this are in the output, or belong to a value.
        let mut written = self.covered;
        let mut place = 0;
        loop {
            if self.attempts.is_empty() {
                place = finder.next(text, place);
                finder.attempts(&text[place..], &mut self.attempts);
            }
            let rest = &text[place..];
            let longest = &mut self.longest;
            self.attempts.retain_mut(|attempt| match finder.advance(attempt, rest) {
                Outcome::Open => true,
                Outcome::Differs => false,
                Outcome::Found(length) => {
                    *longest = length.max(*longest);
                    false
                }
            });
            if place == text.len() || (!self.attempts.is_empty() && !ended) {
                break;
            }
            self.attempts.clear();
            let found = mem::take(&mut self.longest);
            if found > 0 {
                if place >= written {
                    output.extend_from_slice(&text[written..place]);
                    output.extend_from_slice(REDACTED_VALUE.as_bytes());
                }
                written = written.max(place + found);
            }
            place += 1;
        }
        if let Some(plain) = text.get(written..place) {
            output.extend_from_slice(plain);
        }
        self.covered = written.saturating_sub(place);
        place
    }
}

/// Appends without leaving a copy of the old bytes behind.
fn append(held: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let size = held.len() + bytes.len();
    if size > held.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(size.next_power_of_two()));
        larger.extend_from_slice(held);
        *held = larger;
    }
    held.extend_from_slice(bytes);
}

fn remove_front(held: &mut Zeroizing<Vec<u8>>, size: usize) {
    let left = move_to_front(held, size);
    held.truncate(left);
}

/// Moves all but the first `size` bytes to the front, and wipes the rest. Returns how many
/// it moved.
fn move_to_front(bytes: &mut [u8], size: usize) -> usize {
    bytes.copy_within(size.., 0);
    let left = bytes.len() - size;
    bytes[left..].zeroize();
    left
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::forms::{self, Form};
    use super::*;

    /// The definition: tries every form at every place.
    fn by_definition(values: &[Secret], text: &[u8]) -> Vec<u8> {
        let forms: Vec<Form> = values.iter().flat_map(|value| forms::of(value.expose())).collect();
        let mut regions: Vec<Range<usize>> = Vec::new();
        for place in 0..text.len() {
            let lengths = forms.iter().filter_map(|form| length_of(form, &text[place..]));
            let Some(length) = lengths.max() else { continue };
            match regions.last_mut() {
                Some(region) if place < region.end => region.end = region.end.max(place + length),
                _ => regions.push(place..place + length),
            }
        }
        let mut masked = Vec::new();
        let mut from = 0;
        for region in regions {
            masked.extend_from_slice(&text[from..region.start]);
            masked.extend_from_slice(REDACTED_VALUE.as_bytes());
            from = region.end;
        }
        masked.extend_from_slice(&text[from..]);
        masked
    }

    fn length_of(form: &Form, text: &[u8]) -> Option<usize> {
        let mut rest = text;
        for (index, &character) in form.text.iter().enumerate() {
            if form.wraps && index > 0 {
                let after = rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b"\r\n"));
                rest = after.unwrap_or(rest);
            }
            rest = rest.strip_prefix(&[character])?;
        }
        Some(text.len() - rest.len())
    }

    /// Random numbers, the same in every run (splitmix64).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut bits = self.0;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((bits ^ (bits >> 31)) % bound as u64).expect("it is below a usize")
        }

        fn text(&mut self, alphabet: &[char], length: usize) -> String {
            (0..length).map(|_| alphabet[self.below(alphabet.len())]).collect()
        }
    }

    /// The whole output for a text in pieces.
    fn masked<'t>(values: &[Secret], pieces: impl IntoIterator<Item = &'t [u8]>) -> Vec<u8> {
        let mut masker = Masker::new(values);
        let mut output = Vec::new();
        for piece in pieces {
            masker.mask(piece, &mut output);
        }
        masker.finish(&mut output);
        assert!(masker.held.is_empty());
        output
    }

    fn in_pieces<'t>(numbers: &mut Numbers, mut text: &'t [u8], longest: usize) -> Vec<&'t [u8]> {
        let mut pieces = Vec::new();
        while !text.is_empty() {
            let (piece, rest) = text.split_at((1 + numbers.below(longest)).min(text.len()));
            pieces.push(piece);
            text = rest;
        }
        pieces
    }

    /// A text of whole and truncated forms, with line breaks in them, and other characters.
    fn text_of(numbers: &mut Numbers, values: &[Secret], alphabet: &[char]) -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..numbers.below(12) {
            let value = values[numbers.below(values.len())].expose();
            let forms = forms::of(value);
            let Some(form) = forms.get(numbers.below(forms.len().max(1))) else { continue };
            let end = match numbers.below(3) {
                0 => numbers.below(form.text.len() + 1),
                _ => form.text.len(),
            };
            let width = 1 + numbers.below(40);
            for (index, &byte) in form.text[..end].iter().enumerate() {
                if index % width == width - 1 {
                    text.extend_from_slice([&b"\n"[..], b"\r\n", b"\r", b""][numbers.below(4)]);
                }
                text.push(byte);
            }
            let other = numbers.below(4);
            text.extend_from_slice(numbers.text(alphabet, other).as_bytes());
        }
        text
    }

    #[test]
    fn the_masker_meets_its_definition_however_the_stream_is_cut() {
        // Few letters, so that forms overlap, repeat and begin alike; then characters that
        // encodings treat specially.
        let alphabets: [&[char]; 3] = [
            &['a', 'b'],
            &['a', '/', '"', '+', ' ', '\n', 'é', '\u{1f511}', '<'],
            &['s', 'k', '-', '0', '1', '\r', '\n', 'Y', 'Q', '='],
        ];
        let mut found = 0;
        for seed in 0..300 {
            let mut numbers = Numbers(seed);
            let alphabet = alphabets[numbers.below(alphabets.len())];
            let values: Vec<Secret> = (0..=numbers.below(4))
                .map(|_| {
                    let length = numbers.below(14);
                    let mut value = numbers.text(alphabet, length);
                    // More lines, some of them long enough to count alone.
                    for _ in 0..numbers.below(3) {
                        value += ["\n", "\r\n", "\n \t"][numbers.below(3)];
                        let length = 6 + numbers.below(8);
                        value += &numbers.text(alphabet, length);
                    }
                    Secret::new(value)
                })
                .collect();
            let text = text_of(&mut numbers, &values, alphabet);
            let expected = by_definition(&values, &text);
            found += usize::from(expected != text);
            let shown = String::from_utf8_lossy(&text).into_owned();
            assert_eq!(masked(&values, [&text[..]]), expected, "seed {seed}: {shown:?}");
            assert_eq!(masked(&values, text.chunks(1)), expected, "seed {seed}, by bytes");
            for longest in [3, 20] {
                let pieces = in_pieces(&mut numbers, &text, longest);
                assert_eq!(masked(&values, pieces), expected, "seed {seed}, pieces {longest}");
            }
        }
        assert!(found > 200, "only {found} texts had something to find");
    }

    #[test]
    fn large_pieces_give_the_same_result() {
        for seed in 0..4 {
            let mut numbers = Numbers(seed);
            // Periodic except for its end.
            let length = 9_000 + numbers.below(3_000);
            let values = [
                Secret::new("ab".repeat(length / 2) + "c"),
                Secret::new(numbers.text(&['a', 'b'], 40)),
            ];
            let mut text = "ab".repeat(numbers.below(3_000)).into_bytes();
            text.extend_from_slice(values[0].expose().as_bytes());
            text.extend_from_slice("ab".repeat(numbers.below(3_000)).as_bytes());
            text.extend_from_slice(values[1].expose().as_bytes());
            let expected = masked(&values, [&text[..]]);
            assert!(expected.len() < text.len() - length);
            for longest in [100, 5_000, 20_000] {
                let pieces = in_pieces(&mut numbers, &text, longest);
                assert_eq!(masked(&values, pieces), expected, "seed {seed}");
            }
        }
    }

    #[test]
    fn the_longest_form_bounds_the_held_bytes() {
        let values = [Secret::new("ab".repeat(500) + "c")];
        let longest = forms::of(values[0].expose()).iter().map(|form| form.text.len()).max();
        let bound = longest.expect("there are forms") * 3 + 1024;
        let mut masker = Masker::new(&values);
        let mut output = Vec::new();
        for piece in "ab".repeat(200_000).as_bytes().chunks(997) {
            masker.mask(piece, &mut output);
            assert!(masker.held.len() <= bound && masker.held.capacity() <= 2 * bound);
        }
        masker.finish(&mut output);
        assert_eq!(output, "ab".repeat(200_000).as_bytes());
    }

    #[test]
    fn held_bytes_are_wiped() {
        let mut held = *b"sk-made-up-value";
        assert_eq!(move_to_front(&mut held, 11), 5);
        assert_eq!(&held, b"value\0\0\0\0\0\0\0\0\0\0\0");
    }
}
