//! The commands that change something: store, delete; and where a value comes from.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};

use intentframe_credentials::client::VaultClient;
use intentframe_credentials::redact::RegisteredSecrets;
use intentframe_credentials::{CredentialRef, DeliveryMode, Secret, StoreRequest};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use zeroize::Zeroizing;

use crate::cli::logging::keep_out;

use super::args::{Store, VALUE_ADVICE};
use super::credential;
use super::failure::Failure;

/// The longest value that the service takes.
const MAX_VALUE_BYTES: usize = 256 * 1024;

pub fn store(
    client: &VaultClient,
    args: Store,
    secrets: &RegisteredSecrets,
) -> Result<(), Failure> {
    if !args.more.is_empty() {
        return Err(Failure::usage(format!(
            "store takes one argument, NAMESPACE/KEY, and here are more\n  {VALUE_ADVICE}"
        )));
    }
    let at = credential(&args.credential)?;
    let delivery_mode = match args.delivery_mode.as_deref() {
        None => DeliveryMode::default(),
        Some(name) => DeliveryMode::from_name(name).ok_or_else(|| {
            Failure::usage("--delivery-mode is one of executor_only and runtime_env")
        })?,
    };
    let value = value_for(&at, args.keep_newline)?;
    keep_out(&value, secrets);
    if value.is_empty() && !args.allow_empty {
        return Err(Failure::usage(format!(
            "the value for {at} is empty, and nothing was stored\n  if it is meant to be, \
             say --allow-empty"
        )));
    }
    let request = StoreRequest {
        value,
        delivery_mode,
        allowed_consumers: args.consumer,
        env_name: args.env_name,
        validator_id: args.validator_id,
    };
    Ok(client.store(&at, &request)?)
}

pub fn delete(client: &VaultClient, at: &CredentialRef) -> Result<(), Failure> {
    Ok(client.delete(at)?)
}

fn value_for(at: &CredentialRef, keep_newline: bool) -> Result<Secret, Failure> {
    let stdin = io::stdin();
    let value = if stdin.is_terminal() {
        let _unechoed = Unechoed::terminal();
        rpassword::prompt_password(format!("Value for {at} (it is not shown): "))
            .map(Secret::new)
            .map_err(|error| Failure::other(format!("no value was entered: {error}")))?
    } else {
        read_value(stdin.lock(), keep_newline)?
    };
    if value.len() > MAX_VALUE_BYTES {
        return Err(too_long());
    }
    Ok(value)
}

/// The terminal without echo, for as long as this lives. rpassword turns it off only after
/// it has asked, which shows what a script, or a paste, answers in that moment.
struct Unechoed {
    terminal: File,
    before: Termios,
}

impl Unechoed {
    /// `None` where there is no terminal to set up.
    fn terminal() -> Option<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let before = termios::tcgetattr(&terminal).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(&terminal, OptionalActions::Now, &quiet).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for Unechoed {
    fn drop(&mut self) {
        // A terminal that has gone needs no echo.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

fn too_long() -> Failure {
    Failure::usage("the value is longer than 256 KiB, which is the most that the vault takes")
}

/// Reads a value to the end of `input`; see `store --help` for what is stripped.
fn read_value(input: impl Read, keep_newline: bool) -> Result<Secret, Failure> {
    const LONGEST_NEWLINE: usize = 2;
    let most = MAX_VALUE_BYTES + LONGEST_NEWLINE;
    // One more byte than may be, to see that there is more; and room for all of it from
    // the start, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + 1));
    input
        .take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::other(format!("cannot read standard input: {error}")))?;
    if bytes.len() > most {
        return Err(too_long());
    }
    if !keep_newline && bytes.ends_with(b"\n") {
        bytes.pop();
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
    }
    Secret::from_utf8(std::mem::take(&mut *bytes)).map_err(|_| {
        Failure::usage(
            "the value is not UTF-8 text, which is all that the vault takes\n  encode it first, \
             as in `base64 < FILE | credential-vault store NAMESPACE/KEY`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], keep_newline: bool) -> Option<String> {
        read_value(bytes, keep_newline).ok().map(|value| value.expose().to_owned())
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
    fn the_longest_value_may_have_a_newline_after_it() {
        let mut input = vec![b'v'; MAX_VALUE_BYTES];
        input.extend(b"\r\n");
        assert_eq!(read(&input, false).map(|value| value.len()), Some(MAX_VALUE_BYTES));
        input.push(b'\n');
        assert_eq!(read(&input, false), None);
    }
}
