//! `store`: reads a value from a prompt or standard input, and stores it.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};

use intentframe_credentials::{CredentialRef, DeliveryMode, Secret, StoreRequest, random};
use rustix::termios::{self, LocalModes, OptionalActions};
use zeroize::Zeroizing;

use super::logging::keep_out;
use super::prelude::*;

/// The longest value that the service accepts.
const MAX_VALUE_BYTES: usize = 256 * 1024;

/// Store a value, read from a prompt or standard input, or generated.
#[derive(ArgsInfo, FromArgs)]
#[argh(subcommand, name = "store", help_triggers("-h", "--help"))]
#[argh(
    example = "credential-vault store openai/api_key\n\
               credential-vault store tls.example/private_key --keep-newline < key.pem\n\
               credential-vault store db.main/password --generate --length 24",
    note = "On a terminal, store prompts for the value and does not show it. Otherwise it\n\
            reads standard input: UTF-8 text of at most 256 KiB. One newline at the end\n\
            (\\n or \\r\\n) is removed, unless --keep-newline is given. A value is never taken\n\
            from the command line, because every user of the machine can see it there in\n\
            the process list."
)]
pub struct Store {
    /// executor_only (a trusted service fetches the value, the default) or runtime_env (the
    /// value is delivered in an environment variable)
    #[argh(option, arg_name = "mode")]
    delivery_mode: Option<String>,

    /// allow this consumer only; may be repeated; without it, every consumer is allowed
    #[argh(option, arg_name = "name")]
    consumer: Vec<String>,

    /// the environment variable to deliver the value in
    #[argh(option, arg_name = "name")]
    env_name: Option<String>,

    /// the validator that checks whether the value still works
    #[argh(option, arg_name = "name")]
    validator_id: Option<String>,

    /// keep the newline at the end of standard input
    #[argh(switch)]
    keep_newline: bool,

    /// store an empty value, which is an error otherwise
    #[argh(switch)]
    allow_empty: bool,

    /// store a value from the random numbers of the system, and read nothing
    #[argh(switch)]
    generate: bool,

    /// with --generate: the number of characters (32 by default)
    #[argh(option, arg_name = "count")]
    length: Option<usize>,

    /// with --generate: alphanumeric (the default), base64url, digits, hex or symbols (all of
    /// ASCII that can be seen)
    #[argh(option, arg_name = "name")]
    alphabet: Option<String>,

    /// with --generate: also print the value
    #[argh(switch)]
    print: bool,

    /// the credential, as NAMESPACE/KEY
    #[argh(positional)]
    credential: String,
}

pub fn run(args: Store, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let at = credential(&args.credential)?;
    let delivery_mode = match args.delivery_mode.as_deref().map(DeliveryMode::from_name) {
        None => DeliveryMode::default(),
        Some(mode) => mode.ok_or_else(|| {
            Failure::usage("--delivery-mode is either executor_only or runtime_env")
        })?,
    };
    let has_details = args.length.is_some() || args.alphabet.is_some() || args.print;
    if has_details && !args.generate {
        return Err(Failure::usage("--length, --alphabet and --print require --generate"));
    }
    let value = if args.generate {
        let alphabet = args.alphabet.as_deref().unwrap_or("alphanumeric");
        generate(args.length.unwrap_or(32), alphabet)?
    } else {
        read_value(&at, args.keep_newline)?
    };
    keep_out(&value, &context.secrets);
    if value.is_empty() && !args.allow_empty {
        return Err(Failure::usage(format!("the value for {at} is empty; nothing was stored"))
            .hint("--allow-empty stores an empty value"));
    }
    let request = StoreRequest {
        value,
        delivery_mode,
        allowed_consumers: args.consumer,
        env_name: args.env_name,
        validator_id: args.validator_id,
    };
    client.store(&at, &request)?;
    if args.print { output::value(request.value.expose()) } else { Ok(()) }
}

fn read_value(at: &CredentialRef, keep_newline: bool) -> Result<Secret, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let line = prompt(&format!("Value for {at} (not shown): "))
            .map_err(cannot("read a value from the terminal"))?;
        return value(Zeroizing::new(line).as_bytes(), true);
    }
    value(stdin.lock(), keep_newline)
}

/// Asks on the terminal. rpassword turns echo off only after it has asked, but a script, or
/// a paste, may answer at once.
pub fn prompt(question: &str) -> io::Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    let before = termios::tcgetattr(&terminal)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    termios::tcsetattr(&terminal, OptionalActions::Now, &quiet)?;
    let line = rpassword::prompt_password(question);
    termios::tcsetattr(&terminal, OptionalActions::Now, &before)?;
    line
}

/// Reads all of `input`, or one byte more than is needed to know that it is too long. Strips
/// one newline, and checks what the service would refuse.
pub fn value(input: impl Read, keep_newline: bool) -> Result<Secret, Failure> {
    const LIMIT: usize = MAX_VALUE_BYTES + "\r\n".len() + 1;

    // With room for all of it from the start, growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT));
    input.take(LIMIT as u64).read_to_end(&mut bytes).map_err(cannot("read standard input"))?;
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

const ALPHABETS: &str = "alphanumeric, base64url, digits, hex or symbols";

/// A value of `length` characters, each as likely as any other of the alphabet.
fn generate(length: usize, alphabet: &str) -> Result<Secret, Failure> {
    let is_in: fn(&u8) -> bool = match alphabet {
        "alphanumeric" => u8::is_ascii_alphanumeric,
        "base64url" => |c| c.is_ascii_alphanumeric() || b"-_".contains(c),
        "digits" => u8::is_ascii_digit,
        "hex" => |c| c.is_ascii_digit() || (b'a'..=b'f').contains(c),
        "symbols" => u8::is_ascii_graphic,
        _ => return Err(Failure::usage(format!("--alphabet is {ALPHABETS}"))),
    };
    if !(1..=MAX_VALUE_BYTES).contains(&length) {
        return Err(Failure::usage(format!("--length is from 1 to {MAX_VALUE_BYTES}")));
    }
    let mut value = String::with_capacity(length);
    while value.len() < length {
        let bytes = Zeroizing::new(random::bytes::<256>().map_err(Failure::other)?);
        // All others are rejected, so that none is more likely.
        let fitting = bytes.iter().filter(|byte| is_in(byte)).take(length - value.len());
        value.extend(fitting.map(|byte| char::from(*byte)));
    }
    Ok(Secret::new(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], keep_newline: bool) -> Option<String> {
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
