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

/// Characters that are skipped around the parts of a line. A carriage return ends a line, with
/// the newline after it.
const BLANKS: [char; 3] = [' ', '\t', '\r'];

/// Parses the text of a file. Parsing continues after an invalid line.
pub fn parse(text: &[u8]) -> Dotenv {
    let text = String::from_utf8_lossy(text);
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut dotenv = Dotenv::default();
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
        let next = after.split_once('\n').map_or("", |(_, next)| next);
        line += rest[..rest.len() - next.len()].matches('\n').count();
        rest = next;
    }
    dotenv
}

/// Parses the statement that `text` begins with, and advances `text` to the end of its last
/// line.
fn statement(text: &mut &str) -> Result<Option<Variable>, &'static str> {
    *text = text.trim_start_matches(BLANKS);
    if is_end_or_comment(text) {
        return Ok(None);
    }
    if let Some(after) = text.strip_prefix("export")
        && after.starts_with(BLANKS)
    {
        *text = after.trim_start_matches(BLANKS);
    }
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let after = text.trim_start_matches(is_of_name);
    let name = &text[..text.len() - after.len()];
    if !name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') {
        return Err("it does not begin with a variable's name");
    }
    let after = after.trim_start_matches(BLANKS);
    *text = after.strip_prefix('=').ok_or("there is no = after the name")?;
    let value = match text.trim_start_matches(BLANKS).chars().next() {
        Some(quote @ ('"' | '\'')) => quoted(text, quote)?,
        _ => bare(text),
    };
    if value.contains(char::REPLACEMENT_CHARACTER) {
        return Err("the value is not UTF-8");
    }
    Ok(Some(Variable { name: name.to_owned(), value: Secret::new(value) }))
}

/// Parses a value without quotes. It ends before a `#` that follows a blank.
fn bare(text: &str) -> String {
    let line = text.split('\n').next().unwrap_or_default();
    let comment = line.match_indices('#').find(|(at, _)| line[..*at].ends_with(BLANKS));
    comment.map_or(line, |(at, _)| &line[..at]).trim_ascii().to_owned()
}

/// Parses a value in quotes. Only a comment may follow it on its line.
fn quoted(text: &mut &str, quote: char) -> Result<String, &'static str> {
    let mut value = Zeroizing::new(String::new());
    let mut rest = text.trim_start_matches(BLANKS)[1..].chars();
    loop {
        let next = rest.next().ok_or("the quote is not closed")?;
        let after = rest.as_str().chars().next();
        let character = match (next, after) {
            _ if next == quote => break,
            ('\r', Some('\n')) => '\n',
            ('\\', Some('n')) if quote == '"' => '\n',
            ('\\', Some('t')) if quote == '"' => '\t',
            ('\\', Some('r')) if quote == '"' => '\r',
            ('\\', Some(escaped @ ('"' | '\\' | '$'))) if quote == '"' => escaped,
            _ => {
                value.push(next);
                continue;
            }
        };
        value.push(character);
        rest.next();
    }
    *text = rest.as_str().trim_start_matches(BLANKS);
    if is_end_or_comment(text) {
        Ok(std::mem::take(&mut *value))
    } else {
        Err("there is something after the closing quote")
    }
}

fn is_end_or_comment(text: &str) -> bool {
    text.is_empty() || text.starts_with(['\n', '#'])
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
