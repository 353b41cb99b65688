//! A reader of `.env` files as people write them.
//!
//! A line is blank, a comment (`#`), or `NAME=value`, with `export ` before it if one
//! likes and blanks around the `=`. A value is
//!
//! - bare: up to the end of the line or to a `#` with a blank before it, without the
//!   blanks at its ends;
//! - in single quotes: literally what is between them;
//! - in double quotes: the same with `\n`, `\t`, `\r`, `\"`, `\\` and `\$`; any other
//!   backslash stays.
//!
//! A quoted value may run over several lines. Variables are not interpolated: `$HOME` is
//! five characters. Where a name is set twice the later one counts, as in python-dotenv.
//! CRLF and a byte order mark are understood.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use intentframe_credentials::Secret;
use zeroize::Zeroizing;

/// A `.env` file that was read.
#[derive(Debug, Default)]
pub struct Dotenv {
    /// The variables, in the order of the lines that count.
    pub variables: Vec<Variable>,
    /// The lines that could not be read.
    pub problems: Vec<Problem>,
}

/// One variable.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value; may be empty.
    pub value: Secret,
}

/// A line that could not be read: where, and what is wrong with it, but not its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The number of the line, from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// Reads the file.
pub fn read(path: &Path) -> io::Result<Dotenv> {
    const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

    let mut bytes = Zeroizing::new(Vec::new());
    let file = File::open(path)?;
    // Room for all of it, so that growing leaves no copies behind.
    let length = file.metadata()?.len().min(MAX_FILE_BYTES);
    bytes.reserve_exact(usize::try_from(length).unwrap_or(0) + 1);
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is longer than 4 MiB, so it is no .env file",
        ));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is in UTF-16; save it as UTF-8",
        ));
    }
    Ok(parse(&bytes))
}

/// Reads the text of a file. What follows a line that cannot be read is still read.
pub fn parse(text: &[u8]) -> Dotenv {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut dotenv = Dotenv::default();
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let taken = match statement(rest) {
            Ok((variable, taken)) => {
                if let Some(variable) = variable {
                    dotenv.variables.retain(|earlier| earlier.name != variable.name);
                    dotenv.variables.push(variable);
                }
                taken
            }
            Err(reason) => {
                dotenv.problems.push(Problem { line, reason });
                end_of_line(rest)
            }
        };
        let (read, after) = rest.split_at(taken);
        line += read.split(|byte| *byte == b'\n').count() - 1;
        rest = after;
    }
    dotenv
}

type Parsed<T> = Result<T, &'static str>;

/// The first statement of `text`, and how many bytes it takes, its end of line included.
fn statement(text: &[u8]) -> Parsed<(Option<Variable>, usize)> {
    let mut at = blanks(text);
    if at_end_or_comment(&text[at..]) {
        return Ok((None, end_of_line(text)));
    }
    if let Some(after) = text[at..].strip_prefix(b"export")
        && blanks(after) > 0
    {
        at += b"export".len() + blanks(after);
    }
    let name = name(&text[at..])?;
    at += name.len();
    at += blanks(&text[at..]);
    if text.get(at) != Some(&b'=') {
        return Err("there is no = after the name");
    }
    at += 1;
    let blanks_before = blanks(&text[at..]);
    at += blanks_before;
    let (value, taken) = match text.get(at) {
        Some(quote @ (b'"' | b'\'')) => quoted(&text[at..], *quote)?,
        _ => bare(&text[at..], blanks_before > 0),
    };
    at += taken;
    let value = Secret::from_utf8(value).map_err(|_| "the value is not UTF-8")?;
    Ok((Some(Variable { name: name.to_owned(), value }), at + end_of_line(&text[at..])))
}

fn name(text: &[u8]) -> Parsed<&str> {
    let of_name = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    let length = text.iter().take_while(|byte| of_name(byte)).count();
    match text.first() {
        Some(first) if first.is_ascii_alphabetic() || *first == b'_' => {}
        _ => return Err("it does not begin with a variable's name"),
    }
    Ok(str::from_utf8(&text[..length]).expect("what a name consists of is ASCII"))
}

/// A value without quotes, and how many bytes it takes up to the end of its line.
fn bare(text: &[u8], mut after_blank: bool) -> (Vec<u8>, usize) {
    let line = without_newline(&text[..end_of_line(text)]);
    let mut length = line.len();
    for (at, byte) in line.iter().enumerate() {
        if *byte == b'#' && after_blank {
            length = at;
            break;
        }
        after_blank = is_blank(*byte);
    }
    (line[..length].trim_ascii_end().to_vec(), line.len())
}

