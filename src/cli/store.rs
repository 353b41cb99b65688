//! `store`: reads a value from a prompt or standard input, and stores it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read, Write as _};

use intentframe_credentials::{CredentialRef, DeliveryMode, Secret, StoreRequest};
use rustix::termios::{self, LocalModes, OptionalActions};
use zeroize::Zeroizing;

use super::Context;
use super::args::Args;
use super::failure::{Failure, cannot};
use super::logging::keep_out;

/// The longest value that the service accepts.
const MAX_VALUE_BYTES: usize = 256 * 1024;

pub fn run(mut args: Args, context: &Context) -> Result<(), Failure> {
    let client = context.client(&mut args)?;
    let delivery_mode = args.value("--delivery-mode")?;
    let allowed_consumers = args.values("--consumer")?;
    let env_name = args.value("--env-name")?;
    let validator_id = args.value("--validator-id")?;
    let keep_newline = args.switch("--keep-newline");
    let allow_empty = args.switch("--allow-empty");
    // Too many arguments, or an unknown one, may be a value.
    let at = args.credential().map_err(|failure| {
        failure.hint(
            "a value is never taken from the command line: every user of the machine can see it\n  \
             in the process list, and the shell keeps it in its history. Type it at the prompt of\n  \
             `credential-vault store NAMESPACE/KEY`, or send it to its standard input:\n  \
             `... | credential-vault store NAMESPACE/KEY`",
        )
    })?;
    let delivery_mode = match delivery_mode.as_deref().map(DeliveryMode::from_name) {
        None => DeliveryMode::default(),
        Some(mode) => mode.ok_or_else(|| {
            Failure::usage("--delivery-mode is either executor_only or runtime_env")
        })?,
    };
    let value = read_value(&at, keep_newline)?;
    keep_out(&value, &context.secrets);
    if value.is_empty() && !allow_empty {
        return Err(Failure::usage(format!("the value for {at} is empty; nothing was stored"))
            .hint("--allow-empty stores an empty value"));
    }
    let request = StoreRequest { value, delivery_mode, allowed_consumers, env_name, validator_id };
    Ok(client.store(&at, &request)?)
}

fn read_value(at: &CredentialRef, keep_newline: bool) -> Result<Secret, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let line = prompt(&format!("Value for {at} (not shown): "))
            .map_err(cannot("read a value from the terminal"))?;
        return value(line, false);
    }
    value(read_to_end(stdin.lock())?, keep_newline)
}

/// Reads all of `input`, or one byte more than is needed to know that it is too long.
fn read_to_end(input: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    const LIMIT: usize = MAX_VALUE_BYTES + "\r\n".len() + 1;
    // With room for all of it from the start, growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT));
    input.take(LIMIT as u64).read_to_end(&mut bytes).map_err(cannot("read standard input"))?;
    Ok(bytes)
}

/// Asks on the terminal, with echo off before the question appears: a script, or a paste,
/// may answer at once.
fn prompt(question: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    let before = termios::tcgetattr(&terminal)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    termios::tcsetattr(&terminal, OptionalActions::Now, &quiet)?;
    let mut line = Zeroizing::new(Vec::new());
    let read = terminal
        .write_all(question.as_bytes())
        .and_then(|()| BufReader::new(&terminal).read_until(b'\n', &mut line));
    termios::tcsetattr(&terminal, OptionalActions::Now, &before)?;
    terminal.write_all(b"\n")?;
    if read? == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
}

/// Strips one newline, and checks what the service would refuse.
fn value(mut bytes: Zeroizing<Vec<u8>>, keep_newline: bool) -> Result<Secret, Failure> {
    if !keep_newline && bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(Failure::usage("the value is longer than 256 KiB, the most that is allowed"));
    }
    Secret::from_utf8(std::mem::take(&mut *bytes)).map_err(|_| {
        Failure::usage("the value is not UTF-8 text")
            .hint("encode it first, as in `base64 < FILE | credential-vault store NAMESPACE/KEY`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], keep_newline: bool) -> Option<String> {
        let bytes = read_to_end(bytes).expect("reads");
        value(bytes, keep_newline).ok().map(|value| value.expose().to_owned())
    }

    #[test]
    fn one_newline_is_stripped_and_no_more() {
        for (input, value) in [
            ("a", "a"),
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("a\n\n", "a\n"),
            ("a\r", "a\r"),
            ("a\nb\n", "a\nb"),
            (" a ", " a "),
            ("\n", ""),
            ("", ""),
        ] {
            assert_eq!(read(input.as_bytes(), false).as_deref(), Some(value), "{input:?}");
            assert_eq!(read(input.as_bytes(), true).as_deref(), Some(input));
        }
        assert_eq!(read(b"\xff\n", false), None);
    }

    #[test]
    fn a_newline_may_follow_the_longest_value() {
        let mut input = vec![b'v'; MAX_VALUE_BYTES];
        input.extend(b"\r\n");
        assert_eq!(read(&input, false).map(|value| value.len()), Some(MAX_VALUE_BYTES));
        input.push(b'\n');
        assert_eq!(read(&input, false), None);
    }
}
