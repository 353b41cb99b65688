//! Responses: an answer of the router's as the bytes of HTTP/1.1 (RFC 9112).

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use httpdate::HttpDate;
use tiny_http::StatusCode;

use crate::router::Answer;

use super::buffer::{Lent, Output};

/// What the response's head says of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It is kept, as HTTP/1.1 does by default.
    Kept,
    /// It is kept, and an HTTP/1.0 client has to be told.
    KeptAnnounced,
    /// It is closed after this response.
    Closed,
}

impl Persistence {
    fn header_line(self) -> &'static str {
        match self {
            Self::Kept => "",
            Self::KeptAnnounced => "Connection: keep-alive\r\n",
            Self::Closed => "Connection: close\r\n",
        }
    }
}

/// Room for the head of any response: our headers are few and short.
const HEAD_BYTES: usize = 512;
/// A piece of a body up to this size is sent together with what is before it.
const SHORT_BYTES: usize = 4096;

/// Adds a response to what is to be sent.
pub(super) fn write(
    output: &mut Output,
    answer: Answer,
    persistence: Persistence,
    is_head: bool,
    lent: &mut Lent,
) {
    let (status, headers, body) = answer.into_parts();
    let headers_len: usize = headers
        .iter()
        .map(|header| header.field.as_str().as_str().len() + header.value.len() + 4)
        .sum();
    let head = output.room_for(HEAD_BYTES + headers_len, lent);
    let reason = StatusCode(status).default_reason_phrase();
    let mut write = |line: std::fmt::Arguments<'_>| {
        head.write_fmt(line).expect("a Vec takes every write");
    };
    write(format_args!("HTTP/1.1 {status} {reason}\r\n{}", persistence.header_line()));
    for header in &headers {
        let (name, value) = (header.field.as_str(), header.value.as_str());
        write(format_args!("{name}: {value}\r\n"));
    }
    write(format_args!("Server: credential-vault\r\nContent-Length: {}\r\nDate: ", body.len()));
    DATE.with_borrow_mut(|date| head.extend_from_slice(date.now().as_bytes()));
    head.extend_from_slice(b"\r\n\r\n");
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

thread_local! {
    static DATE: RefCell<Date> = const { RefCell::new(Date { second: 0, text: String::new() }) };
}

/// The value of the `Date` header (RFC 9110, 6.6.1), made once a second.
struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn now(&mut self) -> &str {
        let now = SystemTime::now();
        let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
        if self.text.is_empty() || second != self.second {
            self.second = second;
            self.text =
                HttpDate::from(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).to_string();
        }
        &self.text
    }
}
