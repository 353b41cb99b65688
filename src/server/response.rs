//! Responses: an answer of the router's as the bytes of HTTP/1.1 (RFC 9112).

use std::io::Write as _;
use std::time::SystemTime;

use httpdate::HttpDate;
use tiny_http::StatusCode;

use crate::router::Answer;

use super::buffer::{Lent, Output};

/// The `Connection` header: the connection is kept, as HTTP/1.1 does by default.
pub(super) const KEPT: &str = "";
/// It is kept, and an HTTP/1.0 client has to be told.
pub(super) const KEPT_ANNOUNCED: &str = "Connection: keep-alive\r\n";
/// It is closed after this response.
pub(super) const CLOSED: &str = "Connection: close\r\n";

/// Room for the head of any response: our headers are few and short.
const HEAD_BYTES: usize = 512;
/// A piece of a body up to this size is sent together with what is before it.
const SHORT_BYTES: usize = 4096;

/// Adds a response to what is to be sent.
pub(super) fn write(
    output: &mut Output,
    answer: Answer,
    connection: &'static str,
    is_head: bool,
    lent: &mut Lent,
) {
    let (status, headers, body) = answer.into_parts();
    let headers_len: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    let head = output.room_for(HEAD_BYTES + headers_len, lent);
    let reason = StatusCode(status).default_reason_phrase();
    let mut write = |line: std::fmt::Arguments<'_>| {
        head.write_fmt(line).expect("a Vec takes every write");
    };
    write(format_args!("HTTP/1.1 {status} {reason}\r\n{connection}"));
    for (name, value) in &headers {
        write(format_args!("{name}: {value}\r\n"));
    }
    // The date: RFC 9110, 6.6.1.
    let (length, date) = (body.len(), HttpDate::from(SystemTime::now()));
    write(format_args!(
        "Server: credential-vault\r\nContent-Length: {length}\r\nDate: {date}\r\n\r\n"
    ));
    if is_head {
        return;
    }
    for piece in body.into_segments() {
        if piece.len() <= SHORT_BYTES {
            output.room_for(piece.len(), lent).extend_from_slice(&piece);
        } else {
            output.push(piece);
        }
    }
}

/// Adds `100 Continue` (RFC 9110, 15.2.1).
pub(super) fn write_continue(output: &mut Output, lent: &mut Lent) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    output.room_for(CONTINUE.len(), lent).extend_from_slice(CONTINUE);
}
