//! Random numbers for keys, salts and tokens.

/// Bytes of the system's random number generator (getrandom(2)).
///
/// # Errors
///
/// A text, if the system has none.
pub fn bytes<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    getrandom::getrandom(&mut bytes).map_err(|error| format!("no random numbers: {error}"))?;
    Ok(bytes)
}