/// A value in quotes, and how many bytes it takes with what may follow it on its line.
fn quoted(text: &[u8], quote: u8) -> Parsed<(Vec<u8>, usize)> {
    let end = closing_quote(text, quote).ok_or("the quote is not closed")?;
    let after = &text[end + 1..];
    if !at_end_or_comment(&after[blanks(after)..]) {
        return Err("there is something after the closing quote");
    }
    let inner = &text[1..end];
    let mut value = Zeroizing::new(Vec::with_capacity(inner.len()));
    let mut at = 0;
    while at < inner.len() {
        let (byte, taken) = match (inner[at], inner.get(at + 1)) {
            (b'\r', Some(b'\n')) => (b'\n', 2),
            (b'\\', Some(escaped)) if quote == b'"' => match escaped {
                b'n' => (b'\n', 2),
                b't' => (b'\t', 2),
                b'r' => (b'\r', 2),
                b'"' | b'\\' | b'$' => (*escaped, 2),
                _ => (b'\\', 1),
            },
            (byte, _) => (byte, 1),
        };
        value.push(byte);
        at += taken;
    }
    Ok((std::mem::take(&mut *value), end + 1))
}

/// Where the quote that `text` begins with is closed.
fn closing_quote(text: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            byte if byte == quote => return Some(at),
            b'\\' if quote == b'"' => at += 2,
            _ => at += 1,
        }
    }
    None
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn blanks(text: &[u8]) -> usize {
    text.iter().take_while(|byte| is_blank(**byte)).count()
}

fn at_end_or_comment(text: &[u8]) -> bool {
    matches!(text, [] | [b'\n' | b'#', ..] | [b'\r'] | [b'\r', b'\n', ..])
}

/// How many bytes it takes to the end of the line, the newline included.
fn end_of_line(text: &[u8]) -> usize {
    text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1)
}

fn without_newline(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(text: &str) -> Vec<(String, String)> {
        let dotenv = parse(text.as_bytes());
        assert_eq!(dotenv.problems, [], "in {text:?}");
        let pair = |it: Variable| (it.name, it.value.expose().to_owned());
        dotenv.variables.into_iter().map(pair).collect()
    }

    fn problems(text: &[u8]) -> (Vec<String>, Vec<String>) {
        let dotenv = parse(text);
        let names = dotenv.variables.into_iter().map(|it| it.name).collect();
        (dotenv.problems.iter().map(ToString::to_string).collect(), names)
    }

    #[test]
    fn values_are_what_people_mean() {
        for (line, value) in [
            ("A=b", "b"),
            ("  A = b  ", "b"),
            ("export A=b", "b"),
            ("export\tA=b", "b"),
            ("A=", ""),
            ("A=   ", ""),
            ("A=b c", "b c"),
            ("A=b # comment", "b"),
            ("A=b\t# comment", "b"),
            ("A=b#c", "b#c"),
            ("A=#b", "#b"),
            ("A= # comment", ""),
            ("A=b=c==", "b=c=="),
            ("A=b\"c\"", "b\"c\""),
            ("A=C:\\new", "C:\\new"),
            ("A=$HOME", "$HOME"),
            ("A='b # c'", "b # c"),
            ("A='b\\n'", "b\\n"),
            ("A='b'  # comment", "b"),
            ("A=\"b # c\" # d", "b # c"),
            ("A=\"\"", ""),
            (r#"A="\n\t\r\"\\\$""#, "\n\t\r\"\\$"),
            (r#"A="\x \' $B""#, r"\x \' $B"),
            (r#"A="ends in \\""#, r"ends in \"),
            ("A=\"b\nc\"", "b\nc"),
            ("A='b\r\nc'", "b\nc"),
            ("A=пароль 🔑", "пароль 🔑"),
            ("A=b\r", "b"),
            ("\u{feff}A=b", "b"),
        ] {
            for text in [line.to_owned(), format!("{line}\n"), format!("{line}\r\n")] {
                let expected = [("A".to_owned(), value.to_owned())];
                assert_eq!(variables(&text), expected, "{text:?}");
            }
        }
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let text = "# head\n\n  # indented\r\nA=1\r\nexport B='2\n3'\nexport=4\nA=5\n";
        let expected = [("B", "2\n3"), ("export", "4"), ("A", "5")];
        assert_eq!(variables(text), expected.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(variables(""), []);
        assert_eq!(variables("\n\n"), []);
    }

    #[test]
    fn a_bad_line_is_named_by_number_and_the_rest_is_read() {
        let text = b"A=1\nsk-canary\nB=2\n=x\nC=\"open\nD='x' y\n3E=x\nF=\xff\n\xff=1\nG=7";
        let (problems, names) = problems(text);
        assert_eq!(
            problems,
            [
                "line 2: there is no = after the name",
                "line 4: it does not begin with a variable's name",
                "line 5: the quote is not closed",
                "line 6: there is something after the closing quote",
                "line 7: it does not begin with a variable's name",
                "line 8: the value is not UTF-8",
                "line 9: it does not begin with a variable's name",
            ]
        );
        assert_eq!(names, ["A", "B", "G"]);
    }

    #[test]
    fn an_open_quote_does_not_swallow_the_next_variable() {
        let (problems, names) = problems(b"A=\"open\nB=\"closed\"\nC=1\n");
        assert_eq!(problems, ["line 1: there is something after the closing quote"]);
        assert_eq!(names, ["B", "C"]);
    }

    #[test]
    fn numbers_count_the_lines_of_a_long_value() {
        let (problems, _) = problems(b"A='1\n2\n3'\n\nbad\n");
        assert_eq!(problems, ["line 5: there is no = after the name"]);
    }
}
