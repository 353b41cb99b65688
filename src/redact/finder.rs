//! [`Finder`]: finds the forms of values in a text.

use std::iter;

use zeroize::Zeroizing;

use super::forms::{self, Form};
use crate::Secret;

/// The number of bytes that decide whether a form can begin at a place.
const WINDOW: usize = 4;

/// So many forms are tried one by one.
const FEW: usize = 4;

/// The forms of the values, prepared for a search.
pub(super) struct Finder {
    /// Sorted by their text.
    forms: Vec<Form>,
    /// The first bytes of the forms that are shorter than a window.
    short: Option<Box<[bool; 256]>>,
    sieve: Sieve,
}

/// A form that matches the text at some place so far.
pub(super) struct Attempt {
    form: usize,
    /// How many bytes of the form match, and how many bytes of the text that is.
    matched: usize,
    read: usize,
}

/// The result of an attempt with the text so far.
pub(super) enum Outcome {
    Differs,
    /// All of the text matches, but the form is longer.
    Open,
    /// The form matches this many bytes of the text.
    Found(usize),
}

impl Finder {
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut forms: Vec<Form> =
            values.into_iter().flat_map(|value| forms::of(value.expose())).collect();
        // If two forms have the same text, the one that wraps finds everything that the other does.
        forms.sort_unstable_by(|a, b| (&*a.text, b.wraps).cmp(&(&*b.text, a.wraps)));
        forms.dedup_by(|a, b| a.text == b.text);
        forms.shrink_to_fit();

        let mut short = None;
        let mut windows = Zeroizing::new(Vec::with_capacity(forms.len() * 9));
        for form in &forms {
            if form.text.len() < WINDOW {
                let first = usize::from(form.text[0]);
                short.get_or_insert_with(|| Box::new([false; 256]))[first] = true;
            } else {
                windows_of(form, &mut windows);
            }
        }
        let sieve = Sieve::new(&windows);
        Self { forms, short, sieve }
    }

    /// Returns the first place at or after `from` where a form may begin. Within the last bytes,
    /// every place counts.
    pub(super) fn next(&self, text: &[u8], from: usize) -> usize {
        if self.forms.is_empty() {
            return text.len();
        }
        let rest = text[from..].windows(WINDOW);
        let place = match &self.short {
            None => rest.map(window_of).position(|window| self.sieve.may_have(window)),
            Some(short) => rest
                .map(window_of)
                .position(|window| short[(window & 0xff) as usize] || self.sieve.may_have(window)),
        };
        match place {
            Some(place) => from + place,
            None => from.max((text.len() + 1).saturating_sub(WINDOW)),
        }
    }

    /// Starts an attempt for each form that may begin at the start of `text`.
    pub(super) fn attempts(&self, text: &[u8], attempts: &mut Vec<Attempt>) {
        if text.is_empty() {
            return;
        }
        let attempt = |form| Attempt { form, matched: 0, read: 0 };
        let (mut start, mut end) = (0, self.forms.len());
        // Hundreds of values and lines may begin alike: only those that match are of interest.
        for (index, byte) in text.iter().enumerate() {
            let may_break = index > 0 && matches!(byte, b'\r' | b'\n');
            if end - start <= FEW || may_break {
                break;
            }
            // The form that ends here is the first of those that begin alike.
            if self.forms[start].text.len() == index {
                attempts.push(attempt(start));
                start += 1;
            }
            let alike = &self.forms[start..end];
            end = start + alike.partition_point(|form| form.text[index] <= *byte);
            start += alike.partition_point(|form| form.text[index] < *byte);
        }
        attempts.extend((start..end).map(attempt));
    }

    /// Continues an attempt in a text that may have grown since.
    pub(super) fn advance(&self, attempt: &mut Attempt, text: &[u8]) -> Outcome {
        let form = &self.forms[attempt.form];
        while let Some(&wanted) = form.text.get(attempt.matched) {
            let rest = &text[attempt.read..];
            let may_break = form.wraps && attempt.matched > 0;
            let skipped = if may_break { line_break(rest) } else { 0 };
            match rest.get(skipped) {
                Some(&there) if there == wanted => {
                    attempt.matched += 1;
                    attempt.read += skipped + 1;
                }
                // A carriage return at the end may be half of a line break.
                None => return Outcome::Open,
                Some(b'\r') if may_break && rest.len() == 1 => return Outcome::Open,
                Some(_) => return Outcome::Differs,
            }
        }
        Outcome::Found(attempt.read)
    }
}

/// The length of a line break at the start of `text`.
fn line_break(text: &[u8]) -> usize {
    match text {
        [b'\n', ..] => 1,
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    }
}

fn window_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("a window has four bytes"))
}

/// Between two characters there is nothing, or one of two line breaks.
const BETWEEN: [&[u8]; 3] = [b"", b"\n", b"\r\n"];

/// Appends each window that `form` can begin with: at most 9 ways to break lines in it.
fn windows_of(form: &Form, windows: &mut Vec<u32>) {
    if !form.wraps {
        return windows.push(window_of(&form.text[..WINDOW]));
    }
    let before = windows.len();
    for mut choice in 0..BETWEEN.len().pow(3) {
        let mut window = [0; WINDOW];
        let mut room = window.iter_mut();
        for character in &form.text[..WINDOW] {
            let with_break = iter::once(character).chain(BETWEEN[choice % BETWEEN.len()]);
            with_break.zip(&mut room).for_each(|(&byte, place)| *place = byte);
            choice /= BETWEEN.len();
        }
        let window = window_of(&window);
        if !windows[before..].contains(&window) {
            windows.push(window);
        }
    }
}

/// A Bloom filter with two bits for each window: tells whether a window is certainly not in the
/// set.
struct Sieve(Box<[u64; SIEVE_BITS / 64]>);

/// Enough bits that few other windows pass, even with hundreds of values. The size is constant,
/// because the shift then is too, and the search is half as fast again.
const SIEVE_BITS: usize = 1 << 20;
const SHIFT: u32 = u32::BITS - SIEVE_BITS.trailing_zeros();

impl Sieve {
    fn new(windows: &[u32]) -> Self {
        let bits = vec![0; SIEVE_BITS / 64].try_into().expect("the lengths are equal");
        let mut sieve = Self(bits);
        for place in windows.iter().copied().flat_map(places) {
            sieve.0[place / 64] |= 1 << (place % 64);
        }
        sieve
    }

    #[inline]
    fn may_have(&self, window: u32) -> bool {
        places(window).all(|place| self.0[place / 64] >> (place % 64) & 1 != 0)
    }
}

/// Multiplicative hashes: the upper bits of a product depend on all bits of the window. The
/// second is computed only if the first one's bit is set.
#[inline]
fn places(window: u32) -> impl Iterator<Item = usize> {
    let factors: [u32; 2] = [0x9e37_79b1, 0x85eb_ca6b];
    factors.into_iter().map(move |factor| (window.wrapping_mul(factor) >> SHIFT) as usize)
}
