//! Where in a text a value's form may begin, and whether one does.

use std::fmt;
use std::iter;

use zeroize::Zeroizing;

use super::forms::{self, Form};
use crate::Secret;

/// How many bytes from a place on decide whether it is worth a closer look.
const WINDOW: usize = 4;

/// The forms of some values, laid out to be found.
pub(super) struct Finder {
    /// In the order of their text.
    forms: Vec<Form>,
    /// Where in `forms` those that begin with a byte begin; one more for the end.
    by_first: [u32; 257],
    /// The first bytes of forms that are shorter than the window.
    short: Option<Box<[bool; 256]>>,
    /// What may stand in the window, with the form; sorted.
    windows: Zeroizing<Vec<(u32, u32)>>,
    sieve: Sieve,
}

/// A form that agrees with the text from some place on, so far.
pub(super) struct Attempt {
    form: u32,
    /// Characters of the form, and bytes of the text.
    matched: usize,
    read: usize,
}

/// What came of an attempt with the text that there is.
pub(super) enum Outcome {
    Differs,
    /// It agrees with everything there is, and goes on.
    Open,
    /// How many bytes of the text the form takes.
    Found(usize),
}

impl Finder {
    pub(super) fn new<'a>(values: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut forms: Vec<Form> =
            values.into_iter().flat_map(|value| forms::of(value.expose())).collect();
        // Of two with the same text, the one that wraps finds what the other does.
        forms.sort_unstable_by(|a, b| (&*a.text, b.wraps).cmp(&(&*b.text, a.wraps)));
        forms.dedup_by(|a, b| a.text == b.text);
        forms.shrink_to_fit();

        let mut by_first = [0; 257];
        let mut short = None;
        let mut windows = Vec::with_capacity(forms.iter().map(windows_at_most).sum());
        for (number, form) in (0_u32..).zip(&forms) {
            let first = usize::from(form.text[0]);
            by_first[first + 1] = number + 1;
            if form.text.len() < WINDOW {
                short.get_or_insert_with(|| Box::new([false; 256]))[first] = true;
            } else {
                each_window(form, |window| windows.push((window, number)));
            }
        }
        for byte in 0..256 {
            by_first[byte + 1] = by_first[byte + 1].max(by_first[byte]);
        }
        windows.sort_unstable();
        let sieve = Sieve::new(windows.iter().map(|&(window, _)| window));
        Self { forms, by_first, short, windows: Zeroizing::new(windows), sieve }
    }

    /// The first place at or after `from` where a form may begin. A place too near to the
    /// end to be told is one.
    pub(super) fn next(&self, text: &[u8], from: usize) -> usize {
        if self.forms.is_empty() {
            return text.len();
        }
        let rest = text[from..].windows(WINDOW);
        let place = match &self.short {
            None => rest.map(window_of).position(|window| self.sieve.lets_pass(window)),
            Some(short) => rest
                .map(window_of)
                .position(|window| short[(window & 0xff) as usize] || self.sieve.lets_pass(window)),
        };
        match place {
            Some(place) => from + place,
            None => from.max((text.len() + 1).saturating_sub(WINDOW)),
        }
    }

    /// The forms that may be what stands at the start of `text`.
    pub(super) fn attempts(&self, text: &[u8], attempts: &mut Vec<Attempt>) {
        let begin = |form| Attempt { form, matched: 0, read: 0 };
        let Some(&first) = text.first() else { return };
        let first = usize::from(first);
        let beginning = self.by_first[first]..self.by_first[first + 1];
        let Some(window) = text.get(..WINDOW).map(window_of) else {
            attempts.extend(beginning.map(begin));
            return;
        };
        if self.short.as_ref().is_some_and(|short| short[first]) {
            let is_short = |&form: &u32| self.form(form).text.len() < WINDOW;
            attempts.extend(beginning.filter(is_short).map(begin));
        }
        let from = self.windows.partition_point(|&(other, _)| other < window);
        let equal = self.windows[from..].iter().take_while(|&&(other, _)| other == window);
        attempts.extend(equal.map(|&(_, form)| begin(form)));
    }

    /// Goes on with an attempt, in a text that may have grown since.
    pub(super) fn go_on(&self, attempt: &mut Attempt, text: &[u8]) -> Outcome {
        let form = self.form(attempt.form);
        if form.wraps {
            return attempt.go_on_over_breaks(&form.text, text);
        }
        let end = form.text.len().min(text.len());
        let (there, wanted) = (&text[attempt.read..end], &form.text[attempt.read..end]);
        if there != wanted {
            return Outcome::Differs;
        }
        attempt.read = end;
        if end == form.text.len() { Outcome::Found(end) } else { Outcome::Open }
    }

    fn form(&self, number: u32) -> &Form {
        &self.forms[number as usize]
    }
}

