//! Standard output: tables for people, tab-separated lines and JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};

use intentframe_credentials::text::is_invisible;
use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;
use zeroize::Zeroizing;

use super::failure::{Failure, cannot};

/// Whether people read standard output.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Writes `text` as it is.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        // The reader has seen enough, as in `| head`.
        io::ErrorKind::BrokenPipe => Failure::silent(0),
        _ => cannot("write to standard output")(error),
    })
}

/// Writes one line of JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let mut line = Zeroizing::new(serde_json::to_string(value).map_err(Failure::other)?);
    line.push('\n');
    text(&line)
}

/// Writes rows: a table on a terminal, else tab-separated lines without a head.
pub fn rows(head: &[&str], rows: &[impl AsRef<[String]>]) -> Result<(), Failure> {
    text(&if is_terminal() { table(head, rows) } else { tab_separated(rows) })
}

fn tab_separated(rows: &[impl AsRef<[String]>]) -> String {
    let line = |row: &[String]| row.iter().map(|cell| escaped(cell)).collect::<Vec<_>>().join("\t");
    rows.iter().map(|row| line(row.as_ref()) + "\n").collect()
}

/// Columns as wide as their widest cell, two blanks between them, `-` for an empty cell.
pub fn table(head: &[&str], rows: &[impl AsRef<[String]>]) -> String {
    let mut lines = vec![head.iter().map(|it| Cow::from(*it)).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| {
        let cells = row.as_ref().iter();
        cells.map(|it| if it.is_empty() { "-".into() } else { escaped(it) }).collect()
    }));
    let widest = |column: usize| lines.iter().map(|line| line[column].width()).max().unwrap_or(0);
    let widths: Vec<_> = (0..head.len()).map(widest).collect();
    let mut text = String::new();
    for line in &lines {
        let mut shown = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            shown.push_str(cell);
            shown.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
        }
        text.extend([shown.trim_end(), "\n"]);
    }
    text
}

/// Escapes control characters and those that nobody sees or that reorder a line: a name from
/// elsewhere must not control the terminal.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return text.into();
    }
    let mut escaped = String::new();
    escape(text, is_control, &mut escaped);
    escaped.into()
}

/// Writes a value and a newline to the terminal. Newlines and tabs stay, the rest is escaped.
pub fn value(value: &str) -> Result<(), Failure> {
    // The longest escape is six bytes for one, so that the buffer does not grow, which would
    // leave a copy behind.
    let mut shown = Zeroizing::new(String::with_capacity(value.len() * 6 + 1));
    escape(value, |c| is_control(c) && !matches!(c, '\n' | '\t'), &mut shown);
    shown.push('\n');
    text(&shown)
}

fn is_control(c: char) -> bool {
    c.is_control() || is_invisible(c)
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool, output: &mut String) {
    for c in text.chars() {
        if is_escaped(c) {
            output.extend(c.escape_default());
        } else {
            output.push(c);
        }
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
            table(&["NAME", "KEY", "LAST"], &rows),
            "NAME       KEY   LAST\n\
             a          東京  -\n\
             email.you  k     x\n"
        );
    }

    #[test]
    fn names_do_not_control_the_terminal() {
        assert_eq!(escaped("a\u{1b}[2Jb\n\u{202e}"), "a\\u{1b}[2Jb\\n\\u{202e}");
        assert!(matches!(escaped("é 東"), Cow::Borrowed(_)));
        assert_eq!(tab_separated(&[row(["a\tb", ""])]), "a\\tb\t\n");
    }
}
