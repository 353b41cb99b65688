//! Checks the bytes that a service answers.

use super::service::REFUSED;

/// A part of the values in the corpus.
const CANARY: &[u8] = b"canary";

const STATUSES: [u16; 15] =
    [100, 200, 307, 400, 404, 405, 411, 413, 414, 417, 422, 431, 500, 501, 503];

/// The status of each answer. If the connection was reset, the last one may be cut off.
///
/// # Panics
///
/// If an answer is not well-formed, or says what none may say.
pub fn statuses(mut received: &[u8], is_reset: bool) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !received.is_empty() {
        let Some(answer) = answer(received) else {
            assert!(is_reset, "no answer: {:?}", String::from_utf8_lossy(received));
            break;
        };
        let (status, body, length) = answer;
        let shown = String::from_utf8_lossy(body);
        assert!(STATUSES.contains(&status), "status {status}");
        let is_told = body.is_empty() || shown.contains(REFUSED);
        assert!(status != 500 || is_told, "{shown}");
        let echoes = status >= 400 && body.windows(CANARY.len()).any(|part| part == CANARY);
        assert!(!echoes, "a value in an error: {shown}");
        statuses.push(status);
        received = &received[length..];
    }
    statuses
}

/// The status and the body of the first answer, and the length of it all.
fn answer(received: &[u8]) -> Option<(u16, &[u8], usize)> {
    let head_length = find(received, b"\r\n\r\n")? + 4;
    let head = str::from_utf8(&received[..head_length]).expect("heads are ASCII");
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ").expect("a status line");
    let status: u16 = status.get(..3).expect("a status").parse().expect("a status");
    let (mut length, mut is_chunked) = (None, false);
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a header");
        assert!(name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-'), "{name}");
        match &*name.to_ascii_lowercase() {
            "content-length" => assert!(length.replace(value).is_none(), "two lengths"),
            "transfer-encoding" => is_chunked = value == "chunked",
            _ => {}
        }
    }
    let rest = &received[head_length..];
    assert!(!(is_chunked && length.is_some()), "two framings");
    let length: usize = match length {
        // An answer to HEAD has the length of the body that it does not have.
        Some(_) if rest.is_empty() || rest.starts_with(b"HTTP/1.1 ") => 0,
        Some(length) => length.parse().expect("a number"),
        None if status == 100 => 0,
        None if is_chunked => chunks(rest)?,
        None => rest.len(),
    };
    Some((status, rest.get(..length)?, head_length + length))
}

/// The length of a body in chunks (RFC 9112, 7.1).
fn chunks(body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(&body[at..], b"\r\n")?;
        let digits = str::from_utf8(&body[at..at + line]).expect("hexadecimal digits");
        let size = usize::from_str_radix(digits, 16).expect("hexadecimal digits");
        at += line + 2 + size + 2;
        assert_eq!(body.get(at - 2..at)?, b"\r\n", "a chunk ends in CRLF");
        if size == 0 {
            return Some(at);
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