impl fmt::Debug for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder").field("forms", &self.forms.len()).finish_non_exhaustive()
    }
}

impl Attempt {
    fn go_on_over_breaks(&mut self, form: &[u8], text: &[u8]) -> Outcome {
        while let Some(&wanted) = form.get(self.matched) {
            let rest = &text[self.read..];
            let skipped = if self.matched == 0 { 0 } else { line_break(rest) };
            match rest.get(skipped) {
                Some(&there) if there == wanted => {
                    self.matched += 1;
                    self.read += skipped + 1;
                }
                // A carriage return at the end may be half of a line break.
                None => return Outcome::Open,
                Some(b'\r') if self.matched > 0 && rest.len() == 1 => return Outcome::Open,
                Some(_) => return Outcome::Differs,
            }
        }
        Outcome::Found(self.read)
    }
}

/// How long the line break is that `text` begins with.
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

/// What may stand in the window where `form` begins: each way to break lines in it.
fn each_window(form: &Form, mut each: impl FnMut(u32)) {
    if !form.wraps {
        return each(window_of(&form.text[..WINDOW]));
    }
    let mut seen = Vec::with_capacity(windows_at_most(form));
    for mut choice in 0..BETWEEN.len().pow(3) {
        let mut window = [0; WINDOW];
        let mut room = window.iter_mut();
        for character in &form.text[..WINDOW] {
            let with_break = iter::once(character).chain(BETWEEN[choice % BETWEEN.len()]);
            with_break.zip(&mut room).for_each(|(&byte, place)| *place = byte);
            choice /= BETWEEN.len();
        }
        let window = window_of(&window);
        if !seen.contains(&window) {
            seen.push(window);
            each(window);
        }
    }
}

fn windows_at_most(form: &Form) -> usize {
    if form.wraps { 9 } else { 1 }
}

/// Tells windows that are none of a set from those that may be: a Bloom filter with two
/// bits for each.
struct Sieve {
    bits: Vec<u64>,
    shift: u32,
}

/// Bits for each window, so that few others pass.
const BITS_EACH: usize = 64;
const LEAST_BITS: usize = 1 << 12;
const MOST_BITS: usize = 1 << 20;

impl Sieve {
    fn new(windows: impl ExactSizeIterator<Item = u32>) -> Self {
        let size = (windows.len() * BITS_EACH).next_power_of_two().clamp(LEAST_BITS, MOST_BITS);
        let mut sieve = Self { bits: vec![0; size / 64], shift: 32 - size.trailing_zeros() };
        for window in windows {
            for place in [sieve.first(window), sieve.second(window)] {
                sieve.bits[place / 64] |= 1 << (place % 64);
            }
        }
        sieve
    }

    #[inline]
    fn lets_pass(&self, window: u32) -> bool {
        self.has(self.first(window)) && self.has(self.second(window))
    }

    #[inline]
    fn has(&self, place: usize) -> bool {
        self.bits[place / 64] >> (place % 64) & 1 != 0
    }

    // Multiplicative hashes: the upper bits of a product hang on all of the window's.
    #[inline]
    fn first(&self, window: u32) -> usize {
        (window.wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }

    #[inline]
    fn second(&self, window: u32) -> usize {
        (window.wrapping_mul(0x85eb_ca6b) >> self.shift) as usize
    }
}
