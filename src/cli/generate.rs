//! Values from the random numbers of the system.

use intentframe_credentials::{Secret, random};
use zeroize::Zeroizing;

use super::failure::Failure;
use super::store::MAX_VALUE_BYTES;

pub const ALPHABETS: &str = "alphanumeric, base64url, digits, hex or symbols";

/// A value of `length` characters, each as likely as any other of the alphabet.
pub fn generate(length: usize, alphabet: &str) -> Result<Secret, Failure> {
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
