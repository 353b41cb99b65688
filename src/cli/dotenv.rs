//! A parser of `.env` files.
//!
//! A line is blank, a comment (`#`), or `NAME=value`, optionally after `export ` and with
//! blanks around the `=`. A value is one of:
//!
//! - bare: everything up to the end of the line, or to a `#` after a blank, trimmed;
//! - in single quotes: literal;
//! - in double quotes: literal but for `\n`, `\t`, `\r`, `\"`, `\\` and `\$`. Any other
//!   backslash stays.
//!
//! A quoted value may span several lines. Variables are not interpolated: `$HOME` is five
//! characters. If a name is set twice, the last one counts, as in python-dotenv. CRLF line
//! ends and a byte order mark are accepted.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use intentframe_credentials::Secret;
use zeroize::Zeroizing;

/// A `.env` file.
#[derive(Debug, Default)]
pub struct Dotenv {
    /// The variables, in the order of their last assignment.
    pub variables: Vec<Variable>,
    /// For each invalid line its number and what is wrong, without its content.
    pub problems: Vec<String>,
}

#[derive(Debug)]
pub struct Variable {
    pub name: String,
    /// May be empty.
    pub value: Secret,
}

/// Reads and parses the file.
pub fn read(path: &Path) -> io::Result<Dotenv> {
    const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

    let invalid = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let mut bytes = Zeroizing::new(Vec::new());
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return invalid("it is longer than 4 MiB, so it is not a .env file");
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return invalid("it is in UTF-16; save it as UTF-8");
    }
    Ok(parse(&bytes))
}

/// Parses the text of a file. Parsing continues after an invalid line.
pub fn parse(text: &[u8]) -> Dotenv {
    let mut dotenv = Dotenv::default();
    let mut rest = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let mut after = rest;
        match statement(&mut after) {
            Ok(None) => {}
            Ok(Some(variable)) => {
                dotenv.variables.retain(|earlier| earlier.name != variable.name);
                dotenv.variables.push(variable);
            }
            Err(reason) => {
                dotenv.problems.push(format!("line {line}: {reason}"));
                after = rest;
            }
        }
        after = &after[line_length(after)..];
        let parsed = &rest[..rest.len() - after.len()];
        line += parsed.split(|byte| *byte == b'\n').count() - 1;
        rest = after;
    }
    dotenv
}

/// Parses the statement that `text` begins with, and advances `text` past it.
fn statement(text: &mut &[u8]) -> Result<Option<Variable>, &'static str> {
    skip_blanks(text);
    if is_end_or_comment(text) {
        return Ok(None);
    }
    if let Some(mut after) = text.strip_prefix(b"export")
        && skip_blanks(&mut after)
    {
        *text = after;
    }
    let is_of_name = |byte: &&u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    let length = text.iter().take_while(is_of_name).count();
    let (name, after) = text.split_at(length);
    if !name.first().is_some_and(|first| first.is_ascii_alphabetic() || *first == b'_') {
        return Err("it does not begin with a variable's name");
    }
    *text = after;
    skip_blanks(text);
    *text = text.strip_prefix(b"=").ok_or("there is no = after the name")?;
    let after_blank = skip_blanks(text);
    let value = match text.first() {
        Some(quote @ (b'"' | b'\'')) => quoted(text, *quote)?,
        _ => bare(text, after_blank),
    };
    let name = String::from_utf8_lossy(name).into_owned();
    let value = Secret::from_utf8(value).map_err(|_| "the value is not UTF-8")?;
    Ok(Some(Variable { name, value }))
}

/// Parses a value without quotes. It ends before a `#` that follows a blank.
fn bare(text: &[u8], mut after_blank: bool) -> Vec<u8> {
    let line = &text[..line_length(text)];
    let is_comment = |byte: &u8| {
        let is_comment = *byte == b'#' && after_blank;
        after_blank = is_blank(*byte);
        is_comment
    };
    let length = line.iter().position(is_comment).unwrap_or(line.len());
    line[..length].trim_ascii_end().to_vec()
}

/// Parses a value in quotes. Only a comment may follow it on its line.
fn quoted(text: &mut &[u8], quote: u8) -> Result<Vec<u8>, &'static str> {
    let mut value = Zeroizing::new(Vec::new());
    let mut rest = &text[1..];
    loop {
        let (byte, length) = match rest {
            [] => return Err("the quote is not closed"),
            [byte, ..] if *byte == quote => break,
            [b'\r', b'\n', ..] => (b'\n', 2),
            [b'\\', b'n', ..] if quote == b'"' => (b'\n', 2),
            [b'\\', b't', ..] if quote == b'"' => (b'\t', 2),
            [b'\\', b'r', ..] if quote == b'"' => (b'\r', 2),
            [b'\\', byte @ (b'"' | b'\\' | b'$'), ..] if quote == b'"' => (*byte, 2),
            [byte, ..] => (*byte, 1),
        };
        value.push(byte);
        rest = &rest[length..];
    }
    *text = &rest[1..];
    skip_blanks(text);
    if is_end_or_comment(text) {
        Ok(std::mem::take(&mut *value))
    } else {
        Err("there is something after the closing quote")
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Skips blanks, and returns whether there were any.
fn skip_blanks(text: &mut &[u8]) -> bool {
    let count = text.iter().take_while(|byte| is_blank(**byte)).count();
    *text = &text[count..];
    count > 0
}

fn is_end_or_comment(text: &[u8]) -> bool {
    matches!(text, [] | [b'\n' | b'#', ..] | [b'\r'] | [b'\r', b'\n', ..])
}

/// The length of the first line, with its newline.
fn line_length(text: &[u8]) -> usize {
    text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(text: &str) -> Vec<(String, String)> {
        let dotenv = parse(text.as_bytes());
        assert!(dotenv.problems.is_empty(), "in {text:?}");
        let pair = |it: Variable| (it.name, it.value.expose().to_owned());
        dotenv.variables.into_iter().map(pair).collect()
    }

    fn problems(text: &[u8]) -> (Vec<String>, Vec<String>) {
        let dotenv = parse(text);
        let names = dotenv.variables.into_iter().map(|it| it.name).collect();
        (dotenv.problems, names)
    }

    #[test]
    fn values_are_parsed() {
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
    fn a_file_is_parsed_line_by_line() {
        let text = "# head\n\n  # indented\r\nA=1\r\nexport B='2\n3'\nexport=4\nA=5\n";
        let expected = [("B", "2\n3"), ("export", "4"), ("A", "5")];
        assert_eq!(variables(text), expected.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(variables(""), []);
        assert_eq!(variables("\n\n"), []);
    }

    #[test]
    fn an_invalid_line_is_reported_by_number_and_the_rest_is_parsed() {
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
    fn an_unclosed_quote_does_not_swallow_the_next_variable() {
        let (problems, names) = problems(b"A=\"open\nB=\"closed\"\nC=1\n");
        assert_eq!(problems, ["line 1: there is something after the closing quote"]);
        assert_eq!(names, ["B", "C"]);
    }

    #[test]
    fn line_numbers_count_the_lines_of_a_value() {
        let (problems, _) = problems(b"A='1\n2\n3'\n\nbad\n");
        assert_eq!(problems, ["line 5: there is no = after the name"]);
    }
}
