//! Standard output: tables for people, tab-separated lines and JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use super::failure::Failure;

/// Where a command writes its result, and whether people read it there.
pub struct Output {
    to: io::StdoutLock<'static>,
    /// Whether it is a terminal.
    pub is_terminal: bool,
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Self {
        let to = io::stdout().lock();
        let is_terminal = to.is_terminal();
        Self { to, is_terminal }
    }

    /// Writes `text`, all of it, as it is.
    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        let written = self.to.write_all(text.as_bytes()).and_then(|()| self.to.flush());
        written.map_err(|error| Failure::from_output(&error))
    }

    /// Writes one line of JSON.
    pub fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.to, value)
            .map_err(io::Error::from)
            .and_then(|()| self.to.write_all(b"\n"))
            .and_then(|()| self.to.flush());
        written.map_err(|error| Failure::from_output(&error))
    }

    /// Writes rows: aligned under `head` on a terminal, else tab-separated without a
    /// head. What `unset` says stands for an empty cell on a terminal.
    pub fn rows<const N: usize>(
        &mut self,
        head: [&str; N],
        rows: &[[String; N]],
    ) -> Result<(), Failure> {
        let text = if self.is_terminal { table(head, rows) } else { tab_separated(rows) };
        self.text(&text)
    }
}

fn tab_separated<const N: usize>(rows: &[[String; N]]) -> String {
    rows.iter().map(|row| row.each_ref().map(|cell| escaped(cell)).join("\t") + "\n").collect()
}

/// Columns as wide as their widest cell, two blanks between them, `-` for an empty cell.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut lines = vec![head.map(Cow::Borrowed)];
    lines.extend(rows.iter().map(|row| {
        row.each_ref().map(|cell| if cell.is_empty() { "-".into() } else { escaped(cell) })
    }));
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let start = text.len();
        for (width, cell) in widths.iter().zip(line) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
    }
    text
}

/// `text` with control characters, and those that reorder a line, written as escapes:
/// a name from elsewhere must not steer the terminal.
pub fn escaped(text: &str) -> Cow<'_, str> {
    fn steers(c: char) -> bool {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    }
    if text.contains(steers) {
        let escape = |c: char| {
            if steers(c) { c.escape_default().collect() } else { String::from(c) }
        };
        text.chars().map(escape).collect::<String>().into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row<const N: usize>(cells: [&str; N]) -> [String; N] {
        cells.map(str::to_owned)
    }

    #[test]
    fn columns_line_up_for_wide_characters_too() {
        let rows = [row(["a", "東京", ""]), row(["email.you", "k", "x"])];
        assert_eq!(
            table(["NAME", "KEY", "LAST"], &rows),
            "NAME       KEY   LAST\n\
             a          東京  -\n\
             email.you  k     x\n"
        );
    }

    #[test]
    fn names_do_not_steer_the_terminal() {
        assert_eq!(escaped("a\u{1b}[2Jb\n\u{202e}"), "a\\u{1b}[2Jb\\n\\u{202e}");
        assert!(matches!(escaped("é 東"), Cow::Borrowed(_)));
        assert_eq!(tab_separated(&[row(["a\tb", ""])]), "a\\tb\t\n");
    }
}
